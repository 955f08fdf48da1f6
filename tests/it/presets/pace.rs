//! An API that is in a hurry to say no: leads wait for their time, and none is lost or posted twice.

use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;

use super::{Preset, attempts, each_was_created_once, finish};
use crate::support::World;

const TAKEN: usize = 4;
const LEADS: usize = 10;

pub async fn leads_that_meet_the_rate_limit_wait_for_their_time_and_go_out_once(preset: &Preset) {
    let world = preset.world().await;
    world.sandbox.tune(|tuning| match preset.name {
        // Documented, and so is that no Retry-After comes with it.
        "squadrun" | "squadiq" => tuning.rate_limit_per_min = Some(4),
        // As Amazon API Gateway limits whom it serves.
        "7targets" | "7targets-2024" => tuning.rate_limit_per_s = Some(4),
        _ => {
            tuning.capacity = Some(4);
            tuning.latency = Duration::from_millis(400);
        }
    });
    let with_retry_after = !["squadrun", "squadiq"].contains(&preset.name);
    let ids = preset.publish_many(&world, "ann", LEADS).await;
    let worker = world.worker(&[]).await;
    world.until_count(LeadState::Delivered, 4).await;
    world
        .until("each was tried", async || {
            // Those that were not posted because of a Retry-After are still to come; the API takes no more of them meanwhile.
            let tried = world.number("select count(*) from leads where attempts > 0 and lease is null").await;
            tried == i64::try_from(LEADS).unwrap() || (with_retry_after && attempts(&world, "retry").await > 0)
        })
        .await;
    let asked = world.number("select count(*) from attempts where outcome = 'retry' and retry_after_ms = 1000").await;
    assert_eq!(asked, if with_retry_after { attempts(&world, "retry").await } else { 0 });
    let refused = waiting(&world, &ids, with_retry_after).await;
    assert!(refused > 0 && (with_retry_after || refused == LEADS - TAKEN), "{refused}");

    world.sandbox.tune(|tuning| {
        (tuning.rate_limit_per_min, tuning.rate_limit_per_s, tuning.capacity) = (None, None, None);
        tuning.latency = Duration::ZERO;
    });
    world.until_all_delivered(&ids).await;
    let refused = attempts(&world, "retry").await;
    for id in &ids {
        let story = world.story(*id).await;
        let (last, before) = story.split_last().unwrap();
        assert_eq!(*last, preset.delivered());
        assert!(before.iter().all(|attempt| attempt == "retry 429"), "{story:?}");
    }
    each_was_created_once(&world, LEADS, refused).await;
    finish(world, worker).await;
}

/// Those that were refused wait, with the refusal on record, for as long as the schedule says; how many they are.
async fn waiting(world: &World, ids: &[LeadId], with_retry_after: bool) -> usize {
    let mut refused = 0;
    for id in ids {
        let lead = world.show(*id).await;
        let Some(attempt) = lead.history.first().filter(|attempt| attempt.outcome == "retry") else { continue };
        refused += 1;
        assert_eq!((lead.state, lead.charged, lead.history.len()), (LeadState::Pending, 1, 1));
        assert_eq!(attempt.http_status, Some(429));
        let words = if with_retry_after { "Too Many Requests" } else { "You hit a rate limit!" };
        assert_eq!(lead.reason, Some(format!("the API answered 429: {words}")));
        let due = world.due_in(*id).await;
        assert!(due > Duration::from_secs(4) && due <= Duration::from_secs(12), "due in {due:?}");
    }
    refused
}

pub async fn by_itself_it_keeps_below_the_documented_hundred_a_minute(preset: &Preset) {
    const PER_S: f64 = 100.0 / 60.0;
    let world = World::of_preset(preset.name).await;
    preset.publish_many(&world, "first", 1).await;
    let worker = world.worker(&[]).await;
    world.until_count(LeadState::Delivered, 1).await;
    preset.publish_many(&world, "ann", 4).await;
    world.until_count(LeadState::Delivered, 5).await;
    // The first bears the log-in, and a connection.
    let posts = world.sandbox.journal().posts().split_off(1);
    assert_eq!(posts.len(), 4);
    for (at, first) in posts.iter().enumerate() {
        for (further, last) in posts.iter().enumerate().skip(at + 1) {
            let took = (last.received - first.received).as_secs_f64();
            let n = (further - at) as f64;
            // A post may come somewhat late, and the next one in time.
            assert!(n <= PER_S * took + 0.4, "{n} posts followed one within {took} s: {}", 60.0 * n / took);
        }
    }
    assert_eq!(attempts(&world, "retry").await, 0);
    each_was_created_once(&world, 5, 0).await;
    finish(world, worker).await;
}
