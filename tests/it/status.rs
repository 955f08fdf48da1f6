//! `leadpost status`: what leads wait for, how fast they go, and a picture that goes on while neighbours come and go.

use std::process::Command;
use std::time::Duration;

use leadpost::config::Secret;
use leadpost::ledger::LeadState;
use leadpost::sandbox::Fault;
use serde_json::Value;

use crate::support::{Process, Terminal, World};

async fn status(world: &World) -> Value {
    let done = world.leadpost(&["status", "--output", "json"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    done.json()
}

async fn text(world: &World) -> String {
    let done = world.leadpost(&["status"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    done.stdout
}

/// Waits until the status says so, and returns it.
async fn until_status(world: &World, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    world
        .until(what, async || {
            last = status(world).await;
            holds(&last)
        })
        .await;
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_how_much_it_does_and_how_long_posts_take() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(50));
    world.sandbox.faults().rule("bad@", None, Fault::status(422));
    world.sandbox.faults().rule("busy@", Some(1), Fault::status(503));
    // A rate limit, too high to matter, has the worker say so every second.
    let worker = world.worker(&["--set", "flow.rate_per_s=10000", "--set", "retry.initial_ms=1"]).await;
    let mut ids = world.publish_many("ann", 20).await;
    ids.push(world.publish("busy").await);
    let bad = world.publish("bad").await;
    world.until_delivered(&ids).await;
    world.until_state(bad, LeadState::Rejected).await;
    let said = until_status(&world, "the heartbeat tells of all", |status| {
        status["lately"]["post_p95_ms"].is_number() && status["lately"]["again_per_s"].as_f64() > Some(0.0)
    })
    .await;
    let lately = &said["lately"];
    let number = |name: &str| lately[name].as_f64().unwrap_or_else(|| panic!("{name} of {lately}"));
    let over_s = number("over_s");
    assert!(over_s > 0.0 && over_s < 66.0, "{lately}");
    // Rounded to a hundredth each.
    for (name, leads) in [
        ("accepted_per_s", 22.0),
        ("delivered_per_s", 21.0),
        ("failed_per_s", 1.0),
        ("ended_per_s", 22.0),
        ("again_per_s", 1.0),
    ] {
        assert!((number(name) * over_s - leads).abs() < 0.06 * over_s + 0.1 * number(name), "{name}: {lately}");
    }
    assert!((45.0..500.0).contains(&number("post_p50_ms")), "{lately}");
    assert!(number("post_p95_ms") >= number("post_p50_ms"), "{lately}");
    let worker_said = &said["workers"][0]["status"];
    assert_eq!(
        (&worker_said["circuit"], &worker_said["token"]["ok"]),
        (&"closed".into(), &true.into()),
        "{worker_said}"
    );
    assert_eq!((&said["drain"]["leads"], &said["drain"]["seconds"]), (&0.into(), &0.0.into()), "{said}");
    assert_eq!((&said["queue"]["consumers"], &said["waits_for"]), (&1.into(), &Value::Null), "{said}");
    assert!(said["ledger"]["last_delivery_s"].as_f64() < Some(60.0), "{said}");
    let heartbeat =
        sqlx::query_scalar::<_, i32>("select length(status::text) from workers").fetch_one(&world.database.pool);
    assert!(heartbeat.await.unwrap() < 1_000, "the heartbeat is to stay small");

    let text = text(&world).await;
    for part in ["1 consumer", "workers: 1 alive", "up ", "of 64 posts under way", "circuit closed", "token: valid for"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    for part in ["lately (", "failed", "(p50)", "(p95)", "to go: nothing", "last delivery: "] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    worker.stop().await;
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_not_all_warnings_and_messages_set_aside_are_counted_it_says_so_and_else_it_does_not() {
    let world = World::new().await;
    let add = async |n: i64| {
        let destination = world.settings.destination.name();
        let leads = format!(
            "insert into leads (id, destination, queue, body, state, finished_at, warning) \
             select gen_random_uuid(), '{destination}', 'q', '{{}}', 'delivered', now(), 'put' from generate_series(1, {n})"
        );
        let aside = format!(
            "insert into aside (destination, queue, lead_id, body, redelivered, replay) \
             select '{destination}', 'q', gen_random_uuid(), '{{}}', false, false from generate_series(1, {n})"
        );
        world.execute(&leads).await;
        world.execute(&aside).await;
    };
    for (more, is_less) in [(10_000, false), (1, true)] {
        add(more).await;
        let said = status(&world).await;
        let ledger = &said["ledger"];
        for name in ["warnings", "aside"] {
            let at_least = &ledger[format!("{name}_at_least")];
            assert_eq!((&ledger[name], at_least), (&10_000.into(), &is_less.into()), "{name}: {said}");
        }
        let words = text(&world).await;
        for part in ["10000 messages are set aside", "10000 delivered leads which"] {
            assert!(words.contains(part) && words.contains(&format!("at least {part}")) == is_less, "{part}: {words}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_leads_and_messages_wait_for_one() {
    let world = World::new().await;
    let said = status(&world).await;
    assert_eq!((&said["waits_for"], &said["lately"]), (&Value::Null, &Value::Null), "{said}");
    assert_eq!((&said["drain"]["leads"], &said["drain"]["seconds"]), (&0.into(), &0.0.into()), "{said}");
    assert!(text(&world).await.contains("last delivery: none yet"));
    world.publish("ann").await;
    let said = until_status(&world, "the message is counted", |status| status["queue"]["ready"] == 1).await;
    assert_eq!(said["waits_for"]["kind"], "worker", "{said}");
    assert!(text(&world).await.contains("the next message waits for a worker: none is alive"));

    let id = world.put("bo", LeadState::Rejected).await;
    let done = world.leadpost(&["requeue", &id.to_string()]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let said = status(&world).await;
    let first = &said["ledger"]["waiting"]["first"];
    assert_eq!((&said["drain"]["leads"], &said["drain"]["seconds"]), (&2.into(), &Value::Null), "{said}");
    assert_eq!((&first["id"], &said["waits_for"]["kind"]), (&id.to_string().into(), &"worker".into()), "{said}");
    assert!(text(&world).await.contains(&format!("first in line: {id}, accepted ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lead_waits_for_is_said_as_it_changes() {
    let world = World::new().await;
    let worker = world.worker(&["--set", "retry.initial_ms=100000"]).await;
    // The API is busy: the lead waits for its time.
    world.sandbox.faults().rule("busy@", None, Fault::status(503));
    let busy = world.publish("busy").await;
    world.until_attempts(busy, 1).await;
    let said = until_status(&world, "it waits for its time", |status| status["waits_for"]["kind"] == "schedule").await;
    assert!(said["waits_for"]["text"].as_str().unwrap().contains("after http_503"), "{said}");
    assert_eq!(said["drain"]["leads"], 0, "what is due later is not to go now: {said}");

    // The API asks to be left alone.
    world.sandbox.faults().rule("alone@", None, Fault::retry_after(429, 600));
    let alone = world.publish("alone").await;
    world.until_attempts(alone, 1).await;
    let said =
        until_status(&world, "it waits for the end of the hold", |status| status["waits_for"]["kind"] == "hold").await;
    let hold = said["waits_for"]["text"].as_str().unwrap();
    assert!(hold.contains("left alone until") && said["ledger"]["held_s"].as_f64() > Some(500.0), "{said}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_circuit_is_said_with_its_cause_and_so_is_a_token_that_cannot_be_had() {
    let world = World::new().await;
    world.sandbox.faults().rate(1.0, Fault::status(403)).unwrap();
    // What it has taken in advance is not seen in the queue.
    let worker = world.worker(&["--set", "amqp.prefetch=1"]).await;
    world.publish_many("ann", 3).await;
    until_status(&world, "posts are paused", |status| status["waits_for"]["kind"] == "circuit").await;
    // These stay in the queue, but for those that probe.
    world.publish_many("bo", 20).await;
    let said = until_status(&world, "they are counted", |status| status["drain"]["leads"].as_i64() > Some(0)).await;
    assert_eq!(said["waits_for"]["kind"], "circuit", "{said}");
    assert!(said["waits_for"]["text"].as_str().unwrap().contains("403"), "{said}");
    assert_eq!((&said["drain"]["seconds"], &said["workers"][0]["status"]["token"]["ok"]), (&Value::Null, &true.into()));
    let words = text(&world).await;
    assert!(words.contains("never, at this rate") && words.contains("single leads probe"), "{words}");
    worker.stop().await;

    let mut other = World::new().await;
    other.set(&[("AUTH__CLIENT_SECRET", "hunter2")]);
    let worker = other.worker(&[]).await;
    other.publish("ann").await;
    let said = until_status(&other, "there is no token", |status| status["waits_for"]["kind"] == "token").await;
    assert!(said["waits_for"]["text"].as_str().unwrap().contains("refuses us"), "{said}");
    let words = text(&other).await;
    assert!(words.contains("token: ") && !words.contains("hunter2"), "{words}");
    worker.stop().await;
}

// --- Watching

/// The lines that a process has printed so far, as JSON.
fn lines(process: &Process) -> Vec<Value> {
    // The last may not be whole yet.
    process
        .said()
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

async fn until_line(world: &World, process: &Process, what: &str, holds: impl Fn(&Value) -> bool) {
    let seen = lines(process).len();
    world.until(what, async || lines(process).iter().skip(seen).any(&holds)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_watches_gets_a_line_each_time_also_while_neighbours_are_away() {
    let mut world = World::new().await;
    let (postgres, rabbitmq) = (world.proxy_postgres(1).await, world.proxy_rabbitmq(1).await);
    let mut watch = Process::start(&["status", "--watch", "0.1", "--output", "json"], world.environment());
    until_line(&world, &watch, "all is there", |line| line["ledger"]["accepted"] == 0 && line["queue"]["ready"] == 0)
        .await;
    world.publish("ann").await;
    until_line(&world, &watch, "the message is seen", |line| line["queue"]["ready"] == 1).await;
    let connections = rabbitmq.notes().connections;

    postgres.refuse();
    postgres.cut();
    until_line(&world, &watch, "Postgres is away, and RabbitMQ is not", |line| {
        line["ledger"].is_null() && line["problem"].is_string() && line["queue"]["ready"] == 1
    })
    .await;
    postgres.heal();
    until_line(&world, &watch, "Postgres is back", |line| line["ledger"]["accepted"] == 0 && line["problem"].is_null())
        .await;
    assert_eq!(rabbitmq.notes().connections, connections, "one connection is enough");

    rabbitmq.refuse();
    rabbitmq.cut();
    until_line(&world, &watch, "RabbitMQ is away, and Postgres is not", |line| {
        line["queue"]["ready"].is_null() && line["queue"]["problem"].is_string() && line["ledger"]["accepted"] == 0
    })
    .await;
    rabbitmq.heal();
    until_line(&world, &watch, "RabbitMQ is back", |line| line["queue"]["ready"] == 1).await;
    watch.signal("INT");
    assert_eq!(watch.ended().await, Some(0), "{}", watch.said());
    assert!(watch.said().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", watch.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mended_by_waiting_ends_a_watch_and_what_can_does_not() {
    let world = World::new().await;
    let mut watch = Process::start(&["status", "--watch", "0.1"], world.environment());
    watch.until_said("destination 7targets").await;
    world.until("it was printed again", async || watch.said().matches("destination 7targets").count() >= 3).await;
    assert!(watch.said().matches("\n\n").count() >= 2, "blocks are apart: {}", watch.said());
    assert!(!watch.said().contains('\x1b'), "nothing is drawn where there is no terminal");
    watch.signal("TERM");
    assert_eq!(watch.ended().await, Some(0));

    world.execute("delete from _sqlx_migrations").await;
    let done = world.leadpost(&["status", "--watch"]).await;
    assert!(done.code == Some(78) && done.stderr.contains("leadpost migrate"), "{done:?}");
    let done = world.leadpost(&["status", "--watch", "0"]).await;
    assert_eq!(done.code, Some(2), "{done:?}");
}

/// Runs a command on a terminal of its own, and interrupts it when `enough` has come. All that was drawn.
async fn on_a_terminal(world: &World, command: &str, enough: impl Fn(&str) -> bool) -> String {
    let line = format!("{} {command} & echo pid $!; wait $!; echo ended $?", env!("CARGO_BIN_EXE_leadpost"));
    let mut terminal = Terminal::start(&line, world.environment());
    world.until("enough is drawn", async || enough(&terminal.said())).await;
    let drawn = terminal.said();
    let pid = drawn.split("pid ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    terminal.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_the_picture_is_drawn_in_place_and_the_terminal_is_left_as_it_was() {
    let world = World::new().await;
    let drawn = on_a_terminal(&world, "status --watch 0.1", |drawn| drawn.matches("\x1b[H").count() >= 3).await;
    let (open, close) = ("\x1b[?1049h", "\x1b[?1049l");
    let (_, opened) = drawn.split_once(open).unwrap_or_else(|| panic!("{drawn:?}"));
    let (picture, after) = opened.split_once(close).unwrap_or_else(|| panic!("{drawn:?}"));
    assert!(picture.contains("destination 7targets") && picture.ends_with("\x1b[?7h\x1b[?25h"), "{drawn:?}");
    assert!(after.contains("destination 7targets") && after.contains("ended 0"), "the last picture stays: {drawn:?}");
    // JSON is for scripts, also there.
    let json = "status --watch 0.1 --output json";
    let drawn = on_a_terminal(&world, json, |drawn| drawn.matches("{\"at\":").count() >= 2).await;
    assert!(!drawn.contains(open) && drawn.contains("ended 0"), "{drawn:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_without_rabbitmq_is_the_ledgers() {
    let mut world = World::new().await;
    let proxy = world.proxy_rabbitmq(1).await;
    proxy.refuse();
    let said = status(&world).await;
    assert!(said["queue"]["problem"].as_str().unwrap().contains("RabbitMQ did not connect"), "{said}");
    assert_eq!((&said["ledger"]["accepted"], &said["queue"]["ready"]), (&0.into(), &Value::Null));
    world.settings.amqp.url = Secret::new("");
    let said = status(&world).await;
    assert_eq!(said["queue"]["problem"], "amqp.url is not set", "{said}");
}
