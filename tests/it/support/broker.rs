//! A queue for each test, and a producer that can do what producers do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use leadpost::lead::{LeadId, identify};
use uuid::Uuid;

use super::DEADLINE;
use super::books::Confirmed;

pub struct Broker {
    pub url: String,
    pub queue: String,
    pub channel: Channel,
    pub connection: Connection,
    /// Also what [`super::flowing`] publishes.
    pub confirmed: Arc<Mutex<Vec<Confirmed>>>,
}

/// A message with the properties that matter.
pub struct Message {
    pub message_id: Option<String>,
    pub body: Vec<u8>,
    pub replay: bool,
}

impl Message {
    pub fn new(id: LeadId, body: &str) -> Self {
        Self { message_id: Some(id.to_string()), body: body.as_bytes().to_vec(), replay: false }
    }

    pub fn raw(body: &[u8]) -> Self {
        Self { message_id: None, body: body.to_vec(), replay: false }
    }
}

impl Broker {
    pub async fn create() -> Self {
        Self::create_at(&amqp_url()).await
    }

    /// A queue on this server.
    pub async fn create_at(url: &str) -> Self {
        let (connection, channel) = connect(url).await.unwrap();
        let queue = format!("leadpost-test-{}", Uuid::new_v4().simple());
        let broker = Self { url: url.to_owned(), queue, channel, connection, confirmed: Arc::default() };
        broker.declare(&[]).await;
        broker
    }

    /// Declares the queue, with these arguments besides its type.
    pub async fn declare(&self, arguments: &[(&str, AMQPValue)]) {
        let pairs = arguments.iter().map(|(name, value)| ((*name).into(), value.clone()));
        let mut arguments: FieldTable = pairs.collect::<std::collections::BTreeMap<_, _>>().into();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(self.queue.as_str().into(), options, arguments).await.unwrap();
    }

    /// Deletes the queue, with all that is in it.
    pub async fn delete(&self) {
        self.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Makes the queue anew, with a limit of deliveries and without dead letters: what reaches it vanishes.
    pub async fn limit_deliveries(&self, limit: i64) {
        self.delete().await;
        self.declare(&[("x-delivery-limit", AMQPValue::LongLongInt(limit))]).await;
    }

    /// Makes the queue anew, with a limit of deliveries, and returns the name of the queue in which what reaches it ends.
    pub async fn bury_dead_letters(&self, limit: i64) -> String {
        let dead = dead_letters(&self.queue);
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(dead.as_str().into(), options, FieldTable::default()).await.unwrap();
        self.delete().await;
        self.declare(&[
            ("x-delivery-limit", AMQPValue::LongLongInt(limit)),
            ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
            ("x-dead-letter-routing-key", AMQPValue::LongString(dead.as_str().into())),
        ])
        .await;
        dead
    }

    /// Connects again, after the server had let go, or has frozen.
    pub async fn reconnect(&mut self) {
        (self.connection, self.channel) = connect(&self.url).await.unwrap();
    }

    /// Publishes and waits for the confirm.
    pub async fn publish(&self, message: Message) {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if let Some(id) = &message.message_id {
            properties = properties.with_message_id(id.as_str().into());
        }
        if message.replay {
            let mut headers = FieldTable::default();
            headers.insert("x-leadpost-replay".into(), AMQPValue::Boolean(true));
            properties = properties.with_headers(headers);
        }
        self.publish_with(&message.body, properties).await;
    }

    /// Publishes with these properties, and waits for the confirm.
    pub async fn publish_with(&self, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publishing = async {
            loop {
                let (exchange, queue) = ("".into(), self.queue.as_str().into());
                let sent =
                    self.channel.basic_publish(exchange, queue, options, body, properties.clone()).await.unwrap();
                match sent.await.unwrap() {
                    lapin::Confirmation::Ack(None) => break,
                    // A queue that is busy may say no.
                    lapin::Confirmation::Nack(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    other => panic!("the message was not taken: {other:?}"),
                }
            }
        };
        tokio::time::timeout(DEADLINE, publishing).await.expect("the message must be taken");
        self.note(properties.message_id().as_ref().map(|id| id.as_str()), body);
    }

    /// A message was confirmed.
    pub(super) fn note(&self, message_id: Option<&str>, body: &[u8]) {
        // A UUID is the lead's id. For any other the worker's own rule is asked, which tests/it/identity.rs checks.
        let uuid = message_id.and_then(|id| Uuid::try_parse(id).ok());
        let id = uuid.map_or_else(|| identify(&self.queue, message_id, body), LeadId);
        self.confirmed.lock().unwrap().push(Confirmed { id, body: body.to_vec() });
    }

    /// The messages that were confirmed so far, in order.
    pub fn confirmed(&self) -> Vec<Confirmed> {
        self.confirmed.lock().unwrap().clone()
    }

    /// How many messages wait in the queue; those that a consumer holds are not among them.
    pub async fn depth(&self) -> u32 {
        self.depth_of(&self.queue).await
    }

    /// The same of another queue.
    pub async fn depth_of(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        queue.message_count()
    }
}

/// The RabbitMQ that tests share.
pub fn amqp_url() -> String {
    std::env::var("AMQP_URL").expect("AMQP_URL is not set; run scripts/test, or: eval \"$(scripts/services env)\"")
}

/// A connection, and a channel on it that confirms.
pub async fn connect(url: &str) -> lapin::Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

/// Where the dead letters of a queue go.
fn dead_letters(queue: &str) -> String {
    format!("{queue}.dead")
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The connection lives as long as one of its channels.
        let (channel, queue) = (self.channel.clone(), self.queue.clone());
        // The runtime may be ending; then the queue stays, in a node that is thrown away.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for queue in [dead_letters(&queue), queue] {
                    drop(channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await);
                }
            });
        }
    }
}
