//! `leadpost erase`, `export` and `redact`: what a person may ask of those who keep their data.

use std::time::Duration;

use super::filter::{address, duration};
use super::{Exit, Output, is_confirmed, ledger, print, print_json, say, who};
use crate::config::Source;
use crate::ledger::{Erased, Found, Subject};

/// How long leads that are being posted are waited for.
const POSTS_END: Duration = Duration::from_secs(30);

/// How many answers are redacted in one transaction.
const BATCH: usize = 500;

/// What erasure does not reach, for the receipt.
const NOT_REACHED: [&str; 5] = [
    "messages that are still in RabbitMQ, in the queue or among the dead letters",
    "what the lead APIs were sent: ask those who run them",
    "backups of Postgres, its write-ahead log, and replicas that lag; freed pages until VACUUM",
    "leads whose address cannot be read: of other fields, written with JSON escapes, or known by a telephone number alone",
    "files that were made by leadpost leads export, leadpost export, leadpost leads edit, or by the producer of the messages",
];

/// Erase what is personal of all leads of a person, in every destination of the ledger
///
/// Bodies, addresses, what APIs answered and sentences that may quote it go; the rows stay, with state, times, statuses and codes, so that
/// the accounts hold. Waiting leads are cancelled. Whose a lead is, the address in `email` says; where there is none, the address in the body. A redelivery of an erased message is recognized, and brings nothing back. Prints a
/// receipt, with what it cannot reach. Asks first, or needs --yes. Exit code 1 if leads are being posted all the time.
///
/// Example: leadpost erase --email ann@example.com --reason 'request 4711'
#[derive(Debug, clap::Args)]
pub(super) struct EraseArgs {
    /// The person's address
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
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
/// Of every destination: messages, what became of them, attempt by attempt, what APIs answered, what people did. It is put on record in the ledger, with your name and the time.
///
/// Example: leadpost export --email ann@example.com --reason 'request 4711' > ann.json
#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The person's address
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    email: String,

    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Redact what the API answered to old attempts of this destination: it may quote persons
///
/// Statuses, codes, times and outcomes stay. Asks first, or needs --yes. It is put on record, which leadpost audit shows.
/// retention.answers_days has the worker do it by itself.
///
/// Example: leadpost redact --older-than 30d --yes
#[derive(Debug, clap::Args)]
pub(super) struct RedactArgs {
    /// Attempts that began longer ago than that, such as 30d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Duration,

    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What was erased, and what was not.
#[derive(serde::Serialize)]
struct Receipt {
    #[serde(flatten)]
    erased: Erased,
    by: String,
    reason: Option<String>,
    /// What is left, which is why it has to be repeated.
    is_whole: bool,
    not_reached: [&'static str; 5],
}

pub(super) async fn erase(args: EraseArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "erase")?;
    ledger.check_schema().await?;
    let subject = Subject::of(&args.email).map_err(anyhow::Error::msg)?;
    let mut left = ledger.find_person(&subject).await?;
    if args.dry_run {
        match args.output {
            Output::Json => print_json(&serde_json::json!({
                "dry_run": true, "leads": left.leads, "former": left.former, "aside": left.aside.iter().map(|(_, id)| id).collect::<Vec<_>>(),
            }))?,
            Output::Text => print(&format!("{} would be erased", what(&left)))?,
        }
        return Ok(Exit::Done);
    }
    if !args.yes && !is_confirmed(&format!("{} would be erased for good", what(&left)))? {
        say("nothing was erased");
        return Ok(Exit::No);
    }
    let mut erased = Erased::default();
    let deadline = tokio::time::Instant::now() + POSTS_END;
    loop {
        erased.add(ledger.erase(&subject, &left, &who(), args.reason.as_deref()).await?);
        // What is being posted, or came in meanwhile.
        left = ledger.find_person(&subject).await?;
        if left.is_empty() || tokio::time::Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let is_whole = left.is_empty();
    let receipt = Receipt { erased, by: who(), reason: args.reason, is_whole, not_reached: NOT_REACHED };
    match args.output {
        Output::Json => print_json(&receipt)?,
        Output::Text => print_receipt(&receipt)?,
    }
    Ok(if is_whole { Exit::Done } else { Exit::No })
}

/// What was found, in words.
fn what(found: &Found) -> String {
    let Found { leads, former, aside } = found;
    let mut what = format!("what is personal of {} leads", leads.len());
    if !former.is_empty() {
        what.push_str(&format!(", {} former bodies", former.len()));
    }
    if !aside.is_empty() {
        what.push_str(&format!(", {} messages that were set aside", aside.len()));
    }
    what
}

fn print_receipt(receipt: &Receipt) -> anyhow::Result<()> {
    let Receipt { erased, .. } = receipt;
    print(&format!("erased what was personal of {} leads, by {}", erased.count(), receipt.by))?;
    for (state, n) in &erased.leads {
        let then = if state == "pending" { ", now cancelled" } else { "" };
        print(&format!("  {n} {state}{then}"))?;
    }
    print(&format!("  answers and reasons of {} attempts", erased.attempts))?;
    if erased.former > 0 {
        print(&format!("  {} former bodies of leads that were corrected", erased.former))?;
    }
    for id in &erased.aside {
        print(&format!("  a message that was set aside, of lead {id}: it is not accepted any more"))?;
    }
    if !erased.remote_ids.is_empty() {
        print(&format!("  the API knows them as {}", erased.remote_ids.join(", ")))?;
    }
    for id in &erased.posting {
        print(&format!("NOT erased, as it is being posted: {id}"))?;
    }
    if !receipt.is_whole {
        print("NOT everything is erased: repeat the command")?;
    }
    print("not reached:")?;
    for what in receipt.not_reached {
        print(&format!("  {what}"))?;
    }
    Ok(())
}

pub(super) async fn export(args: ExportArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "export")?;
    ledger.check_schema().await?;
    let subject = Subject::of(&args.email).map_err(anyhow::Error::msg)?;
    let collected = ledger.collect(&subject).await?;
    let ids: Vec<_> = collected.leads.iter().map(|record| record.lead.id).collect();
    ledger.disclose("export", &who(), None, &ids, args.reason.as_deref()).await?;
    print_json(&collected)?;
    Ok(Exit::Done)
}

pub(super) async fn redact(args: RedactArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "redact")?;
    ledger.check_schema().await?;
    let found = ledger.redactable(args.older_than).await?;
    let (mut redacted, mut after) = (0, None);
    let text = format!("the answers to {found} attempts would be redacted for good");
    if args.dry_run {
        match args.output {
            Output::Json => print_json(&serde_json::json!({ "dry_run": true, "redacted": found }))?,
            Output::Text => say(&text),
        }
        return Ok(Exit::Done);
    }
    if !args.yes && !is_confirmed(&text)? {
        say("nothing was redacted");
        return Ok(Exit::No);
    }
    let record = ledger.begin_redaction(args.older_than, &who(), args.reason.as_deref()).await?;
    loop {
        let (n, next) = ledger.redact(args.older_than, after, BATCH, Some(record)).await?;
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
