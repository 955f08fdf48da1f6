//! The port itself: what it takes from strangers.
//!
//! One request for each connection, with a head of a few KiB, and ten seconds for all of it, the answer included. When there are too many
//! connections at a time, the oldest goes: so whoever holds them open keeps no probe out.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// The longest head of a request; more is answered 431. hyper takes no less.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// The most headers in one.
const MAX_HEADERS: usize = 64;

/// How long a connection may take, from its begin to its end.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// How long to wait when no connection can be taken, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until told to stop; those who are being answered then have their time.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                }
                connections.push_back(tokio::spawn(converse(stream, router.clone())).abort_handle());
            }
            Err(error) => {
                tracing::debug!(error = %error, "the admin port could not take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(false);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // What strangers get wrong concerns nobody.
    drop(tokio::time::timeout(PATIENCE, serving).await);
}
