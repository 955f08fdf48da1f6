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

impl Person {
    /// A text without what names this person or anybody's address or number, such as a sentence of an API that quotes what it was sent.
    pub fn masked_in(&self, text: &str) -> String {
        let mut masked = mask_text(text).into_owned();
        let words = self.name.iter().flat_map(|name| std::iter::once(name.as_str()).chain(name.split_whitespace()));
        for word in words.filter(|word| word.chars().count() >= 3) {
            masked = without(&masked, word);
        }
        mask_numbers(&masked)
    }

    /// Whether a text names this person, beyond addresses and numbers.
    pub fn is_named_in(&self, text: &str) -> bool {
        let words = self.name.iter().flat_map(|name| name.split_whitespace());
        words.filter(|word| word.chars().count() >= 3).any(|word| without(text, word) != text)
    }
}

/// A text with this word of it as `…`, in whatever case it stands there.
fn without(text: &str, word: &str) -> String {
    let (lower, word) = (text.to_lowercase(), word.to_lowercase());
    // Where letters change their length with their case, places would not be the same.
    if lower.len() != text.len() {
        return if lower.contains(&word) { lower.replace(&word, "…") } else { text.to_owned() };
    }
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let (mut kept, mut from) = (String::with_capacity(text.len()), 0);
    for (at, found) in lower.match_indices(&word) {
        let (before, after) = (lower.get(..at).unwrap_or_default(), lower.get(at + found.len()..).unwrap_or_default());
        if !is_letter(before.chars().next_back()) && !is_letter(after.chars().next()) {
            kept.push_str(text.get(from..at).unwrap_or_default());
            kept.push('…');
            from = at + found.len();
        }
    }
    kept.push_str(text.get(from..).unwrap_or_default());
    kept
}

/// A text whose long numbers, such as those of telephones, are masked but for their last two digits.
fn mask_numbers(text: &str) -> String {
    const LONG: usize = 7;
    let is_part = |c: char| c.is_ascii_digit() || " +()-/.".contains(c);
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit() || c == '+') {
        let (before, from) = rest.split_at(at);
        masked.push_str(before);
        let end = from.find(|c| !is_part(c)).unwrap_or(from.len());
        let number = from.get(..end).unwrap_or_default().trim_end_matches(|c: char| !c.is_ascii_digit());
        let number = if number.is_empty() { from.get(..1).unwrap_or_default() } else { number };
        if number.chars().filter(char::is_ascii_digit).count() >= LONG {
            masked.push_str(&mask_phone(number));
        } else {
            masked.push_str(number);
        }
        rest = from.get(number.len()..).unwrap_or_default();
    }
    masked.push_str(rest);
    masked
}

/// A text with its email addresses masked.
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

    #[test]
    fn names_and_numbers_are_masked_where_they_stand_in_a_text() {
        let ann = Person { name: Some("Ann Lee-Example Ü".to_owned()), ..Person::default() };
        let text = "422: ANN Lee-Example, +49 (170) 123-4567, exists since 2026; annual fee 100";
        assert_eq!(ann.masked_in(text), "422: … …, …67, exists since 2026; annual fee 100");
        assert!(ann.is_named_in("Ann exists") && !ann.is_named_in("annual fee"));
        assert_eq!(Person::default().masked_in("HTTP 503 after 20 attempts"), "HTTP 503 after 20 attempts");
        assert_eq!(Person::default().masked_in("a + b, 1+"), "a + b, 1+");
    }
}
