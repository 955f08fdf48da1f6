//! Who is at work: each worker renews its row every few seconds.

use std::time::Duration;

use serde::Serialize;
use sqlx::Row as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Ledger, LedgerError, millis};

/// A worker that was not seen for so long is dead.
const DEAD_AFTER_S: f64 = 30.0;

/// A worker.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerRecord {
    /// Its name: host, process and start.
    pub id: String,
    /// The queue that it consumes.
    pub queue: String,
    /// Its version of leadpost.
    pub version: String,
    /// When it started.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// How long ago that was.
    pub up_s: f64,
    /// How long ago it was seen.
    pub seen_s: f64,
    /// What it said of itself.
    pub status: serde_json::Value,
}

/// What a heartbeat learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// How many workers of the destination were seen of late, this one included.
    pub workers: u32,
    /// For how long the destination asked to be left alone, whichever worker it told.
    pub hold: Option<Duration>,
}

impl Ledger {
    /// Says that this worker lives, and for how long its destination asked to be left alone, if it did; learns which workers were seen
    /// `within` this time, and of the holds of all. Proves that the ledger can be written.
    ///
    /// # Errors
    /// That the ledger cannot be written.
    pub async fn heartbeat(
        &self,
        status: serde_json::Value,
        hold: Option<Duration>,
        within: Duration,
    ) -> Result<Beat, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("write the worker's heartbeat", move |pool| {
                let (ledger, status) = (ledger.clone(), status.clone());
                async move {
                    let mut transaction = pool.begin().await?;
                    sqlx::query(
                        "insert into workers as w (id, destination, queue, version, status) values ($1, $2, $3, $4, $5) \
                         on conflict (id) do update set seen_at = now(), status = excluded.status",
                    )
                    .bind(&*ledger.worker)
                    .bind(&*ledger.destination)
                    .bind(&*ledger.queue)
                    .bind(env!("CARGO_PKG_VERSION"))
                    .bind(status)
                    .execute(&mut *transaction)
                    .await?;
                    if let Some(hold) = hold {
                        sqlx::query(
                            "insert into destinations as d (name, held_until) \
                             values ($1, now() + $2 * interval '1 millisecond') \
                             on conflict (name) do update set held_until = greatest(d.held_until, excluded.held_until)",
                        )
                        .bind(&*ledger.destination)
                        .bind(millis(hold))
                        .execute(&mut *transaction)
                        .await?;
                    }
                    sqlx::query("delete from workers where seen_at < now() - interval '1 day'")
                        .execute(&mut *transaction)
                        .await?;
                    transaction.commit().await?;
                    // After the commit: of two workers that come at a time, one sees the other.
                    let row = sqlx::query(
                        "select (select 1 + count(*) from workers where destination = $1 and id <> $3 \
                                 and seen_at > now() - $2 * interval '1 millisecond') as workers, \
                             (select extract(epoch from held_until - now())::float8 from destinations \
                                 where name = $1 and held_until > now()) as hold_s",
                    )
                    .bind(&*ledger.destination)
                    .bind(millis(within))
                    .bind(&*ledger.worker)
                    .fetch_one(&pool)
                    .await?;
                    let workers: i64 = row.try_get("workers")?;
                    let hold_s: Option<f64> = row.try_get("hold_s")?;
                    Ok(Beat {
                        workers: u32::try_from(workers).unwrap_or(u32::MAX),
                        hold: hold_s.and_then(|hold_s| Duration::try_from_secs_f64(hold_s).ok()),
                    })
                }
            })
            .await
    }

    /// Proves that leads can be accepted and settled, by doing both to one that is not there and undoing it: where only some of the
    /// tables can be written, messages that are consumed could only be given back, until their queue drops them.
    ///
    /// # Errors
    /// What keeps leads from being accepted or settled.
    pub async fn rehearse(&self) -> Result<(), LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("rehearse accepting and settling", move |pool| {
                let ledger = ledger.clone();
                async move {
                    let mut transaction = pool.begin().await?;
                    let id = Uuid::new_v4();
                    sqlx::query(
                        "insert into leads (id, destination, state, body, queue, next_attempt_at) \
                         values ($1, $2, 'pending', '{}', $3, now())",
                    )
                    .bind(id)
                    .bind(&*ledger.destination)
                    .bind(&*ledger.queue)
                    .execute(&mut *transaction)
                    .await?;
                    sqlx::query(
                        "insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status) \
                         values ($1, 1, $1, $2, now(), 0, 'delivered', true, 200)",
                    )
                    .bind(id)
                    .bind(&*ledger.worker)
                    .execute(&mut *transaction)
                    .await?;
                    sqlx::query(
                        "update leads set state = 'delivered', next_attempt_at = null, finished_at = now(), attempts = 1, charged = 1, \
                             posted_at = now(), posted_ms = 0, posted_by = $2, posted_lease = $1, posted_status = 200 \
                         where id = $1",
                    )
                    .bind(id)
                    .bind(&*ledger.worker)
                    .execute(&mut *transaction)
                    .await?;
                    // What only some messages need: a message that comes back for want of these would come again at once.
                    sqlx::query("insert into replays (lead_id, from_state, kind, replayed_by) values ($1, 'rejected', 'message', $2)")
                        .bind(id)
                        .bind(&*ledger.queue)
                        .execute(&mut *transaction)
                        .await?;
                    sqlx::query("select 1 from interventions where lead_id = $1").bind(id).fetch_optional(&mut *transaction).await?;
                    sqlx::query(
                        "insert into aside (destination, queue, lead_id, body, redelivered, replay) values ($1, $2, $3, '{}', false, false)",
                    )
                    .bind(&*ledger.destination)
                    .bind(&*ledger.queue)
                    .bind(id)
                    .execute(&mut *transaction)
                    .await?;
                    transaction.rollback().await
                }
            })
            .await
    }

    /// Says that this worker is gone.
    ///
    /// # Errors
    /// That the ledger cannot be written.
    pub async fn farewell(&self) -> Result<(), LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("remove the worker's row", move |pool| {
                let ledger = ledger.clone();
                async move {
                    let mut transaction = pool.begin().await?;
                    sqlx::query("delete from workers where id = $1")
                        .bind(&*ledger.worker)
                        .execute(&mut *transaction)
                        .await?;
                    transaction.commit().await
                }
            })
            .await
    }

    /// The workers of this destination that live, and those that died lately.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn workers(&self) -> Result<Vec<WorkerRecord>, LedgerError> {
        let ledger = self.clone();
        self.pool
            .run("read the workers", move |pool| {
                let ledger = ledger.clone();
                async move {
                    let rows = sqlx::query(
                        "select id, queue, version, started_at, extract(epoch from now() - started_at)::float8 as up_s, \
                             extract(epoch from now() - seen_at)::float8 as seen_s, status \
                         from workers where destination = $1 order by started_at, id",
                    )
                    .bind(&*ledger.destination)
                    .fetch_all(&pool)
                    .await?;
                    rows.into_iter()
                        .map(|row| {
                            Ok(WorkerRecord {
                                id: row.try_get("id")?,
                                queue: row.try_get("queue")?,
                                version: row.try_get("version")?,
                                started_at: row.try_get("started_at")?,
                                up_s: row.try_get("up_s")?,
                                seen_s: row.try_get("seen_s")?,
                                status: row.try_get("status")?,
                            })
                        })
                        .collect()
                }
            })
            .await
    }
}

impl WorkerRecord {
    /// Whether it was seen lately.
    pub fn is_alive(&self) -> bool {
        Duration::try_from_secs_f64(self.seen_s.max(0.0)).is_ok_and(|seen| seen.as_secs_f64() < DEAD_AFTER_S)
    }
}
