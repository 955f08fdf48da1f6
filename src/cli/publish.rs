//! `leadpost publish`: leads from a file into the queue, each with an id that is the same the next time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Exit, Output, need_broker, print_json, say};
use crate::broker::{Outgoing, Publisher, WINDOW};
use crate::config::{ConfigError, Source};
use crate::lead::{Fields, LeadId, LeadRules};

/// How many bad leads are described one by one.
const MAX_DESCRIBED: u64 = 20;

/// Publish leads from a file to the queue
///
/// JSON lines, a JSON array, or CSV with a header. Each message gets an id made of its bytes, or of the field that
/// --id-field names, so publishing a file again posts no lead twice, and replays those that ended badly. Exit code 1 if
/// some leads are invalid: they are not published without --force.
///
/// Example: leadpost publish leads.csv --dry-run
#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// File to read; - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Form of the file; without it by its name, else by its first character
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Queue to publish to (amqp.queue)
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    /// Field that holds each lead's id
    #[arg(long, value_name = "FIELD")]
    id_field: Option<String>,

    /// Only validate
    #[arg(long)]
    dry_run: bool,

    /// Publish invalid leads too; the worker keeps them as invalid
    #[arg(long)]
    force: bool,

    /// Replay leads that a person holds (uncertain, cancelled), too
    #[arg(long)]
    replay: bool,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// The form of a file of leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON object a line
    Jsonl,
    /// One JSON array of objects
    Json,
    /// Comma-separated values; the header names the fields
    Csv,
}

/// A lead as it was read, and where.
struct Entry {
    /// Its place in the file: a line, or an index.
    place: String,
    body: Result<Vec<u8>, String>,
}

#[derive(Debug, Default, serde::Serialize)]
struct Summary {
    read: u64,
    valid: u64,
    invalid: u64,
    published: u64,
}

pub(super) async fn run(args: PublishArgs, source: &Source) -> anyhow::Result<Exit> {
    let mut settings = source.read()?;
    if let Some(queue) = &args.queue {
        settings.amqp.queue.clone_from(queue);
    }
    let rules = LeadRules::of(&settings);
    let publisher = if args.dry_run {
        None
    } else {
        need_broker(&settings)?;
        Some(Publisher::connect(&settings.amqp, args.replay).await?)
    };

    let (size, input) = open(&args.file)?;
    let bar = progress(size);
    let (entries, mut received) = mpsc::channel(4 * WINDOW);
    let (format, name, reading_bar) = (args.format, args.file.clone(), bar.clone());
    let reader = tokio::task::spawn_blocking(move || read(reading_bar.wrap_read(input), format, &name, &entries));

    let mut summary = Summary::default();
    let mut window = Vec::with_capacity(WINDOW);
    while let Some(entry) = received.recv().await {
        summary.read += 1;
        let checked = entry.body.and_then(|body| check(&rules, &body, args.id_field.as_deref()).map(|id| (id, body)));
        match checked {
            Ok((Checked::Valid(id), body)) => {
                summary.valid += 1;
                window.push(Outgoing { id, body });
            }
            Ok((Checked::Invalid(id, problem), body)) => {
                summary.invalid += 1;
                describe(&bar, &summary, &entry.place, &problem);
                if args.force {
                    window.push(Outgoing { id, body });
                }
            }
            Err(problem) => {
                summary.invalid += 1;
                describe(&bar, &summary, &entry.place, &problem);
            }
        }
        if window.len() == WINDOW {
            publish(publisher.as_ref(), &mut window, &mut summary).await?;
        }
    }
    publish(publisher.as_ref(), &mut window, &mut summary).await?;
    if let Some(publisher) = publisher {
        publisher.close().await;
    }
    bar.finish_and_clear();
    reader.await.context("the reader has failed")??;

    match args.output {
        Output::Json => print_json(&summary)?,
        Output::Text if args.dry_run => say(&format!(
            "{} read, {} valid, {} invalid; nothing published",
            summary.read, summary.valid, summary.invalid
        )),
        Output::Text => say(&format!(
            "{} read, {} valid, {} invalid, {} published to {}",
            summary.read, summary.valid, summary.invalid, summary.published, settings.amqp.queue
        )),
    }
    Ok(if summary.invalid == 0 { Exit::Done } else { Exit::No })
}

async fn publish(
    publisher: Option<&Publisher>,
    window: &mut Vec<Outgoing>,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    if let Some(publisher) = publisher
        && !window.is_empty()
    {
        publisher.publish(window).await.with_context(|| {
            format!("published {} so far; publishing the same file again is safe", summary.published)
        })?;
        summary.published += window.len() as u64;
    }
    window.clear();
    Ok(())
}

enum Checked {
    Valid(LeadId),
    Invalid(LeadId, String),
}

/// Validates a lead and finds its id.
fn check(rules: &LeadRules, body: &[u8], id_field: Option<&str>) -> Result<Checked, String> {
    let id = match id_field {
        None => LeadId::of_content(body),
        Some(field) => {
            let value = Fields::decode(body, usize::MAX)
                .ok()
                .and_then(|fields| fields.get(field).map(|value| value.get().trim_matches('"').to_owned()))
                .filter(|value| !value.is_empty() && value != "null")
                .ok_or_else(|| format!("{field} holds no id"))?;
            Uuid::parse_str(&value).map(LeadId).unwrap_or_else(|_| LeadId::of_content(value.as_bytes()))
        }
    };
    match rules.check(body) {
        Ok(_) => Ok(Checked::Valid(id)),
        Err(violations) => {
            let problems: Vec<String> = violations
                .iter()
                .map(|violation| {
                    format!("{} [{}] {}", violation.field, violation.code, violation.message).trim().to_owned()
                })
                .collect();
            Ok(Checked::Invalid(id, problems.join("; ")))
        }
    }
}

fn describe(bar: &ProgressBar, summary: &Summary, place: &str, problem: &str) {
    bar.suspend(|| {
        if summary.invalid <= MAX_DESCRIBED {
            say(&format!("{place}: {problem}"));
        } else if summary.invalid == MAX_DESCRIBED + 1 {
            say("further invalid leads are only counted");
        }
    });
}

fn open(file: &Path) -> anyhow::Result<(Option<u64>, Box<dyn Read + Send>)> {
    if file == Path::new("-") {
        return Ok((None, Box::new(io::stdin())));
    }
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let size = opened.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    Ok((size, Box::new(opened)))
}

/// Bytes read, on a terminal only.
fn progress(size: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
    let template = match size {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Reads the file lead by lead, in memory that does not grow with it.
fn read(input: impl Read, format: Option<Format>, name: &Path, to: &mpsc::Sender<Entry>) -> anyhow::Result<()> {
    let mut input = BufReader::with_capacity(64 * 1024, input);
    let by_name = match name.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Some(Format::Csv),
        Some("jsonl" | "ndjson") => Some(Format::Jsonl),
        _ => None,
    };
    let format = match format.or(by_name) {
        Some(format) => format,
        None => by_first_character(&mut input)?,
    };
    match format {
        Format::Jsonl => read_lines(input, to),
        Format::Json => read_array(input, to),
        Format::Csv => read_csv(input, to),
    }
}

fn by_first_character(input: &mut impl BufRead) -> anyhow::Result<Format> {
    let start = input.fill_buf().context("cannot read the leads")?;
    Ok(match start.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => Format::Json,
        Some(b'{') | None => Format::Jsonl,
        Some(_) => Format::Csv,
    })
}

/// `false`: nobody takes them any more.
fn hand_over(to: &mpsc::Sender<Entry>, place: String, body: Result<Vec<u8>, String>) -> bool {
    to.blocking_send(Entry { place, body }).is_ok()
}

fn read_lines(input: impl BufRead, to: &mpsc::Sender<Entry>) -> anyhow::Result<()> {
    for (at, line) in input.split(b'\n').enumerate() {
        let line = line.with_context(|| format!("cannot read line {}", at + 1))?;
        let body = line.trim_ascii();
        if !body.is_empty() && !hand_over(to, format!("line {}", at + 1), Ok(body.to_vec())) {
            break;
        }
    }
    Ok(())
}

fn read_array(input: impl Read, to: &mpsc::Sender<Entry>) -> anyhow::Result<()> {
    struct Leads<'a>(&'a mpsc::Sender<Entry>);

    impl<'de> Visitor<'de> for Leads<'_> {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON array of leads")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut leads: A) -> Result<(), A::Error> {
            let mut at = 0;
            while let Some(lead) = leads.next_element::<Box<RawValue>>()? {
                if !hand_over(self.0, format!("lead [{at}]"), Ok(lead.get().as_bytes().to_vec())) {
                    break;
                }
                at += 1;
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_reader(input)
        .deserialize_seq(Leads(to))
        .context("the file is not a JSON array of leads")
}

/// Each row becomes an object with the header's names; empty cells are left out, ids of digits become numbers.
fn read_csv(input: impl Read, to: &mpsc::Sender<Entry>) -> anyhow::Result<()> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(input);
    let header = reader.headers().context("the CSV file has no header")?.clone();
    if let Some(repeated) =
        header.iter().enumerate().find(|(at, name)| header.iter().take(*at).any(|other| other == *name))
    {
        let problem = format!("the CSV header names {:?} twice", repeated.1);
        return Err(ConfigError(vec![problem]).into());
    }
    for record in reader.into_records() {
        let (place, body) = match record {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                let cells = header.iter().zip(record.iter()).filter(|(_, cell)| !cell.trim().is_empty());
                let object: Vec<String> =
                    cells.map(|(name, cell)| format!("{}:{}", json(name), value(name, cell))).collect();
                (format!("line {line}"), Ok(format!("{{{}}}", object.join(",")).into_bytes()))
            }
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                (format!("line {line}"), Err(problem_of(&error)))
            }
        };
        if !hand_over(to, place, body) {
            break;
        }
    }
    Ok(())
}

/// The library's own texts would repeat what stands in the row.
fn problem_of(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("the row has {len} cells, the header {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "the row is not UTF-8".to_owned(),
        _ => "the row cannot be read".to_owned(),
    }
}

fn value(name: &str, cell: &str) -> String {
    let is_id = crate::lead::FieldKind::of(name) == crate::lead::FieldKind::Id;
    let cell = if is_id { cell.trim() } else { cell };
    let is_number = is_id && cell.bytes().all(|byte| byte.is_ascii_digit()) && (cell == "0" || !cell.starts_with('0'));
    if is_number { cell.to_owned() } else { json(cell) }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(input: &str, format: Option<Format>, name: &str) -> Vec<(String, Result<String, String>)> {
        let (to, mut received) = mpsc::channel(100);
        read(input.as_bytes(), format, Path::new(name), &to).expect("readable");
        drop(to);
        let mut entries = Vec::new();
        while let Ok(entry) = received.try_recv() {
            entries.push((entry.place, entry.body.map(|body| String::from_utf8(body).expect("UTF-8"))));
        }
        entries
    }

    fn bodies(input: &str, name: &str) -> Vec<String> {
        entries(input, None, name).into_iter().map(|(_, body)| body.expect("a body")).collect()
    }

    #[test]
    fn lines_arrays_and_csv_are_told_apart_by_name_or_first_character() {
        let lines = "{\"a\":1}\n\n  {\"b\": 2}\r\n";
        assert_eq!(bodies(lines, "-"), ["{\"a\":1}", "{\"b\": 2}"]);
        assert_eq!(bodies(" [ {\"a\":1.10}, [2] ]", "-"), ["{\"a\":1.10}", "[2]"]);
        assert_eq!(bodies("name,email\nAnn,a@b.co\n", "-"), [r#"{"name":"Ann","email":"a@b.co"}"#]);
        assert_eq!(bodies("{,x\n1,2\n", "odd.csv"), [r#"{"{":"1","x":"2"}"#]);
    }

    #[test]
    fn csv_leaves_out_empty_cells_and_makes_numbers_of_ids_only() {
        let input = "name,phone,assistantId,scheduleId,context\n\"Lee, Ann\",0049,61,007,\n Bo ,,team,0,\"a\nb\"\n";
        assert_eq!(
            bodies(input, "x.csv"),
            [
                r#"{"name":"Lee, Ann","phone":"0049","assistantId":61,"scheduleId":"007"}"#,
                r#"{"name":" Bo ","assistantId":"team","scheduleId":0,"context":"a\nb"}"#,
            ]
        );
    }

    #[test]
    fn a_bad_row_is_reported_with_its_line_and_without_its_content() {
        let entries = entries("name,email\nAnn\nBo,b@c.de\n", None, "x.csv");
        assert_eq!(entries[0], ("line 2".to_owned(), Err("the row has 1 cells, the header 2".to_owned())));
        assert!(entries[1].1.is_ok());
    }

    #[test]
    fn ids_are_stable_and_come_from_the_content_or_a_field() {
        let settings = Source { file: Some("/dev/null".into()), ..Source::default() }.read().expect("defaults");
        let rules = LeadRules::of(&settings);
        let body = br#"{"name":"Ann","email":"a@b.co","assistantId":1,"crm":"X-7","id":"3f8a1c1e-5b3f-4a36-9d53-0b7c6f0f2a10"}"#;
        let id = |field: Option<&str>| match check(&rules, body, field) {
            Ok(Checked::Valid(id)) => id,
            _ => panic!("valid"),
        };
        assert_eq!(id(None), LeadId::of_content(body));
        assert_eq!(id(Some("crm")), LeadId::of_content(b"X-7"));
        assert_eq!(id(Some("id")).to_string(), "3f8a1c1e-5b3f-4a36-9d53-0b7c6f0f2a10");
        assert!(check(&rules, body, Some("absent")).is_err());
    }
}
