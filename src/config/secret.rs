//! A value that cannot be printed.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
