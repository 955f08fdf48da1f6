//! From outcomes to rows: attempts, states and next times of many leads in one transaction, each fenced by its lease.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

use super::model::{Attempt, LeadState, Next, OnLock, Settlement};
use super::{Ledger, LedgerError, millis, trimmed};
use crate::fault::{self, Point, Rule};
use crate::lead::{LeadId, Violation};
use crate::traces::TraceContext;

/// How much of an answer is kept with its attempt.
const MAX_KEPT_ANSWER: usize = 4 * 1024;

/// What a batch of settlements came to.
#[derive(Debug, Clone, Default)]
pub struct Settled {
    /// Leads whose lease was not ours any longer: nothing was changed. Somebody else has recorded the attempt as uncertain.
    pub late: Vec<LeadId>,
    /// Leads that somebody else has locked: nothing was changed yet.
    pub busy: Vec<LeadId>,
}

impl Ledger {
    /// Settles a batch of leads.
    ///
    /// May be repeated when it is not known whether it was committed: what this lease has settled before is not late. With
    /// [`OnLock::Skip`], leads that somebody else has locked come back as busy.
    ///
    /// # Errors
    /// That nothing was settled, or that nobody knows.
    pub async fn settle(
        &self,
        settlements: Arc<[Settlement]>,
        repeated: bool,
        on_lock: OnLock,
    ) -> Result<Settled, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("settle leads", move |pool| {
                let (ledger, settlements) = (ledger.clone(), Arc::clone(&settlements));
                async move {
                    let mut free: Vec<&Settlement> = settlements.iter().collect();
                    if !repeated && on_lock == OnLock::Wait && free.iter().all(|settlement| settlement.trace.is_none())
                    {
                        // One statement is a transaction by itself, without the round trips of its beginning and its end.
                        fault::at(Point::Settling);
                        let settled = write(&mut *pool.acquire().await?, Write::of(&free, &ledger.worker)).await?;
                        fault::at(Point::Settled);
                        return Ok(Settled {
                            late: without(free, &settled).iter().map(|late| late.id).collect(),
                            ..Settled::default()
                        });
                    }
                    let mut transaction = pool.begin().await?;
                    let mut busy = Vec::new();
                    if on_lock == OnLock::Skip {
                        busy = locked(&mut transaction, &free).await?;
                        free.retain(|settlement| !busy.contains(&settlement.id));
                    }
                    let settled = write(&mut transaction, Write::of(&free, &ledger.worker)).await?;
                    let waiting =
                        free.iter().filter_map(|settlement| Some((settlement.id, settlement.trace.as_ref()?)));
                    remember(&mut transaction, waiting.filter(|(id, _)| settled.contains(id))).await?;
                    let mut late = without(free, &settled);
                    if repeated && !late.is_empty() {
                        let before = settled_before(&mut transaction, &late).await?;
                        // Without an attempt nothing was sent, so nothing can be late about it.
                        late.retain(|settlement| {
                            !settlement.attempts.is_empty() && !before.contains(&(settlement.id, settlement.lease))
                        });
                    }
                    let late = late.into_iter().map(|settlement| settlement.id).collect();
                    fault::at(Point::Settling);
                    transaction.commit().await?;
                    fault::at(Point::Settled);
                    Ok(Settled { late, busy })
                }
            })
            .await
    }
}

/// Those that were not settled; mostly there are none.
fn without<'a>(mut settlements: Vec<&'a Settlement>, settled: &HashSet<LeadId>) -> Vec<&'a Settlement> {
    settlements.retain(|settlement| !settled.contains(&settlement.id));
    settlements
}

/// Remembers where the messages of these leads belong in their producers' traces. This transaction has written the leads already, so it waits
/// for nobody; and mostly there is none.
pub(super) async fn remember<'a>(
    connection: &mut PgConnection,
    leads: impl Iterator<Item = (LeadId, &'a Arc<TraceContext>)>,
) -> Result<(), sqlx::Error> {
    let (ids, traces): (Vec<Uuid>, Vec<String>) = leads.map(|(id, trace)| (id.0, trace.to_string())).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update leads l set trace = t.trace from unnest($1::uuid[], $2::text[]) as t (id, trace) where l.id = t.id",
    )
    .bind(ids)
    .bind(traces)
    .execute(connection)
    .await
    .map(drop)
}

/// Which of these are ours, and locked by somebody else.
async fn locked(connection: &mut PgConnection, settlements: &[&Settlement]) -> Result<Vec<LeadId>, sqlx::Error> {
    let ids: Vec<Uuid> = settlements.iter().map(|settlement| settlement.id.0).collect();
    let leases: Vec<Uuid> = settlements.iter().map(|settlement| settlement.lease).collect();
    sqlx::query_scalar(
        "with free as ( \
             select id from leads where id = any($1) order by id for update skip locked \
         ) \
         select l.id from unnest($1::uuid[], $2::uuid[]) as s (id, lease) \
         join leads l on l.id = s.id and l.lease = s.lease \
         where l.id not in (select id from free)",
    )
    .bind(ids)
    .bind(leases)
    .fetch_all(connection)
    .await
    .map(|ids: Vec<Uuid>| ids.into_iter().map(LeadId).collect())
}

/// Which of these have attempts under their lease already.
async fn settled_before(
    connection: &mut PgConnection,
    late: &[&Settlement],
) -> Result<Vec<(LeadId, Uuid)>, sqlx::Error> {
    let ids: Vec<Uuid> = late.iter().map(|settlement| settlement.id.0).collect();
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "select lead_id, lease from other_attempts where lead_id = any($1) and code is distinct from 'lease_expired' \
         union select id, posted_lease from leads where id = any($1) and posted_lease is not null",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, lease)| (LeadId(id), lease)).collect())
}

/// A batch of settlements as columns.
///
/// Columns of options may be shorter than the others, or empty: `unnest` fills them up with nulls. So what hardly any lead has costs the others
/// nothing.
#[derive(Debug, Default)]
pub(super) struct Write<'a> {
    worker: &'a str,
    ids: Vec<Uuid>,
    leases: Vec<Uuid>,
    states: Vec<&'static str>,
    after_ms: Vec<i64>,
    made: Vec<i32>,
    charged: Vec<i32>,
    codes: Vec<Option<&'a str>>,
    reasons: Vec<Option<String>>,
    violations: Vec<Option<String>>,
    remote_ids: Vec<Option<&'a str>>,
    remote_states: Vec<Option<&'a str>>,
    remote_sub_states: Vec<Option<&'a str>>,
    next_schedule_times: Vec<Option<&'a str>>,
    warnings: Vec<Option<&'a str>>,
    posted_ago_ms: Vec<Option<i64>>,
    posted_ms: Vec<Option<i32>>,
    posted_statuses: Vec<Option<i16>>,

    attempt_ids: Vec<Uuid>,
    attempt_requests: Vec<&'static str>,
    attempt_leases: Vec<Uuid>,
    attempt_numbers: Vec<i32>,
    attempt_ago_ms: Vec<i64>,
    attempt_duration_ms: Vec<i32>,
    attempt_outcomes: Vec<&'static str>,
    attempt_charged: Vec<bool>,
    attempt_statuses: Vec<Option<i16>>,
    attempt_codes: Vec<Option<&'a str>>,
    attempt_reasons: Vec<Option<&'a str>>,
    attempt_answers: Vec<Option<&'a [u8]>>,
    attempt_retry_after_ms: Vec<Option<i64>>,
}

impl<'a> Write<'a> {
    pub(super) fn of(settlements: &[&'a Settlement], worker: &'a str) -> Self {
        let mut write = Self { worker, ..Self::default() };
        let now = Instant::now();
        let mut sorted: Vec<&'a Settlement> = settlements.to_vec();
        // In one order everywhere, so that two batches do not wait for each other in a circle.
        sorted.sort_unstable_by_key(|settlement| settlement.id);
        for settlement in sorted {
            write.lead(settlement);
            let first = settlement.first_post();
            write.posted_ago_ms.push(first.map(|post| ago(now, post)));
            write.posted_ms.push(first.map(duration_ms));
            write.posted_statuses.push(first.and_then(status));
            if first.is_some() {
                continue;
            }
            for (at, attempt) in settlement.attempts.iter().enumerate() {
                write.attempt_ids.push(settlement.id.0);
                write.attempt_requests.push(attempt.request.as_str());
                write.attempt_leases.push(settlement.lease);
                let number = settlement.attempts_before as usize + at + 1;
                write.attempt_numbers.push(i32::try_from(number).unwrap_or(i32::MAX));
                write.attempt_ago_ms.push(ago(now, attempt));
                write.attempt_duration_ms.push(duration_ms(attempt));
                write.attempt_outcomes.push(attempt.outcome);
                write.attempt_charged.push(attempt.charged);
                write.attempt_statuses.push(status(attempt));
                write.attempt_codes.push(attempt.code.as_deref());
                write.attempt_reasons.push(attempt.reason.as_deref());
                let answer = attempt.answer.as_deref();
                write.attempt_answers.push(answer.map(|answer| answer.get(..MAX_KEPT_ANSWER).unwrap_or(answer)));
                write.attempt_retry_after_ms.push(attempt.retry_after.map(millis));
            }
        }
        write
    }

    fn lead(&mut self, settlement: &'a Settlement) {
        self.ids.push(settlement.id.0);
        self.leases.push(settlement.lease);
        self.made.push(i32::try_from(settlement.attempts.len()).unwrap_or(i32::MAX));
        let charged = settlement.attempts.iter().filter(|attempt| attempt.charged).count();
        self.charged.push(i32::try_from(charged).unwrap_or(i32::MAX));
        self.states.push(settlement.next.state().as_str());
        let (after, code, reason, end) = match &settlement.next {
            Next::Again { after, code, reason } => (*after, code.as_deref(), reason.clone(), None),
            Next::End(end) => (Duration::ZERO, end.code.as_deref(), end.reason.clone(), Some(end)),
        };
        self.after_ms.push(millis(after));
        self.codes.push(code);
        let invalid = end.filter(|_| settlement.next.state() == LeadState::Invalid);
        self.reasons.push(match invalid {
            Some(end) => Some(violations_sentence(&end.violations)),
            None => reason,
        });
        self.violations
            .push(invalid.map(|end| serde_json::to_string(&end.violations).unwrap_or_else(|_| "[]".to_owned())));
        let receipt = end.and_then(|end| end.receipt.as_ref());
        self.remote_ids.push(receipt.and_then(|receipt| receipt.remote_id.as_deref()));
        self.remote_states.push(receipt.and_then(|receipt| receipt.remote_state.as_deref()));
        self.remote_sub_states.push(receipt.and_then(|receipt| receipt.remote_sub_state.as_deref()));
        self.next_schedule_times.push(receipt.and_then(|receipt| receipt.next_schedule_time.as_deref()));
        self.warnings.push(receipt.and_then(|receipt| receipt.warning.as_deref()));
    }
}

/// How many milliseconds before now it began.
fn ago(now: Instant, attempt: &Attempt) -> i64 {
    millis(now.saturating_duration_since(attempt.started_at))
}

fn duration_ms(attempt: &Attempt) -> i32 {
    i32::try_from(millis(attempt.duration)).unwrap_or(i32::MAX)
}

fn status(attempt: &Attempt) -> Option<i16> {
    attempt.http_status.and_then(|status| i16::try_from(status).ok())
}

/// All violations as one sentence.
pub(super) fn violations_sentence(violations: &[Violation]) -> String {
    let sentences: Vec<String> = violations
        .iter()
        .map(|violation| {
            if violation.message.starts_with(&violation.field) {
                violation.message.clone()
            } else {
                format!("{} {}", violation.field, violation.message)
            }
        })
        .collect();
    sentences.join("; ")
}

/// Each lead is looked up by its id, whatever the planner believes of the table: only a lead that is pending has a lease, but to say so would offer
/// it the index of those that are pending, and with it a look at all of them. The `case` makes of the ids that were settled a table to look into,
/// not a join.
///
/// Attempts and ends have the time of the clock, not of the transaction, which may have waited long for a line, and all of them the same: their
/// order must be right.
const WRITE: &str = "with clock as materialized (select clock_timestamp() as at), s as ( \
         select * from unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::int[], $7::int[], $8::text[], $9::text[], \
             $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::bigint[], $17::int[], $18::smallint[]) \
             as s (id, lease, state, after_ms, made, charged, code, reason, violations, remote_id, remote_state, \
                 remote_sub_state, next_schedule_time, warning, posted_ago_ms, posted_ms, posted_status) \
     ), settled as ( \
         update leads l set state = s.state, changed_at = now(), \
             finished_at = case when s.state <> 'pending' then (select at from clock) end, \
             next_attempt_at = case when s.state = 'pending' then now() + s.after_ms * interval '1 millisecond' end, \
             leased_by = null, lease = null, attempts = l.attempts + s.made, charged = l.charged + s.charged, \
             code = s.code, reason = s.reason, violations = s.violations::jsonb, \
             remote_id = coalesce(s.remote_id, l.remote_id), remote_state = coalesce(s.remote_state, l.remote_state), \
             remote_sub_state = coalesce(s.remote_sub_state, l.remote_sub_state), \
             next_schedule_time = coalesce(s.next_schedule_time, l.next_schedule_time), warning = s.warning, \
             posted_at = coalesce((select at from clock) - s.posted_ago_ms * interval '1 millisecond', l.posted_at), \
             posted_ms = coalesce(s.posted_ms, l.posted_ms), posted_status = coalesce(s.posted_status, l.posted_status), \
             posted_by = case when s.posted_ms is null then l.posted_by else $1 end, \
             posted_lease = case when s.posted_ms is null then l.posted_lease else s.lease end \
         from s where l.id = s.id and l.lease = s.lease \
         returning l.id \
     ), written as ( \
         insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status, code, \
             reason, answer, retry_after_ms, request) \
         select a.lead_id, a.number, a.lease, $1, (select at from clock) - a.ago_ms * interval '1 millisecond', a.duration_ms, a.outcome, \
             a.charged, a.http_status, a.code, a.reason, a.answer, a.retry_after_ms, a.request \
         from unnest($19::uuid[], $20::uuid[], $21::int[], $22::bigint[], $23::int[], $24::text[], $25::bool[], \
             $26::smallint[], $27::text[], $28::text[], $29::bytea[], $30::bigint[], $31::text[]) \
             as a (lead_id, lease, number, ago_ms, duration_ms, outcome, charged, http_status, code, reason, answer, \
                 retry_after_ms, request) \
         where case when a.lead_id in (select id from settled) then true end \
     ) \
     select coalesce(array_agg(id), '{}') from settled";

/// What keeps everybody but the holder of the lease from settling.
const IS_OURS: &str = "l.lease = s.lease";

/// Writes a batch, and says which leads were still ours.
pub(super) async fn write(connection: &mut PgConnection, write: Write<'_>) -> Result<HashSet<LeadId>, sqlx::Error> {
    let settled: Vec<Uuid> = sqlx::query_scalar(fault::without(Rule::Fence, WRITE, IS_OURS))
        .bind(write.worker)
        .bind(write.ids)
        .bind(write.leases)
        .bind(write.states)
        .bind(write.after_ms)
        .bind(write.made)
        .bind(write.charged)
        .bind(trimmed(write.codes))
        .bind(trimmed(write.reasons))
        .bind(trimmed(write.violations))
        .bind(trimmed(write.remote_ids))
        .bind(trimmed(write.remote_states))
        .bind(trimmed(write.remote_sub_states))
        .bind(trimmed(write.next_schedule_times))
        .bind(trimmed(write.warnings))
        .bind(trimmed(write.posted_ago_ms))
        .bind(trimmed(write.posted_ms))
        .bind(trimmed(write.posted_statuses))
        .bind(write.attempt_ids)
        .bind(write.attempt_leases)
        .bind(write.attempt_numbers)
        .bind(write.attempt_ago_ms)
        .bind(write.attempt_duration_ms)
        .bind(write.attempt_outcomes)
        .bind(write.attempt_charged)
        .bind(trimmed(write.attempt_statuses))
        .bind(trimmed(write.attempt_codes))
        .bind(trimmed(write.attempt_reasons))
        .bind(trimmed(write.attempt_answers))
        .bind(trimmed(write.attempt_retry_after_ms))
        .bind(write.attempt_requests)
        .fetch_one(connection)
        .await?;
    Ok(settled.into_iter().map(LeadId).collect())
}
