use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::Method;

use super::connection::Connection;
use super::exchange::{Answer, UpstreamRequest};
use super::pool::Pool;
use super::wire::{self, BodyDecoder, Head, HeadDecoder, Part, WireError};

/// The most of an answer that is handed over at once, in bytes.
pub(super) const MAX_READ_AHEAD: usize = 64 * 1024;

/// One request on a connection of its own. Dropping it closes the connection.
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
    pub(super) async fn send(
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
        Ok(Answer { status, headers, exchange: super::Exchange::Http1(exchange) })
    }

    /// The next bytes of the body, as many as are there up to 64 KiB; `None` at its proper end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the caller stops polling.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
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

    /// The head gave a length that is greater than `limit`.
    pub(super) fn announces_more_than(&self, limit: usize) -> bool {
        self.decoder.announces_more_than(limit)
    }

    /// Whether it is worth waiting for the end: the connection can carry another request then.
    pub(super) fn may_go_on(&self) -> bool {
        self.keep_alive
    }

    /// To be called at the end of the body.
    pub(super) fn give_back(self) {
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
            Poll::Ready(Err(error)) => {
                let error = WireError::from(error);
                let closed = matches!(error, WireError::Truncated) && connection.buffer.is_empty();
                return Poll::Ready(Err(if closed { WireError::Closed } else { error }));
            }
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
