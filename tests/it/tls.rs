//! TLS that goes wrong: nothing is sent over it, the operator reads why, no lead pays for it, and all goes on once it is mended.

use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;

use crate::support::tls::{Speech, Tls};
use crate::support::wire::{Wire, takes};
use crate::support::{Process, World};

/// What is wrong, and the words that name it.
const WRONG: [(Speech, &str); 9] = [
    (Speech::SelfSigned, "UnknownIssuer"),
    (Speech::Expired, "expired"),
    (Speech::NotYetValid, "not valid yet"),
    (Speech::OfAnother, "not valid for name"),
    (Speech::Plain, "InvalidContentType"),
    (Speech::Noise, "InvalidContentType"),
    (Speech::Silence, "timed out"),
    (Speech::Half, "timed out"),
    (Speech::HangsUp, "handshake eof"),
];

/// A worker that trusts the server's signer and nobody else.
async fn worker(leads: &str, tokens: &str, roots: &Tls) -> (World, Process) {
    let pairs = [
        ("AUTH__TOKEN_URL", tokens),
        ("AUTH__CLIENT_ID", "id"),
        ("AUTH__CLIENT_SECRET", "secret"),
        ("AUTH__TIMEOUT_MS", "800"),
        ("REQUEST__TIMEOUT_MS", "1000"),
        ("REQUEST__CONNECT_TIMEOUT_MS", "400"),
    ];
    let world = World::at(leads, &pairs).await;
    let mut environment = world.environment();
    environment.push(("SSL_CERT_FILE".to_owned(), roots.roots().to_str().unwrap().to_owned()));
    let settings = [
        "--set",
        "flow.open_after=1",
        "--set",
        "retry.initial_ms=50",
        "--set",
        "retry.max_ms=100",
        "--set",
        "log.filter=debug",
    ];
    let process = Process::start(&[&["run"][..], &settings].concat(), environment);
    process.until_said("starting").await;
    (world, process)
}

/// What `/readyz` says of this part.
async fn detail(worker: &Process, part: &str) -> (bool, String) {
    let report: serde_json::Value = serde_json::from_str(&worker.ask("/readyz").await.2).unwrap();
    (report[part]["ok"].as_bool().unwrap(), report[part]["detail"].as_str().unwrap().to_owned())
}

async fn until_it_says(world: &World, worker: &Process, part: &str, says: &str) {
    let mut last = String::new();
    let saying = world.until("health says it", async || {
        let (ok, detail) = detail(worker, part).await;
        last = detail;
        !ok && last.contains(says)
    });
    let said = tokio::time::timeout(std::time::Duration::from_secs(10), saying).await;
    assert!(said.is_ok(), "{part} does not say {says:?} but {last:?}");
}

async fn delivered(world: &World, id: LeadId) -> Vec<String> {
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.show(id).await.charged, 1);
    world.story(id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_goes_wrong_at_the_api_sends_nothing_charges_nobody_and_is_told_by_its_cause() {
    let (api, tokens) = (Tls::open(), Wire::open(takes).await);
    let (world, worker) = worker(&api.url("https", "/leads"), &tokens.url("/token"), &api).await;
    let first = world.publish_any("first").await;
    let story = delivered(&world, first).await;
    assert!(story[..story.len() - 1].iter().all(|attempt| attempt == "not_sent"), "well spoken TLS works: {story:?}");
    for (n, (speech, says)) in WRONG.into_iter().enumerate() {
        api.speak(speech);
        let id = world.publish_any(&format!("zyxq{n}")).await;
        until_it_says(&world, &worker, "api", says).await;
        let lead = world.until_attempts(id, 1).await;
        assert_eq!((lead.state, lead.charged), (LeadState::Pending, 0), "{speech:?}");
        assert!(lead.history.iter().all(|attempt| attempt.outcome == "not_sent"), "{speech:?}: {:?}", lead.history);
        let shown = world.leadpost(&["leads", "show", &id.to_string()]).await.stdout;
        assert!(shown.contains("could not connect") && shown.contains(says), "{speech:?}: {shown}");
        assert_eq!(api.requests().len(), n + 1, "{speech:?}: something was sent");
        api.speak(Speech::Well);
        let story = delivered(&world, id).await;
        assert!(story[..story.len() - 1].iter().all(|attempt| attempt == "not_sent"), "{speech:?}: {story:?}");
        world.until("posts go on", async || worker.ask("/readyz").await.0 == 200).await;
    }
    let said = worker.stop().await;
    assert!(!said.contains("zyxq") && !said.contains("token-1") && !said.contains("panicked"), "{said}");
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_goes_wrong_at_the_token_endpoint_gives_no_secret_away_and_is_told_by_its_cause() {
    let (tokens, api) = (Tls::open(), Wire::open(takes).await);
    for (speech, says) in WRONG {
        tokens.speak(speech);
        let before = tokens.requests().len();
        let (world, worker) = worker(&api.url("/leads"), &tokens.url("https", "/token"), &tokens).await;
        let id = world.publish_any("zyxq").await;
        until_it_says(&world, &worker, "token", says).await;
        assert!(detail(&worker, "token").await.1.contains("could not connect"));
        assert_eq!(tokens.requests().len(), before, "{speech:?}: the secret was sent");
        assert_eq!(world.number("select coalesce(sum(attempts), 0)::bigint from leads").await, 0);
        tokens.speak(Speech::Well);
        assert_eq!(delivered(&world, id).await, ["delivered 201"], "{speech:?}");
        let said = worker.stop().await;
        assert!(!said.contains("zyxq") && !said.contains("token-1") && !said.contains("panicked"), "{said}");
        world.check_books().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_to_a_port_that_speaks_tls_reaches_nobody_pauses_the_flow_and_is_told() {
    let (api, tokens) = (Tls::open(), Wire::open(takes).await);
    let (world, worker) = worker(&api.url("http", "/leads"), &tokens.url("/token"), &api).await;
    let id = world.publish_any("zyxq").await;
    until_it_says(&world, &worker, "api", "invalid HTTP version").await;
    // Whoever answered has read something: a doubt, which counts.
    let lead = world.until_attempts(id, 1).await;
    assert_eq!((lead.state, lead.charged), (LeadState::Pending, lead.attempts));
    assert!(lead.history.iter().all(|attempt| attempt.outcome == "uncertain"), "{:?}", lead.history);
    assert!(api.requests().is_empty(), "{:?}", api.requests());
    let said = worker.stop().await;
    assert!(!said.contains("zyxq") && !said.contains("token-1") && !said.contains("panicked"), "{said}");
    world.check_books().await;
}
