//! The ledger in Postgres: the only truth about what became of a lead, and the only module that names `sqlx`.
//!
//! ```text
//!                 accept                            settle
//!   message ────────────────> pending, leased ────────────────> delivered, duplicate, rejected,
//!      │                        ^    │    │                     exhausted, uncertain
//!      │ accept                 │    │    └── settle: again at T ──┐
//!      v                  claim │    │ expire: lease ran out,      │
//!   invalid                     │    │ so perhaps posted           │
//!                               │    v                             v
//!      requeue, replay ───> pending, due at T <────────────────────┘
//! ```
//!
//! Attempts have rows of their own (`other_attempts`), but for the first post of a lead if that delivers it, as mostly it does: that one is kept in the
//! lead's row. The view `attempts` has all of them.
//!
//! A message whose lead somebody has locked, or that a rule of somebody's refuses, is set aside in a table of its own, and accepted when
//! that is over.
//!
//! # Rules
//! - Every write is an explicit `begin … commit`, or one statement, in a task of its own that nobody cancels: a cancelled sqlx future can leave
//!   its connection inside a transaction, and what is written there later is lost without an error.
//! - Whoever waits, waits with a limit; whoever is tired of waiting leaves the task alone, distrusts the pool and gets an
//!   error that means "unknown". All writes can be repeated after it.
//! - A settlement carries its lease. If the row has another one by now, nothing changes: that is a value, not an error.
//! - Only the database's clock counts.
//! - Every statement of a transaction goes through `?`: sqlx answers the commit of an aborted transaction with success.
//! - No transaction is open while anything else than the database is talked to.

mod accept;
mod act;
mod aside;
mod audit;
mod claim;
mod edit;
mod find;
mod hold;
mod identity;
mod inspect;
mod levels;
mod list;
mod look;
mod model;
mod pool;
mod privacy;
mod redact;
mod remove;
mod settle;
mod status;
mod story;
mod verify;
mod workers;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration};
use sqlx::postgres::PgPoolOptions;

pub use act::{Act, Acted, Action, Named};
pub use audit::{Audited, HOLD_LIFT};
pub use claim::Expired;
pub use edit::{Edit, Edited};
pub use find::{Filter, Order, Place, When};
pub use hold::{Hastened, Held, Hold, Lifted};
pub use inspect::{Inspection, Refusal, Server, Tables};
pub use levels::Levels;
pub use list::{Group, Listed, Page};
pub use model::{
    Arrival, Attempt, Claimed, Doubts, End, Fate, LeadState, Leased, Next, OnLock, Origin, Receipt, RequestKind,
    Settlement,
};
pub use privacy::{Collected, Erased, Found, Subject};
pub use redact::Redacted;
pub use settle::Settled;
pub use status::{FirstInLine, Status, Waiting};
pub use story::{AttemptRecord, InterventionRecord, LeadRecord, ReplayRecord};
pub use verify::{Check, Verification};
pub use workers::{Beat, WorkerRecord};

use crate::config;
use crate::fault::{self, Point};
use crate::reason::tls_hint;
use look::Look;
use pool::Pool;

/// The migrations, embedded in the program.
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// How long a start waits for another process that migrates.
const MIGRATION_LOCK_TIMEOUT_MS: u64 = 60_000;

/// SQLSTATEs: the role may not make tables, or sees no schema to make them in.
const NOT_ALLOWED: [&str; 2] = ["42501", "3F000"];

/// No migration takes longer. A start waits for so long if Postgres falls silent in the middle of one.
const MIGRATION_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// Why the ledger could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The URL cannot be used at all.
    #[error("postgres.url cannot be used: {0}")]
    Url(String),
    /// The files for TLS cannot be used.
    #[error("{0}")]
    Tls(String),
    /// Postgres did not do it.
    #[error("could not {doing} in the ledger")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What Postgres or the driver said.
        #[source]
        source: Problem,
    },
    /// Nothing came back in time: it may or may not have been done.
    #[error("could not {doing} in the ledger: no answer within {waited:?}")]
    NoAnswer {
        /// What was being done.
        doing: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The tables are not what this version needs.
    #[error("the ledger's tables are not up to date: {0}")]
    Schema(String),
}

/// What Postgres or the driver said.
#[derive(Debug)]
pub struct Problem(sqlx::Error);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            // The driver would add a line number: one of Postgres' own source.
            sqlx::Error::Database(error) => f.write_str(error.message()),
            sqlx::Error::Io(error) => match tls_hint(error, "postgres") {
                Some(hint) => write!(f, "Postgres and we cannot agree on TLS ({error}); {hint}"),
                None => write!(f, "Postgres cannot be reached ({error}); is postgres.url right?"),
            },
            other => other.fmt(f),
        }
    }
}

impl std::error::Error for Problem {}

impl LedgerError {
    fn database(doing: &'static str, error: sqlx::Error) -> Self {
        Self::Database { doing, source: Problem(error) }
    }

    /// Whether the data itself cannot be stored (SQLSTATE classes 22 and 23), so that trying again cannot help.
    pub fn is_about_data(&self) -> bool {
        self.sqlstate().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
    }

    /// Whether somebody's rule may be against this very row: the data cannot be stored, a view's check (class 44) or a trigger (P0001) refuses
    /// it.
    pub fn is_refused(&self) -> bool {
        self.is_about_data() || self.sqlstate().is_some_and(|code| code.starts_with("44") || code == "P0001")
    }

    /// Whether less at a time may get through: it was too much for a statement's time, the server's memory or its limits.
    pub fn is_about_size(&self) -> bool {
        self.sqlstate().is_some_and(|code| ["57014", "54000", "53200"].contains(&code.as_str()))
    }

    /// Whether somebody else holds a lock on some of it.
    pub fn is_about_locks(&self) -> bool {
        self.sqlstate().is_some_and(|code| code == "55P03")
    }

    /// Whether it may have been done all the same.
    pub fn is_unknown(&self) -> bool {
        // 08: the connection broke; 40003: statement completion unknown.
        self.sqlstate().is_none_or(|code| code.starts_with("08") || code == "40003")
    }

    fn sqlstate(&self) -> Option<String> {
        match self {
            LedgerError::Database { source, .. } => sqlstate(&source.0),
            LedgerError::Url(_) | LedgerError::Tls(_) | LedgerError::NoAnswer { .. } | LedgerError::Schema(_) => None,
        }
    }
}

/// A handle on the ledger; clones share its connections.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: Arc<Pool>,
    destination: Arc<str>,
    queue: Arc<str>,
    worker: Arc<str>,
    looks: Arc<Looks>,
}

/// How far this handle has looked through pending leads.
#[derive(Debug, Default)]
struct Looks {
    due: Look,
    leases: Look,
}

impl Ledger {
    /// A handle for this worker. Connects when first used.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(settings: &config::Settings, worker: &str) -> Result<Self, LedgerError> {
        Ok(Self {
            pool: Arc::new(Pool::new(&settings.postgres, worker)?),
            destination: settings.destination.name().into(),
            queue: settings.amqp.queue.as_str().into(),
            worker: worker.into(),
            looks: Arc::default(),
        })
    }

    /// The destination whose leads these are.
    pub fn destination(&self) -> &str {
        &self.destination
    }

    /// The name under which this handle leases leads.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// Brings the tables up to date, one process at a time. Says how many migrations were applied.
    ///
    /// # Errors
    /// When another process holds the lock for more than a minute, a migration fails, or the role may not make tables.
    pub async fn migrate(&self) -> Result<usize, LedgerError> {
        // Most starts have nothing to do, and are spared the lock, and a connection without limits.
        let before = self.applied().await?;
        let is_applied =
            |migration: &Migration| before.get(&migration.version).is_some_and(|sum| **sum == *migration.checksum);
        if MIGRATIONS.iter().all(is_applied) {
            return Ok(0);
        }
        let options = self.pool.options_with(MIGRATION_LOCK_TIMEOUT_MS, 0);
        // Its own task, as everything that writes.
        let task = tokio::spawn(async move {
            let failed = |error| LedgerError::database("bring the tables up to date", error);
            let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.map_err(failed)?;
            fault::at(Point::Migrating);
            MIGRATIONS.run(&pool).await.map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) if sqlstate(&error).is_some_and(|code| NOT_ALLOWED.contains(&&*code)) => LedgerError::Schema(
                    "this role may not make tables; run leadpost migrate as one that may, and set postgres.migrate = false".to_owned(),
                ),
                // Somebody else holds the lock, or the connection broke: later.
                MigrateError::Execute(error) => failed(error),
                MigrateError::ExecuteMigration(error, _) if is_about_others(&error) => failed(error),
                error => LedgerError::Schema(crate::reason::chain(&error)),
            })?;
            fault::at(Point::Migrated);
            pool.close().await;
            Ok(())
        });
        match tokio::time::timeout(MIGRATION_LIMIT, task).await {
            Ok(done) => join(done)?,
            Err(_) => {
                return Err(LedgerError::NoAnswer { doing: "bring the tables up to date", waited: MIGRATION_LIMIT });
            }
        }
        Ok(self.applied().await?.len().saturating_sub(before.len()))
    }

    /// The migrations that were applied, by version, and what they were.
    async fn applied(&self) -> Result<HashMap<i64, Vec<u8>>, LedgerError> {
        self.pool.run("read the migrations", |pool| async move { applied(&pool).await }).await
    }

    /// Says what keeps this version from working with the tables as they are.
    ///
    /// # Errors
    /// [`LedgerError::Schema`] with what to do, or that Postgres cannot be asked.
    pub async fn check_schema(&self) -> Result<(), LedgerError> {
        let applied = self.applied().await?;
        let missing = MIGRATIONS.iter().filter(|migration| !applied.contains_key(&migration.version)).count();
        if missing > 0 {
            return Err(LedgerError::Schema(format!("migrations are missing ({missing}); run leadpost migrate")));
        }
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        if applied.keys().any(|version| *version > newest) {
            return Err(LedgerError::Schema("a newer leadpost has migrated them; upgrade this one as well".to_owned()));
        }
        Ok(())
    }

    /// Closes the connections that are idle. Those at work end with their work.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// None if there is no table of them yet.
async fn applied<'c>(executor: impl sqlx::PgExecutor<'c>) -> Result<HashMap<i64, Vec<u8>>, sqlx::Error> {
    const UNDEFINED_TABLE: &str = "42P01";
    let versions = sqlx::query_as("select version, checksum from _sqlx_migrations where success");
    match versions.fetch_all(executor).await {
        Err(error) if sqlstate(&error).as_deref() == Some(UNDEFINED_TABLE) => Ok(HashMap::new()),
        result => result.map(|rows: Vec<(i64, Vec<u8>)>| rows.into_iter().collect()),
    }
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned())
}

/// Whether somebody else was in the way: a lock, a deadlock, or the connection broke.
fn is_about_others(error: &sqlx::Error) -> bool {
    sqlstate(error).is_none_or(|code| {
        ["40001", "40P01", "55P03", "57014"].contains(&&*code) || code.starts_with("08") || code.starts_with("57P")
    })
}

/// The result of a task; its panic is ours.
fn join<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A column of an `unnest` without the nulls at its end, which Postgres puts there itself.
fn trimmed<T>(mut column: Vec<Option<T>>) -> Vec<Option<T>> {
    column.truncate(column.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
    column
}

/// Milliseconds for a `bigint` column.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
