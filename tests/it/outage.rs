//! A Postgres that is away as a whole, while leads flow: nothing is lost in the queue, and nothing in hand.

use std::time::Duration;

use crate::support::flowing::{Flowing, SHORT};
use crate::support::servers::Servers;
use crate::support::{World, amqp_url};

/// The longest pause between two tries of a transaction is 5 s, half as much again by chance; a try has 3 s.
const BACK: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn leads_outlive_a_restart_of_postgres() {
    let postgres = Servers::postgres().await;
    let world = World::at(&amqp_url(), postgres.url()).await;
    let flowing = Flowing::start(world, &SHORT).await;
    let struck = flowing.strikes();
    postgres.stop().await;
    flowing.until_blamed("postgres", &["Postgres cannot be reached"]).await;
    postgres.start().await;
    flowing.comes_back(struck, BACK).await;
    flowing.finish().await;
}
