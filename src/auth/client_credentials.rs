//! OAuth 2.0 client credentials (RFC 6749, section 4.4), as AWS Cognito wants them: HTTP Basic, a form as the body.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;

use super::{AuthError, Grant};
use crate::config::{self, fill_in};
use crate::http::{Answer, ClientError, ClientSettings, Exchange, Outgoing, client, exchange};
use crate::reason::Reason;

/// Tokens are about 1 KiB; nothing that is much larger is one.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The token endpoint's wish to be left alone is obeyed up to this long.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// No token is kept for longer, whatever the endpoint says. AWS Cognito's live a day at most.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Asks a token endpoint for tokens.
#[derive(Debug)]
pub struct ClientCredentials {
    client: reqwest::Client,
    url: reqwest::Url,
    headers: HeaderMap,
    form: String,
    default_lifetime: Duration,
    /// What must not stand in any text: the secret, plain and as it goes over the wire.
    secrets: Vec<config::Secret>,
}

impl ClientCredentials {
    /// For these settings, which [`config::check`] has found sound.
    ///
    /// # Errors
    /// When no HTTP client can be had.
    ///
    /// # Panics
    /// On settings that [`config::check`] refuses.
    pub fn new(destination: &config::Destination) -> Result<Self, ClientError> {
        let auth = &destination.auth;
        let timeout = Duration::from_millis(auth.timeout_ms);
        // AWS builds the value by plain concatenation; RFC 6749, section 2.3.1 would encode both parts first. Ids and secrets of
        // Cognito are letters and digits, for which both agree.
        let basic = STANDARD.encode(format!("{}:{}", auth.client_id, auth.client_secret.expose()));
        let mut authorization = HeaderValue::try_from(format!("Basic {basic}")).expect("base64 can stand in a header");
        authorization.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !auth.scope.is_empty() {
            form.append_pair("scope", &auth.scope);
        }
        let url = fill_in(&auth.token_url, &destination.variables).expect("checked: all variables are set");
        Ok(Self {
            client: client(&ClientSettings {
                timeout,
                connect_timeout: timeout / 2,
                idle_timeout: Duration::from_millis(destination.request.idle_timeout_ms),
                proxy: &destination.request.proxy,
            })?,
            url: url.parse().expect("checked: a URL"),
            headers,
            form: form.finish(),
            default_lifetime: Duration::from_millis(auth.default_lifetime_ms),
            secrets: vec![config::Secret::new(auth.client_secret.expose()), config::Secret::new(basic)],
        })
    }

    /// Asks for a token.
    ///
    /// # Errors
    /// [`AuthError::Refused`] where asking again would get the same answer, [`AuthError::Unavailable`] otherwise.
    pub async fn fetch(&self) -> Result<Grant, AuthError> {
        let outgoing = Outgoing {
            method: Method::POST,
            url: &self.url,
            headers: self.headers.clone(),
            body: Bytes::copy_from_slice(self.form.as_bytes()),
        };
        let exchange = exchange(&self.client, outgoing, MAX_ANSWER_BYTES, MAX_RETRY_AFTER).await;
        read(&exchange, self.default_lifetime).map_err(|error| self.redact(error))
    }

    /// An endpoint may repeat what it was sent.
    fn redact(&self, error: AuthError) -> AuthError {
        let clean = |mut reason: Reason| {
            for secret in self.secrets.iter().filter(|secret| secret.is_set()) {
                reason.text = reason.text.replace(secret.expose(), "***");
            }
            reason
        };
        match error {
            AuthError::Refused(reason) => AuthError::Refused(clean(reason)),
            AuthError::Unavailable(reason, wait) => AuthError::Unavailable(clean(reason), wait),
        }
    }
}

/// What a token endpoint's answer means (RFC 6749, sections 5.1 and 5.2). Pure.
fn read(exchange: &Exchange, default_lifetime: Duration) -> Result<Grant, AuthError> {
    let answer = match exchange {
        Exchange::NotSent(reason) | Exchange::Unknown(reason) => {
            return Err(AuthError::Unavailable(reason.clone(), None));
        }
        Exchange::Answered(answer) => answer,
    };
    let json = serde_json::from_slice::<Value>(&answer.body).unwrap_or(Value::Null);
    if answer.status == 200 {
        return grant(&json, default_lifetime);
    }
    Err(refusal(answer, &json))
}

fn grant(json: &Value, default_lifetime: Duration) -> Result<Grant, AuthError> {
    let nonsense = |text: &str| AuthError::Unavailable(Reason::new("token_answer", format!("the answer {text}")), None);
    let token = json.get("access_token").and_then(Value::as_str).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| nonsense("has status 200 but no access_token in it"))?;
    let kind = json.get("token_type").and_then(Value::as_str).unwrap_or("Bearer");
    if !kind.eq_ignore_ascii_case("bearer") {
        return Err(AuthError::Refused(Reason::new("token_type", "the token is not a bearer token (RFC 6750)")));
    }
    let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| nonsense("holds a token with characters that cannot stand in a header"))?;
    authorization.set_sensitive(true);
    // RFC 6749 makes `expires_in` a number and only recommends it; some servers write it as a string.
    let seconds = json
        .get("expires_in")
        .and_then(|value| value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok())))
        .filter(|seconds| *seconds > 0.0);
    let lifetime = seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(default_lifetime)
        .min(MAX_LIFETIME);
    Ok(Grant { authorization, lifetime })
}

/// The `error` member decides first, the status second: AWS answers 400 to everything, others use 401.
fn refusal(answer: &Answer, json: &Value) -> AuthError {
    let status = answer.status;
    let member = |name: &str| json.get(name).and_then(Value::as_str);
    let error = member("error").unwrap_or_default();
    let text = match (error, member("error_description")) {
        ("", _) => format!("it answered {status}"),
        (error, None) => format!("it answered {status} {error}"),
        (error, Some(description)) => format!("it answered {status} {error} ({description})"),
    };
    let (code, hint) = match error {
        "invalid_client" => ("invalid_client", "check destination.auth.client_id and client_secret"),
        "unauthorized_client" => {
            ("unauthorized_client", "this client may not use client credentials; ask the API's operator")
        }
        "invalid_scope" => ("invalid_scope", "check destination.auth.scope"),
        "invalid_grant" => ("invalid_grant", "the client is not set up for client credentials; ask the API's operator"),
        "unsupported_grant_type" => ("unsupported_grant_type", "check destination.auth.token_url"),
        "invalid_request" => ("invalid_request", "check destination.auth.token_url and scope"),
        _ => match status {
            401 | 403 => ("token_refused", "check destination.auth.client_id and client_secret"),
            300..400 | 404 | 405 | 406 | 410 | 415 => ("token_url", "check destination.auth.token_url"),
            400 | 422 => ("token_request", "check destination.auth"),
            _ => {
                return AuthError::Unavailable(Reason::new("token_endpoint", text), answer.retry_after);
            }
        },
    };
    AuthError::Refused(Reason::new(code, format!("{text}; {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Duration = Duration::from_secs(300);

    fn answered(status: u16, body: &str) -> Result<Grant, AuthError> {
        read(&Exchange::Answered(Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() }), DEFAULT)
    }

    #[test]
    fn a_grant_is_read_with_its_lifetime_whatever_the_case_of_its_type() {
        for (body, seconds) in [
            (r#"{"access_token":"t","expires_in":3600,"token_type":"Bearer"}"#, 3600),
            (r#"{"access_token":"t","expires_in":"60","token_type":"bearer"}"#, 60),
            (r#"{"access_token":"t","token_type":"BEARER"}"#, 300),
            (r#"{"access_token":"t","expires_in":-5}"#, 300),
        ] {
            let grant = answered(200, body).unwrap_or_else(|error| panic!("{body}: {error}"));
            assert_eq!(grant.lifetime, Duration::from_secs(seconds), "{body}");
            assert_eq!(grant.authorization.as_bytes(), b"Bearer t");
            assert!(grant.authorization.is_sensitive());
        }
    }

    #[test]
    fn refused_and_unavailable_are_told_apart() {
        let refused = [
            (400, r#"{"error":"invalid_client","error_description":"invalid_client_secret"}"#, "invalid_client"),
            (401, r#"{"error":"invalid_client"}"#, "invalid_client"),
            (400, r#"{"error":"invalid_scope"}"#, "invalid_scope"),
            (400, r#"{"error":"unauthorized_client"}"#, "unauthorized_client"),
            (400, r#"{"error":"unsupported_grant_type"}"#, "unsupported_grant_type"),
            (400, r#"{"error":"invalid_grant"}"#, "invalid_grant"),
            (400, r#"{"error":"invalid_request"}"#, "invalid_request"),
            (401, "", "token_refused"),
            (403, "<html>", "token_refused"),
            (404, "", "token_url"),
            (302, "", "token_url"),
            (200, r#"{"access_token":"t","token_type":"mac"}"#, "token_type"),
        ];
        for (status, body, code) in refused {
            match answered(status, body) {
                Err(AuthError::Refused(reason)) => assert_eq!(reason.code, code, "{status} {body}"),
                _ => panic!("{status} {body} must be refused"),
            }
        }
        let unavailable = [
            (429, "Rate exceeded"),
            (500, ""),
            (503, "<html>"),
            (200, ""),
            (200, "<html>log in</html>"),
            (200, r#"{"access_token":""}"#),
            (200, r#"{"access_token":"a\nb"}"#),
            (400, r#"{"error":"temporarily_unavailable"}"#),
        ];
        for (status, body) in unavailable.into_iter().filter(|(status, _)| *status != 400) {
            assert!(matches!(answered(status, body), Err(AuthError::Unavailable(..))), "{status} {body}");
        }
    }
}
