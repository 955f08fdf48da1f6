//! What is known of a person: found, collected, erased.
//!
//! ```text
//!   address ──key──> leads, ended or pending; former bodies of corrected ones
//!           ──letters──> bodies that have no key: candidates, read one by one
//! ```
//!
//! # Rules
//! - A person asks for everything, so everything is about every destination of the ledger.
//! - Whose a body is, its `email` says. Only where none can be read, the address has to stand in it as a word of its own: `ann@` is not in `joann@`.
//! - What was acknowledged stays on record: of an erased lead the row, of an erased message that was set aside its id, on the receipt.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::story::{LeadRecord, show};
use super::{Ledger, LedgerError};
use crate::lead::{Key, Keys, LeadId};

/// How many leads are erased in one transaction.
const BATCH: usize = 500;

/// How many ids of a disclosure are kept.
const IDS_KEPT: usize = 1_000;

/// Leads of a person whose address could be read when they came.
const BY_KEY: &str = "select id from leads where state <> 'pending' and email_key = $1 \
     union select id from leads where next_attempt_at is not null and lease is null and email_key = $1 \
     union select l.id from (select distinct destination from tallies) as t, lateral (select id, email_key from leads \
         where destination = t.destination and state = 'pending' and (lease is null)::int = 0 offset 0) as l where l.email_key = $1";

/// Corrected leads that were the person's before.
const FORMER: &str = "select distinct lead_id from interventions where email_key = $1";

/// What has no key, and the letters of the address in it, in whatever case ASCII letters are. Bytes beyond ASCII are compared as they are escaped.
const BY_LETTERS: &str = "select id, body from leads where email_key is null and erased_at is null \
         and position(lower(encode($1, 'escape')) in lower(encode(body, 'escape'))) > 0";
const ASIDE_BY_LETTERS: &str = "select seq, lead_id, body from aside where position(lower(encode($1, 'escape')) in lower(encode(body, 'escape'))) > 0";

/// A person, as one asks for their data.
#[derive(Debug, Clone)]
pub struct Subject {
    address: Arc<str>,
}

impl Subject {
    /// The person with this address.
    ///
    /// # Errors
    /// That it is no address, in words.
    pub fn of(address: &str) -> Result<Self, String> {
        let address = address.trim().to_lowercase();
        let is_one = address.split_once('@').is_some_and(|(local, host)| {
            !local.is_empty() && !host.is_empty() && !host.contains('@') && !address.chars().any(char::is_whitespace)
        });
        if is_one {
            Ok(Self { address: address.into() })
        } else {
            Err("write one whole address, such as ann@example.com".to_owned())
        }
    }

    fn key(&self) -> Key {
        Key::of_email(&self.address)
    }

    /// Whether a body is this person's.
    fn owns(&self, body: &[u8]) -> bool {
        match Keys::of_body(body).email {
            Some(email) => email == self.key(),
            None => self.is_named_in(&String::from_utf8_lossy(body)),
        }
    }

    /// Whether the address stands in a text as a word of its own.
    fn is_named_in(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let continues = |c: char| c.is_alphanumeric() || "._%+-@".contains(c);
        text.match_indices(&*self.address).any(|(at, address)| {
            let before = text.get(..at).and_then(|before| before.chars().next_back());
            let mut after = text.get(at + address.len()..).unwrap_or_default().chars();
            // A full stop ends a sentence, unless a host goes on behind it.
            let is_over = match after.next() {
                Some('.') => !after.next().is_some_and(char::is_alphanumeric),
                after => !after.is_some_and(continues),
            };
            !before.is_some_and(continues) && is_over
        })
    }
}

/// What there is of a person.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Leads.
    pub leads: Vec<LeadId>,
    /// Leads that were the person's before they were corrected.
    pub former: Vec<LeadId>,
    /// Messages that were set aside: their places, and the leads that they are about.
    pub aside: Vec<(i64, LeadId)>,
}

impl Found {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was erased.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Erased {
    /// Leads, by the state that they were in.
    pub leads: BTreeMap<String, u64>,
    /// Leads of others whose former bodies were erased.
    pub former: u64,
    /// Attempts whose answers and reasons went.
    pub attempts: u64,
    /// Messages that were set aside, and are not accepted any more: the ids of their leads.
    pub aside: Vec<LeadId>,
    /// What the API called the leads that it took.
    pub remote_ids: Vec<String>,
    /// Leads that are being posted and were left alone.
    pub posting: Vec<LeadId>,
}

impl Erased {
    /// How many leads.
    pub fn count(&self) -> u64 {
        self.leads.values().sum()
    }

    /// Adds what was erased in another transaction.
    pub fn add(&mut self, other: Self) {
        for (state, n) in other.leads {
            *self.leads.entry(state).or_default() += n;
        }
        self.former += other.former;
        self.attempts += other.attempts;
        self.aside.extend(other.aside);
        self.remote_ids.extend(other.remote_ids);
        self.posting = other.posting;
    }
}

/// Everything that the ledger knows of a person.
#[derive(Debug, Clone, Serialize)]
pub struct Collected {
    /// Leads, and those that were the person's before they were corrected.
    pub leads: Vec<Record>,
    /// Messages that were set aside.
    pub aside: Vec<String>,
}

/// A lead with what is personal of it.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Its story.
    #[serde(flatten)]
    pub lead: LeadRecord,
    /// The message; nothing, where it is another person's by now.
    pub body: Option<String>,
    /// What the API answered, by the number of the attempt.
    pub answers: BTreeMap<i32, String>,
    /// Bodies that it had before it was corrected.
    pub former_bodies: Vec<String>,
}

impl Ledger {
    /// What there is of this person, in all destinations.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn find_person(&self, subject: &Subject) -> Result<Found, LedgerError> {
        let subject = subject.clone();
        self.read_long("look for a person", move |connection| {
            let subject = subject.clone();
            Box::pin(async move { find(connection, &subject).await })
        })
        .await
    }

    /// Erases what is personal of what was found, and is the person's still. Waiting leads are cancelled. Repeated, it does the rest.
    ///
    /// # Errors
    /// What the last transaction failed with; those before it stay done.
    pub async fn erase(
        &self,
        subject: &Subject,
        found: &Found,
        by: &str,
        reason: Option<&str>,
    ) -> Result<Erased, LedgerError> {
        let by: Arc<str> = by.into();
        let reason: Option<Arc<str>> = reason.map(Into::into);
        let mut erased = Erased::default();
        let mut posting = Vec::new();
        for ids in found.leads.chunks(BATCH) {
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
            posting.extend(batch.posting.iter().copied());
            erased.add(batch);
        }
        erased.posting = posting;
        let (subject, found) = (subject.clone(), Arc::new(found.clone()));
        let rest = self
            .pool
            .run_long("erase what else there is", move |pool| {
                let (subject, found) = (subject.clone(), Arc::clone(&found));
                async move {
                    let mut transaction = pool.begin().await?;
                    let erased = erase_rest(&mut transaction, &found, &subject).await?;
                    transaction.commit().await?;
                    Ok(erased)
                }
            })
            .await?;
        erased.former += rest.former;
        erased.attempts += rest.attempts;
        erased.aside.extend(rest.aside);
        Ok(erased)
    }

    /// Everything that the ledger knows of this person.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn collect(&self, subject: &Subject) -> Result<Collected, LedgerError> {
        let subject = subject.clone();
        self.read_long("collect what is known of a person", move |connection| {
            let subject = subject.clone();
            Box::pin(async move {
                let found = find(connection, &subject).await?;
                let mut collected = Collected { leads: Vec::new(), aside: Vec::new() };
                for (id, is_theirs) in
                    found.leads.iter().map(|id| (id, true)).chain(found.former.iter().map(|id| (id, false)))
                {
                    collected.leads.extend(record(connection, *id, is_theirs, &subject).await?);
                }
                let places: Vec<i64> = found.aside.iter().map(|(place, _)| *place).collect();
                let bodies: Vec<Vec<u8>> =
                    sqlx::query_scalar("select body from aside where seq = any($1) order by seq")
                        .bind(places)
                        .fetch_all(connection)
                        .await?;
                collected.aside = bodies.iter().map(|body| text(body)).collect();
                Ok(collected)
            })
        })
        .await
    }

    /// Puts on record that a person was shown personal data. `of`: the destination whose leads these are; `None`: any.
    ///
    /// # Errors
    /// That it is not on record, or that nobody knows: then nothing may be shown.
    pub async fn disclose(
        &self,
        command: &str,
        to: &str,
        of: Option<&str>,
        leads: &[LeadId],
        reason: Option<&str>,
    ) -> Result<(), LedgerError> {
        let ids: Arc<[Uuid]> = leads.iter().take(IDS_KEPT).map(|id| id.0).collect();
        let count = i64::try_from(leads.len()).unwrap_or(i64::MAX);
        let (command, to): (Arc<str>, Arc<str>) = (command.into(), to.into());
        let (of, reason): (Option<Arc<str>>, Option<Arc<str>>) = (of.map(Into::into), reason.map(Into::into));
        self.pool
            .run("put a disclosure on record", move |pool| {
                let (ids, command, to, of, reason) =
                    (Arc::clone(&ids), Arc::clone(&command), Arc::clone(&to), of.clone(), reason.clone());
                async move {
                    let mut transaction = pool.begin().await?;
                    sqlx::query(
                        "insert into disclosures (destination, shown_to, command, leads, lead_ids, reason) \
                         values ($1, $2, $3, $4, $5, $6)",
                    )
                    .bind(of.as_deref())
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
}

async fn find(connection: &mut PgConnection, subject: &Subject) -> Result<Found, sqlx::Error> {
    let key = subject.key().0;
    let mut leads: Vec<Uuid> = sqlx::query_scalar(BY_KEY).bind(key).fetch_all(&mut *connection).await?;
    let address = subject.address.as_bytes();
    for row in sqlx::query(BY_LETTERS).bind(address).fetch_all(&mut *connection).await? {
        if subject.owns(&row.try_get::<Vec<u8>, _>("body")?) {
            leads.push(row.try_get("id")?);
        }
    }
    let mut former: Vec<Uuid> = sqlx::query_scalar(FORMER).bind(key).fetch_all(&mut *connection).await?;
    former.retain(|id| !leads.contains(id));
    let mut aside = Vec::new();
    for row in sqlx::query(ASIDE_BY_LETTERS).bind(address).fetch_all(&mut *connection).await? {
        if subject.owns(&row.try_get::<Vec<u8>, _>("body")?) {
            aside.push((row.try_get("seq")?, LeadId(row.try_get("lead_id")?)));
        }
    }
    let ids = |ids: Vec<Uuid>| ids.into_iter().map(LeadId).collect();
    Ok(Found { leads: ids(leads), former: ids(former), aside })
}

async fn erase(
    connection: &mut PgConnection,
    ids: &[Uuid],
    subject: &Subject,
    by: &str,
    reason: Option<&str>,
) -> Result<Erased, sqlx::Error> {
    let mut erased = Erased::default();
    // Between the search and the lock a lead may have been given to somebody else. Where there is no key, the body says whose it is now.
    let rows = sqlx::query(
        "select id, state, lease is not null, remote_id, case when email_key is null then body end from leads \
         where id = any($1) and erased_at is null and (email_key = $2 or email_key is null) order by id for update",
    )
    .bind(ids)
    .bind(subject.key().0)
    .fetch_all(&mut *connection)
    .await?;
    let mut free: Vec<Uuid> = Vec::with_capacity(rows.len());
    for row in &rows {
        let id: Uuid = row.try_get(0)?;
        if row.try_get::<Option<Vec<u8>>, _>(4)?.is_some_and(|body| !subject.owns(&body)) {
            continue;
        }
        if row.try_get(2)? {
            erased.posting.push(LeadId(id));
        } else {
            *erased.leads.entry(row.try_get(1)?).or_default() += 1;
            erased.remote_ids.extend(row.try_get::<Option<String>, _>(3)?);
            free.push(id);
        }
    }
    // Names of fields are the message's own words, too.
    sqlx::query(
        "with noted as ( \
             insert into interventions (lead_id, kind, from_state, done_by, reason, body_before) \
             select id, 'erase', state, $3, $4, sha256(body) from leads where id = any($1) \
         ) \
         update leads set body = '', email_key = null, erased_at = now(), changed_at = now(), \
             state = case when state = 'pending' then 'cancelled' else state end, \
             finished_at = coalesce(finished_at, clock_timestamp()), next_attempt_at = null, \
             code = case when state = 'pending' then 'erased' else code end, \
             reason = case when state = 'pending' then 'erased by ' || $3 when reason is not null then 'erased' end, \
             warning = case when warning is not null then 'erased' end, \
             violations = case when violations is not null then coalesce((select jsonb_agg(jsonb_build_object( \
                 'field', '', 'code', v ->> 'code', 'message', 'erased')) from jsonb_array_elements(violations) as v), '[]') end, \
             remote_id = null, remote_state = null, remote_sub_state = null, next_schedule_time = null, trace = null, \
             message_id = case when position($2 in lower(message_id)) > 0 then null else message_id end \
         where id = any($1)",
    )
    .bind(&free)
    .bind(&*subject.address)
    .bind(by)
    .bind(reason)
    .execute(&mut *connection)
    .await?;
    erased.attempts = erase_answers(connection, &free).await?;
    sqlx::query("update interventions set body = null, email_key = null where lead_id = any($1) and body is not null")
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

/// What of a person is elsewhere than in leads of theirs.
async fn erase_rest(connection: &mut PgConnection, found: &Found, subject: &Subject) -> Result<Erased, sqlx::Error> {
    let mut erased = Erased::default();
    let former: Vec<Uuid> = found.former.iter().map(|id| id.0).collect();
    if !former.is_empty() {
        let gone = sqlx::query(
            "update interventions set body = null, email_key = null where lead_id = any($1) and email_key = $2",
        )
        .bind(&former)
        .bind(subject.key().0)
        .execute(&mut *connection)
        .await?;
        erased.former = gone.rows_affected();
        // Which of them were about this person, their times would have to say; without any of them nothing is left.
        erased.attempts = erase_answers(connection, &former).await?;
    }
    let places: Vec<i64> = found.aside.iter().map(|(place, _)| *place).collect();
    let gone: Vec<Uuid> = sqlx::query_scalar("delete from aside where seq = any($1) returning lead_id")
        .bind(places)
        .fetch_all(&mut *connection)
        .await?;
    erased.aside = gone.into_iter().map(LeadId).collect();
    for table in ["update disclosures", "update decisions"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("{table} set reason = null where position($1 in lower(reason)) > 0")))
            .bind(&*subject.address)
            .execute(&mut *connection)
            .await?;
    }
    Ok(erased)
}

async fn erase_answers(connection: &mut PgConnection, ids: &[Uuid]) -> Result<u64, sqlx::Error> {
    let gone = sqlx::query(
        "update other_attempts set answer = null, reason = null \
         where lead_id = any($1) and (answer is not null or reason is not null)",
    )
    .bind(ids)
    .execute(connection)
    .await?;
    Ok(gone.rows_affected())
}

async fn record(
    connection: &mut PgConnection,
    id: LeadId,
    is_theirs: bool,
    subject: &Subject,
) -> Result<Option<Record>, sqlx::Error> {
    let Some(lead) = show(connection, id).await? else { return Ok(None) };
    let body: Vec<u8> =
        sqlx::query_scalar("select body from leads where id = $1").bind(id.0).fetch_one(&mut *connection).await?;
    let answers = sqlx::query("select number, answer from other_attempts where lead_id = $1 and answer is not null")
        .bind(id.0)
        .fetch_all(&mut *connection)
        .await?;
    let former: Vec<Vec<u8>> = sqlx::query_scalar(
        "select body from interventions where lead_id = $1 and body is not null and ($2 or email_key = $3) order by id",
    )
    .bind(id.0)
    .bind(is_theirs)
    .bind(subject.key().0)
    .fetch_all(connection)
    .await?;
    Ok(Some(Record {
        lead,
        body: is_theirs.then(|| text(&body)),
        answers: answers
            .iter()
            .map(|row| Ok((row.try_get(0)?, text(&row.try_get::<Vec<u8>, _>(1)?))))
            .collect::<Result<_, sqlx::Error>>()?,
        former_bodies: former.iter().map(|body| text(body)).collect(),
    }))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_one_whole_address() {
        for bad in ["", " ", "@", "ann", "ann@", "@example.com", "a@b@c", "ann @example.com"] {
            assert!(Subject::of(bad).is_err(), "{bad:?}");
        }
        assert!(Subject::of(" Ann@Example.com ").is_ok());
    }

    #[test]
    fn a_body_is_the_persons_whose_address_it_has_and_not_of_those_it_mentions() {
        let ann = Subject::of("ann@example.com").expect("an address");
        let owns = |body: &str| ann.owns(body.as_bytes());
        assert!(owns(r#"{"email":" ANN@example.com"}"#));
        assert!(!owns(r#"{"email":"joann@example.com"}"#));
        assert!(!owns(r#"{"email":"bob@example.com","context":"ann@example.com sent him"}"#));
        // Where no address can be read.
        assert!(owns(r#"{"contact":"Ann@Example.com"}"#));
        assert!(owns("broken {ann@example.com"));
        assert!(owns("Write to ann@example.com. Thanks"));
        assert!(!owns(r#"{"contact":"joann@example.com"}"#));
        assert!(!owns(r#"{"contact":"ann@example.com.org"}"#));
        assert!(Subject::of("jürgen@example.com").expect("an address").owns("x jürgen@example.com".as_bytes()));
    }
}
