//! Names of hosts, which somebody has to look up.

use std::time::{Duration, Instant};

use leadpost::config::Tls;
use leadpost::http::{ClientSettings, Exchange, Outgoing, client, exchange};
use leadpost::ledger::LeadState;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_that_begin_together_take_a_look_up_and_no_thread_each() {
    const AT_A_TIME: u32 = 200;
    const LEADS: usize = 2 * AT_A_TIME as usize;
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(1_500));
    let named = |url: String| url.replace("127.0.0.1", "localhost");
    let (leads, token) = (named(world.sandbox.leads_url()), named(world.sandbox.token_url()));
    assert!(leads.contains("localhost"), "{leads}");
    let environment = [
        ("LEADPOST__DESTINATION__REQUEST__URL", &*leads),
        ("LEADPOST__DESTINATION__AUTH__TOKEN_URL", &*token),
        ("LEADPOST__LOG__FILTER", "info,leadpost::http=debug"),
    ];
    let at_once = ["--set", "flow.concurrency=200", "--set", "flow.min_concurrency=200"];
    let worker = world.worker_with(&at_once, &environment).await;
    let first_at = Instant::now();
    // Once everything that waits for its work is there.
    let first = world.publish("first").await;
    world.until_delivered(&[first]).await;
    let before = worker.usage();

    world.publish_many("ann", LEADS).await;
    let mut most = 0;
    world
        .until("all are delivered", async || {
            most = most.max(worker.usage().threads);
            world.ledger.status().await.unwrap().states[&LeadState::Delivered] == LEADS as i64 + 1
        })
        .await;
    let under_way = world.sandbox.journal().counts().max_in_flight;
    assert!(under_way >= AT_A_TIME / 2, "{under_way} posts were under way at a time, each with a connection");
    assert!(most <= before.threads + 4, "{} threads before, then {most}", before.threads);
    let spans = first_at.elapsed().as_secs() as usize / 5 + 1;
    let said = worker.stop().await;
    let asked = said.matches("looking up the name of a host").count();
    // Of two hosts' names, the API's and the token endpoint's: once for each five seconds at most.
    assert!((2..=2 * spans).contains(&asked), "{asked} look-ups within {spans} times five seconds");
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_is_a_request_that_was_not_sent_and_says_why() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let tls = Tls::default();
    let soon = Duration::from_secs(20);
    let settings = ClientSettings {
        timeout: 2 * soon,
        connect_timeout: soon,
        idle_timeout: soon,
        proxy: "none",
        tls: &tls,
        section: "destination",
    };
    let client = client(&settings).unwrap();
    // No resolver has to ask anybody: no name has a part of more than 63 letters.
    let url = format!("http://{}.invalid/leads", "n".repeat(64)).parse().unwrap();
    let outgoing = Outgoing {
        method: http::Method::POST,
        url: &url,
        headers: http::HeaderMap::new(),
        body: "{}".into(),
        section: "destination",
    };
    let Exchange::NotSent(reason) = exchange(&client, outgoing, 100, soon).await else { panic!("it was sent") };
    assert_eq!(reason.code, "connect_failed");
    let (text, said) = (&reason.text, "could not connect: ");
    assert!(text.starts_with(said) && text.contains(": failed to lookup address information: "), "{text}");
    assert_eq!(text.matches("failed to lookup").count(), 1, "{text}");
    assert!(!text.contains("invalid"), "{text}");
}
