//! Accepts connections and lets them end well.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, error, warn};

use crate::Shared;
use crate::client_io::ClientIo;
use crate::reply::ReplyBody;
use crate::{request, tasks};

/// The longest request head, in bytes.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// The longest time for a request head to arrive, and for a connection to be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
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
    stop: impl Future<Output = Leave>,
    drain: Duration,
) {
    let open = Arc::new(AtomicUsize::new(0));
    let mut stop = pin!(stop);
    let leave = loop {
        let accepted = tokio::select! {
            leave = &mut stop => break leave,
            accepted = accept(&listener, &open) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => serve(&shared, &open, stream, peer),
            // The process is out of descriptors, or the client has gone already: neither ends the service.
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    // Whoever is connected already has been promised an answer.
    while let Some(Ok((stream, peer))) = waiting(&listener) {
        serve(&shared, &open, stream, peer);
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
fn serve(shared: &Arc<Shared>, open: &Arc<AtomicUsize>, stream: TcpStream, peer: SocketAddr) {
    let guard = Open::new(open);
    let shared = Arc::clone(shared);
    drop(tasks::spawn("connection", async move {
        connection(shared, stream, peer).await;
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

struct Client {
    shared: Arc<Shared>,
    peer: SocketAddr,
}

impl Service<Request<Incoming>> for Client {
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    /// Boxed, so that its memory is free again while the answer streams.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let answered = request::serve(Arc::clone(&self.shared), self.peer, request);
        Box::pin(async move {
            let mut response = answered.await;
            if shared.phase() == Phase::Leaving {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        })
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "a client left before it was served");
        return;
    }
    let mut phases = shared.phases.subscribe();
    let service = Client { shared: Arc::clone(&shared), peer };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(ClientIo::new(stream), service);
    let mut serving = pin!(serving);
    let mut changed = Box::pin(async move { while phases.changed().await.is_ok() {} });
    // The watch is polled only to be woken by it; the phase itself is an atomic.
    let mut seen = None;
    let result = poll_fn(|cx| {
        let phase = shared.phase();
        // On the way out at each poll: a watch wakes shard by shard, so that one change may wake us twice, and the
        // second time uses up the registration for the next change.
        if seen.is_none() || phase != Phase::Running {
            let _: Poll<()> = changed.as_mut().poll(cx);
        }
        // A request that has arrived is taken before the connection is told to end.
        let polled = serving.as_mut().poll(cx);
        if polled.is_pending() && seen != Some(phase) {
            seen = Some(phase);
            // This closes idle connections, on which a request may be on its way.
            if matches!(phase, Phase::Draining | Phase::Closing) {
                serving.as_mut().graceful_shutdown();
                return serving.as_mut().poll(cx);
            }
        }
        polled
    })
    .await;
    if let Err(error) = result {
        debug!(%peer, %error, "client connection ended");
    }
}
