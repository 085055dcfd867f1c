//! Explains what hyper refuses of HTTP/1.1 by itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use backstop_openai::error::ErrorBody;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

pub(super) struct Explaining<S> {
    inner: TokioIo<S>,
    /// What is left of an explanation that takes the place of hyper's bare answer.
    explanation: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Explaining<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { inner: TokioIo::new(stream), explanation: Vec::new() }
    }

    fn inner(&mut self) -> Pin<&mut TokioIo<S>> {
        Pin::new(&mut self.inner)
    }

    fn write_explanation(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.explanation.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.explanation))?;
            self.explanation.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for Explaining<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Explaining<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.write_explanation(cx))?;
        if let Some(explanation) = explain(buf) {
            self.explanation = explanation;
            // Hyper's own text counts as written; what cannot be sent at once goes with the next flush.
            return match self.write_explanation(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok(buf.len())),
            };
        }
        self.inner().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs {
            return self.poll_write(cx, only);
        }
        ready!(self.write_explanation(cx))?;
        self.inner().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_explanation(cx))?;
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_explanation(cx))?;
        self.inner().poll_shutdown(cx)
    }
}

/// Hyper answers a head that it can't parse by itself, with nothing but a status. Clients of this API expect an
/// error body, so that bare answer, recognised by its lack of the request id that all our answers have, is
/// replaced by a full one.
fn explain(answer: &[u8]) -> Option<Vec<u8>> {
    let rest = answer.strip_prefix(b"HTTP/1.1 4")?;
    let is_bare = answer.ends_with(b"\r\n\r\n")
        && memchr::memmem::find(answer, b"content-length: 0\r\n").is_some()
        && memchr::memmem::find(answer, b"x-request-id").is_none();
    if !is_bare {
        return None;
    }
    let (status, message) = match rest.get(..2)? {
        b"00" => ("400 Bad Request", "the request is not valid HTTP"),
        b"14" => ("414 URI Too Long", "the request's target is too long"),
        b"31" => ("431 Request Header Fields Too Large", "the request has too many or too long headers"),
        _ => return None,
    };
    Some(refusal(status, message, "invalid_http"))
}

/// A whole answer for somebody who is not understood, as the last on the connection.
pub(super) fn refusal(status: &str, message: &str, code: &'static str) -> Vec<u8> {
    let body = ErrorBody { message, kind: "invalid_request_error", param: None, code: Some(code) };
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn only_bare_refusals_are_explained() {
        let bare =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let text = String::from_utf8(explain(bare).expect("bare")).expect("text");
        assert!(text.starts_with("HTTP/1.1 431 ") && text.contains("\"code\":\"invalid_http\""));
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            b"a chunk",
        ] {
            assert!(explain(other).is_none());
        }
    }
}
