//! `leadpost check`: a set-up that works, and each thing that is wrong by itself, named with its fix.

mod api;
mod postgres;
mod rabbitmq;

use std::time::{Duration, Instant};

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::World;

/// A report, and the exit code that came with it.
struct Report {
    code: Option<i32>,
    checks: Vec<Value>,
    said: String,
}

impl Report {
    async fn of(world: &World, environment: &[(&str, &str)]) -> Self {
        Self::with(world, &[], environment).await
    }

    async fn with(world: &World, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let arguments = [&["check", "--output", "json"], arguments].concat();
        let done = world.leadpost_with(&arguments, environment, b"").await;
        let json = done.json();
        let checks = json["checks"].as_array().unwrap().clone();
        assert_eq!(json["ok"] == true, checks.iter().all(|check| check["status"] != "failed"), "{json}");
        for check in &checks {
            let needs_fix = ["failed", "warning"].contains(&check["status"].as_str().unwrap());
            assert_eq!(needs_fix, check["fix"].is_string(), "{check}");
            assert_ne!(check["found"], "", "{check}");
        }
        Self { code: done.code, checks, said: done.stdout + &done.stderr }
    }

    fn get(&self, id: &str) -> &Value {
        self.checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("{id} is not in {}", self.said))
    }

    fn status(&self, id: &str) -> &str {
        self.get(id)["status"].as_str().unwrap()
    }

    /// Those that are neither right nor left out.
    fn troubles(&self) -> Vec<&str> {
        let is_trouble = |check: &&Value| check["status"] == "failed" || check["status"] == "warning";
        self.checks.iter().filter(is_trouble).map(|check| check["id"].as_str().unwrap()).collect()
    }

    /// This one failed, or is a warning, and nothing else is; it says these, and how to mend it.
    fn only(&self, id: &str, status: &str, found: &str, fix: &str) {
        assert_eq!(self.troubles(), [id], "{}", self.said);
        self.says(id, status, found, fix);
    }

    fn says(&self, id: &str, status: &str, found: &str, fix: &str) {
        let check = self.get(id);
        assert_eq!(check["status"], status, "{check}");
        assert!(check["found"].as_str().unwrap().contains(found), "{found:?} is not in {check}");
        assert!(check["fix"].as_str().unwrap().contains(fix), "{fix:?} is not in {check}");
    }

    fn skipped(&self, id: &str, because: &str) {
        let check = self.get(id);
        assert_eq!((&check["status"], &check["because"]), (&"skipped".into(), &because.into()), "{check}");
    }
}

/// A world whose queue is the recommended one.
async fn recommended() -> Recommended {
    let world = World::new().await;
    world.broker.delete().await;
    let done = world.leadpost(&["topology", "declare"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    Recommended(world)
}

/// It takes its dead letters with it.
struct Recommended(World);

impl std::ops::Deref for Recommended {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl std::ops::DerefMut for Recommended {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.0
    }
}

impl Recommended {
    fn dead_letters(&self) -> String {
        format!("{}.dead-letter", self.broker.queue)
    }

    async fn clear(&self) {
        let name = self.dead_letters();
        drop(self.broker.channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await);
        drop(self.broker.channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await);
    }

    /// Makes the queue anew, in this form.
    async fn queue(&self, durable: bool, arguments: &[(&str, AMQPValue)]) {
        self.broker.delete().await;
        let pairs = arguments.iter().map(|(name, value)| ((*name).into(), value.clone()));
        let arguments: FieldTable = pairs.collect::<std::collections::BTreeMap<_, _>>().into();
        let options = QueueDeclareOptions { durable, ..QueueDeclareOptions::default() };
        self.broker.channel.queue_declare(self.broker.queue.as_str().into(), options, arguments).await.unwrap();
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A port at which nobody is.
async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The URL with another user, password or path.
fn changed(url: &str, change: impl FnOnce(&mut url::Url)) -> String {
    let mut url = url::Url::parse(url).unwrap();
    change(&mut url);
    url.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_as_recommended_is_fine_and_looking_at_it_changes_nothing() {
    let world = recommended().await;
    let id = world.publish("ann").await;
    let report = Report::of(&world, &[]).await;
    assert_eq!(report.code, Some(0), "{}", report.said);
    assert_eq!(report.troubles(), Vec::<&str>::new(), "{}", report.said);
    assert_eq!(report.checks.len(), 25, "{}", report.said);
    assert!(report.checks.iter().all(|check| check["status"] == "ok"), "{}", report.said);
    for (id, found) in [
        ("rabbitmq.queue", "1 message ready"),
        ("rabbitmq.queue_type", "quorum"),
        ("rabbitmq.delivery_limit", "20 deliveries"),
        ("rabbitmq.dead_letters", &world.dead_letters()),
        ("postgres.rehearsal", "taken back"),
        ("token", "got one"),
        ("api.reach", "http://127.0.0.1:"),
    ] {
        assert!(report.get(id)["found"].as_str().unwrap().contains(found), "{found:?} is not in {}", report.get(id));
    }

    let journal = world.sandbox.journal();
    assert_eq!((journal.counts().posts, journal.tokens_issued()), (0, 1), "no lead was posted, and one token fetched");
    assert_eq!(world.broker.depth().await, 1, "the message is where it was");
    for table in ["leads", "attempts", "aside", "replays", "workers", "tallies"] {
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}")))
            .fetch_one(&world.database.pool)
            .await
            .unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    // Had it been handed out, it would come as one that was delivered before.
    let message = world.broker.channel.basic_get(world.broker.queue.as_str().into(), Default::default()).await.unwrap();
    let delivery = message.expect("it is there").delivery;
    assert!(!delivery.redelivered, "{id} was handed out");
    drop(delivery);

    let shown = world.leadpost(&["check"]).await;
    assert!(
        shown.code == Some(0) && shown.stderr.contains("check: 25 ok, 0 warning, 0 failed, 0 skipped"),
        "{shown:?}"
    );
    world.clear().await;
}

// --- All of it

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_that_say_nothing_hide_nothing_of_the_others_and_it_ends_in_time() {
    let world = recommended().await;
    // It takes connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let (amqp, postgres) = (format!("amqp://{at}"), format!("postgres://x@{at}/x"));
    let (token, api) = (format!("http://{at}/token"), format!("http://{at}/leads"));
    let names = ["LEADPOST__DESTINATION__AUTH__TOKEN_URL", "LEADPOST__DESTINATION__REQUEST__URL"];
    let began = Instant::now();
    let all = [("AMQP_URL", amqp.as_str()), ("DATABASE_URL", &postgres), (names[0], &token), (names[1], &api)];
    let report = Report::of(&world, &all).await;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(report.troubles(), ["rabbitmq.reach", "postgres.reach", "token", "api.reach"], "{}", report.said);
    assert_eq!((report.code, report.checks.len()), (Some(69), 25), "{}", report.said);

    let report = Report::of(&world, &[("AMQP_URL", &amqp), (names[1], &api)]).await;
    assert_eq!(report.troubles(), ["rabbitmq.reach", "api.reach"], "{}", report.said);
    assert_eq!((report.status("postgres.rehearsal"), report.status("token")), ("ok", "ok"));
    let wrong = ("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "x");
    let report = Report::of(&world, &[("AMQP_URL", &amqp), wrong]).await;
    assert_eq!(report.code, Some(1), "not only that a neighbour is away: {}", report.said);
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_used_is_reported_like_the_rest() {
    let world = recommended().await;
    let report = Report::with(&world, &["--set", "flow.concurency=3", "--set", "amqp.queu=x"], &[]).await;
    assert_eq!(report.code, Some(78));
    report.only("config", "failed", "did you mean flow.concurrency?", "change what each line says");
    report.says("config", "failed", "did you mean amqp.queue?", "");
    assert_eq!(report.checks.iter().filter(|check| check["because"] == "config").count(), 24, "{}", report.said);

    // It can be read, and what it names can be looked at.
    let unset = [("LEADPOST__DESTINATION__AUTH__CLIENT_ID", "")];
    let report = Report::with(&world, &["--set", "flow.lease_ms=20000", "--set", "retry.jitter=2"], &unset).await;
    assert_eq!(report.code, Some(78));
    report.only("config", "failed", "flow.lease_ms", "");
    for problem in ["retry.jitter", "LEADPOST__DESTINATION__AUTH__CLIENT_ID"] {
        report.says("config", "failed", problem, "");
    }
    for (id, status) in [("rabbitmq.consume", "ok"), ("postgres.rehearsal", "ok"), ("token", "skipped")] {
        assert_eq!(report.status(id), status, "{id}: {}", report.said);
    }

    let report = Report::of(&world, &[("AMQP_URL", ""), ("DATABASE_URL", "")]).await;
    report.skipped("rabbitmq.reach", "config");
    report.skipped("postgres.tables", "config");
    assert_eq!((report.code, report.status("api.reach")), (Some(78), "ok"));
    world.clear().await;
}
