//! What a person may ask for: to know what is kept, and to have it erased. And old answers, which may quote persons, go when they are old.

use std::time::Duration;

use leadpost::lead::{Keys, LeadId};
use leadpost::ledger::{Doubts, Edit, Edited, LeadState, OnLock, Subject};
use leadpost::sandbox::{Fault, StatusAnswer};
use uuid::Uuid;

use crate::support::scene::{LEASE, accept, arrival, leased, put, settlement};
use crate::support::{Message, World};

const ADDRESS: &str = "ann@example.com";

/// How many rows of the ledger have this text anywhere.
async fn traces(world: &World, text: &str) -> i64 {
    let of = |table: &str| {
        format!(
            "select count(*) from {table} as t where position('{text}' in lower(t::text)) > 0 \
             or position('{}' in t::text) > 0",
            hex(text)
        )
    };
    let mut traces = 0;
    for table in ["leads", "attempts", "replays", "interventions", "disclosures", "decisions", "aside"] {
        traces += count(world, &of(table)).await;
    }
    traces
}

async fn count(world: &World, sql: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&world.database.pool).await.unwrap()
}

/// As `bytea` shows it.
fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Leads of Ann in every state, with her address wherever it can come to stand, and one of Bob.
async fn leads_of_ann(world: &World) -> (Vec<LeadId>, LeadId) {
    let body = Some(r#"{"message":"ann@example.com is on the list"}"#.to_owned());
    world.sandbox.faults().rule("ann@", None, Fault::answer(StatusAnswer { body, ..StatusAnswer::new(422) }));
    let running = world.start().await;
    let mut ids = vec![world.publish("ann").await];
    world.until_state(ids[0], LeadState::Rejected).await;
    // No address can be read from it, but it is in it.
    ids.push(world.publish_body(r#"{"name":"ann","contact":"Ann@Example.com"}"#).await);
    world.until_state(ids[1], LeadState::Invalid).await;
    let message = Message {
        message_id: Some("crm-ann@example.com".to_owned()),
        ..Message::new(LeadId(Uuid::nil()), &World::lead("ann"))
    };
    let named = leadpost::lead::identify(&world.broker.queue, Some("crm-ann@example.com"), b"");
    world.broker.publish(message).await;
    ids.push(named);
    world.until_state(named, LeadState::Rejected).await;
    running.stop().await;
    for state in LeadState::ALL {
        ids.push(world.put("ann", state).await);
    }
    let bob = world.put("bob", LeadState::Delivered).await;
    (ids, bob)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_personal_is_left_of_an_erased_person_and_the_accounts_still_hold() {
    let world = World::new().await;
    let (ids, bob) = leads_of_ann(&world).await;
    let before = world.tally().await;
    let redact = ["redact", "--older-than", "9d", "--yes", "--reason", "Ann@Example.com asked"];
    assert_eq!(world.leadpost(&redact).await.code, Some(0));
    let dry = world.leadpost(&["erase", "--email", "ANN@example.com", "--dry-run"]).await;
    assert!(dry.stdout.contains(&format!("of {} leads would be erased", ids.len())), "{dry:?}");
    let asked = world.leadpost(&["erase", "--email", ADDRESS]).await;
    assert!(asked.code == Some(1) && asked.stderr.contains("--yes"), "{asked:?}");
    assert!(traces(&world, ADDRESS).await > 0 && world.tally().await == before);

    let receipt = world
        .leadpost(&["erase", "--email", "ANN@example.com", "--yes", "--reason", "request 4711", "--output", "json"])
        .await;
    assert_eq!(receipt.code, Some(0), "{receipt:?}");
    let receipt = receipt.json();
    let erased: i64 = receipt["leads"].as_object().unwrap().values().map(|n| n.as_i64().unwrap()).sum();
    assert_eq!(erased, ids.len() as i64, "{receipt}");
    assert_eq!(traces(&world, ADDRESS).await, 0);
    assert_eq!(world.number("select count(*) from leads where erased_at is not null").await, ids.len() as i64);
    for id in &ids {
        assert_eq!(world.ledger.body(*id).await.unwrap().unwrap(), b"");
        assert!(world.show(*id).await.interventions.iter().any(|done| done.kind == "erase"));
    }
    assert_eq!(world.ledger.body(bob).await.unwrap().unwrap(), World::lead("bob").as_bytes(), "Bob is not touched");
    // The waiting one is cancelled, and all others are what they were.
    let moved = |state: LeadState, n: i64| match state {
        LeadState::Pending => n - 1,
        LeadState::Cancelled => n + 1,
        _ => n,
    };
    let expected: Vec<_> =
        before.iter().map(|(state, n)| (*state, moved(*state, *n))).filter(|(_, n)| *n > 0).collect();
    assert_eq!(world.tally().await, expected);
    assert!(world.ledger.verify().await.unwrap().holds());
    let shown = world.leadpost(&["leads", "show", &ids[0].to_string()]).await;
    assert!(shown.stdout.contains("was erased"), "{shown:?}");
    let again = world.leadpost(&["requeue", "--all", "--yes"]).await;
    assert!(again.stderr.contains("0 leads are"), "nothing erased can be sent: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_an_erased_lead_that_comes_again_is_recognized_and_not_posted() {
    let world = World::new().await;
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    let subject = Subject::of(ADDRESS).unwrap();
    let found = world.ledger.find_person(&subject).await.unwrap();
    let erased = world.ledger.erase(&subject, &found, "carla", None).await.unwrap();
    assert_eq!(erased.count(), 1);
    world.broker.publish(Message::new(id, &World::lead("ann"))).await;
    world.until_received(2).await;
    assert_eq!((world.posts(id), world.tally().await), (1, vec![(LeadState::Delivered, 1)]));
    assert_eq!(world.ledger.body(id).await.unwrap().unwrap(), b"", "and brings nothing back");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_is_being_posted_is_erased_when_that_has_ended() {
    let world = World::new().await;
    let id = world.put("ann", LeadState::Pending).await;
    world.execute("update leads set next_attempt_at = now()").await;
    let claimed = world.ledger.claim(1, (Uuid::new_v4(), LEASE), Vec::new(), Doubts::Included).await.unwrap();
    let subject = Subject::of(ADDRESS).unwrap();
    let found = world.ledger.find_person(&subject).await.unwrap();
    assert_eq!(found.leads, [id]);
    let erased = world.ledger.erase(&subject, &found, "carla", None).await.unwrap();
    assert_eq!((erased.count(), &erased.posting[..]), (0, &[id][..]));

    let world = std::sync::Arc::new(world);
    let erasing = tokio::spawn({
        let world = std::sync::Arc::clone(&world);
        async move { world.leadpost(&["erase", "--email", ADDRESS, "--yes"]).await }
    });
    world
        .until("the command has found it", async || {
            world.number("select count(*) from pg_stat_activity where application_name like 'leadpost erase' and datname = current_database()").await > 0
        })
        .await;
    let settlement = settlement(&claimed[0].leased, LeadState::Delivered);
    world.ledger.settle([settlement].into(), false, OnLock::Wait).await.unwrap();
    let erased = erasing.await.unwrap();
    assert!(erased.code == Some(0) && erased.stdout.contains("personal of 1 leads"), "{erased:?}");
    assert_eq!((world.state(id).await, traces(&world, ADDRESS).await), (Some(LeadState::Delivered), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_everything_of_a_person_and_nothing_of_others_and_is_on_record() {
    let world = World::new().await;
    let (mut ids, _bob) = leads_of_ann(&world).await;
    let export = world.leadpost(&["export", "--email", ADDRESS, "--reason", "request 4711"]).await;
    let leads = export.json()["leads"].clone();
    let mut found: Vec<LeadId> =
        leads.as_array().unwrap().iter().map(|lead| lead["id"].as_str().unwrap().parse().unwrap()).collect();
    found.sort_unstable();
    ids.sort_unstable();
    assert_eq!(found, ids);
    assert!(!export.stdout.contains("bob@"), "{export:?}");
    let rejected =
        leads.as_array().unwrap().iter().find(|lead| !lead["answers"].as_object().unwrap().is_empty()).unwrap();
    assert_eq!(rejected["answers"]["1"].as_str().unwrap(), r#"{"message":"ann@example.com is on the list"}"#);
    assert_eq!(rejected["body"].as_str().unwrap(), World::lead("ann"));
    assert_eq!(world.number("select leads from disclosures where command = 'export'").await, ids.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_answers_are_redacted_by_the_command_and_by_the_worker_and_younger_ones_and_others_are_not() {
    let mut world = World::new().await;
    let (settings, _broker) = world.neighbour("other").await;
    let other = leadpost::ledger::Ledger::new(&settings, "other").unwrap();
    let put_old = async |ledger: &leadpost::ledger::Ledger, days: i64| {
        let id = LeadId(Uuid::new_v4());
        put(ledger, id, &World::lead("ann"), LeadState::Rejected).await;
        let age = format!(
            "update other_attempts set answer = 'ann', started_at = now() - interval '{days} days' where lead_id = '{id}'"
        );
        world.execute(&age).await;
        world.execute(&format!("update leads set reason = 'the API answered 422: ann exists' where id = '{id}'")).await;
        id
    };
    let [theirs, old, young] =
        [put_old(&other, 40).await, put_old(&world.ledger, 35).await, put_old(&world.ledger, 20).await];
    let answer = async |world: &World, id: LeadId| {
        count(world, &format!("select count(answer) from attempts where lead_id = '{id}'")).await
    };
    let redacted = world.leadpost(&["redact", "--older-than", "30d", "--yes", "--output", "json"]).await.json();
    assert_eq!(redacted, serde_json::json!({ "redacted": 1 }));
    let left = [answer(&world, theirs).await, answer(&world, old).await, answer(&world, young).await];
    assert_eq!(left, [1, 0, 1]);
    assert_eq!(world.show(old).await.history[0].http_status, Some(422), "the accounts stay");

    world.settings.retention.answers_days = 10;
    let running = world.start().await;
    world.until("the worker has redacted it", async || answer(&world, young).await == 0).await;
    assert_eq!(answer(&world, theirs).await, 1);
    assert_eq!(world.show(old).await.reason.as_deref(), Some("the API answered 422 (redacted)"));
    assert!(world.ledger.redact(Duration::from_secs(10 * 86_400), None, 500, None).await.unwrap().0 == 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_redacted_answers_or_was_shown_personal_data_is_on_record_and_can_be_asked_for() {
    let world = World::new().await;
    let (settings, _broker) = world.neighbour("other").await;
    let other = leadpost::ledger::Ledger::new(&settings, "other").unwrap();
    let nothing = world.leadpost(&["audit"]).await;
    assert!(nothing.code == Some(0) && nothing.stderr.contains("nothing is on record"), "{nothing:?}");
    for name in ["ann", "bob", "eve"] {
        world.put(name, LeadState::Rejected).await;
    }
    world.execute("update other_attempts set answer = 'x', started_at = now() - interval '40 days'").await;
    // Nobody has decided about any of these.
    assert_eq!(world.leadpost(&["redact", "--older-than", "30d", "--dry-run"]).await.code, Some(0));
    assert_eq!(world.leadpost(&["redact", "--older-than", "30d"]).await.code, Some(1));
    assert_eq!(world.number("select count(*) from decisions").await, 0);

    // Interrupted after the first, the rest is done by another.
    let days = |n: u64| Duration::from_secs(n * 86_400);
    let record = world.ledger.begin_redaction(days(30), "dora", None).await.unwrap();
    assert_eq!(world.ledger.redact(days(30), None, 1, Some(record)).await.unwrap().0, 1);
    let carla = [("LEADPOST_OPERATOR", "carla")];
    let redact = ["redact", "--older-than", "30d", "--yes", "--reason", "policy 7"];
    assert_eq!(world.leadpost_with(&redact, &carla, b"").await.code, Some(0));
    let list = ["leads", "list", "--reveal", "--reason", "ann@example.com called"];
    assert_eq!(world.leadpost_with(&list, &carla, b"").await.code, Some(0));
    assert_eq!(world.leadpost_with(&["export", "--email", ADDRESS], &carla, b"").await.code, Some(0));
    other.begin_redaction(days(1), "somebody else", None).await.unwrap();
    other.disclose("leads list", "somebody else", Some("other"), &[], None).await.unwrap();

    let audit = world.leadpost(&["audit", "--output", "json"]).await.json();
    let audited: Vec<_> = audit.as_array().unwrap().iter().collect();
    let told = |n: usize| {
        let row = audited[n];
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        (text("command"), text("by"), row["affected"].as_i64().unwrap(), text("reason"))
    };
    let row = |command: &str, by: &str, n: i64, reason: &str| (command.to_owned(), by.to_owned(), n, reason.to_owned());
    assert_eq!(audited.len(), 4, "{audit}");
    assert_eq!(told(0), row("export", "carla", 1, "-"));
    assert_eq!(told(1), row("leads list", "carla", 3, "a…@e….com called"));
    assert_eq!(told(2), row("redact", "carla", 2, "policy 7"));
    assert_eq!(told(3), row("redact", "dora", 1, "-"));
    let time = |text: &serde_json::Value| {
        time::OffsetDateTime::parse(text.as_str().unwrap(), &time::format_description::well_known::Rfc3339).unwrap()
    };
    assert!(audited[0]["until"].is_null());
    let (at, until) = (time(&audited[2]["at"]), time(&audited[2]["until"]));
    assert_eq!((at - until).whole_seconds(), 30 * 86_400, "{audit}");
    let words = world.leadpost(&["audit", "--limit", "3"]).await.stdout;
    let lines: Vec<&str> = words.lines().collect();
    assert_eq!(lines.len(), 4, "a head and three: {words}");
    assert!(lines[3].contains("carla") && lines[3].contains("answers of 2 attempts before"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_whose_address_is_like_another_or_is_mentioned_by_others_keep_theirs() {
    let world = World::new().await;
    let joann = world.put("joann", LeadState::Pending).await;
    let mentions = LeadId(Uuid::new_v4());
    let body = r#"{"name":"bob","email":"bob@example.com","assistantId":61,"context":"ann@example.com sent me"}"#;
    put(&world.ledger, mentions, body, LeadState::Delivered).await;
    // Messages that wait for a lock to go; and leads from before there were keys.
    for (id, body) in [(joann, World::lead("joann")), (mentions, World::lead("ann"))] {
        world
            .execute(&format!(
                "insert into aside (destination, queue, lead_id, body, redelivered, replay) values ('other', 'q', '{}', '{body}', false, false)",
                id.0
            ))
            .await;
    }
    let old = world.put("ann", LeadState::Exhausted).await;
    let jurgen = LeadId(Uuid::new_v4());
    put(&world.ledger, jurgen, r#"{"name":"j","email":"jürgen@example.com"}"#, LeadState::Rejected).await;
    world.execute("update leads set email_key = null where state in ('exhausted', 'rejected', 'pending')").await;

    for nobody in ["", "@", "com", "example.com", "ann@"] {
        let refused = world.leadpost(&["erase", "--email", nobody, "--yes"]).await;
        assert_eq!(refused.code, Some(2), "{nobody:?}: {refused:?}");
    }
    let found = world.ledger.find_person(&Subject::of(ADDRESS).unwrap()).await.unwrap();
    assert_eq!((&found.leads[..], found.aside.len()), (&[old][..], 1), "{found:?}");
    let receipt = world.leadpost(&["erase", "--email", ADDRESS, "--yes", "--output", "json"]).await.json();
    assert_eq!(receipt["aside"], serde_json::json!([mentions]), "{receipt}");
    assert_eq!(world.ledger.body(joann).await.unwrap().unwrap(), World::lead("joann").as_bytes());
    assert_eq!(
        (world.state(joann).await, world.number("select count(*) from aside").await),
        (Some(LeadState::Pending), 1)
    );
    assert_eq!(world.ledger.body(mentions).await.unwrap().unwrap(), body.as_bytes());
    let found = world.ledger.find_person(&Subject::of("Jürgen@example.com").unwrap()).await.unwrap();
    assert_eq!(found.leads, [jurgen], "letters beyond ASCII are found, too");
}

/// Corrects a lead, and with that perhaps whose it is.
async fn give(world: &World, id: LeadId, before: &str, after: &str) {
    let edit = Edit {
        id,
        before: before.as_bytes().to_owned(),
        after: after.as_bytes().to_owned(),
        keys: Keys::of_body(after.as_bytes()),
        include_delivered: true,
        by: "carla".to_owned(),
        reason: Some("ann@example.com was wrong".to_owned()),
    };
    assert_eq!(world.ledger.edit(edit).await.unwrap(), Edited::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_is_given_to_somebody_else_after_it_was_found_is_not_erased() {
    let world = World::new().await;
    let (ann, bob) = (World::lead("ann"), World::lead("bob"));
    let (keyless, bobs_keyless) = (r#"{"contact":"ann@example.com"}"#, r#"{"contact":"bob@example.com"}"#);
    let mut ids = Vec::new();
    for body in [&*ann, &ann, keyless, keyless, &ann, &ann, keyless] {
        let id = LeadId(Uuid::new_v4());
        put(&world.ledger, id, body, LeadState::Rejected).await;
        ids.push(id);
    }
    let [by_key, by_key_to_none, by_text, by_text_to_none, by_message, hers, hers_by_text] = ids[..] else { panic!() };
    let subject = Subject::of(ADDRESS).unwrap();
    let found = world.ledger.find_person(&subject).await.unwrap();
    assert_eq!(found.leads.len(), ids.len());

    give(&world, by_key, &ann, &bob).await;
    give(&world, by_key_to_none, &ann, bobs_keyless).await;
    give(&world, by_text, keyless, &bob).await;
    give(&world, by_text_to_none, keyless, bobs_keyless).await;
    // Its producer publishes it anew, under the same id.
    let fates = accept(&world.ledger, &[arrival(by_message, &bob)], Uuid::new_v4()).await;
    assert_eq!(leased(&fates).len(), 1, "{fates:?}");
    let settlement = settlement(&leased(&fates)[0], LeadState::Rejected);
    world.ledger.settle([settlement].into(), false, OnLock::Wait).await.unwrap();
    // Corrected, and still hers.
    give(&world, hers, &ann, &ann.replace("61", "62")).await;

    let erased = world.ledger.erase(&subject, &found, "carla", None).await.unwrap();
    assert_eq!((erased.count(), &erased.posting[..]), (2, &[][..]), "{erased:?}");
    for (id, body) in [(by_key, &*bob), (by_key_to_none, bobs_keyless), (by_text, &bob), (by_message, &bob)] {
        assert_eq!(world.ledger.body(id).await.unwrap().unwrap(), body.as_bytes());
    }
    assert_eq!(world.ledger.body(by_text_to_none).await.unwrap().unwrap(), bobs_keyless.as_bytes());
    for id in [hers, hers_by_text] {
        assert!(world.show(id).await.erased_at.is_some());
    }
    let left = world.ledger.find_person(&subject).await.unwrap();
    assert!(left.leads.is_empty() && left.former.contains(&by_key), "what it was before is hers still: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_corrected_lead_was_before_is_found_and_erased_and_what_it_is_stays() {
    let world = World::new().await;
    let id = world.put("ann", LeadState::Rejected).await;
    let (ann, bob) = (World::lead("ann"), World::lead("bob"));
    give(&world, id, &ann, &bob).await;
    let export = world.leadpost(&["export", "--email", ADDRESS]).await.json();
    assert_eq!(export["leads"][0]["former_bodies"], serde_json::json!([ann]), "{export}");
    assert!(export["leads"][0]["body"].is_null(), "Bob's is not Ann's to see: {export}");
    let erased = world.leadpost(&["erase", "--email", ADDRESS, "--yes"]).await;
    assert!(erased.code == Some(0) && erased.stdout.contains("1 former bodies"), "{erased:?}");
    assert_eq!(world.ledger.body(id).await.unwrap().unwrap(), bob.as_bytes());
    assert_eq!(world.number("select count(*) from interventions where body is not null").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_others_do_not_keep_old_ones_from_being_redacted() {
    let world = World::new().await;
    let (settings, _broker) = world.neighbour("other").await;
    let other = leadpost::ledger::Ledger::new(&settings, "other").unwrap();
    let theirs = LeadId(Uuid::new_v4());
    put(&other, theirs, &World::lead("bob"), LeadState::Rejected).await;
    world
        .execute(&format!(
            "insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status, code, answer) \
             select '{theirs}', n, '{theirs}', 'w', '2020-01-01', 1, 'rejected', true, 422, 'http_422', 'bob' from generate_series(2, 600) as n"
        ))
        .await;
    for name in ["ann", "eve"] {
        world.put(name, LeadState::Rejected).await;
    }
    world
        .execute(
            "update other_attempts set answer = 'x', started_at = '2020-01-02' where answer is null and outcome = 'rejected'",
        )
        .await;
    let dry = world.leadpost(&["redact", "--older-than", "30d", "--dry-run", "--output", "json"]).await.json();
    assert_eq!(dry["redacted"], 2, "{dry}");
    assert_eq!(world.ledger.redact(Duration::from_secs(86_400), None, 1, None).await.unwrap().0, 1, "one by one");
    let rest = world.leadpost(&["redact", "--older-than", "30d", "--yes", "--output", "json"]).await.json();
    assert_eq!(rest, serde_json::json!({ "redacted": 1 }));
    assert_eq!(world.number("select count(*) from attempts where answer is not null").await, 600);
}
