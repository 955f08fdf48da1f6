//! Which leads: the same options in every command.

use std::collections::HashSet;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::lead::{Key, LeadId};
use crate::ledger::{Filter, LeadState, Subject, When};

/// Which leads. What is given several times, or with commas, may be any of these; different options have to fit together.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Which leads")]
pub(super) struct FilterArgs {
    /// Leads by their ids
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<LeadId>,

    /// In this state: pending, delivered, duplicate, invalid, rejected, exhausted, uncertain or cancelled
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    pub(super) state: Vec<LeadState>,

    /// Ended within this time (90s, 30m, 2h, 7d), or since then (2026-08-31 or 2026-08-31T14:00:00Z); pending ones: accepted
    #[arg(long, value_name = "TIME", value_parser = when)]
    pub(super) since: Option<When>,

    /// Ended before then; pending ones: accepted
    #[arg(long, value_name = "TIME", value_parser = when)]
    until: Option<When>,

    /// Accepted since then
    #[arg(long, value_name = "TIME", value_parser = when)]
    accepted_since: Option<When>,

    /// Accepted before then
    #[arg(long, value_name = "TIME", value_parser = when)]
    accepted_until: Option<When>,

    /// Of the person with this address
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', value_parser = address)]
    email: Vec<String>,

    /// For this assistant, by id or address
    #[arg(long, value_name = "ID", value_delimiter = ',', value_parser = given)]
    assistant: Vec<String>,

    /// Whose reason has this code, such as http_422
    #[arg(long, value_name = "CODE", value_delimiter = ',', value_parser = given)]
    code: Vec<String>,

    /// Whose last answer had this status: 422, or 5xx; none: there was no answer
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = status)]
    status: Vec<(i16, i16)>,

    /// For which so many attempts were made: 3, 3.. (or more), ..3 (or fewer), 1..3
    #[arg(long, value_name = "N", value_parser = attempts)]
    attempts: Option<(i32, i32)>,

    /// From this queue
    #[arg(long, value_name = "QUEUE", value_delimiter = ',', value_parser = given)]
    queue: Vec<String>,

    /// Whose reason is this, in the words of leadpost failures
    #[arg(long, value_name = "TEXT", value_parser = given)]
    because: Option<String>,

    /// Delivered, but the API may not be working them
    #[arg(long)]
    warning: bool,

    /// Pending and due
    #[arg(long)]
    due: bool,
}

impl FilterArgs {
    /// Whether nothing was given.
    pub(super) fn is_empty(&self) -> bool {
        self.filter().is_empty()
    }

    /// Whether nothing but ids was given.
    pub(super) fn only_ids(&self) -> bool {
        !self.ids.is_empty() && Self { ids: Vec::new(), ..self.clone() }.is_empty()
    }

    /// What the ledger looks for.
    pub(super) fn filter(&self) -> Filter {
        let mut states = self.state.clone();
        states.sort_unstable();
        states.dedup();
        let keys = |texts: &[String], key: fn(&str) -> Key| {
            let mut seen = HashSet::new();
            texts.iter().map(|text| key(text)).filter(|key| seen.insert(*key)).collect::<Vec<_>>()
        };
        Filter {
            ids: self.ids.clone(),
            states: (!states.is_empty()).then_some(states),
            since: self.since,
            until: self.until,
            accepted_since: self.accepted_since,
            accepted_until: self.accepted_until,
            emails: keys(&self.email, Key::of_email),
            assistants: keys(&self.assistant, Key::of_assistant),
            codes: self.code.clone(),
            statuses: self.status.clone(),
            attempts: self.attempts.filter(|range| *range != (0, i32::MAX)),
            queues: self.queue.clone(),
            because: self.because.clone(),
            warned: self.warning,
            due: self.due,
            not_erased: false,
        }
    }
}

impl FilterArgs {
    /// What says the same on a command line, but for ids, states, codes, statuses and reasons.
    pub(super) fn rest(&self) -> Vec<String> {
        let time = |when: When| match when {
            When::Ago(seconds) => format!("{seconds}s"),
            When::At(at) => at.format(&Rfc3339).unwrap_or_else(|_| at.to_string()),
        };
        let mut words = Vec::new();
        let times = [
            ("--since", self.since),
            ("--until", self.until),
            ("--accepted-since", self.accepted_since),
            ("--accepted-until", self.accepted_until),
        ];
        for (option, when) in times {
            if let Some(when) = when {
                words.extend([option.to_owned(), time(when)]);
            }
        }
        for (option, texts) in [("--email", &self.email), ("--assistant", &self.assistant), ("--queue", &self.queue)] {
            if !texts.is_empty() {
                words.extend([option.to_owned(), texts.join(",")]);
            }
        }
        if let Some((from, to)) = self.attempts {
            words.extend(["--attempts".to_owned(), format!("{from}..{to}")]);
        }
        words.extend(
            [(self.warning, "--warning"), (self.due, "--due")]
                .iter()
                .filter(|(is, _)| *is)
                .map(|(_, option)| (*option).to_owned()),
        );
        words
    }
}

/// A whole email address.
pub(super) fn address(text: &str) -> Result<String, String> {
    Subject::of(text).map(|_| text.to_owned())
}

/// A text that says something.
fn given(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("it is empty, which would be no condition at all".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn state(text: &str) -> Result<LeadState, String> {
    text.parse()
}

/// A time that lies so far back, or a point in time.
fn when(text: &str) -> Result<When, String> {
    if let Ok(ago) = duration(text) {
        return Ok(When::Ago(ago.as_secs_f64()));
    }
    let midnight = format!("{text}T00:00:00Z");
    let at = OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(&midnight, &Rfc3339));
    at.map(When::At).map_err(|_| {
        "write a number and its unit, such as 90s, 30m, 2h or 7d, or a time such as 2026-08-31 or 2026-08-31T14:00:00Z"
            .to_owned()
    })
}

fn status(text: &str) -> Result<(i16, i16), String> {
    let problem = || "write a status such as 422, or 5xx for all that begin with 5, or none".to_owned();
    if text == "none" {
        return Ok((0, 0));
    }
    if let Some(class) = text.strip_suffix("xx") {
        let class: i16 = class.parse().map_err(|_| problem())?;
        return if (1..=9).contains(&class) { Ok((class * 100, class * 100 + 99)) } else { Err(problem()) };
    }
    let status = text.parse().map_err(|_| problem())?;
    if (100..=999).contains(&status) { Ok((status, status)) } else { Err(problem()) }
}

fn attempts(text: &str) -> Result<(i32, i32), String> {
    let problem = |_| "write a number, or a range such as 3.., ..3 or 1..3".to_owned();
    let bound = |text: &str, open: i32| if text.is_empty() { Ok(open) } else { text.parse().map_err(problem) };
    match text.split_once("..") {
        Some((from, to)) => Ok((bound(from, 0)?, bound(to, i32::MAX)?)),
        None => text.parse().map(|n| (n, n)).map_err(problem),
    }
}

/// A number and its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
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
    // Longer than anything is kept, and within what a database can reckon with.
    let most = 100.0 * 365.0 * 86_400.0;
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| problem())?;
    if duration.as_secs_f64() > most { Err("write at most a hundred years".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        for bad in ["", "90", "h", "-1h", "1w", "1hh", "NaNs", "99999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_may_be_a_day_or_a_moment_with_its_zone() {
        let at = |unix| Ok(When::At(OffsetDateTime::from_unix_timestamp(unix).expect("a time")));
        assert_eq!(when("2026-08-31"), at(1_788_134_400));
        assert_eq!(when("2026-08-31T02:00:00+02:00"), at(1_788_134_400));
        assert_eq!(when("2h"), Ok(When::Ago(7200.0)));
        for bad in ["yesterday", "2026-13-01", "2026-08-31T14:00:00", ""] {
            assert!(when(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn statuses_and_attempts_may_be_ranges() {
        assert_eq!(status("422"), Ok((422, 422)));
        assert_eq!(status("5xx"), Ok((500, 599)));
        assert_eq!(status("none"), Ok((0, 0)));
        assert_eq!(attempts("3"), Ok((3, 3)));
        assert_eq!(attempts("3.."), Ok((3, i32::MAX)));
        assert_eq!(attempts("..3"), Ok((0, 3)));
        assert_eq!(attempts("1..3"), Ok((1, 3)));
        for bad in ["", "5x", "xx", "99", "1000", "0xx"] {
            assert!(status(bad).is_err(), "{bad}");
        }
        for bad in ["", "x", "1...3", "1..x"] {
            assert!(attempts(bad).is_err(), "{bad}");
        }
    }
}
