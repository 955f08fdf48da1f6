//! Rules of a destination: what its log-in needs, templates that can be filled in, expressions that compile.

use std::collections::BTreeMap;

use url::Url;

use super::super::expressions::expressions;
use super::super::{
    Auth, AuthKind, Destination, Missing, ResponseRules, Settings, TokenIn, Values, fill_in, fill_in_url, missing,
    values,
};
use super::tls::check_tls;
use crate::jq::Program;

/// Headers of a post that are not the user's: leadpost or HTTP itself sets them.
const OWN_HEADERS: [&str; 6] =
    ["authorization", "idempotency-key", "host", "content-length", "transfer-encoding", "connection"];

/// Everything that is wrong with the destination.
pub(in crate::config) fn check_destination(settings: &Settings) -> Vec<String> {
    let destination = &settings.destination;
    let missing = missing(destination);
    let mut problems: Vec<String> = missing.iter().map(Missing::problem).collect();
    let names_nothing = |names: &String| names.split('|').all(|name| name.trim().is_empty());
    if destination.mandatory.is_empty() || destination.mandatory.iter().any(names_nothing) {
        problems.push("destination.mandatory is empty; name the fields that a lead must have".to_owned());
    }
    problems.extend(check_auth(&destination.auth));
    // What stands in for values that are not there yet, so that the rest of a template is looked at as well.
    let mut values = values(destination);
    for value in missing {
        values.insert(value.key.rsplit('.').next().unwrap_or_default().to_owned(), "x".to_owned());
    }
    problems.extend(check_urls(destination, &values));
    problems.extend(check_tls(settings, &values));
    problems.extend(check_headers(destination, &values));
    problems.extend(check_expressions(destination));
    problems.extend(check_response(&destination.response));
    problems.extend(check_proxy(&destination.request.proxy));
    problems
}

fn check_auth(auth: &Auth) -> Vec<String> {
    let mut problems = Vec::new();
    match auth.kind {
        AuthKind::SessionToken => {
            if auth.token_in != TokenIn::Bearer && auth.token_name.is_empty() {
                problems.push("destination.auth.token_name is empty: name the header or query parameter".to_owned());
            }
            if auth.token_in == TokenIn::Header && http::HeaderName::try_from(auth.token_name.as_str()).is_err() {
                problems.push("destination.auth.token_name is no name of a header".to_owned());
            }
            if auth.token_pointer.is_empty() {
                problems.push("destination.auth.token_pointer is empty: say where the token stands".to_owned());
            }
        }
        AuthKind::ApiKey => {
            if !auth.basic && auth.headers.is_empty() && auth.query.is_empty() {
                problems.push(
                    "destination.auth.kind is \"api_key\", but nothing carries the key: set destination.auth.headers, \
                     destination.auth.query or destination.auth.basic"
                        .to_owned(),
                );
            }
        }
        AuthKind::Bearer if http::HeaderValue::try_from(auth.bearer_token.expose()).is_err() => {
            problems.push("destination.auth.bearer_token has characters that cannot stand in a header".to_owned());
        }
        AuthKind::Oauth2ClientCredentials | AuthKind::Oauth2Password | AuthKind::Bearer | AuthKind::None => {}
    }
    for (key, pointer) in [("token_pointer", &auth.token_pointer), ("lifetime_pointer", &auth.lifetime_pointer)] {
        problems.extend(check_pointer(&format!("destination.auth.{key}"), pointer));
    }
    problems
}

fn check_urls(destination: &Destination, values: &Values) -> Vec<String> {
    let auth = &destination.auth;
    let uses = |key: &str| auth.kind.uses().contains(&key);
    let mut runtime = values.clone();
    for name in ["token", "key"] {
        runtime.insert(name.to_owned(), "x".to_owned());
    }
    // Key, template, whether there has to be one, whether it has to hold this placeholder.
    let urls = [
        ("destination.auth.token_url", &auth.token_url, uses("token_url"), uses("token_url"), None),
        ("destination.auth.revoke_url", &auth.revoke_url, uses("revoke_url"), false, None),
        ("destination.auth.logout_url", &auth.logout_url, uses("logout_url"), false, Some("{token}")),
        ("destination.request.url", &destination.request.url, true, true, None),
        ("destination.reconcile.url", &destination.reconcile.url, true, false, Some("{key}")),
    ];
    let mut problems = Vec::new();
    for (key, template, counts, required, placeholder) in urls {
        if !counts || (template.is_empty() && !required) {
            continue;
        }
        if let Some(placeholder) = placeholder.filter(|placeholder| !template.contains(placeholder)) {
            problems.push(format!("{key} does not hold {placeholder}, so it would mean the same for all"));
        }
        match fill_in_url(template, &runtime).ok().and_then(|url| Url::parse(&url).ok()) {
            Some(url) if has_credentials(&url) => problems.push(format!(
                "{key} holds a user or a password, which do not belong into a URL: it may be shown; take them out"
            )),
            Some(url) if ["https", "http"].contains(&url.scheme()) => {}
            _ => problems.push(format!("{key} is not a URL that begins with https://")),
        }
        if template.contains("{api_key}") {
            problems.push(format!(
                "{key} holds {{api_key}}, which does not belong into a URL that may be shown; set destination.auth.query"
            ));
        }
    }
    problems
}

fn check_headers(destination: &Destination, values: &Values) -> Vec<String> {
    let mut problems = Vec::new();
    let tables: [(&str, &BTreeMap<String, String>); 2] = [
        ("destination.request.headers", &destination.request.headers),
        ("destination.auth.headers", &destination.auth.headers),
    ];
    for (table, headers) in tables {
        for (name, template) in headers {
            let key = format!("{table}.{name}");
            // A key's own header may well be `Authorization`.
            let own = if table.ends_with("auth.headers") && destination.auth.kind == AuthKind::ApiKey {
                OWN_HEADERS.get(1..).unwrap_or_default()
            } else {
                &OWN_HEADERS[..]
            };
            match http::HeaderName::try_from(name.as_str()) {
                Err(_) => problems.push(format!("{key}: this is not a header name")),
                Ok(header) if own.contains(&header.as_str()) => {
                    problems.push(format!("{key}: leadpost sets this header itself; take it out"));
                }
                Ok(_) => {}
            }
            if fill_in(template, values).is_ok_and(|value| http::HeaderValue::try_from(value).is_err()) {
                problems.push(format!("{key}: its value cannot stand in a header"));
            }
        }
    }
    problems
}

fn check_expressions(destination: &Destination) -> Vec<String> {
    let reconcile = &destination.reconcile;
    let mut problems = Vec::new();
    for (key, source, variables) in expressions(destination) {
        if !source.is_empty()
            && let Err(problem) = Program::compile(source, variables)
        {
            problems.push(format!("{key} is no jq expression: {problem}"));
        }
    }
    if reconcile.is_set() {
        for (key, source) in [("key", &reconcile.key), ("found", &reconcile.found)] {
            if source.is_empty() {
                problems.push(format!("destination.reconcile.{key} is empty: destination.reconcile.url needs it"));
            }
        }
    }
    problems
}

fn check_response(response: &ResponseRules) -> Vec<String> {
    let mut problems = Vec::new();
    if response.success.is_empty() {
        problems.push("destination.response.success is empty: no post could ever succeed".to_owned());
    }
    let sets = response.named_sets();
    for status in 100..600 {
        let named: Vec<&str> = sets.iter().filter(|(_, set)| set.contains(status)).map(|(name, _)| *name).collect();
        if let [first, second, ..] = named[..] {
            problems.push(format!(
                "status {status} is in destination.response.{first} and in destination.response.{second}; leave it in one of them"
            ));
        }
    }
    for (key, pointer) in [
        ("reason", &response.reason),
        ("remote_id", &response.remote_id),
        ("remote_state", &response.remote_state),
        ("remote_sub_state", &response.remote_sub_state),
        ("next_schedule_time", &response.next_schedule_time),
    ] {
        problems.extend(check_pointer(&format!("destination.response.{key}"), pointer));
    }
    problems
}

fn check_pointer(key: &str, pointer: &str) -> Option<String> {
    let is_pointer = pointer.is_empty() || pointer.starts_with('/');
    (!is_pointer).then(|| format!("{key} is no JSON Pointer (RFC 6901): write it as /member/0/member"))
}

fn check_proxy(proxy: &str) -> Option<String> {
    if ["none", "env"].contains(&proxy) {
        return None;
    }
    match Url::parse(proxy) {
        Ok(url) if has_credentials(&url) => Some(
            "destination.request.proxy holds a user or a password, which do not belong into a URL: it may be shown; set \
             destination.request.proxy to \"env\" and the proxy's URL as HTTPS_PROXY"
                .to_owned(),
        ),
        Ok(url) if url.has_host() => None,
        _ => Some("destination.request.proxy must be \"none\", \"env\" or a proxy's URL".to_owned()),
    }
}

fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests {
    use super::super::super::{Secret, Source};
    use super::*;

    fn problems(change: impl FnOnce(&mut Destination)) -> String {
        let mut settings = Source::of_nothing().read().expect("the defaults");
        settings.destination.auth.client_id = "id".to_owned();
        settings.destination.auth.client_secret = Secret::new("secret");
        change(&mut settings.destination);
        check_destination(&settings).join("\n")
    }

    #[test]
    fn each_way_of_logging_in_says_what_it_lacks() {
        let of = |kind| {
            problems(|destination| {
                destination.auth = Auth { kind, token_url: "https://h/t".to_owned(), ..Auth::default() };
            })
        };
        for (kind, keys) in [
            (AuthKind::Oauth2ClientCredentials, &["client_id", "client_secret"][..]),
            (AuthKind::Oauth2Password, &["client_id", "client_secret", "username", "password"]),
            (AuthKind::SessionToken, &["username", "password"]),
            (AuthKind::Bearer, &["bearer_token"]),
        ] {
            let text = of(kind);
            for key in keys {
                let variable = format!("LEADPOST__DESTINATION__AUTH__{}", key.to_uppercase());
                assert!(
                    text.contains(&format!("destination.auth.{key} is not set: set {variable}")),
                    "{kind:?}: {text}"
                );
            }
            assert_eq!(text.lines().count(), keys.len(), "{kind:?}: {text}");
        }
        assert!(of(AuthKind::ApiKey).contains("nothing carries the key"));
        assert_eq!(of(AuthKind::None), "");
    }

    #[test]
    fn what_templates_and_expressions_need_is_named_once_with_who_needs_it() {
        let text = problems(|destination| {
            destination.request.url = "{api}/leads/{campaign}".to_owned();
            destination.request.jq =
                "{at: $variables.place, or: ($variables.other // 1), again: $variables.place}".to_owned();
            destination.auth.headers.insert("x-key".to_owned(), "{api_key}".to_owned());
        });
        for expected in [
            "destination.request.url needs destination.variables.api: set it, or LEADPOST__DESTINATION__VARIABLES__API",
            "destination.request.url needs destination.variables.campaign",
            "destination.request.jq needs destination.variables.place",
            "destination.auth.api_key is not set: set LEADPOST__DESTINATION__AUTH__API_KEY or LEADPOST__DESTINATION__AUTH__API_KEY_FILE",
        ] {
            assert_eq!(text.matches(expected).count(), 1, "{expected} in {text}");
        }
        assert!(!text.contains("variables.other"), "{text}");
    }

    #[test]
    fn expressions_urls_and_pointers_that_cannot_be_used_are_named() {
        type Change = fn(&mut Destination);
        let cases: [(Change, &str); 10] = [
            (
                |d| d.request.jq = "{a: nonsense}".to_owned(),
                "destination.request.jq is no jq expression: there is no filter nonsense",
            ),
            (|d| d.request.jq = "$status".to_owned(), "there is no variable $status"),
            (
                |d| d.response.success_test = "$lead_id".to_owned(),
                "destination.response.success_test is no jq expression",
            ),
            (|d| d.response.remote_id = "id".to_owned(), "destination.response.remote_id is no JSON Pointer"),
            (|d| d.reconcile.url = "https://h/leads".to_owned(), "destination.reconcile.url does not hold {key}"),
            (|d| d.reconcile.url = "https://h/{key}".to_owned(), "destination.reconcile.found is empty"),
            (|d| d.auth.revoke_url = "h/x".to_owned(), "destination.auth.revoke_url is not a URL"),
            (|d| d.auth.token_url = String::new(), "destination.auth.token_url is not a URL"),
            (|d| d.request.url = "https://h/?key={api_key}".to_owned(), "destination.request.url holds {api_key}"),
            (
                |d| drop(d.auth.headers.insert("authorization".to_owned(), "x".to_owned())),
                "destination.auth.headers.authorization: leadpost sets this header itself",
            ),
        ];
        for (change, expected) in cases {
            let text = problems(change);
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
