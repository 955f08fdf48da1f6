//! Lists of texts, as a configuration writes them: a list in a file, one string with commas in an environment variable.

use std::fmt;

use serde::de::{self, Deserialize as _, Deserializer, SeqAccess, Visitor};

/// Reads a list of texts.
///
/// # Errors
/// When it is neither a list of texts nor one string.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;

    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts, or one string with commas")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(list))
        }
    }

    deserializer.deserialize_any(Texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_and_a_string_with_commas_say_the_same() {
        let read = |json: &str| texts(&mut serde_json::Deserializer::from_str(json));
        assert_eq!(read(r#"["a b", "c"]"#).expect("a list"), ["a b", "c"]);
        assert_eq!(read(r#"" a b, c,""#).expect("a string"), ["a b", "c"]);
        assert!(read("7").is_err());
    }
}
