//! `leadpost audit`: who decided what about the destination as a whole, and who was shown personal data.

use super::{Exit, Output, ledger, moment, print_bytes, print_json, say, table};
use crate::config::Source;
use crate::lead::mask_text;
use crate::ledger::{Audited, HOLD_LIFT};

/// Show who lifted a hold, redacted answers or was shown personal data, when and why; the newest first
///
/// Of this destination, and of commands that are about all of them. What people did to a lead stands with it: leadpost leads show. What retention
/// does is in the logs.
///
/// Example: leadpost audit --limit 20
#[derive(Debug, clap::Args)]
pub(super) struct AuditArgs {
    /// At most so many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,

    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) async fn run(args: &AuditArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "audit")?;
    ledger.check_schema().await?;
    let audited: Vec<Audited> = ledger.audit(None, args.limit).await?.into_iter().map(masked).collect();
    if args.output == Output::Json {
        print_json(&audited)?;
    } else if audited.is_empty() {
        say("nothing is on record yet");
    } else {
        let rows: Vec<Vec<String>> = audited.iter().map(row).collect();
        print_bytes(table(&["when", "who", "command", "what", "why"], &rows).as_bytes())?;
    }
    Ok(Exit::Done)
}

fn row(audited: &Audited) -> Vec<String> {
    let Audited { at, by, command, affected, until, reason } = audited;
    let until = until.map(moment);
    let what = match (command.as_str(), until) {
        ("redact", Some(until)) => format!("answers of {affected} attempts before {until}"),
        (HOLD_LIFT, Some(until)) => format!("held until {until}; {affected} leads became due"),
        (HOLD_LIFT, None) => format!("{affected} leads became due"),
        _ => format!("was shown {affected} leads"),
    };
    vec![moment(*at), by.clone(), command.clone(), what, reason.clone().unwrap_or_default()]
}

/// Without the addresses that people write into their reasons.
pub(super) fn masked(audited: Audited) -> Audited {
    Audited { reason: audited.reason.map(|reason| mask_text(&reason).into_owned()), ..audited }
}
