//! A server that speaks TLS, well or in one of the ways in which servers get it wrong.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::NamedTempFile;

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

/// The port, and the file with the certificate that signs for it.
pub struct Tls {
    port: u16,
    roots: NamedTempFile,
    speech: Arc<Mutex<Speech>>,
    requests: Arc<Mutex<Vec<String>>>,
}

struct Signer {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "signer of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn config(&self, speech: Speech) -> Arc<ServerConfig> {
        let host = if speech == Speech::OfAnother { "elsewhere.example" } else { "127.0.0.1" };
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(if speech == Speech::NotYetValid { 2100 } else { 2000 }, 1, 1);
        params.not_after = date_time_ymd(if speech == Speech::Expired { 2001 } else { 2200 }, 1, 1);
        let key = KeyPair::generate().unwrap();
        let signed = match speech {
            Speech::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &self.issuer),
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![signed.unwrap().der().clone()];
        Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap())
    }
}

impl Tls {
    /// One that speaks well.
    pub fn open() -> Self {
        let signer = Signer::new();
        let roots = NamedTempFile::new().unwrap();
        let pem = STANDARD.encode(&signer.certificate);
        let text = format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n");
        std::fs::write(roots.path(), text).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let speech = Arc::new(Mutex::new(Speech::Well));
        let requests = Arc::default();
        let (now, book) = (Arc::clone(&speech), Arc::clone(&requests));
        // A key takes its time, which a client does not give.
        let configs = CERTIFIED.map(|speech| (speech, signer.config(speech)));
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
        Self { port, roots, speech, requests }
    }

    pub fn speak(&self, speech: Speech) {
        *self.speech.lock().unwrap_or_else(PoisonError::into_inner) = speech;
    }

    pub fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://127.0.0.1:{}{path}", self.port)
    }

    /// Where a client finds whom to trust (`SSL_CERT_FILE`).
    pub fn roots(&self) -> PathBuf {
        self.roots.path().to_owned()
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
