//! A lead as a line of a list.

use std::borrow::Cow;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::lead::{Person, assistant, mask_text};
use crate::ledger::{LeadState, Listed};

/// A lead as a line of a list: flat, as CSV is.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) id: String,
    destination: String,
    pub(super) state: LeadState,
    accepted_at: String,
    finished_at: Option<String>,
    due_at: Option<String>,
    pub(super) assistant: Option<String>,
    pub(super) name: Option<String>,
    pub(super) email: Option<String>,
    phone: Option<String>,
    pub(super) attempts: i32,
    pub(super) http_status: Option<i16>,
    pub(super) code: Option<String>,
    pub(super) reason: Option<String>,
    warning: Option<String>,
    remote_id: Option<String>,
    queue: String,
    message_id: Option<String>,
    erased_at: Option<String>,
    /// The message; only in an export that reveals.
    body: Option<String>,
}

impl Row {
    /// Of this lead. `reveal`: persons in full; `with_body`: with the message as it came.
    pub(super) fn of(listed: &Listed, reveal: bool, with_body: bool) -> Self {
        let lead = &listed.lead;
        let full = Person::of(&listed.body);
        let said = |text: &Option<String>| {
            let text = text.as_deref()?;
            Some(if reveal { text.to_owned() } else { full.masked_in(text) })
        };
        let message_id =
            lead.message_id.as_deref().map(|id| if reveal { id.to_owned() } else { mask_text(id).into_owned() });
        let person = if reveal { full.clone() } else { full.masked() };
        Self {
            id: lead.id.to_string(),
            destination: lead.destination.clone(),
            state: lead.state,
            accepted_at: rfc3339(lead.accepted_at),
            finished_at: lead.finished_at.map(rfc3339),
            due_at: lead.next_attempt_at.map(rfc3339),
            assistant: assistant(&listed.body),
            name: person.name,
            email: person.email,
            phone: person.phone,
            attempts: lead.attempts,
            http_status: listed.http_status,
            code: lead.code.clone(),
            reason: said(&lead.reason),
            warning: said(&lead.warning),
            remote_id: lead.remote_id.clone(),
            queue: lead.queue.clone(),
            message_id,
            erased_at: lead.erased_at.map(rfc3339),
            body: with_body.then(|| String::from_utf8_lossy(&listed.body).into_owned()),
        }
    }

    /// For CSV: what a spreadsheet would take for a formula begins with an apostrophe.
    pub(super) fn without_formulas(mut self) -> Self {
        let texts = [
            &mut self.assistant,
            &mut self.name,
            &mut self.email,
            &mut self.phone,
            &mut self.code,
            &mut self.reason,
            &mut self.warning,
            &mut self.remote_id,
            &mut self.message_id,
            &mut self.body,
        ];
        let texts = texts.into_iter().flatten().chain([&mut self.destination, &mut self.queue]);
        for text in texts.filter(|text| text.starts_with(['=', '+', '-', '@', '\t', '\r'])) {
            text.insert(0, '\'');
        }
        self
    }

    /// The cells of a table for people.
    pub(super) fn cells(&self, listed: &Listed) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let person = match (&self.name, &self.email) {
            (Some(name), Some(email)) => format!("{name} <{email}>"),
            (name, email) => or_dash(if name.is_some() { name } else { email }),
        };
        let mut why = or_dash(&self.code);
        if let Some(reason) = &self.reason {
            why = one_line(&format!("{why}: {reason}")).into_owned();
        }
        if self.erased_at.is_some() {
            why = "erased".to_owned();
        }
        let status = self.http_status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        vec![
            super::show::moment(listed.place.at),
            self.state.to_string(),
            self.id.clone(),
            or_dash(&self.assistant),
            person,
            self.attempts.to_string(),
            status,
            why,
        ]
    }

    /// The names of the columns of CSV.
    pub(super) const COLUMNS: [&str; 20] = [
        "id",
        "destination",
        "state",
        "accepted_at",
        "finished_at",
        "due_at",
        "assistant",
        "name",
        "email",
        "phone",
        "attempts",
        "http_status",
        "code",
        "reason",
        "warning",
        "remote_id",
        "queue",
        "message_id",
        "erased_at",
        "body",
    ];

    /// The names of the cells.
    pub(super) const HEAD: [&str; 8] =
        ["ENDED OR DUE", "STATE", "ID", "ASSISTANT", "PERSON", "ATTEMPTS", "HTTP", "WHY"];
}

/// As much as fits on a wide screen.
fn one_line(text: &str) -> Cow<'_, str> {
    const MAX: usize = 90;
    match text.char_indices().nth(MAX) {
        Some((at, _)) => Cow::Owned(format!("{}…", text.get(..at).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}
