//! Requests, seeded, and what becomes of each of them in either arm.
//!
//! A request has its luck before anybody assigns it, so that every rule looks at the same traffic whatever share it has
//! given the canary by then.

use super::case::{Case, FAILS_AFTER, Load};
use super::chance::Chance;

/// What latencies there are.
pub(crate) const LATENCIES: usize = 3;
/// Seconds that the first token, one more token and the whole answer take in the middle. All are lognormal with σ = 1.
pub(crate) const MEDIANS: [f64; LATENCIES] = [0.4, 0.02, 2.0];
/// How the latency of an answer hangs together with those of its first and its further tokens.
const TOTAL: [f64; LATENCIES] = [0.3, 0.6, 0.741_619_848_709_566_3];

/// A request that nobody has assigned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    /// Seconds since the release began.
    pub(crate) at: f64,
    /// Who asks, if the case has users.
    pub(crate) user: Option<u32>,
    /// It is the canary's if its share is above this.
    pub(crate) bucket: f64,
    /// Fails if it is below the rate of errors.
    luck: f64,
    /// It is in a burst, or of a user for whom everything fails.
    fails: bool,
    /// Logarithms of how much longer than in the middle it takes.
    latency: [f64; LATENCIES],
}

/// What becomes of a request in one arm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) failed: bool,
    pub(crate) empty: bool,
    /// Logarithms of how much longer than stable's middle it takes; of no meaning if it failed.
    pub(crate) latency: [f64; LATENCIES],
    /// Seconds until it failed; of no meaning otherwise.
    fails_after: f64,
}

impl Answer {
    /// Seconds until it ended.
    pub(crate) fn takes(&self) -> f64 {
        if self.failed {
            self.fails_after
        } else {
            MEDIANS[LATENCIES - 1] * self.latency[LATENCIES - 1].exp()
        }
    }

    /// Seconds without a first token, if it is long enough to matter to anybody.
    pub(crate) fn silent_for(&self) -> Option<f64> {
        if self.failed {
            return Some(self.fails_after);
        }
        (self.latency[0] > 1.0).then(|| MEDIANS[0] * self.latency[0].exp())
    }
}

pub(crate) struct Trace<'a> {
    case: &'a Case,
    chance: Chance,
    /// When the next request comes, in seconds.
    next: f64,
    /// Of each user: the bucket, and how many requests are still to fail.
    users: Vec<(f64, u32)>,
    requests: Vec<Request>,
}

impl<'a> Trace<'a> {
    pub(crate) fn new(case: &'a Case, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let users = case.users.map_or(0, |users| users.count);
        let users = (0..users).map(|_| (chance.share(), 0)).collect();
        Self { case, chance, next: 0.0, users, requests: Vec::new() }
    }

    /// The requests of a minute. To be asked for one minute after the other.
    pub(crate) fn minute(&mut self, minute: u32) -> &[Request] {
        self.requests.clear();
        let (begin, end) = (f64::from(minute) * 60.0, f64::from(minute + 1) * 60.0);
        self.next = self.next.max(begin);
        let rate = self.case.load.at(f64::from(minute)) / 60.0;
        loop {
            // Arrivals have no memory, so each minute may begin anew. At a rate of 0 the next is never.
            self.next += self.chance.wait() / rate;
            if self.next.is_nan() || self.next >= end {
                break;
            }
            let request = self.request(self.next);
            self.requests.push(request);
        }
        self.next = end;
        &self.requests
    }

    fn request(&mut self, at: f64) -> Request {
        let (mut user, mut bucket, mut fails) = (None, self.chance.share(), false);
        let luck = self.chance.share();
        if let Some(users) = self.case.users {
            let id = self.chance.below(users.count);
            let (own, left) = &mut self.users[id as usize];
            if *left > 0 {
                *left -= 1;
                fails = true;
            } else if luck < self.case.errors_at(at) / users.burst {
                // Geometric, with as many failures in all as without bursts.
                while self.chance.share() < 1.0 - 1.0 / users.burst {
                    *left += 1;
                }
                fails = true;
            }
            (user, bucket) = (Some(id), *own);
            fails |= id < users.failing;
        }
        let (first, further, rest) = (self.chance.normal(), self.chance.normal(), self.chance.normal());
        let total = TOTAL[0] * first + TOTAL[1] * further + TOTAL[2] * rest;
        Request { at, user, bucket, luck, fails, latency: [first, further, total] }
    }
}

impl Load {
    fn at(self, minute: f64) -> f64 {
        match self {
            Self::Steady(rate) => rate,
            Self::Growing(from, to) => from + (to - from) * (minute / 60.0).min(1.0),
            Self::Vanishing(rate, until) => {
                if minute < until {
                    rate
                } else {
                    0.0
                }
            }
        }
    }
}

impl Case {
    /// How often requests fail without a fault, at a number of seconds.
    fn errors_at(&self, at: f64) -> f64 {
        let (from, to) = self.errors;
        from + (to - from) * (at / 3600.0).min(1.0)
    }

    /// What becomes of a request.
    pub(crate) fn answer(&self, request: &Request, canary: bool) -> Answer {
        let minute = request.at / 60.0;
        let (mut errors, mut takes, mut shift) = (self.errors_at(request.at), FAILS_AFTER, 0.0);
        if self.users.is_some_and(|users| users.burst > 1.0) {
            errors = 0.0;
        }
        if let Some(incident) = self.incident.filter(|it| minute >= it.from && minute < it.to) {
            errors = incident.errors;
            takes = if canary { incident.takes.1 } else { incident.takes.0 };
            shift = incident.latency.ln();
        }
        let mut empty = false;
        if canary && minute >= self.fault.onset {
            errors = errors.max(self.fault.errors);
            shift += self.fault.latency.ln();
            empty = request.luck > 1.0 - self.fault.empty;
        }
        let failed = request.fails || request.luck < errors;
        let latency = request.latency.map(|it| it + shift);
        Answer { failed, empty: empty && !failed, latency, fails_after: takes }
    }

    /// The canary is worse at that time.
    pub(crate) fn has_begun(&self, at: f64) -> bool {
        at / 60.0 >= self.fault.onset
    }
}
