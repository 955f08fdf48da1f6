//! Stand-in lead APIs and their token endpoints, with faults on demand: for trials, tests and benchmarks.
//!
//! A sandbox is a real server on a real port, because only real sockets can reset, hang, break off in the middle of an
//! answer or be refused. It keeps a journal of every request that reached it, so that a test can hold what the worker
//! believes against what really arrived.
//!
//! ```text
//!                ┌─ server ── wire ───────────────────────┐
//!   leads, token ┤  exchange ─ plan ─> fault?             │
//!   query, logout┤     │  └─ api ─> squad, kaisa, paya ..  │── journal <── tests, /_sandbox/journal
//!   /_sandbox/* ─┤     └─ control                         │
//!                └────────────────────────────────────────┘
//! ```
//!
//! # Rules
//! - It depends on nothing else of this crate, and nothing but `cli` and tests depends on it.
//! - Several live in one process: no global state.
//! - A request costs the same whether it is the first or the millionth, and nothing is logged per request.
//! - Chance is seeded: the same seed and the same number of requests meet the same faults.
//! - All data in it is made up, hence it may be kept and shown.
//!
//! # What it does not do
//! HTTP/2, client certificates, and the parts of an API that leadpost does not call. A client that leaves while its request is waiting
//! takes the request with it, unless the fault says `after`: a real API would often carry on.
//!
//! # Modules
//! `settings` what can be set; `faults` what can go wrong; `plan` who meets what; `exchange` the way of a request;
//! `api` which API is played, with a file for each; `wire` what only a socket can do; `journal` and `entry` what
//! happened; `control` the HTTP side of it; `server` the port; `tls` how it is encrypted.

mod api;
mod cognito;
mod control;
mod entry;
mod exchange;
mod fault_json;
mod faults;
mod head;
mod journal;
mod kaisa;
mod leads;
mod oauth_toolkit;
mod pace;
mod pages;
mod paya;
mod paya_contacts;
mod paya_fields;
mod paya_login;
mod plan;
mod reply;
mod server;
mod settings;
mod seven_targets;
mod spread;
mod squad;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use entry::{ContentType, Effect, Endpoint, Entry, Key};
pub use faults::{CutAt, Delay, DripFrom, Fault, FaultKind, RetryAfter, StatusAnswer};
pub use journal::{Journal, NotSeen};
pub use pages::{Counts, Pages};
pub use plan::{FaultPlan, Faults, Rate, Rule};
pub use settings::{Duplicates, ErrorShape, Profile, SandboxSettings, TlsFiles, Tuning};

use server::{Port, Shared};

/// A running sandbox. Dropping it ends the listener and all connections.
#[derive(Debug)]
pub struct Sandbox {
    shared: Arc<Shared>,
    port: Port,
}

impl Sandbox {
    /// Listens at once and serves until it is stopped or dropped.
    ///
    /// # Errors
    /// When the address cannot be bound, or the settings make no sense or their files cannot be used ([`io::ErrorKind::InvalidInput`]).
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn start(settings: SandboxSettings) -> io::Result<Self> {
        settings
            .tuning
            .check()
            .and_then(|()| settings.faults.check())
            .map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        let shared = Arc::new(Shared::new(&settings)?);
        let port = Port::open(settings.listen, Arc::clone(&shared))?;
        Ok(Self { shared, port })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// The URL of a path on it, for example `/_sandbox/health`.
    pub fn url(&self, path: &str) -> String {
        let mut addr = self.addr();
        // Listening on all addresses is no address to connect to.
        if addr.ip().is_unspecified() {
            let loopback =
                if addr.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
            addr.set_ip(loopback);
        }
        let scheme = if self.shared.speaks_tls() { "https" } else { "http" };
        format!("{scheme}://{addr}{path}")
    }

    /// The URL that every path is put behind.
    pub fn base_url(&self) -> String {
        self.url("")
    }

    /// The URL at which the played API gives tokens. SquadIQ gives none: what is asked of it there is not found.
    pub fn token_url(&self) -> String {
        self.url(api::token_path(self.shared.tuning().profile).unwrap_or(oauth_toolkit::TOKEN_PATH))
    }

    /// The URL at which the played API takes leads, with a campaign or a version where it needs one.
    pub fn leads_url(&self) -> String {
        self.url(api::leads_path(self.shared.tuning().profile))
    }

    /// The faults to come.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// How many entries of the script no request has met yet.
    pub fn script_left(&self) -> usize {
        self.shared.faults.script_left()
    }

    /// What has arrived.
    pub fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// The settings as of now.
    pub fn tuning(&self) -> Tuning {
        (*self.shared.tuning()).clone()
    }

    /// Changes settings. Requests in work keep those that they began with.
    pub fn tune(&self, change: impl FnOnce(&mut Tuning)) {
        let changed = self.shared.tune(|tuning| {
            let mut tuning = tuning.clone();
            change(&mut tuning);
            Ok::<_, std::convert::Infallible>(tuning)
        });
        match changed {
            Ok(_) => {}
        }
    }

    /// How long tokens live that are issued from now on.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.tune(|tuning| tuning.token_lifetime = lifetime);
    }

    /// The only client that the token endpoint accepts from now on.
    pub fn set_credentials(&self, client_id: &str, client_secret: &str) {
        self.tune(|tuning| {
            tuning.client_id = client_id.to_owned();
            tuning.client_secret = client_secret.to_owned();
        });
    }

    /// The state and substate of leads from now on.
    pub fn set_state(&self, state: &str, sub_state: Option<&str>) {
        self.tune(|tuning| {
            tuning.state = state.to_owned();
            tuning.sub_state = sub_state.map(str::to_owned);
        });
    }

    /// Makes all tokens and sessions worthless, at once. API keys and static tokens are settings: [`tune`](Self::tune)
    /// changes them.
    pub fn revoke_all(&self) {
        self.shared.memory.revoke_all();
    }

    /// Forgets which leads exist: none is a duplicate of an earlier one.
    pub fn forget_leads(&self) {
        self.shared.memory.forget_leads();
    }

    /// Ends the listener and all connections. The port stays taken, and whoever connects is refused.
    ///
    /// # Errors
    /// When the port was lost in between; the sandbox is stopped then.
    pub async fn pause_listening(&self) -> io::Result<()> {
        self.port.pause().await
    }

    /// Listens again on the same port. Does nothing if it is listening.
    ///
    /// # Errors
    /// When the sandbox has been stopped, or the port cannot be listened on.
    pub fn resume_listening(&self) -> io::Result<()> {
        self.port.resume()
    }

    /// Ends the listener and all connections and waits until they are gone. The journal can still be read.
    pub async fn stop(&self) {
        self.port.end().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.port.abandon();
    }
}
