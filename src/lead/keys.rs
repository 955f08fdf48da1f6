//! What a lead can be found by besides its id: the person's email address, and the assistant.
//!
//! The ledger keeps numbers that are made of them, so that no address stands anywhere but in the body. They hide nothing: whoever has an
//! address can make its number.

use std::borrow::Cow;

use super::decode::Fields;
use super::identity::derive;
use super::validate::unquoted;

/// The fields that name the assistant, in the lead APIs that have one.
const ASSISTANT: [&str; 2] = ["assistantId", "assistantEmail"];

/// Stands for an email address, or an assistant.
///
/// 62 bits of a hash: among ten million addresses, the chance that any two share a number is one in 90,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub i64);

impl Key {
    /// Of this address. White space around it does not count, nor does the case of its letters: RFC 5321, section 2.4 lets only the host
    /// that takes the mail tell local parts apart by case, and those that do are not to be found.
    #[must_use]
    pub fn of_email(address: &str) -> Self {
        Self::of(b"email", address)
    }

    /// Of this assistant, by id or address.
    #[must_use]
    pub fn of_assistant(name: &str) -> Self {
        Self::of(b"assistant", name)
    }

    fn of(kind: &[u8], text: &str) -> Self {
        let text = text.trim();
        let is_upper = text.chars().any(char::is_uppercase);
        let text = if is_upper { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) };
        // The other half holds the version of the UUID.
        let (_, low) = derive(kind, b"", text.as_bytes()).0.as_u64_pair();
        Self(low.cast_signed())
    }
}

/// What a message can be found by, valid or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keys {
    /// The person's address.
    pub email: Option<Key>,
    /// The assistant, by id or address, as the message names it.
    pub assistant: Option<Key>,
}

impl Keys {
    /// Of this message, where no assistant stands in for one that is not named.
    #[must_use]
    pub fn of_body(body: &[u8]) -> Self {
        Fields::decode(body, usize::MAX).map(|fields| Self::of(&fields, None)).unwrap_or_default()
    }

    /// Of these fields. `assistant`: the JSON that stands in for an assistant where none is named.
    pub(super) fn of(fields: &Fields<'_>, assistant: Option<&str>) -> Self {
        let email = fields.get("email").and_then(|value| plain(value.get()));
        let assistant = named(fields).or_else(|| assistant.and_then(plain));
        Self {
            email: email.map(|address| Key::of_email(&address)),
            assistant: assistant.map(|name| Key::of_assistant(&name)),
        }
    }
}

/// The assistant that a message names.
pub fn assistant(body: &[u8]) -> Option<String> {
    let fields = Fields::decode(body, usize::MAX).ok()?;
    let name = named(&fields)?;
    Some(name.chars().filter(|c| !c.is_control()).take(100).collect::<String>().trim().to_owned())
}

fn named<'a>(fields: &Fields<'a>) -> Option<Cow<'a, str>> {
    ASSISTANT.iter().find_map(|key| fields.get(key).and_then(|value| plain(value.get())))
}

/// The text of a JSON string, or a number as it is written; nothing of blank ones.
pub(super) fn plain(json: &str) -> Option<Cow<'_, str>> {
    let plain = match json.as_bytes().first()? {
        b'"' => unquoted(json)?,
        b'-' | b'0'..=b'9' => Cow::Borrowed(json),
        _ => return None,
    };
    (!plain.trim().is_empty()).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(body: &str) -> Keys {
        Keys::of(&Fields::decode(body.as_bytes(), 4096).expect("an object"), Some("7"))
    }

    #[test]
    fn an_address_is_one_address_in_any_case_and_with_white_space() {
        let ann = Key::of_email("ann@example.com");
        assert_eq!(Key::of_email(" Ann@Example.COM\n"), ann);
        assert_ne!(Key::of_email("anne@example.com"), ann);
        assert_eq!(keys(r#"{"email":"ANN@example.com"}"#).email, Some(ann));
        assert_eq!(keys(r#"{"email":"\u0061nn@example.com "}"#).email, Some(ann), "escapes are read");
    }

    #[test]
    fn the_number_of_an_address_never_changes() {
        // It is stored.
        assert_eq!(Key::of_email("ann@example.com"), Key(EXPECTED));
    }

    const EXPECTED: i64 = -8_119_517_412_982_586_719;

    #[test]
    fn an_assistant_is_found_as_the_message_names_it() {
        let found = |body: &str, name: &str| {
            assert_eq!(keys(body).assistant, Some(Key::of_assistant(name)), "{body}");
            assistant(body.as_bytes())
        };
        assert_eq!(found(r#"{"assistantId":61}"#, "61").as_deref(), Some("61"));
        assert_eq!(found(r#"{"assistantId":" A-1 "}"#, "a-1").as_deref(), Some("A-1"));
        let email = r#"{"assistantEmail":"helen@example.com"}"#;
        assert_eq!(found(email, "helen@example.com").as_deref(), Some("helen@example.com"));
        assert_ne!(keys(email).assistant, Some(Key::of_email("helen@example.com")), "an assistant is no person");
        assert_eq!(found(r#"{"assistantId":null}"#, "7"), None, "the default one");
    }

    #[test]
    fn what_is_no_text_is_no_key() {
        for body in [r#"{"email":null}"#, r#"{"email":" "}"#, r#"{"email":["a@b.c"]}"#, r#"{"email":"\ud800"}"#, "{}"] {
            assert_eq!(keys(body).email, None, "{body}");
        }
    }
}
