//! The table, and the same as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::measure;
use crate::scene::Who;
use crate::servers::Servers;

/// From so many leads on, their tenths are printed.
const MANY: u64 = 500_000;

/// What one run came to.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub who: Who,
    /// Whether all three connections are encrypted.
    pub tls: bool,
    pub delay_ms: u64,
    /// `filled`, or leads per second of the stream.
    pub load: String,
    pub leads: u64,
    pub leads_per_s: f64,
    /// Processor time per lead, in microseconds; of workers all together. `None` where a process is not ours to see.
    pub worker_us: Option<f64>,
    pub postgres_us: Option<f64>,
    pub rabbitmq_us: Option<f64>,
    pub sandbox_us: Option<f64>,
    /// Of the largest worker.
    pub peak_mib: Option<f64>,
    pub commits_per_lead: Option<f64>,
    pub wal_bytes_per_lead: Option<f64>,
    /// From the worker's start to its first post.
    pub first_post_ms: Option<f64>,
    /// From the publisher's write to the settlement's, in milliseconds; of a stream.
    pub latency_ms: Option<Latency>,
    /// In the order in which they went.
    pub tenths: Vec<Tenth>,
}

/// How a tenth of the leads went.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Tenth {
    pub leads_per_s: f64,
    /// At its end, of the largest worker, without its program.
    pub anon_mib: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub most: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    machine: String,
    servers: String,
    rows: Vec<Row>,
}

impl Report {
    pub async fn new(servers: &Servers) -> anyhow::Result<Self> {
        let mut connection = servers.connect(None).await?;
        let version: String =
            sqlx::query_scalar("select current_setting('server_version')").fetch_one(&mut connection).await?;
        let durable: String =
            sqlx::query_scalar("select current_setting('fsync') || '/' || current_setting('synchronous_commit')")
                .fetch_one(&mut connection)
                .await?;
        let servers = format!("Postgres {version} (fsync/synchronous_commit {durable})");
        Ok(Self { machine: measure::machine(), servers, rows: Vec::new() })
    }

    pub fn add(&mut self, row: Row) {
        eprintln!("throughput: {}", line(&row));
        self.rows.push(row);
    }

    pub fn print(&self) {
        println!("{}, {}\n", self.machine, self.servers);
        println!(
            "| API | who | load | leads/s | worker CPU | Postgres CPU | RabbitMQ CPU | API CPU | peak memory | commits | WAL | first post | p50 / p95 / p99 |"
        );
        println!("|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
        for row in self.medians() {
            println!("{}", line(&row));
        }
        println!("\nCPU, commits and WAL bytes are per lead.");
        self.print_tenths();
        self.print_ratios();
    }

    /// Of several runs of a kind, the one in the middle by rate.
    fn medians(&self) -> Vec<Row> {
        let mut kinds: BTreeMap<(bool, u64, Who, String, bool), Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            let kind = (row.load != "filled", row.delay_ms, row.who, row.load.clone(), row.tls);
            kinds.entry(kind).or_default().push(row);
        }
        kinds
            .into_values()
            .map(|mut rows| {
                rows.sort_by(|a, b| a.leads_per_s.total_cmp(&b.leads_per_s));
                rows[rows.len() / 2].clone()
            })
            .collect()
    }

    /// Whether many leads go as few do.
    fn print_tenths(&self) {
        for row in self.rows.iter().filter(|row| row.leads >= MANY) {
            let list = |of: fn(&Tenth) -> f64| {
                row.tenths.iter().map(|tenth| format!("{:.0}", of(tenth))).collect::<Vec<_>>().join(" ")
            };
            println!(
                "{} ms, {}, {} leads by tenths: {} leads/s; memory without the program {} MiB",
                row.delay_ms,
                row.who,
                row.leads,
                list(|tenth| tenth.leads_per_s),
                list(|tenth| tenth.anon_mib)
            );
        }
    }

    fn print_ratios(&self) {
        let rows = self.medians();
        for ours in rows.iter().filter(|row| row.tls) {
            let is_same =
                |row: &&Row| !row.tls && (row.who, row.delay_ms, &row.load) == (ours.who, ours.delay_ms, &ours.load);
            if let Some(plain) = rows.iter().find(is_same) {
                println!(
                    "API {} ms, TLS on all three connections against none: {:.2} times the leads/s, {:.2} of the worker's CPU",
                    ours.delay_ms,
                    ours.leads_per_s / plain.leads_per_s,
                    ours.worker_us.unwrap_or(0.0) / plain.worker_us.unwrap_or(f64::NAN),
                );
            }
        }
        let of = |who, delay_ms| {
            rows.iter().find(|row| row.who == who && row.delay_ms == delay_ms && row.load == "filled" && !row.tls)
        };
        for delay_ms in [0, 100] {
            let Some(ours) = of(Who::Leadpost(1), delay_ms) else { continue };
            for (other, name) in [(Who::Bare, "bare loop"), (Who::Usual, "usual worker")] {
                let Some(theirs) = of(other, delay_ms) else { continue };
                let share = |a: Option<f64>, b: Option<f64>| {
                    a.zip(b).map_or_else(|| "-".to_owned(), |(a, b)| format!("{:.2}", a / b))
                };
                println!(
                    "API {delay_ms} ms, against the {name}: {:.2} times its leads/s, {} of its CPU, {} of its Postgres CPU",
                    ours.leads_per_s / theirs.leads_per_s,
                    share(ours.worker_us, theirs.worker_us),
                    share(ours.postgres_us, theirs.postgres_us),
                );
            }
        }
    }

    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(file, serde_json::to_vec_pretty(self)?)?)
    }
}

fn line(row: &Row) -> String {
    let number = |value: Option<f64>, unit: &str, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}{unit}"))
    };
    let latency =
        row.latency_ms.map_or_else(|| "-".to_owned(), |l| format!("{:.1} / {:.1} / {:.1} ms", l.p50, l.p95, l.p99));
    format!(
        "| {} ms | {}{} | {} | {:.0} | {} | {} | {} | {} | {} | {} | {} | {} | {latency} |",
        row.delay_ms,
        row.who,
        if row.tls { ", TLS" } else { "" },
        row.load,
        row.leads_per_s,
        number(row.worker_us, " us", 0),
        number(row.postgres_us, " us", 0),
        number(row.rabbitmq_us, " us", 0),
        number(row.sandbox_us, " us", 0),
        number(row.peak_mib, " MiB", 0),
        number(row.commits_per_lead, "", 3),
        number(row.wal_bytes_per_lead, "", 0),
        number(row.first_post_ms, " ms", 0),
    )
}
