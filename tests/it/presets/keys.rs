//! Credentials that do not change until somebody changes them: what happens when the API stops taking them.

use leadpost::lead::LeadId;
use leadpost::sandbox::Tuning;

use super::{Preset, attempts, charged, each_was_created_once, ended, finish, is_discreet, readiness, until_paused};
use crate::support::{Process, World};

const ANOTHER: &str = "another-key-0123456789";

/// The key at the API, and the setting that holds it.
fn key_of<'a>(preset: &Preset, tuning: &'a mut Tuning) -> (&'a mut String, &'static str) {
    match preset.name {
        "squadiq" => (&mut tuning.bearer_token, "LEADPOST__DESTINATION__AUTH__BEARER_TOKEN"),
        _ => (&mut tuning.user_api_key, "LEADPOST__DESTINATION__AUTH__API_KEY"),
    }
}

/// Three leads are delivered, the API takes another key from then on, and five leads wait for that at no cost: these.
async fn leads_wait_for_a_key(preset: &Preset, world: &World, worker: &Process) -> Vec<LeadId> {
    let before = preset.publish_many(world, "before", 3).await;
    world.until_delivered(&before).await;
    world.sandbox.tune(|tuning| *key_of(preset, tuning).0 = ANOTHER.to_owned());
    let waiting = preset.publish_many(world, "waiting", 5).await;
    let (api, token) = until_paused(world, worker).await;
    let refusal = format!("): the API answered {}", preset.refusal);
    assert!(api.contains("the credentials are refused (check destination.auth.") && api.contains(&refusal), "{api:?}");
    assert_eq!(token, "credentials that do not change");
    worker.until_said("posts are paused").await;
    // Some of them are tried again and again, one at a time.
    let tried = world.sandbox.journal().counts().posts + 2;
    let more = |pages: &leadpost::sandbox::Pages| pages.counts().posts >= tried;
    world.sandbox.journal().wait_for(more, crate::support::DEADLINE).await.unwrap();

    assert_eq!((charged(world).await, ended(world).await), (3, 3), "nothing is charged for a key");
    let posts = world.sandbox.journal().posts();
    assert!(posts.iter().skip(3).all(|post| !post.token_ok), "{posts:?}");
    assert!(attempts(world, "systemic").await > 0);
    let sql = "select count(*) from attempts where outcome <> 'systemic' or http_status <> $1 or charged";
    let others: i64 = sqlx::query_scalar(sql)
        .bind(i16::try_from(preset.refusal).unwrap())
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(others, 3, "nothing came of it but refusals");
    assert_eq!(readiness(worker).await.0, 503);
    is_discreet(world, &worker.said());
    waiting
}

pub async fn leads_wait_at_no_cost_while_their_key_is_withdrawn(preset: &Preset) {
    let world = preset.world().await;
    let right = world.sandbox.tuning();
    let worker = world.worker(&[]).await;
    let waiting = leads_wait_for_a_key(preset, &world, &worker).await;
    world.sandbox.tune(|tuning| *tuning = right);
    let after = preset.publish_many(&world, "after", 2).await;
    world.until_all_delivered(&waiting).await;
    world.until_all_delivered(&after).await;
    world.until("all is well again", async || readiness(&worker).await.0 == 200).await;
    each_was_created_once(&world, 10, 0).await;
    finish(world, worker).await;
}

pub async fn leads_that_wait_for_a_key_that_has_expired_go_out_with_its_successor(preset: &Preset) {
    let mut world = preset.world().await;
    let worker = world.worker(&[]).await;
    let waiting = leads_wait_for_a_key(preset, &world, &worker).await;
    is_discreet(&world, &worker.stop().await);
    let (_, setting) = key_of(preset, &mut Tuning::default());
    world.destination.push((setting.to_owned(), ANOTHER.to_owned()));
    let worker = world.worker(&[]).await;
    world.until_all_delivered(&waiting).await;
    world.until("all is well", async || readiness(&worker).await.0 == 200).await;
    each_was_created_once(&world, 8, 0).await;
    finish(world, worker).await;
}
