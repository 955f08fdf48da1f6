//! What choices in the ledger's tables cost each lead: accepted and settled by the ledger's own statements, in batches, and nothing else.
//!
//! Partitions by time are not among them: the primary key of such a table has to contain the time, so no message could be recognized that
//! comes again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leadpost::config::{Secret, Settings};
use leadpost::lead::{Keys, LeadId};
use leadpost::ledger::{
    Arrival, Attempt, End, Fate, LeadState, Ledger, Next, OnLock, Receipt, RequestKind, Settlement,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::scene::{Stage, execute, lead};
use crate::servers::Servers;

/// As many as a busy worker accepts at a time, when the API answers at once.
const BATCH: u64 = 180;

/// How many leads are looked for at a time when they are removed, as the worker does.
const REMOVED: usize = 500;

const LEASE: Duration = Duration::from_secs(120);

/// A choice that no SQL makes: of such attempts the ledger does not believe that they need no row.
const APART: &str = "first posts in rows of attempts";

/// A choice, and the SQL that makes it.
const VARIANTS: [(&str, &str); 10] = [
    ("as it is", ""),
    (APART, ""),
    ("leads with fillfactor 100", "alter table leads set (fillfactor = 100)"),
    ("leads with fillfactor 70", "alter table leads set (fillfactor = 70)"),
    (
        "no autovacuum",
        "alter table leads set (autovacuum_enabled = off); alter table other_attempts set (autovacuum_enabled = off)",
    ),
    (
        "autovacuum of leads after 2 % and not 20 %",
        "alter table leads set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02)",
    ),
    (
        "no search by email or assistant",
        "drop index leads_email, leads_assistant, leads_without_key, leads_waiting_email, leads_waiting_assistant",
    ),
    ("no retention", "drop index leads_delivered, leads_conflicts"),
    ("no tallies", "alter table leads disable trigger user"),
    ("as it is, again", ""),
];

/// Prints a line for each choice, with so many leads.
pub async fn compare(servers: &Servers, leads: u64) -> anyhow::Result<()> {
    println!("| {leads} leads, {BATCH} at a time | Postgres CPU | elapsed | WAL | size |\n|---|---:|---:|---:|---:|");
    for (name, sql) in VARIANTS {
        let stage = Stage::set(servers).await?;
        let measured = measure(servers, &stage, name, sql, leads).await;
        stage.strike().await?;
        measured?;
    }
    Ok(())
}

/// The ledger, and what is read of it.
struct Subject<'a> {
    servers: &'a Servers,
    admin: PgConnection,
    ledger: Ledger,
}

async fn measure(servers: &Servers, stage: &Stage, name: &str, sql: &str, leads: u64) -> anyhow::Result<()> {
    let mut settings = Settings::default();
    settings.postgres.url = Secret::new(servers.url_of(Some(&stage.name))?);
    let ledger = Ledger::new(&settings, "bench")?;
    ledger.migrate().await?;
    let mut admin = servers.connect(Some(&stage.name)).await?;
    if !sql.is_empty() {
        execute(&mut admin, sql).await?;
    }
    execute(&mut admin, "checkpoint").await?;
    let mut subject = Subject { servers, admin, ledger };
    let carried =
        subject.measured(async |ledger| carry_all(ledger, leads, name == APART).await.map(|()| leads)).await?;
    let bytes: i64 = sqlx::query_scalar(
        "select (pg_total_relation_size('leads') + pg_total_relation_size('other_attempts'))::bigint",
    )
    .fetch_one(&mut subject.admin)
    .await?;
    println!("| {name} | {carried} | {} bytes |", bytes / i64::try_from(leads)?);
    if name == VARIANTS[0].0 {
        let half = leads / 2;
        let removed = subject.measured(async |ledger| remove(ledger, half).await).await?;
        println!("| as it is: removed again, {REMOVED} at a time | {removed} | |");
    }
    Ok(())
}

impl Subject<'_> {
    /// What something costs for each lead, as it is told how many those were.
    async fn measured(&mut self, work: impl AsyncFn(&Ledger) -> anyhow::Result<u64>) -> anyhow::Result<String> {
        let (cpu, wal) = (self.servers.postgres_cpu(), self.wal().await?);
        let began = Instant::now();
        let leads = work(&self.ledger).await?;
        let took = began.elapsed();
        let cpu = cpu.zip(self.servers.postgres_cpu()).map(|(before, after)| after - before);
        let wal = self.wal().await? - wal;
        let us = |time: Duration| time.as_secs_f64() * 1e6 / leads as f64;
        let cpu = cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{:.1} us", us(cpu)));
        Ok(format!("{cpu} | {:.1} us | {} bytes", us(took), wal / i64::try_from(leads)?))
    }

    async fn wal(&mut self) -> anyhow::Result<i64> {
        let sql = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";
        Ok(sqlx::query_scalar(sql).fetch_one(&mut self.admin).await?)
    }
}

/// Two batches are under way at a time, as accepts and settlements are.
async fn carry_all(ledger: &Ledger, leads: u64, apart: bool) -> anyhow::Result<()> {
    let half = async |from: u64| -> anyhow::Result<()> {
        for batch in (from..leads / BATCH).step_by(2) {
            carry(ledger, batch * BATCH..(batch + 1) * BATCH, apart).await?;
        }
        Ok(())
    };
    tokio::try_join!(half(0), half(1)).map(|_| ())
}

/// Accepts leads, and settles them as delivered.
async fn carry(ledger: &Ledger, numbers: std::ops::Range<u64>, apart: bool) -> anyhow::Result<()> {
    let arrivals: Arc<[Arrival]> = numbers.map(arrival).collect();
    let token = Uuid::new_v4();
    let fates = ledger.accept(arrivals, Some((token, LEASE)), OnLock::Wait).await?;
    let settlements = fates.iter().enumerate().map(|(at, fate)| match fate {
        Some(Fate::Leased(leased)) => Ok(Settlement {
            id: leased.id,
            lease: leased.lease,
            attempts_before: 0,
            attempts: vec![Attempt { charged: !apart, ..delivery() }],
            next: Next::End(End {
                receipt: Some(Receipt {
                    remote_id: Some(at.to_string()),
                    remote_state: Some("Cold".to_owned()),
                    ..Receipt::default()
                }),
                ..End::default()
            }),
            trace: None,
        }),
        _ => Err(anyhow::anyhow!("a lead was not accepted")),
    });
    let settlements: Arc<[Settlement]> = settlements.collect::<anyhow::Result<Vec<_>>>()?.into();
    let settled = ledger.settle(settlements, false, OnLock::Wait).await?;
    ensure!(settled.late.is_empty() && settled.busy.is_empty(), "not all were settled");
    Ok(())
}

fn arrival(n: u64) -> Arrival {
    let id = LeadId(Uuid::new_v4());
    let body = lead(n);
    Arrival {
        id,
        keys: Keys::of_body(body.as_bytes()),
        body: body.into(),
        message_id: Some(id.to_string()),
        redelivered: false,
        replay: false,
        violations: Vec::new(),
        trace: None,
    }
}

fn delivery() -> Attempt {
    Attempt {
        request: RequestKind::Post,
        started_at: tokio::time::Instant::now(),
        duration: Duration::from_millis(20),
        outcome: "delivered",
        charged: true,
        http_status: Some(201),
        code: None,
        reason: None,
        answer: None,
        retry_after: None,
    }
}

/// Removes at least so many leads, as retention does; says how many.
async fn remove(ledger: &Ledger, least: u64) -> anyhow::Result<u64> {
    let mut removed = 0;
    while removed < least {
        let some = ledger.remove_old(LeadState::Delivered, Duration::ZERO, REMOVED).await?;
        removed += some.filter(|n| *n > 0).context("there is nothing to be removed")?;
    }
    Ok(removed)
}
