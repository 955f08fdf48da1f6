//! A stand-in for a collector: takes spans by OTLP over HTTP, on a socket, as a worker sends them.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;

use super::api::Port;

pub struct Collector {
    pub port: Port,
}

/// A span as it came.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty without one.
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    pub attributes: BTreeMap<String, String>,
    pub state: String,
    /// Nanoseconds.
    pub began: u64,
    pub ended: u64,
    /// Of the process that made it.
    pub resource: BTreeMap<String, String>,
}

impl Collector {
    pub async fn open() -> Self {
        // An empty answer is a whole one: nothing was refused.
        Self { port: Port::open(|_| (200, String::new())).await }
    }

    /// What makes a worker export to it: at its end, as it has no reason to before.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("OTEL_EXPORTER_OTLP_ENDPOINT", self.port.url("")), ("OTEL_BSP_SCHEDULE_DELAY", "60000".to_owned())]
    }

    /// All spans so far, in the order in which they began.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for request in self.port.heard("/") {
            assert_eq!((request.method.as_str(), request.path()), ("POST", "/v1/traces"));
            assert_eq!(request.header("content-type"), "application/x-protobuf");
            let export = ExportTraceServiceRequest::decode(&request.body[..]).unwrap();
            for of_resource in export.resource_spans {
                let resource = texts(&of_resource.resource.unwrap().attributes);
                for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    spans.push(Span {
                        kind: span.kind(),
                        trace: hex(&span.trace_id),
                        id: hex(&span.span_id),
                        parent: hex(&span.parent_span_id),
                        attributes: texts(&span.attributes),
                        state: span.trace_state,
                        began: span.start_time_unix_nano,
                        ended: span.end_time_unix_nano,
                        name: span.name,
                        resource: resource.clone(),
                    });
                }
            }
        }
        spans.sort_by_key(|span| span.began);
        spans
    }

    /// All that came, as text in which anything readable can be found.
    pub fn raw(&self) -> String {
        let whole = |request: &super::api::Heard| request.whole();
        self.port.heard("/").iter().map(whole).collect::<Vec<_>>().join("\n")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    pairs.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}
