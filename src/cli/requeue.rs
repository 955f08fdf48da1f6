//! `leadpost requeue`: replay from the operator's side.

use std::time::Duration;

use super::{Exit, Output, ledger, print_json, say};
use crate::config::Source;
use crate::lead::LeadId;
use crate::ledger::{LeadState, Requeue, Requeued, Selection};

/// Send leads that have ended on their way again, with a fresh budget of attempts
///
/// Their bodies are decoded and validated again, so a mended configuration is enough to save them. Leads that the API took,
/// or has, are left alone without --include-delivered. One transaction: all or nothing; repeated, it finds none. Exit code
/// 1 if a lead that was named is not there, or was left alone.
///
/// Example: leadpost requeue --state exhausted --since 2h --reason 'API was down'
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("which").args(["ids", "state"]),
    override_usage = "leadpost requeue [OPTIONS] <ID>...\n       leadpost requeue [OPTIONS] --state <STATE> [--since <TIME>]",
)]
pub(super) struct RequeueArgs {
    /// Leads to send again
    #[arg(value_name = "ID", conflicts_with = "since")]
    ids: Vec<LeadId>,

    /// All leads in this state; may be given several times
    #[arg(long, value_name = "STATE", value_parser = ended_state)]
    state: Vec<LeadState>,

    /// Only those that came to it within this time, such as 90s, 30m, 2h, 7d
    #[arg(long, value_name = "TIME", requires = "state", value_parser = duration)]
    since: Option<Duration>,

    /// How many become due per second; without it all at once
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// Also leads that the API took, or has: they will be posted once more
    #[arg(long)]
    include_delivered: bool,

    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only say how many
    #[arg(long)]
    dry_run: bool,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What a requeue came to, for scripts.
#[derive(serde::Serialize)]
struct Report<'a> {
    dry_run: bool,
    #[serde(flatten)]
    requeued: &'a Requeued,
}

impl RequeueArgs {
    /// What the arguments may not say together.
    pub(super) fn check(&self) -> Result<(), String> {
        // Said here: as a required group it would say the same of --since alone, which goes with only one of the two.
        if self.ids.is_empty() && self.state.is_empty() {
            return Err(
                "which leads? Name them by <ID>, or by --state <STATE>; leadpost requeue --help says more".to_owned()
            );
        }
        let taken = [LeadState::Delivered, LeadState::Duplicate];
        match self.state.iter().find(|state| taken.contains(state)) {
            Some(state) if !self.include_delivered => Err(format!(
                "--state {state} needs --include-delivered: the API has these leads, and they would be posted once more"
            )),
            _ => Ok(()),
        }
    }
}

pub(super) async fn run(args: RequeueArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "requeue")?;
    ledger.check_schema().await?;
    let dry_run = args.dry_run;
    let selection = if args.ids.is_empty() {
        Selection::States(args.state, args.since.map(|since| since.as_secs_f64()))
    } else {
        Selection::Ids(args.ids)
    };
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let requeued = ledger
        .requeue(Requeue {
            selection,
            include_delivered: args.include_delivered,
            rate_per_s: args.rate,
            by: user.unwrap_or_else(|| "unknown".to_owned()),
            reason: args.reason,
            dry_run,
        })
        .await?;
    if args.output == Output::Json {
        print_json(&Report { dry_run, requeued: &requeued })?;
    } else {
        say(&sentence(requeued.requeued, dry_run));
        for (ids, why) in [
            (&requeued.unknown, "is not in the ledger of this destination"),
            (&requeued.pending, "is pending anyway"),
            (&requeued.delivered, "was taken by the API, or is there already; --include-delivered posts it once more"),
        ] {
            for id in ids {
                say(&format!("  {id} {why}"));
            }
        }
    }
    let all = requeued.unknown.is_empty() && requeued.delivered.is_empty();
    Ok(if all { Exit::Done } else { Exit::No })
}

fn sentence(leads: u64, dry_run: bool) -> String {
    match (leads, dry_run) {
        (1, false) => "1 lead is sent on its way again".to_owned(),
        (1, true) => "1 lead would be sent on its way again".to_owned(),
        (n, false) => format!("{n} leads are sent on their way again"),
        (n, true) => format!("{n} leads would be sent on their way again"),
    }
}

fn ended_state(text: &str) -> Result<LeadState, String> {
    match text.parse()? {
        LeadState::Pending => Err("pending leads are on their way already".to_owned()),
        state => Ok(state),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("write a number above 0".to_owned()),
    }
}

/// A number and its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let problem = || "write a number and its unit, such as 90s, 30m, 2h or 7d".to_owned();
    let unit = text.chars().last().ok_or_else(problem)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        'd' => 86_400.0,
        _ => return Err(problem()),
    };
    let number: f64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| problem())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| problem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        for bad in ["", "90", "h", "-1h", "1w", "1hh", "NaNs"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
