//! What has to be done now and then: say that we live, and settle leads whose lease ran out. However long the second takes, it does not
//! delay the first, by which workers share a rate limit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::{Doing, Health};
use super::verdict::{Facts, Policy};
use crate::destination::Outcome;
use crate::flow::{self, Flow};
use crate::ledger::{Expired, Ledger, RequestKind, Settlement};
use crate::metrics::Metrics;
use crate::reason::{Reason, chain};

/// Between two heartbeats without a rate limit, and between two looks for leases that ran out; a tenth more or less.
const PERIOD: Duration = Duration::from_secs(5);

/// Between two readings of the ledger's numbers by a worker that is alone; of several each waits for so many times that, up to this number.
const MEASURED: Duration = Duration::from_secs(10);
const MOST_PATIENT: i64 = 6;

/// So long after the ledger has come back no lease is taken for run out: those who hold results settle them first.
const AFTER_OUTAGE: Duration = Duration::from_secs(30);

/// The upkeep loops.
pub(super) struct Upkeep {
    pub(super) ledger: Ledger,
    pub(super) flow: Arc<Flow>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) policy: Policy,
    pub(super) stop: CancellationToken,
}

impl Upkeep {
    /// Runs until it is told to stop.
    pub(super) async fn run(self) {
        let beaten = Notify::new();
        tokio::join!(self.live(&beaten), self.settle_expired(&beaten), self.measure(&beaten));
    }

    async fn live(&self, beaten: &Notify) {
        let period = if self.flow.is_shared() { flow::HEARTBEAT } else { PERIOD };
        loop {
            if self.heartbeat().await {
                beaten.notify_waiters();
            }
            // Workers that were started together do not stay together.
            let pause = period.mul_f64(0.9 + 0.2 * fastrand::f64());
            tokio::select! {
                () = self.stop.cancelled() => return,
                // Other workers, and people who look, are told at once.
                () = self.flow.news() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether it was written.
    async fn heartbeat(&self) -> bool {
        let status = serde_json::to_value(self.health.beat()).unwrap_or_default();
        let asked_at = Instant::now();
        let shared = self.flow.hold_to_share(asked_at);
        match self.ledger.heartbeat(status, shared, flow::SEEN_WITHIN).await {
            Ok(beat) => {
                self.health.ledger_is_up(Doing::Anything);
                self.flow.hold_is_shared();
                self.flow.share_with(beat.workers, asked_at, Instant::now());
                self.metrics.ledger.workers.set(i64::from(beat.workers));
                // Another worker may have been told; a person may have lifted it.
                if self.flow.hold_seen(beat.hold, asked_at, Instant::now()) {
                    tracing::info!("a hold (Retry-After) was lifted");
                }
                true
            }
            Err(error) => {
                self.health.ledger_is_down(Doing::Anything, &error);
                tracing::warn!(error = %chain(&error), "could not write the heartbeat");
                false
            }
        }
    }

    /// Behind a heartbeat each time that was written: while the ledger is away, this would wait for its end, and be the first then.
    async fn settle_expired(&self, beaten: &Notify) {
        let mut due_at = Instant::now();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                // Not one that came while the last turn took its time.
                () = beaten.notified() => {}
            }
            if due_at <= Instant::now() {
                due_at = Instant::now() + PERIOD.mul_f64(0.9);
                self.expire().await;
            }
        }
    }

    /// Reads the numbers of the ledger that are shown as metrics. As often as this, and no oftener, however often they are scraped: more workers
    /// each do so more seldom. Behind a heartbeat, for the reason above.
    async fn measure(&self, beaten: &Notify) {
        let mut due_at = Instant::now();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = beaten.notified() => {}
            }
            if due_at > Instant::now() {
                continue;
            }
            let workers = self.metrics.ledger.workers.get().clamp(1, MOST_PATIENT);
            due_at = Instant::now() + MEASURED.mul_f64(workers as f64 - 0.1);
            // Only read, so that a stop need not wait for it.
            let levels = tokio::select! {
                () = self.stop.cancelled() => return,
                levels = self.ledger.levels() => levels,
            };
            match levels {
                Ok(levels) => self.metrics.ledger.set(&levels),
                Err(error) => tracing::warn!(error = %chain(&error), "could not read the numbers of the ledger"),
            }
        }
    }

    async fn expire(&self) {
        // After an outage, what is known of posts is settled first: here, and in other workers that were cut off too.
        if self.health.ledger_up_for().is_some_and(|up| up < AFTER_OUTAGE) || self.health.is_settling_late() {
            return;
        }
        let policy = self.policy.clone();
        let reason = Reason::new("lease_expired", "the worker died or was cut off, perhaps after it had posted");
        let outcome = Outcome::Uncertain(reason);
        let place = outcome.place();
        let decide = move |expired: &Expired| {
            let facts = Facts { charged: expired.charged + 1, age: expired.age };
            policy.next(&outcome, facts, fastrand::f64())
        };
        match self.ledger.expire(decide).await {
            Ok(expired) => {
                for Settlement { id, next, .. } in expired {
                    self.metrics.expired.inc();
                    self.metrics.attempts.count(RequestKind::Post, place, None);
                    self.metrics.reasons.count(next.code().unwrap_or_default());
                    self.metrics.ended(next.state());
                    self.health.pulse().settled(next.state());
                    tracing::warn!(lead.id = %id, code = "lease_expired", "a lease ran out; the attempt counts as uncertain");
                }
            }
            Err(error) => tracing::warn!(error = %chain(&error), "could not settle expired leases"),
        }
    }
}
