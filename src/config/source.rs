//! Reads the layers and puts them on top of each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Config, File, FileFormat};

use super::keys::{reject_unknown, variable};
use super::secret::{SECRETS, belongs_into_no_file, resolve};
use super::{Auth, Settings, env, preset};

/// The file that is read when none is named; it may be absent.
const DEFAULT_FILE: &str = "leadpost.toml";

/// Everything that is wrong with a configuration, each with what to change.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used:\n{}", .0.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl ConfigError {
    pub(super) fn one(problem: impl Into<String>) -> Self {
        Self(vec![problem.into()])
    }
}

/// Where settings are read from. Tests build it from values; the program from its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file that was named. `None`: `leadpost.toml`, if there is one.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// `section.key=value` from flags.
    pub flags: Vec<(String, String)>,
}

/// The settings, and what they were made of.
pub(super) struct Layers {
    pub(super) settings: Settings,
    /// Those that do not come from the preset.
    pub(super) own: Config,
    /// The preset's name, and what it sets.
    pub(super) preset: (String, Config),
}

impl Source {
    /// The file, and the environment of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        Self { file, env: std::env::vars_os().filter_map(utf8).collect(), flags }
    }

    /// No file, no environment, no flags: the defaults.
    pub fn of_nothing() -> Self {
        Self { file: Some(PathBuf::from("/dev/null")), ..Self::default() }
    }

    /// Reads all layers, resolves secrets and checks the whole.
    ///
    /// # Errors
    /// All problems that were found at the stage that failed.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        let Layers { settings, own, .. } = self.layers()?;
        let mut problems = super::check(&settings).err().unwrap_or_default();
        problems.extend(without_effect(&own, &settings));
        if problems.is_empty() { Ok(settings) } else { Err(ConfigError(problems)) }
    }

    /// Reads all layers and resolves secrets, without asking whether a worker could run with the result. For commands that need
    /// only a part of it.
    ///
    /// # Errors
    /// As [`Source::load`], without the rules across settings.
    pub fn read(&self) -> Result<Settings, ConfigError> {
        self.layers().map(|layers| layers.settings)
    }

    pub(super) fn layers(&self) -> Result<Layers, ConfigError> {
        let file = self.file_layer()?;
        let env = env::layer(&self.env)?;
        let flags = self.flag_layer()?;
        reject_unknown(&[&file, &env, &flags])?;
        let own = merge(&[&file, &env, &flags])?;

        let name = string_at(&own, "destination.preset").unwrap_or_else(|| Settings::default().destination.preset);
        let preset = preset::find(&name).ok_or_else(|| preset::unknown("destination.preset is", &name))?;
        let preset = Config::builder()
            .add_source(File::from_str(preset.toml, FileFormat::Toml))
            .build()
            .map_err(|error| ConfigError::one(format!("preset {name} cannot be read: {error}")))?;

        let whole = merge(&[&preset, &file, &env, &flags])?;
        let mut settings: Settings = whole.try_deserialize().map_err(|error| ConfigError::one(describe(&error)))?;
        resolve(&mut settings, |key| env::name(&self.env, key))?;
        Ok(Layers { settings, own, preset: (name, preset) })
    }

    /// The file that is read.
    pub(super) fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or_else(|| Path::new(DEFAULT_FILE))
    }

    /// What stands in it. Only one that was named has to be there.
    pub(super) fn content(&self) -> Result<String, ConfigError> {
        match std::fs::read_to_string(self.path()) {
            Ok(content) => Ok(content),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.file.is_none() => Ok(String::new()),
            Err(error) => Err(ConfigError::one(format!("{}: {error}", self.path().display()))),
        }
    }

    fn file_layer(&self) -> Result<Config, ConfigError> {
        let path = self.path();
        let problem = |error: &dyn std::fmt::Display| ConfigError::one(format!("{}: {error}", path.display()));
        let content = self.content()?;
        // Parsed here first: the text that `config` makes of an error shows the line, and with it a secret.
        if let Err(error) = toml::from_str::<toml::Table>(&content) {
            let (line, column) = place(&content, error.span().map_or(0, |span| span.start));
            return Err(problem(&format!("line {line}, column {column}: {}", error.message())));
        }
        let layer = Config::builder()
            .add_source(File::from_str(&content, FileFormat::Toml))
            .build()
            .map_err(|_| problem(&"this is not TOML"))?;
        let exposed: Vec<String> = SECRETS
            .iter()
            .filter(|key| layer.get::<config::Value>(key).is_ok_and(|value| belongs_into_no_file(key, value)))
            .map(|key| {
                let variable = variable(key);
                format!("{key} is a secret and does not belong into {}: set {variable}, or {key}_file", path.display())
            })
            .collect();
        if exposed.is_empty() { Ok(layer) } else { Err(ConfigError(exposed)) }
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
            let one = env::one(key, value);
            builder = builder.add_source(
                one.ok_or_else(|| ConfigError::one(format!("--set {key}: a key is written section.name")))?,
            );
        }
        builder.build().map_err(|error| ConfigError::one(describe(&error)))
    }
}

/// Settings of a log-in that are given, and do not count for its kind: whoever set them believes that they do.
fn without_effect(own: &Config, settings: &Settings) -> Vec<String> {
    let kind = settings.destination.auth.kind;
    let defaults = serde_json::to_value(Auth::default()).unwrap_or_default();
    // Whoever only repeats a default, as leadpost.example.toml does, believes nothing.
    let is_default = |key: &str, value: config::Value| {
        let default =
            defaults.get(key).map(|default| default.as_str().map_or_else(|| default.to_string(), str::to_owned));
        default.is_some_and(|default| value.into_string().is_ok_and(|value| value == default))
    };
    let given = own.get_table("destination.auth").unwrap_or_default().into_iter();
    let mut given: Vec<String> =
        given.filter(|(key, value)| !is_default(key, value.clone())).map(|(key, _)| key).collect();
    given.sort();
    given
        .into_iter()
        .filter(|key| !["kind", "headers", "query"].contains(&key.as_str()) && !kind.uses().contains(&key.as_str()))
        .map(|key| {
            let kind = kind.as_str();
            format!("destination.auth.{key} has no effect where destination.auth.kind is {kind:?}; take it out, or set the kind that is meant")
        })
        .collect()
}

fn utf8((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

fn merge(layers: &[&Config]) -> Result<Config, ConfigError> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source((*layer).clone());
    }
    builder.build().map_err(|error| ConfigError::one(describe(&error)))
}

/// What is wrong, without the value: it may be a secret that stands in the wrong place.
fn describe(error: &config::ConfigError) -> String {
    use config::ConfigError as E;
    match error {
        E::Type { unexpected, expected, key, .. } => {
            let found = unexpected.to_string();
            let kind = kind_of(&found);
            format!("{}: this {kind} cannot be read as {expected}", key.as_deref().unwrap_or("a setting"))
        }
        E::At { error, key, .. } => match (&**error, key) {
            (E::Type { key: Some(_), .. }, _) | (_, None) => describe(error),
            (E::Type { unexpected: _, .. }, Some(key)) => describe(error).replacen("a setting", key, 1),
            (_, Some(key)) => format!("{key}: {}", describe(error)),
        },
        // As serde words it: `invalid type: string "…", expected a map`.
        E::Message(text) => match (text.strip_prefix("invalid "), text.rsplit_once(", expected ")) {
            (Some(found), Some((_, expected))) => format!("invalid {}, expected {expected}", kind_of(found)),
            _ => text.clone(),
        },
        E::NotFound(key) => format!("{key} is missing"),
        _ => "it cannot be read".to_owned(),
    }
}

/// The words before a value, such as those of `string "hunter2"`.
fn kind_of(found: &str) -> &str {
    found.split(['"', '`', ',']).next().unwrap_or_default().trim_end()
}

/// The line and the column of a byte, both from 1.
fn place(content: &str, at: usize) -> (usize, usize) {
    let before = content.get(..at).unwrap_or(content);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn string_at(layer: &Config, key: &str) -> Option<String> {
    layer.get_string(key).ok()
}

#[cfg(test)]
mod tests {
    use super::super::known_keys;
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
        let text = problem(&database);
        assert!(text.contains("postgres.url (LEADPOST__POSTGRES__URL) and postgres.url_file"), "{text}");
        assert!(text.contains("are both set"), "{text}");
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
    fn a_secret_in_a_file_is_refused_however_it_looks() {
        for (section, line) in [
            ("destination.auth", "client_secret = 'https://hunter2.example'"),
            ("destination.auth", "client_secret = ['hunter2']"),
            ("postgres", "url = 'postgres://host/db?password=hunter2'"),
            ("amqp", "url = 'hunter2'"),
            ("amqp", "url = ['amqp://me:hunter2@host']"),
        ] {
            let (_folder, file) = with_file(&format!("[{section}]\n{line}"), &[]);
            let text = problem(&file);
            assert!(text.contains("is a secret and does not belong into") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_parsed_names_the_place_and_shows_nothing_of_it() {
        for (content, place) in [
            ("[destination.auth]\nclient_secret = hunter2", "line 2, column 17: "),
            ("[destination.auth]\nclient_secret = \"hunter2", "line 2, column "),
            ("[amqp]\nurl = 'amqp://me:hunter2@h' x", "line 2, column "),
            ("[amqp]\nurl = 'amqp://me:hunter2@h'\nurl = 'hunter2'", "line 3, column 1: "),
        ] {
            let (_folder, file) = with_file(content, &[]);
            let text = problem(&file);
            assert!(text.contains(place) && text.contains("leadpost.toml") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_and_not_shown() {
        for (content, key) in [
            ("[destination.auth]\ntimeout_ms = 'hunter2'", "destination.auth.timeout_ms"),
            ("[destination]\nvariables = 'hunter2'", "destination.variables"),
            ("[destination]\nvariables = { x = ['hunter2'] }", "destination.variables.x"),
            ("[destination]\nauth = 'hunter2'", "destination.auth"),
            ("[amqp]\nprefetch = 65537", "amqp.prefetch"),
            ("[flow]\nbatch = -1", "flow.batch"),
        ] {
            let (_folder, file) = with_file(content, &[]);
            let text = problem(&file);
            assert!(text.contains(key) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_url_and_its_file_from_two_places_are_refused_and_both_are_named() {
        let ours = source(&[("DATABASE_URL", "postgres://h/d"), ("LEADPOST__POSTGRES__URL_FILE", "/x")], &[]);
        let text = problem(&ours);
        assert!(text.contains("DATABASE_URL") && text.contains("LEADPOST__POSTGRES__URL_FILE"), "{text}");
        let (_folder, file) = with_file("[amqp]\nurl_file = '/x'", &[("AMQP_URL", "amqp://h")]);
        let text = problem(&file);
        assert!(text.contains("AMQP_URL") && text.contains("amqp.url_file"), "{text}");
    }

    #[test]
    fn empty_variables_erase_and_hide_nothing() {
        let (_folder, file) = with_file(
            "[postgres]\nurl = 'postgres://h/d'",
            &[("DATABASE_URL", ""), ("AMQP_URL", "amqp://h"), ("LEADPOST__AMQP__URL_FILE", "")],
        );
        let settings = file.read().expect("readable");
        assert_eq!((settings.postgres.url.expose(), settings.amqp.url.expose()), ("postgres://h/d", "amqp://h"));
    }

    #[test]
    fn every_key_can_be_given_by_environment() {
        let settings = |source: &Source| serde_json::to_value(source.read().expect("readable")).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let defaults = settings(&source(&[], &[]));
        let mut given = 0;
        for key in known_keys() {
            let value = match defaults.pointer(&format!("/{}", key.replace('.', "/"))).expect("a default") {
                serde_json::Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
                serde_json::Value::Null | serde_json::Value::Object(_) => continue,
                value => text(value),
            };
            if !value.is_empty() {
                given += 1;
                assert_eq!(settings(&source(&[(&variable(&key), &value)], &[])), defaults, "{key}={value}");
            }
        }
        assert!(given > 45, "{given}");
        let lists = source(&[("LEADPOST__DESTINATION__MANDATORY", "name, email")], &[]).read().expect("readable");
        assert_eq!(lists.destination.mandatory, ["name", "email"]);
    }

    #[test]
    fn status_sets_and_lists_can_be_given_by_environment() {
        let settings =
            source(&[("LEADPOST__DESTINATION__RESPONSE__SUCCESS", "201,204")], &[]).read().expect("readable");
        assert!(settings.destination.response.success.contains(204));
        assert!(!settings.destination.response.success.contains(200));
    }

    #[test]
    fn a_setting_of_another_way_of_logging_in_is_refused() {
        let load = |env: &[(&str, &str)]| {
            let mut env = env.to_vec();
            env.extend([("AMQP_URL", "amqp://h"), ("DATABASE_URL", "postgres://h/d")]);
            source(&env, &[("destination.preset", "squadiq")]).load()
        };
        let token = ("LEADPOST__DESTINATION__AUTH__BEARER_TOKEN", "token");
        let campaign = ("LEADPOST__DESTINATION__VARIABLES__CAMPAIGN_ID", "7");
        load(&[token, campaign]).expect("complete");
        let id = ("LEADPOST__DESTINATION__AUTH__CLIENT_ID", "id");
        let text = load(&[token, campaign, id]).expect_err("refused").to_string();
        assert!(
            text.contains("destination.auth.client_id has no effect where destination.auth.kind is \"bearer\""),
            "{text}"
        );
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
        let given = [
            ("AMQP_URL", "amqp://h"),
            ("DATABASE_URL", "postgres://h/d"),
            ("LEADPOST__DESTINATION__AUTH__CLIENT_ID", "id"),
            ("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "secret"),
        ];
        with_file(example, &given).1.load().expect("with URLs and credentials a worker can start with it");

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
