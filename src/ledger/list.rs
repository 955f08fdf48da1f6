//! Leads in lists: pages, counts, and the groups in which they fail. Reads only.

use std::sync::Arc;

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, QueryBuilder, Row as _};
use time::OffsetDateTime;

use super::find::{Filter, IN_ORDER, NORMALIZED_REASON, Order, Place, Search};
use super::model::LeadState;
use super::pool::WITHOUT_LIMIT;
use super::story::{LAST_STATUS, LEAD, LeadRecord, lead};
use super::{Ledger, LedgerError};
use crate::lead::LeadId;

/// So many leads of each state are looked at for groups, the newest.
const LOOKED_AT: i64 = 100_000;

/// The states in which something is wrong, or not done yet.
const FAILED: [LeadState; 7] = [
    LeadState::Pending,
    LeadState::Duplicate,
    LeadState::Invalid,
    LeadState::Rejected,
    LeadState::Exhausted,
    LeadState::Uncertain,
    LeadState::Cancelled,
];

/// A lead in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The lead, without its history.
    pub lead: LeadRecord,
    /// Its body.
    pub body: Vec<u8>,
    /// The status of the last answer.
    pub http_status: Option<i16>,
    /// Its place.
    pub place: Place,
}

/// Some leads, and where to go on.
#[derive(Debug, Clone)]
pub struct Page {
    /// The leads, in order.
    pub leads: Vec<Listed>,
    /// The place of the last one, if there may be more.
    pub next: Option<Place>,
}

/// Leads that share a fate.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// Their state.
    pub state: LeadState,
    /// Why, as a code.
    pub code: Option<String>,
    /// The status of the last answer.
    pub http_status: Option<i16>,
    /// Why, as a sentence, without what differs from lead to lead.
    pub reason: String,
    /// How many there are.
    pub leads: i64,
    /// When the first of them came to it; of pending ones: was accepted.
    #[serde(with = "time::serde::rfc3339")]
    pub first: OffsetDateTime,
    /// The last.
    #[serde(with = "time::serde::rfc3339")]
    pub last: OffsetDateTime,
    /// One of them.
    pub sample: LeadId,
}

impl Ledger {
    /// Up to `limit` leads that match, from the one after that place on.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn list(
        &self,
        filter: Arc<Filter>,
        order: Order,
        after: Option<Place>,
        limit: usize,
    ) -> Result<Page, LedgerError> {
        let ledger = self.clone();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read_long("list leads", move |connection| {
            let (ledger, filter) = (ledger.clone(), Arc::clone(&filter));
            Box::pin(async move {
                let search =
                    Search { destination: &ledger.destination, filter: &filter, order, after, by: None, limit };
                let columns = format!("{LEAD}, l.body, {LAST_STATUS} as http_status");
                let rows = search.rows(connection, &columns).await?;
                let mut leads = Vec::with_capacity(rows.len());
                for row in &rows {
                    leads.push(Listed {
                        lead: lead(row)?,
                        body: row.try_get("body")?,
                        http_status: row.try_get("http_status")?,
                        place: Place::of(row)?,
                    });
                }
                let is_full = i64::try_from(leads.len()).is_ok_and(|n| n == limit);
                let next = leads.last().map(|last: &Listed| last.place).filter(|_| is_full);
                Ok(Page { leads, next })
            })
        })
        .await
    }

    /// How many leads match.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn count(&self, filter: Arc<Filter>) -> Result<u64, LedgerError> {
        let ledger = self.clone();
        self.read_long("count leads", move |connection| {
            let (ledger, filter) = (ledger.clone(), Arc::clone(&filter));
            Box::pin(async move {
                let count = if filter.only_states() {
                    tallied(connection, &ledger.destination, &filter).await?
                } else {
                    let order = Order::NewestFirst;
                    let search = Search {
                        destination: &ledger.destination,
                        filter: &filter,
                        order,
                        after: None,
                        by: None,
                        limit: 0,
                    };
                    search.count(connection).await?
                };
                Ok(u64::try_from(count).unwrap_or(0))
            })
        })
        .await
    }

    /// The groups in which leads that match ended badly, or wait after a failure; the largest first. Of each state, the newest 100,000 leads
    /// are looked at.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn failures(&self, filter: Arc<Filter>) -> Result<Vec<Group>, LedgerError> {
        let ledger = self.clone();
        let filter = Arc::new(Filter::clone(&filter).within(&FAILED));
        self.read_long("group failures", move |connection| {
            let (ledger, filter) = (ledger.clone(), Arc::clone(&filter));
            Box::pin(async move {
                let order = Order::NewestFirst;
                let search = Search {
                    destination: &ledger.destination,
                    filter: &filter,
                    order,
                    after: None,
                    by: None,
                    limit: LOOKED_AT,
                };
                let columns = format!(
                    "l.state, l.code, coalesce(l.finished_at, l.accepted_at) as since, {NORMALIZED_REASON} as said, \
                     {LAST_STATUS} as http_status"
                );
                let mut query = QueryBuilder::new(
                    "select state, code, http_status, said, count(*) as leads, min(since) as first, max(since) as last, \
                         (array_agg(id order by since desc))[1] as sample from (",
                );
                if !search.push_branches(&mut query, &format!("l.id, {columns}"), true) {
                    return Ok(Vec::new());
                }
                // What waits for its first attempt has not failed.
                query.push(
                    ") as found where code is not null group by 1, 2, 3, 4 order by leads desc, last desc, state, code, said",
                );
                sqlx::raw_sql(IN_ORDER).execute(&mut *connection).await?;
                let rows = query.build().fetch_all(connection).await?;
                rows.iter()
                    .map(|row| {
                        Ok(Group {
                            state: super::accept::state(row.try_get("state")?)?,
                            code: row.try_get("code")?,
                            http_status: row.try_get("http_status")?,
                            reason: row.try_get("said")?,
                            leads: row.try_get("leads")?,
                            first: row.try_get("first")?,
                            last: row.try_get("last")?,
                            sample: LeadId(row.try_get("sample")?),
                        })
                    })
                    .collect()
            })
        })
        .await
    }

    /// Reads in one snapshot, for as long as it takes.
    pub(super) async fn read_long<T, W>(&self, doing: &'static str, work: W) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        W: for<'c> Fn(&'c mut PgConnection) -> futures_util::future::BoxFuture<'c, Result<T, sqlx::Error>>
            + Send
            + Sync
            + 'static,
    {
        let work = Arc::new(work);
        self.pool
            .run_long(doing, move |pool| {
                let work = Arc::clone(&work);
                async move {
                    let mut transaction = pool.begin().await?;
                    sqlx::query("set transaction isolation level repeatable read read only")
                        .execute(&mut *transaction)
                        .await?;
                    sqlx::raw_sql(WITHOUT_LIMIT).execute(&mut *transaction).await?;
                    let result = work(&mut transaction).await?;
                    transaction.rollback().await?;
                    Ok(result)
                }
            })
            .await
    }
}

/// How many leads are in these states, as the tallies say.
async fn tallied(connection: &mut PgConnection, destination: &str, filter: &Filter) -> Result<i64, sqlx::Error> {
    let sum: Vec<&str> = filter.states().iter().map(|state| state.as_str()).collect();
    if sum.is_empty() {
        return Ok(0);
    }
    let sum = sum.join(" + ");
    sqlx::query_scalar(AssertSqlSafe(format!(
        "select coalesce(sum({sum}), 0)::bigint from tallies where destination = $1"
    )))
    .bind(destination.to_owned())
    .fetch_one(connection)
    .await
}
