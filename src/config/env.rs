//! The environment: `LEADPOST__SECTION__KEY`, and the usual names of the two URLs.
//!
//! An empty variable is one that a compose file passed on without a value; it says nothing.

use std::collections::BTreeMap;

use config::Config;

use super::ConfigError;
use super::keys::{example_of, is_section, variable};

const PREFIX: &str = "LEADPOST__";

/// Variables that others use as well; ours win.
const ALIASES: [(&str, &str); 2] = [("DATABASE_URL", "postgres.url"), ("AMQP_URL", "amqp.url")];

/// The settings that the environment gives.
///
/// # Errors
/// Variables that name no setting but a section, and those that only look like ours.
pub(super) fn layer(env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let mut builder = Config::builder();
    let mut problems = Vec::new();
    // In the order of their names, and ours last, so that the same environment always gives the same settings.
    let aliases = ALIASES.iter().filter_map(|(name, key)| Some((*name, (*key).to_owned(), env.get(*name)?)));
    let ours = env.iter().filter_map(|(name, value)| Some((name.as_str(), key_of(name)?, value)));
    for (name, key, value) in aliases.chain(ours).filter(|(.., value)| !value.is_empty()) {
        if is_section(&key) {
            let example = variable(&example_of(&key));
            problems.push(format!("{name} names a section, not a setting; a setting of it is {example}"));
        }
        match one(&key, value) {
            Some(one) => builder = builder.add_source(one),
            None => problems.push(format!("{name} is no setting; write {PREFIX}SECTION__KEY")),
        }
    }
    for name in env.iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name) {
        if let Some(rest) = name.strip_prefix("LEADPOST_")
            && rest.contains("__")
            && key_of(name).is_none()
        {
            problems.push(format!("{name} is not read; write {PREFIX}{rest}, with two underscores after LEADPOST"));
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    builder.build().map_err(|_| ConfigError::one("the environment cannot be read"))
}

/// One setting as a layer of its own, so that layers of many are put together in their order: a builder's overrides have none.
pub(super) fn one(key: &str, value: &str) -> Option<Config> {
    Config::builder().set_override(key, value).ok()?.build().ok()
}

/// The variable that sets this key, if one does.
pub(super) fn name(env: &BTreeMap<String, String>, key: &str) -> Option<String> {
    let alias = ALIASES.iter().find(|(_, of)| *of == key).map(|(name, _)| (*name).to_owned());
    let is_set = |name: &String| env.get(name).is_some_and(|value| !value.is_empty());
    std::iter::once(variable(key)).chain(alias).find(is_set)
}

fn key_of(name: &str) -> Option<String> {
    Some(name.strip_prefix(PREFIX)?.to_lowercase().replace("__", "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        layer(&env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_variable_that_names_a_section_is_refused() {
        for (name, example) in [
            ("LEADPOST__AMQP", "LEADPOST__AMQP__HEARTBEAT_S"),
            ("LEADPOST__DESTINATION__VARIABLES", "LEADPOST__DESTINATION__VARIABLES__NAME"),
        ] {
            let text = read(&[(name, "1"), ("LEADPOST__AMQP__QUEUE", "mine")]).expect_err("a section").to_string();
            assert!(text.contains(&format!("{name} names a section")) && text.contains(example), "{text}");
        }
    }

    #[test]
    fn a_single_underscore_after_the_prefix_is_refused_with_the_right_spelling() {
        let text = read(&[("LEADPOST_FLOW__BATCH", "7")]).expect_err("misspelt").to_string();
        assert!(text.contains("write LEADPOST__FLOW__BATCH"), "{text}");
        for fine in ["LEADPOST_CONFIG", "LEADPOST_SERVICES_WAIT", "LEADPOST_SANDBOX_CLIENT_SECRET", "OTHER_A__B"] {
            assert!(read(&[(fine, "7")]).is_ok(), "{fine}");
        }
    }

    #[test]
    fn an_empty_variable_says_nothing() {
        let names = ["LEADPOST__AMQP", "LEADPOST_FLOW__BATCH", "DATABASE_URL", "LEADPOST__AMQP__URL", "LEADPOST__X"];
        let layer = read(&names.map(|name| (name, ""))).expect("nothing");
        assert!(layer.cache.into_table().expect("a table").is_empty());
    }

    #[test]
    fn variables_that_exclude_each_other_come_to_the_same_every_time() {
        for _ in 0..50 {
            let layer = read(&[("LEADPOST__AMQP__QUEUE__X", "1"), ("LEADPOST__AMQP__QUEUE", "mine")]).expect("a layer");
            assert_eq!(layer.get_string("amqp.queue.x").expect("the later one"), "1");
        }
    }
}
