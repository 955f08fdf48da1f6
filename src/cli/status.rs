//! `leadpost status`: where leads are.

use super::{Exit, Output, ago, ledger, print, print_json};
use crate::broker::{BrokerError, queue_depth};
use crate::config::Source;
use crate::ledger::LeadState;

/// Show where leads are: counts by state, what waits and why, who works
///
/// Without RabbitMQ it says so in the queue's place, and shows the ledger all the same, with exit code 0.
///
/// Example: DATABASE_URL=postgres://… leadpost status --output json
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) async fn run(args: StatusArgs, source: &Source) -> anyhow::Result<Exit> {
    let settings = source.read()?;
    let ledger = ledger(&settings, "status")?;
    ledger.check_schema().await?;
    let status = ledger.status().await?;
    let workers = ledger.workers().await?;
    // The ledger's numbers are worth printing without the queue's.
    let queue = if settings.amqp.url.is_set() {
        match queue_depth(&settings.amqp).await {
            Ok(ready) => Ok(ready),
            // Nobody can mend that by waiting.
            Err(error @ (BrokerError::Url(_) | BrokerError::Tls(_))) => return Err(error.into()),
            Err(error) => Err(error.to_string()),
        }
    } else {
        Err("amqp.url is not set".to_owned())
    };

    if args.output == Output::Json {
        print_json(&serde_json::json!({
            "ledger": status,
            "queue": { "name": settings.amqp.queue, "ready": queue.as_ref().ok(), "problem": queue.as_ref().err() },
            "workers": workers,
        }))?;
        return Ok(Exit::Done);
    }
    print(&format!("destination {}   accepted {}", status.destination, status.accepted))?;
    for state in LeadState::ALL {
        print(&format!("  {state:<10} {:>10}", status.states.get(&state).copied().unwrap_or(0)))?;
    }
    let waiting = &status.waiting;
    if status.states.get(&LeadState::Pending).copied().unwrap_or(0) > 0 {
        print(&format!("waiting: {} being posted, {} due, {} due later", waiting.leased, waiting.due, waiting.later))?;
        if let Some(oldest) = waiting.oldest_due_s {
            print(&format!("  the longest has been due for {}", ago(oldest)))?;
        }
        if let Some(next) = waiting.next_due_s {
            print(&format!("  the next becomes due in {}", ago(next)))?;
        }
        let reasons: Vec<String> =
            waiting.reasons.iter().filter(|(code, _)| code != "none").map(|(code, n)| format!("{code} {n}")).collect();
        if !reasons.is_empty() {
            print(&format!("  after: {}", reasons.join(", ")))?;
        }
    }
    if status.aside > 0 {
        print(&format!(
            "warning: {} messages are set aside: somebody has locked their leads in Postgres, or it refuses them",
            status.aside
        ))?;
    }
    if status.warnings > 0 {
        print(&format!("warning: {} delivered leads which the API may not be working", status.warnings))?;
    }
    match queue {
        Ok(ready) => print(&format!("queue {}: {ready} messages ready", settings.amqp.queue))?,
        Err(problem) => print(&format!("queue {}: {problem}", settings.amqp.queue))?,
    }
    let alive: Vec<_> = workers.iter().filter(|worker| worker.is_alive()).collect();
    print(&format!("workers: {} alive", alive.len()))?;
    for worker in alive {
        let said = |key: &str| worker.status.get(key).filter(|value| !value.is_null()).map(ToString::to_string);
        let circuit = worker.status.get("circuit").and_then(|value| value.as_str()).unwrap_or("unknown");
        let cause = worker.status.get("cause").and_then(|value| value.as_str()).map(|cause| format!(" ({cause})"));
        print(&format!(
            "  {} v{}: circuit {circuit}{}, {} of {} posts under way, seen {} ago",
            worker.id,
            worker.version,
            cause.unwrap_or_default(),
            said("posting").unwrap_or_default(),
            said("concurrency").unwrap_or_default(),
            ago(worker.seen_s)
        ))?;
    }
    Ok(Exit::Done)
}
