//! The question whether a lead arrived: asked before a lead is posted again that may have been posted.
//!
//! ```text
//!   lead ──key──> GET url ──found?──> Reconciled: settled as delivered, without another post
//!                                ├──> Absent: posted
//!                                └──> anything else: asked again later; nothing is posted meanwhile
//! ```
//!
//! A query changes nothing at the API, so none of its outcomes is uncertain.

// A new variant must be decided about, not swept up.
#![warn(clippy::wildcard_enum_match_arm)]

use super::outcome::{Answers, Outcome, Test, is_page, page};
use crate::config::{Destination, FOUND_VARIABLES, Redactor, StatusSet, Values, fill_in_url, url_values};
use crate::http::{Answer, Exchange};
use crate::jq::Json;
use crate::ledger::Receipt;
use crate::reason::{Reason, one_line};

/// How the API is asked, and its answers are read.
#[derive(Debug)]
pub struct Query {
    url: String,
    values: Values,
    found: Option<Test>,
    absent: StatusSet,
}

impl Query {
    /// The query of this destination; `None`: it has none.
    ///
    /// # Errors
    /// When one of its expressions does not compile, in words.
    pub fn of(destination: &Destination) -> Result<Option<Self>, String> {
        let reconcile = &destination.reconcile;
        if !reconcile.is_set() {
            return Ok(None);
        }
        Ok(Some(Self {
            url: reconcile.url.clone(),
            values: url_values(destination),
            found: Test::of("destination.reconcile.found", &reconcile.found, &FOUND_VARIABLES, destination)?,
            absent: reconcile.absent.clone(),
        }))
    }

    /// Where to ask for the lead with this key.
    ///
    /// # Errors
    /// That it makes no URL.
    pub fn url(&self, key: &str) -> Result<reqwest::Url, Reason> {
        let mut values = self.values.clone();
        values.insert("key".to_owned(), key.to_owned());
        let url = fill_in_url(&self.url, &values).ok().and_then(|url| url.parse().ok());
        url.ok_or_else(|| Reason::new("request_invalid", "destination.reconcile.url and the lead's key make no URL"))
    }

    /// What came of the question for the lead with this key.
    pub fn classify(&self, answers: &Answers, key: &str, exchange: &Exchange, redactor: &Redactor) -> Outcome {
        match exchange {
            Exchange::NotSent(reason) => Outcome::NotSent(reason.clone()),
            Exchange::Unknown(reason) => Outcome::Retry(in_doubt(reason), None),
            Exchange::Answered(answer) => self.classify_answer(answers, key, answer, redactor),
        }
    }

    fn classify_answer(&self, answers: &Answers, key: &str, answer: &Answer, redactor: &Redactor) -> Outcome {
        let (rules, status) = (answers.rules(), answer.status);
        let reason = || in_doubt(&answers.reason(answer, redactor));
        if self.absent.contains(status) {
            return Outcome::Absent(absent());
        }
        if rules.unauthorized.contains(status) {
            return Outcome::Unauthorized(reason());
        }
        if !rules.success.contains(status) {
            let again = rules.retry.contains(status) || status >= 500;
            return if again { Outcome::Retry(reason(), answer.retry_after) } else { Outcome::Systemic(reason()) };
        }
        if is_page(answer) {
            return Outcome::Systemic(in_doubt(&page(status)));
        }
        match self.found.as_ref().and_then(|found| found.run(answer, &[Json::text(key)])) {
            Some(value) if value.is_true() => {
                let remote_id = value.as_text().map(|id| one_line(&redactor.clean(&id)));
                Outcome::Reconciled(Receipt { remote_id, ..Receipt::default() }, found())
            }
            Some(_) => Outcome::Absent(absent()),
            None => {
                let text = format!("the API answered {status}, but destination.reconcile.found cannot read the answer");
                Outcome::Retry(in_doubt(&Reason::new("answer_unreadable", text)), None)
            }
        }
    }
}

fn found() -> Reason {
    Reason::new("reconciled", "the API has the lead: an earlier post had arrived")
}

fn absent() -> Reason {
    Reason::new("absent", "the API does not have the lead: no earlier post has arrived")
}

/// Says what was asked, so that nobody takes it for the answer to a post.
fn in_doubt(reason: &Reason) -> Reason {
    reason.preceded_by("asked whether an earlier post arrived")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination() -> Destination {
        let mut destination = Destination::default();
        destination.variables.insert("api".to_owned(), "https://api.example".to_owned());
        destination.reconcile.url = "{api}/contacts?key={key}".to_owned();
        destination.reconcile.found = "first(.contacts[] | select(.key == $key) | .id) // false".to_owned();
        destination.reconcile.absent = StatusSet::of(&["404"]);
        destination
    }

    fn query() -> Query {
        Query::of(&destination()).expect("it compiles").expect("there is one")
    }

    fn outcome(status: u16, body: &str) -> Outcome {
        let answer = Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() };
        let answers = Answers::of(&destination()).expect("they compile");
        query().classify(&answers, "k-1", &Exchange::Answered(answer), &Redactor::default())
    }

    #[test]
    fn the_key_of_a_lead_stands_in_the_url_as_one_value() {
        let url = query().url("a&b=c/d").expect("a URL");
        assert_eq!(url.as_str(), "https://api.example/contacts?key=a%26b%3Dc%2Fd");
    }

    #[test]
    fn only_a_clear_no_lets_the_lead_be_posted_again() {
        let others = r#"{"contacts":[{"id":"c-0","key":"k-0"},{"id":"c-1","key":"k-1"}]}"#;
        let Outcome::Reconciled(receipt, _) = outcome(200, others) else { panic!("found") };
        assert_eq!(receipt.remote_id.as_deref(), Some("c-1"));
        for (status, body, expected) in [
            (200, r#"{"contacts":[]}"#, "absent"),
            (200, r#"{"contacts":[{"id":"c-0","key":"k-0"}]}"#, "absent"),
            (200, r#"{"error":"no"}"#, "retry"),
            (200, r#"{"contacts":5}"#, "retry"),
            (404, "", "absent"),
            (200, r#"{"contacts":true}"#, "retry"),
            (200, r#"{"contacts":"#, "retry"),
            (200, "", "retry"),
            (200, "[]", "retry"),
            (401, "", "unauthorized"),
            (400, "", "systemic"),
            (403, "", "systemic"),
            (302, "", "systemic"),
            (429, "", "retry"),
            (500, "", "retry"),
            (503, "", "retry"),
        ] {
            assert_eq!(outcome(status, body).as_str(), expected, "{status} {body}");
        }
        let (query, nothing) = (query(), Redactor::default());
        let answers = Answers::of(&destination()).expect("they compile");
        let reason = Reason::new("timeout", "no answer");
        assert_eq!(query.classify(&answers, "k", &Exchange::NotSent(reason.clone()), &nothing).as_str(), "not_sent");
        assert_eq!(
            query.classify(&answers, "k", &Exchange::Unknown(reason), &nothing).as_str(),
            "retry",
            "a question is no post"
        );
        let page = Answer { status: 200, body: b"<html>".to_vec(), ..Answer::default() };
        assert_eq!(query.classify(&answers, "k", &Exchange::Answered(page), &nothing).as_str(), "systemic");
    }
}
