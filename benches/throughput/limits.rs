//! Does the worker find out how much an API can take? Compared with the best of several fixed numbers of posts under way.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::scene::{Stage, counted, publish, sandbox, worker};
use crate::servers::Servers;

/// From when on, and until when, leads per second are counted.
const FROM: Duration = Duration::from_secs(30);
const UNTIL: Duration = Duration::from_secs(60);

/// A fixed number needs no time to find out.
const FIXED_FROM: Duration = Duration::from_secs(4);
const FIXED_UNTIL: Duration = Duration::from_secs(12);

/// An API with limits of its own.
struct Api {
    name: &'static str,
    options: &'static [&'static str],
    /// What of it changes after so long.
    change: Option<(Duration, &'static str)>,
    /// The most leads per second, to know how many are needed.
    most_per_s: u64,
    fixed: &'static [usize],
}

const APIS: [Api; 6] = [
    Api {
        name: "100 ms, no limit",
        options: &["--latency-ms", "100"],
        change: None,
        most_per_s: 10_000,
        fixed: &[1000],
    },
    Api {
        name: "100 ms, 429 above 100 at once",
        options: &["--latency-ms", "100", "--capacity", "100", "--retry-after-s", "0"],
        change: None,
        most_per_s: 1_000,
        fixed: &[50, 100, 200],
    },
    Api {
        name: "the same, with Retry-After: 1",
        options: &["--latency-ms", "100", "--capacity", "100"],
        change: None,
        most_per_s: 1_000,
        fixed: &[50, 100, 200],
    },
    Api {
        name: "50 ms, slower above 50 at once",
        options: &["--latency-ms", "50", "--slow-above", "50"],
        change: None,
        most_per_s: 1_000,
        fixed: &[25, 50, 100, 200],
    },
    Api {
        name: "100 ms, 429 above 100, then above 300 at once",
        options: &["--latency-ms", "100", "--capacity", "100", "--retry-after-s", "0"],
        change: Some((Duration::from_secs(20), r#"{"capacity":300}"#)),
        most_per_s: 3_000,
        fixed: &[300],
    },
    Api {
        name: "100 ms, 429 above 300, then above 100 at once",
        options: &["--latency-ms", "100", "--capacity", "300", "--retry-after-s", "0"],
        change: Some((Duration::from_secs(20), r#"{"capacity":100}"#)),
        most_per_s: 3_000,
        fixed: &[100],
    },
];

/// Prints a row for each API.
pub async fn compare(leadpost: &Path, servers: &Servers, ceiling: usize, text: &str) -> anyhow::Result<()> {
    println!(
        "| API | adaptive, leads/s | of them refused | posts under way | best fixed number, leads/s | adaptive / best |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    for api in APIS.iter().filter(|api| api.name.contains(text)) {
        let adaptive = run(leadpost, servers, api, (1, ceiling), api.change, (FROM, UNTIL)).await.context(api.name)?;
        let mut best = (0, 0.0);
        for &fixed in api.fixed {
            // The limits as they are in the end.
            let change = api.change.map(|(_, change)| (Duration::ZERO, change));
            let run = run(leadpost, servers, api, (fixed, fixed), change, (FIXED_FROM, FIXED_UNTIL))
                .await
                .context(api.name)?;
            eprintln!(
                "throughput: {}: fixed at {fixed}: {:.0} leads/s, {:.1} % refused",
                api.name,
                run.per_s,
                run.refused * 100.0
            );
            if run.per_s > best.1 {
                best = (fixed, run.per_s);
            }
        }
        let row = format!(
            "| {} | {:.0} | {:.2} % | {} to {} | {:.0} (at {}) | {:.2} |",
            api.name,
            adaptive.per_s,
            adaptive.refused * 100.0,
            adaptive.least,
            adaptive.most,
            best.1,
            best.0,
            adaptive.per_s / best.1
        );
        eprintln!("throughput: {row}");
        println!("{row}");
    }
    Ok(())
}

struct Measured {
    per_s: f64,
    /// The share of posts that were refused.
    refused: f64,
    /// Posts under way, at the times at which that was looked at.
    least: u64,
    most: u64,
}

async fn run(
    leadpost: &Path,
    servers: &Servers,
    api: &Api,
    posts: (usize, usize),
    mut change: Option<(Duration, &str)>,
    (from, until): (Duration, Duration),
) -> anyhow::Result<Measured> {
    let stage = Stage::set(servers).await?;
    publish(&stage.channel, &stage.name, 0..api.most_per_s * (until.as_secs() + 3), None).await?;
    let (_sandbox, url) = sandbox(leadpost, api.options)?;
    let mut worker = worker(leadpost, servers, &stage.name, &url, posts, "warn", &[])?;
    while counted(&url, "posts").await? == 0 {
        ensure!(worker.is_running()?, "the worker has ended by itself");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    let mut first = None;
    let (mut least, mut most) = (u64::MAX, 0);
    while began.elapsed() < until {
        if let Some((after, patch)) = change.filter(|(after, _)| began.elapsed() >= *after) {
            reqwest::Client::new()
                .patch(format!("{url}/_sandbox/settings"))
                .body(patch.to_owned())
                .send()
                .await?
                .error_for_status()?;
            change = None;
            eprintln!("throughput: {}: changed after {after:?}", api.name);
        }
        if began.elapsed() >= from {
            if first.is_none() {
                first = Some((Instant::now(), counted(&url, "created").await?, counted(&url, "posts").await?));
            }
            let under_way = counted(&url, "in_flight").await?;
            (least, most) = (least.min(under_way), most.max(under_way));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (since, created, posted) = first.context("too short")?;
    let created = counted(&url, "created").await? - created;
    let posted = counted(&url, "posts").await? - posted;
    let took = since.elapsed().as_secs_f64();
    worker.stop()?;
    stage.strike().await?;
    Ok(Measured {
        per_s: created as f64 / took,
        refused: posted.saturating_sub(created) as f64 / posted.max(1) as f64,
        least,
        most,
    })
}
