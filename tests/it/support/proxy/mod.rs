//! A TCP proxy between the worker and a neighbour that does to the connections what networks do, when it is told to.
//!
//! # Rules
//! - What it draws, it draws from its seed, for each connection by its number and for each direction: the same connections in the
//!   same order meet the same faults at the same bytes. Only [`Fault::Delay`] draws for each piece as it comes.
//! - A stream that has lost bytes is never mended: when the fault is lifted, its connection is reset.
//! - It notes what it did, so that a test can tell that the fault has struck.

mod line;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use leadpost::config::Secret;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{DEADLINE, World};
use line::Line;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the server.
    Up,
    /// Towards the worker.
    Down,
}

/// What is done to the bytes that go one way. The receiver is the end that they go to.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Each piece comes so much later, and up to `jitter` more.
    Delay { by: Duration, jitter: Duration },
    /// So many bytes a second pass.
    Bandwidth(u64),
    /// So many bytes more pass, exactly; then the connection ends.
    CutAfter(u64),
    /// As [`Fault::CutAfter`], the number drawn for each connection.
    CutWithin(Range<u64>),
    /// The receiver sees the end of the stream, and what is sent after it is swallowed; the other direction goes on.
    HalfClose,
    /// The receiver sees a RST, at once, or on a new connection when the first bytes come either way; the other end sees that the
    /// connection has ended.
    Reset,
    /// All is swallowed, and the connection stays open.
    BlackHole,
    /// Nothing is read, so that the sender's buffers fill.
    Stall,
    /// When these bytes have been seen, one after the other, the connection ends before the last of them have passed.
    CutBefore(Vec<Vec<u8>>),
    /// As [`Fault::CutBefore`], but the last of them and what follows it are kept, and pass when the fault is lifted.
    HoldBefore(Vec<Vec<u8>>),
    /// When these bytes have been seen, one after the other, all of them pass, and the other direction is swallowed; when there is
    /// something to swallow, so that the receiver has surely done what it was told, the connection ends.
    LoseAnswer(Vec<Vec<u8>>),
    /// As [`Fault::LoseAnswer`], but the connection stays open, and nothing comes back on it any more.
    KeepAnswer(Vec<Vec<u8>>),
    /// When these bytes have been seen, one after the other, the second ones are slipped in behind them, and all goes on.
    SlipIn(Vec<Vec<u8>>, Vec<u8>),
}

impl Fault {
    pub fn delay(by: Duration) -> Self {
        Self::Delay { by, jitter: Duration::ZERO }
    }

    pub fn cut_before(seen: &[&str]) -> Self {
        Self::CutBefore(bytes(seen))
    }

    pub fn hold_before(seen: &[&str]) -> Self {
        Self::HoldBefore(bytes(seen))
    }

    pub fn lose_answer(to: &[&str]) -> Self {
        Self::LoseAnswer(bytes(to))
    }

    pub fn keep_answer(to: &[&str]) -> Self {
        Self::KeepAnswer(bytes(to))
    }

    pub fn slip_in(after: &[u8], bytes: Vec<u8>) -> Self {
        Self::SlipIn(vec![after.to_vec()], bytes)
    }
}

fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What asks Postgres to carry out the statement whose values came before it (Execute, of the unnamed portal and without a limit of rows).
pub const EXECUTE: &str = "E\0\0\0\t\0\0\0\0\0";

/// Which connections a fault may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those that are open, and new ones.
    All,
    /// Those that are open.
    Open,
    /// New ones.
    New,
}

/// A fault that is in force.
#[derive(Debug)]
struct Armed {
    fault: Fault,
    reach: Reach,
    /// The number of the first connection that is new.
    first_new: u64,
    /// How many connections more it may strike.
    left: AtomicU64,
}

impl Armed {
    fn reaches(&self, connection: u64) -> bool {
        match self.reach {
            Reach::All => true,
            Reach::Open => connection < self.first_new,
            Reach::New => connection >= self.first_new,
        }
    }

    /// Uses it up by one connection. `false`: it is used up already.
    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok()
    }
}

/// What all connections have to obey.
#[derive(Clone, Debug, Default)]
struct Orders {
    up: Option<Arc<Armed>>,
    down: Option<Arc<Armed>>,
    /// New connections are accepted, and that is all.
    silent: bool,
    /// How often all connections were cut.
    cuts: u64,
}

impl Orders {
    fn of(&self, direction: Direction) -> Option<&Arc<Armed>> {
        match direction {
            Direction::Up => self.up.as_ref(),
            Direction::Down => self.down.as_ref(),
        }
    }
}

/// What a proxy has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Connections accepted.
    pub connections: u64,
    /// Connections to which a fault was done, once for each fault.
    pub struck: u64,
    /// Connections that the proxy ended, or met with silence.
    pub cut: u64,
    /// Connections for which the server could not be reached.
    pub unreachable: u64,
    /// Bytes that were passed on towards the server.
    pub up: u64,
    /// Bytes that were passed on towards the worker.
    pub down: u64,
    /// Bytes that were swallowed, in either direction.
    pub swallowed: u64,
}

#[derive(Debug, Default)]
struct Book(Mutex<Notes>);

impl Book {
    fn note(&self, note: impl FnOnce(&mut Notes)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A listener that can be closed and opened again; `None`: closed.
type Door = Arc<Mutex<Option<TcpListener>>>;

pub struct Proxy {
    address: SocketAddr,
    /// Bound and never listening: keeps the port ours while the door is closed.
    _reserved: TcpSocket,
    door: Door,
    orders: watch::Sender<Orders>,
    book: Arc<Book>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// A proxy before this address, without any fault yet.
    pub async fn to(target: impl ToString, seed: u64) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let reserved = bind(any);
        let address = reserved.local_addr().unwrap();
        let door: Door = Arc::new(Mutex::new(Some(listen(address))));
        let (orders, ordered) = watch::channel(Orders::default());
        let book = Arc::new(Book::default());
        let serving = tokio::spawn(serve(Arc::clone(&door), target.to_string(), seed, ordered, Arc::clone(&book)));
        Self { address, _reserved: reserved, door, orders, book, serving }
    }

    /// A proxy before the server that this URL names.
    pub async fn before(url: &str, seed: u64) -> Self {
        let url = url::Url::parse(url).unwrap();
        let port = url.port_or_known_default().unwrap_or(match url.scheme() {
            "amqp" => 5672,
            "amqps" => 5671,
            _ => 5432,
        });
        Self::to(format!("{}:{port}", url.host_str().unwrap()), seed).await
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// This URL, through the proxy.
    pub fn url(&self, original: &str) -> String {
        let mut url = url::Url::parse(original).unwrap();
        url.set_host(Some(&self.address.ip().to_string())).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }

    /// Puts a fault in force for one direction, in place of the former, on open connections and new ones, until it is lifted.
    pub fn set(&self, direction: Direction, fault: Fault) {
        self.arm(direction, fault, Reach::All, u64::MAX);
    }

    /// As [`Proxy::set`], only on open connections, or only on new ones.
    pub fn set_on(&self, reach: Reach, direction: Direction, fault: Fault) {
        self.arm(direction, fault, reach, u64::MAX);
    }

    /// As [`Proxy::set`], on the next so many connections that it can strike.
    pub fn set_times(&self, direction: Direction, fault: Fault, times: u64) {
        self.arm(direction, fault, Reach::All, times);
    }

    fn arm(&self, direction: Direction, fault: Fault, reach: Reach, times: u64) {
        let armed = Armed { fault, reach, first_new: self.notes().connections, left: AtomicU64::new(times) };
        self.orders.send_modify(|orders| match direction {
            Direction::Up => orders.up = Some(Arc::new(armed)),
            Direction::Down => orders.down = Some(Arc::new(armed)),
        });
    }

    /// Lifts every fault, and opens the door.
    pub fn heal(&self) {
        self.door().get_or_insert_with(|| listen(self.address));
        self.orders.send_modify(|orders| *orders = Orders { cuts: orders.cuts, ..Orders::default() });
    }

    /// Refuses new connections until healed; open ones go on.
    pub fn refuse(&self) {
        drop(self.door().take());
    }

    /// Accepts new connections until healed, and never says a word on them; open ones go on.
    pub fn silence(&self) {
        self.orders.send_modify(|orders| orders.silent = true);
    }

    /// Resets all open connections, at both ends; new ones go on.
    pub fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    pub fn notes(&self) -> Notes {
        *self.book.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until faults have struck so often in all.
    pub async fn until_struck(&self, times: u64) {
        let striking = async {
            while self.notes().struck < times {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let struck = tokio::time::timeout(DEADLINE, striking).await;
        assert!(struck.is_ok(), "no fault has struck for the {times}th time: {:?}", self.notes());
    }

    fn door(&self) -> std::sync::MutexGuard<'_, Option<TcpListener>> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn listen(address: SocketAddr) -> TcpListener {
    bind(address).listen(BACKLOG).unwrap()
}

/// Accepts for ever; ends its connections when it ends.
async fn serve(door: Door, target: String, seed: u64, mut orders: watch::Receiver<Orders>, book: Arc<Book>) {
    let mut lines = JoinSet::new();
    loop {
        let accepting = std::future::poll_fn(|context| {
            match &*door.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(listener) => listener.poll_accept(context),
                // Opening it changes the orders.
                None => Poll::Pending,
            }
        });
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return },
            accepted = accepting => if let Ok((worker, _)) = accepted {
                let mut number = 0;
                book.note(|notes| {
                    number = notes.connections;
                    notes.connections += 1;
                });
                let line = Line::new(number, seed, Arc::clone(&book), orders.clone());
                lines.spawn(line.carry(worker, target.clone()));
            },
            Some(_) = lines.join_next() => {}
        }
    }
}

/// A proxy before each neighbour: workers of this world, in this process or not, and its further handles on the ledger go through
/// it from now on; `world.ledger`, `world.broker` and `world.database` do not.
impl World {
    pub async fn proxy_rabbitmq(&mut self, seed: u64) -> Proxy {
        let proxy = Proxy::before(self.settings.amqp.url.expose(), seed).await;
        self.settings.amqp.url = Secret::new(proxy.url(self.settings.amqp.url.expose()));
        proxy
    }

    pub async fn proxy_postgres(&mut self, seed: u64) -> Proxy {
        let proxy = Proxy::before(self.settings.postgres.url.expose(), seed).await;
        self.settings.postgres.url = Secret::new(proxy.url(self.settings.postgres.url.expose()));
        proxy
    }

    /// Before what takes the leads. Only for presets to which its URL is told.
    pub async fn proxy_api(&mut self, seed: u64) -> Proxy {
        let proxy = Proxy::before(&self.settings.destination.request.url, seed).await;
        self.settings.destination.request.url = proxy.url(&self.settings.destination.request.url);
        self.lead_through(&proxy, "LEADPOST__DESTINATION__REQUEST__URL");
        proxy
    }

    /// Before what grants the tokens. Only for presets to which its URL is told.
    pub async fn proxy_token(&mut self, seed: u64) -> Proxy {
        let proxy = Proxy::before(&self.settings.destination.auth.token_url, seed).await;
        self.settings.destination.auth.token_url = proxy.url(&self.settings.destination.auth.token_url);
        self.lead_through(&proxy, "LEADPOST__DESTINATION__AUTH__TOKEN_URL");
        proxy
    }

    fn lead_through(&mut self, proxy: &Proxy, name: &str) {
        let mut found = false;
        for (_, value) in self.destination.iter_mut().filter(|(known, _)| known == name) {
            *value = proxy.url(value);
            found = true;
        }
        assert!(found, "{name} is not set in this world");
    }
}
