//! The routes under `/_sandbox`.

use super::*;

#[tokio::test]
async fn the_journal_can_be_read_page_by_page() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    for n in 0..3 {
        post(&sandbox, &token, &format!("k{n}"), &format!("lead{n}@example.org")).await;
    }
    let mut client = Client::of(&sandbox).await;
    let mut lines = async |query: &str| {
        let page = client.ask("GET", &format!("/_sandbox/journal{query}"), "").await;
        assert_eq!(page.status, 200);
        let text = String::from_utf8(page.body).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(lines("").await.len(), 4);
    let page = lines("?since=2&limit=1&endpoint=leads&bodies=true").await;
    assert_eq!(page.len(), 1);
    assert_eq!((&page[0]["seq"], &page[0]["key"]), (&json!(3), &json!("k1")));
    assert_eq!(page[0]["body"], json!(lead("lead1@example.org")));
    assert_eq!(lines("?endpoint=token").await.len(), 1);
    assert_eq!(client.ask("GET", "/_sandbox/journal?sinse=2", "").await.status, 400);
}

#[tokio::test]
async fn the_summary_names_the_keys_that_came_more_than_once() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::status(503)]);
    for key in ["a", "a", "b"] {
        post(&sandbox, &token, key, &format!("{key}@example.org")).await;
    }
    let mut client = Client::of(&sandbox).await;
    let summary = client.ask("GET", "/_sandbox/journal/summary", "").await.json();
    assert_eq!(summary["posts"], 3);
    assert_eq!(summary["created"], 2);
    assert_eq!(summary["distinct_keys"], 2);
    assert_eq!(summary["faults_by_kind"], json!({"status": 1}));
    assert_eq!(summary["statuses"], json!({"leads": {"201": 2, "503": 1}, "token": {"200": 1}}));
    assert_eq!(summary["keys_posted_more_than_once"], json!([{"key": "a", "posts": 2, "overlaps": 0}]));
    assert_eq!(client.ask("DELETE", "/_sandbox/journal", "").await.status, 200);
    assert_eq!(sandbox.journal().counts().requests, 0);
}

#[tokio::test]
async fn faults_settings_and_revocation_work_over_http() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    let mut client = Client::of(&sandbox).await;
    assert_eq!(client.ask("GET", "/_sandbox/health", "").await.status, 200);

    let plan = json!({"script": [{"kind": "status", "status": 500}]}).to_string();
    assert_eq!(client.ask("POST", "/_sandbox/faults", &plan).await.json(), json!({"script_left": 1}));
    let left = client.ask("GET", "/_sandbox/faults", "").await.json();
    assert_eq!((&left["script"][0]["status"], &left["rules"]), (&json!(500), &json!([])));
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 500);
    let wrong = json!({"script": [{"kind": "status"}]}).to_string();
    assert_eq!(client.ask("POST", "/_sandbox/faults", &wrong).await.status, 400);
    client
        .ask(
            "POST",
            "/_sandbox/faults",
            &json!({"rates": [{"probability": 1, "fault": {"kind": "close"}}]}).to_string(),
        )
        .await;
    assert_eq!(client.ask("DELETE", "/_sandbox/faults", "").await.status, 200);
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 201);

    let patch = json!({"duplicates": "bad_request", "errors": "text"}).to_string();
    assert_eq!(client.ask("PATCH", "/_sandbox/settings", &patch).await.json()["duplicates"], "bad_request");
    let seen = post(&sandbox, &token, "a", "a@example.org").await;
    assert_eq!((seen.status, seen.json()), (400, json!("Lead already exists")));
    assert_eq!(client.ask("PATCH", "/_sandbox/settings", r#"{"latency":1}"#).await.status, 400);
    assert_eq!(client.ask("GET", "/_sandbox/settings", "").await.json()["scope"], "leads/post");

    assert_eq!(client.ask("POST", "/_sandbox/revoke", "").await.status, 200);
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 401);
}

#[tokio::test]
async fn the_requests_of_one_key_can_be_looked_up() {
    let sandbox = sandbox();
    post(&sandbox, "none", "a key/with+signs", "ann@example.org").await;
    let mut client = Client::of(&sandbox).await;
    let found = client.ask("GET", "/_sandbox/leads/a%20key%2Fwith+signs", "").await.json();
    assert_eq!((&found[0]["attempt"], &found[0]["status"]), (&json!(1), &json!(401)));
    assert_eq!(client.ask("GET", "/_sandbox/leads/unknown", "").await.status, 404);
}
