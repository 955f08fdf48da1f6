//! The requests to a lead API: the post of a lead, and the question whether an earlier one arrived.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::outcome::{Answers, Outcome};
use super::reconcile::Query;
use crate::auth::Token;
use crate::config::{self, BodyFormat, Redactor, fill_in, fill_in_url};
use crate::http::{ClientError, ClientSettings, Exchange, Outgoing, client, exchange};
use crate::lead::LeadId;
use crate::ledger::RequestKind;
use crate::reason::Reason;
use crate::traces::{self, Server, TraceContext};

/// The lead's id, the same on every post of it. No lead API is known to honour it; those that begin to will find it there
/// (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const TRACEPARENT: HeaderName = HeaderName::from_static(traces::TRACEPARENT);
const TRACESTATE: HeaderName = HeaderName::from_static(traces::TRACESTATE);
/// Where the settings of these connections are.
const SECTION: &str = "destination.request";

/// A lead API over HTTP.
#[derive(Debug)]
pub struct LeadApi {
    client: reqwest::Client,
    method: Method,
    url: reqwest::Url,
    headers: HeaderMap,
    answers: Answers,
    query: Option<Query>,
    /// Where posts go, and where queries do, for spans.
    servers: [Server; 2],
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
        let values = config::values(destination);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(request.body)));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        for (name, template) in request.headers.iter().filter(|(_, template)| !template.is_empty()) {
            let name = HeaderName::try_from(name.as_str()).expect("checked: a header's name");
            let value = fill_in(template, &values).expect("checked: all variables are set");
            let mut value = HeaderValue::try_from(value).expect("checked: a header's value");
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let url = fill_in_url(&request.url, &config::url_values(destination)).expect("checked: all variables are set");
        let url: reqwest::Url = url.parse().expect("checked: a URL");
        let query = Query::of(destination).expect("checked: the expressions compile");
        let asked = query.as_ref().and_then(|query| query.url("").ok());
        let (method, name) = method(request.method);
        let servers = [server(name, &url), server("GET", asked.as_ref().unwrap_or(&url))];
        Ok(Self {
            client: client(&ClientSettings {
                timeout: Duration::from_millis(request.timeout_ms),
                connect_timeout: Duration::from_millis(request.connect_timeout_ms),
                idle_timeout: Duration::from_millis(request.idle_timeout_ms),
                proxy: &request.proxy,
                tls: &request.tls,
                section: SECTION,
            })?,
            method,
            url,
            headers,
            answers: Answers::of(destination).expect("checked: the tests compile"),
            query,
            servers,
            max_answer_bytes: request.max_answer_bytes,
            max_retry_after,
        })
    }

    /// Where requests of this kind go.
    pub fn server(&self, kind: RequestKind) -> &Server {
        &self.servers[kind as usize]
    }

    /// Posts a lead once, as a part of this trace.
    ///
    /// # Cancel safety
    /// None: a dropped post may have arrived. Callers let it run to its end.
    pub async fn post(
        &self,
        id: LeadId,
        token: &Token,
        body: Bytes,
        trace: Option<&TraceContext>,
    ) -> (Outcome, Exchange) {
        let mut headers = self.headers.clone();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let key = HeaderValue::from_str(id.0.hyphenated().encode_lower(&mut text)).expect("hex and hyphens");
        headers.insert(IDEMPOTENCY_KEY, key);
        let exchange = self.send(self.method.clone(), &self.url, headers, token, body, trace).await;
        let redactor = token.credential().redactor();
        let outcome = self.answers.classify(&exchange, redactor);
        let kept = kept(exchange, &outcome, redactor);
        (outcome, kept)
    }

    /// Whether leads in doubt are asked for before they are posted again.
    pub fn can_be_asked(&self) -> bool {
        self.query.is_some()
    }

    /// Asks whether an earlier post of the lead with this key has arrived, as a part of this trace.
    pub async fn ask(&self, token: &Token, key: &str, trace: Option<&TraceContext>) -> (Outcome, Exchange) {
        let Some(query) = &self.query else {
            let reason = Reason::new("request_invalid", "destination.reconcile is not set");
            return (Outcome::NotSent(reason.clone()), Exchange::NotSent(reason));
        };
        let exchange = match query.url(key) {
            Ok(url) => {
                let mut headers = self.headers.clone();
                headers.remove(header::CONTENT_TYPE);
                self.send(Method::GET, &url, headers, token, Bytes::new(), trace).await
            }
            Err(reason) => Exchange::NotSent(reason),
        };
        let redactor = token.credential().redactor();
        let outcome = query.classify(&self.answers, key, &exchange, redactor);
        let kept = kept(exchange, &outcome, redactor);
        (outcome, kept)
    }

    /// Sends a request with what logs us in.
    async fn send(
        &self,
        method: Method,
        url: &reqwest::Url,
        mut headers: HeaderMap,
        token: &Token,
        body: Bytes,
        trace: Option<&TraceContext>,
    ) -> Exchange {
        let credential = token.credential();
        if let Some(trace) = trace {
            let of = |text: &str| HeaderValue::from_str(text).expect("read: printable ASCII");
            headers.insert(TRACEPARENT, of(trace.parent()));
            if let Some(state) = trace.state() {
                headers.insert(TRACESTATE, of(state));
            }
        }
        credential.add_headers(&mut headers);
        let with_query = credential.add_query(url);
        let url = with_query.as_ref().unwrap_or(url);
        let outgoing = Outgoing { method, url, headers, body, section: SECTION };
        exchange(&self.client, outgoing, self.max_answer_bytes, self.max_retry_after).await
    }
}

/// What is kept of an exchange holds none of our secrets; of a success, no body.
fn kept(exchange: Exchange, outcome: &Outcome, redactor: &Redactor) -> Exchange {
    match exchange {
        Exchange::Answered(mut answer) => {
            answer.body = match outcome.is_success() {
                true => Vec::new(),
                false => redactor.clean_answer(answer.body, answer.is_cut),
            };
            Exchange::Answered(answer)
        }
        other @ (Exchange::NotSent(_) | Exchange::Unknown(_)) => other,
    }
}

fn content_type(format: BodyFormat) -> &'static str {
    match format {
        BodyFormat::Json => "application/json",
        BodyFormat::Form => "application/x-www-form-urlencoded",
    }
}

fn server(method: &'static str, url: &reqwest::Url) -> Server {
    let host = url.host_str().unwrap_or_default().to_owned();
    Server { method, host, port: url.port_or_known_default().unwrap_or_default() }
}

/// A method and its name.
fn method(method: config::Method) -> (Method, &'static str) {
    match method {
        config::Method::Post => (Method::POST, "POST"),
        config::Method::Put => (Method::PUT, "PUT"),
        config::Method::Patch => (Method::PATCH, "PATCH"),
    }
}
