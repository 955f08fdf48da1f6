//! How full a queue is, asked again and again over one connection.

use lapin::Connection;

use super::connection::{Address, BrokerError, Depth, close};
use crate::config;

/// Looks at a queue. Connects when first asked, and again after a failure.
#[derive(Debug)]
pub struct Gauge {
    address: Address,
    queue: String,
    connection: Option<Connection>,
}

impl Gauge {
    /// Of the queue of these settings.
    ///
    /// # Errors
    /// That the URL cannot be used.
    pub fn of(settings: &config::Amqp) -> Result<Self, BrokerError> {
        Ok(Self { address: Address::of(settings)?, queue: settings.queue.clone(), connection: None })
    }

    /// What the queue holds now.
    ///
    /// # Errors
    /// When RabbitMQ cannot be reached or has no such queue.
    pub async fn read(&mut self) -> Result<Depth, BrokerError> {
        // Taken out: one that fails, or is not waited for, is not used again.
        let connection = match self.connection.take() {
            Some(connection) if connection.status().connected() => connection,
            _ => self.address.connect("leadpost status").await?,
        };
        let depth = self.address.look_at(&connection, &self.queue).await;
        if matches!(depth, Ok(_) | Err(BrokerError::NoQueue(_))) {
            self.connection = Some(connection);
        }
        depth
    }

    /// Lets go of the connection.
    pub async fn close(self) {
        if let Some(connection) = self.connection {
            close(&connection).await;
        }
    }
}
