//! Each preset, from a message in the queue to a lead at the API.

use leadpost::ledger::LeadState;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn every_preset_delivers_a_lead() {
    for (preset, body) in [
        ("7targets", r#"{"name":"Ann","email":"ann@example.com","assistantId":61}"#),
        ("7targets-2024", r#"{"name":"Ann","email":"ann@example.com","assistantEmail":"bot@example.com"}"#),
        ("squadrun", r#"{"name":"Ann","phone":"+15550100"}"#),
        ("squadiq", r#"{"name":"Ann","phone":"+15550100"}"#),
        ("kaisa", r#"{"name":"Ann","email":"ann@example.com"}"#),
        ("paya", r#"{"name":"Ann","lastName":"Lee","email":"ann@example.com","phone":"+1 (555) 010-0199"}"#),
        ("paya-session", r#"{"name":"Ann Lee"}"#),
    ] {
        let world = World::of_preset(preset).await;
        let running = world.start().await;
        let id = world.publish_body(body).await;
        world
            .until("it has ended", async || world.state(id).await.is_some_and(|state| state != LeadState::Pending))
            .await;
        let lead = world.show(id).await;
        println!("{preset}: {:?}", lead);
        assert_eq!(lead.state, LeadState::Delivered, "{preset}");
        world.finish(running).await;
    }
}
