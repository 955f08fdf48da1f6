//! One request, as the journal shows it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use uuid::Uuid;

/// What a request wants of an API. Every API takes leads; the rest it may have or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Takes leads.
    #[default]
    Leads,
    /// Gives tokens.
    Token,
    /// Answers questions: which leads there are, whether the API is there.
    Query,
    /// Ends tokens.
    Logout,
}

impl Endpoint {
    /// All of them, each at its [`index`](Self::index).
    pub(super) const ALL: [Self; 4] = [Self::Leads, Self::Token, Self::Query, Self::Logout];

    /// How many there are.
    pub(super) const COUNT: usize = Self::ALL.len();

    /// Its place in an array with one element for each.
    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// Its name in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Leads => "leads",
            Self::Token => "token",
            Self::Query => "query",
            Self::Logout => "logout",
        }
    }
}

/// What a body is announced as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentType {
    /// `application/json`, or what is built on it.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// Anything else.
    Other,
}

/// The value of an `Idempotency-Key`. Most are UUIDs, and 16 bytes hold those.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A UUID in its usual form: lower case, with hyphens.
    Uuid(Uuid),
    /// Any other text, byte for byte.
    Text(Box<str>),
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        // Another spelling of a UUID is another key: the journal must not hide what was sent.
        let usual = |uuid: &Uuid| text == uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer());
        match Uuid::try_parse(text).ok().filter(usual) {
            Some(uuid) => Self::Uuid(uuid),
            None => Self::Text(text.into()),
        }
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<Uuid> for Key {
    fn from(uuid: Uuid) -> Self {
        Self::Uuid(uuid)
    }
}

impl From<&Key> for Key {
    fn from(key: &Key) -> Self {
        key.clone()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => fmt::Display::fmt(uuid, to),
            Self::Text(text) => to.write_str(text),
        }
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// What a request did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing.
    #[default]
    Nothing,
    /// A lead was created.
    Created,
    /// The email, or whatever else makes a lead unique, was known.
    Duplicate,
    /// The key was known, and keys are deduplicated ([`super::Tuning::dedupe_by_key`]).
    Repeated,
    /// A token was issued.
    Issued,
    /// A token was ended.
    Ended,
}

impl Effect {
    /// Whether the API got as far as looking at its leads: the client can no longer say that nothing happened.
    pub fn processed(self) -> bool {
        matches!(self, Self::Created | Self::Duplicate | Self::Repeated)
    }
}

/// One request. Times are since the sandbox started.
#[derive(Clone, Debug)]
pub struct Entry {
    /// 1 for the first request, without gaps.
    pub seq: u64,
    /// What it was addressed to.
    pub endpoint: Endpoint,
    /// When its head had been read.
    pub received: Duration,
    /// The same by the wall clock, in milliseconds since 1970.
    pub received_unix_ms: u64,
    /// When its answer was handed to the connection, or when it ended without one. `None` while it is in work.
    pub ended: Option<Duration>,
    /// The status it was answered with. `None` while it is in work and when no whole status line was sent.
    pub status: Option<u16>,
    /// Its `Idempotency-Key`.
    pub key: Option<Key>,
    /// 1 for the first request of that key, and so on. 0 without a key.
    pub attempt: u32,
    /// The lead's email, trimmed and in lower case; of a lead without one, and of a question, what makes the lead unique
    /// at its API: `lead_id`, `custnr` or `contact_api_id`. Of several leads it is that of the first. Made up, as
    /// everything that is sent to a sandbox.
    pub email: Option<Arc<str>>,
    /// A hash of the body, the same for the same bytes within one build. `None` if the body was not read.
    pub body_hash: Option<u64>,
    /// The body, if bodies are kept.
    pub body: Option<Arc<[u8]>>,
    /// What its body was announced as. `None` without a content type.
    pub content_type: Option<ContentType>,
    /// Whether it was authenticated, in whichever way. Always false at the token endpoint.
    pub token_ok: bool,
    /// The fault that it met: a kind of [`super::FaultKind`], or `unavailable`, `over_capacity`, `rate_limited`.
    pub fault: Option<&'static str>,
    /// What it did.
    pub effect: Effect,
    /// Requests in work at its endpoint when it came, itself included.
    pub in_flight: u32,
    /// Whether another request with the same key was in work when it came.
    pub overlapped: bool,
}

impl Entry {
    /// Its journal line: one JSON object. The body is left out unless asked for, and then as text.
    pub(super) fn line(&self, with_body: bool) -> serde_json::Value {
        let ms = |time: Duration| time.as_micros() as f64 / 1000.0;
        let ended_unix_ms = self.ended.map(|ended| {
            self.received_unix_ms + u64::try_from(ended.saturating_sub(self.received).as_millis()).unwrap_or_default()
        });
        let mut line = serde_json::json!({
            "seq": self.seq,
            "endpoint": self.endpoint,
            "received_ms": ms(self.received),
            "received_unix_ms": self.received_unix_ms,
            "ended_ms": self.ended.map(ms),
            "ended_unix_ms": ended_unix_ms,
            "status": self.status,
            "key": self.key,
            "attempt": self.attempt,
            "email": self.email.as_deref(),
            "body_hash": self.body_hash.map(|hash| format!("{hash:016x}")),
            "content_type": self.content_type,
            "token_ok": self.token_ok,
            "fault": self.fault,
            "effect": self.effect,
            "in_flight": self.in_flight,
            "overlapped": self.overlapped,
        });
        if let (true, Some(body), Some(members)) = (with_body, &self.body, line.as_object_mut()) {
            members.insert("body".to_owned(), String::from_utf8_lossy(body).into());
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_the_same_names_everywhere() {
        for (index, endpoint) in Endpoint::ALL.into_iter().enumerate() {
            assert_eq!(endpoint.index(), index);
            assert_eq!(serde_json::json!(endpoint), endpoint.name());
        }
    }

    #[test]
    fn a_key_is_shown_as_it_was_sent() {
        for text in ["018f2f6e-8c7e-7c0a-9d0b-0d1c2b3a4f5e", "018F2F6E-8C7E-7C0A-9D0B-0D1C2B3A4F5E", "lead 7", ""] {
            assert_eq!(Key::from(text).to_string(), text);
        }
        let lower = Key::from("018f2f6e-8c7e-7c0a-9d0b-0d1c2b3a4f5e");
        assert!(matches!(lower, Key::Uuid(_)));
        assert_ne!(lower, Key::from("018F2F6E-8C7E-7C0A-9D0B-0D1C2B3A4F5E"));
    }
}
