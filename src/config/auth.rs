//! The settings of a log-in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Secret, Tls};

/// How to log in. Which settings count depends on `kind`; [`AuthKind::uses`] says which.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The way of logging in.
    pub kind: AuthKind,
    /// Where tokens come from: an OAuth 2.0 token endpoint, or the log-in of a session.
    pub token_url: String,
    /// Where an OAuth 2.0 token is revoked at shutdown (RFC 7009); empty: nowhere.
    pub revoke_url: String,
    /// What is deleted at shutdown to end a session, with `{token}`; empty: nothing.
    pub logout_url: String,
    /// How the client shows who it is.
    pub client_auth: ClientAuth,
    /// The client's id.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// A file that holds the client's secret.
    pub client_secret_file: Option<PathBuf>,
    /// The scope to ask for; empty: none.
    pub scope: String,
    /// The account's name.
    pub username: String,
    /// The account's password.
    pub password: Secret,
    /// A file that holds the account's password.
    pub password_file: Option<PathBuf>,
    /// Further parameters of the request for a token, with `{placeholders}`.
    pub parameters: BTreeMap<String, String>,
    /// Where the log-in's answer has the session's token: a JSON Pointer (RFC 6901).
    pub token_pointer: String,
    /// Where it has the token's lifetime.
    pub lifetime_pointer: String,
    /// What the lifetime is counted in.
    pub lifetime_unit: LifetimeUnit,
    /// Whether each success begins the lifetime anew.
    pub sliding: bool,
    /// Where requests carry the session's token.
    pub token_in: TokenIn,
    /// The name of that header or query parameter.
    pub token_name: String,
    /// The public half of a key: a user's id.
    pub api_key_id: String,
    /// The secret half of a key.
    pub api_key: Secret,
    /// A file that holds the secret half of a key.
    pub api_key_file: Option<PathBuf>,
    /// Whether the two halves go as HTTP Basic (RFC 7617).
    pub basic: bool,
    /// A token that does not change.
    pub bearer_token: Secret,
    /// A file that holds the token that does not change.
    pub bearer_token_file: Option<PathBuf>,
    /// Headers of every request to the API and its log-in, with `{placeholders}`.
    pub headers: BTreeMap<String, String>,
    /// Query parameters of every request to the API and its log-in, with `{placeholders}`.
    pub query: BTreeMap<String, String>,
    /// How long a token is taken to live when the answer does not say.
    pub default_lifetime_ms: u64,
    /// How long asking for a token may take.
    pub timeout_ms: u64,
    /// CA and client certificate for the log-in.
    pub tls: Tls,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            kind: AuthKind::default(),
            token_url: String::new(),
            revoke_url: String::new(),
            logout_url: String::new(),
            client_auth: ClientAuth::default(),
            client_id: String::new(),
            client_secret: Secret::default(),
            client_secret_file: None,
            scope: String::new(),
            username: String::new(),
            password: Secret::default(),
            password_file: None,
            parameters: BTreeMap::new(),
            token_pointer: "/token".to_owned(),
            lifetime_pointer: String::new(),
            lifetime_unit: LifetimeUnit::default(),
            sliding: false,
            token_in: TokenIn::default(),
            token_name: String::new(),
            api_key_id: String::new(),
            api_key: Secret::default(),
            api_key_file: None,
            basic: false,
            bearer_token: Secret::default(),
            bearer_token_file: None,
            headers: BTreeMap::new(),
            query: BTreeMap::new(),
            default_lifetime_ms: 300_000,
            timeout_ms: 10_000,
            tls: Tls::default(),
        }
    }
}

/// A way of logging in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthKind {
    /// OAuth 2.0 client credentials (RFC 6749, section 4.4).
    #[default]
    Oauth2ClientCredentials,
    /// OAuth 2.0 resource owner password credentials (RFC 6749, section 4.3), with refresh tokens (section 6).
    Oauth2Password,
    /// A log-in by name and password that gives a token.
    SessionToken,
    /// A key that goes along as headers, query parameters or HTTP Basic.
    ApiKey,
    /// A token that does not change (RFC 6750).
    Bearer,
    /// None.
    None,
}

impl AuthKind {
    /// The settings of [`Auth`] that count for this way of logging in, besides `kind`, `headers` and `query`.
    pub fn uses(self) -> Vec<&'static str> {
        const FETCHED: &[&str] = &["token_url", "parameters", "default_lifetime_ms", "timeout_ms", "tls"];
        const OAUTH2: &[&str] =
            &["revoke_url", "client_auth", "client_id", "client_secret", "client_secret_file", "scope"];
        const ACCOUNT: &[&str] = &["username", "password", "password_file"];
        const SESSION: &[&str] =
            &["logout_url", "token_pointer", "lifetime_pointer", "lifetime_unit", "sliding", "token_in", "token_name"];
        match self {
            AuthKind::Oauth2ClientCredentials => [FETCHED, OAUTH2].concat(),
            AuthKind::Oauth2Password => [FETCHED, OAUTH2, ACCOUNT].concat(),
            AuthKind::SessionToken => [FETCHED, ACCOUNT, SESSION].concat(),
            AuthKind::ApiKey => vec!["api_key_id", "api_key", "api_key_file", "basic"],
            AuthKind::Bearer => vec!["bearer_token", "bearer_token_file"],
            AuthKind::None => Vec::new(),
        }
    }

    /// The name as a configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthKind::Oauth2ClientCredentials => "oauth2_client_credentials",
            AuthKind::Oauth2Password => "oauth2_password",
            AuthKind::SessionToken => "session_token",
            AuthKind::ApiKey => "api_key",
            AuthKind::Bearer => "bearer",
            AuthKind::None => "none",
        }
    }
}

/// How an OAuth 2.0 client shows who it is (RFC 6749, section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// HTTP Basic of id and secret as they are, as AWS Cognito and many others read it; parameters as a form.
    #[default]
    Basic,
    /// HTTP Basic of id and secret, both form-encoded first, as the RFC has it; parameters as a form.
    BasicEncoded,
    /// Id and secret among the parameters of the form.
    Form,
    /// Id and secret among the parameters, as a JSON object.
    Json,
}

/// What a lifetime is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifetimeUnit {
    /// Seconds.
    #[default]
    Seconds,
    /// Minutes.
    Minutes,
}

/// Where requests carry a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenIn {
    /// `Authorization: Bearer …` (RFC 6750).
    #[default]
    Bearer,
    /// A header of its own.
    Header,
    /// A query parameter.
    Query,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_a_log_in_counts_for_some_kind_and_none_is_made_up() {
        let all = serde_json::to_value(Auth::default()).expect("JSON");
        let all: Vec<&str> = all.as_object().expect("an object").keys().map(String::as_str).collect();
        let kinds = [
            AuthKind::Oauth2ClientCredentials,
            AuthKind::Oauth2Password,
            AuthKind::SessionToken,
            AuthKind::ApiKey,
            AuthKind::Bearer,
            AuthKind::None,
        ];
        for kind in kinds {
            assert_eq!(serde_json::to_value(kind).expect("JSON"), kind.as_str());
            assert!(kind.uses().iter().all(|key| all.contains(key)), "{kind:?}");
        }
        for key in all.iter().filter(|key| !["kind", "headers", "query"].contains(key)) {
            assert!(kinds.iter().any(|kind| kind.uses().contains(key)), "{key}");
        }
    }
}
