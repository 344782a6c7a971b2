//! `storage run --listen`: samples by sockets, many connections at a time, until a signal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, Run, terminate};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A process that listens.
struct Listening<'a> {
    fixture: &'a Fixture,
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
}

impl<'a> Listening<'a> {
    fn start(fixture: &'a Fixture, args: &[&str]) -> Self {
        let args = [&["--format", "json", "run"], args].concat();
        let mut command = fixture.command(&args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut listening = Self { fixture, child, stderr, said: String::new() };
        listening.hear("listening at");
        listening
    }

    /// Reads on until a line of stderr holds `text`, and returns the line.
    fn hear(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stderr.read_line(&mut line).unwrap();
            self.said.push_str(&line);
            assert!(read > 0, "`{text}` was not said: {}", self.said);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The address with the port that it chose.
    fn port(&self) -> String {
        let (_, rest) = self.said.split_once("127.0.0.1:").unwrap();
        format!("127.0.0.1:{}", rest.split([' ', ',']).next().unwrap())
    }

    fn terminate(mut self) -> Run {
        terminate(&self.child);
        self.stderr.read_to_string(&mut self.said).unwrap();
        let mut run = Run::of(self.child.wait_with_output().unwrap());
        run.stderr = self.said;
        run
    }

    fn wait_for_samples(&self, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.fixture.samples() < count {
            assert!(Instant::now() < deadline, "{count} samples were not stored");
            std::thread::yield_now();
        }
    }
}

fn fixture(listen: Value) -> Fixture {
    let fixture = Fixture::new();
    let storage = json!({
        "sqlite": { "path": fixture.path("metrics.db") },
        "collect": { "server": "here" },
        "flush_interval_secs": 1,
        "listen": listen,
    });
    fixture.file("storage.json", &json!({ "storage": storage }).to_string());
    fixture
}

fn unix_address(fixture: &Fixture) -> String {
    format!("unix:{}", fixture.path("x.sock").display())
}

fn lines(server: usize, count: usize) -> String {
    let of = |number: usize| {
        let ms = 1_767_225_600_000 + number;
        format!(
            "{{\"server_id\":\"s-{server}\",\"metric_type\":\"m\",\"ts\":{ms},\"value\":{number}}}\n"
        )
    };
    (0..count).map(of).collect()
}

#[test]
fn many_connections_by_both_kinds_of_sockets_are_stored_and_bad_lines_named() {
    let fixture = fixture(json!({}));
    let unix = unix_address(&fixture);
    let process = Listening::start(&fixture, &["--listen", &unix, "--listen", "127.0.0.1:0"]);
    let (port, path) = (process.port(), fixture.path("x.sock"));
    let peers: Vec<_> = (0..30)
        .map(|peer| {
            let (port, path) = (port.clone(), path.clone());
            std::thread::spawn(move || {
                let mut stream: Box<dyn Write> = match peer % 2 {
                    0 => Box::new(TcpStream::connect(port).unwrap()),
                    _ => Box::new(UnixStream::connect(path).unwrap()),
                };
                let bad = if peer < 2 { "\u{1b}nonsense\n" } else { "" };
                let text = format!("{}{bad}{}", lines(peer, 100), lines(peer, 500));
                for piece in text.as_bytes().chunks(1000) {
                    stream.write_all(piece).unwrap();
                }
            })
        })
        .collect();
    peers.into_iter().for_each(|peer| peer.join().unwrap());
    process.wait_for_samples(30 * 500);
    let run = process.terminate();
    assert_eq!(run.code, 0, "{run:?}");
    let summary = run.json();
    assert_eq!((&summary["samples_received"], &summary["bad_lines"]), (&json!(18_000), &json!(2)));
    assert_eq!((&summary["samples_stored"], &summary["samples_lost"]), (&json!(18_000), &json!(0)));
    assert_eq!((&summary["connections"], &summary["connections_refused"]), (&json!(30), &json!(0)));
    assert!(run.stderr.contains(&format!("warning: {unix}#")), "{}", run.stderr);
    assert!(run.stderr.contains("warning: 127.0.0.1:"), "{}", run.stderr);
    assert_eq!(run.stderr.matches(":101: ").count(), 2, "{}", run.stderr);
    assert!(!run.stderr.contains('\u{1b}'), "{}", run.stderr);
    assert_eq!(fixture.samples(), 30 * 500);
    let found = fixture.json(&["query", "s-7", "m"]);
    let values = found.as_array().unwrap().iter().map(|sample| sample["value"].as_f64().unwrap());
    assert!(values.eq((0..500).map(f64::from)), "{found}");
    assert!(!path.exists(), "the socket is still there");
}

/// The peers are connected, and what they sent last was never read when the signal comes.
#[test]
fn a_signal_drains_what_was_received() {
    let fixture = fixture(json!({}));
    let process = Listening::start(&fixture, &["--listen", "127.0.0.1:0"]);
    let port = process.port();
    let mut peers: Vec<_> = (0..10).map(|_| TcpStream::connect(&port).unwrap()).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.write_all(lines(number, 1).as_bytes()).unwrap();
    }
    process.wait_for_samples(10);
    for (number, peer) in peers.iter_mut().enumerate() {
        let text = lines(number, 2000);
        peer.write_all(&text.as_bytes()[..text.len() - 1]).unwrap();
    }
    let run = process.terminate();
    assert_eq!(run.code, 0, "{run:?}");
    // The last line of each has no end.
    assert_eq!((fixture.samples(), &run.json()["bad_lines"]), (10 * 1999, &json!(10)), "{run:?}");
    assert!(run.stderr.contains("ended within the line"), "{}", run.stderr);
    for mut peer in peers {
        assert!(!peer.read(&mut [0]).is_ok_and(|read| read > 0));
    }
}

#[test]
fn a_socket_of_a_process_that_was_killed_is_taken_over_and_one_in_use_is_not() {
    let fixture = fixture(json!({ "addresses": "unix:x.sock" }));
    let mut killed = Listening::start(&fixture, &[]);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(fixture.path("x.sock").exists());
    let process = Listening::start(&fixture, &[]);
    let line = fixture.refused(&["run"]);
    assert!(line.contains("unix:x.sock") && line.contains("another program"), "{line}");
    UnixStream::connect(fixture.path("x.sock")).unwrap().write_all(lines(0, 5).as_bytes()).unwrap();
    process.wait_for_samples(5);
    assert_eq!(process.terminate().code, 0);
    assert!(!fixture.path("x.sock").exists());
}

#[test]
fn bounds_of_the_configuration_hold() {
    let listen = json!({
        "addresses": ["127.0.0.1:0"], "connections_max": 1, "line_bytes_max": 2048,
    });
    let fixture = fixture(listen);
    let mut process = Listening::start(&fixture, &["--input-format", "influx", "--metric", "x"]);
    let mut peer = TcpStream::connect(process.port()).unwrap();
    let long = format!("# {}\ncpu value=1 1767225600000000000\n", "x".repeat(10_000));
    peer.write_all(long.as_bytes()).unwrap();
    assert!(process.hear("longer than 2.0 KiB").contains(":1: "));
    let mut second = TcpStream::connect(process.port()).unwrap();
    assert!(!second.read(&mut [0]).is_ok_and(|read| read > 0));
    process.hear("is refused: 1 connection at a time");
    process.wait_for_samples(1);
    let run = process.terminate();
    let summary = run.json();
    assert_eq!((run.code, &summary["connections_refused"]), (0, &json!(1)), "{run:?}");
    assert_eq!((&summary["connections"], &summary["bad_lines"]), (&json!(1), &json!(1)));
    // A line without a server counts as this host's.
    assert_eq!(fixture.json(&["latest", "here", "cpu"]).as_array().unwrap().len(), 1);
}

#[test]
fn addresses_that_make_no_sense_are_refused_in_one_line() {
    let fixture = fixture(json!({}));
    let line = fixture.refused(&["run", "--listen", "0.0.0.0:0"]);
    assert!(line.contains("--allow-remote"), "{line}");
    fixture.file("file", "mine");
    let line = fixture.refused(&["run", "--listen", "unix:file"]);
    assert!(line.contains("no socket"), "{line}");
    let line = fixture.refused(&["run", "--metric", "m"]);
    assert!(line.contains("--listen"), "{line}");
    let usage = fixture.run(&["run", "--listen", "localhost"]);
    assert!(usage.code == 2 && usage.stderr.contains("127.0.0.1:8094"), "{usage:?}");
    let usage = fixture.run(&["run", "--stdin", "--listen", "unix:x"]);
    assert_eq!(usage.code, 2, "{usage:?}");
    assert!(!fixture.path("metrics.db").exists());
}
