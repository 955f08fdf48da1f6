//! The spans of a lead's way. While none are exported, each of these is empty, and all it does is nothing.

use std::cell::Cell;
use std::str::FromStr as _;
use std::time::SystemTime;

use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer};
use tokio::time::Instant;
use uuid::Uuid;

use super::{TraceContext, Traces};

/// A span of a lead, on whose behalf others are made.
#[derive(Debug)]
struct Open {
    tracer: SdkTracer,
    /// With the span in it, which ends with the last that holds it.
    context: Context,
}

/// The span of a lead's way under one lease, or of a message that did not become one.
#[derive(Debug, Default)]
#[must_use = "it ends when it is dropped"]
pub struct LeadSpan(Option<Box<Open>>);

/// The span of a request to the lead API.
#[derive(Debug, Default)]
#[must_use = "it ends when it is dropped"]
pub struct RequestSpan(Option<Box<Open>>);

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The method of requests there.
    pub method: &'static str,
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Traces {
    /// Begins the span of a message from this queue, with this lead in it.
    pub fn of_message(&self, queue: &str, lead: Uuid, brought: Option<&TraceContext>, began: Instant) -> LeadSpan {
        self.begin(lead, brought, || {
            let attributes = vec![
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.destination.name", queue.to_owned()),
            ];
            (format!("process {queue}").into(), SpanKind::Consumer, attributes, began)
        })
    }

    /// Begins the span of a lead that was due in the ledger, after so many attempts.
    pub fn of_due(&self, lead: Uuid, brought: Option<&TraceContext>, attempts: u32, began: Instant) -> LeadSpan {
        self.begin(lead, brought, || {
            let attributes = vec![KeyValue::new("lead.attempts_before", i64::from(attempts))];
            ("process ledger".into(), SpanKind::Consumer, attributes, began)
        })
    }

    fn begin(
        &self,
        lead: Uuid,
        brought: Option<&TraceContext>,
        describe: impl FnOnce() -> (std::borrow::Cow<'static, str>, SpanKind, Vec<KeyValue>, Instant),
    ) -> LeadSpan {
        let Some(tracer) = self.tracer() else { return LeadSpan::default() };
        let (name, kind, mut attributes, began) = describe();
        attributes.push(KeyValue::new("lead.id", lead.to_string()));
        let builder = SpanBuilder {
            start_time: Some(at(began)),
            ..SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes)
        };
        let parent = brought
            .and_then(remote)
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let span = with_trace_id(trace_id(lead), || tracer.build_with_context(builder, &parent));
        LeadSpan(Some(Box::new(Open { tracer: tracer.clone(), context: parent.with_span(span) })))
    }
}

impl LeadSpan {
    /// Adds a part of the way, which has ended.
    pub fn part(&self, name: &'static str, began: Instant, ended: Instant) {
        let Some(Open { tracer, context }) = self.0.as_deref() else { return };
        let builder = SpanBuilder { start_time: Some(at(began)), ..SpanBuilder::from_name(name) };
        let span = context.with_span(tracer.build_with_context(builder, context));
        span.span().end_with_timestamp(at(ended));
    }

    /// Begins a request to the lead API on behalf of the lead; it is the `resend`th of those that followed upon a refused token.
    pub fn request(&self, server: &Server, resend: u32) -> RequestSpan {
        let Some(Open { tracer, context }) = self.0.as_deref() else { return RequestSpan::default() };
        let mut attributes = vec![
            KeyValue::new("http.request.method", server.method),
            KeyValue::new("server.address", server.host.clone()),
            KeyValue::new("server.port", i64::from(server.port)),
        ];
        if resend > 0 {
            attributes.push(KeyValue::new("http.request.resend_count", i64::from(resend)));
        }
        let builder = SpanBuilder::from_name(server.method).with_kind(SpanKind::Client).with_attributes(attributes);
        let span = tracer.build_with_context(builder, context);
        RequestSpan(Some(Box::new(Open { tracer: tracer.clone(), context: context.with_span(span) })))
    }

    /// Says what became of it: its state, or its fate, and why.
    pub fn end(self, state: &'static str, code: Option<&str>, is_bad: bool) {
        let Some(Open { context, .. }) = self.0.as_deref() else { return };
        let span = context.span();
        span.set_attribute(KeyValue::new("lead.state", state));
        say_why(context, code, is_bad);
        span.end();
    }
}

impl RequestSpan {
    /// What the request has to carry, so that spans made by the API are in the same trace.
    pub fn context(&self) -> Option<TraceContext> {
        let context = self.0.as_ref()?.context.span().span_context().clone();
        let sampled = u8::from(context.is_sampled());
        let parent = format!("00-{}-{}-{sampled:02x}", context.trace_id(), context.span_id());
        TraceContext::read(parent.as_bytes(), Some(context.trace_state().header().as_bytes()))
    }

    /// Says what came of it: the status of the answer, the outcome, and why.
    pub fn end(self, status: Option<u16>, outcome: &'static str, code: Option<&str>) {
        let Some(Open { context, .. }) = self.0.as_deref() else { return };
        let span = context.span();
        if let Some(status) = status {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        span.set_attribute(KeyValue::new("lead.outcome", outcome));
        say_why(context, code, status.is_none_or(|status| status >= 400));
        span.end();
    }
}

fn say_why(context: &Context, code: Option<&str>, is_bad: bool) {
    let span = context.span();
    if let Some(code) = code {
        let name = if is_bad { "error.type" } else { "lead.code" };
        span.set_attribute(KeyValue::new(name, code.to_owned()));
    }
    if is_bad {
        span.set_status(Status::error(""));
    }
}

/// The wall clock's time of a moment.
fn at(moment: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(moment.elapsed()).unwrap_or(now)
}

/// The span that a message names, as the SDK has it.
fn remote(brought: &TraceContext) -> Option<SpanContext> {
    let mut parts = brought.parent().split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::default().with_sampled(parts.next()? == "01");
    let state = brought.state().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
    Some(SpanContext::new(trace, span, flags, true, state))
}

/// The trace of a lead whose message named none: the same whenever and wherever it is asked for. A hash, as samplers go by the latter half of
/// this id, and ids of leads may begin with the time or end with a host.
fn trace_id(lead: Uuid) -> TraceId {
    let hash = Uuid::new_v5(&lead, b"trace").into_bytes();
    let (first, last) = hash.split_at(8);
    let mut id = [0; 16];
    // The half with the two bits that every UUID has alike comes first.
    id[..8].copy_from_slice(last);
    id[8..].copy_from_slice(first);
    TraceId::from_bytes(id)
}

thread_local! {
    /// The id of the next trace that begins on this thread.
    static NEXT: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Builds a span; if a trace begins with it, under this id. The SDK asks its generator of ids while it builds, on the same thread.
fn with_trace_id<T>(id: TraceId, build: impl FnOnce() -> T) -> T {
    NEXT.set(Some(id));
    let built = build();
    NEXT.set(None);
    built
}

/// Random ids, but for traces whose id is known.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT.take().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;

    const PARENT: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traces(sampler: Sampler) -> Traces {
        let provider = SdkTracerProvider::builder().with_id_generator(Ids::default()).with_sampler(sampler).build();
        let tracer = provider.tracer("leadpost");
        Traces::of(provider, tracer)
    }

    fn server() -> Server {
        Server { method: "POST", host: "api.example".to_owned(), port: 443 }
    }

    fn sent(span: &LeadSpan) -> String {
        span.request(&server(), 0).context().expect("it is made").to_string()
    }

    #[test]
    fn the_api_is_told_the_trace_of_the_message_and_a_span_of_ours() {
        let traces = traces(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)));
        let brought = TraceContext::read(PARENT, Some(b"a=b")).expect("well-formed");
        let span = traces.of_message("leads", Uuid::new_v4(), Some(&brought), Instant::now());
        let (first, second) = (sent(&span), sent(&span));
        for sent in [&first, &second] {
            assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent.ends_with("-01 a=b"), "{sent}");
            assert!(!sent.contains("b7ad6b7169203331"), "not the producer's span");
        }
        assert_ne!(first, second, "each request is a span of its own");
        let unsampled = TraceContext::read(&[&PARENT[..53], b"00"].concat(), None).expect("well-formed");
        let span = traces.of_message("leads", Uuid::new_v4(), Some(&unsampled), Instant::now());
        assert!(sent(&span).ends_with("-00"), "what the producer does not record is not recorded");
    }

    #[test]
    fn a_lead_without_a_context_has_one_trace_whoever_makes_its_spans_and_a_sampler_decides_about_it_once() {
        let (one, other) = (traces(Sampler::TraceIdRatioBased(0.5)), traces(Sampler::TraceIdRatioBased(0.5)));
        let mut sampled = 0;
        for n in 0..400_u64 {
            // As those are whose first half is the time.
            let lead = Uuid::from_u64_pair(0x0196_f0a2_7c1d_7d70, n);
            let begun = one.of_message("leads", lead, None, Instant::now());
            let again = other.of_due(lead, None, 1, Instant::now());
            let (begun, again) = (sent(&begun), sent(&again));
            let of = |sent: &str, place| sent.split('-').nth(place).map(str::to_owned);
            assert_eq!(of(&begun, 1), of(&again, 1), "one trace");
            assert_eq!(of(&begun, 3), of(&again, 3), "one decision");
            sampled += usize::from(begun.ends_with("-01"));
        }
        assert!((140..=260).contains(&sampled), "{sampled} of 400");
    }

    #[test]
    fn without_an_exporter_spans_are_empty() {
        let traces = Traces::default();
        let span =
            traces.of_message("leads", Uuid::new_v4(), TraceContext::read(PARENT, None).as_ref(), Instant::now());
        assert!(span.0.is_none());
        assert!(span.request(&server(), 0).context().is_none());
        span.end("delivered", None, false);
    }
}
