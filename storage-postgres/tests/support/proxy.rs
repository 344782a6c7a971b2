//! A proxy in front of a server that cuts or stalls connections after so many bytes.
#![allow(dead_code, clippy::unwrap_used)] // each target uses a part of it

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What happens when the bytes are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The connection is closed on both sides.
    Cut,
    /// Nothing more goes through, but the connection stays.
    Stall,
}

struct State {
    /// Bytes that still go through, both ways together; `i64::MAX` for any number.
    left: AtomicI64,
    stalls: AtomicBool,
    /// Whether the next answer to a commit is withheld.
    withholds_commit: AtomicBool,
    /// Rung to close connections that are stalled.
    release: Notify,
    struck: AtomicU64,
}

/// A proxy; it ends with the runtime.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `target`.
    pub(crate) async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            left: AtomicI64::new(i64::MAX),
            stalls: false.into(),
            withholds_commit: false.into(),
            release: Notify::new(),
            struck: AtomicU64::new(0),
        });
        let proxy = Self { port, state: Arc::clone(&state) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, target) = (Arc::clone(&state), target.clone());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(target).await {
                        pass(client, server, &state).await;
                    }
                });
            }
        });
        proxy
    }

    /// In front of the server at `url`, which names 127.0.0.1 and a port; with the URL by way of it.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let server: tokio_postgres::Config = url.parse().unwrap();
        let port = server.get_ports()[0];
        let proxy = Self::start(format!("127.0.0.1:{port}")).await;
        let by_proxy = url.replacen(&format!(":{port}/"), &format!(":{}/", proxy.port), 1);
        (proxy, by_proxy)
    }

    /// Strikes once `bytes` more bytes have gone through, on whichever connection.
    pub(crate) fn strike_after(&self, bytes: i64, then: Then) {
        self.state.stalls.store(then == Then::Stall, Ordering::SeqCst);
        self.state.left.store(bytes, Ordering::SeqCst);
    }

    /// Cuts a connection once the server has committed on it, before the client hears of that.
    pub(crate) fn withhold_commit(&self) {
        self.state.withholds_commit.store(true, Ordering::SeqCst);
    }

    /// Lets everything through again, and closes what is stalled.
    pub(crate) fn heal(&self) {
        self.state.left.store(i64::MAX, Ordering::SeqCst);
        self.state.release.notify_waiters();
    }

    /// How often it struck.
    pub(crate) fn struck(&self) -> u64 {
        self.state.struck.load(Ordering::SeqCst)
    }
}

async fn pass(client: TcpStream, server: TcpStream, state: &State) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // Either side ends both.
    tokio::select! {
        () = pump(&mut from_client, &mut to_server, state, false) => {}
        () = pump(&mut from_server, &mut to_client, state, true) => {}
    }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    state: &State,
    is_answer: bool,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let is_commit = is_answer && buffer[..read].windows(7).any(|bytes| bytes == b"COMMIT\0");
        if is_commit && state.withholds_commit.swap(false, Ordering::SeqCst) {
            state.struck.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let some = if state.left.load(Ordering::SeqCst) == i64::MAX {
            read
        } else {
            let left = state.left.fetch_sub(read as i64, Ordering::SeqCst);
            usize::try_from(left.clamp(0, read as i64)).unwrap()
        };
        if to.write_all(&buffer[..some]).await.is_err() {
            return;
        }
        if some < read {
            state.struck.fetch_add(1, Ordering::SeqCst);
            if state.stalls.load(Ordering::SeqCst) {
                state.release.notified().await;
            }
            return;
        }
    }
}
