use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;

use super::pool::{ConnectError, Connection, Pool};
use crate::tasks;

/// How long a finished answer may take to end on the wire before its connection is given up.
const LINGER: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The connection was lost, or what came is not HTTP.
    #[error("{0}")]
    Exchange(hyper::Error),
}

/// The head of an answer, and the exchange that brings the rest.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) exchange: Exchange,
}

/// One request on one connection. Dropping it closes the connection, which is how work is cancelled upstream.
pub(crate) struct Exchange {
    connection: Connection,
    body: Incoming,
    pool: Arc<Pool>,
}

impl Exchange {
    /// Sends `request` and waits for the head of the answer.
    ///
    /// A pooled connection that turns out to be closed before anything came back is replaced once by a new one:
    /// servers close idle connections at any time, and that says nothing about their health.
    pub(crate) async fn send(
        pool: &Arc<Pool>,
        mut request: Request<Full<Bytes>>,
        connect_timeout: Duration,
    ) -> Result<Answer, SendError> {
        if let Some(connection) = pool.reuse() {
            let copy = request.clone();
            match Self::send_on(pool, connection, request).await {
                Err(error) if was_stale(&error) => request = copy,
                other => return other.map_err(SendError::Exchange),
            }
        }
        let connection = pool.connect(connect_timeout).await?;
        Self::send_on(pool, connection, request).await.map_err(SendError::Exchange)
    }

    async fn send_on(
        pool: &Arc<Pool>,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, hyper::Error> {
        let mut response = pin!(connection.sender.send_request(request));
        let response: Response<Incoming> = poll_fn(|cx| {
            connection.drive(cx);
            response.as_mut().poll(cx)
        })
        .await?;
        let (head, body) = response.into_parts();
        let exchange = Self { connection, body, pool: Arc::clone(pool) };
        Ok(Answer { status: head.status, headers: head.headers, exchange })
    }

    /// The next bytes of the body; `None` at its proper end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the caller stops polling.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        // The body is fed by the connection, which is polled here as well: only the latter needs a waker.
        let mut unwoken = Context::from_waker(Waker::noop());
        let mut driven = false;
        loop {
            match Pin::new(&mut self.body).poll_frame(&mut unwoken) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    // Trailers say nothing that a client needs.
                    Err(_trailers) => {}
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    self.connection.drive(cx);
                    driven = true;
                }
            }
        }
    }

    /// The whole rest of the body, or `None` if it is longer than `limit` bytes.
    pub(crate) async fn collect(mut self, limit: usize) -> Result<Option<Bytes>, hyper::Error> {
        let mut first = Bytes::new();
        let mut all = Vec::new();
        while let Some(data) = poll_fn(|cx| self.poll_data(cx)).await.transpose()? {
            if first.len().max(all.len()) + data.len() > limit {
                return Ok(None);
            }
            // Small answers come in one piece, which need not be copied.
            if first.is_empty() && all.is_empty() {
                first = data;
                continue;
            }
            if all.is_empty() {
                all = Vec::from(std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
        self.give_back();
        Ok(Some(if all.is_empty() { first } else { Bytes::from(all) }))
    }

    /// The answer has been read as far as anybody wants. What is left of it on the wire, usually the last chunk
    /// mark, is read in the background, so that the connection can serve again.
    pub(crate) fn finish(mut self) {
        let mut quiet = Context::from_waker(Waker::noop());
        match self.poll_data(&mut quiet) {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(_)) => {}
            Poll::Pending => drop(tasks::spawn("linger", async move {
                let end = tokio::time::timeout(LINGER, poll_fn(|cx| self.poll_data(cx))).await;
                if matches!(end, Ok(None)) {
                    self.give_back();
                }
            })),
        }
    }

    /// To be called at the end of the body.
    pub(crate) fn give_back(self) {
        self.pool.give_back(self.connection);
    }
}

/// Whether a request on a pooled connection met its closing rather than a fault.
fn was_stale(error: &hyper::Error) -> bool {
    if error.is_canceled() || error.is_incomplete_message() || error.is_closed() {
        return true;
    }
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| {
        matches!(
            io.kind(),
            std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::ConnectionAborted
        )
    })
}
