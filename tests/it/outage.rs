//! A Postgres that is away as a whole, while leads flow: nothing is lost in the queue, and nothing in hand.

use std::time::Duration;

use crate::support::flowing::{Flowing, SHORT};
use crate::support::servers::{Server, Servers};
use crate::support::{World, amqp_url};

/// The longest pause between two tries of a transaction is 5 s, half as much again by chance; a try has 3 s; and a moment to catch up.
const BACK: Duration = Duration::from_secs(15);

/// A batch that cannot be accepted is held for 20 s, and given back at the next try.
const LONGER_THAN_HELD: Duration = Duration::from_secs(20);

/// A world with a queue that drops what was delivered more than three times.
async fn world_at(postgres: &Server) -> World {
    let world = World::on(&amqp_url(), postgres.url()).await;
    world.broker.limit_deliveries(2).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_outlive_a_postgres_that_is_frozen_for_longer_than_every_timeout_and_then_killed() {
    let postgres = Servers::postgres().await;
    let flowing = Flowing::start(world_at(&postgres).await, &SHORT).await;
    let struck = flowing.strikes();
    postgres.pause().await;
    // Connections that are open have no answer; new ones are taken by the kernel, and have none either.
    flowing.until_blamed("postgres", &["no answer within 3s", "pool timed out"]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    postgres.resume().await;
    flowing.comes_back(struck, BACK).await;
    let struck = flowing.strikes();
    postgres.kill().await;
    flowing.until_blamed("postgres", &["Postgres cannot be reached"]).await;
    postgres.start().await;
    flowing.comes_back(struck, BACK).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgres_drops_nothing_from_a_queue_with_a_delivery_limit_of_two() {
    let postgres = Servers::postgres().await;
    let flowing = Flowing::start(world_at(&postgres).await, &SHORT).await;
    let struck = flowing.strikes();
    postgres.stop().await;
    flowing.until_blamed("postgres", &["Postgres cannot be reached"]).await;
    tokio::time::sleep(LONGER_THAN_HELD).await;
    // Each time that they return counts as a delivery.
    flowing.worker.until_said("messages return to their queue").await;
    postgres.start().await;
    flowing.comes_back(struck, BACK).await;
    flowing.finish().await;
}
