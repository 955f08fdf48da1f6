//! The one place where HTTP clients are built and answers are read.
//!
//! # Rules
//! - No redirects: `POST /leads` → 302 → `GET /login` → 200 would look like a delivery.
//! - No hidden retries, and HTTP/1.1: what is posted, and how often, is decided and recorded by us.
//! - The connect timeout lies below the total one, so that "never sent" can be told from "perhaps read".
//! - An answer's body is read up to a cap; a terabyte, or a byte a second, costs no more than that and the timeout.
//! - No text that is made here holds a URL: URLs may hold secrets.
//! - Connections that begin together look their host's name up once: [`names`].

mod names;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use crate::config::Tls;
use crate::reason::{Reason, chain, is_refused_in_handshake, tls_hint};

/// The code of an [`Exchange::Unknown`] for want of an answer in time.
pub const NO_ANSWER: &str = "timeout";

/// What came of one request.
#[derive(Debug)]
pub enum Exchange {
    /// A status line came back.
    Answered(Answer),
    /// The request was provably not sent: refused, DNS, TLS, connect timeout, or cancelled before it was written.
    NotSent(Reason),
    /// It may have been read, and no status came back: timeout, or a connection broken after the request was written.
    Unknown(Reason),
}

/// The parts of an HTTP answer that decide.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// How long the API asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Whether the body says that it is HTML.
    pub is_html: bool,
    /// The body, up to the cap.
    pub body: Vec<u8>,
    /// Whether there may have been more of it.
    pub is_cut: bool,
}

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientSettings<'a> {
    /// How long an exchange may take in all.
    pub timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// After how long an idle connection is closed.
    pub idle_timeout: Duration,
    /// `none`, `env` or a proxy's URL.
    pub proxy: &'a str,
    /// CA and client certificate.
    pub tls: &'a Tls,
    /// Where the settings of this connection are.
    pub section: &'a str,
}

/// Why no client could be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the HTTP client: {0}")]
pub struct ClientError(String);

/// A client with our rules.
///
/// # Errors
/// When the proxy's URL or the files for TLS cannot be used, or the system's root certificates cannot be read.
pub fn client(settings: &ClientSettings<'_>) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("leadpost/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .timeout(settings.timeout)
        .connect_timeout(settings.connect_timeout)
        .pool_idle_timeout(settings.idle_timeout)
        .pool_max_idle_per_host(usize::MAX)
        .dns_resolver(Arc::new(names::Names::default()));
    builder = match settings.proxy {
        "none" => builder.no_proxy(),
        "env" => builder,
        url => builder.proxy(reqwest::Proxy::all(url).map_err(|error| ClientError(describe(error, settings.section)))?),
    };
    let files = settings.tls.read(settings.section).map_err(|problems| ClientError(problems.join("; ")))?;
    if !files.roots.is_empty() {
        let roots = files.roots.iter().map(|root| reqwest::Certificate::from_der(root)).collect::<Result<Vec<_>, _>>();
        builder = builder.tls_certs_only(roots.map_err(|error| ClientError(describe(error, settings.section)))?);
    }
    if let Some(identity) = &files.identity {
        let identity = reqwest::Identity::from_pem(identity.pem().expose().as_bytes());
        builder = builder.identity(identity.map_err(|error| ClientError(describe(error, settings.section)))?);
    }
    builder.build().map_err(|error| ClientError(describe(error, settings.section)))
}

/// One request to be sent.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: Method,
    /// Where to.
    pub url: &'a reqwest::Url,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Where the settings of this connection are.
    pub section: &'static str,
}

/// Sends a request and reads the answer up to `max_answer_bytes`.
///
/// Never an error: what went wrong is what the exchange came to.
pub async fn exchange(
    client: &reqwest::Client,
    outgoing: Outgoing<'_>,
    max_answer_bytes: usize,
    max_retry_after: Duration,
) -> Exchange {
    let section = outgoing.section;
    let mut request = reqwest::Request::new(outgoing.method, outgoing.url.clone());
    *request.headers_mut() = outgoing.headers;
    *request.body_mut() = Some(outgoing.body.into());
    let mut response = match client.execute(request).await {
        Ok(response) => response,
        Err(error) => return not_answered(error, section),
    };
    let headers = response.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let wait = text(header::RETRY_AFTER)
        .and_then(|value| retry_after(value, text(header::DATE), SystemTime::now(), max_retry_after));
    let is_html =
        text(header::CONTENT_TYPE).is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"));
    let status = response.status().as_u16();

    let mut body = Vec::new();
    // The status has decided by now: a body that breaks off, or never ends, changes nothing.
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = max_answer_bytes.saturating_sub(body.len());
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if body.len() >= max_answer_bytes {
            break;
        }
    }
    let is_cut = body.len() >= max_answer_bytes;
    Exchange::Answered(Answer { status, retry_after: wait, is_html, body, is_cut })
}

/// What is at a URL.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Knock {
    /// The status that it answers with.
    pub status: u16,
    /// By how many seconds its clock is ahead of ours, if it says what time it is; to the second.
    pub ahead_s: Option<f64>,
}

/// Asks what is there, with a method that does nothing (OPTIONS; RFC 9110, section 9.3.7). `section`: where the settings of this connection are.
///
/// # Errors
/// Why there was no answer.
pub async fn knock(client: &reqwest::Client, url: &reqwest::Url, section: &str) -> Result<Knock, Reason> {
    let asked_at = SystemTime::now();
    let response = match client.request(Method::OPTIONS, url.clone()).send().await {
        Ok(response) => response,
        Err(error) => match not_answered(error, section) {
            Exchange::NotSent(reason) | Exchange::Unknown(reason) => return Err(reason),
            Exchange::Answered(_) => unreachable!("there was no answer"),
        },
    };
    let halfway = asked_at + asked_at.elapsed().unwrap_or_default() / 2;
    let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    Ok(Knock { status: response.status().as_u16(), ahead_s: date.and_then(|date| ahead_s(date, halfway)) })
}

/// By how many seconds a clock that shows this date is ahead. Its second had begun, and was not over.
fn ahead_s(date: &str, now: SystemTime) -> Option<f64> {
    let at = httpdate::parse_http_date(date).ok()? + Duration::from_millis(500);
    Some(match at.duration_since(now) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    })
}

/// Tells "provably not sent" from "perhaps read".
fn not_answered(error: reqwest::Error, section: &str) -> Exchange {
    if error.is_connect() {
        let code = if error.is_timeout() { "connect_timeout" } else { "connect_failed" };
        return Exchange::NotSent(Reason::new(code, format!("could not connect: {}", describe(error, section))));
    }
    if is_refused_in_handshake(&error) {
        let text = format!("could not connect: {}", describe(error, section));
        return Exchange::NotSent(Reason::new("connect_failed", text));
    }
    if error.is_builder() {
        return Exchange::NotSent(Reason::new(
            "request_invalid",
            format!("no request could be made: {}", describe(error, section)),
        ));
    }
    if is_of_hyper(&error, hyper::Error::is_canceled) {
        let text = "the connection was closed before the request was written";
        return Exchange::NotSent(Reason::new("closed_before_request", text));
    }
    if error.is_timeout() {
        return Exchange::Unknown(Reason::new(
            NO_ANSWER,
            "no answer within the time limit; the request may have been read",
        ));
    }
    if is_of_hyper(&error, hyper::Error::is_parse) {
        let text = format!(
            "what answered does not speak HTTP; do scheme and port of the URL fit? {}",
            describe(error, section)
        );
        return Exchange::Unknown(Reason::new("not_http", text));
    }
    let text =
        format!("the connection broke before an answer; the request may have been read: {}", describe(error, section));
    Exchange::Unknown(Reason::new("connection_broken", text))
}

/// Whether hyper says this of it. It is "cancelled" when it was given back because nothing of it had been written.
fn is_of_hyper(error: &reqwest::Error, says: fn(&hyper::Error) -> bool) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(says) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error and its causes on one line, without the URL, and what to do about it where that is known.
fn describe(error: reqwest::Error, section: &str) -> String {
    let error = error.without_url();
    let hint = tls_hint(&error, section).map(|hint| format!("; {hint}")).unwrap_or_default();
    chain(&error) + &hint
}

/// Reads `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
///
/// A date is measured from the answer's own `Date` where there is one, so that a wrong clock on either side does no harm.
/// What lies in the past is zero; nothing is longer than `max`; what cannot be read is `None`.
#[must_use]
pub fn retry_after(value: &str, date: Option<&str>, now: SystemTime, max: Duration) -> Option<Duration> {
    let value = value.trim();
    let wait = if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        // More digits than a number holds is simply very long.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let at = httpdate::parse_http_date(value).ok()?;
        let from = date.and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
        at.duration_since(from).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_says_by_how_much_a_clock_is_ahead_to_the_second() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let ahead =
            |shown: u64| ahead_s(&httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(shown)), now);
        assert_eq!(
            [ahead(1_000_000_000), ahead(1_000_000_060), ahead(999_999_400)],
            [Some(0.5), Some(60.5), Some(-599.5)]
        );
        assert_eq!(ahead_s("yesterday", now), None);
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_date() {
        let max = Duration::from_secs(86_400);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let date = |seconds| httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let read = |value: &str, date: Option<&str>| retry_after(value, date, now, max).map(|wait| wait.as_secs());
        assert_eq!(read("120", None), Some(120));
        assert_eq!(read(" 0 ", None), Some(0));
        assert_eq!(read("99999999999999999999999", None), Some(86_400));
        assert_eq!(read(&date(1_000_000_060), None), Some(60));
        assert_eq!(read(&date(999_999_000), None), Some(0), "the past is now");
        assert_eq!(read(&date(1_000_000_060), Some(&date(1_000_000_050))), Some(10), "measured by the answer's clock");
        for unreadable in ["", "-1", "1.5", "soon", "Wed, 99 Foo 2026"] {
            assert_eq!(read(unreadable, None), None, "{unreadable:?}");
        }
    }
}
