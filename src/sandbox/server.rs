//! The port: accepts connections, serves HTTP/1.1 on each, and ends them all at once when told to.
//!
//! ```text
//!   open ──pause──> held (bound, not listening: connections are refused) ──resume──> open
//!     └──────────────────────── stop ───────────────┘
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::Memory;
use super::exchange;
use super::journal::Journal;
use super::pace::{Minute, Pace};
use super::plan::Faults;
use super::settings::{SandboxSettings, Tuning};
use super::tls;
use super::wire::{Line, Stream, Wire};

/// Connections that the kernel holds for us while we are busy: more than any test or trial opens at once.
const BACKLOG: u32 = 4096;

/// What all requests share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) started: Instant,
    pub(super) seed: u64,
    pub(super) memory: Memory,
    pub(super) faults: Faults,
    pub(super) journal: Arc<Journal>,
    pub(super) pace: Mutex<Pace>,
    pub(super) minute: Mutex<Minute>,
    /// Where the port speaks TLS.
    tls: Option<Arc<ServerConfig>>,
    tuning: RwLock<Arc<Tuning>>,
}

impl Shared {
    /// # Errors
    /// When the certificate or its key cannot be used.
    pub(super) fn new(settings: &SandboxSettings) -> io::Result<Self> {
        Ok(Self {
            started: Instant::now(),
            seed: settings.seed,
            memory: Memory::default(),
            faults: Faults::new(settings.seed, &settings.faults),
            journal: Arc::new(Journal::new(settings.keep_bodies, settings.journal_limit)),
            pace: Mutex::default(),
            minute: Mutex::default(),
            tls: settings.tls.as_ref().map(tls::config).transpose()?,
            tuning: RwLock::new(Arc::new(settings.tuning.clone())),
        })
    }

    pub(super) fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The settings as of now. A request keeps those that it began with.
    pub(super) fn tuning(&self) -> Arc<Tuning> {
        Arc::clone(&self.tuning.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the settings, unless `change` fails.
    pub(super) fn tune<E>(&self, change: impl FnOnce(&Tuning) -> Result<Tuning, E>) -> Result<Arc<Tuning>, E> {
        let mut tuning = self.tuning.write().unwrap_or_else(PoisonError::into_inner);
        *tuning = Arc::new(change(&tuning)?);
        Ok(Arc::clone(&tuning))
    }
}

/// The port and everything that runs behind it.
#[derive(Debug)]
pub(super) struct Port {
    addr: SocketAddr,
    shared: Arc<Shared>,
    state: Mutex<State>,
    tasks: TaskTracker,
}

#[derive(Debug)]
enum State {
    /// Cancelling the token ends the listener and every connection.
    Open(CancellationToken),
    /// Nobody else gets the port meanwhile.
    Held(TcpSocket),
    Closed,
}

impl Port {
    /// Listens. Port 0 takes a free one.
    pub(super) fn open(addr: SocketAddr, shared: Arc<Shared>) -> io::Result<Self> {
        let listener = bind(addr)?.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        let port = Self { addr, shared, state: Mutex::new(State::Closed), tasks: TaskTracker::new() };
        port.accept_on(listener);
        Ok(port)
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends the listener and all connections, and keeps the port: whoever connects is refused.
    pub(super) async fn pause(&self) -> io::Result<()> {
        match self.set(State::Closed) {
            State::Open(stop) => stop.cancel(),
            held @ State::Held(_) => {
                self.set(held);
                return Ok(());
            }
            State::Closed => return Err(stopped()),
        }
        self.end().await;
        self.set(State::Held(bind(self.addr)?));
        Ok(())
    }

    /// Listens again.
    pub(super) fn resume(&self) -> io::Result<()> {
        match self.set(State::Closed) {
            State::Held(socket) => self.accept_on(socket.listen(BACKLOG)?),
            open @ State::Open(_) => drop(self.set(open)),
            State::Closed => return Err(stopped()),
        }
        Ok(())
    }

    /// Ends the listener and all connections, and waits until they are gone.
    pub(super) async fn end(&self) {
        self.abandon();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends the listener and all connections, without waiting.
    pub(super) fn abandon(&self) {
        if let State::Open(stop) = self.set(State::Closed) {
            stop.cancel();
        }
    }

    fn set(&self, state: State) -> State {
        std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), state)
    }

    fn accept_on(&self, listener: TcpListener) {
        let stop = CancellationToken::new();
        self.tasks.reopen();
        self.tasks.spawn(accept(listener, Arc::clone(&self.shared), self.tasks.clone(), stop.clone()));
        self.set(State::Open(stop));
    }
}

fn stopped() -> io::Error {
    io::Error::other("the sandbox has been stopped")
}

/// A bound socket. Address reuse lets a port be taken again while connections of its past are in TIME_WAIT.
fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let serve = serve(stream, Arc::clone(&shared));
                let stop = stop.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = serve => {}
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: another try at once would only burn the core.
                tracing::warn!(%error, "sandbox could not accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Who has not greeted by then holds a connection for nothing.
const HANDSHAKE: Duration = Duration::from_secs(10);

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "sandbox connection ended before it began");
        return;
    }
    let stream = match &shared.tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let handshake = TlsAcceptor::from(Arc::clone(tls)).accept(stream);
            match tokio::time::timeout(HANDSHAKE, handshake).await {
                Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "sandbox connection ended in the TLS handshake");
                    return;
                }
                Err(_) => {
                    tracing::debug!("sandbox connection did not get through the TLS handshake in time");
                    return;
                }
            }
        }
    };
    let line = Arc::new(Line::default());
    let wire = TokioIo::new(Wire::new(stream, Arc::clone(&line)));
    let service = service_fn(move |request| exchange::answer(Arc::clone(&shared), Arc::clone(&line), request));
    if let Err(error) = http1::Builder::new().serve_connection(wire, service).await {
        // Clients leave and faults strike: what became of the request is in the journal.
        tracing::trace!(%error, "sandbox connection ended early");
    }
}
