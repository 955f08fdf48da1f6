//! The settings as people may see them.

use serde_json::Value;

use super::Settings;
use super::template::is_placeholder;

/// The settings as they may be shown: secrets hidden, and whatever else goes along with requests,
/// unless it is a placeholder.
pub(super) fn shown(settings: &Settings) -> Value {
    let mut shown = serde_json::to_value(settings).unwrap_or_default();
    for table in ["auth/headers", "auth/query", "auth/parameters", "request/headers"] {
        let members = shown.pointer_mut(&format!("/destination/{table}")).and_then(Value::as_object_mut);
        for value in members.into_iter().flatten().map(|(_, value)| value) {
            if value.as_str().is_some_and(|text| !text.is_empty() && !is_placeholder(text)) {
                *value = "(set)".into();
            }
        }
    }
    for url in ["auth/token_url", "auth/revoke_url", "auth/logout_url", "request/url", "request/proxy", "reconcile/url"]
    {
        if let Some(value) = shown.pointer_mut(&format!("/destination/{url}")) {
            *value = value.as_str().map(|url| without_query_values(&without_user(url))).unwrap_or_default().into();
        }
    }
    // What does not count for this way of logging in would only mislead.
    let uses = settings.destination.auth.kind.uses();
    if let Some(auth) = shown.pointer_mut("/destination/auth").and_then(Value::as_object_mut) {
        auth.retain(|key, _| ["kind", "headers", "query"].contains(&key.as_str()) || uses.contains(&key.as_str()));
    }
    shown
}

/// A URL whose query has no values but placeholders.
fn without_query_values(url: &str) -> String {
    let Some((url, query)) = url.split_once('?') else { return url.to_owned() };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, value)) if !is_placeholder(value) => format!("{name}=(set)"),
        _ => pair.to_owned(),
    });
    format!("{url}?{}", pairs.collect::<Vec<_>>().join("&"))
}

/// A URL without user and password; as text, as it is perhaps not one, and a password may hold what ends a host's name.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or((None, url), |(scheme, rest)| (Some(scheme), rest));
    match (scheme, rest.rsplit_once('@')) {
        (Some(scheme), Some((_, host))) => format!("{scheme}://***@{host}"),
        (None, Some((_, host))) => format!("***@{host}"),
        (_, None) => url.to_owned(),
    }
}
