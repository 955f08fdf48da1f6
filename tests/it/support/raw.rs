//! A producer that speaks AMQP 0-9-1 by hand, and so can send what no client library would.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::broker::Broker;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// The places of `headers` and `message_id` among the property flags (AMQP 0-9-1, section 4.2.6.1).
const HAS_HEADERS: u16 = 1 << 13;
const HAS_MESSAGE_ID: u16 = 1 << 7;

struct Wire(TcpStream);

impl Wire {
    fn send(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        self.0.write_all(&frame).unwrap();
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        self.send(METHOD, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat());
    }

    /// Reads up to the next method, which must be this one; its arguments.
    fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        loop {
            let (kind, payload) = self.frame();
            if kind == METHOD {
                let got = [payload[0], payload[1], payload[2], payload[3]];
                let expected = [class.to_be_bytes(), method.to_be_bytes()].concat();
                assert_eq!(got[..], expected[..], "{}", String::from_utf8_lossy(&payload));
                return payload[4..].to_vec();
            }
        }
    }

    /// The next frame: its type and its payload.
    fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; usize::try_from(size).unwrap() + 1];
        self.0.read_exact(&mut payload).unwrap();
        payload.pop();
        (head[0], payload)
    }
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat()
}

impl Broker {
    /// A connection with a channel.
    fn wire(&self) -> Wire {
        let url = url::Url::parse(&self.url).unwrap();
        let stream = TcpStream::connect((url.host_str().unwrap(), url.port().unwrap_or(5672))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut wire = Wire(stream);
        wire.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        wire.expect(10, 10);
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap_or_default());
        let start = [long(b""), short(b"PLAIN"), long(login.as_bytes()), short(b"en_US")].concat();
        wire.method(0, 10, 11, &start);
        let tune = wire.expect(10, 30);
        // The same limits, and no heartbeats.
        wire.method(0, 10, 31, &[&tune[..6], &[0, 0]].concat());
        let vhost = url.path().trim_start_matches('/').replace("%2f", "/").replace("%2F", "/");
        let vhost = if vhost.is_empty() { "/".to_owned() } else { vhost };
        wire.method(0, 10, 40, &[short(vhost.as_bytes()), short(b""), vec![0]].concat());
        wire.expect(10, 41);
        wire.method(1, 20, 10, &short(b""));
        wire.expect(20, 11);
        wire
    }

    /// Publishes a message whose `message_id`, and whose table of headers, is any bytes at all, and waits for the confirm. Blocks.
    pub fn publish_raw(&self, message_id: &[u8], headers: Option<&[u8]>, body: &[u8]) {
        let mut wire = self.wire();
        wire.method(1, 85, 10, &[0]);
        wire.expect(85, 11);
        wire.method(1, 60, 40, &[vec![0, 0], short(b""), short(self.queue.as_bytes()), vec![0]].concat());
        let mut header = [60_u16.to_be_bytes(), [0, 0]].concat();
        header.extend(u64::try_from(body.len()).unwrap().to_be_bytes());
        header.extend((HAS_MESSAGE_ID | if headers.is_some() { HAS_HEADERS } else { 0 }).to_be_bytes());
        header.extend(headers.map(long).unwrap_or_default());
        header.extend(short(message_id));
        wire.send(HEADER, 1, &header);
        wire.send(BODY, 1, body);
        wire.expect(60, 80);
        // Of another one no lead comes.
        if let Ok(message_id) = std::str::from_utf8(message_id) {
            self.note(Some(message_id), body);
        }
    }

    /// Takes a message from a queue, whatever its properties are, and returns its body. Blocks.
    pub fn get_raw(&self, queue: &str) -> Option<Vec<u8>> {
        let mut wire = self.wire();
        wire.method(1, 60, 70, &[vec![0, 0], short(queue.as_bytes()), vec![1]].concat());
        let (_, method) = wire.frame();
        // 71 is get-ok, 72 get-empty.
        if method[..4] != [0, 60, 0, 71] {
            return None;
        }
        let (_, header) = wire.frame();
        let size = u64::from_be_bytes(header[4..12].try_into().unwrap());
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            body.extend(wire.frame().1);
        }
        Some(body)
    }
}
