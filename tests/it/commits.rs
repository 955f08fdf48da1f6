//! The answer to a commit is lost: nobody knows whether it was done, and whoever asked can find out by asking again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use leadpost::lead::LeadId;
use leadpost::ledger::{Act, Action, Doubts, Fate, Filter, LeadState, Ledger, LedgerError, Next, OnLock, Settlement};
use leadpost::sandbox::Fault as ApiFault;
use leadpost::worker::Stopped;
use uuid::Uuid;

use crate::proxied::account_for;
use crate::support::proxy::Direction::{Down, Up};
use crate::support::proxy::{EXECUTE, Fault, Proxy, Reach};
use crate::support::scene::{LEASE, accept, arrival, leased, put, settlement};
use crate::support::{Running, World};

/// What of a transaction's text stands in no other.
const ACCEPT: &str = "insert into leads (id, destination, state, body, queue, message_id";
const CLAIM: &str = "with newest as";
/// A settlement is one statement, and commits with it: first it is said, and then carried out.
const SETTLE: [&str; 2] = ["with clock as", EXECUTE];
const EXPIRE: &str = "with expired as";
const REQUEUE: &str = "with locked as";

/// How the answer to a commit gets lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// With the commit itself, which never arrives.
    BeforeIt,
    /// After it was done; the connection ends.
    AfterIt,
    /// After it was done; the connection stays, and is silent.
    InSilence,
}

impl Loss {
    const ALL: [Self; 3] = [Self::BeforeIt, Self::AfterIt, Self::InSilence];

    fn of(self, texts: &[&str]) -> Fault {
        match self {
            Self::BeforeIt => Fault::cut_before(texts),
            Self::AfterIt => Fault::lose_answer(texts),
            Self::InSilence => Fault::keep_answer(texts),
        }
    }

    fn is_committed(self) -> bool {
        self != Self::BeforeIt
    }
}

/// A world whose ledger lies behind a proxy, and gives up soon.
async fn proxied() -> (World, Proxy) {
    let mut world = World::new().await;
    let proxy = world.proxy_postgres(1).await;
    world.settings.postgres.connect_timeout_ms = 1_000;
    world.settings.postgres.statement_timeout_ms = 400;
    world.settings.postgres.lock_timeout_ms = 300;
    (world, proxy)
}

/// A handle whose next transaction with this in its text loses the answer to its commit.
fn unlucky(world: &World, proxy: &Proxy, loss: Loss, text: &str) -> Ledger {
    unlucky_at(world, proxy, loss, &[text, "COMMIT"])
}

fn unlucky_at(world: &World, proxy: &Proxy, loss: Loss, texts: &[&str]) -> Ledger {
    proxy.heal();
    proxy.set_times(Up, loss.of(texts), 1);
    // Its connections are new: they say each statement in full.
    world.handle("unlucky")
}

fn assert_unknown<T: std::fmt::Debug>(loss: Loss, result: Result<T, LedgerError>) {
    let error = result.expect_err("the answer was lost");
    assert!(error.is_unknown(), "{loss:?}: {error:?}");
    assert!(!error.is_about_data() && !error.is_about_locks() && !error.is_about_size(), "{loss:?}: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accept_whose_answer_was_lost_is_found_when_it_is_repeated_under_its_token() {
    let (world, proxy) = proxied().await;
    for loss in Loss::ALL {
        let (id, token) = (LeadId(Uuid::new_v4()), Uuid::new_v4());
        let ledger = unlucky(&world, &proxy, loss, ACCEPT);
        let arrivals: Arc<[_]> = Arc::new([arrival(id, &World::lead("ann"))]);
        assert_unknown(loss, ledger.accept(Arc::clone(&arrivals), Some((token, LEASE)), OnLock::Wait).await);
        assert_eq!(world.state(id).await.is_some(), loss.is_committed(), "{loss:?}");
        let fates = ledger.accept(arrivals, Some((token, LEASE)), OnLock::Wait).await.unwrap();
        let [Some(Fate::Leased(leased))] = &fates[..] else { panic!("{loss:?}: {fates:?}") };
        assert_eq!((leased.id, leased.lease, leased.attempts), (id, token, 0));
        assert_eq!(world.show(id).await.received, 1, "{loss:?}: one message");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_comes_after_another_has_done_it_all_does_not_start_the_lead_again() {
    for state in [LeadState::Delivered, LeadState::Rejected, LeadState::Exhausted, LeadState::Uncertain] {
        let world = World::new().await;
        let (arrival, token) = (arrival(LeadId(Uuid::new_v4()), &World::lead("ann")), Uuid::new_v4());
        let fates = accept(&world.ledger, std::slice::from_ref(&arrival), token).await;
        world.ledger.settle([settlement(&leased(&fates)[0], state)].into(), false, OnLock::Wait).await.unwrap();
        let late = accept(&world.ledger, std::slice::from_ref(&arrival), token).await;
        assert!(matches!(late[..], [Fate::Repeated(_, same)] if same == state), "{late:?}");
        let lead = world.show(arrival.id).await;
        assert_eq!((lead.state, lead.attempts, lead.replays, lead.leased_by), (state, 1, 0, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_was_lost_is_released_uncharged_by_its_token() {
    let (world, proxy) = proxied().await;
    for loss in Loss::ALL {
        let id = LeadId(Uuid::new_v4());
        world.ledger.accept(Arc::new([arrival(id, &World::lead("ann"))]), None, OnLock::Wait).await.unwrap();
        let ledger = unlucky(&world, &proxy, loss, CLAIM);
        let token = Uuid::new_v4();
        assert_unknown(loss, ledger.claim(9, (token, LEASE), Vec::new(), Doubts::Included).await);
        assert_eq!(world.show(id).await.leased_by.is_some(), loss.is_committed(), "{loss:?}");
        let released = ledger.release(vec![token], Duration::ZERO, LEASE).await.unwrap();
        assert_eq!(released, u64::from(loss.is_committed()));
        let again = ledger.claim(9, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
        assert_eq!(again.len(), 1, "{loss:?}: {again:?}");
        assert_eq!((again[0].leased.id, again[0].leased.attempts, again[0].leased.in_doubt), (id, 0, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_whose_answer_was_lost_is_written_once_however_often_it_is_repeated() {
    let (world, proxy) = proxied().await;
    for loss in Loss::ALL {
        let id = LeadId(Uuid::new_v4());
        let fates = accept(&world.handle("unlucky"), &[arrival(id, &World::lead("ann"))], Uuid::new_v4()).await;
        let settlements: Arc<[Settlement]> = Arc::new([settlement(&leased(&fates)[0], LeadState::Delivered)]);
        let ledger = unlucky_at(&world, &proxy, loss, &SETTLE);
        assert_unknown(loss, ledger.settle(Arc::clone(&settlements), false, OnLock::Wait).await);
        let expected = if loss.is_committed() { LeadState::Delivered } else { LeadState::Pending };
        assert_eq!(world.state(id).await, Some(expected), "{loss:?}");
        for _ in 0..2 {
            let settled = ledger.settle(Arc::clone(&settlements), true, OnLock::Wait).await.unwrap();
            assert!(settled.late.is_empty() && settled.busy.is_empty(), "{loss:?}: {settled:?}");
            assert_eq!(world.story(id).await, ["delivered 201"], "{loss:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_is_one_attempt_even_if_the_answer_to_its_settlement_was_lost() {
    let (world, proxy) = proxied().await;
    for loss in Loss::ALL {
        let id = LeadId(Uuid::new_v4());
        accept(&world.handle("dead"), &[arrival(id, &World::lead("ann"))], Uuid::new_v4()).await;
        world.pass(LEASE + Duration::from_secs(1)).await;
        let ledger = unlucky(&world, &proxy, loss, EXPIRE);
        let decide = |_: &_| Next::Again { after: Duration::from_secs(3600), code: None, reason: None };
        assert_unknown(loss, ledger.expire(decide).await);
        assert_eq!(world.show(id).await.attempts, i32::from(loss.is_committed()), "{loss:?}");
        let expired = ledger.expire(decide).await.unwrap();
        assert_eq!(expired.iter().any(|settlement| settlement.id == id), !loss.is_committed(), "{loss:?}: {expired:?}");
        assert_eq!(world.story(id).await, ["uncertain"], "{loss:?}");
        // Out of the way of the next.
        world.execute("update leads set next_attempt_at = now() + interval '1 day'").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_whose_answer_was_lost_is_repeated_without_harm() {
    let (world, proxy) = proxied().await;
    // The command waits for as long as it takes, so one in silence never ends by itself.
    for loss in [Loss::BeforeIt, Loss::AfterIt] {
        let id = world.put("ann", LeadState::Exhausted).await;
        let requeue = Act {
            action: Action::Requeue { include_delivered: false, rate_per_s: None },
            filter: Filter::of_states(&[LeadState::Exhausted]),
            by: "test".to_owned(),
            reason: None,
            as_of: None,
        };
        let ledger = unlucky(&world, &proxy, loss, REQUEUE);
        assert_unknown(loss, ledger.act(requeue.clone(), |_| ()).await);
        let expected = if loss.is_committed() { LeadState::Pending } else { LeadState::Exhausted };
        assert_eq!(world.state(id).await, Some(expected), "{loss:?}");
        for repeated in [false, true] {
            let requeued = ledger.act(requeue.clone(), |_| ()).await.unwrap().leads;
            assert_eq!(requeued, u64::from(!loss.is_committed() && !repeated), "{loss:?}");
        }
        let lead = world.show(id).await;
        assert_eq!((lead.state, lead.replays), (LeadState::Pending, 1), "{loss:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requeue_command_says_that_the_answer_was_lost_and_may_be_repeated() {
    let (world, proxy) = proxied().await;
    let id = LeadId(Uuid::new_v4());
    put(&world.ledger, id, &World::lead("ann"), LeadState::Exhausted).await;
    proxy.set_times(Up, Fault::lose_answer(&[REQUEUE, "COMMIT"]), 1);
    let lost = world.leadpost(&["requeue", "--state", "exhausted", "--yes"]).await;
    assert_eq!(lost.code, Some(69), "{lost:?}");
    assert!(lost.stderr.contains("could not change leads in the ledger"), "{lost:?}");
    let again = world.leadpost(&["requeue", "--state", "exhausted", "--yes"]).await;
    assert_eq!((again.code, &*again.stderr), (Some(0), "0 leads are sent on their way again\n"), "{again:?}");
    let named = world.leadpost(&["requeue", &id.to_string()]).await;
    assert!(named.code == Some(0) && named.stderr.contains("is pending anyway"), "{named:?}");
    let running = world.start().await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!((world.posts(id), world.show(id).await.replays), (1, 1));
    world.finish(running).await;
}

/// From when the last answer was lost until all is through: the patience of 1.8 s with a transaction, a pause of 7.5 s at most
/// and 5 s until leases are looked for that nobody knows of.
const BACK_WITHIN: Duration = Duration::from_secs(15);

/// So many tries a second may fail: three loops with pauses.
const A_SECOND: u64 = 10;

/// All of these are through soon after so many answers were lost, and the worker has counted them.
async fn recovers(world: &World, proxy: &Proxy, running: &Running, ids: &[LeadId], lost: u64) {
    proxy.until_struck(lost).await;
    let since = Instant::now();
    world.until_all_delivered(ids).await;
    assert!(since.elapsed() < BACK_WITHIN, "{:?}", since.elapsed());
    assert_eq!(proxy.notes().struck, lost);
    let failures = running.metrics.ledger_failures.get();
    // One for each lost answer, and one for each connection that was given up with it; a busy machine fails as often as loops with
    // pauses try.
    let most = 6 * lost + A_SECOND * since.elapsed().as_secs();
    assert!((lost..=most).contains(&failures), "{failures} failures of the ledger for {lost} lost answers");
    account_for(world, ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_loses_the_answers_to_its_accepts_posts_each_lead_once() {
    join_all(Loss::ALL.map(async |loss| {
        let (world, proxy) = proxied().await;
        proxy.set_times(Up, loss.of(&[ACCEPT, "COMMIT"]), 3);
        let running = world.start().await;
        let ids = world.publish_many("p", 30).await;
        recovers(&world, &proxy, &running, &ids, 3).await;
        for id in ids {
            assert_eq!((world.posts(id), world.show(id).await.received), (1, 1), "{loss:?}");
            assert_eq!(world.story(id).await, ["delivered 201"], "{loss:?}");
        }
        world.finish_in_full(running).await;
    }))
    .await;
}

/// The backends of the worker's own connections.
async fn backends(world: &World) -> Vec<i32> {
    let sql = "select pid from pg_stat_activity \
               where datname = current_database() and application_name = 'leadpost worker'";
    sqlx::query_scalar(sql).fetch_all(&world.database.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accept_that_was_given_up_on_a_stalled_connection_does_not_come_through_when_the_line_does() {
    join_all([Up, Down].map(async |direction| {
        let (mut world, proxy) = proxied().await;
        // Nothing but the accept is on the line.
        world.settings.flow.poll_ms = 60_000;
        world.sandbox.faults().rule("refused", None, ApiFault::status(422));
        let running = world.start().await;
        let first = world.publish("first").await;
        world.until_state(first, LeadState::Delivered).await;
        let former = backends(&world).await;
        proxy.set_on(Reach::Open, direction, Fault::Stall);
        let id = world.publish("refused").await;
        world.until_state(id, LeadState::Rejected).await;
        assert!(proxy.notes().struck >= 1, "{direction:?}: {:?}", proxy.notes());
        assert!(running.metrics.ledger_failures.get() >= 1, "{direction:?}: a try was given up");
        proxy.heal();
        // Each ends with the work that it had, if it has any.
        world
            .until("the former connections have ended", async || {
                backends(&world).await.iter().all(|backend| !former.contains(backend))
            })
            .await;
        world.others_pass().await;
        let lead = world.show(id).await;
        assert_eq!((lead.state, lead.leased_by), (LeadState::Rejected, None), "{direction:?}");
        assert_eq!((lead.replays, lead.attempts, lead.received), (0, 1, 1), "{direction:?}: {:?}", lead.history);
        assert_eq!((world.story(id).await, world.posts(id)), (vec!["rejected 422".to_owned()], 1), "{direction:?}");
        assert_eq!((running.metrics.late.get(), running.metrics.expired.get()), (0, 0), "{direction:?}");
        world.finish_in_full(running).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_arrives_long_after_its_accept_was_given_up_is_not_taken_for_another_message() {
    let (mut world, proxy) = proxied().await;
    // Nobody looks for leases that ran out: all is up to the worker that made them.
    world.settings.flow.poll_ms = 60_000;
    world.sandbox.faults().rule("refused", None, ApiFault::status(422));
    proxy.set_times(Up, Fault::hold_before(&[ACCEPT, "COMMIT"]), 1);
    let running = world.start().await;
    let id = world.publish("refused").await;
    proxy.until_struck(1).await;
    // The first of them was given up; the others met its lock.
    world.until("it was tried again and again", async || running.metrics.ledger_failures.get() >= 3).await;
    assert_eq!(world.state(id).await, None, "nothing is committed");
    proxy.heal();
    world.until_state(id, LeadState::Rejected).await;
    world.others_pass().await;
    assert_eq!(world.ledger.status().await.unwrap().aside, 0);
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.replays, lead.attempts, lead.received), (LeadState::Rejected, 0, 1, 1), "{lead:?}");
    assert_eq!((world.story(id).await, world.posts(id)), (vec!["rejected 422".to_owned()], 1));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_loses_the_answers_to_its_claims_posts_each_lead_once_and_charges_none() {
    join_all([Loss::BeforeIt, Loss::AfterIt].map(async |loss| {
        let (world, proxy) = proxied().await;
        let ids: Vec<LeadId> = (0..30).map(|_| LeadId(Uuid::new_v4())).collect();
        let due: Vec<_> = ids.iter().map(|id| arrival(*id, &World::lead(&format!("p{}", id.0.simple())))).collect();
        world.ledger.accept(due.into(), None, OnLock::Wait).await.unwrap();
        proxy.set_times(Up, loss.of(&[CLAIM, "COMMIT"]), 1);
        let running = world.start().await;
        recovers(&world, &proxy, &running, &ids, 1).await;
        for id in ids {
            assert_eq!(world.story(id).await, ["delivered 201"], "{loss:?}");
            assert_eq!(world.posts(id), 1, "{loss:?}");
        }
        world.finish(running).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_loses_the_answers_to_its_settlements_writes_each_attempt_once() {
    join_all(Loss::ALL.map(async |loss| {
        let (world, proxy) = proxied().await;
        world.sandbox.faults().rule("again", Some(1), ApiFault::status(503));
        proxy.set_times(Up, loss.of(&SETTLE), 2);
        let running = world.start().await;
        let mut ids = world.publish_many("p", 20).await;
        let again = world.publish_many("again", 3).await;
        ids.extend(&again);
        recovers(&world, &proxy, &running, &ids, 2).await;
        assert_eq!((running.metrics.late.get(), running.metrics.expired.get()), (0, 0), "{loss:?}");
        for id in ids {
            let story = if again.contains(&id) { &["retry 503", "delivered 201"][..] } else { &["delivered 201"] };
            assert_eq!(world.story(id).await, story, "{loss:?}");
            assert_eq!(world.posts(id), story.len(), "{loss:?}");
        }
        world.finish_in_full(running).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_loses_the_answer_to_any_commit_again_and_again_loses_and_doubles_nothing() {
    const LOST: u64 = 15;
    let (world, proxy) = proxied().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(5));
    world.sandbox.faults().rule("again", Some(1), ApiFault::status(503));
    let running = world.start().await;
    let mut ids = Vec::new();
    let mut random = fastrand::Rng::with_seed(20_261_122);
    for n in 0..LOST {
        // Which commit it is, is chance; whether it was done, and how it is found out, too.
        let loss = if n % 7 == 6 { Loss::InSilence } else { Loss::ALL[random.usize(..2)] };
        // Read before: it may strike at once.
        let struck = proxy.notes().struck;
        // A settlement has no commit by itself. Where it was said before, its values come, and with them what was delivered.
        let texts: [&[&str]; 2] = [&["COMMIT"], &["delivered", EXECUTE]];
        proxy.set_times(Up, loss.of(texts[random.usize(..2)]), 1);
        while proxy.notes().struck == struck {
            let name = format!("{}{}x", ["p", "again"][random.usize(..2)], ids.len());
            ids.extend(world.publish_many(&name, 2).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The same transaction is not unlucky for ever: its message would be given back, which is another story.
        let id = world.publish(&format!("between{n}")).await;
        world.until("the worker accepts again", async || world.state(id).await.is_some()).await;
        ids.push(id);
    }
    proxy.heal();
    let since = Instant::now();
    world.until_all_delivered(&ids).await;
    assert!(since.elapsed() < BACK_WITHIN, "{:?}", since.elapsed());
    account_for(&world, &ids).await;
    for id in &ids {
        let lead = world.show(*id).await;
        assert_eq!(usize::try_from(lead.attempts).unwrap(), world.posts(*id), "{:?}", lead.history);
    }
    assert_eq!((running.metrics.late.get(), running.metrics.expired.get()), (0, 0));
    assert!(running.health.report().ready);
    world.finish_in_full(running).await;
}

/// The tables, as Postgres describes them.
async fn tables(url: &str) -> Vec<String> {
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    let sql = "select concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) \
               from information_schema.columns where table_schema = 'public' \
               union all select concat_ws(' ', conrelid::regclass, pg_get_constraintdef(oid)) \
               from pg_constraint where connamespace = 'public'::regnamespace \
               union all select indexdef from pg_indexes where schemaname = 'public' order by 1";
    let tables = sqlx::query_scalar(sql).fetch_all(&pool).await.unwrap();
    pool.close().await;
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_loses_the_answer_to_any_of_its_commits_is_finished_by_the_next() {
    let (mut world, proxy) = proxied().await;
    let whole = tables(&world.database.url).await;
    let mut url = url::Url::parse(&world.database.url).unwrap();
    let through = world.settings.postgres.url.expose().to_owned();
    let mut commits = 1;
    loop {
        let name = format!("leadpost_migrated_{}", Uuid::new_v4().simple());
        world.execute(&format!("create database {name}")).await;
        url.set_path(&name);
        let mut own = url::Url::parse(&through).unwrap();
        own.set_path(&name);
        world.settings.postgres.url = leadpost::config::Secret::new(own.to_string());
        let struck = proxy.notes().struck;
        let loss = if commits % 2 == 0 { Loss::BeforeIt } else { Loss::AfterIt };
        proxy.set_times(Up, loss.of(&vec!["COMMIT"; commits]), 1);
        let first = world.leadpost(&["migrate"]).await;
        let has_struck = proxy.notes().struck > struck;
        assert_eq!(first.code, Some(if has_struck { 69 } else { 0 }), "{commits}: {first:?}");
        if has_struck {
            assert!(first.stderr.contains("could not bring the tables up to date"), "{first:?}");
        }
        proxy.heal();
        for arguments in [&["migrate"][..], &["migrate", "--check"]] {
            let again = world.leadpost(arguments).await;
            assert_eq!(again.code, Some(0), "{commits}: {again:?}");
        }
        assert_eq!(tables(url.as_str()).await, whole);
        world.execute(&format!("drop database {name} with (force)")).await;
        if !has_struck {
            break;
        }
        commits += 1;
    }
    assert!(commits > 2, "there is a commit for each migration");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_first_connections_fall_silent_starts_all_the_same() {
    let (world, proxy) = proxied().await;
    let id = world.publish("ann").await;
    // One while it connects, one that is let go on up to the migrations.
    for fault in [Fault::BlackHole, Fault::CutAfter(u64::MAX)] {
        proxy.heal();
        match fault {
            Fault::BlackHole => proxy.set_times(Down, fault, 1),
            _ => proxy.set_times(Up, Fault::keep_answer(&["_sqlx_migrations"]), 1),
        }
        let begun = Instant::now();
        let running = tokio::time::timeout(BACK_WITHIN, world.start()).await.expect("it must start");
        proxy.until_struck(1).await;
        world.until_state(id, LeadState::Delivered).await;
        assert!(begun.elapsed() < BACK_WITHIN, "{:?}", begun.elapsed());
        assert_eq!(running.stop().await, Stopped::Cleanly);
    }
    world.check_books().await;
}
