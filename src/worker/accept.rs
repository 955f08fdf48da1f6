//! A batch of messages: read, committed to the ledger, told of.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::check::check;
use super::dispatch::InHand;
use super::health::{Doing, Health};
use super::settle::AGAIN;
use crate::broker::{Message, Receipt};
use crate::fault;
use crate::lead::{Code, Keys, Lead, LeadId, LeadRules, Violation, identify};
use crate::ledger::{Arrival, Fate, LeadState, Ledger, LedgerError, OnLock, Origin};
use crate::metrics::{Became, Metrics};
use crate::reason::chain;
use crate::traces::Traces;

/// How long a batch that cannot be accepted is held before its messages are given back. Far below the broker's limit of 30
/// minutes, and rare enough that quorum queues do not count a message to death.
const HOLD: Duration = Duration::from_secs(20);

/// Longer message ids are kept in part.
const MAX_MESSAGE_ID_CHARS: usize = 255;

/// Takes messages into the ledger.
pub(super) struct Accept {
    pub(super) ledger: Ledger,
    pub(super) queue: String,
    pub(super) rules: Arc<LeadRules>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traces: Traces,
    /// How far the messages that were set aside have been looked at.
    pub(super) absorbed_to: i64,
}

/// What became of a batch.
#[derive(Default)]
pub(super) struct Accepted {
    /// The leads that are ours to post.
    pub(super) in_hand: Vec<InHand>,
    /// What may be acknowledged: everything up to the first message that could not be accepted.
    pub(super) receipts: Vec<Receipt>,
    /// Tokens of which nobody knows whether leads were leased under them.
    pub(super) orphans: Vec<Uuid>,
    /// Why messages are left that were not accepted: they are to be given back.
    pub(super) error: Option<LedgerError>,
}

impl Accept {
    /// Commits a batch, after which its messages may be acknowledged. Valid leads are leased for as long as `lease` says; without
    /// it, they are left due.
    pub(super) async fn accept(&self, batch: Vec<Message>, lease: Option<Duration>) -> Accepted {
        self.metrics.accept_batch.had(batch.len());
        let arrived: Vec<Arrived> = batch.iter().map(Arrived::of).collect();
        let (mut arrivals, mut read) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for message in batch {
            let (arrival, lead, receipt) = self.read(message);
            arrivals.push(arrival);
            read.push((lead, receipt));
        }
        let (leads, receipts): (Vec<Option<Lead>>, Vec<Receipt>) = read.into_iter().unzip();
        let arrivals: Arc<[Arrival]> = arrivals.into();
        let mut accepted = Accepted::default();
        let began = Instant::now();
        let fates = self.commit(Arc::clone(&arrivals), lease, began, false, &mut accepted).await;
        let ended = Instant::now();
        self.metrics.accept_duration.took(ended - began);
        let now = SystemTime::now();
        let whole = fates.iter().take_while(|fate| fate.is_some()).count();
        accepted.receipts = last_receipts(receipts.into_iter().take(whole));
        for (((arrival, lead), fate), arrived) in arrivals.iter().zip(leads).zip(fates).zip(arrived) {
            let Some(fate) = fate else { continue };
            let became = self.tell(arrival, &fate);
            if let Some(waited) = arrived.waited(now) {
                self.metrics.message_wait.took(waited);
            }
            let span = self.traces.of_message(&self.queue, id_of(&fate).0, arrival.trace.as_deref(), arrived.at);
            span.part("accept", began, ended);
            match fate {
                Fate::Leased(leased) => {
                    // Under another id it may be another body that is posted.
                    let lead = lead.filter(|_| leased.id == arrival.id);
                    accepted.in_hand.push(InHand { leased, body: arrival.body.clone(), lead, is_probe: false, span });
                }
                _ => span.end(became.as_str(), None, became == Became::Invalid),
            }
        }
        accepted
    }

    /// Commits, holding the batch while the ledger is away, up to a limit counted from `since`. `unknown`: an earlier try with these may yet be
    /// committed. What is left without a fate was not accepted.
    async fn commit(
        &self,
        mut arrivals: Arc<[Arrival]>,
        lease: Option<Duration>,
        since: Instant,
        mut unknown: bool,
        accepted: &mut Accepted,
    ) -> Vec<Option<Fate>> {
        // A token stands for one transaction, however often that is tried, until it is known how it ended.
        let token = Uuid::new_v4();
        let (mut tries, mut on_lock) = (0, OnLock::Wait);
        loop {
            let leased = lease.map(|lease| (token, lease));
            let error = match self.ledger.accept(Arc::clone(&arrivals), leased, on_lock).await {
                Ok(mut fates) => {
                    self.health.ledger_is_up(Doing::Accept);
                    if fates.iter().any(Option::is_none) {
                        self.set_aside(&arrivals, &mut fates, accepted).await;
                    }
                    return fates;
                }
                Err(error) => error,
            };
            // Each half may take a statement's whole time; when all of it is slow, there would be no end to it.
            let is_too_much = error.is_about_size() && since.elapsed() < hold();
            // What refuses even the lead of a rehearsal is not about these.
            let is_refused = error.is_refused() && self.ledger.rehearse().await.is_ok();
            let is_splittable = (is_refused || is_too_much) && arrivals.len() > 1;
            // After a try of which nobody knows how it ended, the lock may be its own: set aside, its messages would count as others.
            let is_locked = error.is_about_locks() && !unknown;
            if unknown && lease.is_some() && is_splittable {
                // Another try may still be committed under this token; what follows has one of its own.
                accepted.orphans.push(token);
            }
            if is_splittable {
                // Something in it cannot be stored, or not so much at once: halves, until the culprit stands alone.
                self.health.turned();
                let (left, right) = arrivals.split_at(arrivals.len() / 2);
                let mut fates = Box::pin(self.commit(left.into(), lease, since, unknown, accepted)).await;
                fates.extend(Box::pin(self.commit(right.into(), lease, since, unknown, accepted)).await);
                return fates;
            }
            if is_refused && arrivals.iter().all(is_whole) {
                tracing::error!(error = %chain(&error), "a message cannot be stored as it is; keeping its body alone");
                arrivals = arrivals.iter().map(body_alone).collect();
                continue;
            }
            if is_locked && on_lock == OnLock::Wait {
                on_lock = OnLock::Skip;
                continue;
            }
            if is_locked || is_refused {
                // Not a row: an id that somebody is about to insert, or the whole table. Or a message that is refused whatever is left of it:
                // given back, it would come again and again, and take its neighbours to the delivery limit.
                let mut fates = vec![None; arrivals.len()];
                self.set_aside(&arrivals, &mut fates, accepted).await;
                return fates;
            }
            unknown |= error.is_unknown();
            if unknown {
                // What is locked may be its own.
                on_lock = OnLock::Wait;
            }
            tries += 1;
            self.metrics.ledger_failures.inc();
            self.health.ledger_is_down(Doing::Accept, &error);
            self.health.turned();
            if since.elapsed() > hold() {
                if unknown && lease.is_some() {
                    accepted.orphans.push(token);
                }
                accepted.error.get_or_insert(error);
                return vec![None; arrivals.len()];
            }
            tracing::warn!(error = %chain(&error), messages = arrivals.len(), "could not accept; holding the messages");
            tokio::time::sleep(AGAIN.delay(tries, fastrand::f64())).await;
        }
    }

    /// Sets aside what has no fate because somebody has locked its lead, or Postgres refuses it.
    async fn set_aside(&self, arrivals: &Arc<[Arrival]>, fates: &mut [Option<Fate>], accepted: &mut Accepted) {
        let locked: Arc<[Arrival]> = arrivals
            .iter()
            .zip(&*fates)
            .filter(|(_, fate)| fate.is_none())
            .map(|(arrival, _)| arrival.clone())
            .collect();
        match self.ledger.set_aside(Arc::clone(&locked)).await {
            Ok(()) => {
                tracing::warn!(
                    messages = locked.len(),
                    "somebody has locked the leads of these messages, or Postgres refuses them; they are set aside until that ends"
                );
                for (arrival, fate) in arrivals.iter().zip(fates) {
                    fate.get_or_insert(Fate::Aside(arrival.id));
                }
            }
            Err(error) => {
                self.health.ledger_is_down(Doing::Accept, &error);
                accepted.error.get_or_insert(error);
            }
        }
    }

    /// Accepts what was set aside before, as far as its locks are gone: some of it each time, or the first that cannot be accepted would
    /// stand in the way of all others.
    pub(super) async fn absorb(&mut self) {
        let mut places = self.ledger.aside_after(self.absorbed_to).await;
        if self.absorbed_to > 0 && places.as_ref().is_ok_and(Vec::is_empty) {
            places = self.ledger.aside_after(0).await;
        }
        let places: Arc<[i64]> = match places {
            Ok(places) => places.into(),
            Err(error) => return tracing::warn!(error = %chain(&error), "could not look for what was set aside"),
        };
        self.absorbed_to = places.last().copied().unwrap_or(0);
        match self.absorb_these(Arc::clone(&places)).await {
            Err(error) if error.is_about_data() || error.is_about_locks() => {
                for place in &*places {
                    // One that is locked has its time; one that cannot be stored needs somebody to look at it.
                    if let Err(error) = self.absorb_these([*place].into()).await
                        && !error.is_about_locks()
                    {
                        tracing::error!(place, error = %chain(&error), "could not accept a message that was set aside");
                    }
                }
            }
            Err(error) => tracing::warn!(error = %chain(&error), "could not accept what was set aside"),
            Ok(()) => {}
        }
    }

    async fn absorb_these(&self, places: Arc<[i64]>) -> Result<(), LedgerError> {
        if places.is_empty() {
            return Ok(());
        }
        let rules = Arc::clone(&self.rules);
        let messages = self
            .ledger
            .absorb(places, move |id, body| {
                let read = check(&rules, id, body);
                (read.keys, read.lead.err().unwrap_or_default())
            })
            .await?;
        for (arrival, fate) in &messages {
            self.tell(arrival, fate);
        }
        if !messages.is_empty() {
            tracing::info!(messages = messages.len(), "accepted messages that had been set aside");
        }
        Ok(())
    }

    /// Decodes and validates a message.
    fn read(&self, message: Message) -> (Arrival, Option<Lead>, Receipt) {
        let delivered_before = i64::try_from(message.delivery_count).unwrap_or(i64::MAX);
        if delivered_before > self.metrics.max_delivery_count.get() {
            self.metrics.max_delivery_count.set(delivered_before);
        }
        let id = identify(&self.queue, message.message_id.as_deref(), &message.body);
        let read = check(&self.rules, id, &message.body);
        let (lead, violations) = match read.lead {
            Ok(lead) => (Some(lead), Vec::new()),
            Err(violations) => (None, violations),
        };
        let arrival = Arrival {
            id,
            body: Bytes::from(message.body),
            message_id: message.message_id.filter(|id| !id.is_empty()).map(storable),
            redelivered: message.redelivered,
            replay: message.replay,
            keys: read.keys,
            violations,
            trace: message.trace,
        };
        (arrival, lead, message.receipt)
    }

    /// Counts a message, and says what is not a post's to say.
    fn tell(&self, arrival: &Arrival, fate: &Fate) -> Became {
        let became = match fate {
            Fate::Leased(leased) => match leased.origin {
                Origin::Fresh | Origin::Claimed => Became::Fresh,
                Origin::Replayed => Became::Replayed,
                Origin::Conflict => Became::Conflict,
            },
            Fate::Parked(_) => Became::Parked,
            Fate::Invalid(_) => Became::Invalid,
            Fate::Repeated(..) => Became::Repeated,
            Fate::Held(..) => Became::Held,
            Fate::Aside(_) => Became::Aside,
        };
        self.metrics.messages.at(became as usize).inc();
        if !matches!(fate, Fate::Repeated(..) | Fate::Aside(_)) {
            self.health.pulse().accepted();
        }
        match fate {
            Fate::Leased(leased) if leased.origin == Origin::Conflict => {
                tracing::warn!(lead.id = %leased.id, came_as = %arrival.id, "id conflict: another body, or a lead of another destination, has this id; accepted as a lead of its own");
            }
            Fate::Invalid(id) => {
                self.metrics.ended(LeadState::Invalid);
                self.metrics.reasons.count("invalid");
                self.health.pulse().settled(LeadState::Invalid);
                let codes: Vec<&str> = arrival.violations.iter().map(|violation| violation.code.as_str()).collect();
                for violation in &arrival.violations {
                    self.metrics.violations.at(violation.code as usize).inc();
                }
                tracing::info!(lead.id = %id, state = "invalid", codes = codes.join(","), "lead settled");
            }
            Fate::Held(id, state) => {
                tracing::warn!(lead.id = %id, came_as = %arrival.id, %state, "id conflict: another body under an id that a person holds; held too");
            }
            Fate::Repeated(id, state) => tracing::debug!(lead.id = %id, %state, "a message came again"),
            Fate::Leased(_) | Fate::Parked(_) | Fate::Aside(_) => {}
        }
        became
    }
}

/// When a message was made, and when it came here.
struct Arrived {
    timestamp: Option<u64>,
    at: Instant,
}

impl Arrived {
    fn of(message: &Message) -> Self {
        Self { timestamp: message.timestamp, at: message.arrived_at }
    }

    /// How long ago it was made. A clock that is ahead, or counts in another unit, says nothing.
    fn waited(&self, now: SystemTime) -> Option<Duration> {
        let made_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.timestamp?))?;
        // A clock that says 1970 says nothing.
        now.duration_since(made_at).ok().filter(|waited| *waited < A_YEAR)
    }
}

const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The lead that a message became, or is about.
fn id_of(fate: &Fate) -> LeadId {
    match fate {
        Fate::Leased(leased) => leased.id,
        Fate::Parked(id) | Fate::Invalid(id) | Fate::Repeated(id, _) | Fate::Held(id, _) | Fate::Aside(id) => *id,
    }
}

/// How long a batch that cannot be accepted is held.
pub(super) fn hold() -> Duration {
    fault::hold(HOLD)
}

fn is_whole(arrival: &Arrival) -> bool {
    arrival.violations.iter().all(|violation| violation.code != Code::Unstorable)
}

/// What is left of a message that cannot be stored: its bytes, and that it is not a lead.
fn body_alone(arrival: &Arrival) -> Arrival {
    let message = "the ledger could not store the message with its properties; its body is kept";
    let violations = vec![Violation::of_message(Code::Unstorable, message)];
    Arrival { message_id: None, keys: Keys::default(), violations, ..arrival.clone() }
}

/// A message id that Postgres can store; mostly as it came.
fn storable(id: String) -> String {
    if id.len() <= MAX_MESSAGE_ID_CHARS && !id.contains(char::is_control) {
        return id;
    }
    id.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_ID_CHARS).collect()
}

/// The last receipt of each connection: it acknowledges all before it.
fn last_receipts(receipts: impl Iterator<Item = Receipt>) -> Vec<Receipt> {
    let mut last: Vec<Receipt> = Vec::with_capacity(1);
    for receipt in receipts {
        match last.last_mut() {
            Some(earlier) if receipt.covers(earlier) => *earlier = receipt,
            _ => last.push(receipt),
        }
    }
    last
}
