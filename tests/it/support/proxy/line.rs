//! One connection through the proxy.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::{Armed, Book, Direction, Fault, Orders};

/// The most that is read at a time.
const PIECE: usize = 64 * 1024;

/// Limited bandwidth is dealt out so often a second.
const PORTIONS: u64 = 50;

/// Why a connection ends before both ends have closed it.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The proxy closes it.
    Cut,
    /// The proxy resets it, at one end or at both.
    Reset { worker: bool, server: bool },
    /// One of the ends has broken it, and the other gets to see the same.
    Broken,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

pub(super) struct Line {
    number: u64,
    seed: u64,
    book: Arc<Book>,
    orders: watch::Receiver<Orders>,
    /// How often all connections had been cut when this one came.
    cuts: u64,
    /// Whether anything was said on it.
    heard: AtomicBool,
    /// The fault because of which nothing goes down any more, or nothing up.
    mute: Mutex<[Option<Arc<Armed>>; 2]>,
}

impl Line {
    pub(super) fn new(number: u64, seed: u64, book: Arc<Book>, orders: watch::Receiver<Orders>) -> Self {
        let cuts = orders.borrow().cuts;
        Self { number, seed, book, orders, cuts, heard: AtomicBool::new(false), mute: Mutex::default() }
    }

    /// Carries a connection to its end.
    pub(super) async fn carry(self, mut worker: TcpStream, target: String) {
        let mut orders = self.orders.clone();
        if orders.borrow_and_update().silent {
            self.book.note(|notes| {
                notes.struck += 1;
                notes.cut += 1;
            });
            drop(orders.wait_for(|orders| !orders.silent || orders.cuts > self.cuts).await);
            drop(worker.set_zero_linger());
            return;
        }
        let Ok(mut server) = TcpStream::connect(target).await else {
            self.book.note(|notes| notes.unreachable += 1);
            drop(worker.set_zero_linger());
            return;
        };
        for stream in [&worker, &server] {
            drop(stream.set_nodelay(true));
        }
        let ended = {
            let (from_worker, to_worker) = worker.split();
            let (from_server, to_server) = server.split();
            let up = Pump::new(&self, Direction::Up).run(from_worker, to_server);
            let down = Pump::new(&self, Direction::Down).run(from_server, to_worker);
            tokio::select! {
                biased;
                end = self.told_to_end() => Err(end),
                ended = async { tokio::try_join!(up, down) } => ended.map(drop),
            }
        };
        let (reset_worker, reset_server) = match ended {
            Ok(()) | Err(End::Cut) => (false, false),
            Err(End::Reset { worker, server }) => (worker, server),
            Err(End::Broken) => (true, true),
        };
        if matches!(ended, Err(End::Cut | End::Reset { .. })) {
            self.book.note(|notes| notes.cut += 1);
        }
        for (stream, reset) in [(&worker, reset_worker), (&server, reset_server)] {
            if reset {
                drop(stream.set_zero_linger());
            }
        }
    }

    /// Waits until the connection is to be reset, whatever its pumps are doing.
    async fn told_to_end(&self) -> End {
        let mut orders = self.orders.clone();
        loop {
            {
                let orders = orders.borrow_and_update();
                if orders.cuts > self.cuts {
                    return End::Reset { worker: true, server: true };
                }
                if self.heard.load(Ordering::Acquire)
                    && let Some(end) = self.reset(&orders)
                {
                    return end;
                }
            }
            if orders.changed().await.is_err() {
                return End::Cut;
            }
        }
    }

    /// The reset that is due by these orders.
    fn reset(&self, orders: &Orders) -> Option<End> {
        let due = |direction: &Direction| {
            let armed = orders.of(*direction);
            armed.is_some_and(|armed| matches!(armed.fault, Fault::Reset) && armed.reaches(self.number) && armed.take())
        };
        let direction = [Direction::Up, Direction::Down].into_iter().find(due)?;
        self.book.note(|notes| notes.struck += 1);
        Some(End::Reset { worker: direction == Direction::Down, server: direction == Direction::Up })
    }

    fn muted(&self, direction: Direction) -> Option<Arc<Armed>> {
        self.mute.lock().unwrap_or_else(PoisonError::into_inner)[direction as usize].clone()
    }

    fn silence(&self, direction: Direction, because: &Arc<Armed>) {
        self.mute.lock().unwrap_or_else(PoisonError::into_inner)[direction as usize] = Some(Arc::clone(because));
    }
}

/// One direction of a connection.
struct Pump<'a> {
    line: &'a Line,
    direction: Direction,
    orders: watch::Receiver<Orders>,
    random: fastrand::Rng,
    armed: Option<Arc<Armed>>,
    /// Whether the fault in force was done to this connection.
    struck: bool,
    /// How many bytes more may pass before it is cut.
    allowance: u64,
    /// How many of the bytes that are looked for were found, and what of the stream may begin the next.
    found: usize,
    tail: Vec<u8>,
    /// Whether the receiver was told that nothing more comes.
    shut: bool,
    /// Whether bytes were swallowed.
    lossy: bool,
}

impl<'a> Pump<'a> {
    fn new(line: &'a Line, direction: Direction) -> Self {
        let own = (line.number * 2 + direction as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            line,
            direction,
            orders: line.orders.clone(),
            random: fastrand::Rng::with_seed(line.seed ^ own),
            armed: None,
            struck: false,
            allowance: 0,
            found: 0,
            tail: Vec::new(),
            shut: false,
            lossy: false,
        }
    }

    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), End> {
        let mut buffer = vec![0; PIECE];
        loop {
            self.obey();
            let mute = self.mute();
            let fault = self.armed.as_ref().map(|armed| armed.fault.clone());
            let swallows = matches!(fault, Some(Fault::BlackHole)) || mute.is_some();
            if self.lossy && !swallows && !(self.shut && matches!(fault, Some(Fault::HalfClose))) {
                return Err(End::Reset { worker: true, server: true });
            }
            let mut room = PIECE;
            match fault {
                Some(Fault::Stall) => {
                    tokio::select! {
                        biased;
                        changed = self.orders.changed() => {
                            changed.map_err(|_| End::Cut)?;
                            continue;
                        }
                        // Looked at, and left where it is.
                        peeked = from.peek(&mut buffer[..1]) => peeked?,
                    };
                    if self.strike() {
                        self.changed().await?;
                    }
                    continue;
                }
                Some(Fault::HalfClose) if !self.shut && self.strike() => {
                    to.shutdown().await?;
                    (self.shut, self.lossy) = (true, true);
                }
                Some(Fault::CutAfter(_) | Fault::CutWithin(_)) => {
                    if self.allowance == 0 {
                        if self.strike() {
                            to.shutdown().await?;
                            return Err(End::Cut);
                        }
                        continue;
                    }
                    room = room.min(usize::try_from(self.allowance).unwrap_or(room));
                }
                Some(Fault::Bandwidth(rate)) => {
                    room = room.min(usize::try_from(rate / PORTIONS).unwrap_or(room).max(1));
                }
                _ => {}
            }
            if !self.wait_for_bytes(&from).await? {
                continue;
            }
            // The answer may have become one that is to be lost while it was waited for.
            let mute = self.mute();
            let read = match from.try_read(&mut buffer[..room]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            self.line.heard.store(true, Ordering::Release);
            let reset = self.line.reset(&self.orders.borrow());
            if let Some(end) = reset {
                return Err(end);
            }
            let piece = &buffer[..read];
            if let Some(mute) = mute {
                self.swallow(read);
                if matches!(mute.fault, Fault::LoseAnswer(_)) {
                    return Err(End::Cut);
                }
                self.at_end_wait(read).await?;
                continue;
            }
            if self.shut {
                self.swallow(read);
                if read == 0 {
                    return Ok(());
                }
                continue;
            }
            if read == 0 && !matches!(fault, Some(Fault::BlackHole)) {
                to.shutdown().await?;
                return Ok(());
            }
            match fault {
                Some(Fault::BlackHole) if self.strike() => {
                    self.swallow(read);
                    self.at_end_wait(read).await?;
                    continue;
                }
                Some(Fault::Delay { by, jitter }) if self.strike() => {
                    let more = jitter.mul_f64(self.random.f64());
                    self.pause(by + more).await?;
                }
                Some(Fault::CutBefore(ref needles)) => {
                    if let Some((from, _)) = self.search(needles, piece)
                        && self.strike()
                    {
                        to.write_all(&piece[..from]).await?;
                        self.passed(from);
                        to.shutdown().await?;
                        return Err(End::Cut);
                    }
                }
                Some(Fault::HoldBefore(ref needles)) => {
                    if let Some((from, _)) = self.search(needles, piece)
                        && self.strike()
                    {
                        to.write_all(&piece[..from]).await?;
                        self.changed().await?;
                        to.write_all(&piece[from..]).await?;
                        self.passed(read);
                        // Looked at when the next piece comes.
                        self.orders.mark_changed();
                        continue;
                    }
                }
                Some(Fault::SlipIn(ref needles, ref bytes)) => {
                    if let Some((_, behind)) = self.search(needles, piece)
                        && self.strike()
                    {
                        to.write_all(&[&piece[..behind], bytes, &piece[behind..]].concat()).await?;
                        self.passed(read);
                        continue;
                    }
                }
                Some(Fault::LoseAnswer(ref needles) | Fault::KeepAnswer(ref needles)) => {
                    if self.search(needles, piece).is_some()
                        && self.strike()
                        && let Some(armed) = &self.armed
                    {
                        // Before the question goes out: the answer is lost from its first byte.
                        self.line.silence(opposite(self.direction), armed);
                    }
                }
                _ => {}
            }
            to.write_all(piece).await?;
            self.passed(read);
            if let Some(Fault::Bandwidth(rate)) = fault
                && self.strike()
            {
                self.pause(Duration::from_secs_f64(read as f64 / rate as f64)).await?;
            }
        }
    }

    /// Takes on what is in force now.
    fn obey(&mut self) {
        let armed = self.orders.borrow_and_update().of(self.direction).cloned();
        let armed = armed.filter(|armed| {
            armed.reaches(self.line.number) && (self.is_in_hand(armed) || armed.left.load(Ordering::Acquire) > 0)
        });
        let known = armed.as_ref().is_some_and(|armed| self.is_in_hand(armed));
        if known || (armed.is_none() && self.armed.is_none()) {
            return;
        }
        self.struck = false;
        self.found = 0;
        self.tail.clear();
        self.allowance = match armed.as_ref().map(|armed| &armed.fault) {
            Some(Fault::CutAfter(bytes)) => *bytes,
            Some(Fault::CutWithin(range)) => self.random.u64(range.clone()),
            _ => 0,
        };
        self.armed = armed;
    }

    /// Whether it is the fault that is in force here already.
    fn is_in_hand(&self, armed: &Arc<Armed>) -> bool {
        self.armed.as_ref().is_some_and(|known| Arc::ptr_eq(known, armed))
    }

    /// Notes that the fault is done to this connection. `false`: others have used it up, and it is not.
    fn strike(&mut self) -> bool {
        if self.struck {
            return true;
        }
        let Some(armed) = &self.armed else { return false };
        if armed.take() {
            self.struck = true;
            self.line.book.note(|notes| notes.struck += 1);
        } else {
            self.armed = None;
        }
        self.struck
    }

    /// The fault because of which this direction is swallowed, if it is in force still.
    fn mute(&self) -> Option<Arc<Armed>> {
        let mute = self.line.muted(self.direction)?;
        let orders = self.orders.borrow();
        let in_force = orders.of(opposite(self.direction)).is_some_and(|armed| Arc::ptr_eq(armed, &mute));
        in_force.then_some(mute)
    }

    /// Where the last of these bytes lie in the stream after the others, as far as in this piece.
    fn search(&mut self, needles: &[Vec<u8>], piece: &[u8]) -> Option<(usize, usize)> {
        let before = self.tail.len();
        let mut window = std::mem::take(&mut self.tail);
        window.extend_from_slice(piece);
        let mut at = 0;
        while let Some(needle) = needles.get(self.found) {
            let Some(place) = memchr::memmem::find(&window[at..], needle) else {
                let kept = (needle.len() - 1).min(window.len() - at);
                self.tail = window.split_off(window.len() - kept);
                return None;
            };
            let from = at + place;
            at = from + needle.len();
            self.found += 1;
            if self.found == needles.len() {
                return Some((from.saturating_sub(before), at - before));
            }
        }
        None
    }

    fn passed(&mut self, bytes: usize) {
        self.allowance = self.allowance.saturating_sub(bytes as u64);
        self.line.book.note(|notes| match self.direction {
            Direction::Up => notes.up += bytes as u64,
            Direction::Down => notes.down += bytes as u64,
        });
    }

    fn swallow(&mut self, bytes: usize) {
        self.lossy = true;
        self.line.book.note(|notes| notes.swallowed += bytes as u64);
    }

    /// The end of a stream that is swallowed is swallowed too.
    async fn at_end_wait(&mut self, read: usize) -> Result<(), End> {
        if read == 0 { self.changed().await } else { Ok(()) }
    }

    async fn changed(&mut self) -> Result<(), End> {
        self.orders.changed().await.map_err(|_| End::Cut)
    }

    /// Waits for something to read, unless the orders change before: then `false`.
    async fn wait_for_bytes(&mut self, from: &ReadHalf<'_>) -> Result<bool, End> {
        tokio::select! {
            biased;
            changed = self.orders.changed() => changed.map(|()| false).map_err(|_| End::Cut),
            ready = from.readable() => ready.map(|()| true).map_err(End::from),
        }
    }

    /// Waits, unless the orders change before.
    async fn pause(&mut self, pause: Duration) -> Result<(), End> {
        match tokio::time::timeout(pause, self.orders.changed()).await {
            Ok(Err(_)) => Err(End::Cut),
            Ok(Ok(())) => {
                // Looked at when the piece has passed.
                self.orders.mark_changed();
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Up => Direction::Down,
        Direction::Down => Direction::Up,
    }
}
