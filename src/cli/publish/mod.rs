//! `leadpost publish`: leads from a file into the queue, each with an id that is the same the next time.

mod check;
mod read;
mod table;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;

use super::{Exit, Output, print_json, say};
use crate::broker::{Outgoing, Publisher, WINDOW};
use crate::config::{ConfigError, Source, need_amqp_url};
use crate::lead::LeadRules;
use crate::lifecycle::Shutdown;
use check::{Checked, check};
use read::{Entry, Expected, Format};

/// How much longer than the longest message a line may be: white space around it.
const LINE_MARGIN: usize = 64 * 1024;

/// How many bad leads are described one by one.
const MAX_DESCRIBED: u64 = 20;

/// Publish leads from a file to the queue
///
/// JSON lines, a JSON array, or CSV with a header that names the fields. Each message gets an id made of its bytes, or of
/// the field that --id-field names, so publishing a file again posts no lead twice, and replays those that ended badly.
///
/// Exit code 1 if some leads are invalid (they are not published without --force), or if there are none in a file that is
/// not empty. Ctrl-C or SIGTERM stops after the messages under way, with exit code 3.
///
/// Files may be larger than memory: one lead at a time is held. Of JSON lines, one that is longer than the longest message
/// is skipped and counts as invalid; an element of an array, or a row of CSV, is held whatever its size.
///
/// Example: leadpost publish leads.csv --dry-run
#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// File to read; - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Form of the file; without it by the name's ending, else by the first character
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Queue to publish to (amqp.queue)
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    /// Field that holds each lead's id: a string or a number; a lead without is invalid
    #[arg(long, value_name = "FIELD")]
    id_field: Option<String>,

    /// Only validate
    #[arg(long)]
    dry_run: bool,

    /// Publish invalid leads too; the worker keeps them as invalid. Not those that cannot be read, or have no id
    #[arg(long)]
    force: bool,

    /// Replay leads that a person holds (uncertain, cancelled), too
    #[arg(long)]
    replay: bool,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
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
    if !args.dry_run {
        need_amqp_url(&settings)?;
    }
    let rules = LeadRules::of(&settings).map_err(|problem| ConfigError(vec![problem]))?;
    let (size, input) = open(&args.file)?;
    let publisher = if args.dry_run { None } else { Some(Publisher::connect(&settings.amqp, args.replay).await?) };
    let shutdown = Shutdown::on_signals().context("cannot listen to signals")?;

    let bar = progress(size);
    let (entries, received) = mpsc::channel(4 * WINDOW);
    let (expected, name, reading_bar) = (expected(&args, &rules), args.file.clone(), bar.clone());
    let reader =
        tokio::task::spawn_blocking(move || read::read(reading_bar.wrap_read(input), &name, &expected, &entries));

    let mut publishing = Publishing { args: &args, rules, publisher, bar, summary: Summary::default() };
    let stopped = publishing.take(received, &shutdown).await?;
    let Publishing { publisher, bar, summary, .. } = publishing;
    if let Some(publisher) = publisher {
        publisher.close().await;
    }
    bar.finish_and_clear();
    if stopped {
        // The reader may wait for stdin for ever; nobody waits for it.
        print_summary(args.output, &summary)?;
        say(&format!(
            "stopped after {} read; {} are confirmed; publishing the same file again is safe",
            summary.read, summary.published
        ));
        return Ok(Exit::InAHurry);
    }
    let any = reader.await.context("the reader has failed")?.with_context(|| {
        format!("stopped after {} read and {} published; publishing again is safe", summary.read, summary.published)
    })?;

    print_summary(args.output, &summary)?;
    if args.output == Output::Text {
        let end = if args.dry_run {
            "; nothing published".to_owned()
        } else {
            format!(", {} published to {}", summary.published, settings.amqp.queue)
        };
        say(&format!("{} read, {} valid, {} invalid{end}", summary.read, summary.valid, summary.invalid));
    }
    if any && summary.read == 0 {
        say(&format!("there is no lead in {}, though it is not empty", args.file.display()));
        return Ok(Exit::No);
    }
    Ok(if summary.invalid == 0 { Exit::Done } else { Exit::No })
}

fn print_summary(output: Output, summary: &Summary) -> anyhow::Result<()> {
    if output == Output::Json { print_json(summary) } else { Ok(()) }
}

fn expected(args: &PublishArgs, rules: &LeadRules) -> Expected {
    // A configured assistant need not stand in the file.
    let is_given = |field: &String| field == "assistantId" && rules.default_assistant_id.is_some();
    let fields = rules.mandatory.iter().flatten().filter(|field| !is_given(field)).cloned().collect();
    Expected { format: args.format, max_line: rules.limits.message_bytes.saturating_add(LINE_MARGIN), fields }
}

/// A file on its way into the queue.
struct Publishing<'a> {
    args: &'a PublishArgs,
    rules: LeadRules,
    publisher: Option<Publisher>,
    bar: ProgressBar,
    summary: Summary,
}

impl Publishing<'_> {
    /// Checks what is read, and publishes it window by window; whether it was told to stop before the end.
    async fn take(&mut self, mut entries: mpsc::Receiver<Entry>, shutdown: &Shutdown) -> anyhow::Result<bool> {
        let mut window = Vec::with_capacity(WINDOW);
        loop {
            let entry = tokio::select! {
                biased;
                () = shutdown.drain.cancelled() => return Ok(true),
                entry = entries.recv() => entry,
            };
            let is_last = entry.is_none();
            window.extend(entry.and_then(|entry| self.look_at(entry)));
            if is_last || window.len() == WINDOW {
                tokio::select! {
                    biased;
                    published = self.publish(&mut window) => published?,
                    () = shutdown.now.cancelled() => return Ok(true),
                }
            }
            if is_last {
                return Ok(false);
            }
        }
    }

    /// Counts and describes; comes back with what is to be published.
    fn look_at(&mut self, entry: Entry) -> Option<Outgoing> {
        self.summary.read += 1;
        let checked = entry
            .body
            .and_then(|body| check(&self.rules, &body, self.args.id_field.as_deref()).map(|checked| (checked, body)));
        let (id, problem, body) = match checked {
            Ok((Checked::Valid(id), body)) => {
                self.summary.valid += 1;
                return Some(Outgoing { id, body });
            }
            Ok((Checked::Invalid(id, problem), body)) => (Some(id), problem, body),
            Err(problem) => (None, problem, Vec::new()),
        };
        self.summary.invalid += 1;
        self.describe(&entry.place, &problem);
        id.filter(|_| self.args.force).map(|id| Outgoing { id, body })
    }

    fn describe(&self, place: &str, problem: &str) {
        let invalid = self.summary.invalid;
        self.bar.suspend(|| {
            if invalid <= MAX_DESCRIBED {
                say(&format!("{place}: {problem}"));
            } else if invalid == MAX_DESCRIBED + 1 {
                say("further invalid leads are only counted");
            }
        });
    }

    async fn publish(&mut self, window: &mut Vec<Outgoing>) -> anyhow::Result<()> {
        if let Some(publisher) = &self.publisher
            && !window.is_empty()
        {
            publisher.publish(window).await.with_context(|| {
                format!("published {} so far; publishing the same file again is safe", self.summary.published)
            })?;
            self.summary.published += window.len() as u64;
        }
        window.clear();
        Ok(())
    }
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
