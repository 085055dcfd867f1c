//! HTTP/2 towards clients. The protocol is hyper's; here are its limits, and what happens to clients that do not read.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2::{Builder, Connection};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use super::connection::{MAX_HEAD, PhaseChange};
use super::parting::{Counts, Ending, Open, Parting};
use super::socket::WRITE_STALL;
use crate::counting::Counted;
use crate::reply::ReplyBody;
use crate::{Shared, clock, request, tasks};

/// Requests on one connection at once; more wait until others have ended. Each may bring a body of the full length.
const MAX_STREAMS: u32 = 250;
/// Streams that a client may cancel before we have so much as seen them; beyond, its connection is closed. This and
/// [`MAX_RESETS`] are against clients that open and cancel faster than we work.
const MAX_PENDING_RESETS: usize = 20;
/// Streams in error, over the life of a connection.
const MAX_RESETS: usize = 1024;
/// What a client may send of one request body, and of all on its connection, before we have taken it, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// What is held of an answer that the client does not take yet, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// Plain answers go out in pieces of this size, in bytes: a piece that a client has no room for is held in full.
const PIECE: usize = 16 * 1024;
/// After so much silence a client is asked whether it is there, and must say so within as much again.
const PING_AFTER: Duration = Duration::from_secs(30);

pub(super) async fn serve<S>(
    shared: Arc<Shared>,
    stream: S,
    peer: SocketAddr,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streams = Streams { shared: Arc::clone(&shared), counts: Arc::default() };
    let client = Client { shared: Arc::clone(&shared), peer };
    let serving = Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_AFTER)
        .serve_connection(TokioIo::new(Counted::new(stream, &streams.counts.moved)), client);
    Ok(Parting::new(&shared, streams.counts, serving).await?)
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Ending for Connection<TokioIo<S>, Client, Streams> {
    fn tell(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Runs the streams of one connection.
#[derive(Clone)]
struct Streams {
    shared: Arc<Shared>,
    counts: Arc<Counts>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let open = Open::new(&self.counts);
        let running = run(Arc::clone(&self.shared), Box::pin(stream));
        drop(tasks::spawn("stream", async move {
            running.await;
            drop(open);
        }));
    }
}

/// Runs one stream until it ends, or its client has left its window closed for too long. Dropping it resets it.
async fn run(shared: Arc<Shared>, mut stream: Pin<Box<impl Future<Output = ()>>>) {
    let mut change = PhaseChange::new(&shared);
    let mut stall = Stall::default();
    poll_fn(|cx| {
        change.watch(&shared, cx);
        Waiting::ask();
        ready_or(stream.as_mut().poll(cx), || stall.poll(cx, Waiting::answer()))
    })
    .await;
}

fn ready_or(polled: Poll<()>, otherwise: impl FnOnce() -> Poll<()>) -> Poll<()> {
    if polled.is_ready() { polled } else { otherwise() }
}

/// What a stream waits for. Hyper takes the next piece of an answer from us, and then waits for the client to take it:
/// only our part can be seen, and only while the stream is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// As before: our part was not asked.
    Same,
    /// For our part: it was asked, and has nothing yet.
    ForUs,
    /// For the client: our part gave something.
    ForClient,
}

thread_local! {
    /// Of the stream that is being polled on this thread.
    static WAITING: Cell<Waiting> = const { Cell::new(Waiting::Same) };
}

impl Waiting {
    fn ask() {
        WAITING.set(Self::Same);
    }

    fn answer() -> Self {
        WAITING.get()
    }

    fn note<T>(polled: Poll<T>) -> Poll<T> {
        WAITING.set(if polled.is_pending() { Self::ForUs } else { Self::ForClient });
        polled
    }
}

/// Runs while a client has not taken what it was given.
#[derive(Default)]
struct Stall {
    since: Option<Instant>,
    /// Set no more often than it fires.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// Ready when it has taken too long.
    fn poll(&mut self, cx: &mut Context<'_>, waiting: Waiting) -> Poll<()> {
        match waiting {
            Waiting::Same => {}
            Waiting::ForUs => self.since = None,
            Waiting::ForClient => self.since = Some(clock::now()),
        }
        let Some(since) = self.since else { return Poll::Pending };
        let due = (since + WRITE_STALL).into();
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        while alarm.as_mut().poll(cx).is_ready() {
            if clock::now() >= since + WRITE_STALL {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}

struct Client {
    shared: Arc<Shared>,
    peer: SocketAddr,
}

impl Service<Request<Incoming>> for Client {
    type Response = Response<Pieces>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let only_head = request.method() == Method::HEAD;
        let mut answered = Box::pin(request::serve(Arc::clone(&self.shared), self.peer, request));
        Box::pin(async move {
            let mut response = poll_fn(|cx| Waiting::note(answered.as_mut().poll(cx))).await;
            // One stream says nothing about the connection.
            response.headers_mut().remove(header::CONNECTION);
            if only_head {
                if let Some(length) = response.body().size_hint().exact() {
                    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
                }
                *response.body_mut() = ReplyBody::Whole(Bytes::new());
            }
            Ok(response.map(Pieces))
        })
    }
}

/// An answer in pieces that are not too large to be held.
struct Pieces(ReplyBody);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Waiting::note(match &mut self.0 {
            ReplyBody::Whole(bytes) if bytes.len() > PIECE => {
                Poll::Ready(Some(Ok(Frame::data(bytes.split_to(PIECE)))))
            }
            body => Pin::new(body).poll_frame(cx),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One poll of a stream whose part came out as `ours`, `after` so long a wait for the client; `true` = given up.
    async fn given_up(after: Duration, ours: Option<Poll<()>>) -> bool {
        let since = Some(clock::now().checked_sub(after).expect("later than the start of the clock"));
        let mut stall = Stall { since, alarm: None };
        Waiting::ask();
        if let Some(polled) = ours {
            let _ = Waiting::note(polled);
        }
        poll_fn(|cx| Poll::Ready(stall.poll(cx, Waiting::answer()).is_ready())).await
    }

    #[tokio::test]
    async fn only_the_client_s_silence_counts() {
        let late = WRITE_STALL + Duration::from_secs(1);
        assert!(given_up(late, None).await);
        assert!(!given_up(WRITE_STALL / 2, None).await);
        // It has taken what there was, and now waits for us or has something new to take.
        assert!(!given_up(late, Some(Poll::Pending)).await);
        assert!(!given_up(late, Some(Poll::Ready(()))).await);
    }
}
