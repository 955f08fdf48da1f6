//! `leadpost requeue`, `cancel` and `release`: what a person decides about leads.

use std::collections::HashSet;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::filter::FilterArgs;
use super::{Exit, Output, is_confirmed, ledger, print_json, say, who};
use crate::config::Source;
use crate::lead::{LeadId, assistant};
use crate::ledger::{Act, Action, LeadState, Ledger, Named, Order};

/// How many leads a preview shows.
const SAMPLES: usize = 3;

/// Send leads that have ended on their way again, with a fresh budget of attempts
///
/// Their bodies are decoded and validated again, so a mended configuration is enough to save them. Without ids or --state, those that are
/// invalid, rejected or exhausted: uncertain and cancelled ones are a person's decision, so name them or their state. Leads that the API took,
/// or has, are left alone without --include-delivered. By ids it is done at once; by anything else you are asked first, or need
/// --yes where nobody can be asked. A thousand leads at a time: interrupted, the rest is as it was; repeated, the rest is done. Exit
/// code 1 if a lead that was named is not there, or was left alone.
///
/// Example: leadpost requeue --state exhausted --since 2h --rate 10 --reason 'API was down'
#[derive(Debug, clap::Args)]
pub(super) struct RequeueArgs {
    #[command(flatten)]
    act: ActArgs,

    /// How many become due per second; without it all at once. Repeated after an interruption, the rest is paced from then on, beside what is
    /// due still
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// Also leads that the API took, or has: they will be posted once more
    #[arg(long)]
    include_delivered: bool,
}

/// Cancel pending leads: they are not posted any more
///
/// A lead that is being posted just now is left alone. By ids it is done at once; by anything else you are asked first, or need
/// --yes. leadpost requeue sends cancelled leads all the same. Exit code 1 if a lead that was named is not there, or was left alone.
///
/// Example: leadpost cancel --assistant 61 --reason 'wrong campaign'
#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    #[command(flatten)]
    act: ActArgs,
}

/// Decide about uncertain leads, which may have been posted: settle them as delivered, or post them again
///
/// Look for them at the API first. By ids it is done at once; by anything else you are asked first, or need --yes. Exit code 1 if a
/// lead that was named is not there, or was left alone.
///
/// Example: leadpost release --as delivered --since 1h --reason 'seen at the API'
#[derive(Debug, clap::Args)]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    act: ActArgs,

    /// What they are
    #[arg(long = "as", value_enum)]
    verdict: Verdict,

    /// How many become due per second, with --as again; without it all at once
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
}

/// What an uncertain lead is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Verdict {
    /// The API has them
    Delivered,
    /// The API does not have them: post them again
    Again,
}

/// What all decisions have in common.
#[derive(Debug, clap::Args)]
struct ActArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// All of them, where nothing says which leads
    #[arg(long, conflicts_with = "ids")]
    all: bool,

    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only say how many, and show some
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What a decision came to, for scripts.
#[derive(serde::Serialize)]
struct Report {
    dry_run: bool,
    /// How many leads it was done to, or would be.
    done: u64,
    /// Named leads that there are none of in this destination.
    unknown: Vec<LeadId>,
    /// Named leads that were left alone, by the state that they are in.
    left_alone: Vec<LeftAlone>,
}

#[derive(serde::Serialize)]
struct LeftAlone {
    id: LeadId,
    state: LeadState,
    why: String,
}

/// How a decision is talked of.
struct Words {
    command: &'static str,
    /// `3 leads` …
    done: &'static str,
    would_be: &'static str,
}

impl ActArgs {
    fn check(&self, command: &str) -> Result<(), String> {
        if self.filter.is_empty() && !self.all {
            return Err(format!(
                "which leads? Name them by <ID>, or say which by --state <STATE> and the like, or --all; \
                 leadpost {command} --help says more"
            ));
        }
        Ok(())
    }
}

impl RequeueArgs {
    /// What the arguments may not say together.
    pub(super) fn check(&self) -> Result<(), String> {
        self.act.check("requeue")?;
        let taken = [LeadState::Delivered, LeadState::Duplicate];
        match self.act.filter.state.iter().find(|state| taken.contains(state)) {
            Some(state) if !self.include_delivered => Err(format!(
                "--state {state} needs --include-delivered: the API has these leads, and they would be posted once more"
            )),
            _ if self.act.filter.state.contains(&LeadState::Pending) => {
                Err("pending leads are on their way already".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl CancelArgs {
    /// What the arguments may not say together.
    pub(super) fn check(&self) -> Result<(), String> {
        self.act.check("cancel")?;
        match self.act.filter.state.iter().find(|state| **state != LeadState::Pending) {
            Some(state) => Err(format!("only pending leads can be cancelled; those that are {state} have ended")),
            None => Ok(()),
        }
    }
}

impl ReleaseArgs {
    /// What the arguments may not say together.
    pub(super) fn check(&self) -> Result<(), String> {
        self.act.check("release")?;
        match self.act.filter.state.iter().find(|state| **state != LeadState::Uncertain) {
            Some(state) => Err(format!("only uncertain leads can be released, not those that are {state}")),
            None if self.rate.is_some() && self.verdict == Verdict::Delivered => {
                Err("--rate goes with --as again: what is settled as delivered is not posted".to_owned())
            }
            None => Ok(()),
        }
    }
}

pub(super) async fn requeue(args: RequeueArgs, source: &Source) -> anyhow::Result<Exit> {
    let action = Action::Requeue { include_delivered: args.include_delivered, rate_per_s: args.rate };
    let words =
        Words { command: "requeue", done: "sent on their way again", would_be: "would be sent on their way again" };
    run(args.act, action, &words, source).await
}

pub(super) async fn cancel(args: CancelArgs, source: &Source) -> anyhow::Result<Exit> {
    let words = Words { command: "cancel", done: "cancelled", would_be: "would be cancelled" };
    run(args.act, Action::Cancel, &words, source).await
}

pub(super) async fn release(args: ReleaseArgs, source: &Source) -> anyhow::Result<Exit> {
    let (action, words) = match args.verdict {
        Verdict::Delivered => (
            Action::SettleDelivered,
            Words { command: "release", done: "settled as delivered", would_be: "would be settled as delivered" },
        ),
        Verdict::Again => (
            Action::SendAgain { rate_per_s: args.rate },
            Words { command: "release", done: "sent on their way again", would_be: "would be sent on their way again" },
        ),
    };
    run(args.act, action, &words, source).await
}

async fn run(args: ActArgs, action: Action, words: &Words, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, words.command)?;
    ledger.check_schema().await?;
    let (is_named, dry_run, output) = (args.filter.only_ids(), args.dry_run, args.output);
    let mut filter = args.filter.filter();
    if matches!(action, Action::Requeue { .. }) && filter.ids.is_empty() && filter.states.is_none() {
        filter.states = Some(vec![LeadState::Invalid, LeadState::Rejected, LeadState::Exhausted]);
    }
    // What is acted on is what was shown, however long somebody thinks about it.
    let now = ledger.clock().await?;
    let act = Act { action, filter: filter.as_of(now), by: who(), reason: args.reason, as_of: Some(now) };
    let mut report = named(&ledger, &args.filter.ids, action).await?;
    report.dry_run = dry_run;
    let matching = ledger.count(Arc::new(act.chosen())).await?;
    if matching > 0 && !is_named && output == Output::Text {
        preview(&ledger, &act, matching, words).await?;
    }
    if dry_run || matching == 0 {
        report.done = matching;
    } else {
        if !is_named && !args.yes && !is_confirmed(&format!("{} {}", leads(matching), words.would_be))? {
            say("nothing was done");
            return Ok(Exit::No);
        }
        let bar = progress(matching);
        let result = ledger.act(act, |done| bar.set_position(done)).await;
        bar.finish_and_clear();
        let acted = result?;
        report.done = acted.leads;
        if is_named {
            // Claimed, or decided on, by somebody else in the meantime.
            let missed: Vec<LeadId> = named_ids(&args.filter.ids)
                .into_iter()
                .filter(|id| !acted.named.contains(id) && !report.knows(*id))
                .collect();
            report
                .left_alone
                .extend(left_alone(&ledger, &missed, "was changed by somebody else just now; look at it again").await?);
        }
    }
    if output == Output::Json {
        print_json(&report)?;
    } else {
        say(&sentence(report.done, dry_run, words));
        for id in &report.unknown {
            say(&format!("  {id} is not in the ledger of this destination"));
        }
        for left in &report.left_alone {
            say(&format!("  {} {}", left.id, left.why));
        }
    }
    Ok(if report.is_fine(action) { Exit::Done } else { Exit::No })
}

impl Report {
    fn knows(&self, id: LeadId) -> bool {
        self.unknown.contains(&id) || self.left_alone.iter().any(|left| left.id == id)
    }

    /// Whether everything that was named is as it was wanted.
    fn is_fine(&self, action: Action) -> bool {
        let is_as_wanted = |left: &LeftAlone| {
            matches!(
                (left.state, action),
                (LeadState::Pending, Action::Requeue { .. }) | (LeadState::Cancelled, Action::Cancel)
            )
        };
        self.unknown.is_empty() && self.left_alone.iter().all(is_as_wanted)
    }
}

/// Each id once.
fn named_ids(ids: &[LeadId]) -> Vec<LeadId> {
    let mut seen = HashSet::new();
    ids.iter().copied().filter(|id| seen.insert(*id)).collect()
}

/// Which of the named leads it cannot be done to.
async fn named(ledger: &Ledger, ids: &[LeadId], action: Action) -> anyhow::Result<Report> {
    let mut report = Report { dry_run: false, done: 0, unknown: Vec::new(), left_alone: Vec::new() };
    for named in ledger.named(&named_ids(ids)).await? {
        let id = named.id;
        match named.state {
            None => report.unknown.push(id),
            Some(state) => {
                report.left_alone.extend(why_not(&named, state, action).map(|why| LeftAlone { id, state, why }))
            }
        }
    }
    Ok(report)
}

async fn left_alone(ledger: &Ledger, ids: &[LeadId], why: &str) -> anyhow::Result<Vec<LeftAlone>> {
    let named = ledger.named(ids).await?;
    let left = named
        .into_iter()
        .filter_map(|named| Some(LeftAlone { id: named.id, state: named.state?, why: why.to_owned() }));
    Ok(left.collect())
}

fn why_not(named: &Named, state: LeadState, action: Action) -> Option<String> {
    if named.is_erased {
        return Some("was erased: nothing is left that could be sent, or cancelled".to_owned());
    }
    if action.takes().contains(&state) {
        return (state == LeadState::Pending && named.is_leased)
            .then(|| "is being posted just now; look at it again when that has ended".to_owned());
    }
    Some(match (state, action) {
        (LeadState::Pending, Action::Requeue { .. }) => "is pending anyway".to_owned(),
        (LeadState::Delivered | LeadState::Duplicate, Action::Requeue { .. }) => {
            "was taken by the API, or is there already; --include-delivered posts it once more".to_owned()
        }
        (state, Action::Cancel) => format!("has ended already: it is {state}"),
        (state, _) => format!("is not uncertain: it is {state}"),
    })
}

async fn preview(ledger: &Ledger, act: &Act, matching: u64, words: &Words) -> anyhow::Result<()> {
    let mut by_state = Vec::new();
    for state in act.action.takes() {
        let n = ledger.count(Arc::new(act.chosen().within(&[state]))).await?;
        if n > 0 {
            by_state.push(format!("{n} {state}"));
        }
    }
    say(&format!("{} {} ({}), such as:", leads(matching), words.would_be, by_state.join(", ")));
    let page = ledger.list(Arc::new(act.chosen()), Order::OldestFirst, None, SAMPLES).await?;
    for listed in &page.leads {
        let why = listed.lead.code.as_deref().unwrap_or("no attempt yet");
        let assistant = assistant(&listed.body).map(|id| format!("   assistant {id}")).unwrap_or_default();
        say(&format!("  {}   {}   {why}{assistant}", listed.lead.id, listed.lead.state));
    }
    Ok(())
}

/// Seen on a terminal only.
fn progress(matching: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(matching), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} leads, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn sentence(done: u64, dry_run: bool, words: &Words) -> String {
    match (done, dry_run) {
        (n, true) => format!("{} {}", leads(n), words.would_be),
        (1, false) => format!("1 lead is {}", words.done.replace("their", "its")),
        (n, false) => format!("{n} leads are {}", words.done),
    }
}

fn leads(n: u64) -> String {
    if n == 1 { "1 lead".to_owned() } else { format!("{n} leads") }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("write a number from 0.001 to 1000000".to_owned()),
    }
}
