//! The supervisor: keeps a consumer alive as long as messages are wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::connection::{Address, BrokerError, close, within};
use super::inbox::{Link, Message, Receipt, Want, Wish};
use crate::fault::{self, Point};
use crate::schedule::Schedule;
use crate::traces::{TRACEPARENT, TRACESTATE, TraceContext};

/// Between two tries to connect.
const RECONNECT: Schedule =
    Schedule { initial: Duration::from_millis(250), multiplier: 2.0, max: Duration::from_secs(15), jitter: 0.5 };

/// The same while a message that cannot be read breaks every connection: all others wait until the delivery limit is used up.
const READ_AGAIN: Schedule =
    Schedule { initial: Duration::from_millis(250), multiplier: 2.0, max: Duration::from_secs(1), jitter: 0.5 };

/// A consumer that heard nothing for so long is replaced: after an election a quorum queue may believe that messages are with
/// a consumer which never got them, until that consumer's connection ends (rabbitmq/rabbitmq-server#15473).
const IDLE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// After so many connections in a row on which nothing could be acknowledged, messages are taken one at a time.
const FRUITLESS: u32 = 2;

/// So many are taken one at a time before the full prefetch is tried again.
const CAREFUL: u32 = 100;

/// So many messages that are there already are handed on before anything else is looked at.
const AT_ONCE: usize = 64;

/// The name of the header by which a producer asks for a replay.
const REPLAY_HEADER: &str = "x-leadpost-replay";

pub(super) struct Supervisor {
    pub(super) address: Address,
    pub(super) queue: String,
    pub(super) prefetch: u16,
    pub(super) name: String,
    pub(super) messages: mpsc::UnboundedSender<Message>,
    pub(super) receipts: mpsc::UnboundedReceiver<Receipt>,
    pub(super) wish: watch::Receiver<Wish>,
    pub(super) link: watch::Sender<Link>,
    pub(super) generation: Arc<AtomicU64>,
    /// How often a connection was lost, or could not be made.
    pub(super) losses: Arc<AtomicU64>,
    pub(super) session: Session,
    /// Whether the last try ended because the broker said nothing.
    pub(super) was_silent: bool,
}

/// What a connection has come to so far.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// How often messages had been given back when it began.
    epoch: u64,
    /// Whether it got as far as consuming.
    consumed: bool,
    /// How many batches were acknowledged on it.
    acknowledged: u32,
    /// How many before it consumed and broke before anything was acknowledged.
    fruitless: u32,
}

impl Session {
    /// A message that lapin cannot read breaks the connection as often as it comes, and each time all that were handed out with it
    /// count as delivered once more. Then they are taken one at a time: those in front get through, and the bad one goes
    /// alone to where the queue's delivery limit sends it.
    fn is_careful(&self) -> bool {
        self.fruitless >= FRUITLESS
    }

    fn next(&mut self, broke: bool, unreadable: bool) {
        let fruitless = if unreadable {
            self.fruitless.max(FRUITLESS)
        } else if broke && self.consumed && self.acknowledged == 0 {
            self.fruitless + 1
        } else if broke && (!self.consumed || self.is_careful()) {
            self.fruitless
        } else {
            0
        };
        *self = Self { fruitless, ..Self::default() };
    }
}

/// Why a session on a connection ended.
enum Ended {
    /// The worker has let go of its end.
    Closed,
    /// Messages were given back, or the connection was idle for long: a fresh one.
    Renew,
}

/// Runs until the worker lets go of its end.
pub(super) async fn supervise(mut supervisor: Supervisor) {
    let mut failures = 0;
    loop {
        // Nothing to consume for: no connection either.
        if supervisor.wish.wait_for(|wish| wish.want != Want::Nothing).await.is_err() {
            break;
        }
        let since = Instant::now();
        let ended = supervisor.session().await;
        supervisor.session.next(ended.is_err(), matches!(ended, Err(BrokerError::Unreadable)));
        match ended {
            Ok(Ended::Closed) => break,
            Ok(Ended::Renew) => {
                failures = 0;
                supervisor.set_link(Link::Idle);
            }
            Err(error) => {
                supervisor.losses.fetch_add(1, Ordering::Relaxed);
                supervisor.was_silent = matches!(error, BrokerError::Timeout { .. });
                if since.elapsed() > RECONNECT.max {
                    failures = 0;
                }
                failures += 1;
                let schedule = if matches!(error, BrokerError::Unreadable) { READ_AGAIN } else { RECONNECT };
                let pause = schedule.delay(failures, fastrand::f64());
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                match &error {
                    BrokerError::NoQueue(_) => {
                        tracing::error!(error = %error, pause_ms, "nothing to consume; looking again")
                    }
                    _ => tracing::warn!(error = %error, pause_ms, "lost RabbitMQ; connecting again"),
                }
                supervisor.set_link(Link::Down(error.to_string()));
                if supervisor.pause(pause).await.is_err() {
                    break;
                }
            }
        }
        // From here on, what came over the old connection is void.
        supervisor.generation.fetch_add(1, Ordering::AcqRel);
    }
    supervisor.set_link(Link::Closed);
}

impl Supervisor {
    fn set_link(&self, link: Link) {
        self.link.send_if_modified(|current| {
            let modified = *current != link;
            *current = link;
            modified
        });
    }

    /// Waits before the next try; receipts for a connection that is gone are void. `Err`: the worker has let go.
    async fn pause(&mut self, pause: Duration) -> Result<(), ()> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                receipt = self.receipts.recv() => if receipt.is_none() { return Err(()) },
            }
        }
    }

    /// One connection, from its start to its end.
    async fn session(&mut self) -> Result<Ended, BrokerError> {
        if self.was_silent {
            self.address.knock().await?;
        }
        let connection = self.address.connect(&self.name).await?;
        let ended = self.on_connection(&connection).await;
        close(&connection).await;
        ended
    }

    async fn on_connection(&mut self, connection: &Connection) -> Result<Ended, BrokerError> {
        self.session.epoch = self.wish.borrow().epoch;
        let limit = self.address.timeout;
        self.address.look_at(connection, &self.queue).await?;
        let channel = self.address.channel(connection).await?;
        let prefetch = if self.session.is_careful() { 1 } else { self.prefetch };
        // Per consumer, not per channel: quorum queues know no other.
        within(limit, "set the prefetch", channel.basic_qos(prefetch, BasicQosOptions { global: false })).await?;
        let mut events = std::pin::pin!(connection.events_listener());
        let mut consumer: Option<Consumer> = None;
        let mut cancelled = false;
        let mut heard_at = Instant::now();
        loop {
            let Wish { want, epoch } = *self.wish.borrow_and_update();
            if epoch != self.session.epoch {
                return Ok(Ended::Renew);
            }
            match (want, &consumer) {
                (Want::Messages, None) => {
                    consumer = Some(self.consume(&channel).await?);
                    self.session.consumed = true;
                    cancelled = false;
                    heard_at = Instant::now();
                    self.set_link(Link::Consuming);
                }
                (Want::Pause, Some(running)) if !cancelled => {
                    let cancel = channel.basic_cancel(running.tag(), BasicCancelOptions::default());
                    within(limit, "cancel the consumer", cancel).await?;
                    cancelled = true;
                }
                (Want::Pause, None) => {
                    self.set_link(Link::Idle);
                }
                (Want::Nothing, _) => return Ok(Ended::Renew),
                (Want::Messages | Want::Pause, Some(_)) => {}
            }
            let consuming = consumer.is_some() && !cancelled;
            let next_delivery = async {
                match &mut consumer {
                    Some(consumer) => consumer.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                receipt = self.receipts.recv() => match receipt {
                    Some(receipt) => {
                        self.acknowledge(receipt).await?;
                        self.session.acknowledged += 1;
                        if fault::acks_badly() {
                            let ack = channel.basic_ack(u64::MAX, BasicAckOptions::default());
                            within(limit, "take an acknowledgement", ack).await?;
                        }
                        if self.session.is_careful() && self.session.acknowledged >= CAREFUL {
                            return Ok(Ended::Renew);
                        }
                    }
                    None => return Ok(Ended::Closed),
                },
                changed = self.wish.changed() => if changed.is_err() {
                    // Both ends are dropped together; outstanding receipts come first.
                    self.acknowledge_rest().await?;
                    return Ok(Ended::Closed);
                },
                first = next_delivery => {
                    heard_at = Instant::now();
                    let mut next = first;
                    for more in (0..AT_ONCE).rev() {
                        match next {
                            Some(Ok(delivery)) => if self.messages.send(self.message(delivery)).is_err() {
                                self.acknowledge_rest().await?;
                                return Ok(Ended::Closed);
                            },
                            Some(Err(error)) => return Err(broken("go on delivering", &error)),
                            None if cancelled => {
                                consumer = None;
                                cancelled = false;
                            }
                            None => {
                                let text = "it cancelled the consumer: the queue was deleted, or its node is down".to_owned();
                                return Err(BrokerError::Failed { doing: "go on delivering", text });
                            }
                        }
                        let there = consumer.as_mut().filter(|_| more > 0).and_then(|consumer| consumer.next().now_or_never());
                        let Some(there) = there else { break };
                        next = there;
                    }
                },
                event = events.next() => if let Some(Event::Error(error)) = event {
                    return Err(broken("keep the connection", &error));
                },
                () = tokio::time::sleep_until(heard_at + IDLE_LIMIT), if consuming => {
                    tracing::debug!("no message for long; taking a fresh connection");
                    return Ok(Ended::Renew);
                }
            }
        }
    }

    async fn consume(&self, channel: &Channel) -> Result<Consumer, BrokerError> {
        let consume = channel.basic_consume(
            self.queue.as_str().into(),
            self.name.as_str().into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        within(self.address.timeout, "start a consumer", consume).await
    }

    async fn acknowledge(&self, receipt: Receipt) -> Result<(), BrokerError> {
        let is_void = receipt.epoch != self.wish.borrow().epoch;
        if is_void || receipt.generation != self.generation.load(Ordering::Acquire) {
            return Ok(());
        }
        let ack = receipt.acker.ack(BasicAckOptions { multiple: true });
        if within(self.address.timeout, "take an acknowledgement", ack).await? {
            fault::at(Point::Acknowledged);
            Ok(())
        } else {
            let text = "the channel had ended; the messages will come again and be recognized".to_owned();
            Err(BrokerError::Failed { doing: "take an acknowledgement", text })
        }
    }

    async fn acknowledge_rest(&mut self) -> Result<(), BrokerError> {
        while let Ok(receipt) = self.receipts.try_recv() {
            self.acknowledge(receipt).await?;
        }
        Ok(())
    }

    fn message(&self, delivery: lapin::message::Delivery) -> Message {
        fault::at(Point::Received);
        let properties = &delivery.properties;
        let header = |name: &str| properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
        Message {
            message_id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
            redelivered: delivery.redelivered,
            delivery_count: header("x-delivery-count").and_then(integer).unwrap_or(0),
            replay: header(REPLAY_HEADER).is_some_and(is_true),
            arrived_at: Instant::now(),
            timestamp: *properties.timestamp(),
            trace: header(TRACEPARENT)
                .and_then(bytes_of)
                .and_then(|parent| TraceContext::read(parent, header(TRACESTATE).and_then(bytes_of)).map(Arc::new)),
            receipt: Receipt {
                generation: self.generation.load(Ordering::Acquire),
                epoch: self.session.epoch,
                acker: delivery.acker,
            },
            body: delivery.data,
        }
    }
}

fn broken(doing: &'static str, error: &lapin::Error) -> BrokerError {
    match error.kind() {
        lapin::ErrorKind::ParsingError(_) => BrokerError::Unreadable,
        _ => BrokerError::Failed { doing, text: crate::reason::chain(error) },
    }
}

fn bytes_of(value: &AMQPValue) -> Option<&[u8]> {
    match value {
        AMQPValue::LongString(text) => Some(text.as_bytes()),
        AMQPValue::ShortString(text) => Some(text.as_str().as_bytes()),
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        _ => None,
    }
}

fn integer(value: &AMQPValue) -> Option<u64> {
    value.as_long_long_int().and_then(|n| u64::try_from(n).ok()).or_else(|| {
        value.as_long_int().and_then(|n| u64::try_from(n).ok()).or_else(|| value.as_long_uint().map(u64::from))
    })
}

/// A boolean, or what client libraries without one write instead.
fn is_true(value: &AMQPValue) -> bool {
    value.as_bool().unwrap_or(false)
        || value.as_long_string().is_some_and(|text| text.as_bytes().eq_ignore_ascii_case(b"true"))
        || integer(value) == Some(1)
}
