//! The client's side of a connection: gives up on clients that stop reading, and explains what hyper refuses.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use backstop_openai::error::ErrorBody;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long a client may leave its receive window full.
const WRITE_STALL: Duration = Duration::from_secs(60);

pub(crate) struct ClientIo {
    inner: TokioIo<TcpStream>,
    /// Set while a write can't go on.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What is left of an explanation that takes the place of hyper's bare answer.
    explanation: Vec<u8>,
}

impl ClientIo {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { inner: TokioIo::new(stream), stalled: None, explanation: Vec::new() }
    }

    fn check_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let alarm = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TokioIo<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match write(Pin::new(&mut self.inner), cx) {
            Poll::Pending => self.check_stall(cx),
            ready => {
                self.stalled = None;
                ready
            }
        }
    }

    fn write_explanation(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.explanation.is_empty() {
            let text = std::mem::take(&mut self.explanation);
            let written = self.write(cx, |inner, cx| inner.poll_write(cx, &text));
            self.explanation = text;
            let written = ready!(written)?;
            self.explanation.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for ClientIo {
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
        self.write(cx, |inner, cx| inner.poll_write(cx, buf))
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
        self.write(cx, |inner, cx| inner.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_explanation(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_explanation(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
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
    let body = ErrorBody { message, kind: "invalid_request_error", param: None, code: Some("invalid_http") };
    let body = body.to_string();
    let length = body.len();
    Some(
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        )
        .into_bytes(),
    )
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
