//! Who may come in now, who waits, and who is turned away.
//!
//! A service has so many places. While all are taken, requests wait in a bounded queue: a higher priority first,
//! within a priority the tenant with the fewest requests in flight, and of a tenant's the oldest. When the queue is full, a
//! newcomer may take the place of somebody who has less right to it, and is turned away otherwise.
//!
//! It knows neither time nor tasks: a ticket stands for a request that waits, and the caller tells whoever holds it.

mod gradient;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::table::{AdmissionLimit, AdmissionSpec};
use gradient::Gradient;
pub use gradient::Latency;

/// What the header `x-priority` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// What is none of them is normal.
    pub fn from_text(text: &str) -> Self {
        match text {
            _ if text.eq_ignore_ascii_case("high") => Self::High,
            _ if text.eq_ignore_ascii_case("low") => Self::Low,
            _ => Self::Normal,
        }
    }
}

/// A request that waits. Of two, the one that came first has the smaller one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What becomes of a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It has a place, until [`Admission::leave`].
    Admitted,
    Waiting {
        ticket: Ticket,
        /// Who no longer waits, to make room for it.
        displaced: Option<Ticket>,
    },
    /// The queue is full.
    Rejected,
}

/// The places of one service, and who waits for them.
#[derive(Debug)]
pub struct Admission {
    limit: Limit,
    /// How many may wait.
    queue: usize,
    in_flight: u32,
    /// In flight by tenant; none has zero.
    tenants: BTreeMap<Arc<str>, u32>,
    /// By priority and tenant, oldest first; none is empty.
    waiting: [BTreeMap<Arc<str>, VecDeque<Ticket>>; 3],
    /// Where each of those who wait does.
    tickets: BTreeMap<Ticket, (Priority, Arc<str>)>,
    next_ticket: u64,
    /// Mean time that a place was held, in seconds; `None` before the first was given back.
    held: Option<f64>,
}

#[derive(Debug)]
enum Limit {
    Open,
    Fixed(u32),
    Adaptive(Gradient),
}

impl Admission {
    /// `None` = without limit.
    pub fn new(spec: Option<&AdmissionSpec>) -> Self {
        let mut new = Self {
            limit: Limit::Open,
            queue: 0,
            in_flight: 0,
            tenants: BTreeMap::new(),
            waiting: Default::default(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            held: None,
        };
        new.configure(spec);
        new
    }

    /// Changes the settings. Whoever is in or waits stays, even if that is more than there would be room for now; ask
    /// [`Self::admit_next`] who may come in.
    pub fn configure(&mut self, spec: Option<&AdmissionSpec>) {
        let Some(spec) = spec else {
            self.limit = Limit::Open;
            return;
        };
        self.queue = spec.queue as usize;
        match (&mut self.limit, spec.limit) {
            (Limit::Adaptive(gradient), AdmissionLimit::Adaptive { max }) => gradient.set_max(max),
            (limit, AdmissionLimit::Adaptive { max }) => *limit = Limit::Adaptive(Gradient::new(max)),
            (limit, AdmissionLimit::Fixed(most)) => *limit = Limit::Fixed(most),
        }
    }

    /// How many may be in flight; `None` = any number.
    pub fn limit(&self) -> Option<u32> {
        match &self.limit {
            Limit::Open => None,
            Limit::Fixed(limit) => Some(*limit),
            Limit::Adaptive(gradient) => Some(gradient.limit()),
        }
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub fn waiting(&self) -> usize {
        self.tickets.len()
    }

    pub fn has_room(&self) -> bool {
        self.limit().is_none_or(|limit| self.in_flight < limit)
    }

    /// A request wants to come in.
    pub fn enter(&mut self, tenant: &Arc<str>, priority: Priority) -> Entry {
        if self.try_enter(tenant) {
            return Entry::Admitted;
        }
        let displaced = if self.waiting() < self.queue {
            None
        } else {
            let Some(ticket) = self.displaceable(tenant, priority) else { return Entry::Rejected };
            self.cancel(ticket);
            Some(ticket)
        };
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.tickets.insert(ticket, (priority, Arc::clone(tenant)));
        self.waiting[priority as usize].entry(Arc::clone(tenant)).or_default().push_back(ticket);
        Entry::Waiting { ticket, displaced }
    }

    /// A request wants to come in, but not to wait. While there is room nobody waits, so it takes nobody's turn.
    pub fn try_enter(&mut self, tenant: &Arc<str>) -> bool {
        let room = self.has_room();
        if room {
            self.start(tenant);
        }
        room
    }

    /// Somebody no longer waits. `false` if that was so already, because it had come in or been displaced.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some((priority, tenant)) = self.tickets.remove(&ticket) else { return false };
        let class = &mut self.waiting[priority as usize];
        if let Some(tickets) = class.get_mut(&tenant) {
            if let Ok(at) = tickets.binary_search(&ticket) {
                tickets.remove(at);
            }
            if tickets.is_empty() {
                class.remove(&tenant);
            }
        }
        true
    }

    /// A request of `tenant` that was in has ended. `held` is how long it kept its place, `None` if it never used it.
    pub fn leave(&mut self, tenant: &Arc<str>, held: Option<Duration>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(count) = self.tenants.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(tenant);
            }
        }
        if let Some(held) = held.map(|held| held.as_secs_f64()) {
            self.held = Some(self.held.map_or(held, |mean| mean + 0.1 * (held - mean)));
        }
    }

    /// An answer began, or was given up, `latency` after its request came in.
    pub fn observe(&mut self, kind: Latency, latency: Duration, now: Instant) {
        if let Limit::Adaptive(gradient) = &mut self.limit {
            gradient.observe(kind, latency, self.in_flight, now);
        }
    }

    /// Who comes in next, if there is room. To be asked until there is nobody, after anything that may make room.
    pub fn admit_next(&mut self) -> Option<Ticket> {
        if !self.has_room() {
            return None;
        }
        let class =
            Priority::ALL.into_iter().find(|priority| !self.waiting[*priority as usize].is_empty())?;
        let oldest = |(tenant, tickets): (&Arc<str>, &VecDeque<Ticket>)| {
            let in_flight = self.tenants.get(tenant).copied().unwrap_or(0);
            tickets.front().map(|ticket| (in_flight, *ticket))
        };
        let (_, ticket) = self.waiting[class as usize].iter().filter_map(oldest).min()?;
        let (_, tenant) = self.tickets.get(&ticket).cloned()?;
        self.cancel(ticket);
        self.start(&tenant);
        Some(ticket)
    }

    /// About how long it takes until all who wait and one more have come in, if places go on being given back as they
    /// were. At least a second, at most a minute.
    pub fn retry_after(&self) -> Duration {
        let places = self.limit().unwrap_or(u32::MAX).max(1);
        let seconds = self.held.unwrap_or(1.0) * (self.waiting() as f64 + 1.0) / f64::from(places);
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0).ceil())
    }

    fn start(&mut self, tenant: &Arc<str>) {
        self.in_flight += 1;
        *self.tenants.entry(Arc::clone(tenant)).or_default() += 1;
    }

    /// Whose place in a full queue a newcomer may take: in the lowest priority that anybody waits in, unless that is
    /// above its own, the newest of the tenant with the most there. Within its own priority that must make the queue
    /// fairer: the other tenant has more waiting than its own, even with the newcomer.
    fn displaceable(&self, tenant: &Arc<str>, priority: Priority) -> Option<Ticket> {
        if self.queue == 0 {
            return None;
        }
        let lowest =
            Priority::ALL.into_iter().rev().find(|class| !self.waiting[*class as usize].is_empty())?;
        if lowest < priority {
            return None;
        }
        let class = &self.waiting[lowest as usize];
        let (count, ticket, owner) = class
            .iter()
            .filter_map(|(owner, tickets)| tickets.back().map(|ticket| (tickets.len(), *ticket, owner)))
            .max()?;
        let own = class.get(tenant).map_or(0, VecDeque::len);
        let is_fairer = lowest > priority || (owner != tenant && count > own + 1);
        is_fairer.then_some(ticket)
    }
}

#[cfg(test)]
mod tests;
