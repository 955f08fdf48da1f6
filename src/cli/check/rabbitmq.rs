//! RabbitMQ: what was found, in words.

use super::report::{CONFIG, Check, IDS};
use super::{LIMIT, TRUST, fix_of_tls};
use crate::broker::{Depth, Inspection, QueueForm, Refusal, Topology, Why, inspect};
use crate::config::{Settings, need_amqp_url};

const REACH: &str = "rabbitmq.reach";
const LOGIN: &str = "rabbitmq.login";
const VHOST: &str = "rabbitmq.vhost";
const QUEUE: &str = "rabbitmq.queue";
const TYPE: &str = "rabbitmq.queue_type";
const DELIVERY_LIMIT: &str = "rabbitmq.delivery_limit";
const DEAD_LETTERS: &str = "rabbitmq.dead_letters";
const CONSUME: &str = "rabbitmq.consume";
const PUBLISH: &str = "rabbitmq.publish";
const ALARMS: &str = "rabbitmq.alarms";

/// What a queue is changed by.
const ANEW: &str = "a queue's form cannot be changed: set amqp.queue to another name and run leadpost topology declare, and let producers \
                    follow; or empty and delete the queue, and declare it anew";

pub(super) async fn look(settings: &Settings) -> Vec<Check> {
    if need_amqp_url(settings).is_err() {
        return all_skipped();
    }
    match inspect(settings, LIMIT).await {
        Ok(found) => checks(settings, found),
        Err(error) => {
            let url = Check::failed(REACH, error.to_string(), "set AMQP_URL to amqp://user:password@host:5672/vhost");
            after(url, &[LOGIN, VHOST, QUEUE, TYPE, DELIVERY_LIMIT, DEAD_LETTERS, CONSUME, PUBLISH, ALARMS])
        }
    }
}

fn all_skipped() -> Vec<Check> {
    IDS.iter().filter(|id| id.starts_with("rabbitmq.")).map(|id| Check::skipped(id, CONFIG)).collect()
}

/// What failed, and what could not be looked at for that.
fn after(failed: Check, rest: &[&'static str]) -> Vec<Check> {
    let because = failed.id;
    std::iter::once(failed).chain(rest.iter().map(|id| Check::skipped(id, because))).collect()
}

fn checks(settings: &Settings, found: Inspection) -> Vec<Check> {
    const ONWARDS: [&str; 7] = [QUEUE, TYPE, DELIVERY_LIMIT, DEAD_LETTERS, CONSUME, PUBLISH, ALARMS];
    let topology = Topology::of(settings);
    let (host, vhost, user) = who(settings);
    let version = found.version.as_deref().map(|version| format!(" (RabbitMQ {version})")).unwrap_or_default();
    let mut checks = Vec::new();
    match found.greeted.unwrap_or_else(silent) {
        Ok(()) => checks.push(Check::ok(REACH, format!("{host} answers{version}"))),
        Err(refusal) => {
            return after(not_reached(&host, &refusal), &[&[LOGIN, VHOST], &ONWARDS[..]].concat());
        }
    }
    match found.connected.unwrap_or_else(silent) {
        Ok(()) => {
            checks.push(Check::ok(LOGIN, format!("as {user}")));
            checks.push(Check::ok(VHOST, format!("{vhost:?} is open to {user}")));
        }
        Err(refusal) if refusal.why == Why::Vhost => {
            checks.push(Check::ok(LOGIN, format!("as {user}")));
            let fix = format!(
                "set the right vhost at the end of amqp.url (%2f is /), or make it and let the user in: rabbitmqctl add_vhost {vhost}; \
                 rabbitmqctl set_permissions -p {vhost} {user} '' '.*' '.*'"
            );
            checks.extend(after(Check::failed(VHOST, refusal.text, fix), &ONWARDS));
            return checks;
        }
        Err(refusal) => {
            checks.extend(after(not_let_in(&user, refusal), &[&[VHOST], &ONWARDS[..]].concat()));
            return checks;
        }
    }
    let may = |right: &str| {
        format!(
            "give {user} the right: rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ, where {right}"
        )
    };
    match found.queue.unwrap_or_else(silent) {
        Ok(depth) => {
            checks.push(Check::ok(QUEUE, format!("{} is there: {}", topology.queue, held(depth))));
            let dead = found.dead_letters.and_then(Result::ok);
            checks.extend(form(
                &topology,
                found.form.unwrap_or_else(silent),
                found.version.as_deref(),
                found.dead_letter_exchange,
                dead,
            ));
            checks.push(match found.consuming.unwrap_or_else(silent) {
                Ok(()) => Check::ok(CONSUME, format!("{user} may consume {}", topology.queue)),
                Err(refusal) if refusal.why == Why::NotAllowed => {
                    Check::failed(CONSUME, refusal.text, may(&format!("READ matches {}", topology.queue)))
                }
                Err(refusal) => Check::failed(CONSUME, refusal.text, "see RabbitMQ's log for the reason"),
            });
        }
        Err(refusal) => {
            checks.extend(after(no_queue(&topology, refusal), &[TYPE, DELIVERY_LIMIT, DEAD_LETTERS, CONSUME]));
        }
    }
    checks.extend(publishing(found.publishing.unwrap_or_else(silent), &user, &may("WRITE matches amq.default")));
    checks
}

/// Whoever was not asked in time did not answer in time.
fn silent<T>() -> Result<T, Refusal> {
    Err(Refusal { why: Why::Silent, text: format!("no answer within {LIMIT:?}") })
}

/// Host and port, vhost and user, which are no secrets.
fn who(settings: &Settings) -> (String, String, String) {
    let url = url::Url::parse(settings.amqp.url.expose()).ok();
    let text = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
    let host = url.as_ref().map(|url| {
        let default = if url.scheme() == "amqps" { 5671 } else { 5672 };
        format!("{}:{}", url.host_str().unwrap_or("localhost"), url.port().unwrap_or(default))
    });
    let vhost = url.as_ref().map(|url| text(url.path().trim_start_matches('/'))).filter(|vhost| !vhost.is_empty());
    let user = url.as_ref().map(|url| text(url.username())).filter(|user| !user.is_empty());
    (host.unwrap_or_default(), vhost.unwrap_or_else(|| "/".to_owned()), user.unwrap_or_else(|| "guest".to_owned()))
}

fn held(depth: Depth) -> String {
    let plural = |n: u32| if n == 1 { "" } else { "s" };
    format!(
        "{} message{} ready, {} consumer{}",
        depth.ready,
        plural(depth.ready),
        depth.consumers,
        plural(depth.consumers)
    )
}

fn not_reached(host: &str, refusal: &Refusal) -> Check {
    let found = format!("{host}: {}", refusal.text);
    match refusal.why {
        Why::NotAmqp => Check::failed(
            REACH,
            found,
            "check host, port and scheme of amqp.url: amqp:// is usually port 5672, amqps:// port 5671, and 15672 is only the management page",
        ),
        _ => Check::unreachable(
            REACH,
            found,
            "start RabbitMQ, or check host and port of amqp.url and what stands between: name resolution, firewalls, networks of containers",
        ),
    }
}

fn not_let_in(user: &str, refusal: Refusal) -> Check {
    match refusal.why {
        Why::NotAllowed => Check::failed(
            LOGIN,
            refusal.text,
            format!(
                "check user and password in amqp.url (special characters in it are written as %xx); rabbitmqctl authenticate_user {user} asks \
                 for the password and says whether it is right. The user guest may only log in from RabbitMQ's own machine"
            ),
        ),
        Why::Silent => Check::unreachable(
            LOGIN,
            refusal.text,
            "RabbitMQ takes connections and does not answer: see its log, and whether amqp.url should be amqps://",
        ),
        _ => {
            let fix = fix_of_tls(&refusal.text, "amqp.url", TRUST);
            let fix = fix.unwrap_or_else(|| "see RabbitMQ's log for why it ended the connection".to_owned());
            Check::failed(LOGIN, refusal.text, fix)
        }
    }
}

fn no_queue(topology: &Topology, refusal: Refusal) -> Check {
    let queue = &topology.queue;
    match refusal.why {
        Why::NotFound if refusal.text.contains("home node") => {
            Check::failed(QUEUE, refusal.text, "start the node of RabbitMQ that keeps the queue")
        }
        Why::NotFound => Check::failed(
            QUEUE,
            format!("there is no queue {queue:?} in this vhost"),
            "run leadpost topology declare, or set amqp.queue to the queue that producers publish to",
        ),
        Why::Silent => Check::unreachable(QUEUE, refusal.text, "see RabbitMQ's log: it let us in and does not answer"),
        _ => Check::failed(QUEUE, refusal.text, "see RabbitMQ's log; an exclusive queue is open to its maker alone"),
    }
}

/// Type, delivery limit and dead letters.
fn form(
    topology: &Topology,
    form: Result<QueueForm, Refusal>,
    version: Option<&str>,
    exchange: Option<Result<(), Refusal>>,
    dead: Option<Depth>,
) -> Vec<Check> {
    let form = match form {
        Ok(form) => form,
        Err(refusal) => {
            let queue = &topology.queue;
            let why = if refusal.why == Why::NotAllowed {
                "only users with the right to configure the queue can see it; the worker does not need that"
            } else {
                "RabbitMQ did not say it"
            };
            let by_hand = format!("rabbitmqctl list_queues name type arguments policy shows it for {queue}");
            let unknown = Check::left_out(TYPE, format!("{why} ({}); {by_hand}", refusal.text));
            return after(unknown, &[DELIVERY_LIMIT, DEAD_LETTERS]);
        }
    };
    vec![kind(&form), delivery_limit(&form, version), dead_letters(topology, &form, exchange, dead)]
}

fn kind(form: &QueueForm) -> Check {
    match form.kind.as_str() {
        "quorum" => {
            Check::ok(TYPE, "quorum: replicated where there are several nodes, on disk, and it counts deliveries")
        }
        "stream" => Check::failed(TYPE, "a stream: messages stay in it however often they are read", ANEW),
        _ if !form.durable => Check::warning(
            TYPE,
            "classic and not durable: a restart of RabbitMQ removes the queue with all messages in it",
            ANEW,
        ),
        kind => Check::warning(
            TYPE,
            format!(
                "{kind}: the worker consumes it as well, but one node alone keeps it, and it counts no deliveries, so that a message which breaks \
                 its consumer comes back for ever; quorum is recommended"
            ),
            ANEW,
        ),
    }
}

fn delivery_limit(form: &QueueForm, version: Option<&str>) -> Check {
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    match form.delivery_limit {
        Some(limit) => Check::ok(DELIVERY_LIMIT, format!("a message leaves the queue after {limit} deliveries")),
        None if form.kind != "quorum" => {
            Check::left_out(DELIVERY_LIMIT, format!("a {} queue counts no deliveries", form.kind))
        }
        None if major.is_some_and(|major| major >= 4) => {
            Check::ok(DELIVERY_LIMIT, "a message leaves the queue after 20 deliveries, unless a policy says otherwise")
        }
        None => Check::warning(
            DELIVERY_LIMIT,
            "none in the queue's arguments (what a policy sets is not seen): before RabbitMQ 4.0 a message that cannot be read comes back for ever",
            ANEW,
        ),
    }
}

fn dead_letters(
    topology: &Topology,
    form: &QueueForm,
    exchange: Option<Result<(), Refusal>>,
    dead: Option<Depth>,
) -> Check {
    let Some(name) = &form.dead_letter_exchange else {
        return Check::warning(
            DEAD_LETTERS,
            "the queue's arguments name no dead-letter exchange (what a policy sets is not seen): what leaves the queue undelivered vanishes \
             without a trace",
            ANEW,
        );
    };
    match exchange {
        Some(Err(refusal)) if refusal.why == Why::NotFound => {
            let fix = if *name == topology.dead_letter {
                "run leadpost topology declare, which makes it".to_owned()
            } else {
                format!("declare the exchange {name:?} and a queue that is bound to it")
            };
            return Check::failed(
                DEAD_LETTERS,
                format!("dead letters go to the exchange {name:?}, which is not there: they vanish"),
                fix,
            );
        }
        Some(Err(refusal)) => {
            let fix = "see RabbitMQ's log";
            return Check::warning(
                DEAD_LETTERS,
                format!("dead letters go to the exchange {name:?}: {}", refusal.text),
                fix,
            );
        }
        Some(Ok(())) | None => {}
    }
    if let Some(dead) = dead.filter(|dead| dead.ready > 0) {
        return Check::warning(
            DEAD_LETTERS,
            format!("{} messages wait in {}, which nobody could take", dead.ready, topology.dead_letter),
            "look at them in RabbitMQ's management page; what is mended can be moved back to the queue (rabbitmq-plugins: shovel)",
        );
    }
    let is_safe = form.kind != "quorum"
        || (form.dead_letter_strategy.as_deref() == Some("at-least-once")
            && form.overflow.as_deref() == Some("reject-publish"));
    let found = format!("they go to the exchange {name:?}");
    if is_safe {
        Check::ok(DEAD_LETTERS, found)
    } else {
        let how = "without confirms: one may be lost on its way (x-dead-letter-strategy is not at-least-once, or x-overflow not reject-publish)";
        Check::warning(DEAD_LETTERS, format!("{found} {how}"), ANEW)
    }
}

/// Whether messages may be published, and whether RabbitMQ takes any now.
fn publishing(publishing: Result<(), Refusal>, user: &str, may: &str) -> [Check; 2] {
    match publishing {
        Ok(()) => [
            Check::ok(PUBLISH, format!("{user} may publish, which only leadpost publish needs")),
            Check::ok(ALARMS, "it takes messages"),
        ],
        Err(refusal) if refusal.why == Why::Blocked => [
            Check::skipped(PUBLISH, ALARMS),
            Check::failed(
                ALARMS,
                format!("RabbitMQ takes no messages: {}", refusal.text),
                "give its machine memory or disk space (rabbitmq-diagnostics alarms says which); the worker goes on with what is in the queue",
            ),
        ],
        Err(refusal) if refusal.why == Why::NotAllowed => [
            Check::warning(
                PUBLISH,
                format!("{}; the worker does not need it, leadpost publish does", refusal.text),
                may,
            ),
            Check::left_out(
                ALARMS,
                "RabbitMQ tells those alone who may publish; rabbitmq-diagnostics alarms tells its operator",
            ),
        ],
        Err(refusal) => [
            Check::failed(PUBLISH, refusal.text, "see RabbitMQ's log, and rabbitmq-diagnostics alarms"),
            Check::skipped(ALARMS, PUBLISH),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    fn quorum() -> QueueForm {
        QueueForm {
            kind: "quorum".to_owned(),
            durable: true,
            dead_letter_exchange: Some("leads.dead-letter".to_owned()),
            dead_letter_strategy: Some("at-least-once".to_owned()),
            delivery_limit: Some(20),
            overflow: Some("reject-publish".to_owned()),
        }
    }

    fn found(version: &str) -> Inspection {
        let depth = Depth { ready: 1, consumers: 0 };
        Inspection {
            greeted: Some(Ok(())),
            version: Some(version.to_owned()),
            connected: Some(Ok(())),
            queue: Some(Ok(depth)),
            form: Some(Ok(quorum())),
            consuming: Some(Ok(())),
            dead_letter_exchange: Some(Ok(())),
            dead_letters: None,
            publishing: Some(Ok(())),
        }
    }

    /// What is neither right nor left out.
    fn troubles(found: Inspection) -> Vec<(&'static str, Verdict)> {
        let checks = checks(&Settings::default(), found);
        let ids = IDS.iter().filter(|id| id.starts_with("rabbitmq.")).count();
        assert_eq!(checks.len(), ids, "each is there once: {checks:?}");
        let is_trouble = |check: &&Check| [Verdict::Failed, Verdict::Warning].contains(&check.status);
        checks.iter().filter(is_trouble).map(|check| (check.id, check.status)).collect()
    }

    #[test]
    fn a_limit_of_deliveries_is_rabbitmqs_own_since_4_0() {
        let unlimited =
            |version| Inspection { form: Some(Ok(QueueForm { delivery_limit: None, ..quorum() })), ..found(version) };
        assert_eq!(troubles(found("3.10.8")), []);
        assert_eq!(troubles(unlimited("4.0.5")), []);
        assert_eq!(troubles(unlimited("3.13.7")), [(DELIVERY_LIMIT, Verdict::Warning)]);
    }

    #[test]
    fn what_was_not_come_to_has_failed_in_its_place() {
        let refused = |why, text: &str| Some(Refusal { why, text: text.to_owned() });
        let queue = |refusal: Option<Refusal>| Inspection { queue: refusal.map(Err), ..found("4.1.0") };
        assert_eq!(troubles(Inspection::default()), [(REACH, Verdict::Failed)]);
        assert_eq!(troubles(queue(refused(Why::NotFound, "home node 'x' is down"))), [(QUEUE, Verdict::Failed)]);
        assert_eq!(troubles(queue(None)), [(QUEUE, Verdict::Failed)], "there was no time left");
        let silent = Inspection { publishing: None, ..found("4.1.0") };
        assert_eq!(troubles(silent), [(PUBLISH, Verdict::Failed)]);
    }

    #[test]
    fn host_vhost_and_user_are_read_from_the_url_and_the_password_is_not() {
        let of = |url: &str| {
            let mut settings = Settings::default();
            settings.amqp.url = crate::config::Secret::new(url);
            who(&settings)
        };
        let said = |host: &str, vhost: &str, user: &str| (host.to_owned(), vhost.to_owned(), user.to_owned());
        assert_eq!(of("amqp://me:hunter2@mq.example/leads%2feu"), said("mq.example:5672", "leads/eu", "me"));
        assert_eq!(of("amqps://mq.example:5000"), said("mq.example:5000", "/", "guest"));
        assert_eq!(of("amqps://mq.example/%2f"), said("mq.example:5671", "/", "guest"));
    }
}
