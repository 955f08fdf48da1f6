//! Old answers of the API, which may quote persons: redacted. What a person has redacted is on record; what retention does, the log says.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Ledger, LedgerError};
use crate::lead::LeadId;

/// How far old answers are redacted: the last attempt that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redacted {
    /// When it began.
    pub at: OffsetDateTime,
    /// Of which lead.
    pub lead: LeadId,
    /// Its number.
    pub number: i32,
}

impl Ledger {
    /// Redacts what the API answered to up to `limit` attempts of this destination that are older than that, from the one after `after` on, the
    /// oldest first; and what of it a lead that ended so repeats. They are counted in this record, which says from when on an attempt is old; without
    /// one it is so long ago from now. Says how many there were, and where to go on; `None`: that was the last.
    ///
    /// # Errors
    /// That nothing was redacted, or that nobody knows.
    pub async fn redact(
        &self,
        older_than: Duration,
        after: Option<Redacted>,
        limit: usize,
        record: Option<i64>,
    ) -> Result<(u64, Option<Redacted>), LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("redact old answers", move |pool| {
                let ledger = ledger.clone();
                async move {
                    let mut transaction = pool.begin().await?;
                    // Asked for by itself: a worker has no record, and need not be allowed to read any.
                    let until: Option<OffsetDateTime> = match record {
                        Some(record) => {
                            sqlx::query_scalar("select until from decisions where id = $1")
                                .bind(record)
                                .fetch_one(&mut *transaction)
                                .await?
                        }
                        None => None,
                    };
                    let rows = sqlx::query(
                        "with old as ( \
                             select a.lead_id, a.number, a.started_at from other_attempts a join leads l on l.id = a.lead_id \
                             where l.destination = $4 and a.answer is not null and a.started_at < coalesce($7::timestamptz, now() - $1 * interval '1 second') \
                                 and (a.started_at, a.lead_id, a.number) \
                                     > (coalesce($2, '-infinity'), coalesce($3, '00000000-0000-0000-0000-000000000000'::uuid), coalesce($5, 0)) \
                             order by a.started_at, a.lead_id, a.number limit $6 for update of a skip locked \
                         ), leads_too as ( \
                             update leads l set reason = split_part(l.reason, ': ', 1) || ' (redacted)' from old \
                             where l.id = old.lead_id and l.attempts = old.number and l.state <> 'pending' \
                                 and l.lease is null and position(': ' in l.reason) > 0 \
                         ) \
                         update other_attempts a set answer = null, reason = null from old \
                         where a.lead_id = old.lead_id and a.number = old.number \
                         returning a.started_at, a.lead_id, a.number",
                    )
                    .bind(older_than.as_secs_f64())
                    .bind(after.map(|after| after.at))
                    .bind(after.map(|after| after.lead.0))
                    .bind(&*ledger.destination)
                    .bind(after.map(|after| after.number))
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .bind(until)
                    .fetch_all(&mut *transaction)
                    .await?;
                    if let Some(record) = record {
                        sqlx::query("update decisions set affected = affected + $2 where id = $1")
                            .bind(record)
                            .bind(i64::try_from(rows.len()).unwrap_or(i64::MAX))
                            .execute(&mut *transaction)
                            .await?;
                    }
                    transaction.commit().await?;
                    let mut last = None;
                    for row in &rows {
                        let place: (OffsetDateTime, Uuid, i32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                        last = last.max(Some(place));
                    }
                    let last = last.map(|(at, lead, number)| Redacted { at, lead: LeadId(lead), number });
                    Ok((rows.len() as u64, last.filter(|_| rows.len() >= limit)))
                }
            })
            .await
    }

    /// Puts on record that a person has answers redacted that are older than that, and why. What is done then counts there, also if it is
    /// interrupted.
    ///
    /// # Errors
    /// That it is not on record, or that nobody knows.
    pub async fn begin_redaction(
        &self,
        older_than: Duration,
        by: &str,
        reason: Option<&str>,
    ) -> Result<i64, LedgerError> {
        let ledger = self.clone();
        let (by, reason): (Arc<str>, Option<Arc<str>>) = (by.into(), reason.map(Into::into));
        self.pool
            .run("put a redaction on record", move |pool| {
                let (ledger, by, reason) = (ledger.clone(), Arc::clone(&by), reason.clone());
                async move {
                    let mut transaction = pool.begin().await?;
                    let id = sqlx::query_scalar(
                        "insert into decisions (destination, kind, done_by, reason, until) \
                         values ($1, 'redact', $2, $3, now() - $4 * interval '1 second') returning id",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*by)
                    .bind(reason.as_deref())
                    .bind(older_than.as_secs_f64())
                    .fetch_one(&mut *transaction)
                    .await?;
                    transaction.commit().await?;
                    Ok(id)
                }
            })
            .await
    }

    /// How many attempts [`Ledger::redact`] would redact.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn redactable(&self, older_than: Duration) -> Result<u64, LedgerError> {
        let ledger = self.clone();
        self.read_long("count old answers", move |connection| {
            let ledger = ledger.clone();
            Box::pin(async move {
                let count: i64 = sqlx::query_scalar(
                    "select count(*) from other_attempts a join leads l on l.id = a.lead_id \
                     where l.destination = $1 and a.answer is not null and a.started_at < now() - $2 * interval '1 second'",
                )
                .bind(ledger.destination.to_string())
                .bind(older_than.as_secs_f64())
                .fetch_one(connection)
                .await?;
                Ok(u64::try_from(count).unwrap_or(0))
            })
        })
        .await
    }
}
