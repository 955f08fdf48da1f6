//! `leadpost erase`, `export` and `redact`: what a person may ask of those who keep their data.

use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

use super::filter::duration;
use super::{Exit, Output, ledger, print, print_json, say, who};
use crate::config::Source;
use crate::ledger::{Erased, Subject};

/// How long leads that are being posted are waited for.
const POSTS_END: Duration = Duration::from_secs(30);

/// How many answers are redacted in one transaction.
const BATCH: usize = 500;

/// What erasure does not reach, for the receipt.
const NOT_REACHED: [&str; 4] = [
    "messages that are still in RabbitMQ, in the queue or among the dead letters",
    "what the lead APIs were sent: ask those who run them",
    "backups of Postgres, its write-ahead log, and replicas that lag; freed pages until VACUUM",
    "files that were made by leadpost leads export, leadpost export, or by the producer of the messages",
];

/// Erase what is personal of all leads of a person, in every destination of the ledger
///
/// Bodies, addresses, what APIs answered and sentences that may quote it go; the rows stay, with state, times, statuses and codes, so that
/// the accounts hold. Waiting leads are cancelled. A redelivery of an erased message is recognized, and brings nothing back. Prints a
/// receipt, with what it cannot reach. Asks first, or needs --yes. Exit code 1 if leads are being posted all the time.
///
/// Example: leadpost erase --email ann@example.com --reason 'request 4711'
#[derive(Debug, clap::Args)]
pub(super) struct EraseArgs {
    /// The person's address
    #[arg(long, value_name = "ADDRESS")]
    email: String,

    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only say how many leads there are
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    /// How to print the receipt
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Print everything that the ledger knows of a person, as JSON
///
/// Of every destination: messages, what became of them, what APIs answered. It is put on record in the ledger, with your name and the time.
///
/// Example: leadpost export --email ann@example.com --reason 'request 4711' > ann.json
#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The person's address
    #[arg(long, value_name = "ADDRESS")]
    email: String,

    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Redact what the API answered to old attempts of this destination: it may quote persons
///
/// Statuses, codes, times and outcomes stay. retention.answers_days has the worker do it by itself.
///
/// Example: leadpost redact --older-than 30d
#[derive(Debug, clap::Args)]
pub(super) struct RedactArgs {
    /// Attempts that began longer ago than that, such as 30d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Duration,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What was erased, and what was not.
#[derive(serde::Serialize)]
struct Receipt {
    #[serde(flatten)]
    erased: Erased,
    dry_run: bool,
    by: String,
    reason: Option<String>,
    not_reached: [&'static str; 4],
}

pub(super) async fn erase(args: EraseArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "erase")?;
    ledger.check_schema().await?;
    let subject = Subject::of(&args.email);
    let found = ledger.leads_of(&subject).await?;
    if !args.dry_run && !args.yes && !is_confirmed(found.len())? {
        say("nothing was erased");
        return Ok(Exit::No);
    }
    let mut erased = Erased::default();
    if args.dry_run {
        erased.leads.insert("found".to_owned(), found.len() as u64);
    } else {
        let deadline = tokio::time::Instant::now() + POSTS_END;
        let mut left = found;
        loop {
            let batch = ledger.erase(&subject, &left, &who(), args.reason.as_deref()).await?;
            for (state, n) in batch.leads {
                *erased.leads.entry(state).or_default() += n;
            }
            erased.attempts += batch.attempts;
            erased.aside += batch.aside;
            erased.posting = batch.posting;
            // What came in meanwhile is found, too.
            left = ledger.leads_of(&subject).await?;
            if left.is_empty() || tokio::time::Instant::now() > deadline {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    let is_whole = erased.posting.is_empty();
    let receipt = Receipt { erased, dry_run: args.dry_run, by: who(), reason: args.reason, not_reached: NOT_REACHED };
    match args.output {
        Output::Json => print_json(&receipt)?,
        Output::Text => print_receipt(&receipt)?,
    }
    Ok(if is_whole { Exit::Done } else { Exit::No })
}

fn print_receipt(receipt: &Receipt) -> anyhow::Result<()> {
    let Receipt { erased, .. } = receipt;
    if receipt.dry_run {
        print(&format!("{} leads would be erased", erased.count()))?;
        return Ok(());
    }
    print(&format!("erased {} leads, by {}", erased.count(), receipt.by))?;
    for (state, n) in &erased.leads {
        let then = if state == "pending" { ", now cancelled" } else { "" };
        print(&format!("  {n} {state}{then}"))?;
    }
    print(&format!("  texts of {} attempts", erased.attempts))?;
    if erased.aside > 0 {
        print(&format!("  {} messages that were set aside", erased.aside))?;
    }
    for id in &erased.posting {
        print(&format!("NOT erased, as it is being posted: {id}. Repeat the command"))?;
    }
    print("not reached:")?;
    for what in receipt.not_reached {
        print(&format!("  {what}"))?;
    }
    Ok(())
}

fn is_confirmed(found: usize) -> anyhow::Result<bool> {
    let what = format!("{found} leads are found; what is personal of them would be erased for good");
    if !std::io::stdin().is_terminal() {
        anyhow::bail!("{what}; say --yes to do it, as nobody can be asked here");
    }
    say(&format!("{what}. Go on? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

pub(super) async fn export(args: ExportArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "export")?;
    ledger.check_schema().await?;
    let collected = ledger.collect(&Subject::of(&args.email)).await?;
    let ids: Vec<_> = collected.iter().map(|lead| lead.id).collect();
    ledger.disclose("export", &who(), &ids, args.reason.as_deref()).await?;
    print_json(&collected)?;
    Ok(Exit::Done)
}

pub(super) async fn redact(args: RedactArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "redact")?;
    ledger.check_schema().await?;
    let (mut redacted, mut after) = (0, None);
    loop {
        let (n, next) = ledger.redact(args.older_than, after, BATCH).await?;
        redacted += n;
        if next.is_none() {
            break;
        }
        after = next;
    }
    match args.output {
        Output::Json => print_json(&serde_json::json!({ "redacted": redacted }))?,
        Output::Text => say(&format!("redacted the answers to {redacted} attempts")),
    }
    Ok(Exit::Done)
}
