//! The token endpoints of a Django server with django-oauth-toolkit, which SquadRun's is by all appearances: password
//! grant, refresh, revocation.
//!
//! Sources: the vendor's page on authentication has the paths, the forms and the members of an answer. Statuses, names
//! of errors and what dies when were measured at django-oauth-toolkit 3.4.1, which SquadRun does not name but resembles
//! in every visible detail. That the revocation of an access token leaves its refresh token alive is in the source of
//! that library. Made up: that no more than [`MOST`] refresh tokens are remembered; there they never expire.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::header::{CACHE_CONTROL, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde_json::json;
use url::form_urlencoded;

use super::api::Desk;
use super::entry::{ContentType, Effect};
use super::head::content_type;
use super::reply::{HTML, Reply};
use super::settings::Tuning;
use super::tokens;

/// Where tokens are given.
pub(super) const TOKEN_PATH: &str = "/oauth/token/";

/// Where they are revoked.
pub(super) const REVOKE_PATH: &str = "/oauth/revoke_token/";

/// Most refresh tokens in memory. With one more, the older half goes.
const MOST: usize = 16_384;

/// The refresh tokens that can still be used, each with the access token that came with it.
#[derive(Debug, Default)]
pub(super) struct RefreshTokens {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    issued: usize,
    live: HashMap<Box<str>, Pair>,
}

#[derive(Debug)]
struct Pair {
    number: usize,
    access: Box<str>,
}

impl RefreshTokens {
    /// No refresh token is worth anything any more.
    pub(super) fn revoke_all(&self) {
        self.lock().live.clear();
    }

    fn issue(&self, refresh: &str, access: &str) {
        let mut book = self.lock();
        if book.live.len() >= MOST {
            let oldest = book.issued.saturating_sub(MOST / 2);
            book.live.retain(|_, pair| pair.number >= oldest);
        }
        let number = book.issued;
        book.issued += 1;
        book.live.insert(refresh.into(), Pair { number, access: access.into() });
    }

    /// Ends a refresh token and returns the access token that came with it.
    fn take(&self, refresh: &str) -> Option<Box<str>> {
        self.lock().live.remove(refresh).map(|pair| pair.access)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers a request for a token: a new log-in, or a refresh that ends both tokens it replaces.
pub(super) fn give(desk: &Desk<'_>) -> (Reply, Effect) {
    if let Err(refusal) = check(desk) {
        return (refusal.reply(), Effect::Nothing);
    }
    let tuning = desk.tuning;
    let (access, refresh) = (tokens::make("", tuning.token_length), tokens::make("", tuning.token_length));
    desk.memory.tokens.issue(&access, tuning.token_lifetime);
    desk.memory.refresh_tokens.issue(&refresh, &access);
    let body = json!({
        "access_token": access,
        "expires_in": tuning.announced_lifetime_s(),
        "token_type": "Bearer",
        "scope": tuning.scope,
        "refresh_token": refresh,
    });
    (finish(StatusCode::OK, body.to_string()), Effect::Issued)
}

/// Answers a request to revoke a token, known or not. A refresh token takes its access token with it.
pub(super) fn revoke(desk: &Desk<'_>) -> (Reply, Effect) {
    let form = Form::of(desk.head, desk.body);
    let Some(token) = form.field("token") else { return (Refusal::InvalidRequest.reply(), Effect::Nothing) };
    if !form.names_client(desk.tuning) {
        return (Refusal::InvalidClient.reply(), Effect::Nothing);
    }
    let ended = match desk.memory.refresh_tokens.take(token) {
        Some(access) => {
            desk.memory.tokens.revoke(&access);
            true
        }
        None => desk.memory.tokens.revoke(token),
    };
    (Reply::empty(StatusCode::OK).of_type(HTML), if ended { Effect::Ended } else { Effect::Nothing })
}

/// Whether the body of a request names the client with its secret.
pub(super) fn names_client(tuning: &Tuning, head: &Parts, body: &[u8]) -> bool {
    Form::of(head, body).names_client(tuning)
}

/// A body as a form. Any other body is an empty form.
struct Form<'a> {
    fields: HashMap<Cow<'a, str>, Cow<'a, str>>,
}

impl<'a> Form<'a> {
    fn of(head: &Parts, body: &'a [u8]) -> Self {
        let is_form = content_type(&head.headers) == Some(ContentType::Form);
        Self { fields: if is_form { form_urlencoded::parse(body).collect() } else { HashMap::new() } }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(AsRef::as_ref)
    }

    fn names_client(&self, tuning: &Tuning) -> bool {
        self.field("client_id") == Some(&tuning.client_id) && self.field("client_secret") == Some(&tuning.client_secret)
    }
}

fn check(desk: &Desk<'_>) -> Result<(), Refusal> {
    let (tuning, form) = (desk.tuning, Form::of(desk.head, desk.body));
    let by_password = match form.field("grant_type") {
        Some("password") => true,
        Some("refresh_token") => false,
        _ => return Err(Refusal::UnsupportedGrantType),
    };
    if !form.names_client(tuning) {
        return Err(Refusal::InvalidClient);
    }
    let needed = |name| form.field(name).ok_or(Refusal::InvalidRequest);
    if by_password {
        let right = needed("username")? == tuning.username && needed("password")? == tuning.password;
        return if right { Ok(()) } else { Err(Refusal::WrongPassword) };
    }
    // Whoever takes it has used it up: of two at once, one comes too late.
    let access = desk.memory.refresh_tokens.take(needed("refresh_token")?).ok_or(Refusal::InvalidGrant)?;
    desk.memory.tokens.revoke(&access);
    Ok(())
}

/// Why there is no token. The names are those of RFC 6749, 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    WrongPassword,
    UnsupportedGrantType,
}

impl Refusal {
    fn reply(self) -> Reply {
        let body = match self {
            Self::InvalidRequest => r#"{"error":"invalid_request"}"#,
            Self::InvalidClient => r#"{"error":"invalid_client"}"#,
            Self::InvalidGrant => r#"{"error":"invalid_grant"}"#,
            Self::WrongPassword => r#"{"error":"invalid_grant","error_description":"Invalid credentials given."}"#,
            Self::UnsupportedGrantType => r#"{"error":"unsupported_grant_type"}"#,
        };
        if self == Self::InvalidClient {
            let challenge = HeaderValue::from_static(r#"Bearer error="invalid_client""#);
            return finish(StatusCode::UNAUTHORIZED, body).with(WWW_AUTHENTICATE, challenge);
        }
        finish(StatusCode::BAD_REQUEST, body)
    }
}

fn finish(status: StatusCode, body: impl Into<bytes::Bytes>) -> Reply {
    Reply::json(status, body).with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::super::api::Memory;
    use super::super::api::trial::{Told, ask};
    use super::super::settings::Profile;
    use super::*;

    const CLIENT: &str = "client_id=sandbox-client&client_secret=sandbox-secret";

    fn posted(memory: &Memory, path: &str, fields: &str) -> Told {
        let request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
        ask(&Tuning::of(Profile::SquadRun), memory, request.body(&*format!("{CLIENT}&{fields}")).unwrap())
    }

    /// The access token and the refresh token of an answer.
    fn pair(told: &Told) -> (String, String) {
        let answer = told.json();
        let member = |name: &str| answer[name].as_str().unwrap().to_owned();
        (member("access_token"), member("refresh_token"))
    }

    fn log_in(memory: &Memory) -> (String, String) {
        pair(&posted(memory, TOKEN_PATH, "grant_type=password&username=sandbox-user&password=sandbox-password"))
    }

    fn refresh(memory: &Memory, token: &str) -> Told {
        posted(memory, TOKEN_PATH, &format!("grant_type=refresh_token&refresh_token={token}"))
    }

    #[test]
    fn a_refresh_ends_both_tokens_that_it_replaces_and_no_others() {
        let memory = Memory::default();
        let (mine, other) = (log_in(&memory), log_in(&memory));
        let new = pair(&refresh(&memory, &mine.1));
        assert!(!memory.tokens.admits(&mine.0));
        assert!(memory.tokens.admits(&new.0) && memory.tokens.admits(&other.0));
        let again = refresh(&memory, &mine.1);
        assert_eq!((again.status, again.json()), (400, json!({"error": "invalid_grant"})));
        assert_eq!(refresh(&memory, &other.1).status, 200);
        assert_eq!(refresh(&memory, &new.1).status, 200);
    }

    #[test]
    fn a_revoked_refresh_token_takes_its_access_token_with_it_and_not_the_other_way_round() {
        let memory = Memory::default();
        let (mine, other) = (log_in(&memory), log_in(&memory));
        let revoked = posted(&memory, REVOKE_PATH, &format!("token={}", mine.1));
        assert_eq!((revoked.status, revoked.effect, revoked.body().len()), (200, Effect::Ended, 0));
        assert!(!memory.tokens.admits(&mine.0));
        assert_eq!(posted(&memory, REVOKE_PATH, &format!("token={}", other.0)).effect, Effect::Ended);
        assert!(!memory.tokens.admits(&other.0));
        assert_eq!(refresh(&memory, &other.1).status, 200);
        let unknown = posted(&memory, REVOKE_PATH, "token=unknown&token_type_hint=access_token");
        assert_eq!((unknown.status, unknown.effect), (200, Effect::Nothing));
    }

    #[test]
    fn what_is_wrong_has_the_status_and_the_name_that_were_measured() {
        let memory = Memory::default();
        for (fields, status, error) in [
            ("grant_type=password&username=sandbox-user&password=wrong", 400, "invalid_grant"),
            ("grant_type=password&username=sandbox-user", 400, "invalid_request"),
            ("grant_type=refresh_token", 400, "invalid_request"),
            ("grant_type=client_credentials", 400, "unsupported_grant_type"),
            ("username=sandbox-user&password=sandbox-password", 400, "unsupported_grant_type"),
            ("grant_type=password&client_secret=wrong", 401, "invalid_client"),
        ] {
            let told = posted(&memory, TOKEN_PATH, fields);
            assert_eq!((told.status, told.json()["error"].as_str()), (status, Some(error)), "{fields}");
        }
        let stranger = posted(&memory, REVOKE_PATH, "token=a&client_secret=wrong");
        assert_eq!(stranger.status, 401);
        assert!(stranger.reply.headers.iter().any(|(name, _)| name == WWW_AUTHENTICATE));
    }

    #[test]
    fn refresh_tokens_do_not_pile_up_and_the_newest_stay() {
        let tokens = RefreshTokens::default();
        for n in 0..3 * MOST {
            tokens.issue(&n.to_string(), "access");
        }
        assert!(tokens.lock().live.len() <= MOST);
        assert!(tokens.take(&(3 * MOST - 1).to_string()).is_some());
    }
}
