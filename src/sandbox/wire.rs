//! The socket, with a saboteur on it: what an HTTP library would never do to an answer happens here.
//!
//! Each connection has a [`Line`], shared by its socket and by the request being answered on it. The request leaves an
//! order on the line before it hands its answer over; the socket picks the order up at the first byte of that answer.
//! Such an answer is the last of its connection, so an order needs no end.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::faults::{CutAt, DripFrom};

/// What the request and the socket of one connection tell each other.
#[derive(Debug, Default)]
pub(super) struct Line {
    ordered: AtomicBool,
    order: Mutex<Option<Order>>,
    reset: AtomicBool,
}

/// What shall happen to the next answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It breaks off. `body` is the length of its body.
    Cut { at: CutAt, body: u64 },
    /// It comes a byte at a time.
    Drip { every: Duration, from: DripFrom },
}

impl Line {
    /// Leaves an order for the next answer.
    pub(super) fn order(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.ordered.store(true, Ordering::Release);
    }

    /// The connection shall end with a TCP reset.
    pub(super) fn reset_at_end(&self) {
        self.reset.store(true, Ordering::Release);
    }

    fn take(&self) -> Option<Order> {
        // Nearly no answer has an order: one load instead of a lock.
        if !self.ordered.swap(false, Ordering::Acquire) {
            return None;
        }
        self.order.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Below the saboteur: what breaks off, breaks off in the middle of an answer also where that is encrypted.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// A stream that obeys its line.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    line: Arc<Line>,
    sabotage: Option<Sabotage>,
}

/// An order being carried out.
#[derive(Debug)]
enum Sabotage {
    /// So many bytes are still let through.
    Cut { left: u64 },
    /// So many bytes are still let through at once; then one each time the timer rings.
    Drip { at_once: u64, every: Duration, timer: Pin<Box<Sleep>> },
}

impl Wire {
    pub(super) fn new(stream: Stream, line: Arc<Line>) -> Self {
        Self { stream, line, sabotage: None }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.line.reset.load(Ordering::Acquire) {
            // With a linger time of zero, closing discards what is unsent and sends RST instead of FIN (tcp(7)).
            if let Err(error) = self.stream.tcp().set_zero_linger() {
                tracing::debug!(%error, "connection could not be set to end with a reset");
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &mut *self;
        if wire.sabotage.is_none() {
            wire.sabotage = wire.line.take().map(|order| Sabotage::begin(order, buf));
        }
        let allowed = match &mut wire.sabotage {
            None => buf.len(),
            Some(sabotage) => ready!(sabotage.allowed(cx, buf.len()))?,
        };
        let buf = buf.get(..allowed).unwrap_or(buf);
        let written = ready!(match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        })?;
        if let Some(sabotage) = &mut wire.sabotage {
            sabotage.wrote(written);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.sabotage.is_some() || self.line.ordered.load(Ordering::Acquire) {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |buf| buf));
        }
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Sabotage {
    /// `first` is the beginning of the answer and holds its whole head: hyper writes the head in one piece.
    fn begin(order: Order, first: &[u8]) -> Self {
        match order {
            Order::Cut { at, body } => Self::Cut { left: cut_point(at, first, body) },
            Order::Drip { every, from } => {
                let at_once = match from {
                    DripFrom::Head => 0,
                    DripFrom::Body => head_length(first),
                };
                Self::Drip { at_once, every, timer: Box::pin(tokio::time::sleep(every)) }
            }
        }
    }

    /// How many of `wanted` bytes may be written now.
    fn allowed(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let bounded = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(wanted);
        match self {
            Self::Cut { left: 0 } => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Self::Cut { left } => Poll::Ready(Ok(bounded(*left))),
            Self::Drip { at_once, .. } if *at_once > 0 => Poll::Ready(Ok(bounded(*at_once))),
            Self::Drip { timer, .. } => timer.as_mut().poll(cx).map(|()| Ok(wanted.min(1))),
        }
    }

    fn wrote(&mut self, written: usize) {
        match self {
            Self::Cut { left } => *left = left.saturating_sub(written as u64),
            Self::Drip { at_once, .. } if *at_once > 0 => *at_once = at_once.saturating_sub(written as u64),
            Self::Drip { every, timer, .. } => timer.as_mut().reset(Instant::now() + *every),
        }
    }
}

/// How many bytes of an answer are sent. `first` holds its head, `body` is the length of its body.
fn cut_point(at: CutAt, first: &[u8], body: u64) -> u64 {
    let head = head_length(first);
    let status_line = first.iter().position(|byte| *byte == b'\n').map_or(head, |end| end as u64 + 1);
    match at {
        // "HTTP/1.1 2": in the middle of the status code.
        CutAt::StatusLine => 10,
        CutAt::Headers => status_line + (head - status_line) / 2,
        CutAt::Body => head + body / 2,
        CutAt::Bytes(bytes) => bytes,
    }
}

/// The length of an answer's head, its empty line included.
fn head_length(first: &[u8]) -> u64 {
    first.windows(4).position(|window| window == b"\r\n\r\n").map_or(first.len(), |end| end + 4) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_lies_in_the_part_it_is_named_after() {
        let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 8\r\ndate: x\r\n\r\n{\"id\":1}";
        let sent = |at| {
            let point = usize::try_from(cut_point(at, answer, 8)).unwrap();
            std::str::from_utf8(&answer[..point]).unwrap()
        };
        assert_eq!(sent(CutAt::StatusLine), "HTTP/1.1 2");
        assert!(sent(CutAt::Headers).starts_with("HTTP/1.1 201 Created\r\nco"));
        assert!(!sent(CutAt::Headers).contains("\r\n\r\n"));
        assert!(sent(CutAt::Body).ends_with("\r\n\r\n{\"id"));
        assert_eq!(sent(CutAt::Bytes(0)), "");
        assert_eq!(cut_point(CutAt::Bytes(1000), answer, 8), 1000);
    }
}
