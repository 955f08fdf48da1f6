//! What commands print: data to stdout, talk to stderr.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::ValueEnum;
use time::{OffsetDateTime, UtcOffset};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// For scripts
    Json,
}

/// Talk, to stderr. A command goes on when nobody listens.
pub(super) fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Data that did not reach its reader.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to stdout: {0}")]
pub(super) struct OutputError(std::io::Error);

impl OutputError {
    pub(super) fn new(error: std::io::Error) -> Self {
        Self(error)
    }

    pub(super) fn is_broken_pipe(&self) -> bool {
        self.0.kind() == std::io::ErrorKind::BrokenPipe
    }
}

/// A line of data, to stdout.
///
/// # Errors
/// That it could not be written. Passed on to the end, a reader that went away ends the program quietly with exit code 0,
/// and anything else, such as a full disk, with a text and exit code 1.
pub(super) fn print(text: &str) -> Result<(), OutputError> {
    print_bytes(text.as_bytes())?;
    print_bytes(b"\n")
}

/// Data as it is, to stdout.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), OutputError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(OutputError)
}

/// Data as JSON, to stdout.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(print(&serde_json::to_string_pretty(value)?)?)
}

/// Asks whether to go on, where there is somebody to ask.
///
/// # Errors
/// That there is nobody.
pub(super) fn is_confirmed(what: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        anyhow::bail!("{what}; say --yes to do it, as nobody can be asked here");
    }
    say(&format!("{what}. Go on? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Columns under their heads.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|name| name.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let mut table = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        table.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        table.push('\n');
    }
    table
}

/// Who sits there, as far as the environment says: `LEADPOST_OPERATOR`, or the user; in a container, which knows none, its host at least.
pub(super) fn who() -> String {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let user = ["LEADPOST_OPERATOR", "SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(named);
    user.unwrap_or_else(|| named("HOSTNAME").map_or_else(|| "unknown".to_owned(), |host| format!("somebody on {host}")))
}

/// A time, to the second.
pub(super) fn moment(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    format!("{} {:02}:{:02}:{:02}Z", at.date(), at.hour(), at.minute(), at.second())
}

/// As a shell reads it.
pub(super) fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Seconds as people say them.
pub(super) fn ago(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        let said = [0.25, 5.0, 300.0, 9000.0, 500_000.0].map(ago);
        assert_eq!(said, ["250 ms", "5 s", "5 min", "2.5 h", "5.8 days"]);
    }

    #[test]
    fn a_shell_reads_what_was_meant() {
        assert_eq!(quoted("http_422"), "http_422");
        assert_eq!(quoted("it's \"…\" $HOME"), r#"'it'\''s "…" $HOME'"#);
        assert_eq!(quoted(""), "''");
    }
}
