//! Reads the layers and puts them on top of each other.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat, Map, Value, ValueKind};
use serde_json::Value as Json;

use super::{Secret, Settings, preset};

/// The file that is read when none is named; it may be absent.
const DEFAULT_FILE: &str = "leadpost.toml";

/// Keys whose subkeys the user chooses.
const OPEN_TABLES: [&str; 2] = ["destination.variables", "destination.request.headers"];

/// The keys that hold a secret, each of which has a sister with `_file` at its end.
const SECRETS: [&str; 3] = ["amqp.url", "postgres.url", "destination.auth.client_secret"];

/// Everything that is wrong with a configuration, each with what to change.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used:\n{}", .0.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl ConfigError {
    fn one(problem: impl Into<String>) -> Self {
        Self(vec![problem.into()])
    }
}

/// Where settings are read from. Tests build it from values; the program from its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file that was named. `None`: `leadpost.toml`, if there is one.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: HashMap<String, String>,
    /// `section.key=value` from flags.
    pub flags: Vec<(String, String)>,
}

impl Source {
    /// The file, and the environment of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        Self { file, env: std::env::vars_os().filter_map(utf8).collect(), flags }
    }

    /// Reads all layers, resolves secrets and checks the whole.
    ///
    /// # Errors
    /// All problems that were found at the stage that failed.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        let settings = self.read()?;
        super::check(&settings).map_err(ConfigError)?;
        Ok(settings)
    }

    /// Reads all layers and resolves secrets, without asking whether a worker could run with the result. For commands that need
    /// only a part of it.
    ///
    /// # Errors
    /// As [`Source::load`], without the rules across settings.
    pub fn read(&self) -> Result<Settings, ConfigError> {
        let file = self.file_layer()?;
        let env = self.env_layer();
        let flags = self.flag_layer()?;
        let own = merge(&[&file, &env, &flags])?;
        reject_unknown(&own)?;

        let name = string_at(&own, "destination.preset").unwrap_or_else(|| Settings::default().destination.preset);
        let preset = preset::find(&name).ok_or_else(|| {
            let known = preset::names().join(", ");
            ConfigError::one(format!("destination.preset is {name:?}; the presets are {known}"))
        })?;
        let preset = Config::builder()
            .add_source(File::from_str(preset, FileFormat::Toml))
            .build()
            .map_err(|error| ConfigError::one(format!("preset {name} cannot be read: {error}")))?;

        let whole = merge(&[&preset, &file, &env, &flags])?;
        let mut settings: Settings = whole.try_deserialize().map_err(|error| ConfigError::one(error.to_string()))?;
        resolve_secrets(&mut settings)?;
        Ok(settings)
    }

    fn file_layer(&self) -> Result<Config, ConfigError> {
        let (path, required) = match &self.file {
            Some(path) => (path.as_path(), true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        let problem = |error: &dyn std::fmt::Display| ConfigError::one(format!("{}: {error}", path.display()));
        let content = match std::fs::read_to_string(path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
            Err(error) => return Err(problem(&error)),
        };
        let layer = Config::builder()
            .add_source(File::from_str(&content, FileFormat::Toml))
            .build()
            .map_err(|error| problem(&error))?;
        let exposed: Vec<String> = SECRETS
            .iter()
            .filter(|key| string_at(&layer, key).is_some_and(|value| is_secret(&value)))
            .map(|key| {
                let variable = variable(key);
                format!("{key} is a secret and does not belong into {}: set {variable}, or {key}_file", path.display())
            })
            .collect();
        if exposed.is_empty() { Ok(layer) } else { Err(ConfigError(exposed)) }
    }

    fn env_layer(&self) -> Config {
        let mut known: HashMap<String, String> = HashMap::new();
        for (name, key) in [("DATABASE_URL", "postgres.url"), ("AMQP_URL", "amqp.url")] {
            let file_variable = format!("{}_FILE", variable(key));
            if let Some(value) = self.env.get(name)
                && !self.env.contains_key(&file_variable)
            {
                known.insert(variable(key), value.clone());
            }
        }
        for (name, value) in &self.env {
            // An empty variable is one that a compose file passed on without a value.
            if name.starts_with("LEADPOST__") && !value.is_empty() {
                known.insert(name.clone(), value.clone());
            }
        }
        let layer = Environment::with_prefix("LEADPOST")
            .prefix_separator("__")
            .separator("__")
            .source(Some(known.into_iter().collect::<Map<_, _>>()));
        // Strings from a map cannot fail to be read.
        Config::builder().add_source(layer).build().unwrap_or_default()
    }

    fn flag_layer(&self) -> Result<Config, ConfigError> {
        let mut builder = Config::builder();
        for (key, value) in &self.flags {
            if SECRETS.contains(&key.as_str()) {
                return Err(ConfigError::one(format!(
                    "{key} is a secret and cannot be given by flag: set {}, or {key}_file",
                    variable(key)
                )));
            }
            builder = builder
                .set_override(key, value.as_str())
                .map_err(|error| ConfigError::one(format!("--set {key}: {error}")))?;
        }
        builder.build().map_err(|error| ConfigError::one(error.to_string()))
    }
}

fn utf8((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("LEADPOST__{}", key.to_uppercase().replace('.', "__"))
}

/// A client secret always is one; a URL only with a password in it.
fn is_secret(value: &str) -> bool {
    !value.is_empty() && url::Url::parse(value).map_or(true, |url| url.password().is_some())
}

fn merge(layers: &[&Config]) -> Result<Config, ConfigError> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source((*layer).clone());
    }
    builder.build().map_err(|error| ConfigError::one(error.to_string()))
}

fn string_at(layer: &Config, key: &str) -> Option<String> {
    layer.get_string(key).ok()
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

/// Finds keys that nobody knows, in all layers at once, and names the nearest that is known.
fn reject_unknown(own: &Config) -> Result<(), ConfigError> {
    let known = known_keys();
    let mut given = Vec::new();
    collect_given(&own.cache, "", &mut given);
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

/// Reads the files that `…_file` keys name.
fn resolve_secrets(settings: &mut Settings) -> Result<(), ConfigError> {
    let auth = &mut settings.destination.auth;
    let mut problems = Vec::new();
    for (key, secret, file) in [
        ("amqp.url", &mut settings.amqp.url, &settings.amqp.url_file),
        ("postgres.url", &mut settings.postgres.url, &settings.postgres.url_file),
        ("destination.auth.client_secret", &mut auth.client_secret, &auth.client_secret_file),
    ] {
        let Some(path) = file.as_deref().filter(|path| !path.as_os_str().is_empty()) else { continue };
        if secret.is_set() {
            problems.push(format!("{key} and {key}_file are both set; unset one of them"));
            continue;
        }
        match std::fs::read_to_string(path) {
            // Editors and `echo` end a file with a line break that is not part of the secret.
            Ok(content) if !content.trim_end_matches(['\r', '\n']).is_empty() => {
                *secret = Secret::new(content.trim_end_matches(['\r', '\n']));
            }
            Ok(_) => problems.push(format!("{key}_file names {}, which is empty", path.display())),
            Err(error) => problems.push(format!("{key}_file names {}, which cannot be read: {error}", path.display())),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(env: &[(&str, &str)], flags: &[(&str, &str)]) -> Source {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Source {
            file: Some(PathBuf::from("/dev/null")),
            env: env.iter().map(pair).collect(),
            flags: flags.iter().map(pair).collect(),
        }
    }

    fn with_file(content: &str, env: &[(&str, &str)]) -> (tempfile::TempDir, Source) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("leadpost.toml");
        std::fs::write(&path, content).expect("a file");
        (folder, Source { file: Some(path), ..source(env, &[]) })
    }

    fn problem(source: &Source) -> String {
        source.read().expect_err("must be refused").to_string()
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_preset_beats_defaults() {
        let (_folder, mut source) = with_file("[amqp]\nqueue = 'from-file'\n[flow]\nconcurrency = 7\nbatch = 8", &[]);
        let settings = source.read().expect("readable");
        assert_eq!((settings.amqp.queue.as_str(), settings.flow.concurrency), ("from-file", 7));
        assert_eq!(settings.retry.max_attempts, 20, "a default");
        assert_eq!(settings.destination.auth.scope, "leads/post", "from the preset");
        source.env.insert("LEADPOST__AMQP__QUEUE".to_owned(), "from-env".to_owned());
        source.env.insert("LEADPOST__FLOW__CONCURRENCY".to_owned(), "9".to_owned());
        source.flags.push(("flow.concurrency".to_owned(), "11".to_owned()));
        let settings = source.read().expect("readable");
        assert_eq!((settings.amqp.queue.as_str(), settings.flow.concurrency, settings.flow.batch), ("from-env", 11, 8));
    }

    #[test]
    fn the_usual_url_variables_are_understood_and_ours_win() {
        let settings =
            source(&[("DATABASE_URL", "postgres://a/b"), ("AMQP_URL", "amqp://c")], &[]).read().expect("readable");
        assert_eq!((settings.postgres.url.expose(), settings.amqp.url.expose()), ("postgres://a/b", "amqp://c"));
        let both = source(&[("DATABASE_URL", "postgres://a/b"), ("LEADPOST__POSTGRES__URL", "postgres://x/y")], &[]);
        assert_eq!(both.read().expect("readable").postgres.url.expose(), "postgres://x/y");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let text = problem(&source(&[("LEADPOST__FLOW__CONCURENCY", "3")], &[]));
        assert!(text.contains("no setting flow.concurency; did you mean flow.concurrency?"), "{text}");
        let (_folder, file) =
            with_file("[retry]\nmax_atempts = 3\n[worker]\nqueue = 'x'\n[destination.response]\nsucces = [1]", &[]);
        let text = problem(&file);
        assert!(text.contains("did you mean retry.max_attempts?"), "{text}");
        assert!(text.contains("did you mean amqp.queue?"), "{text}");
        assert!(text.contains("did you mean destination.response.success?"), "{text}");
    }

    #[test]
    fn secrets_are_refused_in_the_file_and_by_flag() {
        let (_folder, file) = with_file("[destination.auth]\nclient_secret = 'hunter2'", &[]);
        let text = problem(&file);
        assert!(text.contains("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET") && !text.contains("hunter2"), "{text}");
        let (_folder, file) = with_file("[amqp]\nurl = 'amqp://me:hunter2@host'", &[]);
        assert!(!problem(&file).contains("hunter2"));
        let (_folder, file) = with_file("[amqp]\nurl = 'amqp://host'", &[]);
        assert_eq!(file.read().expect("no password in it").amqp.url.expose(), "amqp://host");
        let text = problem(&source(&[], &[("destination.auth.client_secret", "hunter2")]));
        assert!(text.contains("cannot be given by flag") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_secret_comes_from_its_file_without_the_line_break_and_not_from_two_places() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        std::fs::write(&path, "007 with spaces \n").expect("a file");
        let path = path.to_str().expect("UTF-8");
        let variable = "LEADPOST__DESTINATION__AUTH__CLIENT_SECRET_FILE";
        let settings = source(&[(variable, path)], &[]).read().expect("readable");
        assert_eq!(settings.destination.auth.client_secret.expose(), "007 with spaces ");
        let both = source(&[(variable, path), ("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "x")], &[]);
        assert!(problem(&both).contains("both set"));
        let database = source(&[("LEADPOST__POSTGRES__URL_FILE", path), ("LEADPOST__POSTGRES__URL", "x")], &[]);
        assert!(problem(&database).contains("postgres.url and postgres.url_file are both set"));
        assert!(problem(&source(&[(variable, "/nowhere/at/all")], &[])).contains("cannot be read"));
    }

    #[test]
    fn a_secret_of_digits_keeps_every_one_of_them() {
        let env = [
            ("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "0071e3"),
            ("LEADPOST__DESTINATION__AUTH__CLIENT_ID", "0012"),
        ];
        let auth = source(&env, &[]).read().expect("readable").destination.auth;
        assert_eq!((auth.client_secret.expose(), auth.client_id.as_str()), ("0071e3", "0012"));
    }

    #[test]
    fn nothing_secret_is_ever_printed() {
        let env =
            [("DATABASE_URL", "postgres://me:hunter2@h/d"), ("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "hunter2")];
        let settings = source(&env, &[]).read().expect("readable");
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&settings).expect("JSON").contains("hunter2"));
    }

    #[test]
    fn status_sets_and_lists_can_be_given_by_environment() {
        let settings =
            source(&[("LEADPOST__DESTINATION__RESPONSE__SUCCESS", "201,204")], &[]).read().expect("readable");
        assert!(settings.destination.response.success.contains(204));
        assert!(!settings.destination.response.success.contains(200));
    }

    #[test]
    fn an_unknown_preset_lists_those_there_are() {
        let text = problem(&source(&[("LEADPOST__DESTINATION__PRESET", "8targets")], &[]));
        assert!(text.contains("7targets, 7targets-2024"), "{text}");
    }

    #[test]
    fn the_example_file_can_be_read_and_names_every_key_with_its_default() {
        let example = include_str!("../../leadpost.example.toml");
        let (_folder, file) = with_file(example, &[]);
        file.read().expect("the example is a valid file");

        // Lines that are commented out name keys too; without their comment sign the file must still be valid.
        let uncommented: String =
            example.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
        let parsed: toml::Value = toml::from_str(&uncommented).expect("TOML with every key switched on");
        let parsed = serde_json::to_value(parsed).expect("JSON");
        let defaults = serde_json::to_value(
            Source { file: Some(PathBuf::from("/dev/null")), ..Source::default() }.read().expect("defaults"),
        )
        .expect("JSON");
        for key in known_keys() {
            let pointer = format!("/{}", key.replace('.', "/"));
            let in_example = parsed.pointer(&pointer);
            assert!(in_example.is_some(), "leadpost.example.toml does not name {key}");
            let default = defaults.pointer(&pointer).expect("a default");
            if !default.is_null() && !SECRETS.contains(&key.as_str()) {
                assert_eq!(in_example, Some(default), "leadpost.example.toml shows another default for {key}");
            }
        }
    }
}
