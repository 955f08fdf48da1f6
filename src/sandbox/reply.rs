//! Answers: small ones held whole, and bodies too large to hold.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};

/// An answer before it becomes HTTP.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Payload,
    /// Whether it is the last answer of its connection.
    pub(super) last: bool,
}

/// `application/json`.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// HTML as web servers announce it.
pub(super) const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

impl Reply {
    /// JSON text.
    pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { content_type: Some(JSON), body: Payload::Whole(body.into()), ..Self::empty(status) }
    }

    /// No body, and no type of one.
    pub(super) fn empty(status: StatusCode) -> Self {
        Self { status, content_type: None, headers: vec![], body: Payload::Whole(Bytes::new()), last: false }
    }

    /// `{"message": ".."}`: the form of every error that Amazon API Gateway makes by itself.
    pub(super) fn message(status: StatusCode, message: &str) -> Self {
        Self::json(status, serde_json::json!({ "message": message }).to_string())
    }

    /// The same answer in another content type.
    pub(super) fn of_type(mut self, content_type: HeaderValue) -> Self {
        self.content_type = Some(content_type);
        self
    }

    /// The same answer with one more header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// As HTTP.
    pub(super) fn into_response(self) -> Response<Payload> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.extend(self.content_type.map(|value| (CONTENT_TYPE, value)));
        if self.last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        headers.extend(self.headers);
        response
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Payload {
    /// This text.
    Whole(Bytes),
    /// So many bytes of filling, made while they are sent.
    Filling { left: u64, announced: bool },
}

/// What a huge body consists of.
static FILLING: [u8; 64 * 1024] = [b'x'; 64 * 1024];

impl Payload {
    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Filling { left, .. } => *left,
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Whole(bytes) => std::mem::take(bytes),
            Self::Filling { left, .. } => {
                let block = usize::try_from(*left).unwrap_or(usize::MAX).min(FILLING.len());
                *left -= block as u64;
                Bytes::from_static(FILLING.get(..block).unwrap_or_default())
            }
        };
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(_) | Self::Filling { announced: true, .. } => SizeHint::with_exact(self.len()),
            Self::Filling { announced: false, .. } => SizeHint::default(),
        }
    }
}
