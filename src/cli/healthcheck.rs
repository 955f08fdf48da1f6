//! `leadpost healthcheck`: asks the admin port, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{Exit, print, say};
use crate::config::{Admin, ConfigError, Secret, Source, Tls};

/// Ask a running worker's admin port whether it is well
///
/// Exit code 0 if it answers well, 1 if it answers that it is not, 69 if it does not answer, 78 if no port is configured.
///
/// Example: leadpost healthcheck --url http://127.0.0.1:9090/readyz
#[derive(Debug, clap::Args)]
pub(super) struct HealthcheckArgs {
    /// What to ask: /livez for the process, /readyz for its neighbours too; without it /livez at admin.listen
    #[arg(long, value_name = "URL")]
    url: Option<reqwest::Url>,

    /// How long to wait, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3_000)]
    timeout_ms: u64,
}

pub(super) async fn run(args: HealthcheckArgs, source: &Source) -> anyhow::Result<Exit> {
    let (url, token) = match args.url {
        // A configuration that cannot be read is no reason not to ask.
        Some(url) => {
            let token = source.read().ok().and_then(|settings| token_for(&url, &settings.admin));
            (url, token)
        }
        None => {
            let admin = source.read()?.admin;
            let url = livez(&admin.listen).map_err(|problem| ConfigError(vec![problem]))?;
            let token = token_for(&url, &admin);
            (url, token)
        }
    };
    let timeout = Duration::from_millis(args.timeout_ms);
    let settings = crate::http::ClientSettings {
        timeout,
        connect_timeout: timeout,
        idle_timeout: timeout,
        proxy: "none",
        tls: &Tls::default(),
        section: "admin",
    };
    let client = crate::http::client(&settings)?;
    let mut request = client.get(url.clone());
    if let Some(token) = token {
        request = request.bearer_auth(token.expose());
    }
    match request.send().await {
        Ok(response) => {
            let well = response.status().is_success();
            let text = response.text().await.unwrap_or_default();
            print(text.trim_end())?;
            Ok(if well { Exit::Done } else { Exit::No })
        }
        Err(error) => {
            let cause = crate::reason::chain(&error.without_url());
            // Without what else may stand in the URL, such as a password.
            let at = url.origin().ascii_serialization();
            say(&format!("error: the admin port does not answer at {at}: {cause}"));
            Ok(Exit::Unreachable)
        }
    }
}

/// The token, if it is the worker of these settings that is asked; it is nobody else's.
fn token_for(url: &reqwest::Url, admin: &Admin) -> Option<Secret> {
    let own = livez(&admin.listen).ok()?;
    (admin.token.is_set() && own.origin() == url.origin()).then(|| admin.token.clone())
}

/// Where a worker with this `admin.listen` is asked from the same machine.
fn livez(listen: &str) -> Result<reqwest::Url, String> {
    let address: SocketAddr = match listen {
        "" => return Err("admin.listen is empty, so no worker has an admin port: set it, or give --url".to_owned()),
        listen => listen.parse().map_err(|_| format!("admin.listen is {listen:?}, not an address with a port"))?,
    };
    if address.port() == 0 {
        return Err("admin.listen has port 0, which is another one each time: give --url".to_owned());
    }
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let url = format!("http://{}/livez", SocketAddr::new(host, address.port()));
    url.parse().map_err(|error| format!("admin.listen is {listen:?}, which makes no URL: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_to_the_worker_of_these_settings_and_to_nobody_else() {
        let admin = Admin {
            listen: "0.0.0.0:91".to_owned(),
            token: Secret::new("0123456789abcdef"),
            token_file: None,
            open: false,
        };
        let goes = |url: &str| token_for(&url.parse().expect("a URL"), &admin).is_some();
        assert!(goes("http://127.0.0.1:91/readyz") && goes("http://127.0.0.1:91/metrics"));
        for other in
            ["http://127.0.0.1:92/readyz", "http://10.0.0.7:91/readyz", "https://127.0.0.1:91/", "http://h:91/"]
        {
            assert!(!goes(other), "{other}");
        }
        assert!(token_for(&"http://127.0.0.1:9090/".parse().expect("a URL"), &Admin::default()).is_none());
    }

    #[test]
    fn the_port_that_is_configured_is_asked_on_this_machine() {
        let url = |listen: &str| livez(listen).map(String::from);
        assert_eq!(url("127.0.0.1:9090").as_deref(), Ok("http://127.0.0.1:9090/livez"));
        assert_eq!(url("0.0.0.0:91").as_deref(), Ok("http://127.0.0.1:91/livez"));
        assert_eq!(url("[::]:91").as_deref(), Ok("http://[::1]:91/livez"));
        assert_eq!(url("10.0.0.7:91").as_deref(), Ok("http://10.0.0.7:91/livez"));
        for none in ["", "127.0.0.1:0", "nonsense"] {
            assert!(url(none).is_err(), "{none:?}");
        }
    }
}
