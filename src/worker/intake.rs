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
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::accept::{Accept, hold};
use super::dispatch::{Dispatch, InHand, Settling};
use super::health::{Doing, Health};
use super::orphans::Orphans;
use super::settle::AGAIN;
use crate::broker::{Inbox, Link, Message, Want};
use crate::config::Settings;
use crate::fault::{self, Point, Rule};
use crate::flow::{self, Admission, Flow, Taken};
use crate::lead::{LeadId, LeadRules};
use crate::ledger::{Claimed, Doubts, Ledger, LedgerError};
use crate::metrics::{Metrics, happened};
use crate::reason::chain;
use crate::traces::Traces;

/// When posts are paused for longer than this, the consumer is cancelled: the backlog belongs in the queue.
const SHORT_PAUSE: Duration = Duration::from_secs(2);

/// A message that was delivered so often before is accepted alone, so that it cannot take others with it.
const SUSPICIOUS_DELIVERIES: u64 = 5;

/// More are not accepted in one transaction, unless a single message is larger.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// So long a message is kept without an acknowledgement at most. RabbitMQ gives up on a consumer after half an hour, counts all that it kept as
/// delivered once more, and so sends to the dead letters what was only slow to be sent.
const KEEP: Duration = Duration::from_secs(10 * 60);

/// How long stopping waits for the consumer to be cancelled.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Nothing is waited for longer without a look at what else has changed.
pub(super) const LOOK_AROUND: Duration = Duration::from_secs(5);

/// The intake loop.
pub(super) struct Intake {
    pub(super) settings: Arc<Settings>,
    pub(super) ledger: Ledger,
    pub(super) inbox: Inbox,
    pub(super) accept: Accept,
    pub(super) flow: Arc<Flow>,
    pub(super) dispatch: Arc<Dispatch>,
    settle: mpsc::Sender<Settling>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    posts: TaskTracker,
    lease: Duration,
    /// Taken from the inbox and not accepted yet.
    pub(super) taken: VecDeque<Message>,
    /// When the ledger is asked for due leads again.
    poll_at: Instant,
    /// What due leads have saved up of their share.
    retry_credit: f64,
    /// Leases of which nobody knows whether they are there.
    orphans: Orphans,
    /// When it is looked again for messages that were set aside.
    absorb_at: Instant,
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
        traces: Traces,
        posts: TaskTracker,
    ) -> Self {
        let accept = Accept {
            ledger: ledger.clone(),
            queue: settings.amqp.queue.clone(),
            rules,
            health: Arc::clone(health),
            metrics: Arc::clone(metrics),
            traces,
            absorbed_to: 0,
        };
        let lease = Duration::from_millis(settings.flow.lease_ms);
        let orphans = Orphans::new(ledger.clone(), Arc::clone(health), lease);
        Self {
            lease,
            settings,
            ledger,
            inbox,
            accept,
            flow: Arc::clone(&dispatch.flow),
            dispatch,
            settle,
            health: Arc::clone(health),
            metrics: Arc::clone(metrics),
            posts,
            taken: VecDeque::new(),
            poll_at: Instant::now(),
            retry_credit: 0.0,
            orphans,
            absorb_at: Instant::now(),
        }
    }

    /// Runs until it is told to stop; then parks what it holds, waits for the posts under way, and closes the broker's connection.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut writable = false;
        let mut failures = 0;
        while !stop.is_cancelled() {
            self.health.turned();
            if self.inbox.has_ended() {
                tracing::error!("the broker's supervisor has ended by itself");
                break;
            }
            // The settle loop may find out first: with all places taken, nothing is accepted that could.
            let down_for = self.health.ledger_down_for();
            if writable && down_for > hold() {
                let down_ms = u64::try_from(down_for.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(
                    down_ms,
                    "the ledger has not been written for too long; messages return to their queue until it can be"
                );
                self.give_back();
                writable = false;
            }
            if !writable {
                self.inbox.want(Want::Nothing);
                writable = self.wait_for_ledger(&stop).await;
                continue;
            }
            self.orphans.release_when_due().await;
            if self.absorb_at <= Instant::now() {
                self.absorb_at = Instant::now() + LOOK_AROUND;
                self.accept.absorb().await;
            }
            let turn = match self.park_old().await {
                Ok(()) => match self.flow.admission(Instant::now()) {
                    Admission::Wait(until) => self.wait(until, &stop).await,
                    Admission::Probe(avoid) => self.probe(avoid, &stop).await,
                    Admission::Flow => self.turn(&stop).await,
                },
                Err(error) => Err(error),
            };
            match turn {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = %chain(&error), "the ledger does not take part; messages return to their queue until it does");
                    self.give_back();
                    writable = false;
                    // A heartbeat may well succeed where this did not.
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(AGAIN.delay(failures, fastrand::f64())) => {}
                    }
                }
            }
        }
        self.finish(writable).await;
    }

    /// Lets everything that is not accepted return to the queue.
    fn give_back(&mut self) {
        self.taken.clear();
        self.inbox.give_back();
    }

    /// Proves that the ledger can be written before anything is consumed.
    async fn wait_for_ledger(&self, stop: &CancellationToken) -> bool {
        let mut tries = 0;
        loop {
            let status = serde_json::to_value(self.health.beat()).unwrap_or_default();
            let asked_at = Instant::now();
            match self.ledger.rehearse().await {
                Ok(()) => {
                    self.health.ledger_is_proven();
                    // A hold outlives the worker that was told. Without a rate limit, leads flow without it, too.
                    match self.ledger.heartbeat(status, None, flow::SEEN_WITHIN).await {
                        Ok(beat) => {
                            self.flow.hold_seen(beat.hold, asked_at, Instant::now());
                        }
                        Err(error) => {
                            self.health.ledger_is_down(Doing::Anything, &error);
                            tracing::warn!(error = %chain(&error), "could not write the heartbeat");
                        }
                    }
                    return true;
                }
                Err(error) => {
                    self.health.ledger_is_down(Doing::Anything, &error);
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
        self.took(arrived);
        Ok(())
    }

    /// Notes messages that came.
    pub(super) fn took(&mut self, arrived: Vec<Message>) {
        if !arrived.is_empty() {
            self.metrics.received.inc_by(arrived.len() as u64);
            happened(&self.metrics.last_message);
            self.taken.extend(arrived);
        }
    }

    /// Accepts what was taken without sending it: it is due, and whoever may send claims it.
    async fn park(&mut self) -> Result<(), LedgerError> {
        loop {
            let room = self.settings.flow.batch;
            self.take_more(self.taken.len() + room);
            if !self.park_some(room).await? {
                return Ok(());
            }
        }
    }

    /// Parks up to so many messages of those that were taken; `false` if there was none.
    async fn park_some(&mut self, most: usize) -> Result<bool, LedgerError> {
        let batch = self.next_batch(most);
        if batch.is_empty() {
            return Ok(false);
        }
        let accepted = self.accept.accept(batch, None).await;
        for receipt in accepted.receipts {
            self.inbox.acknowledge(receipt);
        }
        accepted.error.map_or(Ok(true), Err)
    }

    /// Parks what has waited in hand for too long, because leads are sent so slowly.
    async fn park_old(&mut self) -> Result<(), LedgerError> {
        let keep = fault::keep(KEEP);
        let is_old = |message: &Message| message.arrived_at.elapsed() > keep;
        loop {
            if self.taken.is_empty() {
                self.take_more(1);
            }
            // In the order of their arrival: when the first is not old, none is.
            if !self.taken.front().is_some_and(is_old) {
                return Ok(());
            }
            self.take_more(self.settings.flow.batch);
            let old = self.taken.iter().take_while(|message| is_old(message)).count();
            self.park_some(old.min(self.settings.flow.batch)).await?;
        }
    }

    /// Takes from the inbox what is there, until so many are taken.
    fn take_more(&mut self, until: usize) {
        let mut more = Vec::new();
        self.inbox.take_now(&mut more, until.saturating_sub(self.taken.len()));
        self.took(more);
    }

    /// One turn while leads flow.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), LedgerError> {
        self.inbox.want(Want::Messages);
        let Some(mut permit) = self.reserve(stop).await else { return Ok(()) };
        let places = permit.as_ref().map_or(0, Taken::count);

        let mut used = 0;
        let now = Instant::now();
        if now >= self.poll_at {
            let mut quota = self.retry_quota(places);
            if !self.dispatch.tokens.has_valid() {
                // One lead is enough to get a token for all.
                quota = quota.min(1);
            }
            if quota > 0 {
                let claimed = self.claim(quota, Vec::new(), Doubts::Included, &mut permit, false).await;
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
                self.flow.give_back(permit.as_ref().map_or(0, Taken::count));
                return Ok(());
            }
            let batch = self.next_batch(places - used);
            if !batch.is_empty() {
                self.accept_for(batch, &mut permit, false).await?;
            }
        }
        let unused = permit.as_ref().map_or(0, Taken::count);
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

    /// Reserves as many places as are free, up to a batch: when half of those ahead are, so that a batch is worth its commit. While fewer are
    /// free, as many leads are in hand that have no slot yet, so that nothing waits for it.
    async fn reserve(&self, stop: &CancellationToken) -> Option<Option<Taken>> {
        let first = tokio::select! {
            () = stop.cancelled() => return None,
            // The circuit may open while all places are taken, or the ledger go away.
            () = self.flow.changed() => return None,
            () = tokio::time::sleep(LOOK_AROUND) => return None,
            taken = self.flow.window.take(self.flow.worthwhile()) => taken,
        };
        let mut places = first;
        if let Some(more) = self.flow.window.take_now(self.settings.flow.batch.saturating_sub(places.count())) {
            places.merge(more);
        }
        match self.flow.reserve(places.count(), Instant::now()) {
            Ok(admitted) => {
                // What the rate does not admit is let go.
                drop(places.split(places.count() - admitted));
                Some(Some(places))
            }
            Err(until) => {
                drop(places);
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.flow.changed() => {}
                    () = tokio::time::sleep_until(until.min(Instant::now() + LOOK_AROUND)) => {}
                }
                None
            }
        }
    }

    /// How many of these places are for due leads: all of them while nothing fresh waits, else their share, saved up over turns.
    fn retry_quota(&mut self, places: usize) -> usize {
        self.take_more(places);
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
                () = tokio::time::sleep_until(self.poll_at.min(Instant::now() + LOOK_AROUND)) => {}
                () = self.inbox.take(&mut arrived, room) => {}
            }
        } else {
            self.inbox.take_now(&mut arrived, room.saturating_sub(self.taken.len()));
        }
        self.took(arrived);
    }

    /// The messages that are accepted together: not too many bytes, and a suspicious one is alone.
    pub(super) fn next_batch(&mut self, max: usize) -> Vec<Message> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < max {
            let Some(message) = self.taken.front() else { break };
            // What came over a connection that is gone comes again.
            if !self.inbox.is_fresh(message) {
                self.taken.pop_front();
                continue;
            }
            bytes += message.body.len();
            let alone = message.delivery_count >= SUSPICIOUS_DELIVERIES;
            if !batch.is_empty() && (alone || bytes > MAX_BATCH_BYTES) {
                break;
            }
            batch.extend(self.taken.pop_front());
            if alone {
                break;
            }
        }
        batch
    }

    /// Claims due leads and sends them on their way; says how many. What goes wrong is left to the next poll: leads that are due
    /// can wait.
    pub(super) async fn claim(
        &mut self,
        limit: usize,
        avoid: Vec<LeadId>,
        doubts: Doubts,
        permit: &mut Option<Taken>,
        is_probe: bool,
    ) -> usize {
        let token = Uuid::new_v4();
        let began = Instant::now();
        let claimed = match self.ledger.claim(limit, (token, self.lease), avoid, doubts).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "could not claim due leads");
                self.metrics.ledger_failures.inc();
                self.health.ledger_is_down(Doing::Anything, &error);
                if error.is_unknown() {
                    self.orphans.extend([token]);
                }
                return 0;
            }
        };
        let (n, ended) = (claimed.len(), Instant::now());
        for (at, Claimed { leased, body }) in claimed.into_iter().enumerate() {
            let traces = &self.accept.traces;
            let span = traces.of_due(leased.id.0, leased.trace.as_deref(), leased.attempts, began);
            span.part("claim", began, ended);
            let is_probe = is_probe && at == 0;
            let in_hand = InHand { leased, body: Bytes::from(body), lead: None, is_probe, span };
            self.send(in_hand, permit).await;
        }
        n
    }

    /// Accepts messages, acknowledges them, and sends the valid ones on their way.
    pub(super) async fn accept_for(
        &mut self,
        batch: Vec<Message>,
        permit: &mut Option<Taken>,
        is_probe: bool,
    ) -> Result<(), LedgerError> {
        if fault::breaks(Rule::CommitBeforeAck) {
            batch.iter().for_each(|message| self.inbox.acknowledge(message.receipt.clone()));
            tokio::time::sleep(SHORT_PAUSE).await;
        }
        let accepted = self.accept.accept(batch, Some(self.lease)).await;
        for receipt in accepted.receipts {
            self.inbox.acknowledge(receipt);
        }
        self.orphans.extend(accepted.orphans);
        for (at, mut in_hand) in accepted.in_hand.into_iter().enumerate() {
            in_hand.is_probe = is_probe && at == 0;
            self.send(in_hand, permit).await;
        }
        accepted.error.map_or(Ok(()), Err)
    }

    async fn send(&self, in_hand: InHand, permit: &mut Option<Taken>) {
        let place = match permit {
            Some(places) if places.count() > 1 => Some(places.split(1)),
            _ => permit.take(),
        };
        let place = match place {
            Some(place) => place,
            // One place was reserved for each.
            None => self.flow.window.take(1).await,
        };
        self.posts.spawn(Arc::clone(&self.dispatch).carry(in_hand, place, self.settle.clone()));
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
            fault::at(Point::Parked);
        }
        self.posts.close();
        self.posts.wait().await;
        self.orphans.release().await;
        // Lets the settle loop end once it has settled everything.
        drop(self.settle);
        self.inbox.close().await;
    }
}
