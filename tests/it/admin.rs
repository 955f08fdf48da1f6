//! The admin port: who may read what, and what it takes from strangers.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Process, World};

const TOKEN: &str = "zyxq-0123456789abcdef";

/// Waits until the admin port is there, wherever it listens, and returns its number.
async fn port(worker: &Process) -> u16 {
    let line = worker.until_said("admin port").await;
    let digits = line.trim_end().rsplit(':').next().unwrap();
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// The answer to this request, as it came.
async fn say(port: u16, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // Whoever is not listened to any more has been answered.
    drop(stream.write_all(request).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status and the whole of the answer.
async fn get(port: u16, path: &str, authorization: Option<&str>) -> (u16, String) {
    let header = authorization.map(|value| format!("authorization: {value}\r\n")).unwrap_or_default();
    let answer = say(port, format!("GET {path} HTTP/1.1\r\nhost: h\r\n{header}\r\n").as_bytes()).await;
    (answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_strangers_learn_whether_the_worker_is_well_and_the_rest_is_for_who_has_it() {
    let world = World::new().await;
    let listen = format!("127.0.0.1:{}", free_port());
    let environment = [("LEADPOST__ADMIN__LISTEN", listen.as_str()), ("LEADPOST__ADMIN__TOKEN", TOKEN)];
    let worker = world.worker_with(&["--set", "log.filter=trace"], &environment).await;
    let port = port(&worker).await;
    let bearer = format!("Bearer {TOKEN}");
    world.until("it is ready", async || get(port, "/readyz", None).await.0 == 200).await;

    assert_eq!(get(port, "/livez", None).await.0, 200);
    let (_, open) = get(port, "/readyz", None).await;
    assert!(open.ends_with("\r\n\r\n{\"ready\":true}"), "{open}");
    let (status, details) = get(port, "/readyz", Some(&bearer)).await;
    assert!(status == 200 && details.contains("\"rabbitmq\":{\"ok\":true"), "{details}");
    for wrong in [None, Some("Bearer zyxq-0123456789abcdeF"), Some("Basic zyxq")] {
        let (status, answer) = get(port, "/metrics", wrong).await;
        assert!(status == 401 && !answer.contains("leadpost_"), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nwww-authenticate: bearer\r\n"), "{answer}");
    }
    let (status, metrics) = get(port, "/metrics", Some(&bearer)).await;
    assert!(status == 200 && metrics.contains("leadpost_"), "{metrics}");

    // The program's own question brings the token along, for the worker of its settings alone.
    let url = format!("http://127.0.0.1:{port}/readyz");
    let done = world.leadpost_with(&["healthcheck", "--url", &url], &environment, b"").await;
    assert!(done.code == Some(0) && done.stdout.contains("\"rabbitmq\""), "{done:?}");
    let done = world.leadpost_with(&["healthcheck"], &environment, b"").await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "live\n"), "{done:?}");
    let done = world.leadpost(&["healthcheck", "--url", &url]).await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "{\"ready\":true}\n"), "{done:?}");
    let said = worker.stop().await;
    assert!(!said.contains(TOKEN), "{said}");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_and_without_a_token_metrics_and_details_are_closed_unless_somebody_opens_them() {
    let world = World::new().await;
    for (open, expected) in [("false", 403), ("true", 200)] {
        let environment = [("LEADPOST__ADMIN__LISTEN", "0.0.0.0:0"), ("LEADPOST__ADMIN__OPEN", open)];
        let worker = world.worker_with(&[], &environment).await;
        let port = port(&worker).await;
        world.until("it is ready", async || get(port, "/readyz", None).await.0 == 200).await;
        assert_eq!(get(port, "/livez", None).await.0, 200);
        let (status, metrics) = get(port, "/metrics", None).await;
        assert_eq!((status, metrics.contains("leadpost_")), (expected, expected == 200), "{metrics}");
        let (_, details) = get(port, "/readyz", None).await;
        assert_eq!(details.contains("postgres"), expected == 200, "{details}");
        let said = worker.stop().await;
        assert_eq!(said.contains("admin.token is not set"), expected == 403, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_send_too_much_too_slowly_or_too_often_are_sent_away_and_probes_go_through_meanwhile() {
    let world = World::new().await;
    let worker = world.worker(&[]).await;
    let port = port(&worker).await;
    let before = worker.usage();
    let too_much: [(&str, Vec<u8>); 4] = [
        ("a header", [b"GET /livez HTTP/1.1\r\nx: ".as_slice(), &b"y".repeat(1 << 20)].concat()),
        ("headers", [b"GET /livez HTTP/1.1\r\n".as_slice(), &b"x: y\r\n".repeat(100), b"\r\n"].concat()),
        ("a path", [b"GET /".as_slice(), &b"y".repeat(1 << 20), b" HTTP/1.1\r\n\r\n"].concat()),
        ("noise", b"\x16\x03\x01\x00\xff\r\n\r\n".repeat(100)),
    ];
    for (what, request) in too_much {
        let answer = say(port, &request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    let body =
        [b"POST /metrics HTTP/1.1\r\nhost: h\r\ncontent-length: 1048576\r\n\r\n".as_slice(), &b"y".repeat(1 << 20)];
    let answer = say(port, &body.concat()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 405"), "{answer}");

    // One request for each connection.
    let twice = b"GET /livez HTTP/1.1\r\nhost: h\r\n\r\n".repeat(2);
    let answer = say(port, &twice).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");

    // Many who say little, or nothing.
    let begun = Instant::now();
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nx: ").await.unwrap();
        }
        slow.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(get(port, "/livez", None).await.0, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "probes had to wait for them");
    let descriptors = worker.usage().descriptors.saturating_sub(before.descriptors);
    assert!(descriptors < 100, "{descriptors} more descriptors for 200 connections");
    // The last of them has its time, and no more.
    let mut last = slow.pop().unwrap();
    let ending = tokio::time::timeout(Duration::from_secs(15), async {
        let mut bytes = [0; 64];
        while last.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    });
    assert!(ending.await.is_ok(), "a connection on which nothing is said stays open");
    assert!(begun.elapsed() > Duration::from_secs(5), "it had no time at all");
    worker.stop().await;
}
