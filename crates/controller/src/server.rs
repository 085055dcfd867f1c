//! The control API on a listener, with limits on everything that waits.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tracing::debug;

use crate::{Control, Releases, api};

/// Connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 512;
/// The longest request head, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// How long a head may take to arrive, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long answers may take when the server ends.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// A client that reads nothing for this long is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves the control API until `stop` resolves; that of releases from when there are some. Then connections end with their answer, and those that follow events
/// are cut: they come back by themselves. All end when this is dropped.
pub async fn serve<L: Listener>(
    mut listener: L,
    control: Arc<Control>,
    releases: Arc<OnceLock<Arc<Releases>>>,
    stop: impl Future<Output = ()>,
) {
    let router = api::router(control, releases);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let (leave, _) = watch::channel(());
    let mut stop = pin!(stop);
    loop {
        let accept = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await.0)
        };
        let (place, io) = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let (router, left) = (router.clone(), leave.subscribe());
        connections.spawn(async move {
            connection(io, router, left).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
    drop((listener, leave));
    let ended = async { while connections.join_next().await.is_some() {} };
    // Whoever takes longer follows events.
    drop(tokio::time::timeout(LAST_ANSWER, ended).await);
}

/// Ends with the answer under way, if there is one, when the other end of `left` is dropped.
async fn connection(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
    router: Router,
    mut left: watch::Receiver<()>,
) {
    let mut io = TimeoutStream::new(io);
    io.set_write_timeout(Some(WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(io)), TowerToHyperService::new(router));
    let mut served = pin!(served);
    let result = tokio::select! {
        result = &mut served => result,
        _ = left.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "a connection to the control API ended");
    }
}
