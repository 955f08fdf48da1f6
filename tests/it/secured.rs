//! TLS with a CA of one's own and with client certificates, on all connections: who has them gets through, and who has not learns what to do.

use std::path::Path;

use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{CutAt, Fault, Sandbox, SandboxSettings, TlsFiles};

use crate::support::authority::{Authority, ClientFiles};
use crate::support::secured::{ROLE, Secured};
use crate::support::tls::Tls;
use crate::support::wire::{Wire, takes};
use crate::support::{Process, World};

type Environment = Vec<(String, String)>;

/// The settings of a connection's TLS, as an environment says them.
fn tls(section: &str, ca: Option<&Authority>, client: Option<&ClientFiles>) -> Environment {
    let name = |key: &str| format!("LEADPOST__{section}__TLS__{key}");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut pairs = vec![];
    if let Some(ca) = ca {
        pairs.push((name("CA_FILE"), text(&ca.file())));
    }
    if let Some(client) = client {
        pairs.push((name("CERT_FILE"), text(&client.cert)));
        pairs.push((name("KEY_FILE"), text(&client.key)));
    }
    pairs
}

/// A database's URL for the one who comes with a certificate, under this name of the host.
fn secured_url(database: &str, host: &str) -> String {
    let mut url = url::Url::parse(database).unwrap();
    url.set_username(ROLE).unwrap();
    url.set_host(Some(host)).unwrap();
    url.into()
}

/// A destination whose API and token endpoint want certificates, each signed by an authority of its own.
fn destination(api: &Tls, tokens: &Tls) -> Environment {
    let pairs = [
        ("REQUEST__URL", api.url("https", "/leads")),
        ("AUTH__TOKEN_URL", tokens.url("https", "/token")),
        ("AUTH__CLIENT_ID", "id".to_owned()),
        ("AUTH__CLIENT_SECRET", "secret".to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (format!("LEADPOST__DESTINATION__{name}"), value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_goes_end_to_end_over_tls_with_client_certificates_on_every_connection_and_no_key_is_shown() {
    let secured = Secured::up().await;
    let (api, tokens) = (Tls::mutual(), Tls::mutual());
    let world = World::on(secured.rabbitmq().url(), secured.postgres().url()).await;
    let client = secured.authority().client(ROLE);
    let (for_api, for_tokens) = (api.authority().client("worker"), tokens.authority().client("worker"));

    let mut environment = world.environment();
    environment.extend([
        ("LEADPOST__AMQP__URL".to_owned(), secured.amqps_external()),
        ("LEADPOST__POSTGRES__URL".to_owned(), secured_url(&world.database.url, "127.0.0.1")),
    ]);
    environment.extend(destination(&api, &tokens));
    environment.extend(tls("AMQP", Some(secured.authority()), Some(&client)));
    environment.extend(tls("POSTGRES", Some(secured.authority()), Some(&client)));
    environment.extend(tls("DESTINATION__REQUEST", Some(api.authority()), Some(&for_api)));
    environment.extend(tls("DESTINATION__AUTH", Some(tokens.authority()), Some(&for_tokens)));

    let worker = Process::start(&["run", "--set", "log.filter=trace"], environment.clone());
    worker.until_said("starting").await;
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    assert_eq!((api.requests().len(), tokens.requests().len()), (1, 1));

    // What the servers know of their clients.
    let sessions = "select ssl, coalesce(client_dn, '') from pg_stat_ssl join pg_stat_activity using (pid) where application_name like 'leadpost %' and usename = $1";
    let sessions: Vec<(bool, String)> = sqlx::query_as(sessions).bind(ROLE).fetch_all(&secured.pool).await.unwrap();
    assert!(!sessions.is_empty(), "Postgres has no session of the worker");
    assert!(sessions.iter().all(|(ssl, dn)| *ssl && dn.contains(ROLE)), "{sessions:?}");
    let connections = secured.rabbitmq().ctl(&["list_connections", "ssl", "auth_mechanism", "user"]).await;
    let worker_s = format!("true\tEXTERNAL\t{ROLE}");
    assert!(connections.lines().any(|line| line == worker_s), "{connections}");

    let shown = run_with(&["config", "show"], environment).await;
    let said = worker.stop().await;
    for secret in [&client.secret, &for_api.secret, &for_tokens.secret] {
        assert!(!said.contains(secret.as_str()) && !shown.contains(secret.as_str()), "a key is shown");
    }
    assert!(!said.contains("PRIVATE KEY"), "a key is shown");
    world.check_books().await;
}

async fn run_with(arguments: &[&str], environment: Environment) -> String {
    let done = crate::support::run(arguments, environment, b"").await;
    assert_eq!(done.code, Some(0), "{done:?}");
    done.stdout + &done.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_and_postgres_are_not_reached_without_the_right_certificates_and_it_is_said_what_to_do() {
    let secured = Secured::up().await;
    let world = World::on(secured.rabbitmq().url(), secured.postgres().url()).await;
    let (own, other) = (secured.authority(), Authority::called("somebody else"));
    let (client, stranger) = (own.client(ROLE), other.client(ROLE));
    let amqp = |host: &str| ("LEADPOST__AMQP__URL".to_owned(), secured.amqps(host));
    let postgres = |host: &str| ("LEADPOST__POSTGRES__URL".to_owned(), secured_url(&world.database.url, host));
    let declare: &[&str] = &["topology", "declare"];
    let migrate: &[&str] = &["migrate", "--check"];

    type Url<'a> = &'a (dyn Fn(&str) -> (String, String) + Sync);
    let connections: [(&str, &[&str], Url<'_>); 2] = [("AMQP", declare, &amqp), ("POSTGRES", migrate, &postgres)];
    for (section, command, url) in connections {
        let key = section.to_lowercase();
        let ask_where = async |system: &Authority, host: &str, ca: Option<&Authority>, client: Option<&ClientFiles>| {
            let mut environment = world.environment();
            environment.push(("SSL_CERT_FILE".to_owned(), system.file().to_str().unwrap().to_owned()));
            environment.push(url(host));
            environment.push(("LEADPOST__AMQP__QUEUE".to_owned(), format!("{}-declared", world.broker.queue)));
            environment.extend(tls(section, ca, client));
            crate::support::run(command, environment, b"").await
        };
        let ask = async |host: &str, ca: Option<&Authority>, client: Option<&ClientFiles>| {
            ask_where(&other, host, ca, client).await
        };
        let done = ask("127.0.0.1", Some(own), Some(&client)).await;
        assert_eq!(done.code, Some(0), "{section}: {done:?}");
        let wants = if section == "AMQP" { "the server wants a client certificate" } else { "certificate" };
        let unknown = format!("set {key}.tls.ca_file to the certificate of its CA");
        for (what, done, says) in [
            ("no client certificate", ask("127.0.0.1", Some(own), None).await, wants),
            ("one that another CA has signed", ask("127.0.0.1", Some(own), Some(&stranger)).await, "that it trusts"),
            ("another CA", ask("127.0.0.1", Some(&other), Some(&client)).await, &unknown),
            ("the system's CAs", ask("127.0.0.1", None, Some(&client)).await, &unknown),
            (
                "another name",
                ask("localhost", Some(own), Some(&client)).await,
                "the server's certificate is for another name",
            ),
        ] {
            assert_eq!(done.code, Some(69), "{section}, {what}: {done:?}");
            assert!(done.stderr.contains(says), "{section}, {what}: {says} in {}", done.stderr);
            assert!(!done.stderr.contains("guest:guest") && !done.stderr.contains(&client.secret), "{done:?}");
        }
        // A CA of one's own is the only one; but sqlx adds it to the system's (SECURITY.md).
        let done = ask_where(own, "127.0.0.1", Some(&other), Some(&client)).await;
        assert_eq!(done.code, Some(if section == "AMQP" { 69 } else { 0 }), "{section}: {done:?}");
        // A file that is not there is a matter of the configuration.
        let gone = ClientFiles { key: own.file().with_file_name("gone.key"), ..own.client("gone") };
        std::fs::remove_file(&gone.key).unwrap();
        let done = ask("127.0.0.1", Some(own), Some(&gone)).await;
        assert_eq!(done.code, Some(78), "{section}: {done:?}");
        assert!(done.stderr.contains(&format!("{key}.tls.key_file names")), "{done:?}");
    }
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_is_there_for_the_next_connection_of_a_worker_that_runs() {
    let secured = Secured::up().await;
    let (leads, tokens) = (Wire::open(takes).await, Wire::open(takes).await);
    let world = World::on(secured.rabbitmq().url(), secured.postgres().url()).await;
    let other = Authority::called("somebody else");
    let (client, stranger) = (secured.authority().client(ROLE), other.client(ROLE));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let now = ClientFiles { cert: file("now.pem"), key: file("now.key"), secret: String::new() };
    let become_ = |files: &ClientFiles| {
        std::fs::copy(&files.key, &now.key).unwrap();
        std::fs::copy(&files.cert, &now.cert).unwrap();
    };
    become_(&stranger);
    let mut environment = world.environment();
    environment.push(("LEADPOST__AMQP__URL".to_owned(), secured.amqps("127.0.0.1")));
    environment.push(("LEADPOST__DESTINATION__REQUEST__URL".to_owned(), leads.url("/leads")));
    environment.push(("LEADPOST__DESTINATION__AUTH__TOKEN_URL".to_owned(), tokens.url("/token")));
    environment.extend(tls("AMQP", Some(secured.authority()), Some(&now)));
    let worker = Process::start(&["run"], environment);
    worker.until_said("starting").await;
    world.until("the stranger is sent away", async || worker.ask("/readyz").await.2.contains("that it trusts")).await;
    become_(&client);
    let id = world.publish("ann").await;
    world.until_state(id, LeadState::Delivered).await;
    worker.stop().await;
    world.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_and_the_token_endpoint_read_nothing_without_the_right_certificates_and_no_lead_pays_for_it() {
    let (api, tokens) = (Tls::mutual(), Tls::mutual());
    // The other one has the same name, as a CA has whose key was made anew.
    let (other, namesake) = (Authority::called("somebody else"), Authority::new());
    let (for_api, for_tokens) = (api.authority().client("worker"), tokens.authority().client("worker"));
    let good = |section: &str| match section {
        "DESTINATION__REQUEST" => tls(section, Some(api.authority()), Some(&for_api)),
        _ => tls(section, Some(tokens.authority()), Some(&for_tokens)),
    };
    let (stranger, former) = (other.client("worker"), namesake.client("worker"));
    for (section, part, server) in [("DESTINATION__REQUEST", "api", &api), ("DESTINATION__AUTH", "token", &tokens)] {
        let key = section.to_lowercase().replace("__", ".");
        let cases = [
            (tls(section, Some(server.authority()), None), format!("set {key}.tls.cert_file and {key}.tls.key_file")),
            (tls(section, Some(server.authority()), Some(&stranger)), "that it trusts".to_owned()),
            (tls(section, Some(server.authority()), Some(&former)), "that it trusts".to_owned()),
            (tls(section, Some(&other), None), format!("set {key}.tls.ca_file to the certificate of its CA")),
        ];
        for (wrong, says) in cases {
            let world = World::at(&api.url("https", "/leads"), &[]).await;
            let mut environment = world.environment();
            environment.extend(destination(&api, &tokens));
            let beside = if part == "api" { "DESTINATION__AUTH" } else { "DESTINATION__REQUEST" };
            environment.extend(good(beside));
            environment.extend(wrong);
            // A CA of one's own is the only one, whomever the system trusts.
            let system = server.authority().file();
            environment.push(("SSL_CERT_FILE".to_owned(), system.to_str().unwrap().to_owned()));
            let before = server.requests().len();
            let settings = ["run", "--set", "flow.open_after=1", "--set", "retry.initial_ms=50"];
            let worker = Process::start(&settings, environment);
            worker.until_said("starting").await;
            world.publish_any("zyxq").await;
            let mut last = String::new();
            let saying = world.until("health says it", async || {
                let report: serde_json::Value = serde_json::from_str(&worker.ask("/readyz").await.2).unwrap();
                last = report[part]["detail"].as_str().unwrap().to_owned();
                report[part]["ok"] == false && last.contains(&says)
            });
            let said = tokio::time::timeout(std::time::Duration::from_secs(10), saying).await;
            assert!(said.is_ok(), "{part} does not say {says:?} but {last:?}");
            assert_eq!(server.requests().len(), before, "{part}: something was read");
            // Perhaps it is not even accepted, as nothing could be sent.
            let paid = "select count(*) from leads where state <> 'pending' or charged > 0";
            let doubts = "select count(*) from attempts where outcome <> 'not_sent'";
            assert_eq!((world.number(paid).await, world.number(doubts).await), (0, 0), "{part}, {says}");
            assert!(!worker.stop().await.contains("zyxq"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_speaks_tls_with_the_certificate_that_it_is_given_and_its_faults_strike_there_too() {
    let authority = Authority::new();
    let issued = authority.server("127.0.0.1", (2000, 2200));
    let put = |name: &str, pem: String| {
        let path = authority.file().with_file_name(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let files =
        TlsFiles { cert: put("api.pem", issued.certificate.pem()), key: put("api.key", issued.key.serialize_pem()) };
    let settings = || SandboxSettings { tls: Some(files.clone()), ..SandboxSettings::default() };
    let sandbox = Sandbox::start(settings()).unwrap();
    // Of what was taken, the status says so; without one, the lead is posted again.
    sandbox.faults().rule("ann", Some(1), Fault::cut(CutAt::Body));
    sandbox.faults().rule("bob", Some(1), Fault::cut(CutAt::StatusLine).before());
    let world = World::new().await;
    let mut environment = world.environment();
    for (name, value) in [("REQUEST__URL", sandbox.leads_url()), ("AUTH__TOKEN_URL", sandbox.token_url())] {
        assert!(value.starts_with("https://"), "{value}");
        environment.push((format!("LEADPOST__DESTINATION__{name}"), value));
    }
    for section in ["DESTINATION__REQUEST", "DESTINATION__AUTH"] {
        environment.extend(tls(section, Some(&authority), None));
    }
    let worker = Process::start(&["run"], environment);
    worker.until_said("starting").await;
    let (ann, bob) = (world.publish("ann").await, world.publish("bob").await);
    world
        .until("both are delivered", async || {
            world.hurry().await;
            world.number("select count(*) from leads where state = 'delivered'").await == 2
        })
        .await;
    worker.stop().await;
    let posts = |id: LeadId| sandbox.journal().posts_for(id.0).len();
    assert_eq!((posts(ann), posts(bob)), (1, 2));

    std::fs::write(&files.key, "no key").unwrap();
    let refused = Sandbox::start(settings()).unwrap_err();
    assert!(refused.to_string().contains("api.key"), "{refused}");
}
