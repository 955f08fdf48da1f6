//! What the OAuth 2.0 grants have in common: how the client shows who it is, what a token endpoint's answer means (RFC 6749), and
//! revocation (RFC 7009).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::credential::can_stand_in_a_header;
use super::endpoint::{Endpoint, MAX_LIFETIME};
use super::{AuthError, Grant};
use crate::config::{ClientAuth, Destination, Secret, fill_in, fill_in_url, url_values, values};
use crate::http::{Answer, Exchange};
use crate::reason::Reason;

/// What a person should do about refusals that mean different things for different grants.
#[derive(Debug)]
pub(super) struct Hints {
    pub(super) credentials: &'static str,
    pub(super) invalid_grant: &'static str,
    pub(super) unauthorized_client: &'static str,
}

/// A client of an authorization server.
#[derive(Debug)]
pub(super) struct OAuth2 {
    endpoint: Endpoint,
    token_url: reqwest::Url,
    revoke_url: Option<reqwest::Url>,
    client_auth: ClientAuth,
    client_id: String,
    client_secret: Secret,
    scope: String,
    parameters: Vec<(String, Secret)>,
    default_lifetime: Duration,
}

impl OAuth2 {
    /// Of this destination.
    ///
    /// # Panics
    /// On settings that [`crate::config::check`] refuses.
    pub(super) fn of(destination: &Destination, endpoint: Endpoint) -> Self {
        let auth = &destination.auth;
        let url = |template: &str| {
            let url = fill_in_url(template, &url_values(destination)).expect("checked: all variables are set");
            url.parse().expect("checked: a URL")
        };
        Self {
            endpoint,
            token_url: url(&auth.token_url),
            revoke_url: (!auth.revoke_url.is_empty()).then(|| url(&auth.revoke_url)),
            client_auth: auth.client_auth,
            client_id: auth.client_id.clone(),
            client_secret: auth.client_secret.clone(),
            scope: auth.scope.clone(),
            parameters: parameters(destination),
            default_lifetime: Duration::from_millis(auth.default_lifetime_ms),
        }
    }

    /// Asks for a token with these parameters of a grant.
    ///
    /// # Errors
    /// [`AuthError::Refused`] where asking again would get the same answer, [`AuthError::Unavailable`] otherwise.
    pub(super) async fn grant(
        &self,
        grant: &[(&str, &str)],
        with_scope: bool,
        hints: &Hints,
    ) -> Result<Grant, AuthError> {
        let mut parameters = grant.to_vec();
        if with_scope && !self.scope.is_empty() {
            parameters.push(("scope", &self.scope));
        }
        parameters.extend(self.parameters.iter().map(|(name, value)| (name.as_str(), value.expose())));
        let (headers, body) = self.request(parameters, self.client_auth == ClientAuth::Json);
        let refresh = grant.iter().find(|(name, _)| *name == "refresh_token").map(|(_, value)| *value);
        let exchange = self.endpoint.send(Method::POST, &self.token_url, headers, body, refresh.as_slice()).await;
        read(&exchange, self.default_lifetime, hints)
    }

    /// Revokes a token (RFC 7009), where the server can do that. A token that it does not know is as good as revoked.
    ///
    /// # Errors
    /// Why nobody knows whether it is revoked.
    pub(super) async fn revoke(&self, token: &Secret, hint: &str) -> Result<(), AuthError> {
        let Some(url) = &self.revoke_url else { return Ok(()) };
        // A form, always (section 2.1).
        let (headers, body) = self.request(vec![("token", token.expose()), ("token_type_hint", hint)], false);
        let reason = match self.endpoint.send(Method::POST, url, headers, body, &[token.expose()]).await {
            Exchange::Answered(answer) if (200..300).contains(&answer.status) => return Ok(()),
            Exchange::Answered(answer) => {
                Reason::new("revoke", format!("the revocation endpoint answered {}", answer.status))
            }
            Exchange::NotSent(reason) | Exchange::Unknown(reason) => reason,
        };
        Err(AuthError::Unavailable(reason, None))
    }

    /// Headers and body with these parameters and the client's credentials (section 2.3.1).
    fn request<'a>(&'a self, mut parameters: Vec<(&'a str, &'a str)>, as_json: bool) -> (HeaderMap, String) {
        let (id, secret) = (self.client_id.as_str(), self.client_secret.expose());
        let mut headers = HeaderMap::new();
        let basic = match self.client_auth {
            ClientAuth::Basic => Some(format!("{id}:{secret}")),
            ClientAuth::BasicEncoded => Some(format!("{}:{}", encoded(id), encoded(secret))),
            ClientAuth::Form | ClientAuth::Json => {
                parameters.extend([("client_id", id), ("client_secret", secret)]);
                None
            }
        };
        if let Some(pair) = basic {
            let basic = format!("Basic {}", STANDARD.encode(pair));
            let mut authorization = HeaderValue::try_from(basic).expect("base64 can stand in a header");
            authorization.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, authorization);
        }
        let (kind, body) = if as_json {
            let members: serde_json::Map<String, Value> =
                parameters.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            ("application/json", Value::from(members).to_string())
        } else {
            ("application/x-www-form-urlencoded", Serializer::new(String::new()).extend_pairs(parameters).finish())
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        (headers, body)
    }
}

/// The further parameters of a log-in, filled in.
///
/// # Panics
/// On settings that [`crate::config::check`] refuses.
pub(super) fn parameters(destination: &Destination) -> Vec<(String, Secret)> {
    let values = values(destination);
    let filled = |template: &str| Secret::new(fill_in(template, &values).expect("checked: all values are set"));
    destination.auth.parameters.iter().map(|(name, template)| (name.clone(), filled(template))).collect()
}

fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

/// What a token endpoint's answer means (RFC 6749, sections 5.1 and 5.2). Pure.
fn read(exchange: &Exchange, default_lifetime: Duration, hints: &Hints) -> Result<Grant, AuthError> {
    let answer = match exchange {
        Exchange::NotSent(reason) | Exchange::Unknown(reason) => {
            return Err(AuthError::Unavailable(reason.clone(), None));
        }
        Exchange::Answered(answer) => answer,
    };
    let json = serde_json::from_slice::<Value>(&answer.body).unwrap_or(Value::Null);
    if answer.status == 200 {
        return granted(&json, default_lifetime);
    }
    Err(refusal(answer, &json, hints))
}

fn granted(json: &Value, default_lifetime: Duration) -> Result<Grant, AuthError> {
    let text = |name: &str| json.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let token = text("access_token").ok_or_else(|| nonsense("has status 200 but no access_token in it"))?;
    let kind = json.get("token_type").and_then(Value::as_str).unwrap_or("Bearer");
    if !kind.eq_ignore_ascii_case("bearer") {
        return Err(AuthError::Refused(Reason::new("token_type", "the token is not a bearer token (RFC 6750)")));
    }
    if !can_stand_in_a_header(token) {
        return Err(nonsense("holds a token with characters that cannot stand in a header"));
    }
    // RFC 6749 only recommends `expires_in`.
    let lifetime = json.get("expires_in").and_then(|value| lifetime(value, 1)).unwrap_or(default_lifetime);
    Ok(Grant { token: Secret::new(token), refresh: text("refresh_token").map(Secret::new), lifetime })
}

/// An answer that is none, so that the next one may be better.
pub(super) fn nonsense(text: &str) -> AuthError {
    AuthError::Unavailable(Reason::new("token_answer", format!("the answer {text}")), None)
}

/// A lifetime in units of so many seconds; some servers write the number as a string. `None` for what is none.
pub(super) fn lifetime(value: &Value, unit_s: u32) -> Option<Duration> {
    let number = value.as_f64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))?;
    if number.is_nan() || number <= 0.0 {
        return None;
    }
    // Longer than a number of seconds can say is simply very long.
    Some(Duration::try_from_secs_f64(number * f64::from(unit_s)).unwrap_or(MAX_LIFETIME).min(MAX_LIFETIME))
}

/// The `error` member decides first, the status second: AWS answers 400 to everything, others use 401.
fn refusal(answer: &Answer, json: &Value, hints: &Hints) -> AuthError {
    let status = answer.status;
    let member = |name: &str| json.get(name).and_then(Value::as_str);
    let error = member("error").unwrap_or_default();
    let text = match (error, member("error_description")) {
        ("", _) => format!("it answered {status}"),
        (error, None) => format!("it answered {status} {error}"),
        (error, Some(description)) => format!("it answered {status} {error} ({description})"),
    };
    let (code, hint) = match error {
        "invalid_client" => ("invalid_client", hints.credentials),
        "unauthorized_client" => ("unauthorized_client", hints.unauthorized_client),
        "invalid_scope" => ("invalid_scope", "check destination.auth.scope"),
        "invalid_grant" => ("invalid_grant", hints.invalid_grant),
        "unsupported_grant_type" => {
            ("unsupported_grant_type", "check destination.auth.kind, token_url and client_auth")
        }
        "invalid_request" => ("invalid_request", "check destination.auth.token_url, client_auth and scope"),
        _ => return refusal_by_status(answer, &text, hints.credentials),
    };
    AuthError::Refused(Reason::new(code, format!("{text}; {hint}")))
}

/// What a status alone says: our credentials, our URL, our request, or their trouble.
pub(super) fn refusal_by_status(answer: &Answer, text: &str, credentials: &str) -> AuthError {
    let (code, hint) = match answer.status {
        401 | 403 => ("token_refused", credentials),
        300..400 | 404 | 405 | 406 | 410 => ("token_url", "check destination.auth.token_url"),
        415 => ("token_request", "check destination.auth.client_auth: the endpoint wants another kind of body"),
        400 | 422 => ("token_request", "check destination.auth"),
        _ => return AuthError::Unavailable(Reason::new("token_endpoint", text), answer.retry_after),
    };
    AuthError::Refused(Reason::new(code, format!("{text}; {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Credential;

    const DEFAULT: Duration = Duration::from_secs(300);

    const HINTS: Hints = Hints { credentials: "check id", invalid_grant: "check grant", unauthorized_client: "ask" };

    fn answered(status: u16, body: &str) -> Result<Grant, AuthError> {
        let answer = Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() };
        read(&Exchange::Answered(answer), DEFAULT, &HINTS)
    }

    fn client(client_auth: ClientAuth) -> OAuth2 {
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut destination = Destination::default();
        destination.auth.token_url = "https://h/token".to_owned();
        destination.auth.client_id = "my id".to_owned();
        destination.auth.client_secret = Secret::new("a:b/c");
        destination.auth.client_auth = client_auth;
        let endpoint = Endpoint::of(&destination, Credential::fixed(&destination)).expect("a client");
        OAuth2::of(&destination, endpoint)
    }

    #[test]
    fn a_client_shows_who_it_is_in_each_of_the_four_ways() {
        let request = |client_auth| {
            let (headers, body) =
                client(client_auth).request(vec![("grant_type", "x y")], client_auth == ClientAuth::Json);
            let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().expect("ASCII").to_owned());
            (text(header::AUTHORIZATION), text(header::CONTENT_TYPE).expect("a type"), body)
        };
        const FORM: &str = "application/x-www-form-urlencoded";
        let basic = |pair: &str| Some(format!("Basic {}", STANDARD.encode(pair)));
        let plain = "grant_type=x+y".to_owned();
        assert_eq!(request(ClientAuth::Basic), (basic("my id:a:b/c"), FORM.to_owned(), plain.clone()));
        assert_eq!(request(ClientAuth::BasicEncoded), (basic("my+id:a%3Ab%2Fc"), FORM.to_owned(), plain));
        let form = "grant_type=x+y&client_id=my+id&client_secret=a%3Ab%2Fc".to_owned();
        assert_eq!(request(ClientAuth::Form), (None, FORM.to_owned(), form));
        let json = r#"{"client_id":"my id","client_secret":"a:b/c","grant_type":"x y"}"#.to_owned();
        assert_eq!(request(ClientAuth::Json), (None, "application/json".to_owned(), json));
    }

    #[test]
    fn a_grant_is_read_with_its_lifetime_whatever_the_case_of_its_type() {
        for (body, seconds) in [
            (r#"{"access_token":"t","expires_in":3600,"token_type":"Bearer"}"#, 3600),
            (r#"{"access_token":"t","expires_in":"60","token_type":"bearer"}"#, 60),
            (r#"{"access_token":"t","expires_in":0.5,"token_type":"bEARER"}"#, 0),
            (r#"{"access_token":"t","token_type":"BEARER"}"#, 300),
            (r#"{"access_token":"t","expires_in":null}"#, 300),
            (r#"{"access_token":"t","expires_in":0}"#, 300),
            (r#"{"access_token":"t","expires_in":-5}"#, 300),
            (r#"{"access_token":"t","expires_in":"soon"}"#, 300),
            (r#"{"access_token":"t","expires_in":{}}"#, 300),
            (r#"{"access_token":"t","expires_in":1e300}"#, 30 * 24 * 3600),
        ] {
            let grant = answered(200, body).unwrap_or_else(|error| panic!("{body}: {error}"));
            assert_eq!(grant.lifetime.as_secs(), seconds, "{body}");
            assert!(grant.token.expose() == "t" && grant.refresh.is_none());
        }
        let with_refresh = answered(200, r#"{"access_token":"t","refresh_token":"r"}"#).expect("a grant");
        assert_eq!(with_refresh.refresh.expect("a refresh token").expose(), "r");
        assert!(answered(200, r#"{"access_token":"t","refresh_token":""}"#).expect("a grant").refresh.is_none());
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
            (500, r#"{"error":"invalid_client"}"#, "invalid_client"),
            (401, "", "token_refused"),
            (403, "<html>", "token_refused"),
            (404, "", "token_url"),
            (302, "", "token_url"),
            (415, "Unsupported Media Type", "token_request"),
            (422, "<h1>Unprocessable</h1>", "token_request"),
            (200, r#"{"access_token":"t","token_type":"mac"}"#, "token_type"),
        ];
        for (status, body, code) in refused {
            match answered(status, body) {
                Err(AuthError::Refused(reason)) => assert_eq!(reason.code, code, "{status} {body}"),
                _ => panic!("{status} {body} must be refused"),
            }
        }
        let huge = "x".repeat(64 * 1024);
        let unavailable = [
            (429, "Rate exceeded"),
            (500, ""),
            (500, "Internal Server Error"),
            (503, "<html>"),
            (503, r#"{"error":"temporarily_unavailable"}"#),
            (204, ""),
            (200, ""),
            (200, "null"),
            (200, "[]"),
            (200, huge.as_str()),
            (200, "<html>log in</html>"),
            (200, r#"{"access_token":""}"#),
            (200, r#"{"access_token":7}"#),
            (200, r#"{"access_token":"a\nb"}"#),
            (200, r#"{"access_token":"cut of"#),
        ];
        for (status, body) in unavailable {
            assert!(matches!(answered(status, body), Err(AuthError::Unavailable(..))), "{status} {body}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_check_in_the_words_of_its_grant() {
        for (body, hint) in [
            (
                r#"{"error":"invalid_grant","error_description":"Invalid credentials given."}"#,
                "(Invalid credentials given.); check grant",
            ),
            (r#"{"error":"invalid_client"}"#, "it answered 400 invalid_client; check id"),
            (r#"{"error":"unauthorized_client"}"#, "; ask"),
        ] {
            let error = answered(400, body).err().expect("refused").to_string();
            assert!(error.starts_with("the token endpoint refuses us: ") && error.ends_with(hint), "{error}");
        }
    }
}
