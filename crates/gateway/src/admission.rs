//! The gate of a service: requests come in, wait, and are turned away. Who and when is decided by
//! [`backstop_core::admission`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::admission::{Admission, Entry, Latency, Priority, Ticket};
use backstop_core::table::AdmissionSpec;
use tokio::sync::oneshot;

use crate::clock;
use crate::metrics::{Rejected, ServiceMetrics};

/// One per service; it outlives changes of the table.
pub(crate) struct Gate {
    state: Mutex<State>,
    metrics: Arc<ServiceMetrics>,
    /// The tenant of requests that bring no key.
    everybody: Arc<str>,
}

struct State {
    admission: Admission,
    waiting: HashMap<Ticket, oneshot::Sender<Verdict>>,
}

/// What ends a wait. Sent with the state locked, so that it is there as soon as the ticket is gone.
enum Verdict {
    Admitted,
    Displaced,
}

/// A place among the requests of a service, for as long as it is kept.
pub(crate) struct Permit {
    gate: Arc<Gate>,
    tenant: Arc<str>,
    since: Instant,
    /// How long it was waited for.
    pub(crate) waited: Duration,
}

/// More is asked of a service than it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service has more to do than it can take: {why}; try again in {} s", .retry_after.as_secs())]
pub(crate) struct Overload {
    pub(crate) why: Why,
    /// Whole seconds.
    pub(crate) retry_after: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Why {
    #[error("its queue is full")]
    QueueFull,
    #[error("no place became free within {0:?}")]
    WaitedTooLong(Duration),
}

/// How things stand at a gate.
pub(crate) struct Occupancy {
    pub(crate) limit: Option<u32>,
    pub(crate) in_flight: u32,
    pub(crate) waiting: usize,
}

impl Gate {
    /// An open one.
    pub(crate) fn new(metrics: Arc<ServiceMetrics>) -> Self {
        let state = State { admission: Admission::new(None), waiting: HashMap::new() };
        Self { state: Mutex::new(state), metrics, everybody: "".into() }
    }

    /// Changes the settings, under whoever is in or waits; `None` opens the gate.
    pub(crate) fn configure(&self, spec: Option<&AdmissionSpec>) {
        let mut state = self.lock();
        state.admission.configure(spec);
        state.admit();
    }

    /// Comes in, waiting for at most `limit` or until `deadline`. Whoever stops waiting is out of the queue at once.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place, even one that was just given.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        tenant: Option<&Arc<str>>,
        priority: Priority,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Permit, Overload> {
        let tenant = Arc::clone(tenant.unwrap_or(&self.everybody));
        let came = clock::now();
        let mut wait = match self.queue(&tenant, priority) {
            Ok(Some(wait)) => wait,
            Ok(None) => {
                return Ok(self.permit(tenant, came, Duration::ZERO));
            }
            Err(overload) => return Err(overload),
        };
        let deadline = deadline.min(came + limit);
        let verdict = tokio::time::timeout_at(deadline.into(), &mut wait.verdict).await;
        match verdict {
            Ok(Ok(Verdict::Admitted)) => {
                wait.is_over = true;
                let now = clock::now();
                Ok(self.permit(tenant, now, now - came))
            }
            Ok(Ok(Verdict::Displaced) | Err(_)) => Err(self.reject(Rejected::Displaced, Why::QueueFull)),
            Err(_) => {
                drop(wait);
                let waited = deadline - came;
                Err(self.reject(Rejected::WaitedTooLong, Why::WaitedTooLong(waited)))
            }
        }
    }

    /// Comes in if there is room, and does not wait.
    pub(crate) fn try_enter(self: &Arc<Self>, tenant: Option<&Arc<str>>) -> Option<Permit> {
        let tenant = tenant.unwrap_or(&self.everybody);
        if self.lock().admission.try_enter(tenant) {
            return Some(self.permit(Arc::clone(tenant), clock::now(), Duration::ZERO));
        }
        self.metrics.rejected(Rejected::NoRoom);
        None
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let admission = &self.lock().admission;
        Occupancy { limit: admission.limit(), in_flight: admission.in_flight(), waiting: admission.waiting() }
    }

    /// A place in the queue; `None` if none is needed.
    fn queue(self: &Arc<Self>, tenant: &Arc<str>, priority: Priority) -> Result<Option<Wait>, Overload> {
        let mut state = self.lock();
        match state.admission.enter(tenant, priority) {
            Entry::Admitted => Ok(None),
            Entry::Rejected => {
                drop(state);
                Err(self.reject(Rejected::QueueFull, Why::QueueFull))
            }
            Entry::Waiting { ticket, displaced } => {
                if let Some(displaced) = displaced {
                    state.tell(displaced, Verdict::Displaced);
                }
                let (sender, verdict) = oneshot::channel();
                state.waiting.insert(ticket, sender);
                let (gate, tenant) = (Arc::clone(self), Arc::clone(tenant));
                Ok(Some(Wait { gate, tenant, ticket, verdict, is_over: false }))
            }
        }
    }

    fn reject(&self, rejected: Rejected, why: Why) -> Overload {
        self.metrics.rejected(rejected);
        Overload { why, retry_after: self.lock().admission.retry_after() }
    }

    fn permit(self: &Arc<Self>, tenant: Arc<str>, since: Instant, waited: Duration) -> Permit {
        self.metrics.waited(waited);
        Permit { gate: Arc::clone(self), tenant, since, waited }
    }

    fn leave(&self, tenant: &Arc<str>, held: Option<Duration>) {
        let mut state = self.lock();
        state.admission.leave(tenant, held);
        state.admit();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets in whoever there is room for.
    fn admit(&mut self) {
        while let Some(ticket) = self.admission.admit_next() {
            self.tell(ticket, Verdict::Admitted);
        }
    }

    fn tell(&mut self, ticket: Ticket, verdict: Verdict) {
        if let Some(sender) = self.waiting.remove(&ticket) {
            // Whoever has stopped listening finds the verdict when it gives up its ticket.
            let _ = sender.send(verdict);
        }
    }
}

/// A ticket, given up when dropped.
struct Wait {
    gate: Arc<Gate>,
    tenant: Arc<str>,
    ticket: Ticket,
    verdict: oneshot::Receiver<Verdict>,
    /// The place was taken.
    is_over: bool,
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.gate.lock();
        if state.admission.cancel(self.ticket) {
            state.waiting.remove(&self.ticket);
        } else if let Ok(Verdict::Admitted) = self.verdict.try_recv() {
            // The place was given at the very moment that nobody wanted it any more.
            drop(state);
            self.gate.leave(&self.tenant, None);
        }
    }
}

impl Permit {
    /// The answer has begun, or its attempt was given up.
    pub(crate) fn observe(&self, kind: Latency) {
        let now = clock::now();
        let mut state = self.gate.lock();
        state.admission.observe(kind, now - self.since, now);
        state.admit();
    }

    /// Whether it is for `gate`.
    pub(crate) fn is_of(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.gate, gate)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.leave(&self.tenant, Some(clock::now() - self.since));
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use backstop_core::table::AdmissionLimit;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn gate(limit: u32, queue: u32) -> Arc<Gate> {
        let gate = Arc::new(Gate::new(Arc::default()));
        gate.configure(Some(&AdmissionSpec { limit: AdmissionLimit::Fixed(limit), queue }));
        gate
    }

    fn occupancy(gate: &Gate) -> (u32, usize) {
        let Occupancy { in_flight, waiting, .. } = gate.occupancy();
        (in_flight, waiting)
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<()> {
        poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).map(drop))).await
    }

    /// A place that is given at the very moment that nobody wants it any more goes to the next.
    #[tokio::test]
    async fn a_place_is_never_lost_between_two() {
        let gate = gate(1, 9);
        let enter = || gate.enter(None, Priority::Normal, LONG, clock::now() + LONG);
        let first = enter().await.expect("room");
        let (mut third, mut fourth) = (pin!(enter()), pin!(enter()));
        {
            let mut second = Box::pin(enter());
            assert!(poll_once(&mut second).await.is_pending());
            assert!(poll_once(&mut third.as_mut()).await.is_pending());
            assert!(poll_once(&mut fourth.as_mut()).await.is_pending());
            assert_eq!(occupancy(&gate), (1, 3));
            drop(first);
            assert_eq!(occupancy(&gate), (1, 2), "the second has it, and has not looked yet");
        }
        assert_eq!(occupancy(&gate), (1, 1));
        let third = third.await.expect("its turn");
        drop(third);
        drop(fourth.await.expect("its turn"));
        assert_eq!(occupancy(&gate), (0, 0));
    }

    #[tokio::test]
    async fn who_is_displaced_and_leaves_takes_nothing_along() {
        let gate = gate(1, 1);
        let enter = |priority| gate.enter(None, priority, LONG, clock::now() + LONG);
        let first = enter(Priority::Normal).await.expect("room");
        let mut low = Box::pin(enter(Priority::Low));
        assert!(poll_once(&mut low).await.is_pending());
        let mut high = Box::pin(enter(Priority::High));
        assert!(poll_once(&mut high).await.is_pending());
        drop(low);
        assert_eq!(occupancy(&gate), (1, 1));
        drop(first);
        drop(high.await.expect("its turn"));
        assert_eq!(occupancy(&gate), (0, 0));
    }

    #[tokio::test]
    async fn the_wait_ends_at_the_nearer_deadline() {
        let gate = gate(1, 9);
        let _first = gate.try_enter(None).expect("room");
        let short = Duration::from_millis(5);
        for (limit, total) in [(short, LONG), (LONG, short)] {
            let deadline = clock::now() + total;
            let overload = gate.enter(None, Priority::Normal, limit, deadline).await.err().expect("no room");
            let Why::WaitedTooLong(waited) = overload.why else { panic!("{overload}") };
            assert!(waited <= short, "{waited:?}");
            assert_eq!(occupancy(&gate), (1, 0));
        }
    }
}
