//! What a lead is: from the bytes of a message to a body that may be posted, or to the list of what is wrong with it.
//!
//! ```text
//!   bytes ──decode──> Fields ──validate──> object ──body──> Lead
//!            │                    │                  │
//!            └── Violations <─────┴──────────────────┘    all of them at once, each with field, stable code and a sentence
//! ```
//!
//! # Rules
//! - Pure: no I/O, no async, no clock, no randomness. The same bytes and the same [`LeadRules`] give the same answer, which is
//!   what makes a replay after a fixed configuration meaningful.
//! - The body that goes out is the body that came in, byte for byte, unless a rule changed something in it (white space
//!   around name and email, a default assistant, dropped fields) or the destination wants another one (`destination.request.jq`,
//!   a form). Values are never parsed into numbers and printed again,
//!   so `12345678901234567890` and `1.10` keep every digit.
//! - A lead is personal data: `Debug` shows sizes, never contents.

mod body;
mod decode;
mod fields;
mod identity;
mod keys;
mod person;
mod validate;

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use body::{BodyRules, variables};
pub use decode::Fields;
pub use fields::FieldKind;
pub use identity::{LeadId, identify};
pub use keys::{Key, Keys, assistant};
pub use person::{Person, mask_text};
pub use validate::{LeadRules, Limits, Read};

/// A lead that passed every check and may be posted.
#[derive(Clone, PartialEq, Eq)]
pub struct Lead {
    /// The body to post.
    body: Body,
    /// The key under which the API can be asked for it.
    key: Option<String>,
}

/// The outgoing body: the received bytes where nothing had to change.
#[derive(Clone, PartialEq, Eq)]
enum Body {
    AsReceived,
    Rebuilt(Vec<u8>),
}

impl Lead {
    /// The body to post, where a rule changed something; `None`: the body that this lead was read from.
    pub fn rebuilt(self) -> Option<Bytes> {
        match self.body {
            Body::AsReceived => None,
            Body::Rebuilt(json) => Some(Bytes::from(json)),
        }
    }

    /// The key under which the API can be asked for it; `None`: it cannot be asked.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Whether a rule changed the body, so that what goes out differs from what came in.
    pub fn is_changed(&self) -> bool {
        matches!(self.body, Body::Rebuilt(_))
    }
}

impl fmt::Debug for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lead").field("changed", &self.is_changed()).finish_non_exhaustive()
    }
}

/// One thing that is wrong with a message, in words that its producer can act on.
///
/// The sentence never repeats the value that was found: violations may be shown where leads may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The field as the message names it, or `""` for the message as a whole.
    pub field: String,
    /// A stable code for scripts and metrics, such as `missing` or `email_syntax`.
    pub code: Code,
    /// What is wrong and what would be right, as a sentence.
    pub message: String,
}

impl Violation {
    fn new(field: impl Into<String>, code: Code, message: impl Into<String>) -> Self {
        Self { field: field.into(), code, message: message.into() }
    }

    /// A violation of the message as a whole.
    pub fn of_message(code: Code, message: impl Into<String>) -> Self {
        Self::new("", code, message)
    }
}

/// The kinds of violations. The names are an interface: they are stored, counted and shown, and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The message has no body.
    Empty,
    /// The message is larger than `lead.max_message_bytes`.
    TooLarge,
    /// The body is not UTF-8.
    NotUtf8,
    /// The body is not JSON (RFC 8259).
    NotJson,
    /// The body is JSON, but not an object.
    NotAnObject,
    /// The object has more fields than `lead.max_fields`.
    TooManyFields,
    /// A key stands twice in the object.
    Repeated,
    /// A mandatory field is absent, `null` or blank.
    Missing,
    /// The field has a JSON type that it cannot have.
    WrongType,
    /// The field is longer than allowed.
    TooLong,
    /// The field is a string with an escape that stands for no character (a lone surrogate).
    NotText,
    /// The field is not an email address by RFC 5321.
    EmailSyntax,
    /// The destination's jq expression gives no body for the lead.
    Conversion,
    /// The field is not known and `lead.unknown_fields` is `reject`.
    Unknown,
    /// The ledger cannot store the message with all its properties.
    Unstorable,
    /// The check itself failed: a bug in leadpost.
    WorkerPanic,
}

impl Code {
    /// All codes, for metrics that exist before the first violation does.
    pub const ALL: [Code; 16] = [
        Code::Empty,
        Code::TooLarge,
        Code::NotUtf8,
        Code::NotJson,
        Code::NotAnObject,
        Code::TooManyFields,
        Code::Repeated,
        Code::Missing,
        Code::WrongType,
        Code::TooLong,
        Code::NotText,
        Code::EmailSyntax,
        Code::Conversion,
        Code::Unknown,
        Code::Unstorable,
        Code::WorkerPanic,
    ];

    /// The code as it is stored and printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Empty => "empty",
            Code::TooLarge => "too_large",
            Code::NotUtf8 => "not_utf8",
            Code::NotJson => "not_json",
            Code::NotAnObject => "not_an_object",
            Code::TooManyFields => "too_many_fields",
            Code::Repeated => "repeated",
            Code::Missing => "missing",
            Code::WrongType => "wrong_type",
            Code::TooLong => "too_long",
            Code::NotText => "not_text",
            Code::EmailSyntax => "email_syntax",
            Code::Conversion => "conversion",
            Code::Unknown => "unknown",
            Code::Unstorable => "unstorable",
            Code::WorkerPanic => "worker_panic",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
