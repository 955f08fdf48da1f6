//! Rules across settings: what would start, and then go wrong.

mod admin;
mod destination;
mod tls;

use url::Url;

use admin::check_admin;
use destination::check_destination;

use super::ranges::out_of_range;
use super::{ConfigError, Settings};

/// The time between the end of a post and its settlement, and for clocks to disagree, that a lease must leave.
pub const LEASE_MARGIN_MS: u64 = 15_000;

/// The slowest rate that is one: a post in 1000 seconds.
const MIN_RATE_PER_S: f64 = 0.001;

/// Checks that RabbitMQ's URL is set.
///
/// # Errors
/// That it is not, with what to set.
pub fn need_amqp_url(settings: &Settings) -> Result<(), ConfigError> {
    need(settings.amqp.url.is_set(), "amqp.url is not set: set AMQP_URL, LEADPOST__AMQP__URL or amqp.url_file")
}

/// Checks that the ledger's URL is set.
///
/// # Errors
/// That it is not, with what to set.
pub fn need_postgres_url(settings: &Settings) -> Result<(), ConfigError> {
    let problem = "postgres.url is not set: set DATABASE_URL, LEADPOST__POSTGRES__URL or postgres.url_file";
    need(settings.postgres.url.is_set(), problem)
}

fn need(holds: bool, problem: &str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::one(problem)) }
}

/// Whether nothing is wrong with the destination, so that a log-in and an API can be made of it.
pub fn is_destination_sound(settings: &Settings) -> bool {
    check_destination(settings).is_empty()
}

/// Checks everything that a worker needs.
///
/// # Errors
/// All problems at once, each naming the keys and what to change.
pub fn check(settings: &Settings) -> Result<(), Vec<String>> {
    let mut problems = out_of_range(settings);
    for missing in [need_amqp_url(settings), need_postgres_url(settings)] {
        problems.extend(missing.err().into_iter().flat_map(|error| error.0));
    }
    let mut require = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };

    let Settings { amqp, postgres, destination, retry, flow, shutdown, .. } = settings;
    for (key, secret, schemes) in
        [("amqp.url", &amqp.url, &["amqp", "amqps"][..]), ("postgres.url", &postgres.url, &["postgres", "postgresql"])]
    {
        let readable = Url::parse(secret.expose()).is_ok_and(|url| schemes.contains(&url.scheme()));
        // The value is not shown: it may hold a password.
        require(
            !secret.is_set() || readable,
            format!("{key} is not a URL that begins with {}://", schemes.join(":// or ")),
        );
    }
    require(!amqp.queue.is_empty(), "amqp.queue is empty: name the queue to consume".to_owned());
    require(
        flow.min_concurrency <= flow.concurrency,
        format!(
            "flow.min_concurrency ({}) is above flow.concurrency ({}): lower it, or raise the other; the same number for both is a fixed one",
            flow.min_concurrency, flow.concurrency
        ),
    );
    require(
        flow.probe_initial_ms <= flow.probe_max_ms,
        format!("flow.probe_initial_ms ({}) is above flow.probe_max_ms ({})", flow.probe_initial_ms, flow.probe_max_ms),
    );

    // Under its lease a lead may wait for its slot behind one other post and then for a token, before it is asked for, posted and
    // settled. A second post after a 401, or a longer wait, must fit in as well: the worker looks before each request, and hands
    // the lead back if it does not.
    let (request, auth) = (&destination.request, &destination.auth);
    let (requests, times) = if destination.reconcile.is_set() { (3, "three times") } else { (2, "twice") };
    let longest =
        request.timeout_ms.saturating_mul(requests).saturating_add(auth.timeout_ms).saturating_add(LEASE_MARGIN_MS);
    require(
        flow.lease_ms > longest,
        format!(
            "flow.lease_ms ({}) must be longer than {times} destination.request.timeout_ms + destination.auth.timeout_ms + \
             {LEASE_MARGIN_MS} ({longest}): a lead could be posted again while its post still runs; raise flow.lease_ms or \
             lower the timeouts",
            flow.lease_ms
        ),
    );
    require(
        request.connect_timeout_ms < request.timeout_ms,
        format!(
            "destination.request.connect_timeout_ms ({}) must be below destination.request.timeout_ms ({}): otherwise a failed \
             connect cannot be told from a post that may have arrived",
            request.connect_timeout_ms, request.timeout_ms
        ),
    );
    require(
        shutdown.grace_ms >= request.timeout_ms,
        format!(
            "shutdown.grace_ms ({}) is below destination.request.timeout_ms ({}): a stop would cut posts off and leave them uncertain",
            shutdown.grace_ms, request.timeout_ms
        ),
    );
    require(
        postgres.lock_timeout_ms <= postgres.statement_timeout_ms,
        "postgres.lock_timeout_ms is above postgres.statement_timeout_ms, which would strike first; lower it"
            .to_owned(),
    );

    require(
        retry.initial_ms <= retry.max_ms,
        format!("retry.initial_ms ({}) is above retry.max_ms ({})", retry.initial_ms, retry.max_ms),
    );
    require(
        flow.rate_per_s == 0.0 || flow.rate_per_s >= MIN_RATE_PER_S,
        format!("flow.rate_per_s is {}; use 0 (no limit), or {MIN_RATE_PER_S} and more", flow.rate_per_s),
    );
    require(
        retry.max_age_ms == 0 || retry.max_age_ms > retry.initial_ms,
        format!("retry.max_age_ms ({}) leaves no time for a retry after retry.initial_ms", retry.max_age_ms),
    );
    problems.extend(check_admin(&settings.admin));
    problems.extend(check_destination(settings));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::super::{Secret, Source};
    use super::*;

    /// Settings with which a worker could run.
    fn sound() -> Settings {
        let source = Source { file: Some("/dev/null".into()), ..Source::default() };
        let mut settings = source.read().expect("defaults");
        settings.amqp.url = Secret::new("amqp://localhost");
        settings.postgres.url = Secret::new("postgres://localhost/leadpost");
        settings.destination.auth.client_id = "id".to_owned();
        settings.destination.auth.client_secret = Secret::new("secret");
        settings
    }

    fn problems(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = sound();
        change(&mut settings);
        check(&settings).expect_err("must be refused").join("\n")
    }

    #[test]
    fn the_defaults_with_urls_and_credentials_are_sound() {
        check(&sound()).expect("sound");
    }

    #[test]
    fn what_is_missing_says_how_to_set_it_all_at_once() {
        let text = problems(|settings| {
            settings.amqp.url = Secret::default();
            settings.postgres.url = Secret::default();
            settings.destination.auth.client_id = String::new();
            settings.destination.auth.client_secret = Secret::default();
        });
        for hint in ["AMQP_URL", "DATABASE_URL", "CLIENT_ID", "CLIENT_SECRET_FILE"] {
            assert!(text.contains(hint), "{hint} in {text}");
        }
    }

    #[test]
    fn contradictions_name_both_keys() {
        type Change = fn(&mut Settings);
        let cases: [(Change, [&str; 2]); 8] = [
            (|s| s.flow.lease_ms = 85_000, ["flow.lease_ms", "destination.request.timeout_ms"]),
            (|s| s.destination.auth.timeout_ms = 45_000, ["flow.lease_ms", "destination.auth.timeout_ms"]),
            (|s| s.destination.request.timeout_ms = u64::MAX, ["flow.lease_ms", "destination.request.timeout_ms is"]),
            (|s| s.flow.min_concurrency = 2_000, ["flow.min_concurrency", "flow.concurrency"]),
            (|s| s.destination.request.connect_timeout_ms = 30_000, ["connect_timeout_ms", "request.timeout_ms"]),
            (|s| s.shutdown.grace_ms = 1_000, ["shutdown.grace_ms", "request.timeout_ms"]),
            (|s| s.retry.initial_ms = 4_000_000, ["retry.initial_ms", "retry.max_ms"]),
            (|s| s.flow.probe_initial_ms = 90_000, ["flow.probe_initial_ms", "flow.probe_max_ms"]),
        ];
        for (change, keys) in cases {
            let text = problems(change);
            assert!(keys.iter().all(|key| text.contains(key)), "{text}");
        }
    }

    #[test]
    fn a_status_in_two_sets_is_refused() {
        let text = problems(|s| s.destination.response.retry = crate::config::StatusSet::of(&["409", "503"]));
        assert!(
            text.contains("status 409 is in destination.response.duplicate and in destination.response.retry"),
            "{text}"
        );
    }

    #[test]
    fn a_url_with_a_password_is_not_repeated_in_an_error() {
        let text = problems(|settings| settings.postgres.url = Secret::new("mysql://me:hunter2@host/db"));
        assert!(text.contains("postgres.url") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn the_2024_preset_asks_for_its_user_identifier() {
        let mut source = Source { file: Some("/dev/null".into()), ..Source::default() };
        source.flags.push(("destination.preset".to_owned(), "7targets-2024".to_owned()));
        let settings = source.read().expect("readable");
        let text = check(&settings).expect_err("incomplete").join("\n");
        assert!(text.contains("LEADPOST__DESTINATION__VARIABLES__USER_IDENTIFIER"), "{text}");
    }

    #[test]
    fn the_shortest_lease_that_fits_is_sound() {
        let mut settings = sound();
        settings.flow.lease_ms = 85_001;
        check(&settings).expect("sound");
    }

    #[test]
    fn the_largest_numbers_are_refused_and_nothing_overflows() {
        let text = problems(|settings| {
            settings.flow.lease_ms = u64::MAX;
            settings.flow.concurrency = usize::MAX;
            settings.destination.request.timeout_ms = u64::MAX;
            settings.destination.auth.timeout_ms = u64::MAX;
            settings.lead.max_message_bytes = 0;
        });
        for key in ["flow.lease_ms", "flow.concurrency", "request.timeout_ms", "auth.timeout_ms", "max_message_bytes"] {
            assert!(text.contains(&format!("{key} is ")), "{key} in {text}");
        }
    }

    #[test]
    fn a_rate_near_nothing_is_refused() {
        assert!(problems(|settings| settings.flow.rate_per_s = 1e-9).contains("flow.rate_per_s"));
    }

    #[test]
    fn credentials_in_a_url_that_may_be_shown_are_refused() {
        type Change = fn(&mut Settings);
        let cases: [(Change, &str); 4] = [
            (|s| s.destination.request.url = "https://me:hunter2@h/leads".to_owned(), "destination.request.url"),
            (|s| s.destination.request.url = "https://hunter2@h/leads".to_owned(), "destination.request.url"),
            (|s| s.destination.auth.token_url = "https://me:hunter2@h/t".to_owned(), "destination.auth.token_url"),
            (|s| s.destination.request.proxy = "http://me:hunter2@h:3128".to_owned(), "destination.request.proxy"),
        ];
        for (change, key) in cases {
            let text = problems(change);
            assert!(text.contains(key) && text.contains("belong into a URL") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn headers_that_leadpost_sets_itself_are_refused() {
        let with = |name: &str| {
            let mut settings = sound();
            settings.destination.request.headers.insert(name.to_owned(), "x".to_owned());
            check(&settings)
        };
        for name in ["Authorization", "idempotency-key", "Host", "content-length", "Transfer-Encoding", "connection"] {
            let text = with(name).expect_err("ours").join("\n");
            assert!(text.contains(&format!("destination.request.headers.{name}: leadpost sets")), "{text}");
        }
        for name in ["accept", "Content-Type", "x-trace"] {
            with(name).expect("the user's own");
        }
    }
}
