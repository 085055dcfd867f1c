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

    /// Starts an attempt. Each open time lets exactly one through; it must be answered by [`Self::finish`].
    pub fn admit(&mut self, spec: &BreakerSpec, now: Instant) -> bool {
        let admitted = self.would_admit(now);
        if admitted && !matches!(self, Self::Closed { .. }) {
            *self = Self::HalfOpen { next: now + spec.open };
        }
        admitted
    }

    /// Active checks have seen the endpoint come back: the next request may probe at once.
    pub fn recovered(&mut self, now: Instant) {
        if let Self::Open { until } = self {
            *until = now.min(*until);
        }
    }

    /// Takes in the end of an attempt.
    pub fn finish(&mut self, outcome: Outcome, spec: &BreakerSpec, now: Instant) -> Option<Change> {
        let open = Self::Open { until: now + spec.open };
        match (*self, outcome) {
            (Self::Closed { .. }, Outcome::Success) => *self = Self::default(),
            (Self::Closed { failures }, Outcome::Failure) if failures + 1 >= spec.failures => {
                *self = open;
                return Some(Change::Opened);
            }
            (Self::Closed { failures }, Outcome::Failure) => *self = Self::Closed { failures: failures + 1 },
            // An attempt from before the opening that succeeds is no proof that the endpoint is well now.
            (Self::Open { .. }, _) | (Self::Closed { .. }, Outcome::Neutral) => {}
            (Self::HalfOpen { .. }, Outcome::Success) => {
                *self = Self::default();
                return Some(Change::Closed);
            }
            (Self::HalfOpen { .. }, Outcome::Failure) => *self = open,
            // The probe proved nothing: the next request may try at once.
            (Self::HalfOpen { .. }, Outcome::Neutral) => *self = Self::Open { until: now },
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn opens_probes_once_and_closes() {
        let spec = BreakerSpec { failures: 3, open: Duration::from_secs(10) };
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut breaker = Breaker::default();
        for outcome in
            [Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Failure, Outcome::Failure]
        {
            assert_eq!(breaker.finish(outcome, &spec, at(0)), None);
        }
        assert_eq!(breaker.finish(Outcome::Neutral, &spec, at(0)), None);
        assert_eq!(breaker.finish(Outcome::Failure, &spec, at(0)), Some(Change::Opened));
        assert!(!breaker.admit(&spec, at(9)));
        // A late success of an older attempt does not close it.
        assert_eq!(breaker.finish(Outcome::Success, &spec, at(9)), None);
        assert!(breaker.admit(&spec, at(10)));
        assert!(!breaker.admit(&spec, at(19)), "a second probe");
        assert!(breaker.admit(&spec, at(20)), "the first one takes long");
        assert_eq!(breaker.finish(Outcome::Failure, &spec, at(20)), None);
        assert!(!breaker.admit(&spec, at(29)));
        assert!(breaker.admit(&spec, at(30)));
        assert_eq!(breaker.finish(Outcome::Neutral, &spec, at(31)), None);
        assert!(breaker.admit(&spec, at(31)));
        assert_eq!(breaker.finish(Outcome::Success, &spec, at(32)), Some(Change::Closed));
        assert!(breaker.admit(&spec, at(32)) && breaker.admit(&spec, at(32)));
    }

    #[test]
    fn recovery_seen_by_checks_shortens_the_wait() {
        let spec = BreakerSpec { failures: 1, open: Duration::from_secs(10) };
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.finish(Outcome::Failure, &spec, now);
        assert!(!breaker.would_admit(now));
        breaker.recovered(now);
        assert!(breaker.admit(&spec, now) && !breaker.admit(&spec, now), "still one at a time");
    }
}
