//! The admin port: is it alive, can leads flow, and what has been counted.
//!
//! `/livez` speaks about the process alone: restart it when that fails. `/readyz` speaks about its neighbours too, each with what
//! is known of it: restarting helps none of them. Who may read what: [`Access`].

mod access;
mod port;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use access::Access;

use crate::metrics::Metrics;
use crate::worker::Health;

/// What the text of `/metrics` is (OpenMetrics 1.0.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Shown {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    access: Access,
}

/// Serves until told to stop. Comes back with the address in use once it listens.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    listen: SocketAddr,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    access: Access,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Shown { health, metrics, access });
    tokio::spawn(port::serve(listener, router, stop));
    Ok(address)
}

async fn livez(State(shown): State<Shown>) -> impl IntoResponse {
    if shown.health.is_live() {
        (StatusCode::OK, "live\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the intake loop does not turn\n")
    }
}

async fn readyz(State(shown): State<Shown>, headers: HeaderMap) -> Response {
    let report = shown.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match shown.access.check(&headers) {
        Ok(()) => (status, Json(report)).into_response(),
        Err(_) => (status, Json(serde_json::json!({ "ready": report.ready }))).into_response(),
    }
}

async fn scrape(State(shown): State<Shown>, headers: HeaderMap) -> Response {
    if let Err((status, text)) = shown.access.check(&headers) {
        return (status, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response();
    }
    // Some gauges are read rather than kept.
    drop(shown.health.report());
    ([(header::CONTENT_TYPE, OPENMETRICS)], shown.metrics.render()).into_response()
}
