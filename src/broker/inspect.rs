//! What can be learned of RabbitMQ over AMQP without changing anything there, for `leadpost check`.
//!
//! ```text
//!   greet ──> log in, vhost ──> queue: there? ──> its form ──> may be consumed? ──> dead letters ──> may be published to?
//! ```
//!
//! # Rules
//! - Nothing is made, and no message is taken. A queue's form is asked for right behind the answer that there is one ([`super::form`]).
//!   Whether it may be consumed is asked with a consumer whose arguments are invalid: RabbitMQ looks at the right first, and then refuses
//!   the arguments, so that no message is handed out, which quorum queues would count.
//! - A message is published to a queue that is not there, and comes back.
//! - A question that is refused closes its channel, so each has its own.
//! - What is not come to is `None`.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Connection, ErrorKind, Event, ExchangeKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::connection::{Address, BrokerError, Depth, close, declare_passively};
use super::form::{QueueForm, form_of};
use super::topology::Topology;
use crate::config::Settings;
use crate::reason::chain;

/// How long a single question may take.
const STEP: Duration = Duration::from_secs(5);

/// What RabbitMQ says to us first is smaller.
const MAX_GREETING: usize = 64 * 1024;

/// What was found.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Whether something that speaks AMQP is there.
    pub greeted: Option<Result<(), Refusal>>,
    /// Its version, where it can be heard: not over TLS.
    pub version: Option<String>,
    /// Whether it lets us into the vhost.
    pub connected: Option<Result<(), Refusal>>,
    /// The queue.
    pub queue: Option<Result<Depth, Refusal>>,
    /// The queue's form.
    pub form: Option<Result<QueueForm, Refusal>>,
    /// Whether the queue may be consumed.
    pub consuming: Option<Result<(), Refusal>>,
    /// Whether the exchange is there that takes the queue's dead letters.
    pub dead_letter_exchange: Option<Result<(), Refusal>>,
    /// The queue that `leadpost topology declare` makes for them.
    pub dead_letters: Option<Result<Depth, Refusal>>,
    /// Whether messages may be published.
    pub publishing: Option<Result<(), Refusal>>,
}

/// Why a question was not answered with yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: Why,
    /// In RabbitMQ's words, or the library's.
    pub text: String,
}

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nobody is there.
    Unreachable,
    /// Nothing came back in time.
    Silent,
    /// What answers is no RabbitMQ.
    NotAmqp,
    /// 403: name or password are wrong; or a right is missing.
    NotAllowed,
    /// 530: there is no such vhost, or this user may not use it.
    Vhost,
    /// 404: it is not there.
    NotFound,
    /// 406: it is there in another form, or the arguments are invalid.
    Precondition,
    /// It takes no messages now.
    Blocked,
    /// Anything else.
    Other,
}

impl Refusal {
    pub(super) fn new(why: Why, text: impl Into<String>) -> Self {
        Self { why, text: text.into() }
    }

    pub(super) fn of(error: &lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(error) => {
                let why = match error.get_id() {
                    403 => Why::NotAllowed,
                    404 => Why::NotFound,
                    406 => Why::Precondition,
                    530 => Why::Vhost,
                    _ => Why::Other,
                };
                Self::new(why, error.get_message().as_str())
            }
            _ => Self::new(Why::Other, chain(error)),
        }
    }
}

/// Looks at everything, for so long.
///
/// # Errors
/// That the URL cannot be used.
pub async fn inspect(settings: &Settings, limit: Duration) -> Result<Inspection, BrokerError> {
    let mut address = Address::of(&settings.amqp)?;
    address.timeout = address.timeout.min(STEP);
    let mut found = Inspection::default();
    // What was found until then stays.
    drop(tokio::time::timeout(limit, look(&address, &Topology::of(settings), &mut found)).await);
    Ok(found)
}

async fn look(address: &Address, topology: &Topology, found: &mut Inspection) {
    match within(address.timeout, greet(address)).await {
        Ok(version) => {
            found.version = version;
            found.greeted = Some(Ok(()));
        }
        Err(refusal) => return found.greeted = Some(Err(refusal)),
    }
    let connector = match address.connector() {
        Ok(connector) => connector,
        Err(error) => return found.connected = Some(Err(Refusal::new(Why::Other, chain(&error)))),
    };
    let connecting =
        async { address.connect_by(connector, "leadpost check").await.map_err(|error| Refusal::of(&error)) };
    let connection = match within(address.timeout, connecting).await {
        Ok(connection) => connection,
        Err(refusal) => return found.connected = Some(Err(refusal)),
    };
    found.connected = Some(Ok(()));
    look_at_queue(address, &connection, topology, found).await;
    let publishing = within(address.timeout, publish(&connection)).await;
    // One that is blocked answers nothing any more.
    let is_blocked = matches!(&publishing, Err(refusal) if [Why::Blocked, Why::Silent].contains(&refusal.why));
    found.publishing = Some(publishing);
    if !is_blocked {
        close(&connection).await;
    }
}

async fn look_at_queue(address: &Address, connection: &Connection, topology: &Topology, found: &mut Inspection) {
    let queue = topology.queue.as_str();
    let depth = within(address.timeout, passive(connection, queue)).await;
    let is_there = depth.is_ok();
    found.queue = Some(depth);
    if is_there {
        let form = within(address.timeout, form_of(connection, topology)).await;
        let exchange = form.as_ref().ok().and_then(|form| form.dead_letter_exchange.clone());
        found.form = Some(form);
        found.consuming = Some(within(address.timeout, consume(connection, queue)).await);
        // The exchange without a name is always there.
        if let Some(exchange) = exchange.filter(|exchange| !exchange.is_empty()) {
            found.dead_letter_exchange = Some(within(address.timeout, exchange_is_there(connection, &exchange)).await);
        }
    }
    found.dead_letters = Some(within(address.timeout, passive(connection, &topology.dead_letter)).await);
}

/// Whether something is there that speaks AMQP, and which version of RabbitMQ that is.
async fn greet(address: &Address) -> Result<Option<String>, Refusal> {
    let unreachable = |error: std::io::Error| Refusal::new(Why::Unreachable, error.to_string());
    let mut stream = TcpStream::connect(address.host_and_port()).await.map_err(unreachable)?;
    if address.is_tls() {
        return Ok(None);
    }
    stream.write_all(b"AMQP\0\0\x09\x01").await.map_err(unreachable)?;
    let mut greeting = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).await.map_err(unreachable)?;
        greeting.extend_from_slice(chunk.get(..n).unwrap_or_default());
        match read_greeting(&greeting) {
            Greeting::Whole(version) => return Ok(version),
            Greeting::Begun if n > 0 && greeting.len() < MAX_GREETING => {}
            Greeting::Begun | Greeting::Foreign => {
                return Err(Refusal::new(Why::NotAmqp, "what answers there does not speak AMQP 0-9-1"));
            }
        }
    }
}

/// The bytes of a `connection.start`, as far as they have come.
#[derive(Debug, PartialEq, Eq)]
enum Greeting {
    Begun,
    Whole(Option<String>),
    Foreign,
}

fn read_greeting(bytes: &[u8]) -> Greeting {
    // A method on channel 0; its size; connection.start.
    const FRAME: [u8; 3] = [1, 0, 0];
    const START: [u8; 4] = [0, 10, 0, 10];
    let is_ours = |at: usize, expected: &[u8]| {
        let there = bytes.get(at..).unwrap_or_default();
        there.iter().zip(expected).all(|(there, expected)| there == expected)
    };
    if !is_ours(0, &FRAME) || !is_ours(7, &START) {
        return Greeting::Foreign;
    }
    let size = bytes.get(3..7).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
    let end = size.and_then(|size| usize::try_from(size).ok()).map(|size| size.saturating_add(8));
    match end {
        Some(end) if bytes.len() >= end => Greeting::Whole(version(bytes)),
        _ => Greeting::Begun,
    }
}

/// The server's version among its properties: a name, a type, a length, a text.
fn version(bytes: &[u8]) -> Option<String> {
    const NAME: &[u8] = b"\x07versionS";
    let at = memchr::memmem::find(bytes, NAME)? + NAME.len();
    let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    let text = bytes.get(at + 4..at + 4 + usize::try_from(length).ok()?)?;
    let text = std::str::from_utf8(text).ok()?;
    text.chars().all(|c| c.is_ascii_graphic()).then(|| text.to_owned())
}

async fn passive(connection: &Connection, queue: &str) -> Result<Depth, Refusal> {
    declare_passively(connection, queue).await.map_err(|error| Refusal::of(&error))
}

async fn consume(connection: &Connection, queue: &str) -> Result<(), Refusal> {
    let asking = async {
        let channel = connection.create_channel().await?;
        // Should there be a RabbitMQ that does not look at the argument, it hands out no more than this.
        channel.basic_qos(1, BasicQosOptions { global: false }).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongString("of a kind that is none".into()));
        let tag = format!("leadpost-check-{}", Uuid::new_v4().simple());
        channel.basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), arguments).await?;
        channel.close(200, "done".into()).await
    };
    match asking.await.map_err(|error| Refusal::of(&error)) {
        Err(refusal) if refusal.why == Why::Precondition => Ok(()),
        result => result,
    }
}

async fn exchange_is_there(connection: &Connection, exchange: &str) -> Result<(), Refusal> {
    let asking = async {
        let channel = connection.create_channel().await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, FieldTable::default()).await
    };
    asking.await.map_err(|error| Refusal::of(&error))
}

/// Publishes messages that come back. RabbitMQ says that it is short of memory or disk to those who publish, and only then; what it takes
/// before it says so may be one message, and is not two.
async fn publish(connection: &Connection) -> Result<(), Refusal> {
    let mut events = std::pin::pin!(connection.events_listener());
    let publishing = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let nowhere = format!("leadpost-check-{}", Uuid::new_v4().simple());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut confirmed = true;
        for _ in 0..2 {
            let properties = BasicProperties::default();
            let confirm = channel.basic_publish("".into(), nowhere.as_str().into(), options, b"", properties).await?;
            confirmed &= matches!(confirm.await?, Confirmation::Ack(_));
        }
        Ok(confirmed)
    };
    let blocked = async {
        loop {
            match events.next().await {
                Some(Event::ConnectionBlocked(reason)) => return reason,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        confirmed = publishing => match confirmed {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::new(Why::Other, "it did not confirm a message")),
            Err(error) => Err(Refusal::of(&error)),
        },
        reason = blocked => Err(Refusal::new(Why::Blocked, reason)),
    }
}

async fn within<T>(limit: Duration, asking: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    match tokio::time::timeout(limit, asking).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::new(Why::Silent, format!("no answer within {limit:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(version: &str) -> Vec<u8> {
        let mut payload = [&START_AND_VERSION[..], b"\x07productS\0\0\0\x08RabbitMQ\x07versionS"].concat();
        payload.extend(u32::try_from(version.len()).expect("short").to_be_bytes());
        payload.extend(version.as_bytes());
        let mut frame = vec![1, 0, 0];
        frame.extend(u32::try_from(payload.len()).expect("short").to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    const START_AND_VERSION: [u8; 6] = [0, 10, 0, 10, 0, 9];

    #[test]
    fn the_version_is_read_from_the_greeting_when_it_is_whole() {
        let whole = greeting("3.10.8");
        for cut in 0..whole.len() {
            let begun = whole.get(..cut).expect("shorter");
            assert_eq!(read_greeting(begun), Greeting::Begun, "{cut}");
        }
        assert_eq!(read_greeting(&whole), Greeting::Whole(Some("3.10.8".to_owned())));
        assert_eq!(read_greeting(&greeting("\u{7}")), Greeting::Whole(None));
    }

    #[test]
    fn what_speaks_something_else_is_told_apart_at_once() {
        for foreign in
            [&b"HTTP/1.1 400 Bad Request"[..], b"AMQP\0\0\x09\x01", b"\x01\0\0\0\0\0\x09\0\x0a\0\x0b", b"-ERR"]
        {
            assert_eq!(read_greeting(foreign), Greeting::Foreign, "{foreign:?}");
        }
    }
}
