//! What each number may be.

use serde_json::Value as Json;

use super::Settings;

const MINUTE: f64 = 60_000.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
const YEAR: f64 = 366.0 * DAY;
/// A century.
const MOST_DAYS: f64 = 36_500.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Each number's key, its least and its greatest value.
const RANGES: [(&str, f64, f64); 44] = [
    ("amqp.prefetch", 0.0, 65_535.0),
    // Below 2, healthy brokers look dead.
    ("amqp.heartbeat_s", 2.0, 600.0),
    ("amqp.timeout_ms", 100.0, 10.0 * MINUTE),
    ("topology.delivery_limit", 1.0, 1_000_000.0),
    // The worker does so many things at a time: accept, settle, the heartbeat, expired leases, retention, and one to spare.
    ("postgres.connections", 6.0, 1_000.0),
    ("postgres.statement_timeout_ms", 100.0, HOUR),
    ("postgres.lock_timeout_ms", 100.0, HOUR),
    ("postgres.connect_timeout_ms", 100.0, 10.0 * MINUTE),
    ("lead.max_message_bytes", 1024.0, 128.0 * MIB),
    ("lead.max_name_chars", 1.0, 100_000.0),
    ("lead.max_text_chars", 1.0, 10_000_000.0),
    ("lead.max_fields", 1.0, 100_000.0),
    ("destination.auth.default_lifetime_ms", 1_000.0, DAY),
    ("destination.auth.timeout_ms", 100.0, 10.0 * MINUTE),
    ("destination.request.timeout_ms", 100.0, HOUR),
    ("destination.request.connect_timeout_ms", 10.0, HOUR),
    ("destination.request.idle_timeout_ms", 100.0, HOUR),
    ("destination.request.max_answer_bytes", 1024.0, 16.0 * MIB),
    ("retry.max_attempts", 1.0, 1_000_000.0),
    ("retry.max_age_ms", 0.0, YEAR),
    ("retry.initial_ms", 1.0, YEAR),
    ("retry.multiplier", 1.0, 100.0),
    ("retry.max_ms", 1.0, YEAR),
    ("retry.jitter", 0.0, 1.0),
    ("retry.max_retry_after_ms", 0.0, YEAR),
    ("flow.concurrency", 1.0, 20_000.0),
    ("flow.min_concurrency", 0.0, 20_000.0),
    ("flow.batch", 1.0, 5_000.0),
    ("flow.rate_per_s", 0.0, 1_000_000.0),
    ("flow.lease_ms", 1_000.0, DAY),
    ("flow.retry_share", 0.01, 0.99),
    ("flow.poll_ms", 10.0, HOUR),
    ("flow.open_after", 1.0, 1_000_000.0),
    ("flow.probe_initial_ms", 10.0, HOUR),
    ("flow.probe_max_ms", 10.0, DAY),
    ("retention.delivered_days", 0.0, MOST_DAYS),
    ("retention.duplicate_days", 0.0, MOST_DAYS),
    ("retention.invalid_days", 0.0, MOST_DAYS),
    ("retention.rejected_days", 0.0, MOST_DAYS),
    ("retention.exhausted_days", 0.0, MOST_DAYS),
    ("retention.uncertain_days", 0.0, MOST_DAYS),
    ("retention.cancelled_days", 0.0, MOST_DAYS),
    ("retention.answers_days", 0.0, MOST_DAYS),
    ("shutdown.grace_ms", 100.0, HOUR),
];

/// The numbers that are out of their range, each with its range.
pub(super) fn out_of_range(settings: &Settings) -> Vec<String> {
    let values = serde_json::to_value(settings).unwrap_or_default();
    RANGES
        .iter()
        .filter_map(|(key, least, greatest)| {
            let value = at(&values, key);
            let holds = value.as_f64().is_some_and(|value| (*least..=*greatest).contains(&value));
            (!holds).then(|| format!("{key} is {value}; use {least} to {greatest}"))
        })
        .collect()
}

fn at<'a>(values: &'a Json, key: &str) -> &'a Json {
    values.pointer(&format!("/{}", key.replace('.', "/"))).unwrap_or(&Json::Null)
}

#[cfg(test)]
mod tests {
    use super::super::known_keys;
    use super::*;

    fn settings(key: &str, value: Json) -> Settings {
        let mut values = serde_json::to_value(Settings::default()).expect("JSON");
        *values.pointer_mut(&format!("/{}", key.replace('.', "/"))).expect("a setting") = value;
        serde_json::from_value(values).expect("settings")
    }

    #[test]
    fn every_number_has_a_range_that_holds_its_default() {
        let defaults = serde_json::to_value(Settings::default()).expect("JSON");
        for key in known_keys() {
            let is_number = at(&defaults, &key).is_number();
            let ranges = RANGES.iter().filter(|(of, ..)| *of == key).count();
            assert_eq!(ranges, usize::from(is_number), "{key}");
        }
        assert_eq!(out_of_range(&Settings::default()), Vec::<String>::new());
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_the_key_and_the_range() {
        for (key, least, greatest) in RANGES {
            if key == "amqp.prefetch" {
                continue; // Its type holds no more than its range.
            }
            let fraction = ["retry.multiplier", "retry.jitter", "flow.rate_per_s", "flow.retry_share"].contains(&key);
            let beyond = if fraction { Json::from(greatest + 0.5) } else { Json::from(greatest as u64 + 1) };
            let below = if least == 0.0 { None } else { Some(Json::from(0)) };
            for value in [Some(beyond), below].into_iter().flatten() {
                let text = out_of_range(&settings(key, value)).join("\n");
                assert!(text.starts_with(key) && text.contains(&format!("use {least} to {greatest}")), "{key}: {text}");
            }
        }
        assert!(out_of_range(&settings("flow.lease_ms", Json::from(u64::MAX))).len() == 1);
        let mut not_a_number = Settings::default();
        not_a_number.flow.rate_per_s = f64::NAN;
        assert!(out_of_range(&not_a_number).len() == 1);
    }
}
