//! The throughput run: leads through the real worker, end to end, and two loops beside it for the ratios.
//!
//! ```text
//!   this process ──publish──> RabbitMQ ──> leadpost run ──> leadpost sandbox
//!        │                                      │
//!        └── reads /proc, pg_stat_*, the sandbox's journal; prints a table, writes JSON
//! ```
//!
//! # Rules
//! - Everything is a process of its own, so that each one's CPU time and memory are the kernel's figures, not guesses.
//! - The worker is built by itself: what `cargo bench` links may have fault points in it.
//! - The two loops run here, in a process of their own, with the same crates, the same queue and the same sandbox.
//! - What is compared is measured in one run: absolute figures of different days say little.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what it is for")]

mod import;
mod large;
mod limits;
mod loops;
mod measure;
mod plans;
mod report;
mod scene;
mod servers;
mod tls;
mod variants;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

use report::Report;
use scene::{Load, Scene, Who};
use servers::Servers;

/// Leads end to end, per second and per lead
///
/// Starts RabbitMQ and Postgres as scripts/services does, publishes leads, runs the worker (built in release mode) against a sandbox, and
/// prints a table on stdout; with --json, the same as JSON in a file. Nothing else should run on the machine.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench throughput --")]
struct Args {
    /// Leads of a run; fewer where an API takes long
    #[arg(long, default_value_t = 100_000)]
    leads: u64,

    /// How long the API takes, in milliseconds
    #[arg(long, value_delimiter = ',', default_value = "0,20,100,500")]
    delays: Vec<u64>,

    /// How many workers share the queue
    #[arg(long, value_delimiter = ',', default_value = "1,3")]
    workers: Vec<usize>,

    /// Posts under way at a time, where the API takes its time; 64 where it does not
    #[arg(long, default_value_t = 1_000)]
    concurrency: usize,

    /// Let the worker find out how many (flow.min_concurrency = 1); otherwise the number is fixed
    #[arg(long)]
    adaptive: bool,

    /// Leads per second of the steady stream, of which latencies are measured; 0: no stream
    #[arg(long, default_value_t = 1_000)]
    stream: u64,

    /// For how many seconds it flows
    #[arg(long, default_value_t = 15)]
    stream_seconds: u64,

    /// Compare, instead, what the worker finds out of an API's capacity with the best fixed number: 11 minutes; or only at APIs whose name
    /// has this text in it
    #[arg(long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "")]
    limits: Option<String>,

    /// Fill a ledger with so many leads, instead, and compare it with an empty one: a quarter of an hour and 12 GiB for ten million
    #[arg(long, value_name = "LEADS")]
    ledger: Option<u64>,

    /// Have, instead, one assistant import so many leads, and compare what others wait for in the same queue and in another
    #[arg(long, value_name = "LEADS")]
    import: Option<u64>,

    /// Compare, instead, plain connections with TLS on all three, on servers of their own
    #[arg(long)]
    tls: bool,

    /// What workers say (log.filter); it goes to a file
    #[arg(long, default_value = "info")]
    log: String,

    /// Compare, instead, what choices in the ledger's tables cost a lead
    #[arg(long)]
    variants: bool,

    /// Leave out the two loops that the worker is compared with
    #[arg(long)]
    alone: bool,

    /// A leadpost to measure, instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Runs of each kind, in turn; the median is printed
    #[arg(long, default_value_t = 1)]
    runs: usize,

    /// Where to write JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// As `cargo bench` passes it, and `cargo test --benches` does not
    #[arg(long, hide = true)]
    bench: bool,

    /// As `cargo bench NAME` passes it, to all benches
    #[arg(hide = true)]
    name: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    if let Some(role) = std::env::var_os(loops::ROLE) {
        return loops::play(&role.to_string_lossy());
    }
    let args = Args::parse();
    if !args.bench || args.name.iter().any(|name| !"throughput".contains(name.as_str())) {
        return Ok(());
    }
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let leadpost = args.program.clone().map_or_else(servers::build, Ok)?;
    if args.tls {
        return tls::compare(&leadpost, &args).await;
    }
    let servers = Servers::up(None).await?;
    if let Some(text) = &args.limits {
        limits::compare(&leadpost, &servers, args.concurrency, text).await?;
        servers.down();
        return Ok(());
    }
    if args.variants {
        variants::compare(&servers, args.leads).await?;
        servers.down();
        return Ok(());
    }
    if let Some(leads) = args.import {
        import::compare(&leadpost, &servers, &args, leads).await?;
        servers.down();
        return Ok(());
    }
    if let Some(leads) = args.ledger {
        large::compare(&leadpost, &servers, &args, leads).await?;
        servers.down();
        return Ok(());
    }
    let mut report = Report::new(&servers).await?;
    for &delay in &args.delays {
        let delay = Duration::from_millis(delay);
        let leads = leads_at(args.leads, delay, args.concurrency);
        let mut who: Vec<Who> = args.workers.iter().map(|n| Who::Leadpost(*n)).collect();
        if !args.alone && (delay.is_zero() || delay == Duration::from_millis(100)) {
            who.extend([Who::Bare, Who::Usual]);
        }
        // In turn: how fast the machine is changes from one minute to the next.
        for _ in 0..args.runs {
            for &who in &who {
                let scene = Scene {
                    leadpost: &leadpost,
                    servers: &servers,
                    args: &args,
                    who,
                    delay,
                    load: Load::Filled(leads),
                    set: &[],
                };
                report.add(scene.play().await.with_context(|| scene.name())?);
            }
        }
    }
    if args.stream > 0 {
        for delay in [0, 20] {
            let load = Load::Stream { per_s: args.stream, seconds: args.stream_seconds };
            let delay = Duration::from_millis(delay);
            let scene = Scene {
                leadpost: &leadpost,
                servers: &servers,
                args: &args,
                who: Who::Leadpost(1),
                delay,
                load,
                set: &[],
            };
            report.add(scene.play().await.with_context(|| scene.name())?);
        }
    }
    report.print();
    if let Some(file) = &args.json {
        report.write(file)?;
    }
    servers.down();
    Ok(())
}

/// Enough for some ten seconds at least, also where so many at a time are all that is possible.
fn leads_at(leads: u64, delay: Duration, concurrency: usize) -> u64 {
    if delay.is_zero() {
        return leads;
    }
    let most_per_s = concurrency as f64 / delay.as_secs_f64();
    leads.min((most_per_s * 10.0) as u64)
}
