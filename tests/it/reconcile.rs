//! A lead that may have been posted is asked for before it is posted again.

use std::time::Duration;

use leadpost::config::OnUncertain;
use leadpost::flow::CircuitState;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{CutAt, Endpoint, Entry, Fault};
use leadpost::worker::Stopped;
use uuid::Uuid;

use crate::support::api::{A_WHILE, Heard, Port, answer};
use crate::support::scene::{LEASE, accept, arrival};
use crate::support::{DEADLINE, World};

/// Paya, with posts that time out soon.
async fn paya(preset: &str) -> World {
    let mut world = World::unlimited(preset).await;
    world.set(&[("REQUEST__TIMEOUT_MS", "500"), ("REQUEST__CONNECT_TIMEOUT_MS", "300")]);
    world
}

/// The questions for this lead, in order.
fn queries(world: &World, id: LeadId) -> Vec<Entry> {
    let key = id.to_string();
    world.requests(Endpoint::Query).into_iter().filter(|entry| entry.email.as_deref() == Some(&*key)).collect()
}

/// Posts and questions that the API received for this lead.
fn asked_of_api(world: &World, id: LeadId) -> (usize, usize) {
    (world.posts(id), queries(world, id).len())
}

/// Publishes a lead whose post meets this fault, and waits until it is uncertain.
async fn in_doubt(world: &World, name: &str, fault: Fault) -> LeadId {
    world.sandbox.faults().rule(&format!("{name}@"), Some(1), fault);
    let id = world.publish_any(name).await;
    let lead = world.until_attempts(id, 1).await;
    assert_eq!(lead.history[0].outcome, "uncertain", "{name}");
    assert_eq!(asked_of_api(world, id), (1, 0), "{name}: asked too early");
    id
}

async fn later(world: &World) {
    world.pass(Duration::from_secs(3600)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_whose_answer_was_lost_is_found_and_not_made_again() {
    let world = paya("paya").await;
    let running = world.start().await;
    let mut ids = Vec::new();
    for (name, fault) in [
        ("reset", Fault::reset().after()),
        ("close", Fault::close().after()),
        ("hang", Fault::hang().after()),
        ("cut", Fault::cut(CutAt::Headers)),
        ("s500", Fault::status(500).after()),
        ("s504", Fault::status(504).after()),
    ] {
        ids.push((name, in_doubt(&world, name, fault).await));
    }
    later(&world).await;
    for (name, id) in &ids {
        let lead = world.until_state(*id, LeadState::Delivered).await;
        let [post, query] = &lead.history[..] else { panic!("{name}: {:?}", lead.history) };
        assert_eq!((post.request.as_str(), post.outcome.as_str(), post.charged), ("post", "uncertain", true), "{name}");
        let outcome = (query.request.as_str(), query.outcome.as_str(), query.http_status, query.charged);
        assert_eq!(outcome, ("query", "reconciled", Some(200), false), "{name}");
        assert_eq!(asked_of_api(&world, *id), (1, 1), "{name}");
        let remote = lead.remote_id.unwrap();
        assert!(remote.starts_with("11e8"), "{name}: {remote}");
        assert_eq!(lead.reason.as_deref(), Some("the API has the lead: an earlier post had arrived"), "{name}");
        let told = world.leadpost(&["leads", "show", &id.to_string()]).await.stdout;
        for part in
            ["delivered", "uncertain", "query: reconciled 200", "(not counted)", "an earlier post had arrived", &remote]
        {
            assert!(told.contains(part), "{name}: {part} is not in {told}");
        }
    }
    assert_eq!(world.sandbox.journal().created_count(), 6);
    let verified = world.leadpost(&["verify"]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_did_not_arrive_is_made_again_in_the_same_lease() {
    let world = paya("paya").await;
    let running = world.start().await;
    let mut ids = Vec::new();
    for (name, fault) in [
        ("reset", Fault::reset()),
        ("hang", Fault::hang()),
        ("s500", Fault::status(500)),
        ("early", Fault::reset_early()),
    ] {
        // What is reset before its body is read has no email yet.
        if name == "early" {
            world.sandbox.faults().script([fault.clone()]);
        }
        ids.push(in_doubt(&world, name, fault).await);
    }
    world.sandbox.faults().clear();
    later(&world).await;
    for id in &ids {
        world.until_state(*id, LeadState::Delivered).await;
        assert_eq!(world.story(*id).await.len(), 3);
        assert_eq!(world.story(*id).await[1..], ["absent 200", "delivered 201"]);
        assert_eq!(asked_of_api(&world, *id), (2, 1));
        assert_eq!(world.show(*id).await.charged, 2, "the question does not count");
    }
    let leases = "select count(*) from (select 1 from attempts where number > 1 group by lead_id \
                  having count(distinct lease) = 1) as leads";
    assert_eq!(world.number(leases).await, 4, "asked and posted under one lease each");
    assert_eq!(world.sandbox.journal().created_count(), 4);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_were_never_in_doubt_are_never_asked_for() {
    let world = paya("paya").await;
    let faults = world.sandbox.faults();
    faults.rule("busy@", Some(2), Fault::status(503));
    faults.rule("limited@", Some(1), Fault::retry_after(429, 0));
    faults.rule("refused@", Some(1), answer(422, r#"{"errors":{"email":["no"]}}"#));
    let running = world.start().await;
    let mut ids = Vec::new();
    for name in ["fine", "busy", "limited", "refused"] {
        ids.push(world.publish_any(name).await);
    }
    world.until_state(ids[3], LeadState::Rejected).await;
    let requeued = world.leadpost(&["requeue", &ids[3].to_string()]).await;
    assert_eq!(requeued.code, Some(0), "{requeued:?}");
    world.until_all_delivered(&ids).await;
    assert_eq!(world.story(ids[1]).await, ["retry 503", "retry 503", "delivered 201"]);
    assert_eq!(world.sandbox.journal().counts().queries, 0);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_api_cannot_be_asked_nothing_is_asked() {
    let mut world = paya("paya").await;
    world.settings.destination.reconcile.url = String::new();
    let running = world.start().await;
    let id = in_doubt(&world, "ann", Fault::reset().after()).await;
    later(&world).await;
    world.until_state(id, LeadState::Duplicate).await;
    assert_eq!(asked_of_api(&world, id), (2, 0));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_a_clear_answer_is_asked_again_and_nothing_is_posted_meanwhile() {
    let world = paya("paya").await;
    let running = world.start().await;
    for (name, fault) in [
        ("busy", Fault::status(503)),
        ("limited", Fault::status(429)),
        ("broken", Fault::status(500)),
        ("hanging", Fault::hang()),
        ("reset", Fault::reset()),
        ("cut", Fault::cut(CutAt::Body)),
        ("garbage", answer(200, "<contacts/>")),
        ("empty", answer(200, "")),
        ("other", answer(200, r#"{"contacts":true}"#)),
        ("list", answer(200, "[]")),
    ] {
        let id = in_doubt(&world, name, Fault::reset().after()).await;
        world.sandbox.faults().script([fault.on(Endpoint::Query)]);
        later(&world).await;
        let lead = world.until_attempts(id, 2).await;
        let query = &lead.history[1];
        let outcome = (query.request.as_str(), query.outcome.as_str(), query.charged);
        // What looks like a page does not come from the API.
        let expected = if name == "garbage" { "systemic" } else { "retry" };
        assert_eq!(outcome, ("query", expected, false), "{name}");
        assert_eq!((lead.state, lead.charged), (LeadState::Pending, 1), "{name}");
        let reason = query.reason.clone().unwrap();
        assert!(reason.starts_with("asked whether an earlier post arrived"), "{name}: {reason}");
        assert!(world.due_in(id).await > Duration::from_secs(10), "{name}: asked again at once");
        later(&world).await;
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(asked_of_api(&world, id), (1, 2), "{name}: posted on a guess");
    }
    assert_eq!(running.metrics.opened.get(), 0);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_cannot_be_asked_for_until_the_end_of_its_age_is_a_persons_to_decide() {
    let mut world = paya("paya").await;
    world.settings.retry.max_attempts = 2;
    let running = world.start().await;
    let id = in_doubt(&world, "ann", Fault::reset().after()).await;
    world.sandbox.faults().script([500, 403, 500, 500].map(|status| Fault::status(status).on(Endpoint::Query)));
    for attempts in [2, 3, 4] {
        later(&world).await;
        world.until_attempts(id, attempts).await;
    }
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.charged), (LeadState::Pending, 1), "questions do not use up a lead's attempts");
    world.pass(Duration::from_millis(world.settings.retry.max_age_ms)).await;
    let lead = world.until_state(id, LeadState::Uncertain).await;
    assert!(lead.reason.unwrap().starts_with("it may have been posted, and could not be asked for: asked whether"));
    assert_eq!(asked_of_api(&world, id), (1, 4));
    let requeued = world.leadpost(&["requeue", &id.to_string()]).await;
    assert_eq!(requeued.code, Some(0), "{requeued:?}");
    world.until_state(id, LeadState::Delivered).await;
    let story = ["uncertain", "retry 500", "systemic 403", "retry 500", "retry 500", "reconciled 200"];
    assert_eq!(world.story(id).await, story);
    assert_eq!(asked_of_api(&world, id), (1, 5));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_in_doubt_that_is_not_valid_any_more_is_a_persons_to_decide() {
    let mut world = paya("paya").await;
    let running = world.start().await;
    let id = in_doubt(&world, "ann", Fault::reset().after()).await;
    assert_eq!(running.stop().await, leadpost::worker::Stopped::Cleanly);
    world.settings.destination.mandatory.push("zip".to_owned());
    let running = world.start().await;
    later(&world).await;
    let lead = world.until_state(id, LeadState::Uncertain).await;
    let reason = lead.reason.unwrap();
    assert!(reason.contains("may have been posted") && reason.contains("zip is mandatory"), "{reason}");
    assert_eq!(asked_of_api(&world, id), (1, 0));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_cannot_be_asked_for_do_not_keep_others_waiting_once_posts_work_again() {
    let mut world = paya("paya").await;
    world.settings.flow.open_after = 2;
    let running = world.start().await;
    world.sandbox.tune(|tuning| tuning.leads_unavailable = Some(500));
    let doubtful = world.publish_any_many("ann", 6).await;
    world.until("posts are paused", async || running.health.report().flow.circuit != CircuitState::Closed).await;
    world.until("each was tried or waits", async || world.number("select count(*) from leads").await >= 2).await;
    world.sandbox.faults().rate(1.0, Fault::status(403).on(Endpoint::Query)).unwrap();
    world.sandbox.tune(|tuning| tuning.leads_unavailable = None);
    later(&world).await;
    let fresh = world.publish_any_many("bob", 4).await;
    world.until_delivered(&fresh).await;
    world.until("posts go on", async || running.health.report().flow.circuit == CircuitState::Closed).await;
    world.sandbox.faults().clear();
    world.until_all_delivered(&doubtful).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_under_a_dead_session_is_asked_again_under_a_new_one() {
    let world = paya("paya-session").await;
    let running = world.start().await;
    let id = in_doubt(&world, "ann", Fault::reset().after()).await;
    world.sandbox.revoke_all();
    later(&world).await;
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["uncertain", "unauthorized 401", "reconciled 200"]);
    assert!(lead.history[1..].iter().all(|attempt| attempt.request == "query" && !attempt.charged));
    assert_eq!(asked_of_api(&world, id), (1, 2));
    assert_eq!(world.sandbox.journal().counts().token_requests, 2);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_forbidden_blames_no_lead_pauses_nothing_and_posts_nothing() {
    let mut world = paya("paya").await;
    world.settings.flow.open_after = 3;
    let running = world.start().await;
    let id = in_doubt(&world, "ann", Fault::reset().after()).await;
    world.sandbox.faults().rate(1.0, Fault::status(403).on(Endpoint::Query)).unwrap();
    for attempts in 2..6 {
        later(&world).await;
        world.until_attempts(id, attempts).await;
    }
    let lead = world.show(id).await;
    assert!(lead.history[1..].iter().all(|attempt| attempt.outcome == "systemic" && !attempt.charged), "{lead:?}");
    assert_eq!((lead.state, lead.charged, world.suspicions(id).await), (LeadState::Pending, 1, 0));
    assert_eq!(world.posts(id), 1);
    assert_eq!(running.metrics.opened.get(), 0, "that the API cannot be asked says nothing about posts");
    // Leads that need not be asked for get through, and the others wait for as long as it takes.
    let other = world.publish_any("bob").await;
    world.until_state(other, LeadState::Delivered).await;
    world.sandbox.faults().clear();
    world.until_all_delivered(&[id]).await;
    assert_eq!(world.posts(id), 1);
    assert_eq!(world.show(id).await.charged, 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_to_be_left_alone_that_answers_a_question_holds_for_all() {
    let world = paya("paya").await;
    let running = world.start().await;
    let id = in_doubt(&world, "ann", Fault::reset().after()).await;
    world.sandbox.faults().script([Fault::retry_after(429, 3600).on(Endpoint::Query)]);
    later(&world).await;
    world.until_attempts(id, 2).await;
    world.until("the destination is left alone", async || running.health.report().flow.hold_s.is_some()).await;
    assert!(world.due_in(id).await > Duration::from_secs(3500));
    assert_eq!(asked_of_api(&world, id), (1, 1));
    world.finish(running).await;
}

// --- Workers that die, and people who decide

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_of_a_worker_that_died_under_its_post_is_asked_for() {
    let world = paya("paya").await;
    world.sandbox.faults().rule("arrived@", Some(1), Fault::hang().after());
    world.sandbox.faults().rule("lost@", Some(1), Fault::hang());
    let mut dead = world.worker(&["--set", "destination.request.timeout_ms=30000"]).await;
    let arrived = world.publish_any("arrived").await;
    let lost = world.publish_any("lost").await;
    world.sandbox.journal().wait_for(|pages| pages.counts().faults == 2, DEADLINE).await.unwrap();
    dead.signal("KILL");
    dead.ended().await;
    assert_eq!(world.number("select count(*) from leads where lease is not null").await, 2);
    world.pass(LEASE).await;
    let running = world.start().await;
    for id in [arrived, lost] {
        world.until_attempts(id, 1).await;
    }
    assert_eq!(world.sandbox.journal().counts().queries, 0, "the schedule applies: not at once");
    later(&world).await;
    for (id, story, seen) in [
        (arrived, &["uncertain", "reconciled 200"][..], (1, 1)),
        (lost, &["uncertain", "absent 200", "delivered 201"], (2, 1)),
    ] {
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(world.story(id).await, story);
        assert_eq!(asked_of_api(&world, id), seen);
    }
    assert_eq!(world.sandbox.journal().created_count(), 2);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_was_leased_and_never_posted_is_asked_for_and_posted() {
    let world = paya("paya").await;
    let dead = world.handle("dead");
    let id = LeadId(Uuid::new_v4());
    accept(&dead, &[arrival(id, &World::any_lead("ann"))], Uuid::new_v4()).await;
    world.pass(LEASE).await;
    let running = world.start().await;
    world.until_attempts(id, 1).await;
    later(&world).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["uncertain", "absent 200", "delivered 201"]);
    assert_eq!(asked_of_api(&world, id), (1, 1));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_is_held_for_a_person_is_asked_for_when_they_send_it_again() {
    let mut world = paya("paya").await;
    world.settings.destination.on_uncertain = OnUncertain::Hold;
    let running = world.start().await;
    let arrived = in_doubt(&world, "arrived", Fault::reset().after()).await;
    let lost = in_doubt(&world, "lost", Fault::reset()).await;
    later(&world).await;
    for id in [arrived, lost] {
        world.until_state(id, LeadState::Uncertain).await;
    }
    world.publish_any("other").await;
    world.until_count(LeadState::Delivered, 1).await;
    assert_eq!(world.sandbox.journal().counts().queries, 0, "nobody has asked for it");
    let requeued = world.leadpost(&["requeue", "--state", "uncertain", "--yes", "--reason", "let us see"]).await;
    assert_eq!(requeued.code, Some(0), "{requeued:?}");
    for id in [arrived, lost] {
        world.until_state(id, LeadState::Delivered).await;
    }
    assert_eq!(world.story(arrived).await, ["uncertain", "reconciled 200"]);
    assert_eq!(world.story(lost).await, ["uncertain", "absent 200", "delivered 201"]);
    assert_eq!((asked_of_api(&world, arrived), asked_of_api(&world, lost)), ((1, 1), (2, 1)));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_while_a_lead_is_being_asked_for_posts_nothing_more() {
    let world = paya("paya").await;
    let running = world.start().await;
    let id = in_doubt(&world, "ann", Fault::reset()).await;
    world.sandbox.faults().script([Fault::latency(A_WHILE).on(Endpoint::Query)]);
    later(&world).await;
    world.sandbox.journal().wait_for(|pages| pages.counts().queries == 1, DEADLINE).await.unwrap();
    assert_eq!(running.stop().await, Stopped::Cleanly);
    assert_eq!(asked_of_api(&world, id), (1, 1));
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.charged, lead.leased_by), (LeadState::Pending, 1, None));
    assert_eq!(world.story(id).await, ["uncertain", "absent 200"]);
    let running = world.start().await;
    world.until_state(id, LeadState::Delivered).await;
    world.finish(running).await;
}

// --- Another API

/// An API that loses its first answer to a lead, and is asked by path.
async fn crm(known: bool) -> Port {
    Port::open(move |heard: &Heard| match (heard.method.as_str(), heard.path()) {
        ("POST", _) => (500, "{}".to_owned()),
        ("GET", _) if known => (200, r#"{"total":1,"hit":{"id":77}}"#.to_owned()),
        _ => (404, "{}".to_owned()),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_api_can_be_asked_by_any_key_of_the_lead_which_stays_one_part_of_the_url() {
    for (known, story) in [(true, ["uncertain 500", "reconciled 200"]), (false, ["uncertain 500", "absent 404"])] {
        let port = crm(known).await;
        let url = port.url("/find/{key}/in/{tenant}?strict=1");
        let world = World::towards(
            &port,
            &[
                ("AUTH__KIND", "none"),
                ("VARIABLES__TENANT", "t 1"),
                ("REQUEST__HEADERS__X-TENANT", "{tenant}"),
                ("RECONCILE__URL", &url),
                ("RECONCILE__KEY", ".crm // $lead_id"),
                (
                    "RECONCILE__FOUND",
                    "if .total > 0 and $status == 200 and $variables.tenant == \"t 1\" then .hit.id else false end",
                ),
                ("RECONCILE__ABSENT", "404"),
            ],
        )
        .await;
        let running = world.start().await;
        let id = world.publish_body(r#"{"name":"Ann","crm":"../a/b?c=d&e#f \u00e9"}"#).await;
        world.until_attempts(id, 1).await;
        later(&world).await;
        world.until_attempts(id, 2).await;
        assert_eq!(world.story(id).await[..2], story);
        let asked = port.only("/find");
        assert_eq!(asked.target, "/find/..%2Fa%2Fb%3Fc%3Dd%26e%23f%20%C3%A9/in/t%201?strict=1");
        assert_eq!((asked.method.as_str(), asked.header("x-tenant"), asked.body.len()), ("GET", "t 1", 0));
        assert_eq!(asked.header("content-type"), "");
        if known {
            let lead = world.until_state(id, LeadState::Delivered).await;
            assert_eq!(lead.remote_id.as_deref(), Some("77"));
            assert_eq!(port.heard("/leads").len(), 1);
        } else {
            world.until_attempts(id, 3).await;
            assert_eq!(port.heard("/leads").len(), 2, "absent: posted again");
        }
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_dots_does_not_ask_for_something_else() {
    for key in ["..", "."] {
        let port = crm(true).await;
        let url = port.url("/find/by/{key}");
        let pairs = [
            ("AUTH__KIND", "none"),
            ("RECONCILE__URL", url.as_str()),
            ("RECONCILE__KEY", ".crm"),
            ("RECONCILE__FOUND", ".total > 0"),
        ];
        let world = World::towards(&port, &pairs).await;
        let running = world.start().await;
        let id = world.publish_body(&format!(r#"{{"name":"Ann","crm":"{key}"}}"#)).await;
        world
            .until("it was looked at", async || {
                world
                    .ledger
                    .show(id)
                    .await
                    .unwrap()
                    .is_some_and(|lead| lead.attempts > 0 || lead.state == LeadState::Invalid)
            })
            .await;
        later(&world).await;
        let other = world.publish_body(r#"{"name":"Bob","crm":"b"}"#).await;
        world.until_attempts(other, 1).await;
        assert_ne!(world.state(id).await, Some(LeadState::Delivered), "{:?}", port.heard("/find"));
        assert!(port.heard("").iter().all(|heard| heard.method != "GET" || heard.path() == "/find/by/b"));
        world.finish(running).await;
    }
}
