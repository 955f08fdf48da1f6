//! An API, a log-in and a log-out that repeat whatever they were sent, in errors and in successes: no secret of any kind of log-in
//! gets into logs, onto the admin port, into the ledger, or to where people look.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leadpost::ledger::LeadState;
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::support::api::{Heard, Port};
use crate::support::{Process, World};

/// Stands in every secret and every token of these tests, at its beginning, so that half of one is found too.
const MARK: &str = "zyxq";
/// With characters that forms, URLs and JSON write in ways of their own.
const PASSWORD: &str = "zyxqpass/ +&=\"\\\u{e9}%";
const KEY: &str = "zyxqkey/ +&=\"%";
const TOKEN: &str = "/+=~.-_";

/// All that a request holds, as it came and decoded.
fn everything(heard: &Heard) -> String {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let body = if heard.header("content-type").contains("form") { decoded(&heard.text()) } else { heard.text() };
    let basic = heard.header("authorization").strip_prefix("Basic ").map(|basic| STANDARD.decode(basic).unwrap());
    let basic = String::from_utf8(basic.unwrap_or_default()).unwrap();
    [heard.whole(), decoded(&heard.target), body, basic].join(" | ")
}

/// What gives each request its answer.
struct Echo {
    /// Whether nobody is logged in.
    refusing: Arc<AtomicBool>,
    tokens: AtomicU32,
    /// How often each lead, or question, came.
    seen: Mutex<HashMap<String, u32>>,
}

impl Echo {
    fn answer(&self, heard: &Heard) -> (u16, String) {
        let all = everything(heard);
        match heard.path() {
            "/token" if self.refusing.load(Ordering::SeqCst) => {
                (400, json!({ "error": "invalid_client", "error_description": all }).to_string())
            }
            "/session" if self.refusing.load(Ordering::SeqCst) => (401, json!({ "message": all }).to_string()),
            "/token" | "/session" => {
                let n = self.tokens.fetch_add(1, Ordering::SeqCst);
                let (access, refresh) = (format!("{MARK}access{n}{TOKEN}"), format!("{MARK}refresh{n}{TOKEN}"));
                let echo = json!({
                    "access_token": access, "refresh_token": refresh, "token": access, "expires_in": 3600, "you": all,
                });
                (200, echo.to_string())
            }
            "/find" => match self.times(heard.target.split("key=").nth(1).unwrap_or_default()) {
                1 => (500, json!({ "error": all }).to_string()),
                2 => (200, format!("not JSON: {all}")),
                _ => (200, json!({ "found": true, "id": all }).to_string()),
            },
            "/leads" => self.take(&heard.text(), &all),
            _ => (500, all),
        }
    }

    fn times(&self, what: &str) -> u32 {
        let mut seen = self.seen.lock().unwrap();
        let times = seen.entry(what.to_owned()).or_default();
        *times += 1;
        *times
    }

    /// Fails as the lead's name says, at its first post; the next succeeds.
    fn take(&self, lead: &str, all: &str) -> (u16, String) {
        let first = self.times(lead) == 1;
        let message = json!({ "message": all, "errors": [all] }).to_string();
        let is = |name: &str| lead.contains(name);
        match () {
            () if is("rejected") => (422, message),
            () if is("plain") => (400, all.to_owned()),
            () if is("page") => (422, format!("<html><b>{all}</b></html>")),
            () if is("known") => (409, json!(all).to_string()),
            () if first && is("stale") => (401, message),
            () if first && is("busy") => (503, message),
            () if first && is("broken") => (500, message),
            () if first && is("forbidden") => (403, message),
            () => (201, json!({ "id": all, "state": all, "subState": all, "nextScheduleTime": all }).to_string()),
        }
    }
}

fn is_clean(what: &str, text: &str, encoded: &[String]) {
    for line in text.lines() {
        let at = line.to_lowercase().find(MARK);
        assert!(at.is_none(), "{what} holds a secret: {line}");
        let bytes: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!line.contains(&bytes), "{what} holds a secret as bytes: {line}");
        for secret in encoded {
            assert!(!line.contains(secret), "{what} holds a secret as it is sent: {line}");
        }
    }
}

async fn admin_port_is_clean(kind: &str, worker: &Process, encoded: &[String]) {
    for path in ["/livez", "/readyz", "/metrics"] {
        is_clean(&format!("{kind}: {path}"), &worker.ask(path).await.2, encoded);
    }
}

/// All that the ledger holds, as text; bytes are hexadecimal.
pub async fn ledger(world: &World) -> String {
    let sql = "select table_name::text from information_schema.tables where table_schema = 'public'";
    let tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(&world.database.pool).await.unwrap();
    assert!(tables.iter().any(|table| table == "attempts"), "{tables:?}");
    let mut all = String::new();
    for table in tables {
        let sql = format!(r#"select coalesce(string_agg(t::text, E'\n'), '') from "{table}" t"#);
        let rows: String = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&world.database.pool).await.unwrap();
        all.push_str(&rows);
        all.push('\n');
    }
    all
}

/// A worker meets an API of echoes, whatever its kind of log-in.
async fn keeps_its_secrets(kind: &str, pairs: &[(&str, &str)], encoded: &[String]) {
    let refusing = Arc::new(AtomicBool::new(true));
    let echo = Echo { refusing: Arc::clone(&refusing), tokens: AtomicU32::new(0), seen: Mutex::default() };
    let port = Port::open(move |heard: &Heard| echo.answer(heard)).await;
    let [find, token, session, revoke, end] =
        ["/find?key={key}", "/token", "/session", "/revoke", "/end/{token}"].map(|path| port.url(path));
    let mut all = vec![
        ("RECONCILE__URL", find.as_str()),
        ("RECONCILE__FOUND", "if .found then .id else false end"),
        ("RESPONSE__REASON", "/errors"),
    ];
    let is_fetched = pairs.iter().any(|(name, _)| ["AUTH__CLIENT_SECRET", "AUTH__PASSWORD"].contains(name));
    if pairs.contains(&("AUTH__KIND", "session_token")) {
        all.extend([("AUTH__TOKEN_URL", session.as_str()), ("AUTH__LOGOUT_URL", &end)]);
    } else if is_fetched {
        all.extend([("AUTH__TOKEN_URL", token.as_str()), ("AUTH__REVOKE_URL", &revoke)]);
    }
    let world = World::towards(&port, &[&all[..], pairs].concat()).await;
    let worker = world.worker(&["--set", "log.filter=leadpost=trace", "--set", "retry.initial_ms=20"]).await;

    let mut ids = vec![world.publish_body(r#"{"name":"first"}"#).await];
    if is_fetched {
        worker.until_said("posts are paused").await;
        world.until("it is not ready", async || worker.ask("/readyz").await.0 == 503).await;
        admin_port_is_clean(kind, &worker, encoded).await;
        is_clean(&format!("{kind}: the ledger"), &ledger(&world).await, encoded);
    }
    refusing.store(false, Ordering::SeqCst);
    for name in ["created", "rejected", "plain", "page", "known", "busy", "stale", "broken", "forbidden"] {
        let id = world.publish_body(&format!(r#"{{"name":"{name}"}}"#)).await;
        world.until(name, async || world.state(id).await.is_some_and(|state| state != LeadState::Pending)).await;
        admin_port_is_clean(kind, &worker, encoded).await;
        ids.push(id);
    }
    let heard = port.heard("");
    let has_secret = pairs.iter().any(|(_, value)| value.contains(MARK));
    assert!(!has_secret || heard.iter().any(|heard| everything(heard).contains(MARK)), "{kind}: no secret was sent");
    let said = worker.stop().await;
    is_clean(&format!("{kind}: the log"), &said, encoded);
    let has_end = heard.iter().any(|heard| ["/token", "/session"].contains(&heard.path()));
    assert_eq!(said.contains("could not log out"), has_end, "{kind}: {said}");

    let states: Vec<_> = world.tally().await;
    let expected = [(LeadState::Delivered, 6), (LeadState::Duplicate, 1), (LeadState::Rejected, 3)];
    assert_eq!(states, expected, "{kind}");
    let answers = world.number("select count(*) from attempts where position('***'::bytea in answer) > 0").await;
    assert_eq!(answers > 3, has_secret, "{kind}: {answers} answers had something taken out");
    is_clean(&format!("{kind}: the ledger"), &ledger(&world).await, encoded);
    for id in ids {
        for output in ["text", "json"] {
            let shown = world.leadpost(&["leads", "show", &id.to_string(), "--output", output]).await;
            assert_eq!(shown.code, Some(0), "{shown:?}");
            is_clean(&format!("{kind}: leads show"), &(shown.stdout + &shown.stderr), encoded);
        }
    }
    for command in [&["status"][..], &["config", "show"], &["config", "show", "--output", "json"], &["config", "check"]]
    {
        let done = world.leadpost(command).await;
        assert_eq!(done.code, Some(0), "{command:?}: {done:?}");
        is_clean(&format!("{kind}: {command:?}"), &(done.stdout + &done.stderr), encoded);
    }
    let broken = [("LEADPOST__DESTINATION__REQUEST__JQ", "{")];
    let done = world.leadpost_with(&["run"], &broken, b"").await;
    assert_eq!(done.code, Some(78), "{done:?}");
    is_clean(&format!("{kind}: a bad start"), &done.stderr, encoded);
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

fn in_form(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oauth2_client_keeps_its_secret_and_its_tokens() {
    let pair = [format!("id:{PASSWORD}"), format!("id:{}", in_form(PASSWORD))].map(|pair| base64(&pair));
    for way in ["basic", "basic_encoded", "form", "json"] {
        let pairs = [("AUTH__CLIENT_ID", "id"), ("AUTH__CLIENT_SECRET", PASSWORD), ("AUTH__CLIENT_AUTH", way)];
        keeps_its_secrets(way, &pairs, &pair).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_keeps_its_password_and_its_refresh_tokens() {
    for way in ["basic", "form"] {
        let pairs = [
            ("AUTH__KIND", "oauth2_password"),
            ("AUTH__CLIENT_ID", "id"),
            ("AUTH__CLIENT_SECRET", "zyxqclient"),
            ("AUTH__USERNAME", "user"),
            ("AUTH__PASSWORD", PASSWORD),
            ("AUTH__CLIENT_AUTH", way),
        ];
        keeps_its_secrets("oauth2_password", &pairs, &[base64("id:zyxqclient")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_its_password_and_its_token_wherever_that_goes() {
    for place in ["bearer", "header", "query"] {
        let mut pairs = vec![
            ("AUTH__KIND", "session_token"),
            ("AUTH__USERNAME", "user"),
            ("AUTH__PASSWORD", PASSWORD),
            ("AUTH__TOKEN_IN", place),
        ];
        if place != "bearer" {
            pairs.push(("AUTH__TOKEN_NAME", "access-token"));
        }
        keeps_its_secrets(place, &pairs, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_kept_as_header_as_query_and_as_http_basic() {
    let kind = [("AUTH__KIND", "api_key"), ("AUTH__API_KEY_ID", "user"), ("AUTH__API_KEY", KEY)];
    for way in
        [("AUTH__HEADERS__USER-API-KEY", "{api_key}"), ("AUTH__QUERY__KEY", "{api_key}"), ("AUTH__BASIC", "true")]
    {
        keeps_its_secrets(way.0, &[&kind[..], &[way]].concat(), &[base64(&format!("user:{KEY}"))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_token_is_kept() {
    keeps_its_secrets("bearer", &[("AUTH__KIND", "bearer"), ("AUTH__BEARER_TOKEN", "zyxqbearer/+=~")], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_in_the_same_api_is_met_in_the_same_way() {
    keeps_its_secrets("none", &[("AUTH__KIND", "none")], &[]).await;
}

// --- Echoes that are cut off, or written in another way

/// A lead is refused by the API with this answer; neither log nor ledger hold a part of the secret.
async fn an_answer_is_clean(name: &str, secret: &str, body: String, further: &[(&str, &str)]) {
    let port = Port::open(move |_: &Heard| (422, body.clone())).await;
    let pairs = [("AUTH__KIND", "api_key"), ("AUTH__API_KEY", secret), ("AUTH__QUERY__KEY", "{api_key}")];
    let world = World::towards(&port, &[&pairs[..], further].concat()).await;
    let running = world.start().await;
    let id = world.publish_body(r#"{"name":"ann"}"#).await;
    world.until_state(id, LeadState::Rejected).await;
    is_clean(name, &ledger(&world).await, &[]);
    world.finish(running).await;
}

/// A token endpoint refuses us with this description; health, which the log repeats, holds no part of the secret.
async fn a_refusal_is_clean(name: &str, secret: &str, description: String) {
    let body = json!({ "error": "invalid_client", "error_description": description }).to_string();
    let port = Port::open(move |_: &Heard| (400, body.clone())).await;
    let url = port.url("/token");
    let pairs = [("AUTH__TOKEN_URL", url.as_str()), ("AUTH__CLIENT_ID", "id"), ("AUTH__CLIENT_SECRET", secret)];
    let world = World::towards(&port, &pairs).await;
    let running = world.start().await;
    world.publish_body(r#"{"name":"ann"}"#).await;
    world.until_token(&running, "the token endpoint refuses us").await;
    is_clean(name, &format!("{:?}", running.health.report()), &[]);
    is_clean(name, &ledger(&world).await, &[]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_an_answer_that_is_cut_off_is_not_kept_by_half() {
    let secret = "zyxqkey0123456789";
    for before in [1_008, 1_012, 1_018] {
        let body = format!("{}{secret} and more", "x".repeat(before));
        an_answer_is_clean("cut", secret, body, &[("REQUEST__MAX_ANSWER_BYTES", "1024")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_an_answer_writes_with_escapes_is_taken_out() {
    let secret = "zyxq\u{e9}\"&<key";
    for (name, body) in [
        ("ascii JSON", r#"{"message":"you sent zyxq\u00e9\"&<key"}"#),
        ("careful JSON", r#"{"message":"you sent zyxq\u00e9\u0022\u0026\u003ckey"}"#),
        ("HTML", "<html>zyxq\u{e9}&quot;&amp;&lt;key</html>"),
    ] {
        an_answer_is_clean(name, secret, body.to_owned(), &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_a_description_that_is_cut_off_is_not_told_by_half() {
    let secret = "zyxqsecret0123456789";
    for before in [455, 460, 465] {
        a_refusal_is_clean("cut", secret, format!("{}{secret}", "x".repeat(before))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_with_white_space_in_a_description_is_taken_out() {
    a_refusal_is_clean("spaces", "zyxq  two  words", "you sent zyxq  two  words".to_owned()).await;
}
