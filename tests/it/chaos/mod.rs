//! The campaign: three workers carry leads while faults strike at random, one or two at a time; after each, all that was confirmed by
//! then has to come to an end within a bound; and in the end the checker holds all records against each other.

mod faults;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::sandbox as api;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::support::books::Audit;
use crate::support::flowing::{Producer, REFUSED};
use crate::support::proxy::Proxy;
use crate::support::servers::Servers;
use crate::support::{Process, World};
use faults::{Fault, SIDES};

const WORKERS: usize = 3;

/// Longer than two posts, a log-in and 15 s, as it has to be.
const LEASE: Duration = Duration::from_millis(17_600);

/// How long a post takes, and the time between two leads: some ten posts are under way at any moment.
const LATENCY: Duration = Duration::from_millis(80);
const EVERY: Duration = Duration::from_millis(6);

/// What the workers are told besides the world's own.
const SETTINGS: [(&str, &str); 15] = [
    ("LEADPOST__FLOW__LEASE_MS", "17600"),
    ("LEADPOST__FLOW__CONCURRENCY", "8"),
    ("LEADPOST__FLOW__PROBE_MAX_MS", "1000"),
    ("LEADPOST__DESTINATION__REQUEST__TIMEOUT_MS", "1000"),
    ("LEADPOST__DESTINATION__REQUEST__CONNECT_TIMEOUT_MS", "300"),
    ("LEADPOST__DESTINATION__AUTH__TIMEOUT_MS", "500"),
    ("LEADPOST__AMQP__HEARTBEAT_S", "2"),
    ("LEADPOST__AMQP__TIMEOUT_MS", "1000"),
    ("LEADPOST__POSTGRES__CONNECT_TIMEOUT_MS", "1000"),
    ("LEADPOST__POSTGRES__STATEMENT_TIMEOUT_MS", "2000"),
    ("LEADPOST__POSTGRES__LOCK_TIMEOUT_MS", "500"),
    ("LEADPOST__RETRY__INITIAL_MS", "100"),
    ("LEADPOST__RETRY__MAX_MS", "1000"),
    // Nothing is to end because it met too many faults.
    ("LEADPOST__RETRY__MAX_ATTEMPTS", "1000"),
    ("LEADPOST__SHUTDOWN__GRACE_MS", "20000"),
];

/// So long after a fault leads flow again at the latest: the longest pause between two tries to reach RabbitMQ, 15 s and half of that, and
/// what it takes from there.
const FLOWS_WITHIN: Duration = Duration::from_secs(30);

/// So long after a fault everything that was confirmed by its end has come to an end: a lease, the wait after an outage of Postgres until
/// leases are taken for run out (30 s), the period of upkeep (5 s), and what it takes to post it all.
const ENDED_WITHIN: Duration = Duration::from_secs(75);

/// What a fault cost, at worst.
#[derive(Default)]
struct Cost {
    times: usize,
    /// From its end until a lead was taken that was published after it.
    flows: Duration,
    /// From its end until all that was confirmed by then had come to an end.
    ended: Duration,
}

pub struct Campaign {
    world: World,
    /// Before RabbitMQ, Postgres, the token endpoint and the API.
    lines: [Proxy; 4],
    rabbitmq: Servers,
    postgres: Servers,
    workers: Mutex<Vec<Process>>,
    random: StdMutex<fastrand::Rng>,
    /// What went wrong on the way.
    wrong: StdMutex<Vec<String>>,
}

impl Campaign {
    async fn begin(seed: u64) -> Self {
        let (rabbitmq, postgres) = Servers::both().await;
        let mut world = World::on(rabbitmq.url(), postgres.url()).await;
        world.sandbox.tune(|tuning| tuning.latency = LATENCY);
        // Tokens are asked for all the time.
        world.sandbox.set_token_lifetime(Duration::from_secs(2));
        refuse_some(&world);
        let lines = [
            world.proxy_rabbitmq(seed).await,
            world.proxy_postgres(seed).await,
            world.proxy_token(seed).await,
            world.proxy_api(seed).await,
        ];
        let campaign = Self {
            world,
            lines,
            rabbitmq,
            postgres,
            workers: Mutex::default(),
            random: StdMutex::new(fastrand::Rng::with_seed(seed)),
            wrong: StdMutex::default(),
        };
        for _ in 0..WORKERS {
            campaign.start_worker("").await;
        }
        campaign
    }

    /// Everything that is left to chance comes from the seed.
    fn draw(&self, range: Range<u64>) -> u64 {
        self.random.lock().unwrap().u64(range)
    }

    fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[usize::try_from(self.draw(0..from.len() as u64)).unwrap()]
    }

    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    async fn start_worker(&self, faults: &str) {
        let environment = [&SETTINGS[..], &[("LEADPOST_FAULTS", faults)]].concat();
        let worker = self.world.worker_with(&[], &environment).await;
        self.workers.lock().await.push(worker);
    }

    /// A worker that is running, to do something to.
    async fn take_worker(&self) -> Process {
        let mut workers = self.workers.lock().await;
        let at = self.draw(0..workers.len() as u64);
        workers.remove(usize::try_from(at).unwrap())
    }

    /// Asks it to stop. It may be late in a fault, but not get stuck.
    async fn end_worker(&self, mut worker: Process) {
        worker.signal("TERM");
        match timeout(2 * FLOWS_WITHIN, worker.ended()).await {
            Ok(Some(0 | 3)) => {}
            Ok(code) => self.complain(format!("a worker that was stopped ended with {code:?}:\n{}", worker.said())),
            Err(_) => self.complain(format!("a worker that was stopped did not end:\n{}", worker.said())),
        }
    }

    /// No worker has ended by itself.
    async fn check_workers(&self) {
        let mut workers = self.workers.lock().await;
        let mut alive = Vec::new();
        for mut worker in std::mem::take(&mut *workers) {
            if worker.is_running() {
                alive.push(worker);
            } else {
                self.complain(format!("a worker has ended by itself:\n{}", worker.said()));
            }
        }
        let missing = WORKERS - alive.len();
        *workers = alive;
        drop(workers);
        for _ in 0..missing {
            self.start_worker("").await;
        }
    }

    /// Executes these on one connection to Postgres, one after the other.
    async fn sql(&self, statements: &[&str]) {
        let mut connection = PgConnection::connect(&self.world.database.url).await.unwrap();
        for statement in statements {
            sqlx::raw_sql(sqlx::AssertSqlSafe((*statement).to_owned())).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
    }

    /// Waits until the API takes a lead that is published from now on.
    async fn until_flowing(&self, producer: &Producer) {
        let skip = producer.confirmed();
        let is_taken =
            |id: LeadId| self.world.sandbox.journal().posts_for(id.0).iter().any(|post| post.effect.processed());
        while !self.world.broker.confirmed()[skip..].iter().any(|message| is_taken(message.id)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the messages from the first to the second of these have come to an end; says how far it is.
    async fn until_ended(&self, ended: &AtomicUsize, messages: usize) {
        loop {
            let from = ended.load(Ordering::Relaxed);
            if from >= messages {
                return;
            }
            let next: Vec<Uuid> =
                self.world.broker.confirmed()[from..messages].iter().take(1_000).map(|message| message.id.0).collect();
            let sql = "select count(*) from unnest($1::uuid[]) as t (id) join leads l on l.id = t.id where l.state <> 'pending'";
            let there = sqlx::query_scalar::<_, i64>(sql).bind(&next).fetch_one(&self.world.database.pool);
            // The pool may hold connections that broke.
            match timeout(Duration::from_secs(2), there).await {
                Ok(Ok(there)) if usize::try_from(there).unwrap() == next.len() => {
                    ended.fetch_add(next.len(), Ordering::Relaxed);
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// How long this takes; what takes too long is complained of.
    async fn within(&self, bound: Duration, what: String, waiting: impl Future<Output = ()>) -> Duration {
        let since = Instant::now();
        if timeout(bound, waiting).await.is_err() {
            self.complain(format!("{what}: not within {bound:?}"));
        }
        since.elapsed()
    }

    /// One or two faults that do not strike at the same side.
    fn draw_faults(&self, all: &[Fault]) -> Vec<Fault> {
        // First the side, or the many faults of lines would leave little to the others.
        let one = || {
            let side = self.pick(&SIDES);
            let its: Vec<Fault> = all.iter().copied().filter(|fault| fault.side() == side).collect();
            self.pick(&its)
        };
        let mut drawn = vec![one()];
        if self.draw(0..4) == 0 {
            let second = one();
            if second.side() != drawn[0].side() {
                drawn.push(second);
            }
        }
        drawn
    }

    /// Lets faults strike for so long, each drawn from these, and comes back with what they cost.
    async fn run(self, all: &[Fault], lasts: Duration) -> Outcome {
        let producer = Producer::start_mixed(&self.world, &self.world.broker.url, EVERY);
        let (began, ended) = (Instant::now(), AtomicUsize::new(0));
        let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
        while began.elapsed() < lasts {
            let drawn = self.draw_faults(all);
            let name = match drawn[..] {
                [one] => one.name(),
                _ => "two of these at once".to_owned(),
            };
            let names: Vec<String> = drawn.iter().map(|fault| fault.name()).collect();
            say(&format!("{:>5.0} s  {}", began.elapsed().as_secs_f64(), names.join(", and ")));
            futures_util::future::join_all(drawn.iter().map(|fault| self.strike(*fault))).await;
            let by_then = producer.confirmed();
            let after = names.join(" and ");
            let (flows, all_ended) = tokio::join!(
                self.within(FLOWS_WITHIN, format!("leads flow again after {after}"), self.until_flowing(&producer)),
                self.within(ENDED_WITHIN, format!("all has ended after {after}"), self.until_ended(&ended, by_then)),
            );
            let cost = costs.entry(name).or_default();
            cost.times += 1;
            cost.flows = cost.flows.max(flows);
            cost.ended = cost.ended.max(all_ended);
            self.check_workers().await;
            tokio::time::sleep(Duration::from_millis(self.draw(0..500))).await;
        }
        producer.stop().await;
        let all = self.world.broker.confirmed().len();
        self.within(ENDED_WITHIN, "all has ended after the last fault".to_owned(), self.until_ended(&ended, all)).await;
        for worker in std::mem::take(&mut *self.workers.lock().await) {
            self.end_worker(worker).await;
        }
        let mut world = self.world;
        // RabbitMQ has let go of the first connection.
        world.broker.reconnect().await;
        let audit = world.check_all().await;
        Outcome { lasted: began.elapsed(), audit, costs, wrong: self.wrong.into_inner().unwrap() }
    }
}

/// The API refuses some of the leads for good.
fn refuse_some(world: &World) {
    world.sandbox.faults().rule(REFUSED, None, api::Fault::status(422));
}

/// What came of a campaign.
struct Outcome {
    lasted: Duration,
    audit: Audit,
    costs: BTreeMap<String, Cost>,
    wrong: Vec<String>,
}

impl Outcome {
    fn holds(&self) -> bool {
        self.audit.holds() && self.wrong.is_empty()
    }

    /// Two tables, and what went wrong.
    fn report(&self, seed: u64) -> String {
        let mut report = String::new();
        let faults: usize = self.costs.values().map(|cost| cost.times).sum();
        let minutes = self.lasted.as_secs_f64() / 60.0;
        writeln!(report, "chaos: seed {seed}, {minutes:.1} minutes, {faults} rounds\n").unwrap();
        writeln!(report, "| fault | times | leads flow again after, at worst | all has ended after, at worst |")
            .unwrap();
        writeln!(report, "|---|---:|---:|---:|").unwrap();
        for (name, cost) in &self.costs {
            let (flows, ended) = (cost.flows.as_secs_f64(), cost.ended.as_secs_f64());
            writeln!(report, "| {name} | {} | {flows:.1} s | {ended:.1} s |", cost.times).unwrap();
        }
        writeln!(report, "\n| what the three records say | |\n|---|---:|\n{}", self.audit).unwrap();
        for finding in [&self.audit.lost, &self.audit.doubles, &self.audit.wrong, &self.wrong].into_iter().flatten() {
            writeln!(report, "{finding}").unwrap();
        }
        let verdict = if self.holds() { "nothing lost, every doubt on record" } else { "failed" };
        writeln!(report, "chaos: {verdict}").unwrap();
        report
    }
}

/// Progress, for those who watch.
fn say(line: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "{line}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_faults_strike_at_random() {
    // A frozen worker is tests/it/workers.rs'; here it would take half of the time.
    let most: Vec<Fault> = Fault::all().into_iter().filter(|fault| *fault != Fault::WorkerFrozen).collect();
    let seed = 4;
    let outcome = Campaign::begin(seed).await.run(&most, Duration::from_secs(40)).await;
    assert!(outcome.holds(), "{}", outcome.report(seed));
}

/// `scripts/chaos` starts it, and says for how long.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as it is told to; scripts/chaos starts it"]
async fn campaign() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("LEADPOST_CHAOS_SECONDS").expect("LEADPOST_CHAOS_SECONDS says how many");
    let seed = number("LEADPOST_CHAOS_SEED").expect("LEADPOST_CHAOS_SEED is a number");
    let outcome = Campaign::begin(seed).await.run(&Fault::all(), Duration::from_secs(seconds)).await;
    let report = outcome.report(seed);
    match std::env::var_os("LEADPOST_CHAOS_REPORT") {
        Some(path) => std::fs::write(path, &report).unwrap(),
        None => say(&report),
    }
    assert!(outcome.holds(), "see the report");
}
