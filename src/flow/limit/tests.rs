//! The limit against simulated APIs, which take, refuse, slow down or change as real ones do.

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
