//! A rate limit: a bucket that fills evenly and holds one, and a tenth of a second's worth.

use std::time::Duration;

use tokio::time::Instant;

/// How much may be saved up beyond the next one: what falls due while one batch is being accepted, or who waits wakes up late.
const BURST_S: f64 = 0.1;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Rate {
    per_s: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Rate {
    pub(super) fn new(per_s: f64, now: Instant) -> Self {
        Self { per_s, tokens: 1.0, filled_at: now }
    }

    pub(super) fn per_s(&self) -> f64 {
        self.per_s
    }

    pub(super) fn set(&mut self, per_s: f64, now: Instant) {
        self.fill(now);
        self.per_s = per_s;
    }

    /// Takes up to `wanted`; when there is none, says from when there is one.
    pub(super) fn reserve(&mut self, wanted: usize, now: Instant) -> Result<usize, Instant> {
        self.fill(now);
        if self.tokens < 1.0 {
            let missing = (1.0 - self.tokens) / self.per_s;
            return Err(now + Duration::try_from_secs_f64(missing).unwrap_or(Duration::from_secs(3600)));
        }
        let taken = wanted.min(self.tokens as usize);
        self.tokens -= taken as f64;
        Ok(taken)
    }

    pub(super) fn give_back(&mut self, unused: usize) {
        self.tokens += unused as f64;
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.tokens = (self.tokens + passed * self.per_s).min(1.0 + self.per_s * BURST_S);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn over_any_time_no_more_is_taken_than_the_rate_and_one_burst() {
        proptest!(|(per_s in 0.5..5_000.0_f64, steps in proptest::collection::vec((0..200_u64, 1..500_usize), 1..200))| {
            let start = Instant::now();
            let mut now = start;
            let mut rate = Rate::new(per_s, start);
            let mut taken = 0;
            for (pause_ms, wanted) in steps {
                now += Duration::from_millis(pause_ms);
                match rate.reserve(wanted, now) {
                    Ok(n) => taken += n,
                    Err(at) => prop_assert!(at > now),
                }
            }
            let most = per_s * (now - start).as_secs_f64() + 1.0 + per_s * BURST_S;
            prop_assert!(taken as f64 <= most, "{taken} > {most}");
        });
    }

    #[test]
    fn waiting_as_told_is_enough_and_what_is_given_back_can_be_taken_again() {
        let start = Instant::now();
        let mut rate = Rate::new(2.0, start);
        assert_eq!(rate.reserve(10, start), Ok(1));
        let at = rate.reserve(1, start).expect_err("used up");
        assert_eq!(at - start, Duration::from_millis(500));
        assert_eq!(rate.reserve(1, at), Ok(1));
        rate.give_back(1);
        assert_eq!(rate.reserve(1, at), Ok(1));
    }

    #[test]
    fn who_comes_late_by_less_than_a_tenth_of_a_second_loses_nothing() {
        for per_s in [0.5, 9.0, 40.0] {
            let start = Instant::now();
            let mut now = start;
            let mut rate = Rate::new(per_s, start);
            let mut taken = 0;
            for _ in 0..200 {
                match rate.reserve(1_000, now) {
                    Ok(n) => taken += n,
                    Err(at) => now = at + Duration::from_millis(95),
                }
            }
            let due = per_s * (now - start).as_secs_f64();
            assert!((due - 5.0..=due + 1.0).contains(&(taken as f64)), "{taken} of {due}");
        }
    }

    #[test]
    fn another_rate_is_one_from_now_on() {
        let start = Instant::now();
        let mut rate = Rate::new(10.0, start);
        assert_eq!(rate.reserve(1, start), Ok(1));
        let later = start + Duration::from_millis(50);
        rate.set(1.0, later);
        let at = rate.reserve(1, later).expect_err("half of one is there");
        assert_eq!(at - later, Duration::from_millis(500));
    }
}
