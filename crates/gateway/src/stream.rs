//! Reads the stream of an upstream: whole, validated events only.

use std::task::{Context, Poll, ready};

use backstop_openai::Api;
use backstop_openai::sse::{self, EventBuffer};
use backstop_openai::stream::{EventFault, StreamState, scan};
use bytes::Bytes;

use crate::fault::Fault;
use crate::request::Routed;
use crate::upstream::{Exchange, WireError};

const DONE: &[u8] = b"data: [DONE]\n\n";

/// What comes next of a stream.
pub(crate) enum Step {
    /// Whole events, for the client as they are.
    Events(Bytes),
    /// The last events of a complete answer.
    End(Bytes),
    /// Events that are still good, and what went wrong after them.
    Fault(Bytes, Fault),
}

pub(crate) struct StreamReader {
    exchange: Exchange,
    api: Api,
    buffer: EventBuffer,
    state: StreamState,
}

impl StreamReader {
    pub(crate) fn new(exchange: Exchange, routed: &Routed) -> Self {
        let mut state = StreamState::new(routed.expected);
        if routed.resume.attempts == 0 {
            state = state.without_transcript();
        }
        Self { exchange, api: routed.api, buffer: EventBuffer::default(), state }
    }

    pub(crate) fn state(&self) -> &StreamState {
        &self.state
    }

    /// # Cancel safety
    /// Nothing is lost when the caller stops polling.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            let data = match ready!(self.exchange.poll_data(cx)) {
                Some(Ok(data)) => data,
                Some(Err(error)) => return Poll::Ready(self.ended(Some(error))),
                None => return Poll::Ready(self.ended(None)),
            };
            match self.buffer.push(data) {
                Ok(block) if block.is_empty() => {}
                Ok(block) => return Poll::Ready(self.scan(block)),
                Err(error) => return Poll::Ready(Step::Fault(Bytes::new(), error.into())),
            }
        }
    }

    fn scan(&mut self, block: Bytes) -> Step {
        let mut start = 0;
        for event in sse::events(&block) {
            if !event.is_well_formed {
                let fault = EventFault::Malformed("a line that readers would not agree on".to_owned());
                return Step::Fault(block.slice(..start), Fault::Event(fault));
            }
            if let Some(data) = &event.data {
                if let Err(fault) = scan(self.api, data, &mut self.state) {
                    return Step::Fault(block.slice(..start), Fault::Event(fault));
                }
                if self.state.done {
                    return Step::End(block.slice(..event.end));
                }
            }
            start = event.end;
        }
        Step::Events(block)
    }

    /// The body has ended, or the connection was lost.
    fn ended(&self, error: Option<WireError>) -> Step {
        if self.state.is_complete() {
            return Step::End(self.end_mark());
        }
        match error {
            Some(error) => Step::Fault(Bytes::new(), Fault::Lost(error)),
            // What an unknown API means by its events is unknown too; a proper end is all that can be asked.
            None if self.api == Api::Other && self.buffer.is_at_boundary() => Step::End(Bytes::new()),
            None => Step::Fault(Bytes::new(), Fault::Truncated),
        }
    }

    /// What clients wait for at the end of an answer, if it has not come yet.
    pub(crate) fn end_mark(&self) -> Bytes {
        let marked = self.state.done || !matches!(self.api, Api::Chat | Api::Completions);
        if marked { Bytes::new() } else { Bytes::from_static(DONE) }
    }

    /// The stream has been read to its end.
    pub(crate) fn finish(self) {
        self.exchange.finish();
    }
}
