//! The circuit: one bad deploy must not burn a backlog, and one bad lead must not stop all others.
//!
//! ```text
//!            a systemic answer, no token, or a run of failures
//!   closed ───────────────────────────────────────────────────> open
//!     ^                                                         │  ^
//!     │ the probe passed                             at its time│  │ the probe failed: wait twice as long
//!     └──────────────────────── probing <───────────────────────┘  │
//!                                  └───────────────────────────────┘
//! ```
//!
//! # Rules
//! - A probe is one lead, and another one than those whose answers are suspected, if there is another.
//! - When the probe passes, and enough of the posts that ended meanwhile did, the answers were about the suspected leads themselves:
//!   each is blamed once.
//! - The first probe after a systemic answer comes at once: if it was the lead's own fault, nothing is lost but one exchange.

// A new variant must be decided about, not swept up.
#![warn(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::Admission;
use crate::lead::LeadId;
use crate::reason::Reason;

/// How many suspected leads are remembered; more of them are no longer single leads at fault.
const MAX_SUSPECTS: usize = 100;

/// So few suspects are single leads if as many posts passed; more are, only if that many times as many passed. Something that
/// refuses one post in two is the system's fault.
const FEW: usize = 3;
const RARE: usize = 10;

/// A change is told when the probe ends; until then it is looked at this often.
const PROBE_CHECK: Duration = Duration::from_secs(1);

/// How a post ended, as far as the circuit is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The API works: it took the lead, has it, or refuses this one.
    Passed,
    /// It did not work: busy, away, or no answer.
    Failed(Reason),
    /// The answer speaks of the set-up.
    Suspect(LeadId, Reason),
    /// There is no token to post with.
    NoToken(Reason),
    /// It says nothing about the API.
    Nothing,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Posts are paused.
    Opened(Reason),
    /// Posts go on.
    Closed {
        /// After so long.
        after: Duration,
        /// It was these leads' own fault.
        blamed: Vec<LeadId>,
    },
    /// A probe failed; the next comes after this.
    StillOpen(Duration, Reason),
}

/// The circuit in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Leads flow.
    Closed,
    /// Leads wait.
    Open,
    /// One lead is on its way to find out.
    Probing,
}

impl CircuitState {
    /// All states.
    pub const ALL: [CircuitState; 3] = [CircuitState::Closed, CircuitState::Open, CircuitState::Probing];

    /// The state as it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            CircuitState::Closed => "closed",
            CircuitState::Open => "open",
            CircuitState::Probing => "probing",
        }
    }
}

#[derive(Debug)]
pub(super) struct Circuit {
    open_after: u32,
    probe_initial: Duration,
    probe_max: Duration,
    /// Failures in a row while closed.
    failures: u32,
    episode: Option<Episode>,
}

/// From when the circuit opened to when it closes.
#[derive(Debug)]
struct Episode {
    cause: Reason,
    since: Instant,
    probe_at: Instant,
    interval: Duration,
    probing: bool,
    suspects: Vec<LeadId>,
    suspected: usize,
    passed: usize,
}

impl Circuit {
    pub(super) fn new(open_after: u32, probe_initial: Duration, probe_max: Duration) -> Self {
        Self { open_after, probe_initial, probe_max, failures: 0, episode: None }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.episode.is_none()
    }

    pub(super) fn cause(&self) -> Option<&Reason> {
        self.episode.as_ref().map(|episode| &episode.cause)
    }

    pub(super) fn state(&self) -> CircuitState {
        match &self.episode {
            None => CircuitState::Closed,
            Some(episode) if episode.probing => CircuitState::Probing,
            Some(_) => CircuitState::Open,
        }
    }

    pub(super) fn admission(&self, now: Instant) -> Admission {
        match &self.episode {
            None => Admission::Flow,
            Some(episode) if episode.probing => Admission::Wait(now + PROBE_CHECK),
            Some(episode) if now >= episode.probe_at => Admission::Probe(episode.suspects.clone()),
            Some(episode) => Admission::Wait(episode.probe_at),
        }
    }

    pub(super) fn begin_probe(&mut self) {
        if let Some(episode) = &mut self.episode {
            episode.probing = true;
        }
    }

    /// No lead was found to probe with: look again after the interval, which does not grow for it.
    pub(super) fn abandon_probe(&mut self, now: Instant) {
        if let Some(episode) = &mut self.episode {
            episode.probing = false;
            episode.probe_at = now + episode.interval;
        }
    }

    pub(super) fn record(&mut self, signal: Signal, is_probe: bool, now: Instant) -> Option<Change> {
        match &mut self.episode {
            // Closed -> (Closed | Open)
            None => {
                let (cause, first_probe, suspect) = match signal {
                    Signal::Passed => {
                        self.failures = 0;
                        return None;
                    }
                    Signal::Nothing => return None,
                    Signal::Failed(reason) => {
                        self.failures += 1;
                        if self.failures < self.open_after {
                            return None;
                        }
                        (reason, now + self.probe_initial, None)
                    }
                    Signal::NoToken(reason) => (reason, now + self.probe_initial, None),
                    Signal::Suspect(lead, reason) => (reason, now, Some(lead)),
                };
                self.failures = 0;
                self.episode = Some(Episode {
                    cause: cause.clone(),
                    since: now,
                    probe_at: first_probe,
                    interval: self.probe_initial,
                    probing: false,
                    suspected: suspect.iter().len(),
                    suspects: suspect.into_iter().collect(),
                    passed: 0,
                });
                Some(Change::Opened(cause))
            }
            // Open, a post that was under way ended
            Some(episode) if !is_probe => {
                episode.note(&signal);
                None
            }
            // Probing -> (Closed | Open)
            Some(episode) => {
                episode.note(&signal);
                episode.probing = false;
                match signal {
                    Signal::Passed => {
                        let few = episode.suspected <= FEW && episode.passed >= episode.suspected;
                        let rare = episode.suspected <= MAX_SUSPECTS && episode.passed >= RARE * episode.suspected;
                        let most_passed = few || rare;
                        let blamed = if most_passed { std::mem::take(&mut episode.suspects) } else { Vec::new() };
                        let after = now.saturating_duration_since(episode.since);
                        self.episode = None;
                        Some(Change::Closed { after, blamed })
                    }
                    Signal::Nothing => {
                        episode.probe_at = now + episode.interval;
                        None
                    }
                    Signal::Failed(reason) | Signal::Suspect(_, reason) | Signal::NoToken(reason) => {
                        let pause = episode.interval;
                        episode.probe_at = now + pause;
                        episode.interval = (episode.interval * 2).min(self.probe_max);
                        episode.cause = reason.clone();
                        Some(Change::StillOpen(pause, reason))
                    }
                }
            }
        }
    }
}

impl Episode {
    fn note(&mut self, signal: &Signal) {
        match signal {
            Signal::Passed => self.passed += 1,
            Signal::Suspect(lead, _) if !self.suspects.contains(lead) => {
                self.suspected += 1;
                if self.suspects.len() < MAX_SUSPECTS {
                    self.suspects.push(*lead);
                }
            }
            Signal::Suspect(..) | Signal::Failed(_) | Signal::NoToken(_) | Signal::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(8);

    fn circuit() -> Circuit {
        Circuit::new(3, INITIAL, MAX)
    }

    fn lead(n: u8) -> LeadId {
        LeadId::of_content(&[n])
    }

    fn reason() -> Reason {
        Reason::new("http_403", "forbidden")
    }

    fn suspect(n: u8) -> Signal {
        Signal::Suspect(lead(n), reason())
    }

    #[test]
    fn a_systemic_answer_opens_it_and_another_lead_probes_at_once() {
        let now = Instant::now();
        let mut circuit = circuit();
        assert_eq!(circuit.record(suspect(1), false, now), Some(Change::Opened(reason())));
        assert_eq!(circuit.admission(now), Admission::Probe(vec![lead(1)]));
        circuit.begin_probe();
        assert!(matches!(circuit.admission(now), Admission::Wait(_)), "one probe at a time");
    }

    #[test]
    fn when_another_lead_passes_the_suspect_is_blamed() {
        let now = Instant::now();
        let mut circuit = circuit();
        circuit.record(suspect(1), false, now);
        circuit.begin_probe();
        let change = circuit.record(Signal::Passed, true, now + INITIAL);
        assert_eq!(change, Some(Change::Closed { after: INITIAL, blamed: vec![lead(1)] }));
        assert_eq!(circuit.admission(now), Admission::Flow);
    }

    #[test]
    fn when_most_answers_were_systemic_no_lead_is_blamed() {
        let now = Instant::now();
        let mut circuit = circuit();
        for n in 1..=5 {
            circuit.record(suspect(n), false, now);
        }
        circuit.record(Signal::Passed, false, now);
        circuit.begin_probe();
        let change = circuit.record(Signal::Passed, true, now);
        assert_eq!(change, Some(Change::Closed { after: Duration::ZERO, blamed: Vec::new() }));
    }

    #[test]
    fn probes_come_at_growing_intervals_up_to_the_maximum() {
        let mut now = Instant::now();
        let mut circuit = circuit();
        circuit.record(suspect(1), false, now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert!(matches!(circuit.admission(now), Admission::Probe(_)));
            circuit.begin_probe();
            circuit.record(suspect(2), true, now);
            let Admission::Wait(until) = circuit.admission(now) else { panic!("must wait") };
            waits.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(waits, [1, 2, 4, 8, 8, 8]);
    }

    #[test]
    fn a_run_of_failures_opens_it_and_a_success_in_between_does_not() {
        let now = Instant::now();
        let mut circuit = circuit();
        let failed = || Signal::Failed(Reason::new("timeout", "no answer"));
        for signal in [failed(), failed(), Signal::Passed, failed(), failed()] {
            assert_eq!(circuit.record(signal, false, now), None);
        }
        assert!(matches!(circuit.record(failed(), false, now), Some(Change::Opened(_))));
        assert_eq!(circuit.admission(now), Admission::Wait(now + INITIAL), "no use in asking at once");
    }

    #[test]
    fn what_was_under_way_does_not_close_it() {
        let now = Instant::now();
        let mut circuit = circuit();
        circuit.record(suspect(1), false, now);
        assert_eq!(circuit.record(Signal::Passed, false, now), None);
        assert_eq!(circuit.state(), CircuitState::Open);
    }

    #[test]
    fn a_probe_without_a_lead_is_tried_again_after_the_interval() {
        let now = Instant::now();
        let mut circuit = circuit();
        circuit.record(suspect(1), false, now);
        circuit.begin_probe();
        circuit.abandon_probe(now);
        assert_eq!(circuit.admission(now), Admission::Wait(now + INITIAL));
    }
}
