//! Two loops to compare with, each in a process of its own.
//!
//! - bare: take, post, acknowledge; a task for each message. No ledger: what is under way when it dies is posted again without a trace.
//! - usual: the same with an insert before and an update after, on a pool of ten: the ledger as it is written first.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

/// The environment variable that says what a process is to do.
pub const ROLE: &str = "LEADPOST_THROUGHPUT_ROLE";

#[derive(Debug, Serialize, Deserialize)]
pub struct Role {
    pub amqp_url: String,
    pub queue: String,
    pub api: String,
    /// Where the usual worker keeps its ledger; the bare loop has none.
    pub database_url: Option<String>,
    pub in_flight: usize,
}

/// Runs until it is told to stop.
pub fn play(role: &str) -> anyhow::Result<()> {
    let role: Role = serde_json::from_str(role)?;
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            carried = carry(role) => carried,
            _ = term.recv() => Ok(()),
        }
    })
}

async fn token(client: &reqwest::Client, api: &str) -> anyhow::Result<String> {
    let form = [("grant_type", "client_credentials")];
    let request =
        client.post(format!("{api}/oauth2/token")).basic_auth("sandbox-client", Some("sandbox-secret")).form(&form);
    let answer: serde_json::Value = serde_json::from_slice(&request.send().await?.error_for_status()?.bytes().await?)?;
    answer["access_token"].as_str().map(str::to_owned).context("no token")
}

async fn carry(role: Role) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    let token: Arc<str> = token(&client, &role.api).await?.into();
    let url: Arc<str> = format!("{}/leads", role.api).into();
    let pool = match &role.database_url {
        Some(database_url) => Some(ledger(database_url).await?),
        None => None,
    };
    let connection = Connection::connect(&role.amqp_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let prefetch = u16::try_from(role.in_flight)?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let mut consumer = channel
        .basic_consume(role.queue.as_str().into(), "loop".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let slots = Arc::new(Semaphore::new(role.in_flight));
    let (failed, mut failure) = mpsc::unbounded_channel();
    loop {
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery,
            error = failure.recv() => return error.map_or(Ok(()), Err),
        };
        let Some(delivery) = delivery else { return Ok(()) };
        let delivery = delivery?;
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let (client, token, url, pool) = (client.clone(), Arc::clone(&token), Arc::clone(&url), pool.clone());
        let failed = failed.clone();
        tokio::spawn(async move {
            if let Err(error) = one(&client, &token, &url, pool.as_ref(), delivery).await {
                drop(failed.send(error));
            }
            drop(slot);
        });
    }
}

async fn ledger(database_url: &str) -> anyhow::Result<PgPool> {
    let pool =
        PgPoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(60)).connect(database_url).await?;
    let table = "create table usual (id uuid primary key, state text not null, body bytea not null, http_status int, \
         accepted_at timestamptz not null default now(), finished_at timestamptz)";
    sqlx::query(table).execute(&pool).await?;
    Ok(pool)
}

async fn one(
    client: &reqwest::Client,
    token: &str,
    url: &str,
    pool: Option<&PgPool>,
    delivery: lapin::message::Delivery,
) -> anyhow::Result<()> {
    let id: Uuid = delivery.properties.message_id().as_ref().context("no id")?.as_str().parse()?;
    if let Some(pool) = pool {
        sqlx::query("insert into usual (id, state, body) values ($1, 'pending', $2) on conflict do nothing")
            .bind(id)
            .bind(&delivery.data)
            .execute(pool)
            .await?;
    }
    let request = client
        .post(url)
        .bearer_auth(token)
        .header("content-type", "application/json")
        .header("idempotency-key", id.to_string())
        .body(delivery.data);
    let response = request.send().await?;
    let status = response.status().as_u16();
    response.bytes().await?;
    ensure!(status == 201, "answered {status}");
    if let Some(pool) = pool {
        sqlx::query("update usual set state = 'delivered', http_status = $2, finished_at = now() where id = $1")
            .bind(id)
            .bind(i32::from(status))
            .execute(pool)
            .await?;
    }
    ensure!(delivery.acker.ack(BasicAckOptions::default()).await?, "not acknowledged");
    Ok(())
}
