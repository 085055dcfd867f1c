//! A response body written by an `async` block that runs inside the connection's own task.
//!
//! No task is spawned per answer: dropping the body drops the work at once, as a client's leaving should.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::framing::Framed;

type Work = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Body of every response.
pub(crate) enum SimBody {
    Whole(Option<Bytes>),
    Written(Written),
    Framed(Framed),
}

/// Frames from `work`. An error from it closes the connection in the middle of the body.
pub(crate) struct Written {
    frames: mpsc::Receiver<Bytes>,
    flush: Arc<AtomicBool>,
    work: Option<Work>,
    failed: Option<io::Error>,
}

impl SimBody {
    pub(crate) fn written<F>(style: WriteStyle, write: impl FnOnce(Out) -> F) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        // Full means that the connection has not taken the last frames yet: the writer waits.
        let (to, frames) = mpsc::channel(4);
        let flush = Arc::new(AtomicBool::new(false));
        let work = write(Out { to, flush: flush.clone(), style, unwritten: 0 });
        Self::Written(Written { frames, flush, work: Some(Box::pin(work)), failed: None })
    }
}

impl From<Bytes> for SimBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Written(written) => written.poll(cx),
            Self::Framed(framed) => framed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Written(_) | Self::Framed(_) => SizeHint::default(),
        }
    }
}

impl Written {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            // Only `work` sends, and it is polled right here, so there is nobody to wait for. (`poll_recv` would also
            // pend with frames at hand once tokio's budget for the task is spent.)
            if let Ok(bytes) = self.frames.try_recv() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.flush.swap(false, Ordering::Relaxed) {
                // Not ready, so hyper writes out what it has before it asks again.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(work) = &mut self.work else {
                return Poll::Ready(self.failed.take().map(Err));
            };
            match work.as_mut().poll(cx) {
                Poll::Ready(result) => {
                    self.work = None;
                    self.failed = result.err();
                }
                Poll::Pending => {
                    if self.frames.is_empty() && !self.flush.load(Ordering::Relaxed) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

/// How a stream is cut into writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteStyle {
    /// Events per write when they are ready together; 1 is like real engines.
    pub(crate) events_per_write: usize,
    /// Writes of so many bytes instead, wherever events and characters begin.
    pub(crate) bytes_per_write: Option<usize>,
}

/// The writing end.
pub(crate) struct Out {
    to: mpsc::Sender<Bytes>,
    flush: Arc<AtomicBool>,
    style: WriteStyle,
    unwritten: usize,
}

impl Out {
    pub(crate) async fn send(&mut self, mut bytes: Bytes) {
        if let Some(size) = self.style.bytes_per_write {
            while bytes.len() > size {
                self.push(bytes.split_to(size)).await;
                self.flush().await;
            }
        }
        self.push(bytes).await;
        self.unwritten += 1;
    }

    /// Lets the connection write if enough events are together.
    pub(crate) async fn end_event(&mut self) {
        if self.unwritten >= self.style.events_per_write || self.style.bytes_per_write.is_some() {
            self.flush().await;
        }
    }

    /// Lets the connection write all it has been given.
    pub(crate) async fn flush(&mut self) {
        self.unwritten = 0;
        self.flush.store(true, Ordering::Relaxed);
        // The body lowers the flag when it holds nothing back any more; it polls this future again itself.
        let written = |_: &mut Context<'_>| {
            if self.flush.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }
        };
        std::future::poll_fn(written).await;
    }

    async fn push(&mut self, bytes: Bytes) {
        // Fails only when the body is gone, and then this future is as well.
        let _ = self.to.send(bytes).await;
    }
}
