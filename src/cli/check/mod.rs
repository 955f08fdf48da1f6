//! `leadpost check`: does the set-up work?
//!
//! # Rules
//! - Nothing is changed and no lead is posted: what is written is undone, what is published comes back, and a token that was fetched is
//!   given back where the API has that.
//! - RabbitMQ, Postgres, the token endpoint and the API are looked at side by side, each for so long at most: one that is away hides
//!   nothing of the others.
//! - Every id is in every report. What cannot be looked at is skipped, and says because of what.
//! - What failed says what to do.

mod api;
mod postgres;
mod rabbitmq;
mod report;

use std::time::Duration;

use super::{Exit, Output};
use crate::config::{ConfigError, Settings, Source};
use report::{CONFIG, Check, Report, Verdict};

/// How long a neighbour is looked at.
const LIMIT: Duration = Duration::from_secs(12);

/// A clock that is off by more is worth a word.
const SKEW_S: f64 = 30.0;

/// Look whether the set-up works: configuration, RabbitMQ, Postgres, log-in and API, each failure with its fix
///
/// Changes nothing and posts no lead. It logs in as a worker does, and out again; where an account has one session at a time, that may end
/// the session of a worker. It takes 15 seconds at most, also when nobody answers.
///
/// Exit code 0 if nothing failed, warnings or not; 1 if something did; 69 if that is only that a neighbour cannot be reached; 78 if the
/// configuration cannot be used.
///
/// Example: leadpost check --output json
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// How to print it; in JSON, the ids of the checks do not change
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) async fn run(args: CheckArgs, source: &Source) -> anyhow::Result<Exit> {
    let (report, exit) = match source.read() {
        Ok(settings) => {
            let mut checks = vec![config(source.load())];
            checks.extend(neighbours(&settings).await);
            let report = Report::of(checks);
            let exit = exit_of(&report);
            (report, exit)
        }
        Err(error) => {
            let rest = report::IDS.iter().filter(|id| **id != CONFIG).map(|id| Check::skipped(id, CONFIG));
            (Report::of(std::iter::once(config(Err(error))).chain(rest).collect()), Exit::Config)
        }
    };
    report.print(args.output)?;
    Ok(exit)
}

fn exit_of(report: &Report) -> Exit {
    let failed: Vec<&Check> = report.checks.iter().filter(|check| check.status == Verdict::Failed).collect();
    match failed.as_slice() {
        [] => Exit::Done,
        // It comes first.
        [first, ..] if first.id == CONFIG => Exit::Config,
        all if all.iter().all(|check| check.is_unreachable) => Exit::Unreachable,
        _ => Exit::No,
    }
}

fn config(loaded: Result<Settings, ConfigError>) -> Check {
    match loaded {
        Ok(settings) => {
            Check::ok(CONFIG, format!("sound, for {}; leadpost config show says more", settings.destination.name()))
        }
        Err(ConfigError(problems)) => {
            let fix = "change what each line says; leadpost config show says where a value comes from";
            Check::failed(CONFIG, problems.join("\n"), fix)
        }
    }
}

/// Everything but the configuration, side by side.
async fn neighbours(settings: &Settings) -> Vec<Check> {
    let (rabbitmq, postgres, api) =
        tokio::join!(rabbitmq::look(settings), postgres::look(settings), api::look(settings));
    [rabbitmq, postgres, api].concat()
}

/// What to do, where a connection broke over TLS. `trust`: what says whom this machine trusts.
fn fix_of_tls(text: &str, key: &str, trust: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if text.contains("certificate") {
        let name = format!("the name in {key} must be one that the certificate is for");
        return Some(format!("{name}, and this machine must trust who signed it ({trust})"));
    }
    // What rustls makes of an answer in plain text.
    let is_plain = text.contains("corrupt message") || text.contains("invalidcontenttype");
    is_plain.then(|| format!("what answers there does not speak TLS: check scheme and port of {key}"))
}

/// Whom this machine trusts.
const TRUST: &str = "SSL_CERT_FILE";

/// What a clock is against ours.
fn clock(id: &'static str, whose: &str, ahead_s: f64) -> Check {
    let off = super::ago(ahead_s.abs());
    let found = match ahead_s {
        ahead if ahead.abs() < 1.0 => format!("{whose} agrees with this machine's"),
        ahead if ahead > 0.0 => format!("{whose} is {off} ahead of this machine's"),
        _ => format!("{whose} is {off} behind this machine's"),
    };
    if ahead_s.abs() <= SKEW_S {
        return Check::ok(id, found);
    }
    let fix = "see which of the two is wrong (date -u) and let it follow a time server (NTP); leads do not depend on it, but log lines, \
               certificates and signed tokens do";
    Check::warning(id, found, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(checks: Vec<Check>) -> Exit {
        exit_of(&Report::of(checks))
    }

    #[test]
    fn the_exit_code_says_what_kind_of_trouble_it_is() {
        let warning = || Check::warning("rabbitmq.queue_type", "classic", "declare another");
        let away = || Check::unreachable("postgres.reach", "nobody", "start it");
        let wrong = || Check::failed("rabbitmq.login", "no", "set it");
        assert_eq!(exit(vec![Check::ok(CONFIG, "sound"), warning()]), Exit::Done);
        assert_eq!(
            exit(vec![warning(), away(), Check::skipped("postgres.login", "postgres.reach")]),
            Exit::Unreachable
        );
        assert_eq!(exit(vec![away(), wrong()]), Exit::No);
        assert_eq!(exit(vec![away(), Check::failed(CONFIG, "unsound", "mend it")]), Exit::Config);
    }

    #[test]
    fn what_breaks_over_tls_is_told_apart() {
        let fix = |text| fix_of_tls(text, "amqp.url", TRUST);
        assert!(fix("IO error: invalid peer certificate: UnknownIssuer").is_some_and(|fix| fix.contains(TRUST)));
        assert!(
            fix("received corrupt message of type InvalidContentType")
                .is_some_and(|fix| fix.contains("scheme and port"))
        );
        assert_eq!(fix("Connection refused"), None);
    }

    #[test]
    fn a_clock_that_is_far_off_is_a_warning_in_both_directions() {
        let said = |ahead_s| clock("api.clock", "the API's clock", ahead_s);
        assert_eq!((said(0.4).status, said(-20.0).status), (Verdict::Ok, Verdict::Ok));
        let (ahead, behind) = (said(90.0), said(-3600.0));
        assert!(ahead.status == Verdict::Warning && ahead.found.contains("90 s ahead"), "{ahead:?}");
        assert!(behind.status == Verdict::Warning && behind.found.contains("60 min behind"), "{behind:?}");
    }
}
