//! Lists, counts and groups of leads: the same filter everywhere, and a page costs no more for what lies before it.

use std::collections::BTreeSet;
use std::sync::Arc;

use leadpost::lead::{Key, LeadId};
use leadpost::ledger::{Filter, LeadState, Order, When};
use leadpost::sandbox::{Fault, StatusAnswer};
use uuid::Uuid;

use crate::support::World;
use crate::support::scene::put;

fn lead(name: &str, assistant: &str) -> String {
    format!(r#"{{"name":"{name} Example","email":"{name}@example.com","assistantId":"{assistant}"}}"#)
}

async fn found(world: &World, filter: &Filter) -> Vec<LeadId> {
    let page = world.ledger.list(Arc::new(filter.clone()), Order::NewestFirst, None, 100).await.unwrap();
    page.leads.iter().map(|listed| listed.lead.id).collect()
}

/// Found in a list, and counted.
async fn matches(world: &World, filter: Filter, expected: &[LeadId]) {
    let ids: BTreeSet<LeadId> = found(world, &filter).await.into_iter().collect();
    assert_eq!(ids, expected.iter().copied().collect(), "{filter:?}");
    assert_eq!(world.ledger.count(Arc::new(filter.clone())).await.unwrap(), expected.len() as u64, "{filter:?}");
}

/// One lead in each state, for assistants `even` and `odd` by turns.
async fn one_of_each(world: &World) -> Vec<LeadId> {
    let mut ids = Vec::new();
    for (n, state) in LeadState::ALL.into_iter().enumerate() {
        let id = LeadId(Uuid::new_v4());
        let assistant = if n % 2 == 0 { "even" } else { "odd" };
        put(&world.ledger, id, &lead(&format!("p{n}"), assistant), state).await;
        ids.push(id);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn every_condition_finds_the_leads_that_fit_and_no_others_and_all_of_them_combine() {
    let world = World::new().await;
    let ids = one_of_each(&world).await;
    let of = |numbers: &[usize]| numbers.iter().map(|n| ids[*n]).collect::<Vec<_>>();
    // pending, delivered, duplicate, invalid, rejected, exhausted, uncertain, cancelled
    let (all, bad) = ([0, 1, 2, 3, 4, 5, 6, 7], [LeadState::Rejected, LeadState::Exhausted]);
    world.execute("update leads set finished_at = finished_at - interval '3 hours', accepted_at = accepted_at - interval '4 hours' where state = 'rejected'").await;
    world.execute("update leads set accepted_at = accepted_at - interval '4 hours' where state = 'pending'").await;
    world.execute("update leads set warning = 'not worked' where state = 'delivered'").await;

    let any = Filter::default;
    matches(&world, any(), &of(&all)).await;
    matches(&world, Filter::of_ids(&of(&[1, 0, 6])), &of(&[0, 1, 6])).await;
    matches(&world, Filter { states: Some(vec![LeadState::Invalid]), ..Filter::of_ids(&of(&[1, 0, 3])) }, &of(&[3]))
        .await;
    matches(&world, Filter::of_states(&bad), &of(&[4, 5])).await;
    matches(&world, Filter::of_states(&[]), &[]).await;
    matches(&world, Filter::of_states(&bad).within(&[LeadState::Pending]), &[]).await;
    matches(
        &world,
        Filter { emails: vec![Key::of_email("P5@example.com"), Key::of_email("p0@example.com")], ..any() },
        &of(&[0, 5]),
    )
    .await;
    matches(
        &world,
        Filter { emails: vec![Key::of_email("p5@example.com")], ..Filter::of_states(&[LeadState::Pending]) },
        &[],
    )
    .await;
    matches(
        &world,
        Filter { emails: vec![Key::of_email("p5@example.com")], ..Filter::of_ids(&of(&[4, 5])) },
        &of(&[5]),
    )
    .await;
    matches(&world, Filter { assistants: vec![Key::of_assistant("odd")], ..any() }, &of(&[1, 3, 5, 7])).await;
    matches(
        &world,
        Filter { assistants: vec![Key::of_assistant("odd"), Key::of_assistant("even")], ..Filter::of_states(&bad) },
        &of(&[4, 5]),
    )
    .await;
    matches(
        &world,
        Filter { assistants: vec![Key::of_assistant("even")], emails: vec![Key::of_email("p5@example.com")], ..any() },
        &[],
    )
    .await;
    matches(
        &world,
        Filter { codes: vec!["put".to_owned()], ..Filter::of_states(&[LeadState::Pending, LeadState::Rejected]) },
        &of(&[0, 4]),
    )
    .await;
    matches(&world, Filter { statuses: vec![(400, 499)], ..any() }, &of(&[2, 4])).await;
    matches(&world, Filter { statuses: vec![(409, 409), (500, 599)], ..any() }, &of(&[2, 5, 6])).await;
    matches(&world, Filter { attempts: Some((0, 0)), ..any() }, &of(&[0, 3, 7])).await;
    matches(&world, Filter { attempts: Some((1, i32::MAX)), ..Filter::of_states(&bad) }, &of(&[4, 5])).await;
    matches(&world, Filter { queues: vec![world.broker.queue.clone()], ..any() }, &of(&all)).await;
    matches(&world, Filter { queues: vec!["other".to_owned()], ..any() }, &[]).await;
    matches(
        &world,
        Filter { because: Some("put there by a test".to_owned()), ..Filter::of_states(&bad) },
        &of(&[4, 5]),
    )
    .await;
    matches(&world, Filter { because: Some("by a test".to_owned()), ..any() }, &[]).await;
    matches(&world, Filter { warned: true, ..any() }, &of(&[1])).await;
    matches(&world, Filter { due: true, ..any() }, &[]).await;
    matches(&world, Filter { since: Some(When::Ago(3600.0)), ..any() }, &of(&[1, 2, 3, 5, 6, 7])).await;
    matches(&world, Filter { until: Some(When::Ago(3600.0)), ..any() }, &of(&[0, 4])).await;
    matches(
        &world,
        Filter { since: Some(When::Ago(5.0 * 3600.0)), until: Some(When::Ago(3600.0)), ..Filter::of_states(&bad) },
        &of(&[4]),
    )
    .await;
    matches(&world, Filter { accepted_since: Some(When::Ago(3600.0)), ..any() }, &of(&[1, 2, 3, 5, 6, 7])).await;
    matches(&world, Filter { accepted_until: Some(When::Ago(3600.0)), ..any() }, &of(&[0, 4])).await;
    let at = world.show(ids[4]).await.finished_at.unwrap();
    matches(
        &world,
        Filter { since: Some(When::At(at)), until: Some(When::Ago(3600.0)), ..Filter::of_states(&bad) },
        &of(&[4]),
    )
    .await;
    matches(&world, Filter { until: Some(When::At(at)), ..Filter::of_states(&bad) }, &[]).await;

    world.execute("update leads set next_attempt_at = now() - interval '1 second' where state = 'pending'").await;
    matches(&world, Filter { due: true, ..any() }, &of(&[0])).await;
    // Another destination's leads are none of ours.
    let (settings, _broker) = world.neighbour("other").await;
    let other = leadpost::ledger::Ledger::new(&settings, "other").unwrap();
    assert_eq!(other.count(Arc::new(Filter::of_ids(&ids))).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_without_a_gap_or_a_repetition_also_where_many_have_the_same_time() {
    let world = World::new().await;
    let mut ids = BTreeSet::new();
    for n in 0..40 {
        let state = [LeadState::Rejected, LeadState::Delivered, LeadState::Pending, LeadState::Invalid][n % 4];
        ids.insert(world.put(&format!("p{n}"), state).await);
    }
    world.execute("update leads set finished_at = '2026-01-01' where state = 'rejected'").await;
    world.execute("update leads set next_attempt_at = '2026-01-01' where state = 'pending'").await;
    for (order, limit) in
        [(Order::NewestFirst, 7), (Order::OldestFirst, 3), (Order::NewestFirst, 40), (Order::OldestFirst, 41)]
    {
        let (mut seen, mut times, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let page = world.ledger.list(Arc::new(Filter::default()), order, after, limit).await.unwrap();
            seen.extend(page.leads.iter().map(|listed| listed.lead.id));
            times.extend(page.leads.iter().map(|listed| listed.place.at));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen.len(), 40, "{order:?} {limit}");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), ids);
        let is_ordered = match order {
            Order::NewestFirst => times.is_sorted_by(|a, b| a >= b),
            Order::OldestFirst => times.is_sorted(),
        };
        assert!(is_ordered, "{order:?}: {times:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_mask_persons_unless_they_are_revealed_and_that_is_on_record() {
    let world = World::new().await;
    let refusal =
        StatusAnswer { body: Some(r#"{"message":"ann@example.com is taken"}"#.to_owned()), ..StatusAnswer::new(422) };
    world.sandbox.faults().script([Fault::answer(refusal)]);
    let running = world.start().await;
    let id = world.publish_body(&lead("ann", "61")).await;
    world.until_state(id, LeadState::Rejected).await;
    let disclosures = "select count(*) from disclosures";

    let (text, id_text) = (id.to_string(), id.to_string());
    for arguments in [
        &["leads", "list"][..],
        &["leads", "list", "--output", "json"],
        &["leads", "list", "--output", "csv"],
        &["leads", "export"],
        &["leads", "show", &text],
        &["leads", "show", &text, "--output", "json"],
        &["failures"],
    ] {
        let done = world.leadpost(arguments).await;
        assert!(done.code == Some(0) && done.stdout.contains(&id_text), "{arguments:?}: {done:?}");
        for personal in ["ann@", "Example", "example.com"] {
            assert!(!done.stdout.contains(personal), "{personal} in {arguments:?}: {done:?}");
        }
    }
    assert_eq!(world.number(disclosures).await, 0);

    for (n, arguments) in [
        &["leads", "list", "--reveal", "--reason", "a call"][..],
        &["leads", "export", "--reveal"],
        &["leads", "show", &text, "--reveal"],
        &["leads", "show", &text, "--body"],
    ]
    .into_iter()
    .enumerate()
    {
        let done = world.leadpost_with(arguments, &[("SUDO_USER", "carla")], b"").await;
        assert!(done.stdout.contains("ann@example.com") && done.stdout.contains("ann Example"), "{done:?}");
        assert_eq!(world.number(disclosures).await, n as i64 + 1);
    }
    let on_record: (String, String, i64, Vec<Uuid>, Option<String>) =
        sqlx::query_as("select shown_to, command, leads, lead_ids, reason from disclosures order by id limit 1")
            .fetch_one(&world.database.pool)
            .await
            .unwrap();
    assert_eq!(on_record, ("carla".to_owned(), "leads list".to_owned(), 1, vec![id.0], Some("a call".to_owned())));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_read_pages_exports_and_counts() {
    let world = World::new().await;
    one_of_each(&world).await;
    let mut seen = Vec::new();
    let mut page = world.leadpost(&["leads", "list", "--limit", "3", "--output", "json"]).await.json();
    loop {
        seen.extend(page["leads"].as_array().unwrap().iter().map(|lead| lead["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        page = world.leadpost(&["leads", "list", "--limit", "3", "--output", "json", "--after", next]).await.json();
    }
    assert_eq!((seen.len(), seen.iter().collect::<BTreeSet<_>>().len()), (8, 8));

    let lines = world.leadpost(&["leads", "export", "--state", "rejected,exhausted", "--reveal"]).await.stdout;
    let leads: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(leads.iter().map(|lead| lead["state"].as_str().unwrap()).collect::<Vec<_>>(), ["rejected", "exhausted"]);
    assert_eq!(leads[0]["body"].as_str().unwrap(), lead("p4", "even"));
    let csv = world.leadpost(&["leads", "export", "--output", "csv"]).await.stdout;
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    assert_eq!(reader.headers().unwrap().iter().take(3).collect::<Vec<_>>(), ["id", "destination", "state"]);
    assert_eq!(reader.records().map(Result::unwrap).count(), 8);

    let count = world.leadpost(&["leads", "count", "--assistant", "odd"]).await;
    assert_eq!(count.stdout, "4\n");
    let count = world.leadpost(&["leads", "count", "--output", "json"]).await.json();
    assert_eq!(count, serde_json::json!({ "leads": 8 }));
    let none = world.leadpost(&["leads", "list", "--email", "nobody@example.com"]).await;
    assert!(none.code == Some(0) && none.stdout.is_empty() && none.stderr.contains("no lead matches"), "{none:?}");
    let wrong = world.leadpost(&["leads", "list", "--after", "7"]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("--after"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_grouped_by_what_they_share_and_the_command_of_a_group_finds_its_leads() {
    let world = World::new().await;
    let says = |text: &str| {
        let body = Some(format!(r#"{{"message":"{text}"}}"#));
        Fault::answer(StatusAnswer { body, ..StatusAnswer::new(422) })
    };
    let running = world.start().await;
    for (name, text) in [
        ("a", "contact 17 is taken"),
        ("b", "contact 18 is taken"),
        ("c", "it's odd: \\\"7\\\""),
        ("g", "it's odd: \\\"7\\\", too"),
    ] {
        world.sandbox.faults().script([says(text)]);
        let id = world.publish(name).await;
        world.until_state(id, LeadState::Rejected).await;
    }
    world.publish_body(r#"{"name":"d"}"#).await;
    world.until_count(LeadState::Invalid, 1).await;
    world.put("e", LeadState::Pending).await;
    world.put("f", LeadState::Delivered).await;

    // One that is too old for what is asked.
    let old = world.put("old", LeadState::Exhausted).await;
    world.put("new", LeadState::Exhausted).await;
    world.execute(&format!("update leads set finished_at = now() - interval '3 days' where id = '{old}'")).await;
    world
        .execute(&format!("update other_attempts set started_at = now() - interval '3 days' where lead_id = '{old}'"))
        .await;
    let failures = world.leadpost(&["failures", "--since", "1d", "--output", "json"]).await.json();
    let failures = failures.as_array().unwrap();
    let counts: Vec<_> =
        failures.iter().map(|group| (group["state"].as_str().unwrap(), group["leads"].as_i64().unwrap())).collect();
    assert_eq!(counts[0], ("rejected", 2), "{failures:#?}");
    assert_eq!(counts.len(), 6, "{failures:#?}");
    assert!(failures[0]["reason"].as_str().unwrap().contains("contact # is taken"), "{failures:#?}");
    for group in failures {
        // Through a shell, as a person would.
        let command = group["command"].as_str().unwrap();
        let arguments = command.split_once(" --").unwrap().1;
        let words = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("for word in --{arguments}; do printf '%s\\n' \"$word\"; done"))
            .output()
            .unwrap();
        let words = String::from_utf8(words.stdout).unwrap();
        let words: Vec<&str> = words.lines().collect();
        let of_filter = match group["state"].as_str().unwrap() {
            "uncertain" => &words[2..],
            _ => &words[..],
        };
        let counted = world.leadpost(&[&["leads", "count"], of_filter].concat()).await;
        assert_eq!(counted.stdout.trim(), group["leads"].to_string(), "{command}: {counted:?}");
    }
    let text = world.leadpost(&["failures", "--state", "invalid"]).await;
    assert!(text.stdout.contains("leadpost requeue --state invalid") && !text.stdout.contains("rejected"), "{text:?}");
    world.finish(running).await;
}
