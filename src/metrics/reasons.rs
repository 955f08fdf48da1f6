//! The codes of reasons that are counted by themselves. Any other is `other`: a code is ours, but a status may be anything.

use std::collections::HashMap;

use prometheus_client::metrics::counter::Counter;

use super::each::Each;

/// What stands for all that is not listed.
pub const OTHER: &str = "other";

/// The codes, each with a series of its own.
pub const CODES: [&str; 74] = [
    // What the API answers.
    "http_301",
    "http_302",
    "http_303",
    "http_307",
    "http_308",
    "http_400",
    "http_401",
    "http_402",
    "http_403",
    "http_404",
    "http_405",
    "http_406",
    "http_407",
    "http_408",
    "http_409",
    "http_410",
    "http_413",
    "http_414",
    "http_415",
    "http_421",
    "http_422",
    "http_425",
    "http_429",
    "http_451",
    "http_500",
    "http_501",
    "http_502",
    "http_503",
    "http_504",
    "http_520",
    "http_521",
    "http_522",
    "http_523",
    "http_524",
    "http_525",
    "http_526",
    "http_529",
    "http_530",
    "answer_refused",
    "answer_unreadable",
    "html_page",
    "plain_http",
    "not_http",
    // What the way there comes to.
    "timeout",
    "connection_broken",
    "connect_failed",
    "connect_timeout",
    "closed_before_request",
    "request_invalid",
    // Logging in.
    "invalid_client",
    "unauthorized_client",
    "invalid_scope",
    "invalid_grant",
    "unsupported_grant_type",
    "invalid_request",
    "token_refused",
    "token_url",
    "token_request",
    "token_endpoint",
    "token_answer",
    "token_type",
    "logged_out",
    // Ourselves.
    "held",
    "held_for_token",
    "circuit_open",
    "stopped",
    "lease_short",
    "lease_expired",
    "worker_panic",
    // The lead.
    "invalid",
    "systemic_own_fault",
    "absent",
    "reconciled",
    OTHER,
];

/// Counts by code.
#[derive(Debug)]
pub struct Reasons {
    each: Each<Counter>,
    places: HashMap<&'static str, usize>,
}

impl Reasons {
    pub(super) fn new() -> Self {
        let places = CODES.iter().enumerate().map(|(place, code)| (*code, place)).collect();
        Self { each: Each::of("code", &CODES), places }
    }

    pub(super) fn each(&self) -> Each<Counter> {
        self.each.clone()
    }

    /// Counts one with this code. Deliveries have none, so what is looked up here is never on the way of a lead that goes well.
    pub fn count(&self, code: &str) {
        let place = self.places.get(code).copied().unwrap_or(CODES.len() - 1);
        self.each.at(place).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_nobody_knows_is_another_and_makes_no_series() {
        let reasons = Reasons::new();
        for code in ["http_422", "http_999", "zyxq", "other", ""] {
            reasons.count(code);
        }
        let counts: HashMap<&str, u64> = CODES.into_iter().zip(reasons.each.iter().map(Counter::get)).collect();
        assert_eq!((counts["http_422"], counts[OTHER], counts.values().sum::<u64>()), (1, 4, 5));
        assert_eq!(counts.len(), CODES.len(), "no code stands twice");
    }
}
