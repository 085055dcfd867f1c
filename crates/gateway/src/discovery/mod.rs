//! Which addresses the host names of the table have.
//!
//! Each name has one task that asks again when the answer has expired; everybody who connects uses the last good
//! answer. A name that can't be resolved any more keeps its addresses: DNS that fails must not take servers away that
//! work, and whether one is really gone, health checks tell.

mod hosts;
mod name;
mod resolver;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use backstop_core::table::{Addresses, DnsSpec, EndpointSpec, Target};
use tokio::sync::Notify;

use crate::events::Events;
use name::{Answer, Condition, Name};
use resolver::Resolver;

/// The most addresses of one name that become endpoints, each with its checks; of more, the first in order.
const MAX_EACH: usize = 256;

/// All names that somebody needs.
pub(crate) struct Discovery {
    resolver: Arc<Resolver>,
    /// A name is watched as long as somebody holds it.
    names: Mutex<HashMap<String, Weak<Name>>>,
    /// Told when endpoints may have come or gone.
    changes: Arc<Notify>,
    events: Arc<Events>,
}

/// Where a server is.
#[derive(Clone)]
pub(crate) enum Host {
    Address(IpAddr),
    /// Any of the addresses that the name has now.
    Name(Arc<Name>),
}

/// An endpoint of the table in its place: `addresses: each` makes several of one specification.
pub(crate) struct Located {
    pub(crate) url: String,
    pub(crate) host: Host,
}

/// A name whose addresses are endpoints, with the answer that they were taken from.
pub(crate) struct Linked {
    name: Arc<Name>,
    answer: Arc<Answer>,
}

/// How a name stands, for metrics.
pub(crate) struct Figures {
    pub(crate) name: String,
    pub(crate) failures: u64,
    /// Since the last good answer, if there was one.
    pub(crate) age: Option<Duration>,
    pub(crate) addresses: usize,
}

impl Discovery {
    pub(crate) fn new(events: Arc<Events>) -> Self {
        Self { resolver: Arc::new(Resolver::new()), names: Mutex::default(), changes: Arc::default(), events }
    }

    /// Names are resolved in this way from now on.
    pub(crate) fn configure(&self, spec: &DnsSpec) {
        if self.resolver.configure(spec) {
            self.all().iter().for_each(|name| name.ask_again());
        }
    }

    /// Where `host` is, a name or an address.
    pub(crate) fn host(&self, host: &str) -> Host {
        if let Ok(address) = host.parse() {
            return Host::Address(address);
        }
        let key = host.to_ascii_lowercase();
        let mut names = self.names();
        if let Some(name) = names.get(&key).and_then(Weak::upgrade) {
            return Host::Name(name);
        }
        names.retain(|_, name| name.strong_count() > 0);
        let (resolver, changes) = (Arc::clone(&self.resolver), Arc::clone(&self.changes));
        let name = Arc::new(Name::watch(&key, resolver, changes, Arc::clone(&self.events)));
        names.insert(key, Arc::downgrade(&name));
        Host::Name(name)
    }

    /// Where the endpoints of `spec` are; and the name that they follow, if they are not always the same.
    pub(crate) fn locate(&self, spec: &EndpointSpec) -> (Vec<Located>, Option<Linked>) {
        match (self.host(&spec.target.host), spec.addresses) {
            (Host::Name(name), Addresses::Each) => {
                let answer = name.answer();
                let located = |address: &IpAddr| {
                    let target = Target { host: address.to_string(), ..spec.target.clone() };
                    Located { url: target.url(), host: Host::Address(*address) }
                };
                let each = answer.sorted.iter().take(MAX_EACH).map(located).collect();
                name.tell_limit(MAX_EACH);
                (each, Some(Linked { name, answer }))
            }
            (host, _) => (vec![Located { url: spec.target.url(), host }], None),
        }
    }

    /// Waits until a [`Linked`] name may have other endpoints.
    pub(crate) async fn changed(&self) {
        self.changes.notified().await;
    }

    /// In order.
    pub(crate) fn figures(&self, now: Instant) -> Vec<Figures> {
        let figures = |name: &Arc<Name>| {
            let answer = name.answer();
            Figures {
                name: name.host().to_owned(),
                failures: name.failures(),
                age: answer.good_at.map(|at| now.saturating_duration_since(at)),
                addresses: answer.addresses.len(),
            }
        };
        let mut all: Vec<_> = self.all().iter().map(figures).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn all(&self) -> Vec<Arc<Name>> {
        self.names().values().filter_map(Weak::upgrade).collect()
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Weak<Name>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Linked {
    /// Whether the name has other endpoints by now, or it is known by now that it has none.
    pub(crate) fn is_outdated(&self) -> bool {
        let now = self.name.answer();
        let endpoints = |answer: &'_ Answer| answer.sorted.iter().take(MAX_EACH).copied().collect::<Vec<_>>();
        self.is_pending() != (now.condition == Condition::Unasked)
            || endpoints(&self.answer) != endpoints(&now)
    }

    /// Nothing was known of it yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.answer.condition == Condition::Unasked
    }
}

impl Host {
    /// Its addresses in the order in which to try them. Waits for the first answer; an error tells why there is none.
    pub(crate) async fn addresses(&self) -> Result<Arc<[IpAddr]>, String> {
        match self {
            Self::Address(address) => Ok(Arc::new([*address])),
            Self::Name(name) => name.addresses().await,
        }
    }

    /// Whether `address` is one of its own now.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        match self {
            Self::Address(own) => *own == address,
            Self::Name(name) => name.has(address),
        }
    }
}

impl PartialEq for Host {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(a), Self::Address(b)) => a == b,
            (Self::Name(a), Self::Name(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}
