//! `leadpost run`: the worker.

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{Exit, stack};
use crate::config::{ConfigError, Source};
use crate::lifecycle::Shutdown;
use crate::traces::Traces;
use crate::worker::{Stopped, Worker};
use crate::{admin, telemetry};

/// Run the worker until it is told to stop
///
/// SIGTERM or Ctrl-C: takes nothing new, finishes what is under way, settles it, and exits with 0. A second signal, or
/// the end of shutdown.grace_ms, stops it at once with exit code 3; leads whose posts were cut off count as perhaps posted.
///
/// Example: AMQP_URL=amqp://… DATABASE_URL=postgres://… leadpost run --queue leads
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Queue to consume (amqp.queue)
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    /// Posts under way at a time at most (flow.concurrency)
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,

    /// Address of the admin port (admin.listen); "" for none
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
}

pub(super) async fn run(args: RunArgs, source: &Source) -> anyhow::Result<Exit> {
    let mut source = source.clone();
    let flags = [
        ("amqp.queue", args.queue),
        ("flow.concurrency", args.concurrency.map(|n| n.to_string())),
        ("admin.listen", args.admin),
    ];
    source.flags.extend(flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let settings = source.load()?;
    telemetry::init(&settings.log).map_err(|problem| ConfigError(vec![problem]))?;
    if !stack::is_deep() {
        tracing::warn!(
            "threads have shallow stacks: a message with deeply nested headers can end the process; see RUST_MIN_STACK in the README"
        );
    }
    let shutdown = Shutdown::on_signals().context("cannot listen to signals")?;

    let name = worker_name();
    let migrate = settings.postgres.migrate;
    let traces = Traces::of_environment(&source.env, &name).map_err(|problem| ConfigError(vec![problem]))?;
    if traces.is_on() {
        tracing::info!("spans are exported");
    }
    let admin = settings.admin.clone();
    let worker = Worker::new(settings, &name, traces)?;
    tracing::info!(worker = name, version = env!("CARGO_PKG_VERSION"), "starting");
    // The admin port first: while Postgres is waited for, it says so.
    let admin_stop = CancellationToken::new();
    if let Ok(listen) = admin.listen.parse() {
        let access = admin::Access::of(&admin, listen);
        let address = admin::serve(listen, worker.health(), worker.metrics(), access.clone(), admin_stop.clone())
            .await
            .map_err(|error| {
                let hint = "set admin.listen (--admin) to an address of this machine that is free, or to \"\" for none";
                ConfigError(vec![format!("cannot listen on admin.listen = {listen}: {error}; {hint}")])
            })?;
        tracing::info!(%address, "admin port");
        if matches!(access, admin::Access::Nobody) {
            tracing::warn!(
                "the admin port gives no metrics and no details: it listens beyond loopback, and admin.token is not set"
            );
        }
    }
    let stopped = match worker.prepare(migrate, &shutdown).await? {
        true => worker.run(shutdown).await?,
        false => Stopped::Cleanly,
    };
    admin_stop.cancel();
    match stopped {
        Stopped::Cleanly => {
            tracing::info!("stopped");
            Ok(Exit::Done)
        }
        Stopped::InAHurry => {
            tracing::warn!(
                "stopped before everything was settled; leases of the rest will run out and count as uncertain"
            );
            Ok(Exit::InAHurry)
        }
        Stopped::Broken => Ok(Exit::Broken),
    }
}

/// A name that tells workers apart, also two of one machine and two of one process id in two containers.
fn worker_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "worker" } else { host };
    format!("{host}-{}-{:04x}", std::process::id(), fastrand::u16(..))
}
