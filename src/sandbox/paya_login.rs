//! Who may ask Paya Connect: its maker's id with every request, and one of four proofs of who the user is.
//!
//! Sources: the vendor's page on authentication has the names of headers and parameters, the object that a log-in is
//! answered with, that its life is announced in minutes and begins anew with every successful request, and the statuses
//! of a log-out. Made up: status 201 for a log-in, the bodies of a 401, and that whoever presents the very token that it
//! ends is let through even if that has died, as a 404 would be out of reach otherwise.

use std::time::SystemTime;

use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Desk, Memory};
use super::entry::Effect;
use super::head::{basic, header_or_query, query};
use super::paya_fields::Errors;
use super::reply::Reply;
use super::settings::Tuning;
use super::tokens;

/// Where users log in.
pub(super) const PATH: &str = "/v2/token";

/// The token that a log-out names in its path.
pub(super) fn token_in(path: &str) -> Option<&str> {
    let token = path.strip_prefix(PATH)?.strip_prefix('/')?;
    (!token.is_empty() && !token.contains('/')).then_some(token)
}

/// Whether a request says who it comes from, in one of the four ways.
pub(super) fn admits(tuning: &Tuning, memory: &Memory, head: &Parts) -> bool {
    names_developer(tuning, head)
        && (has_key(tuning, head) || session(head).is_some_and(|token| memory.tokens.admits(&token)))
}

fn names_developer(tuning: &Tuning, head: &Parts) -> bool {
    header_or_query(head, "developer-id").is_some_and(|id| id == tuning.developer_id)
}

/// Whether a user's id comes with its key: both as headers, both as parameters, or as HTTP Basic.
fn has_key(tuning: &Tuning, head: &Parts) -> bool {
    let header = |headers: &HeaderMap, name| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let ways = [
        header(&head.headers, "user-id").zip(header(&head.headers, "user-api-key")),
        query(&head.uri, "user-id").zip(query(&head.uri, "user-api-key")),
        basic(&head.headers),
    ];
    ways.into_iter().flatten().any(|(id, key)| id == tuning.user_id && key == tuning.user_api_key)
}

/// The token of a session.
fn session(head: &Parts) -> Option<String> {
    header_or_query(head, "access-token")
}

/// Lets the session live on that a successful request came from.
pub(super) fn slide(desk: &Desk<'_>, answered: (Reply, Effect)) -> (Reply, Effect) {
    if desk.token_ok
        && answered.0.status.is_success()
        && let Some(token) = session(desk.head)
    {
        desk.memory.tokens.renew(&token);
    }
    answered
}

/// The answer to a request that does not say who it comes from.
pub(super) fn unauthorized() -> Reply {
    Reply::message(StatusCode::UNAUTHORIZED, "Unauthorized")
}

#[derive(Deserialize)]
struct Login {
    username: Option<String>,
    password: Option<String>,
    domain: Option<String>,
}

/// Answers a log-in.
pub(super) fn login(desk: &Desk<'_>) -> (Reply, Effect) {
    let tuning = desk.tuning;
    if !names_developer(tuning, desk.head) {
        return (unauthorized(), Effect::Nothing);
    }
    let Ok(login) = serde_json::from_slice::<Login>(desk.body) else {
        return (Reply::message(StatusCode::BAD_REQUEST, "The body is not valid JSON"), Effect::Nothing);
    };
    let mut errors = Errors::default();
    for (name, value) in [("username", &login.username), ("password", &login.password), ("domain", &login.domain)] {
        if value.as_deref().is_none_or(str::is_empty) {
            errors.blank(name);
        }
    }
    if !errors.is_empty() {
        return (errors.reply(), Effect::Nothing);
    }
    let is = |given: &Option<String>, known: &str| given.as_deref() == Some(known);
    let known = is(&login.username, &tuning.username)
        && is(&login.password, &tuning.password)
        && is(&login.domain, &tuning.domain);
    if !known {
        return (unauthorized(), Effect::Nothing);
    }
    let token = tokens::make("", tuning.token_length);
    desk.memory.tokens.issue(&token, tuning.token_lifetime);
    (Reply::json(StatusCode::CREATED, opened(tuning, &token).to_string()), Effect::Issued)
}

/// The documented object. Only the token and its life mean anything.
fn opened(tuning: &Tuning, token: &str) -> Value {
    let now = now_s();
    json!({
        "token": {
            "id": "11e80000000000000000000a",
            "expire": (tuning.announced_lifetime_s() / 60).max(1),
            "first_name": "Sandbox",
            "last_name": "User",
            "password_expire_ts": now + 90 * 24 * 3600,
            "time": now,
            "token": token,
            "username": tuning.username,
            "primary_location_id": tuning.location_id,
            "timezone": "America/New_York",
            "user_type_id": 200,
        }
    })
}

/// Answers a log-out.
pub(super) fn logout(desk: &Desk<'_>) -> (Reply, Effect) {
    let Some(token) = token_in(desk.head.uri.path()) else {
        return (Reply::empty(StatusCode::NOT_FOUND), Effect::Nothing);
    };
    let of_itself = names_developer(desk.tuning, desk.head) && session(desk.head).as_deref() == Some(token);
    if !desk.token_ok && !of_itself {
        return (unauthorized(), Effect::Nothing);
    }
    if desk.memory.tokens.revoke(token) {
        (Reply::empty(StatusCode::NO_CONTENT), Effect::Ended)
    } else {
        (Reply::empty(StatusCode::NOT_FOUND), Effect::Nothing)
    }
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::request::Builder;

    use super::super::api::trial::ask;
    use super::super::settings::Profile;
    use super::*;

    const LOGIN: &str = r#"{"username":"sandbox-user","password":"sandbox-password","domain":"sandbox.example"}"#;

    fn told(memory: &Memory, request: Builder, body: &str) -> (u16, Value, Effect) {
        let request = request.header("developer-id", "sandbox-developer").body(body).unwrap();
        let told = ask(&Tuning::of(Profile::Paya), memory, request);
        (told.status, serde_json::from_slice(told.body()).unwrap_or_default(), told.effect)
    }

    #[test]
    fn every_documented_way_of_saying_who_one_is_is_accepted_and_none_without_the_makers_id() {
        let (tuning, memory) = (Tuning::of(Profile::Paya), Memory::default());
        memory.tokens.issue("session", std::time::Duration::from_secs(60));
        let (id, key) = (&tuning.user_id, &tuning.user_api_key);
        let admitted = |request: Builder| admits(&tuning, &memory, &request.body(()).unwrap().into_parts().0);
        let get = |query: &str| Request::get(format!("/v2/contacts?{query}"));
        let basic = "Basic c2FuZGJveC11c2VyLWlkLTAwMDAwMDAwMDA6c2FuZGJveC11c2VyLWFwaS1rZXk=";
        let ways = |query: &str| {
            [
                get(query).header("user-id", id).header("user-api-key", key),
                get(&format!("user-id={id}&user-api-key={key}&{query}")),
                get(query).header("authorization", basic),
                get(query).header("access-token", "session"),
                get(&format!("access-token=session&{query}")),
            ]
        };
        for way in ways("developer-id=sandbox-developer") {
            assert!(admitted(way));
        }
        for way in ways("").map(|way| way.header("developer-id", "sandbox-developer")) {
            assert!(admitted(way));
        }
        for way in ways("").into_iter().chain(ways("developer-id=other")) {
            assert!(!admitted(way));
        }
        let with_maker = get("developer-id=sandbox-developer");
        assert!(!admitted(with_maker.header("user-id", id).header("user-api-key", "wrong")));
    }

    #[test]
    fn a_log_in_is_answered_with_the_documented_object() {
        let (status, answer, effect) = told(&Memory::default(), Request::post(PATH), LOGIN);
        assert_eq!((status, effect), (201, Effect::Issued));
        assert_eq!((&answer["token"]["expire"], &answer["token"]["user_type_id"]), (&json!(15), &json!(200)));
        assert_eq!(answer["token"]["id"].as_str().unwrap().len(), 24);
        assert_eq!(answer["token"]["token"].as_str().unwrap().len(), 16);
    }

    #[test]
    fn a_life_of_less_than_a_minute_is_announced_as_one() {
        let announced = |ms| {
            let tuning = Tuning { token_lifetime: std::time::Duration::from_millis(ms), ..Tuning::of(Profile::Paya) };
            opened(&tuning, "token")["token"]["expire"].as_u64()
        };
        assert_eq!([announced(20), announced(119_999), announced(120_000)], [Some(1), Some(1), Some(2)]);
        let early =
            Tuning { announced_lifetime_s: Some(900), token_lifetime: std::time::Duration::ZERO, ..Tuning::default() };
        assert_eq!(opened(&early, "token")["token"]["expire"], 15);
    }

    #[test]
    fn a_wrong_log_in_is_refused_by_what_is_wrong() {
        let memory = Memory::default();
        let status = |body: &str| told(&memory, Request::post(PATH), body).0;
        assert_eq!(status(&LOGIN.replace("sandbox-password", "wrong")), 401);
        assert_eq!(status(&LOGIN.replace("sandbox.example", "wrong")), 401);
        assert_eq!(status("username=sandbox-user"), 400);
        let (status, answer, _) = told(&memory, Request::post(PATH), r#"{"username":"a","password":"b"}"#);
        assert_eq!((status, answer), (422, json!({"errors": {"domain": ["Domain cannot be blank."]}})));
    }

    #[test]
    fn a_log_out_ends_the_session_once() {
        let memory = Memory::default();
        let token = told(&memory, Request::post(PATH), LOGIN).1["token"]["token"].as_str().unwrap().to_owned();
        let delete = || Request::delete(format!("{PATH}/{token}"));
        assert_eq!(told(&memory, delete(), "").0, 401);
        assert_eq!(told(&memory, delete().header("access-token", "other"), "").0, 401);
        let out = told(&memory, delete().header("access-token", &token), "");
        assert_eq!(out, (204, Value::Null, Effect::Ended));
        assert!(!memory.tokens.admits(&token));
        let again = told(&memory, delete().header("access-token", &token), "");
        assert_eq!(again, (404, Value::Null, Effect::Nothing));
    }
}
