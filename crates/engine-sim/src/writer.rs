//! Decodes a job and writes the answer, with whatever goes wrong on the way.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::answer::{Answer, Finish};
use crate::body::Out;
use crate::connection::Steering;
use crate::dist::Chance;
use crate::embedding::EmbeddingJob;
use crate::engine::{Engine, InFlight, count};
use crate::fault::{Cut, Fault};
use crate::frame::{Choice, Usage, Wire};
use crate::job::Job;
use crate::problem::error_in_stream;
use crate::schedule::Ticket;

/// Everything that answering a request takes.
pub(crate) struct Writer {
    pub(crate) engine: Arc<Engine>,
    pub(crate) steering: Arc<Steering>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) in_flight: InFlight,
    pub(crate) chance: Chance,
}

/// Neither text nor JSON nor an event.
const GARBAGE: &[u8] = b"\xff\xfe\x00\x01garbage\xc3\x28\n\n";

const PING: &[u8] = b": ping\n\n";

/// An event without content, but for the padding that goes between.
const HUGE_EVENT: (&str, &str) = ("data: {\"choices\":[],\"padding\":\"", "\"}\n\n");

/// The pace, while nothing else sets one, of an answer that nobody gets to see.
const UNSEEN: Duration = Duration::from_millis(1);

impl Writer {
    /// Streams the answer. An error closes the connection.
    pub(crate) async fn stream(mut self, job: Job, ticket: Ticket, mut out: Out) -> io::Result<()> {
        let Some(_slot) = ticket.slot().await else { return Ok(()) };
        let Job { mut wire, mut answers, prompt_tokens, .. } = job;
        self.bend(&mut answers);
        if self.has(&Fault::EmptyFinish) {
            wire.empty_finish();
        }
        let ping = self.ping();
        pinging(ping, &mut out, self.first_token(prompt_tokens)).await;
        // Choices that are decoded together, and whether they are finished before the next ones begin.
        let one_by_one = self.has(&Fault::OneByOne);
        let group = if one_by_one { 1 } else { answers.len() };
        let total = answers.len();
        let mut due = Instant::now();
        let mut chunks = 0;
        for (begin, answers) in (0..).step_by(group).zip(answers.chunks_mut(group)) {
            // What is due between two choices happens before the second says anything.
            let next = answers.first().and_then(|answer| answer.clone().next()).map(|piece| (begin, piece));
            if begin > 0
                && let ControlFlow::Break(result) = self.strike(chunks, wire.as_mut(), next, &mut out).await
            {
                return self.end(result);
            }
            for event in wire.open(begin..begin + answers.len()) {
                out.send(event).await;
                out.end_event().await;
            }
            let is_last = begin + answers.len() == total;
            let mut live = true;
            while live {
                live = false;
                for (choice, answer) in (begin..).zip(answers.iter_mut()) {
                    let next = answer.clone().next().map(|piece| (choice, piece));
                    if next.is_some() || is_last {
                        match self.strike(chunks, wire.as_mut(), next, &mut out).await {
                            ControlFlow::Break(result) => return self.end(result),
                            ControlFlow::Continue(()) => {}
                        }
                    }
                    let Some(piece) = answer.next() else { continue };
                    live = true;
                    pinging(ping, &mut out, self.thaw(&mut due)).await;
                    count(&self.engine.counters.generation_tokens, 1);
                    out.send(wire.content(choice, piece)).await;
                    chunks += 1;
                }
                if live {
                    count(&self.engine.counters.decode_steps, 1);
                    if !pinging(ping, &mut out, self.next_token(&mut due)).await {
                        out.end_event().await;
                    }
                }
            }
            if !self.has(&Fault::NoFinish) {
                for (choice, answer) in (begin..).zip(&*answers) {
                    for event in wire.finish(choice, answer.finish()) {
                        out.end_event().await;
                        out.send(event).await;
                    }
                }
            }
        }
        let result = self.finish(wire.as_mut(), &answers, prompt_tokens, &mut out).await;
        self.end(result)
    }

    /// Whether the answer is a stream.
    pub(crate) fn streams(&self, asked: bool) -> bool {
        let other = if asked { Fault::PlainForStream } else { Fault::StreamForPlain };
        asked != self.has(&other)
    }

    /// Decodes the whole answer and returns it as JSON.
    pub(crate) async fn plain(&mut self, job: Job, ticket: Ticket) -> Bytes {
        let Some(_slot) = ticket.slot().await else { return Bytes::new() };
        let Job { wire, mut answers, prompt_tokens, .. } = job;
        self.bend(&mut answers);
        self.first_token(prompt_tokens).await;
        let mut due = Instant::now();
        while self.has(&Fault::Endless) {
            self.thaw(&mut due).await;
            count(&self.engine.counters.generation_tokens, 1);
            count(&self.engine.counters.decode_steps, 1);
            if !self.next_token(&mut due).await {
                tokio::time::sleep(UNSEEN).await;
            }
        }
        let steps = answers.iter().map(|answer| answer.clone().count()).max().unwrap_or(0);
        let mut texts = vec![String::new(); answers.len()];
        for _ in 0..steps {
            self.thaw(&mut due).await;
            for (answer, text) in answers.iter_mut().zip(&mut texts) {
                if let Some(piece) = answer.next() {
                    text.push_str(piece);
                    count(&self.engine.counters.generation_tokens, 1);
                }
            }
            count(&self.engine.counters.decode_steps, 1);
            self.next_token(&mut due).await;
        }
        self.count_finished(&answers);
        let finish = answers.iter().map(Answer::finish);
        let choices: Vec<_> =
            texts.into_iter().zip(finish).map(|(text, finish)| Choice { text, finish }).collect();
        wire.plain(&choices, usage(&answers, prompt_tokens))
    }

    /// Computes embeddings and returns them as JSON.
    pub(crate) async fn embeddings(&mut self, job: EmbeddingJob, ticket: Ticket) -> Bytes {
        let Some(_slot) = ticket.slot().await else { return Bytes::new() };
        self.first_token(job.prompt_tokens).await;
        count(&self.engine.counters.stopped, 1);
        job.json()
    }

    /// Writes a plain body, as far as the faults let it.
    pub(crate) async fn plain_body(self, mut whole: Bytes, cut: Fault, mut out: Out) -> io::Result<()> {
        if let Fault::HugeEvent { bytes, .. } = cut {
            pad(b' ', bytes, &mut out).await;
            out.send(whole).await;
            return self.end(Ok(()));
        }
        out.send(whole.split_to(whole.len() / 2)).await;
        out.flush().await;
        match cut {
            Fault::Cut { how, .. } => {
                let result = self.cut(how);
                self.end(result)
            }
            Fault::Stall { .. } => std::future::pending().await,
            // In place of the other half, which keeps the length that the head has promised.
            _ => {
                out.send(GARBAGE.iter().copied().cycle().take(whole.len()).collect()).await;
                out.flush().await;
                self.end(Ok(()))
            }
        }
    }

    /// The fault that hits a plain body, if any.
    pub(crate) fn plain_fault(&self) -> Option<Fault> {
        let hits = |fault: &&Fault| {
            matches!(
                fault,
                Fault::Cut { .. }
                    | Fault::Stall { .. }
                    | Fault::Garbage { .. }
                    | Fault::InvalidEvent { .. }
                    | Fault::HugeEvent { .. }
            )
        };
        self.faults.iter().find(hits).cloned()
    }

    /// Lets the faults due after `chunks` content chunks happen; a break ends the stream.
    async fn strike(
        &mut self,
        chunks: u64,
        wire: &mut dyn Wire,
        next: Option<(usize, &str)>,
        out: &mut Out,
    ) -> ControlFlow<io::Result<()>> {
        let due = |fault: &Fault| fault.after() == Some(chunks);
        while let Some(at) = self.faults.iter().position(due) {
            match self.faults.swap_remove(at) {
                Fault::Cut { how, mid_event, .. } => {
                    if let (true, Some((choice, piece))) = (mid_event, next) {
                        let event = wire.content(choice, piece);
                        out.send(event.slice(..event.len() / 2)).await;
                    }
                    out.flush().await;
                    return ControlFlow::Break(self.cut(how));
                }
                Fault::Stall { .. } => {
                    out.flush().await;
                    return pinging(self.ping(), out, std::future::pending()).await;
                }
                Fault::InvalidEvent { .. } => {
                    out.send(Bytes::from_static(b"data: {\"choices\":[{]}\n\n")).await
                }
                Fault::Garbage { .. } => out.send(Bytes::from_static(GARBAGE)).await,
                Fault::HugeEvent { bytes, .. } => {
                    out.send(Bytes::from_static(HUGE_EVENT.0.as_bytes())).await;
                    pad(b'x', bytes, out).await;
                    out.send(Bytes::from_static(HUGE_EVENT.1.as_bytes())).await;
                }
                Fault::ErrorEvent { done, .. } => {
                    out.send(self.error_event()).await;
                    if let Some(mark) = wire.done().filter(|_| done) {
                        out.end_event().await;
                        out.send(mark).await;
                    }
                    return ControlFlow::Break(Ok(()));
                }
                Fault::Failed { .. } => {
                    out.send(wire.failed().unwrap_or_else(|| self.error_event())).await;
                    return ControlFlow::Break(Ok(()));
                }
                _ => {}
            }
            out.end_event().await;
        }
        ControlFlow::Continue(())
    }

    /// What follows the last choice.
    async fn finish(
        &self,
        wire: &mut dyn Wire,
        answers: &[Answer],
        prompt_tokens: u64,
        out: &mut Out,
    ) -> io::Result<()> {
        let cut = self.faults.iter().find_map(|fault| match fault {
            Fault::CutAfterFinish { how } => Some(*how),
            _ => None,
        });
        if let Some(how) = cut {
            out.flush().await;
            return self.cut(how);
        }
        let mut events = Vec::new();
        if !self.has(&Fault::NoFinish) {
            events.extend(wire.close(usage(answers, prompt_tokens)));
        }
        if !self.has(&Fault::NoDone) {
            events.extend(wire.done());
        }
        self.count_finished(answers);
        for event in events {
            out.end_event().await;
            out.send(event).await;
        }
        Ok(())
    }

    /// Lets the faults about an answer's length have their way.
    fn bend(&self, answers: &mut [Answer]) {
        let filtered = self.faults.iter().find_map(Fault::content_filter);
        for answer in answers {
            if let Some(after) = filtered {
                answer.filter(after);
            }
            if self.has(&Fault::Endless) {
                answer.endless();
            }
        }
    }

    fn has(&self, fault: &Fault) -> bool {
        self.faults.contains(fault)
    }

    fn error_event(&self) -> Bytes {
        Bytes::from(format!("data: {}\n\n", error_in_stream(self.engine.config.dialect)))
    }

    fn ping(&self) -> Option<Duration> {
        self.faults.iter().find_map(Fault::ping)
    }

    fn cut(&self, how: Cut) -> io::Result<()> {
        match how {
            Cut::End => return Ok(()),
            Cut::Fin => {}
            Cut::Rst => self.steering.reset(),
        }
        Err(io::Error::other("simulated cut"))
    }

    fn end(self, result: io::Result<()>) -> io::Result<()> {
        self.in_flight.end();
        result
    }

    /// Waits for the first token; counts the prompt as read by then.
    async fn first_token(&mut self, prompt_tokens: u64) {
        let mut delay = self.engine.config.ttft.sample(&mut self.chance);
        if self.has(&Fault::Flood) {
            delay = Duration::ZERO;
        }
        delay += self.faults.iter().filter_map(Fault::first_token_delay).sum::<Duration>();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.engine.faults.thawed().await;
        count(&self.engine.counters.prompt_tokens, prompt_tokens);
    }

    /// Waits until the next token is due; `false` if it is at once.
    async fn next_token(&mut self, due: &mut Instant) -> bool {
        let delay = self.engine.config.itl.sample(&mut self.chance);
        if delay.is_zero() || self.has(&Fault::Flood) {
            return false;
        }
        // Counted from when this token was due, so that timer slack does not add up.
        *due += delay;
        tokio::time::sleep_until(*due).await;
        true
    }

    async fn thaw(&self, due: &mut Instant) {
        if self.engine.faults.thawed().await {
            *due = Instant::now();
        }
    }

    fn count_finished(&self, answers: &[Answer]) {
        let counters = &self.engine.counters;
        let length = answers.iter().any(|answer| answer.finish() == Finish::Length);
        let counter = if length { &counters.length } else { &counters.stopped };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits, and sends a comment each time that `every` has passed.
async fn pinging<T>(every: Option<Duration>, out: &mut Out, wait: impl Future<Output = T>) -> T {
    let Some(every) = every else { return wait.await };
    let mut wait = pin!(wait);
    loop {
        if let Ok(done) = tokio::time::timeout(every, wait.as_mut()).await {
            return done;
        }
        out.send(Bytes::from_static(PING)).await;
        out.flush().await;
    }
}

/// Sends the same byte again and again.
async fn pad(byte: u8, mut count: u64, out: &mut Out) {
    const PIECE: usize = 64 << 10;
    let piece = Bytes::from(vec![byte; PIECE]);
    while count > 0 {
        let length = usize::try_from(count).unwrap_or(PIECE).min(PIECE);
        out.send(piece.slice(..length)).await;
        count -= length as u64;
    }
}

fn usage(answers: &[Answer], prompt: u64) -> Usage {
    Usage { prompt, completion: answers.iter().map(Answer::written).sum() }
}
