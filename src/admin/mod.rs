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

use crate::metrics::{Format, Metrics};
use crate::worker::Health;

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
    shown.health.measure();
    let accepted: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = preferred(&accepted.join(","));
    let head = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    (head, shown.metrics.render(format)).into_response()
}

/// The format that a scraper likes best. One that does not ask for OpenMetrics gets Prometheus' own, which all of them read.
fn preferred(accept: &str) -> Format {
    let quality = |wanted: &str| {
        let ranges = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next()?;
            let parameters: Vec<(&str, &str)> = parts.filter_map(|parameter| parameter.split_once('=')).collect();
            let of = |name: &str| {
                parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
            };
            // Of versions that are no longer written.
            let is_known = of("version").is_none_or(|version| ["1.0.0", "0.0.4"].contains(&version.trim_matches('"')));
            let quality = of("q").map_or(Some(1.0), |q| q.parse::<f64>().ok())?;
            (kind.eq_ignore_ascii_case(wanted) && is_known).then_some(quality)
        });
        ranges.fold(0.0, f64::max)
    };
    let openmetrics = quality("application/openmetrics-text");
    if openmetrics > 0.0 && openmetrics >= quality("text/plain") { Format::OpenMetrics } else { Format::Prometheus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_what_it_likes_best_and_one_that_does_not_say_what_all_can_read() {
        // As Prometheus 2.50 and 3.5 ask.
        let of_2 = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let of_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [
            of_2,
            of_3,
            "application/openmetrics-text",
            "text/plain;q=0.5, Application/OpenMetrics-Text; version=1.0.0",
        ] {
            assert_eq!(preferred(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/openmetrics-text;q=0.2,text/plain;version=0.0.4;q=0.9",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=nonsense",
            "application/json;q=1",
        ] {
            assert_eq!(preferred(accept), Format::Prometheus, "{accept}");
        }
    }
}
