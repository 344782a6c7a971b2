//! Sockets without a process around them: how many, how full, how they end, whose file it is.
#![cfg(unix)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::input::time::TimeFormat;
use crate::input::{Defaults, LineRules};

const WHILE: Duration = Duration::from_secs(30);

fn syntax() -> Syntax {
    let defaults = Defaults { server: "here".into(), metric: None, time_format: TimeFormat::Auto };
    Syntax { format: None, defaults, lines: LineRules { bytes_max: 1 << 10, needs_end: true } }
}

fn config(addresses: &[&str]) -> ListenConfig {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    ListenConfig { addresses, ..ListenConfig::default() }
}

fn unix(dir: &TempDir) -> (String, std::path::PathBuf) {
    let path = dir.path().join("x.sock");
    (format!("unix:{}", path.display()), path)
}

async fn listening(
    config: &ListenConfig,
    capacity: usize,
) -> (Listening, String, mpsc::Receiver<MetricRecord>) {
    listening_as(config, capacity, syntax()).await
}

async fn listening_as(
    config: &ListenConfig,
    capacity: usize,
    syntax: Syntax,
) -> (Listening, String, mpsc::Receiver<MetricRecord>) {
    let bound = Bound::open(config, syntax).await.unwrap();
    let addresses = bound.addresses();
    let (sender, receiver) = mpsc::channel(capacity);
    (bound.start(sender), addresses, receiver)
}

fn line(server: usize, number: usize) -> String {
    format!("m,host=s-{server} value={number} {}\n", (number as i64 + 1) * 1_000_000_000_000_000)
}

/// Lets others go on until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + WHILE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_at_a_time_in_any_format() {
    let dir = tempfile::tempdir().unwrap();
    let (address, path) = unix(&dir);
    let (mut listening, names, mut receiver) =
        listening(&config(&["127.0.0.1:0", &address]), 16).await;
    let port = names.split_once(", ").unwrap().0.to_owned();
    let peers: Vec<_> = (0..40)
        .map(|peer| {
            let (port, path) = (port.clone(), path.clone());
            std::thread::spawn(move || {
                let mut text: String = (0..200).map(|number| line(peer, number)).collect();
                if peer % 4 == 0 {
                    let of = |number: usize| format!("{},{number}\n", 1_392_388_200_000 + number);
                    let lines: String = (0..200).map(of).collect();
                    text = format!("time,value,metric,server\n{lines}").replace('\n', ",m,s-0\n");
                    text = text.replacen(",m,s-0", "", 1).replace("s-0", &format!("s-{peer}"));
                }
                let mut stream: Box<dyn Write> = match peer % 2 {
                    0 => Box::new(TcpStream::connect(port).unwrap()),
                    _ => Box::new(UnixStream::connect(path).unwrap()),
                };
                stream.write_all(text.as_bytes()).unwrap();
            })
        })
        .collect();
    let mut next = [0; 40];
    for _ in 0..40 * 200 {
        let record = timeout(WHILE, receiver.recv()).await.unwrap().unwrap();
        let server: usize = record.server_id.strip_prefix("s-").unwrap().parse().unwrap();
        // Each connection in its order.
        assert_eq!((record.value, &*record.metric_type), (f64::from(next[server]), "m"));
        next[server] += 1;
    }
    assert!(next.iter().all(|count| *count == 200));
    peers.into_iter().for_each(|peer| peer.join().unwrap());
    listening.stop(WHILE).await;
    assert_eq!(listening.tally().await, Tally { connections: 40, ..Tally::default() });
}

/// The end may come while the store is still being opened.
#[tokio::test(flavor = "multi_thread")]
async fn who_connected_before_anybody_was_let_in_is_read_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (address, path) = unix(&dir);
    let bound = Bound::open(&config(&["127.0.0.1:0", &address]), syntax()).await.unwrap();
    let port = bound.addresses().split_once(", ").unwrap().0.to_owned();
    for peer in 0..20 {
        let mut stream: Box<dyn Write> = match peer % 2 {
            0 => Box::new(TcpStream::connect(&port).unwrap()),
            _ => Box::new(UnixStream::connect(&path).unwrap()),
        };
        stream.write_all(line(peer, 1).as_bytes()).unwrap();
    }
    let (sender, mut receiver) = mpsc::channel(100);
    let mut listening = bound.start(sender);
    listening.stop(WHILE).await;
    assert_eq!(listening.tally().await, Tally { connections: 20, ..Tally::default() });
    for _ in 0..20 {
        receiver.recv().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_closed_and_there_is_room_when_one_ends() {
    let config = ListenConfig { connections_max: 2, ..config(&["127.0.0.1:0"]) };
    let (mut listening, port, mut receiver) = listening(&config, 16).await;
    let connect = || TcpStream::connect(&port).unwrap();
    let (first, _second) = (connect(), connect());
    until("two are in", || listening.shared.tally().connections == 2).await;
    let mut third = connect();
    third.set_read_timeout(Some(WHILE)).unwrap();
    assert!(!third.read(&mut [0]).is_ok_and(|read| read > 0));
    assert_eq!(listening.shared.tally().refused, 1);
    drop(first);
    until("there is room again", || listening.shared.places.available_permits() == 1).await;
    connect().write_all(line(1, 1).as_bytes()).unwrap();
    assert_eq!(timeout(WHILE, receiver.recv()).await.unwrap().unwrap().server_id, "s-1");
    listening.stop(WHILE).await;
    let tally = listening.tally().await;
    assert_eq!((tally.connections, tally.refused, tally.cut_off), (3, 1, 0));
}

/// Nobody takes records: the peer cannot send on, and what it sent comes when somebody does.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_pipeline_makes_the_peer_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (address, path) = unix(&dir);
    let (mut listening, _, mut receiver) = listening(&config(&[&address]), 4).await;
    let mut peer = UnixStream::connect(path).unwrap();
    peer.set_nonblocking(true).unwrap();
    let (mut sent, mut rest) = (0, Vec::new());
    let mut send = |peer: &mut UnixStream| loop {
        if rest.is_empty() {
            rest = line(0, sent).into_bytes();
            sent += 1;
        }
        match peer.write(&rest) {
            Ok(written) => drop(rest.drain(..written)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return (sent, rest.clone());
            }
        }
    };
    send(&mut peer);
    until("the channel is full", || receiver.len() == 4).await;
    // The reader waits by now; it has taken what its buffer holds.
    let (lines, rest) = send(&mut peer);
    assert!(lines < 100_000, "{lines} lines went somewhere");
    assert_eq!(send(&mut peer), (lines, rest.clone()));
    let sending = std::thread::spawn(move || {
        peer.set_nonblocking(false).unwrap();
        peer.write_all(&rest).unwrap();
    });
    for number in 0..lines {
        let record = timeout(WHILE, receiver.recv()).await.unwrap().unwrap();
        assert_eq!(record.value, number as f64);
    }
    sending.join().unwrap();
    listening.stop(WHILE).await;
    assert_eq!(listening.tally().await, Tally { connections: 1, ..Tally::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_received_is_read_at_the_end_and_half_a_line_is_not() {
    for address in ["127.0.0.1:0", "unix"] {
        let dir = tempfile::tempdir().unwrap();
        let (unix, path) = unix(&dir);
        let address = if address == "unix" { &unix } else { address };
        let (mut listening, port, mut receiver) = listening(&config(&[address]), 2000).await;
        let mut peer: Box<dyn Write> = match address.starts_with("unix") {
            true => Box::new(UnixStream::connect(&path).unwrap()),
            false => Box::new(TcpStream::connect(port).unwrap()),
        };
        until("it is in", || listening.shared.tally().connections == 1).await;
        let text: String = (0..1000).map(|number| line(0, number)).collect();
        peer.write_all(&text.as_bytes()[..text.len() - 5]).unwrap();
        listening.stop(WHILE).await;
        assert!(!path.exists());
        let tally = listening.tally().await;
        assert_eq!((tally.bad_lines, tally.cut_off), (1, 0));
        let mut received = 0;
        while receiver.recv().await.is_some() {
            received += 1;
        }
        assert_eq!(received, 999);
        drop(peer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_nobody_hears_is_given_up_and_counted() {
    let (mut listening, port, receiver) = listening(&config(&["127.0.0.1:0"]), 1).await;
    let mut peer = TcpStream::connect(port).unwrap();
    peer.write_all((0..10).map(|number| line(0, number)).collect::<String>().as_bytes()).unwrap();
    until("the channel is full", || receiver.len() == 1).await;
    listening.stop(Duration::from_millis(10)).await;
    drop(receiver);
    assert_eq!(listening.tally().await.cut_off, 1);
}

#[tokio::test]
async fn bad_lines_and_headers_cost_their_own_connection_alone() {
    let (mut listening, port, mut receiver) = listening(&config(&["127.0.0.1:0"]), 16).await;
    let send = |text: &str| TcpStream::connect(&port).unwrap().write_all(text.as_bytes()).unwrap();
    let endless = "9".repeat(1 << 20);
    send(&format!("{}nonsense\n{endless}\n{}", line(1, 1), line(1, 2)));
    // A header without a value is none, so these are two lines of line protocol.
    send("time,count\n1,2\n");
    send("time,value,server,metric\n2014-02-14,3,\"s-1,m\n2014-02-14,3,s-1,m\n");
    let mut values = Vec::new();
    while values.len() < 3 {
        values.push(timeout(WHILE, receiver.recv()).await.unwrap().unwrap().value as u64);
    }
    values.sort_unstable();
    assert_eq!(values, [1, 2, 3]);
    listening.stop(WHILE).await;
    let tally = listening.tally().await;
    assert_eq!((tally.connections, tally.bad_lines, tally.cut_off), (3, 5, 0));
}

/// What the header lacks is said, and the connection closed.
#[tokio::test]
async fn a_header_that_is_none_ends_its_connection_alone() {
    let csv = Syntax { format: Some(crate::args::SampleFormat::Csv), ..syntax() };
    let (mut listening, port, mut receiver) =
        listening_as(&config(&["127.0.0.1:0"]), 16, csv).await;
    for header in ["time,count\n", &format!("{}\n", "x".repeat(2000))] {
        let mut peer = TcpStream::connect(&port).unwrap();
        peer.write_all(header.as_bytes()).unwrap();
        peer.set_nonblocking(true).unwrap();
        until("it is closed", || {
            !peer.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        })
        .await;
    }
    let good = "time,value,server,metric\n2014-02-14,3,s-1,m\n";
    TcpStream::connect(&port).unwrap().write_all(good.as_bytes()).unwrap();
    assert_eq!(timeout(WHILE, receiver.recv()).await.unwrap().unwrap().value, 3.0);
    listening.stop(WHILE).await;
    assert_eq!(listening.tally().await, Tally { connections: 3, ..Tally::default() });
}

#[tokio::test]
async fn a_socket_file_that_was_left_behind_is_cleared_away_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (address, path) = unix(&dir);
    let open = async |path: &Path| {
        Bound::open(&config(&[&format!("unix:{}", path.display())]), syntax()).await.err()
    };
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists() && open(&path).await.is_none());
    assert!(!path.exists(), "it is removed with what listened");

    let other = UnixListener::bind(&path).unwrap();
    assert!(format!("{:#}", open(&path).await.unwrap()).contains("another program listens"));
    UnixStream::connect(&path).unwrap();
    drop(other);
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert!(format!("{:#}", open(&file).await.unwrap()).contains("no socket"));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    assert!(open(&dir.path().join("nowhere/x.sock")).await.is_some());

    // Somebody else's, put in the place of one's own.
    let bound = Bound::open(&config(&[&address]), syntax()).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(bound);
    assert!(path.exists());
}

#[tokio::test]
async fn addresses_that_others_reach_are_asked_for_twice() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refused = Bound::open(&config(&[address]), syntax()).await.err().unwrap();
        assert!(refused.to_string().contains("--allow-remote"), "{refused}");
    }
    let allowed = ListenConfig { allow_remote: true, ..config(&["0.0.0.0:0"]) };
    assert!(Bound::open(&allowed, syntax()).await.unwrap().addresses().starts_with("0.0.0.0:"));
}
