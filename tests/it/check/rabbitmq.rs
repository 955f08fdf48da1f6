//! RabbitMQ: who gets in, what a queue lacks, rights and alarms.

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use uuid::Uuid;

use super::{Recommended, Report, changed, nowhere, recommended, text};
use crate::support::World;
use crate::support::servers::Servers;

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
