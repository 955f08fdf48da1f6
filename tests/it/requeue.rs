//! Requeue: replay from the operator's side.

use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::ledger::{Act, Action, Filter, LeadState, Ledger, When};
use leadpost::sandbox::Fault;
use uuid::Uuid;

use crate::support::scene::put;
use crate::support::{Message, World};

/// Every state that a lead can end in and be requeued from without being asked twice.
const BAD_ENDS: [LeadState; 5] =
    [LeadState::Invalid, LeadState::Rejected, LeadState::Exhausted, LeadState::Uncertain, LeadState::Cancelled];

fn requeue(filter: Filter) -> Act {
    Act {
        action: Action::Requeue { include_delivered: false, rate_per_s: None },
        filter,
        by: "ops".to_owned(),
        reason: Some("API was down".to_owned()),
        as_of: None,
    }
}

fn also_delivered(act: Act) -> Act {
    Act { action: Action::Requeue { include_delivered: true, rate_per_s: None }, ..act }
}

fn of_ids(ids: &[LeadId]) -> Act {
    requeue(Filter::of_ids(ids))
}

fn of_states(states: &[LeadState]) -> Act {
    requeue(Filter::of_states(states))
}

async fn act(ledger: &Ledger, act: Act) -> u64 {
    ledger.act(act, |_| ()).await.unwrap().leads
}

/// One lead in each of these states.
async fn one_of_each(world: &World, states: &[LeadState]) -> Vec<LeadId> {
    let mut ids = Vec::new();
    for state in states {
        ids.push(world.put(state.as_str(), *state).await);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_are_requeued_by_id_from_every_bad_end_and_delivered_with_their_history_kept() {
    let world = World::new().await;
    let ids = one_of_each(&world, &BAD_ENDS).await;
    assert_eq!(world.tally().await, BAD_ENDS.map(|state| (state, 1)));
    assert_eq!(act(&world.ledger, of_ids(&ids)).await, 5);
    assert_eq!(world.tally().await, [(LeadState::Pending, 5)]);
    for id in &ids {
        let lead = world.show(*id).await;
        assert_eq!((lead.code, lead.reason, lead.finished_at), (None, None, None));
        assert!(lead.violations.is_empty());
        assert_eq!(world.due_in(*id).await, Duration::ZERO, "due at once");
    }
    let running = world.start().await;
    for (id, from) in ids.iter().zip(BAD_ENDS) {
        let lead = world.until_state(*id, LeadState::Delivered).await;
        assert_eq!((world.posts(*id), lead.replays, lead.charged, lead.received), (1, 1, 1, 1), "{from}");
        let [replay] = &lead.replayed[..] else { panic!("{from}: {:?}", lead.replayed) };
        assert_eq!((replay.kind.as_str(), replay.from_state.as_str()), ("requeue", from.as_str()));
        assert_eq!((replay.replayed_by.as_str(), replay.reason.as_deref()), ("ops", Some("API was down")));
        let before: &[&str] = match from {
            LeadState::Rejected => &["rejected 422"],
            LeadState::Exhausted => &["retry 503"],
            LeadState::Uncertain => &["uncertain 500"],
            _ => &[],
        };
        assert_eq!(world.story(*id).await, [before, &["delivered 201"]].concat(), "{from}");
    }
    assert_eq!(world.tally().await, [(LeadState::Delivered, 5)]);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_are_requeued_by_state_and_no_others() {
    let world = World::new().await;
    let ids = one_of_each(&world, &LeadState::ALL).await;
    let chosen = [LeadState::Exhausted, LeadState::Uncertain];
    assert_eq!(act(&world.ledger, of_states(&chosen)).await, 2);
    for (id, state) in ids.iter().zip(LeadState::ALL) {
        let expected = if chosen.contains(&state) { LeadState::Pending } else { state };
        assert_eq!(world.state(*id).await, Some(expected), "{state}");
        assert_eq!(world.show(*id).await.replays, i32::from(chosen.contains(&state)), "{state}");
    }
    use LeadState::{Cancelled, Delivered, Duplicate, Invalid, Pending, Rejected};
    let counts = [(Pending, 3), (Delivered, 1), (Duplicate, 1), (Invalid, 1), (Rejected, 1), (Cancelled, 1)];
    assert_eq!(world.tally().await, counts);
    assert_eq!(act(&world.ledger, of_states(&chosen)).await, 0, "repeated, it finds none");
    assert_eq!(world.number("select count(*) from replays").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn since_counts_from_when_a_lead_came_to_its_end() {
    let world = World::new().await;
    let old = world.put("old", LeadState::Exhausted).await;
    let new = world.put("new", LeadState::Exhausted).await;
    let sql = "update leads set finished_at = now() - interval '3 hours' where id = $1";
    sqlx::query(sql).bind(old.0).execute(&world.database.pool).await.unwrap();
    let since = |hours: f64| {
        requeue(Filter { since: Some(When::Ago(hours * 3600.0)), ..Filter::of_states(&[LeadState::Exhausted]) })
    };
    assert_eq!(act(&world.ledger, since(2.0)).await, 1);
    assert_eq!(world.state(new).await, Some(LeadState::Pending));
    assert_eq!(world.state(old).await, Some(LeadState::Exhausted));
    assert_eq!(act(&world.ledger, since(4.0)).await, 1);
    assert_eq!(world.tally().await, [(LeadState::Pending, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_has_is_posted_again_only_when_that_is_asked_for() {
    let world = World::new().await;
    let states = [LeadState::Delivered, LeadState::Duplicate];
    let ids = one_of_each(&world, &states).await;
    assert_eq!(act(&world.ledger, of_ids(&ids)).await, 0);
    assert_eq!(act(&world.ledger, of_states(&states)).await, 0);
    assert_eq!(world.tally().await, states.map(|state| (state, 1)));

    assert_eq!(act(&world.ledger, also_delivered(of_ids(&ids))).await, 2);
    let running = world.start().await;
    for (id, first) in ids.iter().zip(["delivered 201", "duplicate 409"]) {
        world.until_state(*id, LeadState::Delivered).await;
        assert_eq!(world.story(*id).await, [first, "delivered 201"]);
        assert_eq!(world.posts(*id), 1);
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_and_unknown_ids_are_told_apart_and_the_others_requeued() {
    let world = World::new().await;
    let pending = world.put("pending", LeadState::Pending).await;
    let due = world.due_in(pending).await;
    let rejected = world.put("rejected", LeadState::Rejected).await;
    let unknown = LeadId(Uuid::new_v4());
    // A lead of another destination in the same ledger is none of ours.
    let (settings, _broker) = world.neighbour("other").await;
    let theirs = LeadId(Uuid::new_v4());
    let other = leadpost::ledger::Ledger::new(&settings, "other").unwrap();
    put(&other, theirs, &World::lead("theirs"), LeadState::Rejected).await;

    let named = [pending, rejected, unknown, theirs];
    let known = world.ledger.named(&named).await.unwrap();
    let states: Vec<_> = known.iter().map(|named| (named.id, named.state)).collect();
    let expected = [Some(LeadState::Pending), Some(LeadState::Rejected), None, None];
    assert_eq!(states, named.into_iter().zip(expected).collect::<Vec<_>>());
    assert_eq!(act(&world.ledger, of_ids(&named)).await, 1);
    assert_eq!(world.state(rejected).await, Some(LeadState::Pending));
    assert_eq!(world.state(theirs).await, Some(LeadState::Rejected));
    assert!(due - world.due_in(pending).await < Duration::from_secs(20), "a pending lead keeps its time");
    assert_eq!(act(&other, of_states(&[LeadState::Rejected])).await, 1);
    assert_eq!(world.tally().await, [(LeadState::Pending, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_named_twice_is_requeued_once() {
    let world = World::new().await;
    let rejected = world.put("rejected", LeadState::Rejected).await;
    let unknown = LeadId(Uuid::new_v4());
    assert_eq!(act(&world.ledger, of_ids(&[rejected, unknown, rejected, unknown])).await, 1);
    assert_eq!(world.show(rejected).await.replays, 1);
    assert_eq!(world.tally().await, [(LeadState::Pending, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_be_done_and_changes_nothing() {
    let world = World::new().await;
    let ids = one_of_each(&world, &BAD_ENDS).await;
    let rows = "select md5(string_agg(l::text, '' order by id)) from leads l";
    let before: String = sqlx::query_scalar(rows).fetch_one(&world.database.pool).await.unwrap();
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let by_ids: Vec<&str> = ["requeue", "--dry-run"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    let every = "invalid,rejected,exhausted,uncertain,cancelled";
    // What a person has to decide on, or has decided on, is to be named.
    for (arguments, n) in
        [(&by_ids[..], 5), (&["requeue", "--dry-run", "--state", every], 5), (&["requeue", "--dry-run", "--all"], 3)]
    {
        let dry = world.leadpost(arguments).await;
        assert!(
            dry.code == Some(0) && dry.stderr.contains(&format!("{n} leads would be sent on their way again")),
            "{dry:?}"
        );
    }
    let after: String = sqlx::query_scalar(rows).fetch_one(&world.database.pool).await.unwrap();
    assert_eq!(before, after);
    assert_eq!(world.number("select count(*) from replays").await, 0);
    assert_eq!(world.tally().await, BAD_ENDS.map(|state| (state, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_spreads_when_leads_become_due_the_first_that_ended_first() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(world.put(&format!("p{n}"), LeadState::Exhausted).await);
    }
    let action = Action::Requeue { include_delivered: false, rate_per_s: Some(0.1) };
    let paced = Act { action, ..of_states(&[LeadState::Exhausted]) };
    assert_eq!(act(&world.ledger, paced).await, 5);
    let mut from_first: Vec<(f64, Uuid)> = sqlx::query_as(
        "select extract(epoch from next_attempt_at - min(next_attempt_at) over ())::float8, id from leads order by 1",
    )
    .fetch_all(&world.database.pool)
    .await
    .unwrap();
    from_first.iter_mut().for_each(|(seconds, _)| *seconds = seconds.round());
    let expected: Vec<(f64, Uuid)> = ids.iter().enumerate().map(|(n, id)| (10.0 * n as f64, id.0)).collect();
    assert_eq!(from_first, expected);
    // Only the first is due.
    let running = world.start().await;
    world.until_state(ids[0], LeadState::Delivered).await;
    let fresh = world.publish("fresh").await;
    world.until_state(fresh, LeadState::Delivered).await;
    assert_eq!(world.tally().await, [(LeadState::Pending, 4), (LeadState::Delivered, 2)]);
    world.pass(Duration::from_secs(60)).await;
    world.until_count(LeadState::Delivered, 6).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_lead_has_a_fresh_budget_of_attempts_and_of_age() {
    let mut world = World::new().await;
    world.settings.retry.max_attempts = 2;
    world.settings.retry.max_age_ms = 3_600_000;
    world.sandbox.faults().script([503, 503, 503].map(Fault::status));
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_attempts(id, 1).await;
    world.pass(Duration::from_secs(60)).await;
    let lead = world.until_state(id, LeadState::Exhausted).await;
    assert_eq!((lead.attempts, lead.charged), (2, 2));
    // Older than any lead may become.
    world
        .execute("update leads set budget_from = now() - interval '1 day', accepted_at = now() - interval '1 day'")
        .await;
    assert_eq!(act(&world.ledger, of_ids(&[id])).await, 1);
    let lead = world.until_attempts(id, 3).await;
    assert_eq!((lead.state, lead.charged), (LeadState::Pending, 1), "the third attempt does not exhaust it");
    world.pass(Duration::from_secs(60)).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["retry 503", "retry 503", "retry 503", "delivered 201"]);
    assert_eq!(world.posts(id), 4);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_lead_is_saved_by_a_mended_configuration() {
    let mut world = World::new().await;
    let running = world.start().await;
    let id = world.publish_body(r#"{"name":"ann","email":"ann@example.com"}"#).await;
    let lead = world.until_state(id, LeadState::Invalid).await;
    assert_eq!(lead.violations.iter().map(|violation| violation.field.as_str()).collect::<Vec<_>>(), ["assistantId"]);
    assert_eq!(running.stop().await, leadpost::worker::Stopped::Cleanly);
    assert_eq!(world.posts(id), 0);

    world.settings.lead.default_assistant_id = Some("61".to_owned());
    let running = world.start_named("mended").await;
    assert_eq!(act(&world.ledger, of_ids(&[id])).await, 1);
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert!(lead.violations.is_empty());
    assert_eq!(world.posts(id), 1);
    let kept = world.ledger.body(id).await.unwrap().unwrap();
    assert_eq!(kept, br#"{"name":"ann","email":"ann@example.com"}"#, "the body is kept as it came");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_lead_that_the_present_rules_refuse_ends_invalid_and_is_not_posted() {
    let world = World::new().await;
    let bodies = [r#"{"name":"ann"}"#, "[]", "", "\u{feff}{}"];
    let mut ids = Vec::new();
    for body in bodies {
        let id = LeadId(Uuid::new_v4());
        put(&world.ledger, id, body, LeadState::Rejected).await;
        ids.push(id);
    }
    let running = world.start().await;
    assert_eq!(act(&world.ledger, of_ids(&ids)).await, 4);
    for (id, body) in ids.iter().zip(bodies) {
        let lead = world.until_state(*id, LeadState::Invalid).await;
        assert!(!lead.violations.is_empty(), "{body}");
        assert_eq!(lead.code.as_deref(), Some("invalid"), "{body}");
        assert!(lead.reason.is_some_and(|reason| !reason.is_empty()), "{body}");
        assert_eq!((lead.attempts, world.posts(*id)), (1, 0), "{body}");
    }
    // And once more: from invalid to invalid.
    assert_eq!(act(&world.ledger, of_ids(&ids)).await, 4);
    world.until_count(LeadState::Invalid, 4).await;
    assert_eq!(world.number("select sum(replays)::bigint from leads").await, 8);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requeues_that_cross_each_other_and_a_worker_requeue_each_lead_once() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(world.put(&format!("p{n}"), BAD_ENDS[n % BAD_ENDS.len()]).await);
    }
    let running = world.start().await;
    let requeues = (0..6).map(|n| {
        let ledger = world.handle(&format!("ops{n}"));
        let requeue = if n % 2 == 0 { of_states(&BAD_ENDS) } else { of_ids(&ids) };
        tokio::spawn(async move { act(&ledger, requeue).await })
    });
    let mut sum = 0;
    for requeue in requeues.collect::<Vec<_>>() {
        sum += requeue.await.unwrap();
    }
    assert_eq!(sum, 40);
    world.until_count(LeadState::Delivered, 40).await;
    for id in ids {
        assert_eq!(world.posts(id), 1);
        assert_eq!(world.show(id).await.replays, 1);
    }
    assert_eq!(world.number("select count(*) from replays").await, 40);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_comes_again_as_a_message_while_it_is_requeued_is_replayed_once() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(world.put(&format!("p{n}"), LeadState::Rejected).await);
    }
    let running = world.start().await;
    let ledger = world.handle("ops");
    let requeue = of_ids(&ids);
    let requeueing = tokio::spawn(async move { act(&ledger, requeue).await });
    for (n, id) in ids.iter().enumerate() {
        world.broker.publish(Message::new(*id, &World::lead(&format!("p{n}")))).await;
    }
    requeueing.await.unwrap();
    world.until_received(40).await;
    world.until_count(LeadState::Delivered, 20).await;
    for id in &ids {
        assert_eq!((world.posts(*id), world.show(*id).await.replays), (1, 1));
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_conflict_is_sent_by_a_requeue() {
    let world = World::new().await;
    let id = world.put("ann", LeadState::Uncertain).await;
    let body = World::lead("bob");
    let other = id.for_conflict(body.as_bytes());
    let running = world.start().await;
    world.broker.publish(Message::new(id, &body)).await;
    world.until_state(other, LeadState::Uncertain).await;
    assert_eq!(act(&world.ledger, of_ids(&[other])).await, 1);
    world.until_state(other, LeadState::Delivered).await;
    assert_eq!((world.posts(id), world.posts(other)), (0, 1));
    assert_eq!(world.state(id).await, Some(LeadState::Uncertain));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tallies_and_books_are_right_after_each_step_of_a_leads_life() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::status(422), Fault::status(503)]);
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Rejected).await;
    assert_eq!(world.tally().await, [(LeadState::Rejected, 1)]);
    act(&world.ledger, of_ids(&[id])).await;
    world.until_attempts(id, 2).await;
    assert_eq!(world.tally().await, [(LeadState::Pending, 1)]);
    world.pass(Duration::from_secs(60)).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.tally().await, [(LeadState::Delivered, 1)]);
    world.sandbox.forget_leads();
    act(&world.ledger, also_delivered(of_ids(&[id]))).await;
    world.until_attempts(id, 4).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.tally().await, [(LeadState::Delivered, 1)]);
    assert_eq!(world.ledger.status().await.unwrap().accepted, 1);
    assert_eq!(world.story(id).await, ["rejected 422", "retry 503", "delivered 201", "delivered 201"]);
    world.execute("delete from leads").await;
    assert_eq!(world.tally().await, []);
    let left = "select (select count(*) from attempts) + (select count(*) from replays)";
    assert_eq!(world.number(left).await, 0, "its attempts and replays go with a lead");
    assert_eq!(world.ledger.status().await.unwrap().accepted, 0);
    running.stop().await;
}
