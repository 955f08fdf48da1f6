//! Leads in any state, written through the ledger's own API, and messages that the broker flags as redelivered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use leadpost::config::Settings;
use leadpost::lead::{Code, Keys, LeadId, Violation};
use leadpost::ledger::{Arrival, Attempt, End, Fate, LeadState, Leased, Ledger, Next, OnLock, RequestKind, Settlement};
use leadpost::lifecycle::Shutdown;
use leadpost::traces::Traces;
use leadpost::worker::Worker;
use tokio::time::Instant;
use uuid::Uuid;

use super::broker::Broker;
use super::{Running, World};

/// A lease that does not run out while a test runs.
pub const LEASE: Duration = Duration::from_secs(120);

/// A valid lead's message, as intake hands it over.
pub fn arrival(id: LeadId, body: &str) -> Arrival {
    Arrival {
        id,
        body: Bytes::copy_from_slice(body.as_bytes()),
        message_id: Some(id.to_string()),
        redelivered: false,
        replay: false,
        keys: Keys::of_body(body.as_bytes()),
        violations: Vec::new(),
        trace: None,
    }
}

/// An attempt with this outcome.
pub fn attempt(outcome: &'static str, http_status: Option<u16>) -> Attempt {
    let failed = outcome != "delivered";
    Attempt {
        request: RequestKind::Post,
        started_at: Instant::now(),
        duration: Duration::ZERO,
        outcome,
        charged: !matches!(outcome, "not_sent" | "systemic" | "unauthorized"),
        http_status,
        code: failed.then(|| "put".to_owned()),
        reason: failed.then(|| "put there by a test".to_owned()),
        answer: None,
        retry_after: None,
    }
}

/// How a lead comes to this state, and the attempt by which it does.
pub fn ending(state: LeadState) -> (Vec<Attempt>, Next) {
    let attempts = match state {
        LeadState::Delivered => vec![attempt("delivered", Some(201))],
        LeadState::Duplicate => vec![attempt("duplicate", Some(409))],
        LeadState::Rejected => vec![attempt("rejected", Some(422))],
        LeadState::Exhausted => vec![attempt("retry", Some(503))],
        LeadState::Uncertain => vec![attempt("uncertain", Some(500))],
        LeadState::Pending | LeadState::Invalid | LeadState::Cancelled => Vec::new(),
    };
    let (code, reason) = (Some("put".to_owned()), Some("put there by a test".to_owned()));
    let next = match state {
        LeadState::Pending => Next::Again { after: Duration::from_secs(3600), code, reason },
        LeadState::Delivered => Next::End(End::default()),
        LeadState::Invalid => {
            let violations = vec![Violation::of_message(Code::Missing, "put there by a test")];
            Next::End(End { state: Some(state), code, violations, ..End::default() })
        }
        LeadState::Duplicate
        | LeadState::Rejected
        | LeadState::Exhausted
        | LeadState::Uncertain
        | LeadState::Cancelled => Next::End(End { state: Some(state), code, reason, ..End::default() }),
    };
    (attempts, next)
}

/// What settles this lead so that it comes to this state.
pub fn settlement(leased: &Leased, state: LeadState) -> Settlement {
    let (attempts, next) = ending(state);
    Settlement { id: leased.id, lease: leased.lease, attempts_before: leased.attempts, attempts, next, trace: None }
}

/// The leads of these fates that were leased.
pub fn leased(fates: &[Fate]) -> Vec<Leased> {
    let of = |fate: &Fate| if let Fate::Leased(leased) = fate { Some(leased.clone()) } else { None };
    fates.iter().filter_map(of).collect()
}

/// Accepts these and leases them under this token.
pub async fn accept(ledger: &Ledger, arrivals: &[Arrival], token: Uuid) -> Vec<Fate> {
    let fates = ledger.accept(arrivals.into(), Some((token, LEASE)), OnLock::Wait).await.unwrap();
    fates.into_iter().map(|fate| fate.expect("nothing is locked")).collect()
}

/// Puts a lead with this body into this state, by the ledger's own means; a pending one is due in an hour.
pub async fn put(ledger: &Ledger, id: LeadId, body: &str, state: LeadState) {
    let fates = accept(ledger, &[arrival(id, body)], Uuid::new_v4()).await;
    let settlements: Vec<Settlement> = leased(&fates).iter().map(|leased| settlement(leased, state)).collect();
    assert_eq!(settlements.len(), 1, "{fates:?}");
    let settled = ledger.settle(settlements.into(), false, OnLock::Wait).await.unwrap();
    assert!(settled.late.is_empty());
}

impl World {
    /// Puts a lead of this name into this state under a random id.
    pub async fn put(&self, name: &str, state: LeadState) -> LeadId {
        let id = LeadId(Uuid::new_v4());
        put(&self.ledger, id, &Self::lead(name), state).await;
        id
    }

    /// Another handle on the ledger, as a worker of this name has it.
    pub fn handle(&self, name: &str) -> Ledger {
        Ledger::new(&self.settings, name).unwrap()
    }

    /// Another destination that shares this ledger, with a queue of its own.
    pub async fn neighbour(&self, destination: &str) -> (Settings, Broker) {
        let broker = Broker::create().await;
        let mut settings = self.settings.clone();
        settings.destination.name = destination.to_owned();
        settings.amqp.queue = broker.queue.clone();
        (settings, broker)
    }

    /// Starts a worker with other settings.
    pub async fn start_with(&self, settings: Settings, name: &str) -> Running {
        leadpost::config::check(&settings).unwrap();
        let worker = Worker::new(settings, name, Traces::default()).unwrap();
        let shutdown = Shutdown::default();
        assert!(worker.prepare(true, &shutdown).await.unwrap());
        let (health, metrics) = (worker.health(), worker.metrics());
        let task = tokio::spawn(worker.run(shutdown.clone()));
        Running { shutdown, health, metrics, task }
    }

    /// The number of leads in each state that has any, by the tallies, which agree with the leads themselves.
    pub async fn tally(&self) -> Vec<(LeadState, i64)> {
        let verification = self.ledger.verify().await.unwrap();
        let broken: Vec<_> = verification.checks.iter().filter(|check| check.broken > 0).collect();
        assert!(broken.is_empty(), "{broken:#?}");
        self.ledger.status().await.unwrap().states.into_iter().filter(|(_, n)| *n != 0).collect()
    }

    /// Waits until so many messages have become rows, or were counted in one.
    pub async fn until_received(&self, n: i64) {
        self.until(&format!("{n} messages have arrived"), async || {
            self.number("select coalesce(sum(received), 0)::bigint from leads").await == n
        })
        .await;
    }

    /// Runs this statement in this world's database.
    pub async fn execute(&self, sql: &str) {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&self.database.pool).await.unwrap();
    }
}

impl Broker {
    /// Takes all messages that wait and puts them back: from now on they are flagged as redelivered.
    pub async fn redeliver(&self) {
        let mut last = None;
        while let Some(message) =
            self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()).await.unwrap()
        {
            last = Some(message.delivery.acker);
        }
        let acker = last.expect("no message waits");
        assert!(acker.nack(BasicNackOptions { multiple: true, requeue: true }).await.unwrap());
    }
}

/// So that a slice of arrivals can be accepted again and again.
pub fn shared(arrivals: Vec<Arrival>) -> Arc<[Arrival]> {
    arrivals.into()
}
