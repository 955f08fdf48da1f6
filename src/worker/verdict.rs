//! From an outcome to what is next for the lead. Pure.

// A new variant must be decided about, not swept up.
#![warn(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use crate::config::{OnUncertain, Settings};
use crate::destination::Outcome;
use crate::lead::Violation;
use crate::ledger::{End, LeadState, Next};
use crate::reason::{Reason, one_line};
use crate::schedule::Schedule;

/// At so many suspicions a lead is rejected.
pub(super) const MAX_SUSPICIONS: u32 = 3;

/// What decides about leads besides the answers.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) schedule: Schedule,
    pub(super) max_attempts: u32,
    pub(super) max_age: Option<Duration>,
    pub(super) on_uncertain: OnUncertain,
}

/// What is known of the lead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// How many attempts count, this one included if it does.
    pub(super) charged: u32,
    /// How old it is.
    pub(super) age: Duration,
}

impl Policy {
    pub(super) fn of(settings: &Settings) -> Self {
        let retry = &settings.retry;
        Self {
            schedule: Schedule::of(retry),
            max_attempts: retry.max_attempts,
            max_age: (retry.max_age_ms > 0).then(|| Duration::from_millis(retry.max_age_ms)),
            on_uncertain: settings.destination.on_uncertain,
        }
    }

    /// Whether an attempt with this outcome counts towards the lead's budget. A fault of the system does not.
    pub(super) fn charges(outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Delivered(_)
            | Outcome::Duplicate(_)
            | Outcome::Rejected(_)
            | Outcome::Retry(..)
            | Outcome::Uncertain(_) => true,
            Outcome::Unauthorized(_)
            | Outcome::Systemic(_)
            | Outcome::NotSent(_)
            | Outcome::Reconciled(..)
            | Outcome::Absent(_) => false,
        }
    }

    /// What is next for a lead that may have been posted, after a question that got no clear answer: asked again later, and at the
    /// end of its age a person's to decide. Nothing was posted, so nothing counts.
    pub(super) fn next_of_query(&self, outcome: &Outcome, facts: Facts, requests: u32, random: f64) -> Next {
        let (reason, at_least) = match outcome {
            Outcome::Retry(reason, wait) => (reason, wait.unwrap_or(Duration::ZERO)),
            Outcome::Unauthorized(reason) | Outcome::Systemic(reason) | Outcome::NotSent(reason) => {
                (reason, Duration::ZERO)
            }
            // A clear answer.
            Outcome::Delivered(_)
            | Outcome::Duplicate(_)
            | Outcome::Rejected(_)
            | Outcome::Uncertain(_)
            | Outcome::Reconciled(..)
            | Outcome::Absent(_) => return self.next(outcome, facts, random),
        };
        let delay = self.schedule.delay(requests, random).max(at_least);
        if self.max_age.is_some_and(|max_age| facts.age + delay > max_age) {
            return end(
                LeadState::Uncertain,
                &reason.preceded_by("it may have been posted, and could not be asked for"),
            );
        }
        again(delay, reason)
    }

    /// How a lead ends that may have been posted, and that today's settings find invalid: a person has to look.
    pub(super) fn doubtful(violations: &[Violation]) -> End {
        let wrong: Vec<&str> = violations.iter().map(|violation| violation.message.as_str()).collect();
        let text = format!("it may have been posted, and is not valid any more: {}", wrong.join("; "));
        End {
            state: Some(LeadState::Uncertain),
            code: Some("invalid".to_owned()),
            reason: Some(one_line(&text)),
            ..End::default()
        }
    }

    /// What is next. `random` is a number in `[0, 1)`.
    pub(super) fn next(&self, outcome: &Outcome, facts: Facts, random: f64) -> Next {
        match outcome {
            Outcome::Delivered(receipt) => Next::End(End { receipt: Some(receipt.clone()), ..End::default() }),
            Outcome::Reconciled(receipt, reason) => Next::End(End {
                receipt: Some(receipt.clone()),
                code: Some(reason.code.to_string()),
                reason: Some(reason.text.clone()),
                ..End::default()
            }),
            Outcome::Duplicate(reason) => end(LeadState::Duplicate, reason),
            Outcome::Rejected(reason) => end(LeadState::Rejected, reason),
            // After Absent a post follows under the same lease; what is next is that post's to say.
            Outcome::Absent(reason)
            | Outcome::Unauthorized(reason)
            | Outcome::Systemic(reason)
            | Outcome::NotSent(reason) => again(self.schedule.delay(facts.charged + 1, random), reason),
            Outcome::Retry(reason, wait) => self.retry(reason, facts, wait.unwrap_or(Duration::ZERO), random),
            Outcome::Uncertain(reason) => match self.on_uncertain {
                OnUncertain::Hold => end(LeadState::Uncertain, reason),
                OnUncertain::Retry => self.retry(reason, facts, Duration::ZERO, random),
            },
        }
    }

    /// Why a lead that met systemic answers while others passed is given up.
    pub(super) fn blamed() -> End {
        let text = format!("met answers that speak of the set-up {MAX_SUSPICIONS} times while other leads passed");
        End {
            state: Some(LeadState::Rejected),
            code: Some("systemic_own_fault".to_owned()),
            reason: Some(text),
            ..End::default()
        }
    }

    fn retry(&self, reason: &Reason, facts: Facts, at_least: Duration, random: f64) -> Next {
        if facts.charged >= self.max_attempts {
            let words = format!("all {} attempts are used up; the last", self.max_attempts);
            return end(LeadState::Exhausted, &reason.preceded_by(&words));
        }
        let delay = self.schedule.delay(facts.charged, random).max(at_least);
        if self.max_age.is_some_and(|max_age| facts.age + delay > max_age) {
            let words = "the next attempt would come after retry.max_age_ms; the last";
            return end(LeadState::Exhausted, &reason.preceded_by(words));
        }
        again(delay, reason)
    }
}

pub(super) fn again(after: Duration, reason: &Reason) -> Next {
    Next::Again { after, code: Some(reason.code.to_string()), reason: Some(reason.for_the_record()) }
}

fn end(state: LeadState, reason: &Reason) -> Next {
    Next::End(End {
        state: Some(state),
        code: Some(reason.code.to_string()),
        reason: Some(reason.for_the_record()),
        ..End::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            schedule: Schedule {
                initial: Duration::from_secs(10),
                multiplier: 2.0,
                max: Duration::from_secs(3600),
                jitter: 0.0,
            },
            max_attempts: 3,
            max_age: Some(Duration::from_secs(3600)),
            on_uncertain: OnUncertain::Retry,
        }
    }

    fn reason() -> Reason {
        Reason::new("http_503", "busy")
    }

    fn facts(charged: u32, age_s: u64) -> Facts {
        Facts { charged, age: Duration::from_secs(age_s) }
    }

    fn after(next: &Next) -> Option<u64> {
        match next {
            Next::Again { after, .. } => Some(after.as_secs()),
            Next::End(_) => None,
        }
    }

    #[test]
    fn retry_after_is_never_shortened_by_the_schedule_and_never_shortens_it() {
        let next = |wait| policy().next(&Outcome::Retry(reason(), Some(Duration::from_secs(wait))), facts(2, 0), 0.5);
        assert_eq!(after(&next(300)), Some(300));
        assert_eq!(after(&next(1)), Some(20));
    }

    #[test]
    fn the_last_attempt_exhausts_and_so_does_an_age_that_the_next_would_exceed() {
        let next = |facts| policy().next(&Outcome::Retry(reason(), None), facts, 0.5).state();
        assert_eq!(next(facts(2, 0)), LeadState::Pending);
        assert_eq!(next(facts(3, 0)), LeadState::Exhausted);
        assert_eq!(next(facts(1, 3595)), LeadState::Exhausted);
    }

    #[test]
    fn a_fault_of_the_system_is_not_charged_and_never_exhausts() {
        for outcome in [Outcome::Systemic(reason()), Outcome::NotSent(reason()), Outcome::Unauthorized(reason())] {
            assert!(!Policy::charges(&outcome));
            assert_eq!(policy().next(&outcome, facts(3, 100_000), 0.5).state(), LeadState::Pending);
        }
    }

    #[test]
    fn an_uncertain_attempt_is_retried_or_held_as_configured() {
        let outcome = Outcome::Uncertain(reason());
        assert!(Policy::charges(&outcome));
        assert_eq!(policy().next(&outcome, facts(1, 0), 0.5).state(), LeadState::Pending);
        let hold = Policy { on_uncertain: OnUncertain::Hold, ..policy() };
        assert_eq!(hold.next(&outcome, facts(1, 0), 0.5).state(), LeadState::Uncertain);
    }
}
