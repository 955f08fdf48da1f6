//! What an API says besides yes: known leads, refusals, pages of whatever stands before it, and nothing at all.

use std::time::Duration;

use leadpost::ledger::LeadState;
use leadpost::sandbox::{Duplicates, Fault, StatusAnswer};

use super::{Preset, attempts, charged, ended, finish, readiness, until_paused};
use crate::support::World;

/// An answer of the API (status, type, body), the attempt that it is on record as, and what the reason quotes of it.
type Answer = (u16, &'static str, &'static str, &'static str, &'static str);

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

const BROKEN: Answer = (500, HTML, "<!doctype html><h1>Server Error (500)</h1>", "uncertain 500", "Server Error (500)");
const BUSY: Answer =
    (503, HTML, "<html><h1>503 Service Unavailable</h1></html>", "retry 503", "503 Service Unavailable");
const UNKNOWN_PATH: Answer = (404, HTML, "<h1>Not Found</h1>", "systemic 404", "Not Found");
const LOG_IN_PAGE: Answer =
    (200, HTML, "<html>Please sign in</html>", "systemic 200", "answered 200 with an HTML page instead of JSON");

/// Answers that end a lead.
fn last_words(preset: &str) -> &'static [Answer] {
    match preset {
        "7targets" | "7targets-2024" => &[
            (
                400,
                JSON,
                r#""Lead email cannot be some Assistant""#,
                "rejected 400",
                "Lead email cannot be some Assistant",
            ),
            (400, JSON, r#"{"message":"Invalid request body"}"#, "rejected 400", "Invalid request body"),
            (422, JSON, r#"{"body":"scheduleId is not known"}"#, "rejected 422", "scheduleId is not known"),
            (413, JSON, r#"{"message":"Request Too Long"}"#, "rejected 413", "Request Too Long"),
            (422, JSON, r#"{"body":"a lead with this email already exists"}"#, "duplicate 422", "already exists"),
        ],
        "squadrun" | "squadiq" => &[
            (400, JSON, r#"{"phone_number":["Enter a valid number."]}"#, "rejected 400", "Enter a valid number."),
            (400, JSON, r#"{"detail":"The campaign is not active."}"#, "rejected 400", "The campaign is not active."),
            (400, JSON, r#"[{"lead_id":["duplicate value"]}]"#, "duplicate 400", "lead_id: duplicate value"),
            (400, HTML, "<h1>Bad Request (400)</h1>", "rejected 400", "Bad Request (400)"),
        ],
        "kaisa" => &[
            (200, JSON, r#"{"errors":["name is bad","email is bad"]}"#, "rejected 200", "name is bad; email is bad"),
            (201, JSON, r#"{"errors":{"custnr":"already in use"}}"#, "duplicate 201", "custnr: already in use"),
            (400, JSON, r#"{"errors":[{"code":17,"text":"no name"}]}"#, "rejected 400", "code: 17; text: no name"),
            (415, TEXT, "Unsupported Media Type\n", "rejected 415", "Unsupported Media Type"),
        ],
        _ => &[
            (
                422,
                JSON,
                r#"{"errors":{"email":["Email is bad."],"state":["State is long.","State is odd."]}}"#,
                "rejected 422",
                "email: Email is bad.; state: State is long.; State is odd.",
            ),
            (422, JSON, r#"{"errors":{"contact_api_id":["is taken"]}}"#, "duplicate 422", "contact_api_id: is taken"),
            (400, JSON, r#"{"message":"no valid JSON"}"#, "rejected 400", "no valid JSON"),
            (409, JSON, r#"{"message":"Gone - record deleted"}"#, "rejected 409", "Gone - record deleted"),
        ],
    }
}

/// Answers after which a lead is posted again.
fn not_now(preset: &str) -> &'static [Answer] {
    match preset {
        "7targets" | "7targets-2024" => &[
            BROKEN,
            BUSY,
            (429, JSON, r#"{"message":"Too Many Requests"}"#, "retry 429", "Too Many Requests"),
            (504, JSON, r#"{"message":"Endpoint request timed out"}"#, "uncertain 504", "Endpoint request timed out"),
        ],
        "squadrun" | "squadiq" => {
            &[BROKEN, BUSY, (429, JSON, r#"{"detail":"You hit a rate limit!"}"#, "retry 429", "You hit a rate limit!")]
        }
        "kaisa" => &[
            BROKEN,
            BUSY,
            (200, TEXT, "OK", "uncertain 200", "destination.response.success_test cannot read the answer: OK"),
            (200, JSON, "", "uncertain 200", "cannot read the answer"),
        ],
        _ => &[BROKEN, BUSY, (502, HTML, "<h1>Bad Gateway</h1>", "uncertain 502", "Bad Gateway")],
    }
}

/// Answers that speak of the set-up.
fn set_up(preset: &str) -> &'static [Answer] {
    const FORBIDDEN: Answer =
        (403, JSON, r#"{"message":"Forbidden"}"#, "systemic 403", "the API answered 403: Forbidden");
    match preset {
        "squadrun" => &[
            (
                403,
                HTML,
                "<h1>403 Forbidden</h1>",
                "systemic 403",
                "a fresh token was refused too: the API answered 403",
            ),
            UNKNOWN_PATH,
            LOG_IN_PAGE,
        ],
        "squadiq" => &[
            (
                403,
                HTML,
                "<h1>403 Forbidden</h1>",
                "systemic 403",
                "the credentials are refused (check destination.auth.bearer_token): the API answered 403",
            ),
            (405, JSON, r#"{"detail":"Method not allowed."}"#, "systemic 405", "Method not allowed."),
            LOG_IN_PAGE,
        ],
        "paya" | "paya-session" => &[FORBIDDEN, UNKNOWN_PATH, (302, HTML, "", "systemic 302", "the API answered 302")],
        _ => &[FORBIDDEN, UNKNOWN_PATH, LOG_IN_PAGE],
    }
}

fn fault((status, kind, body, ..): Answer) -> Fault {
    let (body, content_type) = (Some(body.to_owned()), Some(kind.to_owned()));
    Fault::answer(StatusAnswer { body, content_type, ..StatusAnswer::new(status) })
}

pub async fn a_refusal_ends_the_lead_with_the_reason_that_the_api_gives(preset: &Preset) {
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    let cases = last_words(preset.name);
    for (n, answer) in cases.iter().enumerate() {
        let name = format!("ann{n}");
        world.sandbox.faults().rule(&format!("{name}@"), None, fault(*answer));
        let id = world.publish_body(&preset.lead(&name)).await;
        let (_, _, body, attempt, says) = *answer;
        let state = if attempt.starts_with("duplicate") { LeadState::Duplicate } else { LeadState::Rejected };
        let lead = world.until_state(id, state).await;
        assert_eq!(world.story(id).await, [attempt]);
        let reason = lead.reason.unwrap();
        assert!(reason.contains(says), "{reason:?} does not say {says:?}");
        assert!(!reason.contains('<'), "{reason:?}");
        assert_eq!((lead.charged, world.posts(id)), (1, 1), "{body}");
    }
    world.pass(Duration::from_secs(24 * 3600)).await;
    let good = world.publish_body(&preset.lead("good")).await;
    world.until_state(good, LeadState::Delivered).await;
    let counts = world.sandbox.journal().counts();
    assert_eq!((usize::try_from(counts.posts).unwrap(), counts.created), (cases.len() + 1, 1));
    assert!(!worker.said().contains("posts are paused"), "one lead's fault is no reason to pause");
    finish(world, worker).await;
}

pub async fn what_the_api_itself_finds_wrong_with_a_lead_is_its_reason(preset: &Preset) {
    let long = "x".repeat(65);
    // What the preset lets through and the API does not, and what it says of it.
    let (body, says) = match preset.name {
        "7targets" => (
            r#"{"name":"Ann","email":"ann@example.com","assistantId":"Ann"}"#.to_owned(),
            "the API answered 400: assistantId must be a number",
        ),
        "kaisa" => (
            format!(r#"{{"name":"{long}","custnr":"{long}"}}"#),
            "the API answered 200, and that it is no success: name is longer than 60 characters; \
             custnr is longer than 45 characters",
        ),
        "paya" | "paya-session" => (
            format!(r#"{{"last_name":"{long}","state":"Michigan","cell_phone":"12345"}}"#),
            "the API answered 422: cell_phone: Cell Phone should contain exactly 10 digits.; \
             last_name: Last Name should contain at most 64 characters.; \
             state: State should contain at most 2 characters.",
        ),
        other => panic!("the API of {other} finds nothing wrong with what passes"),
    };
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    let id = world.publish_body(&body).await;
    let lead = world.until_state(id, LeadState::Rejected).await;
    assert_eq!(lead.reason.as_deref(), Some(says));
    assert_eq!((world.posts(id), world.sandbox.journal().counts().created), (1, 0));
    finish(world, worker).await;
}

pub async fn an_answer_that_decides_nothing_is_followed_by_another_post(preset: &Preset) {
    let is_asked = preset.name.starts_with("paya");
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    let mut leads = Vec::new();
    for (n, answer) in not_now(preset.name).iter().enumerate() {
        let name = format!("ann{n}");
        world.sandbox.faults().rule(&format!("{name}@"), Some(1), fault(*answer));
        leads.push((world.publish_body(&preset.lead(&name)).await, *answer));
    }
    for (id, (.., attempt, says)) in &leads {
        let lead = world.until_attempts(*id, 1).await;
        assert_eq!((lead.state, lead.charged), (LeadState::Pending, 1));
        assert_eq!(world.story(*id).await, [*attempt]);
        let reason = lead.reason.unwrap();
        assert!(reason.contains(says), "{reason:?} does not say {says:?}");
        assert!(world.due_in(*id).await > Duration::from_secs(5));
    }
    world.pass(Duration::from_secs(60)).await;
    for (id, (.., attempt, _)) in &leads {
        world.until_state(*id, LeadState::Delivered).await;
        let mut story = vec![(*attempt).to_owned()];
        if is_asked && attempt.starts_with("uncertain") {
            story.push("absent 200".to_owned());
        }
        story.push(preset.delivered());
        assert_eq!(world.story(*id).await, story);
        assert_eq!(world.posts(*id), 2);
    }
    assert_eq!(usize::try_from(world.sandbox.journal().created_count()).unwrap(), leads.len());
    finish(world, worker).await;
}

pub async fn an_answer_that_speaks_of_the_set_up_pauses_posts_and_is_charged_to_no_lead(preset: &Preset) {
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    let mut done = 0;
    for (n, answer) in set_up(preset.name).iter().enumerate() {
        let name = format!("ann{n}");
        let (status, .., attempt, says) = *answer;
        world.sandbox.faults().rule("@example.com", None, fault(*answer));
        let id = world.publish_body(&preset.lead(&name)).await;
        let (api, _) = until_paused(&world, &worker).await;
        let lead = world.until_attempts(id, 1).await;
        assert_eq!((lead.state, lead.charged), (LeadState::Pending, 0));
        let story = world.story(id).await;
        let first = if preset.name == "squadrun" && n == 0 { "unauthorized 403" } else { attempt };
        assert_eq!(story[0], first);
        assert!(story[1..].iter().all(|later| later == attempt || later == first), "{story:?}");
        let reason = lead.reason.unwrap();
        assert!(reason.contains(says), "{reason:?} does not say {says:?}");
        assert!(api.contains(&format!("answered {status}")), "{api:?}");
        assert_eq!((charged(&world).await, ended(&world).await), (done, done));

        world.sandbox.faults().clear();
        // Another one finds out that the API is well again.
        let other = world.publish_body(&preset.lead(&format!("bob{n}"))).await;
        world.until_state(other, LeadState::Delivered).await;
        world.pass(Duration::from_secs(60)).await;
        world.until_state(id, LeadState::Delivered).await;
        done += 2;
        world.until("all is well again", async || readiness(&worker).await.0 == 200).await;
    }
    assert!(2 * attempts(&world, "systemic").await >= done);
    super::each_was_created_once(&world, usize::try_from(done).unwrap(), 0).await;
    finish(world, worker).await;
}

pub async fn a_lead_that_the_api_has_already_is_a_duplicate(preset: &Preset) {
    // Two leads that are one at the API, and what it says of the second.
    let (first, second, status, says) = match preset.name {
        "7targets" | "7targets-2024" => {
            (preset.lead("ann"), preset.lead("Ann"), 409, "the API answered 409: Lead already exists")
        }
        "squadrun" | "squadiq" => (
            r#"{"lead_id":4711,"phone":"+15550100"}"#.to_owned(),
            r#"{"lead_id":"4711","phone":"+15550101"}"#.to_owned(),
            400,
            "Lead with this lead_id already exists.",
        ),
        "kaisa" => (
            r#"{"custnr":4711,"name":"Ann"}"#.to_owned(),
            r#"{"custnr":"4711","name":"Bob"}"#.to_owned(),
            200,
            "the API answered 200, and that it is no success: custnr 4711 already exists",
        ),
        _ => (
            r#"{"contact_api_id":"crm-17","name":"Lee"}"#.to_owned(),
            r#"{"contact_api_id":"crm-17","name":"Ng"}"#.to_owned(),
            422,
            "the API answered 422: contact_api_id: Contact Api Id has already been taken.",
        ),
    };
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    let first = world.publish_body(&first).await;
    world.until_state(first, LeadState::Delivered).await;
    let id = is_duplicate(&world, &second, status, says).await;
    if preset.name.starts_with("7targets") {
        world.sandbox.tune(|tuning| tuning.duplicates = Duplicates::BadRequest);
        is_duplicate(&world, &preset.lead("ANN"), 400, "the API answered 400: Lead already exists").await;
    }
    world.pass(Duration::from_secs(24 * 3600)).await;
    let other = world.publish_body(&preset.lead("other")).await;
    world.until_state(other, LeadState::Delivered).await;
    assert_eq!((world.posts(first), world.posts(id)), (1, 1));
    assert_eq!(world.sandbox.journal().created_count(), 2);
    finish(world, worker).await;
}

async fn is_duplicate(world: &World, body: &str, status: u16, says: &str) -> leadpost::lead::LeadId {
    let id = world.publish_body(body).await;
    let lead = world.until_state(id, LeadState::Duplicate).await;
    assert_eq!(world.story(id).await, [format!("duplicate {status}")]);
    let reason = lead.reason.unwrap();
    assert!(reason.contains(says), "{reason:?} does not say {says:?}");
    id
}

pub async fn a_post_of_which_nobody_knows_whether_it_arrived_makes_no_second_lead(preset: &Preset) {
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    let faults = [Fault::status(500).after(), Fault::reset().after()];
    let mut leads = Vec::new();
    for (n, fault) in faults.into_iter().enumerate() {
        world.sandbox.faults().rule(&format!("ann{n}@"), Some(1), fault);
        leads.push(world.publish_body(&preset.lead(&format!("ann{n}"))).await);
    }
    for id in &leads {
        let lead = world.until_attempts(*id, 1).await;
        assert_eq!((lead.state, lead.history[0].outcome.as_str()), (LeadState::Pending, "uncertain"));
    }
    assert_eq!(world.sandbox.journal().created_count(), 2, "they had arrived");
    world.pass(Duration::from_secs(60)).await;
    let known = match preset.name {
        "7targets" | "7targets-2024" => "duplicate 409",
        "squadrun" | "squadiq" => "duplicate 400",
        "kaisa" => "duplicate 200",
        _ => "reconciled 200",
    };
    for id in leads {
        let is_asked = known.starts_with("reconciled");
        let state = if is_asked { LeadState::Delivered } else { LeadState::Duplicate };
        let lead = world.until_state(id, state).await;
        assert_eq!(world.story(id).await[1..], [known]);
        assert_eq!((world.posts(id), lead.remote_id.is_some()), (if is_asked { 1 } else { 2 }, is_asked));
    }
    assert_eq!(world.sandbox.journal().created_count(), 2, "no lead was made twice");
    finish(world, worker).await;
}
