//! What a worker has done in the last minute, for its heartbeat: how much, and how long posts took.
//!
//! # Rules
//! - To count costs an atomic addition. Everything else is done once for each heartbeat, from what the counters were before.
//! - A time is kept to an eighth of its power of two: a percentile is off by 6 % at most.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::ledger::LeadState;

/// What is told is about so long, or less after a start, or a little more.
const LATELY: Duration = Duration::from_secs(60);

/// So far apart at least are the counts that are kept.
const SPACING: Duration = Duration::from_secs(4);

/// Each power of two microseconds in so many parts, up to two minutes.
const PARTS: usize = 8;
const BUCKETS: usize = 26 * PARTS;

/// What is counted.
#[derive(Debug)]
pub(super) struct Pulse {
    accepted: AtomicU64,
    delivered: AtomicU64,
    duplicate: AtomicU64,
    failed: AtomicU64,
    again: AtomicU64,
    took: [AtomicU64; BUCKETS],
    past: Mutex<VecDeque<Counts>>,
}

/// The counters at a time.
#[derive(Debug, Clone)]
struct Counts {
    at: Instant,
    accepted: u64,
    delivered: u64,
    duplicate: u64,
    failed: u64,
    again: u64,
    took: Box<[u64; BUCKETS]>,
}

/// What was done lately.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Lately {
    /// How long ago the time begins that this is about, in seconds.
    over_s: f64,
    /// Leads taken into the ledger, valid or not.
    accepted_per_s: f64,
    /// Leads that the API took.
    delivered_per_s: f64,
    /// Leads that came to another end than delivered or duplicate.
    failed_per_s: f64,
    /// Leads that came to any end.
    ended_per_s: f64,
    /// Leads that are to be tried again.
    again_per_s: f64,
    /// Half of the posts took no longer.
    post_p50_ms: Option<f64>,
    /// 95 of 100 posts took no longer.
    post_p95_ms: Option<f64>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        let pulse = Self {
            accepted: AtomicU64::default(),
            delivered: AtomicU64::default(),
            duplicate: AtomicU64::default(),
            failed: AtomicU64::default(),
            again: AtomicU64::default(),
            took: std::array::from_fn(|_| AtomicU64::default()),
            past: Mutex::default(),
        };
        let begin = pulse.counts(now);
        pulse.past.lock().unwrap_or_else(PoisonError::into_inner).push_back(begin);
        pulse
    }

    /// A lead was taken into the ledger.
    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A lead was settled: it is in this state now.
    pub(super) fn settled(&self, state: LeadState) {
        let counter = match state {
            LeadState::Pending => &self.again,
            LeadState::Delivered => &self.delivered,
            LeadState::Duplicate => &self.duplicate,
            LeadState::Invalid
            | LeadState::Rejected
            | LeadState::Exhausted
            | LeadState::Uncertain
            | LeadState::Cancelled => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A post took so long.
    pub(super) fn took(&self, duration: Duration) {
        if let Some(bucket) = self.took.get(bucket(duration)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was done lately.
    pub(super) fn lately(&self, now: Instant) -> Lately {
        let counts = self.counts(now);
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        // The first that is kept is the last one that is a minute old, if there is one.
        while past.get(1).is_some_and(|second| now.duration_since(second.at) >= LATELY) {
            past.pop_front();
        }
        let lately = past.front().map(|before| counts.since(before));
        if past.back().is_none_or(|last| now.duration_since(last.at) >= SPACING) {
            past.push_back(counts.clone());
        }
        lately.unwrap_or_else(|| counts.since(&counts))
    }

    fn counts(&self, at: Instant) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            at,
            accepted: count(&self.accepted),
            delivered: count(&self.delivered),
            duplicate: count(&self.duplicate),
            failed: count(&self.failed),
            again: count(&self.again),
            took: Box::new(std::array::from_fn(|at| self.took.get(at).map_or(0, count))),
        }
    }
}

impl Counts {
    fn since(&self, before: &Counts) -> Lately {
        let over_s = self.at.duration_since(before.at).as_secs_f64();
        let per_s = |now: u64, before: u64| {
            let per_s = now.saturating_sub(before) as f64 / over_s.max(0.001);
            // Nobody needs more, and the heartbeat stays small.
            (per_s * 100.0).round() / 100.0
        };
        let delivered = (self.delivered, before.delivered);
        let failed = (self.failed, before.failed);
        let ended =
            (self.delivered + self.duplicate + self.failed, before.delivered + before.duplicate + before.failed);
        let took: Vec<u64> = self.took.iter().zip(before.took.iter()).map(|(now, before)| now - before).collect();
        Lately {
            over_s: (over_s * 10.0).round() / 10.0,
            accepted_per_s: per_s(self.accepted, before.accepted),
            delivered_per_s: per_s(delivered.0, delivered.1),
            failed_per_s: per_s(failed.0, failed.1),
            ended_per_s: per_s(ended.0, ended.1),
            again_per_s: per_s(self.again, before.again),
            post_p50_ms: percentile(&took, 0.5),
            post_p95_ms: percentile(&took, 0.95),
        }
    }
}

/// Where a time is counted.
fn bucket(took: Duration) -> usize {
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let parts = PARTS as u64;
    if us < parts {
        return us as usize;
    }
    // Of 2^n us and more: n decides the octave, the next bits its part.
    let octave = us.ilog2() - parts.ilog2();
    let part = (us >> octave) - parts;
    ((octave as usize + 1) * PARTS + part as usize).min(BUCKETS - 1)
}

/// The middle of what is counted there, in microseconds.
fn middle(bucket: usize) -> f64 {
    if bucket < PARTS {
        return bucket as f64 + 0.5;
    }
    let (octave, part) = (bucket / PARTS - 1, bucket % PARTS);
    let width = f64::from(1_u32 << octave.min(31));
    ((PARTS + part) as f64 + 0.5) * width
}

/// What this share of the times does not exceed, in milliseconds; `None` if there are none.
fn percentile(counts: &[u64], share: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    let rank = ((all as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    Some((middle(bucket) / 10.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_time_is_counted_within_a_sixteenth_of_what_it_is() {
        let mut us = 8_u64;
        let mut last = 0;
        while us < 100_000_000 {
            let bucket = bucket(Duration::from_micros(us));
            assert!(bucket >= last && bucket < BUCKETS, "{us} us");
            last = bucket;
            let off = (middle(bucket) - us as f64).abs() / us as f64;
            assert!(off <= 1.0 / 16.0, "{us} us are counted as {}", middle(bucket));
            us += us / 17 + 1;
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_posts_that_were_made_lately() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        for ms in 1..=100 {
            pulse.took(Duration::from_millis(ms));
        }
        let lately = pulse.lately(start + 10 * SECOND);
        let near = |value: Option<f64>, expected: f64| value.is_some_and(|value| (value / expected - 1.0).abs() < 0.07);
        assert!(near(lately.post_p50_ms, 50.0) && near(lately.post_p95_ms, 95.0), "{lately:?}");
        // A minute later only what came since counts.
        pulse.took(Duration::from_secs(1));
        let later = pulse.lately(start + 75 * SECOND);
        assert!(near(later.post_p50_ms, 1000.0), "{later:?}");
        let none = pulse.lately(start + 200 * SECOND);
        assert_eq!((none.post_p50_ms, none.post_p95_ms), (None, None));
    }

    #[test]
    fn rates_are_those_of_the_last_minute_or_of_the_time_since_the_start() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        assert_eq!(pulse.lately(start).accepted_per_s, 0.0, "nothing, and no time yet");
        for _ in 0..50 {
            pulse.accepted();
            pulse.settled(LeadState::Delivered);
        }
        pulse.settled(LeadState::Rejected);
        pulse.settled(LeadState::Duplicate);
        pulse.settled(LeadState::Pending);
        let first = pulse.lately(start + 10 * SECOND);
        assert_eq!((first.over_s, first.accepted_per_s, first.delivered_per_s), (10.0, 5.0, 5.0));
        assert_eq!((first.failed_per_s, first.ended_per_s, first.again_per_s), (0.1, 5.2, 0.1));
        for n in 2..40 {
            pulse.accepted();
            let lately = pulse.lately(start + n * 5 * SECOND);
            assert!(lately.over_s <= 65.0, "{lately:?}");
        }
        // Since 135 s, of which what was counted there is no part.
        let last = pulse.lately(start + 195 * SECOND);
        assert_eq!((last.over_s, last.accepted_per_s, last.delivered_per_s), (60.0, 0.2, 0.0), "{last:?}");
        let kept = pulse.past.lock().expect("no panic").len();
        assert!(kept <= 16, "{kept} counts are kept");
    }
}
