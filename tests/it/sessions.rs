//! Sessions that live on while they are used, and the log-out at the end.

use std::time::{Duration, Instant};

use leadpost::ledger::LeadState;
use leadpost::sandbox::{CutAt, Effect, Endpoint, Fault};
use leadpost::worker::Stopped;

use crate::support::World;
use crate::support::api::{Heard, Port, answer, form, token};

/// The life of a session in these tests; Paya's own is a quarter of an hour.
const LIFE: Duration = Duration::from_secs(3);

/// Paya with short sessions: minutes are announced, and read as seconds.
async fn paya_session() -> World {
    let mut world = World::unlimited("paya-session").await;
    world.set(&[("AUTH__LIFETIME_UNIT", "seconds")]);
    world.sandbox.tune(|tuning| {
        tuning.token_lifetime = LIFE;
        tuning.announced_lifetime_s = Some(LIFE.as_secs() * 60);
    });
    world
}

async fn refused(world: &World) -> i64 {
    world.number("select count(*) from attempts where outcome = 'unauthorized'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_used_lives_on_and_nobody_logs_in_again() {
    let world = paya_session().await;
    let running = world.start().await;
    let began = Instant::now();
    let mut n = 0;
    while began.elapsed() < 2 * LIFE {
        let id = world.one_more(&format!("ann{n}")).await;
        assert_eq!(world.story(id).await, ["delivered 201"]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        n += 1;
    }
    assert_eq!(world.sandbox.journal().counts().token_requests, 1);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_over_and_the_next_lead_logs_in_anew_without_a_refusal() {
    let world = paya_session().await;
    let running = world.start().await;
    world.one_more("ann").await;
    tokio::time::sleep(LIFE).await;
    assert_eq!(world.sandbox.journal().counts().token_requests, 1, "nobody needs a session meanwhile");
    let id = world.one_more("bob").await;
    assert_eq!(world.story(id).await, ["delivered 201"], "a dead session was tried first");
    assert_eq!(world.sandbox.journal().counts().token_requests, 2);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_refuses_or_fails_at_does_not_make_a_session_live_on() {
    let mut world = paya_session().await;
    world.settings.retry.initial_ms = 3_600_000;
    // The API's own refusals of a lead, and its failures.
    world.sandbox.faults().rule("busy", None, Fault::status(503));
    world.sandbox.faults().rule("broken", None, Fault::status(500));
    let running = world.start().await;
    let began = Instant::now();
    world.one_more("ann").await;
    let (since, mut n, mut late) = (Instant::now(), 0, 0);
    while world.sandbox.journal().counts().token_requests < 2 {
        let kind = ["busy", "broken", "refused"][n % 3];
        let zip = if kind == "refused" { r#","zip":"1""# } else { "" };
        let body = format!(r#"{{"name":"Lee","email":"{kind}{n}@example.com"{zip}}}"#);
        let id = world.publish_body(&body).await;
        let lead = world.until_attempts(id, 1).await;
        assert_ne!(lead.state, LeadState::Delivered, "{kind}");
        let is_first = world.sandbox.journal().counts().token_requests == 1;
        late += u32::from(is_first && since.elapsed() >= LIFE * 2 / 3);
        tokio::time::sleep(Duration::from_millis(100)).await;
        n += 1;
        assert!(began.elapsed() < 2 * LIFE, "the session lived on by failures");
    }
    // By it the session would have lived on for long enough to be seen.
    assert!(late > 0, "none of {n} failures came late in its life, so this proves nothing");
    assert_eq!(refused(&world).await, 0, "a session was used that the API had ended");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_api_ended_is_replaced_once_for_all() {
    let mut world = paya_session().await;
    world.settings.flow.concurrency = 20;
    world.sandbox.tune(|tuning| tuning.token_delay = Duration::from_millis(200));
    let running = world.start().await;
    world.one_more("ann").await;
    world.sandbox.revoke_all();
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(300));
    let ids = world.publish_any_many("bob", 20).await;
    world.until_delivered(&ids).await;
    assert!(refused(&world).await > 1, "too few for this to prove anything");
    assert_eq!(world.sandbox.journal().counts().token_requests, 2);
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, 21);
    assert_eq!(running.metrics.opened.get(), 0);
    world.finish(running).await;
}

// --- Logging out

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_ends_what_it_was_granted_and_nothing_else() {
    for (preset, expected) in [
        ("squadrun", &[(Some(200), Effect::Ended), (Some(200), Effect::Nothing)][..]),
        ("paya-session", &[(Some(204), Effect::Ended)]),
        ("7targets", &[]),
        ("7targets-2024", &[]),
        ("kaisa", &[]),
        ("squadiq", &[]),
        ("paya", &[]),
    ] {
        let world = World::unlimited(preset).await;
        let running = world.start().await;
        world.one_more("ann").await;
        assert_eq!(world.sandbox.journal().counts().logouts, 0, "{preset}");
        assert_eq!(running.stop().await, Stopped::Cleanly, "{preset}");
        let ends: Vec<_> = world.requests(Endpoint::Logout).iter().map(|entry| (entry.status, entry.effect)).collect();
        assert_eq!(ends, expected, "{preset}");
        assert_eq!(world.sandbox.journal().counts().other_requests, 0, "{preset}");
        world.check_books().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_logged_in_does_not_log_out() {
    for preset in ["squadrun", "paya-session"] {
        let world = World::unlimited(preset).await;
        let running = world.start().await;
        world.until_consuming(&running, true).await;
        assert_eq!(running.stop().await, Stopped::Cleanly);
        assert_eq!(world.sandbox.journal().counts().requests, 0, "{preset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_out_comes_after_the_last_post() {
    let world = World::unlimited("paya-session").await;
    let running = world.start().await;
    world.one_more("ann").await;
    world.sandbox.faults().script([Fault::latency(Duration::from_millis(500))]);
    let id = world.publish_any("bob").await;
    let deadline = crate::support::DEADLINE;
    world.sandbox.journal().wait_for(|pages| pages.counts().posts == 2, deadline).await.unwrap();
    assert_eq!(running.stop().await, Stopped::Cleanly);
    assert_eq!(world.story(id).await, ["delivered 201"]);
    let (posts, logouts) = (world.requests(Endpoint::Leads), world.requests(Endpoint::Logout));
    assert!(logouts[0].received >= posts[1].ended.unwrap(), "the session was ended under a post");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_gone_already_is_as_good_as_ended() {
    for (preset, statuses) in [("paya-session", &[404][..]), ("squadrun", &[200, 200])] {
        let world = World::unlimited(preset).await;
        let worker = world.worker(&[]).await;
        world.one_more("ann").await;
        world.sandbox.revoke_all();
        let said = worker.stop().await;
        let ends: Vec<_> = world.requests(Endpoint::Logout).iter().filter_map(|entry| entry.status).collect();
        assert_eq!(ends, statuses, "{preset}");
        assert!(!said.contains("log out") && !said.contains("WARN"), "{preset}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_out_that_fails_or_hangs_is_told_without_a_token_and_keeps_nobody_from_going() {
    let faults = || {
        [
            ("hang", Fault::hang(), "the log-out was not answered"),
            ("reset", Fault::reset(), "could not log out"),
            ("close", Fault::close(), "could not log out"),
            ("cut", Fault::cut(CutAt::StatusLine), "could not log out"),
            ("401", answer(401, r#"{"message":"no"}"#), "answered 401"),
            ("500", answer(500, "<html>"), "answered 500"),
            ("302", Fault::redirect(), "answered 302"),
        ]
    };
    for preset in ["paya-session", "squadrun"] {
        for (name, fault, says) in faults() {
            let world = World::unlimited(preset).await;
            world.sandbox.faults().script([fault.on(Endpoint::Logout)]);
            let worker = world.worker(&["--set", "log.filter=trace"]).await;
            world.one_more("ann").await;
            let asked_at = Instant::now();
            // Exits with 0, or this panics.
            let said = worker.stop().await;
            let took = asked_at.elapsed();
            assert!(took < Duration::from_secs(7), "{preset} {name}: {took:?}");
            assert!(
                name != "hang" || took > Duration::from_secs(4),
                "{preset}: it did not wait for an answer: {took:?}"
            );
            assert!(said.contains(says) && said.contains("ends by itself"), "{preset} {name}: {said}");
            // That one token could not be revoked does not keep the other from being revoked.
            let logouts = world.requests(Endpoint::Logout);
            assert_eq!(logouts.len(), if preset == "squadrun" && name != "hang" { 2 } else { 1 }, "{preset} {name}");
            for logout in logouts.iter().filter(|_| preset == "squadrun") {
                let token = form(logout.body.as_deref().unwrap())["token"].clone();
                assert!(!said.contains(&token), "{name}: a token is in the log");
            }
            world.check_books().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_ended_by_its_url_with_the_token_in_it_and_in_its_place() {
    let odd = "s/1?a=b&c d%";
    let port = Port::open(move |heard: &Heard| match heard.path() {
        "/session" => (200, serde_json::json!({ "token": odd }).to_string()),
        _ => (200, "{}".to_owned()),
    })
    .await;
    let (login, logout) = (port.url("/session"), port.url("/session/{token}/end"));
    let world = World::towards(
        &port,
        &[
            ("AUTH__KIND", "session_token"),
            ("AUTH__TOKEN_URL", &login),
            ("AUTH__LOGOUT_URL", &logout),
            ("AUTH__USERNAME", "user"),
            ("AUTH__PASSWORD", "password"),
            ("AUTH__TOKEN_IN", "header"),
            ("AUTH__TOKEN_NAME", "x-session"),
        ],
    )
    .await;
    let running = world.start().await;
    world.one_more("ann").await;
    world.finish(running).await;
    let end = port.only("/session/");
    assert_eq!((end.method.as_str(), end.header("x-session")), ("DELETE", odd));
    assert_eq!(end.target, "/session/s%2F1%3Fa%3Db%26c%20d%25/end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_credentials_token_is_revoked_where_the_server_can_do_that() {
    let port = Port::open(|heard: &Heard| match heard.path() {
        "/token" => token("access-1"),
        _ => (200, "{}".to_owned()),
    })
    .await;
    for (way, in_body) in [("basic", false), ("form", true)] {
        let (at, revoke) = (port.url("/token"), port.url(&format!("/revoke-{way}")));
        let world = World::towards(
            &port,
            &[
                ("AUTH__TOKEN_URL", &at),
                ("AUTH__REVOKE_URL", &revoke),
                ("AUTH__CLIENT_AUTH", way),
                ("AUTH__CLIENT_ID", "id"),
                ("AUTH__CLIENT_SECRET", "secret"),
            ],
        )
        .await;
        let running = world.start().await;
        world.one_more("ann").await;
        world.finish(running).await;
        let revoked = port.only(&format!("/revoke-{way}"));
        let sent = form(&revoked.body);
        assert_eq!((sent["token"].as_str(), sent["token_type_hint"].as_str()), ("access-1", "access_token"));
        assert_eq!(
            (sent.contains_key("client_secret"), revoked.header("authorization").is_empty()),
            (in_body, in_body)
        );
    }
}
