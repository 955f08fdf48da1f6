//! The settings of a lead API: where leads go, how to log in, and what to post.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Auth, ResponseRules, StatusSet, Tls, lists};

/// A lead API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Destination {
    /// The preset whose values the ones below override.
    pub preset: String,
    /// The name under which the ledger keeps its leads. Empty: the preset's.
    pub name: String,
    /// The fields without which a lead is not posted. `a | b` stands for one of several.
    #[serde(deserialize_with = "lists::texts")]
    pub mandatory: Vec<String>,
    /// The further fields that its contract names.
    #[serde(deserialize_with = "lists::texts")]
    pub optional: Vec<String>,
    /// What to do with a lead that may have been posted: `retry` or `hold`.
    pub on_uncertain: OnUncertain,
    /// Values for `{placeholders}` in URLs, headers and parameters, and for `$variables` in jq expressions.
    pub variables: BTreeMap<String, String>,
    /// How to log in.
    pub auth: Auth,
    /// How to post.
    pub request: Request,
    /// How to read the answers.
    pub response: ResponseRules,
    /// How to ask whether a lead arrived.
    pub reconcile: Reconcile,
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
            reconcile: Reconcile::default(),
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

/// The post.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// The method of the post.
    pub method: Method,
    /// Where leads are posted, with `{placeholders}`.
    pub url: String,
    /// What the body is.
    pub body: BodyFormat,
    /// The jq expression that makes the body of a lead; empty: the lead is the body.
    pub jq: String,
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
    /// CA and client certificate for posts and queries.
    pub tls: Tls,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            method: Method::default(),
            url: String::new(),
            body: BodyFormat::default(),
            jq: String::new(),
            headers: BTreeMap::new(),
            timeout_ms: 30_000,
            connect_timeout_ms: 5_000,
            idle_timeout_ms: 4_000,
            max_answer_bytes: 64 * 1024,
            proxy: "none".to_owned(),
            tls: Tls::default(),
        }
    }
}

/// The method of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// POST.
    #[default]
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyFormat {
    /// `application/json`.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`: the members of one flat object.
    Form,
}

/// The question whether a lead arrived, asked before a lead is posted again that may have been posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reconcile {
    /// What is asked with GET, with `{placeholders}` and `{key}`; empty: nothing.
    pub url: String,
    /// The jq expression that gives the key of a lead.
    pub key: String,
    /// The jq expression on the answer that gives the lead's id at the API, or `true`, if it is there.
    pub found: String,
    /// Statuses that say that it is not.
    pub absent: StatusSet,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { url: String::new(), key: "$lead_id".to_owned(), found: String::new(), absent: StatusSet::default() }
    }
}

impl Reconcile {
    /// Whether the API can be asked.
    pub fn is_set(&self) -> bool {
        !self.url.is_empty()
    }
}
