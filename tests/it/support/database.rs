//! A database for each test, copied from one that is migrated once.

use std::str::FromStr as _;

use leadpost::config::{Secret, Settings};
use leadpost::ledger::Ledger;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The migrated database that all others of this process are copies of.
static TEMPLATE: OnceCell<String> = OnceCell::const_new();

pub struct Database {
    pub url: String,
    pub pool: PgPool,
    name: String,
    /// The server's own database.
    server: String,
}

/// The Postgres that tests share.
pub fn database_url() -> String {
    std::env::var("DATABASE_URL")
        .expect("DATABASE_URL is not set; run scripts/test, or: eval \"$(scripts/services env)\"")
}

/// The same server, another database.
fn url_of(server: &str, name: &str) -> String {
    let mut url = url::Url::parse(server).unwrap();
    url.set_path(name);
    url.into()
}

async fn admin(server: &str, sql: String) {
    let options = PgConnectOptions::from_str(server).unwrap();
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn template() -> String {
    let name = format!("leadpost_template_{}", Uuid::new_v4().simple());
    migrated(&database_url(), &name).await;
    name
}

/// Makes a database with the tables of the ledger.
async fn migrated(server: &str, name: &str) {
    admin(server, format!("create database {name}")).await;
    let mut settings = Settings::default();
    settings.postgres.url = Secret::new(url_of(server, name));
    let ledger = Ledger::new(&settings, "template").unwrap();
    ledger.migrate().await.unwrap();
    ledger.close().await;
}

impl Database {
    pub async fn create() -> Self {
        let template = TEMPLATE.get_or_init(template).await;
        let (server, name) = (database_url(), format!("leadpost_test_{}", Uuid::new_v4().simple()));
        admin(&server, format!("create database {name} template {template}")).await;
        Self::of(server, name)
    }

    /// A database on this server.
    pub async fn create_at(server: &str) -> Self {
        // Who has servers of their own needs no other.
        if std::env::var("DATABASE_URL").is_ok_and(|usual| usual == server) {
            return Self::create().await;
        }
        let name = format!("leadpost_test_{}", Uuid::new_v4().simple());
        migrated(server, &name).await;
        Self::of(server.to_owned(), name)
    }

    fn of(server: String, name: String) -> Self {
        let url = url_of(&server, &name);
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy(&url).unwrap();
        Self { url, pool, name, server }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (name, server) = (std::mem::take(&mut self.name), std::mem::take(&mut self.server));
        // A test that failed keeps its database, for a look at it.
        if std::thread::panicking() {
            return;
        }
        let dropper = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(admin(&server, format!("drop database if exists {name} with (force)")));
        });
        drop(dropper.join());
    }
}
