//! What is counted. Labels are bounded, and every series exists from the start, at zero.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::destination::Outcome;
use crate::lead::Code;
use crate::ledger::LeadState;

/// Seconds; a fast API answers in milliseconds, a slow one takes the whole timeout.
const TIME_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// Leads in one transaction.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// What became of messages.
pub const FATES: [&str; 8] = ["fresh", "replayed", "conflict", "parked", "invalid", "repeated", "held", "aside"];

/// Counters that differ in one label, whose values are known beforehand.
#[derive(Debug, Clone)]
pub struct By {
    label: &'static str,
    family: Family<[(&'static str, &'static str); 1], Counter>,
}

impl By {
    /// Counts one.
    pub fn count(&self, value: &'static str) {
        self.family.get_or_create(&[(self.label, value)]).inc();
    }
}

/// All metrics of a worker.
pub struct Metrics {
    registry: Registry,
    /// Messages by what became of them.
    pub messages: By,
    /// Violations by code.
    pub violations: By,
    /// Attempts by outcome.
    pub attempts: By,
    /// Leads that came to an end, by state.
    pub ended: By,
    /// Deliveries that the API may not be working.
    pub warnings: Counter,
    /// Settlements that came too late to change anything.
    pub late: Counter,
    /// Leases that ran out.
    pub expired: Counter,
    /// Old leads that were removed.
    pub removed: Counter,
    /// Times that the circuit opened.
    pub opened: Counter,
    /// Transactions that failed and were repeated.
    pub ledger_failures: Counter,
    /// From before a post to after its answer.
    pub post_seconds: Histogram,
    /// From a lead's acceptance, or last replay, to its end.
    pub lead_seconds: Histogram,
    /// Messages in one accept.
    pub accept_batch: Histogram,
    /// Leads in one settle.
    pub settle_batch: Histogram,
    /// Posts under way.
    pub posting: Gauge,
    /// Posts that may be under way, as far as is known of the API.
    pub concurrency: Gauge,
    /// 1 while posts are paused.
    pub circuit_open: Gauge,
    /// 1 while RabbitMQ can be reached.
    pub rabbitmq_up: Gauge,
    /// 1 while Postgres can be written.
    pub postgres_up: Gauge,
    /// Tokens fetched.
    pub tokens: Gauge,
    /// The most often that a message had been delivered before.
    pub max_delivery_count: Gauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("leadpost");
        let by = |registry: &mut Registry, name: &str, help: &str, label: &'static str, values: &[&'static str]| {
            let by = By { label, family: Family::default() };
            for value in values {
                drop(by.family.get_or_create(&[(label, *value)]));
            }
            registry.register(name, help, by.family.clone());
            by
        };
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter: Counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let seconds = |registry: &mut Registry, name: &str, help: &str| {
            let histogram = Histogram::new(TIME_BUCKETS);
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let batch = |registry: &mut Registry, name: &str, help: &str| {
            let histogram = Histogram::new(BATCH_BUCKETS);
            registry.register(name, help, histogram.clone());
            histogram
        };
        let r = &mut registry;
        let codes = Code::ALL.map(Code::as_str);
        let states = LeadState::ALL.map(LeadState::as_str);
        Self {
            messages: by(r, "messages", "Messages taken, by what became of them", "fate", &FATES),
            violations: by(r, "violations", "Violations found in messages, by code", "code", &codes),
            attempts: by(r, "attempts", "Posts, by outcome", "outcome", &Outcome::NAMES),
            ended: by(r, "leads_ended", "Leads that came to an end, by state", "state", &states[1..]),
            warnings: counter(r, "deliveries_with_warning", "Deliveries that the API may not be working"),
            late: counter(r, "late_settlements", "Settlements whose lease had run out"),
            expired: counter(r, "expired_leases", "Leads whose lease ran out, recorded as uncertain"),
            removed: counter(r, "removed_leads", "Old leads that this process removed"),
            opened: counter(r, "circuit_openings", "Times that posts were paused"),
            ledger_failures: counter(r, "ledger_failures", "Transactions that failed and were repeated"),
            post_seconds: seconds(r, "post_duration", "From before a post to after its answer"),
            lead_seconds: seconds(r, "lead_duration", "From a lead's acceptance or replay to its end"),
            accept_batch: batch(r, "accept_batch_size", "Messages in one accept transaction"),
            settle_batch: batch(r, "settle_batch_size", "Leads in one settle transaction"),
            posting: gauge(r, "posts_under_way", "Posts under way"),
            concurrency: gauge(r, "concurrency", "Posts that may be under way, as far as is known of the API"),
            circuit_open: gauge(r, "circuit_open", "1 while posts are paused"),
            rabbitmq_up: gauge(r, "rabbitmq_up", "1 while RabbitMQ can be reached"),
            postgres_up: gauge(r, "postgres_up", "1 while Postgres can be written"),
            tokens: gauge(r, "tokens_fetched", "Access tokens fetched by this process"),
            max_delivery_count: gauge(
                r,
                "max_delivery_count",
                "The most often that a message had been delivered before",
            ),
            registry,
        }
    }

    /// Observes a time.
    pub fn observe(histogram: &Histogram, duration: Duration) {
        histogram.observe(duration.as_secs_f64());
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# the metrics cannot be written: {error}\n"),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
