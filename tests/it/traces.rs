//! Traces: what a message brings goes on to the API, retries by other processes included; and spans go to a collector.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use leadpost::lead::LeadId;
use leadpost::ledger::{Arrival, Doubts, Fate, LeadState, OnLock};
use leadpost::sandbox::Fault;
use leadpost::traces::TraceContext;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use uuid::Uuid;

use crate::support::api::{Heard, Port};
use crate::support::collector::{Collector, Span};
use crate::support::{Process, World, run, scene};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCER: &str = "b7ad6b7169203331";
const STATE: &str = "vendor=opaque";

fn traceparent() -> String {
    format!("00-{TRACE}-{PRODUCER}-01")
}

/// An API that refuses each lead so many times for the time being, and takes it then.
async fn api(refusals: usize) -> Port {
    let seen = std::sync::Mutex::new(std::collections::HashMap::<String, usize>::new());
    Port::open(move |heard: &Heard| {
        let mut seen = seen.lock().unwrap();
        let times = seen.entry(heard.header("idempotency-key").to_owned()).or_default();
        *times += 1;
        if *times <= refusals { (503, "{}".to_owned()) } else { (201, r#"{"id":"remote-1"}"#.to_owned()) }
    })
    .await
}

async fn world(api: &Port) -> World {
    World::towards(api, &[("AUTH__KIND", "none")]).await
}

/// Publishes a lead whose message has these headers.
async fn publish(world: &World, name: &str, headers: &[(&str, AMQPValue)]) -> LeadId {
    let id = LeadId(Uuid::new_v4());
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    let properties = BasicProperties::default().with_message_id(id.to_string().into()).with_headers(table);
    world.broker.publish_with(World::lead(name).as_bytes(), properties).await;
    id
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

async fn publish_traced(world: &World, name: &str) -> LeadId {
    publish(world, name, &[("traceparent", text(&traceparent())), ("tracestate", text(STATE))]).await
}

/// The posts of a lead, in order.
fn posts(api: &Port, id: LeadId) -> Vec<Heard> {
    let key = id.to_string();
    api.heard("/leads").into_iter().filter(|post| post.header("idempotency-key") == key).collect()
}

/// What is remembered of a lead's trace.
async fn kept(world: &World, id: LeadId) -> Option<String> {
    sqlx::query_scalar("select trace from leads where id = $1")
        .bind(id.0)
        .fetch_one(&world.database.pool)
        .await
        .unwrap()
}

async fn worker(world: &World, collector: Option<&Collector>, further: &[(&str, &str)]) -> Process {
    let environment = collector.map(Collector::environment).into_iter().flatten().collect::<Vec<_>>();
    let pairs = environment.iter().map(|(name, value)| (*name, value.as_str())).chain(further.iter().copied());
    world.worker_with(&[], &pairs.collect::<Vec<_>>()).await
}

/// The spans of a lead and those that are made on its behalf.
fn of_lead(spans: &[Span], id: LeadId) -> Vec<Span> {
    let mine: BTreeSet<&str> = spans
        .iter()
        .filter(|span| span.attributes.get("lead.id") == Some(&id.to_string()))
        .map(|span| span.id.as_str())
        .collect();
    spans
        .iter()
        .filter(|span| mine.contains(span.id.as_str()) || mine.contains(span.parent.as_str()))
        .cloned()
        .collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_is_one_span_in_the_trace_of_its_message_with_its_parts_and_the_api_is_told_of_its_post() {
    let (api, collector) = (api(0).await, Collector::open().await);
    let world = world(&api).await;
    let worker = worker(&world, Some(&collector), &[("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")]).await;
    let id = publish_traced(&world, "zyxqname").await;
    world.until_state(id, LeadState::Delivered).await;
    worker.stop().await;

    let spans = collector.spans();
    let whole = named(&spans, &format!("process {}", world.broker.queue));
    let [whole] = &whole[..] else { panic!("not one span of the lead: {spans:#?}") };
    assert_eq!((whole.trace.as_str(), whole.parent.as_str(), whole.kind), (TRACE, PRODUCER, SpanKind::Consumer));
    let attribute = |span: &Span, name: &str| span.attributes.get(name).cloned().unwrap_or_default();
    assert_eq!(attribute(whole, "lead.id"), id.to_string());
    assert_eq!(attribute(whole, "lead.state"), "delivered");
    assert_eq!(attribute(whole, "messaging.system"), "rabbitmq");
    assert_eq!(attribute(whole, "messaging.destination.name"), world.broker.queue);
    for (name, kind) in [("accept", SpanKind::Internal), ("POST", SpanKind::Client), ("settle", SpanKind::Internal)] {
        let part = named(&spans, name);
        let [part] = &part[..] else { panic!("not one {name}: {spans:#?}") };
        assert_eq!((part.trace.as_str(), part.parent.as_str(), part.kind), (TRACE, whole.id.as_str(), kind), "{name}");
        assert!(
            whole.began <= part.began && part.began <= part.ended && part.ended <= whole.ended,
            "{name}: {spans:#?}"
        );
    }
    assert_eq!(spans.len(), 4);
    let post = named(&spans, "POST")[0];
    assert_eq!(attribute(post, "http.response.status_code"), "201");
    assert_eq!(attribute(post, "http.request.method"), "POST");
    assert_eq!(attribute(post, "server.address"), "127.0.0.1");
    for span in &spans {
        assert_eq!(span.resource["service.name"], "leadpost");
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(span.resource["deployment.environment"], "test");
        assert_eq!(span.state, STATE);
    }

    let heard = posts(&api, id);
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].header("traceparent"), format!("00-{TRACE}-{}-01", post.id));
    assert_eq!(heard[0].header("tracestate"), STATE);
    assert_eq!(kept(&world, id).await, None, "a lead that does not wait costs the ledger nothing");
    let raw = collector.raw();
    for secret in ["zyxqname", "example.com", "Zyxq"] {
        assert!(!raw.contains(secret), "the spans hold something of the lead");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_by_another_process_stays_in_the_trace_of_the_message_or_in_that_of_the_lead() {
    let (api, collector) = (api(1).await, Collector::open().await);
    let world = world(&api).await;
    let first = worker(&world, Some(&collector), &[]).await;
    let traced = publish_traced(&world, "ann").await;
    let own = world.publish("bob").await;
    for id in [traced, own] {
        world.until_attempts(id, 1).await;
    }
    first.stop().await;
    assert_eq!(kept(&world, traced).await, Some(format!("{} {STATE}", traceparent())));
    assert_eq!(kept(&world, own).await, None, "there is nothing to remember");

    world.hurry().await;
    let second = worker(&world, Some(&collector), &[]).await;
    world.until_delivered(&[traced, own]).await;
    second.stop().await;

    let spans = collector.spans();
    for id in [traced, own] {
        let spans = of_lead(&spans, id);
        let traces: BTreeSet<&str> = spans.iter().map(|span| span.trace.as_str()).collect();
        assert_eq!(traces.len(), 1, "{spans:#?}");
        let instances: BTreeSet<&str> =
            spans.iter().map(|span| span.resource["service.instance.id"].as_str()).collect();
        assert_eq!(instances.len(), 2, "both processes have made spans of it");
        let (wholes, posted) = (named(&spans, "process ledger"), named(&spans, "POST"));
        assert_eq!((wholes.len(), posted.len()), (1, 2), "{spans:#?}");
        assert_eq!(wholes[0].attributes["lead.attempts_before"], "1");
        assert_eq!(named(&spans, "claim").len(), 1);
        let sent: Vec<String> = posts(&api, id).iter().map(|post| post.header("traceparent").to_owned()).collect();
        let made: Vec<String> = posted.iter().map(|post| format!("00-{}-{}-01", post.trace, post.id)).collect();
        assert_eq!(sent, made, "each post is told its own span");
        let parents: BTreeSet<&str> =
            spans.iter().filter(|span| span.name.starts_with("process")).map(|span| span.parent.as_str()).collect();
        if id == traced {
            assert_eq!((traces.first().copied(), parents), (Some(TRACE), BTreeSet::from([PRODUCER])));
            assert!(posts(&api, id).iter().all(|post| post.header("tracestate") == STATE));
        } else {
            assert_eq!(parents, BTreeSet::from([""]), "nobody is above it");
        }
    }
    let bad = named(&spans, "POST")
        .into_iter()
        .filter(|post| post.attributes.get("error.type").is_some_and(|code| code == "http_503"));
    assert_eq!(bad.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_exporter_what_the_message_brought_is_handed_on_as_it_is_also_by_another_process() {
    let api = api(1).await;
    let world = world(&api).await;
    let first = worker(&world, None, &[]).await;
    let traced = publish_traced(&world, "ann").await;
    let bytes =
        publish(&world, "bob", &[("traceparent", AMQPValue::ByteArray(traceparent().into_bytes().into()))]).await;
    let nothing = world.publish("cat").await;
    let mut ignored = Vec::new();
    for bad in [
        text("00-00000000000000000000000000000000-b7ad6b7169203331-01"),
        text("zyxq"),
        AMQPValue::LongString(vec![0xff, 0xfe].into()),
        AMQPValue::LongInt(5),
    ] {
        ignored.push(publish(&world, "dan", &[("traceparent", bad), ("tracestate", text(STATE))]).await);
    }
    let bad_state =
        publish(&world, "eva", &[("traceparent", text(&traceparent())), ("tracestate", text("no\nstate"))]).await;
    let all: Vec<LeadId> = [traced, bytes, nothing, bad_state].into_iter().chain(ignored.iter().copied()).collect();
    for id in &all {
        world.until_attempts(*id, 1).await;
    }
    first.stop().await;
    world.hurry().await;
    let second = worker(&world, None, &[]).await;
    world.until_delivered(&all).await;
    second.stop().await;

    let sent = |id: LeadId, name: &'static str| {
        let posts = posts(&api, id);
        assert_eq!(posts.len(), 2, "{id}");
        posts.iter().map(|post| post.header(name).to_owned()).collect::<Vec<_>>()
    };
    for id in [traced, bytes, bad_state] {
        assert_eq!(sent(id, "traceparent"), [traceparent(), traceparent()]);
    }
    assert_eq!(sent(traced, "tracestate"), [STATE, STATE]);
    for id in ignored.into_iter().chain([nothing]) {
        for name in ["traceparent", "tracestate"] {
            assert_eq!(sent(id, name), ["", ""], "{name}");
        }
        assert_eq!(kept(&world, id).await, None);
    }
    assert_eq!(sent(bad_state, "tracestate"), ["", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_is_parked_or_set_aside_keeps_the_trace_of_its_message_until_another_message_replays_it() {
    let world = World::new().await;
    let context = || TraceContext::read(traceparent().as_bytes(), Some(STATE.as_bytes())).map(std::sync::Arc::new);
    let traced = |id| Arrival { trace: context(), ..scene::arrival(id, &World::lead("ann")) };
    let [parked, aside, plain] = [(); 3].map(|()| LeadId(Uuid::new_v4()));
    let ledger = &world.ledger;
    let arrivals = vec![traced(parked), scene::arrival(plain, &World::lead("bob"))];
    let fates = ledger.accept(arrivals.into(), None, OnLock::Wait).await.unwrap();
    assert!(fates.iter().all(|fate| matches!(fate, Some(Fate::Parked(_)))), "{fates:?}");
    ledger.set_aside(vec![traced(aside)].into()).await.unwrap();
    let places = ledger.aside_after(0).await.unwrap();
    assert_eq!(ledger.absorb(places.into(), |_, _| Default::default()).await.unwrap().len(), 1);

    let lease = (Uuid::new_v4(), scene::LEASE);
    let claimed = ledger.claim(10, lease, Vec::new(), Doubts::Included).await.unwrap();
    assert_eq!(claimed.len(), 3);
    for claimed in claimed {
        let expected = if claimed.leased.id == plain { None } else { context() };
        assert_eq!(claimed.leased.trace, expected, "{:?}", claimed.leased);
    }

    // A message that replays it begins another trace.
    world.execute("update leads set state = 'rejected', reason = 'r', code = 'c', lease = null, leased_by = null, next_attempt_at = null, finished_at = now()").await;
    scene::accept(ledger, &[scene::arrival(parked, &World::lead("cleo"))], Uuid::new_v4()).await;
    assert_eq!((kept(&world, parked).await, kept(&world, aside).await.is_some()), (None, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_message_came_to_is_a_span_even_if_it_was_never_posted() {
    let (api, collector) = (api(0).await, Collector::open().await);
    let world = world(&api).await;
    let worker = worker(&world, Some(&collector), &[]).await;
    let properties = |headers| BasicProperties::default().with_headers(headers);
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), text(&traceparent()));
    world.broker.publish_with(b"zyxq, no lead", properties(headers)).await;
    let id = publish_traced(&world, "ann").await;
    world.until_state(id, LeadState::Delivered).await;
    world.until_count(LeadState::Invalid, 1).await;
    worker.stop().await;
    let states: BTreeSet<String> =
        collector.spans().iter().filter_map(|span| span.attributes.get("lead.state").cloned()).collect();
    assert_eq!(states, ["delivered", "invalid"].map(str::to_owned).into());
    assert!(collector.spans().iter().all(|span| span.trace == TRACE));
    assert!(!collector.raw().contains("zyxq"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_variables_decide_what_is_sampled_and_the_api_is_told() {
    for (sampler, sampled) in [("always_off", "00"), ("parentbased_always_off", "01")] {
        let (api, collector) = (api(0).await, Collector::open().await);
        let world = world(&api).await;
        let worker = worker(&world, Some(&collector), &[("OTEL_TRACES_SAMPLER", sampler)]).await;
        let (traced, own) = (publish_traced(&world, "ann").await, world.publish("bob").await);
        world.until_delivered(&[traced, own]).await;
        worker.stop().await;
        let flags = |id| posts(&api, id)[0].header("traceparent").rsplit('-').next().unwrap().to_owned();
        assert_eq!((flags(traced), flags(own)), (sampled.to_owned(), "00".to_owned()), "{sampler}");
        assert!(posts(&api, traced)[0].header("traceparent").contains(TRACE));
        assert_eq!(collector.spans().len(), if sampled == "01" { 4 } else { 0 }, "{sampler}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_silent_delays_no_lead_and_no_stop() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for endpoint in [format!("http://{}", silent.local_addr().unwrap()), format!("http://{taken}")] {
        let api = api(0).await;
        let world = world(&api).await;
        let settings = [
            "shutdown.grace_ms=2000",
            "destination.request.timeout_ms=1000",
            "destination.request.connect_timeout_ms=500",
        ];
        let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
        let worker = world.worker_with(&arguments, &environment).await;
        let id = publish_traced(&world, "ann").await;
        world.until_state(id, LeadState::Delivered).await;
        let begun = Instant::now();
        let said = worker.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(6), "{endpoint}: {:?}", begun.elapsed());
        assert!(said.contains("spans"), "it is said that they are lost: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_to_stop_at_once_does_not_wait_for_a_collector() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let world = World::new().await;
    world.sandbox.faults().rule("hangs", None, Fault::hang());
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    for hangs in [true, false] {
        let mut worker = world.worker_with(&[], &environment).await;
        let id = publish_traced(&world, if hangs { "ann" } else { "bob" }).await;
        world.until_state(id, LeadState::Delivered).await;
        if hangs {
            let posts = world.sandbox.journal().counts().posts;
            world.publish("hangs").await;
            world.until("it is being posted", async || world.sandbox.journal().counts().posts > posts).await;
        }
        worker.signal("TERM");
        worker.until_said("told to stop").await;
        if !hangs {
            // All else is done.
            world.until("it has said farewell", async || world.ledger.workers().await.unwrap().len() == 1).await;
        }
        let begun = Instant::now();
        worker.signal("TERM");
        let code = worker.ended().await;
        assert_eq!(code, Some(if hangs { 3 } else { 0 }), "{}", worker.said());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_that_cannot_be_had_stops_the_start_and_says_which_variable_to_change() {
    let world = World::new().await;
    for (name, value) in [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "zyxq")] {
        let mut environment = world.environment();
        environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), "http://127.0.0.1:4318".to_owned()));
        environment.push((name.to_owned(), value.to_owned()));
        let done = run(&["run"], environment, b"").await;
        assert_eq!(done.code, Some(78), "{done:?}");
        assert!(done.stderr.contains(name), "{done:?}");
    }
}
