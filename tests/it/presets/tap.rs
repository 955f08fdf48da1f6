//! A door in front of the sandbox that notes what goes through it, for what the sandbox's journal does not keep: request lines,
//! headers, answers.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::World;

/// A request or an answer.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Its first line, such as `POST /leads HTTP/1.1`.
    pub line: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The pairs of a form.
    pub fn form(&self) -> BTreeMap<String, String> {
        let pairs: Vec<_> = url::form_urlencoded::parse(&self.body).into_owned().collect();
        let form: BTreeMap<_, _> = pairs.iter().cloned().collect();
        assert_eq!(form.len(), pairs.len(), "a name stands twice in {pairs:?}");
        form
    }
}

type Exchanges = Arc<Mutex<Vec<(Message, Message)>>>;

pub struct Tap(Exchanges);

impl Tap {
    /// A tap through which the processes of this world reach its API from now on.
    pub async fn before(world: &mut World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (api, here) = (world.sandbox.addr(), format!("http://{}", listener.local_addr().unwrap()));
        let url = world.sandbox.base_url();
        for (_, value) in &mut world.destination {
            *value = value.replace(&url, &here);
        }
        let exchanges = Exchanges::default();
        let notes = Arc::clone(&exchanges);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                tokio::spawn(async move {
                    let api = TcpStream::connect(api).await?;
                    pass_on(client, api, &notes).await
                });
            }
        });
        Self(exchanges)
    }

    /// The exchanges with request lines that begin like this, in the order of the answers.
    pub fn seen(&self, begin: &str) -> Vec<(Message, Message)> {
        self.0.lock().unwrap().iter().filter(|(request, _)| request.line.starts_with(begin)).cloned().collect()
    }

    /// All request lines, in the order of the answers.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(request, _)| request.line.clone()).collect()
    }
}

async fn pass_on(mut client: TcpStream, mut api: TcpStream, notes: &Exchanges) -> io::Result<()> {
    let (from_client, mut to_client) = client.split();
    let (from_api, mut to_api) = api.split();
    let (mut from_client, mut from_api) = (BufReader::new(from_client), BufReader::new(from_api));
    loop {
        let (request, bytes) = read(&mut from_client).await?;
        to_api.write_all(&bytes).await?;
        let (answer, bytes) = read(&mut from_api).await?;
        notes.lock().unwrap().push((request, answer));
        to_client.write_all(&bytes).await?;
    }
}

/// Reads one message of which the length is announced or which has no body; what it is, and its bytes.
async fn read(from: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<(Message, Vec<u8>)> {
    let (mut message, mut bytes) = (Message::default(), Vec::new());
    loop {
        let begin = bytes.len();
        if from.read_until(b'\n', &mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&bytes[begin..]).trim_end().to_owned();
        match line.split_once(": ") {
            _ if begin == 0 => message.line = line,
            Some((name, value)) => {
                let former = message.headers.insert(name.to_ascii_lowercase(), value.to_owned());
                assert_eq!(former, None, "{name} stands twice");
            }
            None => break,
        }
    }
    assert!(!message.headers.contains_key("transfer-encoding"), "{message:?}");
    let length = message.headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    message.body.resize(length, 0);
    from.read_exact(&mut message.body).await?;
    bytes.extend(&message.body);
    Ok((message, bytes))
}
