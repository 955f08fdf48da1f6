//! The way of a lead: from the queue to the API and into the ledger.

use std::time::Duration;

use leadpost::config::Source;
use leadpost::ledger::{LeadState, Ledger};
use leadpost::sandbox::{Fault, Profile, SandboxSettings, Tuning};

use crate::support::{Message, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_is_accepted_acknowledged_posted_once_and_settled_with_its_receipt() {
    let world = World::new().await;
    let running = world.start().await;
    let id = world.publish("ann").await;
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.posts(id), 1);
    assert!(lead.remote_id.is_some());
    assert_eq!(lead.remote_state.as_deref(), Some("Cold"));
    assert_eq!(world.story(id).await, ["delivered 201"]);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_are_kept_byte_for_byte_and_their_neighbours_are_delivered() {
    let world = World::new().await;
    let bad: [&[u8]; 6] = [b"", b"\xff\xfe", b"not json", b"[1]", br#"{"name":"x"}"#, b"{\"name\":\"\\ud800\"}"];
    let mut good = Vec::new();
    for (n, body) in bad.iter().enumerate() {
        good.push(world.publish(&format!("good{n}")).await);
        world.broker.publish(Message::raw(body)).await;
    }
    let running = world.start().await;
    for id in good {
        world.until_state(id, LeadState::Delivered).await;
    }
    world.until_count(LeadState::Invalid, 6).await;
    let kept: Vec<Vec<u8>> = sqlx::query_scalar("select body from leads where state = 'invalid'")
        .fetch_all(&world.database.pool)
        .await
        .unwrap();
    for body in bad {
        assert!(kept.iter().any(|kept| kept == body), "{body:?} is not kept");
    }
    assert_eq!(world.sandbox.journal().posts().len(), 6, "nothing invalid was posted");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_comes_when_it_is_due_and_not_earlier() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::status(503), Fault::status(503)]);
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_attempts(id, 1).await;
    let due = world.due_in(id).await;
    assert!(due > Duration::from_secs(7) && due <= Duration::from_secs(12), "{due:?}");
    // Not due yet: three seconds early, nothing happens in several polls.
    world.pass(due - Duration::from_secs(3)).await;
    let second = world.publish("bob").await;
    world.until_attempts(second, 1).await;
    assert_eq!(world.posts(id), 1, "posted before it was due");
    world.pass(Duration::from_secs(3)).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["retry 503", "delivered 201"]);
    world.pass(Duration::from_secs(60)).await;
    world.until_state(second, LeadState::Delivered).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_2024_preset_posts_by_assistant_email_and_names_its_user() {
    let tuning = Tuning { profile: Profile::SevenTargets2024, ..Tuning::default() };
    let world = World::with_sandbox(SandboxSettings { tuning, ..SandboxSettings::default() }).await;
    let mut source = Source { file: Some("/dev/null".into()), ..Source::default() };
    source.flags.push(("destination.preset".to_owned(), "7targets-2024".to_owned()));
    source.flags.push(("destination.variables.user_identifier".to_owned(), "user-1".to_owned()));
    let mut settings = world.settings.clone();
    settings.destination = source.read().unwrap().destination;
    settings.destination.auth = world.settings.destination.auth.clone();
    settings.destination.request.url = world.sandbox.leads_url();
    let ledger = Ledger::new(&settings, "test").unwrap();
    let world = World { settings, ledger, ..world };
    let running = world.start().await;
    let body = r#"{"name":"Ann","email":"ann@example.com","assistantEmail":"bot@example.com","scheduleName":"Spring"}"#;
    let good = world.publish_body(body).await;
    let old = world.publish("bob").await;
    world.until_state(good, LeadState::Delivered).await;
    let lead = world.until_state(old, LeadState::Invalid).await;
    assert_eq!(lead.violations[0].field, "assistantEmail");
    assert_eq!((world.posts(good), world.posts(old)), (1, 0));
    world.finish(running).await;
}
