//! What the journal holds of real requests.

use super::*;

#[tokio::test]
async fn every_request_is_noted_with_what_it_carried_and_what_became_of_it() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    let key = uuid::Uuid::new_v4();
    sandbox.faults().script([Fault::status(500)]);
    post(&sandbox, &token, &key.to_string(), " Ann@Example.org").await;
    post(&sandbox, &token, &key.to_string(), " Ann@Example.org").await;

    let posts = sandbox.journal().posts_for(key);
    let story: Vec<_> = posts.iter().map(|post| (post.seq, post.attempt, post.status, post.effect)).collect();
    assert_eq!(story, [(2, 1, Some(500), Effect::Nothing), (3, 2, Some(201), Effect::Created)]);
    let last = &posts[1];
    assert_eq!(last.key, Some(Key::Uuid(key)));
    assert_eq!(last.email.as_deref(), Some("ann@example.org"));
    assert_eq!(last.body.as_deref(), Some(lead(" Ann@Example.org").as_bytes()));
    assert_eq!(last.body_hash, posts[0].body_hash);
    assert!(last.token_ok);
    assert!(last.ended.unwrap() >= last.received);
    assert!(posts[0].received <= last.received);
}

#[tokio::test]
async fn two_requests_of_one_lead_at_once_are_seen_to_overlap() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::hang()]);
    let _hanging = send_lead(&sandbox, &token, "k", "ann@example.org").await;
    sandbox.journal().wait_for(|pages| pages.counts().in_flight == 1, SOON).await.unwrap();
    assert_eq!(post(&sandbox, &token, "k", "ann@example.org").await.status, 201);
    assert_eq!(post(&sandbox, &token, "other", "bob@example.org").await.status, 201);
    let overlapped: Vec<_> = sandbox.journal().posts().iter().map(|post| post.overlapped).collect();
    assert_eq!(overlapped, [false, true, false]);
    assert_eq!(sandbox.journal().counts().overlaps, 1);
}

#[tokio::test]
async fn requests_one_after_the_other_never_overlap() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    let mut client = Client::of(&sandbox).await;
    for _ in 0..200 {
        client.send("POST", "/leads", &post_headers(&token, "k"), &lead("ann@example.org")).await;
        client.receive().await;
    }
    let counts = sandbox.journal().counts();
    assert_eq!((counts.posts, counts.overlaps, counts.max_in_flight), (200, 0, 1));
}

#[tokio::test]
async fn bodies_are_left_out_when_they_are_not_kept() {
    let sandbox = Sandbox::start(SandboxSettings { keep_bodies: false, ..SandboxSettings::default() }).unwrap();
    post(&sandbox, "none", "k", "ann@example.org").await;
    let post = &sandbox.journal().posts()[0];
    assert_eq!(post.body, None);
    assert!(post.body_hash.is_some());
}
