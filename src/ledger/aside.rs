//! Messages whose leads somebody has locked: set aside, so that they hold up neither their neighbours nor the queue, and accepted
//! when the lock is gone.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tokio::time::Instant;
use uuid::Uuid;

use super::accept::Batch;
use super::claim::kept;
use super::model::{Arrival, Fate, OnLock};
use super::{Ledger, LedgerError};
use crate::fault::{self, Point};
use crate::lead::{Keys, LeadId, Violation};

/// How many are looked at in one transaction.
const ABSORBED_AT_ONCE: i64 = 100;

impl Ledger {
    /// Keeps messages that cannot be accepted now, without touching their leads. They may be acknowledged then.
    ///
    /// # Errors
    /// That nothing was kept, or that nobody knows. Kept twice, a message is accepted twice, and recognized.
    pub async fn set_aside(&self, arrivals: Arc<[Arrival]>) -> Result<(), LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("set messages aside", move |pool| {
                let (ledger, arrivals) = (ledger.clone(), Arc::clone(&arrivals));
                async move {
                    let mut transaction = pool.begin().await?;
                    sqlx::query(
                        "insert into aside (destination, queue, lead_id, message_id, body, redelivered, replay, trace) \
                         select $1, $2, lead_id, message_id, body, redelivered, replay, trace \
                         from unnest($3::uuid[], $4::text[], $5::bytea[], $6::bool[], $7::bool[], $8::text[]) \
                             as t (lead_id, message_id, body, redelivered, replay, trace)",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*ledger.queue)
                    .bind(arrivals.iter().map(|arrival| arrival.id.0).collect::<Vec<Uuid>>())
                    .bind(arrivals.iter().map(|arrival| arrival.message_id.as_deref()).collect::<Vec<_>>())
                    .bind(arrivals.iter().map(|arrival| &*arrival.body).collect::<Vec<&[u8]>>())
                    .bind(arrivals.iter().map(|arrival| arrival.redelivered).collect::<Vec<_>>())
                    .bind(arrivals.iter().map(|arrival| arrival.replay).collect::<Vec<_>>())
                    .bind(
                        arrivals
                            .iter()
                            .map(|arrival| arrival.trace.as_ref().map(ToString::to_string))
                            .collect::<Vec<_>>(),
                    )
                    .execute(&mut *transaction)
                    .await?;
                    fault::at(Point::SettingAside);
                    transaction.commit().await?;
                    fault::at(Point::SetAside);
                    Ok(())
                }
            })
            .await
    }

    /// The places of up to 100 messages that were set aside, in order, from the first after this one.
    ///
    /// # Errors
    /// That nobody knows.
    pub async fn aside_after(&self, after: i64) -> Result<Vec<i64>, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("look for messages that were set aside", move |pool| {
                let ledger = ledger.clone();
                async move {
                    sqlx::query_scalar(
                        "select seq from aside where destination = $1 and queue = $2 and seq > $3 order by seq limit $4",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*ledger.queue)
                    .bind(after)
                    .bind(ABSORBED_AT_ONCE)
                    .fetch_all(&pool)
                    .await
                }
            })
            .await
    }

    /// Accepts those of these messages that are not locked any more; they are due then. `check` says what a body can be found by, and
    /// what is wrong with it. Says what became of each.
    ///
    /// # Errors
    /// That nothing was accepted, or that nobody knows.
    pub async fn absorb<C>(&self, places: Arc<[i64]>, check: C) -> Result<Vec<(Arrival, Fate)>, LedgerError>
    where
        C: Fn(LeadId, &[u8]) -> (Keys, Vec<Violation>) + Send + Sync + 'static,
    {
        let ledger = self.clone();
        let check = Arc::new(check);
        self.pool
            .run("accept messages that were set aside", move |pool| {
                let (ledger, check, places) = (ledger.clone(), Arc::clone(&check), Arc::clone(&places));
                async move {
                    let mut transaction = pool.begin().await?;
                    let rows = sqlx::query(
                        "select seq, lead_id, message_id, body, redelivered, replay, trace from aside \
                         where destination = $1 and queue = $2 and seq = any($3) order by seq for update skip locked",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*ledger.queue)
                    .bind(&*places)
                    .fetch_all(&mut *transaction)
                    .await?;
                    if rows.is_empty() {
                        return Ok(Vec::new());
                    }
                    let arrivals = rows.iter().map(|row| arrival(row, &*check)).collect::<Result<Vec<_>, _>>()?;
                    let mut batch = Batch {
                        ledger: &ledger,
                        arrivals: &arrivals,
                        lease: None,
                        leased_at: Instant::now(),
                        given: HashSet::new(),
                        on_lock: OnLock::Skip,
                    };
                    let fates = batch.write(&mut transaction).await?;
                    let mut done = Vec::new();
                    for (row, fate) in rows.iter().zip(&fates) {
                        if fate.is_some() {
                            done.push(row.try_get::<i64, _>("seq")?);
                        }
                    }
                    sqlx::query("delete from aside where seq = any($1)").bind(done).execute(&mut *transaction).await?;
                    fault::at(Point::Absorbing);
                    transaction.commit().await?;
                    Ok(arrivals.into_iter().zip(fates).filter_map(|(arrival, fate)| Some((arrival, fate?))).collect())
                }
            })
            .await
    }
}

fn arrival<C>(row: &PgRow, check: &C) -> Result<Arrival, sqlx::Error>
where
    C: Fn(LeadId, &[u8]) -> (Keys, Vec<Violation>),
{
    let body: Vec<u8> = row.try_get("body")?;
    let id = LeadId(row.try_get("lead_id")?);
    let (keys, violations) = check(id, &body);
    Ok(Arrival {
        id,
        keys,
        violations,
        body: Bytes::from(body),
        message_id: row.try_get("message_id")?,
        redelivered: row.try_get("redelivered")?,
        replay: row.try_get("replay")?,
        trace: kept(row)?,
    })
}
