//! `leadpost leads list`, `export` and `count`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use time::OffsetDateTime;

use super::super::filter::FilterArgs;
use super::super::{Exit, Output, print, print_bytes, print_json, say, table, who};
use super::row::Row;
use crate::lead::LeadId;
use crate::ledger::{Ledger, Order, Page, Place};

/// How many leads an export reads at a time.
const EXPORT_PAGE: usize = 1_000;

/// List leads, the newest first
///
/// In the order in which they ended; pending ones by when they are due. Names, addresses and numbers are masked. What an
/// API said in a reason is shown, with the addresses in it masked.
///
/// Example: leadpost leads list --state rejected --since 2h --status 422
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// At most so many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,

    /// Go on after this place, which the page before it named
    #[arg(long, value_name = "PLACE")]
    after: Option<Cursor>,

    /// The oldest first
    #[arg(long)]
    oldest_first: bool,

    #[command(flatten)]
    reveal: Reveal,

    /// How to print them
    #[arg(long, value_enum, default_value = "text")]
    output: Lists,
}

/// Write all leads that match to stdout, the oldest first
///
/// Page by page: a lead that comes to an end meanwhile may stand there twice, and one that is being posted may be left out; those that have
/// ended are all there. With --reveal, the message bodies are in it too. In CSV, a text that a spreadsheet would take for a
/// formula begins with an apostrophe.
///
/// Example: leadpost leads export --state rejected --output csv > rejected.csv
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExportArgs {
    #[command(flatten)]
    filter: FilterArgs,

    #[command(flatten)]
    reveal: Reveal,

    /// How to write them
    #[arg(long, value_enum, default_value = "jsonl")]
    output: Exports,
}

/// Count leads
///
/// Example: leadpost leads count --assistant 61 --state delivered --since 24h
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CountArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Whether persons are shown.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Reveal {
    /// Show persons in full. It is put on record in the ledger, with your name, the time and the leads
    #[arg(long)]
    pub(in crate::cli) reveal: bool,

    /// Why, for that record
    #[arg(long, value_name = "TEXT", requires = "reveal")]
    pub(in crate::cli) reason: Option<String>,
}

impl Reveal {
    /// Puts it on record, if persons are to be shown.
    pub(in crate::cli) async fn record(
        &self,
        ledger: &Ledger,
        command: &str,
        of: &str,
        leads: &[LeadId],
    ) -> anyhow::Result<()> {
        let of = Some(of);
        if self.reveal && !leads.is_empty() {
            ledger.disclose(command, &who(), of, leads, self.reason.as_deref()).await?;
        }
        Ok(())
    }
}

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Lists {
    /// For people
    Text,
    /// One JSON object, with the place of the next page
    Json,
    /// A JSON object per line
    Jsonl,
    /// Comma-separated values, RFC 4180
    Csv,
}

/// How exports are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Exports {
    /// A JSON object per line
    Jsonl,
    /// Comma-separated values, RFC 4180
    Csv,
}

/// A place as text: microseconds since 1970, and the id.
#[derive(Debug, Clone, Copy)]
struct Cursor(Place);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.0.at.unix_timestamp_nanos() / 1_000, self.0.id)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let problem = || "it is not what a page named as the place of the next one".to_owned();
        let (micros, id) = text.split_once('_').ok_or_else(problem)?;
        let micros: i64 = micros.parse().map_err(|_| problem())?;
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000).map_err(|_| problem())?;
        Ok(Self(Place { at, id: id.parse().map_err(|_| problem())? }))
    }
}

pub(super) async fn list(args: ListArgs, ledger: &Ledger) -> anyhow::Result<Exit> {
    let order = if args.oldest_first { Order::OldestFirst } else { Order::NewestFirst };
    let after = args.after.map(|cursor| cursor.0);
    let page = ledger.list(Arc::new(args.filter.filter()), order, after, usize::from(args.limit)).await?;
    args.reveal.record(ledger, "leads list", ledger.destination(), &ids(&page)).await?;
    let rows: Vec<Row> = page.leads.iter().map(|listed| Row::of(listed, args.reveal.reveal, false)).collect();
    let next = page.next.map(|place| Cursor(place).to_string());
    match args.output {
        Lists::Json => print_json(&serde_json::json!({ "leads": rows, "next": next }))?,
        Lists::Jsonl => print_bytes(&jsonl(&rows)?)?,
        Lists::Csv => print_bytes(&csv(rows, true)?)?,
        Lists::Text => {
            let cells: Vec<Vec<String>> = rows.iter().zip(&page.leads).map(|(row, listed)| row.cells(listed)).collect();
            if cells.is_empty() {
                say("no lead matches");
            } else {
                print(table(&Row::HEAD, &cells).trim_end())?;
            }
        }
    }
    if let Some(next) = next.filter(|_| args.output != Lists::Json) {
        say(&format!("there may be more: --after {next}"));
    }
    Ok(Exit::Done)
}

pub(super) async fn export(args: ExportArgs, ledger: &Ledger) -> anyhow::Result<Exit> {
    let filter = Arc::new(args.filter.filter());
    let (mut after, mut is_first) = (None, true);
    loop {
        let page = ledger.list(Arc::clone(&filter), Order::OldestFirst, after, EXPORT_PAGE).await?;
        args.reveal.record(ledger, "leads export", ledger.destination(), &ids(&page)).await?;
        let rows: Vec<Row> =
            page.leads.iter().map(|listed| Row::of(listed, args.reveal.reveal, args.reveal.reveal)).collect();
        print_bytes(&match args.output {
            Exports::Jsonl => jsonl(&rows)?,
            Exports::Csv => csv(rows, is_first)?,
        })?;
        is_first = false;
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(Exit::Done),
        }
    }
}

pub(super) async fn count(args: CountArgs, ledger: &Ledger) -> anyhow::Result<Exit> {
    let count = ledger.count(Arc::new(args.filter.filter())).await?;
    match args.output {
        Output::Text => print(&count.to_string())?,
        Output::Json => print_json(&serde_json::json!({ "leads": count }))?,
    }
    Ok(Exit::Done)
}

fn ids(page: &Page) -> Vec<LeadId> {
    page.leads.iter().map(|listed| listed.lead.id).collect()
}

fn jsonl(rows: &[Row]) -> anyhow::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, row)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

fn csv(rows: Vec<Row>, with_head: bool) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    if with_head {
        writer.write_record(Row::COLUMNS)?;
    }
    for row in rows {
        writer.serialize(row.without_formulas())?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}
