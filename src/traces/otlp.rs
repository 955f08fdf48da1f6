//! Where spans go: to a collector, by OTLP over HTTP, if the environment says so.
//!
//! The variables are OpenTelemetry's own, as operators have them set for all their services alike. What this program decides by them is here;
//! headers, time limits, batches, sampling and attributes of the resource are read by the SDK.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

use super::spans::Ids;
use crate::config::Tls;
use crate::http::{self, ClientSettings, Exchange, Outgoing};
use crate::reason::Reason;

/// Either says where to; the first is for traces alone.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const COMPRESSIONS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"];
const TIMEOUTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];

const PROTOCOL: &str = "http/protobuf";

/// What the specification has for an export.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer to an export is short, or not one.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Spans, if they are exported. Clones share the exporter.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Exporting>>);

#[derive(Debug)]
struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// What the environment asks for; `worker` names this process among its kind. To be called in the runtime that will send.
    ///
    /// # Errors
    /// What of it cannot be done, with what to change.
    pub fn of_environment(env: &BTreeMap<String, String>, worker: &str) -> Result<Self, String> {
        let first = |names: &[&'static str]| {
            let set =
                |name: &&'static str| Some((*name, env.get(*name)?.trim())).filter(|(_, value)| !value.is_empty());
            names.iter().find_map(set)
        };
        let is = |name: &'static str, value: &str| first(&[name]).is_some_and(|(_, is)| is.eq_ignore_ascii_case(value));
        let Some((endpoint, url)) = first(&ENDPOINTS) else { return Ok(Self::default()) };
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(Self::default());
        }
        if let Some((name, value)) = first(&["OTEL_TRACES_EXPORTER"]).filter(|(_, value)| *value != "otlp") {
            return Err(format!("{name} is {value:?}; spans can be sent by \"otlp\", or \"none\" of them"));
        }
        if let Some((name, value)) = first(&PROTOCOLS).filter(|(_, value)| *value != PROTOCOL) {
            return Err(format!(
                "{name} is {value:?}; leadpost speaks {PROTOCOL:?} alone, to which collectors listen at port 4318"
            ));
        }
        if let Some((name, value)) = first(&COMPRESSIONS).filter(|(_, value)| *value != "none") {
            return Err(format!("{name} is {value:?}; leadpost sends spans as they are: \"none\""));
        }
        let is_url =
            url.parse::<reqwest::Url>().is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !is_url {
            // It may hold a secret.
            return Err(format!("{endpoint} is no URL such as http://collector:4318"));
        }
        let timeout = match first(&TIMEOUTS) {
            None => TIMEOUT,
            Some((name, value)) => match value.parse() {
                Ok(ms) if ms > 0 => Duration::from_millis(ms),
                _ => return Err(format!("{name} is {value:?}, and no number of milliseconds")),
            },
        };
        Self::to_collector(timeout, worker)
    }

    fn to_collector(timeout: Duration, worker: &str) -> Result<Self, String> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(Collector::new(timeout)?)
            .build()
            // It may repeat the URL.
            .map_err(|_| format!("{} or {} cannot be used as it is", ENDPOINTS[0], ENDPOINTS[1]))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_id_generator(Ids::default())
            .with_resource(resource(worker))
            .build();
        let tracer = provider.tracer("leadpost");
        Ok(Self::of(provider, tracer))
    }

    pub(super) fn of(provider: SdkTracerProvider, tracer: SdkTracer) -> Self {
        Self(Some(Arc::new(Exporting { provider, tracer })))
    }

    /// Whether spans are exported.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn tracer(&self) -> Option<&SdkTracer> {
        self.0.as_ref().map(|exporting| &exporting.tracer)
    }

    /// Exports what there is, and nothing after that. Gives up after this time.
    pub async fn finish(&self, within: Duration) {
        let Some(exporting) = self.0.clone() else { return };
        // It waits for the thread that exports, and blocks.
        let finished = tokio::task::spawn_blocking(move || exporting.provider.shutdown_with_timeout(within)).await;
        if !matches!(finished, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be exported in time");
        }
    }

    /// Leaves unsent what there is, at the end of a process that has no time: to drop the exporter would be to wait for it.
    pub fn abandon(&self) {
        std::mem::forget(self.clone());
    }
}

/// What is known of this process. What the environment says of it wins.
fn resource(worker: &str) -> Resource {
    let of_environment = Resource::builder().build();
    let is_missing = |name: &'static str| {
        let value = of_environment.get(&Key::from_static_str(name)).map(|value| value.to_string());
        // What the SDK says for want of a name.
        value.is_none_or(|value| value.starts_with("unknown_service"))
    };
    let ours =
        [("service.name", "leadpost"), ("service.version", env!("CARGO_PKG_VERSION")), ("service.instance.id", worker)];
    let missing = ours.into_iter().filter(|(name, _)| is_missing(name));
    Resource::builder().with_attributes(missing.map(|(name, value)| KeyValue::new(name, value.to_owned()))).build()
}

/// What says where spans go, and how: no section of ours.
const SECTION: &str = "OTEL_EXPORTER_OTLP";

/// The collector, by our own HTTP client: the SDK's thread waits while the runtime sends.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    runtime: Handle,
    /// Whether the last export failed, so that only changes are told.
    failing: Arc<AtomicBool>,
}

impl Collector {
    fn new(timeout: Duration) -> Result<Self, String> {
        let client = http::client(&ClientSettings {
            timeout,
            connect_timeout: timeout / 2,
            idle_timeout: Duration::from_secs(15),
            proxy: "env",
            tls: &Tls::default(),
            section: SECTION,
        });
        let runtime = Handle::try_current().map_err(|error| error.to_string())?;
        Ok(Self { client: client.map_err(|error| error.to_string())?, runtime, failing: Arc::default() })
    }

    fn tell(&self, failure: Option<&str>) {
        let failed = self.failing.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(failure) if !failed => {
                tracing::warn!(
                    cause = failure,
                    "spans cannot be exported; those that cannot wait are lost until they can"
                )
            }
            None if failed => tracing::info!("spans are exported again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let url: reqwest::Url = head.uri.to_string().parse()?;
        let client = self.client.clone();
        let sending = self.runtime.spawn(async move {
            let outgoing = Outgoing { method: head.method, url: &url, headers: head.headers, body, section: SECTION };
            http::exchange(&client, outgoing, MAX_ANSWER_BYTES, Duration::MAX).await
        });
        let answer = match sending.await? {
            Exchange::Answered(answer) => answer,
            Exchange::NotSent(Reason { text, .. }) | Exchange::Unknown(Reason { text, .. }) => {
                self.tell(Some(&text));
                return Err(text.into());
            }
        };
        let is_success = (200..300).contains(&answer.status);
        self.tell(if is_success { None } else { Some("the collector answers with an error") });
        let mut response = Response::builder().status(answer.status);
        if let Some(wait) = answer.retry_after {
            response = response.header(::http::header::RETRY_AFTER, wait.as_secs());
        }
        Ok(response.body(answer.body.into())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Traces, String> {
        let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Traces::of_environment(&env, "worker")
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");

    #[test]
    fn without_an_endpoint_or_when_told_so_nothing_is_exported() {
        for off in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_TRACES_EXPORTER", "otlp")],
            &[("OTEL_TRACES_EXPORTER", "console")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
        ] {
            assert!(read(off).is_ok_and(|traces| !traces.is_on()), "{off:?}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said_with_the_variable_that_asks_for_it() {
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
        ] {
            let problem = read(&[ENDPOINT, (name, value)]).expect_err(value);
            assert!(problem.starts_with(name), "{problem}");
        }
        let secret = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://me:hunter2@collector")]).expect_err("no HTTP");
        assert!(!secret.contains("hunter2"), "{secret}");
    }
}
