//! Nothing personal and nothing secret leaves the ledger: not in logs at any level, not in spans, not on the admin port, not in
//! error texts.
//!
//! Everything that must not be seen holds one of the marks below, whatever the way it comes in: the message, its id, what the API
//! or the token endpoint answers, the settings.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leadpost::config::Secret;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Fault, StatusAnswer};
use uuid::Uuid;

use crate::support::collector::Collector;
use crate::support::{Message, Process, World};

/// Stands in every name, email, context, message id, secret and password of these tests.
const MARK: &str = "zyxq";
/// Letters have no place in a phone number.
const PHONE: &str = "5550192837465";
const CLIENT_SECRET: &str = "zyxq-client-secret";
/// All tokens of the sandbox begin so.
const TOKEN: &str = "eyJzYW5kYm94Ijox";

fn is_clean(what: &str, text: &str) {
    let basic = STANDARD.encode(format!("sandbox-client:{CLIENT_SECRET}"));
    for line in text.lines() {
        let lower = line.to_lowercase();
        assert!(!lower.contains(MARK) && !line.contains(PHONE), "{what} holds something personal or secret: {line}");
        assert!(!line.contains(TOKEN), "{what} holds a token: {line}");
        assert!(!line.contains(&basic), "{what} holds the credentials as they are sent: {line}");
    }
}

/// A lead of which every field is personal; its tag decides what the API does with it.
fn lead(tag: &str) -> String {
    format!(
        r#"{{"name":"Zyxqname","lastName":"Zyxqlast","email":"zyxqmail+{tag}@zyxq.example","phone":"+{PHONE}","context":"zyxqcontext","assistantId":61,"customFields":[{{"name":"zyxqfield","value":"zyxqvalue"}}]}}"#
    )
}

/// An answer that repeats the lead and the token, as gateways and careless APIs do.
fn echo(status: u16) -> StatusAnswer {
    let body = format!(r#"{{"message":"Zyxqname <zyxqmail@zyxq.example>, +{PHONE}, came with Bearer {TOKEN}echo"}}"#);
    StatusAnswer { body: Some(body), ..StatusAnswer::new(status) }
}

fn page(status: u16) -> StatusAnswer {
    let body = format!("<html><title>Blocked</title>zyxqmail@zyxq.example {PHONE}</html>");
    StatusAnswer { body: Some(body), content_type: Some("text/html".to_owned()), ..StatusAnswer::new(status) }
}

async fn ready_and_metrics_are_clean(worker: &Process) {
    for path in ["/livez", "/readyz", "/metrics"] {
        is_clean(path, &worker.ask(path).await.2);
    }
}

/// A worker meets every outcome there is, and every page of its admin port is read while it does.
async fn a_run_over_all_outcomes(log: &[&str]) {
    let mut world = World::new().await;
    world.sandbox.set_credentials("sandbox-client", CLIENT_SECRET);
    world.set(&[("AUTH__CLIENT_SECRET", CLIENT_SECRET)]);
    // A server that trusts this user takes any password; where one is needed there is one already.
    let mut url = url::Url::parse(&world.database.url).unwrap();
    if url.password().is_none() {
        url.set_password(Some("zyxq-database-password")).unwrap();
    }
    world.settings.postgres.url = Secret::new(url.to_string());
    let faults = world.sandbox.faults();
    faults.rule("+rejected", None, Fault::answer(echo(422)));
    faults.rule("+known", None, Fault::answer(echo(409)));
    faults.rule("+stale", Some(1), Fault::answer(echo(401)));
    faults.rule("+flaky", Some(1), Fault::answer(echo(503)));
    faults.rule("+broken", Some(1), Fault::answer(echo(500)));
    faults.rule("+uncertain", Some(1), Fault::reset().after());
    faults.rule("+exhausted", None, Fault::answer(echo(503)));
    let settings = ["--set", "retry.initial_ms=20", "--set", "retry.max_attempts=3"];
    let collector = Collector::open().await;
    let environment = collector.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let worker = world.worker_with(&[&settings, log].concat(), &environment).await;

    // What has to do with single leads.
    for tag in ["fine", "rejected", "known", "stale", "flaky", "broken", "uncertain", "exhausted"] {
        world.publish_body(&lead(tag)).await;
    }
    let id = LeadId(Uuid::new_v4());
    world.broker.publish(Message::new(id, &lead("first"))).await;
    world.broker.publish(Message::new(id, &lead("second"))).await;
    let named =
        Message { message_id: Some("zyxqmail@zyxq.example".to_owned()), ..Message::raw(lead("named").as_bytes()) };
    world.broker.publish(named).await;
    for body in [
        "zyxq, no JSON".as_bytes(),
        b"\xff\xfezyxq",
        br#"{"name":"Zyxqname","email":"zyxqmail","assistantId":61}"#,
        br#"{"name":"Zyxqname","name":"Zyxqother","email":"zyxqmail@zyxq.example","assistantId":[5550192837465]}"#,
        br#"{"zyxqmail@zyxq.example":"Zyxqname"}"#,
    ] {
        world.broker.publish(Message::raw(body)).await;
    }
    world.until_count(LeadState::Invalid, 5).await;
    world.until_count(LeadState::Rejected, 1).await;
    world.until_count(LeadState::Exhausted, 1).await;
    world.until_count(LeadState::Duplicate, 2).await;
    world.until_count(LeadState::Delivered, 7).await;
    ready_and_metrics_are_clean(&worker).await;

    // What pauses all of them, each until it is cleared.
    for (tag, fault) in [
        ("forbidden", Fault::answer(echo(403))),
        ("firewall", Fault::answer(page(403))),
        ("log-in", Fault::answer(page(200))),
        ("redirect", Fault::redirect()),
        ("refused", Fault::answer(echo(401))),
    ] {
        world.sandbox.faults().clear();
        world.sandbox.faults().rule("+", None, fault);
        let id = world.publish_body(&lead(tag)).await;
        world.until("posts are paused", async || worker.ask("/readyz").await.0 == 503).await;
        ready_and_metrics_are_clean(&worker).await;
        world.sandbox.faults().clear();
        world.until_state(id, LeadState::Delivered).await;
        world.until("posts go on", async || worker.ask("/readyz").await.0 == 200).await;
    }

    // A token endpoint that refuses, and repeats what it was sent.
    let basic = STANDARD.encode(format!("sandbox-client:{CLIENT_SECRET}"));
    let refusal = StatusAnswer {
        body: Some(format!(r#"{{"error":"invalid_client","error_description":"{CLIENT_SECRET} {basic}"}}"#)),
        ..StatusAnswer::new(400)
    };
    let faults: Vec<Fault> = std::iter::repeat_with(|| Fault::answer(refusal.clone()).on_token()).take(3).collect();
    world.sandbox.faults().script(faults);
    world.sandbox.set_credentials("sandbox-client", "another");
    world.sandbox.revoke_all();
    let id = world.publish_body(&lead("no-token")).await;
    world.until("there is no token", async || world.sandbox.faults().script_left() == 0).await;
    world.until("posts are paused", async || worker.ask("/readyz").await.0 == 503).await;
    ready_and_metrics_are_clean(&worker).await;
    world.sandbox.set_credentials("sandbox-client", CLIENT_SECRET);
    world.until_state(id, LeadState::Delivered).await;

    // And one that is cut off.
    world.sandbox.faults().script([Fault::latency(Duration::from_millis(300))]);
    let posts = world.sandbox.journal().counts().posts;
    world.publish_body(&lead("last")).await;
    world.until("it is being posted", async || world.sandbox.journal().counts().posts > posts).await;
    let said = worker.stop().await;
    assert!(said.contains("lead settled"), "nothing was logged: {said}");
    is_clean("the log", &said);
    let spans = collector.raw();
    assert!(spans.contains("http_422") && spans.contains("process ledger"), "nothing was exported");
    is_clean("the spans", &spans);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_text_holds_nothing_personal_and_no_secret() {
    a_run_over_all_outcomes(&["--set", "log.filter=info"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_json_at_debug_holds_nothing_personal_and_no_secret() {
    a_run_over_all_outcomes(&["--set", "log.filter=debug", "--set", "log.format=json"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_at_trace_holds_nothing_personal_and_no_secret() {
    a_run_over_all_outcomes(&["--set", "log.filter=trace"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_publish_says_of_bad_leads_repeats_nothing_of_them() {
    let world = World::new().await;
    let csv = "name,email,assistantId\nZyxqname,zyxqmail@@zyxq.example,61\nZyxqname\nZyxqname,zyxqmail,61,zyxq\n\"Zyxq";
    let jsonl = format!(
        "zyxq\n{{\"name\":\"Zyxqname\",\"email\":\"zyxqmail\"\n{{\"name\":{PHONE},\"email\":\"zyxq@\",\"assistantId\":[\"zyxq\"]}}\n\
         {{\"name\":\"\\ud800zyxq\",\"email\":\"zyxq zyxq@zyxq.example\",\"assistantId\":true}}\n{}\n",
        lead("fine")
    );
    let array = format!("[{},{{\"name\":\"Zyxqname\",}}]", lead("fine"));
    for (format, input) in [("csv", csv), ("jsonl", &jsonl), ("json", &array)] {
        for further in [&[][..], &["--dry-run"], &["--force"], &["--id-field", "externalId"]] {
            let arguments = [&["publish", "-", "--format", format], further].concat();
            let done = world.leadpost_with(&arguments, &[], input.as_bytes()).await;
            assert_eq!(done.code, Some(1), "{arguments:?}");
            assert_ne!(done.stderr, "");
            is_clean(&format!("{arguments:?}"), &(done.stdout + &done.stderr));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_a_bad_configuration_holds_no_secret() {
    let world = World::new().await;
    let database = world.database.url.clone();
    let amqp = world.broker.url.clone();
    let with_password = |url: &str| {
        let mut url = url::Url::parse(url).unwrap();
        url.set_password(Some("zyxq-password")).unwrap();
        url
    };
    let no_such_database = with_password(&database).join("/there-is-none").unwrap().to_string();
    let refused = with_password(&amqp).to_string();
    let cases: [(&[&str], &str, &str, i32); 9] = [
        (&["run"], "DATABASE_URL", "mysql://zyxq:zyxq-password@h/d", 78),
        (&["run"], "DATABASE_URL", "postgres://zyxq:zyxq-password@h:port/d", 78),
        (&["run"], "AMQP_URL", "amqp//zyxq:zyxq-password@h", 78),
        (&["run"], "LEADPOST__POSTGRES__URL_FILE", "/dev/null", 78),
        (&["run"], "LEADPOST__DESTINATION__REQUEST__URL", "leads?key=zyxq-key", 78),
        (&["status"], "DATABASE_URL", &no_such_database, 69),
        (&["migrate"], "DATABASE_URL", "postgres://zyxq:zyxq-password@h:port/d", 78),
        (&["publish", "-"], "AMQP_URL", &refused, 69),
        (&["topology", "declare"], "AMQP_URL", &refused, 69),
    ];
    for (arguments, name, value, code) in cases {
        let secret = ("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", CLIENT_SECRET);
        let done = world.leadpost_with(arguments, &[secret, (name, value)], lead("fine").as_bytes()).await;
        assert_eq!(done.code, Some(code), "{arguments:?} with {name}: {done:?}");
        is_clean(&format!("{arguments:?} with {name}"), &(done.stdout + &done.stderr));
    }
    let flag = world.leadpost(&["run", "--set", "destination.auth.client_secret=zyxq"]).await;
    assert_eq!(flag.code, Some(78));
    is_clean("a secret by flag", &flag.stderr);
}
