//! The admin port: is it alive, can leads flow, and what has been counted.
//!
//! `/livez` speaks about the process alone: restart it when that fails. `/readyz` speaks about its neighbours too, each with what
//! is known of it: restarting helps none of them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::worker::Health;

/// What the text of `/metrics` is (OpenMetrics 1.0.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Shown {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// Serves until told to stop. Comes back with the address in use once it listens.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    listen: SocketAddr,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Shown { health, metrics });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!(error = %error, "the admin port has failed");
        }
    });
    Ok(address)
}

async fn livez(State(shown): State<Shown>) -> impl IntoResponse {
    if shown.health.is_live() {
        (StatusCode::OK, "live\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the intake loop does not turn\n")
    }
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let report = shown.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}

async fn scrape(State(shown): State<Shown>) -> impl IntoResponse {
    // Some gauges are read rather than kept.
    drop(shown.health.report());
    ([(header::CONTENT_TYPE, OPENMETRICS)], shown.metrics.render())
}
