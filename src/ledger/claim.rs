//! Leads that are due: leased to be posted; and leads whose lease ran out: settled as perhaps posted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::look::{Begun, Found};
use super::model::{Attempt, Claimed, Doubts, End, Leased, Next, Origin, RequestKind, Settlement};
use super::settle::{Write, write};
use super::{Ledger, LedgerError, millis};
use crate::fault::{self, Point, Rule};
use crate::lead::LeadId;
use crate::traces::TraceContext;

/// How many expired leases are dealt with in one transaction.
const EXPIRED_BATCH: i64 = 500;

/// Whether a lead is leased is a part of `leads_pending`, as this very expression: a million leads that are due do not stand between the worker and a
/// lease that ran out, nor leases between it and those that are due.
///
/// Usually all come in the order of being due, and none is asked for from the other end; from where on: see [`look`](super::look).
const CLAIM: &str = "with newest as materialized ( \
         select id, next_attempt_at from leads \
         where destination = $1 and state = 'pending' and next_attempt_at <= now() and (lease is null)::int = 1 \
             and next_attempt_at >= coalesce($9, '-infinity') \
         order by next_attempt_at desc limit $10 for update skip locked \
     ), oldest as materialized ( \
         select id, next_attempt_at from leads \
         where destination = $1 and state = 'pending' and next_attempt_at <= now() and (lease is null)::int = 1 \
             and next_attempt_at >= coalesce($8, '-infinity') \
             and id <> all($2) and id <> all(array(select id from newest)) \
             and ($7 or attempts = 0 or not exists (select 1 from other_attempts a \
                 where a.lead_id = leads.id and a.outcome = 'uncertain')) \
         order by next_attempt_at limit $3 - (select count(*) from newest) for update skip locked \
     ), claimed as ( \
         update leads l set leased_by = $4, lease = $5, changed_at = now(), \
             next_attempt_at = now() + $6 * interval '1 millisecond' \
         from (select id, null as due_at from newest union all select id, next_attempt_at from oldest) as due where l.id = due.id \
         returning l.id, l.attempts, l.charged, l.suspected, \
             l.attempts > 0 and exists (select 1 from other_attempts a \
                 where a.lead_id = l.id and a.outcome = 'uncertain') as in_doubt, \
             extract(epoch from now() - l.budget_from)::float8 as age, l.body, l.trace, due.due_at \
     ) \
     select now() as looked_at, claimed.* from (values (1)) as once left join claimed on true";

/// What keeps a lead that is leased, or not yet due, from being claimed.
const IS_FREE: &str = "next_attempt_at <= now() and (lease is null)::int = 1";

/// Leases that ran out; from where on: see [`look`](super::look).
const EXPIRED: &str = "with expired as materialized ( \
         select id, lease, leased_by, attempts, charged, next_attempt_at, \
             extract(epoch from now() - budget_from)::float8 as age, \
             extract(epoch from now() - changed_at)::float8 as since \
         from leads \
         where destination = $1 and state = 'pending' and next_attempt_at <= now() and (lease is null)::int = 0 \
             and next_attempt_at >= coalesce($3, '-infinity') \
         order by next_attempt_at limit $2 for update skip locked \
     ) \
     select now() as looked_at, expired.* from (values (1)) as once left join expired on true";

/// A lead whose lease ran out before it was settled.
#[derive(Debug, Clone)]
pub struct Expired {
    /// The lead.
    pub id: LeadId,
    /// How many attempts of it count, without the one that ran out.
    pub charged: u32,
    /// How old it is.
    pub age: Duration,
}

impl Ledger {
    /// Leases up to `limit` leads that are due, the longest due first, except `avoid`, and perhaps those that may have been posted. Where the last
    /// claim left a backlog, half of them are those that fell due last: a retry does not wait behind a million that were requeued.
    ///
    /// # Errors
    /// That nothing was leased, or that nobody knows; then [`Ledger::release`] the token.
    pub async fn claim(
        &self,
        limit: usize,
        lease: (Uuid, Duration),
        avoid: Vec<LeadId>,
        doubts: Doubts,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let ledger = self.clone();
        let avoid: Arc<[Uuid]> = avoid.into_iter().map(|id| id.0).collect();
        self.pool
            .run("claim due leads", move |pool| {
                let (ledger, avoid) = (ledger.clone(), Arc::clone(&avoid));
                async move {
                    let leased_at = Instant::now();
                    let mut transaction = pool.begin().await?;
                    // One that leaves some out says nothing of what is left.
                    let is_any = avoid.is_empty() && doubts == Doubts::Included;
                    let began = Instant::now();
                    let look = if is_any { ledger.looks.due.begin(limit, began) } else { Begun::by_itself(began) };
                    let mut rows = sqlx::query(fault::without(Rule::Lease, CLAIM, IS_FREE))
                        .bind(&*ledger.destination)
                        .bind(&*avoid)
                        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                        .bind(&*ledger.worker)
                        .bind(lease.0)
                        .bind(millis(lease.1))
                        .bind(doubts == Doubts::Included)
                        .bind(look.floor)
                        .bind(look.recent)
                        .bind(i64::try_from(look.newest).unwrap_or(i64::MAX))
                        .fetch_all(&mut *transaction)
                        .await?;
                    let (at, took) = (looked_at(&mut rows)?, began.elapsed());
                    if !rows.is_empty() {
                        fault::at(Point::Claiming);
                    }
                    transaction.commit().await?;
                    if is_any {
                        let due: Result<Vec<Option<OffsetDateTime>>, _> =
                            rows.iter().map(|row| row.try_get("due_at")).collect();
                        let last = due?.into_iter().flatten().max();
                        ledger.looks.due.end(look, Found { at, took, is_more: rows.len() >= limit, last });
                    }
                    if !rows.is_empty() {
                        fault::at(Point::Claimed);
                    }
                    rows.into_iter().map(|row| claimed(&row, lease.0, leased_at)).collect()
                }
            })
            .await
    }

    /// Makes leads due again that were leased under tokens of which nobody knows whether they were ever committed: an accept or
    /// a claim without an answer, `oldest` ago at most. None of them has been posted. Says how many there were.
    ///
    /// # Errors
    /// That nothing was released, or that nobody knows.
    pub async fn release(&self, tokens: Vec<Uuid>, oldest: Duration, lease: Duration) -> Result<u64, LedgerError> {
        let ledger = self.clone();
        let tokens: Arc<[Uuid]> = tokens.into();
        self.pool
            .run("release leads", move |pool| {
                let (ledger, tokens) = (ledger.clone(), Arc::clone(&tokens));
                async move {
                    let mut transaction = pool.begin().await?;
                    let released = sqlx::query(
                        "update leads set lease = null, leased_by = null, next_attempt_at = now(), changed_at = now() \
                         where destination = $1 and state = 'pending' and (lease is null)::int = 0 and lease = any($2) \
                             and next_attempt_at > now() - $4 * interval '1 millisecond' - interval '1 minute' \
                             and next_attempt_at <= now() + $3 * interval '1 millisecond'",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*tokens)
                    .bind(millis(lease))
                    .bind(millis(oldest))
                    .execute(&mut *transaction)
                    .await?;
                    transaction.commit().await?;
                    Ok(released.rows_affected())
                }
            })
            .await
    }

    /// Settles up to 500 leads whose lease ran out: the attempt under way is recorded as uncertain, and `decide` says what is
    /// next for the lead. Says what those were.
    ///
    /// # Errors
    /// That nothing was settled, or that nobody knows.
    pub async fn expire<D>(&self, decide: D) -> Result<Vec<Settlement>, LedgerError>
    where
        D: Fn(&Expired) -> Next + Send + Sync + 'static,
    {
        let ledger = self.clone();
        let decide = Arc::new(decide);
        self.pool
            .run("settle expired leases", move |pool| {
                let (ledger, decide) = (ledger.clone(), Arc::clone(&decide));
                async move {
                    let mut transaction = pool.begin().await?;
                    let began = Instant::now();
                    let look = ledger.looks.leases.begin(0, began);
                    let mut rows = sqlx::query(EXPIRED)
                        .bind(&*ledger.destination)
                        .bind(EXPIRED_BATCH)
                        .bind(look.floor)
                        .fetch_all(&mut *transaction)
                        .await?;
                    let (at, took) = (looked_at(&mut rows)?, began.elapsed());
                    let mut expired = Vec::with_capacity(rows.len());
                    let mut last = None;
                    for row in &rows {
                        last = last.max(row.try_get("next_attempt_at")?);
                        let worker: String = row.try_get("leased_by")?;
                        expired.push((worker, of_expired(row, &*decide)?));
                    }
                    let mut of_each: BTreeMap<&str, Vec<&Settlement>> = BTreeMap::new();
                    for (worker, settlement) in &expired {
                        of_each.entry(worker).or_default().push(settlement);
                    }
                    for (worker, settlements) in of_each {
                        write(&mut transaction, Write::of(&settlements, worker)).await?;
                    }
                    if !expired.is_empty() {
                        fault::at(Point::Expiring);
                    }
                    transaction.commit().await?;
                    let is_more = rows.len() as i64 >= EXPIRED_BATCH;
                    ledger.looks.leases.end(look, Found { at, took, is_more, last });
                    if !expired.is_empty() {
                        fault::at(Point::Expired);
                    }
                    Ok(expired.into_iter().map(|(_, settlement)| settlement).collect())
                }
            })
            .await
    }

    /// Records that these leads met answers which speak of the set-up while other leads passed. At the `limit`th time a lead is
    /// rejected for it, with the code and reason of `rejected`. Says which were.
    ///
    /// # Errors
    /// That nothing was recorded, or that nobody knows.
    pub async fn suspect(&self, ids: Vec<LeadId>, limit: u32, rejected: End) -> Result<Vec<LeadId>, LedgerError> {
        let ids: Arc<[Uuid]> = ids.into_iter().map(|id| id.0).collect();
        self.pool
            .run("record suspicions", move |pool| {
                let (ids, rejected) = (Arc::clone(&ids), rejected.clone());
                async move {
                    let mut transaction = pool.begin().await?;
                    let rows = sqlx::query(
                        "update leads set suspected = suspected + 1, changed_at = now(), \
                             state = case when suspected + 1 >= $2 and lease is null then 'rejected' else state end, \
                             finished_at = case when suspected + 1 >= $2 and lease is null then now() end, \
                             next_attempt_at = case when suspected + 1 >= $2 and lease is null then null else next_attempt_at end, \
                             code = case when suspected + 1 >= $2 and lease is null then $3 else code end, \
                             reason = case when suspected + 1 >= $2 and lease is null then $4 else reason end \
                         where id = any($1) and state = 'pending' \
                         returning id, state",
                    )
                    .bind(&*ids)
                    .bind(i32::try_from(limit).unwrap_or(i32::MAX))
                    .bind(rejected.code)
                    .bind(rejected.reason)
                    .fetch_all(&mut *transaction)
                    .await?;
                    transaction.commit().await?;
                    rows.into_iter()
                        .filter(|row| row.try_get::<String, _>(1).is_ok_and(|state| state == "rejected"))
                        .map(|row| row.try_get(0).map(LeadId))
                        .collect()
                }
            })
            .await
    }
}

fn claimed(row: &PgRow, lease: Uuid, leased_at: Instant) -> Result<Claimed, sqlx::Error> {
    let leased = Leased {
        id: LeadId(row.try_get("id")?),
        lease,
        origin: Origin::Claimed,
        attempts: count(row, "attempts")?,
        charged: count(row, "charged")?,
        suspected: count(row, "suspected")?,
        in_doubt: row.try_get("in_doubt")?,
        age: seconds(row, "age")?,
        leased_at,
        trace: kept(row)?,
    };
    Ok(Claimed { leased, body: row.try_get("body")? })
}

fn of_expired(row: &PgRow, decide: &dyn Fn(&Expired) -> Next) -> Result<Settlement, sqlx::Error> {
    let since = seconds(row, "since")?;
    let id = LeadId(row.try_get("id")?);
    let expired = Expired { id, charged: count(row, "charged")?, age: seconds(row, "age")? };
    let reason =
        "the lease ran out before the attempt was settled: the worker died or was cut off, perhaps after it had posted";
    Ok(Settlement {
        id,
        lease: row.try_get("lease")?,
        attempts_before: count(row, "attempts")?,
        attempts: vec![Attempt {
            request: RequestKind::Post,
            started_at: Instant::now().checked_sub(since).unwrap_or_else(Instant::now),
            duration: since,
            outcome: "uncertain",
            charged: true,
            http_status: None,
            code: Some("lease_expired".to_owned()),
            reason: Some(reason.to_owned()),
            answer: None,
            retry_after: None,
        }],
        next: decide(&expired),
        // Who knew it is gone.
        trace: None,
    })
}

/// When a look was, which its first row says though nothing was found; leaves only what was.
fn looked_at(rows: &mut Vec<PgRow>) -> Result<OffsetDateTime, sqlx::Error> {
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let at = first.try_get("looked_at")?;
    if first.try_get::<Option<Uuid>, _>("id")?.is_none() {
        rows.clear();
    }
    Ok(at)
}

/// What is remembered of its message's trace.
pub(super) fn kept(row: &PgRow) -> Result<Option<Arc<TraceContext>>, sqlx::Error> {
    let kept: Option<String> = row.try_get("trace")?;
    Ok(kept.and_then(|kept| TraceContext::kept(&kept)).map(Arc::new))
}

fn count(row: &PgRow, column: &str) -> Result<u32, sqlx::Error> {
    let count: i32 = row.try_get(column)?;
    Ok(u32::try_from(count).unwrap_or(0))
}

fn seconds(row: &PgRow, column: &str) -> Result<Duration, sqlx::Error> {
    let seconds: f64 = row.try_get(column)?;
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}
