//! The probe: one lead is sent to find out whether posts can go on.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::intake::{Intake, LOOK_AROUND};
use crate::broker::Want;
use crate::flow::Taken;
use crate::lead::LeadId;
use crate::ledger::{Doubts, LedgerError};

/// How long a probe looks for a fresh message when the ledger has no other lead.
const PROBE_WAIT: Duration = Duration::from_millis(500);

impl Intake {
    /// Sends one lead to find out whether posts can go on.
    pub(super) async fn probe(&mut self, avoid: Vec<LeadId>, stop: &CancellationToken) -> Result<(), LedgerError> {
        // Without a token no lead needs to be risked.
        if let Err(error) = self.dispatch.tokens.get().await {
            self.flow.begin_probe();
            self.dispatch.no_token(&error, true);
            return Ok(());
        }
        let Some(permit) = self.flow.window.take_now(1) else {
            // Everything in hand is on its way back.
            tokio::select! {
                () = stop.cancelled() => {}
                _ = self.flow.window.take(1) => {}
                () = tokio::time::sleep(LOOK_AROUND) => {}
            }
            return Ok(());
        };
        self.flow.begin_probe();
        match self.find_probe(avoid, permit, stop).await {
            Ok(true) => Ok(()),
            // Without a lead on its way, nobody would ever end the probe.
            nothing => {
                self.flow.abandon_probe(Instant::now());
                nothing.map(drop)
            }
        }
    }

    /// Sends a lead as the probe, if there is one: another one that is due and would be posted; else a fresh one; else, for want of
    /// another, any that is due.
    async fn find_probe(
        &mut self,
        avoid: Vec<LeadId>,
        permit: Taken,
        stop: &CancellationToken,
    ) -> Result<bool, LedgerError> {
        let mut permit = Some(permit);
        // One that is asked for first may say nothing about posts.
        let doubts = if self.dispatch.api.can_be_asked() { Doubts::Excluded } else { Doubts::Included };
        if self.claim(1, avoid, doubts, &mut permit, true).await > 0 {
            return Ok(true);
        }
        if self.taken.is_empty() {
            self.inbox.want(Want::Messages);
            let mut arrived = Vec::new();
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(PROBE_WAIT) => {}
                () = self.inbox.take(&mut arrived, 1) => {}
            }
            self.took(arrived);
        }
        while permit.is_some() {
            let batch = self.next_batch(1);
            if batch.is_empty() {
                break;
            }
            // An invalid or known message leaves the permit for the next.
            self.accept_for(batch, &mut permit, true).await?;
        }
        Ok(permit.is_none() || self.claim(1, Vec::new(), Doubts::Included, &mut permit, true).await > 0)
    }
}
