//! What is known of a person: collected, or erased; and old answers, which may quote persons, redacted.
//!
//! All of it is about every destination of the ledger, as a person asks for all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Ledger, LedgerError};
use crate::lead::{Key, LeadId};

/// How many leads are erased in one transaction.
const BATCH: usize = 500;

/// How many ids of a disclosure are kept.
const IDS_KEPT: usize = 1_000;

/// Leads of a person: those that can be found by the address, and those from whose body no address could be read but that have it in them.
const OF_PERSON: &str = "select id from leads where state <> 'pending' and email_key = $1 \
     union select id from leads where state = 'pending' and email_key = $1 \
     union select id from leads where email_key is null and erased_at is null and position($2 in lower(encode(body, 'escape'))) > 0";

/// A person, as one asks for their data.
#[derive(Debug, Clone)]
pub struct Subject {
    address: Arc<str>,
}

impl Subject {
    /// The person with this address.
    pub fn of(address: &str) -> Self {
        Self { address: address.trim().to_lowercase().into() }
    }

    fn key(&self) -> i64 {
        Key::of_email(&self.address).0
    }
}

/// What was erased.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Erased {
    /// Leads, by the state that they were in.
    pub leads: BTreeMap<String, u64>,
    /// Attempts whose answers and reasons went.
    pub attempts: u64,
    /// Messages that were set aside, which are not accepted any more.
    pub aside: u64,
    /// Leads that are being posted and were left alone.
    pub posting: Vec<LeadId>,
}

impl Erased {
    /// How many leads.
    pub fn count(&self) -> u64 {
        self.leads.values().sum()
    }
}

/// A personal record, in words.
#[derive(Debug, Clone, Serialize)]
pub struct Collected {
    /// The lead.
    pub id: LeadId,
    /// Where it went.
    pub destination: String,
    /// What came of it.
    pub state: String,
    /// When it was accepted.
    #[serde(with = "time::serde::rfc3339")]
    pub accepted_at: OffsetDateTime,
    /// The message.
    pub body: String,
    /// The API's own id of it.
    pub remote_id: Option<String>,
    /// What the ledger says of it.
    pub reason: Option<String>,
    /// What the API answered, attempt by attempt.
    pub answers: Vec<String>,
    /// Bodies that it had before it was corrected.
    pub former_bodies: Vec<String>,
}

impl Ledger {
    /// The ids of the leads of this person, in all destinations.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn leads_of(&self, subject: &Subject) -> Result<Vec<LeadId>, LedgerError> {
        let subject = subject.clone();
        self.read_long("look for a person's leads", move |connection| {
            let subject = subject.clone();
            Box::pin(async move { Ok(of_person(connection, &subject).await?.into_iter().map(LeadId).collect()) })
        })
        .await
    }

    /// Erases what is personal of these leads of this person. Waiting ones are cancelled. Repeated, it does the rest.
    ///
    /// # Errors
    /// What the last transaction failed with; those before it stay done.
    pub async fn erase(
        &self,
        subject: &Subject,
        ids: &[LeadId],
        by: &str,
        reason: Option<&str>,
    ) -> Result<Erased, LedgerError> {
        let by: Arc<str> = by.into();
        let reason: Option<Arc<str>> = reason.map(Into::into);
        let mut erased = Erased::default();
        for ids in ids.chunks(BATCH) {
            let ids: Arc<[Uuid]> = ids.iter().map(|id| id.0).collect();
            let (subject, by, reason) = (subject.clone(), Arc::clone(&by), reason.clone());
            let batch = self
                .pool
                .run_long("erase leads", move |pool| {
                    let (ids, subject, by, reason) =
                        (Arc::clone(&ids), subject.clone(), Arc::clone(&by), reason.clone());
                    async move {
                        let mut transaction = pool.begin().await?;
                        let erased = erase(&mut transaction, &ids, &subject, &by, reason.as_deref()).await?;
                        transaction.commit().await?;
                        Ok(erased)
                    }
                })
                .await?;
            for (state, n) in batch.leads {
                *erased.leads.entry(state).or_default() += n;
            }
            erased.attempts += batch.attempts;
            erased.posting.extend(batch.posting);
        }
        let subject = subject.clone();
        erased.aside = self
            .pool
            .run_long("erase messages that were set aside", move |pool| {
                let subject = subject.clone();
                async move {
                    let gone = sqlx::query("delete from aside where position($1 in lower(encode(body, 'escape'))) > 0")
                        .bind(&*subject.address)
                        .execute(&pool)
                        .await?;
                    Ok(gone.rows_affected())
                }
            })
            .await?;
        Ok(erased)
    }

    /// Everything that the ledger knows of this person.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn collect(&self, subject: &Subject) -> Result<Vec<Collected>, LedgerError> {
        let subject = subject.clone();
        self.read_long("collect a person's leads", move |connection| {
            let subject = subject.clone();
            Box::pin(async move {
                let ids = of_person(connection, &subject).await?;
                collect(connection, &ids).await
            })
        })
        .await
    }

    /// Puts on record that a person was shown personal data.
    ///
    /// # Errors
    /// That it is not on record, or that nobody knows: then nothing may be shown.
    pub async fn disclose(
        &self,
        command: &str,
        to: &str,
        leads: &[LeadId],
        reason: Option<&str>,
    ) -> Result<(), LedgerError> {
        let ledger = self.clone();
        let ids: Arc<[Uuid]> = leads.iter().take(IDS_KEPT).map(|id| id.0).collect();
        let count = i64::try_from(leads.len()).unwrap_or(i64::MAX);
        let (command, to): (Arc<str>, Arc<str>) = (command.into(), to.into());
        let reason: Option<Arc<str>> = reason.map(Into::into);
        self.pool
            .run("put a disclosure on record", move |pool| {
                let (ledger, ids, command, to, reason) =
                    (ledger.clone(), Arc::clone(&ids), Arc::clone(&command), Arc::clone(&to), reason.clone());
                async move {
                    let mut transaction = pool.begin().await?;
                    sqlx::query(
                        "insert into disclosures (destination, shown_to, command, leads, lead_ids, reason) \
                         values ($1, $2, $3, $4, $5, $6)",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*to)
                    .bind(&*command)
                    .bind(count)
                    .bind(&*ids)
                    .bind(reason.as_deref())
                    .execute(&mut *transaction)
                    .await?;
                    transaction.commit().await
                }
            })
            .await
    }

    /// Redacts what the API answered to up to `limit` attempts of this destination that are older than that, from the one after `after` on, the
    /// oldest first. Says how many there were, and where to go on; `None`: that was the last.
    ///
    /// # Errors
    /// That nothing was redacted, or that nobody knows.
    pub async fn redact(
        &self,
        older_than: Duration,
        after: Option<OffsetDateTime>,
        limit: usize,
    ) -> Result<(u64, Option<OffsetDateTime>), LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("redact old answers", move |pool| {
                let ledger = ledger.clone();
                async move {
                    let mut transaction = pool.begin().await?;
                    let row = sqlx::query(
                        "with old as ( \
                             select lead_id, number, started_at from attempts \
                             where answer is not null and started_at < now() - $1 * interval '1 second' \
                                 and ($2::timestamptz is null or started_at >= $2) \
                             order by started_at limit $3 for update skip locked \
                         ), redacted as ( \
                             update attempts a set answer = null, reason = null from old \
                             where a.lead_id = old.lead_id and a.number = old.number \
                                 and exists (select 1 from leads l where l.id = old.lead_id and l.destination = $4) \
                             returning 1 \
                         ) \
                         select (select count(*) from redacted), (select count(*) from old), (select max(started_at) from old)",
                    )
                    .bind(older_than.as_secs_f64())
                    .bind(after)
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .bind(&*ledger.destination)
                    .fetch_one(&mut *transaction)
                    .await?;
                    transaction.commit().await?;
                    let (redacted, seen): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
                    let last: Option<OffsetDateTime> = row.try_get(2)?;
                    // Where many began at the same time, and none of them is ours, there is no way past them.
                    let next = last.filter(|last| seen > 0 && after != Some(*last));
                    Ok((u64::try_from(redacted).unwrap_or(0), next))
                }
            })
            .await
    }
}

async fn of_person(connection: &mut PgConnection, subject: &Subject) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(OF_PERSON).bind(subject.key()).bind(subject.address.to_string()).fetch_all(connection).await
}

async fn erase(
    connection: &mut PgConnection,
    ids: &[Uuid],
    subject: &Subject,
    by: &str,
    reason: Option<&str>,
) -> Result<Erased, sqlx::Error> {
    let mut erased = Erased::default();
    let rows = sqlx::query(
        "select id, state, lease is not null from leads where id = any($1) and erased_at is null order by id for update",
    )
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    let mut free: Vec<Uuid> = Vec::with_capacity(rows.len());
    for row in &rows {
        let id: Uuid = row.try_get(0)?;
        if row.try_get(2)? {
            erased.posting.push(LeadId(id));
        } else {
            *erased.leads.entry(row.try_get(1)?).or_default() += 1;
            free.push(id);
        }
    }
    sqlx::query(
        "with noted as ( \
             insert into interventions (lead_id, kind, from_state, done_by, reason, body_before) \
             select id, 'erase', state, $3, $4, sha256(body) from leads where id = any($1) \
         ) \
         update leads set body = '', email_key = null, erased_at = now(), changed_at = now(), \
             state = case when state = 'pending' then 'cancelled' else state end, \
             finished_at = coalesce(finished_at, now()), next_attempt_at = null, \
             code = case when state = 'pending' then 'erased' else code end, \
             reason = case when state = 'pending' then 'erased by ' || $3 when reason is not null then 'erased' end, \
             warning = case when warning is not null then 'erased' end, \
             message_id = case when position($2 in lower(message_id)) > 0 then null else message_id end \
         where id = any($1)",
    )
    .bind(&free)
    .bind(&*subject.address)
    .bind(by)
    .bind(reason)
    .execute(&mut *connection)
    .await?;
    erased.attempts = sqlx::query(
        "update attempts set answer = null, reason = null \
         where lead_id = any($1) and (answer is not null or reason is not null)",
    )
    .bind(&free)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    sqlx::query("update interventions set body = null where lead_id = any($1) and body is not null")
        .bind(&free)
        .execute(&mut *connection)
        .await?;
    for table in ["update replays", "update interventions"] {
        // Words of ours, unless somebody wrote the address into them.
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{table} set reason = null where lead_id = any($1) and position($2 in lower(reason)) > 0"
        )))
        .bind(&free)
        .bind(&*subject.address)
        .execute(&mut *connection)
        .await?;
    }
    Ok(erased)
}

async fn collect(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Collected>, sqlx::Error> {
    let rows = sqlx::query(
        "select id, destination, state, accepted_at, body, remote_id, reason, \
             array(select answer from attempts a where a.lead_id = l.id and answer is not null order by number) as answers, \
             array(select i.body from interventions i where i.lead_id = l.id and i.body is not null order by i.id) as bodies \
         from leads l where id = any($1) order by accepted_at, id",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    rows.iter()
        .map(|row| {
            Ok(Collected {
                id: LeadId(row.try_get("id")?),
                destination: row.try_get("destination")?,
                state: row.try_get("state")?,
                accepted_at: row.try_get("accepted_at")?,
                body: text(&row.try_get("body")?),
                remote_id: row.try_get("remote_id")?,
                reason: row.try_get("reason")?,
                answers: row.try_get::<Vec<Vec<u8>>, _>("answers")?.iter().map(text).collect(),
                former_bodies: row.try_get::<Vec<Vec<u8>>, _>("bodies")?.iter().map(text).collect(),
            })
        })
        .collect()
}
