//! SquadRun and SquadIQ: tokens that rotate, dead ones that are answered with a page, and a limit per minute.

use super::*;

const CLIENT: &str = "client_id=sandbox-client&client_secret=sandbox-secret";

async fn send(sandbox: &Sandbox, path: &str, headers: &str, body: &str) -> Seen {
    let mut client = Client::of(sandbox).await;
    client.send("POST", path, headers, body).await;
    client.receive().await
}

async fn log_in(sandbox: &Sandbox) -> Value {
    let form = format!("grant_type=password&{CLIENT}&username=sandbox-user&password=sandbox-password");
    let seen = send(sandbox, "/oauth/token/", FORM, &form).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    seen.json()
}

async fn refresh(sandbox: &Sandbox, tokens: &Value) -> Seen {
    let token = tokens["refresh_token"].as_str().unwrap();
    let form = format!("grant_type=refresh_token&{CLIENT}&refresh_token={token}");
    send(sandbox, "/oauth/token/", FORM, &form).await
}

async fn revoke(sandbox: &Sandbox, form: &str) -> Seen {
    send(sandbox, "/oauth/revoke_token/", FORM, form).await
}

async fn lead(sandbox: &Sandbox, token: &Value, lead_id: &str) -> Seen {
    let headers = post_headers(token.as_str().unwrap(), lead_id);
    let body = json!([{ "lead_id": lead_id, "phone_number": "+911234567890" }]).to_string();
    send(sandbox, sandbox.leads_url().strip_prefix(&sandbox.base_url()).unwrap(), &headers, &body).await
}

#[tokio::test]
async fn a_log_in_is_answered_as_documented() {
    let answer = log_in(&playing(Profile::SquadRun)).await;
    assert_eq!((&answer["expires_in"], &answer["scope"]), (&json!(36_000), &json!("read write")));
    assert_eq!(answer["token_type"], "Bearer");
    for token in ["access_token", "refresh_token"] {
        assert_eq!(answer[token].as_str().unwrap().len(), 30);
    }
}

#[tokio::test]
async fn a_refresh_kills_the_old_pair_at_once_and_other_log_ins_live_on() {
    let sandbox = playing(Profile::SquadRun);
    let (mine, other) = (log_in(&sandbox).await, log_in(&sandbox).await);
    assert_eq!(lead(&sandbox, &mine["access_token"], "1").await.status, 201);
    let new = refresh(&sandbox, &mine).await.json();
    assert_eq!(lead(&sandbox, &mine["access_token"], "2").await.status, 403);
    assert_eq!(lead(&sandbox, &new["access_token"], "2").await.status, 201);
    assert_eq!(lead(&sandbox, &other["access_token"], "3").await.status, 201);
    let again = refresh(&sandbox, &mine).await;
    assert_eq!((again.status, again.json()), (400, json!({"error": "invalid_grant"})));
    assert_eq!(sandbox.journal().tokens_issued(), 3);
}

#[tokio::test]
async fn a_dead_token_is_answered_403_with_a_page() {
    let sandbox = playing(Profile::SquadRun);
    let tokens = log_in(&sandbox).await;
    sandbox.revoke_all();
    for token in [&tokens["access_token"], &json!("unknown")] {
        let seen = lead(&sandbox, token, "1").await;
        assert_eq!((seen.status, seen.header("content-type")), (403, Some("text/html; charset=utf-8")));
        assert!(seen.body.starts_with(b"<!doctype html>"));
    }
    assert_eq!(refresh(&sandbox, &tokens).await.status, 400);
    sandbox.set_token_lifetime(Duration::ZERO);
    let tokens = log_in(&sandbox).await;
    assert_eq!(lead(&sandbox, &tokens["access_token"], "1").await.status, 403);
    assert_eq!(refresh(&sandbox, &tokens).await.status, 200);
}

#[tokio::test]
async fn a_revocation_is_answered_with_an_empty_page_whatever_the_token() {
    let sandbox = playing(Profile::SquadRun);
    let tokens = log_in(&sandbox).await;
    let refresh_token = tokens["refresh_token"].as_str().unwrap();
    for token in [refresh_token, refresh_token, "unknown"] {
        let seen = revoke(&sandbox, &format!("{CLIENT}&token={token}")).await;
        assert_eq!((seen.status, &*seen.body), (200, &b""[..]));
        assert_eq!(seen.header("content-type"), Some("text/html; charset=utf-8"));
    }
    assert_eq!(lead(&sandbox, &tokens["access_token"], "1").await.status, 403);
    let stranger = revoke(&sandbox, "client_id=sandbox-client&client_secret=wrong&token=a").await;
    assert_eq!((stranger.status, stranger.json()), (401, json!({"error": "invalid_client"})));
    assert_eq!(stranger.header("www-authenticate"), Some(r#"Bearer error="invalid_client""#));

    assert_eq!(sandbox.journal().counts().logouts, 4);
    let entries = sandbox.journal().entries();
    let story: Vec<_> = entries
        .iter()
        .filter(|entry| entry.endpoint == Endpoint::Logout)
        .map(|entry| (entry.status, entry.token_ok, entry.effect))
        .collect();
    let nothing = (Some(200), true, Effect::Nothing);
    assert_eq!(story, [(Some(200), true, Effect::Ended), nothing, nothing, (Some(401), false, Effect::Nothing)]);
}

#[tokio::test]
async fn tokens_are_given_for_forms_only() {
    let sandbox = playing(Profile::SquadRun);
    let body = json!({
        "grant_type": "password", "client_id": "sandbox-client", "client_secret": "sandbox-secret",
        "username": "sandbox-user", "password": "sandbox-password",
    });
    let seen = send(&sandbox, "/oauth/token/", "content-type: application/json\r\n", &body.to_string()).await;
    assert_eq!((seen.status, seen.json()), (400, json!({"error": "unsupported_grant_type"})));
    let entry = &sandbox.journal().entries()[0];
    assert_eq!((entry.content_type, entry.token_ok), (Some(ContentType::Json), false));
}

#[tokio::test]
async fn a_second_lead_with_the_same_id_is_a_bad_request() {
    let sandbox = playing(Profile::SquadIq);
    let token = json!(sandbox.tuning().bearer_token);
    assert_eq!(lead(&sandbox, &token, "A-1").await.status, 201);
    let again = lead(&sandbox, &token, "A-1").await;
    assert_eq!(again.status, 400);
    assert!(again.json()["lead_id"][0].as_str().unwrap().contains("already exists"));
    let counts = sandbox.journal().counts();
    assert_eq!((counts.created, counts.duplicates), (1, 1));
}

#[tokio::test]
async fn a_static_token_is_good_until_it_is_changed_and_nobody_gives_another() {
    let sandbox = playing(Profile::SquadIq);
    let token = json!(sandbox.tuning().bearer_token);
    sandbox.revoke_all();
    assert_eq!(lead(&sandbox, &token, "1").await.status, 201);
    sandbox.tune(|tuning| tuning.bearer_token = "another".to_owned());
    assert_eq!(lead(&sandbox, &token, "2").await.status, 403);
    let mut client = Client::of(&sandbox).await;
    assert_eq!(client.ask("POST", "/oauth/token/", "").await.status, 404);
}

#[tokio::test]
async fn more_than_a_minutes_worth_is_answered_429_without_a_time_to_come_again() {
    let sandbox = playing(Profile::SquadIq);
    let token = json!(sandbox.tuning().bearer_token);
    for n in 0..3 {
        assert_eq!(lead(&sandbox, &json!("stranger"), &n.to_string()).await.status, 403);
    }
    for n in 0..100 {
        assert_eq!(lead(&sandbox, &token, &n.to_string()).await.status, 201);
    }
    let seen = lead(&sandbox, &token, "100").await;
    assert_eq!((seen.status, seen.header("retry-after")), (429, None));
    assert_eq!(seen.json(), json!({"detail": "You hit a rate limit!"}));
    let last = sandbox.journal().posts().pop().unwrap();
    assert_eq!((last.fault, last.email.as_deref()), (Some("rate_limited"), Some("100")));
    sandbox.tune(|tuning| tuning.rate_limit_per_min = None);
    assert_eq!(lead(&sandbox, &token, "100").await.status, 201);
}

#[tokio::test]
async fn a_rule_knows_a_lead_without_an_email_by_its_id() {
    let sandbox = playing(Profile::SquadIq);
    let token = json!(sandbox.tuning().bearer_token);
    sandbox.faults().rule("Flaky", Some(1), Fault::status(503));
    let mut statuses = Vec::new();
    for lead_id in ["FLAKY-1", "steady", "FLAKY-1"] {
        statuses.push(lead(&sandbox, &token, lead_id).await.status);
    }
    assert_eq!(statuses, [503, 201, 201]);
}
