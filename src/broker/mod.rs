//! RabbitMQ: the door through which leads come, and the only module that names `lapin`.
//!
//! ```text
//!   supervise: connect ─> check the queue ─> consume ──── messages ────> Inbox
//!      ^                                       │  ^                       │
//!      └── any error, end or refused ack ──────┘  └── acks, in order ─────┘
//! ```
//!
//! # Rules
//! - lapin's own recovery is off: after a channel error its consumers stay silent for ever. One supervisor rebuilds everything,
//!   with a new generation number; nothing of an older generation is used.
//! - Every lapin await has a time limit: a silent or blocked broker hangs them.
//! - A consumer that ends without an error is a failure too, unless we cancelled it.
//! - One task acknowledges, one after the other, `multiple`, the last message of a batch that is in the ledger as a whole.
//!   Whatever is not answered with `Ok(true)` rebuilds the connection; the messages come again and are recognized.
//! - Consuming and publishing use separate connections: RabbitMQ blocks those that publish, and with them their acks.
//! - Nothing is negatively acknowledged: what cannot be accepted now stays unacknowledged, and returns when the channel closes.

mod connection;
mod consumer;
mod form;
mod gauge;
mod inbox;
mod inspect;
mod publisher;
mod topology;

pub use connection::{BrokerError, Depth};
pub use form::QueueForm;
pub use gauge::Gauge;
pub use inbox::{Inbox, Link, Message, Receipt, Want};
pub use inspect::{Inspection, Refusal, Why, inspect};
pub use publisher::{Outgoing, PublishError, Publisher, WINDOW};
pub use topology::Topology;
