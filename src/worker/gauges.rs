//! Gauges of what others keep anyway: read when the metrics are asked for, so that nothing is written for them meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use super::health::Health;
use crate::broker::Link;
use crate::metrics::{Now, Real, follow};

impl Health {
    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let Now { concurrency, ceiling, rate_share, rate_limit, circuit, hold, .. } = &self.metrics.now;
        let flow = self.flow.status(Instant::now());
        concurrency.set(whole(flow.concurrency));
        ceiling.set(whole(self.flow.ceiling()));
        // As in the settings, 0 is no limit.
        rate_limit.set(self.flow.rate_limit().unwrap_or_default());
        rate_share.set(flow.rate_per_s.unwrap_or_default());
        for (place, state) in circuit.iter().enumerate() {
            state.set(i64::from(place == flow.circuit as usize));
        }
        hold.set(flow.hold_s.unwrap_or_default());

        let Now { token_age, token_left, tokens, token_failures, .. } = &self.metrics.now;
        let status = self.tokens.status();
        set_seconds(token_age, status.age.unwrap_or_default());
        set_seconds(token_left, status.valid_for.unwrap_or_default());
        follow(tokens, status.fetched);
        follow(token_failures, status.failures);

        let Now { rabbitmq_up, consuming, reconnects, .. } = &self.metrics.now;
        let (link, losses) = self.broker().unwrap_or((Link::Closed, 0));
        rabbitmq_up.set(i64::from(matches!(link, Link::Consuming | Link::Idle)));
        consuming.set(i64::from(link == Link::Consuming));
        follow(reconnects, losses);
    }
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What never ends has no number: the library cannot write infinity as OpenMetrics has it.
fn set_seconds(gauge: &Real, time: Duration) {
    gauge.set(if time == Duration::MAX { f64::NAN } else { time.as_secs_f64() });
}
