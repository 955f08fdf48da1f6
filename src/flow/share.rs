//! A worker's share of the rate limit: the limit, divided among the workers of the destination that were seen of late.
//!
//! # Rules
//! - A worker that comes to others waits until they have heard of it and take less. One that is alone begins at once; of several that come
//!   at a time only one can find itself alone, as who comes is counted after the heartbeat is committed.
//! - A worker that was out of sight for so long that others may have its share waits like one that comes, also when it finds itself alone:
//!   when Postgres was away, all come back one after the other.
//! - Before its first heartbeat a worker has no share. After that it keeps the last one, however heartbeats fail, and need not stop itself:
//!   one that cannot write its heartbeat cannot accept or claim leads either, and all that it posts was reserved before that. Where
//!   heartbeats come too late because Postgres is slow, so do commits, and for each a tenth of a second's share is saved up at most. One that
//!   alone was cut off for long may use it until the first heartbeat after that.

use std::time::Duration;

use tokio::time::Instant;

use super::rate::Rate;

/// Between two heartbeats of workers that share a limit, a tenth more or less.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// A worker that was not seen for so long has no share: three heartbeats, and some time for a slow one.
pub const SEEN_WITHIN: Duration = Duration::from_millis(3_500);

/// So long after a worker was seen first, the others have had a heartbeat, also a slow one.
const KNOWN_AFTER: Duration = Duration::from_millis(1_500);

/// A share of a rate limit.
#[derive(Debug)]
pub(super) struct Share {
    limit: f64,
    rate: Rate,
    seen_at: Option<Instant>,
    begins_at: Instant,
}

impl Share {
    /// None yet, of this limit.
    pub(super) fn new(limit: f64, now: Instant) -> Self {
        Self { limit, rate: Rate::new(0.0, now), seen_at: None, begins_at: now }
    }

    /// How much it is; 0 before the first heartbeat.
    pub(super) fn per_s(&self) -> f64 {
        self.rate.per_s()
    }

    /// A heartbeat that began at `asked_at` has been written, and found so many workers, this one included. Whether that makes a difference.
    pub(super) fn seen(&mut self, workers: u32, asked_at: Instant, now: Instant) -> bool {
        let is_to_wait = match self.seen_at.replace(asked_at) {
            None => workers > 1,
            Some(before) => now.saturating_duration_since(before) > SEEN_WITHIN,
        };
        // One that took so long may be forgotten before the next one comes.
        let is_late = now.saturating_duration_since(asked_at) + KNOWN_AFTER > SEEN_WITHIN;
        let is_to_wait = is_to_wait || is_late;
        if is_to_wait {
            self.begins_at = now + KNOWN_AFTER;
        }
        let before = self.per_s();
        self.rate.set(self.limit / f64::from(workers.max(1)), now);
        is_to_wait || self.per_s() != before
    }

    /// Takes up to `wanted`; when there is none, says when to ask again.
    pub(super) fn reserve(&mut self, wanted: usize, now: Instant) -> Result<usize, Instant> {
        match self.seen_at {
            None => Err(now + HEARTBEAT),
            Some(_) if now < self.begins_at => Err(self.begins_at),
            Some(_) => self.rate.reserve(wanted, now),
        }
    }

    pub(super) fn give_back(&mut self, unused: usize) {
        self.rate.give_back(unused);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: f64 = 300.0;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn there_is_no_share_before_the_first_heartbeat_and_who_is_alone_begins_with_it() {
        let start = Instant::now();
        let mut share = Share::new(LIMIT, start);
        assert_eq!(share.reserve(1, start + ms(900)), Err(start + ms(900) + HEARTBEAT));
        assert!(share.seen(1, start + ms(900), start + ms(1_000)));
        assert!(share.reserve(1, start + ms(1_000)).is_ok());
        assert!(!share.seen(1, start + ms(2_000), start + ms(2_000)), "nothing is new");
    }

    #[test]
    fn who_comes_to_others_or_was_out_of_sight_waits_until_they_know_of_it() {
        let start = Instant::now();
        let mut share = Share::new(LIMIT, start);
        assert!(share.seen(3, start, start));
        assert_eq!(share.reserve(1, start + ms(1_499)), Err(start + KNOWN_AFTER));
        assert!(share.reserve(1, start + KNOWN_AFTER).is_ok());
        // Two heartbeats in a row may be missed.
        assert!(!share.seen(3, start + ms(3_300), start + ms(3_400)));
        assert!(share.reserve(1, start + ms(3_400)).is_ok());
        let back = start + ms(3_300) + SEEN_WITHIN + ms(1);
        assert!(share.seen(1, back, back));
        assert_eq!(share.reserve(1, back), Err(back + KNOWN_AFTER));
        let mut late = Share::new(LIMIT, start);
        assert!(late.seen(1, start, start + ms(2_100)));
        assert_eq!(late.reserve(1, start + ms(2_100)), Err(start + ms(2_100) + KNOWN_AFTER));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Comes,
        Leaves(usize),
        Dies(usize),
        Freezes(usize, u64),
        /// Nobody reaches Postgres for so many milliseconds.
        Outage(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => Just(Event::Comes),
            1 => (0..8_usize).prop_map(Event::Leaves),
            2 => (0..8_usize).prop_map(Event::Dies),
            1 => (0..8_usize, 0..9_000_u64).prop_map(|(who, ms)| Event::Freezes(who, ms)),
            1 => (0..9_000_u64).prop_map(Event::Outage),
        ]
    }

    /// A worker that takes all that it may have.
    struct Worker {
        share: Share,
        row: usize,
        beats_at: u64,
        /// When its heartbeat began, and when that is answered.
        beating: Option<(u64, u64)>,
        frozen_until: u64,
    }

    /// Workers and their rows, in steps.
    struct World {
        start: Instant,
        now: u64,
        /// When each was seen last.
        rows: Vec<Option<u64>>,
        workers: Vec<Worker>,
        outage_until: u64,
        random: fastrand::Rng,
        /// What all of them took in each step.
        taken: Vec<usize>,
    }

    impl World {
        const STEP: u64 = 20;

        fn happens(&mut self, event: &Event) {
            let who = |n: usize, of: &[Worker]| (!of.is_empty()).then(|| n % of.len());
            match *event {
                Event::Comes => {
                    let share = Share::new(LIMIT, self.start + ms(self.now));
                    let row = self.rows.len();
                    self.rows.push(None);
                    let (beating, frozen_until) = (None, 0);
                    self.workers.push(Worker { share, row, beats_at: self.now, beating, frozen_until });
                }
                Event::Leaves(n) | Event::Dies(n) => {
                    let Some(who) = who(n, &self.workers) else { return };
                    let worker = self.workers.swap_remove(who);
                    if matches!(event, Event::Leaves(_)) {
                        self.rows[worker.row] = None;
                    }
                }
                Event::Freezes(n, ms) => {
                    let Some(who) = who(n, &self.workers) else { return };
                    self.workers[who].frozen_until = self.now + ms;
                }
                Event::Outage(ms) => self.outage_until = self.now + ms,
            }
        }

        fn step(&mut self) {
            let mut taken = 0;
            let (start, now) = (self.start, self.now);
            let is_away = now < self.outage_until;
            for worker in self.workers.iter_mut().filter(|worker| worker.frozen_until <= now) {
                if is_away {
                    worker.beating = None;
                    continue;
                }
                if let Some((asked_at, _)) = worker.beating.filter(|(_, answered_at)| *answered_at <= now) {
                    let is_seen = |seen: &Option<u64>| seen.is_some_and(|at| ms(now - at) < SEEN_WITHIN);
                    let others = self.rows.iter().enumerate().filter(|(row, seen)| *row != worker.row && is_seen(seen));
                    let workers = 1 + u32::try_from(others.count()).unwrap();
                    worker.share.seen(workers, start + ms(asked_at), start + ms(now));
                    worker.beating = None;
                    worker.beats_at = now + self.random.u64(900..=1_100);
                }
                if worker.beating.is_none() && worker.beats_at <= now {
                    self.rows[worker.row] = Some(now);
                    worker.beating = Some((now, now + self.random.u64(0..=200)));
                }
                taken += worker.share.reserve(1_000, start + ms(now)).unwrap_or(0);
            }
            self.taken.push(taken);
            self.now += Self::STEP;
        }

        fn pass(&mut self, time: u64) {
            let until = self.now + time;
            while self.now < until {
                self.step();
            }
        }
    }

    #[test]
    fn shares_of_workers_that_come_and_go_come_to_the_limit_and_never_to_more() {
        proptest!(|(events in proptest::collection::vec((0..4_000_u64, event()), 1..15), seed: u64)| {
            let random = fastrand::Rng::with_seed(seed);
            let (rows, workers, taken) = (Vec::new(), Vec::new(), Vec::new());
            let mut world = World { start: Instant::now(), now: 0, rows, workers, outage_until: 0, random, taken };
            world.happens(&Event::Comes);
            for (pause, event) in &events {
                world.pass(*pause);
                world.happens(event);
            }
            // Everybody is back, and has been seen or missed.
            world.pass(9_000 + 2 * 3_500);
            let steps = usize::try_from(1_000 / World::STEP).unwrap();
            let most = world.taken.windows(steps).map(|second| second.iter().sum::<usize>()).max().unwrap_or(0);
            // Besides a burst, what one that was frozen takes until its heartbeat is answered.
            prop_assert!(most as f64 <= LIMIT * (1.0 + 0.1 + 0.25) + events.len() as f64, "{most} within a second");
            let before = world.taken.len();
            world.pass(5_000);
            let share = world.taken[before..].iter().sum::<usize>() as f64 / (5.0 * LIMIT);
            prop_assert!(world.workers.is_empty() || (0.95..=1.05).contains(&share), "{share} of the limit");
        });
    }
}
