//! `leadpost topology`: the recommended queue.

use super::{Exit, Output, print, print_json, say};
use crate::broker::{BrokerError, Topology};
use crate::config::{Source, need_amqp_url};

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

/// What RabbitMQ answers to a declaration that differs from what is there.
const OTHER_FORM: &str = "PRECONDITION_FAILED";

pub(super) async fn run(command: TopologyCommand, source: &Source) -> anyhow::Result<Exit> {
    let settings = source.read()?;
    let topology = Topology::of(&settings);
    match command {
        TopologyCommand::Declare => {
            need_amqp_url(&settings)?;
            match topology.declare(&settings.amqp).await {
                Err(BrokerError::Failed { doing, text }) if text.contains(OTHER_FORM) => {
                    say(&in_another_form(doing, &text));
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

/// What is in the way, and whether that matters.
fn in_another_form(doing: &str, text: &str) -> String {
    let doing = doing.split(" (").next().unwrap_or(doing);
    let difference = text.rsplit(OTHER_FORM).next().unwrap_or(text).trim_start_matches([' ', '-']);
    let hint = if doing.contains("dead-letter") {
        "the queue itself was not looked at; set topology.dead_letter to another name, or delete what is there first"
    } else {
        "the worker consumes any kind of queue, so nothing need be done; for the recommended one set amqp.queue to another \
         name, or empty and delete what is there first"
    };
    format!("RabbitMQ did not {doing}: it is there in another form, and was left as it is ({difference})\nhint: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_in_another_form_is_said_with_what_follows_from_it() {
        let text = "protocol error: PRECONDITION-FAILED: PRECONDITION_FAILED - inequivalent arg 'x-queue-type'";
        let said = in_another_form("declare the queue (is there one of that name in another form?)", text);
        assert!(said.starts_with("RabbitMQ did not declare the queue: it is there in another form"), "{said}");
        assert!(said.contains("(inequivalent arg 'x-queue-type')") && said.contains("any kind of queue"), "{said}");
        let said = in_another_form("declare the dead-letter queue", text);
        assert!(said.contains("topology.dead_letter") && !said.contains("any kind of queue"), "{said}");
    }
}
