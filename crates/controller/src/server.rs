//! The control API on a listener, with limits on everything that waits.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tracing::debug;

use crate::{Control, api};

/// Connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 512;
/// The longest request head, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// How long a head may take to arrive, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that reads nothing for this long is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves the control API for ever. Connections end when this is dropped.
pub async fn serve<L: Listener>(mut listener: L, control: Arc<Control>) {
    let router = api::router(control);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (io, _) = listener.accept().await;
        let router = router.clone();
        connections.spawn(async move {
            connection(io, router).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send, router: Router) {
    let mut io = TimeoutStream::new(io);
    io.set_write_timeout(Some(WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(io)), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        debug!(%error, "a connection to the control API ended");
    }
}
