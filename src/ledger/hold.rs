//! Holds: for how long a destination asked to be left alone. A person may end one before its time.
//!
//! ```text
//!   a worker is told ──heartbeat──> held_until ──heartbeat──> all workers
//!                                       ^
//!                 lift: what was shown, and nothing younger; then the leads that wait for its end become due
//! ```

use std::sync::Arc;

use serde::Serialize;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;

use super::pool::WITHOUT_LIMIT;
use super::{Ledger, LedgerError};

/// How many leads become due in one transaction.
const BATCH: usize = 1_000;

/// Leads that wait for the end of a hold: handed back because of it, or answered so, and the schedule would have had them wait for less. Between the
/// end of a post and its settlement passes some time. $1: the destination.
const WAITING: &str = "destination = $1 and state = 'pending' and (lease is null)::int = 1 and next_attempt_at > now() \
     and (code = 'held' or exists (select 1 from other_attempts a where a.lead_id = leads.id and a.number = leads.attempts \
         and a.outcome = 'retry' and a.code = leads.code and a.retry_after_ms > 0 and leads.next_attempt_at \
             < a.started_at + (a.duration_ms + a.retry_after_ms) * interval '1 millisecond' + interval '10 seconds'))";

/// Of these, those for which a hold is to blame that was lifted: answered before; or handed back before, or by a worker that did not know yet.
/// $5: when it was lifted, $6: when it would have ended.
const BEFORE: &str = "case when code = 'held' \
         then changed_at < $5 or next_attempt_at between $6 - interval '10 seconds' and $6 + interval '10 seconds' \
         else exists (select 1 from other_attempts a where a.lead_id = leads.id and a.number = leads.attempts \
             and a.started_at + a.duration_ms * interval '1 millisecond' < $5) end";

/// A hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hold {
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// For how many seconds more.
    pub for_s: f64,
}

/// What there is of holds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Held {
    /// The hold, if there is one.
    pub hold: Option<Hold>,
    /// How many leads wait for the end of one.
    pub waiting: i64,
}

/// What came of a decision to lift a hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lifted {
    /// It is gone. The number under which that is on record.
    Done(i64),
    /// The destination has asked again meanwhile, so nothing was lifted.
    Younger(Hold),
}

/// How far leads have become due.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Hastened {
    /// How many have.
    pub leads: u64,
    /// Where to go on; `None`: that was the last.
    pub after: Option<OffsetDateTime>,
}

impl Ledger {
    /// The hold of this destination, and who waits for its end.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn held(&self) -> Result<Held, LedgerError> {
        let ledger = self.clone();
        self.read_long("look for a hold", move |connection| {
            let ledger = ledger.clone();
            Box::pin(async move {
                let hold = hold(connection, &ledger.destination, false).await?;
                let waiting = format!("select count(*) from leads where {WAITING}");
                let waiting = sqlx::query_scalar(sqlx::AssertSqlSafe(waiting))
                    .bind(&*ledger.destination)
                    .fetch_one(connection)
                    .await?;
                Ok(Held { hold, waiting })
            })
        })
        .await
    }

    /// Ends the hold of this destination, if it ends no later than `shown`, and puts on record who did it and why. Workers learn of it by their
    /// next heartbeats.
    ///
    /// # Errors
    /// That nothing was changed, or that nobody knows.
    pub async fn lift(
        &self,
        shown: Option<OffsetDateTime>,
        by: &str,
        reason: Option<&str>,
    ) -> Result<Lifted, LedgerError> {
        let ledger = self.clone();
        let (by, reason): (Arc<str>, Option<Arc<str>>) = (by.into(), reason.map(Into::into));
        self.pool
            .run("lift a hold", move |pool| {
                let (ledger, by, reason) = (ledger.clone(), Arc::clone(&by), reason.clone());
                async move {
                    let mut transaction = pool.begin().await?;
                    let hold = hold(&mut transaction, &ledger.destination, true).await?;
                    if let Some(hold) = hold.filter(|hold| shown.is_none_or(|shown| hold.until > shown)) {
                        return Ok(Lifted::Younger(hold));
                    }
                    sqlx::query("update destinations set held_until = null where name = $1")
                        .bind(&*ledger.destination)
                        .execute(&mut *transaction)
                        .await?;
                    let id = sqlx::query_scalar(
                        "insert into decisions (destination, kind, done_by, reason, until) values ($1, 'lift', $2, $3, $4) returning id",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*by)
                    .bind(reason.as_deref())
                    .bind(hold.map(|hold| hold.until))
                    .fetch_one(&mut *transaction)
                    .await?;
                    transaction.commit().await?;
                    Ok(Lifted::Done(id))
                }
            })
            .await
    }

    /// Makes up to a thousand leads due that wait for the end of the hold that was lifted, from a place on, and counts them in the record of who has
    /// lifted it. What the API has answered since then is about another hold.
    ///
    /// # Errors
    /// That nothing was changed, or that nobody knows. Repeated, it does the rest.
    pub async fn hasten(&self, lift: i64, after: Option<OffsetDateTime>) -> Result<Hastened, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run_long("make leads due", move |pool| {
                let ledger = ledger.clone();
                async move {
                    let mut transaction = pool.begin().await?;
                    // Leads that wait for something else may be many.
                    sqlx::raw_sql(WITHOUT_LIMIT).execute(&mut *transaction).await?;
                    let (lifted_at, until): (OffsetDateTime, Option<OffsetDateTime>) =
                        sqlx::query_as("select done_at, until from decisions where id = $1")
                            .bind(lift)
                            .fetch_one(&mut *transaction)
                            .await?;
                    let hasten = format!(
                        "with waiting as ( \
                             select id, next_attempt_at from leads where {WAITING} and {BEFORE} \
                                 and next_attempt_at >= coalesce($2, '-infinity') \
                             order by next_attempt_at limit $3 for update skip locked \
                         ), hastened as ( \
                             update leads l set next_attempt_at = now(), changed_at = now() from waiting w where l.id = w.id \
                         ), noted as ( \
                             update decisions set affected = affected + (select count(*) from waiting) where id = $4 \
                         ) \
                         select next_attempt_at from waiting"
                    );
                    let places: Vec<OffsetDateTime> = sqlx::query_scalar(sqlx::AssertSqlSafe(hasten))
                        .bind(&*ledger.destination)
                        .bind(after)
                        .bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
                        .bind(lift)
                        .bind(lifted_at)
                        .bind(until)
                        .fetch_all(&mut *transaction)
                        .await?;
                    transaction.commit().await?;
                    let is_full = places.len() >= BATCH;
                    Ok(Hastened { leads: places.len() as u64, after: places.into_iter().max().filter(|_| is_full) })
                }
            })
            .await
    }
}

/// With `locked`, no heartbeat changes it, or that there is none, before the end of the transaction.
async fn hold(connection: &mut PgConnection, destination: &str, locked: bool) -> Result<Option<Hold>, sqlx::Error> {
    if locked {
        sqlx::query("insert into destinations (name) values ($1) on conflict (name) do update set held_until = destinations.held_until")
            .bind(destination)
            .execute(&mut *connection)
            .await?;
    }
    let hold = "select held_until, extract(epoch from held_until - now())::float8 from destinations \
         where name = $1 and held_until > now()";
    let row = sqlx::query(hold).bind(destination).fetch_optional(connection).await?;
    row.map(|row| Ok(Hold { until: row.try_get(0)?, for_s: row.try_get(1)? })).transpose()
}
