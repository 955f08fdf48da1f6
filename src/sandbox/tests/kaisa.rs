//! Kaisa: forms only, errors with status 200, and tokens of five minutes.

use super::*;

async fn token(sandbox: &Sandbox) -> String {
    let mut client = Client::of(sandbox).await;
    let body = json!({
        "grant_type": "client_credentials", "client_id": "sandbox-client", "client_secret": "sandbox-secret",
    });
    client.send("POST", "/oauth2/token", "content-type: application/json\r\n", &body.to_string()).await;
    let seen = client.receive().await;
    assert_eq!((seen.status, &seen.json()["expires_in"]), (200, &json!(300)));
    seen.json()["access_token"].as_str().unwrap().to_owned()
}

async fn customer(sandbox: &Sandbox, token: &str, content_type: &str, body: &str) -> Seen {
    let mut client = Client::of(sandbox).await;
    let headers = format!("authorization: Bearer {token}\r\ncontent-type: {content_type}\r\n");
    client.send("POST", "/2.4.9/customers", &headers, body).await;
    client.receive().await
}

const FORM_TYPE: &str = "application/x-www-form-urlencoded";

#[tokio::test]
async fn a_known_customer_is_refused_with_status_200() {
    let sandbox = playing(Profile::Kaisa);
    let token = token(&sandbox).await;
    let first = customer(&sandbox, &token, FORM_TYPE, "name=Ann&custnr=C-1").await;
    assert_eq!((first.status, &first.json()["customers"][0]["custnr"]), (200, &json!("C-1")));
    let again = customer(&sandbox, &token, FORM_TYPE, "name=Ann&custnr=C-1").await;
    assert_eq!((again.status, again.json()), (200, json!({"errors": ["custnr C-1 already exists"]})));
    let counts = sandbox.journal().counts();
    assert_eq!((counts.created, counts.duplicates), (1, 1));
}

#[tokio::test]
async fn a_customer_as_json_is_refused_in_plain_text() {
    let sandbox = playing(Profile::Kaisa);
    let token = token(&sandbox).await;
    let seen = customer(&sandbox, &token, "application/json", r#"{"name":"Ann","custnr":"1"}"#).await;
    assert_eq!((seen.status, seen.header("content-type")), (415, Some("text/plain; charset=utf-8")));
    let post = &sandbox.journal().posts()[0];
    assert_eq!((post.content_type, post.token_ok, post.effect), (Some(ContentType::Json), true, Effect::Nothing));
}

#[tokio::test]
async fn an_expired_token_is_answered_401_with_errors() {
    let sandbox = playing(Profile::Kaisa);
    let token = token(&sandbox).await;
    sandbox.revoke_all();
    let seen = customer(&sandbox, &token, FORM_TYPE, "name=Ann&custnr=1").await;
    assert_eq!((seen.status, seen.json()["errors"].as_array().map(Vec::len)), (401, Some(1)));
}

#[tokio::test]
async fn credentials_in_the_header_are_no_credentials() {
    let sandbox = playing(Profile::Kaisa);
    let mut client = Client::of(&sandbox).await;
    let basic = format!("{FORM}authorization: Basic c2FuZGJveC1jbGllbnQ6c2FuZGJveC1zZWNyZXQ=\r\n");
    client.send("POST", "/oauth2/token", &basic, "grant_type=client_credentials").await;
    let seen = client.receive().await;
    assert_eq!((seen.status, seen.json()), (401, json!({"error": "invalid_client"})));
}

#[tokio::test]
async fn a_ping_wants_a_token_and_is_neither_a_post_nor_in_the_way_of_one() {
    let sandbox = playing(Profile::Kaisa);
    let token = token(&sandbox).await;
    sandbox.tune(|tuning| tuning.leads_unavailable = Some(503));
    sandbox.faults().script([Fault::status(500), Fault::status(502).on(Endpoint::Query)]);
    let mut client = Client::of(&sandbox).await;
    let mut ping = async |headers: &str| {
        client.send("GET", "/2.4.9/miscellaneous/ping", headers, "").await;
        client.receive().await
    };
    let bearer = format!("authorization: Bearer {token}\r\n");
    assert_eq!(ping(&bearer).await.status, 502);
    let seen = ping(&bearer).await;
    assert_eq!((seen.status, seen.json()), (200, json!({"ping": "ok"})));
    assert_eq!(ping("").await.status, 401);
    let counts = sandbox.journal().counts();
    assert_eq!((counts.queries, counts.posts, counts.requests), (3, 0, 4));
    assert_eq!(sandbox.script_left(), 1);

    let mut control = Client::of(&sandbox).await;
    let page = control.ask("GET", "/_sandbox/journal?endpoint=query", "").await;
    assert_eq!(String::from_utf8(page.body).unwrap().lines().count(), 3);
    let summary = control.ask("GET", "/_sandbox/journal/summary", "").await.json();
    assert_eq!(summary["statuses"], json!({"leads": {}, "token": {"200": 1}, "query": {"200": 1, "401": 1, "502": 1}}));
}
