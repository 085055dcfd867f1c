//! Accepts connections and lets them end well.

mod connection;
mod explain;
mod http2;
mod parting;
mod socket;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{error, warn};

use crate::Shared;
use crate::tasks;
use crate::tls::Certificate;

/// Connections of clients at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 50_000;
/// After the drain deadline, the time for error events to reach their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// After a hand-over, the time for idle connections to bring one more request: clients that use a connection at all
/// use it again within seconds.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// Why a gateway stops accepting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The service ends here: new connections are refused, and idle ones are closed at once.
    Stop,
    /// Another process accepts from the same socket. A request that is just on its way on an idle connection is still
    /// answered, and its answer asks the client to connect anew.
    HandOver,
}

/// Where the process stands on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Running,
    /// Another process accepts; connections end with their next answer.
    Leaving,
    /// No new connections; requests in flight may end.
    Draining,
    /// Whatever is left ends now, with a proper error.
    Closing,
}

/// Serves clients of `listener` until `stop` resolves; then drains for up to `drain`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    listener: TcpListener,
    certificate: Option<&Certificate>,
    stop: impl Future<Output = Leave>,
    drain: Duration,
) {
    let tls = certificate.map(|it| it.acceptor(&["h2", "http/1.1"]));
    let open = Arc::new(AtomicUsize::new(0));
    let mut stop = pin!(stop);
    let leave = loop {
        let accepted = tokio::select! {
            leave = &mut stop => break leave,
            accepted = accept(&listener, &open) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => serve(&shared, &open, tls.as_ref(), stream, peer),
            // The process is out of descriptors, or the client has gone already: neither ends the service.
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    // Whoever is connected already has been promised an answer.
    while let Some(Ok((stream, peer))) = waiting(&listener) {
        serve(&shared, &open, tls.as_ref(), stream, peer);
    }
    drop(listener);
    let mut drain = drain;
    if leave == Leave::HandOver {
        let idle = drain.min(LAST_REQUEST);
        drain -= idle;
        shared.hand_over();
        emptied(&open, idle).await;
    }
    shared.set_phase(Phase::Draining);
    if !emptied(&open, drain).await {
        warn!(connections = open.load(Relaxed), "drain deadline reached; closing what is left");
        shared.set_phase(Phase::Closing);
        if !emptied(&open, LAST_WORDS).await {
            error!(connections = open.load(Relaxed), "connections had to be dropped");
        }
    }
}

/// Serves a connection in a task of its own.
fn serve(
    shared: &Arc<Shared>,
    open: &Arc<AtomicUsize>,
    tls: Option<&TlsAcceptor>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let guard = Open::new(open);
    let (shared, tls) = (Arc::clone(shared), tls.cloned());
    drop(tasks::spawn("connection", async move {
        connection::serve(shared, stream, peer, tls).await;
        drop(guard);
    }));
}

/// A connection that waits to be accepted, if there is one.
fn waiting(listener: &TcpListener) -> Option<std::io::Result<(TcpStream, SocketAddr)>> {
    match listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(accepted) => Some(accepted),
        Poll::Pending => None,
    }
}

async fn accept(listener: &TcpListener, open: &AtomicUsize) -> std::io::Result<(TcpStream, SocketAddr)> {
    while open.load(Relaxed) >= MAX_CONNECTIONS {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    listener.accept().await
}

/// Waits until no connection is left; `false` if that takes longer than `limit`.
async fn emptied(open: &AtomicUsize, limit: Duration) -> bool {
    let empty = async {
        while open.load(Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, empty).await.is_ok()
}

/// Counts a connection for as long as it lives.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
