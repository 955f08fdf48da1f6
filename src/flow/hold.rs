//! For how long the destination is left alone. Pure: time enters as an argument.
//!
//! ```text
//!   the API says so ──> told ── a heartbeat begins ──> sharing ── it is written ──> shared <── what the ledger has by now
//! ```
//!
//! # Rules
//! - The ledger has the last word on what it was told: a hold that somebody has lifted there ends here, too, at the next heartbeat.
//! - What it was not told yet is nobody's to lift: a hold that is younger than the answer which a heartbeat got stays.
//! - Nobody is asked again too early for the time that a heartbeat takes: see [`Holds::seen`].
//! - What the token endpoint asked for is this worker's own.

use std::time::Duration;

use tokio::time::Instant;

/// The ends of all holds that are known.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// The API said so, and the ledger does not know.
    told: Option<Instant>,
    /// The API said so, and the ledger is being told.
    sharing: Option<Instant>,
    /// As the ledger has it.
    shared: Option<Instant>,
    /// The token endpoint said so.
    own: Option<Instant>,
    /// When the answer came that `shared` is of.
    seen_at: Option<Instant>,
}

impl Holds {
    /// When the last of them ends, if it has not.
    pub(super) fn end(&self, now: Instant) -> Option<Instant> {
        let Self { told, sharing, shared, own, seen_at: _ } = self;
        [told, sharing, shared, own].into_iter().flatten().copied().max().filter(|until| *until > now)
    }

    /// Whether it is the token endpoint alone that wants to be left alone.
    pub(super) fn is_own(&self, now: Instant) -> bool {
        let Self { told, sharing, shared, own: _, seen_at: _ } = self;
        [told, sharing, shared].into_iter().flatten().all(|until| *until <= now)
    }

    /// The API wants to be left alone until then, which others have to know.
    pub(super) fn tell(&mut self, until: Instant) {
        self.told = self.told.max(Some(until));
    }

    /// The token endpoint wants to be left alone until then.
    pub(super) fn tell_own(&mut self, until: Instant) {
        self.own = self.own.max(Some(until));
    }

    /// A heartbeat begins: what it has to tell the ledger.
    pub(super) fn share(&mut self, now: Instant) -> Option<Duration> {
        self.sharing = self.sharing.max(self.told.take());
        self.sharing.map(|until| until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    /// The heartbeat was written. One that was not is followed by another, which tells the same.
    pub(super) fn is_shared(&mut self) {
        self.shared = self.shared.max(self.sharing.take());
    }

    /// The ledger was asked at `asked_at` and has answered by `now`: for so long the destination is to be left alone, counted from some time between
    /// the two. How much sooner that ends than what was known.
    pub(super) fn seen(&mut self, hold: Option<Duration>, asked_at: Instant, now: Instant) -> Duration {
        let hold = hold.unwrap_or_default();
        let (earliest, latest) = (asked_at + hold, now + hold);
        // An answer that came since may know of a hold that this one does not.
        let may_shorten = self.seen_at.is_none_or(|seen_at| seen_at <= asked_at);
        let mut sooner = Duration::ZERO;
        match self.shared {
            Some(until) if until > latest && may_shorten => {
                sooner = until - latest;
                self.shared = Some(latest);
            }
            known if !hold.is_zero() => self.shared = known.max(Some(earliest)),
            _ => {}
        }
        self.seen_at = self.seen_at.max(Some(now));
        sooner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    /// A heartbeat that takes a second and finds the ledger like this.
    fn beat(holds: &mut Holds, at: Instant, found: Option<Duration>) -> Duration {
        holds.share(at);
        holds.is_shared();
        holds.seen(found, at, at + S)
    }

    #[test]
    fn a_hold_is_told_once_and_until_a_heartbeat_was_written() {
        let (now, mut holds) = (Instant::now(), Holds::default());
        assert_eq!((holds.end(now), holds.share(now)), (None, None));
        holds.tell(now + HOUR);
        assert_eq!(holds.share(now), Some(HOUR));
        assert_eq!(holds.share(now + S), Some(HOUR - S), "the first heartbeat was not written");
        holds.is_shared();
        assert_eq!((holds.share(now + S), holds.end(now + S)), (None, Some(now + HOUR)));
        assert_eq!(holds.end(now + HOUR), None, "it is over");
    }

    #[test]
    fn a_hold_that_is_gone_from_the_ledger_ends_and_one_that_is_there_does_not() {
        let (now, mut holds) = (Instant::now(), Holds::default());
        holds.tell(now + HOUR);
        assert_eq!(beat(&mut holds, now, Some(HOUR)), Duration::ZERO);
        assert_eq!(holds.end(now), Some(now + HOUR));
        let sooner = beat(&mut holds, now + 10 * S, None);
        assert_eq!((sooner, holds.end(now + 11 * S)), (HOUR - 11 * S, None));
        // A shorter one is there instead.
        holds.tell(now + HOUR);
        beat(&mut holds, now + 20 * S, Some(HOUR - 20 * S));
        beat(&mut holds, now + 30 * S, Some(60 * S));
        assert_eq!(holds.end(now + 31 * S), Some(now + 91 * S));
    }

    #[test]
    fn neither_the_time_that_a_heartbeat_takes_nor_a_slow_one_shortens_a_hold() {
        let (now, mut holds) = (Instant::now(), Holds::default());
        holds.tell(now + HOUR);
        // The ledger was read at some time in that second.
        for at in 0..100 {
            let at = now + S * at;
            for read in [Duration::ZERO, S / 2, S] {
                assert_eq!(beat(&mut holds, at, Some(now + HOUR - (at + read))), Duration::ZERO);
                assert_eq!(holds.end(at), Some(now + HOUR));
            }
        }
        // Another worker's is longer.
        beat(&mut holds, now, Some(2 * HOUR));
        assert_eq!(holds.end(now), Some(now + 2 * HOUR));
    }

    #[test]
    fn a_hold_that_is_younger_than_the_answer_stays_when_an_older_one_was_lifted() {
        let (now, mut holds) = (Instant::now(), Holds::default());
        holds.tell(now + HOUR);
        beat(&mut holds, now, Some(HOUR));
        // A heartbeat is under way when the API asks again, for less.
        assert_eq!(holds.share(now + 10 * S), None);
        holds.tell(now + 60 * S);
        holds.is_shared();
        holds.seen(None, now + 10 * S, now + 11 * S);
        assert_eq!(holds.end(now + 11 * S), Some(now + 60 * S));
        assert_eq!(holds.share(now + 11 * S), Some(49 * S), "and the next one tells of it");
        // One that could not be written takes nothing with it either.
        holds.seen(None, now + 12 * S, now + 13 * S);
        assert_eq!(holds.end(now + 13 * S), Some(now + 60 * S));
    }

    #[test]
    fn an_answer_that_another_has_overtaken_ends_nothing() {
        let (now, mut holds) = (Instant::now(), Holds::default());
        // Another worker's hold comes between the two answers; the first one arrives last.
        holds.seen(Some(HOUR), now + S, now + 2 * S);
        assert_eq!(holds.seen(None, now, now + 3 * S), Duration::ZERO);
        assert_eq!(holds.end(now + 3 * S), Some(now + S + HOUR));
        assert!(holds.seen(None, now + 3 * S, now + 4 * S) > Duration::ZERO);
    }

    #[test]
    fn what_the_token_endpoint_asked_for_is_neither_told_nor_lifted() {
        let (now, mut holds) = (Instant::now(), Holds::default());
        holds.tell_own(now + HOUR);
        assert_eq!(holds.share(now), None);
        holds.seen(None, now, now + S);
        assert_eq!(holds.end(now + S), Some(now + HOUR));
    }
}
