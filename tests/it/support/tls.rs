//! A server that speaks TLS, well or in one of the ways in which servers get it wrong.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::authority::{Authority, Issued, server_params};

/// How it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// As it should.
    Well,
    /// With a certificate that it signed itself.
    SelfSigned,
    Expired,
    NotYetValid,
    /// With a certificate of another host.
    OfAnother,
    /// Not at all: HTTP.
    Plain,
    /// Something that is no protocol.
    Noise,
    /// It hears the first message, and says nothing.
    Silence,
    /// It begins its first message, and falls silent.
    Half,
    /// It hears the first message, and closes.
    HangsUp,
}

/// Those that get as far as a certificate.
const CERTIFIED: [Speech; 5] =
    [Speech::Well, Speech::SelfSigned, Speech::Expired, Speech::NotYetValid, Speech::OfAnother];

/// The port, and who signs for it.
pub struct Tls {
    port: u16,
    authority: Authority,
    speech: Arc<Mutex<Speech>>,
    requests: Arc<Mutex<Vec<String>>>,
}

fn config(authority: &Authority, speech: Speech, is_mutual: bool) -> Arc<ServerConfig> {
    let host = if speech == Speech::OfAnother { "elsewhere.example" } else { "127.0.0.1" };
    let from = if speech == Speech::NotYetValid { 2100 } else { 2000 };
    let to = if speech == Speech::Expired { 2001 } else { 2200 };
    let issued = match speech {
        Speech::SelfSigned => Issued::self_signed(&server_params(host, (from, to))),
        _ => authority.server(host, (from, to)),
    };
    let (chain, key) = issued.der();
    let builder = ServerConfig::builder();
    let builder =
        if is_mutual { builder.with_client_cert_verifier(authority.verifier()) } else { builder.with_no_client_auth() };
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

impl Tls {
    /// One that speaks well.
    pub fn open() -> Self {
        Self::open_for(false)
    }

    /// One that speaks well, and only with those whose certificate its authority has signed.
    pub fn mutual() -> Self {
        Self::open_for(true)
    }

    fn open_for(is_mutual: bool) -> Self {
        // Only the first call of the process can succeed, and one is enough.
        drop(rustls::crypto::ring::default_provider().install_default());
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let speech = Arc::new(Mutex::new(Speech::Well));
        let requests = Arc::default();
        let (now, book) = (Arc::clone(&speech), Arc::clone(&requests));
        // A key takes its time, which a client does not give.
        let configs = CERTIFIED.map(|speech| (speech, config(&authority, speech, is_mutual)));
        // Ends with the process; a thread that waits for connections costs nothing.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let speech = *now.lock().unwrap_or_else(PoisonError::into_inner);
                let config = configs.iter().find(|(of, _)| *of == speech).map(|(_, config)| Arc::clone(config));
                let book = Arc::clone(&book);
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    // What goes wrong is what the other side makes of it.
                    drop(converse(speech, stream, config, &book));
                });
            }
        });
        Self { port, authority, speech, requests }
    }

    pub fn speak(&self, speech: Speech) {
        *self.speech.lock().unwrap_or_else(PoisonError::into_inner) = speech;
    }

    pub fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://127.0.0.1:{}{path}", self.port)
    }

    /// Where a client finds whom to trust (`SSL_CERT_FILE`).
    pub fn roots(&self) -> PathBuf {
        self.authority.file()
    }

    /// Who signs for it, and for its clients.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The requests that could be read, each as it came.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn converse(
    speech: Speech,
    mut stream: TcpStream,
    config: Option<Arc<ServerConfig>>,
    book: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    if let Some(config) = config {
        let session = ServerConnection::new(config).map_err(std::io::Error::other)?;
        return answer(StreamOwned::new(session, stream), book);
    }
    let mut hello = [0; 4096];
    if stream.read(&mut hello)? == 0 {
        return Ok(());
    }
    match speech {
        Speech::Plain => {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        }
        Speech::Noise => stream.write_all(b"\x00\xff\x15\x03zyxq\r\n\r\n"),
        Speech::Silence | Speech::Half => {
            if speech == Speech::Half {
                // The head of a record of 122 bytes, and the first two of them.
                stream.write_all(b"\x16\x03\x03\x00\x7a\x02\x00")?;
            }
            while stream.read(&mut hello)? > 0 {}
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Takes one lead, or gives out a token.
fn answer(mut stream: impl Read + Write, book: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .to_lowercase()
                .split("content-length: ")
                .nth(1)
                .map_or(0, |rest| rest.lines().next().unwrap_or_default().parse::<usize>().unwrap_or(0));
            if body.len() >= length {
                break;
            }
        }
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&bytes[..n]),
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let (status, body) = match request.starts_with("POST /token ") {
        true => super::api::token("token-1"),
        false => (201, r#"{"id":"remote-1"}"#.to_owned()),
    };
    book.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes())?;
    stream.flush()
}
