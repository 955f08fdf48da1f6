//! From messages to leads: one transaction for a batch, after which the messages may be acknowledged.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::time::Instant;
use uuid::Uuid;

use super::identity::{Decision, Known, decide};
use super::model::{Arrival, Fate, LeadState, Leased, OnLock, Origin};
use super::settle::remember;
use super::{Ledger, LedgerError, millis, trimmed};
use crate::fault::{self, Point};
use crate::lead::LeadId;

/// What is wrong with an invalid lead, in one word and one sentence each.
const INVALID_CODE: &str = "invalid";

impl Ledger {
    /// Commits a batch of messages and says what became of each, in their order.
    ///
    /// With `lease`, valid leads are leased to this worker for that long, under that fencing token; without, they are left due.
    /// A batch that was perhaps committed, because its answer was lost, may be accepted again with the same token: its leads
    /// are recognized as leased by it.
    ///
    /// With [`OnLock::Skip`], an arrival whose lead somebody else has locked gets no fate and is not accepted.
    ///
    /// # Errors
    /// That nothing was accepted, or that nobody knows. Either way no message may be acknowledged.
    pub async fn accept(
        &self,
        arrivals: Arc<[Arrival]>,
        lease: Option<(Uuid, Duration)>,
        on_lock: OnLock,
    ) -> Result<Vec<Option<Fate>>, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("accept leads", move |pool| {
                let (ledger, arrivals) = (ledger.clone(), Arc::clone(&arrivals));
                async move {
                    let leased_at = Instant::now();
                    let mut transaction = pool.begin().await?;
                    let given = HashSet::new();
                    let mut batch = Batch { ledger: &ledger, arrivals: &arrivals, lease, leased_at, given, on_lock };
                    let fates = batch.write(&mut transaction).await?;
                    fault::at(Point::Accepting);
                    transaction.commit().await?;
                    fault::at(Point::Accepted);
                    Ok(fates)
                }
            })
            .await
    }
}

pub(super) struct Batch<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) arrivals: &'a [Arrival],
    pub(super) lease: Option<(Uuid, Duration)>,
    pub(super) leased_at: Instant,
    /// What this try has dealt with already: a second message with such an id is another message, not a lost answer.
    pub(super) given: HashSet<LeadId>,
    pub(super) on_lock: OnLock,
}

/// An arrival on its way into the ledger under an id that is perhaps not its first.
#[derive(Debug, Clone)]
struct Entry {
    /// Its place among the arrivals.
    at: usize,
    id: LeadId,
    /// The id under which it came, when that was taken.
    instead_of: Option<LeadId>,
    /// The state that it gets for being held back.
    held: Option<LeadState>,
}

impl Batch<'_> {
    pub(super) async fn write(&mut self, connection: &mut PgConnection) -> Result<Vec<Option<Fate>>, sqlx::Error> {
        let mut fates: Vec<Option<Fate>> = vec![None; self.arrivals.len()];
        let mut waiting: Vec<Entry> = self
            .arrivals
            .iter()
            .enumerate()
            .map(|(at, arrival)| Entry { at, id: arrival.id, instead_of: None, held: None })
            .collect();
        // A wave holds each id once; what shares its id with an earlier one, or needs another id, is in the next.
        while !waiting.is_empty() {
            let mut ids = HashSet::with_capacity(waiting.len());
            let (mut wave, rest): (Vec<Entry>, Vec<Entry>) =
                waiting.into_iter().partition(|entry| ids.insert(entry.id));
            waiting = rest;
            // In one order everywhere, so that two batches do not wait for each other in a circle.
            wave.sort_unstable_by_key(|entry| entry.id);
            let inserted = self.insert(connection, &wave).await?;
            let (new, known): (Vec<Entry>, Vec<Entry>) =
                wave.into_iter().partition(|entry| inserted.contains(&entry.id));
            for entry in new {
                fates[entry.at] = Some(self.fate_of_new(&entry));
                self.given.insert(entry.id);
            }
            if !known.is_empty() {
                let again = self.settle_known(connection, known, &mut fates).await?;
                // Before the rest: first come, first served.
                waiting.splice(0..0, again);
            }
        }
        let parked = fates.iter().zip(self.arrivals).filter_map(|(fate, arrival)| match fate {
            Some(Fate::Parked(id)) => Some((*id, arrival.trace.as_ref()?)),
            _ => None,
        });
        remember(connection, parked).await?;
        Ok(fates)
    }

    fn arrival(&self, entry: &Entry) -> &Arrival {
        &self.arrivals[entry.at]
    }

    fn state(&self, entry: &Entry) -> LeadState {
        match entry.held {
            Some(state) => state,
            None if self.arrival(entry).violations.is_empty() => LeadState::Pending,
            None => LeadState::Invalid,
        }
    }

    fn lease_ms(&self) -> i64 {
        self.lease.map_or(0, |(_, duration)| millis(duration))
    }

    fn fate_of_new(&self, entry: &Entry) -> Fate {
        let origin = if entry.instead_of.is_some() { Origin::Conflict } else { Origin::Fresh };
        match self.state(entry) {
            LeadState::Pending => self.fate_of_pending(entry, origin, 0),
            LeadState::Invalid => Fate::Invalid(entry.id),
            held @ (LeadState::Delivered
            | LeadState::Duplicate
            | LeadState::Rejected
            | LeadState::Exhausted
            | LeadState::Uncertain
            | LeadState::Cancelled) => Fate::Held(entry.id, held),
        }
    }

    fn fate_of_pending(&self, entry: &Entry, origin: Origin, attempts: u32) -> Fate {
        let id = entry.id;
        match self.lease {
            Some((lease, _)) => Fate::Leased(Leased {
                id,
                lease,
                origin,
                attempts,
                charged: 0,
                suspected: 0,
                // What its attempts came to is not looked up here: any of them may have been uncertain.
                in_doubt: attempts > 0,
                age: Duration::ZERO,
                leased_at: self.leased_at,
                trace: self.arrival(entry).trace.clone(),
            }),
            None => Fate::Parked(id),
        }
    }

    /// Inserts what is new and says which ids that were.
    async fn insert(&self, connection: &mut PgConnection, wave: &[Entry]) -> Result<HashSet<LeadId>, sqlx::Error> {
        let columns = Columns::of(self, wave);
        let inserted: Vec<Uuid> = sqlx::query_scalar(
            "with inserted as (insert into leads (id, destination, state, body, queue, message_id, conflict_of, \
                 next_attempt_at, leased_by, lease, finished_at, code, reason, violations, email_key, assistant_key) \
             select id, $1, state, body, $2, message_id, conflict_of, \
                 case when state = 'pending' then now() + $3 * interval '1 millisecond' end, \
                 case when state = 'pending' and $5::uuid is not null then $4::text end, \
                 case when state = 'pending' then $5::uuid end, \
                 case when state <> 'pending' then now() end, \
                 code, reason, violations::jsonb, email_key, assistant_key \
             from unnest($6::uuid[], $7::text[], $8::bytea[], $9::text[], $10::uuid[], $11::text[], $12::text[], $13::text[], \
                 $14::bigint[], $15::bigint[]) \
                 as t (id, state, body, message_id, conflict_of, code, reason, violations, email_key, assistant_key) \
             on conflict (id) do nothing \
             returning id) \
             select coalesce(array_agg(id), '{}') from inserted",
        )
        .bind(&*self.ledger.destination)
        .bind(&*self.ledger.queue)
        .bind(self.lease_ms())
        .bind(&*self.ledger.worker)
        .bind(self.lease.map(|(lease, _)| lease))
        .bind(columns.ids)
        .bind(columns.states)
        .bind(columns.bodies)
        .bind(trimmed(columns.message_ids))
        .bind(trimmed(columns.conflicts))
        .bind(trimmed(columns.codes))
        .bind(trimmed(columns.reasons))
        .bind(trimmed(columns.violations))
        .bind(trimmed(columns.emails))
        .bind(trimmed(columns.assistants))
        .fetch_one(connection)
        .await?;
        Ok(inserted.into_iter().map(LeadId).collect())
    }

    /// Deals with arrivals whose ids are there already; those that need another id come back.
    async fn settle_known(
        &mut self,
        connection: &mut PgConnection,
        known: Vec<Entry>,
        fates: &mut [Option<Fate>],
    ) -> Result<Vec<Entry>, sqlx::Error> {
        let rows = self.look_up(connection, &known).await?;
        let mut repeated = Vec::new();
        let mut ours = Vec::new();
        let mut replayed = Vec::new();
        let mut again = Vec::new();
        for entry in known {
            let Some(row) = rows.get(&entry.id) else {
                // Locked by somebody; or erased between the two statements: then it is inserted after all.
                if self.on_lock == OnLock::Wait {
                    again.push(entry);
                }
                continue;
            };
            let arrival = self.arrival(&entry);
            match decide(row, arrival, self.given.contains(&entry.id)) {
                Decision::AlreadyLeased => {
                    let origin = match (entry.instead_of, row.replays) {
                        (Some(_), _) => Origin::Conflict,
                        (None, 1..) => Origin::Replayed,
                        (None, _) => Origin::Fresh,
                    };
                    fates[entry.at] = Some(self.fate_of_pending(&entry, origin, row.attempts));
                    ours.push(entry.id.0);
                    self.given.insert(entry.id);
                }
                Decision::Repeat => {
                    fates[entry.at] = Some(Fate::Repeated(entry.id, row.state));
                    repeated.push(entry.id.0);
                }
                Decision::Replay => replayed.push((entry, row.state)),
                Decision::Conflict => again.push(Entry {
                    id: entry.id.for_conflict(&arrival.body),
                    instead_of: Some(entry.instead_of.unwrap_or(entry.id)),
                    ..entry
                }),
                Decision::HeldConflict => again.push(Entry {
                    id: entry.id.for_conflict(&arrival.body),
                    instead_of: Some(entry.instead_of.unwrap_or(entry.id)),
                    held: Some(row.state),
                    ..entry
                }),
                Decision::Elsewhere => again.push(Entry {
                    id: entry.id.for_destination(&self.ledger.destination),
                    instead_of: Some(entry.instead_of.unwrap_or(entry.id)),
                    ..entry
                }),
            }
        }
        if !ours.is_empty() {
            // Their lease began with the first try; what is handed out now begins now.
            sqlx::query("update leads set next_attempt_at = now() + $2 * interval '1 millisecond' where id = any($1)")
                .bind(ours)
                .bind(self.lease_ms())
                .execute(&mut *connection)
                .await?;
        }
        if !repeated.is_empty() {
            sqlx::query("update leads set received = received + 1, changed_at = now() where id = any($1)")
                .bind(repeated)
                .execute(&mut *connection)
                .await?;
        }
        if !replayed.is_empty() {
            self.replay(connection, &replayed, fates).await?;
        }
        Ok(again)
    }

    async fn look_up(
        &self,
        connection: &mut PgConnection,
        known: &[Entry],
    ) -> Result<HashMap<LeadId, Known>, sqlx::Error> {
        let ids: Vec<Uuid> = known.iter().map(|entry| entry.id.0).collect();
        let bodies: Vec<&[u8]> = known.iter().map(|entry| &*self.arrival(entry).body).collect();
        const LOOK_UP: &str = "select l.id, l.state, l.body = t.body, coalesce(l.lease = $3, false), l.destination <> $4, l.attempts, l.replays, \
                 exists (select 1 from replays r where r.lead_id = l.id \
                     and case when r.body_before is not null then r.body_before = sha256(t.body) else false end), \
                 coalesce(l.posted_lease = $3, false) or exists (select 1 from other_attempts a where a.lead_id = l.id and a.lease = $3), \
                 exists (select 1 from interventions i where i.lead_id = l.id and i.body_before = sha256(t.body)) \
             from unnest($1::uuid[], $2::bytea[]) as t (id, body) join leads l on l.id = t.id \
             order by l.id for update of l";
        let skip_locked = if self.on_lock == OnLock::Skip { " skip locked" } else { "" };
        let rows = sqlx::query(AssertSqlSafe(format!("{LOOK_UP}{skip_locked}")))
            .bind(ids)
            .bind(bodies)
            .bind(self.lease.map(|(lease, _)| lease))
            .bind(&*self.ledger.destination)
            .fetch_all(connection)
            .await?;
        rows.into_iter()
            .map(|row| {
                let known = Known {
                    state: state(row.try_get(1)?)?,
                    same_body: row.try_get(2)?,
                    ours: row.try_get(3)?,
                    elsewhere: row.try_get(4)?,
                    attempts: u32::try_from(row.try_get::<i32, _>(5)?).unwrap_or(0),
                    replays: row.try_get(6)?,
                    had_this_body: row.try_get(7)?,
                    done_by_us: row.try_get(8)?,
                    decided: row.try_get(9)?,
                };
                Ok((LeadId(row.try_get(0)?), known))
            })
            .collect()
    }

    /// Sends ended leads on their way again, with the new body and a fresh budget.
    async fn replay(
        &mut self,
        connection: &mut PgConnection,
        replayed: &[(Entry, LeadState)],
        fates: &mut [Option<Fate>],
    ) -> Result<(), sqlx::Error> {
        let entries: Vec<Entry> = replayed.iter().map(|(entry, _)| entry.clone()).collect();
        let columns = Columns::of(self, &entries);
        let rows = sqlx::query(
            "with t as ( \
                 select * from unnest($5::uuid[], $6::text[], $7::bytea[], $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[]) \
                     as t (id, state, body, code, reason, violations, email_key, assistant_key) \
             ), noted as ( \
                 insert into replays (lead_id, replayed_at, from_state, kind, replayed_by, body_before) \
                 select l.id, clock_timestamp(), l.state, 'message', $1, case when l.body <> t.body then sha256(l.body) end \
                 from t join leads l on l.id = t.id \
             ) \
             update leads l set state = t.state, body = t.body, changed_at = now(), received = l.received + 1, \
                 next_attempt_at = case when t.state = 'pending' then now() + $2 * interval '1 millisecond' end, \
                 leased_by = case when t.state = 'pending' and $4::uuid is not null then $3::text end, \
                 lease = case when t.state = 'pending' then $4::uuid end, \
                 finished_at = case when t.state <> 'pending' then now() end, \
                 charged = 0, suspected = 0, budget_from = now(), replays = l.replays + 1, \
                 code = t.code, reason = t.reason, violations = t.violations::jsonb, warning = null, \
                 email_key = t.email_key, assistant_key = t.assistant_key, erased_at = null, trace = null \
             from t where l.id = t.id \
             returning l.id, l.attempts",
        )
        .bind(&*self.ledger.queue)
        .bind(self.lease_ms())
        .bind(&*self.ledger.worker)
        .bind(self.lease.map(|(lease, _)| lease))
        .bind(columns.ids)
        .bind(columns.states)
        .bind(columns.bodies)
        .bind(trimmed(columns.codes))
        .bind(trimmed(columns.reasons))
        .bind(trimmed(columns.violations))
        .bind(trimmed(columns.emails))
        .bind(trimmed(columns.assistants))
        .fetch_all(connection)
        .await?;
        let attempts: HashMap<Uuid, i32> =
            rows.into_iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?;
        for entry in &entries {
            self.given.insert(entry.id);
            let attempts = attempts.get(&entry.id.0).copied().unwrap_or(0);
            fates[entry.at] = Some(if self.state(entry) == LeadState::Pending {
                self.fate_of_pending(entry, Origin::Replayed, u32::try_from(attempts).unwrap_or(0))
            } else {
                Fate::Invalid(entry.id)
            });
        }
        Ok(())
    }
}

pub(super) fn state(text: String) -> Result<LeadState, sqlx::Error> {
    text.parse().map_err(|error: String| sqlx::Error::Decode(error.into()))
}

/// The columns of a wave, as arrays of the same length.
struct Columns<'a> {
    ids: Vec<Uuid>,
    states: Vec<&'static str>,
    bodies: Vec<&'a [u8]>,
    message_ids: Vec<Option<&'a str>>,
    conflicts: Vec<Option<Uuid>>,
    codes: Vec<Option<&'static str>>,
    reasons: Vec<Option<String>>,
    violations: Vec<Option<String>>,
    emails: Vec<Option<i64>>,
    assistants: Vec<Option<i64>>,
}

impl<'a> Columns<'a> {
    fn of(batch: &Batch<'a>, wave: &[Entry]) -> Self {
        let n = wave.len();
        let mut columns = Self {
            ids: Vec::with_capacity(n),
            states: Vec::with_capacity(n),
            bodies: Vec::with_capacity(n),
            message_ids: Vec::with_capacity(n),
            conflicts: Vec::with_capacity(n),
            codes: Vec::with_capacity(n),
            reasons: Vec::with_capacity(n),
            violations: Vec::with_capacity(n),
            emails: Vec::with_capacity(n),
            assistants: Vec::with_capacity(n),
        };
        for entry in wave {
            let arrival = &batch.arrivals[entry.at];
            let state = batch.state(entry);
            columns.ids.push(entry.id.0);
            columns.states.push(state.as_str());
            columns.bodies.push(&arrival.body);
            columns.message_ids.push(arrival.message_id.as_deref());
            columns.conflicts.push(entry.instead_of.map(|id| id.0));
            columns.emails.push(arrival.keys.email.map(|email| email.0));
            columns.assistants.push(arrival.keys.assistant.map(|assistant| assistant.0));
            let (code, reason) = match (state, entry.instead_of) {
                (LeadState::Pending, _) => (None, None),
                (LeadState::Invalid, _) => (Some(INVALID_CODE), Some(sentence(arrival))),
                (held, other) => {
                    let other = other.map(|id| id.to_string()).unwrap_or_default();
                    let reason = format!(
                        "came with another body under the id of lead {other}, which is {held}; requeue it to send it"
                    );
                    (Some("id_conflict"), Some(reason))
                }
            };
            columns.codes.push(code);
            columns.reasons.push(reason);
            columns.violations.push(match state {
                LeadState::Invalid => {
                    Some(serde_json::to_string(&arrival.violations).unwrap_or_else(|_| "[]".to_owned()))
                }
                _ => None,
            });
        }
        columns
    }
}

/// All violations as one sentence.
fn sentence(arrival: &Arrival) -> String {
    super::settle::violations_sentence(&arrival.violations)
}
