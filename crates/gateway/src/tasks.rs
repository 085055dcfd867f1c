//! Background tasks: named, and with a report when one panics.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::error;

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct OwnedTask(AbortHandle);

impl OwnedTask {
    pub(crate) fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(spawn(name, task).abort_handle())
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `task` on its own; a panic in it is logged and goes no further.
#[expect(clippy::disallowed_methods, reason = "the tracked spawner")]
pub(crate) fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(Reporting { task, _report: PanicReport(name) })
}

pin_project! {
    /// Not an `async` block, which would hold the task twice: as it was captured, and as it runs.
    struct Reporting<F> {
        #[pin]
        task: F,
        _report: PanicReport,
    }
}

impl<F: Future<Output = ()>> Future for Reporting<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().task.poll(cx)
    }
}

struct PanicReport(&'static str);

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            error!(task = self.0, "a task panicked; this is a bug in backstop");
        }
    }
}
