//! Bytes to fields: is it a JSON object at all, and which keys does it have?
//!
//! The values stay the slices of the message that they are ([`RawValue`]), so that decoding costs one pass over the bytes and
//! loses nothing of them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::{Code, Violation};

/// Keys beyond this number are searched in a set instead of one after the other.
const LINEAR_SEARCH: usize = 32;

/// The fields of a JSON object in the order in which they came, with unparsed values.
pub struct Fields<'a> {
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Reads the object, or says why it is none.
    ///
    /// # Errors
    /// The one violation that makes it pointless to look at fields. A key that stands twice is not among them: it is found
    /// by [`Fields::repeated`], so that the other violations are reported too.
    pub fn decode(body: &'a [u8], max_bytes: usize) -> Result<Self, Violation> {
        if body.is_empty() {
            return Err(Violation::of_message(Code::Empty, "the message has no body; it must be a JSON object"));
        }
        if body.len() > max_bytes {
            let message = format!("the message has {} bytes; at most {max_bytes} are allowed", body.len());
            return Err(Violation::of_message(Code::TooLarge, message));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            let message = format!("the body is not UTF-8: byte {} is not part of a character", error.valid_up_to());
            Violation::of_message(Code::NotUtf8, message)
        })?;
        // Some producers write a byte order mark. RFC 8259, section 8.1 allows to ignore it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        serde_json::from_str(text).map_err(|error| match error.classify() {
            Category::Data => {
                Violation::of_message(Code::NotAnObject, "the body is JSON, but not an object with the lead's fields")
            }
            Category::Syntax | Category::Eof | Category::Io => {
                let message =
                    format!("the body is not JSON: line {}, column {} cannot be read", error.line(), error.column());
                Violation::of_message(Code::NotJson, message)
            }
        })
    }

    /// The fields in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.entries.iter().map(|(key, value)| (key.as_ref(), *value))
    }

    /// The first value under this key.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    /// How many fields there are, repeated ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the object is `{}`.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The keys that stand more than once, each once.
    pub fn repeated(&self) -> Vec<&str> {
        let mut repeated: Vec<&str> = Vec::new();
        if self.entries.len() <= LINEAR_SEARCH {
            for (at, (key, _)) in self.entries.iter().enumerate() {
                let key = key.as_ref();
                if self.entries.iter().take(at).any(|(earlier, _)| earlier == key) && !repeated.contains(&key) {
                    repeated.push(key);
                }
            }
        } else {
            let mut keys: Vec<&str> = self.entries.iter().map(|(key, _)| key.as_ref()).collect();
            keys.sort_unstable();
            repeated = keys.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
            repeated.dedup();
        }
        repeated
    }
}

impl fmt::Debug for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fields").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::with_capacity(16);
                while let Some((Key(key), value)) = map.next_entry()? {
                    entries.push((key, value));
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(Object).map(|entries| Fields { entries })
    }
}

/// A key, borrowed from the message unless it is written with escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1024;

    fn code(body: &[u8]) -> Code {
        Fields::decode(body, MAX).expect_err("must be refused").code
    }

    #[test]
    fn each_way_of_not_being_an_object_has_its_own_code() {
        assert_eq!(code(b""), Code::Empty);
        assert_eq!(code(&[b' '; MAX + 1]), Code::TooLarge);
        assert_eq!(code(b"{\"name\":\"\xff\"}"), Code::NotUtf8);
        assert_eq!(code(b"name=Ann"), Code::NotJson);
        assert_eq!(code(b"{\"name\":\"Ann\""), Code::NotJson);
        assert_eq!(code(b"{} {}"), Code::NotJson);
        assert_eq!(code(b"   "), Code::NotJson);
        for other in ["[]", "[{}]", "\"text\"", "12", "null", "true"] {
            assert_eq!(code(other.as_bytes()), Code::NotAnObject, "{other}");
        }
    }

    #[test]
    fn values_keep_every_byte() {
        let body = br#"{"a": 12345678901234567890123 , "b":1.10, "c" : "\u00e9" }"#;
        let fields = Fields::decode(body, MAX).expect("an object");
        let values: Vec<_> = fields.iter().map(|(key, value)| (key.to_owned(), value.get())).collect();
        assert_eq!(
            values,
            [("a".to_owned(), "12345678901234567890123"), ("b".to_owned(), "1.10"), ("c".to_owned(), r#""\u00e9""#)]
        );
    }

    #[test]
    fn a_byte_order_mark_is_ignored() {
        assert!(Fields::decode("\u{feff}{\"a\":1}".as_bytes(), MAX).is_ok());
    }

    #[test]
    fn repeated_keys_are_found_also_when_one_is_escaped_and_when_there_are_many() {
        let fields = Fields::decode(br#"{"name":1,"b":2,"\u006eame":3,"b":4,"b":5}"#, MAX).expect("an object");
        assert_eq!(fields.repeated(), ["name", "b"]);
        let many: Vec<String> = (0..80).map(|n| format!("\"k{}\":0", n % 79)).collect();
        let body = format!("{{{}}}", many.join(","));
        assert_eq!(Fields::decode(body.as_bytes(), MAX).expect("an object").repeated(), ["k0"]);
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let body = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::decode(body.as_bytes(), 1 << 20).is_ok(), "values are not looked into");
    }

    proptest! {
        #[test]
        fn decode_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _outcome = Fields::decode(&body, MAX);
        }

        #[test]
        fn decode_keeps_what_any_object_says(map in proptest::collection::btree_map(".{0,8}", ".{0,16}", 0..12)) {
            let body = serde_json::to_vec(&map).expect("strings are JSON");
            let fields = Fields::decode(&body, 1 << 20).expect("an object");
            prop_assert_eq!(fields.len(), map.len());
            for (key, value) in fields.iter() {
                let text: String = serde_json::from_str(value.get()).expect("a string");
                prop_assert_eq!(Some(&text), map.get(key));
            }
        }
    }
}
