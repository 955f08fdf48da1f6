//! What leadpost is told: file, environment and flags, checked as a whole before anything starts.
//!
//! ```text
//!   defaults < preset of the destination < leadpost.toml < DATABASE_URL, AMQP_URL < LEADPOST__SECTION__KEY < flags
//! ```
//!
//! # Rules
//! - A key that nobody knows is an error that names the nearest one that is known.
//! - Secrets come by environment or from a file that a `…_file` key names, never by flag and never from `leadpost.toml`. They
//!   are held in a type that cannot be printed.
//! - Numbers have bounds, and values that contradict each other stop the start; the error says which and what to change ([`check()`]).
//! - Durations are milliseconds and say so in their name (`_ms`).

mod auth;
mod check;
mod destination;
mod env;
mod expressions;
mod keys;
mod lists;
mod missing;
mod origin;
pub mod preset;
mod ranges;
mod redact;
mod response;
mod secret;
mod shown;
mod source;
mod status;
mod template;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use auth::{Auth, AuthKind, ClientAuth, LifetimeUnit, TokenIn};
pub use check::{check, is_destination_sound, need_amqp_url, need_postgres_url};
pub use destination::{BodyFormat, Destination, Method, OnUncertain, Reconcile, Request};
pub use expressions::{ANSWER_VARIABLES, FOUND_VARIABLES, LEAD_VARIABLES};
pub use keys::known_keys;
pub use missing::{Missing, missing, url_values, values};
pub use origin::{Explained, Origin};
pub use redact::Redactor;
pub use response::ResponseRules;
pub use secret::Secret;
pub use source::{ConfigError, Source};
pub use status::StatusSet;
pub use template::{Values, fill_in, fill_in_url};
pub use tls::{ClientIdentity, Tls, TlsFiles};

/// All settings, with their defaults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where messages come from.
    pub amqp: Amqp,
    /// The queue that `leadpost topology declare` sets up.
    pub topology: Topology,
    /// Where the ledger is.
    pub postgres: Postgres,
    /// What a valid lead is.
    pub lead: LeadSettings,
    /// Where leads go.
    pub destination: Destination,
    /// When a lead is tried again, and when it is given up.
    pub retry: Retry,
    /// How many leads are sent at a time, how fast, and when none.
    pub flow: Flow,
    /// For how long the ledger keeps leads that have ended.
    pub retention: Retention,
    /// Health and metrics.
    pub admin: Admin,
    /// What is logged, and how.
    pub log: Log,
    /// How the worker stops.
    pub shutdown: Shutdown,
}

/// The RabbitMQ side.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Amqp {
    /// `amqp://user:password@host:5672/vhost` or `amqps://…`; `%2f` is the vhost `/`.
    pub url: Secret,
    /// A file that holds the URL.
    pub url_file: Option<PathBuf>,
    /// The queue to consume.
    pub queue: String,
    /// How many messages RabbitMQ hands out ahead of their acknowledgement. 0: four batches, or fewer where few posts are allowed, or the rate is low.
    pub prefetch: u16,
    /// Seconds between heartbeats; a silent broker is given up after twice that.
    pub heartbeat_s: u16,
    /// How long connecting, and any single request to the broker, may take.
    pub timeout_ms: u64,
    /// CA and client certificate for `amqps://`.
    pub tls: Tls,
}

impl Default for Amqp {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            url_file: None,
            queue: "leads".to_owned(),
            prefetch: 0,
            heartbeat_s: 10,
            timeout_ms: 10_000,
            tls: Tls::default(),
        }
    }
}

/// The recommended queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topology {
    /// After how many deliveries without an acknowledgement a message is dead-lettered.
    pub delivery_limit: u32,
    /// The exchange that takes dead letters, and the queue bound to it. Empty: `<queue>.dead-letter`.
    pub dead_letter: String,
}

impl Default for Topology {
    fn default() -> Self {
        Self { delivery_limit: 20, dead_letter: String::new() }
    }
}

/// The Postgres side.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Postgres {
    /// `postgres://user:password@host:5432/database?sslmode=…`
    pub url: Secret,
    /// A file that holds the URL.
    pub url_file: Option<PathBuf>,
    /// At most so many connections per worker.
    pub connections: u32,
    /// Whether `run` brings the tables up to date by itself.
    pub migrate: bool,
    /// How long the server works on one statement.
    pub statement_timeout_ms: u64,
    /// How long the server waits for a lock.
    pub lock_timeout_ms: u64,
    /// How long to wait for a connection.
    pub connect_timeout_ms: u64,
    /// CA and client certificate; with any of it, `sslmode` is `verify-full` unless the URL says `verify-ca`.
    pub tls: Tls,
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            url_file: None,
            connections: 6,
            migrate: true,
            statement_timeout_ms: 15_000,
            lock_timeout_ms: 5_000,
            connect_timeout_ms: 5_000,
            tls: Tls::default(),
        }
    }
}

/// What a valid lead is, beyond the destination's own contract.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeadSettings {
    /// Fills in `assistantId` where a lead has none. Digits go out as a number, anything else as a string.
    pub default_assistant_id: Option<String>,
    /// `forward`, `drop` or `reject`.
    pub unknown_fields: UnknownFields,
    /// The largest message.
    pub max_message_bytes: usize,
    /// The longest name, in characters.
    pub max_name_chars: usize,
    /// The longest other text, in characters.
    pub max_text_chars: usize,
    /// The most fields.
    pub max_fields: usize,
}

impl Default for LeadSettings {
    fn default() -> Self {
        Self {
            default_assistant_id: None,
            unknown_fields: UnknownFields::default(),
            max_message_bytes: 256 * 1024,
            max_name_chars: 200,
            max_text_chars: 20_000,
            max_fields: 200,
        }
    }
}

/// What happens to fields that the destination's contract does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownFields {
    /// They go on as they are.
    #[default]
    Forward,
    /// They are left out of what is posted; the ledger keeps the message as it came.
    Drop,
    /// They make the message invalid.
    Reject,
}

/// Retries.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// How many attempts a lead has.
    pub max_attempts: u32,
    /// At which age a lead is given up, after an attempt that counts; 0: at none.
    pub max_age_ms: u64,
    /// The delay after the first attempt.
    pub initial_ms: u64,
    /// What each further delay is multiplied with.
    pub multiplier: f64,
    /// The longest delay.
    pub max_ms: u64,
    /// How far delays are moved at random, as a share of them.
    pub jitter: f64,
    /// The longest `Retry-After` that is obeyed to the letter.
    pub max_retry_after_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 20,
            max_age_ms: 72 * 3600 * 1000,
            initial_ms: 10_000,
            multiplier: 2.0,
            max_ms: 3600 * 1000,
            jitter: 0.2,
            max_retry_after_ms: 24 * 3600 * 1000,
        }
    }
}

/// Flow control.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flow {
    /// How many posts may be under way at a time at most.
    pub concurrency: usize,
    /// How many may be under way at least, however slow or busy the API is: between the two, as many are as it can take. 0: always as many
    /// as `concurrency`.
    pub min_concurrency: usize,
    /// How many leads are accepted, or settled, in one transaction at most.
    pub batch: usize,
    /// Posts per second of all live workers of the destination together, in equal shares; 0: no limit.
    pub rate_per_s: f64,
    /// How long a lead is leased to a worker for one attempt.
    pub lease_ms: u64,
    /// The share of slots that due retries have when fresh leads want all of them.
    pub retry_share: f64,
    /// How often the ledger is asked for due retries.
    pub poll_ms: u64,
    /// After how many failures in a row the circuit opens.
    pub open_after: u32,
    /// How long an open circuit waits before its second probe; the first comes at once.
    pub probe_initial_ms: u64,
    /// The longest wait between probes.
    pub probe_max_ms: u64,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            concurrency: 64,
            min_concurrency: 0,
            batch: 256,
            rate_per_s: 0.0,
            lease_ms: 120_000,
            retry_share: 0.25,
            poll_ms: 500,
            open_after: 20,
            probe_initial_ms: 1_000,
            probe_max_ms: 60_000,
        }
    }
}

impl Flow {
    /// How many posts may be under way at a time at least.
    pub fn least(&self) -> usize {
        if self.min_concurrency == 0 { self.concurrency } else { self.min_concurrency }
    }

    /// How many leads may be accepted ahead of their slots, so that those do not idle while a batch is committed: what so many posts at a time,
    /// which take so long, get through in a tenth of a second. More would only wait here, under a lease and before whatever comes fresh.
    pub fn ahead(&self, posts: usize, post_takes: Duration) -> usize {
        const FOR: Duration = Duration::from_millis(100);
        const FOR_EACH_SLOT: f64 = 4.0;
        let for_each = (FOR.as_secs_f64() / post_takes.as_secs_f64().max(1e-6)).min(FOR_EACH_SLOT);
        ((posts as f64 * for_each).ceil() as usize).clamp(1, self.batch.max(1))
    }
}

/// For how many days the ledger keeps leads that have ended, by state; 0: for ever. A message that comes again after its lead was removed is a new
/// lead.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Leads that the API took.
    pub delivered_days: u32,
    /// Leads that it had already.
    pub duplicate_days: u32,
    /// What was no valid lead.
    pub invalid_days: u32,
    /// Leads that the API refused for good.
    pub rejected_days: u32,
    /// Leads whose attempts or age were used up.
    pub exhausted_days: u32,
    /// Leads that may have been posted, and that nobody has decided on.
    pub uncertain_days: u32,
    /// Leads that a person stopped.
    pub cancelled_days: u32,
    /// What the API answered, of leads that are kept.
    pub answers_days: u32,
}

impl Retention {
    /// Whether every lead is kept for ever.
    pub fn is_off(&self) -> bool {
        let days = serde_json::to_value(self).unwrap_or_default();
        days.as_object().is_none_or(|days| days.values().all(|days| *days == 0))
    }
}

/// The admin port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where `/livez`, `/readyz` and `/metrics` are served; empty: nowhere.
    pub listen: String,
    /// What has to come along as `Authorization: Bearer …` for more than whether the worker is well.
    pub token: Secret,
    /// A file that holds the token.
    pub token_file: Option<PathBuf>,
    /// Whether all is for everybody where `listen` is no loopback address, without a token.
    pub open: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9090".to_owned(), token: Secret::default(), token_file: None, open: false }
    }
}

/// Logging.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A `tracing` filter such as `info` or `leadpost=debug`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Stopping.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long posts under way may take to end after SIGTERM.
    pub grace_ms: u64,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace_ms: 40_000 }
    }
}

impl Settings {
    /// The prefetch to ask RabbitMQ for. Messages are acknowledged when they are accepted, which is before they are posted: so few are
    /// enough for the next batches to be there in time, however many posts are under way. With a rate limit, what can be sent in a minute:
    /// more would only wait here instead of in the queue.
    pub fn prefetch(&self) -> u16 {
        const LEAST: usize = 4;
        if self.amqp.prefetch > 0 {
            return self.amqp.prefetch;
        }
        let flow = &self.flow;
        let mut prefetch = flow
            .batch
            .saturating_mul(4)
            .min((flow.concurrency + flow.ahead(flow.concurrency, Duration::ZERO)).saturating_mul(2));
        if flow.rate_per_s > 0.0 {
            prefetch = prefetch.min((flow.rate_per_s * 60.0) as usize).max(LEAST);
        }
        u16::try_from(prefetch).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_ahead_waits_a_tenth_of_a_second_for_its_slot_at_most_and_is_a_batch_at_most() {
        let flow = Flow { batch: 256, ..Flow::default() };
        let ahead = |posts, ms| flow.ahead(posts, Duration::from_millis(ms));
        assert_eq!([ahead(64, 0), ahead(64, 20), ahead(20, 1)], [256, 256, 80], "a few for each slot at a quick API");
        assert_eq!([ahead(64, 100), ahead(64, 500), ahead(64, 30_000)], [64, 13, 1], "few at a slow one");
        assert_eq!([ahead(1, 100), ahead(1, 10_000)], [1, 1]);
        assert_eq!(ahead(10_000, 100), 256);
    }
}
