//! What people do to many leads at once: send them again, cancel them, settle uncertain ones.
//!
//! ```text
//!   Filter ──> the leads that it may be done to, the oldest first ──> 1,000 of them: locked, looked at again, changed; one transaction
//!                                 ^                                                        │
//!                                 └──────────── from the last one's place on ──────────────┘
//! ```
//!
//! # Rules
//! - Each transaction is whole, with who, when and why of each lead. Interrupted between two of them, the rest is as it was; repeated, it is done.
//! - What came into its state, or into the ledger, after the first look is not touched: a lead that fails again meanwhile is not sent for ever.
//! - A lead that is being posted is nobody's to change.
//! - An end is dated after the row is locked: a post may have ended between that and the begin of the transaction.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::find::{Filter, Order, Place, Search, names};
use super::model::LeadState;
use super::pool::WITHOUT_LIMIT;
use super::{Ledger, LedgerError};
use crate::fault::{self, Point};
use crate::lead::LeadId;

/// How many leads one transaction changes.
const BATCH: i64 = 1_000;

/// Every end but those that say that the API has the lead.
const BAD_ENDS: [LeadState; 5] =
    [LeadState::Invalid, LeadState::Rejected, LeadState::Exhausted, LeadState::Uncertain, LeadState::Cancelled];

/// What is done to leads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Ended leads become pending, with a fresh budget of attempts.
    Requeue {
        /// Also those that the API took, or has: they are posted once more.
        include_delivered: bool,
        /// How many become due per second; `None`: all at once.
        rate_per_s: Option<f64>,
    },
    /// Pending leads end as cancelled, unless they are being posted.
    Cancel,
    /// Uncertain leads become pending again.
    SendAgain {
        /// How many become due per second; `None`: all at once.
        rate_per_s: Option<f64>,
    },
    /// Uncertain leads end as delivered: somebody has looked, and the API has them.
    SettleDelivered,
}

impl Action {
    /// The states in which it can be done to a lead.
    pub fn takes(self) -> Vec<LeadState> {
        match self {
            Action::Requeue { include_delivered: false, .. } => BAD_ENDS.to_vec(),
            Action::Requeue { include_delivered: true, .. } => LeadState::ALL[1..].to_vec(),
            Action::Cancel => vec![LeadState::Pending],
            Action::SendAgain { .. } | Action::SettleDelivered => vec![LeadState::Uncertain],
        }
    }

    fn rate_per_s(self) -> Option<f64> {
        match self {
            Action::Requeue { rate_per_s, .. } | Action::SendAgain { rate_per_s } => rate_per_s,
            Action::Cancel | Action::SettleDelivered => None,
        }
    }
}

/// Something that is to be done.
#[derive(Debug, Clone)]
pub struct Act {
    /// What.
    pub action: Action,
    /// To which leads; of these, to those in a state that it takes.
    pub filter: Filter,
    /// Who does it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// What came into its state, or into the ledger, after then is left alone; `None`: after it begins.
    pub as_of: Option<OffsetDateTime>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acted {
    /// To how many leads it was done.
    pub leads: u64,
    /// To which ones, of those that were named.
    pub named: Vec<LeadId>,
}

/// A lead that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its id.
    pub id: LeadId,
    /// Its state; `None`: this destination has no such lead.
    pub state: Option<LeadState>,
    /// Whether it is being posted.
    pub is_leased: bool,
    /// Whether what is personal of it was erased.
    pub is_erased: bool,
}

impl Act {
    /// The leads that it would be done to.
    pub fn chosen(&self) -> Filter {
        // Nothing is left of these that could be posted.
        let filter = Filter { not_erased: true, ..self.filter.clone() };
        filter.within(&self.action.takes())
    }
}

/// How far it is.
#[derive(Debug, Clone, Default)]
struct Progress {
    acted: Acted,
    after: Option<Place>,
    /// When the first look was taken, by the database's clock.
    began_at: Option<OffsetDateTime>,
}

impl Ledger {
    /// Does it, and says to how many leads. `told` hears of each transaction: how many leads it is done to by then.
    ///
    /// # Errors
    /// What the last transaction failed with. Those before it stay done; to do it again does the rest.
    pub async fn act(&self, act: Act, mut told: impl FnMut(u64)) -> Result<Acted, LedgerError> {
        let filter = Arc::new(act.chosen());
        let mut progress = Progress { began_at: act.as_of, ..Progress::default() };
        let act = Arc::new(act);
        loop {
            let ledger = self.clone();
            let (act, filter, before) = (Arc::clone(&act), Arc::clone(&filter), progress.clone());
            let step = self
                .pool
                .run_long("change leads", move |pool| {
                    let (ledger, act, filter) = (ledger.clone(), Arc::clone(&act), Arc::clone(&filter));
                    let before = before.clone();
                    async move {
                        let mut transaction = pool.begin().await?;
                        // A filter may have to look at millions of leads.
                        sqlx::raw_sql(WITHOUT_LIMIT).execute(&mut *transaction).await?;
                        let step = step(&mut transaction, &ledger, &act, &filter, before).await?;
                        fault::at(Point::Requeueing);
                        transaction.commit().await?;
                        fault::at(Point::Requeued);
                        Ok(step)
                    }
                })
                .await?;
            let Some(next) = step else { return Ok(progress.acted) };
            progress = next;
            told(progress.acted.leads);
        }
    }

    /// What is known of these leads.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn named(&self, ids: &[LeadId]) -> Result<Vec<Named>, LedgerError> {
        let ids: Arc<[Uuid]> = ids.iter().map(|id| id.0).collect();
        let ledger = self.clone();
        self.pool
            .run("look up leads", move |pool| {
                let (ids, ledger) = (Arc::clone(&ids), ledger.clone());
                async move {
                    let rows = sqlx::query(
                        "select t.id, l.state, l.lease is not null, l.erased_at is not null \
                         from unnest($1::uuid[]) with ordinality as t (id, place) \
                         left join leads l on l.id = t.id and l.destination = $2 order by t.place",
                    )
                    .bind(&*ids)
                    .bind(&*ledger.destination)
                    .fetch_all(&pool)
                    .await?;
                    rows.iter()
                        .map(|row| {
                            let state: Option<String> = row.try_get(1)?;
                            Ok(Named {
                                id: LeadId(row.try_get(0)?),
                                state: state.map(super::accept::state).transpose()?,
                                is_leased: row.try_get(2)?,
                                is_erased: row.try_get(3)?,
                            })
                        })
                        .collect()
                }
            })
            .await
    }

    /// What time it is, by the database's clock.
    ///
    /// # Errors
    /// That the ledger cannot be asked.
    pub async fn clock(&self) -> Result<OffsetDateTime, LedgerError> {
        self.pool
            .run("ask for the time", |pool| async move { sqlx::query_scalar("select now()").fetch_one(&pool).await })
            .await
    }
}

/// The next thousand; `None`: there are none left.
async fn step(
    connection: &mut PgConnection,
    ledger: &Ledger,
    act: &Act,
    filter: &Filter,
    before: Progress,
) -> Result<Option<Progress>, sqlx::Error> {
    let began_at = match before.began_at {
        Some(began_at) => began_at,
        None => sqlx::query_scalar("select now()").fetch_one(&mut *connection).await?,
    };
    let search = Search {
        destination: &ledger.destination,
        filter,
        order: Order::OldestFirst,
        after: before.after,
        by: Some(began_at),
        limit: BATCH,
    };
    let found = search.rows(connection, "null").await?;
    let Some(last) = found.last() else { return Ok(None) };
    let after = Some(Place::of(last)?);
    let mut ids = Vec::with_capacity(found.len());
    for row in &found {
        ids.push(row.try_get::<Uuid, _>("id")?);
    }
    let done = before.acted.leads;
    let changed = match act.action {
        Action::Requeue { .. } | Action::SendAgain { .. } => requeue(connection, act, ids, done, began_at).await?,
        Action::Cancel => cancel(connection, act, ids, began_at).await?,
        Action::SettleDelivered => settle_delivered(connection, act, ids, began_at).await?,
    };
    let mut acted = before.acted;
    acted.leads += changed.len() as u64;
    if !filter.ids.is_empty() {
        acted.named.extend(changed.into_iter().map(LeadId));
    }
    Ok(Some(Progress { acted, after, began_at: Some(began_at) }))
}

/// Names the rows that are locked and changed: they are looked at again, as somebody may have been faster.
const ENDED: &str = "locked as ( \
         select id, state, finished_at from leads \
         where id = any($1) and state = any($2) and finished_at <= $3 and erased_at is null order by id for update \
     )";

async fn requeue(
    connection: &mut PgConnection,
    act: &Act,
    ids: Vec<Uuid>,
    before: u64,
    began_at: OffsetDateTime,
) -> Result<Vec<Uuid>, sqlx::Error> {
    // Due one after the other also when all at once: a million at one point in time would have no order among them.
    let due = "$7 + ($5::bigint + n.n) * case when $6::float8 is null then interval '1 microsecond' else interval '1 second' / $6 end";
    sqlx::query_scalar(AssertSqlSafe(format!(
        "with {ENDED}, numbered as ( \
             select id, state, row_number() over (order by finished_at, id) - 1 as n from locked \
         ), noted as ( \
             insert into replays (lead_id, replayed_at, from_state, kind, replayed_by, reason) \
             select id, clock_timestamp(), state, 'requeue', $4, $8 from numbered \
         ) \
         update leads l set state = 'pending', changed_at = now(), finished_at = null, \
             next_attempt_at = {due}, budget_from = {due}, \
             charged = 0, suspected = 0, replays = l.replays + 1, \
             code = null, reason = null, violations = null, warning = null \
         from numbered n where l.id = n.id returning l.id"
    )))
    .bind(ids)
    .bind(names(&act.action.takes()))
    .bind(began_at)
    .bind(&act.by)
    .bind(i64::try_from(before).unwrap_or(i64::MAX))
    .bind(act.action.rate_per_s())
    .bind(began_at)
    .bind(&act.reason)
    .fetch_all(connection)
    .await
}

async fn cancel(
    connection: &mut PgConnection,
    act: &Act,
    ids: Vec<Uuid>,
    began_at: OffsetDateTime,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "with locked as ( \
             select id from leads where id = any($1) and state = 'pending' and lease is null and accepted_at <= $2 \
             order by id for update \
         ), noted as ( \
             insert into interventions (lead_id, kind, from_state, done_by, reason) \
             select id, 'cancel', 'pending', $3, $4 from locked \
         ) \
         update leads l set state = 'cancelled', changed_at = now(), finished_at = clock_timestamp(), next_attempt_at = null, \
             code = 'cancelled', reason = $5 \
         from locked where l.id = locked.id returning l.id",
    )
    .bind(ids)
    .bind(began_at)
    .bind(&act.by)
    .bind(&act.reason)
    .bind(said("cancelled", act))
    .fetch_all(connection)
    .await
}

async fn settle_delivered(
    connection: &mut PgConnection,
    act: &Act,
    ids: Vec<Uuid>,
    began_at: OffsetDateTime,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!(
        "with {ENDED}, noted as ( \
             insert into interventions (lead_id, kind, from_state, done_by, reason) \
             select id, 'release', state, $4, $5 from locked \
         ) \
         update leads l set state = 'delivered', changed_at = now(), finished_at = clock_timestamp(), code = 'released', reason = $6 \
         from locked where l.id = locked.id returning l.id"
    )))
    .bind(ids)
    .bind(names(&act.action.takes()))
    .bind(began_at)
    .bind(&act.by)
    .bind(&act.reason)
    .bind(said("settled as delivered", act))
    .fetch_all(connection)
    .await
}

/// Who did what, and why.
fn said(what: &str, act: &Act) -> String {
    match &act.reason {
        Some(reason) => format!("{what} by {}: {reason}", act.by),
        None => format!("{what} by {}", act.by),
    }
}
