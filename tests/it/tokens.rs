//! Access tokens: one for all leads, renewed ahead of time, and never at a lead's expense.

use std::time::Duration;

use leadpost::flow::CircuitState;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Endpoint, Entry, Fault};

use crate::support::{DEADLINE, Running, World};

/// The requests for tokens, in order.
fn token_requests(world: &World) -> Vec<Entry> {
    world.sandbox.journal().entries().into_iter().filter(|entry| entry.endpoint == Endpoint::Token).collect()
}

/// Publishes a lead and waits until it is delivered at its first post.
async fn one_more_is_delivered_at_once(world: &World, name: &str) -> LeadId {
    let id = world.publish(name).await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["delivered 201"], "{name}");
    id
}

/// No token can be had: leads wait, uncharged and unposted, health says why; and once it is mended, all goes on by itself.
async fn leads_wait_for_a_token(world: World, says: &str, mend: impl FnOnce(&World)) {
    let ids = world.publish_many("ann", 40).await;
    let running = world.start().await;
    let asked = |n: u64| move |pages: &leadpost::sandbox::Pages| pages.counts().token_requests >= n;
    world.sandbox.journal().wait_for(asked(4), DEADLINE).await.unwrap();
    world.until("the circuit is open", async || running.health.report().flow.circuit != CircuitState::Closed).await;

    let report = running.health.report();
    assert!(!report.ready && !report.token.ok && !report.api.ok, "{report:?}");
    assert!(report.token.detail.contains(says), "{:?} does not say {says:?}", report.token.detail);
    assert!(!report.token.detail.contains("sandbox-secret"), "{:?}", report.token.detail);
    assert_eq!(world.sandbox.journal().counts().posts, 0, "posted without a token");
    assert_eq!(world.number("select coalesce(sum(attempts), 0)::bigint from leads").await, 0);
    assert_eq!(world.number("select count(*) from leads where state <> 'pending'").await, 0);
    let requests = world.sandbox.journal().counts().token_requests;
    assert!(requests < 20, "{requests} requests: the token endpoint is hammered");

    mend(&world);
    let n = i64::try_from(ids.len()).unwrap();
    world.until_count(LeadState::Delivered, n).await;
    world.until("all is well again", async || running.health.report().ready).await;
    for id in ids {
        assert_eq!(world.story(id).await, ["delivered 201"]);
    }
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, n);
    world.finish(running).await;
}

async fn started(world: World) -> (World, Running) {
    let running = world.start().await;
    (world, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_serves_many_leads() {
    let (world, running) = started(World::new().await).await;
    for name in 0..20 {
        one_more_is_delivered_at_once(&world, &format!("ann{name}")).await;
    }
    assert_eq!(world.sandbox.journal().counts().token_requests, 1);
    assert_eq!(running.health.report().token.detail.split(' ').next(), Some("valid"));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_leads_at_once_ask_a_slow_token_endpoint_once() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 200;
    world.sandbox.tune(|tuning| {
        tuning.token_delay = Duration::from_millis(500);
        tuning.latency = Duration::from_secs(1);
    });
    world.publish_many("ann", 200).await;
    let (world, running) = started(world).await;
    world.until_count(LeadState::Delivered, 200).await;
    assert_eq!(world.sandbox.journal().counts().token_requests, 1);
    assert!(world.sandbox.journal().counts().max_in_flight > 50, "they were not at once");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_in_the_background_before_it_expires_while_leads_go_on() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| {
        tuning.token_lifetime = Duration::from_secs(6);
        tuning.token_delay = Duration::from_millis(1_000);
    });
    let (world, running) = started(world).await;
    let mut n = 0;
    while world.sandbox.journal().tokens_issued() < 2 {
        one_more_is_delivered_at_once(&world, &format!("ann{n}")).await;
        n += 1;
    }
    let requests = token_requests(&world);
    assert_eq!(requests.len(), 2);
    for pair in requests.windows(2) {
        let age = pair[1].received - pair[0].received;
        assert!(age >= Duration::from_millis(4_400), "renewed at {age:?}, which is early");
        assert!(age < Duration::from_millis(5_700), "renewed at {age:?}, which is late");
        let ended = pair[1].ended.unwrap();
        let posts = world.sandbox.journal().posts();
        let meanwhile = posts.iter().filter(|post| post.received > pair[1].received && post.received < ended).count();
        assert!(meanwhile > 0, "leads stood still while a token was fetched");
    }
    assert!(world.sandbox.journal().posts().iter().all(|post| post.token_ok), "posted with an expired token");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_hangs_does_not_stop_leads_that_have_a_valid_token() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.token_lifetime = Duration::from_secs(8));
    world.sandbox.faults().script([Fault::none().on_token(), Fault::hang().on_token()]);
    let mut world = world;
    world.settings.destination.auth.timeout_ms = 3_000;
    let (world, running) = started(world).await;
    let mut n = 0;
    while token_requests(&world).len() < 2 {
        one_more_is_delivered_at_once(&world, &format!("before{n}")).await;
        n += 1;
    }
    one_more_is_delivered_at_once(&world, "meanwhile").await;
    let hanging = token_requests(&world).pop().unwrap();
    assert_eq!(hanging.ended, None, "the token came too early for this to prove anything");
    // The old token ends before the endpoint is given up: these wait for the next token, and lose nothing by it.
    while world.sandbox.journal().tokens_issued() < 2 {
        one_more_is_delivered_at_once(&world, &format!("after{n}")).await;
        n += 1;
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_not_used() {
    let world = World::new().await;
    world.sandbox.set_token_lifetime(Duration::from_secs(1));
    let (world, running) = started(world).await;
    one_more_is_delivered_at_once(&world, "ann").await;
    // Nobody asks for a token meanwhile, so nobody renews it.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(world.sandbox.journal().counts().token_requests, 1, "renewed for nobody");
    one_more_is_delivered_at_once(&world, "bob").await;
    assert_eq!(world.sandbox.journal().counts().token_requests, 2);
    assert!(world.sandbox.journal().posts().iter().all(|post| post.token_ok));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_once_and_the_same_lead_is_posted_again_uncharged() {
    let (world, running) = started(World::new().await).await;
    one_more_is_delivered_at_once(&world, "ann").await;
    world.sandbox.revoke_all();
    let id = world.publish("bob").await;
    let lead = world.until_state(id, LeadState::Delivered).await;
    assert_eq!(world.story(id).await, ["unauthorized 401", "delivered 201"]);
    let charged: Vec<bool> = lead.history.iter().map(|attempt| attempt.charged).collect();
    assert_eq!((charged, lead.charged), (vec![false, true], 1));
    assert_eq!(world.posts(id), 2);
    assert_eq!(world.sandbox.journal().counts().token_requests, 2);
    assert_eq!(running.metrics.opened.get(), 0, "a revoked token is no reason to pause");
    one_more_is_delivered_at_once(&world, "cid").await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_under_load_costs_one_new_token_for_all() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 50;
    world.sandbox.tune(|tuning| tuning.token_delay = Duration::from_millis(200));
    let (world, running) = started(world).await;
    one_more_is_delivered_at_once(&world, "ann").await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(400));
    world.sandbox.revoke_all();
    let ids = world.publish_many("bob", 50).await;
    world.until_delivered(&ids).await;
    let refused = world.number("select count(*) from attempts where outcome = 'unauthorized'").await;
    assert!(refused > 1, "{refused} leads met it, too few for this to prove anything");
    let counts = world.sandbox.journal().counts();
    assert_eq!(counts.token_requests, 2, "{counts:?}");
    assert_eq!(counts.created, 51);
    assert_eq!(running.metrics.opened.get(), 0);
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, 51);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_refusal_of_the_old_token_does_not_throw_the_new_one_away() {
    let (world, running) = started(World::new().await).await;
    one_more_is_delivered_at_once(&world, "ann").await;
    world.sandbox.faults().rule("late@", Some(1), Fault::status(401).delayed(Duration::from_secs(3)));
    let late = world.publish("late").await;
    world.sandbox.journal().wait_for(|pages| pages.counts().posts == 2, DEADLINE).await.unwrap();
    world.sandbox.revoke_all();
    let quick = world.publish("quick").await;
    world.until_state(quick, LeadState::Delivered).await;
    assert_eq!(world.story(quick).await, ["unauthorized 401", "delivered 201"]);
    assert_eq!(
        world.state(late).await,
        Some(LeadState::Pending),
        "its answer came too early for this to prove anything"
    );
    world.until_state(late, LeadState::Delivered).await;
    assert_eq!(world.story(late).await, ["unauthorized 401", "delivered 201"]);
    assert_eq!(world.sandbox.journal().counts().token_requests, 2);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_token_that_is_refused_too_speaks_of_the_set_up_and_pauses_the_flow() {
    let (world, running) = started(World::new().await).await;
    world.sandbox.tune(|tuning| tuning.leads_unavailable = Some(401));
    let ids = world.publish_many("ann", 30).await;
    // Others may have met the first refusal only, and waited from then on.
    let sql = "select count(*) from attempts where outcome = 'systemic'";
    world.until("a fresh token was refused", async || world.number(sql).await > 0).await;
    let mut refused_twice = 0;
    for id in ids.iter().filter(|id| world.posts(**id) > 1) {
        let story = world.story(*id).await;
        if let Some(at) = story.iter().position(|attempt| attempt == "systemic 401") {
            assert_eq!(story[at - 1], "unauthorized 401");
            refused_twice += 1;
        }
    }
    assert!(refused_twice > 0);
    assert_eq!(world.number("select coalesce(sum(charged), 0)::bigint from leads").await, 0);
    assert_eq!(world.number("select count(*) from leads where state <> 'pending'").await, 0);
    let report = running.health.report();
    assert_ne!(report.flow.circuit, CircuitState::Closed);
    assert!(report.api.detail.contains("fresh token was refused too"), "{report:?}");
    world.sandbox.tune(|tuning| tuning.leads_unavailable = None);
    world.until_all_delivered(&ids).await;
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, 30);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_refused_credentials_leads_wait_and_go_on_by_themselves_when_those_are_mended() {
    let world = World::new().await;
    world.sandbox.set_credentials("sandbox-client", "another-secret");
    let mend = |world: &World| world.sandbox.set_credentials("sandbox-client", "sandbox-secret");
    leads_wait_for_a_token(world, "check destination.auth.client_id, client_secret and client_auth", mend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_refused_scope_leads_wait_and_health_names_the_setting() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.scope = "something/else".to_owned());
    let mend = |world: &World| world.sandbox.tune(|tuning| tuning.scope = "leads/post".to_owned());
    leads_wait_for_a_token(world, "check destination.auth.scope", mend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_token_endpoint_is_down_leads_wait() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.token_unavailable = Some(503));
    let mend = |world: &World| world.sandbox.tune(|tuning| tuning.token_unavailable = None);
    leads_wait_for_a_token(world, "503", mend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_token_endpoint_hangs_leads_wait() {
    let mut world = World::new().await;
    world.settings.destination.auth.timeout_ms = 150;
    world.sandbox.faults().rate(1.0, Fault::hang().on_token()).unwrap();
    leads_wait_for_a_token(world, "no answer within the time limit", |world| world.sandbox.faults().clear()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_talks_nonsense_is_waited_for() {
    for nonsense in [r#"{"access_token":""}"#, "<html>Please log in</html>"] {
        let world = World::new().await;
        let answer = leadpost::sandbox::StatusAnswer {
            body: Some(nonsense.to_owned()),
            ..leadpost::sandbox::StatusAnswer::new(200)
        };
        world.sandbox.faults().rate(1.0, Fault::answer(answer).on_token()).unwrap();
        leads_wait_for_a_token(world, "no access_token", |world| world.sandbox.faults().clear()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_goes_away_later_is_not_charged_to_the_leads_either() {
    let (world, running) = started(World::new().await).await;
    one_more_is_delivered_at_once(&world, "ann").await;
    world.sandbox.tune(|tuning| tuning.token_unavailable = Some(500));
    world.sandbox.revoke_all();
    let ids = world.publish_many("bob", 20).await;
    world.until("the flow is paused", async || running.metrics.opened.get() == 1).await;
    world.sandbox.journal().wait_for(|pages| pages.counts().token_requests > 3, DEADLINE).await.unwrap();
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, 1);
    let posts = world.sandbox.journal().counts().posts;
    assert!(posts <= 21, "{posts} posts: a lead was posted again and again with a refused token");
    world.sandbox.tune(|tuning| tuning.token_unavailable = None);
    world.until_all_delivered(&ids).await;
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, 21);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_for_which_every_token_is_refused_is_rejected_in_the_end_and_the_others_are_delivered() {
    let (world, running) = started(World::new().await).await;
    world.sandbox.faults().rule("bad@", None, Fault::status(401));
    let bad = world.publish("bad").await;
    for round in 1..=3 {
        world.until_attempts(bad, 2 * round).await;
        let good = world.publish_many(&format!("good{round}-"), 3).await;
        world.until_delivered(&good).await;
        world.until("posts go on", async || running.health.report().ready).await;
        world.until("it is blamed", async || world.suspicions(bad).await == round).await;
        world.pass(Duration::from_secs(60)).await;
    }
    let lead = world.until_state(bad, LeadState::Rejected).await;
    assert_eq!((lead.attempts, lead.charged), (6, 0));
    world.finish(running).await;
}
