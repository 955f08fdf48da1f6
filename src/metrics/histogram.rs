//! Histograms that are observed without a lock: each lead observes some, from whichever thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// What is observed is counted in whole units: microseconds of a time, of which a sum can hold half a million years, or things.
const MICROS: u64 = 1_000_000;

/// A histogram; clones share it.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// How many units are one, for people.
    scale: u64,
    /// The bounds, in units, each its bucket's own.
    bounds: Vec<u64>,
    /// One more than there are bounds, for what is beyond the last.
    buckets: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    /// Of times, with these bounds in milliseconds.
    pub(super) fn of_times(bounds_ms: &[u64]) -> Self {
        Self::new(MICROS, bounds_ms.iter().map(|ms| ms * (MICROS / 1_000)).collect())
    }

    /// Of numbers of things, with these bounds.
    pub(super) fn of_numbers(bounds: &[u64]) -> Self {
        Self::new(1, bounds.to_vec())
    }

    fn new(scale: u64, bounds: Vec<u64>) -> Self {
        let buckets = std::iter::repeat_with(AtomicU64::default).take(bounds.len() + 1).collect();
        Self(Arc::new(Inner { scale, bounds, buckets, sum: AtomicU64::default() }))
    }

    /// Observes a time.
    pub fn took(&self, time: Duration) {
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Observes so many things.
    pub fn had(&self, number: usize) {
        self.add(u64::try_from(number).unwrap_or(u64::MAX));
    }

    fn add(&self, units: u64) {
        let Inner { bounds, buckets, sum, .. } = &*self.0;
        let at = bounds.partition_point(|bound| *bound < units);
        buckets[at].fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(units, Ordering::Relaxed);
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Inner { scale, bounds, buckets, sum } = &*self.0;
        let in_ones = |units: u64| units as f64 / *scale as f64;
        let bounds = bounds.iter().map(|bound| in_ones(*bound)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed))).collect();
        // Made of the same numbers as the buckets are, so that both agree whatever is observed meanwhile.
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(in_ones(sum.load(Ordering::Relaxed)), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(histogram: &Histogram) -> Vec<u64> {
        histogram.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn a_bucket_holds_what_is_at_most_its_bound_and_the_last_one_the_rest() {
        let times = Histogram::of_times(&[1, 10]);
        for us in [0, 1_000, 1_001, 10_000, 10_001, 90_000_000] {
            times.took(Duration::from_micros(us));
        }
        assert_eq!(counts(&times), [2, 2, 2]);
        let numbers = Histogram::of_numbers(&[1, 2, 4]);
        for n in [0, 1, 2, 3, 4, 5, 1_000] {
            numbers.had(n);
        }
        assert_eq!(counts(&numbers), [2, 1, 2, 2]);
        assert_eq!(numbers.0.sum.load(Ordering::Relaxed), 1_015);
    }
}
