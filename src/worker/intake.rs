//! The intake loop: from the queue, and from what is due in the ledger, to leads in hand.
//!
//! ```text
//!   each turn:  ledger writable? ── no ──> give messages back, wait
//!               admission? ── wait ──> short: sleep; long: park what is in hand, cancel the consumer
//!                          ── probe ─> one lead, not a suspected one
//!                          ── flow ──> reserve n places ─> due retries: their share ─> fresh messages: the rest
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::dispatch::{Dispatch, InHand, Settling};
use super::health::Health;
use super::settle::AGAIN;
use crate::broker::{Inbox, Link, Message, Receipt, Want};
use crate::config::Settings;
use crate::flow::{Admission, Flow};
use crate::http::chain;
use crate::lead::{Code, Lead, LeadId, LeadRules, Violation, identify};
use crate::ledger::{Arrival, Fate, Ledger, LedgerError, Origin};
use crate::metrics::Metrics;

/// How long a batch that cannot be accepted is held before its messages are given back. Far below the broker's limit of 30
/// minutes, and rare enough that quorum queues do not count a message to death.
const HOLD: Duration = Duration::from_secs(20);

/// When posts are paused for longer than this, the consumer is cancelled: the backlog belongs in the queue.
const SHORT_PAUSE: Duration = Duration::from_secs(2);

/// A message that was delivered so often before is accepted alone, so that it cannot take others with it.
const SUSPICIOUS_DELIVERIES: u64 = 5;

/// How long a probe looks for a fresh message when the ledger has no other lead.
const PROBE_WAIT: Duration = Duration::from_millis(500);

/// How long stopping waits for the consumer to be cancelled.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Nothing is waited for longer without a look at what else has changed.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// Longer message ids are kept in part.
const MAX_MESSAGE_ID_CHARS: usize = 255;

/// The intake loop.
pub(super) struct Intake {
    settings: Arc<Settings>,
    ledger: Ledger,
    inbox: Inbox,
    rules: Arc<LeadRules>,
    flow: Arc<Flow>,
    dispatch: Arc<Dispatch>,
    settle: mpsc::Sender<Settling>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    posts: TaskTracker,
    lease: Duration,
    /// Taken from the inbox and not accepted yet.
    taken: VecDeque<Message>,
    /// When the ledger is asked for due leads again.
    poll_at: Instant,
    /// What due leads have saved up of their share.
    retry_credit: f64,
    /// The token of a claim whose answer was lost.
    lost_claim: Option<Uuid>,
}

/// A message, read.
struct Read {
    arrival: Arrival,
    lead: Option<Lead>,
}

impl Intake {
    #[expect(clippy::too_many_arguments, reason = "it is put together in one place, from parts that the loops share")]
    pub(super) fn new(
        settings: Arc<Settings>,
        ledger: Ledger,
        inbox: Inbox,
        rules: Arc<LeadRules>,
        dispatch: Arc<Dispatch>,
        settle: mpsc::Sender<Settling>,
        health: &Arc<Health>,
        metrics: &Arc<Metrics>,
        posts: TaskTracker,
    ) -> Self {
        Self {
            lease: Duration::from_millis(settings.flow.lease_ms),
            settings,
            ledger,
            inbox,
            rules,
            flow: Arc::clone(&dispatch.flow),
            dispatch,
            settle,
            health: Arc::clone(health),
            metrics: Arc::clone(metrics),
            posts,
            taken: VecDeque::new(),
            poll_at: Instant::now(),
            retry_credit: 0.0,
            lost_claim: None,
        }
    }

    /// Runs until it is told to stop; then parks what it holds, waits for the posts under way, and closes the broker's connection.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut writable = false;
        while !stop.is_cancelled() {
            self.health.turned();
            // The settle loop may have found out first: with all places taken, nothing is accepted that could.
            if self.health.ledger_down_for() > HOLD {
                self.taken.clear();
                writable = false;
            }
            if !writable {
                self.inbox.want(Want::Return);
                writable = self.wait_for_ledger(&stop).await;
                continue;
            }
            let now = Instant::now();
            let turn = match self.flow.admission(now) {
                Admission::Wait(until) => self.wait(until, &stop).await,
                Admission::Probe(avoid) => self.probe(avoid, &stop).await,
                Admission::Flow => self.turn(&stop).await,
            };
            if let Err(error) = turn {
                tracing::warn!(error = %chain(&error), "the ledger is away; messages return to their queue until it is back");
                self.taken.clear();
                writable = false;
            }
        }
        self.finish(writable).await;
    }

    /// Proves that the ledger can be written before anything is consumed.
    async fn wait_for_ledger(&self, stop: &CancellationToken) -> bool {
        let mut tries = 0;
        loop {
            let status = serde_json::to_value(self.flow.status(Instant::now())).unwrap_or_default();
            match self.ledger.heartbeat(status).await {
                Ok(_) => {
                    self.health.ledger_is_up();
                    return true;
                }
                Err(error) => {
                    self.health.ledger_is_down(&error);
                    self.health.turned();
                    tries += 1;
                    tracing::warn!(error = %chain(&error), "the ledger cannot be written; nothing is consumed");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(AGAIN.delay(tries, fastrand::f64())) => {}
            }
        }
    }

    /// Nothing may be sent until then.
    async fn wait(&mut self, until: Instant, stop: &CancellationToken) -> Result<(), LedgerError> {
        if until.saturating_duration_since(Instant::now()) > SHORT_PAUSE {
            self.inbox.want(Want::Pause);
            self.park().await?;
        }
        let mut arrived = Vec::new();
        let until = until.min(Instant::now() + LOOK_AROUND);
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.flow.changed() => {}
            () = tokio::time::sleep_until(until) => {}
            () = self.inbox.take(&mut arrived, self.settings.flow.batch), if self.taken.is_empty() => {}
        }
        self.taken.extend(arrived);
        Ok(())
    }

    /// Accepts what was taken without sending it: it is due, and whoever may send claims it.
    async fn park(&mut self) -> Result<(), LedgerError> {
        loop {
            let room = self.settings.flow.batch;
            let mut more = Vec::new();
            self.inbox.take_now(&mut more, room);
            self.taken.extend(more);
            let batch = self.next_batch(room);
            if batch.is_empty() {
                return Ok(());
            }
            self.accept(batch, None).await?;
        }
    }

    /// Sends one lead to find out whether posts can go on.
    async fn probe(&mut self, avoid: Vec<LeadId>, stop: &CancellationToken) -> Result<(), LedgerError> {
        // Without a token no lead needs to be risked.
        if let Err(error) = self.dispatch.tokens.get().await {
            self.flow.begin_probe();
            self.dispatch.no_token(&error, true);
            return Ok(());
        }
        let Ok(permit) = Arc::clone(&self.flow.window).try_acquire_owned() else {
            // Everything in hand is on its way back; a place is free in a moment.
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            return Ok(());
        };
        self.flow.begin_probe();
        let mut permit = Some(permit);
        // Another lead that is due; then a fresh one; then, for want of another, a suspected one.
        if self.claim(1, avoid, &mut permit, true).await? > 0 {
            return Ok(());
        }
        if self.taken.is_empty() {
            self.inbox.want(Want::Messages);
            let mut arrived = Vec::new();
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(PROBE_WAIT) => {}
                () = self.inbox.take(&mut arrived, 1) => {}
            }
            self.taken.extend(arrived);
        }
        while permit.is_some() {
            let batch = self.next_batch(1);
            if batch.is_empty() {
                break;
            }
            // An invalid or known message leaves the permit for the next.
            self.accept_for(batch, &mut permit, true).await?;
        }
        if permit.is_some() && self.claim(1, Vec::new(), &mut permit, true).await? == 0 {
            self.flow.abandon_probe(Instant::now());
        }
        Ok(())
    }

    /// One turn while leads flow.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), LedgerError> {
        self.inbox.want(Want::Messages);
        let Some(mut permit) = self.reserve(stop).await else { return Ok(()) };
        let places = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);

        let mut used = 0;
        let now = Instant::now();
        if now >= self.poll_at {
            let mut quota = self.retry_quota(places);
            if !self.dispatch.tokens.has_valid() {
                // One lead is enough to get a token for all.
                quota = quota.min(1);
            }
            if quota > 0 {
                let claimed = self.claim(quota, Vec::new(), &mut permit, false).await?;
                used += claimed;
                if claimed < quota {
                    let pause = Duration::from_millis(self.settings.flow.poll_ms);
                    self.poll_at = Instant::now() + pause.mul_f64(0.8 + 0.4 * fastrand::f64());
                }
            }
        }
        if used < places {
            self.fill(places - used, stop).await;
            if !self.taken.is_empty() && !self.has_token(stop).await {
                self.flow.give_back(permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
                return Ok(());
            }
            let batch = self.next_batch(places - used);
            if !batch.is_empty() {
                self.accept_for(batch, &mut permit, false).await?;
            }
        }
        let unused = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        self.flow.give_back(unused);
        Ok(())
    }

    /// A token is reserved like a place: leads that were accepted before there is one would all be posted at once when it comes,
    /// past any rate limit, or be handed back. With a valid one, this does not wait; with nothing to send, it is not asked for.
    async fn has_token(&self, stop: &CancellationToken) -> bool {
        tokio::select! {
            () = stop.cancelled() => false,
            token = self.dispatch.tokens.get() => match token {
                Ok(_) => true,
                Err(error) => {
                    self.dispatch.no_token(&error, false);
                    false
                }
            }
        }
    }

    /// Reserves at least one place, and as many as are free, up to a batch.
    async fn reserve(&self, stop: &CancellationToken) -> Option<Option<OwnedSemaphorePermit>> {
        let first = tokio::select! {
            () = stop.cancelled() => return None,
            // The circuit may open while all places are taken, or the ledger go away.
            () = self.flow.changed() => return None,
            () = tokio::time::sleep(LOOK_AROUND) => return None,
            permit = Arc::clone(&self.flow.window).acquire_owned() => permit.ok()?,
        };
        let mut permit = first;
        let more = self.flow.window.available_permits().min(self.settings.flow.batch - 1);
        if more > 0
            && let Ok(more) =
                Arc::clone(&self.flow.window).try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX))
        {
            permit.merge(more);
        }
        match self.flow.reserve(permit.num_permits(), Instant::now()) {
            Ok(admitted) => {
                // What the rate does not admit is let go.
                drop(permit.split(permit.num_permits() - admitted));
                Some(Some(permit))
            }
            Err(until) => {
                drop(permit);
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.flow.changed() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                None
            }
        }
    }

    /// How many of these places are for due leads: all of them while nothing fresh waits, else their share, saved up over turns.
    fn retry_quota(&mut self, places: usize) -> usize {
        let mut arrived = Vec::new();
        let room = places.saturating_sub(self.taken.len());
        self.inbox.take_now(&mut arrived, room);
        self.taken.extend(arrived);
        if self.taken.is_empty() {
            return places;
        }
        self.retry_credit += places as f64 * self.settings.flow.retry_share;
        let quota = (self.retry_credit as usize).min(places);
        // Nothing is saved up beyond one turn.
        self.retry_credit = (self.retry_credit - quota as f64).min(places as f64);
        quota
    }

    /// Waits for messages, unless there are some, no longer than until due leads are looked for again.
    async fn fill(&mut self, room: usize, stop: &CancellationToken) {
        let mut arrived = Vec::new();
        if self.taken.is_empty() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.flow.changed() => {}
                () = tokio::time::sleep_until(self.poll_at) => {}
                () = self.inbox.take(&mut arrived, room) => {}
            }
        } else {
            self.inbox.take_now(&mut arrived, room.saturating_sub(self.taken.len()));
        }
        self.taken.extend(arrived);
    }

    /// The messages that are accepted together: a suspicious one is alone.
    fn next_batch(&mut self, max: usize) -> Vec<Message> {
        let mut batch = Vec::new();
        while batch.len() < max {
            let Some(message) = self.taken.front() else { break };
            let alone = message.delivery_count >= SUSPICIOUS_DELIVERIES;
            if alone && !batch.is_empty() {
                break;
            }
            batch.extend(self.taken.pop_front());
            if alone {
                break;
            }
        }
        batch
    }

    /// Claims due leads and sends them on their way; says how many.
    async fn claim(
        &mut self,
        limit: usize,
        avoid: Vec<LeadId>,
        permit: &mut Option<OwnedSemaphorePermit>,
        is_probe: bool,
    ) -> Result<usize, LedgerError> {
        let repeated = self.lost_claim.is_some();
        let token = self.lost_claim.take().unwrap_or_else(Uuid::new_v4);
        let claimed = match self.ledger.claim(limit, (token, self.lease), avoid, repeated).await {
            Ok(claimed) => claimed,
            Err(error) => {
                self.lost_claim = Some(token);
                self.metrics.ledger_failures.inc();
                self.health.ledger_is_down(&error);
                return Err(error);
            }
        };
        let n = claimed.len();
        for (at, claimed) in claimed.into_iter().enumerate() {
            let in_hand = InHand {
                leased: claimed.leased,
                body: Bytes::from(claimed.body),
                lead: None,
                is_probe: is_probe && at == 0,
            };
            self.send(in_hand, permit).await;
        }
        Ok(n)
    }

    /// Accepts messages and sends the valid ones on their way.
    async fn accept_for(
        &mut self,
        batch: Vec<Message>,
        permit: &mut Option<OwnedSemaphorePermit>,
        is_probe: bool,
    ) -> Result<(), LedgerError> {
        let in_hand = self.accept(batch, Some(self.lease)).await?;
        for (at, mut in_hand) in in_hand.into_iter().enumerate() {
            in_hand.is_probe = is_probe && at == 0;
            self.send(in_hand, permit).await;
        }
        Ok(())
    }

    async fn send(&self, in_hand: InHand, permit: &mut Option<OwnedSemaphorePermit>) {
        let place = match permit {
            Some(places) if places.num_permits() > 1 => places.split(1),
            _ => permit.take(),
        };
        let place = match place {
            Some(place) => place,
            // More came than places were reserved for (a repeated claim); the window is never closed.
            None => match Arc::clone(&self.flow.window).acquire_owned().await {
                Ok(place) => place,
                Err(_) => return,
            },
        };
        self.posts.spawn(Arc::clone(&self.dispatch).carry(in_hand, place, self.settle.clone()));
    }

    /// Commits a batch to the ledger, then acknowledges it. Comes back with the leads that are ours to post.
    async fn accept(&mut self, batch: Vec<Message>, lease: Option<Duration>) -> Result<Vec<InHand>, LedgerError> {
        self.metrics.accept_batch.observe(batch.len() as f64);
        let receipts = last_receipts(&batch);
        let read: Vec<Read> = batch.into_iter().map(|message| self.read(message)).collect();
        let arrivals: Arc<[Arrival]> = read.iter().map(|read| read.arrival.clone()).collect();
        let fates = self.commit(&arrivals, lease.map(|lease| (Uuid::new_v4(), lease))).await?;
        for receipt in receipts {
            self.inbox.acknowledge(receipt);
        }
        let mut in_hand = Vec::with_capacity(fates.len());
        for (read, fate) in read.into_iter().zip(fates) {
            self.tell(&read, &fate);
            if let Fate::Leased(leased) = fate {
                in_hand.push(InHand { leased, body: read.arrival.body, lead: read.lead, is_probe: false });
            }
        }
        Ok(in_hand)
    }

    /// Commits, holding the batch while the ledger is away, up to a limit.
    async fn commit(
        &self,
        arrivals: &Arc<[Arrival]>,
        lease: Option<(Uuid, Duration)>,
    ) -> Result<Vec<Fate>, LedgerError> {
        let since = Instant::now();
        let mut tries = 0;
        let mut arrivals = Arc::clone(arrivals);
        loop {
            match self.ledger.accept(Arc::clone(&arrivals), lease).await {
                Ok(fates) => {
                    self.health.ledger_is_up();
                    return Ok(fates);
                }
                Err(error) if error.is_about_data() && arrivals.len() > 1 => {
                    // Something in it cannot be stored: halves, until the culprit stands alone. Each with a token of its own, as
                    // a token stands for one transaction.
                    let fresh = || lease.map(|(_, duration)| (Uuid::new_v4(), duration));
                    let (left, right) = arrivals.split_at(arrivals.len() / 2);
                    let mut fates = Box::pin(self.commit(&left.into(), fresh())).await?;
                    fates.extend(Box::pin(self.commit(&right.into(), fresh())).await?);
                    return Ok(fates);
                }
                Err(error) if error.is_about_data() && arrivals.iter().all(is_whole) => {
                    tracing::error!(error = %chain(&error), "a message cannot be stored as it is; keeping its body alone");
                    arrivals = arrivals.iter().map(body_alone).collect();
                }
                Err(error) => {
                    tries += 1;
                    self.metrics.ledger_failures.inc();
                    self.health.ledger_is_down(&error);
                    self.health.turned();
                    if since.elapsed() > HOLD {
                        return Err(error);
                    }
                    tracing::warn!(error = %chain(&error), messages = arrivals.len(), "could not accept; holding the messages");
                    tokio::time::sleep(AGAIN.delay(tries, fastrand::f64())).await;
                }
            }
        }
    }

    /// Decodes and validates a message.
    fn read(&self, message: Message) -> Read {
        let delivered_before = i64::try_from(message.delivery_count).unwrap_or(i64::MAX);
        if delivered_before > self.metrics.max_delivery_count.get() {
            self.metrics.max_delivery_count.set(delivered_before);
        }
        let id = identify(&self.settings.amqp.queue, message.message_id.as_deref(), &message.body);
        let (lead, violations) = match self.rules.check(&message.body) {
            Ok(lead) => (Some(lead), Vec::new()),
            Err(violations) => (None, violations),
        };
        let arrival = Arrival {
            id,
            body: Bytes::from(message.body),
            message_id: message
                .message_id
                .filter(|id| !id.is_empty())
                .map(|id| id.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_ID_CHARS).collect()),
            redelivered: message.redelivered,
            replay: message.replay,
            violations,
        };
        Read { arrival, lead }
    }

    /// Counts a message, and says what is not a post's to say.
    fn tell(&self, read: &Read, fate: &Fate) {
        let kind = match fate {
            Fate::Leased(leased) => match leased.origin {
                Origin::Fresh | Origin::Claimed => "fresh",
                Origin::Replayed => "replayed",
                Origin::Conflict => "conflict",
            },
            Fate::Parked(_) => "parked",
            Fate::Invalid(_) => "invalid",
            Fate::Repeated(..) => "repeated",
            Fate::Held(..) => "held",
        };
        self.metrics.messages.count(kind);
        match fate {
            Fate::Leased(leased) if leased.origin == Origin::Conflict => {
                tracing::warn!(lead.id = %leased.id, came_as = %read.arrival.id, "id conflict: another body under an id that is taken; accepted as a lead of its own");
            }
            Fate::Invalid(id) => {
                self.metrics.ended.count("invalid");
                let codes: Vec<&str> =
                    read.arrival.violations.iter().map(|violation| violation.code.as_str()).collect();
                for code in &codes {
                    self.metrics.violations.count(code);
                }
                tracing::info!(lead.id = %id, state = "invalid", codes = codes.join(","), "lead settled");
            }
            Fate::Held(id, state) => {
                tracing::warn!(lead.id = %id, came_as = %read.arrival.id, %state, "id conflict: another body under an id that a person holds; held too");
            }
            Fate::Repeated(id, state) => tracing::debug!(lead.id = %id, %state, "a message came again"),
            Fate::Leased(_) | Fate::Parked(_) => {}
        }
    }

    /// Leaves nothing behind: parks what was handed out, waits for the posts, acknowledges, closes.
    async fn finish(mut self, writable: bool) {
        if writable {
            self.inbox.want(Want::Pause);
            let mut link = self.inbox.link();
            let cancelled = link.wait_for(|link| *link != Link::Consuming);
            if tokio::time::timeout(CANCEL_WAIT, cancelled).await.is_err() {
                tracing::warn!("the consumer could not be cancelled in time");
            }
            if let Err(error) = self.park().await {
                // They are not acknowledged, so they return to the queue.
                tracing::warn!(error = %chain(&error), "could not park the messages in hand; they return to their queue");
            }
        }
        self.posts.close();
        self.posts.wait().await;
        // Lets the settle loop end once it has settled everything.
        drop(self.settle);
        self.inbox.close().await;
    }
}

fn is_whole(arrival: &Arrival) -> bool {
    arrival.violations.iter().all(|violation| violation.code != Code::Unstorable)
}

/// What is left of a message that cannot be stored: its bytes, and that it is not a lead.
fn body_alone(arrival: &Arrival) -> Arrival {
    let message = "the ledger could not store the message with its properties; its body is kept";
    Arrival { message_id: None, violations: vec![Violation::of_message(Code::Unstorable, message)], ..arrival.clone() }
}

/// The last receipt of each connection in a batch: it acknowledges all before it.
fn last_receipts(batch: &[Message]) -> Vec<Receipt> {
    let mut receipts: Vec<Receipt> = Vec::with_capacity(1);
    for receipt in batch.iter().map(Message::receipt) {
        match receipts.last_mut() {
            Some(last) if receipt.covers(last) => *last = receipt,
            _ => receipts.push(receipt),
        }
    }
    receipts
}
