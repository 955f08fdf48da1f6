//! The token endpoint of an Amazon Cognito domain, for the client credentials grant.
//!
//! Sources: the vendor's page "The token issuer endpoint" (Amazon Cognito Developer Guide), and for wrong credentials
//! what was measured at a live domain: status 400, not the 401 that RFC 6749 suggests. Error texts beyond the `error`
//! member are not documented; those that are not in the table of the page are made up here.

use std::collections::HashMap;

use http::header::{AUTHORIZATION, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, StatusCode};
use url::form_urlencoded;

use super::api::Desk;
use super::entry::{ContentType, Effect};
use super::head::{basic, content_type};
use super::reply::Reply;
use super::settings::Tuning;
use super::tokens;

/// Its path under the domain.
pub(super) const PATH: &str = "/oauth2/token";

const JSON: HeaderValue = HeaderValue::from_static("application/json;charset=UTF-8");

/// Answers a request for a token.
pub(super) fn answer(desk: &Desk<'_>) -> (Reply, Effect) {
    let tuning = desk.tuning;
    if let Err(refusal) = check(tuning, &desk.head.headers, desk.body) {
        return (finish(StatusCode::BAD_REQUEST, refusal.body()), Effect::Nothing);
    }
    // Looks like the JWTs of Cognito from afar, and is nothing that could be decoded.
    let token = tokens::make("eyJzYW5kYm94Ijox", tuning.token_length);
    desk.memory.tokens.issue(&token, tuning.token_lifetime);
    let expires_in = tuning.announced_lifetime_s();
    let body = format!(r#"{{"access_token":"{token}","expires_in":{expires_in},"token_type":"Bearer"}}"#);
    (finish(StatusCode::OK, body), Effect::Issued)
}

/// Why there is no token. The names are those of RFC 6749, 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    InvalidRequest,
    InvalidClient,
    InvalidScope,
    UnsupportedGrantType,
}

impl Refusal {
    fn body(self) -> &'static str {
        match self {
            Self::InvalidRequest => r#"{"error":"invalid_request"}"#,
            Self::InvalidClient => r#"{"error":"invalid_client","error_description":"invalid_client_secret"}"#,
            Self::InvalidScope => r#"{"error":"invalid_scope"}"#,
            Self::UnsupportedGrantType => r#"{"error":"unsupported_grant_type"}"#,
        }
    }
}

fn check(tuning: &Tuning, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    if content_type(headers) != Some(ContentType::Form) {
        return Err(Refusal::InvalidRequest);
    }
    let form: HashMap<_, _> = form_urlencoded::parse(body).collect();
    let field = |name: &str| form.get(name).map(AsRef::as_ref);

    // Cognito takes Basic without the form encoding of its halves.
    let (id, secret) = if headers.contains_key(AUTHORIZATION) {
        basic(headers).ok_or(Refusal::InvalidRequest)?
    } else {
        let part = |name| field(name).unwrap_or_default().to_owned();
        (part("client_id"), part("client_secret"))
    };
    if id != tuning.client_id || secret != tuning.client_secret {
        return Err(Refusal::InvalidClient);
    }
    match field("grant_type") {
        Some("client_credentials") => {}
        Some(_) => return Err(Refusal::UnsupportedGrantType),
        None => return Err(Refusal::InvalidRequest),
    }
    // Without a scope, a client gets all that it is granted.
    let granted: Vec<&str> = tuning.scope.split_whitespace().collect();
    let wanted = field("scope").unwrap_or_default();
    if wanted.split_whitespace().all(|scope| granted.contains(&scope)) { Ok(()) } else { Err(Refusal::InvalidScope) }
}

fn finish(status: StatusCode, body: impl Into<bytes::Bytes>) -> Reply {
    Reply::json(status, body).of_type(JSON).with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use http::header::CONTENT_TYPE;

    use super::*;

    fn headers(authorization: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8"));
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn with_basic(id_and_secret: &str, form: &str) -> Result<(), Refusal> {
        let value = format!("basic {}", STANDARD.encode(id_and_secret));
        check(&Tuning::default(), &headers(Some(&value)), form.as_bytes())
    }

    fn with_form(form: &str) -> Result<(), Refusal> {
        check(&Tuning::default(), &headers(None), form.as_bytes())
    }

    #[test]
    fn credentials_are_taken_from_the_header_or_from_the_form() {
        let grant = "grant_type=client_credentials";
        assert_eq!(with_basic("sandbox-client:sandbox-secret", grant), Ok(()));
        assert_eq!(with_form(&format!("{grant}&client_id=sandbox-client&client_secret=sandbox-secret")), Ok(()));
        assert_eq!(with_basic("sandbox-client:wrong", grant), Err(Refusal::InvalidClient));
        assert_eq!(with_basic("other:sandbox-secret", grant), Err(Refusal::InvalidClient));
        assert_eq!(with_form(grant), Err(Refusal::InvalidClient));
        let broken = headers(Some("Basic !!"));
        assert_eq!(check(&Tuning::default(), &broken, grant.as_bytes()), Err(Refusal::InvalidRequest));
    }

    #[test]
    fn scope_is_optional_and_never_wider_than_granted() {
        let ask = |form| with_basic("sandbox-client:sandbox-secret", form);
        assert_eq!(ask("grant_type=client_credentials&scope=leads%2Fpost"), Ok(()));
        assert_eq!(ask("grant_type=client_credentials&scope=leads%2Fpost+leads%2Fread"), Err(Refusal::InvalidScope));
        assert_eq!(ask("grant_type=password"), Err(Refusal::UnsupportedGrantType));
        assert_eq!(ask("scope=leads%2Fpost"), Err(Refusal::InvalidRequest));
    }

    #[test]
    fn a_json_body_is_an_invalid_request() {
        let mut headers = headers(None);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert_eq!(check(&Tuning::default(), &headers, b"{}"), Err(Refusal::InvalidRequest));
    }
}
