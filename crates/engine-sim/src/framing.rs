//! Answers on the wire in ways that are legal, but that hyper would not choose by itself.
//!
//! hyper writes the answer as for HTTP/1.0, up to the end of the connection, and puts no framing of its own around the
//! body. For chunks the connection turns the head into one of HTTP/1.1, and the body brings its framing along.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response, Version, header};
use http_body::{Body, Frame};

use crate::body::SimBody;
use crate::connection::Steering;
use crate::fault::Fault;

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// By the end of the connection.
    UntilClose,
    /// By chunks, each with an extension.
    Extensions,
    /// By chunks, with trailers behind the last.
    Trailers,
}

impl Framing {
    pub(crate) fn of(faults: &[Fault]) -> Option<Self> {
        faults.iter().find_map(|fault| match fault {
            Fault::Http10 => Some(Self::UntilClose),
            Fault::ChunkExtensions => Some(Self::Extensions),
            Fault::Trailers => Some(Self::Trailers),
            _ => None,
        })
    }

    pub(crate) fn apply(self, response: Response<SimBody>, steering: &Steering) -> Response<SimBody> {
        let mut response = response
            .map(|inner| SimBody::Framed(Framed { inner: Box::new(inner), framing: self, is_ended: false }));
        *response.version_mut() = Version::HTTP_10;
        response.headers_mut().remove(header::CONTENT_LENGTH);
        if self != Self::UntilClose {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            steering.write_chunked();
        }
        response
    }

    fn chunk(self, data: Bytes) -> Bytes {
        let extension = match self {
            // An empty chunk would be the last.
            _ if data.is_empty() => return data,
            Self::UntilClose => return data,
            Self::Extensions => ";name=value;flag;quoted=\"a;b\"",
            Self::Trailers => "",
        };
        let head = format!("{:x}{extension}\r\n", data.len());
        let mut chunk = BytesMut::with_capacity(head.len() + data.len() + 2);
        chunk.put(head.as_bytes());
        chunk.put(data);
        chunk.put(&b"\r\n"[..]);
        chunk.freeze()
    }

    fn last_chunk(self) -> Option<Bytes> {
        match self {
            Self::UntilClose => None,
            Self::Extensions => Some(Bytes::from_static(b"0;last\r\n\r\n")),
            Self::Trailers => {
                Some(Bytes::from_static(b"0\r\nx-checksum: 1234\r\nserver-timing: decode;dur=12\r\n\r\n"))
            }
        }
    }
}

/// A body in a framing.
pub(crate) struct Framed {
    inner: Box<SimBody>,
    framing: Framing,
    is_ended: bool,
}

impl Framed {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let next = match ready!(Pin::new(&mut *self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame.into_data().ok().map(|data| self.framing.chunk(data)),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {
                self.is_ended = true;
                self.framing.last_chunk()
            }
        };
        Poll::Ready(next.map(|data| Ok(Frame::data(data))))
    }
}
