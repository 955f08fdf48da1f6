//! Tokens and sessions that end early, in time, or by the API's will, while leads flow.

use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::sandbox::{Endpoint, Entry};

use super::{Preset, attempts, each_was_created_once, finish, readiness, set};
use crate::support::{DEADLINE, Process, World};

fn log_ins(world: &World) -> Vec<Entry> {
    world.sandbox.journal().entries().into_iter().filter(|entry| entry.endpoint == Endpoint::Token).collect()
}

/// The grants that were asked for, in order.
fn grants(world: &World) -> Vec<String> {
    let grant = |entry: &Entry| {
        let pairs = url::form_urlencoded::parse(entry.body.as_ref().unwrap()).into_owned();
        pairs.into_iter().find(|(name, _)| name == "grant_type").unwrap().1
    };
    log_ins(world).iter().map(grant).collect()
}

/// Every refusal that the API made is on record as one of the token, and charged to nobody; none paused the flow.
async fn refusals_are_nobodys_fault(preset: &Preset, world: &World, worker: &Process) -> usize {
    let posts = world.sandbox.journal().posts();
    let refused: Vec<&Entry> = posts.iter().filter(|post| !post.token_ok).collect();
    assert!(refused.iter().all(|post| post.status == Some(preset.refusal)), "{refused:?}");
    let sql = "select count(*) from attempts where outcome = 'unauthorized' and not charged and http_status = $1";
    let on_record: i64 = sqlx::query_scalar(sql)
        .bind(i16::try_from(preset.refusal).unwrap())
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(on_record, i64::try_from(refused.len()).unwrap());
    assert_eq!(attempts(world, "unauthorized").await, on_record);
    assert_eq!(attempts(world, "systemic").await, 0);
    assert!(!worker.said().contains("posts are paused"), "a token that ended is no reason to pause");
    assert_eq!(readiness(worker).await.0, 200);
    refused.len()
}

async fn a_few_more_are_delivered(preset: &Preset, world: &World, ids: &mut Vec<LeadId>) {
    let more = preset.publish_many(world, &format!("ann{}x", ids.len()), 3).await;
    world.until_delivered(&more).await;
    ids.extend(more);
}

pub async fn leads_outlive_tokens_that_die_before_their_announced_end(preset: &Preset) {
    const LIFETIME: Duration = Duration::from_millis(450);
    let world = preset.world().await;
    world.sandbox.tune(|tuning| {
        tuning.token_lifetime = LIFETIME;
        tuning.announced_lifetime_s = Some(3600);
        tuning.rate_limit_per_min = None;
    });
    let worker = world.worker(&[]).await;
    let mut ids = Vec::new();
    while world.sandbox.journal().tokens_issued() < 3 {
        a_few_more_are_delivered(preset, &world, &mut ids).await;
        if preset.slides {
            // It only dies when nobody uses it.
            tokio::time::sleep(LIFETIME).await;
        }
    }
    let refused = refusals_are_nobodys_fault(preset, &world, &worker).await;
    assert!(refused >= 2, "two tokens have died, and {refused} posts met that");
    assert_eq!(log_ins(&world).len(), 3, "one log-in for each token, whoever noticed its end");
    if preset.name == "squadrun" {
        assert_eq!(grants(&world), ["password", "refresh_token", "refresh_token"]);
    }
    each_was_created_once(&world, ids.len(), 0).await;
    finish(world, worker).await;
}

pub async fn a_token_is_renewed_before_its_announced_end_and_no_post_meets_a_dead_one(preset: &Preset) {
    let world = preset.world().await;
    world.sandbox.tune(|tuning| {
        tuning.token_lifetime = Duration::from_secs(6);
        tuning.rate_limit_per_min = None;
    });
    let worker = world.worker(&[]).await;
    let mut ids = Vec::new();
    while world.sandbox.journal().tokens_issued() < 2 {
        a_few_more_are_delivered(preset, &world, &mut ids).await;
    }
    a_few_more_are_delivered(preset, &world, &mut ids).await;
    let log_ins = log_ins(&world);
    let age = log_ins[1].received - log_ins[0].received;
    assert!(age >= Duration::from_millis(4_400) && age < Duration::from_secs(6), "renewed at {age:?}");
    let refused = refusals_are_nobodys_fault(preset, &world, &worker).await;
    if preset.name == "squadrun" {
        // A refresh kills the former token at once; posts under way may meet that.
        assert_eq!(grants(&world), ["password", "refresh_token"]);
    } else {
        assert_eq!(refused, 0, "posted with a dead token");
    }
    each_was_created_once(&world, ids.len(), 0).await;
    finish(world, worker).await;
}

pub async fn a_session_lives_on_while_it_is_used_and_one_that_was_idle_is_not_used(preset: &Preset) {
    const LIFETIME: Duration = Duration::from_secs(1);
    let mut world = preset.world().await;
    // The API counts in minutes, which is long for a test: "expire": 1 is a second here, on both sides.
    set(&mut world, "DESTINATION__AUTH__LIFETIME_UNIT", "seconds");
    world.sandbox.tune(|tuning| {
        tuning.token_lifetime = LIFETIME;
        tuning.announced_lifetime_s = Some(60);
    });
    let worker = world.worker(&[]).await;
    let mut ids = Vec::new();
    a_few_more_are_delivered(preset, &world, &mut ids).await;
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < LIFETIME + LIFETIME / 2 {
        a_few_more_are_delivered(preset, &world, &mut ids).await;
        tokio::time::sleep(LIFETIME / 10).await;
    }
    assert_eq!(log_ins(&world).len(), 1, "each success begins its lifetime anew");
    tokio::time::sleep(LIFETIME).await;
    a_few_more_are_delivered(preset, &world, &mut ids).await;
    assert_eq!(log_ins(&world).len(), 2);
    assert_eq!(refusals_are_nobodys_fault(preset, &world, &worker).await, 0, "posted with a dead session");
    each_was_created_once(&world, ids.len(), 0).await;
    finish(world, worker).await;
}

pub async fn a_revocation_in_the_middle_of_the_flow_costs_a_log_in_and_no_lead(preset: &Preset) {
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    let mut ids = Vec::new();
    a_few_more_are_delivered(preset, &world, &mut ids).await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(100));
    ids.extend(preset.publish_many(&world, "bob", 4).await);
    world.sandbox.journal().wait_for(|pages| pages.counts().posts == 7, DEADLINE).await.unwrap();
    world.sandbox.revoke_all();
    ids.extend(preset.publish_many(&world, "cid", 4).await);
    world.until_delivered(&ids).await;

    let refused = refusals_are_nobodys_fault(preset, &world, &worker).await;
    assert!((1..=8).contains(&refused), "{refused}");
    for id in &ids {
        let story = world.story(*id).await;
        let refusal = format!("unauthorized {}", preset.refusal);
        assert!(story == [preset.delivered()] || story == [refusal, preset.delivered()], "{story:?}");
    }
    if preset.name == "squadrun" {
        assert_eq!(grants(&world), ["password", "refresh_token", "password"], "the refresh token is revoked too");
    } else {
        assert_eq!(log_ins(&world).len(), 2, "one log-in for all");
    }
    each_was_created_once(&world, ids.len(), 0).await;
    finish(world, worker).await;
}
