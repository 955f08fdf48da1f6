//! The rate limits of an API, without timers: an even pace, and a most per minute.

use std::collections::VecDeque;

/// An even pace, as the generic cell rate algorithm: one number of state.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all requests so far would have been due at an even pace, in microseconds.
    due_us: u64,
}

impl Pace {
    /// Admits a request at `now_us` if no more than `per_s` come in a second, a burst of one second's worth included.
    ///
    /// # Errors
    /// The whole seconds after which it may come again.
    pub(super) fn admit(&mut self, now_us: u64, per_s: u32) -> Result<(), u64> {
        const BURST_US: u64 = 1_000_000;
        let due = self.due_us.max(now_us) + BURST_US / u64::from(per_s.max(1));
        let ahead = due - now_us;
        if ahead <= BURST_US {
            self.due_us = due;
            Ok(())
        } else {
            Err((ahead - BURST_US).div_ceil(1_000_000))
        }
    }
}

/// What came in the last minute.
#[derive(Debug, Default)]
pub(super) struct Minute {
    /// When each request came that was admitted, in microseconds.
    admitted: VecDeque<u64>,
}

impl Minute {
    /// Admits a request at `now_us` unless `most` have been admitted in the minute before it. A refused one does not
    /// count.
    pub(super) fn admit(&mut self, now_us: u64, most: u32) -> bool {
        const MINUTE_US: u64 = 60_000_000;
        while self.admitted.front().is_some_and(|then| then + MINUTE_US <= now_us) {
            self.admitted.pop_front();
        }
        let admitted = self.admitted.len() < usize::try_from(most).unwrap_or(usize::MAX);
        if admitted {
            self.admitted.push_back(now_us);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_has_more_than_the_most_however_it_is_cut_out() {
        let mut minute = Minute::default();
        let mut passed =
            |second: u64, requests: usize| (0..requests).filter(|_| minute.admit(second * 1_000_000, 100)).count();
        assert_eq!(passed(0, 60), 60);
        assert_eq!(passed(59, 60), 40);
        assert_eq!(passed(59, 60), 0);
        assert_eq!(passed(60, 100), 60);
        assert_eq!(passed(118, 100), 0);
        assert_eq!(passed(119, 100), 40);
    }

    #[test]
    fn a_burst_of_one_seconds_worth_passes_and_then_an_even_pace() {
        let mut pace = Pace::default();
        let mut passed =
            |now_us: u64, requests: usize| (0..requests).filter(|_| pace.admit(now_us, 10).is_ok()).count();
        assert_eq!(passed(5_000_000, 50), 10);
        assert_eq!(passed(5_100_000, 50), 1);
        assert_eq!(passed(5_500_000, 50), 4);
        assert_eq!(passed(9_000_000, 50), 10);
    }

    #[test]
    fn the_refusal_says_when_to_come_again() {
        let mut pace = Pace::default();
        assert_eq!(pace.admit(0, 1), Ok(()));
        assert_eq!(pace.admit(0, 1), Err(1));
        assert_eq!(pace.admit(1_000_000, 1), Ok(()));
    }
}
