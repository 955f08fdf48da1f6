//! What can go wrong, one value per fault.
//!
//! A fault is a value without behaviour: `fault_json` writes it down, `plan` decides which request meets it, `exchange`
//! carries it out, and `wire` does what only the socket can.

use std::time::{Duration, SystemTime};

use http::HeaderValue;
use serde::{Deserialize, Serialize};

use super::Endpoint;

/// One fault, as one request meets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "super::fault_json::FaultDocument", into = "super::fault_json::FaultDocument")]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// Which endpoint it happens at.
    pub on: Endpoint,
    /// Whether the request is processed first: the lead exists, and yet the client may never learn of it.
    pub after: bool,
    /// How long the sandbox waits before it happens.
    pub delay: Delay,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing. Holds a place in a script.
    None,
    /// The usual answer, late by the fault's delay.
    Latency,
    /// Another answer.
    Status(StatusAnswer),
    /// TCP reset when the head has been read, the body not.
    ResetEarly,
    /// TCP reset when the whole request has been read.
    Reset,
    /// The connection is closed in an orderly way, without an answer.
    Close,
    /// No answer until the client leaves or the sandbox stops.
    Hang,
    /// The answer breaks off and the connection is closed.
    Cut(CutAt),
    /// 302 to a page that answers 200 with HTML, as a login page would.
    Redirect,
    /// A body far larger than any client should read.
    Huge {
        /// The status before it.
        status: u16,
        /// Its length.
        bytes: u64,
        /// Whether the length is announced (`Content-Length`) or not (chunked).
        chunked: bool,
    },
    /// The answer, one byte at a time.
    Drip {
        /// The time before each byte.
        every: Duration,
        /// Where it begins.
        from: DripFrom,
    },
}

/// An answer that the API did not think of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusAnswer {
    /// Its status, 200 to 599.
    pub status: u16,
    /// Its `Retry-After`.
    pub retry_after: Option<RetryAfter>,
    /// Its `WWW-Authenticate`.
    pub www_authenticate: Option<String>,
    /// Its body; without one, a JSON object with the status' usual name as `message`.
    pub body: Option<String>,
    /// Its content type; without one, `application/json`.
    pub content_type: Option<String>,
}

/// A `Retry-After` header (RFC 9110, 10.2.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RetryAfter {
    /// Seconds.
    Seconds(u64),
    /// An HTTP date that lies so many seconds ahead when the answer is sent.
    Date {
        /// Seconds from the answer.
        date_in_s: i64,
    },
    /// This text, whatever it is.
    Text(String),
}

/// Where an answer breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutAt {
    /// Inside the status code.
    StatusLine,
    /// After the status line, inside the headers.
    Headers,
    /// In the middle of the body.
    Body,
    /// After so many bytes.
    Bytes(u64),
}

/// Where an answer begins to drip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DripFrom {
    /// At its first byte.
    Head,
    /// After its headers.
    Body,
}

/// A time, or a range of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// The shortest.
    pub at_least: Duration,
    /// The longest; ignored when shorter than `at_least`.
    pub at_most: Duration,
}

impl Delay {
    /// The time that `roll`, a number from 0 to 1, falls on.
    pub fn at(self, roll: f64) -> Duration {
        let span = self.at_most.saturating_sub(self.at_least);
        self.at_least + span.mul_f64(roll.clamp(0.0, 1.0))
    }
}

impl Fault {
    fn new(kind: FaultKind) -> Self {
        let after = kind.strikes_after_by_default();
        Self { kind, on: Endpoint::Leads, after, delay: Delay::default() }
    }

    /// Nothing: this request is served as usual.
    pub fn none() -> Self {
        Self::new(FaultKind::None)
    }

    /// The usual answer, late by `delay`.
    pub fn latency(delay: Duration) -> Self {
        Self::new(FaultKind::Latency).delayed(delay)
    }

    /// This status, with a JSON message.
    pub fn status(status: u16) -> Self {
        Self::answer(StatusAnswer::new(status))
    }

    /// This status with a `Retry-After` in seconds.
    pub fn retry_after(status: u16, seconds: u64) -> Self {
        Self::answer(StatusAnswer { retry_after: Some(RetryAfter::Seconds(seconds)), ..StatusAnswer::new(status) })
    }

    /// This answer.
    pub fn answer(answer: StatusAnswer) -> Self {
        Self::new(FaultKind::Status(answer))
    }

    /// TCP reset once the head has been read.
    pub fn reset_early() -> Self {
        Self::new(FaultKind::ResetEarly)
    }

    /// TCP reset once the whole request has been read.
    pub fn reset() -> Self {
        Self::new(FaultKind::Reset)
    }

    /// An orderly end of the connection without an answer.
    pub fn close() -> Self {
        Self::new(FaultKind::Close)
    }

    /// No answer, ever.
    pub fn hang() -> Self {
        Self::new(FaultKind::Hang)
    }

    /// Half of the usual answer; the request has been processed unless [`before`](Self::before) says otherwise.
    pub fn cut(at: CutAt) -> Self {
        Self::new(FaultKind::Cut(at))
    }

    /// 302 to a login page.
    pub fn redirect() -> Self {
        Self::new(FaultKind::Redirect)
    }

    /// So many bytes after this status, the length announced.
    pub fn huge(status: u16, bytes: u64) -> Self {
        Self::new(FaultKind::Huge { status, bytes, chunked: false })
    }

    /// The usual answer, a byte per interval; processed unless [`before`](Self::before) says otherwise.
    pub fn drip(every: Duration, from: DripFrom) -> Self {
        Self::new(FaultKind::Drip { every, from })
    }

    /// The same fault, striking after the request has been processed.
    pub fn after(mut self) -> Self {
        self.after = true;
        self
    }

    /// The same fault, striking instead of the processing.
    pub fn before(mut self) -> Self {
        self.after = false;
        self
    }

    /// The same fault, at the token endpoint.
    pub fn on_token(self) -> Self {
        self.on(Endpoint::Token)
    }

    /// The same fault, at this endpoint.
    pub fn on(mut self, endpoint: Endpoint) -> Self {
        self.on = endpoint;
        self
    }

    /// The same fault, after a wait.
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay = Delay { at_least: delay, at_most: delay };
        self
    }
}

impl StatusAnswer {
    /// This status and nothing else said.
    pub fn new(status: u16) -> Self {
        Self { status, retry_after: None, www_authenticate: None, body: None, content_type: None }
    }
}

impl RetryAfter {
    /// The header's value, `None` if it cannot be one. `now` is the wall clock.
    pub(super) fn value(&self, now: SystemTime) -> Option<HeaderValue> {
        match self {
            Self::Seconds(seconds) => Some(HeaderValue::from(*seconds)),
            Self::Date { date_in_s } => {
                let distance = Duration::from_secs(date_in_s.unsigned_abs());
                let date = if *date_in_s < 0 { now.checked_sub(distance) } else { now.checked_add(distance) };
                HeaderValue::try_from(httpdate::fmt_http_date(date?)).ok()
            }
            Self::Text(text) => HeaderValue::try_from(text).ok(),
        }
    }
}

impl FaultKind {
    /// The name in the journal and in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Latency => "latency",
            Self::Status(_) => "status",
            Self::ResetEarly => "reset_early",
            Self::Reset => "reset",
            Self::Close => "close",
            Self::Hang => "hang",
            Self::Cut(_) => "cut",
            Self::Redirect => "redirect",
            Self::Huge { .. } => "huge",
            Self::Drip { .. } => "drip",
        }
    }

    /// Half of an answer, or a slow one, needs an answer: the usual one, so these strike after the processing.
    pub(super) fn strikes_after_by_default(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::Drip { .. })
    }
}

/// `Err` unless it is a status that a client takes for a final answer.
pub(super) fn check_status(status: u16) -> Result<(), String> {
    if (200..=599).contains(&status) { Ok(()) } else { Err(format!("status {status} is not from 200 to 599")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_from_a_range_stays_in_the_range() {
        let delay = Delay { at_least: Duration::from_millis(50), at_most: Duration::from_millis(200) };
        assert_eq!(delay.at(0.0), Duration::from_millis(50));
        assert_eq!(delay.at(1.0), Duration::from_millis(200));
        let backwards = Delay { at_least: Duration::from_millis(50), at_most: Duration::ZERO };
        assert_eq!(backwards.at(0.7), Duration::from_millis(50));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_or_any_text() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let value = |retry_after: RetryAfter| retry_after.value(now).unwrap();
        assert_eq!(value(RetryAfter::Seconds(120)), "120");
        assert_eq!(value(RetryAfter::Date { date_in_s: 7 }), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(value(RetryAfter::Text("soon".to_owned())), "soon");
    }
}
