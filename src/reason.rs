//! Why something is as it is, in words that may be shown.

use std::borrow::Cow;
use std::error::Error;

/// A reason is shown in a line and kept for each attempt; what is longer is in the stored answer.
const MAX_REASON_CHARS: usize = 500;

/// Why something is as it is: a code for scripts and metrics, a sentence for people, and what the other side said.
///
/// Code and sentence are ours and hold nothing of the lead. What the other side said may repeat the lead: it goes to the ledger,
/// to the record of this very lead, and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Such as `http_422` or `timeout`.
    pub code: Cow<'static, str>,
    /// One line of our own.
    pub text: String,
    /// One line of theirs; may be empty.
    said: String,
}

impl Reason {
    /// A reason of our own.
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code: Cow::Borrowed(code), text: one_line(&text.into()), said: String::new() }
    }

    /// A reason whose code is the status, with what the other side said.
    pub fn of_status(status: u16, said: &str) -> Self {
        let text = format!("the API answered {status}");
        Self { code: Cow::Owned(format!("http_{status}")), text, said: one_line(said) }
    }

    /// A reason of our own, with what the other side said.
    pub fn quoting(code: &'static str, text: impl Into<String>, said: &str) -> Self {
        Self { said: one_line(said), ..Self::new(code, text) }
    }

    /// The same, with a sentence of our own in front.
    #[must_use]
    pub fn preceded_by(&self, words: &str) -> Self {
        Self { text: format!("{words}: {}", self.text), ..self.clone() }
    }

    /// What the other side said.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Everything, for the record of the lead.
    pub fn for_the_record(&self) -> String {
        if self.said.is_empty() { self.text.clone() } else { format!("{}: {}", self.text, self.said) }
    }
}

/// Text from a stranger as one short line without control characters, which Postgres and terminals can take.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    let mut count = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if count > 0 {
            line.push(' ');
        }
        for c in word.chars() {
            if count == MAX_REASON_CHARS {
                line.push('…');
                return line;
            }
            line.push(c);
            count += 1;
        }
    }
    line
}

/// An error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
