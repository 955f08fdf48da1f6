//! The token endpoint of an Amazon Cognito domain, for the client credentials grant.
//!
//! Sources: the vendor's page "The token issuer endpoint" (Amazon Cognito Developer Guide), and for wrong credentials
//! what was measured at a live domain: status 400, not the 401 that RFC 6749 suggests. Error texts beyond the `error`
//! member are not documented; those that are not in the table of the page are made up here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::form_urlencoded;

use super::reply::Reply;
use super::settings::Tuning;

/// Its path under the domain.
pub(super) const PATH: &str = "/oauth2/token";

const JSON: HeaderValue = HeaderValue::from_static("application/json;charset=UTF-8");

/// Whether a request is one for a token.
pub(super) fn is_token_request(method: &Method, path: &str) -> bool {
    method == Method::POST && path == PATH
}

/// The tokens in circulation.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// When each ends.
    live: Mutex<HashMap<Box<str>, Instant>>,
}

impl Tokens {
    /// Answers a request for a token. The flag says whether one was issued.
    pub(super) fn answer(&self, tuning: &Tuning, headers: &HeaderMap, body: &[u8]) -> (Reply, bool) {
        match check(tuning, headers, body) {
            Ok(()) => {
                let token = self.issue(tuning.token_length, tuning.token_lifetime);
                let expires_in = tuning.token_lifetime.as_secs();
                // Tokens consist of letters, digits, dots, hyphens and underscores: nothing to escape.
                let body = format!(r#"{{"access_token":"{token}","expires_in":{expires_in},"token_type":"Bearer"}}"#);
                (finish(StatusCode::OK, body), true)
            }
            Err(refusal) => (finish(StatusCode::BAD_REQUEST, refusal.body()), false),
        }
    }

    /// Whether the request carries a token that is valid now.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = credentials(headers, "Bearer") else { return false };
        self.lock().get(token).is_some_and(|end| Instant::now() < *end)
    }

    /// Makes all tokens worthless.
    pub(super) fn revoke_all(&self) {
        self.lock().clear();
    }

    fn issue(&self, length: usize, lifetime: Duration) -> String {
        // Looks like the JWTs of Cognito from afar, and is nothing that could be decoded.
        let mut token = String::with_capacity(length);
        token.push_str("eyJzYW5kYm94Ijox");
        token.extend(std::iter::repeat_with(fastrand::alphanumeric).take(length.saturating_sub(token.len())));
        let now = Instant::now();
        let mut live = self.lock();
        // A client that asks for a token per lead must not fill the memory.
        if live.len().is_power_of_two() && live.len() >= 1024 {
            live.retain(|_, end| now < *end);
        }
        live.insert(token.as_str().into(), now + lifetime);
        token
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Instant>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    if !media_type(headers).is_some_and(|media| media.eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        return Err(Refusal::InvalidRequest);
    }
    let form: HashMap<_, _> = form_urlencoded::parse(body).collect();
    let field = |name: &str| form.get(name).map(AsRef::as_ref);

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

/// Id and secret from HTTP Basic. Cognito concatenates them as they are, without the form encoding of RFC 6749, 2.3.1.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let decoded = STANDARD.decode(credentials(headers, "Basic")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

/// What follows the scheme in `Authorization`. Schemes are case-insensitive (RFC 9110, 11.1).
fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (found, credentials) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

/// The content type without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or(value).trim())
}

fn finish(status: StatusCode, body: impl Into<bytes::Bytes>) -> Reply {
    Reply::json(status, body).of_type(JSON).with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_token_admits_until_its_lifetime_is_over_or_it_is_revoked() {
        let tokens = Tokens::default();
        let admits = |token: &str| tokens.admits(&headers(Some(&format!("Bearer {token}"))));
        let token = tokens.issue(900, Duration::from_secs(60));
        assert_eq!(token.len(), 900);
        assert!(admits(&token));
        assert!(!admits("unknown"));
        assert!(!admits(&tokens.issue(900, Duration::ZERO)));
        tokens.revoke_all();
        assert!(!admits(&token));
    }
}
