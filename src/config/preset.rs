//! The presets: what is known of each lead API, as configuration that every key of a user's own overrides.

use super::ConfigError;

/// A lead API that leadpost knows.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The name that selects it (`destination.preset`).
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// Its configuration, each fact with its source.
    pub toml: &'static str,
}

/// All presets.
pub const PRESETS: [Preset; 8] = [
    Preset {
        name: "7targets",
        summary: "7targets as of 2022: POST /leads with assistantId",
        toml: include_str!("presets/7targets.toml"),
    },
    Preset {
        name: "7targets-2024",
        summary: "7targets since 2023: POST /leads with assistantEmail and a user identifier",
        toml: include_str!("presets/7targets-2024.toml"),
    },
    Preset {
        name: "squadrun",
        summary: "SquadRun v1: leads of a call campaign; password grant with refresh tokens",
        toml: include_str!("presets/squadrun.toml"),
    },
    Preset {
        name: "squadiq",
        summary: "SquadIQ v4: leads of a call campaign; a fixed token",
        toml: include_str!("presets/squadiq.toml"),
    },
    Preset {
        name: "kaisa",
        summary: "Kaisa (Freespee): customers, as a form; client credentials",
        toml: include_str!("presets/kaisa.toml"),
    },
    Preset {
        name: "paya",
        summary: "Paya Connect: contacts; the key of an API user",
        toml: include_str!("presets/paya.toml"),
    },
    Preset {
        name: "paya-session",
        summary: "Paya Connect: contacts; a session by name and password",
        toml: include_str!("presets/paya-session.toml"),
    },
    Preset {
        name: CUSTOM,
        summary: "any other lead API: nothing is preset",
        toml: include_str!("presets/custom.toml"),
    },
];

/// The preset that sets nothing.
pub const CUSTOM: &str = "custom";

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// That there is no preset of this name, and which there are.
pub fn unknown(what: &str, name: &str) -> ConfigError {
    let known: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
    ConfigError::one(format!("{what} {name:?}; the presets are {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Source};

    fn settings(source: &Source) -> serde_json::Value {
        serde_json::to_value(source.read().expect("readable")).expect("JSON")
    }

    #[test]
    fn every_preset_lacks_nothing_but_what_only_its_user_knows() {
        for preset in PRESETS.iter().filter(|preset| preset.name != CUSTOM) {
            let mut source = Source::of_nothing();
            source.env.insert("LEADPOST__DESTINATION__PRESET".to_owned(), preset.name.to_owned());
            source.env.insert("AMQP_URL".to_owned(), "amqp://host".to_owned());
            source.env.insert("DATABASE_URL".to_owned(), "postgres://host/leads".to_owned());
            let missing = config::missing(&source.read().expect("readable").destination);
            for missing in missing {
                assert!(
                    preset.toml.contains(&missing.key.rsplit('.').next().unwrap_or_default().to_uppercase()),
                    "{}: {}",
                    preset.name,
                    missing.key
                );
                source.env.insert(missing.variable(), "something".to_owned());
            }
            let destination = source.load().unwrap_or_else(|error| panic!("{}: {error}", preset.name)).destination;
            assert_eq!(destination.name(), preset.name);
        }
    }

    #[test]
    fn the_preset_for_any_other_api_leaves_every_default_as_it_is() {
        let source =
            Source { flags: vec![("destination.preset".to_owned(), CUSTOM.to_owned())], ..Source::of_nothing() };
        let mut defaults = config::Settings::default();
        defaults.destination.preset = CUSTOM.to_owned();
        assert_eq!(settings(&source), serde_json::to_value(defaults).expect("JSON"));
        let text = source.load().expect_err("incomplete").to_string();
        assert!(
            text.contains("destination.mandatory is empty") && text.contains("destination.request.url is not a URL"),
            "{text}"
        );
    }

    #[test]
    fn presets_of_one_api_differ_in_their_log_in_alone() {
        let of = |name: &str| {
            let flags = vec![("destination.preset".to_owned(), name.to_owned())];
            settings(&Source { flags, ..Source::of_nothing() })["destination"].clone()
        };
        for key in ["mandatory", "optional", "request", "response", "reconcile"] {
            assert_eq!(of("paya")[key], of("paya-session")[key], "{key}");
        }
        for pointer in ["/mandatory", "/optional", "/request/jq", "/response"] {
            assert_eq!(of("squadrun").pointer(pointer), of("squadiq").pointer(pointer), "{pointer}");
        }
    }

    #[test]
    fn a_preset_as_a_file_says_the_same_as_its_name() {
        for preset in PRESETS {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("leadpost.toml");
            std::fs::write(&path, preset.toml).expect("a file");
            let by_file = Source { file: Some(path), ..Source::default() };
            let by_name = Source {
                file: Some("/dev/null".into()),
                flags: vec![("destination.preset".to_owned(), preset.name.to_owned())],
                ..Source::default()
            };
            assert_eq!(settings(&by_file), settings(&by_name), "{}", preset.name);
        }
    }
}
