//! A token endpoint and a lead API that are away, slow, or answer by halves: the worker says who it is, comes back by itself, asks
//! no more often than it must, and has every doubt on record.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use tokio::time::Instant;

use crate::support::wire::{Door, Step, Taken, Wire, reply, takes};
use crate::support::{Running, World};

/// Every limit of time of these worlds; the longest wait between two probes is 0.4 s.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Longer than all of them together.
const OUTAGE: Duration = Duration::from_millis(1_500);

/// So long after an outage all leads are through: a request under way, the longest wait between probes, a token, and the next
/// tries of eight leads make 1.5 s; the rest is for a busy machine.
const BACK: Duration = Duration::from_secs(20);

/// Posts under way at a time.
const CONCURRENCY: usize = 4;

/// How many requests an endpoint that does not work may get in so long: what was under way when that was noticed, twice the
/// three failures that open the circuit, and a probe each 50, 100, 200 and then 400 ms.
fn most_requests(in_time: Duration) -> usize {
    2 * CONCURRENCY + 4 + usize::try_from(in_time.as_millis()).unwrap() / 250
}

/// A world between these two.
async fn world(leads: &Wire, tokens: &Wire) -> World {
    let (url, token_url) = (leads.url("/leads"), tokens.url("/token"));
    let limit = TIMEOUT.as_millis().to_string();
    let pairs = [
        ("AUTH__TOKEN_URL", token_url.as_str()),
        ("AUTH__CLIENT_ID", "id"),
        ("AUTH__CLIENT_SECRET", "secret"),
        ("AUTH__TIMEOUT_MS", &limit),
        ("REQUEST__TIMEOUT_MS", &limit),
        ("REQUEST__CONNECT_TIMEOUT_MS", "200"),
    ];
    let mut world = World::at(&url, &pairs).await;
    world.settings.flow.concurrency = CONCURRENCY;
    world.settings.flow.open_after = 3;
    world.settings.retry.initial_ms = 50;
    world.settings.retry.max_ms = 100;
    world
}

/// What is wrong with an endpoint.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Door(Door),
    /// It takes too long to answer.
    Slow,
    /// It says so much of its answer, and closes the connection.
    Half(&'static [u8]),
}

impl Trouble {
    async fn begin(self, wire: &mut Wire) {
        match self {
            Trouble::Door(door) => wire.door(door).await,
            Trouble::Slow => wire.play(|taken| [vec![Step::Wait(2 * TIMEOUT)], takes(taken)].concat()),
            Trouble::Half(bytes) => wire.play(|_| vec![Step::Say(bytes.to_vec()), Step::Close]),
        }
    }

    async fn end(self, wire: &mut Wire) {
        if matches!(self, Trouble::Door(_)) {
            wire.door(Door::Open).await;
        }
        wire.play(takes);
    }

    /// Whether a request can have been read.
    fn may_have_been_read(self) -> bool {
        !matches!(self, Trouble::Door(Door::Shut | Door::Walled))
    }
}

/// Each trouble, and what is said of it.
const TROUBLES: [(Trouble, &str); 9] = [
    (Trouble::Door(Door::Shut), "could not connect"),
    (Trouble::Door(Door::Walled), "could not connect"),
    (Trouble::Door(Door::Silent), "no answer within the time limit"),
    (Trouble::Door(Door::Slammed), "the connection"),
    (Trouble::Slow, "no answer within the time limit"),
    (Trouble::Half(b""), "the connection broke before an answer"),
    (Trouble::Half(b"HTTP/1.1 2"), "the connection broke before an answer"),
    (Trouble::Half(b"HTTP/1.1 201 Created\r\ncontent-le"), "the connection broke before an answer"),
    (Trouble::Half(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "does not speak HTTP"),
];

/// Each post that was read is on record, a second one of a lead has a doubt before it, and what is charged is a delivery or a doubt.
async fn doubts_are_on_record(world: &World, wire: &Wire, ids: &[LeadId], what: &str) {
    for id in ids {
        let lead = world.show(*id).await;
        let outcomes: Vec<&str> = lead.history.iter().map(|attempt| attempt.outcome.as_str()).collect();
        let count = |outcome: &str| outcomes.iter().filter(|known| **known == outcome).count();
        let (posts, sent) = (wire.posts(*id), outcomes.len() - count("not_sent"));
        let again = count("uncertain") + count("retry");
        assert!(posts <= sent, "{what}: {posts} posts were read, on record are {outcomes:?}");
        assert!(posts <= 1 + again, "{what}: {posts} posts, explained by {outcomes:?}");
        let counted = again + count("delivered");
        assert_eq!(usize::try_from(lead.charged).unwrap(), counted, "{what}: {outcomes:?}");
    }
}

/// Waits until it is not ready and says this, of its token or of its API.
async fn until_it_says(world: &World, running: &Running, of_token: bool, says: &str) {
    world
        .until(&format!("health says {says:?}"), async || {
            let report = running.health.report();
            let of = if of_token { &report.token } else { &report.api };
            !report.ready && !of.ok && of.detail.contains(says)
        })
        .await;
}

/// All of them are delivered within the bound, without anybody's help, and all is well.
async fn come_back(world: &World, running: &Running, ids: &[LeadId], what: &str) {
    let coming = async {
        world.until_delivered(ids).await;
        world.until("all is well again", async || running.health.report().ready).await;
    };
    let since = Instant::now();
    assert!(tokio::time::timeout(BACK, coming).await.is_ok(), "{what}: not back after {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_in_any_trouble_is_named_left_alone_and_found_again_and_every_doubt_is_on_record() {
    let all = TROUBLES.map(|(trouble, says)| async move {
        let what = format!("{trouble:?}");
        let (mut leads, tokens) = (Wire::open(takes).await, Wire::open(takes).await);
        let world = world(&leads, &tokens).await;
        let running = world.start().await;
        let mut ids = vec![world.one_more("early").await];

        trouble.begin(&mut leads).await;
        let (since, connected) = (Instant::now(), leads.connected().len());
        ids.extend(world.publish_any_many("late", 8).await);
        until_it_says(&world, &running, false, says).await;
        tokio::time::sleep(OUTAGE.saturating_sub(since.elapsed())).await;
        let report = running.health.report();
        assert!(!report.ready && !report.api.ok && report.token.ok, "{what}: {report:?}");
        let attempts = world.number("select count(*) from attempts").await;
        let most = most_requests(since.elapsed());
        assert!(usize::try_from(attempts).unwrap() <= most, "{what}: {attempts} attempts, a hot loop");
        let connections = leads.connected().len() - connected;
        assert!(connections <= most, "{what}: {connections} connections, a hot loop");
        if !trouble.may_have_been_read() {
            assert_eq!(world.number("select sum(charged)::bigint from leads").await, 1, "{what}");
        }
        assert_eq!(world.number("select count(*) from leads where state = 'delivered'").await, 1, "{what}");

        trouble.end(&mut leads).await;
        come_back(&world, &running, &ids, &what).await;
        doubts_are_on_record(&world, &leads, &ids, &what).await;
        assert_eq!(tokens.taken().len(), 1, "{what}: the token was good all the while");
        world.finish(running).await;
    });
    join_all(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_in_any_trouble_is_named_left_alone_and_found_again_and_no_lead_is_charged_or_posted_meanwhile()
 {
    let all = TROUBLES.map(|(trouble, says)| async move {
        let what = format!("{trouble:?}");
        let (leads, mut tokens) = (Wire::open(takes).await, Wire::open(takes).await);
        trouble.begin(&mut tokens).await;
        let world = world(&leads, &tokens).await;
        let since = Instant::now();
        let running = world.start().await;
        let ids = world.publish_any_many("ann", 8).await;
        until_it_says(&world, &running, true, says).await;
        until_it_says(&world, &running, true, "no token can be had now").await;
        tokio::time::sleep(OUTAGE.saturating_sub(since.elapsed())).await;
        assert!(!running.health.report().ready, "{what}");
        assert_eq!((leads.taken().len(), leads.connected().len()), (0, 0), "{what}: posted without a token");
        assert_eq!(world.number("select coalesce(sum(attempts), 0)::bigint from leads").await, 0, "{what}");
        let (connections, most) = (tokens.connected().len(), most_requests(since.elapsed()));
        assert!(connections <= most, "{what}: {connections} connections, a hot loop");

        trouble.end(&mut tokens).await;
        come_back(&world, &running, &ids, &what).await;
        for id in &ids {
            assert_eq!((world.story(*id).await, world.show(*id).await.charged), (vec!["delivered 201".to_owned()], 1));
        }
        doubts_are_on_record(&world, &leads, &ids, &what).await;
        world.finish(running).await;
    });
    join_all(all).await;
}

/// Half of an answer, or one that is none, and what becomes of its lead.
fn odd_answers() -> Vec<(&'static str, Vec<Step>, &'static [&'static str])> {
    const UNCERTAIN: &[&str] = &["uncertain", "delivered 201"];
    const DELIVERED: &[&str] = &["delivered 201"];
    let say = |text: &str| vec![Step::Say(text.as_bytes().to_vec()), Step::Close];
    let created = |rest: &str| say(&format!("HTTP/1.1 201 Created\r\n{rest}"));
    vec![
        ("reset-in-head", vec![Step::Say(b"HTTP/1.1 201 Cre".to_vec()), Step::Reset], UNCERTAIN),
        ("http2", vec![Step::Say(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64".to_vec()), Step::Close], UNCERTAIN),
        ("http99", say("HTTP/9.9 201 Created\r\n\r\n"), UNCERTAIN),
        ("no-status", say("HTTP/1.1 Created\r\n\r\n"), UNCERTAIN),
        ("status-2", say("HTTP/1.1 2 Created\r\n\r\n"), UNCERTAIN),
        ("status-000", say("HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n"), UNCERTAIN),
        ("status-999", say("HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n"), &["uncertain 999", "delivered 201"]),
        ("hint-only", say("HTTP/1.1 103 Early Hints\r\n\r\n"), UNCERTAIN),
        ("hints-for-ever", vec![Step::Pour(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec())], UNCERTAIN),
        ("lengths-differ", created("content-length: 2\r\ncontent-length: 3\r\n\r\n{}"), UNCERTAIN),
        ("length-negative", created("content-length: -1\r\n\r\n{}"), UNCERTAIN),
        ("length-of-words", created("content-length: two\r\n\r\n{}"), UNCERTAIN),
        ("length-too-long", created("content-length: 100\r\n\r\n{\"id\":\"x\"}"), DELIVERED),
        ("length-too-short", created("content-length: 2\r\n\r\n{}{\"id\":\"x\"}"), DELIVERED),
        ("both-lengths", created("content-length: 7\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), DELIVERED),
        ("chunk-of-words", created("transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"), DELIVERED),
        ("chunk-too-large", created("transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}"), DELIVERED),
        ("chunk-cut", created("transfer-encoding: chunked\r\n\r\n5\r\n{}"), DELIVERED),
        ("chunks-without-end", created("transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"), DELIVERED),
        ("refusal-cut", say("HTTP/1.1 422 X\r\ncontent-length: 90\r\n\r\n{\"mess"), &["rejected 422"]),
        ("error-cut", say("HTTP/1.1 500 X\r\ncontent-length: 90\r\n\r\n<h"), &["uncertain 500", "delivered 201"]),
        ("busy-cut", say("HTTP/1.1 503 X\r\ncontent-length: 90\r\n\r\n<h"), &["retry 503", "delivered 201"]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_by_halves_means_is_decided_by_its_status_line_and_without_one_it_is_a_doubt() {
    let odd = odd_answers();
    let met = Mutex::new(HashSet::new());
    let leads = Wire::open(move |taken: &Taken| {
        let body = String::from_utf8_lossy(&taken.body);
        let steps = odd.iter().find(|(name, ..)| body.contains(&format!("\"{name}\"")));
        match steps {
            Some((name, steps, _)) if met.lock().unwrap().insert(*name) => steps.clone(),
            _ => takes(taken),
        }
    })
    .await;
    let tokens = Wire::open(takes).await;
    let mut world = world(&leads, &tokens).await;
    world.settings.flow.open_after = 1_000;
    let running = world.start().await;
    let mut ids = Vec::new();
    for (name, _, story) in odd_answers() {
        let id = world.publish_any(name).await;
        let state = if story == ["rejected 422"] { LeadState::Rejected } else { LeadState::Delivered };
        world.until_state(id, state).await;
        assert_eq!(world.story(id).await, story, "{name}");
        assert_eq!(leads.posts(id), story.len(), "{name}");
        if state == LeadState::Delivered {
            ids.push(id);
        }
    }
    doubts_are_on_record(&world, &leads, &ids, "odd answers").await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_answer_that_nobody_asked_for_is_not_taken_for_the_next_leads() {
    let smuggled = || reply(201, r#"{"id":"smuggled"}"#);
    let leads = Wire::open(move |taken: &Taken| {
        let body = String::from_utf8_lossy(&taken.body);
        match () {
            () if body.contains("victim") => vec![Step::Say(reply(422, r#"{"message":"no"}"#))],
            () if body.contains("at-once") => vec![Step::Say([reply(201, r#"{"id":"own"}"#), smuggled()].concat())],
            () => {
                let later = Step::Wait(Duration::from_millis(5));
                vec![Step::Say(reply(201, r#"{"id":"own"}"#)), later, Step::Say(smuggled())]
            }
        }
    })
    .await;
    let tokens = Wire::open(takes).await;
    let mut world = world(&leads, &tokens).await;
    world.settings.flow.concurrency = 1;
    // So that nothing else gives a connection up.
    world.set(&[("REQUEST__IDLE_TIMEOUT_MS", "600000")]);
    let running = world.start().await;
    for n in 0..5 {
        for way in ["at-once", "later"] {
            let ended = leads.ended();
            let first = world.one_more(&format!("{way}{n}")).await;
            assert_eq!(world.show(first).await.remote_id.as_deref(), Some("own"));
            // One that comes after the next request was written could not be told from its answer.
            world.until("its connection is given up", async || leads.ended() > ended).await;
            let victim = world.publish_any(&format!("victim-{way}{n}")).await;
            let lead = world.until_state(victim, LeadState::Rejected).await;
            assert_eq!((lead.remote_id, leads.posts(victim)), (None, 1), "{way}{n}");
        }
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_closes_idle_connections_under_a_post_costs_no_lead_and_every_double_has_its_doubt() {
    let leads = Wire::open(|taken: &Taken| [takes(taken), vec![Step::CloseUnderNext]].concat()).await;
    let tokens = Wire::open(takes).await;
    let mut world = world(&leads, &tokens).await;
    world.settings.flow.open_after = 1_000;
    // So that nobody else gives a connection up.
    world.set(&[("REQUEST__IDLE_TIMEOUT_MS", "600000")]);
    let running = world.start().await;
    let mut ids = Vec::new();
    let doubts = "select count(*) from attempts where outcome = 'uncertain'";
    for n in 0..20 {
        ids.push(world.one_more(&format!("ann{n}")).await);
    }
    // Whoever takes the connection of the one before meets that; on a new one it is delivered.
    assert_eq!(world.number(doubts).await, 19, "each but the first meets a connection that is being closed");
    doubts_are_on_record(&world, &leads, &ids, "idle").await;
    let strange = "select count(*) from attempts where outcome not in ('delivered', 'not_sent') \
                   and not (outcome = 'uncertain' and code = 'connection_broken')";
    assert_eq!(world.number(strange).await, 0);
    assert_eq!(running.metrics.opened.get(), 0);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_closes_idle_connections_under_a_request_is_asked_again_and_no_lead_pays_for_it() {
    const LEADS: usize = 6;
    // Each lead finds its first token refused, so that the next one is asked for.
    let met = Mutex::new(HashSet::new());
    let leads = Wire::open(move |taken: &Taken| {
        let is_first = met.lock().unwrap().insert(taken.header("idempotency-key").to_owned());
        if is_first { vec![Step::Say(reply(401, "{}"))] } else { takes(taken) }
    })
    .await;
    let tokens = Wire::open(|taken: &Taken| [takes(taken), vec![Step::CloseUnderNext]].concat()).await;
    let mut world = world(&leads, &tokens).await;
    // So that nobody else gives a connection up.
    world.set(&[("REQUEST__IDLE_TIMEOUT_MS", "600000")]);
    let running = world.start().await;
    for n in 0..LEADS {
        let ended = tokens.ended();
        let id = world.one_more(&format!("ann{n}")).await;
        assert_eq!(
            (world.story(id).await, leads.posts(id)),
            (vec!["unauthorized 401".into(), "delivered 201".into()], 2)
        );
        assert_eq!(world.show(id).await.charged, 1);
        assert_eq!(tokens.ended(), ended + 1, "the connection was closed under the request for a token");
        world.until("all is well again", async || running.health.report().ready).await;
    }
    // What was not read was asked once more, on a new connection.
    assert_eq!((tokens.taken().len(), tokens.connected().len()), (1 + LEADS, 1 + LEADS));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_idle_timeout_below_the_apis_own_no_post_meets_a_closed_connection() {
    let leads =
        Wire::open(|taken: &Taken| [takes(taken), vec![Step::Wait(Duration::from_millis(700)), Step::Close]].concat())
            .await;
    let tokens = Wire::open(takes).await;
    let mut world = world(&leads, &tokens).await;
    world.set(&[("REQUEST__IDLE_TIMEOUT_MS", "100")]);
    let running = world.start().await;
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(world.one_more(&format!("ann{n}")).await);
        tokio::time::sleep(Duration::from_millis(if n % 3 == 0 { 680 } else { 150 })).await;
    }
    assert_eq!(world.number("select count(*) from attempts where outcome <> 'delivered'").await, 0);
    doubts_are_on_record(&world, &leads, &ids, "idle").await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slow_but_in_time_is_no_outage() {
    const LIMIT: Duration = Duration::from_secs(3);
    let slowly = |taken: &Taken| [vec![Step::Wait(LIMIT * 6 / 10)], takes(taken)].concat();
    let (leads, tokens) = (Wire::open(slowly).await, Wire::open(slowly).await);
    let mut world = world(&leads, &tokens).await;
    let limit = LIMIT.as_millis().to_string();
    world.set(&[("AUTH__TIMEOUT_MS", &limit), ("REQUEST__TIMEOUT_MS", &limit)]);
    let ids = world.publish_any_many("ann", 2 * CONCURRENCY).await;
    let running = world.start().await;
    world.until_delivered(&ids).await;
    for id in &ids {
        assert_eq!(world.story(*id).await, ["delivered 201"]);
    }
    assert_eq!((running.metrics.opened.get(), tokens.taken().len()), (0, 1));
    world.finish(running).await;
}
