//! What token endpoints answer: refused and unavailable are told apart, leads wait uncharged, and all goes on by itself.

use std::time::Duration;

use leadpost::flow::CircuitState;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{CutAt, DripFrom, Fault, RetryAfter, StatusAnswer};

use crate::support::api::{Heard, Port, answer};
use crate::support::{Running, World};

const REFUSED: &str = "the token endpoint refuses us: ";
const AWAY: &str = "no token can be had now: ";

fn typed(status: u16, body: &str, content_type: &str) -> Fault {
    let content_type = Some(content_type.to_owned());
    Fault::answer(StatusAnswer { body: Some(body.to_owned()), content_type, ..StatusAnswer::new(status) })
}

/// While the token endpoint is like this, the worker says so, the lead waits unposted and uncharged; once it is well, the lead is
/// delivered without anybody's help.
async fn is_waited_for(world: &World, running: &Running, name: &str, fault: Fault, says: &[&str]) {
    world.sandbox.revoke_all();
    world.sandbox.faults().rate(1.0, fault.on_token()).unwrap();
    let id = world.publish(name).await;
    for text in says {
        world.until_token(running, text).await;
    }
    world.until("posts are paused", async || running.health.report().flow.circuit != CircuitState::Closed).await;
    let asked = world.sandbox.journal().counts().token_requests;
    let more = move |pages: &leadpost::sandbox::Pages| pages.counts().token_requests > asked + 1;
    world.sandbox.journal().wait_for(more, crate::support::DEADLINE).await.unwrap();
    if let Some(lead) = world.ledger.show(id).await.unwrap() {
        assert_eq!((lead.state, lead.charged), (LeadState::Pending, 0), "{name}");
    }
    assert!(!running.health.report().ready, "{name}");
    world.sandbox.faults().clear();
    world.until_state(id, LeadState::Delivered).await;
    // Its first post found out that the token was dead, if it was under way by then.
    let story = world.story(id).await;
    assert!(["delivered 201"] == story[..] || ["unauthorized 401", "delivered 201"] == story[..], "{name}: {story:?}");
    assert_eq!(world.show(id).await.charged, 1, "{name}");
    world.until(&format!("all is well after {name}"), async || running.health.report().ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_with_what_to_check_and_end_by_themselves() {
    let world = World::new().await;
    let running = world.start().await;
    for (name, fault, says) in [
        (
            "client",
            answer(400, r#"{"error":"invalid_client"}"#),
            "it answered 400 invalid_client; check destination.auth.client_id",
        ),
        (
            "client-401",
            answer(401, r#"{"error":"invalid_client"}"#),
            "401 invalid_client; check destination.auth.client_id",
        ),
        (
            // As RFC 6749, section 5.2 wants it.
            "challenged",
            Fault::answer(StatusAnswer {
                www_authenticate: Some("Basic realm=\"x\"".to_owned()),
                body: Some(r#"{"error":"invalid_client"}"#.to_owned()),
                ..StatusAnswer::new(401)
            }),
            "401 invalid_client; check destination.auth.client_id",
        ),
        (
            "described",
            answer(400, r#"{"error":"invalid_client","error_description":"no\nsuch  client"}"#),
            "400 invalid_client (no such client); check",
        ),
        ("server-error", answer(500, r#"{"error":"invalid_client"}"#), "500 invalid_client; check"),
        ("scope", answer(400, r#"{"error":"invalid_scope"}"#), "check destination.auth.scope"),
        ("unknown", answer(400, r#"{"error":"quota"}"#), "it answered 400 quota; check destination.auth"),
        ("plain-401", typed(401, "", "text/plain"), "it answered 401; check destination.auth.client_id"),
        ("page-403", typed(403, "<html>Blocked</html>", "text/html"), "it answered 403; check"),
        ("page-404", typed(404, "<html>", "text/html"), "check destination.auth.token_url"),
        ("redirect", Fault::redirect(), "it answered 302; check destination.auth.token_url"),
        ("media-type", typed(415, "Unsupported Media Type", "text/plain"), "wants another kind of body"),
        ("page-422", typed(422, "<h1>Unprocessable</h1>", "text/html"), "it answered 422; check destination.auth"),
        ("mac", answer(200, r#"{"access_token":"t","token_type":"mac"}"#), "the token is not a bearer token"),
    ] {
        is_waited_for(&world, &running, name, fault, &[REFUSED, says]).await;
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_waited_for() {
    let mut world = World::new().await;
    world.settings.destination.auth.timeout_ms = 300;
    let running = world.start().await;
    let in_half = answer(200, r#"{"access_token":"abc"#);
    for (name, fault, says) in [
        ("page-500", typed(500, "<html>Oops</html>", "text/html"), "it answered 500"),
        ("busy", answer(429, ""), "it answered 429"),
        ("temporarily", answer(503, r#"{"error":"temporarily_unavailable"}"#), "503 temporarily_unavailable"),
        ("empty", answer(200, ""), "no access_token"),
        ("no-content", answer(204, ""), "it answered 204"),
        ("null", answer(200, "null"), "no access_token"),
        ("portal", typed(200, "<html>Please log in</html>", "text/html"), "no access_token"),
        ("number", answer(200, r#"{"access_token":7,"expires_in":60}"#), "no access_token"),
        ("control", answer(200, r#"{"access_token":"a\nb"}"#), "cannot stand in a header"),
        ("half", in_half, "no access_token"),
        ("cut", Fault::cut(CutAt::Body), "no access_token"),
        ("cut-early", Fault::cut(CutAt::StatusLine), AWAY),
        ("huge", Fault::huge(200, 1 << 30), "no access_token"),
        ("hang", Fault::hang(), "no answer within the time limit"),
        ("reset", Fault::reset(), AWAY),
        ("close", Fault::close(), AWAY),
        ("drip", Fault::drip(Duration::from_millis(50), DripFrom::Head), "no answer within the time limit"),
    ] {
        is_waited_for(&world, &running, name, fault, &[AWAY, says]).await;
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_asks_to_be_left_alone_is_left_alone() {
    let world = World::new().await;
    let wait = StatusAnswer { retry_after: Some(RetryAfter::Seconds(2)), ..StatusAnswer::new(429) };
    world.sandbox.faults().script([Fault::answer(wait).on_token()]);
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    let requests = world.requests(leadpost::sandbox::Endpoint::Token);
    assert_eq!(requests.len(), 2);
    let waited = requests[1].received - requests[0].received;
    assert!(waited > Duration::from_millis(1_900), "asked again after {waited:?}");
    assert_eq!((world.story(id).await, world.show(id).await.charged), (vec!["delivered 201".to_owned()], 1));
    world.finish(running).await;
}

/// How long the worker takes a token to live that is answered so, and what it posted under it.
async fn lifetime_of(body: &'static str) -> (u64, String) {
    let port = Port::open(move |heard: &Heard| match heard.path() {
        "/token" => (200, body.to_owned()),
        _ => (201, "{}".to_owned()),
    })
    .await;
    let url = port.url("/token");
    let pairs = [
        ("AUTH__TOKEN_URL", url.as_str()),
        ("AUTH__CLIENT_ID", "id"),
        ("AUTH__CLIENT_SECRET", "secret"),
        ("AUTH__DEFAULT_LIFETIME_MS", "200000"),
    ];
    let world = World::towards(&port, &pairs).await;
    let running = world.start().await;
    world.one_more("ann").await;
    let detail = running.health.report().token.detail;
    let seconds: u64 = detail.split(' ').find_map(|word| word.parse().ok()).unwrap();
    let post = port.only("/leads");
    assert_eq!(port.heard("/token").len(), 1);
    world.finish(running).await;
    (seconds, post.header("authorization").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_leaves_out_what_may_be_left_out_is_a_token() {
    // A token is used for 95 % of its life.
    for (body, seconds) in [
        (r#"{"access_token":"t"}"#, 190),
        (r#"{"access_token":"t","token_type":"bearer"}"#, 190),
        (r#"{"access_token":"t","token_type":"BEARER","expires_in":null}"#, 190),
        (r#"{"access_token":"t","token_type":"Bearer","expires_in":1000}"#, 950),
        (r#"{"access_token":"t","token_type":"bEaReR","expires_in":"1000"}"#, 950),
        (r#"{"access_token":"t","expires_in":1000.9,"scope":"x","id_token":"y"}"#, 950),
        (r#"{"access_token":"t","expires_in":-1}"#, 190),
        (r#"{"access_token":"t","expires_in":1e300}"#, 30 * 24 * 3600 / 100 * 95),
    ] {
        let (lifetime, authorization) = lifetime_of(body).await;
        assert!(lifetime + 5 > seconds && lifetime <= seconds, "{body}: {lifetime} s");
        assert_eq!(authorization, "Bearer t", "{body}");
    }
}
