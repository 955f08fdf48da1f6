//! What the APIs read from the head of a request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, Uri};
use url::form_urlencoded;

use super::entry::ContentType;

/// What the body is announced as.
pub(super) fn content_type(headers: &HeaderMap) -> Option<ContentType> {
    let value = headers.get(CONTENT_TYPE)?.to_str().unwrap_or_default();
    let media = value.split(';').next().unwrap_or(value).trim().to_ascii_lowercase();
    Some(if media == "application/x-www-form-urlencoded" {
        ContentType::Form
    } else if media == "application/json" || (media.starts_with("application/") && media.ends_with("+json")) {
        ContentType::Json
    } else {
        ContentType::Other
    })
}

/// The token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    authorization(headers, "Bearer")
}

/// Both halves of HTTP Basic, as they are: without the form encoding of RFC 6749, 2.3.1.
pub(super) fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let decoded = STANDARD.decode(authorization(headers, "Basic")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (name, secret) = text.split_once(':')?;
    Some((name.to_owned(), secret.to_owned()))
}

/// A value that may come as a header or as a query parameter of the same name.
pub(super) fn header_or_query(head: &Parts, name: &str) -> Option<String> {
    let header = head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    header.or_else(|| query(&head.uri, name))
}

/// A query parameter.
pub(super) fn query(uri: &Uri, name: &str) -> Option<String> {
    let mut parameters = form_urlencoded::parse(uri.query()?.as_bytes());
    parameters.find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
}

/// What follows the scheme in `Authorization`. Schemes are case-insensitive (RFC 9110, 11.1).
fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (found, credentials) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    #[test]
    fn a_content_type_is_known_in_any_case_and_with_parameters() {
        let of = |value: &'static str| {
            content_type(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))])).unwrap()
        };
        assert_eq!(of("Application/X-WWW-Form-URLEncoded; charset=utf-8"), ContentType::Form);
        assert_eq!(of("application/json;charset=UTF-8"), ContentType::Json);
        assert_eq!(of("application/problem+json"), ContentType::Json);
        assert_eq!(of("text/json"), ContentType::Other);
        assert_eq!(content_type(&HeaderMap::new()), None);
    }

    #[test]
    fn schemes_are_known_in_any_case_and_never_taken_for_each_other() {
        let headers = |value: &'static str| HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
        assert_eq!(bearer(&headers("bearer abc")), Some("abc"));
        assert_eq!(bearer(&headers("Basic aWQ6c2VjcmV0")), None);
        assert_eq!(basic(&headers("BASIC aWQ6c2VjcmV0")), Some(("id".to_owned(), "secret".to_owned())));
        assert_eq!(basic(&headers("Basic !!")), None);
    }

    #[test]
    fn a_header_goes_before_a_query_parameter() {
        let request = Request::get("/v2?a=query&b=with%20space").header("a", "header").body(()).unwrap();
        let (head, ()) = request.into_parts();
        assert_eq!(header_or_query(&head, "a").as_deref(), Some("header"));
        assert_eq!(header_or_query(&head, "b").as_deref(), Some("with space"));
        assert_eq!(header_or_query(&head, "c"), None);
    }
}
