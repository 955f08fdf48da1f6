//! A snapshot for people.

use serde_json::Value;

use super::super::{ago, moment};
use super::snapshot::{Drain, Lately, Snapshot};
use crate::ledger::{LeadState, Status, WorkerRecord};

/// The same, with the time in front.
pub(super) fn block_at(snapshot: &Snapshot) -> Vec<String> {
    std::iter::once(moment(snapshot.at)).chain(block(snapshot)).collect()
}

/// All of it, line by line.
pub(super) fn block(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    match &snapshot.ledger {
        Some(status) => ledger(status, snapshot, &mut lines),
        None => lines.push(format!("ledger: {}", snapshot.problem.as_deref().unwrap_or("unknown"))),
    }
    let queue = &snapshot.queue;
    lines.push(match (queue.ready, queue.consumers) {
        (Some(ready), Some(consumers)) => format!(
            "queue {}: {ready} messages ready, {consumers} consumer{}",
            queue.name,
            if consumers == 1 { "" } else { "s" }
        ),
        _ => format!("queue {}: {}", queue.name, queue.problem.as_deref().unwrap_or("unknown")),
    });
    if snapshot.ledger.is_some() {
        lines.push(format!("workers: {} alive", snapshot.alive().count()));
        lines.extend(snapshot.alive().map(worker));
        lines.extend(snapshot.lately.as_ref().map(rates));
        lines.extend(snapshot.drain.as_ref().map(|drain| rest(drain, snapshot)));
    }
    lines
}

fn ledger(status: &Status, snapshot: &Snapshot, lines: &mut Vec<String>) {
    lines.push(format!("destination {}   accepted {}", status.destination, status.accepted));
    let count = |state: LeadState| status.states.get(&state).copied().unwrap_or(0);
    lines.extend(LeadState::ALL.map(|state| format!("  {state:<10} {:>10}", count(state))));
    let waiting = &status.waiting;
    if count(LeadState::Pending) > 0 {
        let counts = format!("{} being posted, {} due, {} due later", waiting.leased, waiting.due, waiting.later);
        let counted = if waiting.at_least { "; 5000 of each are counted, and there are more" } else { "" };
        lines.push(format!("waiting: {counts}{counted}"));
        if let Some(oldest) = waiting.oldest_due_s {
            lines.push(format!("  the longest has been due for {}", ago(oldest)));
        }
        if let Some(next) = waiting.next_due_s {
            lines.push(format!("  the next becomes due in {}", ago(next)));
        }
        let reasons: Vec<String> =
            waiting.reasons.iter().filter(|(code, _)| code != "none").map(|(code, n)| format!("{code} {n}")).collect();
        if !reasons.is_empty() {
            lines.push(format!("  after: {}", reasons.join(", ")));
        }
    }
    if let Some(waits) = &snapshot.waits_for {
        lines.push(match &waiting.first {
            Some(first) => {
                format!(
                    "  first in line: {}, accepted {} ago, waits for {}",
                    first.id,
                    ago(first.accepted_s),
                    waits.text
                )
            }
            None => format!("the next message waits for {}", waits.text),
        });
    }
    match (status.last_delivery_s, count(LeadState::Delivered)) {
        (Some(seconds), _) => lines.push(format!("last delivery: {} ago", ago(seconds))),
        (None, _) => lines.push("last delivery: none yet".to_owned()),
    }
    if status.aside > 0 {
        lines.push(format!(
            "warning: {} messages are set aside: somebody has locked their leads in Postgres, or it refuses them",
            at_least(status.aside, status.aside_at_least)
        ));
    }
    if status.warnings > 0 {
        let warnings = at_least(status.warnings, status.warnings_at_least);
        lines.push(format!("warning: {warnings} delivered leads which the API may not be working"));
    }
}

fn at_least(n: i64, is_less: bool) -> String {
    format!("{}{n}", if is_less { "at least " } else { "" })
}

fn worker(worker: &WorkerRecord) -> String {
    let at = |pointer: &str| worker.status.pointer(pointer).filter(|value| !value.is_null());
    let text = |pointer: &str| at(pointer).and_then(Value::as_str);
    let number = |pointer: &str| at(pointer).and_then(Value::as_f64);
    let circuit = text("/circuit").unwrap_or("unknown");
    let cause = text("/cause").map(|cause| format!(" ({cause})")).unwrap_or_default();
    let mut parts = vec![
        format!(
            "{} of {} posts under way",
            number("/posting").unwrap_or_default(),
            number("/concurrency").unwrap_or_default()
        ),
        format!("circuit {circuit}{cause}"),
    ];
    if let Some(hold_s) = number("/hold_s") {
        parts.push(format!("left alone for {} more", ago(hold_s)));
    }
    parts.extend(text("/token/detail").map(|token| format!("token: {token}")));
    if at("/rabbitmq/ok") == Some(&Value::Bool(false)) {
        parts.push(format!("RabbitMQ: {}", text("/rabbitmq/detail").unwrap_or("unknown")));
    }
    parts.extend(number("/lately/delivered_per_s").map(|per_s| format!("{} delivered", rate(per_s))));
    format!(
        "  {} v{}, up {}: {}; seen {} ago",
        worker.id,
        worker.version,
        ago(worker.up_s),
        parts.join(", "),
        ago(worker.seen_s)
    )
}

fn rates(lately: &Lately) -> String {
    let mut text = format!(
        "lately ({}): {} accepted, {} delivered, {} failed, {} to be tried again",
        ago(lately.over_s),
        rate(lately.accepted_per_s),
        rate(lately.delivered_per_s),
        rate(lately.failed_per_s),
        rate(lately.again_per_s)
    );
    if let (Some(p50), Some(p95)) = (lately.post_p50_ms, lately.post_p95_ms) {
        text.push_str(&format!("; posts take {} (p50), {} (p95)", ago(p50 / 1000.0), ago(p95 / 1000.0)));
    }
    text
}

fn rest(drain: &Drain, snapshot: &Snapshot) -> String {
    let without = if snapshot.queue.ready.is_none() { " without the queue" } else { "" };
    let later = match snapshot.ledger.as_ref().map_or(0, |status| status.waiting.later) {
        0 => String::new(),
        later => format!(" now; {later} are due later"),
    };
    let leads = at_least(drain.leads, drain.at_least);
    match drain.seconds {
        _ if drain.leads == 0 => format!("to go: nothing{without}{later}"),
        Some(seconds) => format!("to go: {leads} leads{without}, at {} in {}", rate(drain.per_s), ago(seconds)),
        None if drain.per_s > 0.0 => format!("to go: {leads} leads{without}; never, as long as they wait for that"),
        None => format!("to go: {leads} leads{without}; never, at this rate: none came to an end lately"),
    }
}

fn rate(per_s: f64) -> String {
    if per_s >= 10.0 || per_s == 0.0 { format!("{per_s:.0}/s") } else { format!("{per_s:.2}/s") }
}
