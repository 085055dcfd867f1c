use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backstop_core::report::BadEvent;
use backstop_core::table::{LatencyMetric, PriceSpec};
use backstop_openai::Usage;
use backstop_openai::answer::Flaws;

use super::{Epoch, Side, Trial};
use crate::clock;
use crate::fault::Fault;
use crate::table::Version;

/// A request that is counted, until its first attempt has ended. Dropped before that, its client has gone, or it came to no
/// attempt: then only what it had to wait for too long counts.
pub(crate) struct Subject {
    trial: Arc<Trial>,
    epoch: Arc<Epoch>,
    side: Side,
    unit: u64,
    /// Name of the version that it is assigned to.
    version: Arc<str>,
    price: Option<PriceSpec>,
    asked: Asked,
    /// Once there is an attempt.
    waiting: Option<(u64, Arc<Waiting>)>,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) stream: bool,
    /// Tokens of the longest answer, if there is a limit.
    pub(crate) most_tokens: Option<u64>,
    /// Tokens of its prompt, estimated.
    pub(crate) input: u64,
}

/// A whole answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whole {
    /// As the engine reports it.
    pub(crate) usage: Option<Usage>,
    /// Pieces of text of a stream.
    pub(crate) pieces: Option<u64>,
    pub(crate) flaws: Flaws,
}

/// A first attempt that has not ended.
pub(super) struct Waiting {
    epoch: Arc<Epoch>,
    side: Side,
    unit: u64,
    asked: Asked,
    started: Instant,
    /// Nanoseconds from the start to the first token, at least 1; 0 = it has not come.
    first_token: AtomicU64,
    /// One bit for each limit that is passed.
    slow: AtomicU64,
}

impl Subject {
    /// A request of `unit` that is assigned to one side of a split from now on.
    pub(crate) fn new(
        trial: Arc<Trial>,
        epoch: Arc<Epoch>,
        (side, version): (Side, &Version),
        unit: u64,
        asked: Asked,
    ) -> Self {
        epoch.assigned(side, unit);
        let (version, price) = (Arc::clone(&version.name), version.price);
        Self { trial, epoch, side, unit, version, price, asked, waiting: None }
    }

    /// The first attempt begins, by `version`. If that is another one than it is assigned to, there was nobody to ask there:
    /// its side has failed, whatever comes now. Then it gives nothing back.
    pub(crate) fn begin(mut self, version: &Version, now: Instant) -> Option<Self> {
        if version.name != self.version {
            self.end(Some(BadEvent::Error));
            return None;
        }
        let waiting = Arc::new(Waiting {
            epoch: Arc::clone(&self.epoch),
            side: self.side,
            unit: self.unit,
            asked: self.asked,
            started: now,
            first_token: AtomicU64::new(0),
            slow: AtomicU64::new(0),
        });
        self.waiting = Some((self.trial.begin(Arc::clone(&waiting)), waiting));
        Some(self)
    }

    pub(crate) fn first_token(&self, now: Instant) {
        if let Some((_, waiting)) = &self.waiting {
            let after = now.saturating_duration_since(waiting.started).as_nanos();
            waiting.first_token.store(u64::try_from(after).unwrap_or(u64::MAX).max(1), Relaxed);
            waiting.look(now);
        }
    }

    /// The attempt has brought no whole answer.
    pub(crate) fn lost(self, fault: &Fault) {
        match fault {
            // Neither version has to do with it.
            Fault::Closing | Fault::TakenOut | Fault::Overloaded(_) | Fault::RateLimited(_) => {}
            _ => self.end(Some(BadEvent::Error)),
        }
    }

    /// The engine has refused the request as a mistake of the client's.
    pub(crate) fn rejected(self) {
        self.end(Some(BadEvent::Rejected));
    }

    /// The engine has failed after all, and says so.
    pub(crate) fn failed(self) {
        self.end(Some(BadEvent::Error));
    }

    pub(crate) fn whole(self, whole: Whole, now: Instant) {
        let Whole { usage, pieces, flaws } = whole;
        let output = usage.map(|usage| usage.output).or(pieces);
        if let Some(output) = output {
            let input = usage.map(|usage| usage.input).filter(|input| *input > 0).unwrap_or(self.asked.input);
            let cost =
                self.price.map(|price| (input as f64 * price.input + output as f64 * price.output) / 1e6);
            self.epoch.took(self.side, self.unit, output, cost);
        }
        if let Some((_, waiting)) = &self.waiting {
            waiting.ended(output.unwrap_or(0), now);
        }
        let flawed = [
            (flaws.empty, BadEvent::Empty),
            (flaws.reasons.length, BadEvent::Length),
            (flaws.reasons.filtered, BadEvent::Filtered),
        ];
        for (_, event) in flawed.into_iter().filter(|(is_so, _)| *is_so) {
            self.epoch.bad(self.side, event, self.unit);
        }
        self.end(None);
    }

    /// Where it is counted.
    pub(crate) fn place(&self) -> (Arc<Epoch>, Side) {
        (Arc::clone(&self.epoch), self.side)
    }

    fn end(self, bad: Option<BadEvent>) {
        if let Some(event) = bad {
            self.epoch.bad(self.side, event, self.unit);
        }
        self.epoch.ended(self.side);
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let now = clock::now();
        if let Some((id, waiting)) = self.waiting.take() {
            waiting.look(now);
            self.trial.end(id);
        }
        self.epoch.left(self.side, now);
    }
}

impl Waiting {
    /// Nothing has come for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.started);
        self.first_token.load(Relaxed) == 0 && elapsed > self.epoch.patience
    }

    /// Number of its epoch, and its side.
    pub(super) fn place(&self) -> (u32, Side) {
        (self.epoch.number, self.side)
    }

    /// Counts the limits that are passed for sure by now.
    pub(super) fn look(&self, now: Instant) {
        let tokens = self.asked.most_tokens;
        self.judge(now, tokens.filter(|tokens| *tokens > 1));
    }

    /// The answer is whole, with so many tokens.
    fn ended(&self, tokens: u64, now: Instant) {
        self.judge(now, Some(tokens).filter(|tokens| *tokens > 1));
    }

    /// `tokens` are the most that the answer has in the end, if that is known.
    fn judge(&self, now: Instant, tokens: Option<u64>) {
        let elapsed = now.saturating_duration_since(self.started);
        let first_token =
            Some(self.first_token.load(Relaxed)).filter(|after| *after > 0).map(Duration::from_nanos);
        for (at, limit) in self.epoch.limits.iter().enumerate() {
            let took = match limit.metric {
                LatencyMetric::Total => Some(elapsed.as_secs_f64()),
                LatencyMetric::Ttft if self.asked.stream => {
                    Some(first_token.unwrap_or(elapsed).as_secs_f64())
                }
                LatencyMetric::Tpot if self.asked.stream => first_token
                    .zip(tokens)
                    .map(|(first, tokens)| elapsed.saturating_sub(first).as_secs_f64() / (tokens - 1) as f64),
                LatencyMetric::Ttft | LatencyMetric::Tpot => None,
            };
            let bit = 1 << at;
            if took.is_some_and(|took| took > limit.seconds) && self.slow.fetch_or(bit, Relaxed) & bit == 0 {
                self.epoch.bad(self.side, BadEvent::Slow(at as u8), self.unit);
            }
        }
    }
}
