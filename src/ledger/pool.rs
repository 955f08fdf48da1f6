//! Connections, and what is done when they stop answering.

use std::future::Future;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions, PgSslMode};
use sqlx::{Connection as _, PgPool};

use super::{LedgerError, join, sqlstate};
use crate::config;

/// Deadlocks and serialization failures: the transaction was undone and may be tried again.
const CONFLICTS: [&str; 2] = ["40P01", "40001"];
const MAX_TRIES: u32 = 10;

/// A write was refused because the session is read-only: it stays so, also when the database can be written again, or when another server has
/// taken over.
const READ_ONLY: &str = "25006";

/// What a transaction begins with that looks for what a person asked for, for as long as it takes: see [`limits`].
pub(super) const WITHOUT_LIMIT: &str = "set local statement_timeout = 0; set local plan_cache_mode = auto";

/// What a transaction that reads whole tables begins with: see [`limits`].
pub(super) const READ_ALL: &str =
    "set local enable_seqscan = on; set local enable_hashjoin = on; set local enable_mergejoin = on";

/// How long a pool that was replaced is waited for.
const FAREWELL: Duration = Duration::from_secs(60);

/// After so many timeouts in a row of waiting for a connection, while Postgres answers, the pool is replaced.
const TIMEOUTS_UNTIL_REPLACED: u32 = 2;

/// A pool that can be replaced. sqlx loses a place in its pool for good when the other end of a connection falls silent
/// (transact-rs/sqlx#4349); without a replacement only `PoolTimedOut` would come back some day.
#[derive(Debug)]
pub(super) struct Pool {
    options: PgConnectOptions,
    connections: u32,
    connect_timeout: Duration,
    /// How long a caller waits for a task. Longer than anything that the server allows to take.
    patience: Duration,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    pool: PgPool,
    generation: u64,
    timeouts: u32,
}

impl Pool {
    pub(super) fn new(settings: &config::Postgres, worker: &str) -> Result<Self, LedgerError> {
        let options = PgConnectOptions::from_str(settings.url.expose())
            // The error may repeat parts of the URL, and with it a password.
            .map_err(|_| {
                LedgerError::Url("it is not of the form postgres://user:password@host:port/database".to_owned())
            })?
            .application_name(&format!("leadpost {worker}"));
        let options = secured(options, &settings.tls)?;
        let options = limits(options, settings.lock_timeout_ms, settings.statement_timeout_ms);
        let connect_timeout = Duration::from_millis(settings.connect_timeout_ms);
        let pool = build(&options, settings.connections, connect_timeout);
        Ok(Self {
            options,
            connections: settings.connections,
            connect_timeout,
            patience: connect_timeout + Duration::from_millis(settings.statement_timeout_ms * 2),
            current: Mutex::new(Current { pool, generation: 0, timeouts: 0 }),
        })
    }

    /// The way to connect, with other limits.
    pub(super) fn options_with(&self, lock_timeout_ms: u64, statement_timeout_ms: u64) -> PgConnectOptions {
        limits(self.options.clone(), lock_timeout_ms, statement_timeout_ms)
    }

    /// How long to wait for a connection.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Does `work` in a task that no caller can cancel, and again when it lost a conflict with another transaction. Only one without an
    /// answer is given up, together with its pool.
    ///
    /// # Errors
    /// What the last try failed with, or that there was no answer.
    pub(super) async fn run<T, W, F>(&self, doing: &'static str, work: W) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        W: Fn(PgPool) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, sqlx::Error>> + Send,
    {
        self.run_within(self.patience, doing, work).await
    }

    /// As [`Pool::run`], for commands whose statements may take as long as they need; those that read whole tables begin with [`READ_ALL`].
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub(super) async fn run_long<T, W, F>(&self, doing: &'static str, work: W) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        W: Fn(PgPool) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, sqlx::Error>> + Send,
    {
        self.run_within(Duration::from_secs(24 * 3600), doing, work).await
    }

    async fn run_within<T, W, F>(&self, patience: Duration, doing: &'static str, work: W) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        W: Fn(PgPool) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, sqlx::Error>> + Send,
    {
        let (pool, generation) = {
            let current = self.lock();
            (current.pool.clone(), current.generation)
        };
        let mut task = tokio::spawn(async move {
            let mut tries = 1;
            loop {
                match work(pool.clone()).await {
                    Err(error) if tries < MAX_TRIES && is_conflict(&error) => {
                        tries += 1;
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=10 * u64::from(tries)))).await;
                    }
                    result => return result,
                }
            }
        });
        match tokio::time::timeout(patience, &mut task).await {
            Ok(done) => {
                let result = join(done);
                if let Err(error) = &result
                    && sqlstate(error).as_deref() == Some(READ_ONLY)
                {
                    self.replace(generation, "its sessions are read-only; new ones may not be");
                }
                let result = match result {
                    Err(sqlx::Error::PoolTimedOut) => Err(self.timed_out(generation).await),
                    result => {
                        self.lock().timeouts = 0;
                        result
                    }
                };
                result.map_err(|error| LedgerError::database(doing, error))
            }
            Err(_) => {
                // What is tried again must not come through as well when the line does, long after. Nobody takes another connection from that
                // pool, so that a transaction which is left open behind our back there ends with its connection.
                self.replace(generation, "a statement had no answer");
                task.abort();
                Err(LedgerError::NoAnswer { doing, waited: patience })
            }
        }
    }

    pub(super) async fn close(&self) {
        let pool = self.lock().pool.clone();
        if tokio::time::timeout(Duration::from_secs(3), pool.close()).await.is_err() {
            tracing::warn!("some connections to Postgres did not close in time");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the pool had no connection: the pool waits without a word while Postgres refuses, so it is asked directly. When it
    /// answers, again and again, the pool is at fault.
    async fn timed_out(&self, generation: u64) -> sqlx::Error {
        let options = self.options.clone();
        match tokio::time::timeout(self.connect_timeout, connect(&options)).await {
            Ok(Ok(())) => {
                let timeouts = {
                    let mut current = self.lock();
                    current.timeouts += 1;
                    current.timeouts
                };
                if timeouts >= TIMEOUTS_UNTIL_REPLACED {
                    self.replace(generation, "the pool has no connection left, though Postgres answers");
                }
                sqlx::Error::PoolTimedOut
            }
            Ok(Err(error)) => error,
            Err(_) => sqlx::Error::PoolTimedOut,
        }
    }

    fn replace(&self, generation: u64, why: &str) {
        let mut current = self.lock();
        if current.generation == generation {
            tracing::warn!(why, "replacing the pool of connections to Postgres");
            let former =
                std::mem::replace(&mut current.pool, build(&self.options, self.connections, self.connect_timeout));
            current.generation += 1;
            current.timeouts = 0;
            // At once it hands out no connection any more; those at work end with their work, or never.
            tokio::spawn(async move { drop(tokio::time::timeout(FAREWELL, former.close()).await) });
        }
    }
}

/// Connects once, to see whether that works.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    PgConnection::connect_with(options).await?.close().await
}

/// With the CA and the client certificate of these settings. sqlx reads the files at each connection, so that one that was renewed is there for
/// the next; and it adds the CA to those of the system.
fn secured(mut options: PgConnectOptions, tls: &config::Tls) -> Result<PgConnectOptions, LedgerError> {
    if !tls.is_set() {
        return Ok(options);
    }
    tls.read("postgres").map_err(|problems| LedgerError::Tls(problems.join("; ")))?;
    if !matches!(options.get_ssl_mode(), PgSslMode::VerifyCa) {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    if let Some(ca) = tls.ca() {
        options = options.ssl_root_cert(ca);
    }
    if let Some((cert, key)) = tls.client() {
        options = options.ssl_client_cert(cert).ssl_client_key(key);
    }
    Ok(options)
}

fn limits(options: PgConnectOptions, lock_timeout_ms: u64, statement_timeout_ms: u64) -> PgConnectOptions {
    options.options([
        ("statement_timeout", statement_timeout_ms.to_string()),
        ("lock_timeout", lock_timeout_ms.to_string()),
        ("idle_in_transaction_session_timeout", "30000".to_owned()),
        // A worker that has vanished lets go of its locks within half a minute, and not after two hours.
        ("tcp_keepalives_idle", "10".to_owned()),
        ("tcp_keepalives_interval", "5".to_owned()),
        ("tcp_keepalives_count", "3".to_owned()),
        // A ledger whose commits may vanish would be none.
        ("synchronous_commit", "on".to_owned()),
        // Rows are looked up by their keys. A plan that is made while the tables are empty, or before their statistics catch up, reads all of a
        // table otherwise, and is kept for as long as the connection. Costs that stand for "not allowed" would have it compiled first.
        ("enable_seqscan", "off".to_owned()),
        ("enable_hashjoin", "off".to_owned()),
        ("enable_mergejoin", "off".to_owned()),
        ("jit", "off".to_owned()),
        // The statements of the flow have one good plan, whatever their parameters. Made anew for each batch, as Postgres would where a batch is one
        // lead, it was a quarter of what Postgres had to do.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
    ])
}

fn build(options: &PgConnectOptions, connections: u32, connect_timeout: Duration) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(connect_timeout)
        // Writers find out by themselves, and all of them can repeat what they do.
        .test_before_acquire(false)
        .max_lifetime(Duration::from_secs(30 * 60))
        .idle_timeout(Duration::from_secs(5 * 60))
        .connect_lazy_with(options.clone())
}

fn is_conflict(error: &sqlx::Error) -> bool {
    sqlstate(error).is_some_and(|code| CONFLICTS.contains(&code.as_str()))
}
