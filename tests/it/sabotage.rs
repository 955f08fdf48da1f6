//! The checker is tested itself: a worker that breaks a rule on purpose must be reported, and an honest one in the same scene must not.

use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use uuid::Uuid;

use crate::support::books::Audit;
use crate::support::{Process, World};

/// Ends them, however it takes that, and waits until what they posted has ended.
async fn end(world: &World, workers: [Process; 2]) {
    for mut worker in workers {
        worker.signal("KILL");
        worker.ended().await;
    }
    until_quiet(world).await;
}

async fn until_quiet(world: &World) {
    world
        .until("the API is at rest", async || world.sandbox.journal().posts().iter().all(|post| post.ended.is_some()))
        .await;
}

fn posts(world: &World) -> usize {
    world.sandbox.journal().posts().len()
}

/// The leads that are leased.
async fn held(world: &World) -> Vec<Uuid> {
    let sql = "select id from leads where lease is not null";
    sqlx::query_scalar(sql).fetch_all(&world.database.pool).await.unwrap()
}

/// Lets no lead wait for its time.
async fn due(world: &World) {
    world.hurry().await;
}

/// The same scene with an honest worker has no such finding.
fn found(findings: &[String], words: &str, audit: &Audit) {
    assert!(findings.iter().any(|finding| finding.contains(words)), "not found: {words}\n{audit:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checker_finds_a_message_that_was_acknowledged_before_its_commit_and_lost() {
    for honest in [true, false] {
        let world = World::new().await;
        world.publish_many("lead", 3).await;
        let faults = if honest { "crash_at=accepting" } else { "break=commit-before-ack,crash_at=accepting" };
        let mut worker = world.worker_with(&[], &[("LEADPOST_FAULTS", faults)]).await;
        assert_eq!(worker.ended().await, None, "{}", worker.said());
        let next = world.worker(&[]).await;
        let later = world.publish("later").await;
        world.until_delivered(&[later]).await;
        world.until("the queue is empty", async || world.broker.depth().await == 0).await;
        next.stop().await;
        let audit = world.check_all().await;
        assert_eq!(audit.holds(), honest, "{audit:#?}");
        if !honest {
            found(&audit.lost, "is not in the ledger", &audit);
            assert!(audit.doubles.is_empty() && audit.wrong.is_empty(), "{audit:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checker_finds_a_lead_that_two_workers_post_for_want_of_a_lease() {
    for honest in [true, false] {
        let world = World::new().await;
        world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(300));
        world.publish_many("lead", 8).await;
        let rule = if honest { Vec::new() } else { vec![("LEADPOST_FAULTS", "break=lease")] };
        let one = world.worker_with(&["--concurrency", "4"], &rule).await;
        let two = world.worker_with(&["--concurrency", "4"], &rule).await;
        let posts_enough = if honest { 8 } else { 17 };
        world.until("leads are posted", async || posts(&world) >= posts_enough).await;
        if honest {
            world.until_count(LeadState::Delivered, 8).await;
        }
        end(&world, [one, two]).await;
        let audit = world.audit().await;
        assert_eq!(audit.holds(), honest, "{audit:#?}");
        if !honest {
            found(&audit.doubles, "processed", &audit);
            found(&audit.wrong, "do not explain the posts", &audit);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checker_finds_a_lead_that_a_worker_settled_without_its_lease() {
    for honest in [true, false] {
        let world = World::new().await;
        world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(5));
        world.publish_many("lead", 12).await;
        let rule = if honest { Vec::new() } else { vec![("LEADPOST_FAULTS", "break=fence")] };
        // It has more in hand than it posts at a time.
        let frozen = world.worker_with(&["--concurrency", "1"], &rule).await;
        world.until("it posts one of those in hand", async || held(&world).await.len() > 1 && posts(&world) == 1).await;
        // Told to stop, it will hand back what it has not begun. By then, that is not its own any more.
        frozen.signal("TERM");
        frozen.until_said("told to stop").await;
        frozen.signal("STOP");
        world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(2));
        until_quiet(&world).await;
        let not_begun: Vec<Uuid> = held(&world).await.into_iter().filter(|id| world.posts(LeadId(*id)) == 0).collect();
        world.expire_leases().await;
        assert!(!not_begun.is_empty());
        let other = world.worker_with(&["--concurrency", "16"], &[]).await;
        world
            .until("another posts what it had not begun", async || {
                due(&world).await;
                not_begun.iter().all(|id| world.posts(LeadId(*id)) == 1)
            })
            .await;
        frozen.signal("CONT");
        world
            .until("nothing is left", async || {
                world.hurry().await;
                let left = world.number("select count(*) from leads where state = 'pending'").await;
                left == 0 || !honest && world.sandbox.journal().posts().iter().any(|post| post.overlapped)
            })
            .await;
        end(&world, [frozen, other]).await;
        let audit = world.audit().await;
        assert_eq!(audit.holds(), honest, "{audit:#?}");
        if !honest {
            found(&audit.doubles, "posted twice at a time", &audit);
        }
    }
}
