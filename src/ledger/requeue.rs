//! Replay from the operator's side: ended leads become pending again, in one transaction, with who, when and why.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::Row as _;
use uuid::Uuid;

use super::model::LeadState;
use super::pool::READ_ALL;
use super::{Ledger, LedgerError};
use crate::fault::{self, Point};
use crate::lead::LeadId;

/// Which leads.
#[derive(Debug, Clone)]
pub enum Selection {
    /// These.
    Ids(Vec<LeadId>),
    /// All in these states that came to them within the last so many seconds; `None`: ever.
    States(Vec<LeadState>, Option<f64>),
}

/// A requeue.
#[derive(Debug, Clone)]
pub struct Requeue {
    /// Which leads.
    pub selection: Selection,
    /// Whether leads that the API took, or has, are posted again too.
    pub include_delivered: bool,
    /// How many become due per second; `None`: all at once.
    pub rate_per_s: Option<f64>,
    /// Who does it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// Whether to only say what would be done.
    pub dry_run: bool,
}

/// What a requeue came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Requeued {
    /// How many leads are pending again.
    pub requeued: u64,
    /// Named leads that there are none of in this destination.
    pub unknown: Vec<LeadId>,
    /// Named leads that are pending anyway.
    pub pending: Vec<LeadId>,
    /// Named leads that the API took, or has, and that were left alone for that.
    pub delivered: Vec<LeadId>,
}

impl Ledger {
    /// Sends ended leads on their way again. Interrupted, it has done all or nothing; repeated, it finds none.
    ///
    /// # Errors
    /// That nothing was requeued, or that nobody knows.
    pub async fn requeue(&self, requeue: Requeue) -> Result<Requeued, LedgerError> {
        let ledger = self.clone();
        let requeue = Arc::new(requeue);
        self.pool
            .run_long("requeue leads", move |pool| {
                let (ledger, requeue) = (ledger.clone(), Arc::clone(&requeue));
                async move {
                    let mut transaction = pool.begin().await?;
                    // A million leads take longer than any statement of the worker may.
                    sqlx::query("set local statement_timeout = 0").execute(&mut *transaction).await?;
                    sqlx::raw_sql(READ_ALL).execute(&mut *transaction).await?;
                    let mut requeued =
                        Requeued { requeued: 0, unknown: Vec::new(), pending: Vec::new(), delivered: Vec::new() };
                    let (ids, states, since) = match &requeue.selection {
                        Selection::Ids(ids) => {
                            let mut seen = HashSet::new();
                            let ids: Vec<Uuid> = ids.iter().map(|id| id.0).filter(|id| seen.insert(*id)).collect();
                            (Some(ids), Vec::new(), None)
                        }
                        Selection::States(states, since) => {
                            (None, states.iter().map(|state| state.as_str()).collect::<Vec<_>>(), *since)
                        }
                    };
                    if let Some(ids) = &ids {
                        let rows = sqlx::query(
                            "select t.id, l.state from unnest($1::uuid[]) with ordinality as t (id, place) \
                             left join leads l on l.id = t.id and l.destination = $2 order by t.place",
                        )
                        .bind(ids)
                        .bind(&*ledger.destination)
                        .fetch_all(&mut *transaction)
                        .await?;
                        for row in rows {
                            let id = LeadId(row.try_get(0)?);
                            match row.try_get::<Option<String>, _>(1)?.as_deref() {
                                None => requeued.unknown.push(id),
                                Some("pending") => requeued.pending.push(id),
                                Some("delivered" | "duplicate") if !requeue.include_delivered => {
                                    requeued.delivered.push(id)
                                }
                                Some(_) => {}
                            }
                        }
                    }
                    let count: i64 = sqlx::query_scalar(
                        "with locked as ( \
                             select id, state, finished_at from leads \
                             where destination = $1 and state <> 'pending' \
                                 and ($2::uuid[] is null or id = any($2)) \
                                 and ($2::uuid[] is not null or state = any($3)) \
                                 and ($4::float8 is null or finished_at >= now() - $4 * interval '1 second') \
                                 and ($5 or state not in ('delivered', 'duplicate')) \
                             order by id for update \
                         ), numbered as ( \
                             select id, state, row_number() over (order by finished_at, id) - 1 as n from locked \
                         ), noted as ( \
                             insert into replays (lead_id, replayed_at, from_state, kind, replayed_by, reason) \
                             select id, clock_timestamp(), state, 'requeue', $6, $7 from numbered \
                         ), moved as ( \
                             update leads l set state = 'pending', changed_at = now(), finished_at = null, \
                                 next_attempt_at = now() + case when $8::float8 is null then interval '0' \
                                     else n.n / $8 * interval '1 second' end, \
                                 charged = 0, suspected = 0, replays = l.replays + 1, \
                                 budget_from = now() + case when $8::float8 is null then interval '0' \
                                     else n.n / $8 * interval '1 second' end, \
                                 code = null, reason = null, violations = null, warning = null \
                             from numbered n where l.id = n.id \
                             returning l.id \
                         ) \
                         select count(*) from moved",
                    )
                    .bind(&*ledger.destination)
                    .bind(ids)
                    .bind(states)
                    .bind(since)
                    .bind(requeue.include_delivered)
                    .bind(&requeue.by)
                    .bind(&requeue.reason)
                    .bind(requeue.rate_per_s)
                    .fetch_one(&mut *transaction)
                    .await?;
                    requeued.requeued = u64::try_from(count).unwrap_or(0);
                    if requeue.dry_run {
                        transaction.rollback().await?;
                    } else {
                        fault::at(Point::Requeueing);
                        transaction.commit().await?;
                        fault::at(Point::Requeued);
                    }
                    Ok(requeued)
                }
            })
            .await
    }
}
