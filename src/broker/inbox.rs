//! What the worker sees of the broker: messages to take, receipts to hand back, and one wish.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::Acker;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::connection::{Address, BrokerError};
use super::consumer::{Session, Supervisor, supervise};
use crate::config;
use crate::traces::TraceContext;

/// How long a stop waits for the broker.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A message as it came.
pub struct Message {
    /// The body.
    pub body: Vec<u8>,
    /// The `message_id` property.
    pub message_id: Option<String>,
    /// Whether the broker says that it has delivered it before. `false` is certain, `true` is a hint.
    pub redelivered: bool,
    /// How many times it has been delivered before, as quorum queues count it; 0 where nobody counts.
    pub delivery_count: u64,
    /// Whether its header `x-leadpost-replay` asks for a replay.
    pub replay: bool,
    /// When it was delivered.
    pub arrived_at: Instant,
    /// When its producer says that it made it: the `timestamp` property, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// Where it belongs in its producer's trace, by its headers.
    pub trace: Option<Arc<TraceContext>>,
    /// What acknowledges this message, and all that came before it on the same connection.
    pub receipt: Receipt,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("bytes", &self.body.len())
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}

/// The right to acknowledge a message and all before it.
#[derive(Debug, Clone)]
pub struct Receipt {
    pub(super) generation: u64,
    pub(super) epoch: u64,
    pub(super) acker: Acker,
}

impl Receipt {
    /// Whether both acknowledge on the same connection, so that the later one covers the earlier.
    pub fn covers(&self, earlier: &Receipt) -> bool {
        self.generation == earlier.generation
    }
}

/// What the worker wants of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Messages.
    Messages,
    /// No further ones; those in hand will be acknowledged.
    Pause,
    /// None, and no connection either.
    Nothing,
}

/// A wish, and how often messages were given back before it. The count makes sure that no later wish hides a giving back: a
/// connection ends when it changes, whatever is wanted by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) want: Want,
    pub(super) epoch: u64,
}

/// How things stand with the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not connected, and why.
    Down(String),
    /// Connected, and not consuming because nobody wants messages.
    Idle,
    /// Consuming.
    Consuming,
    /// The supervisor has ended.
    Closed,
}

/// The worker's end.
#[derive(Debug)]
pub struct Inbox {
    messages: mpsc::UnboundedReceiver<Message>,
    receipts: mpsc::UnboundedSender<Receipt>,
    wish: watch::Sender<Wish>,
    link: watch::Receiver<Link>,
    generation: Arc<AtomicU64>,
    losses: Arc<AtomicU64>,
    supervisor: JoinHandle<()>,
}

impl Inbox {
    /// Starts the supervisor. Nothing is consumed until [`Inbox::want`] says so.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn open(settings: &config::Amqp, prefetch: u16, name: &str) -> Result<Self, BrokerError> {
        // Unbounded, but never longer than the prefetch: what is in it is not acknowledged.
        let (message_sender, messages) = mpsc::unbounded_channel();
        let (receipts, receipt_receiver) = mpsc::unbounded_channel();
        let (wish, wish_receiver) = watch::channel(Wish { want: Want::Nothing, epoch: 0 });
        let (link_sender, link) = watch::channel(Link::Down("not connected yet".to_owned()));
        let generation = Arc::new(AtomicU64::new(0));
        let losses = Arc::new(AtomicU64::new(0));
        let supervisor = tokio::spawn(supervise(Supervisor {
            address: Address::of(settings)?,
            queue: settings.queue.clone(),
            prefetch,
            name: name.to_owned(),
            messages: message_sender,
            receipts: receipt_receiver,
            wish: wish_receiver,
            link: link_sender,
            generation: Arc::clone(&generation),
            losses: Arc::clone(&losses),
            session: Session::default(),
            was_silent: false,
        }));
        Ok(Self { messages, receipts, wish, link, generation, losses, supervisor })
    }

    /// Says what is wanted from now on.
    pub fn want(&self, want: Want) {
        self.wish.send_if_modified(|wish| std::mem::replace(&mut wish.want, want) != want);
    }

    /// Lets all messages in hand return to their queue: none of them is delivered here or acknowledged any more, also not by a
    /// receipt for a later one. Nothing is wanted until [`Inbox::want`] says otherwise.
    pub fn give_back(&self) {
        self.wish.send_modify(|wish| *wish = Wish { want: Want::Nothing, epoch: wish.epoch + 1 });
    }

    /// Whether the supervisor has ended, which it does by itself only when it fails.
    pub fn has_ended(&self) -> bool {
        self.supervisor.is_finished()
    }

    /// How things stand; changes can be waited for.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// How often the connection was lost, or could not be made: kept up to date.
    pub fn losses(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.losses)
    }

    /// Waits for a message and takes those that are there already, up to `max`; in the order of their delivery. Messages of
    /// a connection that is gone are left out: they come again.
    ///
    /// # Cancel safety
    /// No message is lost.
    pub async fn take(&mut self, into: &mut Vec<Message>, max: usize) {
        while into.is_empty() && max > 0 {
            if self.messages.recv_many(into, max).await == 0 {
                // The supervisor has ended; there is nothing to wait for.
                std::future::pending::<()>().await;
            }
            self.drop_stale(into);
        }
    }

    /// Takes what is there, up to `max`, without waiting.
    pub fn take_now(&mut self, into: &mut Vec<Message>, max: usize) {
        while into.len() < max {
            match self.messages.try_recv() {
                Ok(message) => into.push(message),
                Err(_) => break,
            }
        }
        self.drop_stale(into);
    }

    /// Whether a message can still be acknowledged: its connection is there, and it was not given back.
    pub fn is_fresh(&self, message: &Message) -> bool {
        let Receipt { generation, epoch, .. } = message.receipt;
        generation == self.generation.load(Ordering::Acquire) && epoch == self.wish.borrow().epoch
    }

    fn drop_stale(&self, messages: &mut Vec<Message>) {
        messages.retain(|message| self.is_fresh(message));
    }

    /// Acknowledges the message of this receipt and all before it, in the order of the calls.
    pub fn acknowledge(&self, receipt: Receipt) {
        if receipt.epoch != self.wish.borrow().epoch {
            return;
        }
        // When the supervisor has ended, so has the connection, and the messages come again.
        if self.receipts.send(receipt).is_err() {
            tracing::debug!("no connection to acknowledge on");
        }
    }

    /// Acknowledges what is outstanding, and closes.
    pub async fn close(mut self) {
        drop(self.receipts);
        drop(self.wish);
        match tokio::time::timeout(CLOSE_TIMEOUT, &mut self.supervisor).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = %error, "the broker's supervisor has failed"),
            Err(_) => {
                // A broker that does not answer; what is not acknowledged comes again and is recognized.
                tracing::warn!("RabbitMQ did not let go in time; dropping the connection");
                self.supervisor.abort();
            }
        }
    }
}
