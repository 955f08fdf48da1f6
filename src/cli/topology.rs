//! `leadpost topology`: the recommended queue.

use super::{Exit, Output, need_broker, print, print_json, say};
use crate::broker::{BrokerError, Topology};
use crate::config::Source;

/// Show or declare the recommended queue and its dead-letter exchange
#[derive(Debug, clap::Subcommand)]
pub(super) enum TopologyCommand {
    /// Declare the queue (quorum, delivery limit) and where its dead letters go
    ///
    /// Safe to repeat. A queue that is there in another form is left as it is, and reported with exit code 1: the worker
    /// consumes any kind of queue.
    ///
    /// Example: AMQP_URL=amqp://… leadpost topology declare
    Declare,
    /// Show what would be declared
    ///
    /// Example: leadpost topology show --output json
    Show {
        /// How to print it
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

pub(super) async fn run(command: TopologyCommand, source: &Source) -> anyhow::Result<Exit> {
    let settings = source.read()?;
    let topology = Topology::of(&settings);
    match command {
        TopologyCommand::Declare => {
            need_broker(&settings)?;
            match topology.declare(&settings.amqp).await {
                Err(BrokerError::Failed { doing, text }) if text.contains("PRECONDITION_FAILED") => {
                    say(&format!(
                        "RabbitMQ did not {doing}: it is there in another form, and was left as it is: {text}\n\
                         hint: the worker consumes any kind of queue, so nothing need be done; for the recommended one \
                         take another name (amqp.queue, topology.dead_letter), or empty and delete what is there first"
                    ));
                    return Ok(Exit::No);
                }
                declared => declared?,
            }
            say(&format!("declared queue {} and its dead letters {}", topology.queue, topology.dead_letter));
        }
        TopologyCommand::Show { output: Output::Json } => print_json(&topology)?,
        TopologyCommand::Show { output: Output::Text } => print(&format!(
            "queue {}: quorum, durable, delivery limit {}, overflow reject-publish\n\
             dead letters: fanout exchange and quorum queue {}, at least once",
            topology.queue, topology.delivery_limit, topology.dead_letter
        ))?,
    }
    Ok(Exit::Done)
}
