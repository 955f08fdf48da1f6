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
//! CUBIC (RFC 9438), so that most of the time is spent close to it; and a latency that rises is a sign as well, as in Vegas. No crate does that: the
//! nearest, `congestion-limiter` 0.1.0, remembers no such place, and wraps each call in a future of its own.
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
mod tests;
