//! What only the user of a preset knows: credentials, and values for placeholders and expressions.

use super::expressions::{expressions, needed_variables};
use super::keys::variable;
use super::template::placeholders;
use super::{AuthKind, Destination, Secret, Values};

/// A setting that has to be given and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The key.
    pub key: String,
    /// Who needs it, as a key, if that is not the log-in.
    needed_by: Option<String>,
    has_file: bool,
}

impl Missing {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        variable(&self.key)
    }

    /// Whether `…_file`, with the file that holds it, does as well.
    pub fn may_be_a_file(&self) -> bool {
        self.has_file
    }

    pub(super) fn problem(&self) -> String {
        let (key, variable) = (&self.key, self.variable());
        match (&self.needed_by, self.has_file) {
            (_, true) => format!("{key} is not set: set {variable} or {variable}_FILE"),
            (None, false) => format!("{key} is not set: set {variable}"),
            (Some(by), false) => format!("{by} needs {key}: set it, or {variable}"),
        }
    }
}

/// All that has to be given before anything can be sent: credentials of the log-in, values of placeholders.
pub fn missing(destination: &Destination) -> Vec<Missing> {
    let auth = &destination.auth;
    let setting = |key: &str, has_file| Missing { key: format!("destination.auth.{key}"), needed_by: None, has_file };
    let text = |key: &str, value: &str| value.is_empty().then(|| setting(key, false));
    let secret = |key: &str, value: &Secret| (!value.is_set()).then(|| setting(key, true));
    let of_auth: Vec<Option<Missing>> = match auth.kind {
        AuthKind::Oauth2ClientCredentials => {
            vec![text("client_id", &auth.client_id), secret("client_secret", &auth.client_secret)]
        }
        AuthKind::Oauth2Password => vec![
            text("client_id", &auth.client_id),
            secret("client_secret", &auth.client_secret),
            text("username", &auth.username),
            secret("password", &auth.password),
        ],
        AuthKind::SessionToken => vec![text("username", &auth.username), secret("password", &auth.password)],
        AuthKind::ApiKey if auth.basic => {
            vec![text("api_key_id", &auth.api_key_id), secret("api_key", &auth.api_key)]
        }
        AuthKind::Bearer => vec![secret("bearer_token", &auth.bearer_token)],
        AuthKind::ApiKey | AuthKind::None => Vec::new(),
    };
    let mut missing: Vec<Missing> = of_auth.into_iter().flatten().collect();
    let values = values(destination);
    for (key, template, runtime) in templates(destination) {
        for name in placeholders(template) {
            if runtime == Some(name) || values.get(name).is_some_and(|value| !value.is_empty()) {
                continue;
            }
            let wanted = match name {
                "api_key_id" => setting(name, false),
                "api_key" => setting(name, true),
                _ => Missing {
                    key: format!("destination.variables.{name}"),
                    needed_by: Some(key.clone()),
                    has_file: false,
                },
            };
            if !missing.iter().any(|known| known.key == wanted.key) {
                missing.push(wanted);
            }
        }
    }
    for (key, source, _) in expressions(destination) {
        for name in needed_variables(source) {
            let wanted = Missing {
                key: format!("destination.variables.{name}"),
                needed_by: Some(key.to_owned()),
                has_file: false,
            };
            let is_set = values.get(name).is_some_and(|value| !value.is_empty());
            if !is_set && !missing.iter().any(|known| known.key == wanted.key) {
                missing.push(wanted);
            }
        }
    }
    // Who we are first, an id before its secret, then what the API wants besides.
    missing.sort_by_key(|missing| (!missing.key.starts_with("destination.auth."), missing.has_file));
    missing
}

/// What stands for placeholders in URLs: the variables, and the public half of a key.
pub fn url_values(destination: &Destination) -> Values {
    let mut values = destination.variables.clone();
    values.insert("api_key_id".to_owned(), destination.auth.api_key_id.clone());
    values
}

/// What stands for placeholders in headers, query parameters and parameters of a log-in: a key's secret half too. Not to be shown.
pub fn values(destination: &Destination) -> Values {
    let mut values = url_values(destination);
    values.insert("api_key".to_owned(), destination.auth.api_key.expose().to_owned());
    values
}

/// Every template with its key, and the placeholder that is filled in only when it is used.
fn templates(destination: &Destination) -> Vec<(String, &str, Option<&'static str>)> {
    let Destination { auth, request, reconcile, .. } = destination;
    let uses = |key: &str| auth.kind.uses().contains(&key);
    let mut templates = vec![("destination.request.url".to_owned(), request.url.as_str(), None)];
    for (key, template, runtime) in [
        ("token_url", &auth.token_url, None),
        ("revoke_url", &auth.revoke_url, None),
        ("logout_url", &auth.logout_url, Some("token")),
    ] {
        if uses(key) {
            templates.push((format!("destination.auth.{key}"), template, runtime));
        }
    }
    templates.push(("destination.reconcile.url".to_owned(), &reconcile.url, Some("key")));
    let mut tables = vec![
        ("destination.request.headers", &request.headers),
        ("destination.auth.headers", &auth.headers),
        ("destination.auth.query", &auth.query),
    ];
    if uses("parameters") {
        tables.push(("destination.auth.parameters", &auth.parameters));
    }
    for (key, table) in tables {
        templates.extend(table.iter().map(|(name, template)| (format!("{key}.{name}"), template.as_str(), None)));
    }
    templates
}
