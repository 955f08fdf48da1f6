//! Tokens: who gets one, and how long it is good.

use super::*;

#[tokio::test]
async fn right_credentials_get_a_token_that_opens_the_lead_api() {
    let sandbox = sandbox();
    let mut client = Client::of(&sandbox).await;
    client.send("POST", "/oauth2/token", FORM, GRANT).await;
    let seen = client.receive().await;
    assert_eq!(seen.status, 200);
    assert_eq!(seen.header("content-type"), Some("application/json;charset=UTF-8"));
    assert_eq!(seen.header("cache-control"), Some("no-store"));
    let answer = seen.json();
    assert_eq!((&answer["expires_in"], &answer["token_type"]), (&json!(3600), &json!("Bearer")));
    let token = answer["access_token"].as_str().unwrap();
    assert_eq!(token.len(), 900);
    assert_eq!(post(&sandbox, token, "k", "ann@example.org").await.status, 201);
    assert_eq!(sandbox.journal().tokens_issued(), 1);
}

#[tokio::test]
async fn basic_credentials_are_accepted_and_wrong_ones_refused_with_400() {
    let sandbox = sandbox();
    sandbox.set_credentials("id", "secret");
    let ask = async |basic: &str| {
        let mut client = Client::of(&sandbox).await;
        let headers = format!("{FORM}authorization: Basic {basic}\r\n");
        client.send("POST", "/oauth2/token", &headers, "grant_type=client_credentials").await;
        client.receive().await
    };
    assert_eq!(ask("aWQ6c2VjcmV0").await.status, 200);
    let refused = ask("aWQ6d3Jvbmc=").await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json(), json!({"error":"invalid_client","error_description":"invalid_client_secret"}));
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let sandbox = sandbox();
    sandbox.set_token_lifetime(Duration::ZERO);
    let token = token(&sandbox).await;
    let seen = post(&sandbox, &token, "k", "ann@example.org").await;
    assert_eq!((seen.status, seen.json()), (401, json!({"message":"Unauthorized"})));
    assert!(!sandbox.journal().posts()[0].token_ok);
}

#[tokio::test]
async fn revoked_missing_and_unknown_tokens_are_refused_and_a_new_one_is_not() {
    let sandbox = sandbox();
    let old = token(&sandbox).await;
    sandbox.revoke_all();
    assert_eq!(post(&sandbox, &old, "k", "ann@example.org").await.status, 401);
    assert_eq!(post(&sandbox, "unknown", "k", "ann@example.org").await.status, 401);
    let mut client = Client::of(&sandbox).await;
    assert_eq!(client.ask("POST", "/leads", &lead("ann@example.org")).await.status, 401);
    let new = token(&sandbox).await;
    assert_eq!(post(&sandbox, &new, "k", "ann@example.org").await.status, 201);
}
