//! A concurrency limit that follows latency.
//!
//! After "Gradient2" of Netflix' concurrency-limits (<https://github.com/Netflix/concurrency-limits>). For each window
//! of answers, with `short` the median time to the first token in it and `long` the same over some hundred windows:
//!
//! ```text
//! gradient = clamp(1.5 · long / short, ½, 1)
//! wanted   = limit · gradient + √limit
//! limit    ← limit + 0.2 · (wanted − limit), from 1 to the configured maximum
//! ```
//!
//! While answers begin as soon as they usually do, the gradient is 1 and the limit grows by the allowance for a queue,
//! √limit. When they begin later, requests pile up behind the limit of what the endpoints can do at once, and the limit
//! falls towards `1 / (1 − gradient)²`. A window in which less than half of the limit was in use says nothing about
//! it, and moves only `long`. Other than Netflix' the short term is a median: prompts differ in length far more than
//! calls of a microservice do, and one endpoint that hangs is a matter of its health, not of the limit.

use std::time::{Duration, Instant};

/// Where a limit begins, if the maximum allows it.
const FIRST: f64 = 20.0;
/// Latency may be so many times the usual one before the limit shrinks.
const TOLERANCE: f64 = 1.5;
const LEAST_GRADIENT: f64 = 0.5;
/// How far the limit goes at a time to where it should be.
const SMOOTHING: f64 = 0.2;
/// A window lasts at least so long and has at least so many answers; it looks at no more than so many.
const WINDOW: Duration = Duration::from_secs(1);
const FEWEST: usize = 10;
const MOST: usize = 256;
/// Windows that the long term looks back on, in the sense of an exponential mean.
const LONG: f64 = 300.0;
/// So many windows count alike at the beginning.
const WARM_UP: f64 = 10.0;

/// What a latency is of. Each kind is compared only with its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latency {
    /// Of the first token of a stream.
    FirstToken,
    /// Of a whole plain answer.
    Whole,
}

#[derive(Debug, Clone)]
pub(crate) struct Gradient {
    limit: f64,
    max: f64,
    first_token: Trend,
    whole: Trend,
}

impl Gradient {
    pub(crate) fn new(max: u32) -> Self {
        let max = f64::from(max.max(1));
        Self { limit: FIRST.min(max), max, first_token: Trend::default(), whole: Trend::default() }
    }

    pub(crate) fn set_max(&mut self, max: u32) {
        self.max = f64::from(max.max(1));
        self.limit = self.limit.min(self.max);
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// An answer began, or was given up, after `latency`, while so many requests were in flight.
    pub(crate) fn observe(&mut self, kind: Latency, latency: Duration, in_flight: u32, now: Instant) {
        let trend = match kind {
            Latency::FirstToken => &mut self.first_token,
            Latency::Whole => &mut self.whole,
        };
        let Some(window) = trend.observe(latency.as_secs_f64(), in_flight, now) else { return };
        if f64::from(window.in_flight) < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * window.long / window.short).clamp(LEAST_GRADIENT, 1.0);
        let wanted = self.limit * gradient + self.limit.sqrt();
        self.limit = (self.limit + SMOOTHING * (wanted - self.limit)).clamp(1.0, self.max);
    }
}

/// Latency in the short and the long term, in seconds.
#[derive(Debug, Clone, Default)]
struct Trend {
    window: Vec<f64>,
    began: Option<Instant>,
    /// Most requests in flight in the window.
    in_flight: u32,
    long: f64,
    windows: f64,
}

/// What a window came to.
struct Window {
    short: f64,
    long: f64,
    in_flight: u32,
}

impl Trend {
    /// A window, if this ends one.
    fn observe(&mut self, latency: f64, in_flight: u32, now: Instant) -> Option<Window> {
        let began = *self.began.get_or_insert(now);
        self.in_flight = self.in_flight.max(in_flight);
        if self.window.len() < MOST {
            self.window.push(latency);
        }
        if self.window.len() < FEWEST || now.saturating_duration_since(began) < WINDOW {
            return None;
        }
        let middle = self.window.len() / 2;
        // Nothing is answered in no time, and a division must not fail.
        let short = self.window.select_nth_unstable_by(middle, f64::total_cmp).1.max(1e-6);
        let weight = if self.windows < WARM_UP { 1.0 / (self.windows + 1.0) } else { 2.0 / (LONG + 1.0) };
        self.windows += 1.0;
        self.long += weight * (short - self.long);
        // After a long overload the long term is too high, and would keep the limit high in the next one.
        if self.long > 2.0 * short {
            self.long *= 0.95;
        }
        let window = Window { short, long: self.long, in_flight: self.in_flight };
        (self.began, self.in_flight) = (None, 0);
        self.window.clear();
        Some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service with `capacity` places: beyond it, the first token waits in proportion. `load` requests want to be
    /// in flight; the gate lets the limit through. So many windows of twenty answers each.
    fn run(gradient: &mut Gradient, at: &mut Instant, windows: u32, capacity: f64, load: u32) {
        for _ in 0..windows * 20 {
            *at += Duration::from_millis(55);
            let in_flight = load.min(gradient.limit());
            let wait = (f64::from(in_flight) / capacity).max(1.0);
            gradient.observe(Latency::FirstToken, Duration::from_secs_f64(0.2 * wait), in_flight, *at);
        }
    }

    #[test]
    fn finds_what_the_service_can_do() {
        let (mut gradient, mut at) = (Gradient::new(256), Instant::now());
        assert_eq!(gradient.limit(), 20);
        run(&mut gradient, &mut at, 30, 40.0, 10);
        let idle = gradient.limit();
        run(&mut gradient, &mut at, 60, 40.0, 1000);
        let busy = gradient.limit();
        // Beyond the capacity by the tolerance and the allowance, not by a multiple.
        assert!((40..=120).contains(&busy), "{busy}");
        assert!(idle < busy);
    }

    #[test]
    fn shrinks_when_the_service_slows_down_and_recovers() {
        let (mut gradient, mut at) = (Gradient::new(256), Instant::now());
        run(&mut gradient, &mut at, 60, 40.0, 1000);
        let before = gradient.limit();
        run(&mut gradient, &mut at, 20, 8.0, 1000);
        let slow = gradient.limit();
        assert!(slow < before / 2, "{slow} after {before}");
        run(&mut gradient, &mut at, 60, 40.0, 1000);
        assert!(gradient.limit() > 2 * slow, "{} after {slow}", gradient.limit());
    }

    #[test]
    fn does_not_move_unless_it_is_used() {
        let (mut gradient, mut at) = (Gradient::new(256), Instant::now());
        run(&mut gradient, &mut at, 100, 4.0, 9);
        assert_eq!(gradient.limit(), 20);
    }

    #[test]
    fn stays_in_its_bounds() {
        let (mut gradient, mut at) = (Gradient::new(30), Instant::now());
        run(&mut gradient, &mut at, 100, 1e9, 1000);
        assert_eq!(gradient.limit(), 30);
        gradient.set_max(7);
        assert_eq!(gradient.limit(), 7);
        let (mut gradient, mut at) = (Gradient::new(1), Instant::now());
        for millis in 0..10_000 {
            at += Duration::from_millis(10);
            gradient.observe(Latency::Whole, Duration::from_millis(millis), 1, at);
        }
        assert_eq!(gradient.limit(), 1);
    }

    #[test]
    fn a_minority_that_hangs_does_not_count() {
        let (mut gradient, mut at) = (Gradient::new(256), Instant::now());
        for i in 0..4000_u64 {
            at += Duration::from_millis(55);
            let latency = if i % 3 == 0 { Duration::from_secs(60) } else { Duration::from_millis(200) };
            gradient.observe(Latency::FirstToken, latency, gradient.limit(), at);
        }
        assert_eq!(gradient.limit(), 256);
    }

    #[test]
    fn streams_and_plain_answers_are_not_compared() {
        let (mut gradient, mut at) = (Gradient::new(256), Instant::now());
        for i in 0..4000 {
            at += Duration::from_millis(55);
            let (kind, millis) = if i % 2 == 0 { (Latency::FirstToken, 50) } else { (Latency::Whole, 5000) };
            gradient.observe(kind, Duration::from_millis(millis), gradient.limit(), at);
        }
        assert_eq!(gradient.limit(), 256);
    }
}
