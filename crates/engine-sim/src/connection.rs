//! A client's connection that does what hyper leaves out: it can be closed by reset, and counts what it writes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::engine::{Engine, count};

/// What hyper writes in front of an answer of HTTP/1.0, and what stands there instead when its body is framed already.
const OLD_HEAD: &[u8] = b"HTTP/1.0 200 OK\r\n";
const CHUNKED_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n";

/// Says how a connection is written and closed; hyper owns the stream itself.
#[derive(Debug, Default)]
pub(crate) struct Steering {
    reset: AtomicBool,
    chunked: AtomicBool,
}

impl Steering {
    /// When the stream is dropped, unsent data is thrown away and the peer gets a reset.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::SeqCst);
    }

    /// The next answer, which hyper writes as one of HTTP/1.0 with status 200, becomes one of HTTP/1.1 in chunks.
    pub(crate) fn write_chunked(&self) {
        self.chunked.store(true, Ordering::SeqCst);
    }
}

/// A TCP stream that obeys its [`Steering`].
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    steering: Arc<Steering>,
    engine: Arc<Engine>,
    /// What is written in place of [`OLD_HEAD`].
    head: Bytes,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, steering: Arc<Steering>, engine: Arc<Engine>) -> Self {
        Self { stream, steering, engine, head: Bytes::new() }
    }

    /// Writes another head in place of the one that `buf` begins with, if that is asked for; returns how much of `buf`
    /// is done with.
    fn poll_head(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<Option<usize>>> {
        if self.head.is_empty() {
            if !buf.starts_with(OLD_HEAD) || !self.steering.chunked.swap(false, Ordering::SeqCst) {
                return Poll::Ready(Ok(None));
            }
            self.head = Bytes::from_static(CHUNKED_HEAD);
        }
        while self.head.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.head))?;
            self.head.advance(written);
        }
        Poll::Ready(Ok(Some(OLD_HEAD.len())))
    }

    fn counted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = written {
            count(&self.engine.counters.sent_bytes, written as u64);
        }
        written
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.steering.reset.load(Ordering::SeqCst) {
            // Fails only for a socket that is already dead.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(done) = ready!(self.poll_head(cx, buf))? {
            return Poll::Ready(Ok(done));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.counted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.first()
            && let Some(done) = ready!(self.poll_head(cx, first))?
        {
            return Poll::Ready(Ok(done));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.counted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.steering.reset.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
