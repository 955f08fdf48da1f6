//! A RabbitMQ that fails, in each of its ways, while leads flow: the worker says so, does not hammer at it, and comes back by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leadpost::config::Secret;
use leadpost::ledger::LeadState;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::flowing::{Flowing, SHORT};
use crate::support::proxy::Direction::Down;
use crate::support::proxy::Fault;
use crate::support::servers::{Server, Servers};
use crate::support::{World, amqp_url, database_url};

/// The longest pause between two tries to connect is 15 s, half as much again by chance; and a moment to catch up.
const BACK: Duration = Duration::from_secs(25);

/// After what lasts for an instant the first pause is enough, 250 ms and half as much again; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(8);

/// An election takes a quorum queue seconds at most.
const ELECTED: Duration = Duration::from_secs(10);

async fn world_at(rabbitmq: &Server) -> World {
    World::on(rabbitmq.url(), &database_url()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_outlive_a_restart_of_rabbitmq() {
    let rabbitmq = Servers::rabbitmq().await;
    let flowing = Flowing::start(world_at(&rabbitmq).await, &SHORT).await;
    let struck = flowing.strikes();
    rabbitmq.stop().await;
    flowing.until_blamed("rabbitmq", &["RabbitMQ did not connect"]).await;
    flowing.comes_back(struck, rabbitmq.start(), BACK).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_outlive_a_rabbitmq_that_closes_all_connections() {
    let rabbitmq = Servers::rabbitmq().await;
    let flowing = Flowing::start(world_at(&rabbitmq).await, &SHORT).await;
    let struck = flowing.strikes();
    // It is over in a moment, which nobody may see on a busy machine; but in a longer one each time.
    let again_and_again = async {
        loop {
            rabbitmq.ctl(&["close_all_connections", "all must go"]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = flowing.until_blamed("rabbitmq", &["CONNECTION_FORCED"]) => {}
        () = again_and_again => {}
    }
    flowing.comes_back(struck, async {}, SOON).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_rabbitmq_is_given_up_after_two_heartbeats_and_leads_flow_when_it_thaws() {
    /// Two heartbeats of 2 s, and what a busy machine needs to notice.
    const NOTICED: Duration = Duration::from_secs(9);
    let rabbitmq = Servers::rabbitmq().await;
    let flowing = Flowing::start(world_at(&rabbitmq).await, &SHORT).await;
    let struck = flowing.strikes();
    let frozen_at = Instant::now();
    rabbitmq.pause().await;
    flowing.until_blamed("rabbitmq", &["RabbitMQ did not"]).await;
    assert!(frozen_at.elapsed() < NOTICED, "noticed after {:?}", frozen_at.elapsed());
    // It accepts connections, as the kernel does that, and says nothing.
    flowing.until_blamed("rabbitmq", &["RabbitMQ did not connect within 1s"]).await;
    flowing.comes_back(struck, rabbitmq.resume(), BACK).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_stops_publishers_and_not_the_worker() {
    const BACKLOG: usize = 120;
    const FEW: [(&str, &str); 2] = [("LEADPOST__AMQP__PREFETCH", "10"), ("LEADPOST__FLOW__CONCURRENCY", "5")];
    let rabbitmq = Servers::rabbitmq().await;
    let world = world_at(&rabbitmq).await;
    world.publish_many("backlog", BACKLOG).await;
    rabbitmq.alarm(true).await;
    // More are delivered only as the first are acknowledged.
    let mut flowing = Flowing::stand(world, &[SHORT.as_slice(), &FEW].concat()).await;
    flowing.world.until_count(LeadState::Delivered, BACKLOG as i64).await;
    flowing.publish();
    let struck = flowing.strikes();
    // Longer than two heartbeats, and than any timeout of the worker's.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert_eq!(flowing.confirmed(), BACKLOG, "the alarm must stop publishers");
    let (status, report) = flowing.readyz().await;
    assert_eq!((status, &report["rabbitmq"]["detail"]), (200, &"consuming".into()), "{report:#}");
    flowing.comes_back(struck, rabbitmq.alarm(false), SOON).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_queue_was_deleted_waits_for_it_and_goes_on_with_the_next() {
    let mut flowing = Flowing::start(World::new().await, &SHORT).await;
    // What is in a queue that somebody deletes is gone; that is nothing a worker could help.
    flowing.drain().await;
    let struck = flowing.strikes();
    // It is soon over, so it is watched from before: RabbitMQ cancels the consumer.
    tokio::join!(
        flowing.until_blamed("rabbitmq", &["cancelled the consumer", "there is no queue"]),
        flowing.world.broker.delete(),
    );
    flowing.until_blamed("rabbitmq", &["there is no queue"]).await;
    assert!(flowing.worker.said().contains("it cancelled the consumer"), "{}", flowing.worker.said());
    // Missing for a while, with several tries.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    flowing.publish();
    flowing.comes_back(struck, flowing.world.broker.declare(&[]), BACK).await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_a_bad_ack_has_closed_is_replaced_and_no_lead_is_posted_twice() {
    const ONE: [(&str, &str); 2] = [("LEADPOST_FAULTS", "bad_ack"), ("LEADPOST__FLOW__CONCURRENCY", "1")];
    let mut world = World::new().await;
    let proxy = world.proxy_rabbitmq(4).await;
    let mut flowing = Flowing::stand(world, &[SHORT.as_slice(), &ONE].concat()).await;
    flowing.until_ready().await;
    let struck = flowing.strikes();
    // While the first are posted the others are in hand, and not acknowledged.
    flowing.world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(3));
    // It is soon over, so nobody gets a new connection before it was seen.
    proxy.refuse();
    flowing.world.publish_many("lead", 5).await;
    // It is told why, unless it finds out by the next acknowledgement.
    let words = ["PRECONDITION_FAILED", "the channel had ended"];
    flowing.until_blamed("rabbitmq", &[words[0], words[1], "RabbitMQ did not connect"]).await;
    let said = flowing.worker.said();
    assert!(words.iter().any(|words| said.contains(words)), "{said}");
    flowing.world.sandbox.tune(|tuning| tuning.latency = Duration::ZERO);
    flowing.publish();
    flowing.comes_back(struck, async { proxy.heal() }, BACK).await;
    flowing.were_given_back_once().await;
    flowing.finish_without_doubt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_closed_over_acks_that_came_too_late_is_replaced_and_its_leads_are_recognized() {
    let (rabbitmq, postgres) = Servers::both().await;
    rabbitmq.tune("consumer_timeout", 500).await;
    rabbitmq.tune("channel_tick_interval", 200).await;
    let world = World::on(rabbitmq.url(), postgres.url()).await;
    let flowing = Flowing::start(world, &SHORT).await;
    let struck = flowing.strikes();
    // Nothing can be committed, and so nothing acknowledged.
    postgres.pause().await;
    flowing.worker.until_said("PRECONDITION_FAILED").await;
    // Channels that are opened from now on have time enough.
    rabbitmq.untune().await;
    flowing.comes_back(struck, postgres.resume(), BACK).await;
    flowing.finish().await;
}

/// The consumer of this world's queue, as RabbitMQ has it: its tag, its channel's process, and the number of that channel.
async fn consumer(rabbitmq: &Server, world: &World) -> (String, String, u16) {
    let said =
        rabbitmq.ctl(&["list_consumers", "--no-table-headers", "queue_name", "consumer_tag", "channel_pid"]).await;
    let own: Vec<&str> = said.lines().filter(|line| line.starts_with(&world.broker.queue)).collect();
    let [line] = own[..] else { panic!("not one consumer: {said}") };
    // In whichever order.
    let (pids, tags): (Vec<&str>, Vec<&str>) = line.split('\t').skip(1).partition(|word| word.starts_with('<'));
    let (pid, tag) = (pids[0], tags[0]);
    let said = rabbitmq.ctl(&["list_channels", "--no-table-headers", "pid", "number"]).await;
    let number = said.lines().find_map(|line| line.strip_prefix(pid)).unwrap_or_else(|| panic!("{said}"));
    let number = number.trim().parse().unwrap();
    (tag.to_owned(), pid.to_owned(), number)
}

/// What RabbitMQ sends when it cancels a consumer by itself: `basic.cancel`, to which it wants no answer.
fn cancel(channel: u16, tag: &str) -> Vec<u8> {
    let method = [&[0, 60, 0, 30, u8::try_from(tag.len()).unwrap()], tag.as_bytes(), &[1]].concat();
    let size = u32::try_from(method.len()).unwrap();
    [&[1], &channel.to_be_bytes()[..], &size.to_be_bytes(), &method, &[0xce]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_rabbitmq_cancels_is_replaced_and_no_lead_is_lost_or_posted_twice() {
    let rabbitmq = Servers::rabbitmq().await;
    let mut world = world_at(&rabbitmq).await;
    let proxy = world.proxy_rabbitmq(4).await;
    let flowing = Flowing::start(world, &SHORT).await;
    let (tag, former, channel) = consumer(&rabbitmq, &flowing.world).await;
    let struck = flowing.strikes();
    // It is soon over, so nobody gets a new connection before it was seen.
    proxy.refuse();
    // Behind the last frame of a lead; the queue is there, and goes on delivering.
    proxy.set_times(Down, Fault::slip_in(b"\"assistantId\":61}\xce", cancel(channel, &tag)), 1);
    flowing.until_blamed("rabbitmq", &["cancelled the consumer", "RabbitMQ did not connect"]).await;
    assert!(flowing.worker.said().contains("it cancelled the consumer"), "{}", flowing.worker.said());
    assert_eq!(proxy.notes().struck, 1);
    flowing.comes_back(struck, async { proxy.heal() }, BACK).await;
    assert_ne!(consumer(&rabbitmq, &flowing.world).await.1, former);
    flowing.finish_without_doubt().await;
}

/// A way to RabbitMQ that can fall silent: it takes connections, and says nothing.
struct Door {
    url: String,
    silent: Arc<AtomicBool>,
    knocks: Arc<AtomicUsize>,
    open: Arc<Mutex<CancellationToken>>,
}

impl Door {
    async fn open() -> Self {
        let mut url = url::Url::parse(&amqp_url()).unwrap();
        let behind = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let door = Self { url: url.into(), silent: Arc::default(), knocks: Arc::default(), open: Arc::default() };
        let (silent, knocks, open) = (Arc::clone(&door.silent), Arc::clone(&door.knocks), Arc::clone(&door.open));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                knocks.fetch_add(1, Ordering::Relaxed);
                let (silent, open, behind) =
                    (silent.load(Ordering::Relaxed), open.lock().unwrap().clone(), behind.clone());
                tokio::spawn(open.run_until_cancelled_owned(async move {
                    if silent {
                        std::future::pending::<()>().await;
                    }
                    let mut far = TcpStream::connect(behind).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                }));
            }
        });
        door
    }

    /// Ends all connections; those to come are met with silence, or not.
    fn shut(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
        std::mem::take(&mut *self.open.lock().unwrap()).cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_connections_and_says_nothing_is_given_up_in_time_and_not_hammered_at() {
    let door = Door::open().await;
    let mut world = World::new().await;
    world.settings.amqp.url = Secret::new(door.url.clone());
    let flowing = Flowing::start(world, &SHORT).await;
    let struck = flowing.strikes();
    let (since, before) = (Instant::now(), door.knocks.load(Ordering::Relaxed));
    door.shut(true);
    flowing.until_blamed("rabbitmq", &["RabbitMQ did not connect within 1s"]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One try has a second, and the pauses between them double.
    let knocks = door.knocks.load(Ordering::Relaxed) - before;
    assert!((1..=since.elapsed().as_secs() as usize + 1).contains(&knocks), "{knocks} in {:?}", since.elapsed());
    flowing.comes_back(struck, async { door.shut(false) }, BACK).await;
    flowing.finish().await;
}

/// The node on which the leader of this world's queue is; all nodes have a copy of it.
async fn leader<'a>(cluster: &'a Servers, world: &World) -> &'a Server {
    let said = cluster.ctl(&["list_queues", "--no-table-headers", "name", "leader", "members"]).await;
    let line = said.lines().find(|line| line.starts_with(&world.broker.queue)).unwrap_or_else(|| panic!("{said}"));
    let mut words = line.split('\t').skip(1);
    let (leader, members) = (words.next().unwrap(), words.next().unwrap());
    assert_eq!(members.matches("localhost").count(), cluster.all().len(), "{said}");
    cluster.all().iter().find(|server| server.node() == leader).unwrap_or_else(|| panic!("{said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_flow_on_when_the_node_of_their_queues_leader_dies_and_the_worker_is_connected_to_another() {
    let cluster = Servers::cluster().await;
    // Its leader is where the queue is declared.
    let [other, first, _] = cluster.all() else { panic!("three nodes") };
    let mut world = world_at(first).await;
    assert_eq!(leader(&cluster, &world).await.url(), first.url());
    other.url().clone_into(&mut world.broker.url);
    world.broker.reconnect().await;
    world.settings.amqp.url = Secret::new(other.url());
    let flowing = Flowing::start(world, &SHORT).await;
    let struck = flowing.strikes();
    first.kill().await;
    flowing.comes_back(struck, async {}, ELECTED).await;
    assert_ne!(leader(&cluster, &flowing.world).await.url(), first.url());
    first.start().await;
    flowing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_own_node_dies_says_so_and_comes_back_with_it() {
    let cluster = Servers::cluster().await;
    let [other, first, _] = cluster.all() else { panic!("three nodes") };
    let mut world = world_at(first).await;
    assert_eq!(leader(&cluster, &world).await.url(), first.url());
    // Producers go on at another node.
    other.url().clone_into(&mut world.broker.url);
    world.broker.reconnect().await;
    let flowing = Flowing::start(world, &SHORT).await;
    let struck = flowing.strikes();
    first.kill().await;
    flowing.until_blamed("rabbitmq", &["RabbitMQ did not connect"]).await;
    // It knows one URL only: whoever wants it to go elsewhere gives it one that leads to several nodes.
    let confirmed = flowing.confirmed();
    flowing
        .world
        .until("the queue takes leads without its first leader", async || flowing.confirmed() > confirmed + 5)
        .await;
    flowing.comes_back(struck, first.start(), BACK).await;
    flowing.finish().await;
}
