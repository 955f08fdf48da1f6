//! When to try again: the only place that names the `backoff` crate.
//!
//! The crate is used as a delay policy and nothing else. It is unmaintained (RUSTSEC-2025-0012, and RUSTSEC-2024-0384 for its
//! clock), without a known fault; exchanging it must touch this file alone. The state of a retry is in the ledger, not in
//! a policy object, so each delay is computed from the number of attempts made.

use std::time::Duration;

use crate::config::Retry;
use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// Exponential delays with jitter between the attempts of a lead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The delay after the first attempt, before jitter.
    pub initial: Duration,
    /// What each further delay is multiplied with.
    pub multiplier: f64,
    /// No delay is longer than this, before jitter.
    pub max: Duration,
    /// How far a delay is moved at random: 0.2 means within 20 % of it, either way.
    pub jitter: f64,
}

impl Schedule {
    /// The schedule of these settings.
    pub fn of(retry: &Retry) -> Self {
        Self {
            initial: Duration::from_millis(retry.initial_ms),
            multiplier: retry.multiplier,
            max: Duration::from_millis(retry.max_ms),
            jitter: retry.jitter,
        }
    }

    /// The delay after the `attempts`th attempt (1, 2, …); `random` is a number in `[0, 1)` and decides the jitter.
    ///
    /// The result lies within `jitter` of `min(initial * multiplier^(attempts - 1), max)`.
    #[must_use]
    pub fn delay(&self, attempts: u32, random: f64) -> Duration {
        let mut policy = ExponentialBackoff {
            initial_interval: self.initial,
            current_interval: self.initial.min(self.max),
            multiplier: self.multiplier,
            max_interval: self.max,
            // The crate would draw its own numbers; jitter is added below, from ours.
            randomization_factor: 0.0,
            // By default it gives up after 15 minutes.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        // The interval stands still once it has reached the maximum, so no more steps than that are needed.
        let steps = attempts.saturating_sub(1).min(self.steps_to_max());
        for _ in 0..steps {
            let _interval_before = policy.next_backoff();
        }
        let base = policy.current_interval.min(self.max);
        let factor = 1.0 + self.jitter * (random.clamp(0.0, 1.0) * 2.0 - 1.0);
        Duration::try_from_secs_f64(base.as_secs_f64() * factor).unwrap_or(self.max)
    }

    fn steps_to_max(&self) -> u32 {
        if self.multiplier <= 1.0 || self.initial.is_zero() {
            return 0;
        }
        let steps = (self.max.as_secs_f64() / self.initial.as_secs_f64()).ln() / self.multiplier.ln();
        if steps.is_finite() { steps.clamp(0.0, 10_000.0).ceil() as u32 + 1 } else { 10_000 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule() -> Schedule {
        Schedule { initial: Duration::from_secs(10), multiplier: 2.0, max: Duration::from_secs(3600), jitter: 0.2 }
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        let seconds: Vec<u64> = (1..=12).map(|attempt| schedule().delay(attempt, 0.5).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]);
    }

    #[test]
    fn at_the_defaults_a_destination_that_is_away_for_six_hours_exhausts_no_lead() {
        let retry = Retry::default();
        let schedule = Schedule::of(&retry);
        // The shortest that jitter can make it.
        let total: Duration = (1..retry.max_attempts).map(|attempt| schedule.delay(attempt, 0.0)).sum();
        assert!(total > Duration::from_secs(6 * 3600), "{total:?}");
        assert!(Duration::from_millis(retry.max_age_ms) > Duration::from_secs(6 * 3600));
    }

    proptest! {
        #[test]
        fn a_delay_stays_within_its_bounds(
            attempts in any::<u32>(), random in 0.0..1.0_f64, initial in 0..100_000_u64, max in 1..10_000_000_u64,
            multiplier in 1.0..10.0_f64, jitter in 0.0..1.0_f64,
        ) {
            let schedule =
                Schedule { initial: Duration::from_millis(initial), multiplier, max: Duration::from_millis(max), jitter };
            let delay = schedule.delay(attempts, random).as_secs_f64();
            let longest = (max as f64 / 1000.0) * (1.0 + jitter);
            let shortest = (initial.min(max) as f64 / 1000.0) * (1.0 - jitter);
            prop_assert!(delay <= longest + 1e-6, "{delay} > {longest}");
            prop_assert!(delay >= shortest - 1e-6, "{delay} < {shortest}");
        }

        #[test]
        fn without_jitter_no_delay_is_shorter_than_the_one_before(attempts in 1..200_u32) {
            let schedule = schedule();
            prop_assert!(schedule.delay(attempts, 0.5) <= schedule.delay(attempts + 1, 0.5));
        }
    }
}
