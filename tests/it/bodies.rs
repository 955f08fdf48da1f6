//! What is posted of a lead: untouched, made by an expression, as JSON or as a form, by any method, to a URL with values in it.

use std::time::Duration;

use leadpost::config::UnknownFields;
use leadpost::lead::{Code, LeadId};
use leadpost::ledger::{LeadRecord, LeadState};
use leadpost::sandbox::{ContentType, Endpoint};
use leadpost::worker::Stopped;
use serde_json::Value;
use uuid::Uuid;

use crate::support::api::{Heard, Port, form};
use crate::support::{Message, World};

/// A port that takes any lead.
async fn port() -> Port {
    Port::open(|_: &Heard| (201, r#"{"id":"remote-1"}"#.to_owned())).await
}

/// A world that posts to this port, without a log-in, by this expression.
async fn by(port: &Port, jq: &str, pairs: &[(&str, &str)]) -> World {
    let jq = if jq.is_empty() { &[][..] } else { &[("REQUEST__JQ", jq)] };
    World::towards(port, &[&[("AUTH__KIND", "none")], jq, pairs].concat()).await
}

/// What was posted for the lead with this id.
fn posted(port: &Port, id: LeadId) -> Heard {
    let key = id.to_string();
    let posts: Vec<_> = port.heard("").into_iter().filter(|heard| heard.header("idempotency-key") == key).collect();
    let [post] = &posts[..] else { panic!("lead {id} was posted {} times", posts.len()) };
    post.clone()
}

/// The lead is invalid, for this reason, and was not posted.
async fn is_refused(world: &World, port: &Port, id: LeadId, code: Code, says: &str) -> LeadRecord {
    let lead = world.until_state(id, LeadState::Invalid).await;
    let [violation] = &lead.violations[..] else { panic!("{:?}", lead.violations) };
    assert_eq!(violation.code, code, "{violation:?}");
    assert!(violation.message.contains(says), "{violation:?} does not say {says:?}");
    assert_eq!((lead.attempts, lead.history.len()), (0, 0));
    let key = id.to_string();
    assert!(port.heard("").iter().all(|heard| heard.header("idempotency-key") != key), "it was posted");
    lead
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_expression_a_body_arrives_byte_for_byte() {
    let bodies = [
        "{ \"name\" : \"Ann\",\n\t\"n\":1.10, \"big\":12345678901234567890123, \"e\":1E+5,\"u\":\"\\u00e9\\/\" }"
            .to_owned(),
        "{\"name\":\"\u{e9}\u{1f600}\",\"deep\":".to_owned() + &"[".repeat(500) + &"]".repeat(500) + "}",
        r#"{"name":"Ann","lone":"\ud800","none":null,"":{},"name2":[]}"#.to_owned(),
    ];
    let port = port().await;
    let world = by(&port, "", &[]).await;
    let running = world.start().await;
    for body in bodies {
        let id = world.publish_body(&body).await;
        world.until_state(id, LeadState::Delivered).await;
        let post = posted(&port, id);
        assert_eq!(post.text(), body);
        assert_eq!((post.method.as_str(), post.header("content-type")), ("POST", "application/json"));
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_wraps_renames_fills_in_and_leaves_out() {
    let full = r#"{"name":"Ann","phone":"555-0100","tags":["a"],"n":1.10}"#;
    for (jq, expected) in [
        ("{contact: .}", format!(r#"{{"contact":{full}}}"#)),
        ("[.]", format!("[{full}]")),
        ("{last_name: .name, cell: .phone}", r#"{"last_name":"Ann","cell":"555-0100"}"#.to_owned()),
        (r#"{name, city: (.city // "nowhere")}"#, r#"{"name":"Ann","city":"nowhere"}"#.to_owned()),
        ("del(.phone, .tags)", r#"{"name":"Ann","n":1.10}"#.to_owned()),
        (
            "{name, place: $variables.place, all: ($variables | keys)}",
            r#"{"name":"Ann","place":"p/1 \"x\"","all":["place"]}"#.to_owned(),
        ),
        (".name", r#""Ann""#.to_owned()),
        ("def up: ascii_upcase;\n{name: (.name | up)}", r#"{"name":"ANN"}"#.to_owned()),
    ] {
        let port = port().await;
        let world = by(&port, jq, &[("VARIABLES__PLACE", "p/1 \"x\"")]).await;
        let running = world.start().await;
        let id = world.publish_body(full).await;
        let lead = world.until_state(id, LeadState::Delivered).await;
        assert_eq!(posted(&port, id).text(), expected, "{jq}");
        assert_eq!(lead.remote_id.as_deref(), Some("remote-1"));
        let kept = world.leadpost(&["leads", "show", &id.to_string(), "--body"]).await.stdout;
        assert_eq!(kept, full, "the ledger keeps what came");
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_carries_its_own_leads_id_also_when_two_bodies_came_under_one() {
    let port = port().await;
    let world = by(&port, "{name, id: $lead_id}", &[]).await;
    let running = world.start().await;
    let id = LeadId(Uuid::new_v4());
    // In one batch, and one later.
    for name in ["one", "two"] {
        world.broker.publish(Message::new(id, &format!(r#"{{"name":"{name}"}}"#))).await;
    }
    world.until_count(LeadState::Delivered, 2).await;
    world.broker.publish(Message::new(id, r#"{"name":"three"}"#)).await;
    // And one without an id of its own.
    world.broker.publish(Message::raw(br#"{"name":"four"}"#)).await;
    world.until_count(LeadState::Delivered, 4).await;
    let rows: Vec<(Uuid, Vec<u8>)> =
        sqlx::query_as("select id, body from leads").fetch_all(&world.database.pool).await.unwrap();
    assert_eq!(rows.len(), 4);
    for (id, body) in rows {
        let lead: Value = serde_json::from_slice(&body).unwrap();
        let sent: Value = serde_json::from_slice(&posted(&port, LeadId(id)).body).unwrap();
        assert_eq!((&sent["name"], sent["id"].as_str()), (&lead["name"], Some(&*id.to_string())));
    }
    assert_eq!(world.number("select count(*) from leads where conflict_of is not null").await, 2);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_cannot_be_converted_is_invalid_with_the_reason_and_delivered_once_the_expression_is_mended() {
    let port = port().await;
    let mut world = by(&port, r#"if .phone then {phone} else error("a lead needs a phone") end"#, &[]).await;
    let running = world.start().await;
    let first = world.publish_body(r#"{"name":"Zanzibar"}"#).await;
    let second = world.publish_body(r#"{"name":"Timbuktu"}"#).await;
    let fine = world.publish_body(r#"{"name":"Ann","phone":"555-0101"}"#).await;
    world.until_state(fine, LeadState::Delivered).await;
    for id in [first, second] {
        is_refused(&world, &port, id, Code::Conversion, "destination.request.jq: a lead needs a phone").await;
        let shown = world.leadpost(&["leads", "show", &id.to_string()]).await.stdout;
        assert!(shown.contains("a lead needs a phone") && !shown.contains("Zanzibar"), "{shown}");
    }
    // Sent again by the same rules, nothing is different.
    assert_eq!(world.leadpost(&["requeue", &first.to_string()]).await.code, Some(0));
    let sql = "select count(*) from leads where replays = 1 and state = 'invalid'";
    world.until("it was looked at again", async || world.number(sql).await == 1).await;
    assert_eq!(running.stop().await, Stopped::Cleanly);

    world.set(&[("REQUEST__JQ", r#"{phone: (.phone // "none"), name}"#)]);
    let running = world.start().await;
    assert_eq!(world.leadpost(&["requeue", &first.to_string()]).await.code, Some(0));
    let replay = Message { replay: true, ..Message::new(second, r#"{"name":"Timbuktu"}"#) };
    world.broker.publish(replay).await;
    for (id, name) in [(first, "Zanzibar"), (second, "Timbuktu")] {
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(posted(&port, id).text(), format!(r#"{{"phone":"none","name":"{name}"}}"#));
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_that_gives_no_single_value_makes_a_lead_invalid() {
    for (jq, says) in [
        ("empty", "it gives nothing"),
        (".name, .name", "it gives more than one value"),
        (".name.first", "it does not work on this"),
        ("nan | {n: .} | .n = infinite", "it gives something that is not JSON"),
        (".[] | error", "it does not work on this"),
    ] {
        let port = port().await;
        let world = by(&port, jq, &[]).await;
        let running = world.start().await;
        let id = world.publish_body(r#"{"name":"Zanzibar"}"#).await;
        let lead = is_refused(&world, &port, id, Code::Conversion, says).await;
        assert!(!format!("{:?}", lead.violations).contains("Zanzibar"));
        world.finish(running).await;
    }
}

// --- Forms, methods, URLs

#[tokio::test(flavor = "multi_thread")]
async fn a_form_has_the_members_of_the_body_and_what_is_not_flat_is_invalid() {
    let port = port().await;
    let world = by(&port, "", &[("REQUEST__BODY", "form")]).await;
    let running = world.start().await;
    let body = r#"{"name":"Ann & B\u00f6b=+","n":12345678901234567890,"yes":true,"none":null,"\u00fc":""}"#;
    let id = world.publish_body(body).await;
    let nested = world.publish_body(r#"{"name":"Ann","tags":["a"]}"#).await;
    world.until_state(id, LeadState::Delivered).await;
    let post = posted(&port, id);
    assert_eq!(post.text(), "name=Ann+%26+B%C3%B6b%3D%2B&n=12345678901234567890&yes=true&%C3%BC=");
    assert_eq!(post.header("content-type"), "application/x-www-form-urlencoded");
    let lead = is_refused(&world, &port, nested, Code::WrongType, "a form has only texts, numbers").await;
    assert_eq!(lead.violations[0].field, "tags");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_wants_forms_gets_one_made_by_an_expression() {
    let mut world = World::unlimited("kaisa").await;
    world.set(&[("REQUEST__JQ", r#"{name, custnr: $lead_id, custom_1: (.tags | join(","))}"#)]);
    // The preset leaves out what the API does not know, before the expression sees it.
    world.settings.lead.unknown_fields = UnknownFields::Forward;
    let running = world.start().await;
    let id = world.publish_body(r#"{"name":"Ann","tags":["a","b c"]}"#).await;
    world.until_state(id, LeadState::Delivered).await;
    let [post] = &world.requests(Endpoint::Leads)[..] else { panic!("not one post") };
    assert_eq!(post.content_type, Some(ContentType::Form));
    let sent = form(post.body.as_deref().unwrap());
    assert_eq!((sent["custnr"].as_str(), sent["custom_1"].as_str()), (&*id.to_string(), "a,b c"));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_goes_out_by_the_method_that_is_set() {
    for method in ["POST", "PUT", "PATCH"] {
        let port = port().await;
        let world = by(&port, "", &[("REQUEST__METHOD", method)]).await;
        let running = world.start().await;
        let id = world.publish_body(r#"{"name":"Ann"}"#).await;
        world.until_state(id, LeadState::Delivered).await;
        let post = posted(&port, id);
        assert_eq!((post.method.as_str(), post.text().as_str()), (method, r#"{"name":"Ann"}"#));
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_in_the_url_is_one_part_of_it_whatever_it_holds() {
    for (campaign, written) in [
        ("7", "7"),
        ("spring/2026", "spring%2F2026"),
        ("a b", "a%20b"),
        ("a?b=c#d&e", "a%3Fb%3Dc%23d%26e"),
        ("100%", "100%25"),
        ("\u{e9}{x}", "%C3%A9%7Bx%7D"),
    ] {
        let port = port().await;
        let base = port.url("");
        let pairs = [
            ("VARIABLES__API", base.as_str()),
            ("VARIABLES__CAMPAIGN", campaign),
            ("REQUEST__URL", "{api}/c/{campaign}/?at={campaign}"),
        ];
        let world = by(&port, "", &pairs).await;
        let running = world.start().await;
        let id = world.publish_body(r#"{"name":"Ann"}"#).await;
        world.until_state(id, LeadState::Delivered).await;
        assert_eq!(posted(&port, id).target, format!("/c/{written}/?at={written}"), "{campaign}");
        world.finish(running).await;
    }
    // At an API that tells one segment from two.
    let mut world = World::unlimited("squadrun").await;
    world.set(&[("VARIABLES__CAMPAIGN_ID", "spring/2026")]);
    let running = world.start().await;
    world.one_more("ann").await;
    assert_eq!(world.sandbox.journal().counts().other_requests, 0);
    world.finish(running).await;
}

// --- Hostile leads

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_no_expression_can_read_hurt_nobody_else() {
    let port = port().await;
    let mut world = by(&port, "{name, all: ., id: $lead_id}", &[]).await;
    world.settings.lead.max_message_bytes = 8 * 1024 * 1024;
    world.settings.lead.max_text_chars = 10_000_000;
    let deep = |depth: usize| format!(r#"{{"name":"deep","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let objects = format!(r#"{{"name":"deep","x":{}1{}}}"#, r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    let hostile = [
        (deep(10_000), Code::NotText, "nested deeper than 128"),
        (deep(1_000_000), Code::NotText, "nested deeper than 128"),
        (objects, Code::NotText, "nested deeper than 128"),
        (r#"{"name":"x","y":"\ud800"}"#.to_owned(), Code::NotText, "half of a surrogate pair"),
        (r#"{"name":"x","\udc00":1}"#.to_owned(), Code::NotJson, "cannot be read"),
    ];
    let long = "\u{e9}".repeat(500_000);
    let fine = [
        (format!(r#"{{"name":"long","x":"{long}"}}"#), long.as_str()),
        (deep(100), "[[[[]]]]"),
        (
            r#"{"name":"digits","x":[12345678901234567890123456789,0.10000000000000000000000000001,1e400,-0.0]}"#
                .to_owned(),
            "[12345678901234567890123456789,0.10000000000000000000000000001,1e400,-0.0]",
        ),
        (r#"{"name":"quotes","x":"\u0000\u0007\"\\\u2028"}"#.to_owned(), r#""\u0000\u0007\"\\"#),
    ];
    // All of them wait when the worker starts, so that they are taken in one batch.
    let (mut bad, mut good) = (Vec::new(), Vec::new());
    for n in 0..hostile.len().max(fine.len()) {
        if let Some((body, code, says)) = hostile.get(n) {
            bad.push((world.publish_body(body).await, *code, *says));
        }
        if let Some((body, part)) = fine.get(n) {
            good.push((world.publish_body(body).await, *part));
        }
        good.push((world.publish_body(&format!(r#"{{"name":"neighbour{n}"}}"#)).await, "neighbour"));
    }
    let running = world.start().await;
    for (id, code, says) in bad {
        is_refused(&world, &port, id, code, says).await;
    }
    for (id, part) in good {
        world.until_state(id, LeadState::Delivered).await;
        let sent = posted(&port, id).text();
        let start: String = sent.chars().take(200).collect();
        assert!(sent.contains(part), "{start}");
        assert!(sent.contains(&id.to_string()), "{start}");
    }
    world.until("the worker lives", async || running.health.is_live() && running.health.report().ready).await;
    world.finish(running).await;
}

// --- Before anything is posted

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_that_cannot_be_read_stops_the_start_with_its_key_line_and_column() {
    let world = World::of_preset("paya").await;
    for (key, jq, says) in [
        ("REQUEST__JQ", "{\n  a: .b,\n  c: }", &["destination.request.jq", "line 3, column 6"][..]),
        ("REQUEST__JQ", "{a: .b", &["destination.request.jq", "line 1"]),
        ("REQUEST__JQ", "{a: nonsense}", &["destination.request.jq", "there is no filter nonsense"]),
        ("REQUEST__JQ", "$status", &["destination.request.jq", "there is no variable $status", "$lead_id, $variables"]),
        ("REQUEST__JQ", "env", &["destination.request.jq", "there is no filter env"]),
        ("RESPONSE__SUCCESS_TEST", ".a |", &["destination.response.success_test", "line 1"]),
        ("RESPONSE__DUPLICATE_TEST", "$lead_id", &["destination.response.duplicate_test", "no variable $lead_id"]),
        ("RECONCILE__KEY", "..x", &["destination.reconcile.key", "line 1"]),
        ("RECONCILE__FOUND", "length > ", &["destination.reconcile.found", "line 1"]),
    ] {
        let name = format!("LEADPOST__DESTINATION__{key}");
        for command in [&["config", "check"][..], &["run"]] {
            let done = world.leadpost_with(command, &[(&name, jq)], b"").await;
            assert_eq!(done.code, Some(78), "{command:?} {jq}: {done:?}");
            for text in says {
                assert!(done.stderr.contains(text), "{command:?} {jq}: {text:?} is not in {}", done.stderr);
            }
        }
    }
    assert_eq!(world.sandbox.journal().counts().requests, 0);
    assert_eq!(world.leadpost(&["config", "check"]).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_is_needed_and_not_set_stops_the_start_and_is_named() {
    for (preset, variable) in [
        ("squadrun", "CAMPAIGN_ID"),
        ("squadiq", "CAMPAIGN_ID"),
        ("paya", "DEVELOPER_ID"),
        ("paya", "LOCATION_ID"),
        ("paya-session", "DOMAIN"),
        ("7targets-2024", "USER_IDENTIFIER"),
    ] {
        let mut world = World::of_preset(preset).await;
        let name = format!("LEADPOST__DESTINATION__VARIABLES__{variable}");
        world.destination.retain(|(known, _)| *known != name);
        for command in [&["config", "check"][..], &["run"]] {
            let done = world.leadpost(command).await;
            assert_eq!(done.code, Some(78), "{preset} {command:?}: {done:?}");
            let key = format!("destination.variables.{}", variable.to_lowercase());
            assert!(done.stderr.contains(&key) && done.stderr.contains(&name), "{preset}: {}", done.stderr);
        }
        let mended = world.leadpost_with(&["config", "check"], &[(&name, "something")], b"").await;
        assert_eq!(mended.code, Some(0), "{preset}: {mended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_whose_key_cannot_be_made_is_invalid_before_it_is_ever_posted() {
    let port = port().await;
    let url = port.url("/find?key={key}");
    let pairs = [("RECONCILE__URL", url.as_str()), ("RECONCILE__KEY", ".crm"), ("RECONCILE__FOUND", ".found")];
    let world = by(&port, "", &pairs).await;
    let running = world.start().await;
    let without = world.publish_body(r#"{"name":"Ann"}"#).await;
    let with = world.publish_body(r#"{"name":"Bob","crm":17}"#).await;
    world.until_state(with, LeadState::Delivered).await;
    is_refused(&world, &port, without, Code::Conversion, "destination.reconcile.key").await;
    world.pass(Duration::from_secs(3600)).await;
    assert_eq!(port.heard("").len(), 1);
    world.finish(running).await;
}
