//! A lead's body, corrected by a person, and sent on its way again.

use std::sync::Arc;

use sqlx::Row as _;

use super::model::LeadState;
use super::{Ledger, LedgerError};
use crate::fault::{self, Point};
use crate::lead::{Keys, LeadId};

/// A correction.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Of which lead.
    pub id: LeadId,
    /// The body as the person saw it.
    pub before: Vec<u8>,
    /// The body as it shall be: a valid lead.
    pub after: Vec<u8>,
    /// What it can be found by then.
    pub keys: Keys,
    /// Also when the API took it, has it, or may have it: it is posted once more.
    pub include_delivered: bool,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

/// What a correction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edited {
    /// The lead has the new body, and is due.
    Done,
    /// This destination has no such lead.
    Unknown,
    /// Somebody else has changed the body meanwhile.
    Changed,
    /// It is being posted: nobody knows with which body it would arrive.
    Posting,
    /// The API has it, or may have it, and that was not to be overridden.
    Taken(LeadState),
}

impl Ledger {
    /// Replaces a lead's body, keeps the former one, and makes the lead due with a fresh budget of attempts.
    ///
    /// # Errors
    /// That nothing was changed, or that nobody knows.
    pub async fn edit(&self, edit: Edit) -> Result<Edited, LedgerError> {
        let (ledger, edit) = (self.clone(), Arc::new(edit));
        self.pool
            .run("edit a lead", move |pool| {
                let (ledger, edit) = (ledger.clone(), Arc::clone(&edit));
                async move {
                    let mut transaction = pool.begin().await?;
                    let row = sqlx::query(
                        "select state, body = $3, lease is not null from leads where id = $1 and destination = $2 for update",
                    )
                    .bind(edit.id.0)
                    .bind(&*ledger.destination)
                    .bind(&edit.before)
                    .fetch_optional(&mut *transaction)
                    .await?;
                    let Some(row) = row else { return Ok(Edited::Unknown) };
                    let state = super::accept::state(row.try_get(0)?)?;
                    let is_taken = matches!(state, LeadState::Delivered | LeadState::Duplicate | LeadState::Uncertain);
                    if row.try_get(2)? {
                        return Ok(Edited::Posting);
                    }
                    if !row.try_get::<bool, _>(1)? {
                        return Ok(Edited::Changed);
                    }
                    if is_taken && !edit.include_delivered {
                        return Ok(Edited::Taken(state));
                    }
                    sqlx::query(
                        "with noted as ( \
                             insert into interventions (lead_id, kind, from_state, done_by, reason, body, body_before, email_key) \
                             select id, 'edit', $2, $3, $4, $5, sha256($5), email_key from leads where id = $1 \
                         ), replayed as ( \
                             insert into replays (lead_id, from_state, kind, replayed_by, reason) values ($1, $2, 'requeue', $3, $4) \
                         ) \
                         update leads set body = $6, email_key = $7, assistant_key = $8, state = 'pending', changed_at = now(), \
                             finished_at = null, next_attempt_at = now(), budget_from = now(), charged = 0, suspected = 0, \
                             replays = replays + 1, code = null, reason = null, violations = null, warning = null \
                         where id = $1",
                    )
                    .bind(edit.id.0)
                    .bind(state.as_str())
                    .bind(&edit.by)
                    .bind(&edit.reason)
                    .bind(&edit.before)
                    .bind(&edit.after)
                    .bind(edit.keys.email.map(|email| email.0))
                    .bind(edit.keys.assistant.map(|assistant| assistant.0))
                    .execute(&mut *transaction)
                    .await?;
                    fault::at(Point::Requeueing);
                    transaction.commit().await?;
                    Ok(Edited::Done)
                }
            })
            .await
    }
}
