//! RabbitMQ and Postgres as `scripts/services` gives them, and the worker's binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use sqlx::{Connection as _, PgConnection};

use crate::measure::{self, Cpu};
use crate::tls::Encrypted;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");

/// Where they are, and their processes where those can be seen.
pub struct Servers {
    pub amqp_url: String,
    pub database_url: String,
    rabbitmq: Option<u32>,
    postgres: Option<u32>,
    postgres_log: Option<PathBuf>,
    were_down: bool,
    /// Their folder, where they are not the usual ones.
    state: Option<PathBuf>,
    /// How they, and the sandbox, are reached with TLS; `None`: without.
    pub encrypted: Option<Encrypted>,
}

/// The worker in release mode, without what tests break on purpose.
pub fn build() -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(ROOT).args([
        "build",
        "--release",
        "--locked",
        "--bin",
        "leadpost",
        "--message-format=json-render-diagnostics",
    ]);
    // What cargo says of this bench is no part of what the worker is built from; some build scripts would take it for a change.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of_bench| name.to_string_lossy().starts_with(of_bench)) {
            cargo.env_remove(name);
        }
    }
    let built = cargo.stderr(std::process::Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(built.status.success(), "the worker does not build");
    let artifacts = String::from_utf8_lossy(&built.stdout);
    let executable = artifacts.lines().rev().find_map(|line| {
        let artifact: serde_json::Value = serde_json::from_str(line).ok()?;
        artifact["executable"].as_str().map(PathBuf::from)
    });
    executable.context("cargo does not say where the worker is")
}

fn script(state: Option<&Path>) -> Command {
    let mut script = Command::new(SCRIPT);
    if let Some(state) = state {
        script.env("LEADPOST_SERVICES_STATE", state).env("LEADPOST_SERVICES_LARGE", "yes");
    }
    script
}

fn services(arguments: &[&str], state: Option<&Path>) -> anyhow::Result<String> {
    let output = script(state).args(arguments).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "scripts/services {} has failed", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

impl Servers {
    /// The usual ones, or others in this folder.
    pub async fn up(state: Option<&Path>) -> anyhow::Result<Self> {
        let were_down = !script(state).arg("env").output()?.status.success();
        services(&["up"], state)?;
        let lines = services(&["env"], state)?;
        let value = |name: &str| {
            let line = lines.lines().find_map(|line| line.strip_prefix(&format!("export {name}='")));
            line.map(|value| value.trim_end_matches('\'').to_owned()).filter(|value| !value.is_empty())
        };
        let Some((amqp_url, database_url)) = value("AMQP_URL").zip(value("DATABASE_URL")) else {
            bail!("scripts/services env does not say where the servers are");
        };
        let data = value("LEADPOST_SERVICES_PG_DATA");
        let postgres_log = data.as_ref().map(|data| Path::new(data).join("../../postgres.log"));
        let postgres = data.and_then(|data| {
            let pid = std::fs::read_to_string(format!("{data}/postmaster.pid")).ok()?;
            pid.lines().next()?.trim().parse().ok()
        });
        let rabbitmq = value("LEADPOST_SERVICES_RABBITMQCTL").and_then(|ctl| {
            let said = Command::new(ctl).args(["-q", "eval", "os:getpid()."]).output().ok()?;
            String::from_utf8(said.stdout).ok()?.trim().trim_matches('"').parse().ok()
        });
        let state = state.map(Path::to_owned);
        Ok(Self { amqp_url, database_url, rabbitmq, postgres, postgres_log, were_down, state, encrypted: None })
    }

    /// Stops what was started here.
    pub fn down(&self) {
        let arguments: &[&str] = if self.state.is_some() { &["down", "--purge"] } else { &["down"] };
        if self.were_down
            && let Err(error) = services(arguments, self.state.as_deref())
        {
            eprintln!("throughput: {error:#}");
        }
    }

    pub fn rabbitmq_cpu(&self) -> Option<Cpu> {
        measure::tree(self.rabbitmq?)
    }

    pub fn postgres_cpu(&self) -> Option<Cpu> {
        measure::tree(self.postgres?)
    }

    /// What Postgres says, where it is ours.
    pub fn postgres_log(&self) -> Option<PathBuf> {
        self.postgres_log.clone().filter(|log| log.exists())
    }

    /// A connection to this database of the server, or to the one that the URL names.
    pub async fn connect(&self, database: Option<&str>) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.url_of(database)?).await?)
    }

    pub fn url_of(&self, database: Option<&str>) -> anyhow::Result<String> {
        let mut url = url::Url::parse(&self.database_url)?;
        if let Some(database) = database {
            url.set_path(database);
        }
        Ok(url.into())
    }
}
