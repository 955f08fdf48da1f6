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

/// What the worker uses when it has tried to connect so often more.
async fn after(flowing: &Flowing, proxy: &Proxy, tries: u64) -> Usage {
    let last = proxy.notes().connections + tries;
    flowing.world.until(&format!("{tries} tries more"), async || proxy.notes().connections >= last).await;
    flowing.worker.usage()
}

/// A neighbour, and how it is given up and tried again.
struct Silent {
    neighbour: &'static str,
    words: &'static str,
    /// So many tries after the second the worker is as large as it was then.
    tries: u64,
    /// But for so many threads or descriptors of tries that are under way at the same time.
    more: usize,
    /// Within which time it is back.
    back: Duration,
}

impl Silent {
    async fn outlives(self, world: World, proxy: Proxy) {
        let flowing = Flowing::start(world, &IMPATIENT).await;
        let struck = flowing.strikes();
        proxy.silence();
        proxy.cut();
        flowing.until_blamed(self.neighbour, &[self.words]).await;
        let early = after(&flowing, &proxy, 1).await;
        let late = after(&flowing, &proxy, self.tries).await;
        assert!(late.threads <= early.threads + self.more, "{early:?}, then {late:?}");
        assert!(late.descriptors <= early.descriptors + self.more, "{early:?}, then {late:?}");
        flowing.comes_back(struck, async { proxy.heal() }, self.back).await;
        flowing.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_grow_while_rabbitmq_says_nothing_and_comes_back_when_it_speaks() {
    let mut world = World::new().await;
    let proxy = world.proxy_rabbitmq(1).await;
    // The pauses between tries double, to 4 s after the fifth and half as much again by chance; so there are few.
    let back = Duration::from_secs(15);
    let silent = Silent { neighbour: "rabbitmq", words: "RabbitMQ did not connect", tries: 3, more: 1, back };
    silent.outlives(world, proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_grow_while_postgres_says_nothing_and_comes_back_when_it_speaks() {
    let mut world = World::new().await;
    let proxy = world.proxy_postgres(1).await;
    // The longest pause between two tries is 5 s, and half as much again by chance.
    let back = Duration::from_secs(15);
    let silent = Silent { neighbour: "postgres", words: "pool timed out", tries: 20, more: 3, back };
    silent.outlives(world, proxy).await;
}
