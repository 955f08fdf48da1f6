//! From what came back to what it means: the one place that classifies answers.
//!
//! Pure: an [`Exchange`] and the destination's [`Answers`] give an [`Outcome`]. The order of the rules is the order of the sets in
//! [`ResponseRules`]; every status from 100 to 599 has exactly one outcome. A test on the body refines it: a success status may
//! say otherwise in its body; a refusal may say that the lead is there already, or that it speaks of the set-up.

// A new variant must be decided about, not swept up.
#![warn(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::words::{reason_in, receipt, words};
use crate::config::{ANSWER_VARIABLES, Destination, Redactor, ResponseRules};
use crate::http::{Answer, Exchange};
use crate::jq::{Json, Program};
use crate::lead::variables;
use crate::ledger::Receipt;
use crate::reason::Reason;

/// What one attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The API took the lead.
    Delivered(Receipt),
    /// The API has it already.
    Duplicate(Reason),
    /// The API refuses this lead for good.
    Rejected(Reason),
    /// The API does not accept the token.
    Unauthorized(Reason),
    /// The answer speaks about the set-up rather than about this lead.
    Systemic(Reason),
    /// The API did not process it and asks to try again.
    Retry(Reason, Option<Duration>),
    /// It may have been posted.
    Uncertain(Reason),
    /// It was provably not posted.
    NotSent(Reason),
    /// A query found that the API has it, by an earlier post.
    Reconciled(Receipt, Reason),
    /// A query found that the API does not have it.
    Absent(Reason),
}

impl Outcome {
    /// The outcome as it is stored, counted and printed.
    pub fn as_str(&self) -> &'static str {
        Self::NAMES[self.place()]
    }

    /// Its place among [`Outcome::NAMES`].
    pub fn place(&self) -> usize {
        match self {
            Outcome::Delivered(_) => 0,
            Outcome::Duplicate(_) => 1,
            Outcome::Rejected(_) => 2,
            Outcome::Unauthorized(_) => 3,
            Outcome::Systemic(_) => 4,
            Outcome::Retry(..) => 5,
            Outcome::Uncertain(_) => 6,
            Outcome::NotSent(_) => 7,
            Outcome::Reconciled(..) => 8,
            Outcome::Absent(_) => 9,
        }
    }

    /// Whether it was answered as hoped: what matters of the answer is in the outcome then.
    pub fn is_success(&self) -> bool {
        matches!(self, Outcome::Delivered(_) | Outcome::Reconciled(..) | Outcome::Absent(_))
    }

    /// Why, unless it is simply delivered.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Outcome::Delivered(_) => None,
            Outcome::Duplicate(reason)
            | Outcome::Rejected(reason)
            | Outcome::Unauthorized(reason)
            | Outcome::Systemic(reason)
            | Outcome::Retry(reason, _)
            | Outcome::Uncertain(reason)
            | Outcome::NotSent(reason)
            | Outcome::Reconciled(_, reason)
            | Outcome::Absent(reason) => Some(reason),
        }
    }

    /// All names of outcomes, for metrics that exist before the first attempt.
    pub const NAMES: [&'static str; 10] = [
        "delivered",
        "duplicate",
        "rejected",
        "unauthorized",
        "systemic",
        "retry",
        "uncertain",
        "not_sent",
        "reconciled",
        "absent",
    ];
}

/// How a destination's answers are read, with its tests compiled.
#[derive(Debug)]
pub struct Answers {
    rules: ResponseRules,
    success_test: Option<Test>,
    duplicate_test: Option<Test>,
    systemic_test: Option<Test>,
}

/// A jq expression about an answer.
#[derive(Debug)]
pub(super) struct Test {
    program: Program,
    variables: Json,
}

impl Test {
    /// The expression of this setting, which may use these variables besides `$variables`; `None`: there is none.
    ///
    /// # Errors
    /// When it does not compile, in words.
    pub(super) fn of(
        key: &str,
        source: &str,
        known: &[&'static str],
        destination: &Destination,
    ) -> Result<Option<Self>, String> {
        if source.is_empty() {
            return Ok(None);
        }
        let program =
            Program::compile(source, known).map_err(|problem| format!("{key} is no jq expression: {problem}"))?;
        Ok(Some(Self { program, variables: variables(destination) }))
    }

    /// What it gives; `None` where the body cannot be read or the expression fails on it. `values` are those of its variables
    /// between `$status` and `$variables`.
    pub(super) fn run(&self, answer: &Answer, values: &[Json]) -> Option<Json> {
        let status = Json::read(answer.status.to_string().as_bytes()).ok()?;
        let body = Json::read(&answer.body).ok()?;
        let arguments = [&[status], values, std::slice::from_ref(&self.variables)].concat();
        self.program.run(body, &arguments).ok()
    }

    /// Whether it holds; `None` as above.
    fn holds(&self, answer: &Answer) -> Option<bool> {
        self.run(answer, &[]).map(|value| value.is_true())
    }
}

impl Answers {
    /// Of this destination.
    ///
    /// # Errors
    /// When one of its tests does not compile, in words.
    pub fn of(destination: &Destination) -> Result<Self, String> {
        let rules = destination.response.clone();
        let test = |name: &str, source: &str| {
            Test::of(&format!("destination.response.{name}"), source, &ANSWER_VARIABLES, destination)
        };
        Ok(Self {
            success_test: test("success_test", &rules.success_test)?,
            duplicate_test: test("duplicate_test", &rules.duplicate_test)?,
            systemic_test: test("systemic_test", &rules.systemic_test)?,
            rules,
        })
    }

    /// The sets and pointers.
    pub(super) fn rules(&self) -> &ResponseRules {
        &self.rules
    }

    /// What came of a post. What is kept of the API's words comes without secrets: it may repeat what it was sent.
    pub fn classify(&self, exchange: &Exchange, redactor: &Redactor) -> Outcome {
        match exchange {
            Exchange::NotSent(reason) => Outcome::NotSent(reason.clone()),
            Exchange::Unknown(reason) => Outcome::Uncertain(reason.clone()),
            Exchange::Answered(answer) => self.classify_answer(answer, redactor),
        }
    }

    fn classify_answer(&self, answer: &Answer, redactor: &Redactor) -> Outcome {
        let (rules, status) = (&self.rules, answer.status);
        let reason = || self.reason(answer, redactor);
        if rules.unauthorized.contains(status) {
            Outcome::Unauthorized(reason())
        } else if rules.success.contains(status) {
            self.classify_success(answer, redactor)
        } else if rules.duplicate.contains(status) {
            Outcome::Duplicate(reason())
        } else if status == 400 && is_plain_to_tls(answer) {
            Outcome::Systemic(Reason::new(
                "plain_http",
                "answered 400: plain HTTP to a port for HTTPS; is the URL's scheme right?",
            ))
        } else if rules.rejected.contains(status) {
            self.classify_rejection(answer, reason())
        } else if rules.retry.contains(status) {
            Outcome::Retry(reason(), answer.retry_after)
        } else if rules.systemic.contains(status) {
            Outcome::Systemic(reason())
        } else if (200..300).contains(&status) && is_page(answer) {
            Outcome::Systemic(page(status))
        } else {
            // 5xx by default, and whatever no set names: nothing may be claimed about it.
            Outcome::Uncertain(reason())
        }
    }

    fn classify_success(&self, answer: &Answer, redactor: &Redactor) -> Outcome {
        let status = answer.status;
        if is_page(answer) {
            return Outcome::Systemic(page(status));
        }
        match self.success_test.as_ref().map(|test| test.holds(answer)) {
            None | Some(Some(true)) => Outcome::Delivered(receipt(&self.rules, &answer.body, redactor)),
            Some(Some(false)) => {
                let text = format!("the API answered {status}, and that it is no success");
                let reason = Reason::quoting("answer_refused", text, &self.said(answer, redactor));
                self.classify_rejection(answer, reason)
            }
            Some(None) => {
                let text =
                    format!("the API answered {status}, but destination.response.success_test cannot read the answer");
                Outcome::Uncertain(Reason::quoting("answer_unreadable", text, &self.said(answer, redactor)))
            }
        }
    }

    fn classify_rejection(&self, answer: &Answer, reason: Reason) -> Outcome {
        let said = reason.said().to_lowercase();
        let by_text = self.rules.duplicate_texts.iter().any(|text| said.contains(&text.to_lowercase()));
        let holds = |test: &Option<Test>| test.as_ref().and_then(|test| test.holds(answer)) == Some(true);
        if by_text || holds(&self.duplicate_test) {
            Outcome::Duplicate(reason)
        } else if holds(&self.systemic_test) {
            Outcome::Systemic(reason)
        } else {
            Outcome::Rejected(reason)
        }
    }

    pub(super) fn reason(&self, answer: &Answer, redactor: &Redactor) -> Reason {
        Reason::of_status(answer.status, &self.said(answer, redactor))
    }

    /// What the API says of it.
    fn said(&self, answer: &Answer, redactor: &Redactor) -> String {
        let answer = Answer { body: redactor.clean_answer(answer.body.clone(), answer.is_cut), ..answer.clone() };
        let at_pointer = || {
            let json: Value = serde_json::from_slice(&answer.body).ok()?;
            json.pointer(&self.rules.reason).filter(|value| !value.is_null()).map(words)
        };
        let pointed = if self.rules.reason.is_empty() { None } else { at_pointer() };
        pointed.unwrap_or_else(|| reason_in(&answer))
    }
}

/// Whether a success status comes with a page: a log-in page, a captive portal, a proxy's greeting. Whoever answered, it was not
/// the lead API. A 201 says that something was made, and JSON is JSON, whatever the header calls it.
pub(super) fn is_page(answer: &Answer) -> bool {
    let looks_like_one = answer.is_html || answer.body.trim_ascii_start().starts_with(b"<");
    looks_like_one && answer.status != 201 && serde_json::from_slice::<IgnoredAny>(&answer.body).is_err()
}

/// What servers answer, with 400, to plain HTTP on a port for TLS: nginx and AWS' load balancers, Apache, Go.
const PLAIN_TO_TLS: [&str; 3] = [
    "plain HTTP request was sent to HTTPS port",
    "speaking plain HTTP to an SSL-enabled server port",
    "sent an HTTP request to an HTTPS server",
];

/// Such an answer is short and no JSON, which might repeat a lead.
fn is_plain_to_tls(answer: &Answer) -> bool {
    const LONGEST: usize = 2_000;
    let is_json = || serde_json::from_slice::<IgnoredAny>(&answer.body).is_ok();
    answer.body.len() < LONGEST
        && !is_json()
        && PLAIN_TO_TLS.iter().any(|said| memchr::memmem::find(&answer.body, said.as_bytes()).is_some())
}

pub(super) fn page(status: u16) -> Reason {
    let text = format!("answered {status} with an HTML page instead of JSON; is the URL the lead API's?");
    Reason::new("html_page", text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::StatusSet;

    fn answer(status: u16, body: &str) -> Exchange {
        Exchange::Answered(Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() })
    }

    fn classify(rules: &ResponseRules, exchange: &Exchange) -> Outcome {
        Answers::of(&Destination { response: rules.clone(), ..Destination::default() })
            .expect("they compile")
            .classify(exchange, &Redactor::default())
    }

    fn outcome(status: u16, body: &str) -> Outcome {
        classify(&ResponseRules::default(), &answer(status, body))
    }

    #[test]
    fn every_row_of_the_outcome_table_holds() {
        let rows: [(&[u16], &str); 8] = [
            (&[200, 201, 202], "delivered"),
            (&[409], "duplicate"),
            (&[400, 413, 414, 415, 422], "rejected"),
            (&[401], "unauthorized"),
            (&[301, 302, 303, 307, 308, 402, 403, 404, 405, 406, 407, 410, 451, 501, 505], "systemic"),
            (&[408, 421, 425, 429, 503], "retry"),
            (&[500, 502, 504, 520, 522, 524, 529, 599], "uncertain"),
            (&[204, 205, 206, 226], "uncertain"),
        ];
        for (statuses, expected) in rows {
            for status in statuses {
                assert_eq!(outcome(*status, "{}").as_str(), expected, "{status}");
            }
        }
        let rules = ResponseRules::default();
        let reason = Reason::new("timeout", "no answer");
        assert_eq!(classify(&rules, &Exchange::NotSent(reason.clone())).as_str(), "not_sent");
        assert_eq!(classify(&rules, &Exchange::Unknown(reason)).as_str(), "uncertain");
    }

    #[test]
    fn a_set_of_the_destination_overrides_the_table() {
        let rules = ResponseRules {
            rejected: StatusSet::of(&["404"]),
            unauthorized: StatusSet::of(&["401", "403"]),
            success: StatusSet::of(&["201"]),
            ..ResponseRules::default()
        };
        assert_eq!(classify(&rules, &answer(404, "")).as_str(), "rejected");
        assert_eq!(classify(&rules, &answer(403, "")).as_str(), "unauthorized");
        assert_eq!(classify(&rules, &answer(200, "{}")).as_str(), "uncertain", "a 200 is no success here");
    }

    #[test]
    fn a_rejection_that_says_duplicate_is_a_duplicate() {
        let rules = ResponseRules { duplicate_texts: vec!["already exist".to_owned()], ..ResponseRules::default() };
        let body = r#"{"message":"Lead ALREADY exists for this user"}"#;
        assert_eq!(classify(&rules, &answer(400, body)).as_str(), "duplicate");
        assert_eq!(classify(&rules, &answer(400, r#"{"message":"bad email"}"#)).as_str(), "rejected");
        assert_eq!(classify(&rules, &answer(500, body)).as_str(), "uncertain", "only rejections are looked into");
    }

    #[test]
    fn an_html_page_with_a_success_status_is_not_a_delivery() {
        let page = Answer { status: 200, is_html: true, body: b"<html>Log in</html>".to_vec(), ..Answer::default() };
        assert_eq!(classify(&ResponseRules::default(), &Exchange::Answered(page.clone())).as_str(), "systemic");
        let json = Answer { body: br#"{"id":1}"#.to_vec(), ..page.clone() };
        assert_eq!(classify(&ResponseRules::default(), &Exchange::Answered(json)).as_str(), "delivered");
        let unmarked = Answer { is_html: false, ..page.clone() };
        assert_eq!(classify(&ResponseRules::default(), &Exchange::Answered(unmarked)).as_str(), "systemic");
        let created = Answer { status: 201, ..page };
        assert_eq!(classify(&ResponseRules::default(), &Exchange::Answered(created)).as_str(), "delivered");
    }

    #[test]
    fn a_receipt_keeps_id_state_and_next_time_and_warns_where_201_does_not_mean_worked() {
        let rules = ResponseRules { warn_states: vec!["DeActivated".to_owned()], ..ResponseRules::default() };
        let body =
            r#"{"id":12345678901234567,"state":"DeActivated","subState":"InvalidEmail","nextScheduleTime":null}"#;
        let Outcome::Delivered(receipt) = classify(&rules, &answer(201, body)) else { panic!("delivered") };
        assert_eq!(receipt.remote_id.as_deref(), Some("12345678901234567"));
        assert_eq!(receipt.remote_sub_state.as_deref(), Some("InvalidEmail"));
        assert_eq!(receipt.next_schedule_time, None);
        assert!(receipt.warning.expect("a warning").contains("DeActivated (InvalidEmail)"));

        let Outcome::Delivered(fine) = classify(&rules, &answer(201, r#"{"id":"x-1","state":"Cold"}"#)) else {
            panic!("delivered")
        };
        assert_eq!((fine.remote_id.as_deref(), fine.warning), (Some("x-1"), None));
    }

    #[test]
    fn a_success_status_is_a_success_only_if_its_body_says_so() {
        let rules = ResponseRules {
            success_test: r#"has("errors") | not"#.to_owned(),
            duplicate_texts: vec!["already".to_owned()],
            reason: "/errors".to_owned(),
            remote_id: "/customers/0/customer_id".to_owned(),
            ..ResponseRules::default()
        };
        let Outcome::Delivered(receipt) = classify(&rules, &answer(200, r#"{"customers":[{"customer_id":7}]}"#)) else {
            panic!("delivered")
        };
        assert_eq!(receipt.remote_id.as_deref(), Some("7"));
        let refused = classify(&rules, &answer(200, r#"{"errors":["name is too long","custnr is missing"]}"#));
        assert_eq!(refused.as_str(), "rejected");
        let reason = refused.reason().expect("a reason");
        assert_eq!(reason.code, "answer_refused");
        assert_eq!(
            reason.for_the_record(),
            "the API answered 200, and that it is no success: name is too long; custnr is missing"
        );
        assert!(!reason.text.contains("name is too long"), "the API's words are for the lead's record alone");
        assert_eq!(classify(&rules, &answer(200, r#"{"errors":["it exists already"]}"#)).as_str(), "duplicate");
        for unreadable in ["", "[1", "[]", "\"text\"", "gone"] {
            assert_eq!(classify(&rules, &answer(200, unreadable)).as_str(), "uncertain", "{unreadable:?}");
        }
    }

    #[test]
    fn a_rejection_whose_body_passes_the_test_is_a_duplicate() {
        let rules = ResponseRules {
            duplicate_test: r#"$status == 422 and (.errors | has("contact_api_id"))"#.to_owned(),
            ..ResponseRules::default()
        };
        let of = |status, body: &str| classify(&rules, &answer(status, body)).as_str();
        assert_eq!(of(422, r#"{"errors":{"contact_api_id":["must be unique"]}}"#), "duplicate");
        assert_eq!(of(422, r#"{"errors":{"last_name":["is blank"]}}"#), "rejected");
        assert_eq!(of(400, r#"{"errors":{"contact_api_id":["must be unique"]}}"#), "rejected");
        for unreadable in ["", "<html>", r#"{"errors":7}"#, "[]"] {
            assert_eq!(of(422, unreadable), "rejected", "{unreadable:?}");
        }
    }

    #[test]
    fn a_refusal_that_speaks_of_the_set_up_is_not_the_leads() {
        let rules = ResponseRules {
            success_test: "(.errors // []) | length == 0".to_owned(),
            systemic_test: r#".errors | tostring | test("location_id|access token")"#.to_owned(),
            duplicate_texts: vec!["already".to_owned()],
            ..ResponseRules::default()
        };
        for (status, errors, expected) in [
            (200, "[]", "delivered"),
            (200, "null", "delivered"),
            (200, r#"["Invalid access token"]"#, "systemic"),
            (200, r#"["custnr already there for this access token"]"#, "duplicate"),
            (200, r#"["name is too long"]"#, "rejected"),
            (422, r#"{"location_id":["is not valid"]}"#, "systemic"),
            (422, r#"{"email":["is not valid"]}"#, "rejected"),
        ] {
            let body = format!("{{\"errors\":{errors}}}");
            assert_eq!(classify(&rules, &answer(status, &body)).as_str(), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_secret_in_an_answer_changes_nothing_about_what_it_means_and_is_not_kept() {
        let redactor = Redactor::default().and(["4711", "hunter2"]);
        let answers = Answers::of(&Destination::default()).expect("they compile");
        let Outcome::Delivered(receipt) =
            answers.classify(&answer(201, r#"{"id":994711,"state":"hunter2"}"#), &redactor)
        else {
            panic!("delivered")
        };
        assert_eq!((receipt.remote_id.as_deref(), receipt.remote_state.as_deref()), (Some("994711"), Some("***")));
        let refused = answers.classify(&answer(422, r#"{"message":"you sent \u0068unter2"}"#), &redactor);
        assert_eq!(refused.reason().expect("a reason").said(), "you sent ***");
    }

    #[test]
    fn a_success_whose_body_was_cut_is_still_a_success() {
        let Outcome::Delivered(receipt) = outcome(201, r#"{"id":1"#) else { panic!("delivered") };
        assert!(receipt.warning.is_some());
    }

    #[test]
    fn the_reason_is_found_in_every_shape_that_has_been_seen() {
        let reason = |body: &str| outcome(422, body).reason().expect("a reason").for_the_record();
        for body in [
            r#""bad email""#,
            r#"{"message":"bad email"}"#,
            r#"{"Message":"bad email"}"#,
            r#"{"body":"bad email"}"#,
            r#"{"error":"bad email"}"#,
            "bad email",
            " bad\r\n\temail\u{0}",
            "<html><body><h1>bad</h1> email</body></html>",
        ] {
            assert_eq!(reason(body), "the API answered 422: bad email", "{body:?}");
        }
        assert_eq!(
            reason(r#"{"errors":{"email":["bad","blank"],"n":[1]}}"#),
            "the API answered 422: email: bad; blank; n: 1"
        );
        assert_eq!(reason(""), "the API answered 422");
        assert!(reason(&"x".repeat(100_000)).chars().count() < 600);
    }

    #[test]
    fn a_url_with_the_wrong_scheme_burns_no_lead() {
        for said in PLAIN_TO_TLS {
            assert_eq!(outcome(400, &format!("<html><h1>400 Bad Request</h1>{said}</html>")).as_str(), "systemic");
        }
        assert_eq!(outcome(400, "<html><h1>400 Bad Request</h1></html>").as_str(), "rejected");
    }

    proptest! {
        #[test]
        fn classification_is_total(status in 100..600_u16, html in any::<bool>(), body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let exchange = Exchange::Answered(Answer { status, is_html: html, body, ..Answer::default() });
            let outcome = classify(&ResponseRules::default(), &exchange);
            prop_assert!(Outcome::NAMES.contains(&outcome.as_str()));
            if let Some(reason) = outcome.reason() {
                prop_assert!(!reason.for_the_record().chars().any(char::is_control));
            }
        }
    }
}
