//! From where on, and from which end, pending leads are looked through for what is due.
//!
//! A lead that is leased or settled leaves a dead entry behind in the index of pending leads, at the time at which it was due. Postgres passes over
//! dead entries quickly and clears them away, but not while a session holds an older snapshot (`leadpost verify`, an export, `pg_dump`): until that
//! ends, each look from the beginning reads every one of them, and its row. Measured in memory: 24 ms for 100,000, so a quarter of a second for a
//! million, by each worker, for each claim and each search for leases that ran out. So a worker remembers how far it has come.
//!
//! # The rule
//! - A look begins at a floor. Where the last one took all that it found, that is a [`MARGIN`] before the last one; where there was more than it
//!   took, at the newest that it took, in the order of being due.
//! - What can lie below the floor all the same: a time that was written late, by a transaction that took longer than the margin (leases and
//!   retries count from its start, a requeue's leads from the beginning of the whole requeue) or after somebody set the clock back or the time by
//!   hand; and what somebody else had locked when it was looked for.
//! - So now and then a look has no floor: after [`REST`] times as long as the last such look took, and at least every [`LONGEST`]. **No lead is found
//!   more than a minute later than without a floor.** While nothing stands in the way, a look takes a millisecond, and what lies below the floor is
//!   found a tenth of a second later; looks through a million dead entries take up a hundredth of the time.
//! - Where there was more than the last look took, half of the next one is taken newest first, so that what falls due now does not wait behind a
//!   million that fell due before it, nor those for ever behind what falls due. Between two looks without a floor, the newest are those that fell due
//!   since the last one, less the margin.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

/// Longer than a transaction takes that writes when a lead is due.
const MARGIN: Duration = Duration::from_secs(10);

/// So many times as long as a look without a floor takes, it is not repeated.
const REST: u32 = 100;

/// No longer than this.
const LONGEST: Duration = Duration::from_secs(60);

/// How far leads were looked through.
#[derive(Debug, Default)]
pub(super) struct Look(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Nothing is left before it; none before the first look.
    floor: Option<OffsetDateTime>,
    /// When it was looked last, less the margin.
    by: Option<OffsetDateTime>,
    /// Until when looks have a floor.
    until: Option<Instant>,
    /// Whether there was more than the last look took.
    is_more: bool,
    /// Which end gets the odd one.
    odd: bool,
}

/// A look that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    /// From then on, in the order of being due; `None`: from the beginning.
    pub(super) floor: Option<OffsetDateTime>,
    /// From then on, when the newest come first; `None`: from the beginning.
    pub(super) recent: Option<OffsetDateTime>,
    /// How many are taken newest first.
    pub(super) newest: usize,
    at: Instant,
}

/// What a look has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// When, by the database's clock: what was due by then could be seen.
    pub(super) at: OffsetDateTime,
    /// How long it took.
    pub(super) took: Duration,
    /// Whether there may be more.
    pub(super) is_more: bool,
    /// Of those that were taken in the order of being due, when the last one was.
    pub(super) last: Option<OffsetDateTime>,
}

impl Look {
    /// Begins a look for so many.
    pub(super) fn begin(&self, limit: usize, at: Instant) -> Begun {
        let mut seen = self.lock();
        let is_whole = seen.until.is_none_or(|until| until <= at);
        seen.odd = !seen.odd;
        Begun {
            floor: seen.floor.filter(|_| !is_whole),
            recent: seen.by.filter(|_| !is_whole),
            newest: if seen.is_more { (limit + usize::from(seen.odd)) / 2 } else { 0 },
            at,
        }
    }

    /// Takes in what was found, once that is committed.
    pub(super) fn end(&self, begun: Begun, found: Found) {
        let mut seen = self.lock();
        let by = found.at - MARGIN;
        seen.by = Some(by);
        seen.is_more = found.is_more;
        if !found.is_more {
            seen.floor = Some(by);
        } else if let Some(last) = found.last {
            seen.floor = Some(last.min(by));
        }
        // One that took only the newest has not looked at the other end.
        let was_whole = begun.floor.is_none() && (found.last.is_some() || !found.is_more);
        if was_whole {
            seen.until = Some(begun.at + (found.took * REST).min(LONGEST));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Begun {
    /// A look from the beginning, in the order of being due, of which nothing is remembered.
    pub(super) fn by_itself(at: Instant) -> Self {
        Self { floor: None, recent: None, newest: 0, at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn found(took_ms: u64, is_more: bool, last: Option<OffsetDateTime>) -> Found {
        Found { at: AT, took: Duration::from_millis(took_ms), is_more, last }
    }

    #[test]
    fn a_look_from_the_beginning_costs_a_hundredth_of_the_time_and_comes_every_minute() {
        let (look, mut now) = (Look::default(), Instant::now());
        for (took_ms, rest_ms) in [(1, 100), (240, 24_000), (10_000, 60_000)] {
            let begun = look.begin(10, now);
            assert_eq!((begun.floor, begun.recent), (None, None), "the first, and each that is due");
            look.end(begun, found(took_ms, false, None));
            let begun = look.begin(10, now + Duration::from_millis(rest_ms - 1));
            assert_eq!((begun.floor, begun.recent), (Some(AT - MARGIN), Some(AT - MARGIN)));
            look.end(begun, found(1, false, None));
            now += Duration::from_millis(rest_ms);
        }
        assert_eq!(look.begin(10, now).floor, None);
    }

    #[test]
    fn of_a_backlog_the_next_look_begins_where_the_last_one_stopped_and_never_later_than_the_margin() {
        let (look, now) = (Look::default(), Instant::now());
        let old = AT - Duration::from_secs(3600);
        look.end(look.begin(10, now), found(1_000, true, Some(old)));
        assert_eq!(look.begin(10, now).floor, Some(old));
        look.end(look.begin(10, now), found(1, true, None));
        assert_eq!(look.begin(10, now).floor, Some(old), "only the newest were taken");
        look.end(look.begin(10, now), found(1, true, Some(AT)));
        assert_eq!(look.begin(10, now).floor, Some(AT - MARGIN));
        let later = now + LONGEST;
        look.end(look.begin(1, later), found(1_000, true, None));
        assert_eq!(look.begin(1, later).floor, None, "the oldest were not looked at");
    }

    #[test]
    fn half_of_a_backlog_is_taken_newest_first_also_one_by_one() {
        let (look, now) = (Look::default(), Instant::now());
        assert_eq!(look.begin(10, now).newest, 0, "nothing is known of a backlog");
        look.end(look.begin(10, now), found(1, true, Some(AT)));
        let newest = |limit| (0..4).map(|_| look.begin(limit, now).newest).sum::<usize>();
        assert_eq!((newest(1), newest(10), newest(5)), (2, 20, 10));
        look.end(look.begin(10, now), found(1, false, None));
        assert_eq!(newest(10), 0);
    }
}
