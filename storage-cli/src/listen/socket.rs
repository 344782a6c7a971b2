//! Sockets of either kind: how they listen, are connected, read and ended.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(unix)]
use anyhow::bail;
use anyhow::{Context, Result};
use storage::config::ListenAddress;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

/// How many who want to connect may wait to be let in.
const BACKLOG: u32 = 1024;

/// A socket that listens.
pub(super) struct Listener {
    name: String,
    kind: Kind,
}

enum Kind {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix {
        listener: UnixListener,
        _file: SocketFile,
        connections: AtomicU64,
    },
}

impl Listener {
    pub(super) async fn bind(address: &ListenAddress) -> Result<Self> {
        let cannot = || format!("cannot listen at {address}");
        match address {
            ListenAddress::Tcp(address) => {
                let listener = listen(*address).with_context(cannot)?;
                let name = listener.local_addr().with_context(cannot)?.to_string();
                Ok(Self { name, kind: Kind::Tcp(listener) })
            }
            #[cfg(unix)]
            ListenAddress::Unix(path) => {
                clear_away(path).await.with_context(cannot)?;
                let listener = UnixListener::bind(path).with_context(cannot)?;
                let file = SocketFile::of(path).with_context(cannot)?;
                let kind = Kind::Unix { listener, _file: file, connections: AtomicU64::new(0) };
                Ok(Self { name: address.to_string(), kind })
            }
            #[cfg(not(unix))]
            ListenAddress::Unix(_) => anyhow::bail!("{}: there are none on this system", cannot()),
        }
    }

    /// Where it listens, with the port that was chosen for it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the next connection; with what its lines are reported under.
    pub(super) async fn accept(&self) -> io::Result<(Stream, String)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            #[cfg(unix)]
            Kind::Unix { listener, connections, _file: _ } => {
                let (stream, _) = listener.accept().await?;
                // Who connects has no name here.
                let number = connections.fetch_add(1, Ordering::Relaxed) + 1;
                Ok((Stream::Unix(stream), format!("{}#{number}", self.name)))
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // What was here before may still have connections that wait for their end.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    // Connections inherit it: a peer that was switched off must not keep its place for ever.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Removes the file of a Unix socket on which nobody listens any more.
#[cfg(unix)]
async fn clear_away(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;

    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        bail!("there is a file, and it is no socket; name another path, or remove it");
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another program listens there"),
        // It does not keep up.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("another program listens there")
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).context("what was left behind cannot be removed")
        }
        Err(error) => Err(error).context("it cannot be found out whether somebody listens there"),
    }
}

/// The file of a Unix socket, removed with this; never one that somebody else put in its place.
#[cfg(unix)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

#[cfg(unix)]
impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: id_of(path)? })
    }
}

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            // The next one to listen here clears it away.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;

    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Stream {
    /// Waits for what the peer sends; 0 bytes are its end. Given up half way nothing is lost.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read(buffer)
                }
                #[cfg(unix)]
                Self::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read(buffer)
                }
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}
