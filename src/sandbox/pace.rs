//! The rate limit of an API, as the generic cell rate algorithm: one number of state, no timers.

/// Decides whether a request is within the limit.
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

#[cfg(test)]
mod tests {
    use super::*;

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
