//! A lead as the worker would see it, and the id under which it is published.

use crate::lead::{Fields, LeadId, LeadRules};

/// A lead that can be published.
pub(super) enum Checked {
    Valid(LeadId),
    /// With all that is wrong with it.
    Invalid(LeadId, String),
}

/// Validates a lead and finds its id. `Err`: it has none, or cannot be read.
pub(super) fn check(rules: &LeadRules, body: &[u8], id_field: Option<&str>) -> Result<Checked, String> {
    let id = match id_field {
        None => Ok(LeadId::of_content(body)),
        Some(field) => id_in(body, field).ok_or_else(|| {
            format!("{field} [missing] holds no id: it must be a string that is not blank, or a number")
        }),
    };
    // Without an id of its own nothing is published; the other problems are told all the same.
    let checked = rules.check(id.as_ref().copied().unwrap_or_else(|_| LeadId::of_content(body)), body);
    match (checked, id) {
        (Ok(_), Ok(id)) => Ok(Checked::Valid(id)),
        (Ok(_), Err(problem)) => Err(problem),
        (Err(violations), id) => {
            let problems = violations.iter().map(|violation| {
                format!("{} [{}] {}", violation.field, violation.code, violation.message).trim().to_owned()
            });
            let problems = problems.collect::<Vec<_>>().join("; ");
            match id {
                Ok(id) => Ok(Checked::Invalid(id, problems)),
                Err(problem) => Err(format!("{problems}; {problem}")),
            }
        }
    }
}

/// The id that a field holds: a UUID as it is, other text by what it says and not by how it is escaped.
fn id_in(body: &[u8], field: &str) -> Option<LeadId> {
    let fields = Fields::decode(body, usize::MAX).ok()?;
    let json = fields.get(field)?.get();
    let text = match serde_json::from_str(json).ok()? {
        serde_json::Value::String(text) => text,
        // Of a number every digit counts.
        serde_json::Value::Number(_) => json.to_owned(),
        _ => return None,
    };
    if text.trim().is_empty() {
        return None;
    }
    Some(text.parse().unwrap_or_else(|_| LeadId::of_field(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn rules() -> LeadRules {
        let settings = Source { file: Some("/dev/null".into()), ..Source::default() }.read().expect("defaults");
        LeadRules::of(&settings).expect("no expression")
    }

    fn lead(id: &str) -> String {
        format!(r#"{{"name":"Ann","email":"a@b.co","assistantId":1,"crm":{id}}}"#)
    }

    #[test]
    fn ids_are_stable_and_come_from_the_content_or_a_field() {
        let id = |body: &str, field: Option<&str>| match check(&rules(), body.as_bytes(), field) {
            Ok(Checked::Valid(id)) => Some(id),
            Ok(Checked::Invalid(_, problem)) => panic!("{problem}"),
            Err(_) => None,
        };
        let by_field = |json: &str| id(&lead(json), Some("crm"));
        assert_eq!(id(&lead("1"), None), Some(LeadId::of_content(lead("1").as_bytes())));
        let uuid = "3f8a1c1e-5b3f-4a36-9d53-0b7c6f0f2a10";
        assert_eq!(by_field(&format!("\"{uuid}\"")).expect("an id").to_string(), uuid);
        assert_eq!(by_field(r#""X-7""#), Some(LeadId::of_field("X-7")));
        assert_eq!(by_field(r#""\u0058-7""#), by_field(r#""X-7""#), "however it is escaped");
        assert_eq!(by_field(r#""\"a\"""#), Some(LeadId::of_field("\"a\"")), "quotes may be part of it");
        assert_eq!(by_field("7"), by_field(r#""7""#));
        assert_ne!(by_field("12345678901234567890123"), by_field("12345678901234567890124"));
        assert_ne!(by_field("7"), Some(LeadId::of_content(b"7")), "no lead without id has the same");
        for none in ["null", "true", "{}", "[1]", r#""""#, r#"" ""#, r#""\ud800""#] {
            assert_eq!(by_field(none), None, "{none}");
        }
        assert_eq!(id(&lead("1"), Some("absent")), None);
    }

    #[test]
    fn a_lead_without_id_is_described_with_all_that_is_wrong() {
        let problem = |body: &str| check(&rules(), body.as_bytes(), Some("crm")).err().expect("no id");
        let text = problem(r#"{"name":"Ann","assistantId":1}"#);
        assert!(text.contains("email [missing]") && text.contains("crm [missing]"), "{text}");
        assert!(problem("garbage").contains("[not_json]"));
    }
}
