//! What may strike: something is done to a worker, to a server, to a line or to the API, for a while, and then it is undone.

use std::time::Duration;

use clap::ValueEnum as _;
use leadpost::fault::Point;
use leadpost::sandbox as api;
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;

use super::{Campaign, LEASE, refuse_some};
use crate::support::proxy::{Direction, EXECUTE, Fault as Harm, Proxy};

const TERMINATE: &str =
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'leadpost %'";

/// Whom a fault strikes; between the workers and each of the others there is a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Worker,
    RabbitMq,
    Postgres,
    Token,
    Api,
}

pub const SIDES: [Side; 5] = [Side::Worker, Side::RabbitMq, Side::Postgres, Side::Token, Side::Api];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    WorkerKilled,
    WorkerCrashed,
    WorkerFrozen,
    WorkerStopped,
    WorkerAcksBadly,
    RabbitMqRestarted,
    RabbitMqKilled,
    RabbitMqFrozen,
    RabbitMqCloses,
    RabbitMqAlarm,
    PostgresRestarted,
    PostgresKilled,
    PostgresFrozen,
    PostgresTerminates,
    PostgresReadOnly,
    PostgresLocked,
    PostgresFull,
    ApiAway,
    ApiSlow,
    ApiFails,
    ApiHangs,
    TokensRevoked,
    TokensRefused,
    Cut(Side),
    Refused(Side),
    Silent(Side),
    Delayed(Side),
    Trickles(Side),
    Swallowed(Side, Direction),
    Stalled(Side, Direction),
    CutWithin(Side, Direction),
    CommitLost,
}

impl Fault {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::WorkerKilled,
            Self::WorkerCrashed,
            Self::WorkerFrozen,
            Self::WorkerStopped,
            Self::WorkerAcksBadly,
            Self::RabbitMqRestarted,
            Self::RabbitMqKilled,
            Self::RabbitMqFrozen,
            Self::RabbitMqCloses,
            Self::RabbitMqAlarm,
            Self::PostgresRestarted,
            Self::PostgresKilled,
            Self::PostgresFrozen,
            Self::PostgresTerminates,
            Self::PostgresReadOnly,
            Self::PostgresLocked,
            Self::PostgresFull,
            Self::ApiAway,
            Self::ApiSlow,
            Self::ApiFails,
            Self::ApiHangs,
            Self::TokensRevoked,
            Self::TokensRefused,
            Self::CommitLost,
        ];
        for line in [Side::RabbitMq, Side::Postgres, Side::Token, Side::Api] {
            all.extend([
                Self::Cut(line),
                Self::Refused(line),
                Self::Silent(line),
                Self::Delayed(line),
                Self::Trickles(line),
            ]);
            for direction in [Direction::Up, Direction::Down] {
                all.extend([
                    Self::Swallowed(line, direction),
                    Self::Stalled(line, direction),
                    Self::CutWithin(line, direction),
                ]);
            }
        }
        all
    }

    /// At whom it strikes.
    pub fn side(self) -> Side {
        match self {
            Self::WorkerKilled
            | Self::WorkerCrashed
            | Self::WorkerFrozen
            | Self::WorkerStopped
            | Self::WorkerAcksBadly => Side::Worker,
            Self::RabbitMqRestarted
            | Self::RabbitMqKilled
            | Self::RabbitMqFrozen
            | Self::RabbitMqCloses
            | Self::RabbitMqAlarm => Side::RabbitMq,
            Self::PostgresRestarted
            | Self::PostgresKilled
            | Self::PostgresFrozen
            | Self::PostgresTerminates
            | Self::PostgresReadOnly
            | Self::PostgresLocked
            | Self::PostgresFull
            | Self::CommitLost => Side::Postgres,
            Self::ApiAway | Self::ApiSlow | Self::ApiFails | Self::ApiHangs => Side::Api,
            Self::TokensRevoked | Self::TokensRefused => Side::Token,
            Self::Cut(line)
            | Self::Refused(line)
            | Self::Silent(line)
            | Self::Delayed(line)
            | Self::Trickles(line)
            | Self::Swallowed(line, _)
            | Self::Stalled(line, _)
            | Self::CutWithin(line, _) => line,
        }
    }

    /// What the table calls it.
    pub fn name(self) -> String {
        let line = |line| match line {
            Side::Worker => "worker",
            Side::RabbitMq => "RabbitMQ",
            Side::Postgres => "Postgres",
            Side::Token => "token endpoint",
            Side::Api => "API",
        };
        match self {
            Self::WorkerKilled => "worker: killed (SIGKILL)".to_owned(),
            Self::WorkerCrashed => "worker: dies at a named point, or near it".to_owned(),
            Self::WorkerFrozen => "worker: frozen past its lease (SIGSTOP)".to_owned(),
            Self::WorkerStopped => "worker: stopped (SIGTERM)".to_owned(),
            Self::WorkerAcksBadly => "worker: acknowledges what it never got".to_owned(),
            Self::RabbitMqRestarted => "RabbitMQ: restarted".to_owned(),
            Self::RabbitMqKilled => "RabbitMQ: killed".to_owned(),
            Self::RabbitMqFrozen => "RabbitMQ: frozen".to_owned(),
            Self::RabbitMqCloses => "RabbitMQ: closes all connections".to_owned(),
            Self::RabbitMqAlarm => "RabbitMQ: memory alarm".to_owned(),
            Self::PostgresRestarted => "Postgres: restarted".to_owned(),
            Self::PostgresKilled => "Postgres: killed".to_owned(),
            Self::PostgresFrozen => "Postgres: frozen".to_owned(),
            Self::PostgresTerminates => "Postgres: terminates backends".to_owned(),
            Self::PostgresReadOnly => "Postgres: read-only".to_owned(),
            Self::PostgresLocked => "Postgres: table locked".to_owned(),
            Self::PostgresFull => "Postgres: out of connections".to_owned(),
            Self::ApiAway => "API: away".to_owned(),
            Self::ApiSlow => "API: slower than the timeout".to_owned(),
            Self::ApiFails => "API: 500, 503, broken connections".to_owned(),
            Self::ApiHangs => "API: never answers".to_owned(),
            Self::TokensRevoked => "token endpoint: tokens revoked".to_owned(),
            Self::TokensRefused => "token endpoint: slow, fails, half an answer".to_owned(),
            Self::Cut(at) => format!("{}: line cut", line(at)),
            Self::Refused(at) => format!("{}: connections refused", line(at)),
            Self::Silent(at) => format!("{}: accepts and is silent", line(at)),
            Self::Delayed(at) => format!("{}: line slow", line(at)),
            Self::Trickles(at) => format!("{}: line narrow", line(at)),
            Self::Swallowed(at, _) => format!("{}: black hole", line(at)),
            Self::Stalled(at, _) => format!("{}: line stalls", line(at)),
            Self::CutWithin(at, _) => format!("{}: cut within a message", line(at)),
            Self::CommitLost => "Postgres: answers to commits lost".to_owned(),
        }
    }
}

impl Campaign {
    /// The line between the workers and this neighbour.
    fn line(&self, side: Side) -> &Proxy {
        match side {
            Side::Worker => unreachable!("there is no line to a worker"),
            Side::RabbitMq => &self.lines[0],
            Side::Postgres => &self.lines[1],
            Side::Token => &self.lines[2],
            Side::Api => &self.lines[3],
        }
    }

    /// Lets it strike, waits, and undoes it.
    pub async fn strike(&self, fault: Fault) {
        let lasts = Duration::from_millis(self.draw(300..4_000));
        match fault {
            Fault::WorkerKilled => {
                let mut worker = self.take_worker().await;
                worker.signal("KILL");
                worker.ended().await;
                self.start_worker("").await;
            }
            Fault::WorkerCrashed => self.crash().await,
            Fault::WorkerFrozen => {
                let worker = self.take_worker().await;
                worker.signal("STOP");
                tokio::time::sleep(LEASE + lasts).await;
                worker.signal("CONT");
                self.workers.lock().await.push(worker);
            }
            Fault::WorkerStopped => {
                let worker = self.take_worker().await;
                self.start_worker("").await;
                self.end_worker(worker).await;
            }
            Fault::WorkerAcksBadly => {
                let worker = self.take_worker().await;
                self.start_worker("bad_ack").await;
                self.end_worker(worker).await;
            }
            Fault::RabbitMqRestarted => {
                self.rabbitmq.stop().await;
                self.rabbitmq.start().await;
            }
            Fault::RabbitMqKilled => {
                self.rabbitmq.kill().await;
                tokio::time::sleep(lasts).await;
                self.rabbitmq.start().await;
            }
            Fault::RabbitMqFrozen => {
                self.rabbitmq.pause().await;
                tokio::time::sleep(2 * lasts).await;
                self.rabbitmq.resume().await;
            }
            Fault::RabbitMqCloses => {
                self.rabbitmq.ctl(&["close_all_connections", "on purpose"]).await;
            }
            Fault::RabbitMqAlarm => {
                self.rabbitmq.alarm(true).await;
                tokio::time::sleep(lasts).await;
                self.rabbitmq.alarm(false).await;
            }
            Fault::PostgresRestarted => {
                self.postgres.stop().await;
                self.postgres.start().await;
            }
            Fault::PostgresKilled => {
                self.postgres.kill().await;
                tokio::time::sleep(lasts).await;
                self.postgres.start().await;
            }
            Fault::PostgresFrozen => {
                self.postgres.pause().await;
                tokio::time::sleep(2 * lasts).await;
                self.postgres.resume().await;
            }
            Fault::PostgresTerminates => {
                for _ in 0..self.draw(1..6) {
                    self.sql(&[TERMINATE]).await;
                    tokio::time::sleep(lasts / 5).await;
                }
            }
            Fault::PostgresReadOnly => {
                let database = self.world.database.url.rsplit('/').next().unwrap_or_default();
                let database = database.split('?').next().unwrap_or_default();
                let (on, off) = (
                    format!("alter database {database} set default_transaction_read_only = on"),
                    format!("alter database {database} reset default_transaction_read_only"),
                );
                self.sql(&[&on, TERMINATE]).await;
                tokio::time::sleep(lasts).await;
                self.sql(&["set default_transaction_read_only = off", &off, TERMINATE]).await;
            }
            Fault::PostgresLocked => {
                let sleep = format!("select pg_sleep({})", lasts.as_secs_f64());
                self.sql(&["begin", "lock table leads in access exclusive mode", &sleep, "commit"]).await;
            }
            Fault::PostgresFull => {
                // What others let go is taken as well.
                let mut taken = Vec::new();
                self.sql(&[TERMINATE]).await;
                let until = Instant::now() + lasts;
                while Instant::now() < until {
                    match PgConnection::connect(&self.world.database.url).await {
                        Ok(connection) => taken.push(connection),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
                for connection in taken {
                    drop(connection.close().await);
                }
            }
            Fault::ApiAway => {
                // By the lines: nobody else can take their ports meanwhile.
                let lines = [Side::Api, Side::Token].map(|side| self.line(side));
                lines.iter().for_each(|line| line.refuse());
                lines.iter().for_each(|line| line.cut());
                tokio::time::sleep(lasts).await;
                lines.iter().for_each(|line| line.heal());
            }
            Fault::ApiSlow => self.at_api(lasts, 1.0, api::Fault::latency(Duration::from_millis(1_500))).await,
            Fault::ApiFails => {
                let faults = [
                    api::Fault::status(500).after(),
                    api::Fault::status(500),
                    api::Fault::status(503),
                    api::Fault::reset(),
                    api::Fault::reset().after(),
                    api::Fault::close().after(),
                ];
                let at = self.pick(&[0, 1, 2, 3, 4, 5]);
                self.at_api(lasts, 0.7, faults[at].clone()).await;
            }
            Fault::ApiHangs => self.at_api(lasts, 0.5, api::Fault::hang().after()).await,
            Fault::TokensRevoked => {
                for _ in 0..self.draw(1..6) {
                    self.world.sandbox.revoke_all();
                    tokio::time::sleep(lasts / 5).await;
                }
            }
            Fault::TokensRefused => {
                let faults = [
                    api::Fault::latency(Duration::from_millis(700)),
                    api::Fault::status(500),
                    api::Fault::status(400),
                    api::Fault::reset(),
                    api::Fault::cut(api::CutAt::Headers),
                    api::Fault::hang(),
                ];
                let at = self.pick(&[0, 1, 2, 3, 4, 5]);
                self.at_api(lasts, 0.8, faults[at].clone().on_token()).await;
            }
            Fault::Cut(line) => {
                for _ in 0..self.draw(1..8) {
                    self.line(line).cut();
                    tokio::time::sleep(lasts / 8).await;
                }
            }
            Fault::Refused(line) => {
                self.line(line).refuse();
                self.line(line).cut();
                self.heal_after(line, lasts).await;
            }
            Fault::Silent(line) => {
                self.line(line).silence();
                self.line(line).cut();
                self.heal_after(line, lasts).await;
            }
            Fault::Delayed(line) => {
                let by = Duration::from_millis(self.draw(20..300));
                for direction in [Direction::Up, Direction::Down] {
                    self.line(line).set(direction, Harm::Delay { by, jitter: by });
                }
                self.heal_after(line, lasts).await;
            }
            Fault::Trickles(line) => {
                for direction in [Direction::Up, Direction::Down] {
                    self.line(line).set(direction, Harm::Bandwidth(self.draw(500..20_000)));
                }
                self.heal_after(line, lasts).await;
            }
            Fault::Swallowed(line, direction) => self.harm(line, direction, Harm::BlackHole, lasts).await,
            Fault::Stalled(line, direction) => self.harm(line, direction, Harm::Stall, lasts).await,
            Fault::CutWithin(line, direction) => self.harm(line, direction, Harm::CutWithin(0..5_000), lasts).await,
            Fault::CommitLost => {
                // A settlement commits without saying so.
                let texts: [&[&str]; 2] = [&["COMMIT"], &["delivered", EXECUTE]];
                let texts = texts[usize::from(self.draw(0..2) == 1)];
                self.harm(Side::Postgres, Direction::Up, Harm::lose_answer(texts), lasts).await;
            }
        }
    }

    async fn harm(&self, line: Side, direction: Direction, harm: Harm, lasts: Duration) {
        self.line(line).set(direction, harm);
        self.heal_after(line, lasts).await;
    }

    async fn heal_after(&self, line: Side, lasts: Duration) {
        tokio::time::sleep(lasts).await;
        self.line(line).heal();
    }

    async fn at_api(&self, lasts: Duration, share: f64, fault: api::Fault) {
        self.world.sandbox.faults().rate(share, fault).unwrap();
        tokio::time::sleep(lasts).await;
        self.world.sandbox.faults().clear();
        refuse_some(&self.world);
    }

    /// One more worker, which dies at a point of its way; if it does not come by in time, it is killed.
    async fn crash(&self) {
        let point = self.pick(&ON_THE_WAY);
        let name = point.to_possible_value().unwrap().get_name().to_owned();
        let is_at_stop = matches!(point, Point::Stopping | Point::Parked | Point::Drained);
        self.start_worker(&format!("crash_at={name}:{}", if is_at_stop { 1 } else { self.draw(1..20) })).await;
        let mut worker = self.workers.lock().await.pop().unwrap();
        let patience = Duration::from_millis(self.draw(2_000..6_000));
        if is_at_stop {
            tokio::time::sleep(patience / 4).await;
            worker.signal("TERM");
        }
        if tokio::time::timeout(patience, worker.ended()).await.is_err() {
            worker.signal("KILL");
            worker.ended().await;
        }
    }
}

/// The points that a worker comes by when nothing else happens.
const ON_THE_WAY: [Point; 17] = [
    Point::Received,
    Point::Accepting,
    Point::Accepted,
    Point::Acknowledged,
    Point::Claiming,
    Point::Claimed,
    Point::Authorized,
    Point::Posting,
    Point::Posted,
    Point::Answered,
    Point::Settling,
    Point::Settled,
    Point::Expiring,
    Point::Expired,
    Point::Stopping,
    Point::Parked,
    Point::Drained,
];
