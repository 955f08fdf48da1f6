//! One lead's way: slot, gate, token, post, classify. A task for each.
//!
//! ```text
//!   slot ──> gate ──> token ──> in doubt? ask whether it arrived ──> post ──> settle
//!             ^                      │ absent: go on      │ unauthorized: drop the token,
//!             └──────────────────────┴────────────────────┘ and again with another
//! ```

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::check;
use super::pulse::Pulse;
use super::verdict::{Facts, MAX_SUSPICIONS, Policy, again};
use crate::auth::{AuthError, Token, Tokens};
use crate::destination::{LeadApi, Outcome};
use crate::fault::{self, Panic, Point};
use crate::flow::{Change, Ended, Flow, Load, Signal, Taken};
use crate::http::{Exchange, NO_ANSWER};
use crate::lead::{Lead, LeadId, LeadRules};
use crate::ledger::{Attempt, End, LeadState, Leased, Next, Origin, RequestKind, Settlement};
use crate::metrics::{During, Metrics, happened};
use crate::reason::Reason;
use crate::traces::{LeadSpan, RequestSpan};

/// What must be left of a lease when a post begins, beyond the longest that a post can take: the time to settle it.
const LEASE_RESERVE: Duration = Duration::from_secs(5);

const TOO_LATE: &str = "too little of the lease was left to post it";

/// A request is made anew for so many tokens that were replaced under it.
const MAX_FORMER_TOKENS: u32 = 2;

/// What all posts share.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) api: LeadApi,
    pub(super) tokens: Tokens,
    pub(super) flow: Arc<Flow>,
    pub(super) rules: Arc<LeadRules>,
    pub(super) policy: Policy,
    pub(super) lease: Duration,
    pub(super) longest_post: Duration,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) drain: CancellationToken,
}

/// A lead in hand.
pub(super) struct InHand {
    pub(super) leased: Leased,
    /// The body as it came.
    pub(super) body: Bytes,
    /// What it was found to be; `None`: it comes from the ledger and is to be checked again.
    pub(super) lead: Option<Lead>,
    /// Whether the circuit waits for what becomes of it.
    pub(super) is_probe: bool,
    pub(super) span: LeadSpan,
}

/// A settlement, and what is said of it besides.
pub(super) struct Settling {
    pub(super) settlement: Settlement,
    pub(super) said: Said,
}

/// What is no part of a lead's settlement, and to be told when that is done.
pub(super) struct Said {
    pub(super) leased_at: Instant,
    pub(super) age: Duration,
    /// Leads which are to be blamed, because this one passed.
    pub(super) blamed: Vec<LeadId>,
    pub(super) span: LeadSpan,
}

impl Dispatch {
    /// Carries a lead to where it can be settled. The place is free when that is on its way.
    pub(super) async fn carry(self: Arc<Self>, in_hand: InHand, place: Taken, settle: mpsc::Sender<Settling>) {
        let _in_hand = During::begin(&self.metrics.in_hand);
        let (leased, is_probe) = (in_hand.leased.clone(), in_hand.is_probe);
        let started_at = Instant::now();
        let settling = match AssertUnwindSafe(self.post(in_hand)).catch_unwind().await {
            Ok(settling) => settling,
            Err(_) => self.panicked(&leased, is_probe, started_at),
        };
        if settle.send(settling).await.is_err() {
            tracing::error!(lead.id = %leased.id, "nobody settles any more; the lease will run out");
        }
        drop(place);
    }

    async fn post(&self, in_hand: InHand) -> Settling {
        let InHand { leased, body, lead, is_probe, span } = in_hand;
        let mut trip = Trip::begin(self, &leased, is_probe, span);
        if leased.suspected >= MAX_SUSPICIONS {
            return trip.unposted(Next::End(Policy::blamed()));
        }
        let lead = match lead {
            Some(lead) => lead,
            None => match check(&self.rules, leased.id, &body).lead {
                Ok(lead) => lead,
                Err(violations) if leased.in_doubt => {
                    return trip.unposted(Next::End(Policy::doubtful(&violations)));
                }
                Err(violations) => {
                    let end = End {
                        state: Some(LeadState::Invalid),
                        code: Some("invalid".to_owned()),
                        violations,
                        ..End::default()
                    };
                    return trip.unposted(Next::End(end));
                }
            },
        };
        let key = lead.key().filter(|_| leased.in_doubt).map(str::to_owned);
        fault::panic_on(Panic::OnPost, &body);
        let body = lead.rebuilt().unwrap_or(body);
        // The number of slots may have fallen below that of the leads in hand.
        let until = leased.leased_at + self.lease.saturating_sub(self.longest_post + LEASE_RESERVE);
        let slot = match self.flow.slots.take_now(1) {
            Some(slot) => Some(slot),
            None => tokio::time::timeout_at(until, self.flow.slots.take(1)).await.ok(),
        };
        let Some(slot) = slot else {
            let next = trip.hand_back(Duration::ZERO, &Reason::new("lease_short", TOO_LATE));
            return trip.settling(next);
        };
        trip.slot_since = Instant::now();
        let next = trip.send(body, key).await.unwrap_or_else(|next| *next);
        drop(slot);
        trip.settling(next)
    }

    /// Whether there is time for a whole post before the lease ends. Asked after every wait, so that a process that was
    /// paused does not post what others may have taken over.
    fn has_time(&self, leased: &Leased) -> bool {
        leased.leased_at.elapsed() + self.longest_post + LEASE_RESERVE < self.lease
    }

    /// Tells the circuit how a post ended, and people what it made of it. Comes back with the leads that are to be blamed.
    pub(super) fn record(&self, signal: Signal, is_probe: bool) -> Vec<LeadId> {
        match self.flow.record(signal, is_probe, Instant::now()) {
            None => {}
            Some(Change::Opened(reason)) => {
                self.metrics.opened.inc();
                tracing::error!(code = %reason.code, cause = reason.text, "posts are paused, leads wait; see leadpost status");
            }
            Some(Change::StillOpen(pause, reason)) => {
                let next_probe_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(code = %reason.code, next_probe_in_ms, "a probe failed; posts stay paused");
            }
            Some(Change::Closed { after, blamed }) => {
                let paused_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(paused_ms, leads_at_fault = blamed.len(), "a lead passed; posts go on");
                return blamed;
            }
        }
        Vec::new()
    }

    /// Pauses posts for want of a token.
    pub(super) fn no_token(&self, error: &AuthError, is_probe: bool) {
        if let AuthError::Unavailable(_, Some(wait)) = error {
            self.flow.hold_alone(*wait, Instant::now());
        }
        self.record(Signal::NoToken(error.reason().clone()), is_probe);
    }

    fn panicked(&self, leased: &Leased, is_probe: bool, started_at: Instant) -> Settling {
        let reason =
            Reason::new("worker_panic", "the worker failed while it handled this lead, perhaps after it had posted");
        tracing::error!(lead.id = %leased.id, "the task of a lead has panicked; this is a bug");
        let mut trip = Trip::begin(self, leased, is_probe, LeadSpan::default());
        let outcome = Outcome::Uncertain(reason);
        trip.note(RequestKind::Post, &outcome, started_at, None, RequestSpan::default());
        trip.tell(Signal::Nothing);
        let next = self.policy.next(&outcome, trip.facts(), fastrand::f64());
        trip.settling(next)
    }
}

/// What is sent for a lead.
#[derive(Clone, Copy)]
enum Request<'a> {
    /// The lead, in this body.
    Post(&'a Bytes),
    /// The question whether an earlier post of it arrived, by this key.
    Query(&'a str),
}

impl Request<'_> {
    fn kind(self) -> RequestKind {
        match self {
            Request::Post(_) => RequestKind::Post,
            Request::Query(_) => RequestKind::Query,
        }
    }
}

/// What the answer to a post, or the want of one, says of the API's load.
fn load(outcome: &Outcome, exchange: &Exchange) -> Load {
    match (outcome, exchange) {
        (Outcome::Delivered(_), Exchange::Answered(_)) => Load::Taken,
        (Outcome::Duplicate(_) | Outcome::Rejected(_), Exchange::Answered(_)) => Load::Decided,
        (Outcome::Retry(_, hold), Exchange::Answered(_)) => Load::Refused(hold.unwrap_or_default()),
        (Outcome::Uncertain(reason), Exchange::Unknown(_)) if reason.code == NO_ANSWER => Load::Silent,
        // Errors, and connections that break, have reasons of their own.
        _ => Load::Unknown,
    }
}

/// One lead's attempts under one lease.
struct Trip<'a> {
    dispatch: &'a Dispatch,
    leased: &'a Leased,
    is_probe: bool,
    /// When it got its slot.
    slot_since: Instant,
    /// Whether its last post was refused because there were too many.
    too_much: bool,
    attempts: Vec<Attempt>,
    blamed: Vec<LeadId>,
    span: LeadSpan,
}

impl<'a> Trip<'a> {
    fn begin(dispatch: &'a Dispatch, leased: &'a Leased, is_probe: bool, span: LeadSpan) -> Self {
        let (attempts, blamed) = (Vec::new(), Vec::new());
        Self { dispatch, leased, is_probe, slot_since: Instant::now(), too_much: false, attempts, blamed, span }
    }

    /// A token, if the post may go ahead.
    async fn token(&mut self) -> Result<Token, Box<Next>> {
        self.gate()?;
        match self.dispatch.tokens.get().await {
            Ok(token) => {
                // Getting one may have taken a while.
                self.gate()?;
                Ok(token)
            }
            Err(error) => Err(Box::new(self.no_token(&error))),
        }
    }

    /// Whether the post may go ahead; if not, the lead is handed back.
    fn gate(&mut self) -> Result<(), Box<Next>> {
        let refused = if self.dispatch.drain.is_cancelled() {
            Some((Duration::ZERO, Reason::new("stopped", "the worker stopped before it was posted")))
        } else if !self.dispatch.has_time(self.leased) {
            Some((Duration::ZERO, Reason::new("lease_short", TOO_LATE)))
        } else {
            self.dispatch.flow.may_post(self.is_probe, Instant::now()).err()
        };
        match refused {
            Some((after, reason)) => Err(Box::new(self.hand_back(after, &reason))),
            None => Ok(()),
        }
    }

    /// Nothing was sent: the lead is due again after this.
    fn hand_back(&mut self, after: Duration, reason: &Reason) -> Next {
        self.tell(Signal::Nothing);
        again(after, reason)
    }

    /// Posts the lead; one that is in doubt is asked for first, by its key. `Err`: it is handed back.
    async fn send(&mut self, body: Bytes, key: Option<String>) -> Result<Next, Box<Next>> {
        if let Some(key) = key {
            match self.request(Request::Query(&key)).await? {
                Outcome::Absent(_) => {}
                outcome => return Ok(self.conclude_query(&outcome)),
            }
        }
        let outcome = self.request(Request::Post(&body)).await?;
        Ok(self.conclude(&outcome))
    }

    /// Makes a request; if its token is not accepted, again with another one, at most [`MAX_FORMER_TOKENS`] times. `Err`: the lead
    /// is handed back.
    ///
    /// A token that was replaced while the request was under way says nothing about the set-up: a refresh kills the former token
    /// at some APIs. One that is refused although it is the newest does.
    async fn request(&mut self, request: Request<'_>) -> Result<Outcome, Box<Next>> {
        let tokens = &self.dispatch.tokens;
        for former in 0.. {
            let token = self.token().await?;
            fault::at(Point::Authorized);
            let started_at = Instant::now();
            let under_way = During::begin(&self.dispatch.metrics.posting);
            let span = self.span.request(self.dispatch.api.server(request.kind()), former);
            // Without spans, what the message brought goes on as it is.
            let ours = span.context();
            let trace = ours.as_ref().or(self.leased.trace.as_deref());
            let (outcome, exchange) = match request {
                Request::Post(body) => {
                    fault::at(Point::Posting);
                    fault::soon_at(Point::Posted);
                    self.dispatch.api.post(self.leased.id, &token, body.clone(), trace).await
                }
                Request::Query(key) => self.dispatch.api.ask(&token, key, trace).await,
            };
            fault::at(match request {
                Request::Post(_) => Point::Answered,
                Request::Query(_) => Point::Queried,
            });
            drop(under_way);
            if let Request::Post(_) = request {
                let ended =
                    Ended { load: load(&outcome, &exchange), since: self.slot_since, took: started_at.elapsed() };
                self.too_much = self.dispatch.flow.weigh(ended, Instant::now());
            }
            let outcome = match outcome {
                Outcome::Unauthorized(reason) if tokens.is_fixed() => {
                    Outcome::Systemic(reason.preceded_by(&format!("the credentials are refused ({})", tokens.hint())))
                }
                Outcome::Unauthorized(reason)
                    if former > 0 && (tokens.is_current(&token) || former == MAX_FORMER_TOKENS) =>
                {
                    Outcome::Systemic(reason.preceded_by("a fresh token was refused too"))
                }
                outcome => outcome,
            };
            self.note(request.kind(), &outcome, started_at, Some(&exchange), span);
            match outcome {
                Outcome::Unauthorized(_) => tokens.invalidate(&token),
                Outcome::Delivered(_) | Outcome::Reconciled(..) | Outcome::Absent(_) => {
                    tokens.succeeded(&token, started_at);
                    return Ok(outcome);
                }
                outcome => return Ok(outcome),
            }
        }
        unreachable!("the last token that is refused ends it")
    }

    /// Tells the circuit what a post came to, and says what is next for the lead.
    fn conclude(&mut self, outcome: &Outcome) -> Next {
        self.tell(match outcome {
            Outcome::Delivered(_) | Outcome::Duplicate(_) | Outcome::Rejected(_) => Signal::Passed,
            Outcome::Systemic(reason) | Outcome::Unauthorized(reason) => {
                Signal::Suspect(self.leased.id, reason.clone())
            }
            // Less of it is the remedy, and on its way.
            Outcome::Retry(..) if self.too_much && !self.is_probe => Signal::Nothing,
            Outcome::Retry(reason, _) | Outcome::Uncertain(reason) | Outcome::NotSent(reason) => {
                Signal::Failed(reason.clone())
            }
            Outcome::Reconciled(..) | Outcome::Absent(_) => Signal::Nothing,
        });
        self.hold(outcome);
        self.dispatch.policy.next(outcome, self.facts(), fastrand::f64())
    }

    /// The same for a question. An API that cannot be asked may well take posts: only that nobody is there counts as a failure.
    fn conclude_query(&mut self, outcome: &Outcome) -> Next {
        self.tell(match outcome {
            Outcome::NotSent(reason) => Signal::Failed(reason.clone()),
            Outcome::Reconciled(..) => Signal::Passed,
            _ => Signal::Nothing,
        });
        self.hold(outcome);
        let requests = self.leased.attempts + u32::try_from(self.attempts.len()).unwrap_or(0);
        self.dispatch.policy.next_of_query(outcome, self.facts(), requests, fastrand::f64())
    }

    fn hold(&self, outcome: &Outcome) {
        if let Outcome::Retry(_, Some(wait)) = outcome {
            self.dispatch.flow.hold(*wait, Instant::now());
        }
    }

    /// Puts an attempt on record.
    fn note(
        &mut self,
        request: RequestKind,
        outcome: &Outcome,
        started_at: Instant,
        exchange: Option<&Exchange>,
        span: RequestSpan,
    ) {
        let duration = started_at.elapsed();
        if request == RequestKind::Post {
            self.dispatch.pulse.took(duration);
        }
        let answer = match exchange {
            Some(Exchange::Answered(answer)) => Some(answer),
            Some(Exchange::NotSent(_) | Exchange::Unknown(_)) | None => None,
        };
        let status = answer.map(|answer| answer.status);
        let metrics = &self.dispatch.metrics;
        metrics.attempts.count(request, outcome.place(), status);
        if request == RequestKind::Post {
            metrics.post_duration.took(duration);
            happened(&metrics.last_post);
        }
        span.end(status, outcome.as_str(), outcome.reason().map(|reason| &*reason.code));
        self.attempts.push(Attempt {
            request,
            started_at,
            duration,
            outcome: outcome.as_str(),
            charged: request == RequestKind::Post && Policy::charges(outcome),
            http_status: status,
            code: outcome.reason().map(|reason| reason.code.to_string()),
            reason: outcome.reason().map(Reason::for_the_record),
            answer: answer.filter(|answer| !answer.body.is_empty()).map(|answer| answer.body.clone()),
            retry_after: answer.and_then(|answer| answer.retry_after),
        });
    }

    fn facts(&self) -> Facts {
        let charged = u32::try_from(self.attempts.iter().filter(|attempt| attempt.charged).count()).unwrap_or(0);
        Facts { charged: self.leased.charged + charged, age: self.leased.age + self.leased.leased_at.elapsed() }
    }

    fn no_token(&mut self, error: &AuthError) -> Next {
        self.dispatch.no_token(error, self.is_probe);
        self.is_probe = false;
        again(Duration::ZERO, error.reason())
    }

    fn tell(&mut self, signal: Signal) {
        let blamed = self.dispatch.record(signal, self.is_probe);
        self.blamed.extend(blamed);
        // A probe is judged once.
        self.is_probe = false;
    }

    fn unposted(mut self, next: Next) -> Settling {
        self.tell(Signal::Nothing);
        self.settling(next)
    }

    fn settling(self, next: Next) -> Settling {
        Settling {
            settlement: Settlement {
                id: self.leased.id,
                lease: self.leased.lease,
                attempts_before: self.leased.attempts,
                attempts: self.attempts,
                // What was claimed is remembered already, and what has ended does not wait.
                trace: match (&next, self.leased.origin) {
                    (Next::Again { .. }, Origin::Fresh | Origin::Replayed | Origin::Conflict) => {
                        self.leased.trace.clone()
                    }
                    (Next::Again { .. }, Origin::Claimed) | (Next::End(_), _) => None,
                },
                next,
            },
            said: Said { leased_at: self.leased.leased_at, age: self.leased.age, blamed: self.blamed, span: self.span },
        }
    }
}
