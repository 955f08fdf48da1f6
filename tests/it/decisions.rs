//! What people decide about leads: cancel, release, edit. Each is on record, none touches a lead that is being posted, and what was decided holds
//! against messages that come again.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use leadpost::lead::{Key, Keys, LeadId};
use leadpost::ledger::{Act, Action, Doubts, Edit, Edited, Filter, LeadState, Order};
use leadpost::sandbox::Fault;
use uuid::Uuid;

use crate::support::scene::LEASE;
use crate::support::{Message, Terminal, World};

fn act(action: Action, filter: Filter) -> Act {
    Act { action, filter, by: "carla".to_owned(), reason: Some("wrong campaign".to_owned()), as_of: None }
}

async fn done(world: &World, act: Act) -> u64 {
    world.ledger.act(act, |_| ()).await.unwrap().leads
}

/// What people did to a lead: kind, from which state, by whom, why.
async fn interventions(world: &World, id: LeadId) -> Vec<(String, String, String, Option<String>)> {
    let lead = world.show(id).await;
    let of =
        |record: leadpost::ledger::InterventionRecord| (record.kind, record.from_state, record.done_by, record.reason);
    lead.interventions.into_iter().map(of).collect()
}

fn on_record(kind: &str, from: LeadState) -> Vec<(String, String, String, Option<String>)> {
    vec![(kind.to_owned(), from.to_string(), "carla".to_owned(), Some("wrong campaign".to_owned()))]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_lead_is_not_posted_and_says_who_stopped_it_and_why() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for state in LeadState::ALL {
        ids.push(world.put(state.as_str(), state).await);
    }
    let due = world.put("due", LeadState::Pending).await;
    world.execute("update leads set next_attempt_at = now() where state = 'pending'").await;
    assert_eq!(done(&world, act(Action::Cancel, Filter::default())).await, 2);
    let running = world.start().await;
    // Its own message comes again: it was decided on.
    world.broker.publish(Message::new(due, &World::lead("due"))).await;
    world.until_received(10).await;
    for (id, before) in ids.iter().zip(LeadState::ALL) {
        let lead = world.show(*id).await;
        let expected = if before == LeadState::Pending { LeadState::Cancelled } else { before };
        assert_eq!((lead.state, world.posts(*id)), (expected, 0), "{before}");
    }
    let lead = world.show(due).await;
    assert_eq!(lead.state, LeadState::Cancelled);
    assert_eq!(lead.reason.as_deref(), Some("cancelled by carla: wrong campaign"));
    assert_eq!(interventions(&world, due).await, on_record("cancel", LeadState::Pending));
    assert_eq!(done(&world, act(Action::Cancel, Filter::default())).await, 0, "repeated, it finds none");

    let requeue = Action::Requeue { include_delivered: false, rate_per_s: None };
    assert_eq!(done(&world, act(requeue, Filter::of_ids(&[due]))).await, 1);
    world.until_state(due, LeadState::Delivered).await;
    assert_eq!(world.posts(due), 1);
    assert!(world.ledger.verify().await.unwrap().holds());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_is_being_posted_is_nobodys_to_cancel_or_to_correct() {
    let world = World::new().await;
    let id = world.put("ann", LeadState::Pending).await;
    world.execute("update leads set next_attempt_at = now()").await;
    let claimed = world.ledger.claim(1, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(done(&world, act(Action::Cancel, Filter::of_ids(&[id]))).await, 0);
    assert_eq!(world.ledger.edit(edit(id, &World::lead("ann"), &World::lead("bob"))).await.unwrap(), Edited::Posting);
    assert_eq!(world.state(id).await, Some(LeadState::Pending));
    assert_eq!(interventions(&world, id).await, []);
    let said = world.leadpost(&["cancel", &id.to_string()]).await;
    assert!(said.code == Some(1) && said.stderr.contains("is being posted just now"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uncertain_lead_is_settled_as_delivered_or_posted_again_and_no_other_lead_is() {
    let world = World::new().await;
    let mut others = Vec::new();
    for state in LeadState::ALL.into_iter().filter(|state| *state != LeadState::Uncertain) {
        others.push((world.put(state.as_str(), state).await, state));
    }
    let [seen, lost] = [world.put("seen", LeadState::Uncertain).await, world.put("lost", LeadState::Uncertain).await];
    assert_eq!(done(&world, act(Action::SettleDelivered, Filter::of_ids(&[seen]))).await, 1);
    let again = Action::SendAgain { rate_per_s: None };
    assert_eq!(done(&world, act(again, Filter::default())).await, 1, "the other one");
    let running = world.start().await;
    world.until_state(lost, LeadState::Delivered).await;
    let lead = world.show(seen).await;
    assert_eq!((lead.state, lead.code.as_deref()), (LeadState::Delivered, Some("released")));
    assert_eq!(lead.reason.as_deref(), Some("settled as delivered by carla: wrong campaign"));
    assert_eq!(interventions(&world, seen).await, on_record("release", LeadState::Uncertain));
    assert_eq!((world.posts(seen), world.posts(lost)), (0, 1));
    for (id, state) in others {
        assert_eq!(world.state(id).await, Some(state));
    }
    // A message that comes again finds it delivered.
    world.broker.publish(Message::new(seen, &World::lead("seen"))).await;
    world.until_received(10).await;
    assert_eq!((world.state(seen).await, world.posts(seen)), (Some(LeadState::Delivered), 0));
    assert!(world.ledger.verify().await.unwrap().holds());
    running.stop().await;
}

fn edit(id: LeadId, before: &str, after: &str) -> Edit {
    Edit {
        id,
        before: before.as_bytes().to_vec(),
        after: after.as_bytes().to_vec(),
        keys: Keys::of_body(after.as_bytes()),
        include_delivered: false,
        by: "carla".to_owned(),
        reason: Some("wrong campaign".to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_lead_is_posted_as_corrected_and_its_message_coming_again_brings_nothing_back() {
    let world = World::new().await;
    world.sandbox.faults().rule("@exmaple", None, Fault::status(422));
    let running = world.start().await;
    let wrong = World::lead("ann").replace("@example", "@exmaple");
    let id = world.publish_body(&wrong).await;
    world.until_state(id, LeadState::Rejected).await;
    let right = World::lead("ann");
    assert_eq!(world.ledger.edit(edit(id, &World::lead("bob"), &right)).await.unwrap(), Edited::Changed);
    assert_eq!(world.ledger.edit(edit(LeadId(Uuid::new_v4()), &wrong, &right)).await.unwrap(), Edited::Unknown);
    assert_eq!(world.state(id).await, Some(LeadState::Rejected), "nothing was changed");

    assert_eq!(world.ledger.edit(edit(id, &wrong, &right)).await.unwrap(), Edited::Done);
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["rejected 422", "delivered 201"]);
    assert_eq!(interventions(&world, id).await, on_record("edit", LeadState::Rejected));
    let kept: Vec<u8> = sqlx::query_scalar("select body from interventions where kind = 'edit'")
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(kept, wrong.as_bytes(), "the original is kept");
    assert_eq!(world.ledger.edit(edit(id, &right, &wrong)).await.unwrap(), Edited::Taken(LeadState::Delivered));

    for again in [&wrong, &right] {
        world.broker.publish(Message::new(id, again)).await;
    }
    world.until_received(3).await;
    assert_eq!((world.posts(id), world.tally().await), (2, vec![(LeadState::Delivered, 1)]));
    let by = |address: &str| Filter { emails: vec![Key::of_email(address)], ..Filter::default() };
    assert_eq!(world.ledger.count(Arc::new(by("ann@example.com"))).await.unwrap(), 1, "found by the new address");
    assert_eq!(world.ledger.count(Arc::new(by("ann@exmaple.com"))).await.unwrap(), 0);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_that_is_refused_too_is_not_undone_by_the_message_that_it_corrected() {
    let world = World::new().await;
    let id = world.put("ann", LeadState::Rejected).await;
    let (wrong, still_wrong) = (World::lead("ann"), World::lead("ann").replace("61", "62"));
    assert_eq!(world.ledger.edit(edit(id, &wrong, &still_wrong)).await.unwrap(), Edited::Done);
    world.sandbox.faults().script([Fault::status(422)]);
    let running = world.start().await;
    world.until_state(id, LeadState::Rejected).await;
    world.broker.publish(Message::new(id, &wrong)).await;
    world.until_received(2).await;
    assert_eq!((world.state(id).await, world.posts(id)), (Some(LeadState::Rejected), 1));
    assert_eq!(world.ledger.body(id).await.unwrap().unwrap(), still_wrong.as_bytes());
    // Another body is news.
    world.broker.publish(Message::new(id, &World::lead("ann").replace("61", "63"))).await;
    world.until_state(id, LeadState::Delivered).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_is_corrected_in_an_editor_or_from_a_file_and_only_to_a_valid_one() {
    let world = World::new().await;
    let id = LeadId(Uuid::new_v4());
    crate::support::scene::put(&world.ledger, id, r#"{"name":"ann"}"#, LeadState::Invalid).await;
    let id_text = id.to_string();
    let from_stdin = ["leads", "edit", &id_text, "--from", "-", "--reason", "no address"];
    let invalid = world.leadpost_with(&from_stdin, &[], br#"{"name":"ann","email":"nobody"}"#).await;
    assert!(invalid.code == Some(1) && invalid.stderr.contains("assistantId"), "{invalid:?}");
    let same = world.leadpost_with(&from_stdin, &[], br#"{"name":"ann"}"#).await;
    assert!(same.code == Some(1) && same.stderr.contains("as it was"), "{same:?}");
    let no_terminal = world.leadpost(&["leads", "edit", &id_text]).await;
    assert!(no_terminal.code == Some(1) && no_terminal.stderr.contains("--from"), "{no_terminal:?}");
    assert_eq!(world.state(id).await, Some(LeadState::Invalid));

    let valid = world.leadpost_with(&from_stdin, &[("SUDO_USER", "carla")], World::lead("ann").as_bytes()).await;
    assert_eq!(valid.code, Some(0), "{valid:?}");
    assert_eq!(world.ledger.body(id).await.unwrap().unwrap(), World::lead("ann").as_bytes());
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.interventions[0].done_by.as_str()), (LeadState::Pending, "carla"));
    let shown = world.leadpost(&["leads", "show", &id_text]).await;
    assert!(shown.stdout.contains("body corrected") && shown.stdout.contains("no address"), "{shown:?}");
}

/// What somebody does to a lead while another one edits it, and what the other one is told.
enum Meanwhile {
    Changed,
    Posting,
    Delivered,
    Erased,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_typed_is_kept_for_its_writer_alone_when_the_lead_was_changed_or_taken_meanwhile_and_can_be_used() {
    for (meanwhile, told) in [
        (Meanwhile::Changed, "somebody else has changed the body"),
        (Meanwhile::Posting, "being posted just now"),
        (Meanwhile::Delivered, "it is delivered by now"),
        (Meanwhile::Erased, "was erased meanwhile"),
    ] {
        let world = World::new().await;
        let id = world.put("ann", LeadState::Rejected).await;
        let (before, typed) = (World::lead("ann"), World::lead("eve"));
        // An editor with an option, which is one to a shell only.
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(at("typed"), &typed).unwrap();
        let editor = "cp \"$1/typed\" \"$2\"; touch \"$1/written\"; until [ -e \"$1/left\" ]; do sleep 0.01; done";
        std::fs::write(at("editor"), editor).unwrap();
        let mut environment = world.environment();
        environment.push(("EDITOR".to_owned(), format!("sh {} {}", at("editor"), at(""))));
        environment.push(("TMPDIR".to_owned(), at("")));
        let line = format!("{} leads edit {id}; echo ended $?", env!("CARGO_BIN_EXE_leadpost"));
        let mut terminal = Terminal::start(&line, environment);
        world.until("it is written", async || folder.path().join("written").exists()).await;
        match meanwhile {
            Meanwhile::Changed => {
                let other = edit(id, &before, &World::lead("bob"));
                assert_eq!(world.ledger.edit(other).await.unwrap(), Edited::Done);
            }
            Meanwhile::Posting => {
                let requeue = Action::Requeue { include_delivered: false, rate_per_s: None };
                assert_eq!(done(&world, act(requeue, Filter::of_ids(&[id]))).await, 1);
                let lease = (Uuid::new_v4(), LEASE);
                let claimed = world.ledger.claim(1, lease, Vec::new(), Doubts::Included).await.unwrap();
                assert_eq!(claimed.len(), 1);
            }
            Meanwhile::Delivered => {
                let running = world.start().await;
                let requeue = Action::Requeue { include_delivered: false, rate_per_s: None };
                assert_eq!(done(&world, act(requeue, Filter::of_ids(&[id]))).await, 1);
                world.until_state(id, LeadState::Delivered).await;
                running.stop().await;
            }
            Meanwhile::Erased => {
                let erased = world.leadpost(&["erase", "--email", "ann@example.com", "--yes"]).await;
                assert_eq!(erased.code, Some(0), "{erased:?}");
            }
        }
        std::fs::write(at("left"), "").unwrap();
        let said = terminal.ended().await;
        assert!(said.contains("ended 1") && said.contains(told), "{said}");
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let kept: Vec<_> = left.iter().filter(|path| path.extension().is_some_and(|kind| kind == "json")).collect();
        if let Meanwhile::Erased = meanwhile {
            assert!(kept.is_empty() && !said.contains("kept in"), "{kept:?} {said}");
            continue;
        }
        let [kept] = kept[..] else { panic!("{left:?}") };
        assert_eq!(std::fs::read_to_string(kept).unwrap(), typed);
        assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600, "for its writer alone");
        // As it was told, when the lead is free again.
        world.execute("update leads set lease = null, leased_by = null").await;
        let (_, command) = said.split_once("To use it: leadpost ").unwrap_or_else(|| panic!("{said}"));
        let words: Vec<&str> = command.lines().next().unwrap().split_whitespace().collect();
        let used = world.leadpost(&words).await;
        assert_eq!(used.code, Some(0), "{words:?} {used:?}");
        assert_eq!(world.ledger.body(id).await.unwrap().unwrap(), typed.as_bytes());
        assert_eq!(world.state(id).await, Some(LeadState::Pending));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_can_be_asked_a_decision_by_filter_needs_yes_and_by_ids_it_does_not() {
    let world = World::new().await;
    let [one, two] = [world.put("one", LeadState::Rejected).await, world.put("two", LeadState::Rejected).await];
    let refused = world.leadpost(&["requeue", "--state", "rejected"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("--yes"), "{refused:?}");
    assert!(
        refused.stderr.contains(&one.to_string()) && refused.stderr.contains("2 leads would be"),
        "a preview: {refused:?}"
    );
    assert_eq!(world.tally().await, [(LeadState::Rejected, 2)]);
    let by_id = world.leadpost(&["requeue", &one.to_string()]).await;
    assert_eq!((by_id.code, world.tally().await), (Some(0), vec![(LeadState::Pending, 1), (LeadState::Rejected, 1)]));
    let yes = world.leadpost(&["requeue", "--all", "--yes", "--output", "json"]).await;
    assert_eq!((yes.code, yes.json()["done"].as_i64()), (Some(0), Some(1)), "{yes:?}");
    assert_eq!(world.state(two).await, Some(LeadState::Pending));
    let alone = world.leadpost(&["release", &two.to_string(), "--as", "again", "--output", "json"]).await;
    assert_eq!((alone.code, &alone.json()["left_alone"][0]["state"]), (Some(1), &"pending".into()), "{alone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_takes_a_thousand_leads_at_a_time_and_goes_on_where_it_was_interrupted() {
    const LEADS: i64 = 2_500;
    let world = World::new().await;
    world
        .execute(&format!(
            "insert into leads (id, destination, queue, body, state, finished_at, reason) \
             select gen_random_uuid(), '{}', 'q', '{{}}', 'exhausted', now() - n % 7 * interval '1 hour', 'put' \
             from generate_series(1, {LEADS}) as n",
            world.settings.destination.name()
        ))
        .await;
    let requeue = || act(Action::Requeue { include_delivered: false, rate_per_s: Some(100.0) }, Filter::default());
    let mut told = Vec::new();
    let ledger = world.ledger.clone();
    // Interrupted after the first thousand.
    let first = tokio::spawn(async move {
        let mut told = Vec::new();
        let act = ledger.act(requeue(), |done| {
            told.push(done);
            assert!(done < 2_000, "interrupted");
        });
        act.await
    });
    assert!(first.await.is_err());
    assert_eq!(
        world.number("select count(*) from leads where state = 'pending'").await,
        2_000,
        "two whole transactions"
    );
    let rest = world.ledger.act(requeue(), |done| told.push(done)).await.unwrap();
    assert_eq!((rest.leads, &told[..]), (500, &[500][..]));
    assert_eq!(world.number("select count(*) from replays").await, LEADS, "each lead once");
    let spread = "select extract(epoch from max(next_attempt_at) - min(next_attempt_at))::bigint from leads where \
         next_attempt_at < now() + interval '1 minute'";
    assert!((14..=21).contains(&world.number(spread).await), "a hundred a second");
    let page = world.ledger.list(Arc::new(Filter::default()), Order::OldestFirst, None, 1).await.unwrap();
    assert!(
        page.leads[0].place.at <= time::OffsetDateTime::now_utc() + Duration::from_secs(1),
        "the first is due at once"
    );
}
