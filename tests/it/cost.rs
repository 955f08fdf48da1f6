//! What a lead costs: rows, commits and allocations, which are the same on every machine, unlike seconds.

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leadpost::config::{Redactor, Source};
use leadpost::destination::Answers;
use leadpost::http::{Answer, Exchange};
use leadpost::lead::{LeadRules, identify};
use leadpost::ledger::{LeadState, RequestKind};
use leadpost::metrics::{Became, Labels, Metrics, happened};
use leadpost::traces::{Server, Traces};
use leadpost::worker::Stopped;
use tokio::time::Instant;
use tracing::field::Field;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Event, Metadata, Subscriber};
use uuid::Uuid;

use crate::support::{DEADLINE, World};

const LEADS: usize = 1_000;

/// Commits of the whole run without its heartbeats, for each lead, of which some 0.02 are those of batches. A longer run comes to 0.011 in all.
const COMMITS_PER_LEAD: f64 = 0.05;
const BATCHES_PER_LEAD: f64 = 0.025;

/// Statements that were sent in this thread, by their first words.
#[derive(Debug, Default)]
struct Statements(Mutex<BTreeMap<String, usize>>);

/// What the driver says of each of them.
struct Counting(Arc<Statements>);

impl Subscriber for Counting {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            if field.name() == "summary" {
                let words = format!("{value:?}");
                *self.0.0.lock().unwrap().entry(words.trim_matches('"').to_lowercase()).or_default() += 1;
            }
        });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Statements {
    /// How many began like this.
    fn of(&self, words: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(summary, _)| summary.starts_with(words)).map(|(_, n)| n).sum()
    }
}

/// Everything in one thread, so that its statements can be told from those of other tests.
#[tokio::test(flavor = "current_thread")]
async fn leads_that_wait_cost_each_one_insert_one_update_and_next_to_no_commit() {
    let mut world = World::new().await;
    // To look for due leads is a commit as well.
    world.settings.flow.poll_ms = 60_000;
    // All are posted before the first is answered, and all answers are there before the first is settled: batches are full.
    world.settings.flow.concurrency = LEADS;
    world.sandbox.tune(|tuning| tuning.latency = Duration::from_secs(4));
    world.settings.postgres.lock_timeout_ms = 20_000;
    world.settings.postgres.statement_timeout_ms = 30_000;
    drop(rlimit::increase_nofile_limit(u64::MAX));
    let ids = world.publish_many("ann", LEADS).await;
    let committed = async || {
        let sql = "select xact_commit from pg_stat_database where datname = current_database()";
        world.number(sql).await
    };
    let before = committed().await;
    let statements = Arc::new(Statements::default());
    // With one subscriber alone, what another thread says first would be taken for something that nobody wants to know.
    let beside = Dispatch::new(NoSubscriber::default());
    let counting = tracing::subscriber::set_default(Counting(Arc::clone(&statements)));
    let running = world.start().await;
    let journal = world.sandbox.journal();
    journal.wait_for(|pages| pages.counts().in_flight == LEADS as u32, DEADLINE).await.unwrap();
    let mut unsettled = world.database.pool.begin().await.unwrap();
    sqlx::query("lock table leads in share mode").execute(&mut *unsettled).await.unwrap();
    journal.wait_for(|pages| pages.counts().created == LEADS as u64, DEADLINE).await.unwrap();
    world.until("all answers are there", async || running.health.report().flow.posting == 0).await;
    unsettled.rollback().await.unwrap();
    // Asked once it can be so: each question is a commit, too.
    assert_eq!(running.stop().await, Stopped::Cleanly);
    drop((counting, beside));
    let commits = committed().await - before;
    let leads = LEADS as i64;
    // What a connection has done is counted when it has ended, or a moment later. The start rehearses with one lead, and undoes it.
    let updated = async || world.number("select n_tup_upd from pg_stat_user_tables where relname = 'leads'").await;
    world.until("all is counted", async || updated().await == leads + 1).await;
    let inserted = world.number("select n_tup_ins from pg_stat_user_tables where relname = 'leads'").await;
    let attempts = world
        .number("select n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables where relname = 'other_attempts'")
        .await;
    assert_eq!(
        (inserted, updated().await, attempts),
        (leads + 1, leads + 1, 1),
        "first posts are kept with their leads"
    );
    // The tables were empty when the plans were made, which are kept.
    let read = world.number(
        "select sum(seq_tup_read)::bigint from pg_stat_user_tables where relname in ('leads', 'other_attempts')",
    );
    assert_eq!(read.await, 0, "no statement reads a table from one end to the other");
    let pending =
        world.number("select idx_tup_read from pg_stat_user_indexes where indexrelname = 'leads_pending'").await;
    assert!(pending < leads / 10, "{pending} pending leads were looked at to settle others");
    let by_id = world.number("select idx_tup_read from pg_stat_user_indexes where indexrelname = 'leads_pkey'").await;
    assert!((leads..2 * leads).contains(&by_id), "{by_id} leads were looked up by their ids");
    // By their first words.
    let (accepted, settled) = (statements.of("with inserted"), statements.of("with clock"));
    let batches = accepted + settled;
    assert!(accepted * 256 >= LEADS && settled * 256 >= LEADS, "statements are counted: {statements:?}");
    assert!(
        batches as f64 <= BATCHES_PER_LEAD * LEADS as f64,
        "{accepted} batches were accepted, and {settled} settled"
    );
    // A batch is one statement; that of an accept has a commit of its own. What else there is belongs to the start, to a heartbeat or to the end.
    let beats = statements.of("insert into workers");
    let commits_of_batches = statements.of("commit").saturating_sub(3 + 2 * beats);
    assert!(commits_of_batches <= accepted, "{accepted} accepted batches, {beats} heartbeats: {statements:?}");
    for (words, n) in &*statements.0.lock().unwrap() {
        let is_of_batch = ["with inserted", "with clock", "commit"].iter().any(|own| words.starts_with(own));
        assert!(is_of_batch || *n <= beats + 1, "{n} times {words:?} with {beats} heartbeats and {batches} batches");
    }
    // However long it takes: with a heartbeat come its commit, its question, a search for leases that ran out, and now and then the numbers.
    let per_lead = (commits as f64 - 4.0 * beats as f64) / LEADS as f64;
    assert!(per_lead < COMMITS_PER_LEAD, "{per_lead} commits for each lead");
    assert!(per_lead > 0.0, "commits are counted");
    world.until_all_delivered(&ids).await;
}

/// What is counted and traced of a lead where nobody traces: without it, a lead would be no cheaper.
#[test]
fn to_count_a_lead_and_not_to_trace_it_allocates_nothing() {
    let metrics = Metrics::new(Labels { destination: "d", queue: "q", worker: "w" });
    let (traces, lead, now) = (Traces::default(), Uuid::new_v4(), Instant::now());
    let server = Server { method: "POST", host: "api.example".to_owned(), port: 443 };
    let counted = allocation_counter::measure(|| {
        metrics.received.inc_by(1);
        happened(&metrics.last_message);
        metrics.messages.at(Became::Fresh as usize).inc();
        metrics.message_wait.took(Duration::from_secs(1));
        metrics.attempts.count(RequestKind::Post, 0, Some(201));
        metrics.post_duration.took(Duration::from_millis(20));
        metrics.reasons.count("http_503");
        metrics.ended(LeadState::Delivered);
        metrics.lead_duration.took(Duration::from_millis(30));
        let span = traces.of_message("q", lead, None, now);
        span.part("accept", now, now);
        let request = span.request(&server, 0);
        assert!(request.context().is_none());
        request.end(Some(201), "delivered", None);
        span.end("delivered", None, false);
    });
    assert_eq!(counted.count_total, 0);
    assert_eq!(metrics.attempts.place(RequestKind::Post, 0, Some(201)).get(), 1, "it was counted");
}

/// A lead as it goes out as it came, and an answer to it.
const LEAD: &str = r#"{"name":"Ann","lastName":"Lee","email":"ann.lee@example.com","phone":"+15550100","source":"Website","context":"Asked for a quote on the pricing page and would like to be called in the afternoon.","assistantId":61,"scheduleId":135,"company":"Example Ltd"}"#;
const TAKEN: &str = r#"{"id":1834,"name":"Ann","lastName":"Lee","type":"SALES","email":"ann.lee@example.com","scheduleId":135,"assistantId":61,"nextScheduleTime":"2026-01-01T00:00:00Z","state":"Cold","subState":"Followup_1","followup":1}"#;

/// How many allocations each pure part may need for a lead: as many as it does. One that needs fewer some day lowers its number here.
#[test]
fn the_pure_parts_of_a_lead_s_way_allocate_no_more_than_they_need() {
    let settings = |preset: &str| {
        let flags = vec![("destination.preset".to_owned(), preset.to_owned())];
        Source { file: Some("/dev/null".into()), flags, ..Source::default() }.read().unwrap()
    };
    let (plain, by_jq) = (settings("7targets"), settings("squadrun"));
    let (rules, rules_by_jq) = (LeadRules::of(&plain).unwrap(), LeadRules::of(&by_jq).unwrap());
    let answers = Answers::of(&plain.destination).unwrap();
    let id = identify("leads", Some("0196f0a2-7c1d-7d70-8a43-000000000001"), LEAD.as_bytes());
    let trimmed = LEAD.replace("\"Ann\"", "\" Ann \"");
    let exchange =
        |status, body: &str| Exchange::Answered(Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() });
    let (taken, refused) = (exchange(201, TAKEN), exchange(422, r#"{"message":"email is not valid"}"#));
    let nothing = Redactor::default();
    let parts: [(&str, &dyn Fn(), u64); 6] = [
        ("identify", &|| assert_ne!(black_box(identify("leads", None, LEAD.as_bytes())), id), 1),
        ("check a lead that goes out as it came", &|| drop(black_box(rules.check(id, LEAD.as_bytes()))), 4),
        ("check a lead that is rebuilt", &|| drop(black_box(rules.check(id, trimmed.as_bytes()))), 31),
        ("check a lead that is made by jq", &|| drop(black_box(rules_by_jq.check(id, LEAD.as_bytes()))), 448),
        ("classify a success", &|| drop(black_box(answers.classify(&taken, &nothing))), 5),
        ("classify a refusal", &|| drop(black_box(answers.classify(&refused, &nothing))), 13),
    ];
    let over: Vec<String> = parts
        .iter()
        .filter_map(|(part, carry_out, at_most)| {
            // What is set up once is not a lead's.
            carry_out();
            let counted = allocation_counter::measure(carry_out).count_total;
            (counted > *at_most).then(|| format!("{part}: {counted} allocations, not {at_most}"))
        })
        .collect();
    assert!(over.is_empty(), "{over:#?}");
}
