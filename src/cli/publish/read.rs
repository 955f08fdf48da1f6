//! A file of leads, read lead by lead in memory that does not grow with it.
//!
//! Nothing is left out silently: what cannot be read is an entry with its problem, or an error for the whole.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::table::read_csv;
use crate::lead::Code;

/// How far the first character is looked for.
const MAX_BLANK_START: usize = 64 * 1024;

/// The form of a file of leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A JSON object a line
    Jsonl,
    /// One JSON array of objects
    Json,
    /// Comma-separated values; the header names the fields
    Csv,
}

/// A lead as it was read, and where.
pub(super) struct Entry {
    /// Its place in the file: a line, or an index.
    pub(super) place: String,
    pub(super) body: Result<Vec<u8>, String>,
}

/// What is known of a file before it is read.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// Its form, where it was said.
    pub(super) format: Option<Format>,
    /// The longest line.
    pub(super) max_line: usize,
    /// At least one of these fields must be in a CSV header.
    pub(super) fields: Vec<String>,
}

/// Reads the file `name`, and says whether there was anything in it at all.
pub(super) fn read(
    input: impl Read,
    name: &Path,
    expected: &Expected,
    to: &mpsc::Sender<Entry>,
) -> anyhow::Result<bool> {
    let mut input = BufReader::with_capacity(64 * 1024, input);
    let start = start_of(&mut input).context("cannot read the leads")?;
    let any = !start.is_empty();
    let start = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&start);
    let format = expected.format.unwrap_or_else(|| format_of(name, start));
    let input = Cursor::new(start).chain(input);
    match format {
        Format::Jsonl => read_lines(input, expected.max_line, to)?,
        Format::Json => read_array(input, to)?,
        Format::Csv => read_csv(input, expected, to)?,
    }
    Ok(any)
}

/// The bytes up to the first that is neither white space nor part of a byte order mark.
fn start_of(input: impl BufRead) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    for byte in input.bytes().take(MAX_BLANK_START) {
        let byte = byte?;
        start.push(byte);
        let in_mark = "\u{feff}".as_bytes().starts_with(&start);
        if !byte.is_ascii_whitespace() && !in_mark {
            break;
        }
    }
    Ok(start)
}

/// By the name, else by the first character.
fn format_of(name: &Path, start: &[u8]) -> Format {
    let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
    let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
    match (extension.as_str(), first) {
        ("csv", _) => Format::Csv,
        ("jsonl" | "ndjson", _) => Format::Jsonl,
        (_, Some(b'[')) => Format::Json,
        ("json", _) | (_, Some(b'{') | None) => Format::Jsonl,
        (_, Some(_)) => Format::Csv,
    }
}

/// `false`: nobody takes them any more.
pub(super) fn hand_over(to: &mpsc::Sender<Entry>, place: String, body: Result<Vec<u8>, String>) -> bool {
    to.blocking_send(Entry { place, body }).is_ok()
}

fn read_lines(mut input: impl BufRead, max: usize, to: &mpsc::Sender<Entry>) -> anyhow::Result<()> {
    let mut line = Vec::new();
    for number in 1_u64.. {
        let place = format!("line {number}");
        let body = match read_line(&mut input, max, &mut line).with_context(|| format!("cannot read {place}"))? {
            Line::End => break,
            Line::Whole if line.trim_ascii().is_empty() => continue,
            Line::Whole => Ok(line.trim_ascii().to_vec()),
            Line::TooLong => Err(format!("[{}] the line has more than {max} bytes and was skipped", Code::TooLarge)),
        };
        if !hand_over(to, place, body) {
            break;
        }
    }
    Ok(())
}

enum Line {
    Whole,
    TooLong,
    End,
}

/// Reads a line of at most `max` bytes; of a longer one only the end is looked for.
fn read_line(input: &mut impl BufRead, max: usize, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    let (mut any, mut too_long) = (false, false);
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        any |= !buffer.is_empty();
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = end.map_or(buffer, |end| buffer.split_at(end).0);
        too_long |= line.len() + part.len() > max;
        if !too_long {
            line.extend_from_slice(part);
        }
        let (is_last, used) = (end.is_some() || buffer.is_empty(), part.len() + usize::from(end.is_some()));
        input.consume(used);
        if is_last {
            return Ok(match (any, too_long) {
                (false, _) => Line::End,
                (true, true) => Line::TooLong,
                (true, false) => Line::Whole,
            });
        }
    }
}

fn read_array(input: impl Read, to: &mpsc::Sender<Entry>) -> anyhow::Result<()> {
    struct Leads<'a>(&'a mpsc::Sender<Entry>);

    impl<'de> Visitor<'de> for Leads<'_> {
        /// Whether all of them were taken.
        type Value = bool;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON array of leads")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut leads: A) -> Result<bool, A::Error> {
            let mut at = 0;
            let mut taken = true;
            while let Some(lead) = leads.next_element::<Box<RawValue>>()? {
                taken = taken && hand_over(self.0, format!("lead [{at}]"), Ok(lead.get().as_bytes().to_vec()));
                if !taken {
                    break;
                }
                at += 1;
            }
            Ok(taken)
        }
    }

    let mut reader = serde_json::Deserializer::from_reader(input);
    match reader.deserialize_seq(Leads(to)) {
        Ok(true) => reader.end().context("there is more in the file than one JSON array"),
        Ok(false) => Ok(()),
        Err(error) => Err(error).context("the file is not a JSON array of leads"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Hands out one byte at a time, as a slow pipe does.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(into.len()).min(1);
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    type Entries = Vec<(String, Result<String, String>)>;

    pub(crate) fn try_entries(input: &[u8], format: Option<Format>, name: &str) -> (Entries, anyhow::Result<bool>) {
        let (to, mut received) = mpsc::channel(100);
        let fields = ["name", "email", "assistantId"].map(str::to_owned).to_vec();
        let expected = Expected { format, max_line: 200, fields };
        let result = read(Slow(input), Path::new(name), &expected, &to);
        drop(to);
        let mut entries = Vec::new();
        while let Ok(entry) = received.try_recv() {
            entries.push((entry.place, entry.body.map(|body| String::from_utf8(body).expect("UTF-8"))));
        }
        (entries, result)
    }

    pub(crate) fn entries(input: &str, name: &str) -> Entries {
        let (entries, result) = try_entries(input.as_bytes(), None, name);
        result.expect("readable");
        entries
    }

    pub(crate) fn bodies(input: &str, name: &str) -> Vec<String> {
        entries(input, name).into_iter().map(|(_, body)| body.expect("a body")).collect()
    }

    #[test]
    fn lines_arrays_and_csv_are_told_apart_by_name_or_first_character() {
        let lines = "{\"a\":1}\n\n  {\"b\": 2}\r\n";
        assert_eq!(bodies(lines, "-"), ["{\"a\":1}", "{\"b\": 2}"]);
        assert_eq!(bodies(" [ {\"a\":1.10}, [2] ]", "-"), ["{\"a\":1.10}", "[2]"]);
        assert_eq!(bodies("name,email\nAnn,a@b.co\n", "-"), [r#"{"name":"Ann","email":"a@b.co"}"#]);
        assert_eq!(bodies("{,name\n1,2\n", "odd.CSV"), [r#"{"{":"1","name":"2"}"#]);
    }

    #[test]
    fn a_name_that_ends_in_json_is_never_taken_for_csv() {
        assert_eq!(bodies("[{}]", "leads.json"), ["{}"]);
        assert_eq!(bodies("{}\n{}", "leads.json"), ["{}", "{}"]);
        assert_eq!(bodies("name,email\nAnn,a@b.co\n", "leads.JSON"), ["name,email", "Ann,a@b.co"]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_in_every_form() {
        let lead = r#"{"name":"Ann"}"#;
        for (input, name) in [
            (format!("[{lead}]"), "-"),
            (format!("\n[{lead}]"), "leads.json"),
            (format!("{lead}\n"), "-"),
            (format!("{lead}\n"), "leads.jsonl"),
            ("name\nAnn\n".to_owned(), "-"),
            ("name\nAnn\n".to_owned(), "leads.csv"),
        ] {
            assert_eq!(bodies(&format!("\u{feff}{input}"), name), [lead], "{input:?} as {name}");
        }
    }

    #[test]
    fn lines_keep_their_numbers_and_one_that_is_too_long_is_skipped_alone() {
        let (long, longest) = ("x".repeat(201), "x".repeat(200));
        let found = entries(&format!("\n{{}}\n{long}\n{{\"a\":1}}\n{longest}"), "leads.jsonl");
        assert_eq!(found[0], ("line 2".to_owned(), Ok("{}".to_owned())));
        assert_eq!(found[1].0, "line 3");
        assert!(found[1].1.as_ref().is_err_and(|problem| problem.contains("[too_large]")), "{found:?}");
        assert_eq!(found[2], ("line 4".to_owned(), Ok("{\"a\":1}".to_owned())));
        assert_eq!(found[3], ("line 5".to_owned(), Ok(longest)));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn a_file_is_empty_only_if_nothing_is_in_it() {
        for (input, any) in [("", false), ("\n", true), ("[]", true), ("\u{feff}", true), ("name,email\n", true)] {
            let (found, result) = try_entries(input.as_bytes(), None, "-");
            assert!(found.is_empty() && result.is_ok_and(|found| found == any), "{input:?}");
        }
    }

    #[test]
    fn what_follows_an_array_is_not_left_out_silently() {
        let (found, result) = try_entries(b"[{}]\n[{}]", None, "-");
        assert!(found.len() == 1 && result.is_err());
        assert!(try_entries(b"[{}", None, "-").1.is_err());
    }
}
