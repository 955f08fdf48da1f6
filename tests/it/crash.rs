//! The crash matrix: the real process dies at each named point of a lead's way, and again while it recovers from that; then what was
//! confirmed, what the API received and what the ledger says are held against each other.

use std::time::Duration;

use clap::ValueEnum as _;
use leadpost::fault::Point;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::Fault;

use crate::support::books::Audit;
use crate::support::{Message, Process, World};

/// The leads of a scene; the last two are no leads.
const LEADS: usize = 8;

/// How many posts are under way at a time, and so in doubt when the process dies.
const SLOTS: usize = 4;

fn name(point: Point) -> String {
    point.to_possible_value().unwrap().get_name().to_owned()
}

/// A worker that dies at this point.
async fn doomed(world: &World, point: Point, nth: u32) -> Process {
    let faults = format!("crash_at={}:{nth}", name(point));
    world.worker_with(&["--concurrency", &SLOTS.to_string()], &[("LEADPOST_FAULTS", &faults)]).await
}

/// Waits until it has died where it was to die.
async fn until_dead(mut worker: Process, point: Point) {
    assert_eq!(worker.ended().await, None, "it must have been aborted: {}", worker.said());
    let said = worker.said();
    assert!(said.contains(&format!("crashing on purpose point={point:?}")), "{point:?}: {said}");
}

/// Lets the leases of a worker that is dead run out.
async fn expire(world: &World) {
    world.expire_leases().await;
}

/// Publishes the leads of a scene.
async fn publish(world: &World) {
    world.publish_many("lead", LEADS).await;
    world.publish_body(r#"{"name":"no email","assistantId":61}"#).await;
    world.publish_body("no json").await;
}

/// A healthy worker brings everything to an end, and the records agree.
async fn recovers(world: &World, what: &str) -> Audit {
    expire(world).await;
    let worker = world.worker(&["--concurrency", &SLOTS.to_string()]).await;
    let after = world.publish("after").await;
    until_ended(world, what).await;
    worker.stop().await;
    assert_eq!(world.state(after).await, Some(LeadState::Delivered), "{what}");
    let audit = world.check_all().await;
    assert!(audit.holds(), "{what}: {audit:#?}");
    let of = |state: &str| audit.states.get(state).copied().unwrap_or(0);
    // What is posted a second time is a duplicate at this API.
    assert_eq!(of("delivered") + of("duplicate") + of("invalid"), audit.published as u64, "{what}: {audit:#?}");
    assert!(of("duplicate") <= audit.uncertain as u64, "{what}: {audit:#?}");
    audit
}

/// Waits until each lead that was confirmed, all of them different, has come to an end; nothing waits for its time, and leases are left alone.
async fn until_ended(world: &World, what: &str) {
    let leads = world.broker.confirmed().len();
    world
        .until(&format!("{what}: all leads have come to an end"), async || {
            world.hurry().await;
            let ended = world.number("select count(*) from leads where state <> 'pending'").await;
            usize::try_from(ended).unwrap() == leads
        })
        .await;
}

/// Dies at this point with leads in every stage before it, and recovers. Each lead that it held is in doubt, and no other. Comes back
/// with how many posts there were when it was dead, and how many of them were made again.
async fn crash_at(point: Point, nth: u32) -> (usize, usize) {
    let world = World::new().await;
    slow(&world);
    publish(&world).await;
    let worker = doomed(&world, point, nth).await;
    until_dead(worker, point).await;
    let posts = world.sandbox.journal().posts().len();
    let held = world.number("select count(*) from leads where lease is not null").await;
    let audit = world.audit().await;
    assert!(audit.doubles.is_empty() && audit.wrong.is_empty(), "{point:?}, while it is dead: {audit:#?}");
    let audit = recovers(&world, &format!("{point:?}")).await;
    assert_eq!(audit.uncertain, usize::try_from(held).unwrap(), "{point:?}: {audit:#?}");
    (posts, audit.again)
}

/// An API at which a post is under way for longer than it takes to die in the middle of it.
fn slow(world: &World) {
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(400));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_a_post_leaves_nothing_to_be_posted_twice() {
    for point in [Point::Received, Point::Accepting, Point::Accepted] {
        assert_eq!(crash_at(point, 1).await, (0, 0), "{point:?}");
    }
    // The others in hand may get further before the process is gone.
    for point in [Point::Authorized, Point::Posting] {
        let (posts, again) = crash_at(point, 1).await;
        assert!(posts < SLOTS && again <= posts, "{point:?}: {posts}, {again}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_ack_loses_nothing_that_was_acknowledged() {
    // The ack and the first post go their ways at the same time.
    crash_at(Point::Acknowledged, 1).await;
    crash_at(Point::Received, LEADS as u32).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_around_a_post_leaves_a_doubt_for_each_lead_in_hand_and_no_other() {
    for point in [Point::Posted, Point::Answered, Point::Settling, Point::Settled] {
        let (posts, again) = crash_at(point, 1).await;
        assert!((1..=2 * SLOTS).contains(&posts) && again <= posts, "{point:?}: {posts}, {again}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_midst_of_the_flow_leaves_a_doubt_for_each_lead_in_hand_and_no_other() {
    for (point, nth) in [(Point::Posting, 3), (Point::Answered, 5), (Point::Settling, 2), (Point::Accepting, 2)] {
        crash_at(point, nth).await;
    }
}

/// Dies at this point, with whatever is there to do.
async fn crash_on_the_way(world: &World, point: Point) {
    let worker = doomed(world, point, 1).await;
    let release = async {
        // What a crash before has left behind is due again at once.
        loop {
            world.hurry().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = release => {}
        () = until_dead(worker, point) => {}
    }
    expire(world).await;
}

/// A crash during the recovery from a crash.
async fn crash_twice(first: Point, second: Point) {
    let world = World::new().await;
    slow(&world);
    publish(&world).await;
    let worker = doomed(&world, first, 1).await;
    until_dead(worker, first).await;
    expire(&world).await;
    crash_on_the_way(&world, second).await;
    recovers(&world, &format!("{first:?}, then {second:?}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_expired_leases_are_settled_settles_them_once() {
    for first in [Point::Accepted, Point::Posted, Point::Settling] {
        for second in [Point::Expiring, Point::Expired] {
            crash_twice(first, second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_leads_in_doubt_are_posted_again_keeps_both_doubts_on_record() {
    for first in [Point::Posted, Point::Settling] {
        for second in [Point::Claiming, Point::Claimed, Point::Posted, Point::Settling, Point::Settled] {
            crash_twice(first, second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_messages_come_again_recognizes_them_once_more() {
    for first in [Point::Accepted, Point::Accepting] {
        for second in [Point::Received, Point::Accepting, Point::Accepted, Point::Acknowledged] {
            crash_twice(first, second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo test --test it every_pair -- --ignored"]
async fn every_pair_of_crashes_on_the_way_loses_nothing() {
    let way = [
        Point::Received,
        Point::Accepting,
        Point::Accepted,
        Point::Acknowledged,
        Point::Authorized,
        Point::Posting,
        Point::Posted,
        Point::Answered,
        Point::Settling,
        Point::Settled,
    ];
    for first in way {
        for second in way {
            crash_twice(first, second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_due_leads_are_claimed_posts_each_of_them_once() {
    for point in [Point::Claiming, Point::Claimed] {
        let world = World::new().await;
        // The first try of each is refused for now.
        world.sandbox.faults().script(vec![Fault::status(503); LEADS]);
        publish(&world).await;
        let worker = world.worker(&[]).await;
        world.until_count(LeadState::Invalid, 2).await;
        world
            .until("each lead was tried", async || {
                world.number("select count(*) from leads where attempts > 0 and lease is null").await >= 1
            })
            .await;
        worker.stop().await;
        world.sandbox.faults().clear();
        world.hurry().await;
        world.execute("update destinations set held_until = null").await;
        let worker = doomed(&world, point, 1).await;
        until_dead(worker, point).await;
        recovers(&world, &format!("{point:?}")).await;
        let doubts = world.number("select count(*) from attempts where code = 'lease_expired'").await;
        assert_eq!(doubts > 0, point == Point::Claimed, "only what was committed can run out");
        let audit = world.audit().await;
        assert_eq!(audit.states.get("duplicate"), None, "none of them was ever taken twice: {audit:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_stopping_leaves_nothing_that_the_next_worker_does_not_find() {
    for point in [Point::Stopping, Point::Parked, Point::Drained] {
        let world = World::new().await;
        slow(&world);
        publish(&world).await;
        let worker = doomed(&world, point, 1).await;
        world.until("posts are under way", async || !world.sandbox.journal().posts().is_empty()).await;
        worker.signal("TERM");
        until_dead(worker, point).await;
        if point == Point::Drained {
            let leased = world.number("select count(*) from leads where lease is not null").await;
            assert_eq!(leased, 0, "all was settled or handed back");
        }
        recovers(&world, &format!("{point:?}")).await;
    }
}

/// A crash while it stops, before or after one on the way.
async fn crash_when_told_to_stop(world: &World, point: Point) {
    let worker = doomed(world, point, 1).await;
    let posts = world.sandbox.journal().posts().len();
    world.until("posts are under way", async || world.sandbox.journal().posts().len() > posts).await;
    worker.signal("TERM");
    until_dead(worker, point).await;
    expire(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_stopping_and_one_on_the_way_before_or_after_it_lose_nothing() {
    let stops_first = [
        (Point::Stopping, Point::Received),
        (Point::Stopping, Point::Posted),
        (Point::Parked, Point::Claimed),
        (Point::Drained, Point::Settling),
    ];
    let stops_then =
        [(Point::Received, Point::Stopping), (Point::Posted, Point::Parked), (Point::Settling, Point::Drained)];
    for (first, second) in stops_first.into_iter().chain(stops_then) {
        let world = World::new().await;
        slow(&world);
        publish(&world).await;
        for (n, point) in [first, second].into_iter().enumerate() {
            // The first may have left something in the queue, in the ledger, or nothing.
            world.publish_many(&format!("round{n}-"), LEADS).await;
            if [Point::Stopping, Point::Parked, Point::Drained].contains(&point) {
                crash_when_told_to_stop(&world, point).await;
            } else {
                crash_on_the_way(&world, point).await;
            }
        }
        recovers(&world, &format!("{first:?}, then {second:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_around_a_message_that_is_set_aside_keeps_it() {
    for point in [Point::SettingAside, Point::SetAside, Point::Absorbing] {
        let world = World::new().await;
        let environment = [("LEADPOST__POSTGRES__LOCK_TIMEOUT_MS", "200")];
        let worker = world.worker(&[]).await;
        let id = world.publish("ann").await;
        world.until_state(id, LeadState::Delivered).await;
        worker.stop().await;

        let mut lock = world.database.pool.begin().await.unwrap();
        sqlx::query("select 1 from leads where id = $1 for update").bind(id.0).execute(&mut *lock).await.unwrap();
        world.broker.publish(Message::new(id, &World::lead("ann"))).await;
        let faults = format!("crash_at={}", name(point));
        let worker = world.worker_with(&[], &[environment[0], ("LEADPOST_FAULTS", &faults)]).await;
        let aside = async || world.number("select count(*) from aside").await;
        if point == Point::Absorbing {
            world.until("the message is set aside", async || aside().await == 1).await;
            lock.commit().await.unwrap();
            until_dead(worker, point).await;
        } else {
            until_dead(worker, point).await;
            assert_eq!(aside().await, i64::from(point == Point::SetAside));
            lock.commit().await.unwrap();
        }
        let worker = world.worker_with(&[], &environment).await;
        // What is set aside and was not acknowledged comes again, and is counted twice.
        let received = if point == Point::SetAside { 3 } else { 2 };
        world.until("the message is counted", async || world.show(id).await.received >= received).await;
        worker.stop().await;
        let audit = world.check_all().await;
        assert!(audit.holds(), "{point:?}: {audit:#?}");
        assert_eq!((audit.posts, world.posts(id)), (1, 1), "{point:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_the_api_is_asked_asks_again_and_posts_nothing_twice() {
    let mut world = World::unlimited("paya").await;
    world.set(&[("REQUEST__TIMEOUT_MS", "500"), ("REQUEST__CONNECT_TIMEOUT_MS", "300")]);
    world.sandbox.faults().rule("ann@", Some(1), Fault::hang().after());
    let id = world.publish_any("ann").await;
    let worker = world.worker(&[]).await;
    world.until_attempts(id, 1).await;
    worker.stop().await;
    world.hurry().await;
    let worker = doomed(&world, Point::Queried, 1).await;
    until_dead(worker, Point::Queried).await;
    expire(&world).await;
    let worker = world.worker(&[]).await;
    world
        .until("the lead is found", async || {
            world.hurry().await;
            world.state(id).await == Some(LeadState::Delivered)
        })
        .await;
    worker.stop().await;
    assert_eq!(world.posts(id), 1, "the first post had arrived");
    assert_eq!(world.story(id).await, ["uncertain", "uncertain", "reconciled 200"]);
    let audit = world.check_all().await;
    assert!(audit.holds(), "{audit:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_that_dies_has_done_all_or_nothing() {
    for (point, done) in [(Point::Requeueing, false), (Point::Requeued, true)] {
        let world = World::new().await;
        let mut ids: Vec<LeadId> = Vec::new();
        for n in 0..5 {
            ids.push(world.put(&format!("lead{n}"), LeadState::Exhausted).await);
        }
        let arguments = ["requeue", "--state", "exhausted", "--reason", "mended", "--yes"];
        let faults = format!("crash_at={}", name(point));
        let died = world.leadpost_with(&arguments, &[("LEADPOST_FAULTS", &faults)], b"").await;
        assert_eq!(died.code, None, "{died:?}");
        let pending = if done { 5 } else { 0 };
        assert_eq!(world.number("select count(*) from leads where state = 'pending'").await, pending, "{point:?}");
        assert_eq!(world.number("select count(*) from replays").await, pending, "{point:?}");
        let again = world.leadpost(&arguments).await;
        assert_eq!(again.code, Some(0), "{again:?}");
        assert_eq!(world.number("select count(*) from replays").await, 5, "each lead once: {again:?}");
        let worker = world.worker(&[]).await;
        world.until_delivered(&ids).await;
        worker.stop().await;
        assert!(world.ledger.verify().await.unwrap().holds());
        assert!(ids.iter().all(|id| world.posts(*id) == 1), "each was posted once");
    }
}

/// A world whose database is empty.
async fn bare() -> World {
    let world = World::new().await;
    world.execute("drop schema public cascade").await;
    world.execute("create schema public").await;
    world
}

/// The tables are as they should be: a lead goes its way, and nothing is left to migrate.
async fn is_whole(world: &World) {
    let worker = world.worker(&[]).await;
    let id = world.publish("ann").await;
    world
        .until("the lead is delivered", async || {
            // There is no table of leads until the worker has made it.
            let lead = world.ledger.show(id).await.ok().flatten();
            lead.is_some_and(|lead| lead.state == LeadState::Delivered)
        })
        .await;
    worker.stop().await;
    let again = world.leadpost(&["migrate"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    let audit = world.check_all().await;
    assert!(audit.holds(), "{audit:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_or_after_the_migrations_is_made_good_by_the_next_start() {
    for point in [Point::Migrating, Point::Migrated] {
        let world = bare().await;
        let worker = doomed(&world, point, 1).await;
        until_dead(worker, point).await;
        is_whole(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_midst_of_a_migration_leaves_none_of_it() {
    let world = bare().await;
    // It stands still where the second table is made.
    world
        .execute(
            "create function stand_still() returns event_trigger language plpgsql as $$ begin \
                 if to_regclass('attempts') is not null then perform pg_sleep(2); end if; end $$",
        )
        .await;
    world.execute("create event trigger stand_still on ddl_command_end execute function stand_still()").await;
    let mut migrate = Process::start(&["migrate"], world.environment());
    world
        .until("it stands still", async || {
            let sql =
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
            world.number(sql).await == 1
        })
        .await;
    migrate.signal("ABRT");
    assert_eq!(migrate.ended().await, None);
    let stopped = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = current_database() and wait_event = 'PgSleep'";
    world.execute(stopped).await;
    world
        .until("nothing of it is there", async || {
            world.number("select count(*) from pg_class where relname in ('leads', 'attempts')").await == 0
        })
        .await;
    world.execute("drop event trigger stand_still").await;
    is_whole(&world).await;
}

#[test]
fn every_point_has_its_scene() {
    // Those that nobody runs unasked are none.
    let (before, rest) = include_str!("crash.rs").split_once("\n#[ignore").unwrap();
    let (_, after) = rest.split_once("\n}\n").unwrap();
    let scenes = [before, after].concat();
    for point in Point::value_variants() {
        assert!(scenes.contains(&format!("Point::{point:?}")), "no process dies at {point:?} here");
    }
}
