//! A Postgres that is away as a whole, while leads flow: nothing is lost in the queue, and nothing in hand.

use std::time::Duration;

use leadpost::ledger::LeadState;
use leadpost::sandbox::Fault;

use crate::support::flowing::{Flowing, SHORT};
use crate::support::servers::{Server, Servers};
use crate::support::{Message, World, amqp_url};

/// The longest pause between two tries of a transaction is 5 s, half as much again by chance; a try has 3 s; and a moment to catch up.
const BACK: Duration = Duration::from_secs(15);

/// How long a batch that cannot be accepted is held, instead of 20 s.
const HOLD: Duration = Duration::from_secs(1);
const HOLD_BRIEFLY: [(&str, &str); 1] = [("LEADPOST_FAULTS", "hold_ms=1000")];

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
    flowing.comes_back(struck, postgres.resume(), BACK).await;
    let struck = flowing.strikes();
    postgres.kill().await;
    flowing.until_blamed("postgres", &["Postgres cannot be reached"]).await;
    flowing.comes_back(struck, postgres.start(), BACK).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgres_drops_nothing_from_a_queue_with_a_delivery_limit_of_two() {
    let postgres = Servers::postgres().await;
    let flowing = Flowing::start(world_at(&postgres).await, &[SHORT.as_slice(), &HOLD_BRIEFLY].concat()).await;
    let struck = flowing.strikes();
    postgres.stop().await;
    // Whatever failed first, and for whatever reason: health says how things are now.
    flowing.until_blamed("postgres", &["Postgres cannot be reached"]).await;
    // Each time that they return counts as a delivery.
    flowing.worker.until_said("messages return to their queue").await;
    tokio::time::sleep(3 * HOLD).await;
    flowing.comes_back(struck, postgres.start(), BACK).await;
    flowing.were_given_back_once().await;
    flowing.finish().await;
}

/// From now on nothing can be inserted into this table.
async fn refuse_inserts(world: &World, table: &str, code: &str) {
    let refuse = format!(
        "create function refuse() returns trigger language plpgsql \
         as $$ begin raise 'no space left' using errcode = '{code}'; end $$"
    );
    world.execute(&refuse).await;
    world.execute(&format!("create trigger refuse before insert on {table} execute function refuse()")).await;
}

/// For a while nothing can be inserted into this table, though all others, and so heartbeats, can be written. More messages are
/// delivered than can be accepted without it: those are given back once, and not consumed again until it is over.
async fn outlives_refused_inserts(table: &str) {
    const FEW: [(&str, &str); 3] = [
        ("LEADPOST__AMQP__PREFETCH", "10"),
        ("LEADPOST__FLOW__CONCURRENCY", "5"),
        // Twice as many may wait to be settled.
        ("LEADPOST__FLOW__BATCH", "2"),
    ];
    let world = World::new().await;
    world.broker.limit_deliveries(2).await;
    let flowing = Flowing::stand(world, &[SHORT.as_slice(), &HOLD_BRIEFLY, &FEW].concat()).await;
    let world = &flowing.world;
    let mut ids = vec![world.publish("first").await];
    world.until_delivered(&ids).await;
    refuse_inserts(world, table, "53100").await;
    let struck = flowing.strikes();
    ids.extend(world.publish_many("lead", 20).await);
    flowing.until_blamed("postgres", &["no space left"]).await;
    let left = async || ids.len() as i64 - world.number("select count(*) from leads").await;
    world
        .until("the others are in the queue again", async || i64::from(world.broker.depth().await) == left().await)
        .await;
    tokio::time::sleep(4 * HOLD).await;
    flowing.until_blamed("postgres", &["no space left"]).await;
    assert!(left().await > 5, "{} are left", left().await);
    assert_eq!(i64::from(world.broker.depth().await), left().await, "messages were consumed, or lost");
    flowing.was_at_rest(&struck);
    world.execute(&format!("drop trigger refuse on {table}")).await;
    world.until_delivered(&ids).await;
    flowing.were_given_back_once().await;
    for id in &ids {
        assert_eq!((world.posts(*id), world.story(*id).await), (1, vec!["delivered 201".to_owned()]));
    }
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_cannot_be_inserted_drop_nothing_from_a_queue_with_a_delivery_limit_of_two() {
    outlives_refused_inserts("leads").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_cannot_be_inserted_drop_nothing_from_a_queue_with_a_delivery_limit_of_two() {
    outlives_refused_inserts("other_attempts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_cannot_be_put_on_record_drops_nothing_from_a_queue_with_a_delivery_limit_of_two() {
    let world = World::new().await;
    world.broker.limit_deliveries(2).await;
    world.sandbox.faults().rule("refused", Some(1), Fault::status(422));
    let flowing = Flowing::stand(world, &[SHORT.as_slice(), &HOLD_BRIEFLY].concat()).await;
    let world = &flowing.world;
    let refused = world.publish("refused").await;
    world.until_state(refused, LeadState::Rejected).await;
    refuse_inserts(world, "replays", "53100").await;
    // Accepted by themselves, the others would get through.
    world.broker.publish(Message::new(refused, &World::lead("mended"))).await;
    let others = world.publish_many("other", 5).await;
    flowing.until_blamed("postgres", &["no space left"]).await;
    let messages = world.broker.confirmed().len() as i64;
    world
        .until("all that was not accepted is in the queue again", async || {
            i64::from(world.broker.depth().await) + world.number("select count(*) from leads").await == messages
        })
        .await;
    let depth = world.broker.depth().await;
    tokio::time::sleep(4 * HOLD).await;
    flowing.until_blamed("postgres", &["no space left"]).await;
    assert_eq!(world.broker.depth().await, depth, "messages were consumed, or lost");
    world.execute("drop trigger refuse on replays").await;
    world.until_delivered(&others).await;
    world.until_delivered(&[refused]).await;
    assert_eq!(world.story(refused).await, ["rejected 422", "delivered 201"]);
    flowing.were_given_back_once().await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_postgres_refuses_for_good_is_kept_aside_and_its_neighbours_are_delivered() {
    let world = World::new().await;
    world.broker.limit_deliveries(2).await;
    let good = world.publish_many("before", 3).await;
    let bad = world.publish("refused").await;
    let after = world.publish_many("after", 3).await;
    let refuse = "create function refuse() returns trigger language plpgsql \
                  as $$ begin if convert_from(new.body, 'utf8') like '%refused%' then raise 'not this one'; end if; return new; end $$";
    world.execute(refuse).await;
    world.execute("create trigger refuse before insert on leads for each row execute function refuse()").await;
    let flowing = Flowing::stand(world, &[SHORT.as_slice(), &HOLD_BRIEFLY].concat()).await;
    let world = &flowing.world;
    world.until_delivered(&[good, after].concat()).await;
    world.until("it is set aside", async || world.number("select count(*) from aside").await == 1).await;
    assert_eq!((world.state(bad).await, world.posts(bad), world.broker.depth().await), (None, 0, 0));
    let kept: Vec<u8> = sqlx::query_scalar("select body from aside").fetch_one(&world.database.pool).await.unwrap();
    assert_eq!(kept, World::lead("refused").as_bytes());
    world.execute("drop trigger refuse on leads").await;
    world.until_delivered(&[bad]).await;
    assert_eq!(world.story(bad).await, ["delivered 201"]);
    flowing.finish().await;
}
