//! Fields to a lead: every rule is applied, and every violation reported, before a verdict is given.

use std::borrow::Cow;

use email_address::{EmailAddress, Options};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::fields::FieldKind;
use super::{Body, BodyRules, Code, Fields, Keys, Lead, LeadId, Violation};
use crate::config::{Settings, UnknownFields};

/// RFC 5321, section 4.5.3.1.3: a path has at most 256 octets, and two of them are the angle brackets.
const MAX_EMAIL_BYTES: usize = 254;

/// Identifiers of CRMs and lead APIs are numbers, UUIDs or short keys; anything longer is a mistake.
const MAX_ID_CHARS: usize = 128;

/// How much a message may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The body, in bytes.
    pub message_bytes: usize,
    /// The name, in characters.
    pub name_chars: usize,
    /// Any other known field that holds text, in characters.
    pub text_chars: usize,
    /// The number of fields.
    pub fields: usize,
}

/// What makes a message a lead of this destination.
#[derive(Debug, Clone)]
pub struct LeadRules {
    /// The fields without which a lead is not posted, each with those that may stand for it.
    pub mandatory: Vec<Vec<String>>,
    /// The fields that the destination's contract names; all others are unknown ones.
    pub known: Vec<String>,
    /// What happens to unknown fields.
    pub unknown: UnknownFields,
    /// JSON that fills in `assistantId` where it is absent, `null` or blank.
    pub default_assistant_id: Option<String>,
    /// How much a message may hold.
    pub limits: Limits,
    /// What is posted.
    pub body: BodyRules,
}

/// What a message says.
#[derive(Debug)]
pub struct Read {
    /// What it can be found by, as far as that can be read.
    pub keys: Keys,
    /// The lead; or all violations, at least one, in the order of the fields; absent fields last.
    pub lead: Result<Lead, Vec<Violation>>,
}

impl From<Vec<Violation>> for Read {
    fn from(violations: Vec<Violation>) -> Self {
        Self { keys: Keys::default(), lead: Err(violations) }
    }
}

/// What a check of one field found.
enum Found<'a> {
    /// Fine as it is.
    Kept,
    /// Fine, with this text in its place.
    Trimmed(Cow<'a, str>),
    /// Absent for all purposes: `null` or blank.
    Blank,
    /// Not fine.
    Wrong(Code, String),
}

impl LeadRules {
    /// The rules of these settings.
    ///
    /// # Errors
    /// What of them cannot be used, in words.
    pub fn of(settings: &Settings) -> Result<Self, String> {
        let Settings { lead, destination, .. } = settings;
        let mandatory: Vec<Vec<String>> = destination.mandatory.iter().map(|names| alternatives(names)).collect();
        Ok(Self {
            known: mandatory.iter().flatten().chain(&destination.optional).cloned().collect(),
            mandatory,
            unknown: lead.unknown_fields,
            default_assistant_id: lead.default_assistant_id.as_deref().map(assistant_id_json),
            limits: Limits {
                message_bytes: lead.max_message_bytes,
                name_chars: lead.max_name_chars,
                text_chars: lead.max_text_chars,
                fields: lead.max_fields,
            },
            body: BodyRules::of(destination)?,
        })
    }

    /// Decodes and validates the message of the lead with this id, and makes the body that is posted of it.
    ///
    /// # Errors
    /// All violations of the message, at least one, in the order of its fields; absent fields last.
    pub fn check(&self, id: LeadId, body: &[u8]) -> Result<Lead, Vec<Violation>> {
        self.read(id, body).lead
    }

    /// The same, with what the message can be found by.
    pub fn read(&self, id: LeadId, body: &[u8]) -> Read {
        match Fields::decode(body, self.limits.message_bytes) {
            Ok(fields) => Read {
                keys: Keys::of(&fields, self.default_assistant_id.as_deref()),
                lead: self.validate(id, body, &fields),
            },
            Err(violation) => vec![violation].into(),
        }
    }

    fn validate(&self, id: LeadId, body: &[u8], fields: &Fields<'_>) -> Result<Lead, Vec<Violation>> {
        if fields.len() > self.limits.fields {
            let message = format!("the object has {} fields; at most {} are allowed", fields.len(), self.limits.fields);
            return Err(vec![Violation::of_message(Code::TooManyFields, message)]);
        }

        let mut violations: Vec<Violation> = fields
            .repeated()
            .into_iter()
            .map(|key| {
                Violation::new(shown(key), Code::Repeated, "the key stands more than once; which value is meant?")
            })
            .collect();
        let mut rebuilt: Vec<(&str, Cow<'_, str>)> = Vec::with_capacity(fields.len() + 1);
        let mut blank = Vec::new();
        let mut changed = false;
        let mut missing: Vec<&[String]> = self.mandatory.iter().map(Vec::as_slice).collect();

        for (key, value) in fields.iter() {
            if !self.known.iter().any(|name| name == key) {
                match self.unknown {
                    UnknownFields::Forward => rebuilt.push((key, Cow::Borrowed(value.get()))),
                    UnknownFields::Drop => changed = true,
                    UnknownFields::Reject => violations.push(Violation::new(
                        shown(key),
                        Code::Unknown,
                        "the destination has no such field, and lead.unknown_fields is \"reject\"",
                    )),
                }
                continue;
            }
            match self.look_at(key, value) {
                Found::Kept => {
                    missing.retain(|names| !names.iter().any(|name| name == key));
                    rebuilt.push((key, Cow::Borrowed(value.get())));
                }
                Found::Trimmed(text) => {
                    missing.retain(|names| !names.iter().any(|name| name == key));
                    changed = true;
                    rebuilt.push((key, Cow::Owned(json_string(&text))));
                }
                Found::Blank => match &self.default_assistant_id {
                    Some(id) if key == "assistantId" => {
                        missing.retain(|names| !names.iter().any(|name| name == key));
                        changed = true;
                        rebuilt.push((key, Cow::Borrowed(id)));
                    }
                    _ => {
                        blank.push(rebuilt.len());
                        rebuilt.push((key, Cow::Borrowed(value.get())));
                    }
                },
                Found::Wrong(code, message) => {
                    missing.retain(|names| !names.iter().any(|name| name == key));
                    violations.push(Violation::new(key, code, message));
                }
            }
        }

        if let Some(id) = &self.default_assistant_id
            && let Some(at) = missing.iter().position(|names| names.iter().any(|name| name == "assistantId"))
        {
            missing.remove(at);
            changed = true;
            rebuilt.push(("assistantId", Cow::Borrowed(id)));
        }
        violations.extend(missing.into_iter().map(|names| {
            let first = names.first().map(String::as_str).unwrap_or_default();
            let all = names.join(" or ");
            Violation::new(first, Code::Missing, format!("{all} is mandatory; it is absent, null or blank"))
        }));

        if !violations.is_empty() {
            return Err(violations);
        }
        let checked = if changed { Body::Rebuilt(json_object(&rebuilt)) } else { as_received(body) };
        let json = match &checked {
            Body::AsReceived => body,
            Body::Rebuilt(json) => json,
        };
        // To an expression a blank field is absent, as it is to us: `.lead_id // $lead_id` gives each lead an id of its own.
        let given = (self.body.reads_the_lead() && !blank.is_empty()).then(|| {
            let given =
                rebuilt.iter().enumerate().filter(|(at, _)| !blank.contains(at)).map(|(_, entry)| entry.clone());
            json_object(&given.collect::<Vec<_>>())
        });
        let made = self.body.make(id, json, given.as_deref().unwrap_or(json)).map_err(|violation| vec![violation])?;
        Ok(Lead { body: made.body.map_or(checked, Body::Rebuilt), key: made.key })
    }

    /// Checks one known field by its kind.
    fn look_at<'a>(&self, key: &str, value: &'a RawValue) -> Found<'a> {
        let json = value.get();
        if json == "null" {
            return Found::Blank;
        }
        match FieldKind::of(key) {
            FieldKind::Any => Found::Kept,
            FieldKind::Name => match text(json) {
                Ok(name) => trimmed(name, |name| too_long(name, self.limits.name_chars)),
                Err(wrong) => wrong,
            },
            FieldKind::Email => match text(json) {
                Ok(email) => trimmed(email, check_email),
                Err(wrong) => wrong,
            },
            FieldKind::Id => scalar(json, MAX_ID_CHARS),
            FieldKind::Text => scalar(json, self.limits.text_chars),
        }
    }
}

/// The names in `a | b`.
fn alternatives(names: &str) -> Vec<String> {
    names.split('|').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// Digits are a number, and what is a JSON string already (`"61"` with its quotes) stays one; the rest is text.
fn assistant_id_json(configured: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(configured) {
        Ok(serde_json::Value::Number(_) | serde_json::Value::String(_)) => configured.trim().to_owned(),
        _ => json_string(configured),
    }
}

/// The received bytes, unless a byte order mark would go out with them.
fn as_received(body: &[u8]) -> Body {
    match body.strip_prefix("\u{feff}".as_bytes()) {
        Some(json) => Body::Rebuilt(json.to_vec()),
        None => Body::AsReceived,
    }
}

/// The text of a JSON string.
fn text(json: &str) -> Result<Cow<'_, str>, Found<'_>> {
    if !json.starts_with('"') {
        return Err(Found::Wrong(Code::WrongType, format!("must be a string, not {}", type_name(json))));
    }
    unquoted(json).ok_or_else(not_text)
}

/// What a JSON string stands for; `None` if it has an escape that stands for no character.
pub(super) fn unquoted(json: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    serde_json::from_str::<Text<'_>>(json).ok().map(|text| text.0)
}

fn not_text() -> Found<'static> {
    Found::Wrong(Code::NotText, "has an escape that stands for no character (half of a surrogate pair)".to_owned())
}

/// A string or a number that goes out as it came.
fn scalar(json: &str, max_chars: usize) -> Found<'_> {
    match json.as_bytes().first() {
        Some(b'"') => match text(json) {
            Ok(text) if text.trim().is_empty() => Found::Blank,
            Ok(text) => too_long(&text, max_chars).unwrap_or(Found::Kept),
            Err(wrong) => wrong,
        },
        Some(b'-' | b'0'..=b'9') => too_long(json, max_chars).unwrap_or(Found::Kept),
        _ => Found::Wrong(Code::WrongType, format!("must be a string or a number, not {}", type_name(json))),
    }
}

/// A text without the white space around it, if nothing is wrong with the rest.
fn trimmed<'a>(text: Cow<'a, str>, check: impl FnOnce(&str) -> Option<Found<'a>>) -> Found<'a> {
    let rest = text.trim();
    if rest.is_empty() {
        return Found::Blank;
    }
    if let Some(wrong) = check(rest) {
        return wrong;
    }
    if rest.len() == text.len() { Found::Kept } else { Found::Trimmed(Cow::Owned(rest.to_owned())) }
}

fn too_long<'a>(text: &str, max_chars: usize) -> Option<Found<'a>> {
    // A text has no more characters than bytes, so most need no counting.
    if text.len() <= max_chars {
        return None;
    }
    let chars = text.chars().count();
    (chars > max_chars)
        .then(|| Found::Wrong(Code::TooLong, format!("has {chars} characters; at most {max_chars} are allowed")))
}

fn check_email<'a>(email: &str) -> Option<Found<'a>> {
    if email.len() > MAX_EMAIL_BYTES {
        let message = format!("has {} bytes; an address has at most {MAX_EMAIL_BYTES} (RFC 5321)", email.len());
        return Some(Found::Wrong(Code::TooLong, message));
    }
    let options = Options::default().without_display_text().with_no_minimum_sub_domains().with_domain_literal();
    EmailAddress::parse_with_options(email, options).err().map(|error| {
        // The library's texts describe the rule that was broken and do not repeat the address.
        Found::Wrong(Code::EmailSyntax, format!("is not an email address (RFC 5321): {error}"))
    })
}

fn type_name(json: &str) -> &'static str {
    match json.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// A key from a stranger, short enough to be shown.
fn shown(key: &str) -> String {
    const MAX: usize = 64;
    let mut shown: String = key.chars().filter(|c| !c.is_control()).take(MAX).collect();
    if key.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_object(entries: &[(&str, Cow<'_, str>)]) -> Vec<u8> {
    let size = entries.iter().map(|(key, value)| key.len() + value.len() + 4).sum::<usize>() + 2;
    let mut json = String::with_capacity(size);
    json.push('{');
    for (at, (key, value)) in entries.iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        json.push_str(&json_string(key));
        json.push(':');
        json.push_str(value);
    }
    json.push('}');
    json.into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Destination;

    const LIMITS: Limits = Limits { message_bytes: 1 << 20, name_chars: 200, text_chars: 20_000, fields: 200 };

    fn rules() -> LeadRules {
        LeadRules {
            mandatory: ["name", "email", "assistantId"].map(alternatives).to_vec(),
            known: ["name", "lastName", "context", "email", "phone", "scheduleId", "assistantId"]
                .map(str::to_owned)
                .to_vec(),
            unknown: UnknownFields::Forward,
            default_assistant_id: None,
            limits: LIMITS,
            body: BodyRules::of(&Destination::default()).expect("no expression"),
        }
    }

    const ID: LeadId = LeadId(uuid::Uuid::nil());

    fn sent(rules: &LeadRules, body: &str) -> String {
        let lead = rules.check(ID, body.as_bytes()).expect("a valid lead");
        let json = lead.rebuilt().unwrap_or_else(|| body.to_owned().into());
        String::from_utf8(json.to_vec()).expect("JSON is UTF-8")
    }

    fn codes(rules: &LeadRules, body: &str) -> Vec<(String, Code)> {
        let violations = rules.check(ID, body.as_bytes()).expect_err("must be invalid");
        violations.into_iter().map(|violation| (violation.field, violation.code)).collect()
    }

    #[test]
    fn a_valid_lead_goes_out_byte_for_byte() {
        let body =
            r#" { "name" : "Ann", "email":"ann@example.com", "assistantId": 61234567890123456789012, "x":[1.10] } "#;
        assert_eq!(sent(&rules(), body), body);
    }

    #[test]
    fn ids_may_be_numbers_or_strings_and_go_out_as_they_came() {
        for id in ["61", "\"61\"", "\"0061\"", "12345678901234567890123"] {
            let body = format!(r#"{{"name":"Ann","email":" ann@example.com","assistantId":{id},"scheduleId":{id}}}"#);
            let expected =
                format!(r#"{{"name":"Ann","email":"ann@example.com","assistantId":{id},"scheduleId":{id}}}"#);
            assert_eq!(sent(&rules(), &body), expected);
        }
        for id in ["true", "[61]", "{\"id\":61}"] {
            let body = format!(r#"{{"name":"Ann","email":"ann@example.com","assistantId":{id}}}"#);
            assert_eq!(codes(&rules(), &body), [("assistantId".to_owned(), Code::WrongType)]);
        }
    }

    #[test]
    fn white_space_around_name_and_email_is_trimmed_and_nothing_else_changes() {
        let body =
            r#"{"z":1.10,"name":"  Ann\u00a0","email":"\tann@example.com\n","assistantId":"a b ","lastName":" Lee "}"#;
        assert_eq!(
            sent(&rules(), body),
            r#"{"z":1.10,"name":"Ann","email":"ann@example.com","assistantId":"a b ","lastName":" Lee "}"#
        );
    }

    #[test]
    fn all_violations_are_found_at_once() {
        let body = r#"{"email":"ann@@example.com","phone":[1],"name":"  ","phone":"1"}"#;
        assert_eq!(
            codes(&rules(), body),
            [
                ("phone".to_owned(), Code::Repeated),
                ("email".to_owned(), Code::EmailSyntax),
                ("phone".to_owned(), Code::WrongType),
                ("name".to_owned(), Code::Missing),
                ("assistantId".to_owned(), Code::Missing),
            ]
        );
    }

    #[test]
    fn null_and_blank_are_missing() {
        for blank in ["null", "\"\"", "\"  \""] {
            let body = format!(r#"{{"name":{blank},"email":{blank},"assistantId":{blank},"lastName":{blank}}}"#);
            let missing: Vec<_> =
                codes(&rules(), &body).into_iter().map(|(field, code)| (field, code.as_str())).collect();
            let expected = ["name", "email", "assistantId"].map(|field| (field.to_owned(), "missing"));
            assert_eq!(missing, expected, "{blank}");
        }
    }

    #[test]
    fn one_of_several_names_is_enough_and_none_of_them_is_named_as_missing() {
        let mandatory = ["phone_number | phone", "name"].map(alternatives).to_vec();
        let known = mandatory.iter().flatten().cloned().collect();
        let rules = LeadRules { mandatory, known, ..rules() };
        for body in [
            r#"{"name":"Ann","phone":"1"}"#,
            r#"{"phone_number":2,"name":"Ann"}"#,
            r#"{"phone":"","phone_number":2,"name":"A"}"#,
        ] {
            assert_eq!(sent(&rules, body), body);
        }
        let violations = rules.check(ID, br#"{"name":"Ann","phone":" "}"#).expect_err("invalid");
        assert_eq!((violations[0].field.as_str(), violations[0].code), ("phone_number", Code::Missing));
        assert!(violations[0].message.starts_with("phone_number or phone is mandatory"), "{}", violations[0].message);
    }

    #[test]
    fn to_an_expression_a_blank_field_of_the_contract_is_absent_and_without_one_it_goes_out_as_it_came() {
        let mut destination = Destination::default();
        let body = r#"{"name":"Ann","phone":" ","context":null,"email":"a@b.co","assistantId":1,"other":"","n":1.10}"#;
        assert_eq!(sent(&rules(), body), body);
        destination.request.jq = r#". + {phone: (.phone // "none"), context: (.context // $lead_id)}"#.to_owned();
        let by_jq = LeadRules { body: BodyRules::of(&destination).expect("it compiles"), ..rules() };
        assert_eq!(
            sent(&by_jq, body),
            format!(
                r#"{{"name":"Ann","email":"a@b.co","assistantId":1,"other":"","n":1.10,"phone":"none","context":"{}"}}"#,
                ID.0
            )
        );
        destination.request.jq = String::new();
        destination.reconcile.url = "https://h/{key}".to_owned();
        destination.reconcile.key = ".phone // $lead_id".to_owned();
        let by_key = LeadRules { body: BodyRules::of(&destination).expect("it compiles"), ..rules() };
        let lead = by_key.check(ID, body.as_bytes()).expect("valid");
        assert_eq!((lead.key(), lead.is_changed()), (Some(ID.0.to_string().as_str()), false));
    }

    #[test]
    fn the_default_assistant_fills_in_before_the_check() {
        let rules = LeadRules { default_assistant_id: Some("61".to_owned()), ..rules() };
        let tail = r#""name":"Ann","email":"ann@example.com""#;
        assert_eq!(sent(&rules, &format!("{{{tail}}}")), format!("{{{tail},\"assistantId\":61}}"));
        assert_eq!(
            sent(&rules, &format!("{{\"assistantId\":null,{tail}}}")),
            format!("{{\"assistantId\":61,{tail}}}"),
            "null is filled in at its place"
        );
        let own = format!("{{\"assistantId\":7,{tail}}}");
        assert_eq!(sent(&rules, &own), own, "a lead that names its assistant keeps it");
    }

    #[test]
    fn unknown_fields_are_forwarded_dropped_or_rejected() {
        let body = r#"{"company":"Acme","name":"Ann","email":"ann@example.com","assistantId":1,"a\"b":{"k":[1.0]}}"#;
        assert_eq!(sent(&rules(), body), body);
        let drop = LeadRules { unknown: UnknownFields::Drop, ..rules() };
        assert_eq!(sent(&drop, body), r#"{"name":"Ann","email":"ann@example.com","assistantId":1}"#);
        let reject = LeadRules { unknown: UnknownFields::Reject, ..rules() };
        assert_eq!(codes(&reject, body), [("company".to_owned(), Code::Unknown), ("a\"b".to_owned(), Code::Unknown)]);
    }

    #[test]
    fn emails_follow_rfc_5321() {
        let check = |email: &str| {
            rules().check(ID, format!(r#"{{"name":"A","email":{},"assistantId":1}}"#, json_string(email)).as_bytes())
        };
        for good in
            ["a@b.co", "a+tag@example.com", "\"a b\"@example.com", "a@[127.0.0.1]", "ü@example.com", "o'b@x.museum"]
        {
            assert!(check(good).is_ok(), "{good}");
        }
        let long = format!("{}@example.com", "a".repeat(64));
        for bad in
            ["a", "@b.co", "a@", "a b@c.de", "a@b..c", "Ann <a@b.co>", "a@b.co, c@d.eu", ".a@b.co", &format!("a{long}")]
        {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lengths_are_bounded_in_characters() {
        let rules = LeadRules { limits: Limits { name_chars: 3, text_chars: 4, ..LIMITS }, ..rules() };
        let body = |name: &str, context: &str| {
            format!(r#"{{"name":"{name}","email":"a@b.co","assistantId":1,"context":"{context}"}}"#)
        };
        assert!(rules.check(ID, body("äöü", "äöüß").as_bytes()).is_ok());
        assert_eq!(codes(&rules, &body("äöüß", "1")), [("name".to_owned(), Code::TooLong)]);
        assert_eq!(codes(&rules, &body("a", "12345")), [("context".to_owned(), Code::TooLong)]);
    }

    #[test]
    fn half_a_surrogate_pair_is_named_where_we_read_and_left_alone_where_we_do_not() {
        let broken = r#"{"name":"\ud800","email":"a@b.co","assistantId":1}"#;
        assert_eq!(codes(&rules(), broken), [("name".to_owned(), Code::NotText)]);
        let elsewhere = r#"{"name":"A","email":"a@b.co","assistantId":1,"x":"\ud800"}"#;
        assert_eq!(sent(&rules(), elsewhere), elsewhere);
    }

    #[test]
    fn no_violation_repeats_a_value() {
        let secret = "Zanzibar";
        let body = format!(r#"{{"name":["{secret}"],"email":"{secret}@@{secret}","assistantId":{{"{secret}":1}}}}"#);
        for violation in rules().check(ID, body.as_bytes()).expect_err("invalid") {
            assert!(!violation.message.contains(secret), "{}", violation.message);
        }
    }

    #[test]
    fn a_configured_assistant_goes_out_as_number_or_string() {
        for (configured, json) in [("61", "61"), ("\"61\"", "\"61\""), ("team-a", "\"team-a\""), ("[1]", "\"[1]\"")] {
            assert_eq!(assistant_id_json(configured), json);
        }
    }

    proptest! {
        #[test]
        fn check_never_panics_and_what_goes_out_is_an_object_again(body in "\\{(\"[a-eN]{1,4}\":(1|\"x\"|null|\\[\\]),?){0,6}\\}") {
            if let Ok(lead) = rules().check(ID, body.as_bytes()) {
                let json = lead.rebuilt().unwrap_or_else(|| body.into());
                prop_assert!(Fields::decode(&json, 1 << 20).is_ok());
            }
        }

        #[test]
        fn any_name_and_context_survive_unchanged(name in "\\PC{0,20}[a-z]", context in ".{0,40}") {
            let body = serde_json::json!({"name": name, "email": "a@b.co", "assistantId": 1, "context": context}).to_string();
            let json: serde_json::Value = serde_json::from_str(&sent(&rules(), &body)).expect("JSON");
            prop_assert_eq!(json["name"].as_str(), Some(name.trim()));
            prop_assert_eq!(json["context"].as_str(), Some(context.as_str()));
        }
    }
}
