//! From a checked lead to the body that is posted: as it is, made by an expression, as JSON or as a form. And to the key under which
//! the API can be asked for it.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{Code, LeadId, Violation};
use crate::config::{BodyFormat, Destination, LEAD_VARIABLES};
use crate::jq::{Json, Program};

use super::decode::Fields;

/// How the body of a lead is made.
#[derive(Debug, Clone)]
pub struct BodyRules {
    /// `destination.request.jq`
    body: Option<Arc<Program>>,
    format: BodyFormat,
    /// `destination.reconcile.key`
    key: Option<Arc<Program>>,
    /// The value of `$variables`.
    variables: Json,
}

/// What is made of a lead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// The body; `None`: the lead itself.
    pub(super) body: Option<Vec<u8>>,
    /// The key, where the API can be asked.
    pub(super) key: Option<String>,
}

impl BodyRules {
    /// The rules of this destination.
    ///
    /// # Errors
    /// When an expression does not compile, in words.
    pub fn of(destination: &Destination) -> Result<Self, String> {
        let compile = |key: &str, source: &str| {
            if source.is_empty() {
                return Ok(None);
            }
            let program = Program::compile(source, &LEAD_VARIABLES);
            program
                .map(|program| Some(Arc::new(program)))
                .map_err(|problem| format!("{key} is no jq expression: {problem}"))
        };
        let key = if destination.reconcile.is_set() { destination.reconcile.key.as_str() } else { "" };
        Ok(Self {
            body: compile("destination.request.jq", &destination.request.jq)?,
            format: destination.request.body,
            key: compile("destination.reconcile.key", key)?,
            variables: variables(destination),
        })
    }

    /// Whether an expression reads the lead.
    pub(super) fn reads_the_lead(&self) -> bool {
        self.body.is_some() || self.key.is_some()
    }

    /// Body and key for this JSON object; `given` is the same without its blank fields, for expressions.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn make(&self, id: LeadId, json: &[u8], given: &[u8]) -> Result<Made, Violation> {
        let body = match &self.body {
            None => None,
            Some(program) => {
                let body = self.run("destination.request.jq", program, id, given)?;
                Some(body.write().map_err(|failure| not_convertible("destination.request.jq", &failure.to_string()))?)
            }
        };
        let body = match self.format {
            BodyFormat::Json => body,
            BodyFormat::Form => Some(form(body.as_deref().unwrap_or(json))?),
        };
        let key = match &self.key {
            None => None,
            Some(program) => {
                let key = self.run("destination.reconcile.key", program, id, given)?.as_text();
                // Dots would be a step in the URL's path, and ask for something else.
                let key = key.filter(|key| !["", ".", ".."].contains(&key.as_str()));
                let problem = "it gives no text and no number that can stand in a URL";
                Some(key.ok_or_else(|| not_convertible("destination.reconcile.key", problem))?)
            }
        };
        Ok(Made { body, key })
    }

    fn run(&self, setting: &str, program: &Program, id: LeadId, json: &[u8]) -> Result<Json, Violation> {
        let input = Json::read(json).map_err(|_| {
            let message = format!(
                "{setting} cannot read it: it is nested deeper than 128 levels, has a number of more than 1,000 digits, or an escape \
                 that stands for no character (half of a surrogate pair)"
            );
            Violation::of_message(Code::NotText, message)
        })?;
        program
            .run(input, &[Json::text(&id.to_string()), self.variables.clone()])
            .map_err(|failure| not_convertible(setting, &failure.to_string()))
    }
}

fn not_convertible(setting: &str, failure: &str) -> Violation {
    Violation::of_message(Code::Conversion, format!("{setting}: {failure}"))
}

/// The value of `$variables`.
pub fn variables(destination: &Destination) -> Json {
    let json = serde_json::to_vec(&destination.variables).unwrap_or_default();
    Json::read(&json).unwrap_or_else(|_| Json::text(""))
}

/// The members of a flat JSON object as a form; `null` is left out.
fn form(json: &[u8]) -> Result<Vec<u8>, Violation> {
    let not_flat = |field: &str| {
        let message = "a form has only texts, numbers, true and false; this is an object or an array";
        Violation::new(field, Code::WrongType, message)
    };
    let fields = Fields::decode(json, usize::MAX).map_err(|_| not_flat(""))?;
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (key, value) in fields.iter() {
        match scalar(value) {
            Some(Some(text)) => drop(form.append_pair(key, &text)),
            Some(None) => {}
            None => return Err(not_flat(key)),
        }
    }
    Ok(form.finish().into_bytes())
}

/// A scalar's text; `Some(None)` for `null`, `None` for what is no scalar.
fn scalar(value: &RawValue) -> Option<Option<String>> {
    let json = value.get();
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok().map(Some),
        b'n' => Some(None),
        b'[' | b'{' => None,
        _ => Some(Some(json.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn made(jq: &str, format: BodyFormat, json: &str) -> Result<Option<String>, Violation> {
        let mut destination = Destination::default();
        destination.request.jq = jq.to_owned();
        destination.request.body = format;
        destination.variables.insert("location_id".to_owned(), "loc-1".to_owned());
        let rules = BodyRules::of(&destination).expect("it compiles");
        let made = rules.make(LeadId(Uuid::nil()), json.as_bytes(), json.as_bytes())?;
        assert_eq!(made.key, None, "nothing to ask");
        Ok(made.body.map(|body| String::from_utf8(body).expect("UTF-8")))
    }

    #[test]
    fn without_an_expression_a_lead_goes_out_untouched() {
        assert_eq!(made("", BodyFormat::Json, r#"{ "a" : 1.10 }"#), Ok(None));
    }

    #[test]
    fn an_expression_wraps_renames_and_fills_in() {
        let jq =
            r#"[{contact: {id: $lead_id, location_id: $variables.location_id, n: .number, who: (.name // "nobody")}}]"#;
        let expected = r#"[{"contact":{"id":"00000000-0000-0000-0000-000000000000","location_id":"loc-1","n":1.10,"who":"nobody"}}]"#;
        assert_eq!(made(jq, BodyFormat::Json, r#"{"number":1.10}"#), Ok(Some(expected.to_owned())));
    }

    #[test]
    fn a_lead_that_an_expression_cannot_convert_is_a_violation_without_a_word_of_the_lead() {
        for (jq, expected) in [
            (r#"error("a lead needs a phone")"#, "destination.request.jq: a lead needs a phone"),
            (".name.x", "destination.request.jq: it does not work on this"),
            ("empty", "destination.request.jq: it gives nothing"),
        ] {
            let violation = made(jq, BodyFormat::Json, r#"{"name":"Zanzibar"}"#).expect_err("no body");
            assert_eq!(violation.code, Code::Conversion);
            assert!(
                violation.message.starts_with(expected) && !violation.message.contains("Zanzibar"),
                "{violation:?}"
            );
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
        assert_eq!(made(".", BodyFormat::Json, &deep).expect_err("refused").code, Code::NotText);
        assert_eq!(made("", BodyFormat::Json, &deep), Ok(None), "what is not looked into may be as deep as it likes");
    }

    #[test]
    fn a_lead_without_a_key_cannot_be_asked_for_and_is_a_violation_from_the_start() {
        let mut destination = Destination::default();
        destination.reconcile.url = "https://h/contacts?key={key}".to_owned();
        destination.reconcile.key = ".crm // $lead_id".to_owned();
        let rules = BodyRules::of(&destination).expect("it compiles");
        let key = |json: &str| rules.make(LeadId(Uuid::nil()), json.as_bytes(), json.as_bytes()).map(|made| made.key);
        assert_eq!(key(r#"{"crm":"a/b"}"#), Ok(Some("a/b".to_owned())));
        assert_eq!(key(r#"{"crm":17}"#), Ok(Some("17".to_owned())));
        assert_eq!(key("{}"), Ok(Some(Uuid::nil().to_string())));
        for json in [r#"{"crm":["Zanzibar"]}"#, r#"{"crm":""}"#, r#"{"crm":".."}"#, r#"{"crm":"."}"#] {
            let violation = key(json).expect_err("no key");
            assert!(violation.code == Code::Conversion && !violation.message.contains("Zanzibar"), "{violation:?}");
        }
    }

    #[test]
    fn a_form_has_every_scalar_and_nothing_else() {
        let json = r#"{"name":"Ann & Bob","n":1.10,"yes":true,"none":null,"é":"\u00e9 +"}"#;
        let expected = "name=Ann+%26+Bob&n=1.10&yes=true&%C3%A9=%C3%A9+%2B";
        assert_eq!(made("", BodyFormat::Form, json), Ok(Some(expected.to_owned())));
        assert_eq!(made("{name}", BodyFormat::Form, json), Ok(Some("name=Ann+%26+Bob".to_owned())));
        let violation = made("", BodyFormat::Form, r#"{"a":1,"b":[1]}"#).expect_err("not flat");
        assert_eq!((violation.field.as_str(), violation.code), ("b", Code::WrongType));
        assert_eq!(made("[1]", BodyFormat::Form, "{}").expect_err("no object").code, Code::WrongType);
    }
}
