//! The whole story of a lead: where it is, what was sent for it, and what was done to it. Reads only.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::accept::state;
use super::model::LeadState;
use super::{Ledger, LedgerError};
use crate::lead::{LeadId, Violation};

/// What makes a [`LeadRecord`], besides the id, of `leads l`.
pub(super) const LEAD: &str = "l.destination, l.state, l.code, l.reason, l.violations, l.warning, l.queue, l.message_id, \
     length(l.body) as body_bytes, l.conflict_of, l.accepted_at, l.finished_at, l.next_attempt_at, l.leased_by, l.received, \
     l.attempts, l.charged, l.replays, l.remote_id, l.remote_state, l.remote_sub_state, l.next_schedule_time, l.erased_at";

/// The status of the last answer about `leads l`, null where none came: the view of attempts has it as well, but would look for the lead again.
pub(super) const LAST_STATUS: &str = "case when l.attempts = 1 and l.posted_status is not null then l.posted_status \
     else (select a.http_status from other_attempts a where a.lead_id = l.id and a.number = l.attempts) end";

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
    /// When what is personal of it was erased.
    #[serde(with = "time::serde::rfc3339::option")]
    pub erased_at: Option<OffsetDateTime>,
    /// What was sent, in order.
    pub history: Vec<AttemptRecord>,
    /// When it was sent on its way again, in order.
    pub replayed: Vec<ReplayRecord>,
    /// What else people did to it, in order.
    pub interventions: Vec<InterventionRecord>,
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

/// What a person did to a lead, besides sending it on its way again.
#[derive(Debug, Clone, Serialize)]
pub struct InterventionRecord {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub done_at: OffsetDateTime,
    /// `cancel`, `release`, `edit` or `erase`.
    pub kind: String,
    /// The state that it was in.
    pub from_state: String,
    /// Who.
    pub done_by: String,
    /// Why.
    pub reason: Option<String>,
}

impl Ledger {
    /// The whole story of a lead, whatever its destination; `None` if there is none with this id.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn show(&self, id: LeadId) -> Result<Option<LeadRecord>, LedgerError> {
        self.pool
            .run("read a lead", move |pool| async move {
                let mut connection = pool.acquire().await?;
                show(&mut connection, id).await
            })
            .await
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

pub(super) async fn show(connection: &mut PgConnection, id: LeadId) -> Result<Option<LeadRecord>, sqlx::Error> {
    let row = sqlx::query(AssertSqlSafe(format!("select l.id, {LEAD} from leads l where l.id = $1")))
        .bind(id.0)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let attempts = sqlx::query(
        "select number, started_at, duration_ms, request, outcome, charged, http_status, code, reason, worker \
         from attempts where lead_id = $1 order by number",
    )
    .bind(id.0)
    .fetch_all(&mut *connection)
    .await?;
    let replays = sqlx::query(
        "select replayed_at, from_state, kind, replayed_by, reason from replays where lead_id = $1 order by id",
    )
    .bind(id.0)
    .fetch_all(&mut *connection)
    .await?;
    let interventions = sqlx::query(
        "select done_at, kind, from_state, done_by, reason from interventions where lead_id = $1 order by id",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await?;
    let mut lead = lead(&row)?;
    lead.history = attempts.iter().map(attempt).collect::<Result<_, _>>()?;
    lead.replayed = replays.iter().map(replay).collect::<Result<_, _>>()?;
    lead.interventions = interventions.iter().map(intervention).collect::<Result<_, _>>()?;
    Ok(Some(lead))
}

/// A lead without its history, of a row with the columns [`LEAD`] and `id`.
pub(super) fn lead(row: &PgRow) -> Result<LeadRecord, sqlx::Error> {
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
        erased_at: row.try_get("erased_at")?,
        history: Vec::new(),
        replayed: Vec::new(),
        interventions: Vec::new(),
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

fn intervention(row: &PgRow) -> Result<InterventionRecord, sqlx::Error> {
    Ok(InterventionRecord {
        done_at: row.try_get("done_at")?,
        kind: row.try_get("kind")?,
        from_state: row.try_get("from_state")?,
        done_by: row.try_get("done_by")?,
        reason: row.try_get("reason")?,
    })
}
