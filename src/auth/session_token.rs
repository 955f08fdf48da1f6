//! A log-in by name and password that gives a token for a session: Paya Connect.
//!
//! ```text
//!   POST token_url {"username", "password", ...} ──> token at token_pointer, lifetime at lifetime_pointer
//!   each request carries the token; if the session slides, each success begins its lifetime anew
//!   DELETE logout_url at shutdown
//! ```

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::Value;

use super::credential::can_stand_in_a_header;
use super::endpoint::Endpoint;
use super::oauth2::{lifetime, nonsense, parameters, refusal_by_status};
use super::{AuthError, Credential, Grant};
use crate::config::{Auth, Destination, LifetimeUnit, Secret, TokenIn, Values, fill_in_url, url_values};
use crate::http::Exchange;
use crate::reason::Reason;

/// What to check when a log-in is refused.
const CREDENTIALS: &str = "check destination.auth.username, password, parameters and headers";

/// Sessions of an account.
#[derive(Debug)]
pub(super) struct SessionToken {
    endpoint: Endpoint,
    auth: Auth,
    values: Values,
    token_url: reqwest::Url,
    parameters: Vec<(String, Secret)>,
}

impl SessionToken {
    /// Of this destination.
    ///
    /// # Panics
    /// On settings that [`crate::config::check`] refuses.
    pub(super) fn of(destination: &Destination, endpoint: Endpoint) -> Self {
        let url = fill_in_url(&destination.auth.token_url, &url_values(destination));
        Self {
            endpoint,
            auth: destination.auth.clone(),
            values: url_values(destination),
            token_url: url.expect("checked: all variables are set").parse().expect("checked: a URL"),
            parameters: parameters(destination),
        }
    }

    pub(super) fn is_sliding(&self) -> bool {
        self.auth.sliding
    }

    /// Logs in.
    pub(super) async fn fetch(&self) -> Result<Grant, AuthError> {
        let mut members = serde_json::Map::new();
        members.insert("username".to_owned(), self.auth.username.as_str().into());
        members.insert("password".to_owned(), self.auth.password.expose().into());
        members.extend(self.parameters.iter().map(|(name, value)| (name.clone(), value.expose().into())));
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = Value::from(members).to_string();
        let exchange = self.endpoint.send(Method::POST, &self.token_url, headers, body, &[]).await;
        read(&self.auth, &exchange)
    }

    /// The credential of a session.
    pub(super) fn carry(&self, fixed: Credential, token: &Secret) -> Credential {
        match self.auth.token_in {
            TokenIn::Bearer => fixed.with_bearer(token),
            TokenIn::Header => {
                let name = HeaderName::try_from(self.auth.token_name.as_str()).expect("checked: a header's name");
                fixed.with_header(name, token.expose())
            }
            TokenIn::Query => fixed.with_query(&self.auth.token_name, token.clone()),
        }
    }

    /// Ends a session. One that is not there any more is as good as ended.
    pub(super) async fn end(&self, token: &Secret) -> Result<(), AuthError> {
        if self.auth.logout_url.is_empty() {
            return Ok(());
        }
        let mut values = self.values.clone();
        values.insert("token".to_owned(), token.expose().to_owned());
        let url: Option<reqwest::Url> =
            fill_in_url(&self.auth.logout_url, &values).ok().and_then(|url| url.parse().ok());
        let Some(url) = url else { return Err(nonsense("to the log-in gave a token that makes no URL")) };
        let session = self.carry(Credential::default(), token);
        let mut headers = HeaderMap::new();
        session.add_headers(&mut headers);
        let url = session.add_query(&url).unwrap_or(url);
        let reason = match self.endpoint.send(Method::DELETE, &url, headers, String::new(), &[token.expose()]).await {
            Exchange::Answered(answer) if matches!(answer.status, 200..300 | 404 | 410) => return Ok(()),
            Exchange::Answered(answer) => Reason::new("logout", format!("the log-out answered {}", answer.status)),
            Exchange::NotSent(reason) | Exchange::Unknown(reason) => reason,
        };
        Err(AuthError::Unavailable(reason, None))
    }
}

/// What the answer to a log-in means. Pure.
fn read(auth: &Auth, exchange: &Exchange) -> Result<Grant, AuthError> {
    let answer = match exchange {
        Exchange::NotSent(reason) | Exchange::Unknown(reason) => {
            return Err(AuthError::Unavailable(reason.clone(), None));
        }
        Exchange::Answered(answer) => answer,
    };
    if !(200..300).contains(&answer.status) {
        return Err(refusal_by_status(answer, &format!("the log-in answered {}", answer.status), CREDENTIALS));
    }
    let json: Value = serde_json::from_slice(&answer.body).map_err(|_| nonsense("to the log-in is not JSON"))?;
    let token = json.pointer(&auth.token_pointer).and_then(Value::as_str).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| nonsense("to the log-in has no token at destination.auth.token_pointer"))?;
    // A token of dots would be a step in the path of the log-out's URL.
    if !can_stand_in_a_header(token) || [".", ".."].contains(&token) {
        return Err(nonsense("to the log-in holds a token that cannot stand in a header or a URL"));
    }
    let unit_s = match auth.lifetime_unit {
        LifetimeUnit::Seconds => 1,
        LifetimeUnit::Minutes => 60,
    };
    // An empty pointer is the whole answer, and no lifetime.
    let lifetime = json.pointer(&auth.lifetime_pointer).and_then(|value| lifetime(value, unit_s));
    let default = Duration::from_millis(auth.default_lifetime_ms);
    Ok(Grant { token: Secret::new(token), refresh: None, lifetime: lifetime.unwrap_or(default) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Answer;

    fn auth() -> Auth {
        Auth {
            token_pointer: "/token/token".to_owned(),
            lifetime_pointer: "/token/expire".to_owned(),
            lifetime_unit: LifetimeUnit::Minutes,
            ..Auth::default()
        }
    }

    fn answered(status: u16, body: &str) -> Result<Grant, AuthError> {
        let answer = Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() };
        read(&auth(), &Exchange::Answered(answer))
    }

    #[test]
    fn token_and_lifetime_are_read_where_they_stand() {
        for (body, seconds) in [
            (r#"{"token":{"token":"abc","expire":15}}"#, 900),
            (r#"{"token":{"token":"abc","expire":"1"}}"#, 60),
            (r#"{"token":{"token":"abc","expire":0}}"#, 300),
            (r#"{"token":{"token":"abc"}}"#, 300),
        ] {
            let grant = answered(201, body).unwrap_or_else(|error| panic!("{body}: {error}"));
            assert_eq!((grant.token.expose(), grant.lifetime.as_secs()), ("abc", seconds), "{body}");
        }
        let flat = Auth { token_pointer: "/t".to_owned(), lifetime_pointer: String::new(), ..Auth::default() };
        let answer = Answer { status: 200, body: br#"{"t":"abc"}"#.to_vec(), ..Answer::default() };
        let grant = read(&flat, &Exchange::Answered(answer)).expect("a grant");
        assert_eq!(grant.lifetime.as_secs(), 300, "without a place for it, the default");
    }

    #[test]
    fn refused_and_unavailable_are_told_apart() {
        for (status, code) in [
            (401, "token_refused"),
            (403, "token_refused"),
            (404, "token_url"),
            (422, "token_request"),
            (302, "token_url"),
        ] {
            match answered(status, "<html>") {
                Err(AuthError::Refused(reason)) => assert_eq!(reason.code, code, "{status}"),
                _ => panic!("{status} must be refused"),
            }
        }
        for (status, body) in [
            (429, ""),
            (500, ""),
            (200, ""),
            (200, "<html>"),
            (200, r#"{"token":"abc"}"#),
            (200, r#"{"token":{"token":""}}"#),
            (201, r#"{"token":{"token":"a\nb"}}"#),
        ] {
            assert!(matches!(answered(status, body), Err(AuthError::Unavailable(..))), "{status} {body}");
        }
    }
}
