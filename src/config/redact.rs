//! Takes secrets out of what strangers say: an API, a proxy or a token endpoint may repeat what it was sent, and what it says goes
//! into the ledger.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem::Finder;
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use url::Url;

use super::Destination;
use super::template::RESERVED;

/// What stands in a secret's place.
const REDACTED: &str = "***";

/// Nothing shorter is looked for: it would be found by chance.
const MIN_BYTES: usize = 4;

/// Shorter texts in tables are versions, kinds and flags.
const MIN_LITERAL_BYTES: usize = 8;

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
        // Whoever writes a key into a table or a URL, instead of a placeholder, does not want to read it in a log.
        let tables = [&auth.headers, &auth.query, &auth.parameters, &destination.request.headers];
        let in_tables = tables.into_iter().flat_map(BTreeMap::values).flat_map(|value| value.split_whitespace());
        for literal in in_tables.chain(query_values(destination)) {
            if literal.len() >= MIN_LITERAL_BYTES && !literal.starts_with('{') {
                redactor.add(literal);
            }
        }
        if destination.request.proxy == "env" {
            proxies_of_environment().for_each(|proxy| redactor.add_login(&proxy));
        }
        redactor
    }

    /// What a proxy is told at each request, and may repeat when it refuses one.
    fn add_login(&mut self, proxy: &Url) {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (user, password) = (decoded(proxy.username()), proxy.password().map(decoded).unwrap_or_default());
        if !user.is_empty() || !password.is_empty() {
            self.add(&STANDARD.encode(format!("{user}:{password}")));
            // Without a password, the name is a token.
            self.add(if password.is_empty() { &user } else { &password });
        }
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

    /// The body of an answer without secrets. Of one that was cut off, the end may be the beginning of a secret.
    pub fn clean_answer(&self, body: Vec<u8>, is_cut: bool) -> Vec<u8> {
        let mut body = self.clean_bytes(body);
        // Escapes can hide what is found once they are read.
        if body.contains(&b'\\')
            && let Ok(mut json) = serde_json::from_slice::<Value>(&body)
            && self.clean_json(&mut json)
        {
            body = json.to_string().into_bytes();
        }
        if is_cut {
            self.clean_end(&mut body);
        }
        body
    }

    /// Cleans every text in a JSON value, and says whether there was anything to clean.
    fn clean_json(&self, json: &mut Value) -> bool {
        match json {
            Value::String(text) => {
                let clean = match self.clean(text) {
                    Cow::Borrowed(_) => return false,
                    Cow::Owned(clean) => clean,
                };
                *text = clean;
                true
            }
            Value::Array(items) => items.iter_mut().fold(false, |changed, item| self.clean_json(item) | changed),
            Value::Object(members) => {
                let mut changed = false;
                *members = std::mem::take(members)
                    .into_iter()
                    .map(|(name, mut member)| {
                        let clean = self.clean(&name).into_owned();
                        changed |= self.clean_json(&mut member) | (clean != name);
                        (clean, member)
                    })
                    .collect();
                changed
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    /// Takes out the beginning of a secret at the end.
    fn clean_end(&self, body: &mut Vec<u8>) {
        let begun = |secret: &Finder<'static>| {
            let lengths = (MIN_BYTES..secret.needle().len()).rev();
            lengths.into_iter().find(|length| secret.needle().get(..*length).is_some_and(|begun| body.ends_with(begun)))
        };
        if let Some(length) = self.0.iter().filter_map(begun).max() {
            body.truncate(body.len() - length);
            body.extend_from_slice(REDACTED.as_bytes());
        }
    }

    /// The text without secrets.
    pub fn clean<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.0.iter().all(|secret| secret.find(text.as_bytes()).is_none()) {
            return Cow::Borrowed(text);
        }
        let clean = self.clean_bytes(text.as_bytes().to_vec());
        Cow::Owned(String::from_utf8_lossy(&clean).into_owned())
    }

    /// The bytes without secrets.
    fn clean_bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
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

/// The values in the queries of URLs.
fn query_values(destination: &Destination) -> impl Iterator<Item = &str> {
    let auth = &destination.auth;
    let urls =
        [&auth.token_url, &auth.revoke_url, &auth.logout_url, &destination.request.url, &destination.reconcile.url];
    let queries = urls.into_iter().filter_map(|url| url.split_once('?')).flat_map(|(_, query)| query.split('&'));
    queries.filter_map(|pair| pair.split_once('=')).map(|(_, value)| value)
}

/// How a secret is written: as it is, in a form, in a URL (with capital and with small letters), in JSON (by those who escape
/// slashes and by those who do not), and in HTML.
fn spellings(secret: &str) -> [String; 8] {
    let (in_form, in_url) = (form(secret), utf8_percent_encode(secret, RESERVED).to_string());
    let in_json = Value::from(secret).to_string();
    let in_json = in_json.get(1..in_json.len() - 1).unwrap_or_default().to_owned();
    let slashes_escaped = in_json.replace('/', "\\/");
    let in_html = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    [secret.to_owned(), small_hex(&in_form), in_form, small_hex(&in_url), in_url, in_json, slashes_escaped, in_html]
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

/// The proxies that the environment names, in the variables that reqwest reads, and as it reads them: a scheme may be missing.
fn proxies_of_environment() -> impl Iterator<Item = Url> {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let variables = names.into_iter().flat_map(|name| [name.to_owned(), name.to_lowercase()]);
    let urls = variables.filter_map(|name| std::env::var(name).ok());
    urls.filter_map(|url| Url::parse(&if url.contains("://") { url } else { format!("http://{url}") }).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn of_token(token: &str) -> Redactor {
        Redactor::default().and([token])
    }

    #[test]
    fn a_secret_that_is_hidden_by_escapes_is_found_once_they_are_read() {
        let redactor = of_token("zyxq+\u{e9}\"&<key");
        for body in [
            r#"{"message":"you sent zyxq+\u00e9\"&<key","n":[1,{"zyxq+\u00e9\u0022\u0026\u003ckey":true}]}"#,
            r#"["zyxq\u002B\u00E9\u0022\u0026\u003Ckey"]"#,
            "<html>zyxq+\u{e9}&quot;&amp;&lt;key</html>",
        ] {
            let clean = String::from_utf8(redactor.clean_answer(body.into(), false)).expect("UTF-8");
            assert!(clean.contains("***") && !clean.contains("zyxq") && !clean.contains("key<"), "{clean}");
        }
        let untouched = r#"{"n":1.10,"text":"a\u00e9"}"#;
        assert_eq!(
            redactor.clean_answer(untouched.into(), false),
            untouched.as_bytes(),
            "what holds no secret stays as it is"
        );
    }

    #[test]
    fn the_beginning_of_a_secret_at_the_end_of_what_was_cut_off_is_taken_out() {
        let redactor = of_token("zyxqsecret");
        let clean = |body: &str, is_cut| String::from_utf8(redactor.clean_answer(body.into(), is_cut)).expect("UTF-8");
        assert_eq!(clean("you sent zyxqsec", true), "you sent ***");
        assert_eq!(clean("you sent zyxq", true), "you sent ***");
        assert_eq!(clean("you sent zyx", true), "you sent zyx", "too short to be looked for");
        assert_eq!(clean("you sent zyxqsec", false), "you sent zyxqsec", "nothing was cut off");
    }

    #[test]
    fn secrets_are_found_in_every_form_in_which_they_go_over_the_wire() {
        let mut destination = Destination::default();
        destination.auth.client_id = "id".to_owned();
        destination.auth.client_secret = Secret::new("hunter 2/\"é");
        destination.auth.bearer_token = Secret::new("abc");
        destination.request.headers.insert("x-key".to_owned(), "Key literal-1".to_owned());
        destination.request.url = "https://h/leads?api_key=literal-2&tenant={tenant_name}".to_owned();
        let redactor = Redactor::of(&destination).and(["token-1"]);
        assert_eq!(redactor.clean("literal-1, literal-2, {tenant_name}"), "***, ***, {tenant_name}");
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
            assert_eq!(redactor.clean_answer(said.clone().into_bytes(), false), clean.as_bytes());
            assert!(clean.matches("***").count() == 2 && clean.ends_with('!'), "{clean}");
            assert!(!clean.contains("hunter") && !clean.contains("token-1"), "{clean}");
        }
        assert_eq!(
            redactor.clean("abc and id stay: one is too short to be looked for"),
            "abc and id stay: one is too short to be looked for"
        );
    }
}
