//! What is lost to TLS on all three connections: the same leads with it and without, on servers of their own that speak both.

use std::collections::HashMap;
use std::io::PipeWriter;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sqlx::PgConnection;

use crate::report::Report;
use crate::scene::{Load, Scene, Who, execute};
use crate::servers::{SCRIPT, Servers};
use crate::{Args, leads_at};

/// Where everything listens.
const HOST: &str = "127.0.0.1";

/// Waits until nobody can write to its stdin any more, then ends what servers are still there, and removes their folder.
const WATCHDOG: &str = r#"cat >/dev/null
[ ! -d "$LEADPOST_SERVICES_STATE" ] || { "$1" down --purge; rm -rf "$2"; }"#;

/// How RabbitMQ, Postgres and the sandbox are reached with TLS.
#[derive(Clone)]
pub struct Encrypted {
    amqps_url: String,
    files: Files,
}

/// A certificate for [`HOST`], its key, and the certificate of its CA.
#[derive(Clone)]
struct Files {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn make(folder: &Path) -> anyhow::Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = authority.self_signed(&key)?.pem();
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new(vec![HOST.to_owned()])?.signed_by(&key, &issuer)?.pem();
        let put = |name: &str, pem: String| {
            let path = folder.join(name);
            std::fs::write(&path, pem).map(|()| path)
        };
        Ok(Self {
            ca: put("ca.pem", ca)?,
            cert: put("server.pem", cert)?,
            key: put("server.key", key.serialize_pem())?,
        })
    }
}

impl Encrypted {
    /// What a sandbox is told.
    pub fn of_sandbox(&self) -> [&str; 4] {
        let [cert, key] = [&self.files.cert, &self.files.key].map(|path| path.to_str().unwrap_or_default());
        ["--tls-cert", cert, "--tls-key", key]
    }

    /// The environment of a worker with its ledger at this URL.
    pub fn of_worker(&self, database_url: &str) -> anyhow::Result<HashMap<String, String>> {
        let mut url = url::Url::parse(database_url)?;
        url.query_pairs_mut().clear().append_pair("sslmode", "verify-full");
        let mut variables =
            HashMap::from([("AMQP_URL".to_owned(), self.amqps_url.clone()), ("DATABASE_URL".to_owned(), url.into())]);
        for section in ["AMQP", "POSTGRES", "DESTINATION__REQUEST", "DESTINATION__AUTH"] {
            variables.insert(format!("LEADPOST__{section}__TLS__CA_FILE"), self.files.ca.display().to_string());
        }
        Ok(variables)
    }
}

/// Prints a table of the same leads, without TLS and with it.
pub async fn compare(leadpost: &Path, args: &Args) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let files = Files::make(folder.path())?;
    let state = folder.path().join("servers");
    let port = TcpListener::bind((HOST, 0))?.local_addr()?.port();
    rabbitmq(&state, port, &files)?;
    let _watched = watch(folder.path(), &state)?;
    let mut servers = Servers::up(Some(&state)).await?;
    let encrypted = Encrypted { amqps_url: format!("amqps://guest:guest@{HOST}:{port}/%2f"), files };
    let compared = async {
        postgres(&mut servers.connect(None).await?, &encrypted.files).await?;
        // Or they would take what Postgres offers from now on.
        servers.database_url.push_str("?sslmode=disable");
        let mut report = Report::new(&servers).await?;
        for &delay in &args.delays {
            let delay = Duration::from_millis(delay);
            let load = Load::Filled(leads_at(args.leads, delay, args.concurrency));
            for _ in 0..args.runs {
                for encrypted in [None, Some(encrypted.clone())] {
                    servers.encrypted = encrypted;
                    let scene =
                        Scene { leadpost, servers: &servers, args, who: Who::Leadpost(1), delay, load, set: &[] };
                    report.add(scene.play().await?);
                }
            }
        }
        report.print();
        args.json.as_deref().map_or(Ok(()), |file| report.write(file))
    };
    let compared = compared.await;
    servers.down();
    compared
}

/// Has the servers ended if this process is, without its doing. It is as long as this is kept.
fn watch(folder: &Path, state: &Path) -> anyhow::Result<PipeWriter> {
    let (reader, writer) = std::io::pipe()?;
    // In a group of its own, or a Ctrl-C would end it, too. Nobody waits for it: it outlives us.
    let mut watchdog = Command::new("sh");
    watchdog.args(["-c", WATCHDOG, "sh", SCRIPT]).arg(folder).env("LEADPOST_SERVICES_STATE", state);
    watchdog.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    drop(watchdog.spawn()?);
    Ok(writer)
}

/// Puts what RabbitMQ needs for TLS into its folder of settings.
fn rabbitmq(state: &Path, port: u16, files: &Files) -> anyhow::Result<()> {
    let folder = state.join("rabbitmq/conf/conf.d");
    std::fs::create_dir_all(&folder)?;
    let settings = format!(
        "listeners.ssl.1 = {HOST}:{port}\n\
         ssl_options.cacertfile = {}\n\
         ssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\n\
         ssl_options.verify = verify_none\n",
        files.ca.display(),
        files.cert.display(),
        files.key.display(),
    );
    Ok(std::fs::write(folder.join("tls.conf"), settings)?)
}

/// Has Postgres speak TLS. It writes its files itself, so that they are its own, as it asks of a key.
async fn postgres(connection: &mut PgConnection, files: &Files) -> anyhow::Result<()> {
    for (name, path) in [("tls_server.pem", &files.cert), ("tls_server.key", &files.key)] {
        let content = std::fs::read_to_string(path)?;
        let lines = content.lines().map(|line| format!("('{line}')")).collect::<Vec<_>>().join(", ");
        execute(connection, &format!("copy (values {lines}) to program 'umask 077 && cat > {name}'")).await?;
    }
    for (name, value) in [("ssl_cert_file", "tls_server.pem"), ("ssl_key_file", "tls_server.key"), ("ssl", "on")] {
        execute(connection, &format!("alter system set {name} = '{value}'")).await?;
    }
    execute(connection, "select pg_reload_conf()").await?;
    // Whoever connects from now on is asked.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}
