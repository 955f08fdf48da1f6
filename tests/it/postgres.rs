//! Postgres fails while leads flow, in the ways that SQL can bring about: the worker says so, does not hammer at it, loses and
//! doubles nothing, and comes back by itself. A full disk cannot be had without one; a ledger that cannot be written looks the
//! same from here. Restarts and freezes are in `outage`, lost answers in `commits`, broken connections in `proxied`.

use std::time::{Duration, Instant};

use leadpost::config::Secret;
use leadpost::lead::LeadId;
use leadpost::ledger::{LeadState, OnLock};
use leadpost::lifecycle::Shutdown;
use leadpost::sandbox::Fault;
use leadpost::traces::Traces;
use leadpost::worker::{Stopped, Worker};
use tokio::time::sleep;
use uuid::Uuid;

use crate::proxied::account_for;
use crate::support::flowing::{Flowing, SHORT};
use crate::support::scene::arrival;
use crate::support::{DEADLINE, Running, World};

/// From when Postgres works again to when all is through: a pause of 7.5 s at most, a statement's time, and 5 s until leads are
/// looked for that nobody knows of.
const BACK_WITHIN: Duration = Duration::from_secs(15);

/// So many tries a second may fail, and so many at once besides: three loops with pauses that double from 50 ms on.
const TRIES: (u64, u64) = (10, 15);

const CUT: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                   where datname = current_database() and application_name = 'leadpost worker'";

/// A world whose ledger is given up soon, and asked for due leads as often as it is in earnest.
async fn hasty() -> World {
    let mut world = World::new().await;
    world.settings.postgres.connect_timeout_ms = 500;
    world.settings.postgres.statement_timeout_ms = 500;
    world.settings.postgres.lock_timeout_ms = 250;
    world.settings.flow.poll_ms = 500;
    world
}

/// Starts a worker that may not change the tables.
async fn start_as_it_is(world: &World) -> Running {
    let (worker, shutdown) =
        (Worker::new(world.settings.clone(), "worker", Traces::default()).unwrap(), Shutdown::default());
    assert!(worker.prepare(false, &shutdown).await.unwrap());
    let (health, metrics) = (worker.health(), worker.metrics());
    let task = tokio::spawn(worker.run(shutdown.clone()));
    Running { shutdown, health, metrics, task }
}

/// Waits until the worker says that Postgres fails, in these words.
async fn until_down(world: &World, running: &Running, words: &str) {
    world
        .until(&format!("Postgres is named with {words:?}"), async || {
            let report = running.health.report();
            !report.postgres.ok && !report.ready && report.postgres.detail.contains(words)
        })
        .await;
}

/// Postgres stays as it is for so long, and is not tried without a pause.
async fn stays(running: &Running, long: Duration) {
    let before = running.metrics.ledger_failures.get();
    sleep(long).await;
    let (tries, (a_second, at_once)) = (running.metrics.ledger_failures.get() - before, TRIES);
    let most = at_once + (long.as_secs_f64() * a_second as f64) as u64;
    assert!(tries <= most, "{tries} tries in {long:?}");
    assert!(running.health.is_live());
}

/// All of these were delivered within the bound, each by one post.
async fn comes_back(world: &World, running: &Running, ids: &[LeadId]) {
    let since = Instant::now();
    world.until_delivered(ids).await;
    world.until("the worker is ready", async || running.health.report().ready).await;
    assert!(since.elapsed() < BACK_WITHIN, "{:?}", since.elapsed());
    account_for(world, ids).await;
    for id in ids {
        assert_eq!((world.posts(*id), world.story(*id).await), (1, vec!["delivered 201".to_owned()]));
    }
}

/// Makes the database read-only for new sessions, or writable.
async fn set_read_only(world: &World, read_only: bool) {
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(&world.database.pool).await.unwrap();
    let change =
        if read_only { "set default_transaction_read_only = on" } else { "reset default_transaction_read_only" };
    let sql = format!("begin read write; alter database {name} {change}; commit");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&world.database.pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_under_way_when_the_ledger_becomes_read_only_are_settled_when_it_can_be_written_again() {
    let world = hasty().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(500));
    let running = world.start().await;
    let mut ids = world.publish_many("underway", 10).await;
    world.sandbox.journal().wait_for(|pages| pages.counts().in_flight == 10, DEADLINE).await.unwrap();
    set_read_only(&world, true).await;
    world.number(CUT).await;
    ids.extend(world.publish_many("queued", 10).await);
    until_down(&world, &running, "read-only").await;
    stays(&running, Duration::from_secs(1)).await;
    assert_eq!(world.sandbox.journal().counts().posts, 10, "nothing is posted that is not in the ledger");
    assert_eq!(world.number("select count(*) from leads where state = 'pending' and lease is not null").await, 10);
    set_read_only(&world, false).await;
    world.number(CUT).await;
    comes_back(&world, &running, &ids).await;
    assert_eq!((running.metrics.late.get(), running.metrics.expired.get()), (0, 0));
    world.finish_in_full(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_began_while_the_ledger_was_read_only_do_not_keep_it_so() {
    let world = hasty().await;
    let running = world.start().await;
    set_read_only(&world, true).await;
    world.number(CUT).await;
    let ids = world.publish_many("p", 5).await;
    until_down(&world, &running, "read-only").await;
    set_read_only(&world, false).await;
    // Nobody ends the worker's sessions for it.
    comes_back(&world, &running, &ids).await;
    world.finish_in_full(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_out_of_connections_is_waited_for_and_a_few_are_enough() {
    let mut world = hasty().await;
    let role = format!("leadpost_role_{}", Uuid::new_v4().simple());
    world.execute(&format!("create role {role} login password 'few' connection limit 2")).await;
    for what in ["tables", "sequences"] {
        world.execute(&format!("grant all on all {what} in schema public to {role}")).await;
    }
    let mut url = url::Url::parse(&world.database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("few")).unwrap();
    world.settings.postgres.url = Secret::new(url.to_string());
    let proxy = world.proxy_postgres(1).await;
    let running = start_as_it_is(&world).await;
    let mut ids = world.publish_many("few", 40).await;
    world.until_delivered(&ids).await;
    world.execute(&format!("alter role {role} connection limit 0")).await;
    world.number(CUT).await;
    ids.extend(world.publish_many("none", 10).await);
    until_down(&world, &running, "too many connections").await;
    let before = proxy.notes().connections;
    stays(&running, Duration::from_secs(1)).await;
    let tries = proxy.notes().connections - before;
    // While it waits for a connection the pool tries for one, with pauses that double from 10 ms on.
    assert!(tries <= 40, "{tries} connections in a second");
    world.execute(&format!("alter role {role} connection limit 2")).await;
    comes_back(&world, &running, &ids).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    world.check_in_full().await;
    world.execute(&format!("drop owned by {role}")).await;
    world.execute(&format!("drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_that_are_terminated_at_random_moments_lose_no_lead_and_double_none() {
    let world = hasty().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(10));
    world.sandbox.faults().rule("again", Some(1), Fault::status(503));
    let (one, two) = (world.start_named("one").await, world.start_named("two").await);
    let mut random = fastrand::Rng::with_seed(20_261_122);
    let (mut cut, mut ids) = (0, Vec::new());
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2_000) || cut < 15 {
        assert!(since.elapsed() < DEADLINE, "only {cut} were terminated");
        let name = format!("{}{}x", ["p", "again"][random.usize(..2)], ids.len());
        ids.extend(world.publish_many(&name, 2).await);
        let sql = "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity \
                   where datname = current_database() and application_name like 'leadpost %' \
                   and application_name <> 'leadpost test' and (state <> 'idle' or random() < 0.2) limit 1) t";
        cut += world.number(sql).await;
        sleep(Duration::from_millis(random.u64(..30))).await;
    }
    let since = Instant::now();
    world.until_all_delivered(&ids).await;
    assert!(since.elapsed() < BACK_WITHIN, "{:?}", since.elapsed());
    account_for(&world, &ids).await;
    for id in &ids {
        let lead = world.show(*id).await;
        assert_eq!(usize::try_from(lead.attempts).unwrap(), world.posts(*id), "{:?}", lead.history);
    }
    for running in [&one, &two] {
        assert_eq!((running.metrics.late.get(), running.metrics.expired.get()), (0, 0));
    }
    assert_eq!(two.stop().await, Stopped::Cleanly);
    world.finish_in_full(one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_cannot_be_written_for_a_lock_are_written_once_when_it_is_gone() {
    let world = hasty().await;
    let running = world.start().await;
    // It looks whether attempts can be written before it consumes anything.
    let first = world.publish("first").await;
    world.until_state(first, LeadState::Delivered).await;
    let mut lock = world.database.pool.begin().await.unwrap();
    sqlx::query("lock table other_attempts in access exclusive mode").execute(&mut *lock).await.unwrap();
    let ids = world.publish_many("p", 10).await;
    until_down(&world, &running, "could not settle leads").await;
    stays(&running, Duration::from_secs(1)).await;
    assert_eq!(world.sandbox.journal().counts().posts, 1 + 10, "they are posted, and not again");
    assert_eq!(world.number("select count(*) from leads where lease is not null").await, 10);
    lock.rollback().await.unwrap();
    comes_back(&world, &running, &ids).await;
    world.finish_in_full(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_cannot_be_written_for_longer_than_messages_are_held_stops_no_lead() {
    const HOLD: Duration = Duration::from_secs(1);
    const HOLD_BRIEFLY: [(&str, &str); 1] = [("LEADPOST_FAULTS", "hold_ms=1000")];
    let flowing = Flowing::stand(World::new().await, &[SHORT.as_slice(), &HOLD_BRIEFLY].concat()).await;
    let world = &flowing.world;
    let mut ids = vec![world.publish("first").await];
    world.until_delivered(&ids).await;
    let mut lock = world.database.pool.begin().await.unwrap();
    sqlx::query("lock table workers in access exclusive mode").execute(&mut *lock).await.unwrap();
    flowing.worker.until_said("could not write the heartbeat").await;
    let struck = flowing.strikes();
    // Nothing else that it does with the ledger says meanwhile that this can be written.
    sleep(4 * HOLD).await;
    ids.extend(world.publish_many("p", 10).await);
    world.until_delivered(&ids).await;
    flowing.was_at_rest(&struck);
    lock.rollback().await.unwrap();
    flowing.until_ready().await;
    assert!(!flowing.worker.said().contains("return to their queue"), "{}", flowing.worker.said());
    for id in &ids {
        assert_eq!((world.posts(*id), world.show(*id).await.received), (1, 1));
    }
    flowing.finish_without_doubt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn due_leads_that_somebody_has_locked_hold_up_no_others_and_have_their_turn() {
    let mut world = World::new().await;
    world.settings.flow.poll_ms = 500;
    let ids: Vec<LeadId> = (0..20).map(|_| LeadId(Uuid::new_v4())).collect();
    let due: Vec<_> = ids.iter().map(|id| arrival(*id, &World::lead(&format!("p{}", id.0.simple())))).collect();
    world.ledger.accept(due.into(), None, OnLock::Wait).await.unwrap();
    let (locked, free) = ids.split_at(5);
    let mut lock = world.database.pool.begin().await.unwrap();
    let uuids: Vec<Uuid> = locked.iter().map(|id| id.0).collect();
    sqlx::query("select 1 from leads where id = any($1) for update").bind(uuids).execute(&mut *lock).await.unwrap();
    let running = world.start().await;
    world.until_delivered(free).await;
    for id in locked {
        assert_eq!((world.posts(*id), world.state(*id).await), (0, Some(LeadState::Pending)));
    }
    assert_eq!(running.metrics.ledger_failures.get(), 0, "nobody waits for the lock");
    lock.rollback().await.unwrap();
    comes_back(&world, &running, &ids).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_take_too_long_are_ended_by_the_server_and_their_messages_held() {
    let world = hasty().await;
    let running = world.start().await;
    let first = world.publish("first").await;
    world.until_state(first, LeadState::Delivered).await;
    world
        .execute(
            "create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(60); return null; end'",
        )
        .await;
    world.execute("create trigger slow before insert on leads for each statement execute function slow()").await;
    let ids = world.publish_many("p", 10).await;
    until_down(&world, &running, "statement timeout").await;
    stays(&running, Duration::from_secs(1)).await;
    assert_eq!(world.sandbox.journal().counts().posts, 1, "nothing is posted that is not in the ledger");
    let slow = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
    assert!(world.number(slow).await <= 1, "what was given up goes on");
    world.execute("drop trigger slow on leads").await;
    comes_back(&world, &running, &ids).await;
    for id in ids {
        assert_eq!(world.show(id).await.received, 1);
    }
    world.finish_in_full(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_make_tables_is_told_so_instead_of_waiting() {
    let world = World::new().await;
    let role = format!("leadpost_guest_{}", Uuid::new_v4().simple());
    for sql in ["drop schema public cascade", "create schema public", &format!("create role {role} login")] {
        world.execute(sql).await;
    }
    let mut url = url::Url::parse(&world.database.url).unwrap();
    url.set_username(&role).unwrap();
    for (command, may_look) in [("migrate", false), ("migrate", true), ("run", true)] {
        if may_look {
            world.execute(&format!("grant usage on schema public to {role}")).await;
        }
        let done = world.leadpost_with(&[command], &[("DATABASE_URL", url.as_str())], b"").await;
        assert_eq!(done.code, Some(78), "{command}: {done:?}");
        assert!(done.stderr.contains("run leadpost migrate as one that may"), "{command}: {done:?}");
    }
    world.execute(&format!("drop owned by {role}")).await;
    world.execute(&format!("drop role {role}")).await;
}
