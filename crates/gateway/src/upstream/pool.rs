use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use backstop_core::table::Target;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::clock;

/// Connections kept for later, at most, per endpoint.
const MAX_IDLE: usize = 512;
/// A connection unused for this long is closed: below the keep-alive of uvicorn (5 s) it would be of no use,
/// far above it the server closes it under us.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

type Driver = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// One connection together with the future that moves its bytes.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Full<Bytes>>,
    /// `None` once it has ended; a future must not be polled after that.
    driver: Option<Pin<Box<Driver>>>,
}

impl Connection {
    /// Moves bytes as far as they go.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether another request can be sent: nothing outstanding, and the server has not closed it.
    fn is_reusable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Connections to one endpoint.
pub(crate) struct Pool {
    target: Target,
    /// Last in, first out, so that those not needed grow old at the bottom. The lock is held for a push or a pop.
    idle: Mutex<Vec<Idle>>,
}

/// No connection to the endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Handshake(#[from] hyper::Error),
}

impl Pool {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, idle: Mutex::new(Vec::new()) }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// An idle connection that still seems open.
    pub(super) fn reuse(&self) -> Option<Connection> {
        loop {
            let Idle { mut connection, since } = self.lock().pop()?;
            if clock::now().duration_since(since) < IDLE_TIMEOUT && connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    /// Takes a connection back; it is closed if it can't be used again.
    pub(super) fn give_back(&self, mut connection: Connection) {
        if !connection.is_reusable() {
            return;
        }
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since: clock::now() });
        }
    }

    pub(super) async fn connect(&self, timeout: Duration) -> Result<Connection, ConnectError> {
        let connecting = async {
            let stream = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
            stream.set_nodelay(true)?;
            let (sender, driver) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
            Ok(Connection { sender, driver: Some(Box::pin(driver)) })
        };
        tokio::time::timeout(timeout, connecting).await.unwrap_or(Err(ConnectError::Timeout(timeout)))
    }

    /// Whether somebody listens there.
    pub(crate) async fn can_connect(&self, timeout: Duration) -> bool {
        self.connect(timeout).await.is_ok()
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep(&self) {
        let now = clock::now();
        let old: Vec<Idle> = {
            let mut idle = self.lock();
            let kept = idle.partition_point(|idle| now.duration_since(idle.since) >= IDLE_TIMEOUT);
            idle.drain(..kept).collect()
        };
        drop(old);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
