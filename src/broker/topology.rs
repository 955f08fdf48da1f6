//! The recommended queue: quorum, with a delivery limit, and a dead-letter exchange that loses nothing.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ExchangeKind};

use super::connection::{Address, BrokerError, close, within};
use crate::config;

/// What `leadpost topology declare` sets up.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Topology {
    /// The queue that the worker consumes.
    pub queue: String,
    /// After how many deliveries without an acknowledgement a message goes to the dead letters.
    pub delivery_limit: u32,
    /// The name of both the exchange that takes dead letters and the queue bound to it.
    pub dead_letter: String,
}

impl Topology {
    /// The topology of these settings.
    pub fn of(settings: &config::Settings) -> Self {
        let queue = settings.amqp.queue.clone();
        let dead_letter = match settings.topology.dead_letter.as_str() {
            "" => format!("{queue}.dead-letter"),
            name => name.to_owned(),
        };
        Self { queue, delivery_limit: settings.topology.delivery_limit, dead_letter }
    }

    /// Declares it; what is there already in the same form stays as it is.
    ///
    /// # Errors
    /// When RabbitMQ cannot be reached, or has a queue of that name in another form.
    pub async fn declare(&self, settings: &config::Amqp) -> Result<(), BrokerError> {
        let address = Address::of(settings)?;
        let connection = address.connect("leadpost topology").await?;
        let declared = self.declare_on(&address, &connection).await;
        close(&connection).await;
        declared
    }

    async fn declare_on(&self, address: &Address, connection: &Connection) -> Result<(), BrokerError> {
        let channel = address.channel(connection).await?;
        let dead_letter = || self.dead_letter.as_str().into();
        let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let queue = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        within(
            address.timeout,
            "declare the dead-letter exchange",
            channel.exchange_declare(dead_letter(), ExchangeKind::Fanout, exchange, FieldTable::default()),
        )
        .await?;
        within(
            address.timeout,
            "declare the dead-letter queue",
            channel.queue_declare(dead_letter(), queue, table(&[("x-queue-type", text("quorum"))])),
        )
        .await?;
        within(
            address.timeout,
            "bind the dead-letter queue",
            channel.queue_bind(
                dead_letter(),
                dead_letter(),
                "".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            ),
        )
        .await?;
        within(
            address.timeout,
            "declare the queue (is there one of that name in another form?)",
            channel.queue_declare(self.queue.as_str().into(), queue, self.arguments()),
        )
        .await?;
        Ok(())
    }

    /// The arguments of the queue.
    pub(super) fn arguments(&self) -> FieldTable {
        table(&[
            // Replicated, on disk, and it counts deliveries.
            ("x-queue-type", text("quorum")),
            ("x-delivery-limit", AMQPValue::LongLongInt(i64::from(self.delivery_limit))),
            // Without an exchange, what reaches the limit would vanish without a trace.
            ("x-dead-letter-exchange", text(&self.dead_letter)),
            // With confirms between the two queues; needs an overflow that refuses rather than drops.
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ])
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}
