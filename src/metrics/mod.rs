//! What is counted. Labels are bounded, and every series exists from the start, at zero.
//!
//! # Rules
//! - What a lead passes by is counted without a lock and without looking anything up: series are kept by their place.
//! - What others keep anyway (flow, tokens, the broker's link) is read when somebody asks: see `worker::gauges`.
//! - What the ledger knows is read by the worker's upkeep now and then, never for a scrape.
//! - Base units, and names as Prometheus and OpenMetrics have them. README has a table of all, which a test compares with this.

mod each;
mod histogram;
mod reasons;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::{EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use each::Each;
pub use histogram::Histogram;
pub use reasons::{CODES, OTHER, Reasons};

use crate::destination::Outcome;
use crate::flow::CircuitState;
use crate::lead::Code;
use crate::ledger::{self, LeadState, RequestKind};

/// A gauge of what is no whole number, or has a unit that is none.
pub type Real = Gauge<f64, AtomicU64>;

/// Milliseconds; a fast API answers in a few, a slow one takes the whole timeout.
const POST_MS: [u64; 13] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 30_000];

/// Milliseconds; a batch on an idle machine takes one or two.
const COMMIT_MS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 30_000];

/// Milliseconds, up to three days: at once, after some retries, at the end of `retry.max_age_ms`.
const LEAD_MS: [u64; 16] = [
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    5_000,
    15_000,
    60_000,
    300_000,
    900_000,
    3_600_000,
    21_600_000,
    86_400_000,
    259_200_000,
];

/// Milliseconds; timestamps of messages count seconds.
const WAIT_MS: [u64; 11] =
    [1_000, 2_000, 5_000, 15_000, 60_000, 300_000, 900_000, 3_600_000, 14_400_000, 86_400_000, 259_200_000];

/// Leads in one transaction.
const BATCH: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Became {
    /// A lead that nobody knew.
    Fresh,
    /// A lead that had ended, sent on its way again.
    Replayed,
    /// A lead of its own, as another body has its id.
    Conflict,
    /// A lead that is due, for whoever may send it.
    Parked,
    /// No valid lead.
    Invalid,
    /// A known lead.
    Repeated,
    /// A lead of its own, held for a person.
    Held,
    /// Kept beside the leads until a lock ends.
    Aside,
}

impl Became {
    const ALL: [Became; 8] = [
        Became::Fresh,
        Became::Replayed,
        Became::Conflict,
        Became::Parked,
        Became::Invalid,
        Became::Repeated,
        Became::Held,
        Became::Aside,
    ];

    /// As it is counted and traced.
    pub fn as_str(self) -> &'static str {
        match self {
            Became::Fresh => "fresh",
            Became::Replayed => "replayed",
            Became::Conflict => "conflict",
            Became::Parked => "parked",
            Became::Invalid => "invalid",
            Became::Repeated => "repeated",
            Became::Held => "held",
            Became::Aside => "aside",
        }
    }
}

/// How the text of all metrics is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What an answer in it says of itself.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Of whom the metrics are.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// The destination's name.
    pub destination: &'a str,
    /// The queue that is consumed.
    pub queue: &'a str,
    /// The worker's name.
    pub worker: &'a str,
}

/// All metrics of a worker.
pub struct Metrics {
    registry: Registry,

    /// Messages taken from RabbitMQ.
    pub received: Counter,
    /// Messages by [what became of them](Became).
    pub messages: Each<Counter>,
    /// Violations by [code](Code).
    pub violations: Each<Counter>,
    /// From a message's timestamp to its commit.
    pub message_wait: Histogram,
    /// When the last message was taken.
    pub last_message: Real,
    /// The most often that a message had been delivered before.
    pub max_delivery_count: Gauge,

    /// Attempts by request, outcome and class of status.
    pub attempts: Attempts,
    /// From before a post to after its answer.
    pub post_duration: Histogram,
    /// Leads in hand.
    pub in_hand: Gauge,
    /// Posts under way.
    pub posting: Gauge,
    /// When the last post ended.
    pub last_post: Real,
    /// When the API took a lead last.
    pub last_delivered: Real,

    /// Leads that came to an end, by [state](LeadState).
    pub ended: Each<Counter>,
    /// Why leads did not simply come to be delivered.
    pub reasons: Reasons,
    /// From a lead's acceptance, or last replay, to its end.
    pub lead_duration: Histogram,
    /// Deliveries that the API may not be working.
    pub warnings: Counter,
    /// Settlements that came too late to change anything.
    pub late: Counter,
    /// Leases that ran out.
    pub expired: Counter,
    /// Old leads that were removed.
    pub removed: Counter,

    /// Messages in one accept, and how long it took.
    pub accept_batch: Histogram,
    /// The same.
    pub accept_duration: Histogram,
    /// Leads in one settle, and how long it took.
    pub settle_batch: Histogram,
    /// The same.
    pub settle_duration: Histogram,
    /// Transactions that failed and were repeated.
    pub ledger_failures: Counter,

    /// Times that the circuit opened.
    pub opened: Counter,
    /// What is known when somebody asks.
    pub now: Now,
    /// What the ledger knew when it was asked last.
    pub ledger: Levels,
}

/// What the parts of a worker know of themselves, read for each scrape.
#[derive(Debug)]
pub struct Now {
    /// Posts that may be under way, as far as is known of the API.
    pub concurrency: Gauge,
    /// How many that is at most.
    pub ceiling: Gauge,
    /// This worker's share of the rate limit, per second.
    pub rate_share: Real,
    /// The limit, of all workers.
    pub rate_limit: Real,
    /// 1 at the [state](CircuitState) of the circuit.
    pub circuit: Each<Gauge>,
    /// For how long the API asked to be left alone.
    pub hold: Real,
    /// Age of the token in hand.
    pub token_age: Real,
    /// For how long it can still be used.
    pub token_left: Real,
    /// Tokens fetched.
    pub tokens: Counter,
    /// Fetches that came to nothing.
    pub token_failures: Counter,
    /// 1 while RabbitMQ can be reached.
    pub rabbitmq_up: Gauge,
    /// 1 while it delivers messages.
    pub consuming: Gauge,
    /// Times that the connection was lost, or could not be made.
    pub reconnects: Counter,
    /// 1 while Postgres can be written.
    pub postgres_up: Gauge,
}

/// Numbers of the destination's ledger.
#[derive(Debug)]
pub struct Levels {
    /// Leads by [state](LeadState).
    pub leads: Each<Gauge>,
    /// Leads that are due and not in hand.
    pub due: Gauge,
    /// For how long the first of them has been.
    pub oldest_due: Real,
    /// Delivered leads that the API may not be working.
    pub warned: Gauge,
    /// Messages that were set aside.
    pub aside: Gauge,
    /// Workers that were seen of late.
    pub workers: Gauge,
    /// When all this was read.
    pub read_at: Real,
}

impl Levels {
    /// Takes in what was read just now.
    pub fn set(&self, read: &ledger::Levels) {
        for (gauge, count) in self.leads.iter().zip(read.states) {
            gauge.set(count);
        }
        self.due.set(read.due);
        self.oldest_due.set(read.oldest_due.as_secs_f64());
        self.warned.set(read.warned);
        self.aside.set(read.aside);
        happened(&self.read_at);
    }
}

/// What a status may begin with in the answer to a request; `none` without one.
const CLASSES: [&str; 5] = ["none", "2xx", "3xx", "4xx", "5xx"];

/// Attempts by request, outcome and class of status.
#[derive(Debug, Default)]
pub struct Attempts([[[Counter; CLASSES.len()]; Outcome::NAMES.len()]; 2]);

impl Attempts {
    /// Counts one, whose outcome has this place among all.
    pub fn count(&self, request: RequestKind, outcome: usize, status: Option<u16>) {
        self.place(request, outcome, status).inc();
    }

    /// Where it is counted.
    pub fn place(&self, request: RequestKind, outcome: usize, status: Option<u16>) -> &Counter {
        let class = status.map(|status| usize::from(status / 100)).filter(|class| (2..=5).contains(class));
        &self.0[request as usize][outcome][class.map_or(0, |class| class - 1)]
    }

    /// Those that can be.
    fn each(&self) -> Each<Counter> {
        let kinds = [RequestKind::Post, RequestKind::Query].into_iter();
        let all = kinds.flat_map(|kind| {
            let outcomes = Outcome::NAMES.iter().enumerate().filter(move |(_, outcome)| kind.can_come_to(outcome));
            outcomes.flat_map(move |(place, outcome)| {
                CLASSES.iter().zip(&self.0[kind as usize][place]).map(move |(class, counter)| {
                    let labels = vec![("request", kind.as_str()), ("outcome", *outcome), ("status_class", *class)];
                    (labels, counter.clone())
                })
            })
        });
        Each::these(all)
    }
}

/// Registers metrics as they are made.
struct Sheet<'a>(&'a mut Registry);

impl Sheet<'_> {
    fn add<M: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static>(
        &mut self,
        name: &str,
        help: &str,
        metric: M,
    ) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    fn real(&mut self, name: &str, help: &str) -> Real {
        self.add(name, help, Real::default())
    }

    fn seconds(&mut self, name: &str, help: &str) -> Real {
        let gauge = Real::default();
        self.0.register_with_unit(name, help, Unit::Seconds, gauge.clone());
        gauge
    }

    fn times(&mut self, name: &str, help: &str, bounds_ms: &[u64]) -> Histogram {
        let histogram = Histogram::of_times(bounds_ms);
        self.0.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        histogram
    }

    fn sizes(&mut self, name: &str, help: &str) -> Histogram {
        self.add(name, help, Histogram::of_numbers(&BATCH))
    }
}

impl Metrics {
    /// All at zero.
    pub fn new(labels: Labels<'_>) -> Self {
        let mut registry = Registry::with_prefix("leadpost");
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of leadpost", version);
        let own = [("destination", labels.destination), ("queue", labels.queue), ("worker", labels.worker)];
        let own: Vec<_> = own.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        registry.register("worker", "What this process works on, and its name in the ledger", Info::new(own));
        let mut sheet = Sheet(&mut registry);
        let s = &mut sheet;
        let (attempts, reasons) = (Attempts::default(), Reasons::new());
        s.add("attempts", "Requests to the API, by what came of them", attempts.each());
        s.add("reasons", "Settlements but plain deliveries, by why", reasons.each());
        let states = LeadState::ALL.map(LeadState::as_str);
        Self {
            received: s.counter("messages_received", "Messages taken from RabbitMQ, also those that come again"),
            messages: s.add(
                "messages",
                "Messages committed to the ledger, by what became of them",
                Each::of("fate", &Became::ALL.map(Became::as_str)),
            ),
            violations: s.add(
                "violations",
                "Violations found in messages",
                Each::of("code", &Code::ALL.map(Code::as_str)),
            ),
            message_wait: s.times(
                "message_wait",
                "From the timestamp of a message that has one to its commit",
                &WAIT_MS,
            ),
            last_message: s.seconds("last_message_timestamp", "When a message was taken last"),
            max_delivery_count: s
                .gauge("max_delivery_count", "The most often that a message had been delivered before"),

            attempts,
            post_duration: s.times("post_duration", "From before a post to after its answer", &POST_MS),
            in_hand: s.gauge("leads_in_hand", "Leads that wait for a slot or a token, or are being posted"),
            posting: s.gauge("posts_under_way", "Requests to the API that are under way"),
            last_post: s.seconds("last_post_timestamp", "When a post ended last"),
            last_delivered: s.seconds("last_delivered_timestamp", "When the API took a lead last"),

            // The pending ones have not ended.
            ended: s.add("leads_ended", "Leads that came to an end", Each::of("state", &states[1..])),
            reasons,
            lead_duration: s.times(
                "lead_duration",
                "From the acceptance, replay or requeue of a lead to its end",
                &LEAD_MS,
            ),
            warnings: s.counter("deliveries_with_warning", "Deliveries that the API may not be working"),
            late: s.counter("late_settlements", "Settlements that changed nothing, as the lease had run out"),
            expired: s.counter("expired_leases", "Leads whose lease ran out, recorded as perhaps posted"),
            removed: s.counter("removed_leads", "Old leads that this process removed"),

            accept_batch: s.sizes("accept_batch_size", "Messages in one transaction"),
            accept_duration: s.times(
                "accept_duration",
                "Of the commit of a batch of messages, tried until it worked",
                &COMMIT_MS,
            ),
            settle_batch: s.sizes("settle_batch_size", "Leads in one transaction"),
            settle_duration: s.times(
                "settle_duration",
                "Of the commit of a batch of results, tried until it worked",
                &COMMIT_MS,
            ),
            ledger_failures: s.counter("ledger_failures", "Transactions that failed and were repeated"),

            opened: s.counter("circuit_openings", "Times that posts were paused"),
            now: Now {
                concurrency: s.gauge("concurrency_limit", "Posts that may be under way, as far as is known of the API"),
                ceiling: s.gauge("concurrency_ceiling", "flow.concurrency: how many that is at most"),
                rate_share: s
                    .real("rate_share_per_second", "Posts per second that this worker may make; 0 without a limit"),
                rate_limit: s
                    .real("rate_limit_per_second", "flow.rate_per_s, of all workers together; 0 without a limit"),
                circuit: s.add(
                    "circuit_state",
                    "1 at the state of the circuit",
                    Each::of("state", &CircuitState::ALL.map(CircuitState::as_str)),
                ),
                hold: s.seconds("hold", "For how much longer the API asked to be left alone (Retry-After)"),
                token_age: s.seconds("token_age", "Age of the token in hand; 0 without one"),
                token_left: s.seconds(
                    "token_remaining",
                    "For how much longer it can be used; 0 without one, NaN if it does not end",
                ),
                tokens: s.counter("tokens_fetched", "Tokens fetched"),
                token_failures: s.counter("token_failures", "Log-ins and renewals that gave no token"),
                rabbitmq_up: s.gauge("rabbitmq_up", "1 while RabbitMQ can be reached"),
                consuming: s.gauge("rabbitmq_consuming", "1 while RabbitMQ delivers messages to this worker"),
                reconnects: s.counter(
                    "rabbitmq_reconnects",
                    "Times that the connection to RabbitMQ was lost, or could not be made",
                ),
                postgres_up: s.gauge("postgres_up", "1 while Postgres can be written"),
            },
            ledger: Levels {
                leads: s.add("leads", "Leads in the ledger, by state", Each::of("state", &states)),
                due: s.gauge("leads_due", "Leads that are due and in nobody's hand; at least so many, if over 10000"),
                oldest_due: s.seconds("oldest_due_age", "For how long the first of them has been due"),
                warned: s.gauge("leads_with_warning", "Delivered leads that the API may not be working; 10000 at most"),
                aside: s
                    .gauge("messages_aside", "Messages set aside, as their leads are locked or refused; 10000 at most"),
                workers: s.gauge("workers", "Workers of the destination that were seen of late"),
                read_at: s.seconds("ledger_read_timestamp", "When the numbers of the ledger were read last"),
            },
            registry,
        }
    }

    /// Counts a lead that came to this end.
    pub fn ended(&self, state: LeadState) {
        // The first of all states is the open one.
        if let Some(place) = (state as usize).checked_sub(1) {
            self.ended.at(place).inc();
        }
    }

    /// The text of all of them.
    pub fn render(&self, format: Format) -> String {
        let mut into = String::new();
        let written = match format {
            Format::Prometheus => prometheus_text::encode(&mut into, &self.registry),
            Format::OpenMetrics => text::encode(&mut into, &self.registry),
        };
        match written {
            Ok(()) => into,
            Err(error) => format!("# the metrics cannot be written: {error}\n"),
        }
    }
}

/// Counts in a gauge for as long as it lives, whatever becomes of what it stands for.
#[derive(Debug)]
pub struct During<'a>(&'a Gauge);

impl<'a> During<'a> {
    /// From now on.
    pub fn begin(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for During<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Notes that something happens now.
pub fn happened(gauge: &Real) {
    gauge.set(seconds_since_1970(SystemTime::now()));
}

/// A time as Prometheus has it.
pub fn seconds_since_1970(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A counter that somebody else keeps: it never falls.
pub fn follow(counter: &Counter, count: u64) {
    counter.inner().fetch_max(count, std::sync::atomic::Ordering::Relaxed);
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
