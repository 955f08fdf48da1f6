//! Messages whose properties no worker should choke on: headers of every type, size and depth, and ids that are no text.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString};
use leadpost::lead::{LeadId, identify};
use leadpost::ledger::LeadState;
use uuid::Uuid;

use crate::poison::{all_at_once, among_neighbours, are_unharmed, ends_well, world_with_one_batch};
use crate::support::{Message, World};

/// A value of each type that AMQP 0-9-1 has, and some that are many. RabbitMQ itself refuses a float that is not a number.
fn values() -> Vec<AMQPValue> {
    let mut deep = AMQPValue::Void;
    for n in 0..20 {
        deep = if n % 2 == 0 {
            AMQPValue::FieldArray(FieldArray::from(vec![deep]))
        } else {
            let mut table = FieldTable::default();
            table.insert("zyxq".into(), deep);
            AMQPValue::FieldTable(table)
        };
    }
    let text = |bytes: Vec<u8>| AMQPValue::LongString(LongString::from(bytes));
    vec![
        AMQPValue::Boolean(false),
        AMQPValue::ShortShortInt(-1),
        AMQPValue::ShortShortUInt(255),
        AMQPValue::ShortInt(i16::MIN),
        AMQPValue::ShortUInt(u16::MAX),
        AMQPValue::LongInt(i32::MIN),
        AMQPValue::LongUInt(u32::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::LongLongInt(i64::MAX),
        AMQPValue::Float(f32::MAX),
        AMQPValue::Double(f64::MIN),
        AMQPValue::DecimalValue(DecimalValue { scale: 255, value: u32::MAX }),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::Void,
        AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void; 500])),
        AMQPValue::FieldTable(FieldTable::default()),
        AMQPValue::ByteArray(ByteArray::from(b"zyxq\xff\0".to_vec())),
        text(Vec::new()),
        text(b"zyxq\xff\xfe\r\n\0".to_vec()),
        text("zyxq".repeat(25_600).into_bytes()),
        text(b"-1".to_vec()),
        deep,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_every_type_and_size_do_a_lead_no_harm_and_none_to_its_neighbours() {
    let world = world_with_one_batch().await;
    let (mut good, mut odd) = (Vec::new(), Vec::new());
    let mut tables = Vec::new();
    for value in values() {
        for name in ["x-delivery-count", "x-leadpost-replay", "x-death", "zyxq\u{1f600} header"] {
            let mut table = FieldTable::default();
            table.insert(name.into(), value.clone());
            tables.push(table);
        }
    }
    let mut many = FieldTable::default();
    for n in 0..5_000 {
        many.insert(format!("zyxq{n}").into(), AMQPValue::LongInt(n));
    }
    tables.push(many);
    for (n, table) in tables.into_iter().enumerate() {
        let id = LeadId(Uuid::new_v4());
        let body = World::lead(&format!("zyxq{n}"));
        let properties = BasicProperties::default()
            .with_message_id(id.to_string().into())
            .with_headers(table)
            .with_content_type("text/zyxq; \u{1f600}".into())
            .with_content_encoding("gzip".into())
            .with_type("zyxq\r\n".into())
            .with_app_id("\0".into())
            .with_correlation_id("zyxq".repeat(63).into())
            .with_priority(255)
            .with_timestamp(u64::MAX)
            .with_delivery_mode(1);
        world.broker.publish_with(body.as_bytes(), properties).await;
        odd.push((id, body));
        if n % 8 == 0 {
            good.push(world.publish(&format!("good{n}")).await);
        }
    }
    let worker = world.worker(&all_at_once()).await;
    for (id, body) in &odd {
        world.until_state(*id, LeadState::Delivered).await;
        assert_eq!(world.story(*id).await, ["delivered 201"]);
        assert_eq!(world.posts(*id), 1);
        assert_eq!(world.ledger.body(*id).await.unwrap().unwrap(), body.as_bytes());
    }
    are_unharmed(&world, &good).await;
    assert_eq!(world.number("select max(received)::bigint from leads").await, 1, "none came twice");
    ends_well(world, worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_stored_as_it_is_is_invalid_with_its_body_kept_and_its_neighbours_are_delivered() {
    let world = world_with_one_batch().await;
    // What the ledger refuses stands for whatever a later Postgres may refuse.
    world.execute("alter table leads add constraint refuses check (message_id not like '%zyxq%')").await;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for n in 0..3 {
        let (message_id, body) = (format!("zyxq-{n}"), World::lead(&format!("zyxq{n}")).into_bytes());
        bad.push((identify(&world.broker.queue, Some(&message_id), &body), body.clone()));
        let message = Message { message_id: Some(message_id), ..Message::raw(&body) };
        among_neighbours(&world, &mut good, async || world.broker.publish(message).await).await;
    }
    let worker = world.worker(&all_at_once()).await;
    for (id, body) in bad {
        let lead = world.until_state(id, LeadState::Invalid).await;
        let [violation] = &lead.violations[..] else { panic!("{:?}", lead.violations) };
        assert_eq!(violation.code.as_str(), "unstorable");
        assert!(violation.message.contains("could not store the message with its properties; its body is kept"));
        assert!(world.ledger.body(id).await.unwrap().unwrap() == body, "not kept byte for byte");
        assert_eq!((lead.message_id, world.posts(id)), (None, 0));
    }
    are_unharmed(&world, &good).await;
    ends_well(world, worker).await;
}

/// Whether a header of this value asks for a replay, which only `true` does, however a client library writes it.
fn replays() -> Vec<(AMQPValue, bool)> {
    let text = |text: &str| AMQPValue::LongString(LongString::from(text.as_bytes().to_vec()));
    let mut table = FieldTable::default();
    table.insert("value".into(), AMQPValue::Boolean(true));
    vec![
        (AMQPValue::Boolean(true), true),
        (text("true"), true),
        (text("TRUE"), true),
        (AMQPValue::LongLongInt(1), true),
        (AMQPValue::LongInt(1), true),
        (AMQPValue::Boolean(false), false),
        (text("false"), false),
        (text("yes"), false),
        (text("true\0"), false),
        (text(""), false),
        (AMQPValue::LongLongInt(-1), false),
        (AMQPValue::LongLongInt(2), false),
        (AMQPValue::Double(1.0), false),
        (AMQPValue::Timestamp(1), false),
        (AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Boolean(true)])), false),
        (AMQPValue::FieldTable(table), false),
        (AMQPValue::ByteArray(ByteArray::from(b"true".to_vec())), false),
        (AMQPValue::Void, false),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_held_is_replayed_by_a_header_that_says_true_and_by_nothing_else() {
    let world = World::new().await;
    let mut leads = Vec::new();
    for (n, (value, asks)) in replays().into_iter().enumerate() {
        let id = world.put(&format!("held{n}"), LeadState::Cancelled).await;
        let mut table = FieldTable::default();
        table.insert("x-leadpost-replay".into(), value.clone());
        let properties = BasicProperties::default().with_message_id(id.to_string().into()).with_headers(table);
        world.broker.publish_with(World::lead(&format!("held{n}")).as_bytes(), properties).await;
        leads.push((id, value, asks));
    }
    let running = world.start().await;
    world.until_received(2 * i64::try_from(leads.len()).unwrap()).await;
    for (id, value, asks) in leads {
        let state = if asks { LeadState::Delivered } else { LeadState::Cancelled };
        world.until_state(id, state).await;
        assert_eq!(world.posts(id), usize::from(asks), "{value:?}");
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_id_is_no_text_ends_among_the_dead_letters_byte_for_byte_and_no_neighbour_with_it() {
    let world = World::new().await;
    let dead = world.broker.bury_dead_letters(3).await;
    let mut good = Vec::new();
    let id: Vec<u8> = (1..=255).collect();
    let body = [World::lead("zyxq").as_bytes(), b"\xff\0"].concat();
    for _ in 0..5 {
        good.push(world.publish(&format!("first{}", good.len())).await);
    }
    among_neighbours(&world, &mut good, async || {
        tokio::task::block_in_place(|| world.broker.publish_raw(&id, None, &body));
    })
    .await;
    let worker = world.worker(&all_at_once()).await;
    are_unharmed(&world, &good).await;
    let mut buried = Vec::new();
    world
        .until("it is among the dead letters", async || {
            buried.extend(tokio::task::block_in_place(|| world.broker.get_raw(&dead)));
            !buried.is_empty()
        })
        .await;
    assert!(buried == [body], "not kept byte for byte");
    assert_eq!(world.broker.depth_of(&dead).await, 0, "a neighbour is among the dead letters");
    assert_eq!(world.number("select count(*) from leads").await, i64::try_from(good.len()).unwrap());
    assert!(worker.said().contains("handed out a message that cannot be read"), "{}", worker.said());
    ends_well(world, worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_nested_as_deep_as_a_frame_allows_do_not_end_the_worker() {
    const DEPTH: usize = 24_000;
    let world = World::new().await;
    world.broker.limit_deliveries(3).await;
    let mut good = Vec::new();
    let id = LeadId(Uuid::new_v4());
    let body = World::lead("zyxq");
    // An array in an array in an array: a byte for the type, and four for the length.
    let arrays =
        (0..DEPTH).flat_map(|n| [&b"A"[..], &u32::try_from(5 * (DEPTH - 1 - n)).unwrap().to_be_bytes()].concat());
    let table = [&b"\x04zyxq"[..], &arrays.collect::<Vec<u8>>()].concat();
    among_neighbours(&world, &mut good, async || {
        let id = id.to_string();
        tokio::task::block_in_place(|| world.broker.publish_raw(id.as_bytes(), Some(&table), body.as_bytes()));
    })
    .await;
    let worker = world.worker(&all_at_once()).await;
    are_unharmed(&world, &good).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.posts(id), 1);
    ends_well(world, worker).await;
}
