//! A server of which every byte is the test's to say, and a door that can be open, shut, silent or walled up.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// What is done about a request, one step after the other. After the last one the connection is open for the next request.
#[derive(Clone, Debug)]
pub enum Step {
    Say(Vec<u8>),
    /// These bytes, again and again, until nobody takes them any more.
    Pour(Vec<u8>),
    /// A byte at a time, for ever.
    Drip(u8, Duration),
    Wait(Duration),
    /// Nothing, until the other side leaves.
    Hang,
    Close,
    /// When the next request begins to come, closes before it is read.
    CloseUnderNext,
    Reset,
}

/// What happens to who wants to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Open,
    /// Nobody listens.
    Shut,
    /// Connections are never completed: a black hole.
    Walled,
    /// Connections are taken, and nothing is read or said.
    Silent,
    /// Connections are taken and closed.
    Slammed,
}

/// A request as it was read.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Request line and headers, byte for byte.
    pub head: String,
    pub body: Vec<u8>,
}

impl Taken {
    /// The header of this name; `""` without one.
    pub fn header(&self, name: &str) -> &str {
        let of = |line: &'_ str| line.split_once(": ").is_some_and(|(known, _)| known.eq_ignore_ascii_case(name));
        self.head.lines().find(|line| of(line)).and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value)
    }

    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

type Play = Arc<dyn Fn(&Taken) -> Vec<Step> + Send + Sync>;

#[derive(Default)]
struct Book {
    taken: Vec<Taken>,
    /// When connections were taken.
    connected: Vec<Instant>,
    /// How many connections have ended.
    ended: usize,
    /// How many bytes were poured.
    poured: u64,
}

#[derive(Clone)]
struct Stage {
    book: Arc<Mutex<Book>>,
    play: Arc<Mutex<Play>>,
}

pub struct Wire {
    port: u16,
    /// Bound and never listening: keeps the port ours while the door is shut.
    _reserved: TcpSocket,
    stage: Stage,
    serving: JoinHandle<()>,
    /// What fills the queue of connections of a walled door.
    fillers: Vec<TcpStream>,
}

impl Wire {
    /// An open one that does this about each request.
    pub async fn open(play: impl Fn(&Taken) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let reserved = bind(0);
        let port = reserved.local_addr().unwrap().port();
        let listener = bind(port).listen(BACKLOG).unwrap();
        let play: Play = Arc::new(play);
        let stage = Stage { book: Arc::default(), play: Arc::new(Mutex::new(play)) };
        let serving = tokio::spawn(stage.clone().serve(listener, Door::Open));
        Self { port, _reserved: reserved, stage, serving, fillers: Vec::new() }
    }

    /// From now on, does this about each request.
    pub fn play(&self, play: impl Fn(&Taken) -> Vec<Step> + Send + Sync + 'static) {
        *self.stage.play.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(play);
    }

    /// Ends all connections, and deals with new ones like this.
    pub async fn door(&mut self, door: Door) {
        self.serving.abort();
        // Ended, it listens no more.
        drop((&mut self.serving).await);
        self.fillers.clear();
        if door == Door::Shut {
            self.serving = tokio::spawn(std::future::pending());
            return;
        }
        let listener = bind(self.port).listen(if door == Door::Walled { 0 } else { BACKLOG }).unwrap();
        if door == Door::Walled {
            let address = listener.local_addr().unwrap();
            while let Ok(Ok(filler)) =
                tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
            {
                self.fillers.push(filler);
            }
        }
        self.serving = tokio::spawn(self.stage.clone().serve(listener, door));
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The requests so far, in order.
    pub fn taken(&self) -> Vec<Taken> {
        self.stage.book().taken.clone()
    }

    /// How many requests for this lead were read.
    pub fn posts(&self, id: leadpost::lead::LeadId) -> usize {
        let key = id.to_string();
        self.stage.book().taken.iter().filter(|taken| taken.header("idempotency-key") == key).count()
    }

    /// When connections were taken, in order.
    pub fn connected(&self) -> Vec<Instant> {
        self.stage.book().connected.clone()
    }

    /// How many connections have ended, from either side.
    pub fn ended(&self) -> usize {
        self.stage.book().ended
    }

    /// How many bytes were poured out.
    pub fn poured(&self) -> u64 {
        self.stage.book().poured
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Stage {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, listener: TcpListener, door: Door) {
        if door == Door::Walled {
            return std::future::pending().await;
        }
        // Dropped with this future, which ends them all.
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            self.book().connected.push(Instant::now());
            let stage = self.clone();
            connections.spawn(async move {
                match door {
                    Door::Silent => leave_alone(stream).await,
                    Door::Slammed => drop(stream),
                    Door::Open | Door::Shut | Door::Walled => stage.clone().converse(stream).await,
                }
                stage.book().ended += 1;
            });
        }
    }

    async fn converse(self, mut stream: TcpStream) {
        let mut left = Vec::new();
        while let Some(taken) = read(&mut stream, &mut left).await {
            let play = Arc::clone(&self.play.lock().unwrap_or_else(PoisonError::into_inner));
            let steps = play(&taken);
            self.book().taken.push(taken);
            for step in steps {
                let done = match step {
                    Step::Say(bytes) => stream.write_all(&bytes).await,
                    Step::Pour(bytes) => loop {
                        if let Err(error) = stream.write_all(&bytes).await {
                            break Err(error);
                        }
                        self.book().poured += bytes.len() as u64;
                    },
                    Step::Drip(byte, every) => loop {
                        if let Err(error) = stream.write_all(&[byte]).await {
                            break Err(error);
                        }
                        tokio::time::sleep(every).await;
                    },
                    Step::Wait(time) => {
                        tokio::time::sleep(time).await;
                        Ok(())
                    }
                    Step::Hang => return leave_alone(stream).await,
                    Step::Close => return,
                    Step::CloseUnderNext => return drop(stream.readable().await),
                    Step::Reset => return stream.set_zero_linger().unwrap(),
                };
                if done.is_err() {
                    return;
                }
            }
        }
    }
}

/// A socket at this port, and at any for 0.
fn bind(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, port).into()).unwrap();
    socket
}

/// Waits until the other side leaves.
async fn leave_alone(mut stream: TcpStream) {
    let mut nothing = [0; 1024];
    while !matches!(stream.read(&mut nothing).await, Ok(0) | Err(_)) {}
}

/// The next request; `None` when there is none any more.
async fn read(stream: &mut TcpStream, left: &mut Vec<u8>) -> Option<Taken> {
    const END: &[u8] = b"\r\n\r\n";
    loop {
        if let Some(end) = left.windows(END.len()).position(|window| window == END) {
            let head = String::from_utf8_lossy(&left[..end]).into_owned();
            let mut taken = Taken { head, body: Vec::new() };
            let length: usize = taken.header("content-length").parse().unwrap_or(0);
            if left.len() >= end + END.len() + length {
                let rest = left.split_off(end + END.len() + length);
                taken.body = left.split_off(end + END.len());
                *left = rest;
                return Some(taken);
            }
        }
        if stream.read_buf(left).await.ok()? == 0 {
            return None;
        }
    }
}

/// An answer as it should be.
pub fn reply(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// It takes leads, and gives out tokens at `/token`.
pub fn takes(taken: &Taken) -> Vec<Step> {
    let (status, body) = match taken.path() {
        "/token" => super::api::token("token-1"),
        _ => (201, r#"{"id":"remote-1"}"#.to_owned()),
    };
    vec![Step::Say(reply(status, &body))]
}
