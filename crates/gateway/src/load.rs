//! What a service has to do at the moment, and how much of that may be second tries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::clock;

/// How often who waits for a turn looks whether it has come.
const TURN: Duration = Duration::from_millis(20);
/// So many second tries may always be under way.
const LEAST: u32 = 3;

/// Requests of one service; it outlives changes of the table.
#[derive(Debug, Default)]
pub(crate) struct ServiceLoad {
    active: AtomicU32,
    retrying: AtomicU32,
}

/// A request, for as long as it lasts.
#[derive(Debug)]
pub(crate) struct Active(Arc<ServiceLoad>);

/// A second try, for as long as it is being made.
#[derive(Debug)]
pub(crate) struct RetryPermit(Arc<ServiceLoad>);

impl ServiceLoad {
    pub(crate) fn enter(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Relaxed);
        Active(Arc::clone(self))
    }

    /// Leave for a second try; `None` if too large a share of the requests is being tried again already.
    pub(crate) fn retry(self: &Arc<Self>, budget: f64) -> Option<RetryPermit> {
        let most = (f64::from(self.active.load(Relaxed)) * budget).max(f64::from(LEAST));
        let permit = RetryPermit(Arc::clone(self));
        let before = self.retrying.fetch_add(1, Relaxed);
        (f64::from(before) < most).then_some(permit)
    }

    /// The same, and waits for it until `deadline`.
    pub(crate) async fn turn(self: &Arc<Self>, budget: f64, deadline: Instant) -> Option<RetryPermit> {
        loop {
            let permit = self.retry(budget);
            if permit.is_some() || clock::now() >= deadline {
                return permit;
            }
            tokio::time::sleep(TURN).await;
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_but_three_at_least() {
        let load = Arc::new(ServiceLoad::default());
        let few: Vec<_> = (0..5).filter_map(|_| load.retry(0.2)).collect();
        assert_eq!(few.len(), 3);
        let active: Vec<_> = (0..50).map(|_| load.enter()).collect();
        let more: Vec<_> = (0..50).filter_map(|_| load.retry(0.2)).collect();
        assert_eq!(few.len() + more.len(), 10);
        drop((few, more, active));
        assert_eq!((load.active.load(Relaxed), load.retrying.load(Relaxed)), (0, 0));
    }
}
