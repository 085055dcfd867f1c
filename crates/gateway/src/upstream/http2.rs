//! HTTP/2 as a client: several exchanges share a connection. The protocol itself is hyper's.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use backstop_core::table::Scheme;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Uri, Version, header};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connector::{ConnectError, Peer, Stream, not_http2};
use super::exchange::{Answer, UpstreamRequest};
use super::http1::MAX_READ_AHEAD;
use super::wire::{MAX_HEAD, WireError};
use crate::counting::{Counted, Moved};
use crate::{clock, tasks};

/// Exchanges on one connection at most, if the server does not allow fewer; those beyond go to another connection.
const MAX_STREAMS: usize = 100;
/// What a server may send of one answer before we have taken any of it, in bytes. A whole connection gets as much for
/// each of its streams, so that one which nobody reads never holds up the others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;
/// What is held of a request that the server does not take yet, in bytes.
const SEND_BUFFER: usize = 256 * 1024;
/// After so much silence the server is asked whether it is there, and must say so in time. Generous: an engine that is
/// busy for a while is not dead, and its other watches know better.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// Streams that clients have left are remembered for a moment, so that what still comes of them is no error.
const REMEMBERED_RESETS: usize = 1024;
/// A connection on which a request got no answer for this long, and was given up, gets no new ones if nothing else came
/// on it either: it may be dead.
const DOUBTFUL_AFTER: Duration = Duration::from_secs(5);
/// How often is looked whether the server has said how many streams it allows.
const SETTINGS_LOOK: Duration = Duration::from_millis(1);

/// A connection that exchanges share.
pub(super) struct Multiplexed {
    sender: SendRequest<Full<Bytes>>,
    pub(super) peer: IpAddr,
    /// How many streams the server allows at once.
    allowed: Box<dyn Fn() -> usize + Send + Sync>,
    streams: AtomicUsize,
    moved: Arc<Moved>,
    /// What had been read when it was last idle.
    read_when_idle: AtomicU64,
    /// Of [`clock`]: when the last stream ended.
    idle_since: AtomicU64,
    /// No new streams.
    retired: AtomicBool,
}

impl Multiplexed {
    pub(super) async fn open(stream: Stream, peer: Peer) -> Result<Arc<Self>, ConnectError> {
        match stream {
            Stream::Plain(stream) => Self::handshake(stream, peer).await,
            Stream::Tls(stream) => Self::handshake(stream, peer).await,
        }
    }

    async fn handshake<S>(stream: S, peer: Peer) -> Result<Arc<Self>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let moved = Arc::default();
        let handshake = Builder::new(Tasks)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEAD as u32)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            // Else a connection that has served for long would be taken for an attack.
            .max_local_error_reset_streams(None)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            // Until the server has said how many it allows.
            .initial_max_send_streams(0)
            .handshake(TokioIo::new(Counted::new(stream, &moved)));
        let (sender, connection) = handshake.await.map_err(|_| not_http2())?;
        let connection = Arc::new(Mutex::new(Some(connection)));
        let driven = Arc::clone(&connection);
        let driver = std::future::poll_fn(move |cx| {
            let mut held = driven.lock().unwrap_or_else(PoisonError::into_inner);
            // How it ended its streams are told. The sender learns of it when it is gone.
            let ended = held.as_mut().map_or(Poll::Ready(()), |it| Pin::new(it).poll(cx).map(drop));
            if ended.is_ready() {
                *held = None;
            }
            ended
        });
        drop(tasks::spawn("http2", driver));
        let allowed = move || {
            let held = connection.lock().unwrap_or_else(PoisonError::into_inner);
            held.as_ref().map_or(0, |connection| connection.current_max_send_streams())
        };
        while allowed() == 0 {
            // Whoever speaks HTTP/2 says so first of all.
            if sender.is_closed() {
                return Err(not_http2());
            }
            tokio::time::sleep(SETTINGS_LOOK).await;
        }
        Ok(Arc::new(Self {
            sender,
            peer: peer.good(),
            allowed: Box::new(allowed),
            streams: AtomicUsize::new(0),
            moved,
            read_when_idle: AtomicU64::new(0),
            idle_since: AtomicU64::new(clock::nanos(clock::now())),
            retired: AtomicBool::new(false),
        }))
    }

    /// Whether it may take new streams, now or when others have ended.
    pub(super) fn is_usable(&self) -> bool {
        !self.retired.load(Relaxed) && !self.sender.is_closed()
    }

    /// A place for one more stream, if there is one. Two must not ask at the same time.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let allowed = (self.allowed)().min(MAX_STREAMS);
        if !self.is_usable() || self.streams.load(Relaxed) >= allowed {
            return None;
        }
        let read = self.moved.read();
        if self.streams.fetch_add(1, Relaxed) == 0 {
            self.read_when_idle.store(read, Relaxed);
        }
        Some(Slot { connection: Arc::clone(self), since: clock::now(), read, answered: false })
    }

    /// Whether there is no sign that it has outlived its last idle time.
    fn is_silent_since_idle(&self) -> bool {
        self.moved.read() == self.read_when_idle.load(Relaxed)
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        if self.streams.load(Relaxed) > 0 {
            return Duration::ZERO;
        }
        now.saturating_duration_since(clock::instant(self.idle_since.load(Relaxed)))
    }
}

/// A place on a connection, for as long as it is needed.
pub(super) struct Slot {
    connection: Arc<Multiplexed>,
    since: Instant,
    /// What had been read until then.
    read: u64,
    answered: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = clock::now();
        let silent = self.connection.moved.read() == self.read;
        if !self.answered && silent && now - self.since >= DOUBTFUL_AFTER {
            self.connection.retired.store(true, Relaxed);
        }
        self.connection.idle_since.store(clock::nanos(now), Relaxed);
        self.connection.streams.fetch_sub(1, Relaxed);
    }
}

/// One request on one stream. Dropping it resets the stream and leaves the others alone.
pub(crate) struct Exchange {
    body: Incoming,
    ended: bool,
    /// Found behind data that was still good; comes next.
    fault: Option<WireError>,
    _slot: Slot,
}

impl Exchange {
    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(
        mut slot: Slot,
        scheme: Scheme,
        request: &UpstreamRequest,
    ) -> Result<Answer, WireError> {
        let request = translate(scheme, request)?;
        let mut sender = slot.connection.sender.clone();
        let response = sender.try_send_request(request).await.map_err(|error| {
            let unsent = error.message().is_some();
            let error = error.into_error();
            match explain(&error) {
                _ if unsent => WireError::NotProcessed(error.to_string()),
                // As with HTTP/1.1: it may have been closed before the request was on its way.
                WireError::Truncated if slot.connection.is_silent_since_idle() => WireError::Closed,
                other => other,
            }
        });
        if matches!(response, Err(WireError::NotProcessed(_))) {
            // It is about to close.
            slot.connection.retired.store(true, Relaxed);
        }
        let (head, body) = response?.into_parts();
        slot.answered = true;
        let exchange = Self { body, ended: false, fault: None, _slot: slot };
        Ok(Answer { status: head.status, headers: head.headers, exchange: super::Exchange::Http2(exchange) })
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while !self.ended && first.len().max(all.len()) < MAX_READ_AHEAD {
            match self.poll_frame(cx) {
                Poll::Ready(Some(Ok(data))) if first.is_empty() => first = data,
                Poll::Ready(Some(Ok(data))) => {
                    if all.is_empty() {
                        all.extend_from_slice(&first);
                    }
                    all.extend_from_slice(&data);
                }
                Poll::Ready(Some(Err(error))) if !first.is_empty() => {
                    self.fault = Some(error);
                    break;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending if first.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        let data = if all.is_empty() { first } else { all.freeze() };
        Poll::Ready(if data.is_empty() { None } else { Some(Ok(data)) })
    }

    /// The head gave a length that is greater than `limit`.
    pub(super) fn announces_more_than(&self, limit: usize) -> bool {
        self.body.size_hint().lower() > limit as u64
    }

    /// The data of the next frame that has any.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
        loop {
            let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
            return Poll::Ready(match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => Some(Ok(data)),
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => Some(Err(match explain(&error) {
                    // Whatever it says now, it has begun.
                    WireError::NotProcessed(reason) | WireError::Refused(reason) => WireError::Reset(reason),
                    other => other,
                })),
                // Hyper takes a stream that is reset for no reason, or cancelled, for one that has ended.
                None if !self.body.is_end_stream() => Some(Err(WireError::Truncated)),
                None => None,
            });
        }
    }
}

/// As HTTP/2 has it: the host is part of the target.
fn translate(scheme: Scheme, request: &UpstreamRequest) -> Result<Request<Full<Bytes>>, WireError> {
    let mut headers: HeaderMap = request.headers.clone();
    let authority = headers.remove(header::HOST);
    headers.remove(header::CONNECTION);
    let authority = authority.as_ref().map(|it| it.as_bytes()).unwrap_or_default();
    let uri = Uri::builder().scheme(scheme.to_string().as_str()).authority(authority);
    let uri = uri.path_and_query(request.target.as_str()).build();
    let mut translated = Request::new(Full::new(request.body.clone()));
    *translated.method_mut() = request.method.clone();
    *translated.uri_mut() = uri.map_err(|_| WireError::Reset("the target can't be sent".to_owned()))?;
    *translated.version_mut() = Version::HTTP_2;
    *translated.headers_mut() = headers;
    Ok(translated)
}

fn explain(error: &hyper::Error) -> WireError {
    let source = error.source();
    if source.is_some_and(|it| it.is::<io::Error>()) {
        return WireError::Truncated;
    }
    let Some(inner) = source.and_then(|it| it.downcast_ref::<h2::Error>()) else {
        return WireError::Reset(error.to_string());
    };
    // A server that goes away says up to where it has got; only streams beyond end with this.
    if inner.is_remote() && inner.is_go_away() {
        return WireError::NotProcessed(inner.to_string());
    }
    if inner.is_remote() && inner.reason() == Some(h2::Reason::REFUSED_STREAM) {
        return WireError::Refused(inner.to_string());
    }
    match inner.get_io() {
        Some(_) => WireError::Truncated,
        None => WireError::Reset(inner.to_string()),
    }
}

/// Where hyper runs what a connection needs beside the exchanges.
#[derive(Clone)]
struct Tasks;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        drop(tasks::spawn("http2", future));
    }
}
