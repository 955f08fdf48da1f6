//! The way of one request: in the journal, past the limits, into its fault or to the API, and out again.
//!
//! ```text
//!   head ─> journal ─> down? ─> room? ─> body ─> fault? ──────────> latency ─> API ─> answer
//!                        └ status  └ 429           ├ before: instead of the API
//!                                                  └ after:  instead of the answer
//! ```
//!
//! Only an early reset, from the script or by rate, strikes ahead of the body.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};

use super::api::{self, Desk, Draft};
use super::control::{self, LOGIN_PAGE};
use super::entry::{Endpoint, Key};
use super::faults::{CutAt, Delay, Fault, FaultKind, StatusAnswer};
use super::head::content_type;
use super::journal::Visit;
use super::plan::{AtHead, roll};
use super::reply::{HTML, Payload, Reply};
use super::server::Shared;
use super::settings::Tuning;
use super::wire::{Line, Order};

/// What Amazon API Gateway takes: 10 MB.
const MOST_BODY_BYTES: usize = 10 * 1024 * 1024;

/// The length of `HTTP/1.1 201`: an answer cut before this has no status.
const STATUS_END: u64 = 12;

/// The request ends without an answer, and its connection with it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request ended without an answer")]
pub(super) struct NoAnswer;

/// Answers a request, or does to it what was planned.
pub(super) async fn answer(
    shared: Arc<Shared>,
    line: Arc<Line>,
    request: Request<Incoming>,
) -> Result<Response<Payload>, NoAnswer> {
    let tuning = shared.tuning();
    let Some(endpoint) = api::endpoint(tuning.profile, request.method(), request.uri().path()) else {
        return control::answer(&shared, request).await.map(Reply::into_response);
    };
    let (head, body) = request.into_parts();
    let key = head.headers.get("idempotency-key").map(|key| Key::from(&*String::from_utf8_lossy(key.as_bytes())));
    let mut visit = shared.journal.open(endpoint, key.clone());
    let exchange = Exchange { shared: &shared, tuning: &tuning, line: &line, endpoint, head: &head, key: key.as_ref() };
    let Answer { reply, cut } = exchange.attend(body, &mut visit).await?;
    let has_status = !matches!(cut, Some(CutAt::StatusLine | CutAt::Bytes(0..STATUS_END)));
    visit.close(has_status.then_some(reply.status.as_u16()));
    Ok(reply.into_response())
}

/// Reads a body, `None` if it is longer than an API takes.
///
/// # Errors
/// [`NoAnswer`] when the client left in the middle of it.
pub(super) async fn read(body: Incoming) -> Result<Option<Bytes>, NoAnswer> {
    // A length that is announced is believed, so that nobody has to send ten megabytes to be told.
    if body.size_hint().lower() > MOST_BODY_BYTES as u64 {
        return Ok(None);
    }
    match Limited::new(body, MOST_BODY_BYTES).collect().await {
        Ok(whole) => Ok(Some(whole.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(None),
        Err(_) => Err(NoAnswer),
    }
}

/// One request and what is around it.
struct Exchange<'a> {
    shared: &'a Shared,
    tuning: &'a Tuning,
    line: &'a Line,
    endpoint: Endpoint,
    head: &'a Parts,
    key: Option<&'a Key>,
}

/// An answer, and where it will break off.
struct Answer {
    reply: Reply,
    cut: Option<CutAt>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, cut: None }
    }
}

impl Exchange<'_> {
    async fn attend(&self, body: Incoming, visit: &mut Visit) -> Result<Answer, NoAnswer> {
        visit.notes.content_type = content_type(&self.head.headers);
        visit.notes.token_ok =
            self.endpoint != Endpoint::Token && api::admits(self.tuning, &self.shared.memory, self.head);
        let refusal = self.turn_away(visit);
        // While the API is down or full, the faults wait.
        let at_head = if refusal.is_some() { AtHead::Nothing } else { self.shared.faults.at_head(self.endpoint) };
        if let AtHead::Fault(Fault { kind: FaultKind::ResetEarly, after: false, delay, .. }) = &at_head {
            visit.notes.fault = Some(FaultKind::ResetEarly.name());
            self.pause(*delay, visit).await;
            return Err(self.reset());
        }

        // Read even for a refusal: to close a socket with unread data is a reset.
        let Some(body) = read(body).await? else {
            return Ok(Reply::message(StatusCode::PAYLOAD_TOO_LARGE, "Request Too Long").into());
        };
        visit.body(&body);
        let draft = Draft::read(self.tuning.profile, self.endpoint, self.head, &body);
        visit.notes.email = draft.email(self.head);
        visit.notes.token_ok |= api::admits_body(self.tuning, self.endpoint, self.head, &body);
        if let Some(refusal) = refusal {
            return Ok(refusal.into());
        }

        let fault = match at_head {
            AtHead::Fault(fault) => Some(fault),
            AtHead::Nothing => None,
            AtHead::AskAgain(ordinal) => self.shared.faults.at_body(ordinal, visit.notes.email.as_deref()),
        };
        let Some(fault) = fault.filter(|fault| fault.kind != FaultKind::None) else {
            return Ok(self.process(&draft, &body, visit).await.into());
        };
        visit.notes.fault = Some(fault.kind.name());
        let mut processed = None;
        if fault.after {
            processed = Some(self.process(&draft, &body, visit).await);
        }
        self.pause(fault.delay, visit).await;
        if fault.kind == FaultKind::Latency {
            return Ok(match processed {
                Some(reply) => reply.into(),
                None => self.process(&draft, &body, visit).await.into(),
            });
        }
        self.strike(fault.kind, processed, visit).await
    }

    /// The refusal of an API that is down, full or asked too often.
    fn turn_away(&self, visit: &mut Visit) -> Option<Reply> {
        let down = match self.endpoint {
            Endpoint::Leads => self.tuning.leads_unavailable,
            Endpoint::Token => self.tuning.token_unavailable,
            Endpoint::Query | Endpoint::Logout => None,
        };
        if let Some(status) = down {
            visit.notes.fault = Some("unavailable");
            return Some(status_reply(&StatusAnswer::new(status)));
        }
        if self.endpoint != Endpoint::Leads {
            return None;
        }
        let too_many = |retry_after: u64| {
            let reply = Reply::message(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests");
            if retry_after > 0 { reply.with(RETRY_AFTER, retry_after.into()) } else { reply }
        };
        if self.tuning.capacity.is_some_and(|capacity| visit.in_flight > capacity) {
            visit.notes.fault = Some("over_capacity");
            return Some(too_many(self.tuning.retry_after_s.into()));
        }
        let now_us = u64::try_from(self.shared.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(per_s) = self.tuning.rate_limit_per_s {
            let mut pace = self.shared.pace.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(seconds) = pace.admit(now_us, per_s) {
                visit.notes.fault = Some("rate_limited");
                return Some(too_many(seconds));
            }
        }
        // It is an account's limit, and only who is known has an account.
        if let Some(per_min) = self.tuning.rate_limit_per_min.filter(|_| visit.notes.token_ok) {
            let mut minute = self.shared.minute.lock().unwrap_or_else(PoisonError::into_inner);
            if !minute.admit(now_us, per_min) {
                visit.notes.fault = Some("rate_limited");
                return Some(api::too_many(self.tuning.profile));
            }
        }
        None
    }

    /// What the API does when nothing goes wrong.
    async fn process(&self, draft: &Draft, body: &[u8], visit: &mut Visit) -> Reply {
        let latency = match self.endpoint {
            Endpoint::Leads => {
                let slower = match self.tuning.slow_above {
                    Some(knee) => f64::from(visit.in_flight.max(knee)) / f64::from(knee),
                    None => 1.0,
                };
                let of = |latency: Duration| latency.mul_f64(slower);
                Delay { at_least: of(self.tuning.latency), at_most: of(self.tuning.latency_max) }
            }
            Endpoint::Token => Delay { at_least: self.tuning.token_delay, at_most: self.tuning.token_delay },
            Endpoint::Query | Endpoint::Logout => Delay::default(),
        };
        self.pause(latency, visit).await;
        let (reply, effect) = draft.process(&Desk {
            tuning: self.tuning,
            memory: &self.shared.memory,
            head: self.head,
            body,
            key: self.key,
            token_ok: visit.notes.token_ok,
        });
        visit.notes.effect = effect;
        reply
    }

    /// What the client gets instead of the answer it should have got.
    async fn strike(&self, kind: FaultKind, processed: Option<Reply>, visit: &mut Visit) -> Result<Answer, NoAnswer> {
        let usual = || processed.unwrap_or_else(|| status_reply(&StatusAnswer::new(503)));
        let reply = match kind {
            FaultKind::None | FaultKind::Latency => usual(),
            FaultKind::Status(answer) => status_reply(&answer),
            FaultKind::ResetEarly | FaultKind::Reset => return Err(self.reset()),
            FaultKind::Close => return Err(NoAnswer),
            FaultKind::Hang => {
                visit.publish();
                // Ends when the client leaves or the sandbox stops: the connection drops this future then.
                std::future::pending().await
            }
            FaultKind::Cut(at) => {
                let reply = Reply { last: true, ..usual() };
                self.line.order(Order::Cut { at, body: reply.body.len() });
                return Ok(Answer { reply, cut: Some(at) });
            }
            FaultKind::Drip { every, from } => {
                self.line.order(Order::Drip { every, from });
                Reply { last: true, ..usual() }
            }
            FaultKind::Redirect => Reply::message(StatusCode::FOUND, "Found")
                .of_type(HTML)
                .with(LOCATION, HeaderValue::from_static(LOGIN_PAGE)),
            FaultKind::Huge { status, bytes, chunked } => Reply {
                body: Payload::Filling { left: bytes, announced: !chunked },
                ..status_reply(&StatusAnswer::new(status))
            },
        };
        Ok(reply.into())
    }

    /// Waits, with everything known so far in the journal.
    async fn pause(&self, delay: Delay, visit: &mut Visit) {
        let time = delay.at(roll(self.shared.seed, self.endpoint, !visit.seq()));
        if !time.is_zero() {
            visit.publish();
            tokio::time::sleep(time).await;
        }
    }

    fn reset(&self) -> NoAnswer {
        self.line.reset_at_end();
        NoAnswer
    }
}

/// An answer as a fault describes it.
fn status_reply(answer: &StatusAnswer) -> Reply {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = match &answer.body {
        Some(body) => Reply::json(status, body.clone()),
        None => Reply::message(status, status.canonical_reason().unwrap_or("Unknown")),
    };
    if let Some(content_type) = answer.content_type.as_ref().and_then(|value| HeaderValue::try_from(value).ok()) {
        reply = reply.of_type(content_type);
    }
    if let Some(value) = answer.www_authenticate.as_ref().and_then(|value| HeaderValue::try_from(value).ok()) {
        reply = reply.with(WWW_AUTHENTICATE, value);
    }
    match answer.retry_after.as_ref().and_then(|retry_after| retry_after.value(SystemTime::now())) {
        Some(value) => reply.with(RETRY_AFTER, value),
        None => reply,
    }
}
