//! Publishing with confirms, `mandatory`, and answers that are told apart by message id.
//!
//! AMQP gives a returned message no tag, and lapin hands it to whichever confirm comes next; so the returned ids of a window
//! are collected as a set. A window with a negative confirm in it is published again as a whole: the ids are the same, and
//! what arrives twice is recognized.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::connection::{Address, BrokerError, close, within};
use crate::config;
use crate::lead::LeadId;

/// How many messages are under way at a time.
pub const WINDOW: usize = 100;

/// How long a window may wait for its confirms; RabbitMQ stops reading from publishers while it is short of memory or disk.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a window is published before it is given up.
const MAX_TRIES: u32 = 3;

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its id, which becomes the lead's id.
    pub id: LeadId,
    /// Its body.
    pub body: Vec<u8>,
}

/// Why messages were not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// RabbitMQ cannot be reached, or did not confirm: the window may have arrived in part.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// There is no queue to take them.
    #[error("{0} messages were returned: there is no queue {1:?}; run leadpost topology declare")]
    Unroutable(usize, String),
    /// RabbitMQ refuses them.
    #[error("RabbitMQ refused messages {MAX_TRIES} times; is the queue full?")]
    Refused,
}

/// Publishes to a queue, over a connection of its own.
#[derive(Debug)]
pub struct Publisher {
    connection: Connection,
    channel: Channel,
    queue: String,
    replay: bool,
}

impl Publisher {
    /// Connects. With `replay`, each message asks for a replay of its lead whatever state that is in.
    ///
    /// # Errors
    /// When RabbitMQ cannot be reached.
    pub async fn connect(settings: &config::Amqp, replay: bool) -> Result<Self, BrokerError> {
        let address = Address::of(settings)?;
        let connection = address.connect("leadpost publish").await?;
        let channel = address.channel(&connection).await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions::default());
        within(address.timeout, "switch to confirms", confirm).await?;
        Ok(Self { connection, channel, queue: settings.queue.clone(), replay })
    }

    /// Publishes up to [`WINDOW`] messages and waits until all of them are confirmed.
    ///
    /// # Errors
    /// When not all were confirmed. Publishing them again is safe: their ids are the same.
    pub async fn publish(&self, window: &[Outgoing]) -> Result<(), PublishError> {
        for _ in 0..MAX_TRIES {
            let (returned, refused) = match tokio::time::timeout(CONFIRM_TIMEOUT, self.publish_once(window)).await {
                Ok(result) => result?,
                Err(_) => {
                    return Err(BrokerError::Timeout {
                        doing: "confirm (is it short of memory or disk, and blocking publishers?)",
                        waited: CONFIRM_TIMEOUT,
                    }
                    .into());
                }
            };
            if !returned.is_empty() {
                return Err(PublishError::Unroutable(returned.len(), self.queue.clone()));
            }
            if !refused {
                return Ok(());
            }
        }
        Err(PublishError::Refused)
    }

    async fn publish_once(&self, window: &[Outgoing]) -> Result<(HashSet<String>, bool), BrokerError> {
        let failed =
            |error: lapin::Error| BrokerError::Failed { doing: "take messages", text: crate::reason::chain(&error) };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut confirms = Vec::with_capacity(window.len());
        for message in window {
            let mut properties = BasicProperties::default()
                .with_message_id(message.id.to_string().into())
                .with_content_type("application/json".into())
                // So that it can be told how long it waited.
                .with_timestamp(now)
                // On disk, also in a classic queue.
                .with_delivery_mode(2);
            if self.replay {
                let mut headers = FieldTable::default();
                headers.insert("x-leadpost-replay".into(), AMQPValue::Boolean(true));
                properties = properties.with_headers(headers);
            }
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let publish =
                self.channel.basic_publish("".into(), self.queue.as_str().into(), options, &message.body, properties);
            confirms.push(publish.await.map_err(failed)?);
        }
        let mut returned = HashSet::new();
        let mut refused = false;
        for confirm in confirms {
            let message = match confirm.await.map_err(failed)? {
                Confirmation::Ack(message) => message,
                Confirmation::Nack(message) => {
                    refused = true;
                    message
                }
                Confirmation::NotRequested => {
                    refused = true;
                    None
                }
            };
            if let Some(message) = message {
                let id = message.delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned());
                returned.insert(id.unwrap_or_default());
            }
        }
        Ok((returned, refused))
    }

    /// Closes the connection.
    pub async fn close(self) {
        close(&self.connection).await;
    }
}
