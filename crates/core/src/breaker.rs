//! One circuit breaker per endpoint: closed → open → half-open with a single probe → closed.

use std::time::Instant;

use crate::table::BreakerSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    Closed {
        /// Consecutive failures so far.
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// A request is out to see whether the endpoint is back.
    HalfOpen {
        /// A stream may take minutes to prove anything; from then on another request may try as well.
        next: Instant,
    },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

/// How an attempt ended, as far as the endpoint is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer *completed*; a stream that merely opened has no outcome yet.
    Success,
    /// Says nothing about the endpoint: the client's mistake or disappearance, or back-pressure.
    Neutral,
    /// Connection refused or lost, 5xx, timeout, stall, garbage, truncation.
    Failure,
}

/// With what right an attempt was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Ordinary,
    /// To see whether the endpoint is back.
    Probe,
}

/// What the breaker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Opened,
    Closed,
}

impl Breaker {
    /// Whether an attempt may start now.
    pub fn would_admit(&self, now: Instant) -> bool {
        match self {
            Self::Closed { .. } => true,
            Self::Open { until } => now >= *until,
            Self::HalfOpen { next } => now >= *next,
        }
    }

    /// Whether nothing at all may start now. While a probe is out that is not known yet.
    pub fn is_shut(&self, now: Instant) -> bool {
        matches!(self, Self::Open { until } if now < *until)
    }

    /// Starts an attempt. Each open time lets exactly one through, as a probe; it must be answered by
    /// [`Self::finish`].
    pub fn admit(&mut self, spec: &BreakerSpec, now: Instant) -> Option<Pass> {
        if !self.would_admit(now) {
            return None;
        }
        if matches!(self, Self::Closed { .. }) {
            return Some(Pass::Ordinary);
        }
        *self = Self::HalfOpen { next: now + spec.open };
        Some(Pass::Probe)
    }

    /// Active checks have seen the endpoint come back: the next request may probe at once.
    pub fn recovered(&mut self, now: Instant) {
        if let Self::Open { until } = self {
            *until = now.min(*until);
        }
    }

    /// Takes in the end of an attempt.
    pub fn finish(
        &mut self,
        outcome: Outcome,
        pass: Pass,
        spec: &BreakerSpec,
        now: Instant,
    ) -> Option<Change> {
        let open = Self::Open { until: now + spec.open };
        match (*self, outcome, pass) {
            (Self::Closed { .. }, Outcome::Success, _) => *self = Self::default(),
            (Self::Closed { failures }, Outcome::Failure, _) if failures + 1 >= spec.failures => {
                *self = open;
                return Some(Change::Opened);
            }
            (Self::Closed { failures }, Outcome::Failure, _) => {
                *self = Self::Closed { failures: failures + 1 }
            }
            (Self::HalfOpen { .. }, Outcome::Success, Pass::Probe) => {
                *self = Self::default();
                return Some(Change::Closed);
            }
            (Self::HalfOpen { .. }, Outcome::Failure, Pass::Probe) => *self = open,
            // The probe proved nothing: the next request may try at once.
            (Self::HalfOpen { .. }, Outcome::Neutral, Pass::Probe) => *self = Self::Open { until: now },
            // An attempt from before the opening says nothing about the endpoint as it is now.
            (Self::Open { .. } | Self::HalfOpen { .. }, _, _)
            | (Self::Closed { .. }, Outcome::Neutral, _) => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use Pass::{Ordinary, Probe};

    #[test]
    fn opens_probes_once_and_closes() {
        let spec = BreakerSpec { failures: 3, open: Duration::from_secs(10) };
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut breaker = Breaker::default();
        for outcome in
            [Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Failure, Outcome::Failure]
        {
            assert_eq!(breaker.finish(outcome, Ordinary, &spec, at(0)), None);
        }
        assert_eq!(breaker.finish(Outcome::Neutral, Ordinary, &spec, at(0)), None);
        assert_eq!(breaker.finish(Outcome::Failure, Ordinary, &spec, at(0)), Some(Change::Opened));
        assert_eq!(breaker.admit(&spec, at(9)), None);
        assert_eq!(breaker.admit(&spec, at(10)), Some(Probe));
        assert_eq!(breaker.admit(&spec, at(19)), None, "a second probe");
        assert_eq!(breaker.admit(&spec, at(20)), Some(Probe), "the first one takes long");
        assert_eq!(breaker.finish(Outcome::Failure, Probe, &spec, at(20)), None);
        assert_eq!(breaker.admit(&spec, at(29)), None);
        assert_eq!(breaker.admit(&spec, at(30)), Some(Probe));
        assert_eq!(breaker.finish(Outcome::Neutral, Probe, &spec, at(31)), None);
        assert_eq!(breaker.admit(&spec, at(31)), Some(Probe));
        assert_eq!(breaker.finish(Outcome::Success, Probe, &spec, at(32)), Some(Change::Closed));
        assert_eq!([breaker.admit(&spec, at(32)); 2], [Some(Ordinary); 2]);
    }

    #[test]
    fn older_attempts_prove_nothing() {
        let spec = BreakerSpec { failures: 1, open: Duration::from_secs(10) };
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.finish(Outcome::Failure, Ordinary, &spec, now);
        let open = breaker;
        assert_eq!(breaker.finish(Outcome::Success, Ordinary, &spec, now), None);
        assert_eq!(breaker, open);
        assert_eq!(breaker.admit(&spec, now + spec.open), Some(Probe));
        let half_open = breaker;
        for outcome in [Outcome::Success, Outcome::Neutral, Outcome::Failure] {
            assert_eq!(breaker.finish(outcome, Ordinary, &spec, now + spec.open), None);
            assert_eq!(breaker, half_open, "{outcome:?}");
        }
    }

    #[test]
    fn recovery_seen_by_checks_shortens_the_wait() {
        let spec = BreakerSpec { failures: 1, open: Duration::from_secs(10) };
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.finish(Outcome::Failure, Ordinary, &spec, now);
        assert!(!breaker.would_admit(now));
        breaker.recovered(now);
        assert_eq!(
            [breaker.admit(&spec, now), breaker.admit(&spec, now)],
            [Some(Probe), None],
            "one at a time"
        );
    }
}
