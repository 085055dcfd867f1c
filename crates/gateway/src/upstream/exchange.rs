use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};

use super::connector::ConnectError;
use super::pool::{Pool, Way};
use super::wire::WireError;
use super::{http1, http2};
use crate::{clock, tasks};

/// How long a finished answer may take to end on the wire before it is given up.
const LINGER: Duration = Duration::from_secs(1);
/// A closed connection answers within a round trip; one that closes later has been at work.
const STALE_WITHIN: Duration = Duration::from_millis(500);

/// What is to be sent.
pub(crate) struct UpstreamRequest {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    /// Complete but for the length of the body.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The connection was lost, or what came is not HTTP.
    #[error("{0}")]
    Exchange(#[from] WireError),
}

/// The head of an answer, and the exchange that brings the rest.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) exchange: Exchange,
}

/// One request and its answer. Dropping it ends the one, or the connection that it has to itself, which is how work is
/// cancelled upstream.
pub(crate) enum Exchange {
    Http1(http1::Exchange),
    Http2(http2::Exchange),
}

impl Exchange {
    /// Sends `request` and waits for the head of the answer.
    ///
    /// A pooled connection that turns out to be closed, before the server can have begun to work on the request, is
    /// replaced once by a new one: servers close idle connections at any time, and that says nothing about their
    /// health. What is not the usual way (a pooled connection with HTTP/1.1) is boxed, so that requests stay small.
    pub(crate) async fn send(
        pool: &Arc<Pool>,
        request: &UpstreamRequest,
        connect_timeout: Duration,
    ) -> Result<Answer, SendError> {
        if let Some(way) = pool.reuse() {
            let sent = clock::now();
            match Self::send_by(pool, way, request).await {
                Err(error) if was_stale(&error, sent) => {}
                other => return Ok(other?),
            }
        }
        let way = Box::pin(pool.connect(connect_timeout)).await?;
        Ok(Self::send_by(pool, way, request).await?)
    }

    async fn send_by(pool: &Arc<Pool>, way: Way, request: &UpstreamRequest) -> Result<Answer, WireError> {
        match way {
            Way::Http1(connection) => http1::Exchange::send(pool, connection, request).await,
            Way::Http2(slot) => {
                Box::pin(http2::Exchange::send(slot, pool.connector().target().scheme, request)).await
            }
        }
    }

    /// The next bytes of the body, as many as are there up to 64 KiB; `None` at its proper end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the caller stops polling.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
        match self {
            Self::Http1(exchange) => exchange.poll_data(cx),
            Self::Http2(exchange) => exchange.poll_data(cx),
        }
    }

    /// The whole rest of the body, or `None` if it is longer than `limit` bytes. One that says so is not read at all.
    pub(crate) async fn collect(mut self, limit: usize) -> Result<Option<Bytes>, WireError> {
        if self.announces_more_than(limit) {
            return Ok(None);
        }
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(data) = poll_fn(|cx| self.poll_data(cx)).await.transpose()? {
            if first.len().max(all.len()) + data.len() > limit {
                return Ok(None);
            }
            // Small answers come in one piece, which need not be copied.
            if first.is_empty() {
                first = data;
                continue;
            }
            if all.is_empty() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
        self.give_back();
        Ok(Some(if all.is_empty() { first } else { all.freeze() }))
    }

    /// The answer has been read as far as anybody wants. What is left of it on the wire, usually the last chunk
    /// mark, is read in the background, so that the connection can serve again.
    pub(crate) fn finish(mut self) {
        let mut quiet = Context::from_waker(Waker::noop());
        match self.poll_data(&mut quiet) {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(_)) => {}
            Poll::Pending if !self.may_go_on() => {}
            Poll::Pending => drop(tasks::spawn("linger", async move {
                let end = tokio::time::timeout(LINGER, poll_fn(|cx| self.poll_data(cx))).await;
                if matches!(end, Ok(None)) {
                    self.give_back();
                }
            })),
        }
    }

    fn announces_more_than(&self, limit: usize) -> bool {
        match self {
            Self::Http1(exchange) => exchange.announces_more_than(limit),
            Self::Http2(exchange) => exchange.announces_more_than(limit),
        }
    }

    fn may_go_on(&self) -> bool {
        match self {
            Self::Http1(exchange) => exchange.may_go_on(),
            // A server that sees its stream reset takes the client for gone.
            Self::Http2(_) => true,
        }
    }

    fn give_back(self) {
        if let Self::Http1(exchange) = self {
            exchange.give_back();
        }
    }
}

/// Whether a request that was sent on a used connection at `sent` met its closing rather than a fault.
fn was_stale(error: &WireError, sent: Instant) -> bool {
    let closed = match error {
        WireError::NotProcessed(_) => return true,
        WireError::Closed => true,
        WireError::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::ConnectionAborted
        ),
        _ => false,
    };
    closed && clock::now() - sent < STALE_WITHIN
}
