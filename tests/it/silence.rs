//! A neighbour that takes connections and says nothing, try after try: the worker does not grow by them.

use std::time::Duration;

use crate::support::flowing::Flowing;
use crate::support::proxy::Proxy;
use crate::support::{Usage, World};

/// Timeouts as short as tries are to be many.
const IMPATIENT: [(&str, &str); 4] = [
    ("LEADPOST__AMQP__TIMEOUT_MS", "300"),
    ("LEADPOST__POSTGRES__CONNECT_TIMEOUT_MS", "300"),
    ("LEADPOST__POSTGRES__STATEMENT_TIMEOUT_MS", "300"),
    ("LEADPOST__POSTGRES__LOCK_TIMEOUT_MS", "200"),
];

/// Waits until it has been tried to connect so often since.
async fn until_tried(flowing: &Flowing, proxy: &Proxy, before: u64, times: u64) -> Usage {
    flowing.world.until(&format!("{times} tries"), async || proxy.notes().connections >= before + times).await;
    flowing.worker.usage()
}

/// Tries later it is as large as after the second; with one thread or descriptor more, as one of them is under way.
async fn does_not_grow(world: World, proxy: Proxy, (neighbour, words): (&str, &str), tries: u64, back: Duration) {
    const MORE: usize = 1;
    let flowing = Flowing::start(world, &IMPATIENT).await;
    let (struck, before) = (flowing.strikes(), proxy.notes().connections);
    proxy.silence();
    proxy.cut();
    flowing.until_blamed(neighbour, &[words]).await;
    let early = until_tried(&flowing, &proxy, before, 3).await;
    let late = until_tried(&flowing, &proxy, before, tries).await;
    assert!(late.threads <= early.threads + MORE, "{early:?}, then {late:?}");
    assert!(late.descriptors <= early.descriptors + MORE, "{early:?}, then {late:?}");
    proxy.heal();
    flowing.comes_back(struck, back).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_grow_while_rabbitmq_says_nothing_and_comes_back_when_it_speaks() {
    let mut world = World::new().await;
    let proxy = world.proxy_rabbitmq(1).await;
    // The pauses between tries double: 8 s in all until the sixth and 8 s after it, half as much again by chance; so there are few.
    does_not_grow(world, proxy, ("rabbitmq", "RabbitMQ did not connect"), 6, Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_grow_while_postgres_says_nothing_and_comes_back_when_it_speaks() {
    let mut world = World::new().await;
    let proxy = world.proxy_postgres(1).await;
    // The longest pause between two tries is 5 s, and half as much again by chance.
    does_not_grow(world, proxy, ("postgres", "pool timed out"), 15, Duration::from_secs(15)).await;
}
