//! Who decodes and who waits: slots, the queue before them and the KV cache.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Admits requests first come, first served: one that does not fit holds up those behind it.
#[derive(Debug)]
pub(crate) struct Scheduler {
    slots: usize,
    queue: Option<usize>,
    kv_tokens: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    kv_used: u64,
    waiting: VecDeque<Waiter>,
    next_id: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    tokens: u64,
    grant: oneshot::Sender<Slot>,
}

/// The queue has no room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// How busy the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Occupancy {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) kv_used: u64,
}

impl Scheduler {
    /// `queue` of `None` waits without limit, as vLLM does.
    pub(crate) fn new(slots: usize, queue: Option<usize>, kv_tokens: Option<u64>) -> Self {
        let kv_tokens = kv_tokens.unwrap_or(u64::MAX);
        Self { slots: slots.max(1), queue, kv_tokens, state: Mutex::default() }
    }

    /// Asks for a slot and room for `tokens`; the caller keeps `tokens` within the KV limit.
    pub(crate) fn enqueue(self: &Arc<Self>, tokens: u64) -> Result<Ticket, QueueFull> {
        let mut state = self.lock();
        if state.waiting.is_empty() && self.fits(&state, tokens) {
            return Ok(Ticket::Ready(self.occupy(&mut state, tokens)));
        }
        if self.queue.is_some_and(|limit| state.waiting.len() >= limit) {
            return Err(QueueFull);
        }
        let (grant, granted) = oneshot::channel();
        let id = state.next_id;
        state.next_id += 1;
        state.waiting.push_back(Waiter { id, tokens, grant });
        Ok(Ticket::Waiting(granted, Place { scheduler: self.clone(), id }))
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let state = self.lock();
        Occupancy { running: state.running, waiting: state.waiting.len(), kv_used: state.kv_used }
    }

    fn fits(&self, state: &State, tokens: u64) -> bool {
        state.running < self.slots && state.kv_used.saturating_add(tokens) <= self.kv_tokens
    }

    fn occupy(self: &Arc<Self>, state: &mut State, tokens: u64) -> Slot {
        state.running += 1;
        state.kv_used = state.kv_used.saturating_add(tokens);
        Slot { scheduler: self.clone(), tokens }
    }

    fn admit_waiting(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some(first) = state.waiting.front() else { return };
            if !self.fits(&state, first.tokens) {
                return;
            }
            let Some(waiter) = state.waiting.pop_front() else { return };
            let slot = self.occupy(&mut state, waiter.tokens);
            drop(state);
            // A waiter that left meanwhile hands the slot back by dropping it, which needs the lock.
            drop(waiter.grant.send(slot));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot to come. Dropping it gives up the place in the queue.
#[derive(Debug)]
pub(crate) enum Ticket {
    Ready(Slot),
    Waiting(oneshot::Receiver<Slot>, Place),
}

impl Ticket {
    pub(crate) async fn slot(self) -> Option<Slot> {
        match self {
            Self::Ready(slot) => Some(slot),
            Self::Waiting(granted, _place) => granted.await.ok(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Place {
    scheduler: Arc<Scheduler>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.scheduler.lock().waiting.retain(|waiter| waiter.id != self.id);
        // What stood behind a large request may fit now that it is gone.
        self.scheduler.admit_waiting();
    }
}

/// A decode slot with its share of the KV cache, freed on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    scheduler: Arc<Scheduler>,
    tokens: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.scheduler.lock();
        state.running -= 1;
        state.kv_used = state.kv_used.saturating_sub(self.tokens);
        drop(state);
        self.scheduler.admit_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupancy(scheduler: &Scheduler) -> (usize, usize, u64) {
        let Occupancy { running, waiting, kv_used } = scheduler.occupancy();
        (running, waiting, kv_used)
    }

    #[tokio::test]
    async fn slots_queue_and_kv_are_respected() {
        let scheduler = Arc::new(Scheduler::new(2, Some(2), Some(100)));
        let first = scheduler.enqueue(60).unwrap();
        let second = scheduler.enqueue(60).unwrap();
        let third = scheduler.enqueue(10).unwrap();
        assert_eq!(occupancy(&scheduler), (1, 2, 60));
        assert_eq!(scheduler.enqueue(1).unwrap_err(), QueueFull);
        drop(second);
        assert_eq!(occupancy(&scheduler), (2, 0, 70));
        let third = third.slot().await.unwrap();
        let fourth = scheduler.enqueue(1).unwrap();
        drop(first);
        let fourth = fourth.slot().await.unwrap();
        assert_eq!(occupancy(&scheduler), (2, 0, 11));
        drop((third, fourth));
        assert_eq!(occupancy(&scheduler), (0, 0, 0));
    }

    #[test]
    fn a_granted_slot_nobody_takes_is_freed() {
        let scheduler = Arc::new(Scheduler::new(1, None, None));
        let first = scheduler.enqueue(1).unwrap();
        let second = scheduler.enqueue(1).unwrap();
        drop(first);
        assert_eq!(occupancy(&scheduler), (1, 0, 1));
        drop(second);
        assert_eq!(occupancy(&scheduler), (0, 0, 0));
    }
}
