//! When a connection of HTTP/2 ends, and when its client is told.
//!
//! There are clients that give up a connection, with all that runs on it, as soon as they are told to go (Python's `h2`
//! does), and clients that do not hear it, because they read only while they wait for an answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::Sleep;

use super::Phase;
use super::connection::PhaseChange;
use crate::counting::Moved;
use crate::{Shared, clock};

/// A connection without requests is closed after once to twice this long.
const IDLE: Duration = Duration::from_secs(60);
/// When the process has to go: after the last answer, the time without a byte until the client is told. What is left of
/// the answer waits for the client's window.
const SETTLE: Duration = Duration::from_millis(250);
/// When the process has to stop: the time without a byte until a client that has been told is taken for one that does
/// not listen.
const LAST_IDLE: Duration = Duration::from_secs(1);

/// A connection that can be told to end with what runs on it.
pub(super) trait Ending: Future {
    fn tell(self: Pin<&mut Self>);
}

/// Drives a connection to its end.
pub(super) struct Parting<C> {
    serving: Pin<Box<C>>,
    shared: Arc<Shared>,
    change: PhaseChange,
    counts: Arc<Counts>,
    stage: Stage,
    alarm: Pin<Box<Sleep>>,
    /// At the last look: streams so far, and bytes.
    begun: u64,
    moved: u64,
    /// Streams until the process had to stop.
    drained_at: Option<u64>,
    told: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A look whether anything is asked on it.
    Look,
    /// The end of what runs on it.
    Busy,
    /// The moment to tell its client.
    Settle,
    /// The end, whether its client has heard it or not.
    Close,
}

impl Stage {
    fn of(phase: Phase, open: usize, told: bool) -> Self {
        match (phase, open, told) {
            (Phase::Running, ..) => Self::Look,
            (_, 1.., _) | (Phase::Leaving, _, true) => Self::Busy,
            (_, 0, false) => Self::Settle,
            (_, 0, true) => Self::Close,
        }
    }

    /// How long it takes, unless something moves.
    fn quiet(self, phase: Phase) -> Option<Duration> {
        match self {
            Self::Look => Some(IDLE),
            Self::Busy => None,
            Self::Settle => Some(SETTLE),
            Self::Close if phase == Phase::Closing => Some(SETTLE),
            Self::Close => Some(LAST_IDLE),
        }
    }
}

impl<C: Ending> Parting<C> {
    /// `counts` are kept by others.
    pub(super) fn new(shared: &Arc<Shared>, counts: Arc<Counts>, serving: C) -> Self {
        Self {
            serving: Box::pin(serving),
            shared: Arc::clone(shared),
            change: PhaseChange::new(shared),
            counts,
            stage: Stage::Look,
            alarm: Box::pin(tokio::time::sleep(IDLE)),
            begun: 0,
            moved: 0,
            drained_at: None,
            told: false,
        }
    }

    fn tell(&mut self) {
        self.told = true;
        self.serving.as_mut().tell();
    }

    fn enter(&mut self, stage: Stage, phase: Phase) {
        self.stage = stage;
        (self.begun, self.moved) = (self.counts.begun.load(Relaxed), self.counts.moved.both_ways());
        if let Some(quiet) = stage.quiet(phase) {
            self.alarm.as_mut().reset((clock::now() + quiet).into());
        }
    }

    /// Ready when the connection is over; else there is something new to be done on it.
    fn poll_stage(&mut self, phase: Phase, cx: &mut Context<'_>) -> Poll<Option<()>> {
        if phase >= Phase::Draining && !self.told {
            // Nobody becomes idle who goes on asking, and the process ends soon.
            let begun = self.counts.begun.load(Relaxed);
            if begun > *self.drained_at.get_or_insert(begun) {
                self.tell();
                return Poll::Ready(None);
            }
        }
        let stage = Stage::of(phase, self.counts.open.load(Relaxed), self.told);
        if stage != self.stage {
            self.enter(stage, phase);
        }
        if stage == Stage::Busy {
            return Poll::Pending;
        }
        ready!(self.alarm.as_mut().poll(cx));
        let quiet = match stage {
            Stage::Look => {
                self.counts.open.load(Relaxed) == 0 && self.counts.begun.load(Relaxed) == self.begun
            }
            _ => self.counts.moved.both_ways() == self.moved,
        };
        match (quiet, self.told) {
            // It has had its time: what it has not read of its answers by now it never will.
            (true, true) => return Poll::Ready(Some(())),
            (true, false) => self.tell(),
            (false, _) => {}
        }
        self.enter(stage, phase);
        Poll::Ready(None)
    }
}

impl<C: Ending<Output = Result<(), E>>, E> Future for Parting<C> {
    type Output = Result<(), E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let it = &mut *self;
        let phase = it.change.watch(&it.shared, cx);
        loop {
            // A request that has arrived is taken before the client is told.
            if let Poll::Ready(ended) = it.serving.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            it.counts.watch(cx);
            if ready!(it.poll_stage(phase, cx)).is_some() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What happens on a connection.
#[derive(Default)]
pub(super) struct Counts {
    /// Streams at present, and so far.
    open: AtomicUsize,
    begun: AtomicU64,
    /// By a [`Counted`](crate::counting::Counted) below the connection.
    pub(super) moved: Arc<Moved>,
    /// Who waits for the last stream.
    waker: Mutex<Option<Waker>>,
}

impl Counts {
    fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }
}

/// One of the streams.
pub(super) struct Open(Arc<Counts>);

impl Open {
    pub(super) fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Relaxed);
        counts.begun.fetch_add(1, Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Relaxed) > 1 {
            return;
        }
        // The lock orders this after a look that still saw the stream.
        let waker = self.0.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
