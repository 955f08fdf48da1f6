//! Leases of which nobody knows whether they are there: an accept or a claim whose answer was lost may have been committed all
//! the same. Its leads were never posted, so they are made due again before their leases run out and count as if they had been.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::health::{Doing, Health};
use super::intake::LOOK_AROUND;
use crate::ledger::Ledger;

/// Tokens of transactions whose answers were lost.
pub(super) struct Orphans {
    ledger: Ledger,
    health: Arc<Health>,
    lease: Duration,
    /// The tokens, and since when.
    tokens: Vec<(Uuid, Instant)>,
    /// When they are released again.
    due_at: Instant,
}

impl Orphans {
    pub(super) fn new(ledger: Ledger, health: Arc<Health>, lease: Duration) -> Self {
        Self { ledger, health, lease, tokens: Vec::new(), due_at: Instant::now() }
    }

    pub(super) fn extend(&mut self, tokens: impl IntoIterator<Item = Uuid>) {
        let now = Instant::now();
        self.tokens.extend(tokens.into_iter().map(|token| (token, now)));
    }

    /// Releases what there is, now and then, for as long as such a transaction may still be under way.
    pub(super) async fn release_when_due(&mut self) {
        if !self.tokens.is_empty() && self.due_at <= Instant::now() {
            self.due_at = Instant::now() + LOOK_AROUND;
            self.release().await;
        }
    }

    /// Releases what there is.
    pub(super) async fn release(&mut self) {
        if self.tokens.is_empty() {
            return;
        }
        let tokens = self.tokens.iter().map(|(token, _)| *token).collect();
        let oldest = self.tokens.iter().map(|(_, since)| since.elapsed()).max().unwrap_or_default();
        match self.ledger.release(tokens, oldest, self.lease).await {
            Ok(released) => {
                if released > 0 {
                    tracing::info!(leads = released, "released leads that were leased without our knowing");
                }
                let lease = self.lease;
                self.tokens.retain(|(_, since)| since.elapsed() < lease);
            }
            Err(error) => self.health.ledger_is_down(Doing::Anything, &error),
        }
    }
}
