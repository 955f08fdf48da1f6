//! The jq expressions of a destination: which there are, and what they may and must be given.

use super::Destination;

/// The variables of expressions about leads.
pub const LEAD_VARIABLES: [&str; 2] = ["$lead_id", "$variables"];

/// The variables of tests on answers.
pub const ANSWER_VARIABLES: [&str; 2] = ["$status", "$variables"];

/// The variables of `destination.reconcile.found`.
pub const FOUND_VARIABLES: [&str; 3] = ["$status", "$key", "$variables"];

/// An expression: its key, its text, and the variables that it may use.
type Expression<'a> = (&'static str, &'a str, &'static [&'static str]);

/// The jq expressions of a destination.
pub(super) fn expressions(destination: &Destination) -> [Expression<'_>; 6] {
    let Destination { request, response, reconcile, .. } = destination;
    [
        ("destination.request.jq", &request.jq, &LEAD_VARIABLES),
        ("destination.response.success_test", &response.success_test, &ANSWER_VARIABLES),
        ("destination.response.duplicate_test", &response.duplicate_test, &ANSWER_VARIABLES),
        ("destination.response.systemic_test", &response.systemic_test, &ANSWER_VARIABLES),
        ("destination.reconcile.key", &reconcile.key, &LEAD_VARIABLES),
        ("destination.reconcile.found", &reconcile.found, &FOUND_VARIABLES),
    ]
}

/// The variables that an expression reads as `$variables.name`, but for those that it can do without (`$variables.name // ...`).
pub(super) fn needed_variables(source: &str) -> impl Iterator<Item = &str> {
    source.split("$variables.").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        (!name.is_empty() && !behind.trim_start().starts_with("//")).then_some(name)
    })
}
