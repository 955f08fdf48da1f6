//! One run: a queue, a database and a sandbox of its own; leads in, and what they cost.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::Args;
use crate::loops::{ROLE, Role};
use crate::measure::{self, Cpu};
use crate::report::{Latency, Row, Tenth};
use crate::servers::Servers;

/// How often it is looked whether all leads are through.
const LOOK: Duration = Duration::from_millis(20);

/// Nothing takes longer.
const DEADLINE: Duration = Duration::from_secs(1800);

/// So many messages are published before their confirms are waited for.
const CONFIRMS: usize = 500;

/// How many leads were delivered.
pub const DELIVERED: &str = "select coalesce(sum(delivered), 0)::bigint from tallies";

/// Who carries the leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// So many workers.
    Leadpost(usize),
    /// A loop without a ledger.
    Bare,
    /// A loop with a ledger as it is usually written.
    Usual,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leadpost(1) => f.write_str("leadpost"),
            Self::Leadpost(n) => write!(f, "leadpost, {n} workers"),
            Self::Bare => f.write_str("bare loop"),
            Self::Usual => f.write_str("usual worker"),
        }
    }
}

/// What there is to carry.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// So many leads, there from the start.
    Filled(u64),
    Stream {
        per_s: u64,
        seconds: u64,
    },
}

#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub leadpost: &'a Path,
    pub servers: &'a Servers,
    pub args: &'a Args,
    pub who: Who,
    pub delay: Duration,
    pub load: Load,
    /// What workers are configured with besides, as `--set` has it.
    pub set: &'a [&'a str],
}

/// Ends a process when it is dropped.
pub struct Running(Child);

impl Running {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Asks it to stop, and waits.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let status = self.0.wait()?;
        ensure!(status.success(), "a process ended with {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What is read before and after.
struct Reading {
    workers: Vec<Cpu>,
    postgres: Option<Cpu>,
    rabbitmq: Option<Cpu>,
    sandbox: Option<Cpu>,
    wal: i64,
}

impl Scene<'_> {
    pub fn name(&self) -> String {
        format!("{} at {:?}", self.who, self.delay)
    }

    fn leads(&self) -> u64 {
        match self.load {
            Load::Filled(leads) => leads,
            Load::Stream { per_s, seconds } => per_s * seconds,
        }
    }

    /// How many posts may be under way, for all the same.
    fn in_flight(&self) -> usize {
        if self.delay.is_zero() { 64 } else { self.args.concurrency }
    }

    pub async fn play(&self) -> anyhow::Result<Row> {
        let stage = Stage::set(self.servers).await?;
        let played = self.play_on(&stage).await;
        stage.strike().await?;
        played
    }

    /// The same on a stage that is there, with whatever is in its ledger.
    pub async fn play_on(&self, stage: &Stage) -> anyhow::Result<Row> {
        let (name, channel) = (stage.name.as_str(), &stage.channel);
        let leads = self.leads();
        if let Load::Filled(leads) = self.load {
            publish(channel, name, 0..leads, None).await?;
        }
        let latency = self.delay.as_millis().to_string();
        let mut options = vec!["--latency-ms", &latency];
        if let Some(encrypted) = &self.servers.encrypted {
            options.extend(encrypted.of_sandbox());
        }
        let (sandbox, api) = sandbox(self.leadpost, &options)?;
        let mut ledger = self.servers.connect(Some(name)).await?;
        // What was written before is not to be flushed meanwhile.
        execute(&mut ledger, "checkpoint").await?;

        let started = Instant::now();
        let count = if let Who::Leadpost(n) = self.who { n } else { 1 };
        let mut workers = (0..count).map(|_| self.worker(name, &api)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut polls = 0;
        match self.load {
            Load::Filled(_) => {
                while posts(&api).await? == 0 {
                    ensure!(started.elapsed() < DEADLINE, "no lead was posted");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            // Whoever starts has no lead to post yet.
            Load::Stream { .. } => tokio::time::sleep(Duration::from_secs(2)).await,
        }
        let (first_post, began) = (started.elapsed(), Instant::now());
        let before = self.read(&workers, &sandbox, &mut ledger).await?;
        let commits_before = commits(&mut ledger).await?;
        let publishing = async {
            match self.load {
                Load::Filled(_) => Ok(HashMap::new()),
                Load::Stream { per_s, seconds } => publish(channel, name, 0..per_s * seconds, Some(per_s)).await,
            }
        };
        let (published, tenths) =
            tokio::try_join!(publishing, self.until_through(&mut workers, &mut ledger, &api, &mut polls))?;
        let took = began.elapsed();
        let after = self.read(&workers, &sandbox, &mut ledger).await?;
        let peak = workers.iter().filter_map(|worker| measure::peak_mib(worker.pid())).fold(0.0, f64::max);
        workers.iter_mut().try_for_each(Running::stop)?;
        let latency_ms = match self.load {
            Load::Filled(_) => None,
            Load::Stream { .. } => Some(latency_of(&mut ledger, &published).await?),
        };
        let posted = posts(&api).await?;
        ensure!(posted == leads, "{posted} posts of {leads} leads");
        // What a connection has done is counted when it has been idle for a moment, or ended.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        // Without what was asked from here: that is what was read, and the polls.
        let commits = commits(&mut ledger).await? - commits_before - polls - 5;

        let per_lead =
            |before: Option<Cpu>, after: Option<Cpu>| Some((after? - before?).as_secs_f64() * 1e6 / leads as f64);
        let sum = |cpus: &[Cpu]| Some(cpus.iter().sum());
        let has_ledger = self.who != Who::Bare;
        Ok(Row {
            who: self.who,
            tls: self.servers.encrypted.is_some(),
            delay_ms: u64::try_from(self.delay.as_millis())?,
            load: match self.load {
                Load::Filled(_) => "filled".to_owned(),
                Load::Stream { per_s, .. } => format!("{per_s}/s"),
            },
            leads,
            leads_per_s: leads as f64 / took.as_secs_f64(),
            worker_us: per_lead(sum(&before.workers), sum(&after.workers)),
            postgres_us: per_lead(before.postgres, after.postgres).filter(|_| has_ledger),
            rabbitmq_us: per_lead(before.rabbitmq, after.rabbitmq),
            sandbox_us: per_lead(before.sandbox, after.sandbox),
            peak_mib: Some(peak),
            commits_per_lead: has_ledger.then_some(commits as f64 / leads as f64),
            wal_bytes_per_lead: has_ledger.then_some((after.wal - before.wal) as f64 / leads as f64),
            first_post_ms: matches!(self.load, Load::Filled(_)).then_some(first_post.as_secs_f64() * 1e3),
            latency_ms,
            tenths,
        })
    }

    async fn read(&self, workers: &[Running], sandbox: &Running, ledger: &mut PgConnection) -> anyhow::Result<Reading> {
        let wal = sqlx::query_scalar("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetch_one(ledger).await?;
        Ok(Reading {
            workers: workers.iter().filter_map(|worker| measure::of(worker.pid())).collect(),
            postgres: self.servers.postgres_cpu(),
            rabbitmq: self.servers.rabbitmq_cpu(),
            sandbox: measure::of(sandbox.pid()),
            wal,
        })
    }

    /// Waits until all leads are through: the same for all while they are posted, and then for whoever has a ledger until that says so. Says
    /// how each tenth of them went.
    async fn until_through(
        &self,
        workers: &mut [Running],
        ledger: &mut PgConnection,
        api: &str,
        polls: &mut i64,
    ) -> anyhow::Result<Vec<Tenth>> {
        let (leads, began) = (self.leads(), Instant::now());
        let mut tenths = Vec::new();
        let (mut from, mut since) = (counted(api, "created").await?, Instant::now());
        let in_ledger = match self.who {
            Who::Bare => None,
            // What is removed meanwhile is delivered no longer; but nothing is posted that does not wait, so in the end none of these does.
            Who::Leadpost(_) => Some(("select coalesce(sum(pending), 0)::bigint from tallies", 0)),
            Who::Usual => Some(("select count(*) from usual where state = 'delivered'", leads)),
        };
        loop {
            let through = counted(api, "created").await?;
            if through >= leads || through >= leads / 10 * (tenths.len() as u64 + 1) {
                let anon = workers.iter().filter_map(|worker| measure::anon_mib(worker.pid())).fold(0.0, f64::max);
                let leads_per_s = (through - from) as f64 / since.elapsed().as_secs_f64();
                tenths.push(Tenth { leads_per_s, anon_mib: anon });
                (from, since) = (through, Instant::now());
            }
            if through >= leads {
                break;
            }
            ensure!(began.elapsed() < DEADLINE, "not all leads got through");
            for worker in &mut *workers {
                if let Some(status) = worker.0.try_wait()? {
                    bail!("a worker has ended by itself with {status}");
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        if let Some((sql, in_the_end)) = in_ledger {
            loop {
                *polls += 1;
                let n: i64 = sqlx::query_scalar(sql).fetch_one(&mut *ledger).await?;
                if u64::try_from(n) == Ok(in_the_end) {
                    break;
                }
                ensure!(began.elapsed() < DEADLINE, "not all leads were settled");
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(tenths)
    }

    fn worker(&self, name: &str, api: &str) -> anyhow::Result<Running> {
        let role = match self.who {
            Who::Leadpost(_) => {
                let most = self.in_flight();
                let least = if self.args.adaptive { 1 } else { most };
                return worker(self.leadpost, self.servers, name, api, (least, most), &self.args.log, self.set);
            }
            Who::Bare => None,
            Who::Usual => Some(self.servers.url_of(Some(name))?),
        };
        let role = Role {
            amqp_url: self.servers.amqp_url.clone(),
            queue: name.to_owned(),
            api: api.to_owned(),
            database_url: role,
            in_flight: self.in_flight(),
        };
        let mut command = Command::new(std::env::current_exe()?);
        Ok(Running(command.env(ROLE, serde_json::to_string(&role)?).spawn()?))
    }
}

/// A queue and a database of one's own.
pub struct Stage {
    pub name: String,
    pub channel: Channel,
    connection: Connection,
    admin: PgConnection,
}

impl Stage {
    pub async fn set(servers: &Servers) -> anyhow::Result<Self> {
        let name = format!("throughput_{}", Uuid::new_v4().simple());
        let mut admin = servers.connect(None).await?;
        execute(&mut admin, &format!("create database {name}")).await?;
        let connection = Connection::connect(&servers.amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.as_str().into(), durable, arguments).await?;
        Ok(Self { name, channel, connection, admin })
    }

    pub async fn strike(mut self) -> anyhow::Result<()> {
        self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default()).await?;
        execute(&mut self.admin, &format!("drop database {} with (force)", self.name)).await?;
        self.connection.close(200, "done".into()).await?;
        let log = std::env::temp_dir().join(format!("{}.log", self.name));
        if log.exists() {
            std::fs::remove_file(log)?;
        }
        Ok(())
    }
}

/// A sandbox with these options, and where it is.
pub fn sandbox(leadpost: &Path, options: &[&str]) -> anyhow::Result<(Running, String)> {
    let mut command = Command::new(leadpost);
    command.args(["sandbox", "--listen", "127.0.0.1:0", "--no-bodies"]).args(options).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let said = child.stderr.take().context("it has no stderr")?;
    let sandbox = Running(child);
    let mut url = None;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(said));
    for line in lines.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("control at ") {
            url = rest.split("/_sandbox").next().map(str::to_owned);
        }
        if line == "sandbox: ready" {
            break;
        }
    }
    // Whatever else it says is read, or it would wait for that.
    std::thread::spawn(move || lines.for_each(drop));
    Ok((sandbox, url.context("the sandbox does not say where it is")?))
}

/// A worker with at least and at most so many posts at a time.
pub fn worker(
    leadpost: &Path,
    servers: &Servers,
    name: &str,
    api: &str,
    posts: (usize, usize),
    log: &str,
    set: &[&str],
) -> anyhow::Result<Running> {
    worker_of(leadpost, servers, (name, name), api, posts, log, set)
}

/// The same, of a queue and a database with other names.
pub fn worker_of(
    leadpost: &Path,
    servers: &Servers,
    (queue, database): (&str, &str),
    api: &str,
    (least, most): (usize, usize),
    log: &str,
    set: &[&str],
) -> anyhow::Result<Running> {
    let mut command = Command::new(leadpost);
    command.args(["run", "--admin", "127.0.0.1:0", "--queue", queue, "--set", &format!("log.filter={log}")]);
    command.args(["--concurrency", &most.to_string(), "--set", &format!("flow.min_concurrency={least}")]);
    command.args(set.iter().flat_map(|set| ["--set", *set]));
    let variables = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("LEADPOST_"));
    command.env_clear().envs(variables);
    let (amqp_url, database_url) = (servers.amqp_url.clone(), servers.url_of(Some(database))?);
    match &servers.encrypted {
        None => command.env("AMQP_URL", amqp_url).env("DATABASE_URL", database_url),
        Some(encrypted) => command.envs(encrypted.of_worker(&database_url)?),
    };
    command.env("LEADPOST_CONFIG", "/dev/null");
    let mut lines = std::fs::File::options();
    let file = std::env::temp_dir().join(format!("{queue}.log"));
    command.stderr(lines.create(true).append(true).open(file)?);
    command.env("LEADPOST__DESTINATION__REQUEST__URL", format!("{api}/leads"));
    command.env("LEADPOST__DESTINATION__AUTH__TOKEN_URL", format!("{api}/oauth2/token"));
    command.env("LEADPOST__DESTINATION__AUTH__CLIENT_ID", "sandbox-client");
    command.env("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "sandbox-secret");
    Ok(Running(command.spawn()?))
}

pub async fn execute(connection: &mut PgConnection, sql: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await?;
    Ok(())
}

async fn commits(connection: &mut PgConnection) -> anyhow::Result<i64> {
    let sql = "select xact_commit from pg_stat_database where datname = current_database()";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
}

/// How many posts the sandbox has received.
async fn posts(api: &str) -> anyhow::Result<u64> {
    counted(api, "posts").await
}

/// What the sandbox has counted under this name.
pub async fn counted(api: &str, name: &str) -> anyhow::Result<u64> {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    // Of the one who measures; what it asks is counted.
    let client = CLIENT.get_or_init(|| {
        let builder = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
        builder.build().unwrap_or_default()
    });
    let summary = client.get(format!("{api}/_sandbox/journal/summary")).send().await?.bytes().await?;
    let summary: serde_json::Value = serde_json::from_slice(&summary)?;
    summary[name].as_u64().with_context(|| format!("the sandbox does not say how many {name}"))
}

/// A lead as it goes out as it came.
pub fn lead(n: u64) -> String {
    format!(
        r#"{{"name":"Ann","lastName":"Number {n}","email":"ann.{n}@example.com","phone":"+15550100","source":"Website","context":"Asked for a quote on the pricing page and would like to be called in the afternoon.","assistantId":61,"company":"Example Ltd"}}"#
    )
}

/// Publishes leads, at this rate or as fast as it goes. Says when each was handed to RabbitMQ, in seconds since 1970.
pub async fn publish(
    channel: &Channel,
    queue: &str,
    leads: std::ops::Range<u64>,
    per_s: Option<u64>,
) -> anyhow::Result<HashMap<Uuid, f64>> {
    let mut published = HashMap::new();
    let mut confirms = Vec::with_capacity(CONFIRMS);
    let start = tokio::time::Instant::now();
    let first = leads.start;
    for n in leads {
        if let Some(per_s) = per_s {
            tokio::time::sleep_until(start + Duration::from_secs_f64((n - first) as f64 / per_s as f64)).await;
        }
        let id = Uuid::new_v4();
        let body = lead(n);
        let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.to_string().into());
        if per_s.is_some() {
            published.insert(id, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
        }
        let confirm = channel
            .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body.as_bytes(), properties)
            .await?;
        confirms.push(confirm);
        // A stream does not wait: what is confirmed late would hold it up.
        if per_s.is_none() && confirms.len() == CONFIRMS {
            for confirm in confirms.drain(..) {
                confirm.await?;
            }
        }
    }
    for confirm in confirms {
        confirm.await?;
    }
    Ok(published)
}

/// Waits until these leads have ended.
pub async fn until_ended(ledger: &mut PgConnection, published: &HashMap<Uuid, f64>) -> anyhow::Result<()> {
    let ids: Vec<Uuid> = published.keys().copied().collect();
    let all = "select count(*) from leads where id = any($1) and state <> 'pending'";
    let deadline = Instant::now() + DEADLINE;
    loop {
        let n: i64 = sqlx::query_scalar(all).bind(&ids).fetch_one(&mut *ledger).await?;
        if usize::try_from(n)? == ids.len() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{n} of {} fresh leads were settled", ids.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// From when a lead was handed to RabbitMQ to when its end was written.
pub async fn latency_of(ledger: &mut PgConnection, published: &HashMap<Uuid, f64>) -> anyhow::Result<Latency> {
    let ids: Vec<Uuid> = published.keys().copied().collect();
    let rows: Vec<(Uuid, f64)> =
        sqlx::query_as("select id, extract(epoch from finished_at)::float8 from leads where id = any($1)")
            .bind(ids)
            .fetch_all(ledger)
            .await?;
    let mut latencies: Vec<f64> =
        rows.iter().filter_map(|(id, finished)| Some((finished - published.get(id)?) * 1e3)).collect();
    ensure!(latencies.len() == published.len(), "{} leads of {}", latencies.len(), published.len());
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    Ok(Latency { p50: at(0.5), p95: at(0.95), p99: at(0.99), most: at(1.0) })
}
