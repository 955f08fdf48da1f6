//! The fault proxy does what it says, and says what it did.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::proxy::Direction::{Down, Up};
use crate::support::proxy::{Fault, Proxy, Reach};
use crate::support::{DEADLINE, World};

const SEED: u64 = 4;

/// What is there at once on loopback has come by then.
const SOON: Duration = Duration::from_millis(100);

/// A server behind a proxy.
struct Scene {
    listener: TcpListener,
    proxy: Proxy,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap(), seed).await;
        Self { listener, proxy }
    }

    /// Both ends of a connection through the proxy.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let worker = TcpStream::connect(self.proxy.address()).await.unwrap();
        let (server, _) = self.listener.accept().await.unwrap();
        (worker, server)
    }
}

/// All that comes until the stream ends, and how it ends.
async fn drain(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await;
    (bytes, ended.expect("the stream must end").err().map(|error| error.kind()))
}

/// Waits until these bytes have come, and no others before them.
async fn hears(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    let read = tokio::time::timeout(DEADLINE, stream.read_exact(&mut bytes)).await;
    read.unwrap_or_else(|_| panic!("waited in vain for {expected:?}")).unwrap();
    assert_eq!(bytes, expected);
}

/// What is there to be read; mostly nothing.
async fn at_hand(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let read = tokio::time::timeout(SOON, stream.read(&mut bytes)).await;
    bytes.truncate(read.map_or(0, |read| read.unwrap()));
    bytes
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..bytes).map(|_| random.u8(..)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fault_every_byte_passes_both_ways_and_ends_are_passed_on() {
    let scene = Scene::new(SEED).await;
    let (mut worker, mut server) = scene.connect().await;
    let (up, down) = (noise(3_000_000), noise(2_000_000));
    let (sent, heard) = (up.clone(), down.clone());
    let served = tokio::spawn(async move {
        let (got, error) = drain(&mut server).await;
        server.write_all(&heard).await.unwrap();
        (got, error)
    });
    worker.write_all(&sent).await.unwrap();
    worker.shutdown().await.unwrap();
    let got = drain(&mut worker).await;
    assert!(got == (down, None), "{} bytes came down, {:?}", got.0.len(), got.1);
    let got = served.await.unwrap();
    assert!(got == (up, None), "{} bytes came up, {:?}", got.0.len(), got.1);
    let notes = scene.proxy.notes();
    assert_eq!((notes.connections, notes.up, notes.down), (1, 3_000_000, 2_000_000));
    assert_eq!((notes.struck, notes.cut, notes.swallowed), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_cut_after_exactly_so_many_bytes_of_one_direction() {
    for direction in [Up, Down] {
        let scene = Scene::new(SEED).await;
        let (worker, server) = scene.connect().await;
        let (mut from, mut to) = if direction == Up { (worker, server) } else { (server, worker) };
        from.write_all(b"before").await.unwrap();
        hears(&mut to, b"before").await;
        scene.proxy.set(direction, Fault::CutAfter(1000));
        // The sender may notice before all is sent.
        drop(from.write_all(&noise(200_000)).await);
        let (got, _) = drain(&mut to).await;
        assert!(got == noise(200_000)[..1000], "{direction:?}: {} bytes", got.len());
        drain(&mut from).await;
        assert_eq!((scene.proxy.notes().struck, scene.proxy.notes().cut), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_cuts_at_the_same_bytes_and_another_seed_at_others() {
    let mut lengths = Vec::new();
    for seed in [1, 1, 2] {
        let scene = Scene::new(seed).await;
        scene.proxy.set(Down, Fault::CutWithin(0..50_000));
        let mut of_seed = Vec::new();
        for _ in 0..8 {
            let (mut worker, mut server) = scene.connect().await;
            drop(server.write_all(&noise(60_000)).await);
            of_seed.push(drain(&mut worker).await.0.len());
        }
        assert!(of_seed.iter().all(|length| *length < 50_000), "{of_seed:?}");
        lengths.push(of_seed);
    }
    assert_eq!(lengths[0], lengths[1]);
    assert_ne!(lengths[0], lengths[2]);
    let mut different = lengths[0].clone();
    different.sort_unstable();
    different.dedup();
    assert!(different.len() > 4, "each connection draws its own: {different:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_connection_still_carries_the_other_direction_and_is_reset_when_healed() {
    let scene = Scene::new(SEED).await;
    let (mut worker, mut server) = scene.connect().await;
    scene.proxy.set(Down, Fault::HalfClose);
    assert_eq!(drain(&mut worker).await, (Vec::new(), None));
    worker.write_all(b"still there").await.unwrap();
    hears(&mut server, b"still there").await;
    server.write_all(b"lost").await.unwrap();
    scene.proxy.until_struck(1).await;
    scene.proxy.heal();
    assert_eq!(drain(&mut server).await.1, Some(ErrorKind::ConnectionReset));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_reaches_the_receiver_at_once_on_open_connections_and_on_new_ones() {
    for direction in [Up, Down] {
        let scene = Scene::new(SEED).await;
        let (mut worker, mut server) = scene.connect().await;
        worker.write_all(b"open").await.unwrap();
        hears(&mut server, b"open").await;
        scene.proxy.set(direction, Fault::Reset);
        let (mut other, mut receiver) = if direction == Up { (worker, server) } else { (server, worker) };
        assert_eq!(drain(&mut receiver).await.1, Some(ErrorKind::ConnectionReset), "{direction:?}");
        assert_eq!(drain(&mut other).await.1, None, "{direction:?}");
        let (mut worker, server) = scene.connect().await;
        worker.write_all(b"hello?").await.unwrap();
        let mut receiver = if direction == Up { server } else { worker };
        assert_eq!(drain(&mut receiver).await.1, Some(ErrorKind::ConnectionReset), "{direction:?}");
        assert_eq!((scene.proxy.notes().struck, scene.proxy.notes().cut), (2, 2));
        scene.proxy.heal();
        let (mut worker, mut server) = scene.connect().await;
        worker.write_all(b"again").await.unwrap();
        hears(&mut server, b"again").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_swallows_all_even_the_end_and_never_gives_it_back() {
    let scene = Scene::new(SEED).await;
    let (mut worker, mut server) = scene.connect().await;
    scene.proxy.set(Up, Fault::BlackHole);
    worker.write_all(&noise(5_000_000)).await.unwrap();
    worker.shutdown().await.unwrap();
    server.write_all(b"down").await.unwrap();
    hears(&mut worker, b"down").await;
    let swallowing = async {
        while scene.proxy.notes().swallowed < 5_000_000 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, swallowing).await.is_ok(), "{:?}", scene.proxy.notes());
    assert_eq!(at_hand(&mut server).await, b"");
    assert_eq!((scene.proxy.notes().up, scene.proxy.notes().swallowed), (0, 5_000_000));
    scene.proxy.heal();
    assert_eq!(drain(&mut server).await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_lets_the_senders_buffers_fill_and_when_it_ends_nothing_is_missing() {
    const BYTES: usize = 64 * 1024 * 1024;
    let scene = Scene::new(SEED).await;
    let (worker, mut server) = scene.connect().await;
    scene.proxy.set(Up, Fault::Stall);
    let (mut reader, mut writer) = worker.into_split();
    let sending = tokio::spawn(async move { writer.write_all(&vec![7; BYTES]).await });
    scene.proxy.until_struck(1).await;
    tokio::time::sleep(SOON).await;
    assert!(!sending.is_finished(), "the sender does not get rid of it");
    assert_eq!((at_hand(&mut server).await.len(), scene.proxy.notes().up), (0, 0));
    server.write_all(b"down").await.unwrap();
    let mut down = [0; 4];
    reader.read_exact(&mut down).await.unwrap();
    scene.proxy.heal();
    let (got, error) = drain(&mut server).await;
    sending.await.unwrap().unwrap();
    assert_eq!((got.len(), error), (BYTES, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn delays_and_limits_of_bandwidth_take_their_time_and_end_when_lifted() {
    let scene = Scene::new(SEED).await;
    let (mut worker, mut server) = scene.connect().await;
    let (by, jitter) = (Duration::from_millis(150), Duration::from_millis(50));
    scene.proxy.set(Up, Fault::Delay { by, jitter });
    let begun = Instant::now();
    worker.write_all(b"late").await.unwrap();
    let mut four = [0; 4];
    server.read_exact(&mut four).await.unwrap();
    assert!(begun.elapsed() >= by, "{:?}", begun.elapsed());
    scene.proxy.set(Up, Fault::delay(Duration::from_secs(60)));
    worker.write_all(b"free").await.unwrap();
    scene.proxy.until_struck(2).await;
    scene.proxy.heal();
    hears(&mut server, b"free").await;

    scene.proxy.set(Down, Fault::Bandwidth(100_000));
    let begun = Instant::now();
    server.write_all(&noise(30_000)).await.unwrap();
    drop(server);
    assert_eq!(drain(&mut worker).await.0.len(), 30_000);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_can_be_closed_silent_and_open_and_all_connections_cut() {
    let scene = Scene::new(SEED).await;
    let (mut worker, mut server) = scene.connect().await;
    for _ in 0..3 {
        scene.proxy.refuse();
        let refused = TcpStream::connect(scene.proxy.address()).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        worker.write_all(b"open").await.unwrap();
        hears(&mut server, b"open").await;
        scene.proxy.heal();
        drop(scene.connect().await);
    }
    scene.proxy.silence();
    let mut unheard = TcpStream::connect(scene.proxy.address()).await.unwrap();
    unheard.write_all(b"hello?").await.unwrap();
    scene.proxy.until_struck(1).await;
    assert_eq!(at_hand(&mut unheard).await, b"");
    scene.proxy.heal();
    assert_eq!(drain(&mut unheard).await.1, Some(ErrorKind::ConnectionReset));
    let before = scene.proxy.notes();
    scene.proxy.cut();
    for stream in [&mut worker, &mut server] {
        assert_eq!(drain(stream).await.1, Some(ErrorKind::ConnectionReset));
    }
    assert_eq!(scene.proxy.notes().cut, before.cut + 1);
    drop(scene.connect().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_lost_when_its_question_has_been_seen_however_it_was_cut_up() {
    let (question, answer) = (b"begin; insert; commit; ", b"done");
    for (fault, heard, ends) in [
        (Fault::cut_before(&["insert", "commit"]), &question[..15], true),
        (Fault::lose_answer(&["insert", "commit"]), &question[..], true),
        (Fault::keep_answer(&["insert", "commit"]), &question[..], false),
    ] {
        for piece in [1, 3, 100] {
            let scene = Scene::new(SEED).await;
            scene.proxy.set_times(Up, fault.clone(), 1);
            let (mut worker, mut server) = scene.connect().await;
            worker.write_all(b"commit; ").await.unwrap();
            hears(&mut server, b"commit; ").await;
            let mut got = Vec::new();
            for piece in question.chunks(piece) {
                drop(worker.write_all(piece).await);
                if piece.len() < question.len() {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            while got.len() < heard.len() {
                let more = tokio::time::timeout(DEADLINE, server.read_buf(&mut got)).await;
                assert!(more.is_ok_and(|more| more.unwrap() > 0), "{fault:?}: {got:?}");
            }
            // What was cut up may have passed in part, but never as a whole.
            assert!(got.starts_with(heard) && (heard.len() == 23) == (got == question), "{fault:?} {piece}: {got:?}");
            drop(server.write_all(answer).await);
            if ends {
                assert!(drain(&mut worker).await.0.is_empty(), "{fault:?}");
            } else {
                assert!(at_hand(&mut worker).await.is_empty(), "{fault:?}");
                scene.proxy.heal();
                assert_eq!(drain(&mut worker).await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
            }
            assert_eq!(scene.proxy.notes().struck, 1);
            // It was meant for one connection.
            let (mut worker, mut server) = scene.connect().await;
            worker.write_all(question).await.unwrap();
            hears(&mut server, question).await;
            server.write_all(answer).await.unwrap();
            hears(&mut worker, answer).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_slipped_in_once_behind_those_that_were_waited_for() {
    let scene = Scene::new(SEED).await;
    scene.proxy.set_times(Down, Fault::slip_in(b"b;", b"new;".to_vec()), 1);
    let (mut worker, mut server) = scene.connect().await;
    for (sent, heard) in [(&b"a;b;c;"[..], &b"a;b;new;c;"[..]), (b"b;", b"b;")] {
        server.write_all(sent).await.unwrap();
        hears(&mut worker, heard).await;
    }
    assert_eq!((scene.proxy.notes().struck, scene.proxy.notes().down), (1, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_strikes_open_connections_new_ones_or_so_many_as_it_is_told() {
    let scene = Scene::new(SEED).await;
    let (mut open, mut server) = scene.connect().await;
    scene.proxy.set_on(Reach::New, Up, Fault::BlackHole);
    let (mut new, mut its_server) = scene.connect().await;
    open.write_all(b"open").await.unwrap();
    new.write_all(b"new").await.unwrap();
    hears(&mut server, b"open").await;
    scene.proxy.until_struck(1).await;
    assert_eq!(at_hand(&mut its_server).await, b"");
    scene.proxy.heal();
    // Gone before the next fault comes, which it would take a share of.
    assert_eq!(drain(&mut new).await.1, Some(ErrorKind::ConnectionReset));

    scene.proxy.set_on(Reach::Open, Down, Fault::CutAfter(0));
    assert!(drain(&mut open).await.0.is_empty());
    let (mut new, mut its_server) = scene.connect().await;
    its_server.write_all(b"new").await.unwrap();
    hears(&mut new, b"new").await;

    scene.proxy.set_times(Down, Fault::Reset, 2);
    assert_eq!(drain(&mut new).await.1, Some(ErrorKind::ConnectionReset), "the open one is one of them");
    for is_struck in [true, false, false] {
        let (mut worker, mut server) = scene.connect().await;
        worker.write_all(b"hello?").await.unwrap();
        if is_struck {
            assert_eq!(drain(&mut server).await, (Vec::new(), None));
        } else {
            hears(&mut server, b"hello?").await;
        }
    }
    assert_eq!(scene.proxy.notes().struck, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_through_a_proxy_to_each_neighbour_in_this_process_and_as_a_program() {
    let mut world = World::new().await;
    let proxies = [
        world.proxy_rabbitmq(SEED).await,
        world.proxy_postgres(SEED).await,
        world.proxy_api(SEED).await,
        world.proxy_token(SEED).await,
    ];
    let running = world.start().await;
    let mut ids = world.publish_many("here", 3).await;
    world.until_delivered(&ids).await;
    let before = proxies.each_ref().map(Proxy::notes);
    for notes in before {
        assert!(notes.up > 100 && notes.down > 100, "{notes:?}");
    }
    assert_eq!(running.stop().await, leadpost::worker::Stopped::Cleanly);
    let process = world.worker(&[]).await;
    ids.extend(world.publish_many("there", 3).await);
    world.until_delivered(&ids).await;
    process.stop().await;
    for (notes, before) in proxies.each_ref().map(Proxy::notes).iter().zip(before) {
        assert!(notes.connections > before.connections && notes.up > before.up, "{notes:?}");
        assert_eq!((notes.struck, notes.cut, notes.unreachable), (0, 0, 0));
    }
    world.check_books().await;
}
