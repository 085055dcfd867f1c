//! [`Job`]: work on files that takes long, on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use serde::Serialize;
use tokio::sync::oneshot;
use utoipa::ToSchema;

/// How far it is, and whether it is to end.
#[derive(Debug)]
pub(crate) struct Job {
    what: Doing,
    done: AtomicU64,
    /// 0 = nobody knows yet.
    total: AtomicU64,
    ends: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FileWork)]
pub(crate) enum Doing {
    Copying,
    Verifying,
}

/// How far work on a version's files is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = FileProgress)]
pub(crate) struct Progress {
    pub(crate) what: Doing,
    /// Bytes.
    pub(crate) done: u64,
    /// Bytes; 0 as long as nobody knows.
    pub(crate) total: u64,
}

impl Job {
    pub(crate) fn new(what: Doing, total: u64) -> Arc<Self> {
        let (done, ends) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self { what, done, total: AtomicU64::new(total), ends })
    }

    pub(crate) fn what(&self) -> Doing {
        self.what
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    pub(super) fn expect(&self, total: u64) {
        self.total.store(total, Relaxed);
    }

    /// It ends with the next piece.
    pub(super) fn end(&self) {
        self.ends.store(true, Relaxed);
    }

    /// Fails if it is to end.
    pub(super) fn go_on(&self) -> io::Result<()> {
        if self.ends.load(Relaxed) { Err(io::Error::other("this process ends")) } else { Ok(()) }
    }

    pub(crate) fn progress(&self) -> Progress {
        let (done, total) = (self.done.load(Relaxed), self.total.load(Relaxed));
        Progress { what: self.what, done, total }
    }
}

/// Does `work` where it holds up nobody, nor the end of the process.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, is_done) = oneshot::channel();
    // Whoever has asked may be gone.
    let run = move || drop(done.send(work()));
    std::thread::Builder::new().name("artifacts".to_owned()).spawn(run)?;
    is_done.await.map_err(|_| io::Error::other("it came to no end; this is a fault of Backstop"))
}
