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
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, behind)) = after.split_once('}') else { break };
        filled.push_str(before);
        match values.get(name).filter(|value| !value.is_empty()) {
            Some(value) => filled.push_str(&encode(template.len() - rest.len() + before.len(), value)),
            None => return Err(name.to_owned()),
        }
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
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
        assert_eq!(fill_in("no { end", &values()).as_deref(), Ok("no { end"));
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
