//! Leases: one claim, one post, one settlement; what runs out, comes late, or is done twice; and a ledger under stress.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use leadpost::config::OnUncertain;
use leadpost::lead::{Code, LeadId, Violation};
use leadpost::ledger::{Act, Action, Arrival, Doubts, Fate, Filter, LeadState, Ledger, OnLock, Settlement};
use leadpost::sandbox::Fault;
use leadpost::worker::Stopped;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::scene::{self, LEASE, accept, arrival, leased, settlement};
use crate::support::{Message, World};

/// `n` valid leads that nobody has seen before.
fn arrivals(n: usize) -> Vec<Arrival> {
    (0..n).map(|n| arrival(LeadId(Uuid::new_v4()), &World::lead(&format!("p{n}")))).collect()
}

/// Everything that the ledger has about leads and attempts, to see whether anything was changed.
async fn fingerprint(world: &World) -> (String, String) {
    let of = async |sql: &'static str| sqlx::query_scalar(sql).fetch_one(&world.database.pool).await.unwrap();
    (
        of("select coalesce(md5(string_agg(l::text, '' order by id)), '') from leads l").await,
        of("select coalesce(md5(string_agg(a::text, '' order by lead_id, number)), '') from attempts a").await,
    )
}

/// A lead that a worker has leased, before it died.
async fn leased_by_the_dead(world: &World) -> (LeadId, Ledger, Settlement) {
    let dead = world.handle("dead");
    let id = LeadId(Uuid::new_v4());
    let fates = accept(&dead, &[arrival(id, &World::lead("ann"))], Uuid::new_v4()).await;
    let settlement = settlement(&leased(&fates)[0], LeadState::Delivered);
    (id, dead, settlement)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_is_an_uncertain_attempt_and_the_lead_is_posted_again() {
    let world = World::new().await;
    let (id, ..) = leased_by_the_dead(&world).await;
    world.pass(LEASE).await;
    let running = world.start().await;
    let lead = world.until_attempts(id, 1).await;
    assert_eq!((lead.state, lead.charged, lead.code.as_deref()), (LeadState::Pending, 1, Some("lease_expired")));
    assert_eq!(lead.history[0].worker, "dead", "it was the dead worker's attempt");
    assert_eq!(world.posts(id), 0, "the schedule applies: not at once");
    assert!(world.due_in(id).await > Duration::from_secs(5));
    assert_eq!(running.metrics.expired.get(), 1);
    world.pass(Duration::from_secs(60)).await;
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["uncertain", "delivered 201"]);
    assert_eq!(lead.history[1].worker, "worker");
    assert_eq!(world.posts(id), 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_is_held_for_a_person_where_that_is_the_policy() {
    let mut world = World::new().await;
    world.settings.destination.on_uncertain = OnUncertain::Hold;
    let (id, ..) = leased_by_the_dead(&world).await;
    world.pass(LEASE).await;
    let running = world.start().await;
    let lead = world.until_state(id, LeadState::Uncertain).await;
    assert!(lead.reason.is_some_and(|reason| reason.contains("perhaps")));
    assert_eq!(world.story(id).await, ["uncertain"]);
    world.pass(Duration::from_secs(3600)).await;
    let other = world.publish("bob").await;
    world.until_state(other, LeadState::Delivered).await;
    assert_eq!(world.posts(id), 0);
    assert_eq!(world.tally().await, [(LeadState::Delivered, 1), (LeadState::Uncertain, 1)]);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_attempt_that_ran_out_exhausts_the_lead() {
    let mut world = World::new().await;
    world.settings.retry.max_attempts = 1;
    let (id, ..) = leased_by_the_dead(&world).await;
    world.pass(LEASE).await;
    let running = world.start().await;
    world.until_state(id, LeadState::Exhausted).await;
    assert_eq!(world.story(id).await, ["uncertain"]);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_has_not_run_out_is_nobody_elses() {
    let world = World::new().await;
    let (id, ..) = leased_by_the_dead(&world).await;
    world.pass(LEASE - Duration::from_secs(30)).await;
    let running = world.start().await;
    let other = world.publish("bob").await;
    world.until_state(other, LeadState::Delivered).await;
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.leased_by.as_deref(), lead.attempts), (LeadState::Pending, Some("dead"), 0));
    let none = world.ledger.claim(10, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
    assert!(none.is_empty(), "{none:?}");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_comes_after_the_lease_was_settled_for_it_changes_nothing_and_says_so() {
    let world = World::new().await;
    let (id, dead, late) = leased_by_the_dead(&world).await;
    world.pass(LEASE).await;
    let running = world.start().await;
    world.until_attempts(id, 1).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    let before = fingerprint(&world).await;
    // First or repeated, it is late.
    for repeated in [false, true] {
        let settled = dead.settle(Arc::new([late.clone()]), repeated, OnLock::Wait).await.unwrap();
        assert_eq!(settled.late, [id], "repeated {repeated}");
        assert_eq!(fingerprint(&world).await, before);
    }
    // Nor does it help when the lead is another's by now, or has ended.
    world.pass(Duration::from_secs(60)).await;
    let claimed = world.ledger.claim(1, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
    let before = fingerprint(&world).await;
    assert_eq!(dead.settle(Arc::new([late.clone()]), false, OnLock::Wait).await.unwrap().late, [id]);
    assert_eq!(fingerprint(&world).await, before);
    let ours = settlement(&claimed[0].leased, LeadState::Rejected);
    assert!(world.ledger.settle(Arc::new([ours]), false, OnLock::Wait).await.unwrap().late.is_empty());
    assert_eq!(dead.settle(Arc::new([late]), false, OnLock::Wait).await.unwrap().late, [id]);
    assert_eq!(world.story(id).await, ["uncertain", "rejected 422"]);
    assert_eq!(world.tally().await, [(LeadState::Rejected, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_before_anybody_has_noticed_that_the_lease_ran_out_still_counts() {
    let world = World::new().await;
    let (id, owner, settlement) = leased_by_the_dead(&world).await;
    world.pass(2 * LEASE).await;
    assert!(owner.settle(Arc::new([settlement]), false, OnLock::Wait).await.unwrap().late.is_empty());
    assert_eq!(world.story(id).await, ["delivered 201"]);
    assert_eq!(world.tally().await, [(LeadState::Delivered, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_token_of_the_lease_settles_a_lead() {
    let world = World::new().await;
    let (id, owner, settlement) = leased_by_the_dead(&world).await;
    let before = fingerprint(&world).await;
    // The same worker with another token, and another worker with another token.
    for ledger in [&owner, &world.ledger] {
        let forged = Settlement { lease: Uuid::new_v4(), ..settlement.clone() };
        assert_eq!(ledger.settle(Arc::new([forged]), false, OnLock::Wait).await.unwrap().late, [id]);
        assert_eq!(fingerprint(&world).await, before);
    }
    // In one batch with others, the rest is settled.
    let more = arrivals(3);
    let fates = accept(&owner, &more, Uuid::new_v4()).await;
    let mut batch: Vec<Settlement> =
        leased(&fates).iter().map(|leased| scene::settlement(leased, LeadState::Delivered)).collect();
    batch.insert(1, Settlement { lease: Uuid::new_v4(), ..settlement });
    assert_eq!(owner.settle(batch.into(), false, OnLock::Wait).await.unwrap().late, [id]);
    assert_eq!(world.tally().await, [(LeadState::Pending, 1), (LeadState::Delivered, 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_repeated_after_a_lost_answer_is_not_late() {
    let world = World::new().await;
    let more = arrivals(4);
    let fates = accept(&world.ledger, &more, Uuid::new_v4()).await;
    let states = [LeadState::Delivered, LeadState::Rejected, LeadState::Pending, LeadState::Cancelled];
    let settlements: Arc<[Settlement]> =
        leased(&fates).iter().zip(states).map(|(leased, state)| settlement(leased, state)).collect();
    assert!(world.ledger.settle(Arc::clone(&settlements), false, OnLock::Wait).await.unwrap().late.is_empty());
    let before = fingerprint(&world).await;
    let late = world.ledger.settle(Arc::clone(&settlements), true, OnLock::Wait).await.unwrap().late;
    assert_eq!(fingerprint(&world).await, before);
    // What was settled with an attempt is recognized by it.
    assert!(!late.contains(&settlements[0].id) && !late.contains(&settlements[1].id), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_back_repeated_after_a_lost_answer_is_not_late_either() {
    let world = World::new().await;
    let fates = accept(&world.ledger, &arrivals(1), Uuid::new_v4()).await;
    let settlements: Arc<[Settlement]> =
        leased(&fates).iter().map(|leased| settlement(leased, LeadState::Pending)).collect();
    assert!(world.ledger.settle(Arc::clone(&settlements), false, OnLock::Wait).await.unwrap().late.is_empty());
    let late = world.ledger.settle(settlements, true, OnLock::Wait).await.unwrap().late;
    assert!(late.is_empty(), "told as late, though nothing else happened to it: {late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accept_repeated_after_a_lost_answer_recognizes_its_leads_and_counts_them_once() {
    let world = World::new().await;
    let taken = world.put("taken", LeadState::Delivered).await;
    let rejected = world.put("rejected", LeadState::Rejected).await;
    let fresh = arrivals(2);
    let conflict = arrival(taken, &World::lead("conflict"));
    let replayed = arrival(rejected, &World::lead("mended"));
    let twice = fresh[0].clone();
    let batch = scene::shared(vec![fresh[0].clone(), conflict, replayed, fresh[1].clone(), twice]);
    let token = Uuid::new_v4();
    let first = scene::accept(&world.ledger, &batch, token).await;
    let again = scene::accept(&world.ledger, &batch, token).await;
    for fates in [&first, &again] {
        assert_eq!(fates.len(), 5);
        let [Fate::Leased(_), Fate::Leased(_), Fate::Leased(replayed), Fate::Leased(_), Fate::Repeated(id, _)] =
            &fates[..]
        else {
            panic!("{fates:?}")
        };
        assert_eq!((replayed.id, replayed.attempts, replayed.charged), (rejected, 1, 0));
        assert_eq!(*id, fresh[0].id);
    }
    let ids = |fates: &[Fate]| leased(fates).iter().map(|leased| leased.id).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&again));
    assert_eq!(world.show(rejected).await.replays, 1);
    // What they are handed out with is good for a settlement.
    let settlements: Arc<[Settlement]> =
        leased(&again).iter().map(|leased| settlement(leased, LeadState::Delivered)).collect();
    assert!(world.ledger.settle(settlements, false, OnLock::Wait).await.unwrap().late.is_empty());
    assert_eq!(world.tally().await, [(LeadState::Delivered, 5)]);
    assert_eq!(world.story(rejected).await, ["rejected 422", "delivered 201"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_were_leased_without_an_answer_are_released_uncharged_and_no_others() {
    let world = World::new().await;
    world.ledger.accept(arrivals(10).into(), None, OnLock::Wait).await.unwrap();
    let lost = Uuid::new_v4();
    let claimed = world.ledger.claim(4, (lost, LEASE), Vec::new(), Doubts::Included).await.unwrap();
    let others = world.ledger.claim(3, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
    assert_eq!(world.ledger.release(vec![lost, Uuid::new_v4()], Duration::ZERO, LEASE).await.unwrap(), 4);
    assert_eq!(world.ledger.release(vec![lost], Duration::ZERO, LEASE).await.unwrap(), 0, "once is enough");
    let waiting = world.ledger.status().await.unwrap().waiting;
    assert_eq!((waiting.leased, waiting.due), (3, 7));
    for claimed in &claimed {
        let lead = world.show(claimed.leased.id).await;
        assert_eq!((lead.attempts, lead.charged, lead.leased_by), (0, 0, None));
    }
    // What was leased by others is theirs still, and a settlement under the lost token changes nothing.
    let settle =
        |leased| world.ledger.settle(Arc::new([settlement(leased, LeadState::Delivered)]), false, OnLock::Wait);
    assert!(settle(&others[0].leased).await.unwrap().late.is_empty());
    assert_eq!(settle(&claimed[0].leased).await.unwrap().late, [claimed[0].leased.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_somebody_has_locked_does_not_hold_up_the_settlement_or_the_acceptance_of_others() {
    let mut world = World::new().await;
    world.settings.postgres.lock_timeout_ms = 200;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(2));
    let running = world.start().await;
    let locked = world.publish("locked").await;
    world.until_state(locked, LeadState::Pending).await;
    let mut lock = world.database.pool.begin().await.unwrap();
    sqlx::query("select 1 from leads where id = $1 for update").bind(locked.0).execute(&mut *lock).await.unwrap();
    let free = [world.publish("ann").await, world.publish("bob").await];
    // The same message again needs the locked row, too.
    world.broker.publish(Message::new(locked, &World::lead("locked"))).await;
    let late = world.publish("eve").await;
    for id in free.into_iter().chain([late]) {
        world.until_state(id, LeadState::Delivered).await;
    }
    assert_eq!(world.state(locked).await, Some(LeadState::Pending), "posted, and not settled while it is locked");
    assert_eq!(world.ledger.status().await.unwrap().aside, 1, "its message is kept, and acknowledged");
    lock.rollback().await.unwrap();
    let lead = world.until_state(locked, LeadState::Delivered).await;
    world.until("the repeated message is counted", async || world.show(locked).await.received == 2).await;
    assert_eq!(world.ledger.status().await.unwrap().aside, 0);
    assert_eq!((world.posts(locked), lead.attempts), (1, 1));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claimers_share_no_lead_and_leave_none() {
    let world = World::new().await;
    let all = arrivals(500);
    world.ledger.accept(all.clone().into(), None, OnLock::Wait).await.unwrap();
    let mut claimers = JoinSet::new();
    for n in 0..6 {
        let ledger = world.handle(&format!("w{n}"));
        claimers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = ledger.claim(17, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
                if claimed.is_empty() {
                    ledger.close().await;
                    return mine;
                }
                mine.extend(claimed.into_iter().map(|claimed| claimed.leased.id));
            }
        });
    }
    let claimed: Vec<LeadId> = claimers.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 500, "some were claimed twice, or not at all");
    let expected: BTreeSet<LeadId> = all.iter().map(|arrival| arrival.id).collect();
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(world.number("select count(distinct lease) from leads where lease is null").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_takes_the_longest_due_first_and_none_that_it_is_to_avoid() {
    let world = World::new().await;
    let all = arrivals(5);
    world.ledger.accept(all.clone().into(), None, OnLock::Wait).await.unwrap();
    for (n, arrival) in all.iter().enumerate() {
        sqlx::query("update leads set next_attempt_at = now() - $2 * interval '1 minute' where id = $1")
            .bind(arrival.id.0)
            .bind(i32::try_from(n).unwrap() - 1)
            .execute(&world.database.pool)
            .await
            .unwrap();
    }
    let claimed = world.ledger.claim(2, (Uuid::new_v4(), LEASE), vec![all[4].id], Doubts::Included).await.unwrap();
    let ids: BTreeSet<LeadId> = claimed.iter().map(|claimed| claimed.leased.id).collect();
    assert_eq!(ids, BTreeSet::from([all[3].id, all[2].id]));
    let rest = world.ledger.claim(9, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
    let ids: BTreeSet<LeadId> = rest.iter().map(|claimed| claimed.leased.id).collect();
    assert_eq!(ids, BTreeSet::from([all[4].id, all[1].id]), "the first is due in a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_the_middle_of_a_post_is_succeeded_after_its_lease_and_the_attempts_say_so() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::latency(Duration::from_millis(300)).after()]);
    let running = world.start_named("victim").await;
    let id = world.publish("ann").await;
    world.until("it is being posted", async || world.posts(id) == 1).await;
    running.task.abort();
    running.shutdown.drain.cancel();
    assert!(running.task.await.unwrap_err().is_cancelled());
    world.until("the request has ended", async || world.sandbox.journal().counts().in_flight == 0).await;
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.leased_by.as_deref(), lead.attempts), (LeadState::Pending, Some("victim"), 0));

    let running = world.start_named("heir").await;
    let other = world.publish("bob").await;
    world.until_state(other, LeadState::Delivered).await;
    assert_eq!(world.posts(id), 1, "not while the lease may still be alive");
    assert_eq!(running.stop().await, Stopped::Cleanly);
    world.pass(LEASE).await;
    let running = world.start_named("heir").await;
    world.until_attempts(id, 1).await;
    world.pass(Duration::from_secs(60)).await;
    // The API has it already and says so.
    let lead = world.until_state(id, LeadState::Duplicate).await;
    assert_eq!(world.story(id).await, ["uncertain", "duplicate 409"]);
    let workers: Vec<&str> = lead.history.iter().map(|attempt| attempt.worker.as_str()).collect();
    assert_eq!(workers, ["victim", "heir"]);
    assert_eq!(world.posts(id), 2);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_were_not_begun_when_the_worker_stops_are_due_at_once_and_not_charged() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 1;
    world.sandbox.faults().script([Fault::latency(Duration::from_millis(500))]);
    let running = world.start().await;
    let posted = world.publish("p0").await;
    world.until("the first is being posted", async || world.posts(posted) == 1).await;
    let mut others = Vec::new();
    for n in 1..=3 {
        others.push(world.publish(&format!("p{n}")).await);
    }
    world.until("one is accepted ahead", async || world.state(others[0]).await.is_some()).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    assert_eq!(world.state(posted).await, Some(LeadState::Delivered), "what was begun is finished");
    for id in &others {
        assert_eq!(world.posts(*id), 0);
        let Some(lead) = world.ledger.show(*id).await.unwrap() else { continue };
        assert_eq!((lead.state, lead.leased_by, lead.attempts, lead.charged), (LeadState::Pending, None, 0, 0));
        assert_eq!(world.due_in(*id).await, Duration::ZERO);
    }
    let running = world.start_named("next").await;
    for id in others {
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(world.story(id).await, ["delivered 201"]);
        assert_eq!(world.posts(id), 1);
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_refuses_rows_that_make_no_sense() {
    let world = World::new().await;
    for state in LeadState::ALL {
        world.put(state.as_str(), state).await;
    }
    let insert = |columns: &str, values: &str| {
        format!(
            "insert into leads (id, destination, queue, body{columns}) values (gen_random_uuid(), 'd', 'q', ''{values})"
        )
    };
    let attempt = |number: i32, outcome: &str, status: &str, code: &str| {
        format!(
            "insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status, code) \
             select id, {number}, gen_random_uuid(), 'w', now(), 1, '{outcome}', true, {status}, {code} \
             from leads where state = 'cancelled'"
        )
    };
    let bad = [
        // Rows that are new.
        insert(", state", ", 'pending'"),
        insert(", state, next_attempt_at", ", 'unheard-of', now()"),
        insert(", state, next_attempt_at", ", '', now()"),
        insert(", state, next_attempt_at, finished_at", ", 'pending', now(), now()"),
        insert(", state", ", 'delivered'"),
        insert(", state, finished_at, reason", ", 'invalid', now(), 'why'"),
        insert(", state, finished_at", ", 'rejected', now()"),
        insert(", state, finished_at", ", 'duplicate', now()"),
        insert(", state, finished_at, remote_id", ", 'rejected', now(), '7'"),
        insert(", next_attempt_at", ", now()"),
        "insert into leads (id, destination, queue, state, next_attempt_at) values (gen_random_uuid(), 'd', 'q', 'pending', now())"
            .to_owned(),
        "insert into leads select * from leads where state = 'delivered'".to_owned(),
        // Rows that are changed.
        "update leads set next_attempt_at = null where state = 'pending'".to_owned(),
        "update leads set state = 'delivered' where state = 'pending'".to_owned(),
        "update leads set state = 'pending' where state = 'delivered'".to_owned(),
        "update leads set finished_at = now() where state = 'pending'".to_owned(),
        "update leads set finished_at = null where state = 'rejected'".to_owned(),
        "update leads set leased_by = 'w' where state = 'pending'".to_owned(),
        "update leads set lease = gen_random_uuid() where state = 'pending'".to_owned(),
        "update leads set leased_by = 'w', lease = gen_random_uuid() where state = 'delivered'".to_owned(),
        "update leads set violations = null where state = 'invalid'".to_owned(),
        "update leads set violations = '[]' where state = 'rejected'".to_owned(),
        "update leads set reason = null where state = 'rejected'".to_owned(),
        "update leads set reason = null where state = 'exhausted'".to_owned(),
        "update leads set reason = null where state = 'uncertain'".to_owned(),
        "update leads set reason = null where state = 'cancelled'".to_owned(),
        "update leads set remote_id = '7' where state = 'rejected'".to_owned(),
        "update leads set posted_at = now() where state = 'rejected'".to_owned(),
        "update leads set posted_status = null where state = 'delivered'".to_owned(),
        "update leads set attempts = 0, charged = 0 where state = 'delivered'".to_owned(),
        "update leads set attempts = -1 where state = 'cancelled'".to_owned(),
        "update leads set charged = attempts + 1".to_owned(),
        "update leads set charged = -1".to_owned(),
        "update leads set suspected = -1".to_owned(),
        "update leads set received = 0".to_owned(),
        "update leads set replays = -1".to_owned(),
        "update leads set body = null".to_owned(),
        "update leads set destination = null".to_owned(),
        // Attempts.
        attempt(0, "delivered", "201", "null"),
        attempt(-1, "delivered", "201", "null"),
        attempt(1, "unheard-of", "201", "'c'"),
        attempt(1, "not_sent", "201", "'c'"),
        attempt(1, "delivered", "null", "null"),
        attempt(1, "retry", "null", "'c'"),
        attempt(1, "rejected", "422", "null"),
        attempt(1, "uncertain", "null", "null"),
        "insert into other_attempts select * from other_attempts".to_owned(),
        // Replays.
        "insert into replays (lead_id, from_state, kind, replayed_by) select id, state, 'whim', 'w' from leads".to_owned(),
        "insert into replays (lead_id, from_state, kind, replayed_by) values (gen_random_uuid(), 'rejected', 'requeue', 'w')"
            .to_owned(),
        "insert into replays (lead_id, from_state, kind) select id, state, 'requeue' from leads".to_owned(),
    ];
    let before = fingerprint(&world).await;
    for sql in bad {
        let result = sqlx::query(sqlx::AssertSqlSafe(sql.clone())).execute(&world.database.pool).await;
        let error = match result {
            Ok(done) => panic!("{} rows were taken: {sql}", done.rows_affected()),
            Err(error) => error,
        };
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        assert!(code.starts_with("23"), "{code} {error}: {sql}");
    }
    assert_eq!(fingerprint(&world).await, before);
    assert_eq!(world.tally().await, LeadState::ALL.map(|state| (state, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn tallies_agree_with_the_leads_after_any_sequence_of_writes() {
    let world = World::new().await;
    let handles: Vec<Ledger> = (0..3).map(|n| world.handle(&format!("w{n}"))).collect();
    let mut random = fastrand::Rng::with_seed(20_261_121);
    let mut known: Vec<LeadId> = Vec::new();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for step in 0..2_000 {
        // Until every state was there; that some are rare is chance.
        if step >= 200 && seen.len() == 8 {
            break;
        }
        let ledger = &handles[random.usize(0..handles.len())];
        let action = ["accept", "settle", "requeue", "delete"][[0, 0, 0, 1, 1, 1, 1, 2, 2, 3][random.usize(0..10)]];
        *counts.entry(action).or_default() += 1;
        match action {
            "accept" => {
                let batch: Vec<Arrival> = (0..random.usize(1..8))
                    .map(|_| {
                        let old = known.get(random.usize(0..known.len() + 4)).copied();
                        let id = old.unwrap_or_else(|| LeadId(Uuid::from_u128(random.u128(..))));
                        known.push(id);
                        let mut arrival = arrival(id, &World::lead(&format!("p{}", random.u8(0..2))));
                        arrival.redelivered = random.bool();
                        arrival.replay = random.u8(0..4) == 0;
                        if random.u8(0..5) == 0 {
                            arrival.violations = vec![Violation::of_message(Code::Missing, "made up")];
                        }
                        arrival
                    })
                    .collect();
                let n = batch.len();
                let lease = random.bool().then(|| (Uuid::from_u128(random.u128(..)), LEASE));
                assert_eq!(ledger.accept(batch.into(), lease, OnLock::Wait).await.unwrap().len(), n, "step {step}");
            }
            "settle" => {
                let token = Uuid::from_u128(random.u128(..));
                let claimed =
                    ledger.claim(random.usize(1..12), (token, LEASE), Vec::new(), Doubts::Included).await.unwrap();
                let settlements: Vec<Settlement> = claimed
                    .iter()
                    .map(|claimed| settlement(&claimed.leased, LeadState::ALL[random.usize(0..8)]))
                    .collect();
                assert!(
                    ledger.settle(settlements.into(), false, OnLock::Wait).await.unwrap().late.is_empty(),
                    "step {step}"
                );
            }
            "requeue" => {
                let action = match random.u8(0..6) {
                    0 => Action::Cancel,
                    1 => Action::SettleDelivered,
                    2 => Action::SendAgain { rate_per_s: None },
                    _ => Action::Requeue { include_delivered: random.bool(), rate_per_s: None },
                };
                let filter = match action {
                    Action::Requeue { .. } => Filter::of_states(&[LeadState::ALL[random.usize(1..8)]]),
                    _ => Filter::of_ids(&[(); 3].map(|()| known[random.usize(0..known.len())])),
                };
                let act = Act { action, filter, by: "ops".to_owned(), reason: None, as_of: None };
                ledger.act(act, |_| ()).await.unwrap();
            }
            _ => {
                let id = known[random.usize(0..known.len())];
                sqlx::query("delete from leads where id = $1").bind(id.0).execute(&world.database.pool).await.unwrap();
            }
        }
        if step % 2 == 1 {
            let states = world.tally().await;
            seen.extend(states.iter().map(|(state, _)| *state));
            let sum: i64 = states.iter().map(|(_, n)| n).sum();
            assert_eq!(sum, world.number("select count(*) from leads").await, "step {step}: {states:?}");
            assert_eq!(sum, world.ledger.status().await.unwrap().accepted, "step {step}");
        }
    }
    assert!(counts.len() == 4 && seen.len() == 8, "{counts:?} {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_batches_in_any_order_are_all_accepted() {
    let world = World::new().await;
    // New ids, and known ones that are counted or replayed.
    let mut pool: Vec<Arrival> = arrivals(40);
    for n in 0..40 {
        let state = if n % 2 == 0 { LeadState::Delivered } else { LeadState::Rejected };
        let id = world.put(&format!("k{n}"), state).await;
        pool.push(arrival(id, &World::lead(&format!("k{n}"))));
        // Another body: a conflict, or a replay.
        pool.push(arrival(id, &World::lead(&format!("c{n}"))));
    }
    let mut random = fastrand::Rng::with_seed(7);
    let mut accepting = JoinSet::new();
    for n in 0..6 {
        let ledger = world.handle(&format!("w{n}"));
        let batches: Vec<Vec<Arrival>> = (0..8)
            .map(|_| {
                let mut batch = random.choose_multiple(pool.iter().cloned(), 60);
                random.shuffle(&mut batch);
                batch
            })
            .collect();
        accepting.spawn(async move {
            for (n, batch) in batches.into_iter().enumerate() {
                let lease = (n % 2 == 0).then(|| (Uuid::new_v4(), LEASE));
                let fates = ledger.accept(batch.into(), lease, OnLock::Wait).await.unwrap();
                assert_eq!(fates.len(), 60);
            }
            ledger.close().await;
        });
    }
    accepting.join_all().await;
    assert!(world.tally().await.iter().map(|(_, n)| n).sum::<i64>() >= 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_postgres_that_are_cut_again_and_again_lose_no_lead() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(5));
    let running = world.start().await;
    let cutter = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                  where datname = current_database() and application_name = 'leadpost worker'";
    let mut cut = 0;
    let mut ids = Vec::new();
    for n in 0..200 {
        ids.push(world.publish(&format!("p{n}")).await);
        if n % 25 == 24 {
            cut += world.number(cutter).await;
        }
    }
    assert!(cut > 0, "nothing was cut");
    world.until_count(LeadState::Delivered, 200).await;
    for id in ids {
        assert_eq!((world.posts(id), world.story(id).await.len()), (1, 1));
    }
    assert_eq!(running.metrics.late.get(), 0);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_arrive_while_the_leads_are_locked_are_held_and_accepted_afterwards() {
    let mut world = World::new().await;
    world.settings.postgres.lock_timeout_ms = 150;
    let running = world.start().await;
    let first = world.publish("p0").await;
    world.until_state(first, LeadState::Delivered).await;
    let mut locker = world.database.pool.begin().await.unwrap();
    sqlx::query("lock table leads in access exclusive mode").execute(&mut *locker).await.unwrap();
    let mut ids = Vec::new();
    for n in 1..=20 {
        ids.push(world.publish(&format!("p{n}")).await);
    }
    world.until("the lock was waited for in vain", async || running.metrics.ledger_failures.get() >= 3).await;
    assert_eq!(world.sandbox.journal().posts().len(), 1, "nothing is posted that is not in the ledger");
    // The heartbeat writes another table and may say in between that all is well.
    world.until("the worker says so", async || !running.health.report().postgres.ok).await;
    locker.rollback().await.unwrap();
    world.until_count(LeadState::Delivered, 21).await;
    for id in ids {
        assert_eq!((world.posts(id), world.show(id).await.received), (1, 1));
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_cannot_be_written_stops_the_flow_and_its_return_starts_it() {
    let world = World::new().await;
    let running = world.start().await;
    let first = world.publish("p0").await;
    world.until_state(first, LeadState::Delivered).await;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
               where datname = current_database() and application_name = 'leadpost worker'";
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(&world.database.pool).await.unwrap();
    world.execute(&format!("alter database {name} set default_transaction_read_only = on")).await;
    world.number(cut).await;
    let mut ids = Vec::new();
    for n in 1..=20 {
        ids.push(world.publish(&format!("p{n}")).await);
    }
    world.until("it is noticed", async || !running.health.report().postgres.ok).await;
    assert!(!running.health.report().ready);
    assert_eq!(world.number("select count(*) from leads").await, 1);
    assert_eq!(world.sandbox.journal().posts().len(), 1);
    let back = format!("begin read write; alter database {name} reset default_transaction_read_only; commit");
    sqlx::raw_sql(sqlx::AssertSqlSafe(back)).execute(&world.database.pool).await.unwrap();
    world.number(cut).await;
    world.until_count(LeadState::Delivered, 21).await;
    for id in ids {
        assert_eq!((world.posts(id), world.story(id).await.len()), (1, 1));
    }
    assert!(running.health.report().postgres.ok);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_of_one_queue_share_the_leads_and_post_each_once() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 4;
    world.settings.flow.batch = 4;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(10));
    world.sandbox.faults().rule("retry", Some(1), Fault::status(503));
    let one = world.start_named("one").await;
    let two = world.start_named("two").await;
    let mut ids = Vec::new();
    for n in 0..80 {
        let name = if n % 4 == 0 { format!("retry{n}") } else { format!("p{n}") };
        ids.push(world.publish(&name).await);
        if n % 5 == 0 {
            // The same message again, perhaps to the other worker.
            world.broker.publish(Message::new(ids[n], &World::lead(&name))).await;
        }
    }
    world.until_received(96).await;
    world.until("all of the faults were met", async || world.sandbox.journal().counts().faults == 20).await;
    world.until("none is under way", async || world.ledger.status().await.unwrap().waiting.leased == 0).await;
    world.pass(Duration::from_secs(60)).await;
    world.until_count(LeadState::Delivered, 80).await;
    let workers = world.number("select count(distinct worker) from attempts").await;
    assert_eq!(workers, 2, "both worked");
    assert_eq!(world.sandbox.journal().posts().len(), 100);
    assert_eq!(two.stop().await, Stopped::Cleanly);
    world.finish(one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_set_aside_for_long_do_not_keep_those_behind_them() {
    // More than are looked at at a time.
    const LOCKED: usize = 101;
    let mut world = World::new().await;
    world.settings.postgres.lock_timeout_ms = 200;
    let mut ids = Vec::new();
    for n in 0..LOCKED + 2 {
        ids.push(world.put(&format!("lead{n}"), LeadState::Delivered).await);
    }
    let lock = async |ids: &[LeadId]| {
        let mut transaction = world.database.pool.begin().await.unwrap();
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let sql = "select 1 from leads where id = any($1) for update";
        sqlx::query(sql).bind(ids).execute(&mut *transaction).await.unwrap();
        transaction
    };
    let (for_long, for_short) = (lock(&ids[..LOCKED]).await, lock(&ids[LOCKED..]).await);
    let running = world.start().await;
    for (n, id) in ids.iter().enumerate() {
        world.broker.publish(Message::new(*id, &World::lead(&format!("lead{n}")))).await;
    }
    let aside = async || world.ledger.status().await.unwrap().aside;
    world.until("all are set aside", async || aside().await == i64::try_from(ids.len()).unwrap()).await;
    for_short.commit().await.unwrap();
    world
        .until("those that are free again are accepted", async || aside().await == i64::try_from(LOCKED).unwrap())
        .await;
    for id in &ids[LOCKED..] {
        assert_eq!(world.show(*id).await.received, 2);
    }
    for_long.commit().await.unwrap();
    world.until("all are accepted", async || aside().await == 0).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    assert_eq!(world.sandbox.journal().posts().len(), 0, "all of them were known");
}
