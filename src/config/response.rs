//! How the answers of a lead API are to be read.

use serde::{Deserialize, Serialize};

use super::{StatusSet, lists};

/// How the answers of a destination are read. Sets are asked in the order of the fields; the first that holds the status
/// decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResponseRules {
    /// The token is not (any longer) accepted.
    pub unauthorized: StatusSet,
    /// The lead was taken.
    pub success: StatusSet,
    /// The lead is there already.
    pub duplicate: StatusSet,
    /// This lead is bad.
    pub rejected: StatusSet,
    /// Not processed, try again.
    pub retry: StatusSet,
    /// The set-up is wrong, or something stands between us and the API.
    pub systemic: StatusSet,
    /// It may have been processed.
    pub uncertain: StatusSet,
    /// A rejection whose reason contains one of these texts, in any case, is a duplicate.
    #[serde(deserialize_with = "lists::texts")]
    pub duplicate_texts: Vec<String>,
    /// The jq test on the body of a success status that says that it is a success; empty: the status says it.
    pub success_test: String,
    /// The jq test on the body of a rejection that says that the lead is there already; empty: none.
    pub duplicate_test: String,
    /// The jq test on the body of a rejection that says that it speaks of the set-up, and not of this lead; empty: none.
    pub systemic_test: String,
    /// Where a refusal tells why: a JSON Pointer (RFC 6901); empty: wherever APIs use to.
    pub reason: String,
    /// Where a success tells the lead's id: a JSON Pointer (RFC 6901).
    pub remote_id: String,
    /// Where a success tells the lead's state.
    pub remote_state: String,
    /// Where a success tells the lead's sub-state.
    pub remote_sub_state: String,
    /// Where a success tells when the API will act.
    pub next_schedule_time: String,
    /// States in which a success does not mean that the lead is being worked.
    #[serde(deserialize_with = "lists::texts")]
    pub warn_states: Vec<String>,
}

impl Default for ResponseRules {
    fn default() -> Self {
        Self {
            unauthorized: StatusSet::of(&["401"]),
            success: StatusSet::of(&["200", "201", "202"]),
            duplicate: StatusSet::of(&["409"]),
            rejected: StatusSet::of(&["400", "413", "414", "415", "422"]),
            retry: StatusSet::of(&["408", "421", "425", "429", "503"]),
            systemic: StatusSet::of(&["3xx", "4xx", "501", "505"]),
            uncertain: StatusSet::of(&["5xx"]),
            duplicate_texts: Vec::new(),
            success_test: String::new(),
            duplicate_test: String::new(),
            systemic_test: String::new(),
            reason: String::new(),
            remote_id: "/id".to_owned(),
            remote_state: "/state".to_owned(),
            remote_sub_state: "/subState".to_owned(),
            next_schedule_time: "/nextScheduleTime".to_owned(),
            warn_states: Vec::new(),
        }
    }
}

impl ResponseRules {
    /// The sets that name statuses one by one, with their names; a status in two of them is a contradiction.
    pub fn named_sets(&self) -> [(&'static str, &StatusSet); 5] {
        [
            ("unauthorized", &self.unauthorized),
            ("success", &self.success),
            ("duplicate", &self.duplicate),
            ("rejected", &self.rejected),
            ("retry", &self.retry),
        ]
    }
}
