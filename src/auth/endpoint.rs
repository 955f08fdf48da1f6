//! Requests to where a log-in happens, with the destination's fixed headers and query parameters along.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use super::Credential;
use crate::config::Destination;
use crate::http::{ClientError, ClientSettings, Exchange, Outgoing, client, exchange};

/// Tokens are about 1 KiB; nothing that is much larger is one.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The wish to be left alone is obeyed up to this long.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// No token is kept for longer, whatever the endpoint says. AWS Cognito's live a day at most.
pub(super) const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where the settings of these connections are.
const SECTION: &str = "destination.auth";

/// Where a log-in happens.
#[derive(Debug)]
pub(super) struct Endpoint {
    client: reqwest::Client,
    fixed: Credential,
}

impl Endpoint {
    /// Of this destination.
    ///
    /// # Errors
    /// When no HTTP client can be had.
    pub(super) fn of(destination: &Destination, fixed: Credential) -> Result<Self, ClientError> {
        let timeout = Duration::from_millis(destination.auth.timeout_ms);
        let client = client(&ClientSettings {
            timeout,
            connect_timeout: timeout / 2,
            idle_timeout: Duration::from_millis(destination.request.idle_timeout_ms),
            proxy: &destination.request.proxy,
            tls: &destination.auth.tls,
            section: SECTION,
        })?;
        Ok(Self { client, fixed })
    }

    /// Sends one request. What is answered to it and is no success comes without our secrets and these: an endpoint may repeat what
    /// it was sent.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &reqwest::Url,
        mut headers: HeaderMap,
        body: impl Into<Bytes>,
        secrets: &[&str],
    ) -> Exchange {
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        self.fixed.add_headers(&mut headers);
        let with_query = self.fixed.add_query(url);
        let url = with_query.as_ref().unwrap_or(url);
        let outgoing = Outgoing { method, url, headers, body: body.into(), section: SECTION };
        match exchange(&self.client, outgoing, MAX_ANSWER_BYTES, MAX_RETRY_AFTER).await {
            Exchange::Answered(mut answer) if !(200..300).contains(&answer.status) => {
                let redactor = self.fixed.redactor().and(secrets.iter().copied());
                answer.body = redactor.clean_answer(answer.body, answer.is_cut);
                Exchange::Answered(answer)
            }
            other => other,
        }
    }
}
