//! What a worker knows of itself and its neighbours, for the admin port.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::pulse::{Lately, Pulse};
use crate::auth::Tokens;
use crate::broker::{Inbox, Link};
use crate::flow::{CircuitState, Flow, FlowStatus};
use crate::ledger::LedgerError;
use crate::metrics::Metrics;
use crate::reason::chain;

/// An intake loop that has not turned for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// What cannot be settled for so long, because somebody holds a lock, does not keep lost leases of others waiting.
const LATE_AT_MOST: Duration = Duration::from_secs(120);

/// A ledger that was away for less has cost no lease.
const LONG_AWAY: Duration = Duration::from_secs(10);

/// The state of everything that the worker depends on.
#[derive(Debug)]
pub struct Health {
    pub(super) flow: Arc<Flow>,
    pub(super) tokens: Tokens,
    pub(super) metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What cannot be done with the ledger now.
    failing: BTreeMap<Doing, Failing>,
    /// When it came back, after having been away.
    ledger_back_at: Option<Instant>,
    /// Whether there are results that could not be settled yet.
    settling_late: Option<Instant>,
    link: Option<watch::Receiver<Link>>,
    /// How often the broker was lost.
    losses: Option<Arc<AtomicU64>>,
    turned_at: Instant,
}

/// Something that fails.
#[derive(Debug)]
struct Failing {
    why: String,
    /// Since when every try has.
    since: Instant,
    /// When the last one did.
    last: Instant,
}

impl Failing {
    fn now(why: String) -> Self {
        let now = Instant::now();
        Self { why, since: now, last: now }
    }
}

impl State {
    fn down_since(&self) -> Option<Instant> {
        self.failing.values().map(|failing| failing.since).min()
    }
}

/// What a worker does with the ledger. Each may fail while the others work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    /// Accepting messages.
    Accept,
    /// Settling leads.
    Settle,
    /// Whatever any success shows to work again.
    Anything,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, Serialize)]
pub struct HealthReport {
    /// Whether leads can flow.
    pub ready: bool,
    /// RabbitMQ.
    pub rabbitmq: Dependency,
    /// Postgres.
    pub postgres: Dependency,
    /// The token endpoint.
    pub token: Dependency,
    /// The lead API, as the circuit sees it.
    pub api: Dependency,
    /// Flow control.
    pub flow: FlowStatus,
}

/// What other processes may know of a worker. `leadpost status` shows it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Heartbeat {
    #[serde(flatten)]
    flow: FlowStatus,
    rabbitmq: Dependency,
    token: Dependency,
    lately: Lately,
}

/// One of them.
#[derive(Debug, Clone, Serialize)]
pub struct Dependency {
    /// Whether it works, as far as is known.
    pub ok: bool,
    /// What is known, in words.
    pub detail: String,
}

impl Health {
    pub(super) fn new(flow: Arc<Flow>, tokens: Tokens, metrics: Arc<Metrics>) -> Self {
        let state = State {
            failing: BTreeMap::from([(Doing::Anything, Failing::now("not connected yet".to_owned()))]),
            ledger_back_at: None,
            settling_late: None,
            link: None,
            losses: None,
            turned_at: Instant::now(),
        };
        let pulse = Arc::new(Pulse::new(Instant::now()));
        Self { flow, tokens, metrics, pulse, state: Mutex::new(state) }
    }

    /// What was done lately.
    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    pub(super) fn watch_broker(&self, inbox: &Inbox) {
        let mut state = self.lock();
        state.link = Some(inbox.link());
        state.losses = Some(inbox.losses());
    }

    /// How things stand with the broker, and how often it was lost; `None` before the start.
    pub(super) fn broker(&self) -> Option<(Link, u64)> {
        let state = self.lock();
        let link = state.link.as_ref()?.borrow().clone();
        Some((link, state.losses.as_ref()?.load(Ordering::Relaxed)))
    }

    /// This works; what else fails does not for that.
    pub(super) fn ledger_is_up(&self, doing: Doing) {
        self.mend(|failing| {
            failing.remove(&doing);
            failing.remove(&Doing::Anything);
        });
    }

    /// All of it works.
    pub(super) fn ledger_is_proven(&self) {
        self.mend(BTreeMap::clear);
    }

    fn mend(&self, mend: impl FnOnce(&mut BTreeMap<Doing, Failing>)) {
        let mut state = self.lock();
        let since = state.down_since();
        mend(&mut state.failing);
        if !state.failing.is_empty() {
            return;
        }
        if since.is_some_and(|since| since.elapsed() > LONG_AWAY) {
            state.ledger_back_at = Some(Instant::now());
        }
        self.metrics.now.postgres_up.set(1);
    }

    pub(super) fn ledger_is_down(&self, doing: Doing, error: &LedgerError) {
        let mut state = self.lock();
        let failing = Failing::now(chain(error));
        let since = state.failing.get(&doing).map_or(failing.since, |before| before.since);
        state.failing.insert(doing, Failing { since, ..failing });
        self.metrics.now.postgres_up.set(0);
    }

    /// For how long leads could not be accepted, or not be settled.
    pub(super) fn ledger_down_for(&self) -> Duration {
        let state = self.lock();
        let since =
            [Doing::Accept, Doing::Settle].iter().filter_map(|doing| Some(state.failing.get(doing)?.since)).min();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// For how long the ledger has been back, if it was away for long.
    pub(super) fn ledger_up_for(&self) -> Option<Duration> {
        self.lock().ledger_back_at.map(|back| back.elapsed())
    }

    /// Notes whether there are results that could not be settled at the first try.
    pub(super) fn settling_late(&self, late: bool) {
        let mut state = self.lock();
        state.settling_late = if late { state.settling_late.or_else(|| Some(Instant::now())) } else { None };
    }

    /// Whether there are results that could not be settled at the first try, and not for so long that one of them would be
    /// waited for at the cost of all others.
    pub(super) fn is_settling_late(&self) -> bool {
        self.lock().settling_late.is_some_and(|since| since.elapsed() < LATE_AT_MOST)
    }

    /// Whether nothing fails or is late, so that what is not urgent may be done as well.
    pub(super) fn has_time_to_spare(&self) -> bool {
        let state = self.lock();
        state.failing.is_empty() && state.settling_late.is_none()
    }

    /// What the worker says of itself in its heartbeat.
    pub(super) fn beat(&self) -> Heartbeat {
        let HealthReport { rabbitmq, token, flow, .. } = self.report();
        Heartbeat { flow, rabbitmq, token, lately: self.pulse.lately(Instant::now()) }
    }

    /// The intake loop turns.
    pub(super) fn turned(&self) {
        self.lock().turned_at = Instant::now();
    }

    /// Whether the loops turn.
    pub fn is_live(&self) -> bool {
        self.lock().turned_at.elapsed() < STUCK_AFTER
    }

    /// Everything, for `/readyz`.
    pub fn report(&self) -> HealthReport {
        let state = self.lock();
        let link = state.link.as_ref().map(|link| link.borrow().clone());
        let rabbitmq = match link {
            None => down("not connected yet"),
            Some(Link::Consuming) => up("consuming"),
            Some(Link::Idle) => up("connected, not consuming while posts are paused or Postgres is away"),
            Some(Link::Down(why)) => down(&why),
            Some(Link::Closed) => down("closed"),
        };
        // What failed last says how things are now.
        let postgres = match state.failing.values().max_by_key(|failing| failing.last) {
            None => up("writable"),
            Some(failing) => down(&failing.why),
        };
        drop(state);
        let tokens = self.tokens.status();
        let token = match (tokens.valid_for, &tokens.failure) {
            _ if tokens.is_fixed => up("credentials that do not change"),
            (Some(left), None) => up(&format!("valid for {} s", left.as_secs())),
            (Some(left), Some(why)) if !left.is_zero() => up(&format!("valid for {} s, but {why}", left.as_secs())),
            (_, Some(why)) => down(why),
            (None, None) => up("none needed yet"),
        };
        let flow = self.flow.status(Instant::now());
        let api = match (flow.circuit, flow.hold_s) {
            (CircuitState::Closed, None) => up("leads flow"),
            (CircuitState::Closed, Some(hold_s)) => down(&format!("asked to be left alone for {hold_s:.0} s more")),
            (CircuitState::Open | CircuitState::Probing, _) => {
                down(&format!("posts are paused: {}", flow.cause.as_deref().unwrap_or("unknown")))
            }
        };
        let ready = rabbitmq.ok && postgres.ok && token.ok && api.ok;
        HealthReport { ready, rabbitmq, postgres, token, api, flow }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn up(detail: &str) -> Dependency {
    Dependency { ok: true, detail: detail.to_owned() }
}

fn down(detail: &str) -> Dependency {
    Dependency { ok: false, detail: detail.to_owned() }
}
