//! `leadpost leads`: single leads.

use super::{Exit, Output, ledger, print, print_bytes, print_json, say};
use crate::config::Source;
use crate::lead::LeadId;
use crate::ledger::{LeadRecord, LeadState};

/// Look at leads
#[derive(Debug, clap::Subcommand)]
pub(super) enum LeadsCommand {
    /// Show what happened to a lead, attempt by attempt, and what comes next
    ///
    /// The body is personal data and is only shown with --body. Exit code 1 if the ledger has no such lead.
    ///
    /// Example: DATABASE_URL=postgres://… leadpost leads show 3f8a1c1e-5b3f-4a36-9d53-0b7c6f0f2a10
    Show {
        /// The lead's id
        #[arg(value_name = "ID")]
        id: LeadId,
        /// Print the message body as it came, byte for byte, and nothing else
        #[arg(long)]
        body: bool,
        /// How to print it
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

pub(super) async fn run(command: LeadsCommand, source: &Source) -> anyhow::Result<Exit> {
    let LeadsCommand::Show { id, body, output } = command;
    let ledger = ledger(&source.read()?, "leads show")?;
    ledger.check_schema().await?;
    if body {
        return match ledger.body(id).await? {
            Some(body) => {
                print_bytes(&body)?;
                Ok(Exit::Done)
            }
            None => unknown(id),
        };
    }
    let Some(lead) = ledger.show(id).await? else { return unknown(id) };
    match output {
        Output::Json => print_json(&lead)?,
        Output::Text => show(&lead)?,
    }
    Ok(Exit::Done)
}

fn unknown(id: LeadId) -> anyhow::Result<Exit> {
    say(&format!("there is no lead {id} in the ledger; is its message still in the queue?"));
    Ok(Exit::No)
}

fn show(lead: &LeadRecord) -> anyhow::Result<()> {
    print(&format!("lead {}   {}", lead.id, lead.state))?;
    print(&format!("  {}", sentence(lead)))?;
    for violation in &lead.violations {
        print(&format!("  - {} [{}] {}", violation.field, violation.code, violation.message))?;
    }
    if let Some(warning) = &lead.warning {
        print(&format!("  warning: {warning}"))?;
    }
    let mut facts = vec![
        ("destination", lead.destination.clone()),
        ("queue", lead.queue.clone()),
        ("message id", lead.message_id.clone().unwrap_or_else(|| "none".to_owned())),
        ("accepted", moment(lead.accepted_at)),
        ("messages", format!("{} received", lead.received)),
        ("body", format!("{} bytes", lead.body_bytes)),
    ];
    if let Some(id) = lead.conflict_of {
        facts.push(("came as", id.to_string()));
    }
    for (name, value) in [
        ("remote id", &lead.remote_id),
        ("remote state", &lead.remote_state),
        ("sub-state", &lead.remote_sub_state),
        ("next action", &lead.next_schedule_time),
    ] {
        if let Some(value) = value {
            facts.push((name, value.clone()));
        }
    }
    for (name, value) in facts {
        print(&format!("  {name:<12} {value}"))?;
    }
    for attempt in &lead.history {
        let status = attempt.http_status.map(|status| format!(" {status}")).unwrap_or_default();
        let counted = if attempt.charged { "" } else { " (not counted)" };
        let query = if attempt.request == "query" { "query: " } else { "" };
        print(&format!(
            "  #{} {} {query}{}{status} after {} ms{counted}",
            attempt.number,
            moment(attempt.started_at),
            attempt.outcome,
            attempt.duration_ms
        ))?;
        if let Some(reason) = &attempt.reason {
            print(&format!("     {reason}"))?;
        }
    }
    for replay in &lead.replayed {
        let reason = replay.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        print(&format!(
            "  replayed {} from {} by {} ({}){reason}",
            moment(replay.replayed_at),
            replay.from_state,
            replay.replayed_by,
            replay.kind
        ))?;
    }
    Ok(())
}

/// Why it is where it is, and what comes next.
fn sentence(lead: &LeadRecord) -> String {
    let why = lead.reason.as_deref().unwrap_or("no attempt has been made yet");
    match lead.state {
        LeadState::Pending => {
            let when = lead.next_attempt_at.map(moment).unwrap_or_default();
            match &lead.leased_by {
                Some(worker) => format!("{worker} is posting it; its lease ends {when}"),
                None => format!("waits to be posted, due {when}: {why}"),
            }
        }
        LeadState::Delivered => lead.reason.clone().unwrap_or_else(|| "the API took it".to_owned()),
        LeadState::Duplicate => format!("the API has it already: {why}"),
        LeadState::Invalid => format!("not a valid lead, never posted; mend it and publish it again: {why}"),
        LeadState::Rejected => format!("the API refuses it: {why}. leadpost requeue sends it again"),
        LeadState::Exhausted => format!("given up: {why}. leadpost requeue sends it again"),
        LeadState::Uncertain => format!("may have been posted; leadpost requeue posts it again: {why}"),
        LeadState::Cancelled => format!("stopped by a person: {why}"),
    }
}

fn moment(at: time::OffsetDateTime) -> String {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]Z");
    at.to_offset(time::UtcOffset::UTC).format(FORMAT).unwrap_or_else(|_| at.to_string())
}
