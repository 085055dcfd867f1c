use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::connector::Stream;

/// Read at once, in bytes; four times as much while the upstream fills it.
const READ_SIZE: usize = 8 * 1024;

/// One connection to a model server, for one exchange at a time.
pub(super) struct Connection {
    stream: Stream,
    pub(super) peer: IpAddr,
    /// Read and not taken yet. Has no memory while there is nothing to read.
    pub(super) buffer: BytesMut,
    read_size: usize,
    /// Of the pool's settings that it was made by.
    pub(super) generation: u32,
}

impl Connection {
    pub(super) fn new(stream: Stream, peer: IpAddr, generation: u32) -> Self {
        Self { stream, peer, buffer: BytesMut::new(), read_size: READ_SIZE, generation }
    }

    /// Reads what is there into `buffer`; 0 = closed by the upstream.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Plain(stream) => match stream.poll_read_ready(cx) {
                Poll::Ready(ready) => {
                    ready?;
                    self.buffer.reserve(self.read_size);
                    // Unlike `try_read`, this knows after a short read that there is no more, and saves a system call.
                    poll_read_buf(Pin::new(stream), cx, &mut self.buffer)
                }
                Poll::Pending => Poll::Pending,
            },
            Stream::Tls(stream) => {
                self.buffer.reserve(self.read_size);
                poll_read_buf(Pin::new(stream), cx, &mut self.buffer)
            }
        };
        if polled.is_pending() && self.buffer.is_empty() {
            // Waiting may take long: it should cost nothing.
            self.buffer = BytesMut::new();
        }
        let read = ready!(polled)?;
        let filled = self.buffer.len() == self.buffer.capacity();
        self.read_size = if filled { 4 * READ_SIZE } else { READ_SIZE };
        Poll::Ready(Ok(read))
    }

    /// Writes all of `data`, taking what is written off its front. To be called again after it is empty, until this
    /// is ready: TLS may hold some of it back.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut impl Buf) -> Poll<io::Result<()>> {
        while data.has_remaining() {
            let mut slices = [io::IoSlice::new(&[]); 4];
            let count = data.chunks_vectored(&mut slices);
            let slices = &slices[..count];
            let written = match &mut self.stream {
                Stream::Plain(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    match stream.try_write_vectored(slices) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        written => written?,
                    }
                }
                Stream::Tls(stream) => ready!(Pin::new(stream).poll_write_vectored(cx, slices))?,
            };
            data.advance(written);
        }
        match &mut self.stream {
            Stream::Plain(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Whether it is still open and silent, as an idle connection must be.
    pub(super) fn is_quiet(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        let mut byte = [0];
        match &mut self.stream {
            Stream::Plain(stream) => {
                let read = stream.try_read(&mut byte);
                matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            // What TLS has to say to itself, such as new session tickets, is no noise.
            Stream::Tls(stream) => {
                let mut cx = Context::from_waker(Waker::noop());
                tokio::io::AsyncRead::poll_read(Pin::new(stream), &mut cx, &mut ReadBuf::new(&mut byte))
                    .is_pending()
            }
        }
    }
}
