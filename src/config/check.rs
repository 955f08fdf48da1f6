//! Rules across settings: what would start, and then go wrong.

use url::Url;

use super::{Settings, fill_in};

/// The time between the end of a post and its settlement, and for clocks to disagree, that a lease must leave.
pub const LEASE_MARGIN_MS: u64 = 15_000;

/// Checks everything that a worker needs.
///
/// # Errors
/// All problems at once, each naming the keys and what to change.
pub fn check(settings: &Settings) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    let mut require = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };

    let Settings { amqp, postgres, destination, retry, flow, shutdown, .. } = settings;
    require(amqp.url.is_set(), "amqp.url is not set: set AMQP_URL, LEADPOST__AMQP__URL or amqp.url_file".to_owned());
    require(
        postgres.url.is_set(),
        "postgres.url is not set: set DATABASE_URL, LEADPOST__POSTGRES__URL or postgres.url_file".to_owned(),
    );
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
        (2..=600).contains(&amqp.heartbeat_s),
        format!("amqp.heartbeat_s is {}; use 5 to 20 (below 2, healthy brokers look dead)", amqp.heartbeat_s),
    );
    require(amqp.timeout_ms >= 100, format!("amqp.timeout_ms is {}; use at least 100", amqp.timeout_ms));

    require(flow.concurrency >= 1, "flow.concurrency is 0: nothing would ever be posted; use at least 1".to_owned());
    require(flow.concurrency <= 20_000, format!("flow.concurrency is {}; use at most 20000", flow.concurrency));
    require((1..=5_000).contains(&flow.batch), format!("flow.batch is {}; use 1 to 5000", flow.batch));
    require(
        usize::from(settings.prefetch()) >= flow.concurrency,
        format!(
            "amqp.prefetch ({}) is below flow.concurrency ({}): slots would idle; set amqp.prefetch to 0 or at least {}",
            amqp.prefetch,
            flow.concurrency,
            settings.window()
        ),
    );
    require(
        flow.rate_per_s >= 0.0 && flow.rate_per_s.is_finite(),
        format!("flow.rate_per_s is {}; use 0 (no limit) or more", flow.rate_per_s),
    );
    require(
        (0.0..=1.0).contains(&flow.retry_share) && flow.retry_share > 0.0 && flow.retry_share < 1.0,
        format!("flow.retry_share is {}; use a share between 0 and 1, such as 0.25", flow.retry_share),
    );
    require(flow.poll_ms >= 10, format!("flow.poll_ms is {}; use at least 10", flow.poll_ms));
    require(flow.open_after >= 1, "flow.open_after is 0; use at least 1".to_owned());
    require(
        flow.probe_initial_ms >= 1 && flow.probe_initial_ms <= flow.probe_max_ms,
        format!(
            "flow.probe_initial_ms ({}) must be at least 1 and not above flow.probe_max_ms ({})",
            flow.probe_initial_ms, flow.probe_max_ms
        ),
    );

    // A lead waits for its slot behind at most one other post, is posted, perhaps once more with a new token, and settled.
    let request = &destination.request;
    let longest = request.timeout_ms + LEASE_MARGIN_MS;
    require(
        flow.lease_ms > longest,
        format!(
            "flow.lease_ms ({}) must be longer than destination.request.timeout_ms + {LEASE_MARGIN_MS} ({longest}): a lead could be posted \
             again while its post still runs; raise flow.lease_ms or lower the timeout",
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
    require(request.max_answer_bytes >= 1024, "destination.request.max_answer_bytes is below 1024".to_owned());
    require(postgres.connections >= 4, format!("postgres.connections is {}; the worker needs 4", postgres.connections));
    require(
        postgres.statement_timeout_ms >= 100 && postgres.lock_timeout_ms >= 100 && postgres.connect_timeout_ms >= 100,
        "postgres.statement_timeout_ms, lock_timeout_ms and connect_timeout_ms must each be at least 100".to_owned(),
    );
    require(
        postgres.lock_timeout_ms <= postgres.statement_timeout_ms,
        "postgres.lock_timeout_ms is above postgres.statement_timeout_ms, which would strike first; lower it"
            .to_owned(),
    );

    require(
        retry.max_attempts >= 1,
        "retry.max_attempts is 0: no lead would ever be posted; use at least 1".to_owned(),
    );
    require(retry.initial_ms >= 1, "retry.initial_ms is 0; use at least 1".to_owned());
    require(
        retry.initial_ms <= retry.max_ms,
        format!("retry.initial_ms ({}) is above retry.max_ms ({})", retry.initial_ms, retry.max_ms),
    );
    require(
        (1.0..=100.0).contains(&retry.multiplier),
        format!("retry.multiplier is {}; use 1 to 100", retry.multiplier),
    );
    require((0.0..=1.0).contains(&retry.jitter), format!("retry.jitter is {}; use 0 to 1", retry.jitter));
    require(
        retry.max_age_ms == 0 || retry.max_age_ms > retry.initial_ms,
        format!("retry.max_age_ms ({}) leaves no time for a retry after retry.initial_ms", retry.max_age_ms),
    );
    if !settings.admin.listen.is_empty() {
        require(
            settings.admin.listen.parse::<std::net::SocketAddr>().is_ok(),
            format!(
                "admin.listen is {:?}; write an address and port such as 127.0.0.1:9090, or nothing",
                settings.admin.listen
            ),
        );
    }
    problems.extend(check_destination(settings));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn check_destination(settings: &Settings) -> Vec<String> {
    let destination = &settings.destination;
    let mut problems = Vec::new();
    if destination.mandatory.is_empty() {
        problems.push("destination.mandatory is empty; name the fields that a lead must have".to_owned());
    }
    for (key, template) in [
        ("destination.auth.token_url", &destination.auth.token_url),
        ("destination.request.url", &destination.request.url),
    ] {
        match fill_in(template, &destination.variables) {
            Err(missing) => problems.push(missing_variable(key, &missing)),
            Ok(url) => match Url::parse(&url) {
                Ok(url) if url.scheme() == "https" => {}
                Ok(url) if url.scheme() == "http" => {}
                _ => problems.push(format!("{key} is not a URL that begins with https://")),
            },
        }
    }
    for (name, template) in &destination.request.headers {
        let key = format!("destination.request.headers.{name}");
        if http::HeaderName::try_from(name.as_str()).is_err() {
            problems.push(format!("{key}: this is not a header name"));
        }
        match fill_in(template, &destination.variables) {
            Err(missing) => problems.push(missing_variable(&key, &missing)),
            Ok(value) if http::HeaderValue::try_from(value.as_str()).is_err() => {
                problems.push(format!("{key}: its value cannot stand in a header"));
            }
            Ok(_) => {}
        }
    }
    let auth = &destination.auth;
    if auth.client_id.is_empty() {
        problems.push("destination.auth.client_id is not set: set LEADPOST__DESTINATION__AUTH__CLIENT_ID".to_owned());
    }
    if !auth.client_secret.is_set() {
        problems.push(
            "destination.auth.client_secret is not set: set LEADPOST__DESTINATION__AUTH__CLIENT_SECRET or \
             LEADPOST__DESTINATION__AUTH__CLIENT_SECRET_FILE"
                .to_owned(),
        );
    }
    let response = &destination.response;
    if response.success.is_empty() {
        problems.push("destination.response.success is empty: no post could ever succeed".to_owned());
    }
    let sets = response.named_sets();
    for status in 100..600 {
        let named: Vec<&str> = sets.iter().filter(|(_, set)| set.contains(status)).map(|(name, _)| *name).collect();
        if let [first, second, ..] = named[..] {
            problems.push(format!(
                "status {status} is in destination.response.{first} and in destination.response.{second}; leave it in one of them"
            ));
        }
    }
    match destination.request.proxy.as_str() {
        "none" | "env" => {}
        url if Url::parse(url).is_ok_and(|url| url.has_host()) => {}
        _ => problems.push("destination.request.proxy must be \"none\", \"env\" or a proxy's URL".to_owned()),
    }
    problems
}

fn missing_variable(key: &str, missing: &str) -> String {
    format!(
        "{key} needs the variable {missing}: set destination.variables.{missing}, or LEADPOST__DESTINATION__VARIABLES__{}",
        missing.to_uppercase()
    )
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
        let cases: [(Change, [&str; 2]); 6] = [
            (|s| s.flow.lease_ms = 40_000, ["flow.lease_ms", "destination.request.timeout_ms"]),
            (|s| s.amqp.prefetch = 10, ["amqp.prefetch", "flow.concurrency"]),
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
}
