//! Do the books balance? Each invariant of the ledger is a query that finds what breaks it.

use serde::Serialize;
use sqlx::{PgPool, Row as _};

use super::pool::{READ_ALL, WITHOUT_LIMIT};
use super::{Ledger, LedgerError};

/// How many examples are shown of what breaks an invariant.
const EXAMPLES: usize = 5;

/// An invariant, and the query for what breaks it: one text column.
struct Invariant {
    name: &'static str,
    holds: &'static str,
    broken_by: &'static str,
}

/// All of them run in one snapshot, so that a worker at work does not look like a mistake.
const INVARIANTS: [Invariant; 11] = [
    Invariant {
        name: "accounting",
        holds: "accepted = pending + delivered + duplicate + invalid + rejected + exhausted + uncertain + cancelled",
        broken_by: "select destination || ': accepted ' || sum(accepted) || ', in all states ' || \
                sum(pending + delivered + duplicate + invalid + rejected + exhausted + uncertain + cancelled) \
             from tallies group by destination \
             having sum(accepted) <> sum(pending + delivered + duplicate + invalid + rejected + exhausted + uncertain + cancelled)",
    },
    Invariant {
        name: "tallies",
        holds: "the tallies say how many leads there are in each state",
        broken_by: "select coalesce(t.destination, l.destination) || ' ' || coalesce(t.state, l.state) || ': tallied ' || \
                coalesce(t.n, 0) || ', counted ' || coalesce(l.n, 0) \
             from (select destination, state, sum(n)::bigint as n from tallies, lateral (values ('pending', pending), \
                    ('delivered', delivered), ('duplicate', duplicate), ('invalid', invalid), ('rejected', rejected), \
                    ('exhausted', exhausted), ('uncertain', uncertain), ('cancelled', cancelled)) as v (state, n) \
                group by 1, 2) as t \
             full join (select destination, state, count(*) as n from leads group by 1, 2) as l \
                on l.destination = t.destination and l.state = t.state \
             where coalesce(t.n, 0) <> coalesce(l.n, 0)",
    },
    Invariant {
        name: "attempts",
        holds: "a lead has as many attempts on record as it says, numbered from 1 without a gap",
        broken_by: "select l.id::text from leads l \
             left join (select lead_id, count(*) as n, count(distinct number) as numbers, max(number) as last \
                from attempts group by 1) as a on a.lead_id = l.id \
             where (l.attempts, l.attempts, l.attempts) <> (coalesce(a.n, 0), coalesce(a.numbers, 0), coalesce(a.last, 0))",
    },
    Invariant {
        name: "leads of attempts",
        holds: "no attempt is on record of a lead that is not",
        broken_by: "select distinct lead_id::text from other_attempts a where not exists (select 1 from leads l where l.id = a.lead_id)",
    },
    Invariant {
        name: "endings",
        holds: "a lead that ended by an answer has that answer as its last attempt, and one that is uncertain an uncertain one",
        broken_by: "select l.id::text from leads l \
             left join attempts a on a.lead_id = l.id and a.number = l.attempts \
             where l.state = 'delivered' and l.code is distinct from 'released' \
                    and a.outcome is distinct from 'delivered' and a.outcome is distinct from 'reconciled' \
                or l.state = 'duplicate' and a.outcome is distinct from 'duplicate' \
                or l.state = 'rejected' and l.code <> 'systemic_own_fault' and a.outcome is distinct from 'rejected' \
                or l.state = 'uncertain' and l.conflict_of is null and not exists \
                    (select 1 from other_attempts u where u.lead_id = l.id and u.outcome = 'uncertain')",
    },
    Invariant {
        name: "an end is an end",
        holds: "no post of a lead began after it had ended; so one that was invalid from the start was never posted",
        broken_by: "select l.id::text from leads l where l.state <> 'pending' and exists \
                (select 1 from attempts a where a.lead_id = l.id and a.started_at > l.finished_at + interval '50 milliseconds')",
    },
    Invariant {
        name: "repeats are explained",
        holds: "a post follows another one only after an outcome that allows it, or a replay",
        broken_by: "select a.lead_id::text || ' attempt ' || b.number from attempts a \
             join attempts b on b.lead_id = a.lead_id and b.number = a.number + 1 \
             where a.outcome in ('delivered', 'duplicate', 'rejected', 'reconciled') \
                and not exists (select 1 from replays r where r.lead_id = a.lead_id \
                    and r.replayed_at between a.started_at and b.started_at + interval '1 second')",
    },
    Invariant {
        name: "attempts do not overlap",
        holds: "no two attempts of a lead were under way at the same time",
        // Times are rounded to milliseconds; an expired lease counts from its start to when that was noticed.
        broken_by: "select a.lead_id::text || ' attempt ' || b.number from attempts a \
             join attempts b on b.lead_id = a.lead_id and b.number = a.number + 1 \
             where b.started_at < a.started_at + a.duration_ms * interval '1 millisecond' - interval '50 milliseconds'",
    },
    Invariant {
        name: "replays",
        holds: "every replay is on record",
        broken_by: "select l.id::text from leads l \
             left join (select lead_id, count(*) as n from replays group by 1) as r on r.lead_id = l.id \
             where l.replays <> coalesce(r.n, 0)",
    },
    Invariant {
        name: "counts",
        holds: "no more attempts count than were made, and no state lacks what belongs to it",
        broken_by: "select id::text from leads where charged > attempts or (state = 'pending') <> (next_attempt_at is not null) \
             or (state = 'pending') <> (finished_at is null) or (lease is null) <> (leased_by is null) \
             or (lease is not null and state <> 'pending') or (state = 'invalid') <> (violations is not null)",
    },
    Invariant {
        name: "constraints",
        holds: "the constraints and triggers that keep the ledger whole are in force",
        broken_by: "select expected || ' is missing' from unnest(array['leads_state_is_known', 'leads_pending_is_due', \
                'leads_ended_has_time', 'leads_lease_is_whole', 'leads_only_pending_is_leased', 'leads_invalid_has_violations', \
                'leads_bad_end_has_reason', 'leads_receipt_is_a_success', 'leads_counts', 'leads_first_post_is_whole', 'attempts_number_begins_at_one', \
                'attempts_outcome_is_known', 'attempts_unsent_has_no_answer', 'attempts_answered_has_status', \
                'attempts_failure_has_code', 'attempts_request_is_known', 'attempts_query_changes_nothing', 'replays_kind_is_known', \
                'interventions_kind_is_known', 'interventions_edit_keeps_the_body', 'decisions_kind_is_known']) as expected \
             where not exists (select 1 from pg_constraint where conname = expected and convalidated) \
             union all \
             select expected || ' is missing or disabled' \
             from unnest(array['leads_inserted', 'leads_updated', 'leads_deleted']) as expected \
             where not exists (select 1 from pg_trigger where tgname = expected and tgrelid = 'leads'::regclass and tgenabled = 'O')",
    },
];

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Each invariant.
    pub checks: Vec<Check>,
}

impl Verification {
    /// Whether all of them hold.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.broken == 0)
    }
}

/// An invariant, and what breaks it.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub holds: &'static str,
    /// How many rows break it.
    pub broken: usize,
    /// Some of them.
    pub examples: Vec<String>,
}

impl Ledger {
    /// Checks all invariants, of all destinations, in one snapshot.
    ///
    /// # Errors
    /// That the ledger cannot be read. What does not hold is no error.
    pub async fn verify(&self) -> Result<Verification, LedgerError> {
        self.pool.run_long("verify", |pool| async move { verify(&pool).await }).await
    }
}

async fn verify(pool: &PgPool) -> Result<Verification, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query("set transaction isolation level repeatable read read only").execute(&mut *transaction).await?;
    sqlx::raw_sql(WITHOUT_LIMIT).execute(&mut *transaction).await?;
    sqlx::raw_sql(READ_ALL).execute(&mut *transaction).await?;
    let mut checks = Vec::with_capacity(INVARIANTS.len());
    for invariant in INVARIANTS {
        let rows = sqlx::query(invariant.broken_by).fetch_all(&mut *transaction).await?;
        let examples = rows.iter().take(EXAMPLES).map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        checks.push(Check { name: invariant.name, holds: invariant.holds, broken: rows.len(), examples });
    }
    transaction.rollback().await?;
    Ok(Verification { checks })
}
