//! The JSON in which a fault is written down: one flat object, with only the members that its kind knows.
//!
//! ```json
//! {"kind": "none"}
//! {"kind": "latency", "delay_ms": 50, "delay_max_ms": 200}
//! {"kind": "status", "status": 503, "retry_after": 2}
//! {"kind": "status", "status": 429, "retry_after": {"date_in_s": 60}, "body": "<h1>Slow down</h1>", "content_type": "text/html"}
//! {"kind": "status", "status": 401, "www_authenticate": "Basic realm=\"x\"", "on": "token"}
//! {"kind": "reset", "on": "token"}
//! {"kind": "latency", "delay_ms": 5000, "on": "query"}
//! {"kind": "status", "status": 500, "on": "logout"}
//! {"kind": "reset_early"}
//! {"kind": "close"}
//! {"kind": "hang", "after": true}
//! {"kind": "cut", "at": "status_line"}
//! {"kind": "cut", "bytes": 100}
//! {"kind": "redirect"}
//! {"kind": "huge", "status": 201, "bytes": 1000000000, "chunked": true}
//! {"kind": "drip", "every_ms": 100, "from": "body"}
//! ```
//!
//! Every kind knows `on` (`leads` unless said), `after`, `delay_ms` and `delay_max_ms`. A member that is not known is an
//! error: a misspelt fault would be a test that tests nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Endpoint;
use super::faults::{CutAt, Delay, DripFrom, Fault, FaultKind, RetryAfter, StatusAnswer, check_status};

/// A fault as it is written down: flat, with only the members that its kind knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FaultDocument {
    kind: String,
    #[serde(default)]
    on: Endpoint,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay_max_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after: Option<RetryAfter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    www_authenticate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<CutPlace>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chunked: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<DripFrom>,
}

/// The places of a cut that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CutPlace {
    StatusLine,
    Headers,
    Body,
}

impl TryFrom<FaultDocument> for Fault {
    type Error = String;

    fn try_from(mut document: FaultDocument) -> Result<Self, String> {
        let kind = match document.kind.as_str() {
            "none" => FaultKind::None,
            "latency" => FaultKind::Latency,
            "status" => FaultKind::Status(StatusAnswer {
                status: document.status.take().ok_or("a fault of kind status needs a status")?,
                retry_after: document.retry_after.take(),
                www_authenticate: document.www_authenticate.take(),
                body: document.body.take(),
                content_type: document.content_type.take(),
            }),
            "reset_early" => FaultKind::ResetEarly,
            "reset" => FaultKind::Reset,
            "close" => FaultKind::Close,
            "hang" => FaultKind::Hang,
            "cut" => FaultKind::Cut(match (document.at.take(), document.bytes.take()) {
                (None | Some(CutPlace::Body), None) => CutAt::Body,
                (Some(CutPlace::StatusLine), None) => CutAt::StatusLine,
                (Some(CutPlace::Headers), None) => CutAt::Headers,
                (None, Some(bytes)) => CutAt::Bytes(bytes),
                (Some(_), Some(_)) => return Err("a cut has either at or bytes".to_owned()),
            }),
            "redirect" => FaultKind::Redirect,
            "huge" => FaultKind::Huge {
                status: document.status.take().unwrap_or(200),
                bytes: document.bytes.take().ok_or("a fault of kind huge needs bytes")?,
                chunked: document.chunked.take().unwrap_or(false),
            },
            "drip" => FaultKind::Drip {
                every: Duration::from_millis(document.every_ms.take().ok_or("a fault of kind drip needs every_ms")?),
                from: document.from.take().unwrap_or(DripFrom::Head),
            },
            unknown => return Err(format!("there is no fault of kind {unknown}")),
        };
        if let FaultKind::Status(StatusAnswer { status, .. }) | FaultKind::Huge { status, .. } = &kind {
            check_status(*status)?;
        }
        let at_least = Duration::from_millis(document.delay_ms.take().unwrap_or(0));
        let at_most = document.delay_max_ms.take().map_or(at_least, Duration::from_millis);
        let after = document.after.take().unwrap_or(kind.strikes_after_by_default());
        let fault = Self { kind, on: document.on, after, delay: Delay { at_least, at_most } };

        // Whatever was not taken does not belong to this kind.
        let rest = FaultDocument { kind: String::new(), on: Endpoint::default(), ..document };
        if rest == FaultDocument::default() {
            Ok(fault)
        } else {
            Err(format!("a fault of kind {} does not know all of its members", fault.kind.name()))
        }
    }
}

impl From<Fault> for FaultDocument {
    fn from(fault: Fault) -> Self {
        let whole_millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut document = Self {
            kind: fault.kind.name().to_owned(),
            on: fault.on,
            after: Some(fault.after),
            delay_ms: Some(whole_millis(fault.delay.at_least)).filter(|&delay| delay > 0),
            delay_max_ms: Some(whole_millis(fault.delay.at_most))
                .filter(|_| fault.delay.at_most > fault.delay.at_least),
            ..Self::default()
        };
        match fault.kind {
            FaultKind::Status(answer) => {
                document.status = Some(answer.status);
                document.retry_after = answer.retry_after;
                document.www_authenticate = answer.www_authenticate;
                document.body = answer.body;
                document.content_type = answer.content_type;
            }
            FaultKind::Cut(CutAt::StatusLine) => document.at = Some(CutPlace::StatusLine),
            FaultKind::Cut(CutAt::Headers) => document.at = Some(CutPlace::Headers),
            FaultKind::Cut(CutAt::Body) => document.at = Some(CutPlace::Body),
            FaultKind::Cut(CutAt::Bytes(bytes)) => document.bytes = Some(bytes),
            FaultKind::Huge { status, bytes, chunked } => {
                document.status = Some(status);
                document.bytes = Some(bytes);
                document.chunked = Some(chunked);
            }
            FaultKind::Drip { every, from } => {
                document.every_ms = Some(whole_millis(every));
                document.from = Some(from);
            }
            FaultKind::None
            | FaultKind::Latency
            | FaultKind::ResetEarly
            | FaultKind::Reset
            | FaultKind::Close
            | FaultKind::Hang
            | FaultKind::Redirect => {}
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_survives_the_way_through_json() {
        let with_all = StatusAnswer {
            retry_after: Some(RetryAfter::Date { date_in_s: -5 }),
            www_authenticate: Some("Basic realm=\"x\"".to_owned()),
            body: Some("<h1>no</h1>".to_owned()),
            content_type: Some("text/html".to_owned()),
            ..StatusAnswer::new(502)
        };
        let faults = [
            Fault::none(),
            Fault::latency(Duration::from_millis(20)),
            Fault::status(500).after(),
            Fault::retry_after(429, 3).on_token(),
            Fault::status(500).on(Endpoint::Query),
            Fault::answer(with_all),
            Fault::reset_early(),
            Fault::reset(),
            Fault::close(),
            Fault::hang().delayed(Duration::from_millis(1)),
            Fault::cut(CutAt::StatusLine),
            Fault::cut(CutAt::Headers).before(),
            Fault::cut(CutAt::Body),
            Fault::cut(CutAt::Bytes(7)),
            Fault::redirect(),
            Fault::huge(200, 1 << 40),
            Fault::drip(Duration::from_millis(5), DripFrom::Body),
        ];
        for fault in faults {
            let text = serde_json::to_string(&fault).unwrap();
            assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault, "{text}");
        }
    }

    #[test]
    fn a_member_that_its_kind_does_not_know_is_refused() {
        for text in [
            r#"{"kind":"hang","status":503}"#,
            r#"{"kind":"hang","typo":1}"#,
            r#"{"kind":"cut","at":"body","bytes":3}"#,
            r#"{"kind":"status"}"#,
            r#"{"kind":"status","status":99}"#,
            r#"{"kind":"earthquake"}"#,
        ] {
            assert!(serde_json::from_str::<Fault>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_example_of_the_module_page_is_a_fault() {
        let examples = include_str!("fault_json.rs").lines().filter_map(|line| line.strip_prefix("//! {"));
        let faults = examples.map(|rest| serde_json::from_str::<Fault>(&format!("{{{rest}")).unwrap());
        assert_eq!(faults.count(), 16);
    }
}
