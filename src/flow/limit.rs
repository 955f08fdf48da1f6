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
//! - Between a floor and a ceiling. Where both are the same number, as they are unless `flow.min_concurrency` says otherwise, that is it.
//! - A sign is more than chance. An API that fails one post in a hundred, whatever the load, is not made better by less of it: what it always
//!   refuses is known, and only much more than that is a sign.
//! - Posts that had their slot before a decrease say nothing about what holds after it: a hundred refusals at once are one sign.
//! - Nothing grows, and nothing falls, while leads do not need the limit: one that was never reached is one that nobody has tried.
//! - Latency that does not fall with the number of posts is not caused by it. It is the new normal, and the limit goes back to where it was.
//! - Pure: time enters as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// It begins with so many: hardly an API minds them, and a hundred leads a second need no more.
const INITIAL: f64 = 16.0;

/// A limit is used when so much of it is.
const USED: f64 = 0.8;

/// An API that says with each refusal for how long it wants to be left alone stops all posts for that long: it is looked beyond the knee so
/// many times more seldom, though not for longer than this.
const HOLDS_PER_LOOK: u32 = 25;
const PLATEAU_AT_MOST: Duration = Duration::from_secs(300);

/// One that wants to be left alone for longer than this is away, and not asked for too much.
const HOLD_FOR_LOAD: Duration = Duration::from_secs(60);

/// So much more than what is refused anyway is a sign, which is that many times as much and this share of all posts.
const UNUSUAL: f64 = 3.0;
const NOTABLE: f64 = 0.03;

/// The share of refusals is that of the last posts: twice as many as may be under way, and so many at least; what is usual, of many times
/// as many.
const RECENT: f64 = 100.0;
const USUAL: f64 = 20.0;

/// More than this is never usual, or less and less would be a sign.
const USUAL_AT_MOST: f64 = 0.05;

/// A post without an answer weighs as much as so many refusals: it costs a doubt.
const SILENCE: f64 = 3.0;

/// What is left after refusals close to the knee, and after those that come as a surprise, or hard upon others.
const AFTER_REFUSALS: f64 = 0.9;
const AFTER_SURPRISE: f64 = 0.6;

/// How close below the knee it stays, and for how long, before it looks whether the knee has moved.
const PLATEAU: f64 = 0.97;
const PLATEAU_FOR: Duration = Duration::from_secs(20);

/// The steps in which it looks: of a hundredth, and each twice the one before, up to doubling.
const FIRST_STEP: f64 = 0.01;
const LAST_STEP: f64 = 1.0;

/// Answers may take twice as long as they did at best and this much more, before that is a sign: a worker that is busy, and a
/// network, take their time as well.
const TOLERANCE: f64 = 2.0;
const SLACK: Duration = Duration::from_millis(20);

/// When answers take this much longer than at best, it is on its way to too much: the steps are no larger than this.
const SLOWER: f64 = 1.4;
const STEP_IF_SLOWER: f64 = 0.04;

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
    /// The API took the lead, in its own time.
    Taken,
    /// It decided without doing so: its time says little.
    Decided,
    /// It said that it was too much: 429, 503. All posts wait for as long as it asked for.
    Refused(Duration),
    /// It did not answer in time.
    Silent,
    /// It says nothing about the load.
    Unknown,
}

/// A post that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// How.
    pub load: Load,
    /// When it got its slot, so that the limit of that moment was its own.
    pub since: Instant,
    /// How long the API took.
    pub took: Duration,
}

/// The limit and what is known of the API.
#[derive(Debug)]
pub(super) struct Limit {
    floor: f64,
    ceiling: f64,
    limit: f64,
    /// Where it was too much.
    knee: Option<f64>,
    peak: Peak,
    /// For how long it is kept close to the knee.
    level_for: Duration,
    /// By how much it grows after the next round beyond the knee.
    step: f64,
    /// From when the limit has been kept close to the knee.
    level_since: Option<Instant>,
    /// When it was lowered last, and whether all has been well for a round since.
    lowered_at: Option<Instant>,
    was_well: bool,
    /// The share of posts that were refused, of the last ones, and usually.
    refused: f64,
    refused_usually: f64,
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

/// The most posts under way, in this second and the one before.
#[derive(Debug)]
struct Peak {
    began: Instant,
    most: usize,
    before: usize,
}

impl Peak {
    fn note(&mut self, under_way: usize, now: Instant) {
        if now.saturating_duration_since(self.began) >= Duration::from_secs(1) {
            *self = Self { began: now, most: 0, before: self.most };
        }
        self.most = self.most.max(under_way);
    }

    fn lately(&self) -> usize {
        self.most.max(self.before)
    }
}

/// Posts that ended lately.
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
            peak: Peak { began: now, most: 0, before: 0 },
            level_for: PLATEAU_FOR,
            step: LAST_STEP,
            level_since: None,
            lowered_at: None,
            was_well: false,
            refused: 0.0,
            refused_usually: 0.0,
            at_ease: None,
            trial: None,
            round: Round::begin(now),
        }
    }

    /// How many posts may be under way.
    pub(super) fn posts(&self) -> usize {
        self.limit as usize
    }

    /// Whether the API may yet be given less to do.
    pub(super) fn can_fall(&self) -> bool {
        self.posts() > self.floor as usize
    }

    /// Takes in how a post ended, while so many were under way, this one included. Whether the limit is what it has to do with: it was used, or
    /// has been lowered since.
    pub(super) fn record(&mut self, ended: Ended, under_way: usize, now: Instant) -> bool {
        let is_of_now = self.lowered_at.is_none_or(|lowered| ended.since >= lowered);
        self.peak.note(under_way, now);
        // Where refusals come at once, a limit far above what the API takes is never reached.
        let reached = (self.peak.lately() as f64).max(INITIAL).min(self.limit.floor());
        let is_used = under_way as f64 >= USED * reached;
        if ended.load != Load::Unknown && is_of_now && is_used {
            self.weigh(ended.load, under_way, now);
        }
        self.round.most = self.round.most.max(under_way);
        if ended.load == Load::Taken && is_of_now {
            self.round.posts += 1;
            self.round.took += ended.took;
            if self.round.is_over(now) {
                self.end_round(now);
            }
        }
        is_used || !is_of_now
    }

    /// Is more refused than usual?
    fn weigh(&mut self, load: Load, under_way: usize, now: Instant) {
        let recent = (2.0 * self.limit).max(RECENT);
        let weight = match load {
            Load::Refused(_) => 1.0,
            Load::Silent => SILENCE,
            Load::Taken | Load::Decided | Load::Unknown => 0.0,
        };
        self.refused += (weight - self.refused) / recent;
        // One that stops all posts for a while is a sign by itself: a second one would cost as much.
        let hold = match load {
            Load::Refused(hold) if hold <= HOLD_FOR_LOAD => hold,
            Load::Refused(_) | Load::Taken | Load::Decided | Load::Silent | Load::Unknown => Duration::ZERO,
        };
        if hold.is_zero() && self.refused <= UNUSUAL * self.refused_usually + NOTABLE {
            let usually = self.refused_usually + (weight - self.refused_usually) / (recent * USUAL);
            self.refused_usually = usually.min(USUAL_AT_MOST);
            return;
        }
        let is_surprise = self.knee.is_none() || !self.was_well;
        let knee = (under_way as f64).min(self.limit);
        self.too_much(knee);
        self.level_since = Some(now);
        self.level_for = PLATEAU_FOR.max(hold * HOLDS_PER_LOOK).min(PLATEAU_AT_MOST);
        self.trial = None;
        self.refused = self.refused_usually;
        self.set(knee * if is_surprise { AFTER_SURPRISE } else { AFTER_REFUSALS }, now);
    }

    fn too_much(&mut self, knee: f64) {
        self.knee = Some(knee);
        self.step = FIRST_STEP;
    }

    fn end_round(&mut self, now: Instant) {
        let latency = self.round.latency();
        let is_used = self.round.most as f64 >= USED * self.limit.floor();
        self.round = Round::begin(now);
        let at_ease = *self.at_ease.get_or_insert(latency);
        if latency > at_ease.mul_f64(TOLERANCE) + SLACK {
            if is_used {
                self.is_slow(latency, now);
            }
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
        } else if now.saturating_duration_since(since) >= self.level_for {
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
        self.too_much(left / PLATEAU);
        self.level_since = Some(now);
        self.level_for = PLATEAU_FOR;
        self.set(left, now);
    }

    fn set(&mut self, limit: f64, now: Instant) {
        let limit = limit.clamp(self.floor, self.ceiling);
        if limit < self.limit {
            self.lowered_at = Some(now);
            self.was_well = false;
            self.round = Round::begin(now);
        }
        self.limit = limit;
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);
    const REFUSED: Load = Load::Refused(Duration::ZERO);

    /// A worker has sent so much of a post before it sends the next.
    const SENDING: Duration = Duration::from_micros(50);

    /// What an API does with a post: how it ends, and after how long, with so many under way.
    type Api = dyn Fn(Duration, usize) -> (Load, Duration);

    /// Takes so many at a time and refuses the rest at once.
    fn refuses_above(capacity: usize, latency: Duration) -> impl Fn(Duration, usize) -> (Load, Duration) {
        move |_, under_way| if under_way > capacity { (REFUSED, MS) } else { (Load::Taken, latency) }
    }

    /// Takes longer for each one beyond those that it can work on at a time.
    fn slows_above(knee: usize, latency: Duration) -> impl Fn(Duration, usize) -> (Load, Duration) {
        move |_, under_way| (Load::Taken, latency.mul_f64((under_way as f64 / knee as f64).max(1.0)))
    }

    struct Run {
        /// Posts that were answered from the one time to the other, per second.
        per_s: Box<dyn Fn(Duration, Duration) -> f64>,
        refused: Vec<Duration>,
        limits: Vec<(Duration, usize)>,
    }

    impl Run {
        fn limits_after(&self, since: Duration) -> (usize, usize) {
            let after = || self.limits.iter().filter(|(at, _)| *at >= since).map(|(_, limit)| *limit);
            (after().min().unwrap(), after().max().unwrap())
        }
    }

    fn ended(load: Load, since: Instant, took: Duration) -> Ended {
        Ended { load, since, took }
    }

    /// Posts as fast as the limit allows.
    fn run(floor: usize, ceiling: usize, lasts: Duration, api: &Api) -> Run {
        let start = Instant::now();
        let mut limit = Limit::new(floor, ceiling, start);
        let mut ends: BinaryHeap<Reverse<(Duration, u64, Duration, ByOrder)>> = BinaryHeap::new();
        let (mut now, mut held_until) = (Duration::ZERO, Duration::ZERO);
        let (mut answered, mut refused, mut limits, mut sent) = (Vec::new(), Vec::new(), Vec::new(), 0_u64);
        while now < lasts {
            let next_end = ends.peek().map(|Reverse((end, ..))| *end);
            if ends.len() < limit.posts() && now >= held_until && next_end.is_none_or(|end| end > now) {
                let (load, took) = api(now, ends.len() + 1);
                let took = took.mul_f64(0.95 + 0.1 * ((ends.len() % 7) as f64 / 6.0));
                // Each post is another one.
                sent += 1;
                ends.push(Reverse((now + took, sent, now, ByOrder(load))));
                now += SENDING;
                continue;
            }
            let under_way = ends.len();
            let Some(Reverse((end, _, began, ByOrder(load)))) = ends.pop() else {
                now = held_until;
                continue;
            };
            now = now.max(end);
            match load {
                Load::Taken | Load::Decided => answered.push(now),
                Load::Refused(hold) => {
                    refused.push(now);
                    held_until = held_until.max(now + hold);
                }
                Load::Silent | Load::Unknown => refused.push(now),
            }
            limit.record(ended(load, start + began, end - began), under_way, start + now);
            limits.push((now, limit.posts()));
        }
        let per_s = move |from: Duration, to: Duration| {
            let n = answered.iter().filter(|at| **at >= from && **at < to).count();
            n as f64 / (to - from).as_secs_f64()
        };
        Run { per_s: Box::new(per_s), refused, limits }
    }

    /// What is told apart by what stands before it.
    struct ByOrder(Load);

    impl PartialEq for ByOrder {
        fn eq(&self, _: &Self) -> bool {
            true
        }
    }

    impl Eq for ByOrder {}

    impl PartialOrd for ByOrder {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for ByOrder {
        fn cmp(&self, _: &Self) -> std::cmp::Ordering {
            std::cmp::Ordering::Equal
        }
    }

    #[test]
    fn with_no_limit_in_sight_it_climbs_to_the_ceiling_within_seconds() {
        let run = run(1, 1000, 10 * S, &|_, _| (Load::Taken, 100 * MS));
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
            let refused = run.refused.len();
            assert!(refused * 50 < sent, "capacity {capacity}, {latency} ms: {refused} of {sent}");
        }
    }

    #[test]
    fn an_api_that_stops_all_posts_with_each_refusal_is_seldom_asked_for_too_much() {
        for hold in [S, 10 * S] {
            let api = move |_: Duration, under_way: usize| {
                if under_way > 100 { (Load::Refused(hold), MS) } else { (Load::Taken, 100 * MS) }
            };
            let run = run(1, 1000, 1200 * S, &api);
            let reached = (run.per_s)(300 * S, 1200 * S) / 1_000.0;
            assert!(reached > 0.9, "{hold:?}: {reached}");
        }
    }

    #[test]
    fn an_api_that_is_away_for_long_was_not_asked_for_too_much() {
        let api = |at: Duration, _| {
            if at < 2 * S { (Load::Refused(1_800 * S), MS) } else { (Load::Taken, 100 * MS) }
        };
        let run = run(1, 1000, 1_900 * S, &api);
        let (least, _) = run.limits_after(1_850 * S);
        assert!(least > 900, "{least}");
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
            let late = |at: &&Duration| **at >= 90 * S;
            let (refused, sent) =
                (run.refused.iter().filter(late).count(), run.limits.iter().filter(|(at, _)| *at >= 90 * S).count());
            assert!(refused * 50 < sent, "from {before} to {after}: {refused} of {sent} are refused");
        }
    }

    #[test]
    fn an_api_that_becomes_slow_by_itself_is_not_made_slower_by_fewer_posts() {
        let api = |at: Duration, _| (Load::Taken, if at < 30 * S { 50 * MS } else { 400 * MS });
        let run = run(1, 200, 90 * S, &api);
        let reached = (run.per_s)(60 * S, 90 * S) / (200.0 / 0.4);
        assert!(reached > 0.9, "{reached}");
    }

    #[test]
    fn a_limit_that_nobody_needs_does_not_grow() {
        let start = Instant::now();
        let mut limit = Limit::new(1, 1000, start);
        for n in 1..10_000 {
            let now = start + n * 10 * MS;
            limit.record(ended(if n % 50 == 0 { REFUSED } else { Load::Taken }, now - 50 * MS, 50 * MS), 3, now);
        }
        assert_eq!(limit.posts(), 16, "it neither grows nor falls");
    }

    #[test]
    fn a_hundred_refusals_at_once_are_one_sign() {
        let start = Instant::now();
        let mut limit = Limit::new(100, 200, start);
        limit.floor = 1.0;
        let mut refuse = |since: Instant, n: usize| {
            for _ in 0..n {
                limit.record(ended(REFUSED, since, 10 * MS), n, since + S);
            }
            limit.posts()
        };
        assert_eq!(refuse(start, 100), 60);
        assert_eq!(refuse(start + 2 * S, 60), 36);
    }

    #[test]
    fn an_api_that_refuses_everything_leaves_the_floor() {
        let start = Instant::now();
        let mut limit = Limit::new(3, 64, start);
        for n in 1..200 {
            let (under_way, now) = (limit.posts(), start + n * 10 * MS);
            limit.record(ended(REFUSED, now - MS, MS), under_way, now);
        }
        assert_eq!(limit.posts(), 3);
        assert!(!limit.can_fall());
        let mut fixed = Limit::new(8, 8, start);
        for _ in 0..100 {
            fixed.record(ended(Load::Silent, start, MS), 8, start + S);
        }
        assert_eq!(fixed.posts(), 8, "a floor that is the ceiling is a fixed limit");
    }

    /// Every nth post, whatever the load.
    fn one_in(n: u64, odd: (Load, Duration), usual: Duration) -> impl Fn(Duration, usize) -> (Load, Duration) {
        let random = std::cell::RefCell::new(fastrand::Rng::with_seed(n));
        move |_, _| if random.borrow_mut().u64(..n) == 0 { odd } else { (Load::Taken, usual) }
    }

    #[test]
    fn what_is_refused_by_chance_keeps_nothing_from_growing() {
        for n in [20, 100, 1_000, 10_000] {
            let run = run(1, 200, 60 * S, &one_in(n, (REFUSED, MS), 100 * MS));
            let (least, _) = run.limits_after(30 * S);
            assert!(least > 120, "one in {n}: {least}");
        }
        for n in [1_000, 10_000] {
            let run = run(1, 200, 120 * S, &one_in(n, (Load::Silent, S), 100 * MS));
            let (least, _) = run.limits_after(60 * S);
            assert!(least > 120, "one silence in {n}: {least}");
        }
    }

    #[test]
    fn quick_decisions_do_not_hide_that_leads_are_taken_slowly() {
        let random = std::cell::RefCell::new(fastrand::Rng::with_seed(5));
        let slow = slows_above(100, 400 * MS);
        let api = move |at: Duration, under_way: usize| {
            if random.borrow_mut().u64(..5) == 0 { (Load::Decided, 2 * MS) } else { slow(at, under_way) }
        };
        let run = run(1, 1000, 120 * S, &api);
        let (_, most) = run.limits_after(60 * S);
        assert!(most < 400, "{most} under way");
    }
}
