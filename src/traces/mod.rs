//! Traces: where a lead belongs in its producer's trace, and the spans of its way here.
//!
//! ```text
//!   producer's span ──traceparent──> message ──> process LEADS ──┬── accept
//!                                                                ├── POST ──traceparent──> lead API
//!                                                                └── settle
//!                                    ledger ──> process ledger ──┬── claim     (a retry, by whichever worker)
//!                                                                ├── POST …
//! ```
//!
//! # Rules
//! - Two things that do not need each other: what a message brought is handed on to the API whether or not spans are exported, and spans are
//!   exported, if `OTEL_EXPORTER_OTLP_ENDPOINT` says where to, whether or not a message brought something.
//! - Without both, nothing is made, written or sent for it.
//! - All spans of a lead are in one trace: that of its message, else one whose id is made from the lead's. So what is made anew for a retry by
//!   another process belongs together, and nothing has to be remembered for it. What a message brought has to be, and is, with the
//!   settlement that lets its lead wait.
//! - Attributes are ids, codes and numbers of our own: no URL, no message id, nothing of a lead or an answer.

mod context;
mod otlp;
mod spans;

pub use context::{TRACEPARENT, TRACESTATE, TraceContext};
pub use otlp::Traces;
pub use spans::{LeadSpan, RequestSpan, Server};
