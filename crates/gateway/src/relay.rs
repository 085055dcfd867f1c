//! The body of a streamed answer: relays events from the upstream and guards their end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use backstop_core::breaker::Outcome;
use backstop_openai::Usage;
use backstop_openai::resume::{Splice, Spliced};
use bytes::Bytes;
use tokio::time::Sleep;

use crate::cache::Tee;
use crate::endpoint::{Departure, LOOK, Lease};
use crate::failover::Past;
use crate::fault::Fault;
use crate::record::Record;
use crate::request::Routed;
use crate::resume::{self, Rest, Resumption};
use crate::server::Phase;
use crate::stream::{Step, StreamReader};
use crate::{Shared, clock};

/// How long a complete answer may go without `[DONE]` before we say it ourselves.
const DONE_GRACE: Duration = Duration::from_secs(1);

/// Ends in exactly one of three ways: whole, with an error event, or dropped because the client has gone. In the
/// last case dropping what it holds cancels the work upstream and keeps the accounts.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    source: Source,
    /// `None` after the end.
    record: Option<Record>,
    /// To be sent before anything else.
    ready: Bytes,
    clock: StallClock,
    total: Total,
    /// When the endpoint is to be looked at again.
    looks_at: Instant,
    /// `None` if the stream is not carried on when it ends too soon.
    resumption: Option<Box<Resumption>>,
    /// Of an answer that is kept for others, if it becomes whole.
    tee: Option<Box<Tee>>,
    is_whole: bool,
}

type Attempts = Pin<Box<dyn Future<Output = (Resumption, Result<Rest, Fault>)> + Send>>;

#[expect(clippy::large_enum_variant, reason = "nearly always the large one")]
enum Source {
    Flowing(Flow),
    /// Further attempts are being made.
    Resuming {
        attempts: Attempts,
        /// What goes on if they come to nothing: the endpoint is to be left, but it may still serve. With why it is to be
        /// left.
        stays: Option<Box<(Flow, Fault)>>,
    },
    Ended,
}

struct Flow {
    reader: StreamReader,
    lease: Lease,
    /// If it is not the first attempt's.
    splice: Option<Box<Splice>>,
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
        routed: Routed,
        past: Past,
        mut record: Record,
    ) -> Self {
        record.relayed(reader.state().pieces);
        let (clock, total) = (StallClock::new(routed.timeouts.inter_token), routed.total);
        let resumption = Resumption::new(routed, past, record.request_id.clone()).map(Box::new);
        let source = Source::Flowing(Flow { reader, lease, splice: None });
        Self {
            shared,
            source,
            record: Some(record),
            ready: first,
            clock,
            total,
            looks_at: clock::now() + LOOK,
            resumption,
            tee: None,
            is_whole: false,
        }
    }

    /// Keeps the answer for others, if it becomes whole.
    pub(crate) fn keep(&mut self, tee: Tee) {
        self.tee = Some(Box::new(tee));
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if !self.ready.is_empty() {
                self.tee = self.tee.take().and_then(|tee| tee.push(&self.ready));
                return Poll::Ready(Some(std::mem::take(&mut self.ready)));
            }
            if matches!(self.source, Source::Ended) {
                if let Some(tee) = self.tee.take().filter(|_| self.is_whole) {
                    tee.keep();
                }
                return Poll::Ready(None);
            }
            let now = clock::now();
            if self.shared.phase() == Phase::Closing {
                self.stop(Fault::Closing);
            } else if now >= self.total.deadline {
                self.stop(Fault::Total(self.total.limit));
            } else {
                if now >= self.looks_at {
                    self.looks_at = now + LOOK;
                    self.look(now);
                }
                ready!(self.poll_source(cx));
            }
        }
    }

    /// Moves the source on; ready when that may have brought something.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Flow { reader, lease, splice } = match &mut self.source {
            Source::Flowing(flow) => flow,
            Source::Resuming { attempts, stays } => {
                let (resumption, rest) = ready!(attempts.as_mut().poll(cx));
                let stays = stays.take();
                self.resumed(resumption, rest, stays);
                return Poll::Ready(());
            }
            Source::Ended => return Poll::Ready(()),
        };
        let tokens_before = self.resumption.as_ref().map_or(0, |resumption| resumption.tokens_before());
        let before = reader.state().events;
        let step = match reader.poll_step(cx) {
            Poll::Ready(step) => step,
            Poll::Pending => {
                let complete = reader.state().is_complete();
                let alarm = ready!(self.clock.poll(cx, complete, self.total, self.looks_at));
                if alarm == Alarm::Late && clock::now() < self.total.deadline {
                    lease.timed_out();
                    let fault = Fault::Stalled(self.clock.limit);
                    if complete { self.stop(fault) } else { self.interrupted(fault) }
                }
                return Poll::Ready(());
            }
        };
        // A comment keeps the connection alive, but it is no token.
        if reader.state().events > before {
            self.clock.stop();
            lease.progress();
            if let Some(record) = &mut self.record {
                record.relayed(reader.state().pieces + tokens_before);
            }
        }
        let (events, end) = match step {
            Step::Events(events) => (events, None),
            Step::End(events) => (events, Some(Ok(()))),
            Step::Fault(events, fault) => (events, Some(Err(fault))),
        };
        let spliced = match splice {
            None => Ok(Spliced::Events(events)),
            Some(splice) => splice.events(&events),
        };
        match spliced {
            Ok(Spliced::Events(events)) => self.ready = events,
            Ok(Spliced::Finished(events)) => {
                self.ready = events;
                self.end();
                return Poll::Ready(());
            }
            // What was regenerated has been compared already: this is an event that can't be rewritten.
            Err(_) => {
                self.cut(Fault::Truncated);
                return Poll::Ready(());
            }
        }
        match end {
            None => {}
            Some(Ok(())) => self.end(),
            Some(Err(fault)) => self.interrupted(fault),
        }
        Poll::Ready(())
    }

    /// No more is waited for. What is complete but for its end mark is ended well.
    fn stop(&mut self, fault: Fault) {
        match &self.source {
            Source::Flowing(Flow { reader, .. }) if reader.state().is_complete() => {
                self.ready = reader.end_mark();
                self.end();
            }
            _ => self.cut(fault),
        }
    }

    /// The upstream has said everything.
    pub(crate) fn end(&mut self) {
        self.is_whole = true;
        let tokens_before = self.resumption.as_ref().map_or(0, |resumption| resumption.tokens_before());
        if let Source::Flowing(Flow { reader, lease, .. }) =
            std::mem::replace(&mut self.source, Source::Ended)
        {
            if let Some(record) = &mut self.record {
                let state = reader.state();
                // Without a report the pieces are the best that is known.
                let used = state.usage.unwrap_or(Usage { input: 0, output: state.pieces });
                record.used(Usage { output: used.output.saturating_add(tokens_before), ..used });
                record.streamed(state, state.pieces.saturating_add(tokens_before));
            }
            lease.finish(if reader.state().failed { Outcome::Failure } else { Outcome::Success });
            reader.finish();
        }
        if let Some(record) = self.record.take() {
            record.answered(200);
        }
    }

    /// The endpoint may be one to be left by now. What can be carried on elsewhere is; the rest may end where it is.
    fn look(&mut self, now: Instant) {
        let (Source::Flowing(flow), Some(resumption)) = (&self.source, &self.resumption) else { return };
        let endpoint = flow.lease.endpoint();
        let departure = match endpoint.departure(now) {
            None => return,
            // Checks may be wrong; what flows is right.
            Some(Departure::Dead) if self.clock.waited(now) < LOOK => return,
            Some(departure) => departure,
        };
        if flow.reader.state().is_complete() || !resumption.has_elsewhere(&self.shared, endpoint, now) {
            return;
        }
        let Ok(lost) = resumption.interrupted(flow.reader.state()) else { return };
        let old = std::mem::replace(&mut self.source, Source::Ended);
        if let (Source::Flowing(flow), Some(resumption)) = (old, self.resumption.take()) {
            let attempts = Box::pin(resumption.move_on(Arc::clone(&self.shared), lost, departure.into()));
            self.source = Source::Resuming { attempts, stays: Some(Box::new((flow, departure.into()))) };
        }
    }

    /// The stream has ended too soon. What can be carried on is, as if nothing had happened.
    fn interrupted(&mut self, fault: Fault) {
        let old = std::mem::replace(&mut self.source, Source::Ended);
        let Source::Flowing(Flow { reader, lease, .. }) = old else { return self.cut(fault) };
        let endpoint = Arc::clone(lease.endpoint());
        lease.finish(fault.outcome());
        if let Some(record) = &mut self.record {
            record.lost(&fault);
        }
        let Some(resumption) = self.resumption.take().filter(|_| fault.leaves_the_rest_open()) else {
            return self.cut(fault);
        };
        match resumption.interrupted(reader.state()) {
            Ok(lost) => {
                let attempts = resumption.carry_on(Arc::clone(&self.shared), lost, endpoint, fault);
                self.source = Source::Resuming { attempts: Box::pin(attempts), stays: None };
            }
            Err(hindrance) => {
                if let Some(record) = &mut self.record {
                    record.not_resumed(hindrance);
                }
                self.cut(fault);
            }
        }
    }

    /// The attempts to carry on have come to something, or not.
    fn resumed(
        &mut self,
        resumption: Resumption,
        rest: Result<Rest, Fault>,
        stays: Option<Box<(Flow, Fault)>>,
    ) {
        let rest = match (rest, stays) {
            (Ok(rest), None) => rest,
            (Ok(rest), Some(stays)) => {
                let (flow, fault) = *stays;
                flow.lease.finish(fault.outcome());
                if let Some(record) = &mut self.record {
                    record.lost(&fault);
                }
                rest
            }
            (Err(_), Some(stays)) => {
                self.resumption = Some(Box::new(resumption));
                self.source = Source::Flowing(stays.0);
                return;
            }
            (Err(fault), None) => return self.cut(fault),
        };
        self.tee = self.tee.take().filter(|tee| tee.is_for(&rest.version));
        if let Some(record) = &mut self.record {
            record.resumed(&rest, resumption.place());
            if let Some(permit) = rest.permit {
                record.admitted(permit);
            }
        }
        self.resumption = Some(Box::new(resumption));
        self.clock.stop();
        self.ready = rest.events;
        match rest.from {
            resume::Source::Stream { reader, lease, splice, ended } => {
                self.source = Source::Flowing(Flow { reader, lease, splice: Some(Box::new(splice)) });
                if ended {
                    self.end_spliced();
                }
            }
            resume::Source::Ended { lease } => {
                if let Some(lease) = lease {
                    lease.finish(Outcome::Success);
                }
                self.end();
            }
        }
    }

    /// The last events of the rest are at hand already.
    fn end_spliced(&mut self) {
        if let Source::Flowing(Flow { reader, .. }) = &self.source {
            let mark = reader.end_mark();
            if !mark.is_empty() {
                self.ready = [std::mem::take(&mut self.ready), mark].concat().into();
            }
        }
        self.end();
    }

    /// Ends the stream with an error event and without `[DONE]`.
    fn cut(&mut self, fault: Fault) {
        if let Source::Flowing(Flow { lease, .. }) = std::mem::replace(&mut self.source, Source::Ended) {
            lease.finish(fault.outcome());
        }
        if let Some(mut record) = self.record.take() {
            record.lost(&fault);
            record.cut(fault.code());
        }
        // Events that were still good come first.
        let event = fault.to_event();
        self.ready = if self.ready.is_empty() {
            event
        } else {
            [std::mem::take(&mut self.ready), event].concat().into()
        };
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Alarm {
    /// The upstream is late, or the whole request is.
    Late,
    /// Is the endpoint still one to wait for?
    Look,
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

    /// How long nothing has come.
    fn waited(&self, now: Instant) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Ready when the upstream is late, or the whole request is, and when it is time for a look.
    fn poll(&mut self, cx: &mut Context<'_>, complete: bool, total: Total, looks_at: Instant) -> Poll<Alarm> {
        let limit = if complete { self.limit.min(DONE_GRACE) } else { self.limit };
        let since = *self.waiting_since.get_or_insert_with(clock::now);
        let due = (since + limit).min(total.deadline);
        let next = tokio::time::Instant::from_std(due.min(looks_at));
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
        if alarm.deadline() > due.into() {
            alarm.as_mut().reset(due.into());
        }
        ready!(alarm.as_mut().poll(cx));
        let now = clock::now();
        alarm.as_mut().reset(due.min(looks_at.max(now + LOOK)).into());
        Poll::Ready(if now >= due { Alarm::Late } else { Alarm::Look })
    }
}
