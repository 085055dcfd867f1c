//! A client's connection: which way it speaks, and how it ends.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::Phase;
use super::explain::{Explaining, refusal};
use super::http2;
use super::socket::Socket;
use crate::reply::ReplyBody;
use crate::{Shared, request};

/// The longest request head, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// The longest time for the first byte, for a request head to arrive, and for a connection to be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time until a TLS handshake begins, and until it is done.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// When the process is told to stop, the time for what clients have sent already to be seen.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Read at first, in bytes: as much as hyper would.
const FIRST_READ: usize = 8 * 1024;

/// Serves one client to its end. What is not the usual way is boxed, so that the usual one is small.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
) {
    let served = match (stream.set_nodelay(true), tls) {
        (Err(error), _) => Err(error.into()),
        (Ok(()), Some(tls)) => Box::pin(encrypted(shared, stream, peer, tls)).await,
        (Ok(()), None) => cleartext(shared, stream, peer).await,
    };
    if let Err(error) = served {
        debug!(%peer, %error, "client connection ended");
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn cleartext(shared: Arc<Shared>, mut stream: TcpStream, peer: SocketAddr) -> Result<(), BoxError> {
    let first = first_bytes(&mut stream);
    let Some(first) = unless_leaving(&shared, HEAD_TIMEOUT, first).await else { return Ok(()) };
    let first = first?;
    let is_http2 = first.starts_with(PREFACE);
    let socket = Socket::new(stream, first);
    if is_http2 {
        Box::pin(http2::serve(shared, socket, peer)).await
    } else {
        serve_http1(shared, socket, peer).await
    }
}

async fn encrypted(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
) -> Result<(), BoxError> {
    let mut first = [0];
    let peek = stream.peek(&mut first);
    let Some(peeked) = unless_leaving(&shared, HANDSHAKE_TIMEOUT, peek).await else { return Ok(()) };
    if peeked? == 1 && first[0].is_ascii_uppercase() {
        return Ok(expect_tls(&mut stream).await?);
    }
    let handshake = tls.accept(Socket::new(stream, Bytes::new()));
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await??;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2::serve(shared, stream, peer).await
    } else {
        serve_http1(shared, stream, peer).await
    }
}

/// What a client says first: as much as tells the versions of HTTP apart.
async fn first_bytes(stream: &mut TcpStream) -> io::Result<Bytes> {
    // Nothing is set aside for those who say nothing.
    stream.readable().await?;
    let mut first = BytesMut::with_capacity(FIRST_READ);
    loop {
        let read = stream.read_buf(&mut first).await?;
        let compared = first.len().min(PREFACE.len());
        if read == 0 || compared == PREFACE.len() || first[..compared] != PREFACE[..compared] {
            return Ok(first.freeze());
        }
    }
}

/// Waits for a client to say something; `None` if it does not in time, or the process has to stop.
async fn unless_leaving<F: Future>(shared: &Shared, limit: Duration, first: F) -> Option<F::Output> {
    let mut phases = shared.phases.subscribe();
    let leaving = async {
        // An error means that the gateway is gone, which is the same.
        drop(phases.wait_for(|phase| *phase >= Phase::Draining).await);
        // What has arrived already is known a moment after the connection.
        tokio::time::sleep(LAST_LOOK).await;
    };
    tokio::select! {
        said = first => Some(said),
        () = leaving => None,
        () = tokio::time::sleep(limit) => None,
    }
}

/// For clients that speak HTTP where TLS is spoken.
async fn expect_tls(stream: &mut TcpStream) -> io::Result<()> {
    let message = "this port speaks TLS only: the URL must begin with https://";
    stream.write_all(&refusal("400 Bad Request", message, "tls_required")).await?;
    stream.shutdown().await?;
    // A connection that is closed with something unread is reset, and the answer may be lost.
    let rest = async { while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} };
    drop(tokio::time::timeout(Duration::from_secs(1), rest).await);
    Ok(())
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
        let (shared, peer) = (Arc::clone(&self.shared), self.peer);
        // Made where it stays: it is large, and would be moved there otherwise.
        Box::pin(async move {
            let leaving = Arc::clone(&shared);
            let mut response = request::serve(shared, peer, request).await;
            if leaving.phase() == Phase::Leaving {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        })
    }
}

async fn serve_http1<S>(shared: Arc<Shared>, stream: S, peer: SocketAddr) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = Client { shared: Arc::clone(&shared), peer };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(Explaining::new(stream), service);
    let mut serving = pin!(serving);
    let mut change = PhaseChange::new(&shared);
    let mut told = false;
    let served = poll_fn(|cx| {
        let phase = change.watch(&shared, cx);
        // A request that has arrived is taken before the connection is told to end.
        let polled = serving.as_mut().poll(cx);
        // This closes idle connections, on which a request may be on its way: not before the process has to stop.
        if polled.is_pending() && !told && phase >= Phase::Draining {
            told = true;
            serving.as_mut().graceful_shutdown();
            return serving.as_mut().poll(cx);
        }
        polled
    });
    Ok(served.await?)
}

/// Wakes a task when the phase changes.
pub(super) struct PhaseChange {
    /// Polled only to be woken by it; the phase itself is an atomic.
    changed: Pin<Box<dyn Future<Output = ()> + Send>>,
    watching: bool,
}

impl PhaseChange {
    pub(super) fn new(shared: &Shared) -> Self {
        let mut phases = shared.phases.subscribe();
        let changed = Box::pin(async move { while phases.changed().await.is_ok() {} });
        Self { changed, watching: false }
    }

    /// The phase now; the task is woken when it is no longer that. To be called at each poll.
    pub(super) fn watch(&mut self, shared: &Shared, cx: &mut std::task::Context<'_>) -> Phase {
        let phase = shared.phase();
        // On the way out at each poll: a watch wakes shard by shard, so that one change may wake us twice, and the
        // second time uses up the registration for the next change.
        if !self.watching || phase != Phase::Running {
            self.watching = true;
            let _: Poll<()> = self.changed.as_mut().poll(cx);
        }
        phase
    }
}
