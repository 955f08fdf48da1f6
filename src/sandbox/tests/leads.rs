//! Leads as the API takes them when nothing goes wrong.

use super::*;

#[tokio::test]
async fn one_connection_carries_many_leads() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    let mut client = Client::of(&sandbox).await;
    for n in 0..5 {
        let email = format!("lead{n}@example.org");
        client.send("POST", "/leads", &post_headers(&token, &n.to_string()), &lead(&email)).await;
        assert_eq!(client.receive().await.status, 201);
    }
    assert_eq!(sandbox.journal().created_count(), 5);
}

#[tokio::test]
async fn the_same_email_again_is_a_conflict_under_any_key() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    assert_eq!(post(&sandbox, &token, "a", "ann@example.org").await.status, 201);
    let seen = post(&sandbox, &token, "b", "ANN@example.org").await;
    assert_eq!((seen.status, seen.json()), (409, json!({"message":"Lead already exists"})));
    let counts = sandbox.journal().counts();
    assert_eq!((counts.created, counts.duplicates), (1, 1));
    sandbox.forget_leads();
    assert_eq!(post(&sandbox, &token, "c", "ann@example.org").await.status, 201);
}

#[tokio::test]
async fn a_body_announced_as_over_ten_megabytes_is_refused_unread() {
    let sandbox = sandbox();
    let mut client = Client::of(&sandbox).await;
    let length = 10 * 1024 * 1024 + 1;
    let head = format!("POST /leads HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    client.stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(client.receive().await.status, 413);
}

#[tokio::test]
async fn other_paths_and_methods_are_not_found_and_counted() {
    let sandbox = sandbox();
    let mut client = Client::of(&sandbox).await;
    assert_eq!(client.ask("POST", "/lead", "{}").await.status, 404);
    assert_eq!(client.ask("GET", "/leads", "").await.status, 404);
    let counts = sandbox.journal().counts();
    assert_eq!((counts.other_requests, counts.requests), (2, 0));
}
