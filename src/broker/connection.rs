//! Connecting, within limits.

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::tcp::{AMQPUriTcpExt as _, RustlsConnector, RustlsConnectorConfig};
use lapin::types::FieldTable;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::{self, Tls};
use crate::reason::{chain, tls_hint};

/// How long closing may take before the connection is dropped instead.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The largest frame that is taken, in bytes.
const FRAME_MAX: u32 = 128 * 1024;

/// Why RabbitMQ did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The URL cannot be used at all.
    #[error("amqp.url cannot be used: {0}")]
    Url(String),
    /// The files for TLS cannot be used.
    #[error("{0}")]
    Tls(String),
    /// It did not answer in time.
    #[error("RabbitMQ did not {doing} within {waited:?}")]
    Timeout {
        /// What was asked.
        doing: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// It refused, or the connection broke.
    #[error("RabbitMQ did not {doing}: {text}")]
    Failed {
        /// What was asked.
        doing: &'static str,
        /// What lapin said.
        text: String,
    },
    /// It handed out a message that the library cannot read.
    #[error(
        "RabbitMQ handed out a message that cannot be read: one of its properties is not UTF-8. It is delivered again and again until the \
         queue's delivery limit sends it to the dead letters; without a limit, remove it by hand"
    )]
    Unreadable,
    /// The queue is not there.
    #[error("there is no queue {0:?}: run leadpost topology declare, or set amqp.queue")]
    NoQueue(String),
}

/// What a queue holds, and who takes from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Depth {
    /// Messages that wait; those that a consumer holds are not among them.
    pub ready: u32,
    /// Consumers.
    pub consumers: u32,
}

/// How to reach the broker.
#[derive(Debug, Clone)]
pub(super) struct Address {
    uri: AMQPUri,
    tls: Tls,
    pub(super) timeout: Duration,
}

impl Address {
    pub(super) fn of(settings: &config::Amqp) -> Result<Self, BrokerError> {
        // The parser's text is about the form and does not repeat the URL.
        let mut uri = AMQPUri::from_str(settings.url.expose()).map_err(BrokerError::Url)?;
        // lapin takes the server's 60 s when the URI gives none, and notices a dead peer after twice that.
        uri.query.heartbeat = Some(settings.heartbeat_s);
        // It bounds how deep headers can nest (cli/stack.rs); RabbitMQ's default, and the lower of both ends' holds.
        uri.query.frame_max = Some(FRAME_MAX);
        Ok(Self { uri, tls: settings.tls.clone(), timeout: Duration::from_millis(settings.timeout_ms) })
    }

    pub(super) async fn connect(&self, name: &str) -> Result<Connection, BrokerError> {
        match within(self.timeout, "connect", self.connect_by(self.connector()?, name)).await {
            // In TLS 1.3 the server's alert comes after the handshake, and the end of the connection may be quicker than it.
            Err(BrokerError::Failed { doing, text }) if self.is_tls() && is_cut(&text) => {
                let hint = "perhaps the server wants a client certificate that it trusts: amqp.tls.cert_file and amqp.tls.key_file";
                Err(BrokerError::Failed { doing, text: format!("{text}; {hint}") })
            }
            connected => connected,
        }
    }

    /// The same, without a limit.
    pub(super) async fn connect_by(&self, connector: Option<RustlsConnector>, name: &str) -> lapin::Result<Connection> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = match connector {
            None => return Connection::connect_uri(self.uri.clone(), properties).await,
            Some(connector) => async move |uri: AMQPUri, runtime| {
                let host = uri.authority.host.clone();
                let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri }.connect_async(&runtime).await?;
                Ok(plain.into_rustls(&connector, host.trim_matches(['[', ']'])).await?)
            },
        };
        Connection::connector(self.uri.clone(), lapin::runtime::default_runtime()?, connecting, properties).await
    }

    /// TLS as files have it; `None`: without, or as lapin has it. Anew each time: a certificate that was renewed is there for the next connection.
    pub(super) fn connector(&self) -> Result<Option<RustlsConnector>, BrokerError> {
        if self.is_tls() && self.tls.is_set() { connector(&self.tls).map(Some) } else { Ok(None) }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    /// Who is called.
    pub(super) fn host_and_port(&self) -> (&str, u16) {
        (self.uri.authority.host.trim_matches(['[', ']']), self.uri.authority.port)
    }

    /// Looks whether anybody speaks there at all. lapin's thread and socket stay for as long as a peer says nothing, with each try some
    /// more; so one that said nothing before is asked by ourselves first.
    pub(super) async fn knock(&self) -> Result<(), BrokerError> {
        let knocking = async {
            let mut stream = TcpStream::connect(self.host_and_port()).await?;
            // The header of the protocol. Whatever comes back, an answer, a TLS alert or an end, is for lapin to deal with.
            stream.write_all(b"AMQP\0\0\x09\x01").await?;
            drop(stream.read(&mut [0]).await);
            Ok::<(), std::io::Error>(())
        };
        match tokio::time::timeout(self.timeout, knocking).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BrokerError::Failed { doing: "connect", text: chain(&error) }),
            Err(_) => Err(BrokerError::Timeout { doing: "connect", waited: self.timeout }),
        }
    }

    pub(super) async fn channel(&self, connection: &Connection) -> Result<Channel, BrokerError> {
        within(self.timeout, "open a channel", connection.create_channel()).await
    }
}

impl Address {
    /// What the queue holds. Passively, and on a channel of its own: a missing queue closes the channel that asked.
    pub(super) async fn look_at(&self, connection: &Connection, queue: &str) -> Result<Depth, BrokerError> {
        match within(self.timeout, "look at the queue", declare_passively(connection, queue)).await {
            // A queue whose node is down is reported as not found, too, and comes back by itself.
            Err(BrokerError::Failed { text, .. }) if text.contains("NOT_FOUND") && !text.contains("home node") => {
                Err(BrokerError::NoQueue(queue.to_owned()))
            }
            looked => looked,
        }
    }
}

/// What the queue holds, without a limit.
pub(super) async fn declare_passively(connection: &Connection, queue: &str) -> lapin::Result<Depth> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(Depth { ready: declared.message_count(), consumers: declared.consumer_count() })
}

/// TLS as these files have it. lapin's own way to be told of a CA adds it to those of the system, where one's own should be the only one.
fn connector(tls: &Tls) -> Result<RustlsConnector, BrokerError> {
    let files = tls.read("amqp").map_err(|problems| BrokerError::Tls(problems.join("; ")))?;
    let config = match files.roots {
        roots if roots.is_empty() => RustlsConnectorConfig::new_with_platform_verifier(),
        roots => RustlsConnectorConfig::default().with_parsable_certificates(roots),
    };
    let connector = match files.identity {
        None => config.connector_with_no_client_auth(),
        Some(identity) => config.connector_with_single_cert(identity.chain, identity.key),
    };
    connector.map_err(|error| BrokerError::Tls(format!("TLS to RabbitMQ cannot be set up: {}", chain(&error))))
}

/// Whether a connection was ended without a word.
fn is_cut(text: &str) -> bool {
    let text = text.to_lowercase();
    ["reset by peer", "broken pipe", "unexpected eof", "unexpected end of file"].iter().any(|end| text.contains(end))
}

/// A lapin future with a limit.
pub(super) async fn within<T>(
    limit: Duration,
    doing: &'static str,
    future: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(limit, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let hint = tls_hint(&error, "amqp").map(|hint| format!("; {hint}")).unwrap_or_default();
            Err(BrokerError::Failed { doing, text: chain(&error) + &hint })
        }
        Err(_) => Err(BrokerError::Timeout { doing, waited: limit }),
    }
}

/// Closes, or drops what does not close in time; unacknowledged messages return to their queue either way.
pub(super) async fn close(connection: &Connection) {
    if let Err(error) = within(CLOSE_TIMEOUT, "close", connection.close(200, "done".into())).await {
        tracing::debug!(error = %error, "the connection to RabbitMQ was dropped");
    }
}
