//! What is known at a time, and what follows from it.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::super::ledger;
use crate::broker::{BrokerError, Depth, Gauge};
use crate::config::Settings;
use crate::ledger::{Ledger, LedgerError, Status, WorkerRecord};
use crate::reason::chain;

/// What a hold is, as the codes of leads say it.
const HELD: &str = "the API asked to be left alone";

/// While posts are paused, leads are due again within so many seconds: their time is not what they wait for.
const SOON_S: f64 = 60.0;

/// What leads may wait for while none goes: what they did before says nothing.
const STOPPED: [&str; 3] = ["worker", "token", "circuit"];

/// Looks at ledger and queue.
pub(super) struct View {
    ledger: Ledger,
    queue: String,
    gauge: Option<Gauge>,
    is_schema_known: bool,
}

/// What is known at a time.
#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    /// When it was taken.
    #[serde(with = "time::serde::rfc3339")]
    pub(super) at: OffsetDateTime,
    /// The counts.
    pub(super) ledger: Option<Status>,
    /// Why there are none.
    pub(super) problem: Option<String>,
    /// The queue.
    pub(super) queue: Queue,
    /// Who works, or died lately.
    pub(super) workers: Vec<WorkerRecord>,
    /// What those who live have done lately.
    pub(super) lately: Option<Lately>,
    /// What leads wait for.
    pub(super) waits_for: Option<WaitsFor>,
    /// When all of it is through.
    pub(super) drain: Option<Drain>,
}

/// A queue.
#[derive(Debug, Serialize)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) ready: Option<u32>,
    pub(super) consumers: Option<u32>,
    /// Why that is not known.
    pub(super) problem: Option<String>,
}

/// What all workers have done lately.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Lately {
    /// For how long the one that has been at it longest tells, in seconds.
    pub(super) over_s: f64,
    pub(super) accepted_per_s: f64,
    pub(super) delivered_per_s: f64,
    pub(super) failed_per_s: f64,
    pub(super) ended_per_s: f64,
    pub(super) again_per_s: f64,
    /// Of the slowest worker.
    pub(super) post_p50_ms: Option<f64>,
    pub(super) post_p95_ms: Option<f64>,
}

/// What the next lead waits for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct WaitsFor {
    /// `worker`, `hold`, `token`, `circuit`, `schedule` or `turn`.
    pub(super) kind: &'static str,
    /// The same in words.
    pub(super) text: String,
}

/// How long it takes until what waits now is through, at the rate of late.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Drain {
    /// How many wait: in the queue, if that is known, and due in the ledger.
    pub(super) leads: i64,
    /// Whether there may be more: not all were counted.
    pub(super) at_least: bool,
    /// Leads that came to an end, per second.
    pub(super) per_s: f64,
    /// So long; null: never, at this rate, or as long as nothing goes at all.
    pub(super) seconds: Option<f64>,
}

impl View {
    pub(super) fn of(settings: &Settings) -> anyhow::Result<Self> {
        let gauge = if settings.amqp.url.is_set() { Some(Gauge::of(&settings.amqp)?) } else { None };
        let ledger = ledger(settings, "status")?;
        Ok(Self { ledger, queue: settings.amqp.queue.clone(), gauge, is_schema_known: false })
    }

    /// What is known now, and what the ledger cannot be read for.
    pub(super) async fn look(&mut self) -> (Snapshot, Option<LedgerError>) {
        let (ledger, is_schema_known) = (self.ledger.clone(), self.is_schema_known);
        let looking = async {
            if !is_schema_known {
                ledger.check_schema().await?;
            }
            tokio::try_join!(ledger.status(), ledger.workers())
        };
        match tokio::join!(looking, queue(&self.queue, &mut self.gauge)) {
            (Ok((status, workers)), queue) => {
                self.is_schema_known = true;
                (Snapshot::of(status, workers, queue), None)
            }
            (Err(error), queue) => (Snapshot::of_queue(queue, chain(&error)), Some(error)),
        }
    }
}

async fn queue(name: &str, gauge: &mut Option<Gauge>) -> Queue {
    let read = match gauge {
        Some(gauge) => gauge.read().await.map_err(|error: BrokerError| error.to_string()),
        None => Err("amqp.url is not set".to_owned()),
    };
    let depth = read.as_ref().ok().copied();
    Queue {
        name: name.to_owned(),
        ready: depth.map(|Depth { ready, .. }| ready),
        consumers: depth.map(|Depth { consumers, .. }| consumers),
        problem: read.err(),
    }
}

impl Snapshot {
    fn of(status: Status, workers: Vec<WorkerRecord>, queue: Queue) -> Self {
        let alive: Vec<&WorkerRecord> = workers.iter().filter(|worker| worker.is_alive()).collect();
        let lately = lately(&alive);
        let waits_for = waits_for(&status, &queue, &alive);
        let per_s = lately.as_ref().map_or(0.0, |lately| lately.ended_per_s);
        let is_stopped = waits_for.as_ref().is_some_and(|waits| STOPPED.contains(&waits.kind));
        let drain = Some(Drain::of(&status, &queue, per_s, is_stopped));
        let at = OffsetDateTime::now_utc();
        Self { at, ledger: Some(status), problem: None, queue, workers, lately, waits_for, drain }
    }

    /// What is left when the ledger cannot be read.
    fn of_queue(queue: Queue, problem: String) -> Self {
        Self {
            at: OffsetDateTime::now_utc(),
            ledger: None,
            problem: Some(problem),
            queue,
            workers: Vec::new(),
            lately: None,
            waits_for: None,
            drain: None,
        }
    }

    /// The workers that live.
    pub(super) fn alive(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.workers.iter().filter(|worker| worker.is_alive())
    }
}

/// The sum of what workers say; `None` if none says anything.
fn lately(alive: &[&WorkerRecord]) -> Option<Lately> {
    let said: Vec<&Value> = alive.iter().filter_map(|worker| worker.status.get("lately")).collect();
    if said.is_empty() {
        return None;
    }
    let numbers = |key: &str| said.iter().filter_map(|said| said.get(key).and_then(Value::as_f64)).collect::<Vec<_>>();
    let sum = |key: &str| numbers(key).into_iter().sum::<f64>();
    let most = |key: &str| numbers(key).into_iter().reduce(f64::max);
    Some(Lately {
        over_s: most("over_s").unwrap_or(0.0),
        accepted_per_s: sum("accepted_per_s"),
        delivered_per_s: sum("delivered_per_s"),
        failed_per_s: sum("failed_per_s"),
        ended_per_s: sum("ended_per_s"),
        again_per_s: sum("again_per_s"),
        post_p50_ms: most("post_p50_ms"),
        post_p95_ms: most("post_p95_ms"),
    })
}

impl Drain {
    fn of(status: &Status, queue: &Queue, per_s: f64, is_stopped: bool) -> Self {
        let leads = status.waiting.due + i64::from(queue.ready.unwrap_or(0));
        let seconds = match leads {
            0 => Some(0.0),
            _ if per_s > 0.0 && !is_stopped => Some(leads as f64 / per_s),
            _ => None,
        };
        Self { leads, at_least: status.waiting.at_least, per_s, seconds }
    }
}

/// What keeps the lead that is next, or the next message: of those that workers have taken and not accepted yet nobody knows.
fn waits_for(status: &Status, queue: &Queue, alive: &[&WorkerRecord]) -> Option<WaitsFor> {
    let first = status.waiting.first.as_ref();
    let is_waiting = first.is_some() || queue.ready.unwrap_or(0) > 0;
    let of = |kind, text: String| Some(WaitsFor { kind, text });
    if alive.is_empty() {
        let text = "a worker: none is alive; start leadpost run".to_owned();
        return of("worker", text).filter(|_| is_waiting);
    }
    let due_in_s = first.map_or(0.0, |first| -first.due_s);
    if let Some(held_s) = status.held_s.filter(|held_s| due_in_s <= held_s + 1.0) {
        let until = OffsetDateTime::now_utc() + time::Duration::seconds_f64(held_s);
        let clock = format!("{:02}:{:02}:{:02}Z", until.hour(), until.minute(), until.second());
        let after = super::super::ago(held_s);
        return of(
            "hold",
            format!("the end of a hold: {HELD} until {clock}, {after} from now; leadpost hold lift ends it"),
        );
    }
    let text = |worker: &WorkerRecord, pointer: &str| {
        worker.status.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
    };
    let is_open = |worker: &&&WorkerRecord| text(worker, "/circuit").is_some_and(|circuit| circuit != "closed");
    // One worker whose circuit is closed is enough for leads to flow.
    let paused = alive.iter().find(is_open).filter(|_| alive.iter().all(|worker| is_open(&worker)));
    if let Some(paused) = paused.filter(|_| due_in_s < SOON_S) {
        let is_without_token = paused.status.pointer("/token/ok") == Some(&Value::Bool(false));
        if is_without_token {
            return of("token", format!("a token: {}", text(paused, "/token/detail").unwrap_or_default()));
        }
        let cause = text(paused, "/cause").unwrap_or_else(|| "unknown".to_owned());
        return of("circuit", format!("the circuit to close: posts are paused, single leads probe ({cause})"));
    }
    if due_in_s > 0.0 {
        let after = first.and_then(|first| first.code.as_deref()).unwrap_or("a requeue");
        return of("schedule", format!("its time, {} from now, after {after}", super::super::ago(due_in_s)));
    }
    of("turn", "its turn".to_owned()).filter(|_| is_waiting)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::lead::LeadId;
    use crate::ledger::{FirstInLine, Waiting};

    fn status(due_s: Option<f64>, held_s: Option<f64>) -> Status {
        let first = due_s.map(|due_s| FirstInLine {
            id: LeadId(uuid::Uuid::nil()),
            accepted_s: 600.0,
            due_s,
            code: Some("http_503".to_owned()),
        });
        let due = i64::from(due_s.is_some_and(|due_s| due_s >= 0.0));
        Status {
            destination: "7targets".to_owned(),
            accepted: 1,
            states: Default::default(),
            waiting: Waiting {
                leased: 0,
                due,
                later: 0,
                at_least: false,
                oldest_due_s: None,
                next_due_s: None,
                reasons: Vec::new(),
                first,
            },
            warnings: 0,
            warnings_at_least: false,
            aside: 0,
            aside_at_least: false,
            held_s,
            last_delivery_s: None,
        }
    }

    fn queue_of(ready: Option<u32>) -> Queue {
        Queue { name: "leads".to_owned(), ready, consumers: ready, problem: None }
    }

    fn worker(seen_s: f64, status: Value) -> WorkerRecord {
        WorkerRecord {
            id: "w".to_owned(),
            queue: "leads".to_owned(),
            version: "1".to_owned(),
            started_at: OffsetDateTime::UNIX_EPOCH,
            up_s: 1.0,
            seen_s,
            status,
        }
    }

    fn waits(status: &Status, ready: u32, workers: &[WorkerRecord]) -> Option<(&'static str, String)> {
        let alive: Vec<_> = workers.iter().filter(|worker| worker.is_alive()).collect();
        waits_for(status, &queue_of(Some(ready)), &alive).map(|waits| (waits.kind, waits.text))
    }

    #[test]
    fn what_a_lead_waits_for_is_the_first_thing_that_is_in_its_way() {
        let fine = || worker(1.0, json!({ "circuit": "closed", "token": { "ok": true, "detail": "valid" } }));
        let open =
            || worker(1.0, json!({ "circuit": "open", "cause": "the API answered 403", "token": { "ok": true } }));
        let tokenless = || worker(1.0, json!({ "circuit": "open", "token": { "ok": false, "detail": "refused" } }));
        let dead = || worker(300.0, json!({ "circuit": "closed" }));
        let (due, later, none) = (status(Some(5.0), None), status(Some(-600.0), None), status(None, None));
        let soon = status(Some(-20.0), None);
        let held = status(Some(-89.5), Some(90.0));
        for (status, ready, workers, kind, text) in [
            (&due, 0, vec![dead()], "worker", "none is alive"),
            (&none, 3, vec![], "worker", "none is alive"),
            (&held, 0, vec![fine()], "hold", "90 s from now; leadpost hold lift ends it"),
            (&later, 0, vec![open()], "schedule", "10 min from now, after http_503"),
            (&soon, 0, vec![open()], "circuit", "the API answered 403"),
            (&soon, 0, vec![fine()], "schedule", "20 s from now"),
            (&due, 0, vec![open(), open()], "circuit", "the API answered 403"),
            (&due, 0, vec![tokenless()], "token", "refused"),
            (&due, 0, vec![open(), fine()], "turn", "its turn"),
            (&none, 1, vec![open()], "circuit", "403"),
            (&none, 0, vec![open()], "circuit", "403"),
        ] {
            let (found, said) = waits(status, ready, &workers).expect("something waits");
            assert!(found == kind && said.contains(text), "{kind}: {found} {said}");
        }
        assert_eq!(waits(&none, 0, &[]), None, "nothing waits");
        assert_eq!(waits(&none, 0, &[fine()]), None, "nothing waits, and nothing is in the way");
    }

    #[test]
    fn the_rest_is_through_at_the_rate_of_all_workers_or_never() {
        let said = |ended: f64, p95: Option<f64>| {
            worker(
                1.0,
                json!({ "lately": { "over_s": 60.0, "ended_per_s": ended, "delivered_per_s": ended, "post_p95_ms": p95 } }),
            )
        };
        let workers = [said(2.0, Some(80.0)), said(3.0, Some(120.0)), worker(1.0, json!({ "circuit": "closed" }))];
        let alive: Vec<_> = workers.iter().collect();
        let all = lately(&alive).expect("two of them say something");
        assert_eq!((all.ended_per_s, all.post_p95_ms, all.over_s), (5.0, Some(120.0), 60.0));
        assert_eq!(lately(&[]), None);
        let drain = |ready, per_s| Drain::of(&status(Some(1.0), None), &queue_of(ready), per_s, false);
        assert_eq!((drain(Some(99), 5.0).leads, drain(Some(99), 5.0).seconds), (100, Some(20.0)));
        assert_eq!(drain(Some(99), 0.0).seconds, None, "never");
        assert_eq!(drain(None, 1.0).leads, 1, "without the queue");
        assert_eq!(Drain::of(&status(None, None), &queue_of(Some(0)), 0.0, true).seconds, Some(0.0), "nothing waits");
        assert_eq!(Drain::of(&status(Some(1.0), None), &queue_of(None), 5.0, true).seconds, None, "none goes now");
    }
}
