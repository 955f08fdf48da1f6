//! The sandbox as a client sees it, over real sockets. The client is a plain socket too, so that what is seen is what
//! was on the wire and not what a library made of it.

mod control;
mod faults;
mod journal;
mod kaisa;
mod leads;
mod limits;
mod paya;
mod port;
mod squad;
mod tokens;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// More than anything here takes; reached only when a test fails.
const SOON: Duration = Duration::from_secs(20);

fn sandbox() -> Sandbox {
    Sandbox::start(SandboxSettings::default()).unwrap()
}

fn tuned(change: impl FnOnce(&mut Tuning)) -> Sandbox {
    let sandbox = sandbox();
    sandbox.tune(change);
    sandbox
}

fn playing(profile: Profile) -> Sandbox {
    Sandbox::start(SandboxSettings { tuning: Tuning::of(profile), ..SandboxSettings::default() }).unwrap()
}

/// An answer as it arrived.
#[derive(Debug)]
struct Seen {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }
}

/// One connection to a sandbox.
struct Client {
    stream: TcpStream,
}

impl Client {
    async fn of(sandbox: &Sandbox) -> Self {
        Self { stream: TcpStream::connect(sandbox.addr()).await.unwrap() }
    }

    async fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: sandbox\r\n{headers}content-length: {length}\r\n\r\n{body}");
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads one answer of announced length.
    async fn receive(&mut self) -> Seen {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(self.stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(bytes).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut seen = Seen { status, head, body: vec![] };
        // Only status 204 has neither a body nor the length of one.
        let length = if status == 204 { "0" } else { seen.header("content-length").unwrap() };
        seen.body = vec![0; length.parse().unwrap()];
        self.stream.read_exact(&mut seen.body).await.unwrap();
        seen
    }

    /// Reads until the other side ends the connection, in whichever way.
    async fn rest(&mut self) -> (Vec<u8>, Result<(), ErrorKind>) {
        let mut bytes = Vec::new();
        let end = self.stream.read_to_end(&mut bytes).await;
        (bytes, end.map(drop).map_err(|error| error.kind()))
    }

    async fn ask(&mut self, method: &str, path: &str, body: &str) -> Seen {
        self.send(method, path, "", body).await;
        self.receive().await
    }
}

const FORM: &str = "content-type: application/x-www-form-urlencoded\r\n";
const GRANT: &str =
    "grant_type=client_credentials&scope=leads%2Fpost&client_id=sandbox-client&client_secret=sandbox-secret";

async fn token(sandbox: &Sandbox) -> String {
    let mut client = Client::of(sandbox).await;
    client.send("POST", "/oauth2/token", FORM, GRANT).await;
    let seen = client.receive().await;
    assert_eq!(seen.status, 200, "{seen:?}");
    seen.json()["access_token"].as_str().unwrap().to_owned()
}

fn lead(email: &str) -> String {
    json!({ "name": "Ann", "email": email, "assistantId": 61 }).to_string()
}

fn post_headers(token: &str, key: &str) -> String {
    format!("authorization: Bearer {token}\r\ncontent-type: application/json\r\nidempotency-key: {key}\r\n")
}

/// Sends a lead on a connection of its own and leaves the answer to be read.
async fn send_lead(sandbox: &Sandbox, token: &str, key: &str, email: &str) -> Client {
    let mut client = Client::of(sandbox).await;
    client.send("POST", "/leads", &post_headers(token, key), &lead(email)).await;
    client
}

async fn post(sandbox: &Sandbox, token: &str, key: &str, email: &str) -> Seen {
    send_lead(sandbox, token, key, email).await.receive().await
}
