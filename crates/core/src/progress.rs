//! Is an engine that answers its health check really working?
//!
//! Idle is not stalled and busy is not dead: a stall means that work is in flight and nothing at all moves —
//! neither a token of ours, nor a finished answer, nor a counter of the engine — for the limit.

use std::time::{Duration, Instant};

/// One look at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// Everything that only grows while the engine works: events relayed, answers completed, and the engine's
    /// own prefill and decode counters where it has them. A fall is a restart, which is also a change.
    pub moved: u64,
    /// Requests that we wait for and, where the engine tells, those that it runs or queues for anybody.
    pub in_flight: u64,
    /// Requests that ended in a timeout of ours, ever. Their work may be gone from `in_flight`, but the engine
    /// still owes an answer.
    pub timeouts: u64,
}

/// Watches one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    last: Look,
    /// When anything moved, or there was nothing to do.
    moved_at: Instant,
    /// `timeouts` as of `moved_at`.
    settled_timeouts: u64,
}

impl Progress {
    pub fn new(now: Instant) -> Self {
        Self { last: Look::default(), moved_at: now, settled_timeouts: 0 }
    }

    /// Takes in a look; returns for how long the engine has owed us progress, if it does.
    pub fn observe(&mut self, look: Look, now: Instant) -> Option<Duration> {
        let owes = look.in_flight > 0 || look.timeouts > self.settled_timeouts;
        if look.moved != self.last.moved || !owes {
            self.moved_at = now;
            self.settled_timeouts = look.timeouts;
        }
        self.last = look;
        owes.then(|| now.saturating_duration_since(self.moved_at)).filter(|owed| !owed.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks one second apart: (moved, in_flight, timeouts) → seconds owed after the last.
    #[track_caller]
    fn check(looks: &[(u64, u64, u64)], owed: Option<u64>) {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let mut last = None;
        for (i, &(moved, in_flight, timeouts)) in looks.iter().enumerate() {
            last = progress
                .observe(Look { moved, in_flight, timeouts }, start + Duration::from_secs(i as u64 + 1));
        }
        assert_eq!(last, owed.map(Duration::from_secs), "{looks:?}");
    }

    #[test]
    fn idle_slow_and_frozen() {
        check(&[(5, 0, 0); 100], None);
        check(&[(5, 1, 0), (5, 1, 0), (5, 1, 0)], Some(2));
        check(&[(5, 1, 0), (5, 1, 0), (6, 1, 0)], None);
        check(&[(5, 1, 0), (5, 1, 0), (5, 0, 0), (5, 1, 0)], Some(1));
        // Each request is given up before the limit, and between two there is none: the debt stays.
        check(&[(5, 1, 0), (5, 0, 1), (5, 1, 1), (5, 0, 2)], Some(3));
        check(&[(5, 1, 0), (5, 0, 1), (6, 0, 1), (6, 0, 1)], None);
        // A restarted engine counts from zero.
        check(&[(5, 1, 0), (5, 1, 0), (0, 1, 0)], None);
    }
}
