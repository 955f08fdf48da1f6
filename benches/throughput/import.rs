//! Does one assistant's import hold up everybody else's leads? In one queue with them, and in a queue of its own with a worker of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::Args;
use crate::scene::{DELIVERED, Stage, counted, latency_of, publish, sandbox, until_ended, worker_of};
use crate::servers::Servers;

/// Posts under way, of all workers together.
const IN_FLIGHT: usize = 64;

const OTHERS_PER_S: u64 = 50;
const OTHERS_S: u64 = 10;

/// Nothing takes longer.
const DEADLINE: Duration = Duration::from_secs(600);

/// Prints a line for either way.
pub async fn compare(leadpost: &Path, servers: &Servers, args: &Args, leads: u64) -> anyhow::Result<()> {
    println!(
        "| an import of {leads} leads, API 20 ms, {IN_FLIGHT} posts at a time | others' leads ({OTHERS_PER_S}/s), p50 / p99 / most | all leads |"
    );
    println!("|---|---:|---:|");
    for apart in [false, true] {
        let (stage, import) = (Stage::set(servers).await?, Stage::set(servers).await?);
        let measured = measure(leadpost, servers, args, leads, &stage, apart.then_some(&import)).await;
        stage.strike().await?;
        import.strike().await?;
        measured?;
    }
    Ok(())
}

async fn measure(
    leadpost: &Path,
    servers: &Servers,
    args: &Args,
    leads: u64,
    stage: &Stage,
    import: Option<&Stage>,
) -> anyhow::Result<()> {
    let queue = import.unwrap_or(stage);
    publish(&queue.channel, &queue.name, 0..leads, None).await?;
    let mut ledger = servers.connect(Some(&stage.name)).await?;
    let (_sandbox, api) = sandbox(leadpost, &["--latency-ms", "20"])?;
    let began = Instant::now();
    let queues: Vec<&str> = [Some(stage), import].into_iter().flatten().map(|stage| stage.name.as_str()).collect();
    let each = IN_FLIGHT / queues.len();
    let mut workers = queues
        .iter()
        .map(|queue| worker_of(leadpost, servers, (queue, &stage.name), &api, (each, each), &args.log, &[]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // Until the import is under way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let others = OTHERS_PER_S * OTHERS_S;
    let published = publish(&stage.channel, &stage.name, leads..leads + others, Some(OTHERS_PER_S)).await?;
    ensure!(
        counted(&api, "created").await? < leads,
        "the import was over before the last of the others' leads came: take a larger one"
    );
    until_ended(&mut ledger, &published).await?;
    let all = i64::try_from(leads + others)?;
    while sqlx::query_scalar::<_, i64>(DELIVERED).fetch_one(&mut ledger).await? < all {
        ensure!(began.elapsed() < DEADLINE, "the import did not get through");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let per_s = all as f64 / began.elapsed().as_secs_f64();
    workers.iter_mut().try_for_each(crate::scene::Running::stop)?;
    let latency = latency_of(&mut ledger, &published).await?;
    println!(
        "| {} | {:.0} / {:.0} / {:.0} ms | {per_s:.0}/s |",
        if import.is_some() { "in a queue of its own, with a worker of its own" } else { "in the queue of all others" },
        latency.p50,
        latency.p99,
        latency.most
    );
    Ok(())
}
