//! `leadpost hold`: for how long the API asked to be left alone, and what a person decides about that.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::audit::masked;
use super::{Exit, Output, ago, is_confirmed, ledger, moment, print, print_json, say, who};
use crate::config::Source;
use crate::ledger::{HOLD_LIFT, Hold, Ledger, Lifted};

/// How long workers are waited for until they know of it. They look every five seconds.
const WORKERS_KNOW: Duration = Duration::from_secs(15);

/// Between two looks whether they do.
const LOOK: Duration = Duration::from_millis(200);

/// See or end a hold: the time for which the API asked to be left alone (Retry-After)
#[derive(Debug, Subcommand)]
pub(super) enum HoldCommand {
    Show(ShowArgs),
    Lift(LiftArgs),
}

/// Show until when the API asked to be left alone, how many leads wait for that, and who lifted a hold last
///
/// Example: leadpost hold show
#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// End a hold before its time: the API is asked at once again
///
/// Leads that wait for its end become due. Workers that run learn of it within seconds, and it waits until they have. If the API asks again
/// to be left alone, that is another hold, and holds. Asks first, or needs --yes where nobody can be asked. Exit code 1 if the API has asked again
/// before you have answered: look at that first. What the token endpoint asked for is each worker's own, and forgotten when that is started
/// anew.
///
/// Example: leadpost hold lift --reason 'the API says that it is back'
#[derive(Debug, clap::Args)]
pub(super) struct LiftArgs {
    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What lifting came to, for scripts.
#[derive(Debug, Default, serde::Serialize)]
struct Report {
    /// Whether a hold was lifted.
    lifted: bool,
    /// When it would have ended; or, where nothing was lifted, when the one ends that is there.
    #[serde(with = "time::serde::rfc3339::option")]
    held_until: Option<OffsetDateTime>,
    /// How many leads that waited for its end became due.
    leads: u64,
    /// How many workers know of it.
    workers_know: usize,
    /// How many were not heard of since.
    workers_silent: usize,
}

pub(super) async fn run(command: HoldCommand, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "hold")?;
    ledger.check_schema().await?;
    match command {
        HoldCommand::Show(args) => show(&args, &ledger).await,
        HoldCommand::Lift(args) => lift(args, &ledger).await,
    }
}

async fn show(args: &ShowArgs, ledger: &Ledger) -> anyhow::Result<Exit> {
    let held = ledger.held().await?;
    let last = ledger.audit(Some(HOLD_LIFT), 1).await?.pop().map(masked);
    if args.output == Output::Json {
        let destination = ledger.destination();
        print_json(
            &json!({ "destination": destination, "hold": held.hold, "waiting": held.waiting, "lifted_last": last }),
        )?;
        return Ok(Exit::Done);
    }
    match &held.hold {
        Some(hold) => print(&format!("{} asked to be left alone {}", ledger.destination(), words(hold)))?,
        None => print(&format!("{}: no hold", ledger.destination()))?,
    }
    if held.waiting > 0 {
        print(&format!("  {} for the end of a hold; leadpost hold lift makes them due", wait(held.waiting)))?;
    }
    if let Some(last) = last {
        let why = last.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let until = last.until.map(|until| format!("; it would have ended {}", moment(until))).unwrap_or_default();
        print(&format!("  lifted last {} by {}{why}{until}", moment(last.at), last.by))?;
    }
    Ok(Exit::Done)
}

async fn lift(args: LiftArgs, ledger: &Ledger) -> anyhow::Result<Exit> {
    let held = ledger.held().await?;
    let report = match (held.hold, held.waiting) {
        (None, 0) => Report::default(),
        (hold, waiting) => {
            let what = match &hold {
                Some(hold) => format!("{} asked to be left alone {}", ledger.destination(), words(hold)),
                None => "there is no hold any more".to_owned(),
            };
            let for_that = if waiting > 0 { format!("; {} for that", wait(waiting)) } else { String::new() };
            let question = format!("{what}{for_that}. It would be asked again at once");
            if !args.yes && !is_confirmed(&question)? {
                say("nothing was done");
                return Ok(Exit::No);
            }
            match ledger.lift(hold.map(|hold| hold.until), &who(), args.reason.as_deref()).await? {
                Lifted::Done(id) => lifted(id, hold, ledger).await?,
                Lifted::Younger(hold) => {
                    let younger = Report { held_until: Some(hold.until), ..Report::default() };
                    return tell(&younger, args.output, || {
                        format!("meanwhile it asked again, and now to be left alone {}; nothing was lifted. Look at it again", words(&hold))
                    })
                    .map(|()| Exit::No);
                }
            }
        }
    };
    tell(&report, args.output, || sentence(&report))?;
    Ok(Exit::Done)
}

fn tell(report: &Report, output: Output, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    match output {
        Output::Json => print_json(report),
        Output::Text => {
            say(&text());
            Ok(())
        }
    }
}

/// What is left to be done when the hold is gone.
async fn lifted(id: i64, hold: Option<Hold>, ledger: &Ledger) -> anyhow::Result<Report> {
    let since = Instant::now();
    let mut report = Report { lifted: hold.is_some(), held_until: hold.map(|hold| hold.until), ..Report::default() };
    report.leads += hasten(id, ledger).await?;
    loop {
        let workers = ledger.workers().await?;
        let elapsed = since.elapsed();
        let knows = |seen_s: f64| seen_s < elapsed.as_secs_f64();
        let alive: Vec<bool> =
            workers.iter().filter(|worker| worker.is_alive()).map(|worker| knows(worker.seen_s)).collect();
        report.workers_know = alive.iter().filter(|knows| **knows).count();
        report.workers_silent = alive.len() - report.workers_know;
        if report.workers_silent == 0 || elapsed > WORKERS_KNOW {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    // Before they knew, they may have handed leads back until then.
    report.leads += hasten(id, ledger).await?;
    Ok(report)
}

async fn hasten(id: i64, ledger: &Ledger) -> anyhow::Result<u64> {
    let (mut leads, mut after) = (0, None);
    loop {
        let hastened = ledger.hasten(id, after).await?;
        leads += hastened.leads;
        after = hastened.after;
        if after.is_none() {
            return Ok(leads);
        }
    }
}

/// Until when, and for how long.
fn words(hold: &Hold) -> String {
    format!("until {}, {} from now", moment(hold.until), ago(hold.for_s))
}

fn wait(leads: i64) -> String {
    match leads {
        1 => "1 lead waits".to_owned(),
        n => format!("{n} leads wait"),
    }
}

fn sentence(report: &Report) -> String {
    let due = match report.leads {
        0 => String::new(),
        1 => "; 1 lead that waited for its end is due".to_owned(),
        n => format!("; {n} leads that waited for its end are due"),
    };
    let workers = match (report.workers_know, report.workers_silent) {
        (0, 0) => "; no worker is alive".to_owned(),
        (know, 0) => format!("; all workers know of it ({know})"),
        (know, silent) => format!(
            "; {know} workers know of it, and {silent} were not heard of since: they learn of it by their next heartbeat"
        ),
    };
    match report.held_until {
        Some(_) => format!("the hold is lifted{due}{workers}"),
        None if report.leads > 0 => format!("there was no hold{due}"),
        None => "there is no hold".to_owned(),
    }
}
