//! The settle loop: what has gathered while the last transaction ran goes into the next.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::dispatch::{Said, Settling};
use super::health::{Doing, Health};
use super::verdict::{MAX_SUSPICIONS, Policy};
use crate::lead::LeadId;
use crate::ledger::{LeadState, Ledger, LedgerError, Next, OnLock, RequestKind, Settled, Settlement};
use crate::metrics::{Metrics, happened};
use crate::reason::chain;
use crate::schedule::Schedule;

/// Between two tries of a transaction.
pub(super) const AGAIN: Schedule =
    Schedule { initial: Duration::from_millis(50), multiplier: 2.0, max: Duration::from_secs(5), jitter: 0.5 };

/// Between two tries of leads that somebody has locked.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// A transaction that carried so many leads is followed by a pause as long as it took, up to this: what gathers meanwhile shares the cost of the
/// next. One that carried fewer is not: a lone lead waits for nobody.
const MANY: usize = 32;
const GATHER: Duration = Duration::from_millis(10);

/// The settle loop.
pub(super) struct Settler {
    pub(super) ledger: Ledger,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) settlements: mpsc::Receiver<Settling>,
    pub(super) batch: usize,
}

impl Settler {
    /// Runs until all who could settle are gone and everything is settled.
    pub(super) async fn run(mut self) {
        let mut gathered = Vec::with_capacity(self.batch);
        // Leads that somebody has locked; they do not hold up the others.
        let mut busy: Vec<Settling> = Vec::new();
        loop {
            let received = if busy.is_empty() {
                self.settlements.recv_many(&mut gathered, self.batch).await
            } else {
                let more = self.settlements.recv_many(&mut gathered, self.batch);
                tokio::time::timeout(BUSY_PAUSE, more).await.unwrap_or(usize::MAX)
            };
            if received == 0 {
                if busy.is_empty() {
                    return;
                }
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            let on_lock = if busy.is_empty() { OnLock::Wait } else { OnLock::Skip };
            let mut batch = std::mem::take(&mut busy);
            batch.append(&mut gathered);
            self.metrics.settle_batch.had(batch.len());
            let (many, began) = (batch.len() >= MANY, Instant::now());
            busy = self.settle_batch(batch, on_lock).await;
            self.health.settling_late(!busy.is_empty());
            if many && self.settlements.len() < self.batch && !self.settlements.is_closed() {
                tokio::time::sleep(began.elapsed().min(GATHER)).await;
            }
        }
    }

    /// Settles a batch, and comes back with what somebody has locked.
    async fn settle_batch(&self, batch: Vec<Settling>, on_lock: OnLock) -> Vec<Settling> {
        let (settlements, said): (Vec<Settlement>, Vec<Said>) =
            batch.into_iter().map(|settling| (settling.settlement, settling.said)).unzip();
        let settlements: Arc<[Settlement]> = settlements.into();
        let began = Instant::now();
        let settled = self.settle(Arc::clone(&settlements), on_lock).await;
        let ended = Instant::now();
        self.metrics.settle_duration.took(ended - began);
        let mut busy = Vec::new();
        let mut blamed = Vec::new();
        for (settlement, mut said) in settlements.iter().zip(said) {
            blamed.append(&mut said.blamed);
            if settled.busy.contains(&settlement.id) {
                busy.push(Settling { settlement: settlement.clone(), said });
            } else {
                said.span.part("settle", began, ended);
                self.tell(settlement, said, settled.late.contains(&settlement.id));
            }
        }
        if !blamed.is_empty() {
            self.blame(blamed).await;
        }
        busy
    }

    /// Settles until it is known to be settled.
    async fn settle(&self, settlements: Arc<[Settlement]>, mut on_lock: OnLock) -> Settled {
        let mut tries = 0;
        // What was locked before may have been settled by a try that was given up.
        let mut repeated = on_lock == OnLock::Skip;
        loop {
            repeated |= tries > 0;
            match self.ledger.settle(Arc::clone(&settlements), repeated, on_lock).await {
                Ok(settled) => {
                    self.health.ledger_is_up(Doing::Settle);
                    return settled;
                }
                Err(error) if error.is_about_data() || error.is_about_size() && settlements.len() > 1 => {
                    if error.is_about_size() {
                        self.metrics.ledger_failures.inc();
                        self.health.ledger_is_down(Doing::Settle, &error);
                        self.health.settling_late(true);
                    }
                    return self.split(&settlements, &error).await;
                }
                Err(error) => {
                    tries += 1;
                    if error.is_about_locks() {
                        on_lock = OnLock::Skip;
                    }
                    self.metrics.ledger_failures.inc();
                    self.health.ledger_is_down(Doing::Settle, &error);
                    self.health.settling_late(true);
                    let pause = AGAIN.delay(tries, fastrand::f64());
                    tracing::warn!(error = %chain(&error), leads = settlements.len(), "could not settle; trying again");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Something in the batch cannot be stored: halves, until the culprit stands alone, and is settled without its texts.
    async fn split(&self, settlements: &[Settlement], error: &LedgerError) -> Settled {
        match settlements {
            [] => Settled::default(),
            [single] if single.attempts.iter().all(|attempt| attempt.reason.is_none() && attempt.answer.is_none()) => {
                // Nothing of a stranger's is left in it: this is a bug, and the lease will run out.
                tracing::error!(lead.id = %single.id, error = %chain(error), "a settlement cannot be stored");
                Settled::default()
            }
            [single] => {
                tracing::error!(lead.id = %single.id, error = %chain(error), "the texts of a settlement cannot be stored; leaving them out");
                Box::pin(self.settle(Arc::new([without_texts(single)]), OnLock::Wait)).await
            }
            several => {
                let (left, right) = several.split_at(several.len() / 2);
                let mut settled = Box::pin(self.settle(left.into(), OnLock::Wait)).await;
                let more = Box::pin(self.settle(right.into(), OnLock::Wait)).await;
                settled.late.extend(more.late);
                settled.busy.extend(more.busy);
                settled
            }
        }
    }

    async fn blame(&self, blamed: Vec<LeadId>) {
        match self.ledger.suspect(blamed, MAX_SUSPICIONS, Policy::blamed()).await {
            Ok(rejected) => {
                for id in rejected {
                    self.metrics.ended(LeadState::Rejected);
                    self.metrics.reasons.count("systemic_own_fault");
                    self.health.pulse().settled(LeadState::Rejected);
                    tracing::warn!(lead.id = %id, state = "rejected", code = "systemic_own_fault", "lead settled");
                }
            }
            // Not worth a repetition: the lead meets the same answer again, and is blamed then.
            Err(error) => tracing::warn!(error = %chain(&error), "could not record suspicions"),
        }
    }

    /// One line for each lead: ids, codes and numbers.
    fn tell(&self, settlement: &Settlement, said: Said, is_late: bool) {
        let Settlement { id, attempts, attempts_before, next, .. } = settlement;
        if is_late {
            self.metrics.late.inc();
            tracing::warn!(lead.id = %id, "settled too late: the lease had run out, and the attempt counts as uncertain");
            return said.span.end("late", Some("lease_expired"), true);
        }
        let last = attempts.last();
        let attempt = attempts_before + u32::try_from(attempts.len()).unwrap_or(0);
        let http_status = last.and_then(|attempt| attempt.http_status);
        let took_ms = |kind: RequestKind| {
            let last = last.filter(|attempt| attempt.request == kind)?;
            Some(u64::try_from(last.duration.as_millis()).unwrap_or(u64::MAX))
        };
        let (post_ms, query_ms) = (took_ms(RequestKind::Post), took_ms(RequestKind::Query));
        self.health.pulse().settled(next.state());
        let (state, code) = (next.state().as_str(), next.code());
        if let Some(code) = code {
            self.metrics.reasons.count(code);
        }
        match next {
            Next::Again { after, .. } => {
                let next_attempt_in_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(lead.id = %id, state, attempt, http.status = http_status, post_ms, query_ms, code, next_attempt_in_ms, "lead settled");
            }
            Next::End(end) => {
                self.metrics.ended(next.state());
                self.metrics.lead_duration.took(said.age + said.leased_at.elapsed());
                if next.state() == LeadState::Delivered {
                    happened(&self.metrics.last_delivered);
                }
                let warning = end.receipt.as_ref().is_some_and(|receipt| receipt.warning.is_some());
                if warning {
                    self.metrics.warnings.inc();
                    tracing::warn!(lead.id = %id, state, attempt, http.status = http_status, post_ms, query_ms, "lead settled, but the API may not be working it; see leadpost leads show");
                } else {
                    tracing::info!(lead.id = %id, state, attempt, http.status = http_status, post_ms, query_ms, code, "lead settled");
                }
            }
        }
        // One that waits is none that has failed.
        let is_bad = !matches!(next.state(), LeadState::Pending | LeadState::Delivered | LeadState::Duplicate);
        said.span.end(state, code, is_bad);
    }
}

fn without_texts(settlement: &Settlement) -> Settlement {
    let mut plain = settlement.clone();
    for attempt in &mut plain.attempts {
        attempt.reason = None;
        attempt.answer = None;
    }
    const LEFT_OUT: &str = "the API's words could not be stored";
    match &mut plain.next {
        Next::Again { reason, .. } => *reason = Some(LEFT_OUT.to_owned()),
        Next::End(end) => {
            end.receipt = None;
            end.reason = end.reason.as_ref().map(|_| LEFT_OUT.to_owned());
        }
    }
    plain
}
