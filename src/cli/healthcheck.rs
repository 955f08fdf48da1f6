//! `leadpost healthcheck`: asks the admin port, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{Exit, print, say};
use crate::config::{ConfigError, Source};

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
    let url = match args.url {
        Some(url) => url,
        None => livez(&source.read()?.admin.listen).map_err(|problem| ConfigError(vec![problem]))?,
    };
    let timeout = Duration::from_millis(args.timeout_ms);
    let settings =
        crate::http::ClientSettings { timeout, connect_timeout: timeout, idle_timeout: timeout, proxy: "none" };
    let client = crate::http::client(&settings)?;
    match client.get(url.clone()).send().await {
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
