//! What each lead costs in the parts that do nothing but compute: `cargo bench --bench pure`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use leadpost::config::{Redactor, Retry, Settings, Source};
use leadpost::destination::Answers;
use leadpost::http::{Answer, Exchange};
use leadpost::lead::{LeadRules, identify};
use leadpost::schedule::Schedule;

const LEAD: &str = r#"{"name":"Ann","lastName":"Lee","email":"ann.lee@example.com","phone":"+15550100","source":"Website","context":"Asked for a quote on the pricing page and would like to be called in the afternoon.","assistantId":61,"scheduleId":135,"company":"Example Ltd"}"#;

const ANSWER: &str = r#"{"id":1834,"name":"Ann","lastName":"Lee","type":"SALES","email":"ann.lee@example.com","scheduleId":135,"assistantId":61,"nextScheduleTime":"2026-01-01T00:00:00Z","state":"Cold","subState":"Followup_1","followup":1}"#;

fn settings(preset: &str) -> Settings {
    let nothing = Source {
        file: Some("/dev/null".into()),
        flags: vec![("destination.preset".to_owned(), preset.to_owned())],
        ..Source::default()
    };
    nothing.read().expect("the presets can be read")
}

fn rules(preset: &str) -> LeadRules {
    LeadRules::of(&settings(preset)).expect("the presets compile")
}

fn lead(criterion: &mut Criterion) {
    let (rules, by_jq) = (rules("7targets"), rules("squadrun"));
    let id = identify("leads", None, LEAD.as_bytes());
    let trimmed = LEAD.replace("\"Ann\"", "\" Ann \"");
    let mut group = criterion.benchmark_group("lead");
    group.throughput(Throughput::Bytes(LEAD.len() as u64));
    group.bench_function("check, goes out as it came", |b| b.iter(|| rules.check(id, black_box(LEAD.as_bytes()))));
    group.bench_function("check, rebuilt", |b| b.iter(|| rules.check(id, black_box(trimmed.as_bytes()))));
    group.bench_function("check, made by jq", |b| b.iter(|| by_jq.check(id, black_box(LEAD.as_bytes()))));
    group.bench_function("identify by body", |b| b.iter(|| identify("leads", None, black_box(LEAD.as_bytes()))));
    group.finish();
}

fn answer(criterion: &mut Criterion) {
    let answers = |preset| Answers::of(&settings(preset).destination).expect("the presets compile");
    let (plain, by_jq, nothing) = (answers("7targets"), answers("kaisa"), Redactor::default());
    let exchange =
        |status, body: &str| Exchange::Answered(Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() });
    let delivered = exchange(201, ANSWER);
    let rejected = exchange(422, r#"{"message":"email is not valid"}"#);
    criterion.bench_function("classify 201", |b| b.iter(|| plain.classify(black_box(&delivered), &nothing)));
    criterion.bench_function("classify 201, by jq", |b| b.iter(|| by_jq.classify(black_box(&delivered), &nothing)));
    criterion.bench_function("classify 422", |b| b.iter(|| plain.classify(black_box(&rejected), &nothing)));
}

fn schedule(criterion: &mut Criterion) {
    let schedule = Schedule::of(&Retry::default());
    criterion.bench_function("delay after attempt 10", |b| b.iter(|| schedule.delay(black_box(10), 0.5)));
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = lead, answer, schedule
}
criterion_main!(benches);
