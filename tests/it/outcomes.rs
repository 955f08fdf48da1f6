//! What each answer of the API, or its absence, means for a lead.

use std::time::Duration;

use leadpost::config::OnUncertain;
use leadpost::lead::LeadId;
use leadpost::ledger::{LeadRecord, LeadState};
use leadpost::sandbox::{CutAt, DripFrom, Duplicates, Fault, RetryAfter, Sandbox, SandboxSettings, StatusAnswer};

use crate::support::{Running, World};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// This status with this body as JSON.
fn answer(status: u16, body: &str) -> Fault {
    Fault::answer(StatusAnswer { body: Some(body.to_owned()), ..StatusAnswer::new(status) })
}

/// A world in which posts time out soon.
async fn impatient_world() -> World {
    let mut world = World::new().await;
    world.settings.destination.request.timeout_ms = 400;
    world.settings.destination.request.connect_timeout_ms = 200;
    world
}

/// Publishes a lead for each of these, and lets the posts of each meet its fault, `times` times.
async fn publish_with(world: &World, faults: Vec<(String, Fault)>, times: Option<u32>) -> Vec<(String, LeadId)> {
    let mut leads = Vec::new();
    for (name, fault) in faults {
        world.sandbox.faults().rule(&format!("{name}@"), times, fault);
        let id = world.publish(&name).await;
        leads.push((name, id));
    }
    leads
}

/// The ways in which a post can be left without an answer although it was sent.
fn without_answer() -> Vec<(String, Fault)> {
    let faults = [
        ("hang", Fault::hang()),
        ("reset", Fault::reset()),
        ("close", Fault::close()),
        ("status-line", Fault::cut(CutAt::StatusLine).before()),
        ("headers", Fault::cut(CutAt::Headers).before()),
        ("drip", Fault::drip(Duration::from_millis(100), DripFrom::Head).before()),
    ];
    faults.into_iter().map(|(name, fault)| (name.to_owned(), fault)).collect()
}

fn statuses(statuses: &[u16]) -> Vec<(String, Fault)> {
    statuses.iter().map(|status| (format!("s{status}"), Fault::status(*status))).collect()
}

/// The leads have each made one attempt, which counts; they are posted again when they are due, and delivered then.
async fn are_posted_again(world: &World, leads: &[(String, LeadId)], outcome: &str) -> Vec<LeadRecord> {
    let mut after_first = Vec::new();
    for (name, id) in leads {
        let lead = world.until_attempts(*id, 1).await;
        assert_eq!((lead.state, lead.charged), (LeadState::Pending, 1), "{name}");
        assert!(lead.reason.is_some() && lead.code.is_some(), "{name}: pending for no reason");
        assert_eq!(world.posts(*id), 1, "{name}");
        let [attempt] = &lead.history[..] else { panic!("{name}: {:?}", lead.history) };
        assert_eq!((attempt.outcome.as_str(), attempt.charged), (outcome, true), "{name}");
        let due = world.due_in(*id).await;
        assert!(due > Duration::from_secs(5) && due <= Duration::from_secs(12), "{name}: due in {due:?}");
        after_first.push(lead);
    }
    world.pass(Duration::from_secs(60)).await;
    for (name, id) in leads {
        let lead = world.until_state(*id, LeadState::Delivered).await;
        assert_eq!((lead.attempts, lead.charged, world.posts(*id)), (2, 2, 2), "{name}");
        assert_eq!(lead.history[1].outcome, "delivered", "{name}");
    }
    after_first
}

/// The lead has come to its end: whatever time passes, it is not posted again.
async fn is_left_alone(world: &World, leads: &[(String, LeadId)]) {
    world.pass(DAY).await;
    world.others_pass().await;
    for (name, id) in leads {
        assert_eq!(world.posts(*id), 1, "{name} was posted again");
    }
}

async fn started(world: World) -> (World, Running) {
    let running = world.start().await;
    (world, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_success_status_is_a_delivery_and_its_receipt_is_kept() {
    let (world, running) = started(World::new().await).await;
    let body = r#"{"id":4711,"state":"Cold","subState":"Followup_1","nextScheduleTime":"2026-01-01T00:00:00Z"}"#;
    let faults = [200, 201, 202].map(|status| (format!("s{status}"), answer(status, body))).to_vec();
    let leads = publish_with(&world, faults, None).await;
    for (name, id) in &leads {
        let lead = world.until_state(*id, LeadState::Delivered).await;
        assert_eq!(world.story(*id).await, [name.replace('s', "delivered ")]);
        assert_eq!((lead.charged, lead.warning), (1, None), "{name}");
        assert_eq!(lead.remote_id.as_deref(), Some("4711"), "{name}");
        assert_eq!(lead.remote_state.as_deref(), Some("Cold"), "{name}");
        assert_eq!(lead.remote_sub_state.as_deref(), Some("Followup_1"), "{name}");
        assert_eq!(lead.next_schedule_time.as_deref(), Some("2026-01-01T00:00:00Z"), "{name}");
    }
    is_left_alone(&world, &leads).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_lead_with_the_same_email_is_a_duplicate_whether_the_api_says_409_or_400() {
    for (duplicates, status) in [(Duplicates::Conflict, 409), (Duplicates::BadRequest, 400)] {
        let (world, running) = started(World::new().await).await;
        world.sandbox.tune(|tuning| tuning.duplicates = duplicates);
        let first = world.publish("ann").await;
        world.until_state(first, LeadState::Delivered).await;
        let second = world.publish("ann").await;
        let lead = world.until_state(second, LeadState::Duplicate).await;
        assert_eq!(world.story(second).await, [format!("duplicate {status}")]);
        assert_eq!(lead.code, Some(format!("http_{status}")));
        assert!(lead.reason.unwrap().contains("already exists"));
        assert_eq!(world.sandbox.journal().created_count(), 1);
        is_left_alone(&world, &[("ann".to_owned(), second)]).await;
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_the_api_refuses_is_rejected_with_the_reason_found_in_the_body() {
    let (world, running) = started(World::new().await).await;
    let bodies = [
        ("text", r#""email is bad""#),
        ("message", r#"{"message":"email is bad"}"#),
        ("body", r#"{"body":"email is bad"}"#),
    ];
    let mut faults = Vec::new();
    for status in [400, 413, 414, 415, 422] {
        for (shape, body) in bodies {
            faults.push((format!("s{status}-{shape}"), answer(status, body)));
        }
    }
    let leads = publish_with(&world, faults, None).await;
    for (name, id) in &leads {
        let lead = world.until_state(*id, LeadState::Rejected).await;
        let status = name.get(1..4).unwrap();
        assert_eq!(lead.code, Some(format!("http_{status}")), "{name}");
        assert_eq!(lead.reason, Some(format!("the API answered {status}: email is bad")), "{name}");
        assert_eq!((lead.attempts, lead.charged), (1, 1), "{name}");
        assert_eq!(world.story(*id).await, [format!("rejected {status}")]);
    }
    assert_eq!(running.metrics.opened.get(), 0, "refused leads are no reason to pause");
    is_left_alone(&world, &leads).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_busy_gets_the_lead_again_when_it_is_due() {
    let (world, running) = started(World::new().await).await;
    let leads = publish_with(&world, statuses(&[408, 421, 425, 429, 503]), Some(1)).await;
    for lead in are_posted_again(&world, &leads, "retry").await {
        assert_eq!(lead.code, lead.history[0].http_status.map(|status| format!("http_{status}")));
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed_to_the_letter_where_the_schedule_would_be_faster() {
    let mut world = World::new().await;
    world.settings.retry.initial_ms = 10;
    world.settings.retry.max_ms = 10;
    world.sandbox.faults().script([Fault::retry_after(503, 1), Fault::retry_after(429, 1)]);
    let (world, running) = started(world).await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["retry 503", "retry 429", "delivered 201"]);
    let posts = world.sandbox.journal().posts_for(id.0);
    for pair in posts.windows(2) {
        let pause = pair[1].received - pair[0].ended.unwrap();
        assert!(pause >= Duration::from_secs(1), "posted again after {pause:?}");
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_in_seconds_or_as_a_date_holds_the_whole_destination_back_and_loses_nothing() {
    for retry_after in [RetryAfter::Seconds(600), RetryAfter::Date { date_in_s: 600 }] {
        let (world, running) = started(World::new().await).await;
        let busy = StatusAnswer { retry_after: Some(retry_after), ..StatusAnswer::new(503) };
        world.sandbox.faults().script([Fault::answer(busy)]);
        let first = world.publish("first").await;
        world.until_attempts(first, 1).await;
        let due = world.due_in(first).await;
        assert!(due > Duration::from_secs(590) && due <= Duration::from_secs(600), "{due:?}");
        world.until_consuming(&running, false).await;

        // Even if its own time has come: the destination wants to be left alone.
        world.hurry().await;
        let second = world.publish("second").await;
        let report = running.health.report();
        assert!(!report.ready && report.api.detail.contains("left alone"), "{report:?}");
        assert!(report.flow.hold_s.is_some_and(|hold_s| hold_s > 580.0), "{report:?}");
        assert_eq!(world.broker.depth().await, 1, "the backlog belongs in the queue");
        assert_eq!(world.sandbox.journal().counts().posts, 1, "posted although asked not to");

        running.stop().await;
        world.pass(Duration::from_secs(601)).await;
        let running = world.start().await;
        world.until_all_delivered(&[first, second]).await;
        assert_eq!(world.story(first).await, ["retry 503", "delivered 201"]);
        assert_eq!(world.story(second).await, ["delivered 201"]);
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_does_not_shorten_the_schedule() {
    let (world, running) = started(World::new().await).await;
    world.sandbox.faults().script([Fault::retry_after(503, 0)]);
    let id = world.publish("ann").await;
    world.until_attempts(id, 1).await;
    assert!(world.due_in(id).await > Duration::from_secs(7));
    world.pass(Duration::from_secs(12)).await;
    world.until_state(id, LeadState::Delivered).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_error_leaves_it_open_whether_the_lead_arrived_and_it_is_posted_again_under_retry() {
    let (world, running) = started(World::new().await).await;
    let leads = publish_with(&world, statuses(&[500, 502, 504, 520]), Some(1)).await;
    are_posted_again(&world, &leads, "uncertain").await;
    for (name, id) in &leads {
        assert_eq!(world.story(*id).await, [name.replace('s', "uncertain "), "delivered 201".to_owned()]);
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_hold_a_lead_that_may_have_arrived_waits_for_a_person_and_is_never_posted_again() {
    let mut world = impatient_world().await;
    world.settings.destination.on_uncertain = OnUncertain::Hold;
    let (world, running) = started(world).await;
    let mut faults = statuses(&[500, 502, 504, 520]);
    faults.extend(without_answer());
    let leads = publish_with(&world, faults, None).await;
    for (name, id) in &leads {
        let lead = world.until_state(*id, LeadState::Uncertain).await;
        assert_eq!((lead.attempts, lead.charged), (1, 1), "{name}");
        assert!(lead.reason.is_some() && lead.finished_at.is_some(), "{name}");
        assert_eq!(lead.history[0].outcome, "uncertain", "{name}");
    }
    is_left_alone(&world, &leads).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_without_an_answer_is_uncertain_and_the_connection_says_why() {
    let (world, running) = started(impatient_world().await).await;
    let leads = publish_with(&world, without_answer(), Some(1)).await;
    let after_first = are_posted_again(&world, &leads, "uncertain").await;
    for ((name, _), lead) in leads.iter().zip(after_first) {
        let code = if matches!(name.as_str(), "hang" | "drip") { "timeout" } else { "connection_broken" };
        assert_eq!(lead.code.as_deref(), Some(code), "{name}");
        assert_eq!(lead.history[0].http_status, None, "{name}");
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_arrived_although_the_connection_broke_is_on_record_as_uncertain_and_its_second_post_is_explained()
{
    let (world, running) = started(World::new().await).await;
    world.sandbox.faults().script([Fault::reset().after()]);
    let id = world.publish("ann").await;
    world.until_attempts(id, 1).await;
    assert_eq!(world.sandbox.journal().created_count(), 1, "it did arrive");
    assert_eq!(world.state(id).await, Some(LeadState::Pending), "and nobody here can know");
    world.pass(Duration::from_secs(60)).await;
    world.until_state(id, LeadState::Duplicate).await;
    assert_eq!(world.story(id).await, ["uncertain", "duplicate 409"]);
    let keys: Vec<_> = world.sandbox.journal().posts().into_iter().map(|post| post.key).collect();
    assert_eq!(keys[0], keys[1], "an API that honours the key could have told");
    assert_eq!(world.sandbox.journal().created_count(), 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_whose_body_breaks_off_or_does_not_end_is_a_delivery() {
    let (world, running) = started(impatient_world().await).await;
    let faults = vec![
        ("cut".to_owned(), Fault::cut(CutAt::Body)),
        ("drip".to_owned(), Fault::drip(Duration::from_millis(100), DripFrom::Body)),
    ];
    let leads = publish_with(&world, faults, None).await;
    for (name, id) in &leads {
        let lead = world.until_state(*id, LeadState::Delivered).await;
        assert_eq!(world.story(*id).await, ["delivered 201"], "{name}");
        assert!(lead.warning.unwrap().contains("not JSON"), "{name}: no id is known, which is worth a warning");
    }
    assert_eq!(world.sandbox.journal().created_count(), 2);
    is_left_alone(&world, &leads).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_connections_are_refused_nothing_is_charged_and_nothing_is_lost() {
    let mut world = World::new().await;
    world.settings.retry.max_attempts = 1;
    // The token endpoint is another server, which stays.
    let tokens = Sandbox::start(SandboxSettings::default()).unwrap();
    world.settings.destination.auth.token_url = tokens.token_url();
    world.sandbox.pause_listening().await.unwrap();
    let (world, running) = started(world).await;
    let id = world.publish("ann").await;
    for attempts in 1..=3 {
        let lead = world.until_attempts(id, attempts).await;
        assert_eq!((lead.state, lead.charged), (LeadState::Pending, 0));
        assert_eq!(lead.code.as_deref(), Some("connect_failed"));
        world.pass(Duration::from_secs(60)).await;
    }
    assert_eq!(world.sandbox.journal().counts().posts, 0);
    assert_eq!(tokens.journal().counts().token_requests, 1);
    world.ledger.verify().await.unwrap();
    assert!(world.story(id).await.iter().all(|attempt| attempt == "not_sent"));
    assert_eq!(running.stop().await, leadpost::worker::Stopped::Cleanly);

    // The same lead, where the API is back.
    world.sandbox.resume_listening().unwrap();
    let mut world = world;
    world.settings.destination.auth.token_url = world.sandbox.token_url();
    let running = world.start().await;
    world.until_all_delivered(&[id]).await;
    assert_eq!(world.show(id).await.charged, 1);
    assert_eq!(world.posts(id), 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed_and_speaks_of_the_set_up() {
    let (world, running) = started(World::new().await).await;
    world.sandbox.faults().script([Fault::redirect()]);
    let id = world.publish("ann").await;
    let lead = world.until_attempts(id, 1).await;
    assert_eq!((lead.state, lead.charged), (LeadState::Pending, 0));
    assert_eq!(world.story(id).await, ["systemic 302"]);
    assert_eq!(world.sandbox.journal().counts().other_requests, 0, "the redirect was followed");
    assert_eq!(running.metrics.opened.get(), 1);
    assert!(running.health.report().api.detail.contains("302"));
    world.until_all_delivered(&[id]).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_html_page_with_a_success_status_is_no_delivery() {
    let (world, running) = started(World::new().await).await;
    let page = StatusAnswer {
        body: Some("<html><body>Please log in</body></html>".to_owned()),
        content_type: Some("text/html; charset=utf-8".to_owned()),
        ..StatusAnswer::new(200)
    };
    world.sandbox.faults().script([Fault::answer(page)]);
    let id = world.publish("ann").await;
    let lead = world.until_attempts(id, 1).await;
    assert_eq!((lead.state, lead.charged), (LeadState::Pending, 0));
    assert_eq!(lead.code.as_deref(), Some("html_page"));
    world.until_all_delivered(&[id]).await;
    assert_eq!(world.story(id).await, ["systemic 200", "delivered 201"]);
    assert_eq!(world.sandbox.journal().created_count(), 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_post_that_delivers_is_kept_in_its_leads_row_and_found_among_all_attempts() {
    let (world, running) = started(World::new().await).await;
    let at_once = world.publish("ann").await;
    world.until_state(at_once, LeadState::Delivered).await;
    let later = publish_with(&world, statuses(&[503]), Some(1)).await[0].1;
    world.until_attempts(later, 1).await;
    world.pass(Duration::from_secs(60)).await;
    world.until_state(later, LeadState::Delivered).await;

    let rows = async |id: LeadId, table: &str| -> i64 {
        let sql = format!("select count(*) from {table} where lead_id = $1");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(id.0).fetch_one(&world.database.pool).await.unwrap()
    };
    assert_eq!([rows(at_once, "other_attempts").await, rows(at_once, "attempts").await], [0, 1]);
    assert_eq!([rows(later, "other_attempts").await, rows(later, "attempts").await], [2, 2]);
    let lead = world.show(at_once).await;
    let [post] = &lead.history[..] else { panic!("{:?}", lead.history) };
    assert_eq!((post.outcome.as_str(), post.http_status, post.charged, post.number), ("delivered", Some(201), true, 1));
    assert_eq!(post.worker, "worker", "who posted it");
    assert!(post.started_at >= lead.accepted_at && Some(post.started_at) <= lead.finished_at, "{lead:?}");
    for status in ["201", "503"] {
        let counted = world.leadpost(&["leads", "count", "--status", status, "--output", "json"]).await;
        assert_eq!(counted.json()["leads"], if status == "201" { 2 } else { 0 }, "{counted:?}");
    }

    // Sent again, it keeps what is known of its first post.
    assert_eq!(world.leadpost(&["requeue", &at_once.to_string(), "--include-delivered"]).await.code, Some(0));
    world.until_state(at_once, LeadState::Duplicate).await;
    assert_eq!(world.story(at_once).await, ["delivered 201", "duplicate 409"]);
    assert_eq!(world.show(at_once).await.history[0].started_at, post.started_at);
    assert_eq!((rows(at_once, "other_attempts").await, world.posts(at_once)), (1, 2));
    let counted = world.leadpost(&["leads", "count", "--status", "409", "--output", "json"]).await;
    assert_eq!(counted.json()["leads"], 1, "{counted:?}");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_a_terabyte_is_read_up_to_a_cap() {
    let (world, running) = started(World::new().await).await;
    let faults = vec![
        ("big-success".to_owned(), Fault::huge(201, 1 << 40)),
        ("big-refusal".to_owned(), Fault::huge(422, 1 << 40)),
    ];
    let leads = publish_with(&world, faults, None).await;
    let delivered = world.until_state(leads[0].1, LeadState::Delivered).await;
    assert!(delivered.warning.is_some(), "no id could be read");
    let rejected = world.until_state(leads[1].1, LeadState::Rejected).await;
    assert!(rejected.reason.unwrap().len() < 3_000);
    for lead in [delivered.history, rejected.history] {
        assert!(lead[0].duration_ms < 5_000, "{} ms were spent on it", lead[0].duration_ms);
    }
    let kept = world.number("select coalesce(max(length(answer)), 0)::bigint from attempts").await;
    assert!(kept <= 4 * 1024, "{kept} bytes of it are in the ledger");
    is_left_alone(&world, &leads).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivered_lead_that_the_api_will_not_work_shows_a_warning() {
    let (world, running) = started(World::new().await).await;
    for (tag, state) in [("new", "New"), ("pending", "Pending"), ("deactivated", "DeActivated")] {
        let id = world.publish(&format!("ann+{tag}")).await;
        let lead = world.until_state(id, LeadState::Delivered).await;
        assert_eq!(lead.remote_state.as_deref(), Some(state));
        assert!(lead.warning.is_some_and(|warning| warning.contains(state)), "{state} must be warned of");
    }
    let fine = world.publish("bob").await;
    assert_eq!(world.until_state(fine, LeadState::Delivered).await.warning, None);
    assert_eq!(world.ledger.status().await.unwrap().warnings, 3);
    assert_eq!(running.metrics.warnings.get(), 3);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_is_exhausted_after_its_last_attempt_and_says_why() {
    let mut world = World::new().await;
    world.settings.retry.max_attempts = 3;
    let (world, running) = started(world).await;
    let leads = publish_with(&world, statuses(&[503]), None).await;
    let id = leads[0].1;
    for attempt in 1..=2 {
        assert_eq!(world.until_attempts(id, attempt).await.state, LeadState::Pending);
        world.pass(Duration::from_secs(60)).await;
    }
    let lead = world.until_state(id, LeadState::Exhausted).await;
    assert_eq!((lead.attempts, lead.charged), (3, 3));
    assert_eq!(lead.code.as_deref(), Some("http_503"));
    let reason = lead.reason.unwrap();
    assert!(reason.contains("all 3 attempts are used up") && reason.contains("503"), "{reason}");
    world.pass(DAY).await;
    world.others_pass().await;
    assert_eq!(world.posts(id), 3, "posted once more than it may be");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_has_become_too_old_while_it_waited_is_posted_once_more_and_then_given_up() {
    let mut world = World::new().await;
    world.settings.retry.max_age_ms = 3600 * 1000;
    let (world, running) = started(world).await;
    world.sandbox.faults().script([Fault::status(503), Fault::status(503)]);
    let id = world.publish("ann").await;
    world.until_attempts(id, 1).await;
    world.pass(Duration::from_secs(3600)).await;
    let lead = world.until_state(id, LeadState::Exhausted).await;
    assert_eq!(lead.code.as_deref(), Some("http_503"));
    assert!(lead.reason.unwrap().contains("max_age"));
    assert_eq!((lead.attempts, world.posts(id)), (2, 2), "what it waited for may have been the system's fault");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_whose_next_attempt_would_come_too_late_is_given_up_at_once() {
    let mut world = World::new().await;
    world.settings.retry.max_age_ms = 3600 * 1000;
    let (world, running) = started(world).await;
    world.sandbox.faults().script([Fault::retry_after(503, 7200)]);
    let id = world.publish("ann").await;
    let lead = world.until_state(id, LeadState::Exhausted).await;
    assert_eq!(lead.code.as_deref(), Some("http_503"));
    assert!(lead.reason.unwrap().contains("max_age"));
    assert_eq!(world.posts(id), 1);
    world.finish(running).await;
}
