//! The keys there are, and the search for the one that was meant.

use std::collections::BTreeMap;

use config::{Config, Value, ValueKind};
use serde_json::Value as Json;

use super::{ConfigError, Settings};

/// Keys whose subkeys the user chooses.
const OPEN_TABLES: [&str; 5] = [
    "destination.variables",
    "destination.auth.parameters",
    "destination.auth.headers",
    "destination.auth.query",
    "destination.request.headers",
];

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("LEADPOST__{}", key.to_uppercase().replace('.', "__"))
}

/// All keys there are, as `section.key`.
pub fn known_keys() -> Vec<String> {
    let defaults = serde_json::to_value(Settings::default()).unwrap_or_default();
    let mut keys = Vec::new();
    collect_json(&defaults, "", &mut keys);
    keys
}

fn collect_json(value: &Json, path: &str, keys: &mut Vec<String>) {
    match value {
        Json::Object(members) if !OPEN_TABLES.contains(&path) => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect_json(member, &path, keys);
            }
        }
        _ => keys.push(path.to_owned()),
    }
}

/// Whether other keys begin with this one: a section, or a table whose keys the user chooses.
pub(super) fn is_section(key: &str) -> bool {
    OPEN_TABLES.contains(&key) || known_keys().iter().any(|known| is_within(known, key))
}

/// The first setting of a section, as an example.
pub(super) fn example_of(section: &str) -> String {
    let first = known_keys().into_iter().find(|known| is_within(known, section));
    first.unwrap_or_else(|| format!("{section}.name"))
}

fn is_within(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// Finds keys that nobody knows, in all layers at once, and names the nearest that is known.
///
/// # Errors
/// One problem for each such key.
pub(super) fn reject_unknown(layers: &[&Config]) -> Result<(), ConfigError> {
    let known = known_keys();
    let mut given = Vec::new();
    for layer in layers {
        // Not of the layers' sum, in which one may hide what another one says.
        collect_given(&layer.cache, "", &mut given);
    }
    given.sort();
    given.dedup();
    let problems: Vec<String> = given
        .into_iter()
        .filter(|key| !known.contains(key))
        .map(|key| match nearest(&key, &known) {
            Some(nearest) => format!("there is no setting {key}; did you mean {nearest}?"),
            None => format!("there is no setting {key}; leadpost.example.toml names them all"),
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
}

fn collect_given(value: &Value, path: &str, given: &mut Vec<String>) {
    match &value.kind {
        ValueKind::Table(members) if !OPEN_TABLES.contains(&path) => {
            for (name, member) in members.iter().collect::<BTreeMap<_, _>>() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect_given(member, &path, given);
            }
        }
        _ if path.is_empty() => {}
        _ => given.push(path.to_owned()),
    }
}

fn nearest<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    known
        .iter()
        .map(|candidate| {
            // A right name in the wrong section is a near miss too.
            let whole = strsim::normalized_damerau_levenshtein(key, candidate);
            let name = strsim::normalized_damerau_levenshtein(&last(key), &last(candidate));
            (whole.max(name * 0.9), candidate.as_str())
        })
        .filter(|(similarity, _)| *similarity > 0.6)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_settings_are_told_apart() {
        for section in ["amqp", "destination", "destination.auth", "destination.variables"] {
            assert!(is_section(section), "{section}");
        }
        for setting in ["amqp.url", "amqp.url_file", "destination.auth.scope", "destination.variables.x", "amq"] {
            assert!(!is_section(setting), "{setting}");
        }
        assert_eq!(example_of("topology"), "topology.dead_letter");
    }
}
