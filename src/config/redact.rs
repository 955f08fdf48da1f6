//! Takes secrets out of what strangers say: an API, a proxy or a token endpoint may repeat what it was sent, and what it says goes
//! into the ledger.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem::Finder;
use percent_encoding::utf8_percent_encode;

use super::Destination;
use super::template::RESERVED;

/// What stands in a secret's place.
const REDACTED: &str = "***";

/// Nothing shorter is looked for: it would be found by chance.
const MIN_BYTES: usize = 4;

/// The secrets of a destination, in every form in which they go over the wire.
#[derive(Clone, Default)]
pub struct Redactor(Vec<Finder<'static>>);

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// The secrets of this destination.
    pub fn of(destination: &Destination) -> Self {
        let auth = &destination.auth;
        let mut redactor = Self::default();
        for (id, secret) in [
            (auth.client_id.as_str(), &auth.client_secret),
            (auth.username.as_str(), &auth.password),
            (auth.api_key_id.as_str(), &auth.api_key),
            ("", &auth.bearer_token),
        ] {
            if secret.is_set() {
                redactor.add(secret.expose());
                redactor.add(&STANDARD.encode(format!("{id}:{}", secret.expose())));
                redactor.add(&STANDARD.encode(format!("{}:{}", form(id), form(secret.expose()))));
            }
        }
        redactor
    }

    /// The same, and these.
    #[must_use]
    pub fn and<'a>(&self, more: impl IntoIterator<Item = &'a str>) -> Self {
        let mut redactor = self.clone();
        for secret in more {
            redactor.add(secret);
        }
        redactor
    }

    fn add(&mut self, secret: &str) {
        for written in spellings(secret) {
            if written.len() >= MIN_BYTES && !self.0.iter().any(|known| known.needle() == written.as_bytes()) {
                self.0.push(Finder::new(&written).into_owned());
            }
        }
    }

    /// The text without secrets.
    pub fn clean(&self, text: &str) -> String {
        let clean = self.clean_bytes(text.as_bytes().to_vec());
        String::from_utf8_lossy(&clean).into_owned()
    }

    /// The bytes without secrets.
    pub fn clean_bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.0.iter().fold(bytes, |bytes, secret| {
            let mut from = 0;
            let mut clean = Vec::new();
            for at in secret.find_iter(&bytes) {
                clean.extend_from_slice(bytes.get(from..at).unwrap_or_default());
                clean.extend_from_slice(REDACTED.as_bytes());
                from = at + secret.needle().len();
            }
            if from == 0 {
                return bytes;
            }
            clean.extend_from_slice(bytes.get(from..).unwrap_or_default());
            clean
        })
    }
}

/// How a secret is written: as it is, in a form, in a URL (with capital and with small letters), and in JSON, by those who escape
/// slashes and by those who do not.
fn spellings(secret: &str) -> [String; 7] {
    let (in_form, in_url) = (form(secret), utf8_percent_encode(secret, RESERVED).to_string());
    let in_json = serde_json::Value::from(secret).to_string();
    let in_json = in_json.get(1..in_json.len() - 1).unwrap_or_default().to_owned();
    let slashes_escaped = in_json.replace('/', "\\/");
    [secret.to_owned(), small_hex(&in_form), in_form, small_hex(&in_url), in_url, in_json, slashes_escaped]
}

/// `%2F` as `%2f`.
fn small_hex(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut small = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        small.extend(['%'].into_iter().chain(hex.chars().map(|c| c.to_ascii_lowercase())));
        small.push_str(rest);
    }
    small
}

/// As a form or a query writes it.
fn form(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn secrets_are_found_in_every_form_in_which_they_go_over_the_wire() {
        let mut destination = Destination::default();
        destination.auth.client_id = "id".to_owned();
        destination.auth.client_secret = Secret::new("hunter 2/\"é");
        destination.auth.bearer_token = Secret::new("abc");
        let redactor = Redactor::of(&destination).and(["token-1"]);
        let echoes = [
            "hunter 2/\"é".to_owned(),
            "hunter+2%2F%22%C3%A9".to_owned(),
            "hunter+2%2f%22%c3%a9".to_owned(),
            "hunter%202%2F%22%C3%A9".to_owned(),
            r#"hunter 2\/\"é"#.to_owned(),
            serde_json::json!({ "client_secret": "hunter 2/\"é" }).to_string(),
            STANDARD.encode("id:hunter 2/\"é"),
            STANDARD.encode("id:hunter+2%2F%22%C3%A9"),
            "Bearer token-1".to_owned(),
        ];
        for echo in echoes {
            let said = format!("you sent {echo} and {echo}!");
            let clean = redactor.clean(&said);
            assert_eq!(redactor.clean_bytes(said.into_bytes()), clean.as_bytes());
            assert!(clean.matches("***").count() == 2 && clean.ends_with('!'), "{clean}");
            assert!(!clean.contains("hunter") && !clean.contains("token-1"), "{clean}");
        }
        assert_eq!(
            redactor.clean("abc and id stay: one is too short to be looked for"),
            "abc and id stay: one is too short to be looked for"
        );
    }
}
