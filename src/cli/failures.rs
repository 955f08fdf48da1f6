//! `leadpost failures`: what goes wrong, in groups.

use std::sync::Arc;

use time::OffsetDateTime;

use super::filter::FilterArgs;
use super::leads::Reveal;
use super::{Exit, Output, ago, ledger, print, print_json, quoted, say};
use crate::config::Source;
use crate::lead::{LeadId, Person};
use crate::ledger::{Group, LeadState};

/// Show why leads ended badly, or wait after a failure: groups by state, code, status and reason, the largest first
///
/// Each with how many leads, when the first and the last came to it, one of them, and the command that acts on the group, and on
/// what has joined it since. In reasons, "email" and "id" in angle brackets, # and "…" stand for what differs from lead to lead, and …
/// for the name of a person, in which case the command is shown with --reveal only. Of each state, the newest 100,000 leads are
/// looked at.
///
/// Example: leadpost failures --since 24h
#[derive(Debug, clap::Args)]
pub(super) struct FailuresArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// At most so many groups
    #[arg(long, value_name = "N", default_value = "20")]
    limit: usize,

    #[command(flatten)]
    reveal: Reveal,

    /// How to print them
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// A group, and what can be done about it.
#[derive(serde::Serialize)]
struct Failure {
    #[serde(flatten)]
    group: Group,
    /// Nothing, where it would name a person.
    command: Option<String>,
}

pub(super) async fn run(args: FailuresArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "failures")?;
    ledger.check_schema().await?;
    let groups = ledger.failures(Arc::new(args.filter.filter())).await?;
    let more = groups.len().saturating_sub(args.limit);
    let mut failures = Vec::new();
    for mut group in groups.into_iter().take(args.limit) {
        // All leads of a group share its reason, and with it any name in it.
        let person = Person::of(&ledger.body(group.sample).await?.unwrap_or_default());
        let mut command = Some(command(&group, &args.filter));
        if !args.reveal.reveal && person.is_named_in(&group.reason) {
            group.reason = person.masked_in(&group.reason);
            command = None;
        }
        failures.push(Failure { group, command });
    }
    let shown: Vec<LeadId> = failures.iter().map(|failure| failure.group.sample).collect();
    args.reveal.record(&ledger, "failures", ledger.destination(), &shown).await?;
    if args.output == Output::Json {
        print_json(&failures)?;
        return Ok(Exit::Done);
    }
    if failures.is_empty() {
        say("no lead that matches has ended badly, or waits after a failure");
    }
    let now = OffsetDateTime::now_utc();
    let since = |at: OffsetDateTime| ago((now - at).as_seconds_f64());
    for Failure { group, command } in &failures {
        let code = group.code.as_deref().unwrap_or("-");
        let status = group.http_status.map(|status| format!("   HTTP {status}")).unwrap_or_default();
        print(&format!("{:>7}  {}   {code}{status}", group.leads, group.state))?;
        if !group.reason.is_empty() {
            print(&format!("         {}", group.reason))?;
        }
        print(&format!(
            "         first {} ago, last {} ago, such as {}",
            since(group.first),
            since(group.last),
            group.sample
        ))?;
        print(&format!(
            "         {}",
            command.as_deref().unwrap_or("its command names a person: leadpost failures --reveal")
        ))?;
    }
    if more > 0 {
        say(&format!("and {more} groups more; --limit shows them"));
    }
    Ok(Exit::Done)
}

/// What acts on this group and no other.
fn command(group: &Group, asked: &FilterArgs) -> String {
    let does = match group.state {
        LeadState::Pending => "leadpost leads list",
        LeadState::Uncertain => "leadpost release --as again",
        LeadState::Duplicate => "leadpost requeue --include-delivered",
        _ => "leadpost requeue",
    };
    let mut words = vec![format!("{does} --state {}", group.state)];
    words.extend(group.code.iter().map(|code| format!("--code {}", quoted(code))));
    words
        .push(format!("--status {}", group.http_status.map_or_else(|| "none".to_owned(), |status| status.to_string())));
    if !group.reason.is_empty() {
        words.push(format!("--because {}", quoted(&group.reason)));
    }
    words.extend(asked.rest().iter().map(|word| quoted(word)));
    words.join(" ")
}
