//! The routes under `/_sandbox`: what the handle does from Rust, over HTTP.
//!
//! The list is what `GET /_sandbox/` answers: [`ROUTES`].
//!
//! Everything else on the port is a path that the API does not have: 404, and counted.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::entry::{Endpoint, Key};
use super::exchange::{NoAnswer, read};
use super::reply::{HTML, Reply};
use super::server::Shared;

/// What `GET /_sandbox/` answers.
const ROUTES: &str = "\
GET    /_sandbox/                    this list
GET    /_sandbox/health              200
GET    /_sandbox/journal             JSON lines; ?since=SEQ (after it)&limit=N&bodies=true
                                     &endpoint=leads|token|query|logout
GET    /_sandbox/journal/summary     counts, statuses, faults, keys that came more than once
DELETE /_sandbox/journal             forgets entries, keys and counts
GET    /_sandbox/leads/{key}         the requests with this Idempotency-Key, as a JSON array
DELETE /_sandbox/leads               forgets which leads exist
GET    /_sandbox/faults              the plan: what is left of the script, rates, rules
POST   /_sandbox/faults              replaces the parts of the plan that the document has
DELETE /_sandbox/faults              removes script, rates and rules
POST   /_sandbox/revoke              makes all tokens and sessions worthless
GET    /_sandbox/settings            the tunable settings
PATCH  /_sandbox/settings            changes the members that the document has
GET    /_sandbox/login               the page that a redirect leads to
";

/// Text for people.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Where a redirect leads.
pub(super) const LOGIN_PAGE: &str = "/_sandbox/login";

/// Most journal entries in one answer, and how many there are unless asked for less.
const PAGE: usize = 10_000;

/// Answers a request that is not for the API.
pub(super) async fn answer(shared: &Shared, request: Request<Incoming>) -> Result<Reply, NoAnswer> {
    let (head, body) = request.into_parts();
    // The body is read first and always: to answer without is to break the connection of whoever is still sending.
    let Some(body) = read(body).await? else {
        return Ok(Reply::message(StatusCode::PAYLOAD_TOO_LARGE, "Request Too Long"));
    };
    let Some(route) = head.uri.path().strip_prefix("/_sandbox/") else {
        shared.journal.count_other();
        return Ok(Reply::message(StatusCode::NOT_FOUND, "Not Found"));
    };
    let query = head.uri.query().unwrap_or_default();
    Ok(match (&head.method, route) {
        (&Method::GET, "") => Reply::json(StatusCode::OK, ROUTES).of_type(TEXT),
        (&Method::GET, "health") => done(),
        (&Method::GET, "journal") => journal(shared, query),
        (&Method::GET, "journal/summary") => ok(&shared.journal.summary()),
        (&Method::DELETE, "journal") => {
            shared.journal.clear();
            done()
        }
        (&Method::DELETE, "leads") => {
            shared.memory.forget_leads();
            done()
        }
        (&Method::GET, "faults") => ok(&json!(shared.faults.plan())),
        (&Method::POST, "faults") => match read_json(&body).and_then(|plan| shared.faults.set(&plan)) {
            Ok(()) => ok(&json!({ "script_left": shared.faults.script_left() })),
            Err(reason) => bad_request(&reason),
        },
        (&Method::DELETE, "faults") => {
            shared.faults.clear();
            done()
        }
        (&Method::POST, "revoke") => {
            shared.memory.revoke_all();
            done()
        }
        (&Method::GET, "settings") => ok(&json!(*shared.tuning())),
        (&Method::PATCH, "settings") => {
            let tuned = read_json(&body).and_then(|patch| shared.tune(|tuning| tuning.patched(&patch)));
            tuned.map_or_else(|reason| bad_request(&reason), |tuning| ok(&json!(*tuning)))
        }
        (&Method::GET, "login") => {
            shared.journal.count_other();
            Reply::json(StatusCode::OK, "<!doctype html><title>Sign in</title><h1>Please sign in</h1>").of_type(HTML)
        }
        (&Method::GET, lead) if lead.starts_with("leads/") => posts_of(shared, lead),
        _ => Reply::message(StatusCode::NOT_FOUND, "no such route of the sandbox"),
    })
}

fn journal(shared: &Shared, query: &str) -> Reply {
    let (mut since, mut limit, mut endpoint, mut bodies) = (0, PAGE, None, false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let known = match (&*name, &*value) {
            ("since", seq) => seq.parse().map(|seq| since = seq).is_ok(),
            ("limit", most) => most.parse().map(|most: usize| limit = most.min(PAGE)).is_ok(),
            ("endpoint", name) => {
                let named = Endpoint::ALL.into_iter().find(|endpoint| endpoint.name() == name);
                named.is_some_and(|named| endpoint.replace(named).is_none())
            }
            ("bodies", "true") => !std::mem::replace(&mut bodies, true),
            ("bodies", "false") => true,
            _ => false,
        };
        if !known {
            return bad_request(&format!("{name}={value} is not understood"));
        }
    }
    let mut lines = Vec::new();
    for entry in shared.journal.page(since, limit, endpoint) {
        lines.extend_from_slice(entry.line(bodies).to_string().as_bytes());
        lines.push(b'\n');
    }
    Reply::json(StatusCode::OK, lines).of_type(HeaderValue::from_static("application/x-ndjson"))
}

fn posts_of(shared: &Shared, route: &str) -> Reply {
    // A key is any text, so in a path it may be percent-encoded. A plus sign stays one.
    let encoded = route.trim_start_matches("leads/").replace('+', "%2B");
    let key = form_urlencoded::parse(encoded.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default();
    let posts = shared.journal.posts_for(Key::from(key));
    if posts.is_empty() {
        return Reply::message(StatusCode::NOT_FOUND, "no request had this key");
    }
    let lines: Vec<Value> = posts.iter().map(|entry| entry.line(true)).collect();
    ok(&Value::from(lines))
}

fn read_json<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn ok(value: &Value) -> Reply {
    Reply::json(StatusCode::OK, value.to_string())
}

fn done() -> Reply {
    ok(&json!({ "ok": true }))
}

fn bad_request(reason: &str) -> Reply {
    Reply::message(StatusCode::BAD_REQUEST, reason)
}
