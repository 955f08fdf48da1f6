//! The checker is no ornament: a worker that breaks one of the rules is found out by it, and by nothing else here.

use std::time::Duration;

use leadpost::lead::LeadId;
use uuid::Uuid;

use crate::support::books::Audit;
use crate::support::{Process, World};

/// A worker without this rule.
async fn without(world: &World, rule: &str, more: &str) -> Process {
    let faults = format!("break={rule}{more}");
    world.worker_with(&["--concurrency", "4"], &[("LEADPOST_FAULTS", &faults)]).await
}

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
    world.execute("update leads set next_attempt_at = now() where state = 'pending' and lease is null").await;
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
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(300));
    world.publish_many("lead", 8).await;
    let one = without(&world, "lease", "").await;
    let two = without(&world, "lease", "").await;
    world.until("a lead is posted twice", async || world.sandbox.journal().counts().posts > 16).await;
    end(&world, [one, two]).await;
    let audit = world.audit().await;
    found(&audit.doubles, "processed", &audit);
    found(&audit.wrong, "do not explain the posts", &audit);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checker_finds_a_lead_that_a_worker_settled_without_its_lease() {
    for honest in [true, false] {
        let world = World::new().await;
        world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(2));
        world.publish_many("lead", 12).await;
        let rule = if honest { Vec::new() } else { vec![("LEADPOST_FAULTS", "break=fence")] };
        // It has more in hand than it posts at a time.
        let frozen = world.worker_with(&["--concurrency", "1"], &rule).await;
        world.until("it posts one of those in hand", async || held(&world).await.len() > 1 && posts(&world) == 1).await;
        // Told to stop, it will hand back what it has not begun. By then, that is not its own any more.
        frozen.signal("TERM");
        frozen.until_said("told to stop").await;
        frozen.signal("STOP");
        until_quiet(&world).await;
        let not_begun: Vec<Uuid> = held(&world).await.into_iter().filter(|id| world.posts(LeadId(*id)) == 0).collect();
        world.execute("update leads set next_attempt_at = now() where lease is not null").await;
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
                let sql = "update leads set next_attempt_at = now() where state = 'pending' and lease is null";
                world.execute(sql).await;
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
