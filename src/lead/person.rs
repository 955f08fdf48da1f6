//! Who a lead is about, for people who look at leads: in full, or masked.

use std::borrow::Cow;

use serde::Serialize;

use super::decode::Fields;
use super::keys::plain;

/// The names of the parts of a name, in the lead APIs that leadpost knows, as they are put together.
const NAMES: [&[&str]; 2] = [&["name", "contact_name", "first_name"], &["lastName", "last_name"]];
const PHONES: [&str; 4] = ["phone", "phone_number", "cell_phone", "home_phone"];

/// A larger body is not looked into.
const MAX_BYTES: usize = 1 << 20;

/// The person that a message is about, as far as that can be read from it.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
pub struct Person {
    /// The name.
    pub name: Option<String>,
    /// The email address.
    pub email: Option<String>,
    /// The telephone number.
    pub phone: Option<String>,
}

impl Person {
    /// Of this message.
    pub fn of(body: &[u8]) -> Self {
        let Ok(fields) = Fields::decode(body, MAX_BYTES) else { return Self::default() };
        let first = |keys: &[&str]| {
            let text = keys.iter().find_map(|key| fields.get(key).and_then(|value| plain(value.get())))?;
            Some(shown(&text))
        };
        let names: Vec<String> = NAMES.iter().filter_map(|keys| first(keys)).collect();
        Self { name: (!names.is_empty()).then(|| names.join(" ")), email: first(&["email"]), phone: first(&PHONES) }
    }

    /// With so much left as it takes to tell a few leads apart.
    #[must_use]
    pub fn masked(&self) -> Self {
        Self {
            name: self.name.as_deref().map(mask_name),
            email: self.email.as_deref().map(mask_email),
            phone: self.phone.as_deref().map(mask_phone),
        }
    }
}

impl std::fmt::Debug for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Person").finish_non_exhaustive()
    }
}

/// A text with its email addresses masked, such as a sentence of an API that quotes what it was sent.
pub fn mask_text(text: &str) -> Cow<'_, str> {
    if !text.contains('@') {
        return Cow::Borrowed(text);
    }
    let is_end = |c: char| c.is_whitespace() || "\"'<>(),;:[]{}=".contains(c);
    let mut masked = String::with_capacity(text.len());
    for piece in text.split_inclusive(is_end) {
        let word = piece.trim_end_matches(is_end);
        masked.push_str(&if word.contains('@') { Cow::Owned(mask_email(word)) } else { Cow::Borrowed(word) });
        masked.push_str(piece.strip_prefix(word).unwrap_or_default());
    }
    Cow::Owned(masked)
}

/// `Ann Example` becomes `A. E.`
fn mask_name(name: &str) -> String {
    let initials = name.split_whitespace().filter_map(|word| word.chars().next()).take(4);
    initials.map(|initial| format!("{initial}.")).collect::<Vec<_>>().join(" ")
}

/// `ann@example.com` becomes `a…@e….com`
fn mask_email(email: &str) -> String {
    let Some((local, host)) = email.rsplit_once('@') else { return "…".to_owned() };
    let initial = |text: &str| text.chars().next().map(String::from).unwrap_or_default();
    let last = host.rsplit_once('.').map(|(_, last)| format!(".{last}")).unwrap_or_default();
    format!("{}…@{}…{last}", initial(local), initial(host))
}

/// The last two digits.
fn mask_phone(phone: &str) -> String {
    let digits: Vec<char> = phone.chars().filter(char::is_ascii_digit).collect();
    // Of a short one, two digits would be too much.
    let kept = if digits.len() >= 6 { digits.len() - 2 } else { digits.len() };
    format!("…{}", digits[kept..].iter().collect::<String>())
}

/// In one line, and no longer than that.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(body: &str) -> [Option<String>; 3] {
        let Person { name, email, phone } = Person::of(body.as_bytes());
        [name, email, phone]
    }

    fn some(texts: [&str; 3]) -> [Option<String>; 3] {
        texts.map(|text| (!text.is_empty()).then(|| text.to_owned()))
    }

    #[test]
    fn a_person_is_read_from_the_fields_of_every_lead_api() {
        for (body, expected) in [
            (
                r#"{"name":"Ann","lastName":"Example","email":"a@b.c","phone":49123456}"#,
                ["Ann Example", "a@b.c", "49123456"],
            ),
            (r#"{"contact_name":"Ann","phone_number":"+49 1"}"#, ["Ann", "", "+49 1"]),
            (r#"{"first_name":"Ann","last_name":"Example","cell_phone":"1"}"#, ["Ann Example", "", "1"]),
            (r#"{"last_name":"Example","name":null}"#, ["Example", "", ""]),
            (r#"{"name":"An\nn"}"#, ["An n", "", ""]),
            ("[]", ["", "", ""]),
            ("", ["", "", ""]),
        ] {
            assert_eq!(person(body), some(expected), "{body}");
        }
    }

    #[test]
    fn what_is_masked_shows_next_to_nothing() {
        let masked = |name: &str, email: &str, phone: &str| {
            let [name, email, phone] = some([name, email, phone]);
            let Person { name, email, phone } = Person { name, email, phone }.masked();
            [name, email, phone]
        };
        assert_eq!(masked("Ann Example", "ann@example.com", "+49 123 4567"), some(["A. E.", "a…@e….com", "…67"]));
        assert_eq!(masked("", "not an address", "12345"), [None, Some("…".to_owned()), Some("…".to_owned())]);
        assert_eq!(masked("Ünal", "a@b@localhost", ""), [Some("Ü.".to_owned()), Some("a…@l…".to_owned()), None]);
    }

    #[test]
    fn addresses_are_masked_wherever_they_stand_in_a_text() {
        let text = r#"422: "ann@example.com" is taken (see bob@example.org), not c"#;
        assert_eq!(mask_text(text), r#"422: "a…@e….com" is taken (see b…@e….org), not c"#);
        assert_eq!(mask_text("email=ann@example.com"), "email=a…@e….com");
        assert_eq!(mask_text("nothing of the kind"), "nothing of the kind");
    }
}
