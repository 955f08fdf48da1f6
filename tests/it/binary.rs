//! The program itself: signals, exit codes, what the commands print and do, and the admin port.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use leadpost::config::Secret;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Fault, StatusAnswer};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::support::{DEADLINE, Message, Process, World, get, run};

/// All states, counted by the ledger itself rather than by its tallies.
async fn states(world: &World) -> BTreeMap<String, i64> {
    let rows = sqlx::query_as("select state, count(*) from leads group by 1");
    rows.fetch_all(&world.database.pool).await.unwrap().into_iter().collect()
}

/// So many valid leads, one a line.
fn lines(leads: usize) -> String {
    (0..leads).map(|n| World::lead(&format!("lead{n}")) + "\n").collect()
}

async fn publish(world: &World, leads: &str) {
    let done = world.leadpost_with(&["publish", "-"], &[], leads.as_bytes()).await;
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// Waits until the API has received so many posts.
async fn until_posts(world: &World, posts: u64) {
    world.sandbox.journal().wait_for(|pages| pages.counts().posts >= posts, DEADLINE).await.unwrap();
}

// --- Signals

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_middle_of_a_post_lets_it_end_and_settles_it() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::latency(Duration::from_secs(1))]);
    let mut worker = world.worker(&[]).await;
    let id = world.publish("ann").await;
    until_posts(&world, 1).await;
    worker.signal("TERM");
    assert_eq!(world.state(id).await, Some(LeadState::Pending), "the signal came before the answer");
    assert_eq!(worker.ended().await, Some(0), "{}", worker.said());
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.received), (LeadState::Delivered, 1));
    assert_eq!(world.story(id).await, ["delivered 201"]);
    assert_eq!(world.posts(id), 1);
    assert_eq!(world.broker.depth().await, 0, "the message was acknowledged");
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_while_leads_flow_loses_none_and_the_next_worker_posts_each_of_the_rest_once() {
    const LEADS: u64 = 300;
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(20));
    publish(&world, &lines(300)).await;
    let mut worker = world.worker(&["--concurrency", "8"]).await;
    until_posts(&world, 40).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0), "{}", worker.said());

    let posts = world.sandbox.journal().counts().posts;
    assert!(posts < LEADS, "it was stopped while leads were left");
    let states = states(&world).await;
    assert_eq!(states.get("delivered").copied().unwrap_or(0), i64::try_from(posts).unwrap(), "each post was settled");
    assert_eq!(
        states.keys().filter(|state| !["delivered", "pending"].contains(&state.as_str())).count(),
        0,
        "{states:?}"
    );
    let leased: i64 = sqlx::query_scalar("select count(*) from leads where lease is not null")
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(leased, 0, "what was not begun was handed back");
    let accepted: i64 = states.values().sum();
    let left = LEADS - u64::try_from(accepted).unwrap();
    world.until("the rest is in the queue", async || u64::from(world.broker.depth().await) == left).await;

    let next = world.worker(&[]).await;
    world.until_count(LeadState::Delivered, 300).await;
    next.stop().await;
    let counts = world.sandbox.journal().counts();
    assert_eq!((counts.posts, counts.distinct_keys), (LEADS, LEADS));
    assert_eq!(world.broker.depth().await, 0);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once_and_leaves_the_lead_to_its_lease() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::hang()]);
    let mut worker = world.worker(&[]).await;
    let id = world.publish("ann").await;
    until_posts(&world, 1).await;
    worker.signal("TERM");
    worker.until_said("told to stop").await;
    let second = Instant::now();
    worker.signal("INT");
    assert_eq!(worker.ended().await, Some(3), "{}", worker.said());
    assert!(second.elapsed() < Duration::from_secs(5), "at once, not after the grace time");
    let lead = world.show(id).await;
    assert_eq!((lead.state, lead.attempts), (LeadState::Pending, 0));
    assert!(lead.leased_by.is_some(), "nobody else may post it before the lease ends");
    assert!(world.ledger.verify().await.unwrap().holds());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_idle_worker_cleanly_every_time() {
    let world = World::new().await;
    for _ in 0..12 {
        let worker = world.worker(&[]).await;
        world.until("it is ready", async || worker.ask("/readyz").await.0 == 200).await;
        let said = worker.stop().await;
        assert!(!said.contains("ERROR"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_for_postgres_says_so_and_begins_when_it_answers() {
    let mut world = World::new().await;
    let url = url::Url::parse(&world.database.url).unwrap();
    let real = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432));
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut through = url.clone();
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(door.local_addr().unwrap().port())).unwrap();
    world.settings.postgres.url = Secret::new(through.to_string());
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = door.accept().await {
            if is_open.load(Ordering::SeqCst) {
                let mut outside = TcpStream::connect(real.clone()).await.unwrap();
                tokio::spawn(async move { drop(tokio::io::copy_bidirectional(&mut inside, &mut outside).await) });
            }
        }
    });

    let worker = world.worker(&[]).await;
    worker.until_said("waiting for Postgres").await;
    assert_eq!(worker.ask("/livez").await.0, 200, "restarting it would help nobody");
    let (status, _, body) = worker.ask("/readyz").await;
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &report["ready"], &report["postgres"]["ok"]), (503, &false.into(), &false.into()), "{body}");
    assert_ne!(report["postgres"]["detail"], "", "it says why");

    let id = world.publish("ann").await;
    assert_eq!(world.broker.depth().await, 1, "nothing is consumed that cannot be stored");
    open.store(true, Ordering::SeqCst);
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(worker.ask("/readyz").await.0, 200);
    worker.stop().await;
    world.check_books().await;
}

// --- The admin port

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_says_that_it_lives_and_what_of_each_neighbour_is_known() {
    let world = World::new().await;
    let worker = world.worker(&[]).await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(worker.ask("/livez").await.0, 200);
    let (status, kind, body) = worker.ask("/readyz").await;
    assert!(status == 200 && kind.starts_with("application/json"), "{status} {kind}");
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    for neighbour in ["rabbitmq", "postgres", "token", "api"] {
        assert_eq!(report[neighbour]["ok"], true, "{neighbour}: {body}");
    }
    worker.stop().await;
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_says_by_its_exit_code_how_the_worker_is() {
    let world = World::new().await;
    let worker = world.worker(&[]).await;
    let line = worker.until_said("admin port").await;
    let port: String = line.split("127.0.0.1:").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    world.until("it is ready", async || get(&url("/readyz")).await.0 == 200).await;
    for path in ["/livez", "/readyz"] {
        let done = world.leadpost(&["healthcheck", "--url", &url(path)]).await;
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    world.sandbox.faults().rule("example", None, Fault::status(403));
    world.publish("ann").await;
    world.until("posts are paused", async || get(&url("/readyz")).await.0 == 503).await;
    let done = world.leadpost(&["healthcheck", "--url", &url("/readyz")]).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert_eq!(world.leadpost(&["healthcheck", "--url", &url("/livez")]).await.code, Some(0));
    worker.stop().await;
    let done = world.leadpost(&["healthcheck", "--url", &url("/livez")]).await;
    assert_eq!(done.code, Some(69), "{done:?}");
}

// --- Configuration

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_used_ends_with_78_and_says_what_to_change() {
    let world = World::new().await;
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        (&["--set", "flow.concurency=5"], &[], &["flow.concurency", "did you mean flow.concurrency?"]),
        (&["--set", "flow.lease_ms=20000"], &[], &["flow.lease_ms", "destination.request.timeout_ms"]),
        (&["--set", "destination.preset=8targets"], &[], &["7targets, 7targets-2024"]),
        (&["--set", "log.filter=leadpost=nonsense=x"], &[], &["log.filter"]),
        (&["--config", "no-such-file.toml"], &[], &["no-such-file.toml"]),
        (&[], &[("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET_FILE", "/tmp/secret")], &["client_secret", "both set"]),
    ];
    for (arguments, environment, texts) in cases {
        let done = world.leadpost_with(&[&["run"], arguments].concat(), environment, b"").await;
        assert_eq!(done.code, Some(78), "{arguments:?}: {done:?}");
        for text in texts {
            assert!(done.stderr.contains(text), "{text:?} is not in {}", done.stderr);
        }
    }
    let done = run(&["run"], Vec::new(), b"").await;
    assert_eq!(done.code, Some(78));
    for text in ["AMQP_URL", "DATABASE_URL", "CLIENT_ID", "CLIENT_SECRET"] {
        assert!(done.stderr.contains(text), "all that is missing is named at once: {}", done.stderr);
    }
    assert_eq!(world.sandbox.journal().counts().requests, 0, "nothing was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_that_cannot_be_reached_end_a_command_with_69() {
    let world = World::new().await;
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nowhere.local_addr().unwrap().port();
    drop(nowhere);
    let (postgres, amqp) = (format!("postgres://x@127.0.0.1:{port}/x"), format!("amqp://127.0.0.1:{port}"));
    for arguments in [&["status"][..], &["verify"], &["requeue", "--state", "rejected"]] {
        let done = world.leadpost_with(arguments, &[("DATABASE_URL", &postgres)], b"").await;
        assert_eq!(done.code, Some(69), "{arguments:?}: {done:?}");
    }
    for arguments in [&["publish", "-"][..], &["topology", "declare"]] {
        let done = world.leadpost_with(arguments, &[("AMQP_URL", &amqp)], b"").await;
        assert_eq!(done.code, Some(69), "{arguments:?}: {done:?}");
    }
    let done = world.leadpost_with(&["status"], &[("AMQP_URL", &amqp)], b"").await;
    assert_eq!(done.code, Some(0), "the ledger's numbers are worth printing without the queue's: {done:?}");
}

// --- publish

#[tokio::test(flavor = "multi_thread")]
async fn lines_arrays_and_csv_are_published_and_a_file_that_comes_again_posts_nothing_twice() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let files = [
        write("leads.jsonl", &format!("{}\n\n{}\n", World::lead("ann"), World::lead("bo"))),
        write("leads.json", &format!("[{}, {}]", World::lead("cleo"), World::lead("dev"))),
        write(
            "leads.csv",
            "name,email,assistantId,context\n\"Lee, Eva\",eva@example.com,61,\"says \"\"hi\"\"\"\nFinn,finn@example.com,61,\n",
        ),
    ];
    let worker = world.worker(&[]).await;
    for round in [1, 2] {
        for file in &files {
            let done = world.leadpost(&["publish", file, "--output", "json"]).await;
            assert_eq!(done.code, Some(0), "{done:?}");
            assert_eq!((&done.json()["published"], &done.json()["invalid"]), (&2.into(), &0.into()), "{done:?}");
        }
        let done = world.leadpost_with(&["publish", "-"], &[], World::lead("gus").as_bytes()).await;
        assert!(done.code == Some(0) && done.stderr.contains("1 published"), "{done:?}");
        world.until_count(LeadState::Delivered, 7).await;
        let received = "select coalesce(sum(received), 0)::bigint from leads";
        world
            .until("all messages have arrived", async || {
                sqlx::query_scalar::<_, i64>(received).fetch_one(&world.database.pool).await.unwrap() == 7 * round
            })
            .await;
    }
    let counts = world.sandbox.journal().counts();
    assert_eq!((counts.posts, counts.created), (7, 7), "the second round posted nothing");
    let eva = world.sandbox.journal().posts().into_iter().find(|post| post.email.as_deref() == Some("eva@example.com"));
    let body = String::from_utf8(eva.unwrap().body.unwrap().to_vec()).unwrap();
    assert_eq!(body, r#"{"name":"Lee, Eva","email":"eva@example.com","assistantId":61,"context":"says \"hi\""}"#);
    worker.stop().await;
    assert_eq!(world.broker.depth().await, 0);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_publishes_nothing_and_invalid_leads_are_named_and_left_out() {
    let world = World::new().await;
    let leads = format!("{}\nno lead\n{{\"name\":\"x\"}}\n", World::lead("ann"));
    let done = world.leadpost_with(&["publish", "-", "--format", "jsonl", "--dry-run"], &[], leads.as_bytes()).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("3 read, 1 valid, 2 invalid; nothing published"), "{done:?}");
    assert!(done.stderr.contains("line 2: ") && done.stderr.contains("line 3: email [missing]"), "{done:?}");
    assert_eq!(world.broker.depth().await, 0);
    // Without a broker it works as well: it only validates.
    let done =
        world.leadpost_with(&["publish", "-", "--dry-run"], &[("AMQP_URL", "")], World::lead("ann").as_bytes()).await;
    assert_eq!(done.code, Some(0), "{done:?}");

    let done = world.leadpost_with(&["publish", "-", "--format", "jsonl"], &[], leads.as_bytes()).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert_eq!(world.broker.depth().await, 1, "the valid one is published");
    let done = world.leadpost_with(&["publish", "-", "--format", "jsonl", "--force"], &[], leads.as_bytes()).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert_eq!(world.broker.depth().await, 4);

    let worker = world.worker(&[]).await;
    world.until_count(LeadState::Delivered, 1).await;
    world.until_count(LeadState::Invalid, 2).await;
    worker.stop().await;
    assert_eq!(world.sandbox.journal().counts().posts, 1);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_to_a_queue_that_is_not_there_ends_with_69_and_a_hint() {
    let world = World::new().await;
    let done = world
        .leadpost_with(&["publish", "-", "--queue", "there-is-no-such-queue"], &[], World::lead("ann").as_bytes())
        .await;
    assert_eq!(done.code, Some(69), "{done:?}");
    assert!(done.stderr.contains("leadpost topology declare"), "{done:?}");
    let done = world.leadpost(&["publish", "there-is-no-such-file.jsonl"]).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("there-is-no-such-file.jsonl"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_twice_in_one_batch_is_one_lead_and_one_post() {
    let world = World::new().await;
    let lead = World::lead("ann") + "\n";
    publish(&world, &lead.repeat(5)).await;
    assert_eq!(world.broker.depth().await, 5, "they wait together, so that they are taken together");
    let worker = world.worker(&[]).await;
    world.until_count(LeadState::Delivered, 1).await;
    world.until("all are taken", async || world.broker.depth().await == 0).await;
    worker.stop().await;
    assert_eq!(world.sandbox.journal().counts().posts, 1);
    let received: Vec<i32> =
        sqlx::query_scalar("select received from leads").fetch_all(&world.database.pool).await.unwrap();
    assert_eq!(received, [5]);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bodies_under_one_id_in_one_batch_are_two_leads() {
    let world = World::new().await;
    let id = LeadId(Uuid::new_v4());
    for name in ["ann", "bo"] {
        world.broker.publish(Message::new(id, &World::lead(name))).await;
    }
    let worker = world.worker(&[]).await;
    world.until_count(LeadState::Delivered, 2).await;
    worker.stop().await;
    let emails: Vec<_> = world.sandbox.journal().posts().iter().filter_map(|post| post.email.clone()).collect();
    assert!(emails.len() == 2 && emails[0] != emails[1], "each was posted once: {emails:?}");
    let conflicts: i64 = sqlx::query_scalar("select count(*) from leads where conflict_of = $1")
        .bind(id.0)
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(conflicts, 1);
    world.check_books().await;
}

// --- requeue, status, leads, verify

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_was_refused_and_sends_it_again() {
    let world = World::new().await;
    let refusal =
        StatusAnswer { body: Some(r#"{"message":"the plan is used up"}"#.to_owned()), ..StatusAnswer::new(422) };
    world.sandbox.faults().script([Fault::answer(refusal)]);
    let worker = world.worker(&[]).await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Rejected).await;

    let shown = world.leadpost(&["leads", "show", &id.to_string()]).await;
    assert!(shown.code == Some(0) && shown.stdout.contains("the plan is used up"), "{shown:?}");
    assert!(!shown.stdout.contains("ann@example.com"), "the body is shown only when asked for: {shown:?}");
    let body = world.leadpost(&["leads", "show", &id.to_string(), "--body"]).await;
    assert_eq!(body.stdout.trim_end(), World::lead("ann"));
    let unknown = world.leadpost(&["leads", "show", &Uuid::new_v4().to_string()]).await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    let status = world.leadpost(&["status", "--output", "json"]).await.json();
    assert_eq!(status["ledger"]["accepted"], 1, "{status}");
    assert_eq!(status["ledger"]["states"]["rejected"], 1, "{status}");
    assert_eq!(
        (&status["queue"]["ready"], &status["queue"]["name"]),
        (&0.into(), &world.broker.queue.as_str().into()),
        "{status}"
    );
    assert_eq!(status["workers"].as_array().unwrap().len(), 1, "{status}");

    let dry = world.leadpost(&["requeue", "--state", "rejected", "--since", "1h", "--dry-run"]).await;
    assert!(dry.code == Some(0) && dry.stderr.contains("1 lead would be sent"), "{dry:?}");
    assert_eq!(world.state(id).await, Some(LeadState::Rejected));
    let requeued =
        world.leadpost(&["requeue", "--state", "rejected", "--since", "1h", "--reason", "new plan", "--yes"]).await;
    assert!(requeued.code == Some(0) && requeued.stderr.contains("1 lead is sent"), "{requeued:?}");
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["rejected 422", "delivered 201"]);
    assert_eq!((lead.replayed[0].kind.as_str(), lead.replayed[0].reason.as_deref()), ("requeue", Some("new plan")));

    let again = world.leadpost(&["requeue", &id.to_string()]).await;
    assert_eq!(again.code, Some(1), "a delivered lead is left alone: {again:?}");
    assert!(again.stderr.contains("--include-delivered"), "{again:?}");
    let unknown = world.leadpost(&["requeue", &Uuid::new_v4().to_string(), "--output", "json"]).await;
    assert_eq!((unknown.code, unknown.json()["unknown"].as_array().unwrap().len()), (Some(1), 1));
    worker.stop().await;
    assert_eq!(world.posts(id), 2);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_holds_after_a_run_and_finds_what_is_broken_by_hand() {
    let world = World::new().await;
    let worker = world.worker(&[]).await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    worker.stop().await;
    let holds = world.leadpost(&["verify"]).await;
    assert!(holds.code == Some(0) && !holds.stdout.contains("BROKEN"), "{holds:?}");

    // As many attempts as it says, and as high a number, but one of them given twice.
    let twice = format!(
        "with counted as (update leads set attempts = 3 where id = '{id}' returning id) \
         insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status) \
         select id, n, id, 'w', now(), 1, 'delivered', true, 201 from counted, (values (1), (3)) as v (n)"
    );
    world.execute(&twice).await;
    let broken = world.leadpost(&["verify"]).await;
    assert!(broken.code == Some(1) && broken.stdout.contains("BROKEN  attempts:"), "{broken:?}");
    world.execute("delete from other_attempts").await;
    world.execute("update leads set attempts = 1").await;
    assert_eq!(world.leadpost(&["verify"]).await.code, Some(0));

    // An attempt too many on the lead's own count, a lead that the tallies do not know, and an attempt of none.
    sqlx::query(
        "insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status) \
         values (gen_random_uuid(), 1, gen_random_uuid(), 'w', now(), 1, 'delivered', true, 201)",
    )
    .execute(&world.database.pool)
    .await
    .unwrap();
    sqlx::query("update leads set attempts = attempts + 1").execute(&world.database.pool).await.unwrap();
    sqlx::query("update tallies set delivered = delivered + 1").execute(&world.database.pool).await.unwrap();
    let broken = world.leadpost(&["verify"]).await;
    assert_eq!(broken.code, Some(1), "{broken:?}");
    for name in ["BROKEN  attempts", "BROKEN  tallies", "BROKEN  accounting", "BROKEN  leads of attempts"] {
        assert!(broken.stdout.contains(name), "{broken:?}");
    }
    assert!(broken.stdout.contains(&id.to_string()), "it says which: {broken:?}");
    let json = world.leadpost(&["verify", "--output", "json"]).await;
    let checks = json.json()["checks"].as_array().unwrap().clone();
    assert!(checks.iter().any(|check| check["name"] == "attempts" && check["broken"] == 1), "{json:?}");
}

// --- Set-up

#[tokio::test(flavor = "multi_thread")]
async fn migrations_are_applied_once_also_by_several_at_a_time_and_a_check_changes_nothing() {
    let world = World::new().await;
    sqlx::raw_sql("drop schema public cascade; create schema public").execute(&world.database.pool).await.unwrap();
    let check = world.leadpost(&["migrate", "--check"]).await;
    assert_eq!(check.code, Some(78), "{check:?}");
    assert!(check.stderr.contains("leadpost migrate"), "it says what to do: {check:?}");
    let tables: i64 = sqlx::query_scalar("select count(*) from pg_tables where schemaname = 'public'")
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(tables, 0);
    let refused = world.leadpost(&["run", "--set", "postgres.migrate=false"]).await;
    assert_eq!(refused.code, Some(78), "{refused:?}");

    let migrate = || world.leadpost(&["migrate"]);
    let (one, two, three) = tokio::join!(migrate(), migrate(), migrate());
    let all = [one, two, three];
    assert!(all.iter().all(|done| done.code == Some(0)), "one migrates, the others wait for it: {all:?}");
    let again = migrate().await;
    assert!(again.code == Some(0) && !again.stderr.contains("applied"), "{again:?}");
    assert_eq!(world.leadpost(&["migrate", "--check"]).await.code, Some(0));
    assert_eq!(world.leadpost(&["verify"]).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_is_declared_as_recommended_and_declaring_it_again_changes_nothing() {
    let world = World::new().await;
    let queue = format!("{}-declared", world.broker.queue);
    let environment = [("LEADPOST__AMQP__QUEUE", queue.as_str())];
    for _ in 0..2 {
        let done = world.leadpost_with(&["topology", "declare"], &environment, b"").await;
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    // RabbitMQ accepts a declaration of a queue that is there only if it is the same.
    let dead_letter = format!("{queue}.dead-letter");
    let arguments = |delivery_limit: i64| {
        let mut arguments = FieldTable::default();
        for (name, value) in [
            ("x-queue-type", "quorum"),
            ("x-dead-letter-exchange", &dead_letter),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-overflow", "reject-publish"),
        ] {
            arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(delivery_limit));
        arguments
    };
    let declare = async |delivery_limit| {
        let channel = world.broker.connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments(delivery_limit)).await.is_ok()
    };
    assert!(declare(20).await, "the queue has other arguments than it should");
    assert!(!declare(21).await, "the comparison compares nothing");
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = &world.broker.channel;
    channel.queue_declare(dead_letter.as_str().into(), passive, FieldTable::default()).await.unwrap();

    // A queue in another form is reported and left as it is.
    let other = world.leadpost(&["topology", "declare"]).await;
    assert_eq!(other.code, Some(1), "{other:?}");
    for text in ["in another form", "left as it is", "the worker consumes any kind of queue"] {
        assert!(other.stderr.contains(text), "{text:?} is not in {other:?}");
    }
    world.publish("ann").await;

    let shown = world.leadpost_with(&["topology", "show", "--output", "json"], &environment, b"").await;
    assert_eq!((shown.code, shown.json()["queue"].as_str()), (Some(0), Some(queue.as_str())), "{shown:?}");
    for queue in [queue.clone(), dead_letter.clone(), format!("{}.dead-letter", world.broker.queue)] {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
    for exchange in [dead_letter, format!("{}.dead-letter", world.broker.queue)] {
        channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_serves_as_a_program_what_a_worker_needs() {
    let mut world = World::new().await;
    let sandbox = Process::start(&["sandbox", "--listen", "127.0.0.1:0"], Vec::new());
    let line = sandbox.until_said("control at ").await;
    let base = line.split("control at ").nth(1).unwrap().trim().trim_end_matches("/_sandbox/").to_owned();
    sandbox.until_said("sandbox: ready").await;
    let (token, leads) = (format!("{base}/oauth2/token"), format!("{base}/leads"));
    world.set(&[("AUTH__TOKEN_URL", &token), ("REQUEST__URL", &leads)]);
    let worker = world.worker(&[]).await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    worker.stop().await;
    let (_, _, summary) = get(&format!("{base}/_sandbox/journal/summary")).await;
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["posts"], &summary["created"]), (&1.into(), &1.into()), "{summary}");
    let (_, _, posts) = get(&format!("{base}/_sandbox/leads/{id}")).await;
    assert!(posts.contains("ann@example.com"), "{posts}");
    sandbox.stop().await;
}

// --- Help

#[tokio::test(flavor = "multi_thread")]
async fn the_help_of_every_command_shows_an_example() {
    let commands: [&[&str]; 22] = [
        &["run"],
        &["publish"],
        &["status"],
        &["leads", "list"],
        &["leads", "show"],
        &["leads", "export"],
        &["leads", "count"],
        &["leads", "edit"],
        &["failures"],
        &["requeue"],
        &["cancel"],
        &["release"],
        &["erase"],
        &["export"],
        &["redact"],
        &["verify"],
        &["migrate"],
        &["topology", "declare"],
        &["topology", "show"],
        &["sandbox"],
        &["healthcheck"],
        &[],
    ];
    let mut without = Vec::new();
    for command in commands {
        let done = run(&[command, &["--help"]].concat(), Vec::new(), b"").await;
        assert_eq!(done.code, Some(0), "{done:?}");
        if command.is_empty() {
            assert!(done.stdout.contains("Exit codes: 0 done"), "{done:?}");
        } else if !done.stdout.contains("Example: ") {
            without.push(command.join(" "));
        }
    }
    assert!(without.is_empty(), "no example: {without:?}");
}

// --- What goes wrong around a command

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_holds_leads_is_never_left_out_with_exit_code_0() {
    let folder = tempfile::tempdir().unwrap();
    let validate = async |name: &str, content: &str, further: &[&str]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let arguments = [&["publish", path.to_str().unwrap(), "--dry-run"], further].concat();
        run(&arguments, Vec::new(), b"").await
    };
    let lead = World::lead("ann");
    for (name, content) in [
        ("leads.json", format!("\u{feff}[{lead}]")),
        ("leads", format!("\u{feff}[{lead}]")),
        ("leads", format!("\u{feff}{lead}\n")),
        ("leads.json", format!("{lead}\n")),
        ("leads.CSV", "\u{feff}name,email,assistantId\nAnn,ann@example.com,61\n".to_owned()),
    ] {
        let done = validate(name, &content, &[]).await;
        assert_eq!(done.code, Some(0), "{name}: {done:?}");
        assert!(done.stderr.contains("1 read, 1 valid"), "{name}: {done:?}");
    }
    for (name, content, further, text) in [
        ("one.jsonl", lead.as_str(), &["--format", "csv"][..], "looks like JSON"),
        ("leads.csv", "name;email;assistantId\nAnn;ann@example.com;61\n", &[], "\"name;email;assistantId\""),
        ("leads.csv", "Name,Mail\nAnn,ann@example.com\n", &[], "upper and lower case"),
        ("leads.csv", "name,email,name\nAnn,ann@example.com,Ann\n", &[], "\"name\" twice"),
        ("leads.csv", "name,email,assistantId\n", &[], "there is no lead"),
        ("leads.json", "[]", &[], "there is no lead"),
        ("leads.json", "name,email,assistantId\nAnn,ann@example.com,61\n", &[], "line 2: [not_json]"),
    ] {
        let done = validate(name, content, further).await;
        assert_eq!(done.code, Some(1), "{name}: {done:?}");
        assert!(done.stderr.contains(text) && !done.stderr.contains("ann@example.com"), "{name}: {done:?}");
    }
    let garbage = run(&["publish", "-", "--dry-run"], Vec::new(), b"garbage").await;
    assert!(garbage.code == Some(1) && garbage.stderr.contains("\"garbage\""), "{garbage:?}");
    let empty = run(&["publish", "-", "--dry-run"], Vec::new(), b"").await;
    assert_eq!(empty.code, Some(0), "{empty:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_is_skipped_and_named() {
    let lead = World::lead("ann");
    let leads = format!("{lead}\n{{\"name\":\"{}\"}}\n{lead}\n", "x".repeat(1 << 20));
    let done = run(&["publish", "-", "--dry-run"], Vec::new(), leads.as_bytes()).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("bytes and was skipped"), "{done:?}");
    assert!(done.stderr.contains("line 2: [too_large]") && done.stderr.contains("3 read, 2 valid"), "{done:?}");
}

/// Starts a command of the binary with its streams in hand.
fn streams(world: &World, arguments: &[&str]) -> std::process::Child {
    use std::process::{Command, Stdio};
    let mut command = Command::new(env!("CARGO_BIN_EXE_leadpost"));
    command.args(arguments).env_clear().envs(world.environment()).current_dir(std::env::temp_dir());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How it ends.
async fn end_of(mut child: std::process::Child) -> Option<i32> {
    let end = tokio::task::spawn_blocking(move || child.wait().unwrap().code());
    tokio::time::timeout(DEADLINE, end).await.expect("it must end").unwrap()
}

fn terminate(child: &std::process::Child) {
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_log_nobody_reads_goes_on_and_drains() {
    let world = World::new().await;
    let mut worker = streams(&world, &["run"]);
    drop(worker.stderr.take());
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    terminate(&worker);
    assert_eq!(end_of(worker).await, Some(0));
    world.check_books().await;

    let mut publish = streams(&world, &["publish", "-", "--dry-run"]);
    drop(publish.stderr.take());
    drop(publish.stdin.take());
    assert_eq!(end_of(publish).await, Some(0), "what is said to nobody is no failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_that_is_told_to_stop_says_what_is_confirmed() {
    use std::io::{Read as _, Write as _};
    let world = World::new().await;
    let mut publish = streams(&world, &["publish", "-"]);
    let mut input = publish.stdin.take().unwrap();
    input.write_all(lines(130).as_bytes()).unwrap();
    input.flush().unwrap();
    world.until("a window is confirmed", async || world.broker.depth().await == 100).await;
    // The file has not ended, and never will.
    terminate(&publish);
    let mut said = publish.stderr.take().unwrap();
    assert_eq!(end_of(publish).await, Some(3));
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert!(text.contains("100 are confirmed") && text.contains("again is safe"), "{text}");
    assert_eq!(world.broker.depth().await, 100);
    drop(input);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_cannot_be_written_is_a_failure_but_a_reader_that_has_enough_is_none() {
    use std::process::{Command, Stdio};
    let world = World::new().await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_leadpost"))
        .args(["topology", "show"])
        .env_clear()
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let done = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(1) && said.contains("cannot write to stdout"), "{said}");

    let mut enough = streams(&world, &["status"]);
    drop(enough.stdout.take());
    let mut said = enough.stderr.take().unwrap();
    assert_eq!(end_of(enough).await, Some(0));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut said, &mut text).unwrap();
    assert_eq!(text, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_lead_is_shown_byte_for_byte() {
    let world = World::new().await;
    let body = b"{\"name\":\"\xff\"}\r\n";
    world.broker.publish(Message::raw(body)).await;
    let worker = world.worker(&[]).await;
    world.until_count(LeadState::Invalid, 1).await;
    worker.stop().await;
    let id: Uuid = sqlx::query_scalar("select id from leads").fetch_one(&world.database.pool).await.unwrap();
    let show = streams(&world, &["leads", "show", &id.to_string(), "--body"]);
    let shown = tokio::task::spawn_blocking(|| show.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(shown.stdout, body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_line_may_not_say_is_refused_before_anything_is_done() {
    let cases: [(&[&str], i32, &[&str]); 13] = [
        (&["requeue"], 2, &["<ID", "--state <STATE>"]),
        (&["requeue", "--state", "pending"], 2, &["on their way already"]),
        (&["cancel"], 2, &["which leads?", "--all"]),
        (&["cancel", "--state", "rejected"], 2, &["only pending leads"]),
        (&["release", "--as", "again"], 2, &["which leads?"]),
        (&["release", "--as", "delivered", "--all", "--rate", "5"], 2, &["--as again"]),
        (&["release", "--as", "again", "--state", "rejected"], 2, &["only uncertain leads"]),
        (&["requeue", "--state", "delivered"], 2, &["--state delivered needs --include-delivered"]),
        (&["requeue", "--state", "rejected", "--state", "duplicate"], 2, &["--include-delivered"]),
        (&["sandbox", "--set", "flow.concurrency=5"], 2, &["--config and --set"]),
        (&["--config", "leadpost.toml", "sandbox"], 2, &["--config and --set"]),
        (&["healthcheck", "--set", "admin.listen="], 78, &["admin.listen"]),
        (&["healthcheck", "--set", "admin.listen=0.0.0.0:1"], 69, &["127.0.0.1:1"]),
    ];
    for (arguments, code, texts) in cases {
        let done = run(arguments, Vec::new(), b"").await;
        assert_eq!(done.code, Some(code), "{arguments:?}: {done:?}");
        for text in texts {
            assert!(done.stderr.contains(text), "{text:?} is not in {done:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_port_that_is_taken_and_a_url_that_is_none_end_with_78() {
    let world = World::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let done = world.leadpost(&["run", "--admin", &listen]).await;
    assert_eq!(done.code, Some(78), "{done:?}");
    assert!(done.stderr.contains(&listen) && done.stderr.contains("--admin"), "{done:?}");

    let done = world.leadpost_with(&["status"], &[("AMQP_URL", "garbage")], b"").await;
    assert!(done.code == Some(78) && done.stderr.contains("amqp.url cannot be used"), "{done:?}");

    let dry = world.leadpost(&["requeue", "--state", "rejected", "--dry-run", "--output", "json"]).await.json();
    assert_eq!((&dry["dry_run"], &dry["done"]), (&true.into(), &0.into()), "{dry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_lists_its_control_routes_whatever_is_set_for_the_worker() {
    let environment = vec![("LEADPOST_CONFIG".to_owned(), "leadpost.toml".to_owned())];
    let sandbox = Process::start(&["sandbox", "--listen", "127.0.0.1:0"], environment);
    let line = sandbox.until_said("control at ").await;
    let (status, kind, text) = get(line.split("control at ").nth(1).unwrap().trim()).await;
    assert!(status == 200 && kind.starts_with("text/plain"), "{status} {kind}");
    assert!(text.contains("GET    /_sandbox/journal/summary ") && text.contains("POST   /_sandbox/faults"), "{text}");
    sandbox.stop().await;
}
