//! What the ledger knows, for people: counts, and the whole story of a lead. Reads only.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::accept::state;
use super::model::LeadState;
use super::{Ledger, LedgerError};
use crate::lead::{LeadId, Violation};

/// So many leads that are due, and so many that will be, are counted one by one; and of so many the reasons are.
const LOOKED_AT: i64 = 10_000;
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
    /// How many messages were set aside because somebody has locked their leads.
    pub aside: i64,
}

/// The pending leads.
#[derive(Debug, Clone, Serialize)]
pub struct Waiting {
    /// Leased to a worker.
    pub leased: i64,
    /// Due now. At least so many, where there are more than 10,000 of these and of those that are due later.
    pub due: i64,
    /// Due later. At least so many, likewise.
    pub later: i64,
    /// How long the longest has been due, in seconds.
    pub oldest_due_s: Option<f64>,
    /// In how many seconds the next one is due, when none is due now.
    pub next_due_s: Option<f64>,
    /// Why pending leads wait: the reasons of their last attempts, the most frequent first; of the 1,000 that are due first.
    pub reasons: Vec<(String, i64)>,
}

/// A lead as the ledger has it.
#[derive(Debug, Clone, Serialize)]
pub struct LeadRecord {
    /// Its id.
    pub id: LeadId,
    /// Where it goes.
    pub destination: String,
    /// Its state.
    pub state: LeadState,
    /// Why, as a code.
    pub code: Option<String>,
    /// Why, as a sentence.
    pub reason: Option<String>,
    /// What is wrong with it.
    pub violations: Vec<Violation>,
    /// Why a delivery may not be what it seems.
    pub warning: Option<String>,
    /// The queue that it came from.
    pub queue: String,
    /// The AMQP `message_id`.
    pub message_id: Option<String>,
    /// How many bytes its body has.
    pub body_bytes: i32,
    /// The id under which it came, when that was taken.
    pub conflict_of: Option<Uuid>,
    /// When it was accepted.
    #[serde(with = "time::serde::rfc3339")]
    pub accepted_at: OffsetDateTime,
    /// When it came to its end.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// When it is due, or its lease ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_attempt_at: Option<OffsetDateTime>,
    /// Who is posting it.
    pub leased_by: Option<String>,
    /// How many messages with it arrived.
    pub received: i32,
    /// How many attempts were made.
    pub attempts: i32,
    /// How many of them count.
    pub charged: i32,
    /// How many times it was replayed.
    pub replays: i32,
    /// The API's id of it.
    pub remote_id: Option<String>,
    /// The API's state of it.
    pub remote_state: Option<String>,
    /// The API's sub-state of it.
    pub remote_sub_state: Option<String>,
    /// When the API meant to act.
    pub next_schedule_time: Option<String>,
    /// What was sent, in order.
    pub history: Vec<AttemptRecord>,
    /// When it was sent on its way again, in order.
    pub replayed: Vec<ReplayRecord>,
}

/// An attempt as the ledger has it.
#[derive(Debug, Clone, Serialize)]
pub struct AttemptRecord {
    /// Its number.
    pub number: i32,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// How long it took.
    pub duration_ms: i32,
    /// What was sent: `post`, or `query` for the question whether an earlier post arrived.
    pub request: String,
    /// What it came to.
    pub outcome: String,
    /// Whether it counts.
    pub charged: bool,
    /// The status of the answer.
    pub http_status: Option<i16>,
    /// Why, as a code.
    pub code: Option<String>,
    /// Why, as a sentence.
    pub reason: Option<String>,
    /// Who made it.
    pub worker: String,
}

/// A replay as the ledger has it.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayRecord {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub replayed_at: OffsetDateTime,
    /// From which state.
    pub from_state: String,
    /// By message or by requeue.
    pub kind: String,
    /// By whom.
    pub replayed_by: String,
    /// Why.
    pub reason: Option<String>,
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

    /// The whole story of a lead, whatever its destination; `None` if there is none with this id.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn show(&self, id: LeadId) -> Result<Option<LeadRecord>, LedgerError> {
        self.pool.run("read a lead", move |pool| async move { show(&pool, id).await }).await
    }

    /// The body of a lead as it came.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn body(&self, id: LeadId) -> Result<Option<Vec<u8>>, LedgerError> {
        self.pool
            .run("read a lead's body", move |pool| async move {
                sqlx::query_scalar("select body from leads where id = $1").bind(id.0).fetch_optional(&pool).await
            })
            .await
    }
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
    let waiting = sqlx::query(
        "select \
             (select count(*) from (select 1 from leads where destination = $1 and state = 'pending' and (lease is null)::int = 0 \
                 limit $2) as x) as leased, \
             (select count(*) from (select 1 from leads where destination = $1 and state = 'pending' and (lease is null)::int = 1 \
                 and next_attempt_at <= now() limit $2) as x) as due, \
             (select count(*) from (select 1 from leads where destination = $1 and state = 'pending' and (lease is null)::int = 1 \
                 and next_attempt_at > now() limit $2) as x) as later, \
             (select extract(epoch from now() - next_attempt_at)::float8 from leads where destination = $1 \
                 and state = 'pending' and (lease is null)::int = 1 and next_attempt_at <= now() order by next_attempt_at limit 1) as oldest_due_s, \
             (select extract(epoch from next_attempt_at - now())::float8 from leads where destination = $1 \
                 and state = 'pending' and (lease is null)::int = 1 and next_attempt_at > now() order by next_attempt_at limit 1) as next_due_s, \
             (select count(*) from leads where destination = $1 and warning is not null) as warnings, \
             (select count(*) from aside where destination = $1) as aside",
    )
    .bind(destination)
    .bind(LOOKED_AT)
    .fetch_one(pool)
    .await?;
    let reasons = sqlx::query(
        "select coalesce(code, 'none') as code, count(*) as n from (select code from leads where destination = $1 \
             and state = 'pending' and (lease is null)::int = 1 order by next_attempt_at limit $2) as x \
         group by 1 order by 2 desc, 1 limit 5",
    )
    .bind(destination)
    .bind(REASONS_OF)
    .fetch_all(pool)
    .await?;
    let count = |column: &str| waiting.try_get::<i64, _>(column);
    let (leased, mut due, mut later) = (count("leased")?, count("due")?, count("later")?);
    let pending = states.get(&LeadState::Pending).copied().unwrap_or(0);
    // What is left of the pending ones, where all of the other kind were counted.
    match (leased < LOOKED_AT, due < LOOKED_AT, later < LOOKED_AT) {
        (true, false, true) => due = due.max(pending - leased - later),
        (true, true, false) => later = later.max(pending - leased - due),
        _ => {}
    }
    Ok(Status {
        destination: destination.to_owned(),
        accepted: row.try_get("accepted")?,
        states,
        waiting: Waiting {
            leased,
            due,
            later,
            oldest_due_s: waiting.try_get("oldest_due_s")?,
            next_due_s: waiting.try_get("next_due_s")?,
            reasons: reasons
                .into_iter()
                .map(|row| Ok((row.try_get("code")?, row.try_get("n")?)))
                .collect::<Result<_, sqlx::Error>>()?,
        },
        warnings: waiting.try_get("warnings")?,
        aside: waiting.try_get("aside")?,
    })
}

async fn show(pool: &PgPool, id: LeadId) -> Result<Option<LeadRecord>, sqlx::Error> {
    let row = sqlx::query(
        "select id, destination, state, code, reason, violations, warning, queue, message_id, length(body) as body_bytes, \
             conflict_of, accepted_at, finished_at, next_attempt_at, leased_by, received, attempts, charged, replays, \
             remote_id, remote_state, remote_sub_state, next_schedule_time \
         from leads where id = $1",
    )
    .bind(id.0)
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let attempts = sqlx::query(
        "select number, started_at, duration_ms, request, outcome, charged, http_status, code, reason, worker \
         from attempts where lead_id = $1 order by number",
    )
    .bind(id.0)
    .fetch_all(pool)
    .await?;
    let replays = sqlx::query(
        "select replayed_at, from_state, kind, replayed_by, reason from replays where lead_id = $1 order by id",
    )
    .bind(id.0)
    .fetch_all(pool)
    .await?;
    let mut lead = lead(&row)?;
    lead.history = attempts.iter().map(attempt).collect::<Result<_, _>>()?;
    lead.replayed = replays.iter().map(replay).collect::<Result<_, _>>()?;
    Ok(Some(lead))
}

fn lead(row: &PgRow) -> Result<LeadRecord, sqlx::Error> {
    let violations: Option<sqlx::types::Json<Vec<Violation>>> = row.try_get("violations")?;
    Ok(LeadRecord {
        id: LeadId(row.try_get("id")?),
        destination: row.try_get("destination")?,
        state: state(row.try_get("state")?)?,
        code: row.try_get("code")?,
        reason: row.try_get("reason")?,
        violations: violations.map(|violations| violations.0).unwrap_or_default(),
        warning: row.try_get("warning")?,
        queue: row.try_get("queue")?,
        message_id: row.try_get("message_id")?,
        body_bytes: row.try_get("body_bytes")?,
        conflict_of: row.try_get("conflict_of")?,
        accepted_at: row.try_get("accepted_at")?,
        finished_at: row.try_get("finished_at")?,
        next_attempt_at: row.try_get("next_attempt_at")?,
        leased_by: row.try_get("leased_by")?,
        received: row.try_get("received")?,
        attempts: row.try_get("attempts")?,
        charged: row.try_get("charged")?,
        replays: row.try_get("replays")?,
        remote_id: row.try_get("remote_id")?,
        remote_state: row.try_get("remote_state")?,
        remote_sub_state: row.try_get("remote_sub_state")?,
        next_schedule_time: row.try_get("next_schedule_time")?,
        history: Vec::new(),
        replayed: Vec::new(),
    })
}

fn attempt(row: &PgRow) -> Result<AttemptRecord, sqlx::Error> {
    Ok(AttemptRecord {
        number: row.try_get("number")?,
        started_at: row.try_get("started_at")?,
        duration_ms: row.try_get("duration_ms")?,
        request: row.try_get("request")?,
        outcome: row.try_get("outcome")?,
        charged: row.try_get("charged")?,
        http_status: row.try_get("http_status")?,
        code: row.try_get("code")?,
        reason: row.try_get("reason")?,
        worker: row.try_get("worker")?,
    })
}

fn replay(row: &PgRow) -> Result<ReplayRecord, sqlx::Error> {
    Ok(ReplayRecord {
        replayed_at: row.try_get("replayed_at")?,
        from_state: row.try_get("from_state")?,
        kind: row.try_get("kind")?,
        replayed_by: row.try_get("replayed_by")?,
        reason: row.try_get("reason")?,
    })
}
