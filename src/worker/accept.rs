//! A batch of messages: read, committed to the ledger, told of.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::dispatch::InHand;
use super::health::Health;
use super::settle::AGAIN;
use crate::broker::Message;
use crate::lead::{Code, Lead, LeadRules, Violation, identify};
use crate::ledger::{Arrival, Fate, Ledger, LedgerError, Origin};
use crate::metrics::Metrics;
use crate::reason::chain;

/// How long a batch that cannot be accepted is held before its messages are given back. Far below the broker's limit of 30
/// minutes, and rare enough that quorum queues do not count a message to death.
pub(super) const HOLD: Duration = Duration::from_secs(20);

/// Longer message ids are kept in part.
const MAX_MESSAGE_ID_CHARS: usize = 255;

/// Takes messages into the ledger.
pub(super) struct Accept {
    pub(super) ledger: Ledger,
    pub(super) queue: String,
    pub(super) rules: Arc<LeadRules>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
}

/// A message, read.
struct Read {
    arrival: Arrival,
    lead: Option<Lead>,
}

impl Accept {
    /// Commits a batch, after which its messages may be acknowledged. Comes back with the leads that are ours to post: those that
    /// were leased, for as long as `lease` says; without it, valid leads are left due.
    ///
    /// # Errors
    /// That the ledger has been away for too long: no message of the batch may be acknowledged.
    pub(super) async fn accept(
        &self,
        batch: Vec<Message>,
        lease: Option<Duration>,
    ) -> Result<Vec<InHand>, LedgerError> {
        self.metrics.accept_batch.observe(batch.len() as f64);
        let read: Vec<Read> = batch.into_iter().map(|message| self.read(message)).collect();
        let arrivals: Arc<[Arrival]> = read.iter().map(|read| read.arrival.clone()).collect();
        let fates = self.commit(&arrivals, lease.map(|lease| (Uuid::new_v4(), lease))).await?;
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
        let id = identify(&self.queue, message.message_id.as_deref(), &message.body);
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
}

fn is_whole(arrival: &Arrival) -> bool {
    arrival.violations.iter().all(|violation| violation.code != Code::Unstorable)
}

/// What is left of a message that cannot be stored: its bytes, and that it is not a lead.
fn body_alone(arrival: &Arrival) -> Arrival {
    let message = "the ledger could not store the message with its properties; its body is kept";
    Arrival { message_id: None, violations: vec![Violation::of_message(Code::Unstorable, message)], ..arrival.clone() }
}
