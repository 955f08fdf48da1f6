//! Messages that no worker should choke on: one of them in a batch of good leads, whose bytes are kept, whose end is the one that
//! the table says, and whose neighbours notice nothing.

use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Duplicates, Fault};
use uuid::Uuid;

use crate::support::{Message, Process, World};

/// Stands in all that must not be seen in a log.
pub const MARK: &str = "zyxq";

/// Good leads around each bad message.
const NEIGHBOURS: usize = 2;

/// What a message is to become.
#[derive(Clone, Copy)]
enum End {
    /// Posted once, and taken.
    Delivered,
    /// Never posted: this code, and these words.
    Invalid(&'static str, &'static str),
}
use End::{Delivered, Invalid};

fn lead(rest: &str) -> Vec<u8> {
    format!(r#"{{"name":"zyxq","email":"zyxq@example.com","assistantId":61{rest}}}"#).into_bytes()
}

fn named(name: &str) -> Vec<u8> {
    [br#"{"name":"#, name.as_bytes(), br#","email":"zyxq@example.com","assistantId":61}"#].concat()
}

fn wrapped(before: &[u8], after: &[u8]) -> Vec<u8> {
    [before, &lead(""), after].concat()
}

fn nested(open: &str, close: &str, depth: usize) -> Vec<u8> {
    lead(&format!(r#","x":{}0{}"#, open.repeat(depth), close.repeat(depth)))
}

fn utf16(big: bool) -> Vec<u8> {
    let text = String::from_utf8(lead("")).unwrap();
    text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
}

/// What strangers call JSON, and what each becomes.
fn oddities() -> Vec<(&'static str, Vec<u8>, End)> {
    let not_json = Invalid("not_json", "cannot be read");
    let no_object = Invalid("not_an_object", "not an object");
    let not_utf8 = Invalid("not_utf8", "is not part of a character");
    let wrong_type = Invalid("wrong_type", "must be a string");
    let blank = Invalid("missing", "name is mandatory");
    vec![
        // Not text.
        ("nothing", Vec::new(), Invalid("empty", "has no body")),
        ("utf-16, little end, with a mark", [b"\xff\xfe".to_vec(), utf16(false)].concat(), not_utf8),
        ("utf-16, big end, with a mark", [b"\xfe\xff".to_vec(), utf16(true)].concat(), not_utf8),
        ("utf-16 without a mark is text with NULs", utf16(false), not_json),
        ("latin-1", named("\"zyxq\"").iter().map(|b| if *b == b'y' { 0xfc } else { *b }).collect(), not_utf8),
        ("an overlong slash", wrapped(b"", b"\xc0\xaf"), not_utf8),
        (
            "half a surrogate pair in bytes",
            [br#"{"name":"\xed\xa0\x80"#.to_vec(), b"\xed\xa0\x80\"}".to_vec()].concat(),
            not_utf8,
        ),
        ("half a character at the end", wrapped(b"", b"\xe2\x82"), not_utf8),
        ("gzip", b"\x1f\x8b\x08\0zyxq".to_vec(), not_utf8),
        // Not JSON.
        ("white space", b" \t\r\n ".to_vec(), not_json),
        ("words", b"zyxq says hello".to_vec(), not_json),
        ("XML", b"<lead><name>zyxq</name></lead>".to_vec(), not_json),
        ("a form", b"name=zyxq&email=zyxq%40example.com".to_vec(), not_json),
        ("cut off", lead("")[..40].to_vec(), not_json),
        ("garbage behind it", wrapped(b"", b" zyxq"), not_json),
        ("NUL behind it", wrapped(b"", b"\0"), not_json),
        ("two of them", wrapped(b"", &lead("")), not_json),
        ("two marks", wrapped(b"\xef\xbb\xbf\xef\xbb\xbf", b""), not_json),
        ("a comma too many", lead(","), not_json),
        ("a comment", lead("/* zyxq */"), not_json),
        ("single quotes", lead(",'x':1"), not_json),
        ("a bare key", lead(",x:1"), not_json),
        ("NaN", lead(r#","x":NaN"#), not_json),
        ("Infinity", lead(r#","x":-Infinity"#), not_json),
        ("1e400 alone", b"1e400".to_vec(), not_json),
        ("undefined", lead(r#","x":undefined"#), not_json),
        ("hexadecimal", lead(r#","x":0x1F"#), not_json),
        ("a leading zero", lead(r#","x":061"#), not_json),
        ("a leading plus", lead(r#","x":+1"#), not_json),
        ("a lonely exponent", lead(r#","x":1e"#), not_json),
        ("NUL in a string", named("\"zy\0xq\""), not_json),
        ("a line break in a string", named("\"zy\r\nxq\""), not_json),
        ("no such escape", named(r#""\x41zyxq""#), not_json),
        ("half a surrogate pair in a key", lead(r#","\ud800":1"#), not_json),
        // No object.
        ("an array", [b"[".to_vec(), lead(""), b"]".to_vec()].concat(), no_object),
        ("a string", br#""zyxq""#.to_vec(), no_object),
        ("JSON in a string", serde_json::to_vec(&String::from_utf8(lead("")).unwrap()).unwrap(), no_object),
        ("a number", b"17".to_vec(), no_object),
        ("null", b"null".to_vec(), no_object),
        ("100,000 arrays", [b"[".repeat(100_000), b"]".repeat(100_000)].concat(), no_object),
        // No lead.
        ("an empty object", b"{}".to_vec(), blank),
        ("a key twice", lead(r#","name":"zyxqother""#), Invalid("repeated", "more than once")),
        ("a key twice, once with escapes", lead(r#","n\u0061me":"zyxq""#), Invalid("repeated", "more than once")),
        ("an unknown key twice", lead(r#","x":1,"x":1"#), Invalid("repeated", "more than once")),
        (
            "a key of 100 KiB twice",
            lead(&format!(r#","{0}":1,"{0}":2"#, "zyxq".repeat(25_600))),
            Invalid("repeated", "more than once"),
        ),
        ("a name of nothing", named("null"), blank),
        ("a name of white space", named("\" \u{a0}\u{3000}\\t\""), blank),
        ("a name that is a number", named("17"), wrong_type),
        ("a name that is an array", named(r#"["zyxq"]"#), wrong_type),
        ("a name that is an object", named(r#"{"$ne":"zyxq"}"#), wrong_type),
        ("half a surrogate pair in a name", named(r#""zyxq\udfff""#), Invalid("not_text", "surrogate")),
        (
            "a name of 201 characters",
            named(&format!("\"{}\"", "\u{1f600}".repeat(201))),
            Invalid("too_long", "has 201 characters"),
        ),
        (
            "an id of 10,000 digits",
            lead("").windows(1).flat_map(|b| if b == b"6" { b"6".repeat(10_000) } else { b.to_vec() }).collect(),
            Invalid("too_long", "has 10001 characters"),
        ),
        (
            "a context of 20,001 characters",
            lead(&format!(r#","context":"{}""#, "z".repeat(20_001))),
            Invalid("too_long", "has 20001 characters"),
        ),
        (
            "an email with a line break",
            named("\"zyxq\"")
                .iter()
                .flat_map(|b| if *b == b'@' { br"\r\nBcc: zyxq@".to_vec() } else { vec![*b] })
                .collect(),
            Invalid("email_syntax", "is not an email address"),
        ),
        (
            "201 fields",
            lead(&(0..198).map(|n| format!(r#","k{n}":0"#)).collect::<String>()),
            Invalid("too_many_fields", "has 201 fields"),
        ),
        (
            "a byte too large",
            lead(&format!(r#","x":"{}""#, "z".repeat(256 * 1024))),
            Invalid("too_large", "at most 262144"),
        ),
        // Leads, odd as they are.
        ("a byte order mark", wrapped(b"\xef\xbb\xbf", b""), Delivered),
        ("white space around it", wrapped(b"\r\n\t ", b" \n"), Delivered),
        ("1e400", lead(r#","x":1e400,"y":-1E-400,"z":-0.0"#), Delivered),
        ("a number of 10,000 digits", lead(&format!(r#","x":{0}.{0}"#, "9".repeat(10_000))), Delivered),
        ("arrays of depth 129", nested("[", "]", 129), Delivered),
        ("objects of depth 129", nested(r#"{"a":"#, "}", 129), Delivered),
        ("arrays of depth 100,000", nested("[", "]", 100_000), Delivered),
        ("NUL and controls by escapes", named(r#""zyxq\u0000\u0007\u001b[31m\u007f""#), Delivered),
        ("a line break by escapes", named(r#""zyxq\r\nX-Injected: 1\r\n\r\nGET / HTTP/1.1""#), Delivered),
        ("half a surrogate pair nobody looks at", lead(r#","x":"\ud800""#), Delivered),
        ("emoji", named("\"zyxq \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f3f4}\u{e0067}\""), Delivered),
        ("right to left", named("\"\u{202e}qxyz\u{2066}\u{202c} \u{5d0}\u{627}\""), Delivered),
        ("a heap of accents", named(&format!("\"zyxq{}\"", "\u{301}".repeat(190))), Delivered),
        (
            "keys of prototypes",
            lead(r#","__proto__":{"admin":true},"constructor":{"prototype":{}},"":0,"$where":"1""#),
            Delivered,
        ),
        ("a key of 100 KiB", lead(&format!(r#","{}":1"#, "zyxq".repeat(25_600))), Delivered),
        ("a key with NUL and quotes", lead(r#","zy\u0000\"'; drop table leads; --":1"#), Delivered),
        (
            "as large as may be",
            {
                let n = 256 * 1024 - lead(r#","x":"""#).len();
                lead(&format!(r#","x":"{}""#, "z".repeat(n)))
            },
            Delivered,
        ),
    ]
}

/// A world of which the first lead waits for its token for so long that all the others are accepted together after it.
pub async fn world_with_one_batch() -> World {
    let world = World::new().await;
    world.sandbox.tune(|tuning| {
        tuning.token_delay = Duration::from_millis(700);
        tuning.duplicates = Duplicates::Existing;
    });
    for n in 0..NEIGHBOURS {
        world.publish(&format!("early{n}")).await;
    }
    world
}

/// Settings of the binary that take all of them at once, and log all there is.
pub fn all_at_once() -> Vec<&'static str> {
    vec!["--set", "flow.concurrency=400", "--set", "flow.batch=400", "--set", "log.filter=debug"]
}

/// Publishes a message, with good leads before and behind it.
pub async fn among_neighbours(world: &World, good: &mut Vec<LeadId>, publish: impl AsyncFnOnce()) {
    good.push(world.publish(&format!("before{}", good.len())).await);
    publish().await;
    good.push(world.publish(&format!("behind{}", good.len())).await);
}

/// Each neighbour was posted once and taken.
pub async fn are_unharmed(world: &World, good: &[LeadId]) {
    for id in good {
        world.until_state(*id, LeadState::Delivered).await;
        assert_eq!(world.story(*id).await, ["delivered 201"]);
        assert_eq!(world.posts(*id), 1, "a neighbour was posted again");
    }
}

/// The message has its bytes, its one state and its words; and it was not alone when it was accepted.
async fn has_its_end(world: &World, what: &str, id: LeadId, body: &[u8], end: End) {
    let state = if matches!(end, Delivered) { LeadState::Delivered } else { LeadState::Invalid };
    let lead = world.until_state(id, state).await;
    let kept: Vec<u8> = sqlx::query_scalar("select body from leads where id = $1")
        .bind(id.0)
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert!(kept == body, "{what}: not kept byte for byte");
    assert_eq!(world.posts(id), usize::from(matches!(end, Delivered)), "{what}");
    match end {
        Delivered => {
            assert_eq!((lead.violations.len(), world.story(id).await), (0, vec!["delivered 201".to_owned()]), "{what}")
        }
        Invalid(code, words) => {
            let found = lead.violations.iter().find(|violation| violation.code.as_str() == code);
            let found = found.unwrap_or_else(|| panic!("{what}: {:?}", lead.violations));
            assert!(found.message.contains(words), "{what}: {:?}", found.message);
            assert!(
                !format!("{:?}", lead.violations).contains(MARK) || code == "repeated",
                "{what}: {:?}",
                lead.violations
            );
            assert_eq!((lead.attempts, lead.history.len()), (0, 0), "{what}");
        }
    }
    // The time of a transaction is the same for all that it writes.
    let sql =
        "select count(*) from leads l join leads o on o.accepted_at = l.accepted_at and o.id <> l.id where l.id = $1";
    let company: i64 = sqlx::query_scalar(sql).bind(id.0).fetch_one(&world.database.pool).await.unwrap();
    assert!(company > 0, "{what} was accepted alone, so this proves nothing");
}

/// The worker lives, its books are right, and its log says nothing that it must not.
pub async fn ends_well(world: World, worker: Process) {
    world.until("the worker is ready", async || worker.ask("/readyz").await.0 == 200).await;
    let said = worker.stop().await;
    assert!(said.contains("lead settled"), "nothing was logged");
    for line in said.lines() {
        assert!(
            !line.to_lowercase().contains(MARK) && !line.contains("qxyz"),
            "the log holds something personal: {line}"
        );
        assert!(!line.contains("panicked"), "{line}");
    }
    world.check_in_full().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_oddity_of_json_comes_to_its_own_end_in_a_batch_whose_other_leads_are_delivered_once() {
    let world = world_with_one_batch().await;
    let (mut good, mut odd) = (Vec::new(), Vec::new());
    for (what, body, end) in oddities() {
        let id = LeadId(Uuid::new_v4());
        let message = Message { message_id: Some(id.to_string()), ..Message::raw(&body) };
        among_neighbours(&world, &mut good, async || world.broker.publish(message).await).await;
        odd.push((what, id, body, end));
    }
    let worker = world.worker(&all_at_once()).await;
    for (what, id, body, end) in &odd {
        has_its_end(&world, what, *id, body, *end).await;
    }
    are_unharmed(&world, &good).await;
    // As `leads show` offers it: what cannot be printed as text above all.
    for wanted in ["utf-16, big end, with a mark", "NUL in a string", "gzip", "a byte too large"] {
        let (_, id, body, _) = odd.iter().find(|(what, ..)| *what == wanted).unwrap();
        let shown = std::process::Command::new(env!("CARGO_BIN_EXE_leadpost"))
            .args(["leads", "show", &id.to_string(), "--body"])
            .env_clear()
            .envs(world.environment())
            .output()
            .unwrap();
        assert!(shown.stdout == *body, "{wanted} is not shown byte for byte");
    }
    let (_, id, ..) = odd.iter().find(|(what, ..)| *what == "a name of 201 characters").unwrap();
    let shown = world.leadpost(&["leads", "show", &id.to_string()]).await.stdout;
    assert!(
        shown.contains("not a valid lead, never posted") && shown.contains("[too_long] has 201 characters"),
        "{shown}"
    );
    ends_well(world, worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_16_mib_is_kept_and_its_neighbours_do_not_wait_for_it() {
    const SIZE: usize = 16 * 1024 * 1024;
    let world = World::new().await;
    let mut good = Vec::new();
    let (too_large, noise) = (LeadId(Uuid::new_v4()), LeadId(Uuid::new_v4()));
    let padding = SIZE - lead(r#","x":"""#).len();
    let bodies = [
        (too_large, lead(&format!(r#","x":"{}""#, "z".repeat(padding)))),
        (noise, (0..SIZE).map(|n| (n % 251) as u8 ^ (n >> 13) as u8).collect::<Vec<u8>>()),
    ];
    for (id, body) in &bodies {
        assert_eq!(body.len(), SIZE);
        let message = Message { message_id: Some(id.to_string()), ..Message::raw(body) };
        among_neighbours(&world, &mut good, async || world.broker.publish(message).await).await;
    }
    let worker = world.worker(&all_at_once()).await;
    are_unharmed(&world, &good).await;
    for (id, body) in &bodies {
        let kept = world.until_state(*id, LeadState::Invalid).await;
        assert!(world.ledger.body(*id).await.unwrap().as_ref() == Some(body), "not kept byte for byte");
        assert!(kept.violations[0].message.contains("has 16777216 bytes; at most 262144"), "{:?}", kept.violations);
        assert_eq!(world.posts(*id), 0);
    }
    ends_well(world, worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_on_which_the_api_breaks_is_given_up_with_its_doubts_on_record_and_its_neighbours_are_delivered_once() {
    let world = world_with_one_batch().await;
    let breaks = [
        ("reset", Fault::reset(), LeadState::Exhausted, "uncertain", "connection broke"),
        ("early", Fault::reset_early(), LeadState::Exhausted, "uncertain", "connection broke"),
        ("close", Fault::close(), LeadState::Exhausted, "uncertain", "connection broke"),
        ("crash", Fault::status(500), LeadState::Exhausted, "uncertain 500", "the API answered 500"),
        ("large", Fault::status(413), LeadState::Rejected, "rejected 413", "the API answered 413"),
    ];
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (name, fault, state, outcome, words) in breaks {
        world.sandbox.faults().rule(&format!("{name}@"), None, fault);
        let mut id = None;
        among_neighbours(&world, &mut good, async || id = Some(world.publish(name).await)).await;
        bad.push((id.unwrap(), state, outcome, words));
    }
    let settings = ["--set", "retry.max_attempts=2", "--set", "retry.initial_ms=50", "--set", "retry.max_ms=50"];
    let worker = world.worker(&[&all_at_once()[..], &settings].concat()).await;
    for (id, state, outcome, words) in bad {
        let lead = world.until_state(id, state).await;
        let story = world.story(id).await;
        assert!(story.iter().all(|attempt| attempt == outcome), "{story:?}");
        assert_eq!(story.len(), if state == LeadState::Exhausted { 2 } else { 1 });
        assert_eq!(world.posts(id), story.len());
        assert!(lead.reason.as_ref().unwrap().contains(words), "{:?}", lead.reason);
    }
    are_unharmed(&world, &good).await;
    ends_well(world, worker).await;
}

/// A world in which leads are soon tried again, and the environment of a binary that fails on purpose.
fn failing(world: &World, faults: &str) -> Process {
    let mut environment = world.environment();
    environment.push(("LEADPOST_FAULTS".to_owned(), faults.to_owned()));
    let settings = ["--set", "retry.max_attempts=2", "--set", "retry.initial_ms=50", "--set", "retry.max_ms=50"];
    Process::start(&[&["run"][..], &all_at_once(), &settings].concat(), environment)
}

/// The worker has said that it is at fault, and nothing of the lead; it is alive and stops cleanly.
async fn has_owned_up(world: World, worker: Process) {
    assert_eq!(worker.ask("/livez").await.0, 200, "{}", worker.said());
    assert_eq!(worker.ask("/readyz").await.0, 200, "{}", worker.said());
    let said = worker.stop().await;
    assert!(said.contains("this is a bug"), "{said}");
    assert!(!said.to_lowercase().contains(MARK), "the log holds something personal: {said}");
    world.check_in_full().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_whose_task_panics_has_each_attempt_on_record_as_uncertain_and_harms_no_other() {
    let world = world_with_one_batch().await;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for n in 0..5 {
        let body = World::lead(&format!("zyxq-bang{n}"));
        among_neighbours(&world, &mut good, async || bad.push(world.publish_body(&body).await)).await;
    }
    let worker = failing(&world, "panic_on_post=bang");
    for id in &bad {
        let lead = world.until_state(*id, LeadState::Exhausted).await;
        assert_eq!(world.story(*id).await, ["uncertain", "uncertain"]);
        assert!(
            lead.history.iter().all(|attempt| attempt.code.as_deref() == Some("worker_panic")),
            "{:?}",
            lead.history
        );
        assert!(
            lead.reason.as_ref().unwrap().contains("the worker failed while it handled this lead"),
            "{:?}",
            lead.reason
        );
        assert!(world.posts(*id) <= 2);
    }
    are_unharmed(&world, &good).await;
    has_owned_up(world, worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_which_reading_panics_is_invalid_with_its_bytes_kept_and_harms_no_other() {
    let world = world_with_one_batch().await;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for body in [lead(r#","x":"bang""#), [&b"\xff\0bang"[..], MARK.as_bytes()].concat()] {
        let id = LeadId(Uuid::new_v4());
        let message = Message { message_id: Some(id.to_string()), ..Message::raw(&body) };
        among_neighbours(&world, &mut good, async || world.broker.publish(message).await).await;
        bad.push((id, body));
    }
    let worker = failing(&world, "panic_on_read=bang");
    for (id, body) in &bad {
        has_its_end(&world, "a panic", *id, body, Invalid("worker_panic", "")).await;
    }
    are_unharmed(&world, &good).await;
    has_owned_up(world, worker).await;
}
