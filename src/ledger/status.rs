//! What the ledger knows, for people: the counts of a destination. Reads only, and a part that does not grow with the ledger.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgPool, Row as _};

use super::model::LeadState;
use super::{Ledger, LedgerError};
use crate::lead::LeadId;

/// So many leads that are due, and so many that will be, are counted one by one.
const LOOKED_AT: i64 = 5_000;

/// More warnings, and more messages that were set aside, are not counted.
const MOST: i64 = 10_000;

/// Of so many leads the reasons are looked at.
const REASONS_OF: i64 = 1_000;

/// The counts of a destination.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The destination.
    pub destination: String,
    /// How many leads were accepted.
    pub accepted: i64,
    /// How many are in each state.
    pub states: BTreeMap<LeadState, i64>,
    /// The pending ones more closely.
    pub waiting: Waiting,
    /// How many delivered leads the API may not be working.
    pub warnings: i64,
    /// Whether those are only what was counted, 10,000, and there are more.
    pub warnings_at_least: bool,
    /// How many messages were set aside because somebody has locked their leads.
    pub aside: i64,
    /// The same of these.
    pub aside_at_least: bool,
    /// For how many seconds more the API asked to be left alone.
    pub held_s: Option<f64>,
    /// How long ago the API took a lead last, in seconds.
    pub last_delivery_s: Option<f64>,
}

/// The pending leads.
#[derive(Debug, Clone, Serialize)]
pub struct Waiting {
    /// Leased to a worker.
    pub leased: i64,
    /// Due now.
    pub due: i64,
    /// Due later.
    pub later: i64,
    /// Whether those three are only what was counted, 5,000 of each at most, because more than one of them is more. All of them together are as
    /// many as there are pending leads.
    pub at_least: bool,
    /// How long the longest has been due, in seconds.
    pub oldest_due_s: Option<f64>,
    /// In how many seconds the next one is due, when none is due now.
    pub next_due_s: Option<f64>,
    /// Why pending leads wait: the reasons of their last attempts, the most frequent first; of the 1,000 that are due first.
    pub reasons: Vec<(String, i64)>,
    /// The one that has been due for the longest; if none is, the one that becomes due first.
    pub first: Option<FirstInLine>,
}

/// The lead that is next.
#[derive(Debug, Clone, Serialize)]
pub struct FirstInLine {
    /// Its id.
    pub id: LeadId,
    /// How long ago it was accepted, in seconds.
    pub accepted_s: f64,
    /// For how many seconds it has been due; negative: it will be.
    pub due_s: f64,
    /// What its last attempt came to, as a code.
    pub code: Option<String>,
}

impl Ledger {
    /// The counts of this destination.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn status(&self) -> Result<Status, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("read the status", move |pool| {
                let ledger = ledger.clone();
                async move { status(&pool, &ledger.destination).await }
            })
            .await
    }
}

/// How many leads are leased, of so many.
async fn leased(pool: &PgPool, destination: &str) -> Result<i64, sqlx::Error> {
    // Numbers and not parameters: see [`levels`](super::levels).
    sqlx::query_scalar(AssertSqlSafe(format!(
        "select count(*) from (select 1 from leads where destination = $1 and state = 'pending' and (lease is null)::int = 0 \
             limit {LOOKED_AT}) as x",
    )))
    .bind(destination)
    .fetch_one(pool)
    .await
}

async fn status(pool: &PgPool, destination: &str) -> Result<Status, sqlx::Error> {
    let row = sqlx::query(
        "select coalesce(sum(accepted), 0)::bigint as accepted, coalesce(sum(pending), 0)::bigint as pending, \
             coalesce(sum(delivered), 0)::bigint as delivered, coalesce(sum(duplicate), 0)::bigint as duplicate, \
             coalesce(sum(invalid), 0)::bigint as invalid, coalesce(sum(rejected), 0)::bigint as rejected, \
             coalesce(sum(exhausted), 0)::bigint as exhausted, coalesce(sum(uncertain), 0)::bigint as uncertain, \
             coalesce(sum(cancelled), 0)::bigint as cancelled \
         from tallies where destination = $1",
    )
    .bind(destination)
    .fetch_one(pool)
    .await?;
    let mut states = BTreeMap::new();
    for state in LeadState::ALL {
        states.insert(state, row.try_get::<i64, _>(state.as_str())?);
    }
    // To know whether there are more.
    let one_more = MOST + 1;
    let waiting = sqlx::query(AssertSqlSafe(format!(
        "select \
             (select coalesce(sum(pending), 0)::bigint from tallies where destination = $1) as pending, \
             (select count(*) from (select 1 from leads where destination = $1 and state = 'pending' and (lease is null)::int = 1 \
                 and next_attempt_at <= now() limit {LOOKED_AT}) as x) as due, \
             (select count(*) from (select 1 from leads where destination = $1 and state = 'pending' and (lease is null)::int = 1 \
                 and next_attempt_at > now() limit {LOOKED_AT}) as x) as later, \
             (select extract(epoch from now() - next_attempt_at)::float8 from leads where destination = $1 \
                 and state = 'pending' and (lease is null)::int = 1 and next_attempt_at <= now() order by next_attempt_at limit 1) as oldest_due_s, \
             (select extract(epoch from next_attempt_at - now())::float8 from leads where destination = $1 \
                 and state = 'pending' and (lease is null)::int = 1 and next_attempt_at > now() order by next_attempt_at limit 1) as next_due_s, \
             (select count(*) from (select 1 from leads where destination = $1 and warning is not null limit {one_more}) as x) as warnings, \
             (select count(*) from (select 1 from aside where destination = $1 limit {one_more}) as x) as aside, \
             (select extract(epoch from held_until - now())::float8 from destinations where name = $1 and held_until > now()) as held_s, \
             (select extract(epoch from now() - finished_at)::float8 from leads where destination = $1 and state = 'delivered' \
                 order by finished_at desc limit 1) as last_delivery_s",
    )))
    .bind(destination)
    .fetch_one(pool)
    .await?;
    let reasons = sqlx::query(AssertSqlSafe(format!(
        "select coalesce(code, 'none') as code, count(*) as n from (select code from leads where destination = $1 \
             and state = 'pending' and (lease is null)::int = 1 order by next_attempt_at limit {REASONS_OF}) as x \
         group by 1 order by 2 desc, 1 limit 5",
    )))
    .bind(destination)
    .fetch_all(pool)
    .await?;
    let first = sqlx::query(
        "select id, extract(epoch from now() - accepted_at)::float8 as accepted_s, \
             extract(epoch from now() - next_attempt_at)::float8 as due_s, code from leads where destination = $1 \
             and state = 'pending' and (lease is null)::int = 1 order by next_attempt_at limit 1",
    )
    .bind(destination)
    .fetch_optional(pool)
    .await?;
    let first = first.map(|row| {
        Ok::<_, sqlx::Error>(FirstInLine {
            id: LeadId(row.try_get("id")?),
            accepted_s: row.try_get("accepted_s")?,
            due_s: row.try_get("due_s")?,
            code: row.try_get("code")?,
        })
    });
    let count = |column: &str| waiting.try_get::<i64, _>(column);
    let (warnings, aside) = (count("warnings")?, count("aside")?);
    // Of the same moment as the counts.
    let pending = count("pending")?;
    let (mut due, mut later) = (count("due")?, count("later")?);
    // The tallies know the sum, so one of them may be any number, and leased ones need not be counted if the others were: each lead of late has
    // left a dead entry among them, which a snapshot may keep there.
    let mut leased =
        if due < LOOKED_AT && later < LOOKED_AT { pending - due - later } else { leased(pool, destination).await? };
    let mut at_least = false;
    match (leased < LOOKED_AT, due < LOOKED_AT, later < LOOKED_AT) {
        (_, true, true) => leased = leased.max(0),
        (true, false, true) => due = due.max(pending - leased - later),
        (true, true, false) => later = later.max(pending - leased - due),
        _ => at_least = true,
    }
    Ok(Status {
        destination: destination.to_owned(),
        accepted: row.try_get("accepted")?,
        states,
        waiting: Waiting {
            leased,
            due,
            later,
            at_least,
            oldest_due_s: waiting.try_get("oldest_due_s")?,
            next_due_s: waiting.try_get("next_due_s")?,
            reasons: reasons
                .into_iter()
                .map(|row| Ok((row.try_get("code")?, row.try_get("n")?)))
                .collect::<Result<_, sqlx::Error>>()?,
            first: first.transpose()?,
        },
        warnings: warnings.min(MOST),
        warnings_at_least: warnings > MOST,
        aside: aside.min(MOST),
        aside_at_least: aside > MOST,
        held_s: waiting.try_get("held_s")?,
        last_delivery_s: waiting.try_get("last_delivery_s")?,
    })
}
