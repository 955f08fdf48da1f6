//! An API that is full, asked too often or down.

use super::*;

#[tokio::test]
async fn more_than_the_capacity_is_answered_429_with_retry_after() {
    let sandbox = tuned(|tuning| {
        tuning.capacity = Some(1);
        tuning.retry_after_s = 7;
    });
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::hang()]);
    let _hanging = send_lead(&sandbox, &token, "a", "a@example.org").await;
    sandbox.journal().wait_for(|pages| pages.counts().in_flight == 1, SOON).await.unwrap();
    let seen = post(&sandbox, &token, "b", "b@example.org").await;
    assert_eq!((seen.status, seen.header("retry-after")), (429, Some("7")));
    assert_eq!(sandbox.journal().posts_for("b")[0].fault, Some("over_capacity"));
}

#[tokio::test]
async fn an_api_that_has_more_to_do_than_it_can_takes_longer_for_each() {
    let sandbox = tuned(|tuning| {
        tuning.slow_above = Some(1);
        tuning.latency = Duration::from_millis(100);
    });
    let token = token(&sandbox).await;
    let since = Instant::now();
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 201);
    assert!(since.elapsed() < Duration::from_millis(290), "{:?}", since.elapsed());
    sandbox.faults().script([Fault::hang(), Fault::hang()]);
    let _first = send_lead(&sandbox, &token, "b", "b@example.org").await;
    let _second = send_lead(&sandbox, &token, "c", "c@example.org").await;
    sandbox.journal().wait_for(|pages| pages.counts().in_flight == 2, SOON).await.unwrap();
    let since = Instant::now();
    assert_eq!(post(&sandbox, &token, "d", "d@example.org").await.status, 201);
    assert!(since.elapsed() >= Duration::from_millis(300), "{:?}", since.elapsed());
}

#[tokio::test]
async fn more_than_the_rate_is_answered_429() {
    let sandbox = tuned(|tuning| tuning.rate_limit_per_s = Some(1));
    let token = token(&sandbox).await;
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 201);
    assert_eq!(post(&sandbox, &token, "b", "b@example.org").await.status, 429);
}

#[tokio::test]
async fn an_api_that_is_down_answers_everything_with_its_status_and_keeps_the_script() {
    let sandbox = tuned(|tuning| tuning.leads_unavailable = Some(503));
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::status(500)]);
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 503);
    assert_eq!(sandbox.script_left(), 1);
    sandbox.tune(|tuning| tuning.leads_unavailable = None);
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 500);
    assert_eq!(post(&sandbox, &token, "a", "a@example.org").await.status, 201);
}
