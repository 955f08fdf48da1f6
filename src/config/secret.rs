//! A value that cannot be printed, and where such values come from.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::{ConfigError, Settings};

/// The keys that hold a secret, each of which has a sister with `_file` at its end.
pub(super) const SECRETS: [&str; 7] = [
    "amqp.url",
    "postgres.url",
    "destination.auth.client_secret",
    "destination.auth.password",
    "destination.auth.api_key",
    "destination.auth.bearer_token",
    "admin.token",
];

/// A secret setting, or the absence of one. `Debug` and `Serialize` show only whether it is set.
#[derive(Clone, Default)]
pub struct Secret(Option<SecretString>);

impl Secret {
    /// A secret with this value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Some(SecretString::from(value.into())))
    }

    /// Whether there is a value at all.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// The value, `""` when none is set. To be called where it goes over the wire, and nowhere else.
    pub fn expose(&self) -> &str {
        self.0.as_ref().map_or("", ExposeSecret::expose_secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "(secret)" } else { "(not set)" })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(_) => serializer.serialize_str("(secret)"),
            None => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A set but empty variable, as compose files produce it, is no secret.
        let value = Option::<String>::deserialize(deserializer)?.filter(|value| !value.is_empty());
        Ok(Self(value.map(SecretString::from)))
    }
}

/// Whether a value of one of the [`SECRETS`] must not stand in `leadpost.toml`: a client's secret always, a URL with a password.
pub(super) fn belongs_into_no_file(key: &str, value: config::Value) -> bool {
    // What is no text is refused as well, before anyone tries to read and to print it.
    value.into_string().map_or(true, |text| {
        !text.is_empty() && (!key.ends_with(".url") || Url::parse(&text).map_or(true, |url| has_password(&url)))
    })
}

fn has_password(url: &Url) -> bool {
    url.password().is_some() || url.query_pairs().any(|(name, _)| name.to_ascii_lowercase().contains("password"))
}

/// Reads the files that `…_file` keys name. `given_by` names the environment variable that sets a key, if one does.
///
/// # Errors
/// One problem for each secret that is set twice, and for each file that cannot be read.
pub(super) fn resolve(settings: &mut Settings, given_by: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    let auth = &mut settings.destination.auth;
    let named = |key: &str| given_by(key).map_or_else(|| key.to_owned(), |variable| format!("{key} ({variable})"));
    let mut problems = Vec::new();
    for (key, secret, file) in [
        (SECRETS[0], &mut settings.amqp.url, &settings.amqp.url_file),
        (SECRETS[1], &mut settings.postgres.url, &settings.postgres.url_file),
        (SECRETS[2], &mut auth.client_secret, &auth.client_secret_file),
        (SECRETS[3], &mut auth.password, &auth.password_file),
        (SECRETS[4], &mut auth.api_key, &auth.api_key_file),
        (SECRETS[5], &mut auth.bearer_token, &auth.bearer_token_file),
        (SECRETS[6], &mut settings.admin.token, &settings.admin.token_file),
    ] {
        let Some(path) = file.as_deref().filter(|path| !path.as_os_str().is_empty()) else { continue };
        if secret.is_set() {
            let (value, file) = (named(key), named(&format!("{key}_file")));
            problems.push(format!("{value} and {file} are both set; unset one of them"));
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
