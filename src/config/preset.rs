//! The presets: what is known of each lead API, as configuration that every key of a user's own overrides.

/// A preset's name and its TOML.
const PRESETS: [(&str, &str); 2] = [
    ("7targets", include_str!("presets/7targets.toml")),
    ("7targets-2024", include_str!("presets/7targets-2024.toml")),
];

/// The TOML of a preset.
pub fn find(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, toml)| *toml)
}

/// The names of all presets.
pub fn names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn every_preset_is_readable_and_names_itself() {
        for name in names() {
            let source = Source {
                file: Some("/dev/null".into()),
                flags: vec![("destination.preset".to_owned(), name.to_owned())],
                ..Source::default()
            };
            let destination = source.read().expect("readable").destination;
            assert_eq!(destination.name(), name);
            assert!(!destination.mandatory.is_empty());
            assert!(destination.request.url.starts_with("https://"));
            assert!(destination.auth.token_url.starts_with("https://"));
        }
    }
}
