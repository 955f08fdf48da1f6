//! A queue for each test, and a producer that can do what producers do.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use leadpost::lead::LeadId;
use uuid::Uuid;

pub struct Broker {
    pub url: String,
    pub queue: String,
    pub channel: Channel,
    pub connection: Connection,
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
        let url = std::env::var("AMQP_URL")
            .expect("AMQP_URL is not set; run scripts/test, or: eval \"$(scripts/services env)\"");
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let queue = format!("leadpost-test-{}", Uuid::new_v4().simple());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
        Self { url, queue, channel, connection }
    }

    /// Makes the queue anew, with a limit of deliveries and without dead letters: what reaches it vanishes.
    pub async fn limit_deliveries(&self, limit: i64) {
        self.declare_anew(limit, FieldTable::default()).await;
    }

    /// Makes the queue anew, with a limit of deliveries, and returns the name of the queue in which what reaches it ends.
    pub async fn bury_dead_letters(&self, limit: i64) -> String {
        let dead = dead_letters(&self.queue);
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(dead.as_str().into(), options, FieldTable::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(dead.as_str().into()));
        self.declare_anew(limit, arguments).await;
        dead
    }

    async fn declare_anew(&self, limit: i64, mut arguments: FieldTable) {
        let queue = || self.queue.as_str().into();
        self.channel.queue_delete(queue(), QueueDeleteOptions::default()).await.unwrap();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue(), options, arguments).await.unwrap();
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
        let confirm = self
            .channel
            .basic_publish("".into(), self.queue.as_str().into(), options, body, properties)
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(matches!(confirm, lapin::Confirmation::Ack(None)), "the message was not taken");
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
