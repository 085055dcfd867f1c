use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use backstop_core::table::Target;
use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::dial::dial;
use crate::clock;
use crate::discovery::Host;

/// Connections kept for later, at most, per endpoint.
const MAX_IDLE: usize = 512;
/// A connection unused for this long is closed. Servers close idle ones after a time of their own (uvicorn: 5 s),
/// which is noticed when the connection is taken from the pool.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Read at once, in bytes; four times as much while the upstream fills it.
const READ_SIZE: usize = 8 * 1024;

/// One connection to a model server.
pub(super) struct Connection {
    stream: TcpStream,
    peer: IpAddr,
    /// Read and not taken yet. Has no memory while there is nothing to read.
    pub(super) buffer: BytesMut,
    read_size: usize,
}

impl Connection {
    /// Reads what is there into `buffer`; 0 = closed by the upstream.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Poll::Ready(ready) = self.stream.poll_read_ready(cx) else {
            if self.buffer.is_empty() {
                // Waiting may take long: it should cost nothing.
                self.buffer = BytesMut::new();
            }
            return Poll::Pending;
        };
        ready?;
        self.buffer.reserve(self.read_size);
        // Unlike `try_read`, this knows after a short read that there is no more, and saves a system call.
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer))?;
        let filled = self.buffer.len() == self.buffer.capacity();
        self.read_size = if filled { 4 * READ_SIZE } else { READ_SIZE };
        Poll::Ready(Ok(read))
    }

    /// Writes the front of `data`.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut impl Buf) -> Poll<io::Result<()>> {
        while data.has_remaining() {
            ready!(self.stream.poll_write_ready(cx))?;
            let mut slices = [io::IoSlice::new(&[]); 4];
            let count = data.chunks_vectored(&mut slices);
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(written) => data.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether it is still open and silent, as an idle connection must be.
    fn is_quiet(&self) -> bool {
        let mut byte = [0];
        self.buffer.is_empty()
            && matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Connections to one endpoint.
pub(crate) struct Pool {
    target: Target,
    host: Host,
    /// The address that accepted last: the next connection begins with it.
    accepted: Mutex<Option<IpAddr>>,
    /// Last in, first out, so that those not needed grow old at the bottom. The lock is held for a push or a pop.
    idle: Mutex<Vec<Idle>>,
}

/// No connection to the endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The host name has no address.
    #[error("{0}")]
    Unresolved(String),
}

impl Pool {
    /// `host` is where `target` is.
    pub(crate) fn new(target: Target, host: Host) -> Self {
        Self { target, host, accepted: Mutex::default(), idle: Mutex::default() }
    }

    /// For probes of the same endpoint.
    pub(crate) fn for_probes(&self) -> Self {
        Self::new(self.target.clone(), self.host.clone())
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// An idle connection that still seems open.
    pub(super) fn reuse(&self) -> Option<Connection> {
        loop {
            let idle = self.lock().pop()?;
            if self.may_keep(&idle, clock::now()) && idle.connection.is_quiet() {
                let Idle { connection, .. } = idle;
                return Some(connection);
            }
        }
    }

    /// Takes back a connection whose answer has been read to its end.
    pub(super) fn give_back(&self, mut connection: Connection) {
        if !connection.buffer.is_empty() || !self.host.has(connection.peer) {
            return;
        }
        connection.buffer = BytesMut::new();
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since: clock::now() });
        }
    }

    pub(super) async fn connect(&self, timeout: Duration) -> Result<Connection, ConnectError> {
        let connecting = async {
            let (stream, peer) = dial(self.addresses().await?, self.target.port).await?;
            *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
            Ok(Connection { stream, peer, buffer: BytesMut::new(), read_size: READ_SIZE })
        };
        tokio::time::timeout(timeout, connecting).await.unwrap_or(Err(ConnectError::Timeout(timeout)))
    }

    /// In the order in which to try them.
    async fn addresses(&self) -> Result<Vec<IpAddr>, ConnectError> {
        let mut addresses = self.host.addresses().await.map_err(ConnectError::Unresolved)?.to_vec();
        let accepted = *self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = addresses.iter().position(|it| Some(*it) == accepted) {
            addresses[..=at].rotate_right(1);
        }
        Ok(addresses)
    }

    /// Looks whether somebody listens there.
    pub(crate) async fn try_connect(&self, timeout: Duration) -> Result<(), ConnectError> {
        self.connect(timeout).await.map(drop)
    }

    /// Closes all idle connections; how many there were.
    pub(crate) fn clear(&self) -> usize {
        std::mem::take(&mut *self.lock()).len()
    }

    /// Closes connections that have been idle for too long, or lead where the host is no more.
    pub(crate) fn sweep(&self) {
        let now = clock::now();
        let mut idle = self.lock();
        let old: Vec<Idle> = idle.extract_if(.., |idle| !self.may_keep(idle, now)).collect();
        drop(idle);
        drop(old);
    }

    fn may_keep(&self, idle: &Idle, now: Instant) -> bool {
        now.duration_since(idle.since) < IDLE_TIMEOUT && self.host.has(idle.connection.peer)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
