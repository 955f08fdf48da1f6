//! `leadpost leads show`: the story of a lead.

use super::super::{Exit, Output, ago, print, print_bytes, print_json, say};
use super::list::Reveal;
use crate::lead::{LeadId, Person, assistant, mask_text};
use crate::ledger::{LeadRecord, LeadState, Ledger};

/// Show what happened to a lead, attempt by attempt, why it is where it is, and what comes next
///
/// The person is masked, and so are addresses in what the API said. Exit code 1 if the ledger has no such lead.
///
/// Example: leadpost leads show 3f8a1c1e-5b3f-4a36-9d53-0b7c6f0f2a10
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ShowArgs {
    /// The lead's id
    #[arg(value_name = "ID")]
    id: LeadId,
    /// Print the message body as it came, byte for byte, and nothing else. It is put on record as with --reveal
    #[arg(long)]
    body: bool,
    #[command(flatten)]
    reveal: Reveal,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// A lead with its person, for scripts.
#[derive(serde::Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    lead: &'a LeadRecord,
    person: &'a Person,
    assistant: &'a Option<String>,
    sentence: String,
}

pub(super) async fn run(args: ShowArgs, ledger: &Ledger) -> anyhow::Result<Exit> {
    let (id, reveal) = (args.id, args.reveal.reveal);
    let Some(mut lead) = ledger.show(id).await? else { return unknown(id) };
    let Some(body) = ledger.body(id).await? else { return unknown(id) };
    if args.body {
        Reveal { reveal: true, reason: args.reveal.reason }
            .record(ledger, "leads show --body", &lead.destination, &[id])
            .await?;
        print_bytes(&body)?;
        return Ok(Exit::Done);
    }
    args.reveal.record(ledger, "leads show", &lead.destination, &[id]).await?;
    let mut person = Person::of(&body);
    let assistant = assistant(&body);
    if !reveal {
        mask(&mut lead, &person);
        person = person.masked();
    }
    match args.output {
        Output::Json => {
            print_json(&Shown { lead: &lead, person: &person, assistant: &assistant, sentence: sentence(&lead) })?
        }
        Output::Text => show(&lead, &person, &assistant)?,
    }
    Ok(Exit::Done)
}

/// Masks what the API, or a person, may have written of the lead's person.
fn mask(lead: &mut LeadRecord, person: &Person) {
    if let Some(id) = &mut lead.message_id {
        *id = mask_text(id).into_owned();
    }
    let texts = [&mut lead.reason, &mut lead.warning].into_iter();
    let of_attempts = lead.history.iter_mut().map(|attempt| &mut attempt.reason);
    let of_replays = lead.replayed.iter_mut().map(|replay| &mut replay.reason);
    let of_people = lead.interventions.iter_mut().map(|intervention| &mut intervention.reason);
    for text in texts.chain(of_attempts).chain(of_replays).chain(of_people).flatten() {
        *text = person.masked_in(text);
    }
}

fn unknown(id: LeadId) -> anyhow::Result<Exit> {
    say(&format!("there is no lead {id} in the ledger; is its message still in the queue?"));
    Ok(Exit::No)
}

fn show(lead: &LeadRecord, person: &Person, assistant: &Option<String>) -> anyhow::Result<()> {
    print(&format!("lead {}   {}", lead.id, lead.state))?;
    print(&format!("  {}", sentence(lead)))?;
    for violation in &lead.violations {
        print(&format!("  - {} [{}] {}", violation.field, violation.code, violation.message))?;
    }
    if let Some(warning) = &lead.warning {
        print(&format!("  warning: {warning}"))?;
    }
    let mut facts = Vec::new();
    for (name, value) in
        [("name", &person.name), ("email", &person.email), ("phone", &person.phone), ("assistant", assistant)]
    {
        if let Some(value) = value {
            facts.push((name, value.clone()));
        }
    }
    facts.extend([
        ("destination", lead.destination.clone()),
        ("queue", lead.queue.clone()),
        ("message id", lead.message_id.clone().unwrap_or_else(|| "none".to_owned())),
        ("accepted", moment(lead.accepted_at)),
        ("messages", format!("{} received", lead.received)),
        ("body", format!("{} bytes", lead.body_bytes)),
    ]);
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
    for intervention in &lead.interventions {
        let reason = intervention.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let what = match intervention.kind.as_str() {
            "cancel" => "cancelled",
            "release" => "settled as delivered",
            "edit" => "body corrected",
            "erase" => "personal data erased",
            other => other,
        };
        let (at, from, by) = (moment(intervention.done_at), &intervention.from_state, &intervention.done_by);
        print(&format!("  {what} {at} from {from} by {by}{reason}"))?;
    }
    Ok(())
}

/// Why it is where it is, and what comes next.
fn sentence(lead: &LeadRecord) -> String {
    let sent_again = if lead.attempts > 0 { "it was sent on its way again" } else { "no attempt has been made yet" };
    let why = lead.reason.as_deref().unwrap_or(sent_again);
    if let Some(at) = lead.erased_at {
        return format!("what was personal of it was erased {}; it cannot be sent again", moment(at));
    }
    match lead.state {
        LeadState::Pending => {
            let Some(at) = lead.next_attempt_at else { return why.to_owned() };
            let overdue = (time::OffsetDateTime::now_utc() - at).as_seconds_f64();
            match &lead.leased_by {
                Some(worker) if overdue < 0.0 => {
                    format!(
                        "{worker} is posting it; if nothing is heard of that until {}, it counts as uncertain",
                        moment(at)
                    )
                }
                Some(worker) => format!(
                    "{worker} was posting it and has not been heard of; the next worker that looks settles it as uncertain"
                ),
                None if overdue < 0.0 => {
                    format!("waits to be posted, due {} (in {}): {why}", moment(at), ago(-overdue))
                }
                None => format!(
                    "waits to be posted, due for {}: {why}. leadpost status says whether a worker runs, and what holds it",
                    ago(overdue)
                ),
            }
        }
        LeadState::Delivered => lead.reason.clone().unwrap_or_else(|| "the API took it".to_owned()),
        LeadState::Duplicate => format!("the API has it already: {why}"),
        LeadState::Invalid => {
            format!(
                "not a valid lead, never posted: {why}. Publish it again mended, or correct it with leadpost leads edit {}",
                lead.id
            )
        }
        LeadState::Rejected => {
            format!(
                "the API refuses it: {why}. leadpost leads edit corrects it, leadpost requeue sends it again as it is"
            )
        }
        LeadState::Exhausted => format!("given up: {why}. leadpost requeue sends it again"),
        LeadState::Uncertain => format!(
            "may have been posted: {why}. Look for it at the API: leadpost release {} --as delivered settles it, --as again posts it again",
            lead.id
        ),
        LeadState::Cancelled => format!("{why}. leadpost requeue sends it all the same"),
    }
}

pub(super) fn moment(at: time::OffsetDateTime) -> String {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]Z");
    at.to_offset(time::UtcOffset::UTC).format(FORMAT).unwrap_or_else(|_| at.to_string())
}
