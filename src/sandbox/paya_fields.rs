//! The fields of a contact at Paya Connect: which there are, and what may be in each.
//!
//! Sources: the vendor's table of fields, and its page on errors with two messages: `.. cannot be blank.` and
//! `location_id provided is not valid`. Made up: the other messages, that an unknown field is an error, and that an
//! empty text in a field of at least one character is too short.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Map, Value, json};
use time::Date;
use time::macros::format_description;

use super::reply::Reply;

/// What may be in a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A text of so many to so many characters.
    Text(usize, usize),
    /// Letters, digits, spaces and dashes; so many to so many.
    Code(usize, usize),
    /// Exactly ten digits.
    Phone,
    /// yyyy-mm-dd.
    Day,
    /// A whole number up to this one, or a text of it.
    UpTo(u64),
}

/// Everything that a contact consists of, in the order of the documented answer.
pub(super) const FIELDS: [(&str, Kind); 23] = [
    ("location_id", Kind::Text(24, 36)),
    ("account_number", Kind::Text(0, 32)),
    ("contact_api_id", Kind::Text(0, 36)),
    ("company_name", Kind::Text(0, 64)),
    ("first_name", Kind::Text(0, 64)),
    ("last_name", Kind::Text(1, 64)),
    ("email", Kind::Text(5, 64)),
    ("address", Kind::Text(0, 255)),
    ("city", Kind::Text(0, 100)),
    ("state", Kind::Text(2, 2)),
    ("zip", Kind::Code(4, 12)),
    ("home_phone", Kind::Phone),
    ("cell_phone", Kind::Phone),
    ("office_phone", Kind::Phone),
    ("office_ext_phone", Kind::Text(0, 10)),
    ("contact_balance", Kind::Text(0, 12)),
    ("contact_c1", Kind::Text(0, 128)),
    ("contact_c2", Kind::Text(0, 128)),
    ("contact_c3", Kind::Text(0, 128)),
    ("email_trx_receipt", Kind::UpTo(1)),
    ("date_of_birth", Kind::Day),
    ("header_message", Kind::Text(0, 250)),
    ("header_message_type", Kind::UpTo(4)),
];

/// The order to update a contact that exists; it is no part of the contact.
pub(super) const UPDATE: &str = "update_if_exists";

/// What is wrong with a request: messages by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Errors {
    by_field: BTreeMap<String, Vec<String>>,
}

impl Errors {
    pub(super) fn is_empty(&self) -> bool {
        self.by_field.is_empty()
    }

    pub(super) fn add(&mut self, field: &str, message: impl Into<String>) {
        self.by_field.entry(field.to_owned()).or_default().push(message.into());
    }

    /// Says that a field is missing, in the documented words.
    pub(super) fn blank(&mut self, field: &str) {
        self.add(field, format!("{} cannot be blank.", label(field)));
    }

    pub(super) fn reply(&self) -> Reply {
        Reply::json(StatusCode::UNPROCESSABLE_ENTITY, json!({ "errors": self.by_field }).to_string())
    }
}

/// All that is wrong with a contact that is to be created at this location.
pub(super) fn check(contact: &Map<String, Value>, location_id: &str) -> Errors {
    let mut errors = Errors::default();
    for (name, kind) in FIELDS {
        match contact.get(name).filter(|value| !value.is_null()) {
            Some(value) => {
                if let Err(reason) = kind.check(value) {
                    errors.add(name, format!("{} {reason}", label(name)));
                }
            }
            None if matches!(name, "location_id" | "last_name") => errors.blank(name),
            None => {}
        }
    }
    if !errors.by_field.contains_key("location_id") && contact.get("location_id") != Some(&Value::from(location_id)) {
        errors.add("location_id", "location_id provided is not valid");
    }
    if let Some(update) = contact.get(UPDATE) {
        if Kind::UpTo(1).check(update).is_err() {
            errors.add(UPDATE, "Update If Exists should be 1.");
        } else if is_one(update) && contact.get("contact_api_id").is_none_or(Value::is_null) {
            errors.blank("contact_api_id");
        }
    }
    for name in contact.keys().filter(|name| *name != UPDATE && !FIELDS.iter().any(|(known, _)| known == name)) {
        errors.add(name, format!("{} is not a known field.", label(name)));
    }
    errors
}

/// Whether a contact that exists is to be updated.
pub(super) fn wants_update(contact: &Map<String, Value>) -> bool {
    contact.get(UPDATE).is_some_and(is_one)
}

fn is_one(value: &Value) -> bool {
    value.as_u64() == Some(1) || value.as_str() == Some("1")
}

/// `location_id` is called "Location Id", as in the documented message.
fn label(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
    };
    name.split('_').map(capital).collect::<Vec<_>>().join(" ")
}

impl Kind {
    fn check(self, value: &Value) -> Result<(), String> {
        if let Self::UpTo(most) = self {
            let number =
                value.as_u64().or_else(|| value.as_str()?.parse().ok()).or_else(|| value.as_bool().map(u64::from));
            return match number {
                Some(number) if number <= most => Ok(()),
                _ => Err(format!("must be a number from 0 to {most}.")),
            };
        }
        let Some(text) = value.as_str() else { return Err("must be a string.".to_owned()) };
        let length = text.chars().count();
        match self {
            Self::Text(_, most) | Self::Code(_, most) if length > most => {
                Err(format!("should contain at most {most} characters."))
            }
            Self::Text(least, _) | Self::Code(least, _) if length < least => {
                Err(format!("should contain at least {least} characters."))
            }
            Self::Code(..) if !text.chars().all(|c| c.is_ascii_alphanumeric() || c == ' ' || c == '-') => {
                Err("should contain letters, digits, spaces and dashes only.".to_owned())
            }
            Self::Phone if length != 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err("should contain exactly 10 digits.".to_owned())
            }
            Self::Day if Date::parse(text, format_description!("[year]-[month]-[day]")).is_err() => {
                Err("should be a date as yyyy-mm-dd.".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCATION: &str = "sandbox-location-0000000001";

    /// The fields of a contact that are wrong.
    fn wrong(change: Value) -> Vec<String> {
        let mut contact = json!({ "location_id": LOCATION, "last_name": "Lee" });
        contact.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        check(contact.as_object().unwrap(), LOCATION).by_field.into_keys().collect()
    }

    #[test]
    fn every_field_is_held_to_its_documented_limits() {
        let none: [&str; 0] = [];
        for good in [
            json!({}),
            json!({"cell_phone": "1234567890", "state": "MI", "zip": "SW1A 1AA", "date_of_birth": "1980-02-29"}),
            json!({"email": "a@b.i", "email_trx_receipt": "1", "header_message_type": 4, "contact_c3": null}),
            json!({"contact_api_id": "x".repeat(36), "update_if_exists": 1, "first_name": "\u{e4}".repeat(64)}),
        ] {
            assert_eq!(wrong(good.clone()), none, "{good}");
        }
        for (bad, field) in [
            (json!({"last_name": ""}), "last_name"),
            (json!({"last_name": null}), "last_name"),
            (json!({"last_name": "x".repeat(65)}), "last_name"),
            (json!({"cell_phone": "+123456789"}), "cell_phone"),
            (json!({"home_phone": "123456789"}), "home_phone"),
            (json!({"office_phone": 1_234_567_890}), "office_phone"),
            (json!({"state": "Michigan"}), "state"),
            (json!({"zip": "12_34"}), "zip"),
            (json!({"date_of_birth": "1981-02-29"}), "date_of_birth"),
            (json!({"email": "a@b"}), "email"),
            (json!({"contact_api_id": "x".repeat(37)}), "contact_api_id"),
            (json!({"update_if_exists": 1}), "contact_api_id"),
            (json!({"update_if_exists": "yes"}), "update_if_exists"),
            (json!({"lead_source": "fair"}), "lead_source"),
            (json!({"location_id": "11e8000000000000000000ff"}), "location_id"),
        ] {
            assert_eq!(wrong(bad.clone()), [field], "{bad}");
        }
    }

    #[test]
    fn the_documented_messages_are_word_for_word() {
        let errors = |contact: Value| check(contact.as_object().unwrap(), LOCATION).by_field;
        let blank = errors(json!({}));
        assert_eq!(blank["location_id"], ["Location Id cannot be blank."]);
        assert_eq!(blank["last_name"], ["Last Name cannot be blank."]);
        let unknown = errors(json!({ "location_id": "11e8000000000000000000ff", "last_name": "Lee" }));
        assert_eq!(unknown["location_id"], ["location_id provided is not valid"]);
    }
}
