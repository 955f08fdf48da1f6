//! URLs with credentials in them: refused where they would be shown, and shown nowhere where they may stand.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leadpost::config::Secret;
use leadpost::ledger::LeadState;

use crate::support::wire::{Step, Taken, Wire, reply, takes};
use crate::support::{Process, World};

/// Stands in every secret of these tests.
const MARK: &str = "zyxq";

fn is_clean(what: &str, text: &str) {
    for line in text.lines() {
        assert!(!line.to_lowercase().contains(MARK), "{what} holds a secret: {line}");
        assert!(
            !line.contains(&STANDARD.encode("proxy-user:zyxq-proxy")),
            "{what} holds a secret as it is sent: {line}"
        );
    }
}

async fn is_clean_all_over(world: &World, worker: &Process) {
    for path in ["/livez", "/readyz", "/metrics"] {
        is_clean(path, &worker.ask(path).await.2);
    }
    is_clean("the log", &worker.said());
    is_clean("the ledger", &crate::echoes::ledger(world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_in_a_url_of_the_destination_stop_every_command_and_are_repeated_by_none() {
    let world = World::new().await;
    for (key, value) in [
        ("AUTH__TOKEN_URL", "https://user:zyxq@h.example/token"),
        ("AUTH__TOKEN_URL", "https://zyxq@h.example/token"),
        ("AUTH__REVOKE_URL", "https://user:zyxq@h.example/revoke"),
        ("REQUEST__URL", "https://user:zyxq@h.example/leads"),
        ("REQUEST__URL", "https://:zyxq@h.example/leads?a=b"),
        ("REQUEST__URL", "ftp://user:zyxq@h.example/leads"),
        ("REQUEST__URL", "https://user:zyxq@h.example:port/leads"),
        ("RECONCILE__URL", "https://user:zyxq@h.example/{key}"),
        ("REQUEST__PROXY", "http://user:zyxq@h.example:3128"),
        ("REQUEST__PROXY", "socks5://user:zyxq@h.example"),
        ("REQUEST__PROXY", "user:zyxq@h.example"),
    ] {
        let name = format!("LEADPOST__DESTINATION__{key}");
        for command in [&["run"][..], &["config", "check"], &["config", "show"], &["status"]] {
            let done = world.leadpost_with(command, &[(&name, value)], b"").await;
            is_clean(&format!("{command:?} with {key}={value}"), &(done.stdout + &done.stderr));
            if ["run", "check"].contains(command.last().unwrap()) {
                assert_eq!(done.code, Some(78), "{command:?} with {key}={value}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_in_the_urls_of_rabbitmq_and_postgres_are_shown_nowhere_while_neither_lets_the_worker_in() {
    let mut world = World::new().await;
    let refused = |url: &str| {
        let mut url = url::Url::parse(url).unwrap();
        url.set_password(Some("zyxq-password")).unwrap();
        url.to_string()
    };
    let nowhere = |scheme: &str| format!("{scheme}://user:zyxq-password@127.0.0.1:1/d");
    let (amqp, database) = (world.broker.url.clone(), world.settings.postgres.url.expose().to_owned());
    for (amqp, database, part) in [
        (refused(&amqp), database.clone(), "rabbitmq"),
        (nowhere("amqp"), database.clone(), "rabbitmq"),
        (amqp.clone(), nowhere("postgres"), "postgres"),
        (
            amqp.clone(),
            refused(&database).replace("/leadpost_test", "/zyxq_leadpost_test").replace("zyxq_", "no_"),
            "postgres",
        ),
    ] {
        world.settings.amqp.url = Secret::new(amqp);
        world.settings.postgres.url = Secret::new(database);
        let worker = world.worker(&["--set", "log.filter=trace", "--set", "postgres.connect_timeout_ms=500"]).await;
        world
            .until("it says who is away", async || {
                let report: serde_json::Value = serde_json::from_str(&worker.ask("/readyz").await.2).unwrap();
                report[part]["ok"] == false && report[part]["detail"] != "not connected yet"
            })
            .await;
        is_clean_all_over(&world, &worker).await;
        let shown = world.leadpost(&["config", "show"]).await;
        assert_eq!(shown.code, Some(0), "{shown:?}");
        is_clean("config show", &(shown.stdout + &shown.stderr));
        worker.signal("KILL");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxys_credentials_from_the_environment_go_to_the_proxy_and_to_nobody_else() {
    let repeat = |status: u16, taken: &Taken| {
        let body = serde_json::json!({ "message": taken.head, "error": taken.head }).to_string();
        vec![Step::Say(reply(status, &body))]
    };
    let proxy = Wire::open(move |taken: &Taken| repeat(407, taken)).await;
    let (api, token) = ("http://api.example/leads", "http://login.example/token");
    let pairs = [
        ("AUTH__TOKEN_URL", token),
        ("AUTH__CLIENT_ID", "id"),
        ("AUTH__CLIENT_SECRET", "zyxq-secret"),
        ("REQUEST__PROXY", "env"),
    ];
    let world = World::at(api, &pairs).await;
    let mut environment = world.environment();
    environment.push(("HTTP_PROXY".to_owned(), format!("http://proxy-user:zyxq-proxy@127.0.0.1:{}", proxy.port())));
    let settings = ["--set", "retry.initial_ms=50", "--set", "retry.max_ms=100", "--set", "log.filter=trace"];
    let worker = Process::start(&[&["run"][..], &settings].concat(), environment);
    worker.until_said("starting").await;
    let id = world.publish_any("ann").await;
    world
        .until("the proxy keeps it from its token", async || worker.ask("/readyz").await.2.contains("it answered 407"))
        .await;
    is_clean_all_over(&world, &worker).await;

    // The proxy lets it log in, and repeats what it was sent when leads are posted, in each way that is kept.
    for status in [407, 500, 422] {
        proxy.play(move |taken| match taken.path() {
            "http://login.example/token" => vec![Step::Say(reply(200, &crate::support::api::token("zyxq-token").1))],
            _ => repeat(status, taken),
        });
        let says = format!("%answered {status}%");
        let sql = "select count(*) from attempts where reason like $1";
        world
            .until("it is on record", async || {
                sqlx::query_scalar::<_, i64>(sql).bind(&says).fetch_one(&world.database.pool).await.unwrap() > 0
            })
            .await;
        is_clean_all_over(&world, &worker).await;
    }
    let lead = world.until_state(id, LeadState::Rejected).await;
    assert!(lead.charged >= 2);
    let taken = proxy.taken();
    let expected = format!("Basic {}", STANDARD.encode("proxy-user:zyxq-proxy"));
    assert!(taken.iter().all(|taken| taken.header("proxy-authorization") == expected), "{taken:#?}");
    // A worker that is told to use no proxy uses none.
    proxy.play(takes);
    worker.stop().await;
    world.check_books().await;
}
