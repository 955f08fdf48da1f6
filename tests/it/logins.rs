//! Ways of logging in: what goes along with requests, and that all leads share one log-in.

use std::time::Duration;

use leadpost::flow::CircuitState;
use leadpost::ledger::LeadState;
use leadpost::sandbox::ContentType;
use leadpost::worker::Stopped;

use crate::support::World;
use crate::support::api::{A_WHILE, Heard, Port, token};

/// Leads wait, unposted and uncharged, and health says this of the token; the worker stops cleanly.
async fn no_token_can_be_had(world: World, says: &[&str]) {
    let ids = world.publish_any_many("ann", 3).await;
    let running = world.start().await;
    world.until("the circuit is open", async || running.health.report().flow.circuit != CircuitState::Closed).await;
    let detail = running.health.report().token.detail;
    for text in says {
        assert!(detail.contains(text), "{detail:?} does not say {text:?}");
    }
    assert_eq!(world.sandbox.journal().counts().posts, 0, "posted without a token");
    assert_eq!(world.sandbox.journal().tokens_issued(), 0);
    assert_eq!(running.stop().await, Stopped::Cleanly);
    let in_ledger = world.number("select count(*) from leads where state = 'pending' and attempts = 0").await;
    assert_eq!(in_ledger + i64::from(world.broker.depth().await), i64::try_from(ids.len()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_leads_at_the_start_share_one_log_in_of_every_kind() {
    for preset in ["7targets", "squadrun", "kaisa", "paya-session"] {
        let mut world = World::unlimited(preset).await;
        world.settings.flow.concurrency = 100;
        world.sandbox.tune(|tuning| {
            tuning.token_delay = Duration::from_millis(400);
            tuning.latency = Duration::from_secs(1);
        });
        let ids = world.publish_any_many("ann", 100).await;
        let running = world.start().await;
        world.until_count(LeadState::Delivered, 100).await;
        let counts = world.sandbox.journal().counts();
        assert_eq!((counts.token_requests, counts.tokens_issued, counts.posts), (1, 1, 100), "{preset}");
        assert!(counts.max_in_flight > 25, "{preset}: they were not at once");
        for id in &ids {
            assert_eq!(world.story(*id).await.len(), 1, "{preset}");
        }
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_change_is_asked_for_nowhere() {
    for preset in ["squadiq", "paya"] {
        let world = World::unlimited(preset).await;
        let running = world.start().await;
        let ids = world.publish_any_many("ann", 20).await;
        world.until_delivered(&ids).await;
        let counts = world.sandbox.journal().counts();
        assert_eq!((counts.posts, counts.requests, counts.other_requests), (20, 20, 0), "{preset}");
        assert!(running.health.report().token.ok, "{preset}");
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_of_showing_who_the_client_is_is_accepted_where_the_endpoint_wants_it() {
    // Characters that each way writes in its own manner.
    let odd = "s/e c+r%t:\u{e9}&=";
    for (preset, way, secret, kind) in [
        ("7targets", "basic", odd, ContentType::Form),
        ("7targets", "basic_encoded", "plain-secret", ContentType::Form),
        ("7targets", "form", odd, ContentType::Form),
        ("kaisa", "form", odd, ContentType::Form),
        ("kaisa", "json", odd, ContentType::Json),
        ("squadrun", "form", odd, ContentType::Form),
    ] {
        let mut world = World::unlimited(preset).await;
        world.sandbox.set_credentials("client", secret);
        world.set(&[("AUTH__CLIENT_AUTH", way), ("AUTH__CLIENT_ID", "client"), ("AUTH__CLIENT_SECRET", secret)]);
        let running = world.start().await;
        let id = world.one_more("ann").await;
        assert_eq!(world.story(id).await.len(), 1, "{preset} {way}");
        let [request] = &world.requests(leadpost::sandbox::Endpoint::Token)[..] else { panic!("{preset} {way}") };
        assert_eq!((request.status, request.content_type), (Some(200), Some(kind)), "{preset} {way}");
        let body = String::from_utf8_lossy(request.body.as_deref().unwrap()).into_owned();
        assert_eq!(body.contains("client_secret"), !way.starts_with("basic"), "{preset} {way}: {body}");
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_the_endpoint_does_not_want_is_reported_with_what_to_check() {
    for (preset, way, secret, says) in [
        (
            "7targets",
            "json",
            "plain",
            ["it answered 400 invalid_request", "check destination.auth.token_url, client_auth"],
        ),
        ("7targets", "basic_encoded", "o/d d", ["it answered 400 invalid_client", "check destination.auth.client_id"]),
        ("kaisa", "basic", "plain", ["it answered 401 invalid_client", "check destination.auth.client_id"]),
        (
            "squadrun",
            "json",
            "plain",
            ["400 unsupported_grant_type", "check destination.auth.kind, token_url and client_auth"],
        ),
        ("squadrun", "basic", "plain", ["it answered 401 invalid_client", "check destination.auth.client_id"]),
    ] {
        let mut world = World::unlimited(preset).await;
        world.sandbox.set_credentials("client", secret);
        world.set(&[("AUTH__CLIENT_AUTH", way), ("AUTH__CLIENT_ID", "client"), ("AUTH__CLIENT_SECRET", secret)]);
        no_token_can_be_had(world, &[&says[..], &["the token endpoint refuses us"]].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_reported_with_what_to_check() {
    for (preset, says) in [
        ("squadrun", "check destination.auth.username and password"),
        ("paya-session", "check destination.auth.username, password, parameters and headers"),
    ] {
        let mut world = World::unlimited(preset).await;
        world.set(&[("AUTH__PASSWORD", "not-the-password")]);
        no_token_can_be_had(world, &["the token endpoint refuses us", says]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paya_takes_its_key_as_headers_as_query_and_as_http_basic() {
    type Change = fn(&mut leadpost::config::Auth);
    let ways: [(&str, Change); 4] = [
        ("headers", |_| {}),
        ("query", |auth| {
            for (name, value) in [("user-id", "{api_key_id}"), ("user-api-key", "{api_key}")] {
                auth.headers.insert(name.to_owned(), String::new());
                auth.query.insert(name.to_owned(), value.to_owned());
            }
        }),
        ("all as query", |auth| {
            auth.query = std::mem::take(&mut auth.headers);
        }),
        ("basic", |auth| {
            auth.basic = true;
            for name in ["user-id", "user-api-key"] {
                auth.headers.insert(name.to_owned(), String::new());
            }
        }),
    ];
    for (way, change) in ways {
        let mut world = World::unlimited("paya").await;
        world.sandbox.tune(|tuning| tuning.user_api_key = "k/e y+&=%".to_owned());
        world.set(&[("AUTH__API_KEY", "k/e y+&=%")]);
        change(&mut world.settings.destination.auth);
        let running = world.start().await;
        let id = world.one_more("ann").await;
        assert_eq!(world.story(id).await, ["delivered 201"], "{way}");
        assert!(world.sandbox.journal().posts()[0].token_ok, "{way}");
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_refused_pauses_the_flow_and_costs_no_lead_anything() {
    for (preset, mend) in [
        ("paya", (|world: &World| world.sandbox.tune(|tuning| tuning.user_api_key = "right".to_owned())) as fn(&World)),
        ("squadiq", |world| world.sandbox.tune(|tuning| tuning.bearer_token = "right".to_owned())),
    ] {
        let mut world = World::unlimited(preset).await;
        let key = if preset == "paya" { "AUTH__API_KEY" } else { "AUTH__BEARER_TOKEN" };
        world.set(&[(key, "right")]);
        let ids = world.publish_any_many("ann", 5).await;
        let running = world.start().await;
        world.until("the circuit is open", async || running.metrics.opened.get() == 1).await;
        let report = running.health.report();
        assert!(!report.ready && report.api.detail.contains("the credentials are refused"), "{report:?}");
        assert_eq!(world.number("select coalesce(sum(charged), 0)::bigint from leads").await, 0);
        assert_eq!(world.number("select count(*) from attempts where outcome = 'unauthorized'").await, 0, "{preset}");
        mend(&world);
        world.until_all_delivered(&ids).await;
        assert_eq!(world.number("select sum(charged)::bigint from leads").await, 5);
        world.finish(running).await;
    }
}

/// A port that logs anybody in and takes any lead.
async fn anything_goes() -> Port {
    Port::open(|heard: &Heard| match heard.path() {
        "/token" => token("access-1"),
        "/session" => (201, r#"{"token":"session-1"}"#.to_owned()),
        _ => (201, r#"{"id":"remote-1"}"#.to_owned()),
    })
    .await
}

/// What is set for every kind, and arrives at the log-in and at the API alike.
const ALONG: [(&str, &str); 4] = [
    ("VARIABLES__TENANT", "t/1 \u{e9}"),
    ("VARIABLES__PLAIN", "plain-1"),
    ("AUTH__HEADERS__X-TENANT", "is {plain}"),
    ("AUTH__QUERY__TENANT", "{tenant}"),
];

fn carries_along(heard: &Heard) {
    assert_eq!(heard.header("x-tenant"), "is plain-1", "{heard:?}");
    assert!(heard.target.ends_with("?tenant=t%2F1+%C3%A9"), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_scope_headers_and_query_reach_the_log_in_and_the_api() {
    for (kind, path, further) in [
        ("oauth2_client_credentials", "/token", &[("AUTH__CLIENT_ID", "id"), ("AUTH__CLIENT_SECRET", "secret")][..]),
        (
            "oauth2_password",
            "/token",
            &[
                ("AUTH__CLIENT_ID", "id"),
                ("AUTH__CLIENT_SECRET", "secret"),
                ("AUTH__USERNAME", "user"),
                ("AUTH__PASSWORD", "pass word"),
            ],
        ),
        ("session_token", "/session", &[("AUTH__USERNAME", "user"), ("AUTH__PASSWORD", "pass word")]),
    ] {
        let port = anything_goes().await;
        let url = port.url(path);
        let common = [
            ("AUTH__KIND", kind),
            ("AUTH__TOKEN_URL", url.as_str()),
            ("AUTH__PARAMETERS__AUDIENCE", "api of {tenant}"),
        ];
        let scope = [("AUTH__SCOPE", "leads/post more")];
        let scope = if kind == "session_token" { &[][..] } else { &scope };
        let world = World::towards(&port, &[&ALONG[..], &common, scope, further].concat()).await;
        let running = world.start().await;
        world.one_more("ann").await;
        let (login, post) = (port.only(path), port.only("/leads"));
        for heard in [&login, &post] {
            carries_along(heard);
        }
        let members: serde_json::Map<String, serde_json::Value> = if kind == "session_token" {
            serde_json::from_slice(&login.body).unwrap()
        } else {
            crate::support::api::form(&login.body).into_iter().map(|(name, value)| (name, value.into())).collect()
        };
        let is = |name: &str| members.get(name).and_then(|value| value.as_str()).unwrap_or_default();
        assert_eq!(is("audience"), "api of t/1 \u{e9}", "{kind}");
        match kind {
            "session_token" => assert_eq!((is("username"), is("password")), ("user", "pass word")),
            "oauth2_password" => assert_eq!(
                (is("grant_type"), is("password"), is("scope")),
                ("password", "pass word", "leads/post more")
            ),
            _ => assert_eq!((is("grant_type"), is("scope")), ("client_credentials", "leads/post more")),
        }
        let bearer = if kind == "session_token" { "Bearer session-1" } else { "Bearer access-1" };
        assert_eq!(post.header("authorization"), bearer);
        assert!(!post.text().contains("audience"), "a parameter of the log-in is no part of a lead");
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_token_goes_where_it_is_told_to() {
    for (place, name) in [("bearer", ""), ("header", "access-token"), ("query", "access-token")] {
        let port = anything_goes().await;
        let url = port.url("/session");
        let mut pairs = vec![
            ("AUTH__KIND", "session_token"),
            ("AUTH__TOKEN_URL", &url),
            ("AUTH__USERNAME", "user"),
            ("AUTH__PASSWORD", "password"),
            ("AUTH__TOKEN_IN", place),
        ];
        if !name.is_empty() {
            pairs.push(("AUTH__TOKEN_NAME", name));
        }
        let world = World::towards(&port, &pairs).await;
        let running = world.start().await;
        world.one_more("ann").await;
        let post = port.only("/leads");
        let found = (post.header("authorization"), post.header("access-token"), post.target.as_str());
        let expected = match place {
            "bearer" => ("Bearer session-1", "", "/leads"),
            "header" => ("", "session-1", "/leads"),
            _ => ("", "", "/leads?access-token=session-1"),
        };
        assert_eq!(found, expected, "{place}");
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_in_only_what_is_set_goes_along() {
    let port = anything_goes().await;
    let world = World::towards(&port, &[&ALONG[..], &[("AUTH__KIND", "none")]].concat()).await;
    let running = world.start().await;
    let id = world.one_more("ann").await;
    let post = port.only("");
    carries_along(&post);
    assert_eq!((post.header("authorization"), post.path()), ("", "/leads"));
    assert_eq!(world.show(id).await.remote_id.as_deref(), Some("remote-1"));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_token_and_a_key_go_along_as_they_are() {
    for (pairs, authorization) in [
        (&[("AUTH__KIND", "bearer"), ("AUTH__BEARER_TOKEN", "a.b-c~d/e+f=")][..], "Bearer a.b-c~d/e+f="),
        (
            &[
                ("AUTH__KIND", "api_key"),
                ("AUTH__API_KEY_ID", "Aladdin"),
                ("AUTH__API_KEY", "open sesame"),
                ("AUTH__BASIC", "true"),
            ],
            // RFC 7617, section 2.
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        ),
        (
            &[
                ("AUTH__KIND", "api_key"),
                ("AUTH__API_KEY", "open sesame"),
                ("AUTH__HEADERS__AUTHORIZATION", "Token {api_key}"),
            ],
            "Token open sesame",
        ),
    ] {
        let port = anything_goes().await;
        let world = World::towards(&port, &[&ALONG[..], pairs].concat()).await;
        let running = world.start().await;
        world.one_more("ann").await;
        let post = port.only("");
        carries_along(&post);
        assert_eq!(post.header("authorization"), authorization);
        world.finish(running).await;
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(port.heard("").len(), 1, "nothing is logged out of");
    }
}
