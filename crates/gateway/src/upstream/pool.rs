use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::BytesMut;

use super::connection::Connection;
use super::connector::{ConnectError, Connected, Connector};
use super::http2::{Multiplexed, Slot};
use crate::clock;

/// Connections kept for later, at most, per endpoint.
const MAX_IDLE: usize = 512;
/// A connection unused for this long is closed. Servers close idle ones after a time of their own (uvicorn: 5 s),
/// which is noticed when the connection is taken from the pool.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A way to send one request.
pub(super) enum Way {
    /// A connection to itself.
    Http1(Connection),
    /// A place on a connection that it shares with others.
    Http2(Slot),
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Idle {
    fn may_stay(&self, connector: &Connector, now: Instant) -> bool {
        now.duration_since(self.since) < IDLE_TIMEOUT && connector.leads_to(self.connection.peer)
    }
}

/// Connections that may be used again.
#[derive(Default)]
struct Held {
    /// Last in, first out, so that those not needed grow old at the bottom.
    idle: Vec<Idle>,
    /// The first with a free place is used, so that those not needed become idle.
    shared: Vec<Arc<Multiplexed>>,
    /// Grows when connections are to be made in another way from now on.
    generation: u32,
}

impl Held {
    fn free_slot(&mut self, connector: &Connector) -> Option<Slot> {
        self.shared.retain(|it| it.is_usable() && connector.leads_to(it.peer));
        self.shared.iter().find_map(Multiplexed::take)
    }
}

/// Connections to one endpoint.
pub(crate) struct Pool {
    connector: Arc<ArcSwap<Connector>>,
    /// The lock is held for a push or a pop.
    held: Mutex<Held>,
    /// Whether connections are kept after their first request.
    keeps: bool,
    /// The server was asked whether it speaks HTTP/2, and does not.
    only_http1: AtomicBool,
    /// One new connection after the other where several requests may share it.
    connecting: tokio::sync::Mutex<()>,
}

impl Pool {
    pub(crate) fn new(connector: Connector) -> Self {
        Self::with(Arc::new(ArcSwap::from_pointee(connector)), true)
    }

    /// For probes of the same endpoint, each over a connection of its own.
    pub(crate) fn for_probes(&self) -> Self {
        Self::with(Arc::clone(&self.connector), false)
    }

    fn with(connector: Arc<ArcSwap<Connector>>, keeps: bool) -> Self {
        Self {
            connector,
            held: Mutex::default(),
            keeps,
            only_http1: AtomicBool::new(false),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn connector(&self) -> Arc<Connector> {
        self.connector.load_full()
    }

    /// Makes connections in this way from now on; `false` if that is no change. Those there are serve only what runs
    /// on them.
    pub(crate) fn reconfigure(&self, connector: Connector) -> bool {
        let changes = **self.connector.load() != connector;
        if changes {
            self.connector.store(Arc::new(connector));
            self.clear();
            self.only_http1.store(false, Relaxed);
        }
        changes
    }

    /// A connection that still seems fit for a request.
    pub(super) fn reuse(&self) -> Option<Way> {
        let connector = self.connector.load();
        loop {
            let mut held = self.lock();
            if let Some(slot) = held.free_slot(&connector) {
                return Some(Way::Http2(slot));
            }
            let mut idle = held.idle.pop()?;
            drop(held);
            if idle.may_stay(&connector, clock::now()) && idle.connection.is_quiet() {
                return Some(Way::Http1(idle.connection));
            }
        }
    }

    /// Takes back a connection whose answer has been read to its end.
    pub(super) fn give_back(&self, mut connection: Connection) {
        if !self.keeps || !connection.buffer.is_empty() || !self.connector.load().leads_to(connection.peer) {
            return;
        }
        connection.buffer = BytesMut::new();
        let mut held = self.lock();
        if held.idle.len() < MAX_IDLE && connection.generation == held.generation {
            held.idle.push(Idle { connection, since: clock::now() });
        }
    }

    /// A new connection, or a place on one that has just been made for somebody else.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<Way, ConnectError> {
        let connecting = async {
            if self.may_share() {
                let _one_after_the_other = self.connecting.lock().await;
                if let Some(slot) = self.lock().free_slot(&self.connector.load()) {
                    return Ok(Way::Http2(slot));
                }
                // Unless somebody has found out meanwhile that there is nothing to share.
                if self.may_share() {
                    return self.open().await;
                }
            }
            self.open().await
        };
        tokio::time::timeout(timeout, connecting).await.unwrap_or(Err(ConnectError::Timeout(timeout)))
    }

    /// Whether several requests may share the next connection, as far as is known.
    fn may_share(&self) -> bool {
        self.keeps && self.connector.load().may_speak_http2() && !self.only_http1.load(Relaxed)
    }

    async fn open(&self) -> Result<Way, ConnectError> {
        // In this order: a way that is replaced in between makes no connection of the new generation.
        let generation = self.lock().generation;
        let connector = self.connector();
        let Connected { stream, peer, http2 } = connector.connect().await?;
        if !http2 {
            if self.lock().generation == generation {
                self.only_http1.store(true, Relaxed);
            }
            return Ok(Way::Http1(Connection::new(stream, peer.good(), generation)));
        }
        let connection = Multiplexed::open(stream, peer).await?;
        let slot = Multiplexed::take(&connection).ok_or_else(|| {
            ConnectError::Io(io::Error::new(io::ErrorKind::ConnectionAborted, "closed at once"))
        })?;
        let mut held = self.lock();
        if self.keeps && held.generation == generation {
            self.only_http1.store(false, Relaxed);
            held.shared.push(connection);
        }
        Ok(Way::Http2(slot))
    }

    /// Looks whether somebody listens there.
    pub(crate) async fn try_connect(&self, timeout: Duration) -> Result<(), ConnectError> {
        let connector = self.connector();
        let connected = tokio::time::timeout(timeout, connector.connect_tcp()).await;
        connected.map_err(|_| ConnectError::Timeout(timeout))?.map(drop)
    }

    /// Lets go of all connections: idle ones are closed, the others when what runs on them has ended. How many there
    /// were.
    pub(crate) fn clear(&self) -> usize {
        let mut held = self.lock();
        let generation = held.generation.wrapping_add(1);
        let Held { idle, shared, .. } = std::mem::replace(&mut *held, Held { generation, ..Held::default() });
        drop(held);
        idle.len() + shared.len()
    }

    /// Closes connections that have been idle for too long, or lead where the host is no more.
    pub(crate) fn sweep(&self) {
        let now = clock::now();
        let connector = self.connector.load();
        let mut held = self.lock();
        let old: Vec<Idle> = held.idle.extract_if(.., |it| !it.may_stay(&connector, now)).collect();
        let may_stay = |it: &Multiplexed| {
            it.is_usable() && it.idle_for(now) < IDLE_TIMEOUT && connector.leads_to(it.peer)
        };
        let unused: Vec<_> = held.shared.extract_if(.., |it| !may_stay(it)).collect();
        drop(held);
        drop((old, unused));
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
