//! `leadpost check`: a set-up that works, and each thing that is wrong by itself, named with its fix.

use std::time::{Duration, Instant, SystemTime};

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use leadpost::sandbox::Fault;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::support::World;
use crate::support::servers::Servers;

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

// --- RabbitMQ

#[tokio::test(flavor = "multi_thread")]
async fn a_rabbitmq_that_does_not_let_us_in_is_told_apart_by_why() {
    let world = recommended().await;
    let url = world.broker.url.clone();
    let password = changed(&url, |url| {
        url.set_username("guest").unwrap();
        url.set_password(Some("hunter2")).unwrap();
    });
    let report = Report::of(&world, &[("AMQP_URL", &password)]).await;
    report.only("rabbitmq.login", "failed", "ACCESS_REFUSED", "check user and password in amqp.url");
    report.skipped("rabbitmq.queue", "rabbitmq.login");
    assert_eq!((report.code, report.status("rabbitmq.reach")), (Some(1), "ok"));
    assert!(!report.said.contains("hunter2"), "{}", report.said);

    let vhost = changed(&url, |url| url.set_path("no-such-vhost"));
    let report = Report::of(&world, &[("AMQP_URL", &vhost)]).await;
    report.only("rabbitmq.vhost", "failed", "no-such-vhost", "rabbitmqctl add_vhost no-such-vhost");
    report.skipped("rabbitmq.consume", "rabbitmq.vhost");
    assert_eq!((report.code, report.status("rabbitmq.login")), (Some(1), "ok"));

    let away = format!("amqp://{}", nowhere().await);
    let report = Report::of(&world, &[("AMQP_URL", &away)]).await;
    report.only("rabbitmq.reach", "failed", "refused", "start RabbitMQ");
    assert_eq!(report.code, Some(69), "it is the only trouble: {}", report.said);

    // What speaks HTTP there says so before anything else.
    let http = changed(&world.sandbox.base_url(), |url| url.set_path(""));
    let report = Report::of(&world, &[("AMQP_URL", &http.replace("http://", "amqp://"))]).await;
    report.only("rabbitmq.reach", "failed", "does not speak AMQP", "check host, port and scheme");
    assert_eq!(report.code, Some(1));
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_missing_is_named_and_not_made() {
    let world = recommended().await;
    world.broker.delete().await;
    let report = Report::of(&world, &[]).await;
    report.only("rabbitmq.queue", "failed", &world.broker.queue, "leadpost topology declare");
    report.skipped("rabbitmq.queue_type", "rabbitmq.queue");
    assert_eq!((report.code, report.status("rabbitmq.publish")), (Some(1), "ok"));
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = world.broker.connection.create_channel().await.unwrap();
    let there = channel.queue_declare(world.broker.queue.as_str().into(), passive, FieldTable::default()).await;
    assert!(there.is_err(), "the check has made the queue");
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_queue_lacks_is_said_argument_by_argument() {
    let world = recommended().await;
    let dead = world.dead_letters();
    let quorum = ("x-queue-type", text("quorum"));
    let limit = ("x-delivery-limit", AMQPValue::LongLongInt(7));
    let exchange = |name: &str| ("x-dead-letter-exchange", text(name));
    let safe = [("x-dead-letter-strategy", text("at-least-once")), ("x-overflow", text("reject-publish"))];
    let classic = "one node alone keeps it";
    type Case<'a> = (bool, Vec<(&'a str, AMQPValue)>, &'a [(&'a str, &'a str, &'a str)]);
    let cases: [Case<'_>; 7] = [
        (true, vec![exchange(&dead)], &[("rabbitmq.queue_type", "warning", classic)]),
        (
            true,
            vec![("x-queue-type", text("classic")), ("x-max-length", AMQPValue::LongLongInt(9)), exchange(&dead)],
            &[("rabbitmq.queue_type", "warning", classic)],
        ),
        (
            false,
            vec![],
            &[
                ("rabbitmq.queue_type", "warning", "not durable"),
                ("rabbitmq.dead_letters", "warning", "vanishes without a trace"),
            ],
        ),
        (
            true,
            vec![quorum.clone()],
            &[
                ("rabbitmq.delivery_limit", "warning", "none in the queue's arguments"),
                ("rabbitmq.dead_letters", "warning", "vanishes without a trace"),
            ],
        ),
        (
            true,
            vec![quorum.clone(), limit.clone(), exchange(&dead)],
            &[("rabbitmq.dead_letters", "warning", "without confirms")],
        ),
        (
            true,
            [vec![quorum.clone(), limit.clone(), exchange("no-such-exchange")], safe.to_vec()].concat(),
            &[("rabbitmq.dead_letters", "failed", "\"no-such-exchange\", which is not there")],
        ),
        (
            true,
            vec![("x-queue-type", text("stream"))],
            &[
                ("rabbitmq.queue_type", "failed", "a stream"),
                ("rabbitmq.dead_letters", "warning", "vanishes without a trace"),
            ],
        ),
    ];
    for (durable, arguments, troubles) in cases {
        world.queue(durable, &arguments).await;
        let report = Report::of(&world, &[]).await;
        let ids: Vec<_> = troubles.iter().map(|(id, ..)| *id).collect();
        // What is not a quorum queue on an old RabbitMQ may lack more than is asked here.
        let found: Vec<_> = report.troubles();
        assert_eq!(found, ids, "{arguments:?}: {}", report.said);
        for (id, status, found) in troubles {
            report.says(id, status, found, "");
        }
        let failed = troubles.iter().any(|(_, status, _)| *status == "failed");
        assert_eq!(report.code, Some(i32::from(failed)), "{arguments:?}: {}", report.said);
        assert_eq!(report.status("rabbitmq.consume"), "ok", "{arguments:?}: {}", report.said);
    }
    // As it should be, but for another limit: that is the operator's choice.
    world.queue(true, &[vec![quorum, limit, exchange(&dead)], safe.to_vec()].concat()).await;
    let report = Report::of(&world, &[]).await;
    assert_eq!(report.troubles(), Vec::<&str>::new(), "{}", report.said);
    assert!(
        report.get("rabbitmq.delivery_limit")["found"].as_str().unwrap().contains("7 deliveries"),
        "{}",
        report.said
    );
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_leave_no_room_for_an_answer_are_no_trouble_where_all_is_as_recommended() {
    let mut world = World::new().await;
    let short = world.broker.queue.clone();
    world.broker.queue = format!("{short}-{}", "x".repeat(140));
    world.settings.amqp.queue = world.broker.queue.clone();
    let world = Recommended(world);
    assert_eq!(world.leadpost(&["topology", "declare"]).await.code, Some(0));
    let report = Report::of(&world, &[]).await;
    assert_eq!((report.code, report.troubles()), (Some(0), vec![]), "{}", report.said);
    assert_eq!(report.status("rabbitmq.dead_letters"), "ok", "{}", report.said);

    let quorum = ("x-queue-type", text("quorum"));
    world.queue(true, &[quorum, ("x-delivery-limit", AMQPValue::LongLongInt(7))]).await;
    let report = Report::of(&world, &[]).await;
    let kind = report.get("rabbitmq.queue_type");
    assert!(kind["status"] == "skipped" && kind["found"].as_str().unwrap().contains("list_queues"), "{kind}");
    report.skipped("rabbitmq.delivery_limit", "rabbitmq.queue_type");
    world.clear().await;
    drop(world.broker.channel.queue_delete(short.as_str().into(), QueueDeleteOptions::default()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_wait_are_counted() {
    let world = recommended().await;
    let dead = world.dead_letters();
    let publish = world.broker.channel.basic_publish(
        "".into(),
        dead.as_str().into(),
        Default::default(),
        b"{}",
        lapin::BasicProperties::default(),
    );
    publish.await.unwrap().await.unwrap();
    world.until("it is counted", async || world.broker.depth_of(&dead).await == 1).await;
    let report = Report::of(&world, &[]).await;
    report.only("rabbitmq.dead_letters", "warning", "1 messages wait in", "moved back");
    assert_eq!(report.code, Some(0));
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_and_alarms_are_found_without_using_them() {
    let server = Servers::rabbitmq().await;
    let world = Recommended(World::on(server.url(), &crate::support::database_url()).await);
    world.broker.delete().await;
    assert_eq!(world.leadpost(&["topology", "declare"]).await.code, Some(0));
    world.publish("ann").await;
    let user = format!("check-{}", Uuid::new_v4().simple());
    server.ctl(&["add_user", &user, "hunter2"]).await;
    let url = changed(server.url(), |url| {
        url.set_username(&user).unwrap();
        url.set_password(Some("hunter2")).unwrap();
    });
    let as_user = [("AMQP_URL", url.as_str())];

    let report = Report::of(&world, &as_user).await;
    report.only("rabbitmq.vhost", "failed", "refused", "set_permissions");

    server.ctl(&["set_permissions", &user, "", "", ".*"]).await;
    let report = Report::of(&world, &as_user).await;
    report.only("rabbitmq.publish", "warning", "leadpost publish does", "WRITE matches amq.default");
    assert_eq!((report.code, report.status("rabbitmq.consume")), (Some(0), "ok"), "{}", report.said);
    let kind = report.get("rabbitmq.queue_type");
    assert!(kind["status"] == "skipped" && kind["found"].as_str().unwrap().contains("list_queues"), "{kind}");
    report.skipped("rabbitmq.dead_letters", "rabbitmq.queue_type");

    server.ctl(&["set_permissions", &user, "", ".*", ""]).await;
    let report = Report::of(&world, &as_user).await;
    report.only("rabbitmq.consume", "failed", "refused", &format!("READ matches {}", world.broker.queue));
    assert_eq!(report.code, Some(1));
    assert!(!report.said.contains("hunter2"), "{}", report.said);

    server.alarm(true).await;
    // It looks at its memory now and then.
    world
        .until("the alarm is raised", async || server.ctl(&["eval", "rabbit_alarm:get_alarms()."]).await.trim() != "[]")
        .await;
    let report = Report::of(&world, &[]).await;
    report.only("rabbitmq.alarms", "failed", "memory", "rabbitmq-diagnostics alarms");
    report.skipped("rabbitmq.publish", "rabbitmq.alarms");
    server.alarm(false).await;
    server.ctl(&["delete_user", &user]).await;
    let report = Report::of(&world, &[]).await;
    assert_eq!(report.troubles(), Vec::<&str>::new(), "{}", report.said);
    world.clear().await;
}

// --- Postgres

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_does_not_let_us_in_is_told_apart_by_why() {
    let world = recommended().await;
    let url = world.database.url.clone();
    let nobody = format!("nobody_{}", Uuid::new_v4().simple());
    let user = changed(&url, |url| {
        url.set_username(&nobody).unwrap();
        url.set_password(Some("hunter2")).unwrap();
    });
    let report = Report::of(&world, &[("DATABASE_URL", &user)]).await;
    report.only("postgres.login", "failed", &nobody, "in postgres.url");
    report.skipped("postgres.tables", "postgres.login");
    assert_eq!((report.code, report.status("postgres.reach")), (Some(1), "ok"));
    assert!(!report.said.contains("hunter2"), "{}", report.said);

    let database = changed(&url, |url| url.set_path("no_such_database"));
    let report = Report::of(&world, &[("DATABASE_URL", &database)]).await;
    report.only("postgres.login", "failed", "no_such_database", "createdb no_such_database");

    let away = format!("postgres://x@{}/x", nowhere().await);
    let report = Report::of(&world, &[("DATABASE_URL", &away)]).await;
    report.only("postgres.reach", "failed", "refused", "start Postgres");
    assert_eq!(report.code, Some(69), "{}", report.said);
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_behind_ahead_or_others_are_told_apart() {
    let world = recommended().await;
    let newest = "(select max(version) from _sqlx_migrations)";
    world.execute(&format!("update _sqlx_migrations set checksum = 'x' where version = {newest}")).await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "other ones than those of this version", "a database of its own");
    world.execute(&format!("delete from _sqlx_migrations where version = {newest}")).await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "1 migrations are missing", "run leadpost migrate");
    report.skipped("postgres.rehearsal", "postgres.tables");
    assert_eq!(report.code, Some(1));
    world
        .execute("insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'x', true, 'x', 0)")
        .await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "a newer leadpost", "upgrade this leadpost");
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_named_with_the_grant_that_gives_it() {
    let world = recommended().await;
    let role = format!("leadpost_check_{}", Uuid::new_v4().simple());
    for sql in [
        format!("create role {role} login password 'few' connection limit 3"),
        format!("grant select, insert, update on all tables in schema public to {role}"),
        format!("grant delete on aside, workers to {role}"),
        format!("revoke insert on workers from {role}"),
        format!("revoke update on destinations from {role}"),
    ] {
        world.execute(&sql).await;
    }
    let url = changed(&world.database.url, |url| {
        url.set_username(&role).unwrap();
        url.set_password(Some("few")).unwrap();
    });
    let as_role = [("DATABASE_URL", url.as_str())];
    let report = Report::of(&world, &as_role).await;
    assert_eq!(report.troubles(), ["postgres.rights", "postgres.connections"], "{}", report.said);
    let grant = format!("grant insert on workers to \"{role}\"; grant update on destinations to \"{role}\";");
    report.says("postgres.rights", "failed", "lacks insert on workers, update on destinations", &grant);
    report.says("postgres.connections", "warning", "limited to 3", "connection limit");
    report.skipped("postgres.rehearsal", "postgres.rights");
    assert_eq!(report.code, Some(1));

    // The fix works as it is printed.
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(&world.database.pool).await.unwrap();
    let report = Report::of(&world, &as_role).await;
    assert_eq!(report.troubles(), ["postgres.connections"], "{}", report.said);
    assert_eq!((report.code, report.status("postgres.rehearsal")), (Some(0), "ok"));

    // With retention a worker deletes.
    let report = Report::with(&world, &["--set", "retention.delivered_days=30"], &as_role).await;
    report.says("postgres.rights", "failed", "lacks delete on leads, delete on attempts", "grant delete on leads");
    world.execute(&format!("drop owned by {role}")).await;
    world.execute(&format!("drop role {role}")).await;
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_written_and_one_that_refuses_a_row_are_found() {
    let world = recommended().await;
    let name = world.database.url.rsplit('/').next().unwrap().to_owned();
    world.execute(&format!("alter database {name} set default_transaction_read_only = on")).await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.writable", "failed", "read-only", "default_transaction_read_only");
    report.skipped("postgres.rehearsal", "postgres.writable");
    assert_eq!(report.code, Some(1));
    let own = sqlx::PgPool::connect(&world.database.url).await.unwrap();
    for sql in [
        "set default_transaction_read_only = off".to_owned(),
        format!("alter database {name} set default_transaction_read_only = off"),
        "create function no() returns trigger language plpgsql as $$ begin raise 'not on my watch'; end $$".to_owned(),
        "create trigger no before insert on leads for each row execute function no()".to_owned(),
    ] {
        let mut session = own.acquire().await.unwrap();
        sqlx::raw_sql("set default_transaction_read_only = off").execute(&mut *session).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *session).await.unwrap();
    }
    own.close().await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.rehearsal", "failed", "not on my watch", "a trigger");
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_tables_is_told_from_one_that_is_behind() {
    let world = recommended().await;
    sqlx::raw_sql("drop schema public cascade; create schema public").execute(&world.database.pool).await.unwrap();
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "there are no tables yet", "run leadpost migrate");
    report.skipped("postgres.rights", "postgres.tables");
    let tables = world.number("select count(*) from pg_tables where schemaname = 'public'").await;
    assert_eq!(tables, 0, "the check has made some");
    let done = world.leadpost(&["migrate"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let report = Report::of(&world, &[]).await;
    assert_eq!(report.troubles(), Vec::<&str>::new(), "{}", report.said);
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_may_forget_what_was_committed_is_a_warning() {
    let server = Servers::postgres().await;
    let world = World::on(&crate::support::amqp_url(), server.url()).await;
    for sql in ["alter system set fsync = off", "alter system set full_page_writes = off", "select pg_reload_conf()"] {
        world.execute(sql).await;
    }
    world
        .until("it is off", async || {
            world.number("select count(*) from pg_settings where name = 'fsync' and setting = 'off'").await == 1
        })
        .await;
    let report = Report::of(&world, &[]).await;
    for sql in ["alter system reset fsync", "alter system reset full_page_writes", "select pg_reload_conf()"] {
        world.execute(sql).await;
    }
    report.says("postgres.durability", "warning", "fsync = off", "alter system set fsync = on");
    report.says("postgres.durability", "warning", "full_page_writes = off", "");
}

// --- Log-in and API

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_and_an_endpoint_that_is_away_are_told_apart() {
    let world = recommended().await;
    let wrong = [("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "hunter2")];
    let report = Report::of(&world, &wrong).await;
    report.only("token", "failed", "the token endpoint refuses us", "check destination.auth");
    assert_eq!((report.code, report.status("api.reach")), (Some(1), "ok"));
    assert!(!report.said.contains("hunter2"), "{}", report.said);

    world.sandbox.faults().script([Fault::status(503).on_token()]);
    let report = Report::of(&world, &[]).await;
    report.only("token", "failed", "503", "see its status page");
    assert_eq!(report.code, Some(1), "it is there, and does not work");

    let away = format!("http://{}/oauth2/token", nowhere().await);
    let report = Report::of(&world, &[("LEADPOST__DESTINATION__AUTH__TOKEN_URL", &away)]).await;
    report.only("token", "failed", "could not connect", "destination.auth.token_url");
    assert_eq!((report.code, report.status("token.clock")), (Some(69), "skipped"));
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_without_a_log_in_is_reached_and_says_so() {
    let mut world = recommended().await;
    world.set(&[("AUTH__KIND", "bearer"), ("AUTH__BEARER_TOKEN", "hunter2")]);
    world.destination.retain(|(name, _)| !name.contains("CLIENT_") && !name.contains("TOKEN_URL"));
    let report = Report::of(&world, &[]).await;
    assert_eq!((report.code, report.troubles()), (Some(0), vec![]), "{}", report.said);
    let token = report.get("token");
    assert!(token["status"] == "skipped" && token["found"].as_str().unwrap().contains("bearer"), "{token}");
    assert_eq!((report.status("token.clock"), report.status("api.reach")), ("skipped", "ok"));
    assert_eq!(world.sandbox.journal().tokens_issued(), 0);
    world.clear().await;
}

/// A port that gives every connection this answer.
async fn answering(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                drop(stream.read(&mut [0; 4096]).await);
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            });
        }
    });
    format!("http://{at}/leads")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_answers_to_a_question_for_nothing_is_weighed() {
    let world = recommended().await;
    let url = "LEADPOST__DESTINATION__REQUEST__URL";
    let away = format!("http://{}/leads", nowhere().await);
    let report = Report::of(&world, &[(url, &away)]).await;
    report.only("api.reach", "failed", "could not connect", "destination.request.url");
    report.skipped("api.clock", "api.reach");
    assert_eq!((report.code, report.status("token")), (Some(69), "ok"));

    let an_hour_ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3600));
    let head = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n");
    let skewed = answering(format!("{}date: {an_hour_ago}\r\n\r\n", head("405 No"))).await;
    let report = Report::of(&world, &[(url, &skewed)]).await;
    report.only("api.clock", "warning", "60 min behind", "NTP");
    assert_eq!((report.code, report.status("api.reach")), (Some(0), "ok"), "any answer shows that somebody is there");

    for (status, found, fix) in
        [("503 Busy", "in trouble", "status page"), ("302 Found", "a redirect", "where it leads")]
    {
        let port = answering(head(status) + "\r\n").await;
        let report = Report::of(&world, &[(url, &port)]).await;
        report.only("api.reach", "warning", found, fix);
        assert_eq!(report.status("api.clock"), "skipped");
    }
    let port = answering(head("501 Not Implemented") + "\r\n").await;
    assert_eq!(
        Report::of(&world, &[(url, &port)]).await.troubles(),
        Vec::<&str>::new(),
        "who does not speak OPTIONS is there"
    );
    let tls = skewed.replace("http://", "https://");
    let report = Report::of(&world, &[(url, &tls)]).await;
    report.only(
        "api.reach",
        "failed",
        "could not connect",
        "does not speak TLS: check scheme and port of destination.request.url",
    );
    assert_eq!(report.code, Some(1));
    assert_eq!(world.sandbox.journal().counts().posts, 0);
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
