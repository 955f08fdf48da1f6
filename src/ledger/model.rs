//! The ledger's own words: states, arrivals, leases, settlements.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::lead::{Keys, LeadId, Violation};
use crate::traces::TraceContext;

/// The state of a lead. The names are an interface: they are stored, counted and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeadState {
    /// Accepted; due at its next attempt's time.
    Pending,
    /// The API took it.
    Delivered,
    /// The API said that it has it already.
    Duplicate,
    /// The message is not a valid lead; never posted.
    Invalid,
    /// The API refused it for good.
    Rejected,
    /// Attempts or age used up.
    Exhausted,
    /// May have been posted; held for a person.
    Uncertain,
    /// A person stopped it.
    Cancelled,
}

impl LeadState {
    /// All states, the open one first.
    pub const ALL: [LeadState; 8] = [
        LeadState::Pending,
        LeadState::Delivered,
        LeadState::Duplicate,
        LeadState::Invalid,
        LeadState::Rejected,
        LeadState::Exhausted,
        LeadState::Uncertain,
        LeadState::Cancelled,
    ];

    /// The state as it is stored and printed.
    pub fn as_str(self) -> &'static str {
        match self {
            LeadState::Pending => "pending",
            LeadState::Delivered => "delivered",
            LeadState::Duplicate => "duplicate",
            LeadState::Invalid => "invalid",
            LeadState::Rejected => "rejected",
            LeadState::Exhausted => "exhausted",
            LeadState::Uncertain => "uncertain",
            LeadState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for LeadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LeadState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        LeadState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = LeadState::ALL.iter().map(|state| state.as_str()).collect();
            format!("{text:?} is no state; the states are {}", known.join(", "))
        })
    }
}

/// A message that is to be accepted.
#[derive(Clone)]
pub struct Arrival {
    /// The lead that it is about.
    pub id: LeadId,
    /// The body, byte for byte.
    pub body: Bytes,
    /// The AMQP `message_id`, without what a text column cannot hold.
    pub message_id: Option<String>,
    /// Whether the broker says that it has delivered it before.
    pub redelivered: bool,
    /// Whether its producer asks for a replay by header.
    pub replay: bool,
    /// What it can be found by.
    pub keys: Keys,
    /// What is wrong with it; empty: it is a valid lead.
    pub violations: Vec<Violation>,
    /// Where it belongs in its producer's trace.
    pub trace: Option<Arc<TraceContext>>,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").field("id", &self.id).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// What became of an arrival. In the order of the arrivals.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is a lead to be posted, now, by us.
    Leased(Leased),
    /// It is a lead to be posted, later, by whoever claims it.
    Parked(LeadId),
    /// It is not a valid lead; kept as such.
    Invalid(LeadId),
    /// It is known, in this state; counted as one more delivery of the same message.
    Repeated(LeadId, LeadState),
    /// Another body under an id that a person holds back; kept as a lead of its own, held back too.
    Held(LeadId, LeadState),
    /// Its lead is locked by somebody; kept until that ends.
    Aside(LeadId),
}

/// How a lead came to be pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A new message.
    Fresh,
    /// A message that replays a lead which had ended.
    Replayed,
    /// A message with another body under an id that is taken.
    Conflict,
    /// The ledger: a retry, a requeue, or a lead that was parked.
    Claimed,
}

/// A lead that is ours to post until the lease ends.
#[derive(Debug, Clone)]
pub struct Leased {
    /// The lead.
    pub id: LeadId,
    /// The fencing token.
    pub lease: Uuid,
    /// Where it came from.
    pub origin: Origin,
    /// How many attempts it has on record.
    pub attempts: u32,
    /// How many of them count.
    pub charged: u32,
    /// How many suspicions it has.
    pub suspected: u32,
    /// Whether an earlier post of it may have arrived.
    pub in_doubt: bool,
    /// How old it was when it was leased.
    pub age: Duration,
    /// When that was, by our clock, and not later than by the database's.
    pub leased_at: Instant,
    /// Where its message belongs in its producer's trace.
    pub trace: Option<Arc<TraceContext>>,
}

/// A lead that was claimed, with its body.
#[derive(Clone)]
pub struct Claimed {
    /// The lease.
    pub leased: Leased,
    /// The body as it came.
    pub body: Vec<u8>,
}

impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claimed").field("leased", &self.leased).finish_non_exhaustive()
    }
}

/// What was sent for a lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// The lead.
    Post,
    /// The question whether an earlier post of it arrived.
    Query,
}

impl RequestKind {
    /// As it is stored and printed.
    pub fn as_str(self) -> &'static str {
        match self {
            RequestKind::Post => "post",
            RequestKind::Query => "query",
        }
    }

    /// Whether an attempt of this kind may have this outcome, as the table of attempts has it.
    pub fn can_come_to(self, outcome: &str) -> bool {
        match self {
            RequestKind::Post => !matches!(outcome, "reconciled" | "absent"),
            RequestKind::Query => !matches!(outcome, "delivered" | "duplicate" | "rejected" | "uncertain"),
        }
    }
}

/// One request that was, or may have been, sent for a lead.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What was sent.
    pub request: RequestKind,
    /// How long ago it began, when it is settled.
    pub started_at: Instant,
    /// How long it took.
    pub duration: Duration,
    /// Its outcome's name.
    pub outcome: &'static str,
    /// Whether it counts towards the lead's budget.
    pub charged: bool,
    /// The answer's status.
    pub http_status: Option<u16>,
    /// Why, as a code.
    pub code: Option<String>,
    /// Why, as a sentence.
    pub reason: Option<String>,
    /// The start of the answer's body.
    pub answer: Option<Vec<u8>>,
    /// How long the API asked to be left alone.
    pub retry_after: Option<Duration>,
}

/// What becomes of a leased lead.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The lead.
    pub id: LeadId,
    /// The fencing token under which this was found out.
    pub lease: Uuid,
    /// How many attempts it had on record before these.
    pub attempts_before: u32,
    /// The attempts that were made.
    pub attempts: Vec<Attempt>,
    /// What is next.
    pub next: Next,
    /// What is to be remembered for the time that it waits: where its message belongs in its producer's trace.
    pub trace: Option<Arc<TraceContext>>,
}

impl Settlement {
    /// The attempt that its lead's own row can keep: the first one, when that delivered it and left nothing else to say.
    pub(super) fn first_post(&self) -> Option<&Attempt> {
        let [attempt] = &*self.attempts else { return None };
        let is_plain = attempt.request == RequestKind::Post
            && attempt.outcome == "delivered"
            && attempt.charged
            && attempt.http_status.is_some()
            && attempt.code.is_none()
            && attempt.reason.is_none()
            && attempt.answer.is_none()
            && attempt.retry_after.is_none();
        (self.attempts_before == 0 && is_plain).then_some(attempt)
    }
}

/// What is next for a lead.
#[derive(Debug, Clone)]
pub enum Next {
    /// It is pending again, due after this time.
    Again {
        /// From the time of the settlement.
        after: Duration,
        /// Why, as a code.
        code: Option<String>,
        /// Why, as a sentence.
        reason: Option<String>,
    },
    /// It has come to an end.
    End(End),
}

/// How a lead ended.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// The state. `None` stands for delivered, so that a default needs no reason.
    pub state: Option<LeadState>,
    /// Why, as a code.
    pub code: Option<String>,
    /// Why, as a sentence.
    pub reason: Option<String>,
    /// What is wrong with an invalid lead.
    pub violations: Vec<Violation>,
    /// What the API said of a lead that it took.
    pub receipt: Option<Receipt>,
}

/// What the API said of a lead that it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Its id there.
    pub remote_id: Option<String>,
    /// Its state there.
    pub remote_state: Option<String>,
    /// Its sub-state there.
    pub remote_sub_state: Option<String>,
    /// When the API means to act on it.
    pub next_schedule_time: Option<String>,
    /// Why this may not be the success that it seems.
    pub warning: Option<String>,
}

impl Next {
    /// The state that the lead will be in.
    pub fn state(&self) -> LeadState {
        match self {
            Next::Again { .. } => LeadState::Pending,
            Next::End(end) => end.state.unwrap_or(LeadState::Delivered),
        }
    }

    /// Why, as a code.
    pub fn code(&self) -> Option<&str> {
        match self {
            Next::Again { code, .. } => code.as_deref(),
            Next::End(end) => end.code.as_deref(),
        }
    }
}

/// What to do about leads that may have been posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubts {
    /// Take them as well.
    Included,
    /// Leave them out.
    Excluded,
}

/// What to do about leads that somebody else has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLock {
    /// Wait for them, as long as `postgres.lock_timeout_ms` allows.
    Wait,
    /// Leave them out.
    Skip,
}
