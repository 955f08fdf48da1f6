//! The password grant and its refresh tokens, which rotate: a refresh ends both tokens that it replaces, at once.

use std::collections::BTreeSet;
use std::time::Duration;

use leadpost::flow::CircuitState;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Effect, Endpoint, Fault};
use leadpost::worker::Stopped;

use crate::support::api::{A_WHILE, answer, form};
use crate::support::{DEADLINE, Running, World};

async fn squadrun(lifetime: Duration) -> World {
    let mut world = World::unlimited("squadrun").await;
    world.settings.flow.concurrency = 50;
    world.sandbox.set_token_lifetime(lifetime);
    world
}

/// Publishes leads, one after the other, until the API has given so many tokens.
async fn leads_until_tokens(world: &World, tokens: u64) -> Vec<LeadId> {
    let mut ids = Vec::new();
    while world.sandbox.journal().tokens_issued() < tokens {
        ids.push(world.one_more(&format!("lead{}", ids.len())).await);
    }
    ids
}

/// Each of these was delivered by one post that counts; all others found a token that had been replaced.
async fn delivered_once(world: &World, ids: &[LeadId]) {
    for id in ids {
        let story = world.story(*id).await;
        let (last, before) = story.split_last().unwrap();
        assert_eq!(last, "delivered 201");
        assert!(before.iter().all(|attempt| attempt == "unauthorized 403"), "{story:?}");
        assert_eq!(world.show(*id).await.charged, 1);
    }
    let suspected = world.number("select coalesce(sum(suspected), 0)::bigint from leads").await;
    assert_eq!(suspected, 0, "a lead was suspected");
    assert_eq!(world.sandbox.journal().counts().duplicates, 0, "a lead was delivered twice");
}

fn nothing_paused(running: &Running) {
    assert_eq!(running.metrics.opened.get(), 0, "posts were paused");
    assert_eq!(running.health.report().flow.circuit, CircuitState::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_first_log_in_refresh_tokens_are_used_and_each_of_them_once() {
    let world = squadrun(Duration::from_secs(2)).await;
    let running = world.start().await;
    let ids = leads_until_tokens(&world, 4).await;
    let forms = world.token_forms();
    assert_eq!(world.grants(), ["password", "refresh_token", "refresh_token", "refresh_token"]);
    let used: BTreeSet<_> = forms[1..].iter().map(|form| &form["refresh_token"]).collect();
    assert_eq!(used.len(), 3, "a refresh token was used twice");
    for form in &forms[1..] {
        assert_eq!((form.get("username"), form.get("password"), form.get("scope")), (None, None, None));
    }
    delivered_once(&world, &ids).await;
    nothing_paused(&running);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_under_a_token_that_a_refresh_has_just_killed_are_made_again_uncharged_and_unsuspected() {
    let world = squadrun(Duration::from_secs(8)).await;
    // The refresh is done at the API long before the worker learns of it.
    let slow = Fault::latency(Duration::from_secs(2)).after();
    world.sandbox.faults().script([Fault::none().on_token(), slow.on_token()]);
    let running = world.start().await;
    let mut ids = vec![world.one_more("first").await];
    // At three quarters of its life, whoever uses the token has it renewed.
    tokio::time::sleep(Duration::from_millis(6_050)).await;
    // The first refusal is not known before all are under way.
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(1));
    ids.push(world.publish_any("early").await);
    world.sandbox.journal().wait_for(|pages| pages.counts().tokens_issued == 2, DEADLINE).await.unwrap();
    ids.extend(world.publish_any_many("late", 30).await);
    world.until_delivered(&ids).await;
    delivered_once(&world, &ids).await;
    let refused = world.number("select count(*) from attempts where outcome = 'unauthorized'").await;
    assert!(refused > 1, "{refused} posts met it, too few for this to prove anything");
    let dead = world.sandbox.journal().posts().iter().filter(|post| !post.token_ok).count();
    assert_eq!(i64::try_from(dead).unwrap(), refused);
    assert_eq!(world.grants(), ["password", "refresh_token"], "one new token for all");
    nothing_paused(&running);

    // What was replaced is worth nothing to anybody.
    let old = world.token_forms()[1]["refresh_token"].clone();
    let tuning = world.sandbox.tuning();
    let again = [
        ("grant_type", "refresh_token"),
        ("refresh_token", &old),
        ("client_id", &tuning.client_id),
        ("client_secret", &tuning.client_secret),
    ];
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let said = client.post(world.sandbox.token_url()).form(&again).send().await.unwrap();
    assert_eq!((said.status().as_u16(), said.text().await.unwrap().as_str()), (400, r#"{"error":"invalid_grant"}"#));
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_is_dead_leads_back_to_the_password_once_and_no_lead_fails() {
    let world = squadrun(Duration::from_secs(3600)).await;
    let running = world.start().await;
    let mut ids = vec![world.one_more("ann").await];
    world.sandbox.revoke_all();
    ids.push(world.one_more("bob").await);
    assert_eq!(world.story(ids[1]).await, ["unauthorized 403", "delivered 201"]);
    assert_eq!(world.grants(), ["password", "refresh_token", "password"]);
    let statuses: Vec<_> = world.requests(Endpoint::Token).iter().map(|entry| entry.status.unwrap()).collect();
    assert_eq!(statuses, [200, 400, 200]);
    ids.push(world.one_more("cid").await);
    assert_eq!(world.story(ids[2]).await, ["delivered 201"]);
    assert_eq!(world.grants().len(), 3);
    delivered_once(&world, &ids).await;
    assert!(running.health.report().token.detail.starts_with("valid for"));
    nothing_paused(&running);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_is_refused_ahead_of_time_is_no_leads_business() {
    let world = squadrun(Duration::from_secs(3)).await;
    let refused = answer(400, r#"{"error":"invalid_grant"}"#).on_token();
    world.sandbox.faults().script([Fault::none().on_token(), refused]);
    let running = world.start().await;
    let ids = leads_until_tokens(&world, 2).await;
    assert_eq!(world.grants(), ["password", "refresh_token", "password"]);
    for id in &ids {
        assert_eq!(world.story(*id).await, ["delivered 201"], "the token in hand was still good");
    }
    nothing_paused(&running);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_whose_answer_is_lost_is_made_up_for_by_the_password() {
    for lost in [Fault::reset().after(), Fault::close().after(), answer(500, "").after()] {
        let kind = lost.kind.name();
        let world = squadrun(Duration::from_secs(6)).await;
        world.sandbox.faults().script([Fault::none().on_token(), lost.on_token()]);
        let running = world.start().await;
        // The third token: the second was given, and nobody knows it.
        let ids = leads_until_tokens(&world, 3).await;
        let grants = world.grants();
        assert_eq!(grants, ["password", "refresh_token", "refresh_token", "password"], "{kind}");
        let forms = world.token_forms();
        assert_eq!(forms[1]["refresh_token"], forms[2]["refresh_token"], "{kind}: the only one that is known");
        delivered_once(&world, &ids).await;
        nothing_paused(&running);
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_token_endpoint_is_away_the_refresh_token_is_kept_but_not_for_ever() {
    // A server that cannot deal with a refresh token any more may answer as one that is away.
    for (failures, then) in [(&[503, 500][..], "refresh_token"), (&[503, 500, 429], "password")] {
        let world = squadrun(Duration::from_secs(3600)).await;
        let running = world.start().await;
        let first = world.one_more("ann").await;
        world.sandbox.faults().rule("bob@", Some(1), answer(403, ""));
        world.sandbox.faults().script(failures.iter().map(|status| Fault::status(*status).on_token()));
        let second = world.one_more("bob").await;
        let grants = [&["password"], &vec!["refresh_token"; failures.len()][..], &[then]].concat();
        assert_eq!(world.grants(), grants);
        let forms = &world.token_forms()[1..=failures.len()];
        let used: BTreeSet<_> = forms.iter().map(|form| form["refresh_token"].clone()).collect();
        assert_eq!(used.len(), 1);
        delivered_once(&world, &[first, second]).await;
        assert!(running.health.report().token.ok);
        world.finish(running).await;
    }
}

// --- Several workers on one account

/// A worker whose requests for tokens carry its name.
async fn named_worker(world: &World, name: &str) -> Running {
    let mut settings = world.settings.clone();
    settings.destination.auth.parameters.insert("worker".to_owned(), name.to_owned());
    settings.flow.concurrency = 4;
    settings.flow.batch = 4;
    world.start_with(settings, name).await
}

/// When this worker's refreshes took place, with some room for what was under way.
fn refreshes(world: &World, name: &str) -> Vec<(Duration, Duration)> {
    let entries = world.requests(Endpoint::Token);
    let own = entries.iter().filter(|entry| form(entry.body.as_deref().unwrap())["worker"] == name);
    own.map(|entry| (entry.received, entry.ended.unwrap() + Duration::from_millis(150))).collect()
}

/// The refused posts of this worker, as the API saw them.
async fn refusals(world: &World, name: &str) -> Vec<Duration> {
    let sql = "select lead_id from attempts where worker = $1 and outcome = 'unauthorized'";
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar(sql).bind(name).fetch_all(&world.database.pool).await.unwrap();
    let posts = ids.into_iter().flat_map(|id| world.sandbox.journal().posts_for(id));
    posts.filter(|post| !post.token_ok).map(|post| post.received).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_of_one_account_never_cost_each_other_a_token() {
    let world = squadrun(Duration::from_secs(2)).await;
    let one = named_worker(&world, "one").await;
    let two = named_worker(&world, "two").await;
    let mut ids = Vec::new();
    // Both refresh all the time, each in its own rhythm.
    while refreshes(&world, "one").len() < 5 || refreshes(&world, "two").len() < 5 {
        ids.extend(world.publish_any_many(&format!("w{}x", ids.len()), 4).await);
        world.until_delivered(&ids[ids.len() - 4..]).await;
    }
    let forms = world.token_forms();
    for name in ["one", "two"] {
        let own: Vec<_> = forms.iter().filter(|form| form["worker"] == name).collect();
        assert_eq!(own[0]["grant_type"], "password", "{name}");
        assert!(own[1..].iter().all(|form| form["grant_type"] == "refresh_token"), "{name} had to log in again");
        let posts = world.number(match name {
            "one" => "select count(*) from attempts where worker = 'one' and outcome = 'delivered'",
            _ => "select count(*) from attempts where worker = 'two' and outcome = 'delivered'",
        });
        assert!(posts.await > 0, "{name} has posted nothing");
        let refreshes = refreshes(&world, name);
        for refused in refusals(&world, name).await {
            let own = refreshes.iter().any(|(from, to)| *from <= refused && refused <= *to);
            assert!(own, "{name} was refused at {refused:?}, and its own refreshes were {refreshes:?}");
        }
    }
    assert!(world.requests(Endpoint::Token).iter().all(|entry| entry.status == Some(200)));
    delivered_once(&world, &ids).await;

    // From here on, no refresh of the other's own is in the way.
    let asked = || ["one", "two"].map(|name| refreshes(&world, name).len());
    let before = asked();
    world.sandbox.set_token_lifetime(Duration::from_secs(3600));
    while asked().iter().zip(before).any(|(now, before)| *now == before) {
        ids.extend(world.publish_any_many(&format!("v{}x", ids.len()), 4).await);
        world.until_delivered(&ids[ids.len() - 4..]).await;
    }
    tokio::time::sleep(A_WHILE).await;
    let refused = world.number("select count(*) from attempts where outcome = 'unauthorized'").await;
    assert_eq!(one.stop().await, Stopped::Cleanly);
    let logouts = world.requests(Endpoint::Logout);
    let ended: Vec<_> = logouts.iter().map(|entry| (entry.status, entry.effect)).collect();
    assert_eq!(ended, [(Some(200), Effect::Ended), (Some(200), Effect::Nothing)], "the second went with the first");
    let hints: Vec<_> =
        logouts.iter().map(|entry| form(entry.body.as_deref().unwrap())["token_type_hint"].clone()).collect();
    assert_eq!(hints, ["refresh_token", "access_token"]);
    let last = world.publish_any_many("last", 30).await;
    world.until_delivered(&last).await;
    for id in &last {
        assert_eq!(world.story(*id).await, ["delivered 201"]);
    }
    assert_eq!(world.number("select count(*) from attempts where outcome = 'unauthorized'").await, refused);
    delivered_once(&world, &last).await;
    nothing_paused(&two);
    world.finish(two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_without_an_access_token_is_revoked_too() {
    let world = squadrun(Duration::from_secs(3600)).await;
    let running = world.start().await;
    world.one_more("ann").await;
    // One refusal: at the third in a row, the refresh token would be given up.
    world.sandbox.faults().script([Fault::retry_after(503, 600).on_token()]);
    world.sandbox.faults().rule("bob@", None, answer(403, ""));
    let id = world.publish_any("bob").await;
    let asked = |pages: &leadpost::sandbox::Pages| pages.counts().token_requests >= 2;
    world.sandbox.journal().wait_for(asked, DEADLINE).await.unwrap();
    assert_eq!(world.until_attempts(id, 1).await.state, LeadState::Pending);
    assert_eq!(running.stop().await, Stopped::Cleanly);
    let [logout] = &world.requests(Endpoint::Logout)[..] else { panic!("not one log-out") };
    let hint = form(logout.body.as_deref().unwrap())["token_type_hint"].clone();
    assert_eq!((hint.as_str(), logout.effect), ("refresh_token", Effect::Ended));
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_is_refused_in_any_words_leads_back_to_the_password() {
    for (status, body) in
        [(401, r#"{"error":"invalid_token"}"#), (400, ""), (403, ""), (400, r#"{"error":"unsupported_grant_type"}"#)]
    {
        let world = squadrun(Duration::from_secs(3600)).await;
        let running = world.start().await;
        world.one_more("ann").await;
        world.sandbox.revoke_all();
        world.sandbox.faults().script([answer(status, body).on_token()]);
        let id = world.one_more("bob").await;
        assert_eq!(world.story(id).await, ["unauthorized 403", "delivered 201"]);
        assert_eq!(world.grants(), ["password", "refresh_token", "password"], "{status} {body}");
        nothing_paused(&running);
        world.finish(running).await;
    }
}
