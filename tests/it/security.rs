//! What comes in over HTTP is bounded, and nothing that an answer or a lead says leads a request astray.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;

use crate::support::wire::{Step, Taken, Wire, reply, takes};
use crate::support::{Message, World};

/// The most that an exchange may take here.
const TIMEOUT: &str = "1000";

/// How much more memory a worker may hold for all that is poured over it: 16 answers of 64 KiB each, as much again while one is
/// copied, and 16 times the 400 KiB that hyper keeps of a head that does not end, make 9 MiB; the rest is the allocator's.
const MORE_MEMORY: u64 = 24 * 1024 * 1024;

async fn world(leads: &str, tokens: &Wire, pairs: &[(&str, &str)]) -> World {
    let token_url = tokens.url("/token");
    let all = [
        ("AUTH__TOKEN_URL", token_url.as_str()),
        ("AUTH__CLIENT_ID", "id"),
        ("AUTH__CLIENT_SECRET", "secret"),
        ("AUTH__TIMEOUT_MS", TIMEOUT),
        ("REQUEST__TIMEOUT_MS", TIMEOUT),
        ("REQUEST__CONNECT_TIMEOUT_MS", "300"),
    ];
    let mut world = World::at(leads, &[&all, pairs].concat()).await;
    world.settings.retry.initial_ms = 50;
    world.settings.retry.max_ms = 100;
    world.settings.retry.max_retry_after_ms = 100;
    world.settings.flow.open_after = 1_000;
    world
}

/// Does what is planned for the lead of this name when it is posted first, and takes it when it comes again.
fn at_first(plan: Vec<(&'static str, Vec<Step>)>) -> impl Fn(&Taken) -> Vec<Step> + Send + Sync + 'static {
    let met = Mutex::new(HashSet::new());
    move |taken| {
        let body = String::from_utf8_lossy(&taken.body);
        let planned = plan.iter().find(|(name, _)| body.contains(&format!("\"{name}\"")));
        match planned {
            Some((name, steps)) if met.lock().unwrap().insert(*name) => steps.clone(),
            _ => takes(taken),
        }
    }
}

/// This head, and then these bytes for ever.
fn pour(head: &str, bytes: &[u8]) -> Vec<Step> {
    vec![Step::Say(head.as_bytes().to_vec()), Step::Pour(bytes.repeat(65_536 / bytes.len()))]
}

/// Answers that do not end, each in another part of them.
fn floods(status: u16) -> Vec<Vec<Step>> {
    let head = format!("HTTP/1.1 {status} X\r\n");
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
    vec![
        pour(&format!("{head}content-length: 1099511627776\r\n\r\n"), b"{\"x\":1,"),
        pour(&format!("{head}content-length: 1099511627776\r\ncontent-type: text/html\r\n\r\n"), b"<b>"),
        pour(&chunked, b"2\r\n{}\r\n"),
        pour(&format!("{chunked}fffffffffff\r\n"), b"\""),
        pour(&format!("{head}\r\n"), b"\0"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_end_from_the_api_and_the_token_endpoint_cost_next_to_no_memory() {
    let mut plan = Vec::new();
    for (status, ways) in [
        (201, ["a0", "a1", "a2", "a3", "a4"]),
        (422, ["b0", "b1", "b2", "b3", "b4"]),
        (500, ["c0", "c1", "c2", "c3", "c4"]),
    ] {
        plan.extend(ways.into_iter().zip(floods(status)));
    }
    // Heads and trailers that do not end.
    plan.push(("d0", pour("HTTP/1.1 201 X\r\nx: ", b"y")));
    plan.push(("d1", pour("HTTP/1.1 201 X\r\n", b"x: y\r\n")));
    plan.push(("d2", pour("HTTP/1.1 ", b"2")));
    plan.push(("a5", pour("HTTP/1.1 201 X\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"x: y\r\n")));
    plan.push(("a6", pour("HTTP/1.1 201 X\r\ntransfer-encoding: chunked\r\n\r\n2;", b"x")));
    let names: Vec<&str> = plan.iter().map(|(name, _)| *name).collect();
    let leads = Wire::open(at_first(plan)).await;
    let asked = Arc::new(Mutex::new(floods(200)));
    let left = Arc::clone(&asked);
    let tokens = Wire::open(move |taken| left.lock().unwrap().pop().unwrap_or_else(|| takes(taken))).await;
    let world = world(&leads.url("/leads"), &tokens, &[]).await;
    let settings = ["--set", "retry.initial_ms=50", "--set", "retry.max_ms=100", "--set", "flow.concurrency=16"];
    let worker = world.worker(&settings).await;
    world.until("it consumes", async || worker.ask("/readyz").await.2.contains("\"consuming\"")).await;
    let before = worker.peak_memory();
    let mut ids = Vec::new();
    for name in names {
        ids.push((name, world.publish_any(name).await));
    }
    for (name, id) in &ids {
        let state = if name.starts_with('b') { LeadState::Rejected } else { LeadState::Delivered };
        let lead = world.until_state(*id, state).await;
        let story: &[&str] = match name.chars().next() {
            Some('a') => &["delivered 201"],
            Some('b') => &["rejected 422"],
            Some('c') => &["uncertain 500", "delivered 201"],
            _ => &["uncertain", "delivered 201"],
        };
        assert_eq!(world.story(*id).await, story, "{name}");
        let longest = lead.history.iter().map(|attempt| attempt.duration_ms).max().unwrap();
        assert!(longest < 5_000, "{name}: {longest} ms where 1000 are the limit");
    }
    let more = worker.peak_memory() - before;
    assert!(more < MORE_MEMORY, "{more} bytes of memory for answers of which 64 KiB count");
    assert!(leads.poured() > 3 * MORE_MEMORY / 2, "{} bytes were poured, too few to prove anything", leads.poured());
    assert!(asked.lock().unwrap().is_empty(), "the token endpoint's were not met");
    worker.stop().await;
    world.check_books().await;
}

/// Heads of answers, and what becomes of their leads. Whether it is `uncertain` or not, nothing is taken for what it is not.
fn odd_heads() -> Vec<(&'static str, Vec<Step>, &'static str)> {
    let head = |status: &str, headers: &[u8]| {
        let start = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n");
        vec![Step::Say([start.as_bytes(), headers, b"\r\n\r\n{}"].concat()), Step::Close]
    };
    let ok = |headers: &[u8]| head("201 Created", headers);
    let many = |n: usize| (0..n).map(|n| format!("x-{n}: y\r\n")).collect::<String>().trim_end().as_bytes().to_vec();
    vec![
        ("headers-90", ok(&many(90)), "delivered 201"),
        ("headers-1000", ok(&many(1_000)), "uncertain"),
        ("header-of-1-mib", ok(&[&b"x: "[..], &b"y".repeat(1 << 20)].concat()), "uncertain"),
        ("header-name-of-1-mib", ok(&[&b"x".repeat(1 << 20)[..], b": y"].concat()), "uncertain"),
        ("control", ok(b"x: a\x01\x1b[31m"), "uncertain"),
        ("nul", ok(b"x: a\0b"), "uncertain"),
        ("bare-return", ok(b"x: a\rlocation: /x"), "uncertain"),
        ("folded", ok(b"x: a\r\n location: /x"), "uncertain"),
        ("space-before-colon", ok(b"content-length : 99"), "uncertain"),
        ("no-colon", ok(b"x"), "uncertain"),
        ("no-name", ok(b": x"), "uncertain"),
        ("latin-1", ok(b"content-type: \xe9\xff; charset=\xfe\r\nx: \xff"), "delivered 201"),
        ("reason-phrase", head("201 \u{e9}\t<b>", b"x: y"), "delivered 201"),
        ("cookies", ok(b"set-cookie: zyxq=1; path=/\r\nset-cookie: zyxq2=2"), "delivered 201"),
        (
            "alternatives",
            ok(b"alt-svc: h2=\"127.0.0.1:1\"\r\nrefresh: 0; url=http://127.0.0.1:1/\r\nupgrade: h2c"),
            "delivered 201",
        ),
        ("wait-for-ever", head("503 X", b"retry-after: 99999999999999999999999999"), "retry 503"),
        ("wait-for-less", head("503 X", b"retry-after: -5"), "retry 503"),
        (
            "wait-for-a-date",
            head("429 X", b"retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT"),
            "retry 429",
        ),
        ("wait-for-no-date", head("429 X", b"retry-after: Fri, 99 Dec 99999 23:59:59 GMT"), "retry 429"),
        ("wait-for-bytes", head("503 X", b"retry-after: \xff\xfe"), "retry 503"),
        ("wait-for-both", head("503 X", b"retry-after: 0\r\nretry-after: 99999999"), "retry 503"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_answers_full_of_tricks_are_read_or_are_doubts_and_leave_nothing_behind() {
    let plan = odd_heads().into_iter().map(|(name, steps, _)| (name, steps)).collect();
    let (leads, tokens) = (Wire::open(at_first(plan)).await, Wire::open(takes).await);
    let world = world(&leads.url("/leads"), &tokens, &[]).await;
    let running = world.start().await;
    for (name, _, outcome) in odd_heads() {
        let id = world.one_more(name).await;
        let story = world.story(id).await;
        let expected = if outcome == "delivered 201" { vec![outcome] } else { vec![outcome, "delivered 201"] };
        assert_eq!(story, expected, "{name}");
        assert_eq!(leads.posts(id), story.len(), "{name}");
    }
    for taken in leads.taken() {
        assert_eq!(header_names(&taken), own_headers(), "an answer's header comes back: {}", taken.head);
    }
    world.finish(running).await;
}

/// The names of the headers that a post has, and no others.
fn own_headers() -> BTreeSet<String> {
    let names = ["accept", "authorization", "content-length", "content-type", "host", "idempotency-key", "user-agent"];
    names.into_iter().map(str::to_owned).collect()
}

fn header_names(taken: &Taken) -> BTreeSet<String> {
    let lines = taken.head.lines().skip(1);
    lines.map(|line| line.split(':').next().unwrap_or_default().to_ascii_lowercase()).collect()
}

// --- Tokens

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_could_inject_a_header_or_never_comes_to_an_end_is_no_token_and_leads_wait_for_a_better_one() {
    let answer = |token: &str| vec![Step::Say(reply(200, &serde_json::json!({ "access_token": token }).to_string()))];
    let (odd, none) = ("characters that cannot stand in a header", "no access_token");
    let drip = |head: &str| vec![Step::Say(head.as_bytes().to_vec()), Step::Drip(b' ', Duration::from_millis(20))];
    let chunked = "HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n";
    let cases: Vec<(&str, Vec<Step>, &str)> = vec![
        ("line-break", answer("zyxq\r\nx-injected: 1"), odd),
        ("line-feed", answer("zyxq\n\nPOST /admin HTTP/1.1"), odd),
        ("return", answer("zyxq\r"), odd),
        ("nul", answer("zy\0xq"), odd),
        ("delete", answer("zyxq\u{7f}"), odd),
        ("1-mib", answer(&"zyxq".repeat(1 << 18)), none),
        ("terabyte", pour("HTTP/1.1 200 X\r\ncontent-length: 1099511627776\r\n\r\n", b"{\"access_token\":\""), none),
        ("chunks", pour(chunked, b"1\r\n \r\n"), none),
        ("drip-of-a-body", drip("HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n"), none),
        ("drip-of-a-head", drip("HTTP/1.1 200 X\r\nx: "), "no answer within the time limit"),
        ("hang", vec![Step::Hang], "no answer within the time limit"),
        ("hang-in-body", vec![Step::Say(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{".to_vec()), Step::Hang], none),
        (
            "type",
            vec![Step::Say(reply(200, r#"{"access_token":"zyxq","token_type":"Bearer\r\nx: y"}"#))],
            "not a bearer token",
        ),
    ];
    let all = cases.into_iter().map(|(name, steps, says)| async move {
        let (leads, tokens) = (Wire::open(takes).await, Wire::open(move |_| steps.clone()).await);
        let world = world(&leads.url("/leads"), &tokens, &[]).await;
        let running = world.start().await;
        let id = world.publish_any(name).await;
        world.until_token(&running, says).await;
        world.until("it is asked for again", async || tokens.taken().len() > 1).await;
        assert!(!format!("{:?}", running.health.report()).contains("zyxq"), "{name}: a token is shown");
        assert!(!running.health.report().ready && leads.connected().is_empty(), "{name}: posted with it");
        tokens.play(takes);
        let lead = world.until_state(id, LeadState::Delivered).await;
        assert_eq!((world.story(id).await, lead.charged), (vec!["delivered 201".to_owned()], 1), "{name}");
        let [post] = &leads.taken()[..] else { panic!("{name}: not one request") };
        assert_eq!(post.header("authorization"), "Bearer token-1", "{name}");
        assert_eq!(header_names(post), own_headers(), "{name}");
        world.finish(running).await;
    });
    join_all(all).await;

    // What is merely no ASCII ends no header.
    let (leads, tokens) = (Wire::open(takes).await, Wire::open(move |_| answer("a\u{e9}\u{1f600}\u{2028}b")).await);
    let world = world(&leads.url("/leads"), &tokens, &[]).await;
    let running = world.start().await;
    world.one_more("ann").await;
    let post = leads.taken().remove(0);
    assert_eq!(
        (post.header("authorization"), header_names(&post)),
        ("Bearer a\u{e9}\u{1f600}\u{2028}b", own_headers())
    );
    world.finish(running).await;
}

// --- Redirects

const REDIRECTS: [u16; 7] = [300, 301, 302, 303, 305, 307, 308];

/// This status, and where to go to.
fn go(status: u16, location: &str) -> Vec<Step> {
    let head = format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\nrefresh: 0; url={location}\r\n");
    vec![Step::Say(format!("{head}content-length: 0\r\n\r\n").into_bytes())]
}

/// Somebody else, as each way of writing it names them.
fn ways_to(elsewhere: &Wire) -> [String; 3] {
    let authority = format!("127.0.0.1:{}", elsewhere.port());
    ["http://", "//", "http://user:password@"].map(|before| format!("{before}{authority}/leads"))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_of_the_api_or_the_token_endpoint_is_followed_and_no_lead_pays_for_it() {
    let all = REDIRECTS.map(|status| async move {
        let (leads, tokens, elsewhere) = (Wire::open(takes).await, Wire::open(takes).await, Wire::open(takes).await);
        let world = world(&leads.url("/leads"), &tokens, &[]).await;
        let location = ways_to(&elsewhere)[usize::from(status) % 3].clone();
        let there = location.clone();
        tokens.play(move |_| go(status, &there));
        let running = world.start().await;
        let id = world.publish_any("ann").await;
        world.until_token(&running, &format!("it answered {status}; check destination.auth.token_url")).await;
        leads.play(move |_| go(status, &location));
        tokens.play(takes);
        world.until_attempts(id, 2).await;
        let says = format!("the API answered {status}");
        world.until("health says so", async || running.health.report().api.detail.contains(&says)).await;
        leads.play(takes);
        let lead = world.until_state(id, LeadState::Delivered).await;
        let story = world.story(id).await;
        assert!(story[..story.len() - 1].iter().all(|attempt| *attempt == format!("systemic {status}")), "{story:?}");
        assert_eq!(lead.charged, 1, "{story:?}");
        assert!(elsewhere.connected().is_empty(), "{status} was followed: {:?}", elsewhere.taken());
        world.finish(running).await;
    });
    join_all(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_of_a_question_is_followed_and_the_lead_in_doubt_waits_for_an_answer() {
    let all = REDIRECTS.map(|status| async move {
        let elsewhere = Wire::open(|_| vec![Step::Say(reply(200, r#"{"found":true}"#))]).await;
        let location = ways_to(&elsewhere)[0].clone();
        let api = Wire::open(move |taken| match taken.path() {
            path if path.starts_with("/find") => go(status, &location),
            _ => vec![Step::Say(reply(500, "{}"))],
        })
        .await;
        let tokens = Wire::open(takes).await;
        let find = api.url("/find?key={key}");
        let pairs = [("RECONCILE__URL", find.as_str()), ("RECONCILE__FOUND", ".found")];
        let world = world(&api.url("/leads"), &tokens, &pairs).await;
        let running = world.start().await;
        let id = world.publish_any("ann").await;
        let lead = world.until_attempts(id, 3).await;
        assert_eq!((lead.state, lead.charged, api.posts(id)), (LeadState::Pending, 1, 1), "{status}");
        let story = world.story(id).await;
        let asked = format!("systemic {status}");
        assert!(story[0] == "uncertain 500" && story[1..].iter().all(|attempt| *attempt == asked), "{story:?}");
        api.play(|taken| match taken.path() {
            path if path.starts_with("/find") => vec![Step::Say(reply(200, r#"{"found":false}"#))],
            _ => takes(taken),
        });
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(api.posts(id), 2);
        assert!(elsewhere.connected().is_empty(), "{status} was followed: {:?}", elsewhere.taken());
        world.finish(running).await;
    });
    join_all(all).await;
}

// --- Leads

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_whose_values_would_inject_headers_requests_or_urls_is_one_post_like_any_other() {
    let injection = "x\r\nX-Injected: 1\r\ncontent-length: 0\r\n\r\nPOST /admin HTTP/1.1\r\nhost: h\r\n\r\n/../../admin?a=b&c=d#{token}{api}%0d%0a";
    let lead = serde_json::json!({ "name": injection, injection: injection, "phone": injection }).to_string();
    for body in ["json", "form"] {
        let leads = Wire::open(|taken| match taken.path() {
            path if path.starts_with("/find") => vec![Step::Say(reply(200, r#"{"found":false}"#))],
            _ => takes(taken),
        })
        .await;
        let tokens = Wire::open(takes).await;
        let find = leads.url("/find/{key}");
        let pairs = [
            ("REQUEST__BODY", body),
            ("RECONCILE__URL", find.as_str()),
            ("RECONCILE__KEY", ".phone"),
            ("RECONCILE__FOUND", ".found"),
        ];
        let world = world(&leads.url("/leads"), &tokens, &pairs).await;
        let running = world.start().await;
        let message_id = Some("crm\r\nX-Injected: 1\r\n\r\n".to_owned());
        world.broker.publish(Message { message_id, ..Message::raw(lead.as_bytes()) }).await;
        world.until_count(LeadState::Delivered, 1).await;
        // In doubt, it is asked for by a key that is no better.
        let second = LeadId(uuid::Uuid::new_v4());
        leads.play(at_first(vec![("doubt", vec![Step::Close])]));
        let doubt = lead.replacen("\"name\"", "\"why\":\"doubt\",\"name\"", 1);
        let doubt = if body == "json" { doubt } else { lead.clone() };
        world.broker.publish(Message::new(second, &doubt)).await;
        world.until_state(second, LeadState::Delivered).await;

        let taken = leads.taken();
        for request in &taken {
            let is_question = request.head.starts_with("GET ");
            let mut names = own_headers();
            if is_question {
                names.retain(|name| !["content-length", "content-type", "idempotency-key"].contains(&&**name));
                assert_eq!(request.path().matches('/').count(), 2, "{}", request.head);
                assert!(request.path().starts_with("/find/x%0D%0AX-Injected"), "{}", request.head);
            } else {
                assert_eq!(request.head.lines().next(), Some("POST /leads HTTP/1.1"));
                assert!(uuid::Uuid::parse_str(request.header("idempotency-key")).is_ok());
                let sent = if body == "json" {
                    serde_json::from_slice::<serde_json::Value>(&request.body).unwrap()["name"]
                        .as_str()
                        .unwrap()
                        .to_owned()
                } else {
                    crate::support::api::form(&request.body)["name"].clone()
                };
                assert_eq!(sent, injection);
            }
            assert_eq!(header_names(request), names, "{}", request.head);
        }
        assert_eq!(taken.len(), if body == "json" { 4 } else { 2 }, "{taken:#?}");
        world.finish(running).await;
    }
}
