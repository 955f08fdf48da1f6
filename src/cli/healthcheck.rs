//! `leadpost healthcheck`: asks the admin port, for containers without curl.

use std::time::Duration;

use super::{Exit, print, say};

/// Ask a running worker's admin port; exit code 0 if it answers well, 1 if not
///
/// Example: leadpost healthcheck --url http://127.0.0.1:9090/readyz
#[derive(Debug, clap::Args)]
pub(super) struct HealthcheckArgs {
    /// What to ask: /livez for the process, /readyz for its neighbours too
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090/livez")]
    url: reqwest::Url,

    /// How long to wait, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3_000)]
    timeout_ms: u64,
}

pub(super) async fn run(args: &HealthcheckArgs) -> anyhow::Result<Exit> {
    let timeout = Duration::from_millis(args.timeout_ms);
    let settings =
        crate::http::ClientSettings { timeout, connect_timeout: timeout, idle_timeout: timeout, proxy: "none" };
    let client = crate::http::client(&settings)?;
    match client.get(args.url.clone()).send().await {
        Ok(response) => {
            let well = response.status().is_success();
            let text = response.text().await.unwrap_or_default();
            print(text.trim_end());
            Ok(if well { Exit::Done } else { Exit::No })
        }
        Err(error) => {
            say(&format!("error: the admin port does not answer: {}", crate::reason::chain(&error.without_url())));
            Ok(Exit::Unreachable)
        }
    }
}
