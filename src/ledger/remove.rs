//! Retention: ended leads are removed when they are old enough, a few at a time.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::model::LeadState;
use super::{Ledger, LedgerError};

/// A lead whose id another one came under stays as long as that one: with its id free, a message for the other would count as new. That is asked of
/// each lead by itself, as a join would have all of them read and sorted first.
///
/// Leads that somebody has locked are left for later. The state stands in the statement, as the indexes are for states: with a parameter, no
/// plan could use them for any. The array has each lead looked up by its id, whatever the planner believes of the table.
///
/// Attempts go by the trigger `leads_deleted`, replays by their foreign key; the tallies are the trigger's too.
fn remove(state: LeadState) -> String {
    format!(
        "delete from leads where id = any(array( \
             select id from leads \
             where destination = $1 and state = '{state}' and finished_at < now() - $2 * interval '1 second' \
                 and (select true from leads other where other.conflict_of = leads.id limit 1) is null \
             order by finished_at limit $3 for update skip locked))"
    )
}

impl Ledger {
    /// Removes up to `limit` leads that came to this end longer ago than that, the oldest first, with their attempts and replays. Says how many;
    /// `None`: another worker of the destination is at it, and nothing was removed. There is no end to a pending lead, so none is old.
    ///
    /// # Errors
    /// That nothing was removed, or that nobody knows.
    pub async fn remove_old(
        &self,
        state: LeadState,
        older_than: Duration,
        limit: usize,
    ) -> Result<Option<u64>, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("remove old leads", move |pool| {
                let ledger = ledger.clone();
                async move {
                    let mut transaction = pool.begin().await?;
                    let is_ours: bool = sqlx::query_scalar(
                        "select pg_try_advisory_xact_lock(hashtext('leadpost retention'), hashtext($1))",
                    )
                    .bind(&*ledger.destination)
                    .fetch_one(&mut *transaction)
                    .await?;
                    if !is_ours {
                        transaction.rollback().await?;
                        return Ok(None);
                    }
                    let removed = sqlx::query(AssertSqlSafe(remove(state)))
                        .bind(&*ledger.destination)
                        .bind(older_than.as_secs_f64())
                        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                        .execute(&mut *transaction)
                        .await?;
                    transaction.commit().await?;
                    Ok(Some(removed.rows_affected()))
                }
            })
            .await
    }
}
