//! Series that differ in labels whose values are known beforehand. Each is there from the start, and counted by its place: nothing is looked up
//! and no lock is taken.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

/// The labels of a series.
pub(super) type Labels = Vec<(&'static str, &'static str)>;

/// The series of a family, in the order of their places; clones share them.
#[derive(Debug, Clone)]
pub struct Each<M>(Arc<[(Labels, M)]>);

impl<M: Default> Each<M> {
    /// One series for each value of a label.
    pub(super) fn of(label: &'static str, values: &[&'static str]) -> Self {
        Self::with(values.iter().map(|value| vec![(label, *value)]))
    }

    /// One series for each set of labels.
    pub(super) fn with(labels: impl Iterator<Item = Labels>) -> Self {
        Self::these(labels.map(|labels| (labels, M::default())))
    }
}

impl<M> Each<M> {
    /// These series, each with its labels.
    pub(super) fn these(series: impl Iterator<Item = (Labels, M)>) -> Self {
        Self(series.collect())
    }

    /// The series at this place.
    ///
    /// # Panics
    /// When there is none.
    pub fn at(&self, place: usize) -> &M {
        &self.0[place].1
    }

    /// All series, in order.
    pub fn iter(&self) -> impl Iterator<Item = &M> {
        self.0.iter().map(|(_, metric)| metric)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<M: EncodeMetric> EncodeMetric for Each<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (labels, metric) in &*self.0 {
            metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.0.first().map_or(MetricType::Unknown, |(_, metric)| metric.metric_type())
    }
}
