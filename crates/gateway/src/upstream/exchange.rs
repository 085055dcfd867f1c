use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};

use super::pool::{ConnectError, Connection, Pool};
use super::wire::{self, BodyDecoder, Head, HeadDecoder, Part, WireError};
use crate::{clock, tasks};

/// How long a finished answer may take to end on the wire before its connection is given up.
const LINGER: Duration = Duration::from_secs(1);
/// A closed connection answers within a round trip; one that closes later has been at work.
const STALE_WITHIN: Duration = Duration::from_millis(500);
/// The most of an answer that is handed over at once, in bytes.
const MAX_READ_AHEAD: usize = 64 * 1024;

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

/// One request on one connection. Dropping it closes the connection, which is how work is cancelled upstream.
pub(crate) struct Exchange {
    connection: Connection,
    decoder: BodyDecoder,
    ended: bool,
    /// Found behind data that was still good; comes next.
    fault: Option<WireError>,
    keep_alive: bool,
    pool: Arc<Pool>,
}

impl Exchange {
    /// Sends `request` and waits for the head of the answer.
    ///
    /// A pooled connection that turns out to be closed at once, before anything came back, is replaced once by a new
    /// one: servers close idle connections at any time, and that says nothing about their health.
    pub(crate) async fn send(
        pool: &Arc<Pool>,
        request: &UpstreamRequest,
        connect_timeout: Duration,
    ) -> Result<Answer, SendError> {
        if let Some(connection) = pool.reuse() {
            let sent = clock::now();
            match Self::send_on(pool, connection, request).await {
                Err(error) if was_stale(&error) && clock::now() - sent < STALE_WITHIN => {}
                other => return Ok(other?),
            }
        }
        let connection = pool.connect(connect_timeout).await?;
        Ok(Self::send_on(pool, connection, request).await?)
    }

    async fn send_on(
        pool: &Arc<Pool>,
        mut connection: Connection,
        request: &UpstreamRequest,
    ) -> Result<Answer, WireError> {
        let mut head = Vec::with_capacity(512);
        wire::encode_head(&request.method, &request.target, &request.headers, request.body.len(), &mut head);
        let mut outgoing = Bytes::from(head).chain(request.body.clone());
        let mut decoder = HeadDecoder::default();
        let Head { status, headers, body, keep_alive } =
            poll_fn(|cx| poll_head(&mut connection, &mut outgoing, &mut decoder, &request.method, cx))
                .await?;
        // An answer to half a request is an answer, but what is left of the request would follow it.
        let keep_alive = keep_alive && !outgoing.has_remaining();
        let exchange =
            Self { connection, decoder: body, ended: false, fault: None, keep_alive, pool: Arc::clone(pool) };
        Ok(Answer { status, headers, exchange })
    }

    /// The next bytes of the body, as many as are there up to 64 KiB; `None` at its proper end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the caller stops polling.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        loop {
            match self.decoder.next(&mut self.connection.buffer) {
                // Often there is just one chunk, which need not be copied.
                Ok(Part::Data(data)) if first.is_empty() => first = data,
                Ok(Part::Data(data)) => {
                    if all.is_empty() {
                        all.reserve(first.len() + data.len() + self.connection.buffer.len());
                        all.extend_from_slice(&first);
                    }
                    all.extend_from_slice(&data);
                }
                Ok(Part::End) => {
                    self.ended = true;
                    break;
                }
                Ok(Part::Incomplete) if !first.is_empty() => break,
                Ok(Part::Incomplete) => match ready!(self.connection.poll_read(cx)) {
                    Ok(0) => match self.decoder.closed() {
                        Ok(_) => {
                            self.ended = true;
                            return Poll::Ready(None);
                        }
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    },
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
                Err(error) if !first.is_empty() => {
                    self.fault = Some(error);
                    break;
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            if all.len() >= MAX_READ_AHEAD {
                break;
            }
        }
        let data = if all.is_empty() { first } else { all.freeze() };
        Poll::Ready(if data.is_empty() { None } else { Some(Ok(data)) })
    }

    /// The whole rest of the body, or `None` if it is longer than `limit` bytes. One that says so is not read at all.
    pub(crate) async fn collect(mut self, limit: usize) -> Result<Option<Bytes>, WireError> {
        if self.decoder.announces_more_than(limit) {
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
            Poll::Pending if !self.keep_alive => {}
            Poll::Pending => drop(tasks::spawn("linger", async move {
                let end = tokio::time::timeout(LINGER, poll_fn(|cx| self.poll_data(cx))).await;
                if matches!(end, Ok(None)) {
                    self.give_back();
                }
            })),
        }
    }

    /// To be called at the end of the body.
    fn give_back(self) {
        if self.keep_alive && self.ended {
            self.pool.give_back(self.connection);
        }
    }
}

/// Writes the request and reads the head of the answer, whichever can go on: a server may answer before it has
/// read everything.
fn poll_head(
    connection: &mut Connection,
    outgoing: &mut impl Buf,
    decoder: &mut HeadDecoder,
    method: &Method,
    cx: &mut Context<'_>,
) -> Poll<Result<Head, WireError>> {
    let written = connection.poll_write(cx, outgoing);
    loop {
        if !connection.buffer.is_empty()
            && let Some(head) = decoder.next(&mut connection.buffer, method)?
        {
            return Poll::Ready(Ok(head));
        }
        match connection.poll_read(cx) {
            Poll::Ready(Ok(0)) if connection.buffer.is_empty() => return Poll::Ready(Err(WireError::Closed)),
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(WireError::Truncated)),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            // A server that refuses a long request closes its side; its answer, if any, has been looked for.
            Poll::Pending => {
                return match written {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                    _ => Poll::Pending,
                };
            }
        }
    }
}

/// Whether a request on a pooled connection met its closing rather than a fault.
fn was_stale(error: &WireError) -> bool {
    match error {
        WireError::Closed => true,
        WireError::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::ConnectionAborted
        ),
        _ => false,
    }
}
