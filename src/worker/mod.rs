//! The loops: how a lead is moved from the queue to its end.
//!
//! ```text
//!            intake                      dispatch                      settle
//!   queue ──> decode, validate, ──────> a task per lead: slot, ──────> attempts and states of
//!   ledger    accept or claim            token, perhaps ask,            many leads, fenced
//!   (due)     then acknowledge           post, classify
//!                                   upkeep: heartbeat, leases that ran out; retention: leads that are old
//! ```
//!
//! # Rules
//! - Everything that a lead's task learns goes to the settle loop; a task that panics is an uncertain attempt.
//! - A loop that ends by itself ends the process: a worker without one of its loops would look alive and lose time.
//! - Stopping: intake parks what it holds and ends; posts under way finish; what was not begun is handed back; settle drains;
//!   then the worker logs out and the connections close. Nothing that was accepted is only in memory.

mod accept;
mod check;
mod dispatch;
mod gauges;
mod health;
mod intake;
mod orphans;
mod probe;
mod pulse;
mod retention;
mod settle;
mod upkeep;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use health::{Health, HealthReport};

use crate::auth::{Login, Tokens};
use crate::broker::{BrokerError, Inbox};
use crate::config::Settings;
use crate::destination::LeadApi;
use crate::fault::{self, Point};
use crate::flow::Flow;
use crate::http::ClientError;
use crate::lead::LeadRules;
use crate::ledger::{Ledger, LedgerError};
use crate::lifecycle::Shutdown;
use crate::metrics::{Labels, Metrics};
use crate::traces::Traces;
use dispatch::Dispatch;
use health::Doing;
use intake::Intake;
use retention::Retention;
use settle::Settler;
use upkeep::Upkeep;
use verdict::Policy;

/// How long a worker that has stopped waits for those to whom it says farewell.
const BYE: Duration = Duration::from_secs(5);

/// The least that the last spans are given.
const MOMENT: Duration = Duration::from_secs(1);

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The HTTP clients.
    #[error(transparent)]
    Http(#[from] ClientError),
    /// An expression of the destination does not compile.
    #[error("{0}")]
    Rules(String),
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// As asked, with everything settled or handed back.
    Cleanly,
    /// Before everything was settled: the leases of the rest will run out, and they will count as perhaps posted.
    InAHurry,
    /// A loop ended by itself; that is a bug.
    Broken,
}

/// A worker that is set up and not yet running.
#[derive(Debug)]
pub struct Worker {
    settings: Arc<Settings>,
    ledger: Ledger,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    traces: Traces,
    flow: Arc<Flow>,
    tokens: Tokens,
    api: LeadApi,
    rules: LeadRules,
}

impl Worker {
    /// Sets a worker up, whose spans go there; nothing is connected yet.
    ///
    /// # Errors
    /// What of the settings cannot be used.
    pub fn new(settings: Settings, name: &str, traces: Traces) -> Result<Self, StartError> {
        let ledger = Ledger::new(&settings, name)?;
        let tokens = Tokens::new(Login::of(&settings.destination)?);
        let api = LeadApi::new(&settings.destination, Duration::from_millis(settings.retry.max_retry_after_ms))?;
        let rules = LeadRules::of(&settings).map_err(StartError::Rules)?;
        let metrics = Arc::new(Metrics::new(Labels {
            destination: settings.destination.name(),
            queue: &settings.amqp.queue,
            worker: name,
        }));
        let flow = Arc::new(Flow::new(&settings));
        let health = Arc::new(Health::new(Arc::clone(&flow), tokens.clone(), Arc::clone(&metrics)));
        Ok(Self { settings: Arc::new(settings), ledger, health, metrics, traces, flow, tokens, api, rules })
    }

    /// What the worker knows of itself, also while it runs.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// What the worker counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Waits until Postgres can be reached, and sees to it that the tables are what this version needs: brings them up to date,
    /// or only checks them. `false`: it was told to stop meanwhile.
    ///
    /// # Errors
    /// When the tables are not what this version needs.
    pub async fn prepare(&self, migrate: bool, shutdown: &Shutdown) -> Result<bool, StartError> {
        let mut tries = 0;
        loop {
            let ready = async {
                let applied = if migrate { self.ledger.migrate().await? } else { 0 };
                self.ledger.check_schema().await.map(|()| applied)
            };
            // What is left behind here goes on by itself, and does no harm.
            let ready = tokio::select! {
                () = shutdown.drain.cancelled() => return Ok(false),
                ready = ready => ready,
            };
            match ready {
                Ok(applied) => {
                    if applied > 0 {
                        tracing::info!(migrations = applied, "brought the ledger's tables up to date");
                    }
                    return Ok(true);
                }
                Err(error @ (LedgerError::Schema(_) | LedgerError::Url(_))) => return Err(error.into()),
                Err(error) => {
                    tries += 1;
                    self.health.turned();
                    self.health.ledger_is_down(Doing::Anything, &error);
                    tracing::warn!(error = %crate::reason::chain(&error), "waiting for Postgres");
                }
            }
            tokio::select! {
                () = shutdown.drain.cancelled() => return Ok(false),
                () = tokio::time::sleep(settle::AGAIN.delay(tries, fastrand::f64())) => {}
            }
        }
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When it could not start.
    pub async fn run(self, shutdown: Shutdown) -> Result<Stopped, StartError> {
        let Self { settings, ledger, health, metrics, traces, flow, tokens, api, rules } = self;
        let inbox = Inbox::open(&settings.amqp, settings.prefetch(), ledger.worker())?;
        health.watch_broker(&inbox);

        // A slot is free as soon as its post ends; what waits to be settled has this bound of its own.
        let (settlements, settling) = mpsc::channel(2 * settings.flow.batch);
        let posts = TaskTracker::new();
        let rules = Arc::new(rules);
        let policy = Policy::of(&settings);
        let dispatch = Arc::new(Dispatch {
            api,
            tokens: tokens.clone(),
            flow: Arc::clone(&flow),
            rules: Arc::clone(&rules),
            policy: policy.clone(),
            lease: Duration::from_millis(settings.flow.lease_ms),
            longest_post: Duration::from_millis(settings.destination.request.timeout_ms),
            metrics: Arc::clone(&metrics),
            pulse: Arc::clone(health.pulse()),
            drain: shutdown.drain.clone(),
        });

        let mut loops = JoinSet::new();
        let upkeep = Upkeep {
            ledger: ledger.clone(),
            flow: Arc::clone(&flow),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            policy,
            stop: shutdown.drain.clone(),
        };
        loops.spawn(upkeep.run());
        let (kept, answers) = (retention::kept(&settings.retention), retention::answers(&settings.retention));
        if !kept.is_empty() || answers.is_some() {
            let retention = Retention {
                ledger: ledger.clone(),
                health: Arc::clone(&health),
                metrics: Arc::clone(&metrics),
                kept,
                answers,
                stop: shutdown.drain.clone(),
            };
            loops.spawn(retention.run());
        }
        let settler = Settler {
            ledger: ledger.clone(),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            settlements: settling,
            batch: settings.flow.batch,
        };
        loops.spawn(settler.run());
        let intake = Intake::new(
            Arc::clone(&settings),
            ledger.clone(),
            inbox,
            rules,
            dispatch,
            settlements,
            &health,
            &metrics,
            traces.clone(),
            posts.clone(),
        );
        loops.spawn(intake.run(shutdown.drain.clone()));

        // A loop that ends before it was told to has panicked.
        let broken = tokio::select! {
            // Told to stop, loops end as they should: that is looked at first.
            biased;
            () = shutdown.drain.cancelled() => false,
            ended = loops.join_next() => {
                tracing::error!(panic = ended.is_some_and(|ended| ended.is_err()), "a loop of the worker has ended by itself; stopping");
                shutdown.drain.cancel();
                true
            }
        };

        fault::at(Point::Stopping);
        let grace = Duration::from_millis(settings.shutdown.grace_ms);
        let until = Instant::now() + grace;
        let drained = async {
            let mut failed = false;
            while let Some(ended) = loops.join_next().await {
                failed |= ended.is_err();
            }
            failed
        };
        let stopped = tokio::select! {
            failed = drained => if failed || broken { Stopped::Broken } else { Stopped::Cleanly },
            () = tokio::time::sleep_until(until) => Stopped::InAHurry,
            () = shutdown.now.cancelled() => Stopped::InAHurry,
        };
        fault::at(Point::Drained);
        let bye = async {
            if let Err(error) = ledger.farewell().await {
                tracing::debug!(error = %crate::reason::chain(&error), "could not remove the worker's row");
            }
            ledger.close().await;
        };
        if stopped == Stopped::Cleanly {
            // What is left of the grace time, if that is not long.
            let rest = until.saturating_duration_since(Instant::now()).clamp(MOMENT, BYE);
            let spans = async {
                tokio::select! {
                    () = shutdown.now.cancelled() => traces.abandon(),
                    () = traces.finish(rest) => {}
                }
            };
            // All that was sent is answered, so nothing needs the token any more.
            let ((), said, ()) = tokio::join!(
                async {
                    if tokio::time::timeout(BYE, tokens.log_out()).await.is_err() {
                        tracing::warn!("the log-out was not answered; what was granted ends by itself");
                    }
                },
                tokio::time::timeout(BYE, bye),
                spans
            );
            if said.is_err() {
                tracing::debug!("Postgres did not answer the farewell");
            }
        } else {
            traces.abandon();
        }
        Ok(stopped)
    }
}
