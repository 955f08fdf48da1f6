//! Faults as `LEADPOST_FAULTS` lists them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use clap::ValueEnum as _;

use super::{Panic, Point, Rule};

/// How long a post is under way before the process dies at [`Point::Posted`]: enough for an API on this machine to read it.
const MOMENT: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
struct Faults {
    crash_at: Option<(Point, u32)>,
    passed: AtomicU32,
    broken: Vec<Rule>,
    bad_ack: AtomicBool,
    hold: Option<Duration>,
    keep: Option<Duration>,
    panic_on_read: Option<String>,
    panic_on_post: Option<String>,
}

fn faults() -> &'static Faults {
    static FAULTS: OnceLock<Faults> = OnceLock::new();
    FAULTS.get_or_init(|| {
        let list = std::env::var("LEADPOST_FAULTS").unwrap_or_default();
        tracing::info!(list, "built with the cargo feature faults: for tests only");
        // A test with a fault that is misspelt would prove nothing.
        parse(&list).unwrap_or_else(|problem| panic!("LEADPOST_FAULTS: {problem}"))
    })
}

fn parse(list: &str) -> Result<Faults, String> {
    let mut faults = Faults::default();
    for fault in list.split(',').map(str::trim).filter(|fault| !fault.is_empty()) {
        match fault.split_once('=').unwrap_or((fault, "")) {
            ("crash_at", at) => {
                let (name, n) = at.split_once(':').unwrap_or((at, "1"));
                faults.crash_at =
                    Some((Point::from_str(name, false)?, n.parse().map_err(|_| format!("{n:?} is no number"))?));
            }
            ("break", name) => faults.broken.push(Rule::from_str(name, false)?),
            ("bad_ack", "") => faults.bad_ack = AtomicBool::new(true),
            ("hold_ms", n) => faults.hold = Some(millis(n)?),
            ("keep_ms", n) => faults.keep = Some(millis(n)?),
            ("panic_on_read", text) => faults.panic_on_read = Some(text.to_owned()),
            ("panic_on_post", text) => faults.panic_on_post = Some(text.to_owned()),
            _ => return Err(format!("there is no fault {fault:?}")),
        }
    }
    Ok(faults)
}

fn millis(n: &str) -> Result<Duration, String> {
    n.parse().map(Duration::from_millis).map_err(|_| format!("{n:?} is no number"))
}

fn is_due(point: Point) -> bool {
    let faults = faults();
    faults.crash_at.is_some_and(|(due, n)| due == point && faults.passed.fetch_add(1, Ordering::Relaxed) + 1 == n)
}

fn crash(point: Point) -> ! {
    tracing::error!(?point, "crashing on purpose");
    std::process::abort()
}

pub(super) fn at(point: Point) {
    if is_due(point) {
        crash(point);
    }
}

pub(super) fn soon_at(point: Point) {
    if is_due(point) {
        std::thread::spawn(move || {
            std::thread::sleep(MOMENT);
            crash(point)
        });
    }
}

pub(super) fn breaks(rule: Rule) -> bool {
    faults().broken.contains(&rule)
}

pub(super) fn acks_badly() -> bool {
    faults().bad_ack.swap(false, Ordering::Relaxed)
}

pub(super) fn hold(usual: Duration) -> Duration {
    faults().hold.unwrap_or(usual)
}

pub(super) fn keep(usual: Duration) -> Duration {
    faults().keep.unwrap_or(usual)
}

pub(super) fn panic_on(panic: Panic, body: &[u8]) {
    let text = match panic {
        Panic::OnRead => &faults().panic_on_read,
        Panic::OnPost => &faults().panic_on_post,
    };
    let is_hit = text.as_ref().is_some_and(|text| memchr::memmem::find(body, text.as_bytes()).is_some());
    // As panics of libraries do, it quotes what it stumbled over.
    assert!(!is_hit, "on purpose: {}", String::from_utf8_lossy(body));
}

pub(super) fn without(rule: Rule, sql: &'static str, condition: &str) -> &'static str {
    /// What was made of each statement; few, and each for as long as the process lives.
    static WITHOUT: Mutex<Option<HashMap<&'static str, &'static str>>> = Mutex::new(None);
    assert!(sql.contains(condition), "the condition is not there");
    if !breaks(rule) {
        return sql;
    }
    let mut known = WITHOUT.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    known.entry(sql).or_insert_with(|| Box::leak(sql.replace(condition, "true").into_boxed_str()))
}
