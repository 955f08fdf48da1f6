//! What a lead costs in the ledger: rows and commits, which are the same on every machine, unlike seconds.

use leadpost::worker::Stopped;

use crate::support::{DEADLINE, World};

const LEADS: usize = 1_000;

/// Commits of the whole run, for each lead: batches are what has gathered while the last commit ran, so a slow machine has larger ones.
const COMMITS_PER_LEAD: f64 = 0.4;

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_wait_cost_each_one_insert_one_update_one_attempt_and_next_to_no_commit() {
    let mut world = World::new().await;
    // To look for due leads is a commit as well.
    world.settings.flow.poll_ms = 60_000;
    let ids = world.publish_many("ann", LEADS).await;
    let committed = async || {
        let sql = "select xact_commit from pg_stat_database where datname = current_database()";
        world.number(sql).await
    };
    let before = committed().await;
    let running = world.start().await;
    world.sandbox.journal().wait_for(|pages| pages.counts().created == LEADS as u64, DEADLINE).await.unwrap();
    // Asked once it can be so: each question is a commit, too.
    assert_eq!(running.stop().await, Stopped::Cleanly);
    let commits = committed().await - before;
    world.until_all_delivered(&ids).await;
    let leads = LEADS as i64;
    // What a connection has done is counted when it has ended, or a moment later. The start rehearses with one lead, and undoes it.
    let attempts = async || world.number("select n_tup_ins from pg_stat_user_tables where relname = 'attempts'").await;
    world.until("all is counted", async || attempts().await == leads + 1).await;
    let inserted = world.number("select n_tup_ins from pg_stat_user_tables where relname = 'leads'").await;
    let updated = world.number("select n_tup_upd from pg_stat_user_tables where relname = 'leads'").await;
    assert_eq!((inserted, updated), (leads + 1, leads + 1));
    let again = world.number("select n_tup_upd from pg_stat_user_tables where relname = 'attempts'").await;
    assert_eq!(again, 0, "attempts are only added");
    let per_lead = commits as f64 / LEADS as f64;
    assert!(per_lead < COMMITS_PER_LEAD, "{per_lead} commits for each lead");
    assert!(per_lead > 0.0, "commits are counted");
}
