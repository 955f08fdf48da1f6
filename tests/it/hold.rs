//! Holds (Retry-After) that a person ends before their time: workers that run go on, leads that waited for that are due, and what is younger holds.

use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::ledger::{Act, Action, Attempt, Filter, Hastened, LeadState, Lifted, Next, OnLock, Settlement};
use leadpost::sandbox::Fault;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::World;
use crate::support::scene::{accept, arrival, attempt, leased, put, settlement};

/// Workers that share a rate limit, too high to matter, have a heartbeat each second.
const OFTEN: [&str; 2] = ["--set", "flow.rate_per_s=10000"];

async fn shown(world: &World) -> Value {
    let shown = world.leadpost(&["hold", "show", "--output", "json"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    shown.json()
}

/// Waits until the hold in the ledger, and that of all workers, are like this.
async fn until_held(world: &World, what: &str, workers: usize, is_so: impl Fn(f64) -> bool) {
    world
        .until(what, async || {
            let hold = world.ledger.held().await.unwrap().hold.map_or(0.0, |hold| hold.for_s);
            let said = world.ledger.workers().await.unwrap();
            let of = |status: &Value| status["hold_s"].as_f64().unwrap_or(0.0);
            is_so(hold) && said.iter().filter(|worker| is_so(of(&worker.status))).count() == workers
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_is_lifted_ends_in_all_workers_that_run_and_what_waited_for_it_is_posted() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::retry_after(429, 3600)]);
    let workers = [world.worker(&[]).await, world.worker(&[]).await];
    let told = world.publish("ann").await;
    world.until_attempts(told, 1).await;
    until_held(&world, "both workers hold back", 2, |hold_s| hold_s > 3500.0).await;
    let waiting = world.publish("bob").await;

    let show = shown(&world).await;
    assert!(show["hold"]["for_s"].as_f64() > Some(3500.0) && show["waiting"] == 1, "{show}");
    assert!(show["hold"]["until"].is_string() && show["lifted_last"].is_null(), "{show}");
    let status = world.leadpost(&["status"]).await;
    assert!(status.stdout.contains("leadpost hold lift ends it"), "{status:?}");
    let asked = world.leadpost(&["hold", "lift"]).await;
    assert!(
        asked.code == Some(1) && asked.stderr.contains("--yes") && asked.stderr.contains("1 lead waits"),
        "{asked:?}"
    );
    until_held(&world, "nothing was done", 2, |hold_s| hold_s > 3500.0).await;
    assert_eq!(world.sandbox.journal().posts().len(), 1);

    let lift = ["hold", "lift", "--yes", "--reason", "the API is back", "--output", "json"];
    let lifted = world.leadpost_with(&lift, &[("LEADPOST_OPERATOR", "carla")], b"").await;
    assert_eq!(lifted.code, Some(0), "{lifted:?}");
    let report = lifted.json();
    assert_eq!((&report["lifted"], &report["leads"]), (&true.into(), &1.into()), "{report}");
    assert_eq!((&report["workers_know"], &report["workers_silent"]), (&2.into(), &0.into()), "{report}");
    assert_eq!(report["held_until"], show["hold"]["until"]);
    world.until_delivered(&[told, waiting]).await;
    assert_eq!(world.story(told).await, ["retry 429", "delivered 201"]);
    assert_eq!(world.story(waiting).await, ["delivered 201"]);

    let show = shown(&world).await;
    assert_eq!((&show["hold"], &show["waiting"]), (&Value::Null, &0.into()), "{show}");
    let last = &show["lifted_last"];
    assert_eq!((&last["by"], &last["reason"]), (&"carla".into(), &"the API is back".into()), "{show}");
    let words = world.leadpost(&["hold", "show"]).await.stdout;
    assert!(words.contains("no hold") && words.contains("by carla") && words.contains("the API is back"), "{words}");
    let again = world.leadpost(&["hold", "lift", "--yes"]).await;
    assert!(again.code == Some(0) && again.stderr.contains("there is no hold"), "{again:?}");
    assert_eq!(world.number("select count(*) from decisions").await, 1);
    for worker in workers {
        assert!(worker.stop().await.contains("was lifted"));
    }
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_asks_again_after_a_lift_is_left_alone_again_by_all_workers() {
    for (second, is_second) in [(7200, 7000.0..7201.0), (600, 500.0..601.0)] {
        let world = World::new().await;
        world.sandbox.faults().script([Fault::retry_after(429, 3600), Fault::retry_after(429, second)]);
        let workers = [world.worker(&OFTEN).await, world.worker(&OFTEN).await];
        let told = world.publish("ann").await;
        until_held(&world, "both workers hold back", 2, |hold_s| hold_s > 3500.0).await;
        assert_eq!(world.leadpost(&["hold", "lift", "--yes"]).await.code, Some(0));
        world.until_attempts(told, 2).await;
        until_held(&world, "both workers hold back again", 2, |hold_s| is_second.contains(&hold_s)).await;
        // Not a heartbeat later either.
        let now = OffsetDateTime::now_utc();
        world
            .until("each worker has looked again", async || {
                let workers = world.ledger.workers().await.unwrap();
                let since = (OffsetDateTime::now_utc() - now).as_seconds_f64();
                since > 1.5 && workers.iter().all(|worker| worker.seen_s < since - 1.0)
            })
            .await;
        until_held(&world, "they still do", 2, |hold_s| is_second.contains(&hold_s)).await;
        assert_eq!(world.story(told).await, ["retry 429", "retry 429"]);
        for worker in workers {
            worker.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_is_younger_than_the_one_that_was_shown_is_not_lifted() {
    let world = World::new().await;
    let beat = async |hold: u64| {
        let (hold, within) = (Some(Duration::from_secs(hold)), Duration::from_secs(60));
        world.ledger.heartbeat(json!({}), hold, within).await.unwrap()
    };
    beat(3600).await;
    let old = world.ledger.held().await.unwrap().hold.unwrap();
    beat(7200).await;
    let young = world.ledger.held().await.unwrap().hold.unwrap();
    for shown in [None, Some(old.until)] {
        let Lifted::Younger(found) = world.ledger.lift(shown, "carla", None).await.unwrap() else {
            panic!("{shown:?}")
        };
        assert_eq!(found.until, young.until);
    }
    assert_eq!(world.number("select count(*) from decisions").await, 0);
    assert!(beat(1).await.hold > Some(Duration::from_secs(7000)));
    assert!(matches!(world.ledger.lift(Some(young.until), "carla", None).await.unwrap(), Lifted::Done(_)));
    assert_eq!(beat(0).await.hold, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_younger_hold_is_not_made_due_by_the_lift_of_an_older_one() {
    let world = World::new().await;
    let (hour, minutes) = (Duration::from_secs(3600), Duration::from_secs(600));
    world.ledger.heartbeat(json!({}), Some(hour), Duration::from_secs(60)).await.unwrap();
    let hold = world.ledger.held().await.unwrap().hold.unwrap();
    // How a lead came to wait: answered so many seconds ago, or handed back; and until when.
    let wait = async |answered_ago: Option<Duration>, after: Duration| {
        let id = LeadId(Uuid::new_v4());
        let fates = accept(&world.ledger, &[arrival(id, &World::lead("ann"))], Uuid::new_v4()).await;
        let ago = answered_ago.unwrap_or_default();
        let answer = Attempt {
            started_at: tokio::time::Instant::now() - ago,
            retry_after: Some(after + ago),
            ..attempt("retry", Some(429))
        };
        let code = Some(if answered_ago.is_some() { "put" } else { "held" }.to_owned());
        let settlement = Settlement {
            attempts: answered_ago.map(|_| answer).into_iter().collect(),
            next: Next::Again { after, code, reason: Some("put there by a test".to_owned()) },
            ..settlement(&leased(&fates)[0], LeadState::Pending)
        };
        world.ledger.settle([settlement].into(), false, OnLock::Wait).await.unwrap();
        id
    };
    let mut due = vec![wait(None, minutes).await, wait(Some(Duration::ZERO), hour).await];
    let Lifted::Done(lift) = world.ledger.lift(Some(hold.until), "carla", None).await.unwrap() else { panic!() };
    // By a worker that does not know yet; and settled late.
    due.extend([wait(None, hour).await, wait(Some(Duration::from_secs(30)), hour).await]);
    let since =
        [wait(None, minutes).await, wait(Some(Duration::ZERO), minutes).await, wait(Some(Duration::ZERO), hour).await];
    assert_eq!(world.ledger.held().await.unwrap().waiting, 7);
    assert_eq!(world.ledger.hasten(lift, None).await.unwrap(), Hastened { leads: 4, after: None });
    for id in due {
        assert!(world.due_in(id).await.is_zero(), "{id} waits");
    }
    for id in since {
        assert!(world.due_in(id).await > Duration::from_secs(500), "{id} is due");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_leads_that_wait_for_the_end_of_a_hold_become_due() {
    let mut world = World::new().await;
    world.settings.retry.initial_ms = 100_000;
    world.settings.retry.jitter = 0.0;
    let running = world.start().await;
    world.sandbox.faults().rule("busy@", None, Fault::status(503));
    // Its schedule has it wait for longer than that.
    world.sandbox.faults().rule("scheduled@", None, Fault::retry_after(429, 1));
    world.sandbox.faults().rule("held@", None, Fault::retry_after(429, 3600));
    let mut others = Vec::new();
    for name in ["busy", "scheduled"] {
        let id = world.publish(name).await;
        world.until_attempts(id, 1).await;
        others.push(id);
    }
    let told = world.publish("held").await;
    world.until_attempts(told, 1).await;
    running.stop().await;
    // Ended by such an answer, and requeued with a pace.
    let first = world.put("first", LeadState::Exhausted).await;
    let paced = world.put("paced", LeadState::Exhausted).await;
    world.execute(&format!("update other_attempts set retry_after_ms = 3600000 where lead_id = '{paced}'")).await;
    let filter = Filter::of_ids(&[first, paced]);
    let action = Action::Requeue { include_delivered: false, rate_per_s: Some(0.01) };
    let act = Act { action, filter, by: "carla".to_owned(), reason: None, as_of: None };
    assert_eq!(world.ledger.act(act, |_| ()).await.unwrap().leads, 2);
    others.push(paced);
    let handed_back = world.put("eve", LeadState::Pending).await;
    world.execute(&format!("update leads set code = 'held' where id = '{handed_back}'")).await;
    let mut before = Vec::new();
    for id in &others {
        before.push(world.due_in(*id).await);
        assert!(before.last() > Some(&Duration::from_secs(50)), "{id} waits");
    }
    // Of another destination.
    let (settings, _broker) = world.neighbour("other").await;
    let other = leadpost::ledger::Ledger::new(&settings, "other").unwrap();
    let theirs = LeadId(Uuid::new_v4());
    put(&other, theirs, &World::lead("theirs"), LeadState::Pending).await;
    world.execute(&format!("update leads set code = 'held' where id = '{theirs}'")).await;
    other.heartbeat(json!({}), Some(Duration::from_secs(3600)), Duration::from_secs(60)).await.unwrap();
    other.farewell().await.unwrap();

    let lifted = world.leadpost(&["hold", "lift", "--yes"]).await;
    assert_eq!(lifted.code, Some(0), "{lifted:?}");
    assert!(
        lifted.stderr.contains("2 leads that waited") && lifted.stderr.contains("no worker is alive"),
        "{lifted:?}"
    );
    for id in [told, handed_back] {
        assert!(world.due_in(id).await.is_zero(), "{id} is due");
    }
    for (id, before) in others.iter().zip(before) {
        assert!(world.due_in(*id).await + Duration::from_secs(20) > before, "{id} waits still");
    }
    assert!(world.due_in(theirs).await > Duration::from_secs(3000) && other.held().await.unwrap().hold.is_some());
    assert_eq!(world.number("select affected from decisions").await, 2);
}
