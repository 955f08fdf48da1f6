//! URLs with credentials in them: refused where they would be shown, and shown nowhere where they may stand.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leadpost::config::Secret;

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
