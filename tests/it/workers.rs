//! Workers that are killed, frozen and stopped while leads flow, one and several of them.

use std::time::Duration;

use leadpost::sandbox::Entry;

use crate::support::books::Audit;
use crate::support::{Process, World};

/// The shortest lease that the settings below allow: longer than two posts, a log-in and 15 s.
const LEASE: Duration = Duration::from_millis(16_000);

/// What makes it allowed.
const SHORT: [(&str, &str); 4] = [
    ("LEADPOST__FLOW__LEASE_MS", "16000"),
    ("LEADPOST__DESTINATION__REQUEST__TIMEOUT_MS", "400"),
    ("LEADPOST__DESTINATION__REQUEST__CONNECT_TIMEOUT_MS", "200"),
    ("LEADPOST__DESTINATION__AUTH__TIMEOUT_MS", "100"),
];

/// So long after its end a lease is found to have run out: the period of upkeep, and some.
const FOUND: Duration = Duration::from_secs(12);

async fn worker(world: &World, concurrency: &str) -> Process {
    world.worker_with(&["--concurrency", concurrency], &SHORT).await
}

fn posts(world: &World) -> Vec<Entry> {
    world.sandbox.journal().posts()
}

async fn until_posts(world: &World, n: usize) {
    world.until(&format!("{n} posts"), async || posts(world).len() >= n).await;
}

/// Each lead that was confirmed has come to an end, and the records agree.
async fn until_accounted_for(world: &World, workers: Vec<Process>) -> Audit {
    let leads = world.broker.confirmed().len();
    let ended = async {
        while world.number("select count(*) from leads where state <> 'pending'").await != i64::try_from(leads).unwrap()
        {
            world.hurry().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(LEASE + FOUND, ended).await;
    assert!(in_time.is_ok(), "leads of a worker that is gone were not found in time");
    for worker in workers {
        worker.stop().await;
    }
    let audit = world.check_all().await;
    assert!(audit.holds(), "{audit:#?}");
    let of = |state: &str| audit.states.get(state).copied().unwrap_or(0);
    assert_eq!(of("delivered") + of("duplicate"), audit.published as u64, "{audit:#?}");
    assert!(audit.again <= audit.uncertain, "every further post has a doubt on record: {audit:#?}");
    audit
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_at_random_loses_nothing() {
    const ROUNDS: u64 = 8;
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(5));
    // The times are drawn, and the same in each run.
    let mut random = fastrand::Rng::with_seed(4);
    for round in 0..ROUNDS {
        let (before, leads) = (posts(&world).len(), 40);
        world.publish_many(&format!("round{round}-"), leads).await;
        let mut worker = worker(&world, "8").await;
        let pause = Duration::from_millis(random.u64(0..60));
        world.until("it posts", async || posts(&world).len() > before).await;
        tokio::time::sleep(pause).await;
        worker.signal("KILL");
        worker.ended().await;
        world.expire_leases().await;
    }
    let last = worker(&world, "8").await;
    let audit = until_accounted_for(&world, vec![last]).await;
    assert!(audit.again > 0, "it was killed in the middle of posts: {audit:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_workers_one_is_killed_one_frozen_past_its_lease_and_one_stopped_and_nothing_is_lost() {
    const LEADS: usize = 240;
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(100));
    world.publish_many("lead", LEADS).await;
    let (mut killed, frozen, stopped) = tokio::join!(worker(&world, "4"), worker(&world, "4"), worker(&world, "4"));
    until_posts(&world, 40).await;
    frozen.signal("STOP");
    killed.signal("KILL");
    killed.ended().await;
    let frozen_at = tokio::time::Instant::now();
    stopped.stop().await;
    assert!(posts(&world).len() < LEADS, "leads are left");

    // Nobody else is there to see that the leases of the two run out.
    let next = worker(&world, "4").await;
    world.publish_many("more", 20).await;
    world
        .until("all but what the two hold has come to an end", async || {
            world.number("select count(*) from leads where state = 'pending' and lease is null").await == 0
                && world.broker.depth().await == 0
        })
        .await;
    tokio::time::sleep_until(frozen_at + LEASE).await;
    world
        .until("what they held was found", async || {
            world.number("select count(*) from leads where lease is not null").await == 0
        })
        .await;
    let before = posts(&world).len();
    frozen.signal("CONT");
    // It settles too late, and takes part again.
    frozen.until_said("settled too late").await;
    world.publish_many("last", 40).await;
    let audit = until_accounted_for(&world, vec![frozen, next]).await;
    assert!(audit.again > 0, "what was under way was posted again, with its doubt on record");
    assert!(posts(&world).len() >= before + 40);
}
