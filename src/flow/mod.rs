//! When may a lead be sent? Slots, rate, hold and circuit, asked in one place.
//!
//! ```text
//!             ┌ window: leads in hand (being posted, and a tenth of a second's worth accepted ahead)
//!   admission ┤ rate:   posts per second, shared by the destination's workers: see [`share`]
//!             ├ hold:   a Retry-After holds the whole destination back
//!             └ circuit: closed, open, probing
//!   slots: posts under way, as many as the API can take: see [`limit`]
//! ```
//!
//! # Rules
//! - What is needed to send is reserved before a message is taken, so that an accepted lead is sent at once and the backlog stays
//!   in RabbitMQ, where people watch it.
//! - A post that is not admitted any more is not made: its lead is handed back, uncharged.
//! - [`circuit`], [`hold`], [`limit`], [`rate`] and [`share`] are pure: time enters as an argument.

mod circuit;
mod hold;
mod limit;
mod places;
mod rate;
mod share;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use circuit::{Change, CircuitState, Signal};
pub use limit::{Ended, Load};
pub use places::{Places, Taken};
pub use share::{HEARTBEAT, SEEN_WITHIN};

use crate::config::{self, Settings};
use crate::lead::LeadId;
use crate::reason::Reason;
use circuit::Circuit;
use hold::Holds;
use limit::Limit;
use share::Share;

/// What a hold is, in words.
const HELD: &str = "the destination asked to be left alone (Retry-After)";
const HELD_FOR_TOKEN: &str = "the token endpoint asked to be left alone (Retry-After)";

/// A hold that ends by so much sooner was lifted. Less is the difference of two clocks.
const LIFTED: Duration = Duration::from_secs(1);

/// How long a post takes as long as none was answered, and of how many the average is.
const POST_TAKES: Duration = Duration::from_millis(100);
const LATELY: u32 = 64;

/// Shared flow control of one worker.
#[derive(Debug)]
pub struct Flow {
    /// A place for each lead in hand.
    pub window: Places,
    /// A place for each post under way.
    pub slots: Places,
    settings: config::Flow,
    gate: Mutex<Gate>,
    changed: Notify,
    news: Notify,
}

#[derive(Debug)]
struct Gate {
    circuit: Circuit,
    limit: Limit,
    share: Option<Share>,
    /// How long a post has taken lately.
    post_takes: Duration,
    holds: Holds,
}

/// What the next lead may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Be sent.
    Flow,
    /// Be sent as a probe, alone, unless it is one of these.
    Probe(Vec<LeadId>),
    /// Wait until then, or until something changes.
    Wait(Instant),
}

/// Flow control in words and numbers.
#[derive(Debug, Clone, Serialize)]
pub struct FlowStatus {
    /// The circuit.
    pub circuit: CircuitState,
    /// Why it is open.
    pub cause: Option<String>,
    /// For how long the destination asked to be left alone, in seconds.
    pub hold_s: Option<f64>,
    /// Posts under way.
    pub posting: usize,
    /// Posts that may be under way, as far as is known of the API.
    pub concurrency: usize,
    /// This worker's share of the rate limit, per second: 0 before its first heartbeat; `None` without a limit.
    pub rate_per_s: Option<f64>,
}

impl Flow {
    /// Flow control for these settings.
    pub fn new(settings: &Settings) -> Self {
        let flow = &settings.flow;
        let limit = Limit::new(flow.least(), flow.concurrency, Instant::now());
        Self {
            window: Places::new(limit.posts() + flow.ahead(limit.posts(), POST_TAKES)),
            slots: Places::new(limit.posts()),
            settings: flow.clone(),
            gate: Mutex::new(Gate {
                circuit: Circuit::new(
                    flow.open_after,
                    Duration::from_millis(flow.probe_initial_ms),
                    Duration::from_millis(flow.probe_max_ms),
                ),
                limit,
                share: (flow.rate_per_s > 0.0).then(|| Share::new(flow.rate_per_s, Instant::now())),
                post_takes: POST_TAKES,
                holds: Holds::default(),
            }),
            changed: Notify::new(),
            news: Notify::new(),
        }
    }

    /// What the next lead may do.
    pub fn admission(&self, now: Instant) -> Admission {
        let gate = self.lock();
        if let Some(until) = gate.holds.end(now) {
            return Admission::Wait(until);
        }
        gate.circuit.admission(now)
    }

    /// Whether a post may still begin; if not, how long to keep away, and why.
    pub fn may_post(&self, is_probe: bool, now: Instant) -> Result<(), (Duration, Reason)> {
        let gate = self.lock();
        if let Some(until) = gate.holds.end(now) {
            // Who lifts the API's hold does not lift that of the token endpoint, and asks for those who wait for the former by their code.
            let reason = match gate.holds.is_own(now) {
                true => Reason::new("held_for_token", HELD_FOR_TOKEN),
                false => Reason::new("held", HELD),
            };
            return Err((until - now, reason));
        }
        if is_probe || gate.circuit.is_closed() {
            return Ok(());
        }
        let cause = gate.circuit.cause().map(|cause| cause.text.clone()).unwrap_or_default();
        Err((Duration::ZERO, Reason::new("circuit_open", format!("posts are paused: {cause}"))))
    }

    /// Begins a probe: the next lead is sent alone.
    pub fn begin_probe(&self) {
        self.lock().circuit.begin_probe();
    }

    /// Ends a probe for which no lead was found.
    pub fn abandon_probe(&self, now: Instant) {
        self.lock().circuit.abandon_probe(now);
        self.changed.notify_one();
    }

    /// Takes in how a post ended.
    pub fn record(&self, signal: Signal, is_probe: bool, now: Instant) -> Option<Change> {
        let change = self.lock().circuit.record(signal, is_probe, now);
        if change.is_some() || is_probe {
            self.changed.notify_one();
        }
        if matches!(change, Some(Change::Opened(_) | Change::Closed { .. })) {
            self.news.notify_one();
        }
        change
    }

    /// Takes in what a post says of the API's capacity. Whether the API was asked for more than it can take, and will be asked for less.
    pub fn weigh(&self, ended: Ended, now: Instant) -> bool {
        let under_way = self.slots.taken();
        let mut gate = self.lock();
        let is_too_much = matches!(ended.load, Load::Refused(_)) && gate.limit.can_fall();
        let is_used = gate.limit.record(ended, under_way, now);
        if matches!(ended.load, Load::Taken | Load::Decided) {
            gate.post_takes = (gate.post_takes * (LATELY - 1) + ended.took) / LATELY;
        }
        let posts = gate.limit.posts();
        let before = self.slots.size();
        if posts != before {
            tracing::debug!(posts, before, under_way, "another number of posts may be under way");
            self.slots.resize(posts);
        }
        let window = posts + self.settings.ahead(posts, gate.post_takes);
        let had = self.window.size();
        // Each resize is a look at all who wait; a little more or less changes nothing.
        if posts != before || window.abs_diff(had) * 8 > had {
            self.window.resize(window);
            if window < had {
                // Who waits for more places than there are now would wait in vain.
                self.changed.notify_one();
            }
        }
        is_too_much && is_used
    }

    /// For how many free places in the window leads are taken, while others wait for a slot.
    pub fn worthwhile(&self) -> usize {
        (self.window.size().saturating_sub(self.slots.size()) / 2).max(1)
    }

    /// Holds the whole destination back because the lead API said so, which other workers have to know.
    pub fn hold(&self, wait: Duration, now: Instant) {
        self.change_holds(now, |holds| holds.tell(now + wait));
        self.news.notify_one();
    }

    /// Holds this worker back because the token endpoint said so.
    pub fn hold_alone(&self, wait: Duration, now: Instant) {
        self.change_holds(now, |holds| holds.tell_own(now + wait));
    }

    /// A heartbeat begins: for how long the lead API wants to be left alone, which the ledger does not know yet.
    pub fn hold_to_share(&self, now: Instant) -> Option<Duration> {
        self.lock().holds.share(now)
    }

    /// That heartbeat was written.
    pub fn hold_is_shared(&self) {
        self.lock().holds.is_shared();
    }

    /// For how long the destination is to be left alone, as the ledger has it, which was asked at `asked_at`. Whether that is less than was known:
    /// somebody has lifted a hold.
    pub fn hold_seen(&self, hold: Option<Duration>, asked_at: Instant, now: Instant) -> bool {
        self.change_holds(now, |holds| holds.seen(hold, asked_at, now)) > LIFTED
    }

    fn change_holds<T>(&self, now: Instant, change: impl FnOnce(&mut Holds) -> T) -> T {
        let mut gate = self.lock();
        let before = gate.holds.end(now);
        let result = change(&mut gate.holds);
        let is_other = gate.holds.end(now) != before;
        drop(gate);
        if is_other {
            self.changed.notify_one();
        }
        result
    }

    /// Waits for what others should know at once: a hold has begun, the circuit has opened or closed.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// How many of `wanted` posts the rate admits now; when none, when to ask again.
    pub fn reserve(&self, wanted: usize, now: Instant) -> Result<usize, Instant> {
        match &mut self.lock().share {
            Some(share) => share.reserve(wanted, now),
            None => Ok(wanted),
        }
    }

    /// Gives back what was reserved and not used.
    pub fn give_back(&self, unused: usize) {
        if let Some(share) = &mut self.lock().share {
            share.give_back(unused);
        }
    }

    /// Shares the rate limit with so many workers, this one included, as a heartbeat has found that began at `asked_at`.
    pub fn share_with(&self, workers: u32, asked_at: Instant, now: Instant) {
        let mut gate = self.lock();
        if gate.share.as_mut().is_some_and(|share| share.seen(workers, asked_at, now)) {
            drop(gate);
            self.changed.notify_one();
        }
    }

    /// How many posts may be under way at most.
    pub fn ceiling(&self) -> usize {
        self.settings.concurrency
    }

    /// Posts per second, of all workers together; `None` without a limit.
    pub fn rate_limit(&self) -> Option<f64> {
        Some(self.settings.rate_per_s).filter(|rate| *rate > 0.0)
    }

    /// Whether there is a rate limit, which workers share by their heartbeats.
    pub fn is_shared(&self) -> bool {
        self.lock().share.is_some()
    }

    /// Waits for a change of the gate.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Flow control in words and numbers.
    pub fn status(&self, now: Instant) -> FlowStatus {
        let gate = self.lock();
        let hold_s = gate.holds.end(now).map(|until| (until - now).as_secs_f64());
        FlowStatus {
            circuit: gate.circuit.state(),
            cause: gate.circuit.cause().map(|cause| cause.text.clone()),
            hold_s,
            posting: self.slots.taken(),
            concurrency: self.slots.size(),
            rate_per_s: gate.share.as_ref().map(Share::per_s),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        // No code that holds the lock can panic half-way through a change.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
