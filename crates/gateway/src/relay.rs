//! The body of a streamed answer: relays events from the upstream and guards their end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use backstop_core::breaker::Outcome;
use backstop_openai::Usage;
use bytes::Bytes;
use tokio::time::Sleep;

use crate::endpoint::Lease;
use crate::fault::Fault;
use crate::record::Record;
use crate::server::Phase;
use crate::stream::{Step, StreamReader};
use crate::{Shared, clock};

/// How long a complete answer may go without `[DONE]` before we say it ourselves.
const DONE_GRACE: Duration = Duration::from_secs(1);

/// Ends in exactly one of three ways: whole, with an error event, or dropped because the client has gone. In the
/// last case dropping what it holds cancels the work upstream and keeps the accounts.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    /// Both `None` after the end.
    source: Option<Source>,
    record: Option<Record>,
    /// To be sent before anything else.
    ready: Bytes,
    clock: StallClock,
    total: Total,
}

struct Source {
    reader: StreamReader,
    lease: Lease,
}

/// The deadline of the whole request, and how long that was.
#[derive(Clone, Copy)]
pub(crate) struct Total {
    pub(crate) deadline: Instant,
    pub(crate) limit: Duration,
}

impl Relay {
    pub(crate) fn new(
        shared: Arc<Shared>,
        reader: StreamReader,
        lease: Lease,
        first: Bytes,
        inter_token: Duration,
        total: Total,
        record: Record,
    ) -> Self {
        let source = Some(Source { reader, lease });
        Self {
            shared,
            source,
            record: Some(record),
            ready: first,
            clock: StallClock::new(inter_token),
            total,
        }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(Some(std::mem::take(&mut self.ready)));
            }
            let Some(source) = &mut self.source else { return Poll::Ready(None) };
            let interrupted = match self.shared.phase() {
                Phase::Closing => Some(Fault::Closing),
                _ if clock::now() >= self.total.deadline => Some(Fault::Total(self.total.limit)),
                _ => None,
            };
            if let Some(fault) = interrupted {
                self.stop(fault);
                continue;
            }
            let before = source.reader.state().events;
            match source.reader.poll_step(cx) {
                Poll::Ready(Step::Events(events)) => {
                    // A comment keeps the connection alive, but it is no token.
                    if source.reader.state().events > before {
                        self.clock.stop();
                        source.lease.progress();
                    }
                    self.ready = events;
                }
                Poll::Ready(Step::End(events)) => {
                    self.ready = events;
                    self.end();
                }
                Poll::Ready(Step::Fault(events, fault)) => {
                    self.cut(fault);
                    if !events.is_empty() {
                        self.ready = [events, std::mem::take(&mut self.ready)].concat().into();
                    }
                }
                Poll::Pending => {
                    let complete = source.reader.state().is_complete();
                    if self.clock.poll(cx, complete, self.total).is_pending() {
                        return Poll::Pending;
                    }
                    if clock::now() < self.total.deadline {
                        source.lease.timed_out();
                        self.stop(Fault::Stalled(self.clock.limit));
                    }
                }
            }
        }
    }

    /// No more is waited for. What is complete but for its end mark is ended well.
    fn stop(&mut self, fault: Fault) {
        match &self.source {
            Some(source) if source.reader.state().is_complete() => {
                self.ready = source.reader.end_mark();
                self.end();
            }
            _ => self.cut(fault),
        }
    }

    /// The upstream has said everything.
    pub(crate) fn end(&mut self) {
        if let Some(Source { reader, lease }) = self.source.take() {
            if let Some(record) = &self.record {
                let state = reader.state();
                // Without a report the pieces are the best that is known.
                record.used(state.usage.unwrap_or(Usage { input: 0, output: state.pieces }));
                record.paced(state.pieces);
            }
            lease.finish(if reader.state().failed { Outcome::Failure } else { Outcome::Success });
            reader.finish();
        }
        if let Some(record) = self.record.take() {
            record.answered(200);
        }
    }

    /// Ends the stream with an error event and without `[DONE]`.
    fn cut(&mut self, fault: Fault) {
        if let Some(Source { lease, .. }) = self.source.take() {
            lease.finish(fault.outcome());
        }
        if let Some(record) = self.record.take() {
            record.cut(fault.code());
        }
        self.ready = fault.to_event();
    }
}

/// Runs only while we wait for the upstream; a client that reads slowly never makes the upstream late.
struct StallClock {
    limit: Duration,
    waiting_since: Option<Instant>,
    /// Set no more often than it fires: deadlines only move away, so an early alarm is simply set again.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl StallClock {
    fn new(limit: Duration) -> Self {
        Self { limit, waiting_since: None, alarm: None }
    }

    fn stop(&mut self) {
        self.waiting_since = None;
    }

    /// Ready when the upstream is late, or the whole request is.
    fn poll(&mut self, cx: &mut Context<'_>, complete: bool, total: Total) -> Poll<()> {
        let limit = if complete { self.limit.min(DONE_GRACE) } else { self.limit };
        let stalled_at = *self.waiting_since.get_or_insert_with(clock::now) + limit;
        let due = tokio::time::Instant::from_std(stalled_at.min(total.deadline));
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if alarm.deadline() > due {
            alarm.as_mut().reset(due);
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if clock::now() >= stalled_at.min(total.deadline) {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}
