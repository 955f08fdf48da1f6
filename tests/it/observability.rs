//! Metrics as they are really exported, and all that is written about them: the README's table, the dashboard, the alert rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use leadpost::ledger::LeadState;
use leadpost::metrics::{CODES, Format};
use leadpost::sandbox::{Fault, StatusAnswer};
use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector};
use serde_json::Value;

use crate::support::exposition::{Exposition, Sample};
use crate::support::{Message, Process, World, get_as, yaml};

const README: &str = include_str!("../../README.md");
const ALERTS: &str = include_str!("../../deploy/observability/alerts.yml");
const PROMETHEUS: &str = include_str!("../../deploy/observability/prometheus.yml");
const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DASHBOARD: &str = include_str!("../../deploy/observability/grafana/dashboards/leadpost.json");

/// What a scraper that prefers OpenMetrics asks for, as Prometheus does.
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";

/// Labels that Prometheus itself adds to every series, and the one that makes a histogram.
const OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];

/// A worker that has met a success, a refusal, a retry, a token that was revoked and a message that is no lead.
async fn after_traffic() -> (World, Process) {
    let world = World::new().await;
    let refused = StatusAnswer { body: Some(r#"{"message":"no"}"#.to_owned()), ..StatusAnswer::new(422) };
    world.sandbox.faults().rule("rejected", None, Fault::answer(refused));
    world.sandbox.faults().rule("flaky", Some(1), Fault::status(503));
    world.sandbox.faults().rule("stale", Some(1), Fault::status(401));
    world.sandbox.faults().rule("odd", Some(1), Fault::status(599));
    let worker = world.worker(&["--set", "retry.initial_ms=20"]).await;
    for name in ["ann", "bob", "rejected", "flaky", "stale", "odd"] {
        world.publish(name).await;
    }
    world.broker.publish(Message::raw(b"no lead")).await;
    // With a timestamp, as `leadpost publish` sets one.
    let done = world.leadpost_with(&["publish", "-"], &[], World::lead("cat").as_bytes()).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    world.until_count(LeadState::Delivered, 6).await;
    world.until_count(LeadState::Rejected, 1).await;
    world.until_count(LeadState::Invalid, 1).await;
    (world, worker)
}

async fn scrape(worker: &Process, format: Format) -> Exposition {
    let accept = match format {
        Format::Prometheus => "text/plain",
        Format::OpenMetrics => OPENMETRICS,
    };
    let (status, kind, text) = get_as(&worker.url("/metrics").await, accept).await;
    assert_eq!((status, kind.as_str()), (200, format.content_type()));
    Exposition::read(&text, format)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_what_both_formats_allow_and_agree_with_the_ledger_and_the_api() {
    let (world, worker) = after_traffic().await;
    world
        .until("the ledger has been read", async || {
            let metrics = scrape(&worker, Format::Prometheus).await;
            metrics.value("leadpost_leads", &[("state", "delivered")]) == 6.0
        })
        .await;
    let (text, metrics) = (scrape(&worker, Format::Prometheus).await, scrape(&worker, Format::OpenMetrics).await);
    let series = |of: &Exposition| -> BTreeSet<_> {
        of.samples().map(|sample| (sample.name.clone(), sample.labels.clone())).collect()
    };
    // Prometheus' own format writes a bound of one second as 1, OpenMetrics as 1.0.
    let without_bounds = |of: &Exposition| -> BTreeSet<_> {
        series(of).into_iter().filter(|(_, labels)| !labels.contains_key("le")).collect()
    };
    assert_eq!(without_bounds(&text), without_bounds(&metrics), "both say the same");
    let (_, kind, _) = worker.ask("/metrics").await;
    assert_eq!(kind, Format::Prometheus.content_type(), "who does not say gets what all can read");

    let value = |name: &str, labels: &[(&str, &str)]| metrics.value(name, labels);
    for (state, n) in [("delivered", 6.0), ("rejected", 1.0), ("invalid", 1.0), ("exhausted", 0.0), ("uncertain", 0.0)]
    {
        assert_eq!(value("leadpost_leads_ended_total", &[("state", state)]), n, "{state}");
        assert_eq!(value("leadpost_leads", &[("state", state)]), n, "{state}");
    }
    assert_eq!(value("leadpost_leads", &[("state", "pending")]), 0.0);
    assert_eq!(metrics.sum("leadpost_messages_total", &[]), 8.0, "every message has one fate");
    assert_eq!(value("leadpost_messages_received_total", &[]), 8.0);
    assert_eq!(value("leadpost_message_wait_seconds_count", &[]), 1.0, "one had a timestamp");
    let posts = world.sandbox.journal().counts().posts as f64;
    assert_eq!(metrics.sum("leadpost_attempts_total", &[("request", "post")]), posts);
    for (outcome, class) in [("retry", "5xx"), ("unauthorized", "4xx"), ("rejected", "4xx"), ("uncertain", "5xx")] {
        let labels = [("request", "post"), ("outcome", outcome), ("status_class", class)];
        assert_eq!(value("leadpost_attempts_total", &labels), 1.0, "{labels:?}");
    }
    assert_eq!(value("leadpost_post_duration_seconds_count", &[]), posts);
    for (code, n) in [("http_503", 1.0), ("http_422", 1.0), ("invalid", 1.0), ("other", 1.0), ("http_500", 0.0)] {
        assert_eq!(value("leadpost_reasons_total", &[("code", code)]), n, "{code}");
    }
    assert_eq!(value("leadpost_violations_total", &[("code", "not_json")]), 1.0);
    // Of what was never posted nobody knows how long it took.
    assert_eq!(value("leadpost_lead_duration_seconds_count", &[]), 7.0);
    for batch in ["accept", "settle"] {
        let of = |suffix: &str| value(&format!("leadpost_{batch}_{suffix}"), &[]);
        assert!(of("batch_size_count") >= 1.0 && of("batch_size_count") == of("duration_seconds_count"), "{batch}");
    }
    assert_eq!(value("leadpost_accept_batch_size_sum", &[]), 8.0);
    for (name, n) in [
        ("leadpost_posts_under_way", 0.0),
        ("leadpost_leads_in_hand", 0.0),
        ("leadpost_concurrency_limit", 64.0),
        ("leadpost_concurrency_ceiling", 64.0),
        ("leadpost_rate_limit_per_second", 0.0),
        ("leadpost_rate_share_per_second", 0.0),
        ("leadpost_tokens_fetched_total", 2.0),
        ("leadpost_token_failures_total", 0.0),
        ("leadpost_rabbitmq_up", 1.0),
        ("leadpost_rabbitmq_consuming", 1.0),
        ("leadpost_rabbitmq_reconnects_total", 0.0),
        ("leadpost_postgres_up", 1.0),
        ("leadpost_workers", 1.0),
        ("leadpost_hold_seconds", 0.0),
    ] {
        assert_eq!(value(name, &[]), n, "{name}");
    }
    for (state, n) in [("closed", 1.0), ("open", 0.0), ("probing", 0.0)] {
        assert_eq!(value("leadpost_circuit_state", &[("state", state)]), n, "{state}");
    }
    let left = value("leadpost_token_remaining_seconds", &[]);
    assert!(left > 3_000.0 && left < 3_600.0 && value("leadpost_token_age_seconds", &[]) < 60.0, "{left}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for name in ["last_message", "last_post", "last_delivered", "ledger_read"] {
        let at = value(&format!("leadpost_{name}_timestamp_seconds"), &[]);
        assert!(at > now - 60.0 && at <= now, "{name}: {at}");
    }
    let queue = world.broker.queue.as_str();
    assert_eq!(value("leadpost_worker_info", &[("destination", "7targets"), ("queue", queue)]), 1.0);
    assert_eq!(value("leadpost_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    worker.stop().await;
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_is_there_before_anything_has_happened_and_none_is_new_after_it() {
    let idle = World::new().await;
    let quiet = idle.worker(&[]).await;
    idle.until("it is ready", async || quiet.ask("/readyz").await.0 == 200).await;
    let (world, busy) = after_traffic().await;
    // What is there once for each process is its own.
    let series = async |worker: &Process| -> BTreeSet<(String, BTreeMap<String, String>)> {
        let metrics = scrape(worker, Format::Prometheus).await;
        metrics
            .samples()
            .filter(|sample| sample.name != "leadpost_worker_info")
            .map(|sample| (sample.name.clone(), sample.labels.clone()))
            .collect()
    };
    let (before, after) = (series(&quiet).await, series(&busy).await);
    assert_eq!(before, after);
    assert!(before.len() < 600, "{} series", before.len());
    // Its age grows, nothing else does.
    let counted: Vec<Sample> = scrape(&quiet, Format::Prometheus)
        .await
        .samples()
        .filter(|sample| sample.name.ends_with("_total") && sample.value > 0.0)
        .cloned()
        .collect();
    assert!(counted.is_empty(), "{counted:#?}");
    quiet.stop().await;
    busy.stop().await;
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_cannot_do_is_seen_in_its_metrics() {
    let mut world = World::new().await;
    world.set(&[("AUTH__CLIENT_SECRET", "wrong")]);
    let worker = world.worker(&["--set", "flow.rate_per_s=10", "--set", "flow.concurrency=7"]).await;
    world.publish("ann").await;
    world.until("posts are paused", async || worker.ask("/readyz").await.0 == 503).await;
    world
        .until("it could not log in", async || {
            let metrics = scrape(&worker, Format::OpenMetrics).await;
            metrics.value("leadpost_token_failures_total", &[]) >= 2.0
        })
        .await;
    let metrics = scrape(&worker, Format::OpenMetrics).await;
    assert_eq!(metrics.value("leadpost_circuit_state", &[("state", "closed")]), 0.0);
    assert_eq!(metrics.sum("leadpost_circuit_state", &[]), 1.0);
    for (name, n) in [
        ("leadpost_token_remaining_seconds", 0.0),
        ("leadpost_tokens_fetched_total", 0.0),
        ("leadpost_rate_limit_per_second", 10.0),
        ("leadpost_rate_share_per_second", 10.0),
        ("leadpost_concurrency_ceiling", 7.0),
        ("leadpost_circuit_openings_total", 1.0),
    ] {
        assert_eq!(metrics.value(name, &[]), n, "{name}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_seen_while_it_is() {
    let world = World::new().await;
    world.sandbox.tune(|tuning| tuning.latency = std::time::Duration::from_secs(3));
    let worker = world.worker(&["--set", "flow.concurrency=2"]).await;
    world.publish_many("ann", 3).await;
    world.sandbox.journal().wait_for(|pages| pages.counts().posts == 2, crate::support::DEADLINE).await.unwrap();
    world
        .until("the third waits for a slot", async || {
            let metrics = scrape(&worker, Format::Prometheus).await;
            let values = ["leadpost_posts_under_way", "leadpost_leads_in_hand"].map(|name| metrics.value(name, &[]));
            values == [2.0, 3.0]
        })
        .await;
    world.until_count(LeadState::Delivered, 3).await;
    worker.stop().await;
    world.check_books().await;
}

/// Every code that stands in the source as a reason's.
#[test]
fn every_code_of_ours_is_counted_by_itself() {
    let mut files = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut missing = BTreeSet::new();
    let mut found = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for before in ["Reason::new(", "Reason::quoting(", "code: Some("] {
            for behind in code.split(before).skip(1) {
                let Some(rest) = behind.trim_start().strip_prefix('"') else { continue };
                let name = rest.split('"').next().unwrap();
                found += 1;
                // What comes of a log-out is told, and no lead's.
                if !CODES.contains(&name) && !["logout", "revoke"].contains(&name) {
                    missing.insert(format!("{name} in {}", path.display()));
                }
            }
        }
    }
    assert!(found > 25, "only {found} were found");
    assert!(missing.is_empty(), "not in metrics::CODES: {missing:#?}");
}

// --- What is written about them

/// The rows of the README's table of metrics, without what Markdown adds.
fn table() -> BTreeMap<String, [String; 3]> {
    let rows = README.lines().filter(|line| line.starts_with("| `leadpost_"));
    rows.map(|row| {
        let cells: Vec<String> = row.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect();
        let [name, kind, labels, help] = &cells[..] else { panic!("not four cells: {row}") };
        (name.clone(), [kind.clone(), labels.clone(), help.clone()])
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_has_a_row_for_each_metric_and_none_besides() {
    let world = World::new().await;
    let worker = world.worker(&[]).await;
    let metrics = scrape(&worker, Format::Prometheus).await;
    let exported: BTreeMap<String, [String; 3]> = metrics
        .0
        .iter()
        .map(|(name, family)| {
            let labels = family.labels().into_iter().collect::<Vec<_>>().join(", ");
            (name.clone(), [family.kind.clone(), labels, family.help.trim_end_matches('.').to_owned()])
        })
        .collect();
    let as_it_should_be: Vec<String> = exported
        .iter()
        .map(|(name, [kind, labels, help])| {
            let labels: Vec<String> =
                labels.split(", ").filter(|label| !label.is_empty()).map(|label| format!("`{label}`")).collect();
            format!("| `{name}` | {kind} | {} | {help} |", labels.join(", "))
        })
        .collect();
    assert_eq!(table(), exported, "the table should be:\n{}", as_it_should_be.join("\n"));
    worker.stop().await;
}

/// The expressions of the dashboard, each with where it stands.
fn of_dashboard(value: &Value, at: &str, into: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            let at = members
                .get("title")
                .and_then(Value::as_str)
                .map_or_else(|| at.to_owned(), |title| format!("{at}/{title}"));
            for (key, value) in members {
                match (key.as_str(), value.as_str()) {
                    ("expr", Some(expression)) => into.push((at.clone(), expression.to_owned())),
                    ("definition", Some(query)) => into.push((at.clone(), of_variable(query))),
                    _ => of_dashboard(value, &at, into),
                }
            }
        }
        Value::Array(members) => members.iter().for_each(|member| of_dashboard(member, at, into)),
        _ => {}
    }
}

/// `label_values(metric, label)` as an expression that needs both.
fn of_variable(query: &str) -> String {
    let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let (metric, label) = inside.and_then(|inside| inside.rsplit_once(", ")).unwrap_or_else(|| panic!("{query}"));
    format!("count by ({label}) ({metric})")
}

fn rules() -> Vec<Value> {
    let documents = yaml::documents(ALERTS);
    let groups = documents[0]["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// All expressions, as Prometheus would get them.
fn expressions() -> Vec<(String, Expr)> {
    let mut all = Vec::new();
    of_dashboard(&serde_json::from_str(DASHBOARD).unwrap(), "dashboard", &mut all);
    assert!(all.len() > 50, "the dashboard has {} expressions", all.len());
    for rule in rules() {
        all.push((rule["alert"].as_str().unwrap().to_owned(), rule["expr"].as_str().unwrap().to_owned()));
    }
    let read = |(at, text): (String, String)| {
        let filled = text.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$destination", ".*");
        let expression = parser::parse(&filled).unwrap_or_else(|problem| panic!("{at}: {text}: {problem}"));
        (at, expression)
    };
    all.into_iter().map(read).collect()
}

/// The selectors in an expression, and the labels that it groups and matches by.
fn parts<'a>(expression: &'a Expr, selectors: &mut Vec<&'a VectorSelector>, labels: &mut BTreeSet<String>) {
    let mut by = |modifier: &Option<LabelModifier>| {
        labels.extend(modifier.iter().flat_map(|modifier| modifier.labels().labels.iter().cloned()));
    };
    let mut inner: Vec<&Expr> = Vec::new();
    match expression {
        Expr::Aggregate(aggregate) => {
            by(&aggregate.modifier);
            inner.push(&aggregate.expr);
            inner.extend(aggregate.param.as_deref());
        }
        Expr::Unary(unary) => inner.push(&unary.expr),
        Expr::Binary(binary) => {
            if let Some(modifier) = &binary.modifier {
                by(&modifier.matching);
                labels.extend(modifier.card.labels().into_iter().flat_map(|added| added.labels.iter().cloned()));
            }
            inner.extend([&*binary.lhs, &*binary.rhs]);
        }
        Expr::Paren(paren) => inner.push(&paren.expr),
        Expr::Subquery(subquery) => inner.push(&subquery.expr),
        Expr::VectorSelector(selector) => selectors.push(selector),
        Expr::MatrixSelector(matrix) => selectors.push(&matrix.vs),
        Expr::Call(call) => inner.extend(call.args.args.iter().map(|argument| &**argument)),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => {}
        Expr::Extension(_) => panic!("an extension: {expression:?}"),
    }
    for inner in inner {
        parts(inner, selectors, labels);
    }
}

/// What of an expression is not exported.
fn unknown(expression: &Expr, exported: &Exposition) -> Vec<String> {
    let (mut selectors, mut labels, mut wrong) = (Vec::new(), BTreeSet::new(), Vec::new());
    parts(expression, &mut selectors, &mut labels);
    let mut known: BTreeSet<&str> = OF_PROMETHEUS.into();
    for selector in selectors {
        let name = selector.name.as_deref().unwrap_or_default();
        // Prometheus' own.
        if name == "up" {
            continue;
        }
        let samples: Vec<&Sample> = exported.samples().filter(|sample| sample.name == name).collect();
        if samples.is_empty() {
            wrong.push(format!("there is no {name}"));
        }
        known.extend(samples.iter().flat_map(|sample| sample.labels.keys().map(String::as_str)));
        for matcher in &selector.matchers.matchers {
            let values: BTreeSet<&str> =
                samples.iter().filter_map(|sample| sample.labels.get(&matcher.name)).map(String::as_str).collect();
            if OF_PROMETHEUS.contains(&matcher.name.as_str()) {
                continue;
            }
            let wanted: Vec<&str> = match &matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => vec![&matcher.value],
                MatchOp::Re(_) | MatchOp::NotRe(_) if matcher.value == ".*" => Vec::new(),
                MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
            };
            if values.is_empty() {
                wrong.push(format!("{name} has no label {}", matcher.name));
                continue;
            }
            wrong.extend(
                wanted
                    .iter()
                    .filter(|wanted| !values.contains(**wanted))
                    .map(|wanted| format!("{name} has no {}={wanted:?}, but {values:?}", matcher.name)),
            );
        }
    }
    wrong.extend(
        labels
            .iter()
            .filter(|label| !known.contains(label.as_str()))
            .map(|label| format!("nothing in it has a label {label}")),
    );
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_alert_rules_name_only_what_the_worker_exports() {
    let world = World::new().await;
    let worker = world.worker(&[]).await;
    let exported = scrape(&worker, Format::Prometheus).await;
    let mut wrong = BTreeMap::new();
    for (at, expression) in expressions() {
        let unknown = unknown(&expression, &exported);
        if !unknown.is_empty() {
            wrong.insert(at, unknown);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // That it would be found out.
    for (bad, says) in [
        ("leadpost_leads_endet_total", "there is no leadpost_leads_endet_total"),
        ("leadpost_leads{state=\"delivrd\"}", "has no state=\"delivrd\""),
        ("leadpost_leads{state=~\"pending|lost\"}", "has no state=\"lost\""),
        ("leadpost_posts_under_way{fate=\"x\"}", "has no label fate"),
        ("sum by (fate) (leadpost_leads)", "nothing in it has a label fate"),
        ("leadpost_leads * on (job) group_left (queue) leadpost_build_info", "nothing in it has a label queue"),
    ] {
        let unknown = unknown(&parser::parse(bad).unwrap(), &exported);
        assert!(unknown.len() == 1 && unknown[0].contains(says), "{bad}: {unknown:?}");
    }
    worker.stop().await;
}

#[test]
fn each_alert_says_what_it_means_and_which_command_answers_it() {
    let rules = rules();
    let mut names = BTreeSet::new();
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        let [summary, description] = ["summary", "description"].map(|key| rule["annotations"][key].as_str().unwrap());
        assert!(summary.len() > 10 && !summary.contains("{{"), "{name}: {summary}");
        let commands = ["status", "failures", "leads list", "leads show", "release", "check", "verify"];
        let named = description.matches("`leadpost ").count();
        let known =
            commands.iter().map(|command| description.matches(&format!("`leadpost {command}")).count()).sum::<usize>();
        assert!(named >= 1 && named == known, "{name} names no command, or one that there is not: {description}");
        let row = README.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{name}`")));
        assert!(row.is_some_and(|row| row.contains("`leadpost ")), "README does not say what to do about {name}");
    }
    for about in [
        "WorkerDown",
        "NotConsuming",
        "RabbitmqUnreachable",
        "PostgresUnreachable",
        "CircuitOpen",
        "TokenFailures",
        "LeadsWaitTooLong",
        "RetriesOverdue",
        "LeadsFail",
        "LeadsUncertain",
        "DeliveriesWithWarning",
        "IdConflicts",
    ] {
        assert!(names.contains(format!("Leadpost{about}").as_str()), "there is no alert about {about}");
    }
}

#[test]
fn prometheus_scrapes_every_worker_of_the_compose_file() {
    let compose = &yaml::documents(COMPOSE)[0];
    let services = compose["services"].as_object().unwrap();
    let workers: BTreeSet<&str> = services.keys().map(String::as_str).filter(|name| name.ends_with("worker")).collect();
    let prometheus = &yaml::documents(PROMETHEUS)[0];
    let scraped = &prometheus["scrape_configs"][0]["dns_sd_configs"][0];
    let names: BTreeSet<&str> = scraped["names"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(names, workers);
    assert_eq!(scraped["port"].as_i64(), Some(9090));
    for worker in workers {
        let service = &compose["services"][worker]["environment"];
        // Merged or its own.
        let listen = [&service["LEADPOST__ADMIN__LISTEN"], &service["<<"]["LEADPOST__ADMIN__LISTEN"]];
        assert!(listen.iter().any(|listen| listen.as_str() == Some("0.0.0.0:9090")), "{worker}");
    }
    for name in ["prometheus", "grafana"] {
        let service = &compose["services"][name];
        let ports = service["ports"][0].as_str().unwrap();
        assert!(ports.starts_with("127.0.0.1:"), "{name} listens beyond this machine: {ports}");
        assert_eq!(service["read_only"].as_bool(), Some(true), "{name}");
        assert_eq!(service["profiles"][0].as_str(), Some("observability"), "{name}");
        for mount in service["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .filter(|mount| mount.starts_with("./"))
        {
            let path = mount.split(':').next().unwrap();
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists() && mount.ends_with(":ro"), "{mount}");
        }
    }
}
