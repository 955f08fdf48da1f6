//! Retention: leads that were kept for long enough are removed, and old answers redacted, a few at a time, while the flow goes on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::Health;
use crate::config;
use crate::ledger::{LeadState, Ledger};
use crate::metrics::Metrics;
use crate::reason::chain;

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(60);

/// Before the first round, and until there is time for one.
const SOON: Duration = Duration::from_secs(3);

/// How many leads are removed in one transaction. A message for one of them has to wait for its end.
const BATCH: usize = 500;

/// A pause is so many times as long as the batch before it: what removal takes is a fifth of one connection, and less when Postgres is slow
/// for others.
const PAUSE: u32 = 4;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The retention loop.
pub(super) struct Retention {
    pub(super) ledger: Ledger,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    /// The states whose leads are not kept for ever, and for how long they are.
    pub(super) kept: Vec<(LeadState, Duration)>,
    /// For how long answers are kept, unless that is as long as their leads.
    pub(super) answers: Option<Duration>,
    pub(super) stop: CancellationToken,
}

impl Retention {
    /// Runs until it is told to stop.
    pub(super) async fn run(self) {
        let mut pause = SOON;
        while self.waits(pause.mul_f64(0.9 + 0.2 * fastrand::f64())).await {
            pause = if self.health.has_time_to_spare() {
                self.round().await;
                self.redact().await;
                PERIOD
            } else {
                SOON
            };
        }
    }

    async fn round(&self) {
        let mut removed = 0;
        for (state, kept_for) in &self.kept {
            removed += self.remove(*state, *kept_for).await;
        }
        if removed > 0 {
            tracing::info!(leads = removed, "removed old leads");
        }
    }

    /// Removes all that there are now, and says how many. Ends early when the flow needs Postgres more, or another worker is at it.
    async fn remove(&self, state: LeadState, kept_for: Duration) -> u64 {
        let (mut removed, mut limit) = (0, BATCH);
        while self.health.has_time_to_spare() {
            let began = Instant::now();
            let batch = tokio::select! {
                // What is left behind here ends by itself, and does no harm.
                () = self.stop.cancelled() => break,
                batch = self.ledger.remove_old(state, kept_for, limit) => batch,
            };
            match batch {
                Ok(None) => break,
                Ok(Some(n)) => {
                    removed += n;
                    self.metrics.removed.inc_by(n);
                    if n < limit as u64 {
                        break;
                    }
                }
                Err(error) if error.is_about_size() && limit > 1 => limit /= 2,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), %state, "could not remove old leads");
                    break;
                }
            }
            if !self.waits(began.elapsed() * PAUSE).await {
                break;
            }
        }
        removed
    }

    /// Redacts all answers that are old enough by now.
    async fn redact(&self) {
        let Some(kept_for) = self.answers else { return };
        let (mut redacted, mut after) = (0, None);
        while self.health.has_time_to_spare() {
            let began = Instant::now();
            let batch = tokio::select! {
                () = self.stop.cancelled() => break,
                batch = self.ledger.redact(kept_for, after, BATCH, None) => batch,
            };
            match batch {
                Ok((n, next)) => {
                    redacted += n;
                    if next.is_none() {
                        break;
                    }
                    after = next;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "could not redact old answers");
                    break;
                }
            }
            if !self.waits(began.elapsed() * PAUSE).await {
                break;
            }
        }
        if redacted > 0 {
            tracing::info!(attempts = redacted, "redacted old answers");
        }
    }

    /// Waits; `false`: it was told to stop meanwhile.
    async fn waits(&self, pause: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// For how long answers are kept, unless that is as long as their leads.
pub(super) fn answers(settings: &config::Retention) -> Option<Duration> {
    (settings.answers_days > 0).then(|| DAY * settings.answers_days)
}

/// The states whose leads are not kept for ever, and for how long they are.
pub(super) fn kept(settings: &config::Retention) -> Vec<(LeadState, Duration)> {
    let days = |state| match state {
        // Whatever its age, it is still to be posted.
        LeadState::Pending => 0,
        LeadState::Delivered => settings.delivered_days,
        LeadState::Duplicate => settings.duplicate_days,
        LeadState::Invalid => settings.invalid_days,
        LeadState::Rejected => settings.rejected_days,
        LeadState::Exhausted => settings.exhausted_days,
        LeadState::Uncertain => settings.uncertain_days,
        LeadState::Cancelled => settings.cancelled_days,
    };
    LeadState::ALL.into_iter().filter(|state| days(*state) > 0).map(|state| (state, DAY * days(state))).collect()
}
