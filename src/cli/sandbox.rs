//! `leadpost sandbox`: a stand-in for a lead API and its token endpoint, to try the worker against.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use super::say;
use crate::sandbox::{FaultPlan, Profile, Sandbox, SandboxSettings, TlsFiles, Tuning};

/// Run a stand-in for a lead API, with faults on demand
///
/// One port serves the API, its token endpoint, and control routes, which GET /_sandbox/ lists. Nothing is stored: what
/// has arrived is gone when it stops. It has no configuration but these options.
///
/// Example: leadpost sandbox --listen 127.0.0.1:8080 --latency-ms 100
#[derive(Clone, Debug, clap::Args)]
pub struct SandboxArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Lead API to play
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,

    /// Client id that the token endpoint accepts
    #[arg(long, value_name = "ID", default_value = "sandbox-client")]
    pub client_id: String,

    /// Secret of that client
    #[arg(
        long,
        value_name = "SECRET",
        default_value = "sandbox-secret",
        env = "LEADPOST_SANDBOX_CLIENT_SECRET",
        hide_env_values = true
    )]
    pub client_secret: String,

    /// Scopes granted to that client, separated by spaces [default: as the API has them]
    #[arg(long, value_name = "SCOPE")]
    pub scope: Option<String>,

    /// User that SquadRun and Paya accept
    #[arg(long, value_name = "NAME", default_value = "sandbox-user")]
    pub username: String,

    /// Password of that user
    #[arg(
        long,
        value_name = "SECRET",
        default_value = "sandbox-password",
        env = "LEADPOST_SANDBOX_PASSWORD",
        hide_env_values = true
    )]
    pub password: String,

    /// Domain that Paya's user logs in to
    #[arg(long, value_name = "DOMAIN", default_value = "sandbox.example")]
    pub domain: String,

    /// Static token that SquadIQ accepts
    #[arg(
        long,
        value_name = "SECRET",
        default_value = "sandbox-bearer-token",
        env = "LEADPOST_SANDBOX_BEARER_TOKEN",
        hide_env_values = true
    )]
    pub bearer_token: String,

    /// Developer id that Paya wants with every request
    #[arg(
        long,
        value_name = "ID",
        default_value = "sandbox-developer",
        env = "LEADPOST_SANDBOX_DEVELOPER_ID",
        hide_env_values = true
    )]
    pub developer_id: String,

    /// User id that Paya accepts with the API key
    #[arg(long, value_name = "ID", default_value = "sandbox-user-id-0000000000")]
    pub user_id: String,

    /// API key of that user
    #[arg(
        long,
        value_name = "SECRET",
        default_value = "sandbox-user-api-key",
        env = "LEADPOST_SANDBOX_USER_API_KEY",
        hide_env_values = true
    )]
    pub user_api_key: String,

    /// Location that Paya takes contacts for, 24 to 36 characters
    #[arg(long, value_name = "ID", default_value = "sandbox-location-0000000001")]
    pub location_id: String,

    /// Lifetime of a token in seconds [default: as the API has it, 300 to 36000]
    #[arg(long, value_name = "SECONDS")]
    pub token_lifetime_s: Option<u64>,

    /// Time that the lead API takes for an answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency_ms: u64,

    /// Most requests in work at once; one more is answered 429
    #[arg(long, value_name = "N")]
    pub capacity: Option<u32>,

    /// The Retry-After of that 429, in seconds; 0 for none
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    pub retry_after_s: u32,

    /// Requests that are worked on at once; with n times as many, each takes n times as long
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub slow_above: Option<u32>,

    /// Most requests per second; one more is answered 429
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_limit: Option<u32>,

    /// Most requests per minute, 0 for no limit; one more is answered 429 [default: 100 for squadrun and squadiq]
    #[arg(long, value_name = "N")]
    pub rate_limit_per_min: Option<u32>,

    /// PEM file with the certificate to speak TLS with, and those that lead to its CA
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// JSON file of faults to begin with
    ///
    /// The same document as that of POST /_sandbox/faults: {"script": [..], "rates": [..], "rules": [..]}
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,

    /// Seed of the faults that come by chance
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Requests that the journal holds; beyond that the oldest go
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    pub journal_limit: usize,

    /// Keep a hash of each body instead of the body
    #[arg(long)]
    pub no_bodies: bool,
}

/// Serves until `stop` is done.
///
/// # Errors
/// When the file of faults cannot be used or the address cannot be listened on.
pub async fn run(args: SandboxArgs, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let settings = settings(&args)?;
    let sandbox = Sandbox::start(settings).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => anyhow::Error::from(error),
        _ => anyhow::Error::from(error).context(format!("could not listen on {}", args.listen)),
    })?;
    // SquadIQ's token is given out by nobody: naming a URL for it would send people looking.
    let tokens = match args.profile {
        Profile::SquadIq => "tokens are static".to_owned(),
        _ => format!("tokens from {}", sandbox.token_url()),
    };
    say(&format!(
        "sandbox: {} at {}, {tokens}, leads to {}, control at {}",
        args.profile.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned()),
        sandbox.base_url(),
        sandbox.leads_url(),
        sandbox.url("/_sandbox/")
    ));
    say("sandbox: ready");
    stop.await;
    sandbox.stop().await;
    Ok(())
}

fn settings(args: &SandboxArgs) -> anyhow::Result<SandboxSettings> {
    Ok(SandboxSettings {
        listen: args.listen,
        seed: args.seed,
        keep_bodies: !args.no_bodies,
        journal_limit: Some(args.journal_limit),
        tls: args.tls_cert.clone().zip(args.tls_key.clone()).map(|(cert, key)| TlsFiles { cert, key }),
        tuning: tuning(args),
        faults: args.faults.as_deref().map(read_faults).transpose()?.unwrap_or_default(),
    })
}

/// The played API as it is, with the options over it.
fn tuning(args: &SandboxArgs) -> Tuning {
    let usual = Tuning::of(args.profile);
    Tuning {
        client_id: args.client_id.clone(),
        client_secret: args.client_secret.clone(),
        scope: args.scope.clone().unwrap_or(usual.scope),
        username: args.username.clone(),
        password: args.password.clone(),
        domain: args.domain.clone(),
        bearer_token: args.bearer_token.clone(),
        developer_id: args.developer_id.clone(),
        user_id: args.user_id.clone(),
        user_api_key: args.user_api_key.clone(),
        location_id: args.location_id.clone(),
        token_lifetime: args.token_lifetime_s.map_or(usual.token_lifetime, Duration::from_secs),
        latency: Duration::from_millis(args.latency_ms),
        capacity: args.capacity,
        retry_after_s: args.retry_after_s,
        slow_above: args.slow_above,
        rate_limit_per_s: args.rate_limit,
        rate_limit_per_min: args.rate_limit_per_min.or(usual.rate_limit_per_min).filter(|most| *most > 0),
        ..usual
    }
}

fn read_faults(path: &Path) -> anyhow::Result<FaultPlan> {
    let text = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    let plan: FaultPlan =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a plan of faults", path.display()))?;
    plan.check().map_err(anyhow::Error::msg).with_context(|| format!("{} makes no sense", path.display()))?;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parsed(arguments: &[&str]) -> SandboxArgs {
        let command = SandboxArgs::augment_args(clap::Command::new("sandbox").no_binary_name(true));
        SandboxArgs::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_sandbox_itself() {
        let settings = settings(&parsed(&[])).unwrap();
        assert_eq!(settings.tuning, Tuning::default());
        for profile in Profile::value_variants() {
            let name = profile.to_possible_value().unwrap();
            assert_eq!(tuning(&parsed(&["--profile", name.get_name()])), Tuning::of(*profile));
        }
        assert_eq!(settings.listen, "127.0.0.1:8080".parse().unwrap());
        assert!(settings.keep_bodies);
    }

    #[tokio::test]
    async fn it_serves_until_it_is_told_to_stop() {
        let (told, stop) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(run(parsed(&["--listen", "127.0.0.1:0"]), async { drop(stop.await) }));
        drop(told);
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn a_file_of_faults_is_checked_before_anything_starts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            settings(&parsed(&["--faults", file.path().to_str().unwrap()])).map(|settings| settings.faults)
        };
        assert_eq!(read(r#"{"script":[{"kind":"hang"}]}"#).unwrap().script.unwrap().len(), 1);
        assert!(format!("{:#}", read(r#"{"scrpt":[]}"#).unwrap_err()).contains("scrpt"));
        assert!(read(r#"{"rates":[{"probability":2,"fault":{"kind":"hang"}}]}"#).is_err());
    }

    #[test]
    fn an_option_goes_over_what_the_profile_has() {
        let squad = |more: &[&str]| tuning(&parsed(&[&["--profile", "squadrun"], more].concat()));
        assert_eq!(squad(&["--rate-limit-per-min", "0"]).rate_limit_per_min, None);
        assert_eq!(squad(&["--rate-limit-per-min", "7"]).rate_limit_per_min, Some(7));
        assert_eq!(squad(&["--token-lifetime-s", "5"]).token_lifetime, Duration::from_secs(5));
        assert_eq!(squad(&["--username", "ann", "--scope", "read"]).scope, "read");
        assert_eq!(squad(&["--password", "p"]).password, "p");
    }

    #[test]
    fn every_profile_can_be_named() {
        assert_eq!(parsed(&["--profile", "7targets-2024"]).profile, Profile::SevenTargets2024);
        assert_eq!(parsed(&["--profile", "7targets"]).profile, Profile::SevenTargets);
        assert_eq!(parsed(&["--profile", "squadrun"]).profile, Profile::SquadRun);
        assert_eq!(parsed(&["--profile", "squadiq"]).profile, Profile::SquadIq);
        assert_eq!(parsed(&["--profile", "kaisa"]).profile, Profile::Kaisa);
        assert_eq!(parsed(&["--profile", "paya"]).profile, Profile::Paya);
        assert_eq!(parsed(&["--profile", "paya-session"]).profile, Profile::Paya);
    }
}
