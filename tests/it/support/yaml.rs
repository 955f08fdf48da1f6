//! YAML, as JSON has it: compose files, manifests, rules.

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

/// The documents of this text.
pub fn documents(text: &str) -> Vec<Value> {
    YamlLoader::load_from_str(text).unwrap().into_iter().map(value).collect()
}

fn value(yaml: Yaml) -> Value {
    match yaml {
        Yaml::Real(number) => number.parse::<f64>().unwrap().into(),
        Yaml::Integer(number) => number.into(),
        Yaml::String(text) => text.into(),
        Yaml::Boolean(is_true) => is_true.into(),
        Yaml::Array(items) => items.into_iter().map(value).collect(),
        Yaml::Hash(members) => {
            members.into_iter().map(|(key, member)| (key.into_string().unwrap(), value(member))).collect()
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("{yaml:?}"),
    }
}
