//! Retention: what is removed, what stays, and that the flow does not notice.

use std::collections::BTreeSet;
use std::time::Duration;

use leadpost::config::Retention;
use leadpost::lead::LeadId;
use leadpost::ledger::{Act, Action, Doubts, Filter, LeadState, Ledger, OnLock};
use leadpost::metrics::Format;
use leadpost::sandbox::Fault;
use leadpost::worker::Stopped;
use uuid::Uuid;

use crate::support::scene::{LEASE, put, settlement};
use crate::support::{Message, World};

const ENDS: [LeadState; 7] = [
    LeadState::Delivered,
    LeadState::Duplicate,
    LeadState::Invalid,
    LeadState::Rejected,
    LeadState::Exhausted,
    LeadState::Uncertain,
    LeadState::Cancelled,
];

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Makes all of a lead that many days older.
async fn age(world: &World, id: LeadId, days: u32) {
    for sql in [
        "update leads set accepted_at = accepted_at - $2 * interval '1 day', \
             budget_from = budget_from - $2 * interval '1 day', finished_at = finished_at - $2 * interval '1 day', \
             posted_at = posted_at - $2 * interval '1 day' \
         where id = $1",
        "update other_attempts set started_at = started_at - $2 * interval '1 day' where lead_id = $1",
        "update replays set replayed_at = replayed_at - $2 * interval '1 day' where lead_id = $1",
    ] {
        sqlx::query(sql).bind(id.0).bind(i64::from(days)).execute(&world.database.pool).await.unwrap();
    }
}

/// A lead that came to this end so many days ago.
async fn old(world: &World, state: LeadState, days: u32) -> LeadId {
    let id = world.put(&format!("{state}{days}"), state).await;
    age(world, id, days).await;
    id
}

/// So many leads that were delivered 40 days ago, or rejected, each with its attempt.
async fn many_old(world: &World, state: LeadState, n: usize) {
    let (reason, status, code) = match state {
        LeadState::Delivered => ("null", 201, "null"),
        LeadState::Rejected => ("'no'", 422, "'http_422'"),
        other => panic!("{other}"),
    };
    world
        .execute(&format!(
            "with old as ( \
                 insert into leads (id, destination, state, body, queue, accepted_at, budget_from, finished_at, attempts, charged, code, reason) \
                 select gen_random_uuid(), '7targets', '{state}', '{{}}', 'old', t, t, t, 1, 1, {code}, {reason} \
                 from (select now() - interval '40 days' - n * interval '1 second' as t from generate_series(1, {n}) as n) as times \
                 returning id, finished_at \
             ) \
             insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status, code) \
             select id, 1, id, 'old', finished_at, 0, '{state}', true, {status}, {code} from old"
        ))
        .await;
}

/// Removes batch after batch until there is nothing more, and says how many leads that were; meanwhile others may be at it.
async fn remove_all(ledger: &Ledger, state: LeadState) -> u64 {
    let mut sum = 0;
    loop {
        match ledger.remove_old(state, 30 * DAY, 50).await.unwrap() {
            Some(0) => return sum,
            Some(removed) => sum += removed,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn leads(world: &World) -> i64 {
    world.number("select count(*) from leads").await
}

async fn there(world: &World) -> BTreeSet<LeadId> {
    let ids: Vec<Uuid> = sqlx::query_scalar("select id from leads").fetch_all(&world.database.pool).await.unwrap();
    ids.into_iter().map(LeadId).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_go_with_their_attempts_and_replays_when_they_are_as_old_as_their_end_allows_and_not_before() {
    let mut world = World::new().await;
    // Each has its own, so that none is taken for another.
    world.settings.retention = Retention {
        delivered_days: 10,
        duplicate_days: 20,
        invalid_days: 30,
        rejected_days: 40,
        exhausted_days: 50,
        uncertain_days: 60,
        cancelled_days: 70,
        answers_days: 0,
    };
    let mut stay = BTreeSet::new();
    for (state, days) in ENDS.into_iter().zip([10, 20, 30, 40, 50, 60, 70]) {
        stay.insert(old(&world, state, days - 1).await);
        let id = world.put("again", state).await;
        let requeue = Act {
            action: Action::Requeue { include_delivered: true, rate_per_s: None },
            filter: Filter::of_ids(&[id]),
            by: "ops".to_owned(),
            reason: None,
            as_of: None,
        };
        assert_eq!(world.ledger.act(requeue, |_| ()).await.unwrap().leads, 1);
        let lease = (Uuid::new_v4(), LEASE);
        let claimed = world.ledger.claim(10, lease, Vec::new(), Doubts::Included).await.unwrap();
        let settlements = claimed.iter().map(|claimed| settlement(&claimed.leased, state)).collect();
        world.ledger.settle(settlements, false, OnLock::Wait).await.unwrap();
        age(&world, id, days + 1).await;
    }
    let pending = world.put("pending", LeadState::Pending).await;
    age(&world, pending, 1000).await;
    stay.insert(pending);
    assert_eq!(leads(&world).await, 15);
    assert_eq!(world.number("select count(*) from replays").await, 7);

    let running = world.start().await;
    world.until("the old ones are gone", async || leads(&world).await <= 8).await;
    assert_eq!(there(&world).await, stay);
    assert_eq!(world.number("select count(*) from attempts where lead_id not in (select id from leads)").await, 0);
    assert_eq!(world.number("select count(*) from replays").await, 0);
    assert_eq!(world.ledger.status().await.unwrap().accepted, 8);
    assert_eq!(world.tally().await, LeadState::ALL.map(|state| (state, 1)));
    assert_eq!(running.metrics.removed.get(), 7);
    assert!(running.metrics.render(Format::Prometheus).contains("\nleadpost_removed_leads_total 7\n"));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_stays_for_ever_where_nothing_is_said_of_its_state() {
    let mut world = World::new().await;
    // The last of a round: the others have had their turn when it is gone.
    world.settings.retention.cancelled_days = 1;
    for state in LeadState::ALL {
        old(&world, state, 10_000).await;
    }
    let running = world.start().await;
    world.until("one is gone", async || leads(&world).await < 8).await;
    let all_others = LeadState::ALL.into_iter().filter(|state| *state != LeadState::Cancelled);
    assert_eq!(world.tally().await, all_others.map(|state| (state, 1)).collect::<Vec<_>>());
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_flow_while_old_ones_are_removed_and_none_of_them_is_lost() {
    let mut world = World::new().await;
    world.settings.retention.delivered_days = 30;
    many_old(&world, LeadState::Delivered, 20_000).await;
    let running = world.start().await;
    world.until("some are gone", async || running.metrics.removed.get() > 0).await;
    let ids = world.publish_many("fresh", 20).await;
    world.until_all_delivered(&ids).await;
    assert!(leads(&world).await > 20, "that was meanwhile");
    let more = world.publish_many("later", 200).await;
    world.until_all_delivered(&more).await;
    world.until("all old ones are gone", async || leads(&world).await == 220).await;
    assert!(ids.iter().chain(&more).all(|id| world.posts(*id) == 1));
    assert_eq!(world.tally().await, [(LeadState::Delivered, 220)]);
    assert_eq!(running.metrics.removed.get(), 20_000);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_leaves_the_rest_for_later() {
    let mut world = World::new().await;
    world.settings.retention.delivered_days = 30;
    many_old(&world, LeadState::Delivered, 20_000).await;
    let running = world.start().await;
    world.until("some are gone", async || running.metrics.removed.get() > 0).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    let left = leads(&world).await;
    assert!(left > 10_000, "{left} are left");
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_while_a_lead_cannot_be_settled() {
    let mut world = World::new().await;
    world.settings.retention.rejected_days = 30;
    world.settings.postgres.lock_timeout_ms = 200;
    world.sandbox.faults().script([Fault::latency(Duration::from_millis(300))]);
    let id = world.publish("ann").await;
    let running = world.start().await;
    world.until("it is there", async || world.state(id).await.is_some()).await;
    let mut lock = world.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from leads where id = $1 for update").bind(id.0).execute(&mut *lock).await.unwrap();
    world.until("it cannot be settled", async || running.metrics.ledger_failures.get() > 0).await;
    let other = old(&world, LeadState::Rejected, 31).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(world.state(other).await, Some(LeadState::Rejected));
    lock.rollback().await.unwrap();
    world.until_state(id, LeadState::Delivered).await;
    world.until("the old one is gone", async || world.state(other).await.is_none()).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_again_after_its_lead_was_removed_is_posted_again() {
    let mut world = World::new().await;
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    age(&world, id, 31).await;
    world.settings.retention.delivered_days = 30;
    let running = world.start_named("later").await;
    world.until("it is gone", async || world.state(id).await.is_none()).await;
    world.sandbox.forget_leads();
    world.broker.publish(Message::new(id, &World::lead("ann"))).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.posts(id), 2);
    assert_eq!(world.story(id).await, ["delivered 201"]);
    assert_eq!(world.tally().await, [(LeadState::Delivered, 1)]);
    assert_eq!(running.stop().await, Stopped::Cleanly);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_stays_as_long_as_another_one_that_came_under_its_id() {
    let world = World::new().await;
    let first = old(&world, LeadState::Delivered, 40).await;
    let other = old(&world, LeadState::Rejected, 35).await;
    sqlx::query("update leads set conflict_of = $2 where id = $1")
        .bind(other.0)
        .bind(first.0)
        .execute(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(remove_all(&world.ledger, LeadState::Delivered).await, 0, "its id is not free");
    assert_eq!(there(&world).await, BTreeSet::from([first, other]));
    assert_eq!(remove_all(&world.ledger, LeadState::Rejected).await, 1);
    assert_eq!(remove_all(&world.ledger, LeadState::Delivered).await, 1);
    assert_eq!(leads(&world).await, 0);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_remove_each_lead_once() {
    let mut world = World::new().await;
    world.settings.retention.delivered_days = 30;
    world.settings.retention.rejected_days = 30;
    many_old(&world, LeadState::Delivered, 2_000).await;
    many_old(&world, LeadState::Rejected, 2_000).await;
    let handles = (0..4).map(|n| {
        let ledger = world.handle(&format!("handle{n}"));
        tokio::spawn(async move { remove_all(&ledger, LeadState::Rejected).await })
    });
    let handles: Vec<_> = handles.collect();
    let (one, other) = (world.start_named("one").await, world.start_named("other").await);
    let mut sum = 0;
    for handle in handles {
        sum += handle.await.unwrap();
    }
    world.until("all are gone", async || leads(&world).await == 0).await;
    sum += one.metrics.removed.get() + other.metrics.removed.get();
    assert_eq!(sum, 4_000);
    assert_eq!(world.tally().await, []);
    assert_eq!(one.stop().await, Stopped::Cleanly);
    world.finish(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_it_to_another_one_that_is_at_it() {
    let world = World::new().await;
    old(&world, LeadState::Delivered, 31).await;
    let mut other = world.database.pool.begin().await.unwrap();
    let sql = "select pg_advisory_xact_lock(hashtext('leadpost retention'), hashtext('7targets'))";
    sqlx::query(sql).execute(&mut *other).await.unwrap();
    let remove = async || world.ledger.remove_old(LeadState::Delivered, 30 * DAY, 10).await.unwrap();
    assert_eq!(remove().await, None);
    assert_eq!(world.tally().await, [(LeadState::Delivered, 1)]);
    other.rollback().await.unwrap();
    assert_eq!(remove().await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_go_first_and_a_lead_that_somebody_has_locked_is_passed_over() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for days in [34, 33, 32, 31] {
        ids.push(old(&world, LeadState::Exhausted, days).await);
    }
    let mut lock = world.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from leads where id = $1 for update").bind(ids[0].0).execute(&mut *lock).await.unwrap();
    let remove = async |limit| world.ledger.remove_old(LeadState::Exhausted, 30 * DAY, limit).await.unwrap();
    assert_eq!(remove(2).await, Some(2));
    assert_eq!(there(&world).await, [ids[0], ids[3]].into());
    assert_eq!(remove(2).await, Some(1));
    lock.rollback().await.unwrap();
    assert_eq!(remove(2).await, Some(1));
    assert_eq!(world.tally().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_of_another_destination_are_not_touched() {
    let world = World::new().await;
    let (settings, _broker) = world.neighbour("other").await;
    let other = Ledger::new(&settings, "other").unwrap();
    let theirs = LeadId(Uuid::new_v4());
    put(&other, theirs, &World::lead("theirs"), LeadState::Delivered).await;
    age(&world, theirs, 31).await;
    let ours = old(&world, LeadState::Delivered, 31).await;
    assert_eq!(remove_all(&world.ledger, LeadState::Delivered).await, 1);
    assert_eq!(there(&world).await, [theirs].into());
    assert_eq!(world.state(ours).await, None);
    assert_eq!(remove_all(&other, LeadState::Delivered).await, 1);
}

/// What Postgres has read of this table or index so far, in rows.
async fn read(world: &World, of: &str) -> i64 {
    let sql = "select (select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes where indexrelname = $1) \
                   + (select coalesce(sum(seq_tup_read), 0) from pg_stat_user_tables where relname = $1)";
    let read: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select ({sql})::bigint")))
        .bind(of)
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_does_not_read_all_old_leads_to_remove_some() {
    const OLD: i64 = 20_000;
    const BATCHES: i64 = 10;
    const SIZE: i64 = 100;
    for (state, index) in [(LeadState::Delivered, "leads_delivered"), (LeadState::Rejected, "leads_ended")] {
        let world = World::new().await;
        many_old(&world, LeadState::Delivered, 20_000).await;
        many_old(&world, LeadState::Rejected, 20_000).await;
        let looked_at = ["leads", "leads_pkey", "other_attempts", "attempts_pkey", index];
        // While Postgres knows nothing of the tables, and when it does.
        for round in 1..=2 {
            let mut before = Vec::new();
            for of in looked_at {
                before.push(read(&world, of).await);
            }
            let ledger = world.handle("remover");
            for _ in 0..BATCHES {
                let removed = ledger.remove_old(state, 30 * DAY, usize::try_from(SIZE).unwrap()).await.unwrap();
                assert_eq!(removed, Some(100));
            }
            // Its connections say what they have read when they end, at the latest.
            ledger.close().await;
            let was = before[4];
            world.until("it is counted", async || read(&world, index).await >= was + BATCHES * SIZE).await;
            for (of, before) in looked_at.into_iter().zip(before) {
                let read = read(&world, of).await - before;
                // A batch goes over what is dead of all before it, for as long as any snapshot may have that: at worst as many each time as all of them
                // removed. One that reads them all, to sort them, reads more than this.
                let most = BATCHES * OLD / 4;
                assert!(read <= most, "{state}, round {round}: {read} rows of {of} were read");
            }
            world.execute("analyze").await;
        }
    }
}
