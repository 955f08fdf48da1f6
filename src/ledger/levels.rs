//! Numbers of a destination that are watched all the time: read at a cost that does not grow with the ledger.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool, Row as _};

use super::model::LeadState;
use super::{Ledger, LedgerError};

/// No more rows of a kind than this are counted one by one.
const LOOKED_AT: i64 = 10_000;

/// Numbers of a destination.
#[derive(Debug, Clone)]
pub struct Levels {
    /// How many leads are in each state, in the order of [`LeadState::ALL`].
    pub states: [i64; LeadState::ALL.len()],
    /// Leads that are due and not leased: at least so many, if there are more than 10,000.
    pub due: i64,
    /// For how long the first of them has been due.
    pub oldest_due: Duration,
    /// Delivered leads with a warning, 10,000 at most.
    pub warned: i64,
    /// Messages that were set aside, 10,000 at most.
    pub aside: i64,
}

impl Ledger {
    /// The numbers of this destination.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn levels(&self) -> Result<Levels, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("read the numbers", move |pool| {
                let ledger = ledger.clone();
                async move { levels(&pool, &ledger.destination).await }
            })
            .await
    }
}

async fn levels(pool: &PgPool, destination: &str) -> Result<Levels, sqlx::Error> {
    // Tallies have a row for each shard, so they are summed, not counted. Each `limit` stops a walk along an index; as a
    // parameter, Postgres would take it for a tenth of all there are, and might rather collect them all first.
    let row = sqlx::query(AssertSqlSafe(format!(
        "select coalesce(t.pending, 0) as pending, coalesce(t.delivered, 0) as delivered, coalesce(t.duplicate, 0) as duplicate, \
             coalesce(t.invalid, 0) as invalid, coalesce(t.rejected, 0) as rejected, coalesce(t.exhausted, 0) as exhausted, \
             coalesce(t.uncertain, 0) as uncertain, coalesce(t.cancelled, 0) as cancelled, \
             (select count(*) from (select 1 from leads where destination = $1 and state = 'pending' and (lease is null)::int = 1 \
                 and next_attempt_at <= now() limit {LOOKED_AT}) as x) as due, \
             (select extract(epoch from now() - next_attempt_at)::float8 from leads where destination = $1 \
                 and state = 'pending' and (lease is null)::int = 1 and next_attempt_at <= now() order by next_attempt_at limit 1) as oldest_due, \
             (select count(*) from (select 1 from leads where destination = $1 and warning is not null limit {LOOKED_AT}) as x) as warned, \
             (select count(*) from (select 1 from aside where destination = $1 limit {LOOKED_AT}) as x) as aside \
         from (select sum(pending)::bigint as pending, sum(delivered)::bigint as delivered, sum(duplicate)::bigint as duplicate, \
                 sum(invalid)::bigint as invalid, sum(rejected)::bigint as rejected, sum(exhausted)::bigint as exhausted, \
                 sum(uncertain)::bigint as uncertain, sum(cancelled)::bigint as cancelled \
             from tallies where destination = $1) as t",
    )))
    .bind(destination)
    .fetch_one(pool)
    .await?;
    let mut states = [0; LeadState::ALL.len()];
    for (count, state) in states.iter_mut().zip(LeadState::ALL) {
        *count = row.try_get(state.as_str())?;
    }
    let oldest_due: Option<f64> = row.try_get("oldest_due")?;
    Ok(Levels {
        states,
        due: row.try_get("due")?,
        oldest_due: oldest_due.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default(),
        warned: row.try_get("warned")?,
        aside: row.try_get("aside")?,
    })
}
