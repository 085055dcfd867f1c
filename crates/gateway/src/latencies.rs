//! How long recent answers of a version took: first attempts only, as for the evidence of a release, whose limits come from
//! here. Without a lock: it is always counted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backstop_core::report::{Latencies, Quantiles};
use backstop_core::sketch::{self, SLOTS};

use crate::clock;

/// After so long a window is closed. With the one before it, it makes what is recent: ten to twenty minutes.
const WINDOW: Duration = Duration::from_secs(600);

/// The latencies of one version.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    pub(crate) ttft: Windows,
    pub(crate) tpot: Windows,
    pub(crate) total: Windows,
}

/// Two windows, of which each new one takes the place of the older one.
#[derive(Debug, Default)]
pub(crate) struct Windows([Window; 2]);

#[derive(Debug)]
struct Window {
    /// Which of all windows since the process began, from 1; 0 = none yet.
    number: AtomicU64,
    counts: Box<[AtomicU32]>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            number: AtomicU64::new(0),
            counts: std::iter::repeat_with(AtomicU32::default).take(SLOTS).collect(),
        }
    }
}

impl Recent {
    pub(crate) fn latencies(&self, now: Instant) -> Latencies {
        let [ttft, tpot, total] = [&self.ttft, &self.tpot, &self.total].map(|windows| windows.quantiles(now));
        Latencies { ttft, tpot, total }
    }
}

impl Windows {
    pub(crate) fn observe(&self, took: Duration, now: Instant) {
        let number = number(now);
        let window = &self.0[number as usize % 2];
        let before = window.number.load(Relaxed);
        if before < number && window.number.compare_exchange(before, number, Relaxed, Relaxed).is_ok() {
            // Whoever counts in this very moment may be lost, which is one in many thousands.
            for count in &window.counts {
                count.store(0, Relaxed);
            }
        }
        window.counts[sketch::slot(took.as_secs_f64())].fetch_add(1, Relaxed);
    }

    fn quantiles(&self, now: Instant) -> Quantiles {
        let oldest = number(now) - 1;
        let recent = self.0.iter().filter(|window| {
            let number = window.number.load(Relaxed);
            number > 0 && number >= oldest
        });
        let mut counts = vec![0; SLOTS];
        for window in recent {
            for (sum, count) in counts.iter_mut().zip(&window.counts) {
                *sum += u64::from(count.load(Relaxed));
            }
        }
        let quantile = |q| sketch::quantile(&counts, q);
        Quantiles {
            count: counts.iter().sum(),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }
}

fn number(now: Instant) -> u64 {
    clock::nanos(now) / WINDOW.as_nanos() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_is_forgotten() {
        let windows = Windows::default();
        let check = |at: Duration, count: u64, p50: f64| {
            let found = windows.quantiles(clock::instant(0) + at);
            assert_eq!(found.count, count, "{at:?}");
            assert!((found.p50 - p50).abs() <= p50 * sketch::ERROR, "{at:?}: {found:?}");
        };
        let observe = |at: Duration, millis: u64| {
            windows.observe(Duration::from_millis(millis), clock::instant(0) + at);
        };
        check(Duration::ZERO, 0, 0.0);
        for _ in 0..3 {
            observe(Duration::from_secs(1), 100);
        }
        observe(WINDOW, 900);
        check(WINDOW, 4, 0.1);
        check(WINDOW * 2 - Duration::from_secs(1), 4, 0.1);
        check(WINDOW * 2, 1, 0.9);
        observe(WINDOW * 2, 500);
        observe(WINDOW * 2, 500);
        check(WINDOW * 2, 3, 0.5);
        check(WINDOW * 9, 0, 0.0);
    }
}
