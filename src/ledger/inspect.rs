//! What can be learned of Postgres without changing anything there, for `leadpost check`. Over a connection of its own: a pool waits without a
//! word while Postgres refuses.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};

use super::{Ledger, LedgerError, MIGRATIONS, Problem, applied, sqlstate};
use crate::reason::chain;

/// What a worker does to which table. With retention it deletes leads and their attempts as well.
const RIGHTS: [(&str, &[&str]); 9] = [
    ("leads", &["select", "insert", "update"]),
    ("other_attempts", &["select", "insert"]),
    ("replays", &["select", "insert"]),
    ("interventions", &["select"]),
    // Leads that were set aside are locked before they are taken, which is an update to Postgres.
    ("aside", &["select", "insert", "update", "delete"]),
    ("workers", &["select", "insert", "update", "delete"]),
    ("destinations", &["select", "insert", "update"]),
    ("tallies", &["select", "insert", "update"]),
    ("_sqlx_migrations", &["select"]),
];

/// The same for retention.
const RIGHTS_OF_RETENTION: [(&str, &[&str]); 2] = [("leads", &["delete"]), ("other_attempts", &["update", "delete"])];

/// What was found; `None`: it was not come to.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// Whether it lets us in.
    pub connected: Option<Result<(), Refusal>>,
    /// What it is.
    pub server: Option<Result<Server, Refusal>>,
    /// The tables.
    pub tables: Option<Result<Tables, Refusal>>,
    /// Rights that a worker needs and this role does not have: `insert on workers`.
    pub missing_rights: Option<Result<Vec<String>, Refusal>>,
    /// Whether a lead can be accepted and settled. Rehearsed where nothing that is known speaks against it.
    pub writing: Option<Result<(), Refusal>>,
}

/// Why a question was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What Postgres calls it (SQLSTATE); `None`: it did not say anything.
    pub sqlstate: Option<String>,
    /// Whether nobody is there, or nothing came back.
    pub is_unreachable: bool,
    /// In its words, or the driver's.
    pub text: String,
}

/// A server and a session on it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Such as 150018.
    pub version_num: i32,
    /// Such as `15.18`.
    pub version: String,
    /// Who we are there.
    pub role: String,
    /// Whether it follows another one, and cannot be written.
    pub is_standby: bool,
    /// Whether sessions begin so that nothing can be written.
    pub is_read_only: bool,
    /// Whether what is committed is on disk.
    pub fsync: bool,
    /// Whether a page that was written by halves is mended after a crash.
    pub full_page_writes: bool,
    /// Of our sessions.
    pub synchronous_commit: String,
    /// How many connections others than superusers may have, all together.
    pub max_connections: i32,
    /// How many there are.
    pub connections: i64,
    /// How many this role may have in this database, if that is limited.
    pub role_limit: Option<i32>,
    /// By how many seconds its clock is ahead of ours.
    pub ahead_s: f64,
}

/// The tables against what this version needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tables {
    /// So many migrations, and all of them.
    UpToDate(usize),
    /// Migrations are missing.
    Behind {
        /// So many.
        missing: usize,
        /// Whether there are no tables at all.
        none: bool,
        /// Whether this role may make them.
        may_create: bool,
    },
    /// A newer version has migrated them.
    Ahead,
    /// These are there under the same number, and are others.
    Different(Vec<i64>),
}

impl Refusal {
    fn of(error: sqlx::Error) -> Self {
        let (sqlstate, is_unreachable) = (sqlstate(&error), matches!(error, sqlx::Error::Io(_)));
        let text = match error {
            sqlx::Error::Io(error) => error.to_string(),
            error => chain(&Problem(error)),
        };
        Self { sqlstate, is_unreachable, text }
    }

    fn of_ledger(error: &LedgerError) -> Self {
        Self { sqlstate: error.sqlstate(), is_unreachable: false, text: chain(error) }
    }

    fn silent(limit: Duration) -> Self {
        Self { sqlstate: None, is_unreachable: true, text: format!("no answer within {limit:?}") }
    }
}

impl Ledger {
    /// Looks at everything, for so long. `retention`: whether the worker removes old leads.
    pub async fn inspect(&self, retention: bool, limit: Duration) -> Inspection {
        let found = Arc::new(Mutex::new(Inspection::default()));
        let (ledger, into) = (self.clone(), Found(Arc::clone(&found)));
        // Its own task, as all that talks to Postgres; what was found until then stays.
        let task = tokio::spawn(async move { look(&ledger, retention, &into).await });
        drop(tokio::time::timeout(limit, task).await);
        let found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }
}

/// Where to put what is found.
struct Found(Arc<Mutex<Inspection>>);

impl Found {
    fn note(&self, note: impl FnOnce(&mut Inspection)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn look(ledger: &Ledger, retention: bool, found: &Found) {
    let options = ledger.pool.options_with(1_000, 4_000);
    let mut connection = match connect(&options, ledger.pool.connect_timeout()).await {
        Ok(connection) => connection,
        Err(refusal) => return found.note(|found| found.connected = Some(Err(refusal))),
    };
    found.note(|found| found.connected = Some(Ok(())));
    let server = server(&mut connection).await.map_err(Refusal::of);
    let is_writable = server.as_ref().is_ok_and(|server| !server.is_standby && !server.is_read_only);
    found.note(|found| found.server = Some(server));
    let tables = tables(&mut connection).await.map_err(Refusal::of);
    let are_there = matches!(tables, Ok(Tables::UpToDate(_)));
    found.note(|found| found.tables = Some(tables));
    let missing = missing_rights(&mut connection, retention).await.map_err(Refusal::of);
    let may_write = missing.as_ref().is_ok_and(Vec::is_empty);
    found.note(|found| found.missing_rights = Some(missing));
    drop(connection.close().await);
    if is_writable && are_there && may_write {
        let rehearsed = ledger.rehearse().await.map_err(|error| Refusal::of_ledger(&error));
        found.note(|found| found.writing = Some(rehearsed));
    }
}

async fn connect(options: &PgConnectOptions, limit: Duration) -> Result<PgConnection, Refusal> {
    let options = options.clone();
    let connecting = tokio::spawn(async move { PgConnection::connect_with(&options).await });
    match tokio::time::timeout(limit, connecting).await {
        Ok(connected) => super::join(connected).map_err(Refusal::of),
        Err(_) => Err(Refusal::silent(limit)),
    }
}

async fn server(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
    let asked_at = SystemTime::now();
    let row = sqlx::query(
        "select current_setting('server_version_num')::int as version_num, current_setting('server_version') as version, \
             current_user::text as role, pg_is_in_recovery() as is_standby, \
             current_setting('transaction_read_only')::bool as is_read_only, current_setting('fsync')::bool as fsync, \
             current_setting('full_page_writes')::bool as full_page_writes, \
             current_setting('synchronous_commit') as synchronous_commit, \
             current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as max_connections, \
             (select sum(numbackends) from pg_stat_database)::bigint as connections, \
             (select least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1)) from pg_roles, pg_database \
                 where rolname = current_user and datname = current_database()) as role_limit, \
             extract(epoch from clock_timestamp())::float8 as now",
    )
    .fetch_one(&mut *connection)
    .await?;
    let halfway = asked_at + asked_at.elapsed().unwrap_or_default() / 2;
    let now: f64 = row.try_get("now")?;
    Ok(Server {
        version_num: row.try_get("version_num")?,
        version: row.try_get("version")?,
        role: row.try_get("role")?,
        is_standby: row.try_get("is_standby")?,
        is_read_only: row.try_get("is_read_only")?,
        fsync: row.try_get("fsync")?,
        full_page_writes: row.try_get("full_page_writes")?,
        synchronous_commit: row.try_get("synchronous_commit")?,
        max_connections: row.try_get("max_connections")?,
        connections: row.try_get("connections")?,
        role_limit: row.try_get("role_limit")?,
        ahead_s: now - halfway.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
    })
}

async fn tables(connection: &mut PgConnection) -> Result<Tables, sqlx::Error> {
    let applied = applied(&mut *connection).await?;
    let is_known = |version: &i64| MIGRATIONS.iter().any(|migration| migration.version == *version);
    let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    if applied.keys().any(|version| !is_known(version) && *version > newest) {
        return Ok(Tables::Ahead);
    }
    let differs = |version: i64, checksum: &[u8]| applied.get(&version).is_some_and(|applied| *applied != checksum);
    let different: Vec<i64> = MIGRATIONS
        .iter()
        .filter(|migration| differs(migration.version, &migration.checksum))
        .map(|migration| migration.version)
        .collect();
    if !different.is_empty() {
        return Ok(Tables::Different(different));
    }
    let missing = MIGRATIONS.iter().filter(|migration| !applied.contains_key(&migration.version)).count();
    if missing == 0 {
        return Ok(Tables::UpToDate(applied.len()));
    }
    let sql = "select coalesce(has_schema_privilege(current_schema(), 'create'), false)";
    let may_create = sqlx::query_scalar(sql).fetch_one(&mut *connection).await?;
    Ok(Tables::Behind { missing, none: applied.is_empty(), may_create })
}

async fn missing_rights(connection: &mut PgConnection, retention: bool) -> Result<Vec<String>, sqlx::Error> {
    let further: &[(&str, &[&str])] = if retention { &RIGHTS_OF_RETENTION } else { &[] };
    let pairs = RIGHTS.iter().chain(further).flat_map(|(table, rights)| rights.iter().map(|right| (*table, *right)));
    let (tables, rights): (Vec<&str>, Vec<&str>) = pairs.unzip();
    // A table that is missing is no right that is.
    sqlx::query_scalar(
        "select kind || ' on ' || name from unnest($1::text[], $2::text[]) with ordinality as needed (name, kind, place) \
         where to_regclass(name) is not null and not has_table_privilege(to_regclass(name), kind) order by place",
    )
    .bind(tables)
    .bind(rights)
    .fetch_all(connection)
    .await
}
