//! How many posts may be under way: as many as the lead API can take, found out and never told.
//!
//! ```text
//!   posts under way
//!      │        ╭─ too much: 429, 503, no answer in time, or answers take twice as long
//!      │       ╱│      ╭────────╯ looks beyond the knee again, in steps that grow
//!      │      ╱ │  ╭───╯ stays a little below the knee
//!      │     ╱  ╰──╯ a tenth back
//!      │ ___╱
//!      └───────────────────────────────────> time
//! ```
//!
//! Additive increase and multiplicative decrease, as TCP has it, with two things added: where it was too much last time is remembered, as in
//! CUBIC (RFC 9438), so that most of the time is spent close to it; and a latency that rises is a sign as well, as in Vegas.
//!
//! # Rules
//! - Posts that began before a decrease say nothing about what holds after it: a hundred refusals at once are one sign.
//! - Nothing grows while leads do not need it: a limit that was never reached is a limit that nobody has tried.
//! - Latency that does not fall with the number of posts is not caused by it. It is the new normal, and the limit goes back to where it was.
//! - Pure: time enters as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// It begins with so many: hardly an API minds them, and a hundred leads a second need no more.
const INITIAL: f64 = 16.0;

/// What is left after a refusal close to the knee, and after one that comes as a surprise, or hard upon another.
const AFTER_REFUSAL: f64 = 0.9;
const AFTER_SURPRISE: f64 = 0.6;

/// What is left after a post without an answer: each of them costs a doubt.
const AFTER_SILENCE: f64 = 0.6;

/// How close below the knee it stays, and for how long, before it looks whether the knee has moved.
const PLATEAU: f64 = 0.97;
const PLATEAU_FOR: Duration = Duration::from_secs(20);

/// The steps in which it looks: of a hundredth, and each twice the one before, up to doubling.
const FIRST_STEP: f64 = 0.01;
const LAST_STEP: f64 = 1.0;

/// When answers take this much longer than at best, it is on its way to too much: the steps are no larger than this.
const SLOWER: f64 = 1.4;
const STEP_IF_SLOWER: f64 = 0.04;

/// Answers may take twice as long as they did at best and this much more, before that is a sign: a worker that is busy, and a
/// network, take their time as well.
const TOLERANCE: f64 = 2.0;
const SLACK: Duration = Duration::from_millis(20);

/// What is left after each sign of latency; and how little, before it is asked whether that has helped.
const AFTER_LATENCY: f64 = 0.8;
const TRIED: f64 = 0.55;

/// It has helped if answers take no more than this share of what they took.
const HELPED: f64 = 0.8;

/// A round of posts is looked at together: at least so many, for at least so long, and at least twice what one takes.
const ROUND_POSTS: u32 = 8;
const ROUND: Duration = Duration::from_millis(250);

/// How a post ended, as far as the limit is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// The API answered in its own time.
    Answered,
    /// It said that it was too much: 429, 503.
    Refused,
    /// It did not answer in time.
    Silent,
    /// It says nothing about the load.
    Unknown,
}

/// The limit and what is known of the API.
#[derive(Debug)]
pub(super) struct Limit {
    floor: f64,
    ceiling: f64,
    limit: f64,
    /// Where it was too much.
    knee: Option<f64>,
    /// By how much it grows after the next round beyond the knee.
    step: f64,
    /// From when the limit has been kept close to the knee.
    level_since: Option<Instant>,
    /// When it was lowered last, and whether all has been well for a round since.
    lowered_at: Option<Instant>,
    was_well: bool,
    /// How long a post takes when the API is at ease.
    at_ease: Option<Duration>,
    trial: Option<Trial>,
    round: Round,
}

/// The limit is being lowered to see whether that helps latency.
#[derive(Debug, Clone, Copy)]
struct Trial {
    from: f64,
    latency: Duration,
    /// The knee that was known before.
    knee: Option<f64>,
}

/// Posts that began and ended under one limit.
#[derive(Debug)]
struct Round {
    began: Instant,
    posts: u32,
    took: Duration,
    /// The most that were under way.
    most: usize,
}

impl Round {
    fn begin(now: Instant) -> Self {
        Self { began: now, posts: 0, took: Duration::ZERO, most: 0 }
    }

    fn latency(&self) -> Duration {
        self.took / self.posts.max(1)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.posts >= ROUND_POSTS && now.saturating_duration_since(self.began) >= ROUND.max(self.latency() * 2)
    }
}

impl Limit {
    pub(super) fn new(floor: usize, ceiling: usize, now: Instant) -> Self {
        let (floor, ceiling) = (floor.min(ceiling) as f64, ceiling as f64);
        Self {
            floor,
            ceiling,
            limit: INITIAL.clamp(floor, ceiling),
            knee: None,
            step: LAST_STEP,
            level_since: None,
            lowered_at: None,
            was_well: false,
            at_ease: None,
            trial: None,
            round: Round::begin(now),
        }
    }

    /// How many posts may be under way.
    pub(super) fn posts(&self) -> usize {
        self.limit as usize
    }

    /// Takes in how a post ended that began so long ago, while so many were under way, this one included.
    pub(super) fn record(&mut self, load: Load, took: Duration, under_way: usize, now: Instant) {
        let began = now.checked_sub(took).unwrap_or(now);
        match load {
            Load::Unknown => {}
            Load::Refused | Load::Silent => {
                if self.lowered_at.is_none_or(|lowered| began >= lowered) {
                    let left = match load {
                        Load::Silent => AFTER_SILENCE,
                        _ if self.knee.is_some() && self.was_well => AFTER_REFUSAL,
                        _ => AFTER_SURPRISE,
                    };
                    let knee = (under_way as f64).min(self.limit);
                    self.knee = Some(knee);
                    self.step = FIRST_STEP;
                    self.level_since = Some(now);
                    self.trial = None;
                    self.set(knee * left, now);
                }
            }
            Load::Answered => {
                self.round.most = self.round.most.max(under_way);
                if began >= self.round.began {
                    self.round.posts += 1;
                    self.round.took += took;
                }
                if self.round.is_over(now) {
                    self.end_round(now);
                }
            }
        }
    }

    fn end_round(&mut self, now: Instant) {
        let latency = self.round.latency();
        let is_used = self.round.most as f64 >= 0.9 * self.limit.floor();
        self.round = Round::begin(now);
        let at_ease = *self.at_ease.get_or_insert(latency);
        if latency > at_ease.mul_f64(TOLERANCE) + SLACK {
            self.is_slow(latency, now);
            return;
        }
        self.trial = None;
        self.was_well = true;
        if latency < at_ease {
            // One quick round may be chance.
            self.at_ease = Some((at_ease + latency) / 2);
        }
        if is_used {
            if latency > at_ease.mul_f64(SLOWER) + SLACK {
                self.step = self.step.min(STEP_IF_SLOWER);
            }
            self.grow(now);
        }
    }

    fn grow(&mut self, now: Instant) {
        let Some(knee) = self.knee else { return self.step_up(now) };
        let plateau = (knee * PLATEAU).max(self.floor);
        let since = *self.level_since.get_or_insert(now);
        if self.limit < plateau.floor() {
            // Most of the way at once.
            self.set((self.limit + (plateau - self.limit) / 2.0).max(self.limit + 1.0).min(plateau), now);
        } else if now.saturating_duration_since(since) >= PLATEAU_FOR {
            self.step_up(now);
        }
    }

    fn step_up(&mut self, now: Instant) {
        self.set((self.limit * (1.0 + self.step)).max(self.limit + 1.0), now);
        self.step = (self.step * 2.0).min(LAST_STEP);
    }

    /// Answers take long. Whether it is the load is seen when there is less of it.
    fn is_slow(&mut self, latency: Duration, now: Instant) {
        let trial = *self.trial.get_or_insert(Trial { from: self.limit, latency, knee: self.knee });
        if self.limit > (trial.from * TRIED).max(self.floor) {
            return self.lower_for_latency(now);
        }
        self.trial = None;
        if latency > trial.latency.mul_f64(HELPED) {
            // It is as slow with half as many posts.
            self.at_ease = Some(latency);
            self.knee = trial.knee;
            self.set(trial.from, now);
        } else {
            self.trial = Some(Trial { from: self.limit, latency, knee: self.knee });
            self.lower_for_latency(now);
        }
    }

    fn lower_for_latency(&mut self, now: Instant) {
        let left = self.limit * AFTER_LATENCY;
        // It stays there: closer, and answers would take too long again.
        self.knee = Some(left / PLATEAU);
        self.step = FIRST_STEP;
        self.level_since = Some(now);
        self.set(left, now);
    }

    fn set(&mut self, limit: f64, now: Instant) {
        let limit = limit.clamp(self.floor, self.ceiling);
        if limit < self.limit {
            self.lowered_at = Some(now);
            self.was_well = false;
        }
        self.limit = limit;
        // What began under another limit says nothing about this one.
        self.round = Round::begin(now);
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    /// What an API does with a post: how it ends, and after how long, with so many under way.
    type Api = dyn Fn(Duration, usize) -> (Load, Duration);

    /// Takes so many at a time and refuses the rest at once.
    fn refuses_above(capacity: usize, latency: Duration) -> impl Fn(Duration, usize) -> (Load, Duration) {
        move |_, under_way| if under_way > capacity { (Load::Refused, MS) } else { (Load::Answered, latency) }
    }

    /// Takes longer for each one beyond those that it can work on at a time.
    fn slows_above(knee: usize, latency: Duration) -> impl Fn(Duration, usize) -> (Load, Duration) {
        move |_, under_way| (Load::Answered, latency.mul_f64((under_way as f64 / knee as f64).max(1.0)))
    }

    struct Run {
        /// Posts that were answered from the one time to the other, per second.
        per_s: Box<dyn Fn(Duration, Duration) -> f64>,
        refused: usize,
        limits: Vec<(Duration, usize)>,
    }

    impl Run {
        fn limits_after(&self, since: Duration) -> (usize, usize) {
            let after = || self.limits.iter().filter(|(at, _)| *at >= since).map(|(_, limit)| *limit);
            (after().min().unwrap(), after().max().unwrap())
        }
    }

    /// Posts as fast as the limit allows.
    fn run(floor: usize, ceiling: usize, lasts: Duration, api: &Api) -> Run {
        let start = Instant::now();
        let mut limit = Limit::new(floor, ceiling, start);
        let mut ends = BinaryHeap::new();
        let mut now = Duration::ZERO;
        let (mut answered, mut refused, mut limits) = (Vec::new(), 0, Vec::new());
        while now < lasts {
            while ends.len() < limit.posts() {
                // They are not sent at the very same moment.
                let (load, took) = api(now, ends.len() + 1);
                let took = took.mul_f64(0.95 + 0.1 * ((ends.len() % 7) as f64 / 6.0));
                ends.push(Reverse((now + took, now, load as u8)));
            }
            let under_way = ends.len();
            let Reverse((end, began, load)) = ends.pop().unwrap();
            now = end;
            let load = if load == Load::Answered as u8 { Load::Answered } else { Load::Refused };
            match load {
                Load::Answered => answered.push(now),
                _ => refused += 1,
            }
            limit.record(load, end - began, under_way, start + now);
            limits.push((now, limit.posts()));
        }
        let per_s = move |from: Duration, to: Duration| {
            let n = answered.iter().filter(|at| **at >= from && **at < to).count();
            n as f64 / (to - from).as_secs_f64()
        };
        Run { per_s: Box::new(per_s), refused, limits }
    }

    #[test]
    fn with_no_limit_in_sight_it_climbs_to_the_ceiling_within_seconds() {
        let run = run(1, 1000, 10 * S, &|_, _| (Load::Answered, 100 * MS));
        let reached = run.limits.iter().find(|(_, limit)| *limit == 1000).unwrap().0;
        assert!(reached < 5 * S, "{reached:?}");
        assert_eq!(run.limits_after(reached), (1000, 1000));
    }

    #[test]
    fn at_an_api_that_refuses_it_comes_within_a_tenth_of_the_best_and_is_seldom_refused() {
        for (capacity, latency) in [(10, 100), (100, 20), (100, 100), (300, 500)] {
            let run = run(1, 1000, 120 * S, &refuses_above(capacity, latency * MS));
            let best = capacity as f64 / (latency as f64 / 1000.0);
            let (from, to) = if latency > 200 { (60 * S, 120 * S) } else { (30 * S, 60 * S) };
            let reached = (run.per_s)(from, to) / best;
            assert!(reached > 0.9, "capacity {capacity}, {latency} ms: {reached}");
            let sent = run.limits.len();
            assert!(run.refused * 50 < sent, "capacity {capacity}, {latency} ms: {} of {sent}", run.refused);
        }
    }

    #[test]
    fn at_an_api_that_slows_down_it_comes_within_a_tenth_of_the_best_and_answers_stay_quick() {
        for (knee, latency) in [(20, 50), (200, 100)] {
            let run = run(1, 1000, 90 * S, &slows_above(knee, latency * MS));
            let best = knee as f64 / (latency as f64 / 1000.0);
            let reached = (run.per_s)(30 * S, 60 * S) / best;
            assert!(reached > 0.9, "knee {knee}: {reached}");
            let (_, most) = run.limits_after(30 * S);
            assert!(most < 4 * knee, "knee {knee}: {most} under way");
        }
    }

    #[test]
    fn it_does_not_swing() {
        for api in [&refuses_above(100, 100 * MS) as &Api, &slows_above(100, 100 * MS)] {
            let run = run(1, 1000, 90 * S, api);
            let (least, most) = run.limits_after(30 * S);
            assert!(least as f64 > 0.6 * most as f64, "from {least} to {most}");
        }
    }

    #[test]
    fn it_follows_a_limit_that_rises_and_one_that_falls() {
        for (before, after) in [(100, 300), (300, 100)] {
            let api = move |at: Duration, under_way: usize| {
                refuses_above(if at < 60 * S { before } else { after }, 100 * MS)(at, under_way)
            };
            let run = run(1, 1000, 150 * S, &api);
            let reached = (run.per_s)(90 * S, 150 * S) / (after as f64 * 10.0);
            assert!(reached > 0.9, "from {before} to {after}: {reached}");
        }
    }

    #[test]
    fn an_api_that_becomes_slow_by_itself_is_not_made_slower_by_fewer_posts() {
        let api = |at: Duration, _| (Load::Answered, if at < 30 * S { 50 * MS } else { 400 * MS });
        let run = run(1, 200, 90 * S, &api);
        let reached = (run.per_s)(60 * S, 90 * S) / (200.0 / 0.4);
        assert!(reached > 0.9, "{reached}");
    }

    #[test]
    fn a_limit_that_nobody_needs_does_not_grow() {
        let start = Instant::now();
        let mut limit = Limit::new(1, 1000, start);
        for n in 1..10_000 {
            limit.record(Load::Answered, 50 * MS, 3, start + n * 10 * MS);
        }
        assert_eq!(limit.posts(), 16);
    }

    #[test]
    fn a_hundred_refusals_at_once_are_one_sign() {
        let start = Instant::now();
        let mut limit = Limit::new(100, 200, start);
        limit.floor = 1.0;
        for _ in 0..100 {
            limit.record(Load::Refused, 10 * MS, 100, start + 20 * MS);
        }
        assert_eq!(limit.posts(), 60);
        limit.record(Load::Refused, 10 * MS, 60, start + 40 * MS);
        assert_eq!(limit.posts(), 36);
    }

    #[test]
    fn an_api_that_refuses_everything_leaves_the_floor() {
        let start = Instant::now();
        let mut limit = Limit::new(3, 64, start);
        for n in 1..100 {
            let under_way = limit.posts();
            limit.record(Load::Refused, MS, under_way, start + n * 10 * MS);
        }
        assert_eq!(limit.posts(), 3);
        let mut fixed = Limit::new(8, 8, start);
        fixed.record(Load::Silent, MS, 8, start + S);
        assert_eq!(fixed.posts(), 8, "a floor that is the ceiling is a fixed limit");
    }
}
