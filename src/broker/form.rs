//! The form of a queue: its type and those of its arguments that decide what becomes of a message that cannot be taken.
//!
//! AMQP has no question for it. But RabbitMQ compares a declaration with what is there, and refuses one that differs, naming the first
//! argument that does, with both values. So a queue is declared as it is thought to be; each refusal corrects a thought; and when nothing
//! differs any more, what was thought is what is there, and the declaration changes nothing.
//!
//! ```text
//!   declare {type quorum} ── inequivalent arg 'x-queue-type' … current is 'classic' ──> declare {type classic} ── ok: it is that
//! ```
//!
//! # Rules
//! - A declaration would make a queue that is missing: it comes right behind a passive one, on the same channel.
//! - What a policy sets does not show.

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::inspect::{Refusal, Why};
use super::topology::Topology;

/// Each try settles one argument, of which there are fewer.
const MAX_TRIES: usize = 20;

/// The form of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueForm {
    /// `quorum`, `classic` or `stream`.
    pub kind: String,
    /// Whether it outlives a restart of RabbitMQ.
    pub durable: bool,
    /// The exchange that takes its dead letters. Empty: the one without a name.
    pub dead_letter_exchange: Option<String>,
    /// How dead letters go there.
    pub dead_letter_strategy: Option<String>,
    /// After how many deliveries a message is a dead letter.
    pub delivery_limit: Option<i64>,
    /// What happens to messages when it is full.
    pub overflow: Option<String>,
}

/// What a queue is thought to be.
#[derive(Debug, Clone)]
struct Thought {
    options: QueueDeclareOptions,
    arguments: FieldTable,
}

impl Thought {
    /// As `leadpost topology declare` makes queues, but for the name of the exchange: both would not fit into a refusal.
    fn recommended(topology: &Topology) -> Self {
        let mut arguments = topology.arguments();
        arguments = without(&arguments, DEAD_LETTER_EXCHANGE);
        Self { options: QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }, arguments }
    }

    /// Takes in what there is instead. Whether that is news.
    fn correct(&mut self, difference: &Difference<'_>) -> bool {
        let flag = match difference.argument {
            "durable" => Some(&mut self.options.durable),
            "auto_delete" => Some(&mut self.options.auto_delete),
            _ => None,
        };
        if let Some(flag) = flag {
            let is = matches!(&difference.current, Some(AMQPValue::LongString(text)) if text.as_bytes() == b"true");
            return std::mem::replace(flag, is) != is;
        }
        let before = self.arguments.inner().get(difference.argument).cloned();
        match &difference.current {
            Some(value) => drop(self.arguments.insert(difference.argument.into(), value.clone())),
            None => self.arguments = without(&self.arguments, difference.argument),
        }
        before != difference.current
    }

    fn form(&self) -> QueueForm {
        let text = |name: &str| match self.arguments.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let number = |name: &str| match self.arguments.inner().get(name) {
            Some(AMQPValue::LongLongInt(number)) => Some(*number),
            _ => None,
        };
        QueueForm {
            // Before 4.0 a queue without a type is one of these.
            kind: text(TYPE).unwrap_or_else(|| "classic".to_owned()),
            durable: self.options.durable,
            dead_letter_exchange: text(DEAD_LETTER_EXCHANGE),
            dead_letter_strategy: text("x-dead-letter-strategy"),
            delivery_limit: number("x-delivery-limit"),
            overflow: text("x-overflow"),
        }
    }
}

const TYPE: &str = "x-queue-type";
const DEAD_LETTER_EXCHANGE: &str = "x-dead-letter-exchange";

fn without(table: &FieldTable, name: &str) -> FieldTable {
    let mut rest = FieldTable::default();
    for (key, value) in table.inner().iter().filter(|(key, _)| key.as_str() != name) {
        rest.insert(key.clone(), value.clone());
    }
    rest
}

/// What RabbitMQ says of a declaration that differs from what is there.
#[derive(Debug, PartialEq)]
struct Difference<'a> {
    argument: &'a str,
    /// What is there; `None`: nothing.
    current: Option<AMQPValue>,
}

impl<'a> Difference<'a> {
    /// `… inequivalent arg 'x' for queue 'q' in vhost '/': received 'a' but current is the value 'b' of type 'longstr'`. A text ends after
    /// 255 bytes, so that long names may leave nothing to read.
    fn read(text: &'a str) -> Option<Self> {
        let (_, rest) = text.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        let (_, current) = rest.rsplit_once(" but current is ")?;
        let current = if current == "none" { None } else { Some(value(current)?) };
        Some(Self { argument, current })
    }
}

/// `'a'`, or `the value 'a' of type 'longstr'`.
fn value(text: &str) -> Option<AMQPValue> {
    let text = text.strip_prefix("the value ").unwrap_or(text);
    let (text, kind) = match text.rsplit_once(" of type '") {
        Some((text, kind)) => (text, kind.strip_suffix('\'')?),
        // Numbers come without.
        None => (text, ""),
    };
    let text = text.strip_prefix('\'')?.strip_suffix('\'')?;
    // Those of all sizes are compared by their value.
    let number = || text.parse().ok().map(AMQPValue::LongLongInt);
    match kind {
        "longstr" => Some(AMQPValue::LongString(text.into())),
        "" => number().or_else(|| Some(AMQPValue::LongString(text.into()))),
        "bool" => text.parse().ok().map(AMQPValue::Boolean),
        _ => number(),
    }
}

/// The form of the queue of this topology, which is there.
///
/// # Errors
/// Why it cannot be learned.
pub(super) async fn form_of(connection: &Connection, topology: &Topology) -> Result<QueueForm, Refusal> {
    let mut thought = Thought::recommended(topology);
    for _ in 0..MAX_TRIES {
        let declaring = async {
            let channel = connection.create_channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(topology.queue.as_str().into(), passive, FieldTable::default()).await?;
            let Thought { options, arguments } = thought.clone();
            channel.queue_declare(topology.queue.as_str().into(), options, arguments).await
        };
        let refusal = match declaring.await {
            Ok(_) => return Ok(thought.form()),
            Err(error) => Refusal::of(&error),
        };
        let corrected = refusal.why == Why::Precondition
            && match Difference::read(&refusal.text) {
                Some(difference) => thought.correct(&difference),
                // The exchange's name did not fit in; it may be the recommended one.
                None if refusal.text.contains(DEAD_LETTER_EXCHANGE) => {
                    let current = Some(AMQPValue::LongString(topology.dead_letter.as_str().into()));
                    thought.correct(&Difference { argument: DEAD_LETTER_EXCHANGE, current })
                }
                None => false,
            };
        if !corrected {
            return Err(refusal);
        }
    }
    Err(Refusal::new(Why::Other, "its answers contradict each other"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Option<AMQPValue> {
        Some(AMQPValue::LongString(value.into()))
    }

    #[test]
    fn a_difference_is_read_in_each_of_the_ways_in_which_rabbitmq_words_it() {
        const QUEUE: &str = "for queue 'it's but current is mine' in vhost '/'";
        for (argument, received, current, expected) in [
            (
                "x-queue-type",
                "the value 'quorum' of type 'longstr'",
                "the value 'classic' of type 'longstr'",
                text("classic"),
            ),
            ("x-queue-type", "'quorum'", "'stream'", text("stream")),
            ("x-overflow", "the value 'reject-publish' of type 'longstr'", "none", None),
            ("x-dead-letter-exchange", "none", "the value '' of type 'longstr'", text("")),
            (
                "x-delivery-limit",
                "the value '20' of type 'long'",
                "the value '5' of type 'signedint'",
                Some(AMQPValue::LongLongInt(5)),
            ),
            ("x-delivery-limit", "'20'", "'7'", Some(AMQPValue::LongLongInt(7))),
            ("x-single-active-consumer", "none", "the value 'true' of type 'bool'", Some(AMQPValue::Boolean(true))),
            ("durable", "'true'", "'false'", text("false")),
        ] {
            let said = format!(
                "PRECONDITION_FAILED - inequivalent arg '{argument}' {QUEUE}: received {received} but current is {current}"
            );
            assert_eq!(Difference::read(&said), Some(Difference { argument, current: expected }), "{said}");
        }
    }

    #[test]
    fn what_was_cut_off_is_not_guessed() {
        for cut in [
            "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received none but current is the value 'lea...",
            "PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q' in vhost '/': received none but current is no...",
            "PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q' in vhost '/': rec...",
            "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/'",
        ] {
            assert_eq!(Difference::read(cut), None, "{cut}");
        }
    }

    #[test]
    fn a_thought_is_corrected_until_it_is_what_is_there() {
        let topology = Topology { queue: "q".to_owned(), delivery_limit: 20, dead_letter: "q.dead-letter".to_owned() };
        let mut thought = Thought::recommended(&topology);
        let mut correct = |argument, current| thought.correct(&Difference { argument, current });
        assert!(correct("x-queue-type", text("classic")) && correct("x-delivery-limit", None));
        assert!(correct("x-dead-letter-exchange", text("dlx")) && correct("durable", text("false")));
        assert!(!correct("durable", text("false")) && !correct("x-delivery-limit", None), "what is known is no news");
        let form = thought.form();
        assert_eq!((form.kind.as_str(), form.durable, form.delivery_limit), ("classic", false, None));
        assert_eq!(
            (form.dead_letter_exchange.as_deref(), form.overflow.as_deref()),
            (Some("dlx"), Some("reject-publish"))
        );
    }
}
