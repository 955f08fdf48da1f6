//! Sets of HTTP statuses, as a configuration writes them: `201`, `"52x"`, `"5xx"`.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

/// One entry of a [`StatusSet`]: a status, or all that share its first digit or first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pattern {
    low: u16,
    high: u16,
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(['x', 'X']);
        let wild = u32::try_from(text.len() - digits.len()).ok()?;
        let number: u16 = digits.parse().ok()?;
        let width = 10_u16.checked_pow(wild)?;
        let low = number.checked_mul(width)?;
        (text.len() == 3 && wild <= 2 && (100..600).contains(&low)).then_some(Self { low, high: low + width - 1 })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.high - self.low {
            0 => write!(f, "{}", self.low),
            9 => write!(f, "{}x", self.low / 10),
            _ => write!(f, "{}xx", self.low / 100),
        }
    }
}

/// A set of HTTP statuses.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct StatusSet(Vec<Pattern>);

impl StatusSet {
    /// The set of these patterns.
    ///
    /// # Panics
    /// When a pattern is none; for sets that are written in the code.
    #[must_use]
    pub fn of(patterns: &[&str]) -> Self {
        patterns.iter().map(|text| Pattern::parse(text).expect("a status pattern such as 201 or 52x")).collect()
    }

    /// Whether the set holds this status.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|pattern| (pattern.low..=pattern.high).contains(&status))
    }

    /// Whether the set holds no status at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Pattern> for StatusSet {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl fmt::Debug for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(ToString::to_string)).finish()
    }
}

impl Serialize for StatusSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for pattern in &self.0 {
            list.serialize_element(&pattern.to_string())?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for StatusSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Statuses;

        impl Statuses {
            fn pattern<E: de::Error>(text: &str) -> Result<Pattern, E> {
                let problem = || E::custom(format!("{text:?} is no HTTP status; write 201, \"52x\" or \"5xx\""));
                Pattern::parse(text.trim()).ok_or_else(problem)
            }
        }

        impl<'de> Visitor<'de> for Statuses {
            type Value = StatusSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of HTTP statuses such as [201, \"52x\"], or one string with commas")
            }

            // An environment variable holds one string.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.split(',').filter(|part| !part.trim().is_empty()).map(Self::pattern).collect()
            }

            fn visit_i64<E: de::Error>(self, status: i64) -> Result<Self::Value, E> {
                Self::pattern(&status.to_string()).map(|pattern| StatusSet(vec![pattern]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = list.next_element::<Entry>()? {
                    patterns.push(Self::pattern(&entry.0)?);
                }
                Ok(StatusSet(patterns))
            }
        }

        deserializer.deserialize_any(Statuses)
    }
}

/// A status as a number or a string.
struct Entry(String);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Status;

        impl Visitor<'_> for Status {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an HTTP status such as 201 or \"52x\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, status: i64) -> Result<Entry, E> {
                Ok(Entry(status.to_string()))
            }

            fn visit_u64<E: de::Error>(self, status: u64) -> Result<Entry, E> {
                Ok(Entry(status.to_string()))
            }
        }

        deserializer.deserialize_any(Status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_hold_what_they_say_and_print_as_they_were_written() {
        let set = StatusSet::of(&["201", "52x", "3xx"]);
        for status in [201, 520, 529, 300, 399] {
            assert!(set.contains(status), "{status}");
        }
        for status in [200, 202, 519, 530, 299, 400] {
            assert!(!set.contains(status), "{status}");
        }
        assert_eq!(format!("{set:?}"), r#"["201", "52x", "3xx"]"#);
    }

    #[test]
    fn a_list_a_string_and_a_number_are_read_and_anything_else_is_refused() {
        let read = |json: &str| serde_json::from_str::<StatusSet>(json);
        let set = StatusSet::of(&["200", "52x"]);
        assert_eq!(read(r#"[200, "52x"]"#).expect("a list"), set);
        assert_eq!(read(r#""200, 52x""#).expect("a string"), set);
        assert!(read(r#""""#).expect("an empty set").is_empty());
        for bad in [r#"["99"]"#, r#"["600"]"#, r#"["xxx"]"#, r#"["2000"]"#, r#"["20"]"#, r#"[true]"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
