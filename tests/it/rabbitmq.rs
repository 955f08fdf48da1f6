//! A RabbitMQ that fails, in each of its ways, while leads flow: the worker says so, does not hammer at it, and comes back by itself.

use std::time::Duration;

use crate::support::flowing::{Flowing, SHORT};
use crate::support::servers::Servers;
use crate::support::{World, database_url};

/// The longest pause between two tries to connect is 15 s, half as much again by chance; and a moment to catch up.
const BACK: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread")]
async fn leads_outlive_a_restart_of_rabbitmq() {
    let rabbitmq = Servers::rabbitmq().await;
    let world = World::at(rabbitmq.url(), &database_url()).await;
    let flowing = Flowing::start(world, &SHORT).await;
    let struck = flowing.strikes();
    rabbitmq.stop().await;
    flowing.until_blamed("rabbitmq", &["RabbitMQ did not connect"]).await;
    rabbitmq.start().await;
    flowing.comes_back(struck, BACK).await;
    flowing.finish().await;
}
