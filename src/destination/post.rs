//! The post of one lead.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::auth::Token;
use crate::config::{self, fill_in};
use crate::http::{ClientError, ClientSettings, Exchange, Outgoing, client, exchange};
use crate::lead::LeadId;

/// The lead's id, the same on every post of it. No lead API is known to honour it; those that begin to will find it there
/// (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A lead API over HTTP.
#[derive(Debug)]
pub struct LeadApi {
    client: reqwest::Client,
    url: reqwest::Url,
    headers: HeaderMap,
    max_answer_bytes: usize,
    max_retry_after: Duration,
}

impl LeadApi {
    /// The lead API of these settings, which [`config::check`] has found sound.
    ///
    /// # Errors
    /// When no HTTP client can be had.
    ///
    /// # Panics
    /// On settings that [`config::check`] refuses.
    pub fn new(destination: &config::Destination, max_retry_after: Duration) -> Result<Self, ClientError> {
        let request = &destination.request;
        let filled =
            |template: &str| fill_in(template, &destination.variables).expect("checked: all variables are set");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        for (name, template) in &request.headers {
            let name = HeaderName::try_from(name.as_str()).expect("checked: a header's name");
            let mut value = HeaderValue::try_from(filled(template)).expect("checked: a header's value");
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(Self {
            client: client(&ClientSettings {
                timeout: Duration::from_millis(request.timeout_ms),
                connect_timeout: Duration::from_millis(request.connect_timeout_ms),
                idle_timeout: Duration::from_millis(request.idle_timeout_ms),
                proxy: &request.proxy,
            })?,
            url: filled(&request.url).parse().expect("checked: a URL"),
            headers,
            max_answer_bytes: request.max_answer_bytes,
            max_retry_after,
        })
    }

    /// Posts a lead once.
    ///
    /// # Cancel safety
    /// None: a dropped post may have arrived. Callers let it run to its end.
    pub async fn post(&self, id: LeadId, token: &Token, json: Bytes) -> Exchange {
        let mut headers = self.headers.clone();
        headers.insert(header::AUTHORIZATION, token.authorization());
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let key = HeaderValue::from_str(id.0.hyphenated().encode_lower(&mut text)).expect("hex and hyphens");
        headers.insert(IDEMPOTENCY_KEY, key);
        let outgoing = Outgoing { method: Method::POST, url: &self.url, headers, body: json };
        exchange(&self.client, outgoing, self.max_answer_bytes, self.max_retry_after).await
    }
}
