//! `{placeholders}` in URLs, headers and parameters, and what is put in their place.

use std::borrow::Cow;
use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but the unreserved characters of RFC 3986, section 2.3: what is put into a URL is one segment or one value of it.
pub(super) const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Values by the names of their placeholders.
pub type Values = BTreeMap<String, String>;

/// Replaces each `{name}` by the value of that name.
///
/// # Errors
/// The name of a value that is not set, or empty.
pub fn fill_in(template: &str, values: &Values) -> Result<String, String> {
    fill(template, values, |_, value| Cow::Borrowed(value))
}

/// Replaces each `{name}` in a URL: a placeholder that begins it as it is (`{api}/leads`), any other one percent-encoded, so that
/// no value can change which host or path is meant.
///
/// # Errors
/// The name of a value that is not set, or empty.
pub fn fill_in_url(template: &str, values: &Values) -> Result<String, String> {
    fill(template, values, |at, value| match at {
        0 => Cow::Borrowed(value),
        _ => utf8_percent_encode(value, RESERVED).into(),
    })
}

fn fill(
    template: &str,
    values: &Values,
    encode: impl for<'a> Fn(usize, &'a str) -> Cow<'a, str>,
) -> Result<String, String> {
    let mut filled = String::with_capacity(template.len());
    for (at, part) in parts(template) {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Placeholder(name) => match values.get(name).filter(|value| !value.is_empty()) {
                Some(value) => filled.push_str(&encode(at, value)),
                None => return Err(name.to_owned()),
            },
        }
    }
    Ok(filled)
}

/// The names of the placeholders in a template.
pub(super) fn placeholders(template: &str) -> impl Iterator<Item = &str> {
    parts(template).into_iter().filter_map(|(_, part)| match part {
        Part::Placeholder(name) => Some(name),
        Part::Text(_) => None,
    })
}

/// Whether a template is one placeholder and nothing else.
pub(super) fn is_placeholder(template: &str) -> bool {
    let name = template.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| placeholders(template).eq([name]))
}

/// A part of a template.
enum Part<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

/// The parts of a template, each with where it begins. A placeholder's name has letters, digits and underscores; any other brace is
/// one, so that JSON can stand in a parameter.
fn parts(template: &str) -> Vec<(usize, Part<'_>)> {
    let mut parts = Vec::new();
    let mut from = 0;
    for (at, _) in template.match_indices('{') {
        let name = template.get(at + 1..).and_then(|rest| rest.split_once('}')).map_or("", |(name, _)| name);
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_name {
            parts.push((from, Part::Text(template.get(from..at).unwrap_or_default())));
            parts.push((at, Part::Placeholder(name)));
            from = at + name.len() + 2;
        }
    }
    parts.push((from, Part::Text(template.get(from..).unwrap_or_default())));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        [("id", "42"), ("api", "http://127.0.0.1:8080"), ("odd", "a/b?c d"), ("empty", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn placeholders_are_filled_in_and_missing_ones_named() {
        assert_eq!(fill_in("/leads/{id}/x", &values()).as_deref(), Ok("/leads/42/x"));
        assert_eq!(fill_in("{odd}", &values()).as_deref(), Ok("a/b?c d"));
        assert_eq!(fill_in("{who}", &values()), Err("who".to_owned()));
        assert_eq!(fill_in("{empty}", &values()), Err("empty".to_owned()));
        for (template, filled) in [
            ("no { end", "no { end"),
            ("{{id}}", "{42}"),
            (r#"{"a":"{id}","b":{}}"#, r#"{"a":"42","b":{}}"#),
            ("{a b}{id}", "{a b}42"),
        ] {
            assert_eq!(fill_in(template, &values()).as_deref(), Ok(filled));
        }
        assert_eq!(placeholders(r#"{api}/{{id}}/{"x":1}"#).collect::<Vec<_>>(), ["api", "id"]);
    }

    #[test]
    fn a_value_in_a_url_stays_one_segment_unless_the_url_begins_with_it() {
        assert_eq!(fill_in_url("{api}/leads/{id}/", &values()).as_deref(), Ok("http://127.0.0.1:8080/leads/42/"));
        assert_eq!(
            fill_in_url("https://h/{odd}?q={odd}", &values()).as_deref(),
            Ok("https://h/a%2Fb%3Fc%20d?q=a%2Fb%3Fc%20d")
        );
        assert_eq!(fill_in_url("{who}/x", &values()), Err("who".to_owned()));
    }
}
