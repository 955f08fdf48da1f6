//! Where each value comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use config::{Config, Value as Given, ValueKind};
use serde::Serialize;
use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

use super::secret::SECRETS;
use super::shown::shown;
use super::source::{Layers, Source};
use super::{ConfigError, env};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The preset of the destination.
    Preset {
        /// Its name.
        name: String,
    },
    /// `leadpost.toml`, or the file that was named instead.
    File {
        /// Its path.
        path: PathBuf,
        /// The line in it.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// `--set`.
    Flag,
    /// A file that holds nothing but this secret.
    SecretFile {
        /// Its path.
        path: PathBuf,
        /// Where the path comes from.
        named_by: Box<Origin>,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Preset { name } => write!(f, "preset {name}"),
            Origin::File { path, line } => write!(f, "{} line {line}", path.display()),
            Origin::Environment { variable } => write!(f, "environment {variable}"),
            Origin::Flag => f.write_str("--set"),
            Origin::SecretFile { path, named_by } => write!(f, "file {}, named by {named_by}", path.display()),
        }
    }
}

/// A setting as it is in effect.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    /// Its key, part by part: the last may hold dots, where it is the user's own.
    #[serde(skip)]
    pub path: Vec<String>,
    /// What it is; of a secret only whether it is set; null: it is not set.
    pub value: Json,
    /// Whether it is a secret.
    pub secret: bool,
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

impl Explained {
    /// Its key.
    pub fn key(&self) -> String {
        self.path.join(".")
    }
}

impl Source {
    /// All settings that count, with secrets hidden, each with where it comes from.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn explain(&self) -> Result<Vec<Explained>, ConfigError> {
        let layers = self.layers()?;
        let file = self.lines()?;
        let preset = leaves_of(&layers.preset.1);
        let origin = |key: &str| {
            if self.flags.iter().any(|(flag, _)| flag == key) {
                return Origin::Flag;
            }
            if let Some(variable) = env::name(&self.env, key) {
                return Origin::Environment { variable };
            }
            if let Some(line) = file.get(key) {
                return Origin::File { path: self.path().to_owned(), line: *line };
            }
            // It does not choose itself.
            if key != "destination.preset" && preset.iter().any(|known| known == key) {
                return Origin::Preset { name: layers.preset.0.clone() };
            }
            Origin::Default
        };
        let mut leaves = Vec::new();
        collect(&shown(&layers.settings), &mut Vec::new(), &mut leaves);
        let explained = leaves.into_iter().filter_map(|(path, value)| {
            let key = path.join(".");
            let secret = SECRETS.contains(&key.as_str());
            // Who names no file has nothing to be told of it.
            if value.is_null() && key.strip_suffix("_file").is_some_and(|of| SECRETS.contains(&of)) {
                return None;
            }
            let origin = match (origin(&key), file_of(&layers, &key)) {
                (Origin::Default, Some(path)) if secret && !value.is_null() => {
                    Origin::SecretFile { path, named_by: Box::new(origin(&format!("{key}_file"))) }
                }
                (origin, _) => origin,
            };
            let value = if secret && !value.is_null() { "(set)".into() } else { value };
            Some(Explained { path, value, secret, origin })
        });
        Ok(explained.collect())
    }

    /// In which line of the file each setting stands.
    fn lines(&self) -> Result<BTreeMap<String, usize>, ConfigError> {
        let content = self.content()?;
        let mut lines = BTreeMap::new();
        // It was read before, so it can be.
        if let Ok(table) = DeTable::parse(&content) {
            collect_lines(&content, table.get_ref(), "", &mut lines);
        }
        Ok(lines)
    }
}

/// The file that holds this secret.
fn file_of(layers: &Layers, key: &str) -> Option<PathBuf> {
    let path = layers.own.get_string(&format!("{key}_file")).ok().filter(|path| !path.is_empty())?;
    Some(PathBuf::from(path))
}

fn collect(value: &Json, path: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, Json)>) {
    match value {
        Json::Object(members) => {
            for (name, member) in members {
                path.push(name.clone());
                collect(member, path, leaves);
                path.pop();
            }
        }
        leaf => leaves.push((path.clone(), leaf.clone())),
    }
}

/// The keys that a layer sets.
fn leaves_of(layer: &Config) -> Vec<String> {
    fn collect(value: &Given, path: &str, leaves: &mut Vec<String>) {
        match &value.kind {
            ValueKind::Table(members) => {
                for (name, member) in members {
                    collect(member, &joined(path, name), leaves);
                }
            }
            _ => leaves.push(path.to_owned()),
        }
    }
    let mut leaves = Vec::new();
    collect(&layer.cache, "", &mut leaves);
    leaves
}

fn collect_lines(content: &str, table: &DeTable<'_>, path: &str, lines: &mut BTreeMap<String, usize>) {
    for (name, value) in table {
        let path = joined(path, name.get_ref());
        match value.get_ref() {
            DeValue::Table(members) => collect_lines(content, members, &path, lines),
            _ => {
                let before = content.get(..name.span().start).unwrap_or_default();
                lines.insert(path, before.matches('\n').count() + 1);
            }
        }
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\n[amqp]\nqueue = 'from-file'\n\n[destination]\npreset = 'kaisa'\n\n[destination.variables]\napi = 'https://h'\n\
                        [flow]\nconcurrency = 7\nbatch = 8\n";

    /// What is said of each key.
    fn explained(
        file: &str,
        env: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> (tempfile::TempDir, BTreeMap<String, Explained>) {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("leadpost.toml");
        std::fs::write(&path, file).expect("a file");
        let source =
            Source { file: Some(path), env: env.iter().map(pair).collect(), flags: flags.iter().map(pair).collect() };
        let all = source.explain().expect("readable");
        (folder, all.into_iter().map(|one| (one.key(), one)).collect())
    }

    #[test]
    fn each_value_says_which_layer_it_comes_from() {
        let env = [("LEADPOST__FLOW__CONCURRENCY", "9"), ("LEADPOST__FLOW__BATCH", "10"), ("AMQP_URL", "amqp://h")];
        let (folder, all) = explained(FILE, &env, &[("flow.batch", "11")]);
        let path = folder.path().join("leadpost.toml");
        let in_file = |line| Origin::File { path: path.clone(), line };
        let by_env = |variable: &str| Origin::Environment { variable: variable.to_owned() };
        for (key, value, origin) in [
            ("amqp.queue", Json::from("from-file"), in_file(3)),
            ("destination.preset", "kaisa".into(), in_file(6)),
            ("destination.variables.api", "https://h".into(), in_file(9)),
            ("flow.concurrency", 9.into(), by_env("LEADPOST__FLOW__CONCURRENCY")),
            ("flow.batch", 11.into(), Origin::Flag),
            ("amqp.url", "(set)".into(), by_env("AMQP_URL")),
            ("destination.request.body", "form".into(), Origin::Preset { name: "kaisa".to_owned() }),
            ("retry.max_attempts", 20.into(), Origin::Default),
            ("postgres.url", Json::Null, Origin::Default),
            ("destination.name", "".into(), Origin::Default),
        ] {
            let one = all.get(key).unwrap_or_else(|| panic!("{key} is missing"));
            assert_eq!((&one.value, &one.origin), (&value, &origin), "{key}");
        }
    }

    #[test]
    fn a_secret_from_a_file_names_the_file_and_who_names_that() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "hunter2\n").expect("a file");
        let path = secret.to_str().expect("UTF-8");
        let variable = "LEADPOST__DESTINATION__AUTH__CLIENT_SECRET_FILE";
        let (_folder, all) = explained("", &[(variable, path)], &[]);
        let one = &all["destination.auth.client_secret"];
        let named_by = Box::new(Origin::Environment { variable: variable.to_owned() });
        assert_eq!((&one.value, one.secret), (&Json::from("(set)"), true));
        assert_eq!(one.origin, Origin::SecretFile { path: secret.clone(), named_by });
        assert_eq!(one.origin.to_string(), format!("file {path}, named by environment {variable}"));
        let json = serde_json::to_value(one).expect("JSON");
        assert_eq!((&json["source"], &json["named_by"]["variable"]), (&"secret_file".into(), &variable.into()));
        assert!(!format!("{all:?}").contains("hunter2"));
    }

    #[test]
    fn what_does_not_count_for_the_way_of_logging_in_is_left_out() {
        let (_folder, all) = explained("", &[], &[("destination.preset", "squadiq")]);
        assert!(
            all.contains_key("destination.auth.bearer_token") && !all.contains_key("destination.auth.client_secret")
        );
        assert!(!all.contains_key("destination.auth.bearer_token_file"), "nobody names a file");
        assert!(all["destination.auth.bearer_token"].value.is_null());
    }
}
