//! Identity: what a message means for the lead that has its id, whatever state that is in, and however often it comes.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use leadpost::broker::{Inbox, Want};
use leadpost::lead::{LeadId, identify};
use leadpost::ledger::{Arrival, Fate, LeadState};
use leadpost::sandbox::{Duplicates, Fault};
use leadpost::worker::Stopped;
use uuid::Uuid;

use crate::support::scene::{self, arrival, put};
use crate::support::{Message, World};

/// What is expected of a message whose id is known.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    /// Counted as one more delivery.
    Repeat,
    /// Posted again, with the body of the message.
    Replay,
    /// A lead of its own, delivered.
    Conflict,
    /// A lead of its own, held back as the first is.
    Held,
}

struct Case {
    id: LeadId,
    state: LeadState,
    body: String,
    expected: Expected,
    name: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_id_is_known_is_counted_replayed_or_made_a_lead_of_its_own_as_the_state_says() {
    use Expected::{Conflict, Held, Repeat, Replay};
    use LeadState::{Cancelled, Delivered, Duplicate, Exhausted, Invalid, Pending, Rejected, Uncertain};
    // state; then same body: plain, redelivered, by header; then another body: plain, redelivered, by header
    let table = [
        (Pending, [Repeat, Repeat, Repeat], [Conflict, Conflict, Conflict]),
        (Delivered, [Repeat, Repeat, Repeat], [Conflict, Conflict, Conflict]),
        (Duplicate, [Repeat, Repeat, Repeat], [Conflict, Conflict, Conflict]),
        (Invalid, [Replay, Repeat, Replay], [Replay, Replay, Replay]),
        (Rejected, [Replay, Repeat, Replay], [Replay, Replay, Replay]),
        (Exhausted, [Replay, Repeat, Replay], [Replay, Replay, Replay]),
        (Uncertain, [Repeat, Repeat, Replay], [Held, Held, Replay]),
        (Cancelled, [Repeat, Repeat, Replay], [Held, Held, Replay]),
    ];
    let world = World::new().await;
    let (mut plain, mut redelivered, mut by_header) = (Vec::new(), Vec::new(), Vec::new());
    for (state, same, other) in table {
        for (same_body, row) in [(true, same), (false, other)] {
            for (way, expected) in [&mut plain, &mut redelivered, &mut by_header].into_iter().zip(row) {
                let id = LeadId(Uuid::new_v4());
                let name = format!("{state}-{same_body}-{}", id.0.simple());
                let first = World::lead(&name);
                put(&world.ledger, id, &first, state).await;
                let body = if same_body { first } else { World::lead(&format!("other-{name}")) };
                way.push(Case { id, state, body, expected, name });
            }
        }
    }
    for case in &redelivered {
        world.broker.publish(Message::new(case.id, &case.body)).await;
    }
    world.broker.redeliver().await;
    for case in &plain {
        world.broker.publish(Message::new(case.id, &case.body)).await;
    }
    for case in &by_header {
        world.broker.publish(Message { replay: true, ..Message::new(case.id, &case.body) }).await;
    }
    let running = world.start().await;
    world.until_received(2 * 48).await;
    let pending = i64::try_from(table.iter().filter(|(state, ..)| *state == Pending).count() * 6).unwrap();
    world.until_count(Pending, pending).await;

    for (way, case) in [("plain", &plain), ("redelivered", &redelivered), ("by header", &by_header)]
        .into_iter()
        .flat_map(|(way, cases)| cases.iter().map(move |case| (way, case)))
    {
        let what = format!("{} {way}: {:?}", case.name, case.expected);
        let lead = world.show(case.id).await;
        let posts = world.posts(case.id);
        let other_id = case.id.for_conflict(case.body.as_bytes());
        let other = world.ledger.show(other_id).await.unwrap();
        assert!(lead.conflict_of.is_none(), "{what}");
        if case.expected == Replay {
            assert_eq!((lead.state, posts, lead.received, lead.replays), (Delivered, 1, 2, 1), "{what}");
            assert_eq!(lead.charged, 1, "{what}: a fresh budget");
            let [replay] = &lead.replayed[..] else { panic!("{what}: {:?}", lead.replayed) };
            assert_eq!((replay.kind.as_str(), replay.from_state.as_str()), ("message", case.state.as_str()), "{what}");
            assert_eq!(replay.replayed_by, world.broker.queue, "{what}");
            let body = world.ledger.body(case.id).await.unwrap().unwrap();
            assert_eq!(body, case.body.as_bytes(), "{what}: the new body is kept");
        } else {
            assert_eq!((lead.state, posts, lead.replays), (case.state, 0, 0), "{what}");
            assert_eq!(lead.received, if case.expected == Repeat { 2 } else { 1 }, "{what}");
        }
        match case.expected {
            Repeat | Replay => assert!(other.is_none(), "{what}"),
            Conflict | Held => {
                let other = other.unwrap_or_else(|| panic!("{what}: the other body is lost"));
                assert_eq!(other.conflict_of, Some(case.id.0), "{what}");
                assert_eq!(other.message_id, Some(case.id.to_string()), "{what}");
                let body = world.ledger.body(other_id).await.unwrap().unwrap();
                assert_eq!(body, case.body.as_bytes(), "{what}");
                let expected = if case.expected == Conflict { (Delivered, 1) } else { (case.state, 0) };
                assert_eq!((other.state, world.posts(other_id)), expected, "{what}");
            }
        }
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_body_under_a_taken_id_is_delivered_too_and_both_messages_are_known_when_they_come_again() {
    let world = World::new().await;
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    let body = World::lead("bob");
    let second = id.for_conflict(body.as_bytes());
    for received in 1..=3 {
        world.broker.publish(Message::new(id, &body)).await;
        world.until_received(1 + received).await;
    }
    world.broker.publish(Message::new(id, &World::lead("ann"))).await;
    world.until_received(5).await;
    let lead = world.until_state(second, LeadState::Delivered).await;
    assert_eq!(lead.conflict_of, Some(id.0));
    assert_eq!(lead.received, 3);
    assert_eq!(world.show(id).await.received, 2);
    assert_eq!((world.posts(id), world.posts(second)), (1, 1));
    assert_eq!(world.sandbox.journal().counts().created, 2);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_many_times_in_one_batch_is_one_lead_and_one_post() {
    let world = World::new().await;
    // Long enough that a second post of the same lead would overlap with the first.
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(50));
    let id = LeadId(Uuid::new_v4());
    for _ in 0..5 {
        world.broker.publish(Message::new(id, &World::lead("ann"))).await;
    }
    let running = world.start().await;
    world.until_received(5).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.posts(id), 1);
    assert_eq!(world.story(id).await, ["delivered 201"]);
    assert_eq!(running.metrics.late.get(), 0);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bodies_under_one_id_in_one_batch_are_two_leads_and_both_are_delivered() {
    let world = World::new().await;
    let id = LeadId(Uuid::new_v4());
    let (ann, bob) = (World::lead("ann"), World::lead("bob"));
    for body in [&ann, &bob, &ann, &bob] {
        world.broker.publish(Message::new(id, body)).await;
    }
    let running = world.start().await;
    world.until_received(4).await;
    world.until_state(id, LeadState::Delivered).await;
    let other = id.for_conflict(bob.as_bytes());
    let conflict = world.until_state(other, LeadState::Delivered).await;
    assert_eq!(conflict.conflict_of, Some(id.0));
    assert_eq!((world.posts(id), world.posts(other)), (1, 1));
    let emails: BTreeSet<_> = world.sandbox.journal().posts().into_iter().filter_map(|post| post.email).collect();
    assert_eq!(emails.len(), 2, "both people reached the API: {emails:?}");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_lead_that_comes_twice_in_one_batch_is_replayed_once() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(50));
    let id = world.put("ann", LeadState::Rejected).await;
    for _ in 0..2 {
        world.broker.publish(Message::new(id, &World::lead("ann"))).await;
    }
    let running = world.start().await;
    world.until_received(3).await;
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!((lead.replays, lead.attempts), (1, 2));
    assert_eq!(world.posts(id), 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_an_id_is_known_by_its_body() {
    let world = World::new().await;
    // Two leads of one person are posted here, in any order; the API is to take both.
    world.sandbox.tune(|tuning| tuning.duplicates = Duplicates::Existing);
    let body = World::lead("ann").into_bytes();
    let id = identify(&world.broker.queue, None, &body);
    world.broker.publish(Message::raw(&body)).await;
    world.broker.publish(Message { message_id: Some(String::new()), ..Message::raw(&body) }).await;
    let spaced = [b" ", &body[..]].concat();
    world.broker.publish(Message::raw(&spaced)).await;
    let running = world.start().await;
    world.until_received(3).await;
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!((lead.received, lead.message_id), (2, None));
    let other = identify(&world.broker.queue, None, &spaced);
    world.until_state(other, LeadState::Delivered).await;
    assert_eq!((world.posts(id), world.posts(other)), (1, 1), "another byte is another lead");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_that_is_no_uuid_counts_within_its_queue_and_is_kept_as_it_was_written() {
    let world = World::new().await;
    let id = identify(&world.broker.queue, Some("crm-1"), b"");
    for name in ["ann", "ann", "bob"] {
        let message_id = Some("crm-1".to_owned());
        world.broker.publish(Message { message_id, ..Message::raw(World::lead(name).as_bytes()) }).await;
    }
    let running = world.start().await;
    world.until_received(3).await;
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!((lead.received, lead.message_id.as_deref()), (2, Some("crm-1")));
    let other = world.until_state(id.for_conflict(World::lead("bob").as_bytes()), LeadState::Delivered).await;
    assert_eq!((other.conflict_of, other.message_id.as_deref()), (Some(id.0), Some("crm-1")));
    assert_ne!(id, identify("another queue", Some("crm-1"), b""));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_spellings_of_a_uuid_are_one_lead_with_one_idempotency_key() {
    let world = World::new().await;
    let uuid = Uuid::new_v4();
    let spellings = [
        uuid.to_string().to_uppercase(),
        uuid.to_string(),
        uuid.simple().to_string(),
        format!("{{{uuid}}}"),
        uuid.urn().to_string(),
    ];
    for spelling in &spellings {
        let message_id = Some(spelling.clone());
        world.broker.publish(Message { message_id, ..Message::raw(World::lead("ann").as_bytes()) }).await;
    }
    let running = world.start().await;
    world.until_received(5).await;
    let lead = world.until_state(LeadId(uuid), LeadState::Delivered).await;
    assert_eq!(lead.received, 5);
    assert_eq!(lead.message_id.as_ref(), Some(&spellings[0]), "as its producer wrote it");
    // The journal tells spellings apart: this one is lower case with hyphens.
    assert_eq!(world.posts(LeadId(uuid)), 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_ids_that_a_text_column_cannot_hold_are_told_apart_and_delivered() {
    let world = World::new().await;
    let ids = [
        "a\0b".to_owned(),
        "a\0\0b".to_owned(),
        "ab".to_owned(),
        "\0".to_owned(),
        "\u{1}\u{1b}[31m\r\n".to_owned(),
        "x".repeat(255),
        "é".repeat(127),
        "😀".repeat(63),
        "\u{0}".repeat(255),
        "\u{feff}\u{202e}".to_owned(),
        " ".to_owned(),
        "'; drop table leads; --".to_owned(),
    ];
    for (n, id) in ids.iter().enumerate() {
        let message_id = Some(id.clone());
        world.broker.publish(Message { message_id, ..Message::raw(World::lead(&format!("p{n}")).as_bytes()) }).await;
    }
    let running = world.start().await;
    for id in &ids {
        let lead = identify(&world.broker.queue, Some(id), b"");
        let lead = world.until_state(lead, LeadState::Delivered).await;
        let kept: String = id.chars().filter(|c| !c.is_control()).collect();
        assert_eq!(lead.message_id.unwrap_or_default(), kept);
        assert_eq!(world.posts(lead.id), 1);
    }
    assert_eq!(world.sandbox.journal().posts().len(), ids.len());
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_destinations_in_one_ledger_do_not_take_each_others_message_ids() {
    let world = World::new().await;
    let (settings, broker) = world.neighbour("other").await;
    let id = LeadId(Uuid::new_v4());
    let body = World::lead("ann");
    let first = world.start().await;
    world.broker.publish(Message::new(id, &body)).await;
    world.until_state(id, LeadState::Delivered).await;

    // The other destination is another API, which does not know this person.
    world.sandbox.forget_leads();
    let second = world.start_with(settings, "second").await;
    let theirs = id.for_destination("other");
    for received in 1..=2 {
        broker.publish(Message::new(id, &body)).await;
        world.until_received(1 + received).await;
    }
    let lead = world.until_state(theirs, LeadState::Delivered).await;
    assert_eq!((lead.destination.as_str(), lead.received, lead.conflict_of), ("other", 2, Some(id.0)));
    assert_eq!((world.posts(id), world.posts(theirs)), (1, 1));
    // Another body under the second one's id is a lead of its own there as well.
    let bob = World::lead("bob");
    broker.publish(Message::new(id, &bob)).await;
    let lead = world.until_state(theirs.for_conflict(bob.as_bytes()), LeadState::Delivered).await;
    assert_eq!((lead.destination.as_str(), lead.conflict_of), ("other", Some(id.0)));
    assert_eq!(world.show(id).await.received, 1, "the first is not touched");
    assert_eq!(second.stop().await, Stopped::Cleanly);
    assert_eq!(broker.depth().await, 0);
    world.finish(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_all_kinds_of_messages_gives_each_its_due() {
    let world = World::new().await;
    let delivered = world.put("delivered", LeadState::Delivered).await;
    let rejected = world.put("rejected", LeadState::Rejected).await;
    let cancelled = world.put("cancelled", LeadState::Cancelled).await;
    let fresh = world.publish("fresh").await;
    world.broker.publish(Message::raw(b"not json")).await;
    world.broker.publish(Message::new(delivered, &World::lead("delivered"))).await;
    world.broker.publish(Message::new(delivered, &World::lead("conflict"))).await;
    world.broker.publish(Message::new(rejected, &World::lead("mended"))).await;
    world.broker.publish(Message::new(cancelled, &World::lead("cancelled"))).await;
    world.broker.publish(Message::new(cancelled, &World::lead("held"))).await;
    world.broker.publish(Message::new(fresh, &World::lead("fresh"))).await;
    // An invalid body under an id that is delivered: kept as a lead of its own, and not posted.
    world.broker.publish(Message::new(delivered, "[]")).await;
    world.broker.publish(Message::raw(b"")).await;
    let running = world.start().await;
    world.until_received(3 + 10).await;
    let conflict = delivered.for_conflict(World::lead("conflict").as_bytes());
    for id in [fresh, conflict, rejected] {
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(world.posts(id), 1);
    }
    let invalid = world.show(delivered.for_conflict(b"[]")).await;
    assert_eq!((invalid.state, invalid.conflict_of), (LeadState::Invalid, Some(delivered.0)));
    let held = world.show(cancelled.for_conflict(World::lead("held").as_bytes())).await;
    assert_eq!((held.state, held.code.as_deref()), (LeadState::Cancelled, Some("id_conflict")));
    use LeadState::{Cancelled, Delivered, Invalid};
    assert_eq!(world.tally().await, [(Delivered, 4), (Invalid, 3), (Cancelled, 2)]);
    assert_eq!(world.sandbox.journal().posts().len(), 3);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_committed_and_not_acknowledged_is_not_posted_twice() {
    let world = World::new().await;
    let id = world.publish("ann").await;
    world.broker.redeliver().await;
    // Another worker has committed it, and died before it could acknowledge it; what it holds is its lease.
    let dead = world.handle("dead");
    let fates = scene::accept(&dead, &[arrival(id, &World::lead("ann"))], Uuid::new_v4()).await;
    assert!(matches!(fates[..], [Fate::Leased(_)]), "{fates:?}");
    let running = world.start().await;
    world.until_received(2).await;
    world.until("the message is acknowledged", async || world.broker.depth().await == 0).await;
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.leased_by.as_deref()), (LeadState::Pending, Some("dead")));
    assert_eq!(world.posts(id), 0, "it is the other's to post");
    assert_eq!(running.stop().await, Stopped::Cleanly);

    world.pass(scene::LEASE).await;
    let running = world.start_named("heir").await;
    world.until_attempts(id, 1).await;
    world.pass(Duration::from_secs(60)).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["uncertain", "delivered 201"]);
    assert_eq!(world.posts(id), 1);
    world.finish(running).await;
}

fn rabbitmqctl(arguments: &[&str]) -> String {
    let program = std::env::var("LEADPOST_SERVICES_RABBITMQCTL")
        .expect("LEADPOST_SERVICES_RABBITMQCTL is not set; run scripts/test, or: eval \"$(scripts/services env)\"");
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Closes the connection that calls itself so, from the broker's side.
async fn close_connection_of(worker: String) {
    let closing = tokio::task::spawn_blocking(move || {
        let list = rabbitmqctl(&["-q", "list_connections", "pid", "client_properties"]);
        let line = list.lines().find(|line| line.contains(&worker)).unwrap_or_else(|| panic!("{worker} in {list}"));
        rabbitmqctl(&["close_connection", line.split_whitespace().next().unwrap(), "closed by a test"]);
    });
    closing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_broker_closes_loses_no_lead_and_doubles_none() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 4;
    world.settings.flow.batch = 4;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(60));
    let name = format!("closed-{}", Uuid::new_v4().simple());
    let running = world.start_named(&name).await;
    let mut ids = Vec::new();
    for n in 0..120 {
        ids.push(world.publish(&format!("p{n}")).await);
    }
    world.until("leads flow", async || world.sandbox.journal().counts().created > 0).await;
    close_connection_of(name).await;
    for n in 120..140 {
        ids.push(world.publish(&format!("p{n}")).await);
    }
    world.until_count(LeadState::Delivered, 140).await;
    for id in ids {
        assert_eq!(world.posts(id), 1);
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_purged_ends_nothing_that_was_taken_from_it() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 2;
    world.settings.flow.batch = 2;
    world.sandbox.faults().rule("p0@", None, Fault::latency(Duration::from_millis(300)));
    let running = world.start().await;
    let first = world.publish("p0").await;
    world.until("it is being posted", async || world.posts(first) == 1).await;
    world
        .broker
        .channel
        .queue_purge(world.broker.queue.as_str().into(), lapin::options::QueuePurgeOptions::default())
        .await
        .unwrap();
    let second = world.publish("p1").await;
    for id in [first, second] {
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(world.posts(id), 1);
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_and_declared_again_is_consumed_again() {
    let world = World::new().await;
    let running = world.start().await;
    let first = world.publish("ann").await;
    world.until_state(first, LeadState::Delivered).await;
    let queue = world.broker.queue.as_str();
    world.broker.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    world.until("the loss is noticed", async || !running.health.report().rabbitmq.ok).await;
    assert!(!running.health.report().ready);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    world.broker.channel.queue_declare(queue.into(), options, arguments).await.unwrap();
    let second = world.publish("bob").await;
    world.until_state(second, LeadState::Delivered).await;
    assert!(running.health.report().rabbitmq.ok);
    assert_eq!((world.posts(first), world.posts(second)), (1, 1));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_in_hand_when_the_worker_stops_are_parked_or_return_and_none_is_lost() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 2;
    world.settings.flow.batch = 2;
    world.settings.amqp.prefetch = 20;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(400));
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(world.publish(&format!("p{n}")).await);
    }
    let running = world.start().await;
    world.until("leads are being posted", async || world.sandbox.journal().posts().len() >= 2).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    // Whatever is not in the queue is in the ledger; whatever is in neither would be unacknowledged, or lost.
    let accepted = world.ledger.status().await.unwrap().accepted;
    world.until("the rest is in the queue", async || i64::from(world.broker.depth().await) + accepted == 30).await;
    assert_eq!(world.number("select count(*) from leads where lease is not null").await, 0, "no lease is left behind");
    assert_eq!(world.number("select count(*) from leads where next_attempt_at > now()").await, 0, "all is due at once");
    assert_eq!(world.number("select count(*) from attempts where outcome <> 'delivered'").await, 0);
    world.check_books().await;

    world.sandbox.tune(|tuning| tuning.latency = Duration::ZERO);
    let running = world.start_named("next").await;
    world.until_count(LeadState::Delivered, 30).await;
    for id in ids {
        assert_eq!(world.posts(id), 1);
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_client_cannot_read_goes_to_the_delivery_limit_alone_and_its_neighbours_are_delivered() {
    let world = World::new().await;
    let dead = world.broker.bury_dead_letters(3).await;
    let before = world.publish("ann").await;
    // As a producer writes it that takes AMQP's short strings for bytes: a binary UUID, or Latin-1.
    let body = World::lead("bad");
    tokio::task::block_in_place(|| world.broker.publish_raw(b"M\xfcller-\xff", None, body.as_bytes()));
    let after = world.publish("bob").await;
    let running = world.start().await;
    for id in [before, after] {
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(world.posts(id), 1);
    }
    assert_eq!(world.sandbox.journal().counts().created, 2);
    world.until("it is among the dead letters", async || world.broker.depth_of(&dead).await == 1).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_were_given_back_are_not_acknowledged_by_what_comes_after_them() {
    let world = World::new().await;
    for n in 0..20 {
        world.publish(&format!("lead{n}")).await;
    }
    let mut inbox = Inbox::open(&world.settings.amqp, 20, "given-back").unwrap();
    inbox.want(Want::Messages);
    let mut refused = Vec::new();
    while refused.len() < 10 {
        let room = 10 - refused.len();
        let mut more = Vec::new();
        inbox.take(&mut more, room).await;
        refused.extend(more);
    }
    // Wanted again before the supervisor can have looked.
    inbox.give_back();
    inbox.want(Want::Messages);
    inbox.acknowledge(refused[9].receipt.clone());
    let mut taken = Vec::new();
    while taken.len() < 20 {
        let mut more = Vec::new();
        inbox.take(&mut more, 20).await;
        taken.extend(more);
    }
    assert!(taken.iter().all(|message| inbox.is_fresh(message)));
    drop(taken);
    inbox.close().await;
    world.until("all of them are in the queue", async || world.broker.depth().await == 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivery_of_a_message_that_was_replaced_since_is_not_posted() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::status(422)]);
    let running = world.start().await;
    let id = world.publish("wrong").await;
    world.until_state(id, LeadState::Rejected).await;
    world.broker.publish(Message::new(id, &World::lead("mended"))).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);
    // The first message comes again: its acknowledgement was lost.
    let old = Arrival { redelivered: true, ..scene::arrival(id, &World::lead("wrong")) };
    let fates = scene::accept(&world.ledger, &[old], Uuid::new_v4()).await;
    assert!(matches!(fates[..], [Fate::Repeated(same, LeadState::Delivered)] if same == id), "{fates:?}");
    assert_eq!(world.tally().await, [(LeadState::Delivered, 1)]);
}
