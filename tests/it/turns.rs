//! Who goes first: of leads that wait for the same places.

use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::ledger::{LeadState, OnLock};
use leadpost::sandbox::{Entry, Fault};
use uuid::Uuid;

use crate::support::scene::arrival;
use crate::support::{DEADLINE, World};

#[tokio::test(flavor = "multi_thread")]
async fn retries_that_are_due_and_fresh_leads_do_not_starve_each_other() {
    for concurrency in [1, 2] {
        let mut world = World::new().await;
        world.settings.flow.concurrency = concurrency;
        world.settings.flow.open_after = 10_000;
        world.sandbox.faults().rule("due", Some(1), Fault::status(503));
        let due = world.publish_many("due", 120).await;
        let running = world.start().await;
        world.until("all have met it", async || world.number("select count(*) from attempts").await == 120).await;
        running.stop().await;
        world.pass(Duration::from_secs(60)).await;
        let fresh = world.publish_many("fresh", 120).await;
        world.sandbox.journal().clear();
        world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(4));
        let running = world.start().await;
        world.until_count(LeadState::Delivered, 240).await;

        let order: Vec<bool> = world.sandbox.journal().posts().iter().map(is_fresh).collect();
        assert_eq!(order.len(), due.len() + fresh.len());
        // From when both kinds are there to when one of them is used up.
        let from = order.iter().position(|fresh| *fresh).unwrap();
        let last = |kind: bool| order.iter().rposition(|fresh| *fresh == kind).unwrap();
        let both = order.get(from..last(true).min(last(false))).unwrap();
        assert!(both.len() >= 60, "one kind was through before the other began: {order:?}");
        for (at, some) in both.chunks_exact(20).enumerate() {
            let fresh = some.iter().filter(|fresh| **fresh).count();
            assert!(
                (2..=18).contains(&fresh),
                "concurrency {concurrency}: {fresh} of posts {} and the next 20",
                at * 20
            );
        }
        assert_eq!(running.stop().await, leadpost::worker::Stopped::Cleanly);
        assert!(world.ledger.verify().await.unwrap().holds());
    }
}

fn is_fresh(post: &Entry) -> bool {
    post.email.as_deref().is_some_and(|email| email.starts_with("fresh"))
}

/// Accepts so many leads of this name that nobody has leased: they are due now.
async fn due(world: &World, name: &str, n: usize) {
    let arrivals: Vec<_> =
        (0..n).map(|n| arrival(LeadId(Uuid::new_v4()), &World::lead(&format!("{name}{n}")))).collect();
    world.ledger.accept(arrivals.into(), None, OnLock::Wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_does_not_wait_behind_thousands_of_requeued_leads_and_those_go_on() {
    const REQUEUED: usize = 3_000;
    const RETRIES: usize = 20;
    let mut world = World::new().await;
    world.settings.flow.concurrency = 8;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(5));
    due(&world, "requeued", REQUEUED).await;
    world.pass(Duration::from_secs(3600)).await;
    let running = world.start().await;
    let journal = world.sandbox.journal();
    journal.wait_for(|pages| pages.counts().posts >= 100, DEADLINE).await.unwrap();
    due(&world, "retry", RETRIES).await;
    let before = journal.counts().posts as usize;
    world.until_count(LeadState::Delivered, (REQUEUED + RETRIES) as i64).await;

    let posts = journal.posts();
    let is_retry = |post: &Entry| post.email.as_deref().is_some_and(|email| email.starts_with("retry"));
    let last = posts.iter().rposition(is_retry).unwrap() + 1;
    assert!(last <= before + 400, "the last retry was post {last}; they fell due at post {before}");
    let served = &posts[before..last];
    let others = served.iter().filter(|post| !is_retry(post)).count();
    assert!(others >= RETRIES / 2, "{others} requeued leads while the retries were served");
    world.finish(running).await;
}
