//! When leads are sent, how many at a time, how fast, and when none.

use std::cell::Cell;
use std::collections::HashSet;
use std::time::Duration;

use leadpost::flow::CircuitState;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Entry, Fault};

use crate::support::{DEADLINE, Running, World};

async fn started(world: World) -> (World, Running) {
    let running = world.start().await;
    (world, running)
}

/// Waits until the API has met so many posts and the flow is paused.
async fn until_probed_in_vain(world: &World, running: &Running, posts: u64) {
    world.sandbox.journal().wait_for(|pages| pages.counts().posts >= posts, DEADLINE).await.unwrap();
    world.until("the flow is paused", async || running.health.report().flow.circuit != CircuitState::Closed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_forbids_everything_gets_few_posts_and_burns_no_lead() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 8;
    world.sandbox.faults().rate(1.0, Fault::status(403).delayed(Duration::from_millis(100))).unwrap();
    let ids = world.publish_many("ann", 200).await;
    let (world, running) = started(world).await;
    until_probed_in_vain(&world, &running, 8 + 2).await;
    // Now those are due again whose answers are suspected, and for longer than the others.
    let sql = "update leads set next_attempt_at = now() - interval '1 hour' where attempts > 0 and lease is null";
    assert!(sqlx::query(sql).execute(&world.database.pool).await.unwrap().rows_affected() >= 8);
    until_probed_in_vain(&world, &running, 8 + 5).await;

    let posts = world.sandbox.journal().posts();
    // The first probe comes when the first answer is known, and may meet the other slots' posts.
    let at_a_time: Vec<u32> = posts.iter().skip(8 + 1).map(|post| post.in_flight).collect();
    assert!(at_a_time.iter().all(|n| *n == 1), "more than a probe at a time: {at_a_time:?}");
    let keys: HashSet<_> = posts.iter().map(|post| post.key.clone()).collect();
    assert_eq!(keys.len(), posts.len(), "a probe came with a suspected lead although others wait");
    assert_eq!(world.number("select coalesce(sum(charged), 0)::bigint from leads").await, 0);
    assert_eq!(world.number("select count(*) from leads where state <> 'pending'").await, 0);
    let report = running.health.report();
    assert!(!report.ready && report.api.detail.contains("403"), "{report:?}");
    assert_eq!(running.metrics.opened.get(), 1);

    world.sandbox.faults().clear();
    world.until_all_delivered(&ids).await;
    assert_eq!(world.sandbox.journal().created_count(), 200);
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, 200);
    assert_eq!(world.number("select count(*) from leads where suspected > 0").await, 0, "nobody is to blame");
    assert!(running.health.report().ready);
    world.finish(running).await;
}

/// Of `all` messages no more than `some` have been taken, and each of those is in the ledger.
async fn all_but_some_are_in_the_queue(world: &World, some: i64, all: i64) {
    let accepted = async || world.number("select count(*) from leads").await;
    world
        .until("what was taken is in the ledger", async || {
            i64::from(world.broker.depth().await) + accepted().await == all
        })
        .await;
    let accepted = accepted().await;
    assert!(accepted <= some, "{accepted} messages were taken although nothing may be sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_posts_are_paused_for_long_the_backlog_stays_in_the_queue() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 2;
    world.settings.flow.probe_initial_ms = 60_000;
    world.settings.flow.probe_max_ms = 60_000;
    world.sandbox.tune(|tuning| tuning.leads_unavailable = Some(403));
    let (world, running) = started(world).await;
    let mut ids = world.publish_many("before", 5).await;
    world.until_consuming(&running, false).await;
    ids.extend(world.publish_many("after", 50).await);
    all_but_some_are_in_the_queue(&world, 5, 55).await;
    // The first probe after a systemic answer comes at once, the next one in a minute.
    assert!(world.sandbox.journal().counts().posts <= 3, "{:?}", world.sandbox.journal().counts());
    world.sandbox.tune(|tuning| tuning.leads_unavailable = None);
    running.stop().await;
    let running = world.start().await;
    world.until_all_delivered(&ids).await;
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, 55);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_lead_does_not_stop_the_others_and_is_rejected_at_its_third_suspicion() {
    let (world, running) = started(World::new().await).await;
    world.sandbox.faults().rule("bad@", None, Fault::status(404));
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(20));
    let bad = world.publish("bad").await;
    let mut good = Vec::new();
    for round in 1..=3 {
        good.extend(world.publish_many(&format!("good{round}-"), 10).await);
        let lead = world.until_attempts(bad, round).await;
        assert_eq!(lead.charged, 0);
        good.extend(world.publish_many(&format!("more{round}-"), 5).await);
        world.until_delivered(&good).await;
        world.until("posts go on", async || running.health.report().ready).await;
        world.pass(Duration::from_secs(60)).await;
    }
    let lead = world.until_state(bad, LeadState::Rejected).await;
    assert_eq!(lead.code.as_deref(), Some("systemic_own_fault"));
    assert_eq!(world.story(bad).await, ["systemic 404"; 3]);
    assert_eq!(lead.charged, 0);
    assert!(lead.reason.unwrap().contains("while other leads passed"));
    for id in good {
        assert_eq!(world.story(id).await, ["delivered 201"]);
    }
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_lead_is_found_out_in_light_traffic_too() {
    let (world, running) = started(World::new().await).await;
    world.sandbox.faults().rule("bad@", None, Fault::status(404));
    let bad = world.publish("bad").await;
    for round in 1..=3 {
        world.until_attempts(bad, round).await;
        // The next lead is the probe, and passes.
        let good = world.publish(&format!("good{round}")).await;
        world.until_state(good, LeadState::Delivered).await;
        world.until("posts go on", async || running.health.report().ready).await;
        let suspected = format!("suspected {round} times");
        world.until(&suspected, async || world.suspicions(bad).await == round).await;
        world.pass(Duration::from_secs(60)).await;
    }
    let lead = world.until_state(bad, LeadState::Rejected).await;
    assert_eq!(lead.code.as_deref(), Some("systemic_own_fault"));
    assert_eq!(world.posts(bad), 3);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_lead_that_met_a_passing_fault_of_the_system_is_its_own_probe_and_is_not_blamed() {
    let (world, running) = started(World::new().await).await;
    world.sandbox.faults().script([Fault::status(403)]);
    let id = world.publish("ann").await;
    world.until_attempts(id, 1).await;
    world.until_all_delivered(&[id]).await;
    assert_eq!(world.story(id).await, ["systemic 403", "delivered 201"]);
    world.until("posts go on", async || running.health.report().ready).await;
    assert_eq!(world.suspicions(id).await, 0);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_failures_opens_the_circuit_and_charges_only_the_leads_that_were_posted() {
    for fault in [Fault::status(503), Fault::status(500)] {
        let mut world = World::new().await;
        world.settings.flow.concurrency = 2;
        world.settings.flow.open_after = 5;
        world.sandbox.faults().rate(1.0, fault).unwrap();
        let ids = world.publish_many("ann", 60).await;
        let (world, running) = started(world).await;
        until_probed_in_vain(&world, &running, 5).await;
        let posts = world.sandbox.journal().counts().posts;
        assert!(posts <= 5 + 2 + 3, "{posts} posts");
        until_probed_in_vain(&world, &running, posts + 2).await;
        assert_eq!(running.metrics.opened.get(), 1);
        world.sandbox.faults().clear();
        world.until_all_delivered(&ids).await;
        let failed = world.number("select count(*) from attempts where outcome in ('retry', 'uncertain')").await;
        assert!(failed < 20, "{failed} attempts were wasted on an API that was away");
        assert_eq!(world.number("select sum(charged)::bigint from leads").await, 60 + failed);
        assert!(world.number("select max(charged)::bigint from leads").await <= 3);
        world.finish(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_wants_an_hour_stops_intake_and_health_says_so() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 4;
    world.sandbox.faults().rate(1.0, Fault::retry_after(429, 3600)).unwrap();
    let (world, running) = started(world).await;
    let mut ids = world.publish_many("before", 20).await;
    world.until_consuming(&running, false).await;
    ids.extend(world.publish_many("after", 30).await);
    all_but_some_are_in_the_queue(&world, 20, 50).await;
    let report = running.health.report();
    assert!(!report.ready, "{report:?}");
    assert!(report.api.detail.contains("left alone for 3"), "{report:?}");
    let posts = world.sandbox.journal().counts().posts;
    assert!(posts <= 4, "{posts} posts");
    assert_eq!(world.number("select sum(charged)::bigint from leads").await, i64::try_from(posts).unwrap());
    world.sandbox.faults().clear();
    running.stop().await;
    world.pass(Duration::from_secs(3600)).await;
    let running = world.start().await;
    world.until_all_delivered(&ids).await;
    world.finish(running).await;
}

/// The rate is kept where a lead is taken. A post arrives after a commit, and on a busy machine some arrive later than others,
/// which can move as many into one second as fall due in a fifth of it.
const SLACK: f64 = 1.25;

/// The most posts that the API received in any such span.
fn most_within(posts: &[Entry], span: Duration) -> usize {
    let begins = posts.iter().map(|post| post.received);
    begins
        .map(|from| posts.iter().filter(|post| post.received >= from && post.received < from + span).count())
        .max()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_holds_over_any_second() {
    const RATE: f64 = 40.0;
    const BURST: f64 = 1.0 + RATE / 10.0;
    let mut world = World::new().await;
    world.settings.flow.rate_per_s = RATE;
    let (world, running) = started(world).await;
    // With this one comes the token, for which the others would have to wait together.
    let first = world.publish("first").await;
    world.until_state(first, LeadState::Delivered).await;
    world.sandbox.journal().clear();
    world.publish_many("ann", 100).await;
    world.until_count(LeadState::Delivered, 101).await;
    let posts = world.sandbox.journal().posts();
    let took = posts.last().unwrap().received - posts[0].received;
    assert!(took.as_secs_f64() >= (100.0 - 2.0 - BURST) / RATE, "{took:?} is too fast");
    assert!(took.as_secs_f64() <= 4.0 * 100.0 / RATE, "{took:?} is much slower than allowed");
    let most = most_within(&posts, Duration::from_secs(1));
    assert!(most as f64 <= (RATE + BURST) * SLACK, "{most} posts within a second");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_had_to_wait_for_a_token_do_not_break_the_rate_limit_when_it_comes() {
    const RATE: f64 = 20.0;
    let mut world = World::new().await;
    world.settings.flow.rate_per_s = RATE;
    world.sandbox.tune(|tuning| tuning.token_delay = Duration::from_millis(1_500));
    world.publish_many("ann", 60).await;
    let (world, running) = started(world).await;
    world.until_count(LeadState::Delivered, 60).await;
    let most = most_within(&world.sandbox.journal().posts(), Duration::from_secs(1));
    assert!(most as f64 <= RATE * 1.1 * SLACK, "{most} posts within a second");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_one_rate_limit() {
    const RATE: f64 = 40.0;
    let mut world = World::new().await;
    world.settings.flow.rate_per_s = RATE;
    world.settings.flow.concurrency = 4;
    let first = world.start_named("first").await;
    let second = world.start_named("second").await;
    world
        .until("both know of each other", async || {
            [&first, &second].iter().all(|worker| worker.health.report().flow.rate_per_s == Some(RATE / 2.0))
        })
        .await;
    let ids = world.publish_many("ann", 100).await;
    world.until_count(LeadState::Delivered, 100).await;
    let posts = world.sandbox.journal().posts();
    let most = most_within(&posts, Duration::from_secs(1));
    assert!(most as f64 <= RATE * 1.1 * SLACK, "{most} posts within a second");
    assert!(ids.iter().all(|id| world.posts(*id) == 1));
    assert_eq!(second.stop().await, leadpost::worker::Stopped::Cleanly);
    world.finish(first).await;
}

/// Waits until so many workers have said that this is their share of the rate limit.
async fn until_shared(world: &World, workers: i64, per_s: f64) {
    let sql = "select count(*) from workers where (status ->> 'rate_per_s')::float8 = $1";
    world
        .until(&format!("{workers} workers have {per_s}/s each"), async || {
            let sharing: i64 = sqlx::query_scalar(sql).bind(per_s).fetch_one(&world.database.pool).await.unwrap();
            sharing == workers
        })
        .await;
}

/// From now on the limit is used up, within 5 %: in most of the windows that follow each other. What falls due while the machine stands still is lost,
/// so a busy one may spoil a window or two; what it holds up and lets go together is in one window or in the next. Of all together no more is lost
/// than a tenth, and nothing is gained.
async fn keeps_to(world: &World, rate: f64) {
    const WINDOWS: u32 = 5;
    const WINDOW: Duration = Duration::from_secs(4);
    // From a post on, which is not counted.
    let from = world.sandbox.journal().posts().last().unwrap().received;
    tokio::time::sleep(WINDOW * WINDOWS).await;
    let posts = world.sandbox.journal().posts();
    let within = |from: Duration, span: Duration| {
        let posts = posts.iter().filter(|post| post.received > from && post.received <= from + span).count();
        posts as f64 / span.as_secs_f64() / rate
    };
    let paces: Vec<f64> = (0..WINDOWS).map(|n| within(from + WINDOW * n, WINDOW)).collect();
    let kept = paces.iter().filter(|pace| (0.95..=1.05).contains(*pace)).count();
    assert!(2 * kept > paces.len(), "of the limit were used, window by window: {paces:.2?}");
    let all = within(from, WINDOW * WINDOWS);
    assert!((0.9..=1.05).contains(&all), "of the limit were used: {all:.3}, window by window {paces:.2?}");
}

/// The most that workers may post in so long: what falls due, what each may save up, and what is held up on a busy machine and then let go.
fn most_of(rate: f64, workers: f64, span: Duration) -> f64 {
    const SAVED_S: f64 = 0.1;
    const HELD_UP_S: f64 = 0.2;
    rate * (span.as_secs_f64() + SAVED_S + HELD_UP_S) + workers
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_keep_to_one_rate_limit_also_when_one_comes_and_when_one_is_killed() {
    const RATE: f64 = 60.0;
    const WORKERS: f64 = 3.0;
    // Out of sight for 3.5 s, seen to be so at the next heartbeat, and said with the one after that; and some time for slow ones.
    const SHARED_ANEW: Duration = Duration::from_secs(8);
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(20));
    world.publish_many("ann", 200).await;
    let set = ["--set", "flow.rate_per_s=60", "--set", "amqp.prefetch=20"];
    let is_wanted = Cell::new(true);
    // There is always more to send than may be.
    let publishing = async {
        while is_wanted.get() {
            match world.broker.depth().await {
                0..200 => drop(world.publish_many("bob", 50).await),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let working = async {
        let first = world.worker(&set).await;
        let second = world.worker(&set).await;
        until_shared(&world, 2, RATE / 2.0).await;
        let mut third = world.worker(&set).await;
        until_shared(&world, 3, RATE / WORKERS).await;
        world
            .until("all three post", async || world.number("select count(distinct worker) from attempts").await == 3)
            .await;
        keeps_to(&world, RATE).await;
        third.signal("KILL");
        third.ended().await;
        let killed_at = tokio::time::Instant::now();
        until_shared(&world, 2, RATE / 2.0).await;
        let shared = killed_at.elapsed();
        assert!(shared < SHARED_ANEW, "the share of a worker that was killed lay idle for {shared:?}");
        keeps_to(&world, RATE).await;
        first.stop().await;
        second.stop().await;
        is_wanted.set(false);
    };
    tokio::join!(publishing, working);
    let posts = world.sandbox.journal().posts();
    for span in [1, 5, 15].map(Duration::from_secs) {
        let most = most_within(&posts, span);
        assert!(most as f64 <= most_of(RATE, WORKERS, span), "{most} posts within {span:?}");
    }

    world.expire_leases().await;
    let last = world.worker(&[]).await;
    let leads = i64::try_from(world.broker.confirmed().len()).unwrap();
    world
        .until("all have arrived", async || {
            world.hurry().await;
            world.number("select count(*) from leads where state in ('delivered', 'duplicate')").await == leads
        })
        .await;
    last.stop().await;
    world.check_in_full().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_posts_are_under_way_than_configured_and_all_places_are_used() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 4;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(25));
    world.publish_many("ann", 80).await;
    let (world, running) = started(world).await;
    world.until_count(LeadState::Delivered, 80).await;
    assert_eq!(world.sandbox.journal().counts().max_in_flight, 4);
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_accepted_ahead_do_not_count_as_posts_under_way_when_the_api_is_busy() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 4;
    world.sandbox.tune(|tuning| {
        tuning.latency = Duration::from_millis(10);
        tuning.capacity = Some(4);
    });
    world.publish_many("ann", 100).await;
    let (world, running) = started(world).await;
    world.until_count(LeadState::Delivered, 100).await;
    assert_eq!(world.number("select count(*) from attempts").await, 100, "the API with room for four had to refuse");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_on_one_queue_share_the_work_and_no_lead_is_posted_twice() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 4;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_millis(10));
    let first = world.start_named("first").await;
    let second = world.start_named("second").await;
    world.until_consuming(&first, true).await;
    world.until_consuming(&second, true).await;
    // Every third is busy at first, so that both have retries to claim as well.
    world.sandbox.faults().rule("busy", Some(1), Fault::status(503));
    let mut ids: Vec<LeadId> = Vec::new();
    for n in 0..50 {
        ids.push(world.publish(&format!("busy{n}")).await);
        ids.push(world.publish(&format!("one{n}")).await);
        ids.push(world.publish(&format!("two{n}")).await);
    }
    world.until_all_delivered(&ids).await;
    assert_eq!(world.sandbox.journal().created_count(), 150);
    assert_eq!(world.sandbox.journal().counts().posts, 200);
    for worker in ["first", "second"] {
        let share: i64 = sqlx::query_scalar("select count(*) from attempts where worker = $1")
            .bind(worker)
            .fetch_one(&world.database.pool)
            .await
            .unwrap();
        assert!(share >= 40, "{worker} made {share} of 200 posts");
    }
    assert_eq!(second.stop().await, leadpost::worker::Stopped::Cleanly);
    world.finish(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_fails_during_a_probe_does_not_leave_the_circuit_probing_for_ever() {
    let mut world = World::new().await;
    world.settings.postgres.lock_timeout_ms = 200;
    world.sandbox.tune(|tuning| tuning.leads_unavailable = Some(403));
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.publish("bob").await;
    world.until_attempts(id, 1).await;
    let mut lock = world.database.pool.begin().await.unwrap();
    sqlx::query("lock table leads in access exclusive mode").execute(&mut *lock).await.unwrap();
    // Seen to fail: a probe that wanted a lead.
    world.until("a claim has failed", async || running.metrics.ledger_failures.get() >= 3).await;
    lock.rollback().await.unwrap();
    world.sandbox.tune(|tuning| tuning.leads_unavailable = None);
    world.pass(Duration::from_secs(60)).await;
    world.until_count(LeadState::Delivered, 2).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_known_to_other_workers_and_outlives_the_one_that_was_told() {
    let world = World::new().await;
    world.sandbox.faults().script([Fault::retry_after(429, 3600)]);
    let first = world.start_named("first").await;
    let id = world.publish("ann").await;
    world.until_attempts(id, 1).await;
    world
        .until("the hold is in the ledger", async || {
            world.number("select count(*) from destinations where held_until > now() + interval '50 minutes'").await
                == 1
        })
        .await;
    assert_eq!(first.stop().await, leadpost::worker::Stopped::Cleanly);
    let second = world.start_named("second").await;
    world.publish("bob").await;
    world.until("the second worker holds back, too", async || second.health.report().flow.hold_s.is_some()).await;
    assert_eq!(second.stop().await, leadpost::worker::Stopped::Cleanly);
    assert_eq!(world.sandbox.journal().posts().len(), 1);
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_leads_waiting_more_and_more_are_posted_at_a_time_up_to_the_ceiling() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 100;
    world.settings.flow.min_concurrency = 1;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(1));
    let ids = world.publish_many("ann", 1_000).await;
    let (world, running) = started(world).await;
    assert_eq!(running.health.report().flow.concurrency, 16);
    world
        .until("as many are posted at a time as may be", async || world.sandbox.journal().counts().max_in_flight == 100)
        .await;
    assert_eq!(running.health.report().flow.concurrency, 100);
    world.until_all_delivered(&ids).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_refuses_what_is_too_much_is_soon_refusing_next_to_nothing_and_no_lead_is_lost() {
    const CAPACITY: u32 = 20;
    let mut world = World::new().await;
    world.settings.flow.concurrency = 200;
    world.settings.flow.min_concurrency = 1;
    world.settings.retry.initial_ms = 100;
    world.settings.retry.max_attempts = 1_000;
    world.sandbox.tune(|tuning| {
        tuning.latency = Duration::from_millis(300);
        tuning.capacity = Some(CAPACITY);
        tuning.retry_after_s = 0;
    });
    let ids = world.publish_many("ann", 600).await;
    let (world, running) = started(world).await;
    world.until_all_delivered(&ids).await;
    let posts = world.sandbox.journal().posts();
    let refused = |posts: &[Entry]| posts.iter().filter(|post| post.status == Some(429)).count();
    assert!(refused(&posts) > 0, "it looked for the limit");
    let late = refused(&posts[posts.len() - 200..]);
    assert!(late <= 20, "{late} of the last 200 posts were refused");
    assert_eq!(world.sandbox.journal().created_count(), 600);
    assert_eq!(running.metrics.opened.get(), 0, "posts were never paused");
    let concurrency = u32::try_from(running.health.report().flow.concurrency).unwrap();
    assert!((CAPACITY / 2..=CAPACITY + CAPACITY / 2).contains(&concurrency), "{concurrency}");
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_busy_with_everything_pauses_the_flow_all_the_same() {
    let mut world = World::new().await;
    world.settings.flow.concurrency = 100;
    world.settings.flow.min_concurrency = 1;
    world.settings.retry.initial_ms = 100;
    world.sandbox.tune(|tuning| tuning.leads_unavailable = Some(503));
    let ids = world.publish_many("ann", 1_000).await;
    let (world, running) = started(world).await;
    world.until("posts are paused", async || running.metrics.opened.get() > 0).await;
    // By then it has been lowered, too; to what, depends on how many were under way when the first came back.
    assert!(running.health.report().flow.concurrency < 16);
    let posts = world.sandbox.journal().counts().posts;
    assert!(posts < 400, "{posts} posts before the flow was paused");
    world.sandbox.tune(|tuning| tuning.leads_unavailable = None);
    world.until_all_delivered(&ids).await;
    world.finish(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_wait_long_for_their_turn_are_kept_in_the_ledger_and_not_from_rabbitmq() {
    // More than are accepted at a time.
    const MESSAGES: usize = 60;
    let world = World::new().await;
    let ids = world.publish_many("ann", MESSAGES).await;
    // One every ten seconds.
    let slow = ["--set", "flow.rate_per_s=0.1", "--set", "amqp.prefetch=100", "--set", "flow.batch=25"];
    let mut worker = world.worker_with(&slow, &[("LEADPOST_FAULTS", "keep_ms=300")]).await;
    world.until_received(MESSAGES as i64).await;
    world.until_count(LeadState::Delivered, 1).await;
    assert_eq!(world.number("select count(*) from leads where state = 'pending'").await, MESSAGES as i64 - 1);
    // What is not acknowledged returns when its worker dies.
    tokio::time::sleep(Duration::from_millis(500)).await;
    worker.signal("KILL");
    worker.ended().await;
    assert_eq!(world.broker.depth().await, 0);
    world.expire_leases().await;
    let worker = world.worker(&[]).await;
    world
        .until("all are delivered", async || {
            world.hurry().await;
            world.number("select count(*) from leads where state = 'delivered'").await == MESSAGES as i64
        })
        .await;
    worker.stop().await;
    assert!(ids.iter().all(|id| world.posts(*id) == 1));
    let audit = world.check_all().await;
    assert!(audit.holds(), "{audit:#?}");
}
