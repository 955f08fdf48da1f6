//! Leads that flow, through the real binary, while something is done to its neighbours.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Connection};
use leadpost::lead::LeadId;
use leadpost::ledger::{LeadState, Ledger};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::books::Confirmed;
use super::broker::connect;
use super::{DEADLINE, Process, Usage, World};

/// Between two leads.
const EVERY: Duration = Duration::from_millis(25);

/// What the names of leads begin with that the API is to refuse.
pub const REFUSED: &str = "refused";

/// A producer that hears nothing for so long connects again.
const PATIENCE: Duration = Duration::from_secs(2);

/// The real binary complains so often in a second at most, whatever is wrong: each of its loops waits longer from try to try,
/// and none of them is at it more often than a few times in the first second.
const COMPLAINTS: f64 = 6.0;

/// The worker is busy for so much of one core at most, besides what leads cost: ten times what it has been seen to be. A loop
/// without a pause takes all of a core, or half of it on a busy machine.
const SHARE: f64 = 0.3;

/// A lead costs so much at most in a debug build, of which a millisecond was seen.
const EACH: Duration = Duration::from_millis(10);

/// So long it is looked at.
const LASTS: Duration = Duration::from_secs(3);

/// So many threads or descriptors more than before may be there: those of connections that were given up a while ago, of their
/// successors, and of a worker that had only just started.
const MORE: usize = 12;

/// Timeouts that are shorter than the usual ones, so that all of them pass while a neighbour is frozen for seconds; and fewer posts at a
/// time than [`MORE`], each of which may need a connection of its own.
pub const SHORT: [(&str, &str); 6] = [
    ("LEADPOST__FLOW__CONCURRENCY", "8"),
    ("LEADPOST__AMQP__HEARTBEAT_S", "2"),
    ("LEADPOST__AMQP__TIMEOUT_MS", "1000"),
    ("LEADPOST__POSTGRES__CONNECT_TIMEOUT_MS", "1000"),
    ("LEADPOST__POSTGRES__STATEMENT_TIMEOUT_MS", "1000"),
    ("LEADPOST__POSTGRES__LOCK_TIMEOUT_MS", "500"),
];

/// Publishes leads one after the other, each until it is confirmed.
pub struct Producer {
    confirmed: Arc<Mutex<Vec<Confirmed>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Producer {
    /// Publishes to the queue of this world, by this URL.
    pub fn start(world: &World, url: &str) -> Self {
        Self::begin(world, url, EVERY, false)
    }

    /// The same, with so much time between two messages, some of which are no leads, and some of which come twice.
    pub fn start_mixed(world: &World, url: &str, every: Duration) -> Self {
        Self::begin(world, url, every, true)
    }

    fn begin(world: &World, url: &str, every: Duration, mixed: bool) -> Self {
        let (confirmed, stop) = (Arc::clone(&world.broker.confirmed), CancellationToken::new());
        let to = (url.to_owned(), world.broker.queue.clone());
        let task = tokio::spawn(produce(to, Arc::clone(&confirmed), every, mixed, stop.clone()));
        Self { confirmed, stop, task }
    }

    /// How many messages the broker has said that it has.
    pub fn confirmed(&self) -> usize {
        self.confirmed.lock().unwrap().len()
    }

    /// Publishes no more, once the last one is confirmed: one that is not may be there all the same.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn produce(
    (url, queue): (String, String),
    confirmed: Arc<Mutex<Vec<Confirmed>>>,
    every: Duration,
    mixed: bool,
    stop: CancellationToken,
) {
    let mut link = None;
    let mut message = (LeadId(Uuid::nil()), String::new());
    for at in 1_u64.. {
        if stop.is_cancelled() {
            return;
        }
        // Of some, the message before comes again: the lead is known, or replayed if it was rejected or invalid.
        if !mixed || at % 25 != 0 {
            let id = LeadId(Uuid::new_v4());
            let name = if mixed && at % 25 == 24 && at % 2 == 0 { REFUSED } else { "p" };
            let body = World::lead(&format!("{name}{}", id.0.simple()));
            message = (id, if mixed && at % 40 == 0 { body.replace("email", "e-mail") } else { body });
        }
        let (id, body) = message.clone();
        // What is not confirmed may be there all the same, and is published again under its id.
        while !matches!(timeout(PATIENCE, publish(&mut link, &url, &queue, id, &body)).await, Ok(Ok(true))) {
            link = None;
            tokio::time::sleep(4 * EVERY).await;
        }
        confirmed.lock().unwrap().push(Confirmed { id, body: body.into_bytes() });
        tokio::time::sleep(every).await;
    }
}

async fn publish(
    link: &mut Option<(Connection, Channel)>,
    url: &str,
    queue: &str,
    id: LeadId,
    body: &str,
) -> lapin::Result<bool> {
    if link.is_none() {
        *link = Some(connect(url).await?);
    }
    let Some((_, channel)) = link else { return Ok(false) };
    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.to_string().into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties).await?.await?;
    Ok(matches!(confirm, lapin::Confirmation::Ack(None)))
}

/// A worker at work, and a producer that keeps it so.
pub struct Flowing {
    pub world: World,
    pub worker: Process,
    producer: Option<Producer>,
}

/// When a fault struck, and what the worker had complained of and used before.
pub struct Struck {
    at: Instant,
    complaints: usize,
    posts: u64,
    used: Usage,
}

impl Flowing {
    /// Starts both, the worker with this environment besides the world's own, and waits until leads are delivered.
    pub async fn start(world: World, environment: &[(&str, &str)]) -> Self {
        let mut flowing = Self::stand(world, environment).await;
        flowing.publish();
        flowing.until_delivering(0).await;
        flowing
    }

    /// Starts the worker alone.
    pub async fn stand(world: World, environment: &[(&str, &str)]) -> Self {
        let worker = world.worker_with(&[], environment).await;
        Self { world, worker, producer: None }
    }

    /// Publishes from now on, by the URL that the world's own connection has.
    pub fn publish(&mut self) {
        self.producer = Some(Producer::start(&self.world, &self.world.broker.url));
    }

    /// How many messages were confirmed so far.
    pub fn confirmed(&self) -> usize {
        self.producer.as_ref().map_or(0, Producer::confirmed)
    }

    /// Waits until a lead is delivered of those that are confirmed after the first `skip`.
    async fn until_delivering(&self, skip: usize) {
        self.world
            .until("a lead of those just published is delivered", async || {
                let next = self.world.broker.confirmed.lock().unwrap().get(skip).map(|next| next.id);
                let Some(id) = next else { return false };
                // The test's own connections may be broken, too.
                let lead = self.world.ledger.show(id).await.ok().flatten();
                lead.is_some_and(|lead| lead.state == LeadState::Delivered)
            })
            .await;
    }

    /// What `/readyz` says: the status, and the report.
    pub async fn readyz(&self) -> (u16, serde_json::Value) {
        let (status, _, body) = self.worker.ask("/readyz").await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Waits until `/readyz` says that this neighbour is at fault, and no other, with one of these words.
    pub async fn until_blamed(&self, neighbour: &str, words: &[&str]) {
        let mut last = serde_json::Value::Null;
        let blaming = async {
            loop {
                let (status, report) = self.readyz().await;
                let bad: Vec<_> = ["rabbitmq", "postgres", "token", "api"]
                    .into_iter()
                    .filter(|name| report[name]["ok"] == false)
                    .collect();
                let detail = report[neighbour]["detail"].as_str().unwrap_or_default();
                if status == 503 && bad == [neighbour] && words.iter().any(|word| detail.contains(word)) {
                    return;
                }
                last = report;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let blamed = timeout(DEADLINE, blaming).await;
        assert!(blamed.is_ok(), "/readyz does not blame {neighbour} alone with one of {words:?}: {last:#}");
    }

    /// What the worker has complained of so far.
    fn complaints(&self) -> Vec<String> {
        let is_one = |line: &&str| line.contains(" WARN ") || line.contains("ERROR ");
        self.worker.said().lines().filter(is_one).map(str::to_owned).collect()
    }

    /// A fault strikes now.
    pub fn strikes(&self) -> Struck {
        Struck {
            at: Instant::now(),
            complaints: self.complaints().len(),
            posts: self.posts(),
            used: self.worker.usage(),
        }
    }

    fn posts(&self) -> u64 {
        self.world.sandbox.journal().counts().posts
    }

    /// Since the fault has struck the worker has not grown, and not been busy with anything but leads.
    pub fn was_at_rest(&self, struck: &Struck) {
        let (lasted, now) = (struck.at.elapsed(), self.worker.usage());
        // Connecting and the first leads cost something, however soon it is over.
        let posts = u32::try_from(self.posts() - struck.posts).unwrap() + 40;
        let (cpu, most) = (now.cpu - struck.used.cpu, lasted.mul_f64(SHARE) + posts * EACH);
        assert!(cpu <= most, "{cpu:?} of processor time in {lasted:?}, with {posts} posts");
        for (name, before, now) in
            [("threads", struck.used.threads, now.threads), ("descriptors", struck.used.descriptors, now.descriptors)]
        {
            assert!(now <= before + MORE, "{now} {name}, and {before} before");
        }
    }

    /// Since the fault has struck the worker has not complained in a hot loop.
    fn was_patient(&self, struck: &Struck) {
        let (lasted, complaints) = (struck.at.elapsed(), self.complaints().split_off(struck.complaints));
        let most = COMPLAINTS * (1.0 + lasted.as_secs_f64());
        assert!(
            complaints.len() as f64 <= most,
            "{} complaints in {lasted:?}, at last {:#?}",
            complaints.len(),
            complaints.last()
        );
    }

    /// The worker has not been in a hot loop while the fault lasted. Then this ends the fault, and without anybody's help it is ready
    /// and delivers what is published from then on, within this time.
    pub async fn comes_back(&self, struck: Struck, end: impl Future<Output = ()>, within: Duration) {
        // In a shorter time nobody can tell a hot loop from first tries.
        tokio::time::sleep_until(struck.at + LASTS).await;
        // Before the end: what has piled up is work enough.
        self.was_patient(&struck);
        self.was_at_rest(&struck);
        end.await;
        let (since, skip) = (Instant::now(), self.confirmed());
        let back = async {
            self.until_delivering(skip).await;
            while self.readyz().await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let back = timeout(within, back).await;
        assert!(back.is_ok(), "not back after {:?}: {:#?}", since.elapsed(), self.complaints());
        self.was_patient(&struck);
    }

    /// Some messages had to be delivered again, and none of them more than once: of more the queue may not approve.
    pub async fn were_given_back_once(&self) {
        let (_, _, metrics) = self.worker.ask("/metrics").await;
        let delivered_before = metrics.lines().find_map(|line| line.strip_prefix("leadpost_max_delivery_count "));
        assert_eq!(delivered_before, Some("1"), "{metrics}");
    }

    /// Waits until the worker is connected to all that it needs.
    pub async fn until_ready(&self) {
        self.world.until("the worker is ready", async || self.readyz().await.0 == 200).await;
    }

    /// Publishes no more, and waits until all that was confirmed has come to an end.
    pub async fn drain(&mut self) {
        if let Some(producer) = self.producer.take() {
            producer.stop().await;
        }
        let world = &mut self.world;
        // Its connections may be broken.
        world.ledger = Ledger::new(&world.settings, "test").unwrap();
        let ids: HashSet<Uuid> = world.broker.confirmed().iter().map(|confirmed| confirmed.id.0).collect();
        let ids = Vec::from_iter(ids);
        let ended = async || {
            // Nothing waits for its time; leases are left alone.
            world.hurry().await;
            let sql = "select count(*) from leads where id = any($1) and state in ('delivered', 'duplicate')";
            let ended: i64 = sqlx::query_scalar(sql).bind(&ids).fetch_one(&world.database.pool).await.unwrap();
            usize::try_from(ended).unwrap() == ids.len()
        };
        world.until("all confirmed leads are with the API", ended).await;
    }

    /// Ends it all: each confirmed lead is with the API, and was posted once.
    pub async fn finish_without_doubt(mut self) {
        self.drain().await;
        for confirmed in self.world.broker.confirmed() {
            assert_eq!(self.world.story(confirmed.id).await, ["delivered 201"]);
            assert_eq!(self.world.posts(confirmed.id), 1, "{} was posted twice", confirmed.id);
        }
        self.finish().await;
    }

    /// Ends it all: each confirmed lead is with the API, once, or with each doubt about that on record.
    pub async fn finish(mut self) {
        self.drain().await;
        let Self { mut world, worker, .. } = self;
        let said = worker.stop().await;
        world.broker.reconnect().await;
        let audit = world.check_all().await;
        assert!(audit.holds(), "{audit:#?}\n{said}");
    }
}
