//! Leads as CSV.

use std::io::Read;

use anyhow::bail;
use tokio::sync::mpsc;

use super::read::{Entry, Expected, hand_over};
use crate::lead::FieldKind;

/// How much of a header is shown, in characters.
const MAX_SHOWN: usize = 200;

/// Each row becomes an object with the header's names; empty cells are left out, ids of digits become numbers.
pub(super) fn read_csv(input: impl Read, expected: &Expected, to: &mpsc::Sender<Entry>) -> anyhow::Result<()> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(input);
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(error) => match error.into_kind() {
            csv::ErrorKind::Io(error) => return Err(anyhow::Error::new(error).context("cannot read the CSV header")),
            _ => bail!("the CSV header is not UTF-8"),
        },
    };
    check(&header, &expected.fields)?;
    for record in reader.into_records() {
        let (place, body) = match record {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                let cells = header.iter().zip(record.iter()).filter(|(_, cell)| !cell.trim().is_empty());
                let object: Vec<String> =
                    cells.map(|(name, cell)| format!("{}:{}", json(name), value(name, cell))).collect();
                (format!("line {line}"), Ok(format!("{{{}}}", object.join(",")).into_bytes()))
            }
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                let problem = problem_of(&error);
                match error.into_kind() {
                    csv::ErrorKind::Io(error) => {
                        return Err(anyhow::Error::new(error).context("cannot read on in the CSV file"));
                    }
                    _ => (format!("line {line}"), Err(problem)),
                }
            }
        };
        if !hand_over(to, place, body) {
            break;
        }
    }
    Ok(())
}

/// A header names each field once, and at least one that a lead must have: else it is a row of data, or another kind of file.
fn check(header: &csv::StringRecord, fields: &[String]) -> anyhow::Result<()> {
    if let Some((_, name)) =
        header.iter().enumerate().find(|(at, name)| header.iter().take(*at).any(|other| other == *name))
    {
        bail!("the CSV header names {} twice", shown([name]));
    }
    // An empty file has an empty header.
    if header.is_empty() || fields.is_empty() || header.iter().any(|name| fields.iter().any(|field| field == name)) {
        return Ok(());
    }
    let wanted = fields.join(", ");
    let first = header.get(0).unwrap_or_default();
    if first.starts_with(['{', '[']) {
        bail!(
            "this is not CSV but looks like JSON: its first line names none of {wanted}. --format jsonl or json reads it"
        );
    }
    let same = |name: &str| fields.iter().any(|field| field.eq_ignore_ascii_case(name));
    let hint = if header.len() == 1 && first.contains([';', '\t']) {
        "cells must be separated by commas, not by ; or tabs"
    } else if header.iter().any(same) {
        "upper and lower case matter"
    } else {
        "the first row must hold the fields' names, separated by commas; if the file is no CSV, --format says what it is"
    };
    bail!("the CSV header names none of {wanted}; it is {}: {hint}", shown(header))
}

fn shown<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("{name:?}")).collect();
    let text = names.join(", ");
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{} …", text.split_at(end).0),
        None => text,
    }
}

/// The library's own texts would repeat what stands in the row.
fn problem_of(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("the row has {len} cells, the header {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "the row is not UTF-8".to_owned(),
        _ => "the row cannot be read".to_owned(),
    }
}

fn value(name: &str, cell: &str) -> String {
    let is_id = FieldKind::of(name) == FieldKind::Id;
    let cell = if is_id { cell.trim() } else { cell };
    let is_number = is_id && cell.bytes().all(|byte| byte.is_ascii_digit()) && (cell == "0" || !cell.starts_with('0'));
    if is_number { cell.to_owned() } else { json(cell) }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::read::Format;
    use super::super::read::tests::{bodies, entries, try_entries};

    fn problem(input: &str, format: Option<Format>, name: &str) -> String {
        let (entries, result) = try_entries(input.as_bytes(), format, name);
        assert!(entries.is_empty(), "{entries:?}");
        format!("{:#}", result.expect_err("must be refused"))
    }

    #[test]
    fn csv_leaves_out_empty_cells_and_makes_numbers_of_ids_only() {
        let input = "name,phone,assistantId,scheduleId,context\n\"Lee, Ann\",0049,61,007,\n Bo ,,team,0,\"a\nb\"\n";
        assert_eq!(
            bodies(input, "x.csv"),
            [
                r#"{"name":"Lee, Ann","phone":"0049","assistantId":61,"scheduleId":"007"}"#,
                r#"{"name":" Bo ","assistantId":"team","scheduleId":0,"context":"a\nb"}"#,
            ]
        );
    }

    #[test]
    fn a_bad_row_is_reported_with_its_line_and_without_its_content() {
        let entries = entries("name,email\nAnn\nBo,b@c.de\n", "x.csv");
        assert_eq!(entries[0], ("line 2".to_owned(), Err("the row has 1 cells, the header 2".to_owned())));
        assert!(entries[1].1.is_ok());
    }

    #[test]
    fn a_header_without_any_field_of_a_lead_is_refused_with_a_hint() {
        let text = problem("garbage\n", None, "-");
        assert!(text.contains("\"garbage\"") && text.contains("name, email, assistantId"), "{text}");
        let text = problem("name;email\nAnn;a@b.co\n", None, "x.csv");
        assert!(text.contains("\"name;email\"") && text.contains("separated by commas"), "{text}");
        let text = problem("Name,E-Mail\nAnn,a@b.co\n", None, "x.csv");
        assert!(text.contains("\"Name\", \"E-Mail\"") && text.contains("upper and lower case"), "{text}");
        let text = problem(&"x".repeat(5000), None, "x.csv");
        assert!(text.len() < 500, "{text}");
    }

    #[test]
    fn json_that_is_called_csv_is_refused_without_showing_it() {
        let text = problem("{\"name\":\"Ann\",\"email\":\"a@b.co\"}\n", Some(Format::Csv), "one.jsonl");
        assert!(text.contains("JSON") && !text.contains("Ann"), "{text}");
    }

    #[test]
    fn a_repeated_name_is_refused() {
        assert_eq!(problem("name,email,name\na,b,c\n", None, "x.csv"), "the CSV header names \"name\" twice");
    }
}
