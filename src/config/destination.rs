//! The settings of a lead API: where leads go, how to log in, and what to post.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ResponseRules, Secret, lists};

/// A lead API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Destination {
    /// The preset whose values the ones below override.
    pub preset: String,
    /// The name under which the ledger keeps its leads. Empty: the preset's.
    pub name: String,
    /// The fields without which a lead is not posted.
    #[serde(deserialize_with = "lists::texts")]
    pub mandatory: Vec<String>,
    /// The further fields that its contract names.
    #[serde(deserialize_with = "lists::texts")]
    pub optional: Vec<String>,
    /// What to do with a lead that may have been posted: `retry` or `hold`.
    pub on_uncertain: OnUncertain,
    /// Values for `{placeholders}` in URLs and headers.
    pub variables: BTreeMap<String, String>,
    /// How to log in.
    pub auth: Auth,
    /// How to post.
    pub request: Request,
    /// How to read the answers.
    pub response: ResponseRules,
}

impl Default for Destination {
    fn default() -> Self {
        Self {
            preset: "7targets".to_owned(),
            name: String::new(),
            mandatory: Vec::new(),
            optional: Vec::new(),
            on_uncertain: OnUncertain::default(),
            variables: BTreeMap::new(),
            auth: Auth::default(),
            request: Request::default(),
            response: ResponseRules::default(),
        }
    }
}

impl Destination {
    /// The name under which the ledger keeps its leads.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { &self.preset } else { &self.name }
    }
}

/// What becomes of a lead that may have been posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUncertain {
    /// It is posted again, at the risk of a double post.
    #[default]
    Retry,
    /// It is held for a person, at the risk of a late lead.
    Hold,
}

/// OAuth 2.0 client credentials (RFC 6749, section 4.4).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The token endpoint.
    pub token_url: String,
    /// The client's id.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// A file that holds the client's secret.
    pub client_secret_file: Option<PathBuf>,
    /// The scope to ask for; empty: none.
    pub scope: String,
    /// How long a token is taken to live when the answer does not say.
    pub default_lifetime_ms: u64,
    /// How long asking for a token may take.
    pub timeout_ms: u64,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            token_url: String::new(),
            client_id: String::new(),
            client_secret: Secret::default(),
            client_secret_file: None,
            scope: String::new(),
            default_lifetime_ms: 300_000,
            timeout_ms: 10_000,
        }
    }
}

/// The post.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Where leads are posted.
    pub url: String,
    /// Further headers, with `{placeholders}`.
    pub headers: BTreeMap<String, String>,
    /// How long a post may take in all.
    pub timeout_ms: u64,
    /// How long connecting may take.
    pub connect_timeout_ms: u64,
    /// After how long an idle connection is closed; must be shorter than the API's own limit.
    pub idle_timeout_ms: u64,
    /// How much of an answer is read.
    pub max_answer_bytes: usize,
    /// `none`, `env` (HTTPS_PROXY and its kin) or a proxy's URL.
    pub proxy: String,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            url: String::new(),
            headers: BTreeMap::new(),
            timeout_ms: 30_000,
            connect_timeout_ms: 5_000,
            idle_timeout_ms: 4_000,
            max_answer_bytes: 64 * 1024,
            proxy: "none".to_owned(),
        }
    }
}

/// Replaces `{name}` by the variable of that name.
///
/// # Errors
/// The name of a variable that is not set, or empty.
pub fn fill_in(template: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, behind)) = after.split_once('}') else { break };
        filled.push_str(before);
        match variables.get(name).filter(|value| !value.is_empty()) {
            Some(value) => filled.push_str(value),
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

    #[test]
    fn placeholders_are_filled_and_missing_ones_are_named() {
        let variables = BTreeMap::from([("id".to_owned(), "7".to_owned()), ("blank".to_owned(), String::new())]);
        assert_eq!(fill_in("/a/{id}/{id}", &variables), Ok("/a/7/7".to_owned()));
        assert_eq!(fill_in("/plain", &variables), Ok("/plain".to_owned()));
        assert_eq!(fill_in("/{other}", &variables), Err("other".to_owned()));
        assert_eq!(fill_in("/{blank}", &variables), Err("blank".to_owned()));
    }
}
