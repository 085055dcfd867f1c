//! Who gets a service's traffic, as releases want it, and when they may want nothing.

use std::sync::atomic::Ordering::Relaxed;

use backstop_core::event::Medium;
use backstop_core::rollout::Freeze;
use tracing::{error, warn};

use super::{Control, Current, Deed, Next};
use crate::change::Refusal;
use crate::crash;
use crate::releases::Freezes;
use crate::routes::{Route, Routes};

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// For what must not be lost: a version gets more.
    KeepFirst,
    /// For what must not wait: a version gets less.
    ServeFirst,
}

impl Control {
    /// Changes who gets the traffic of `service` to what `change` makes of the route as it is then, if anything. What lowers
    /// what a version gets is served first and kept then, and is served even if it can't be kept.
    pub(crate) fn route(
        &self,
        service: &str,
        order: Order,
        deed: &Deed<'_>,
        change: impl FnOnce(Route) -> Option<Route>,
    ) -> Result<(), Refusal> {
        let _one_at_a_time = self.lock();
        let before = self.current();
        self.may_lead().map_err(|refusal| self.refuse(deed, refusal))?;
        let Some(route) = before.routes.of(&before.config, service) else { return Ok(()) };
        let Some(route) = change(route) else { return Ok(()) };
        let mut routes = before.routes.clone();
        routes.set(service, route);
        if routes == before.routes {
            if self.routes_unkept.load(Relaxed) {
                // It is served as it should be; whether it is written down is told by itself.
                let _ = self.keep_routes(&routes);
            }
            return Ok(());
        }
        let next = Next { routes: routes.clone(), ..Next::like(&before) };
        if order == Order::KeepFirst {
            self.keep_routes(&routes)?;
        }
        self.reroute(&before, next, deed).map_err(|refusal| self.refuse(deed, refusal))?;
        if order == Order::ServeFirst && self.keep_routes(&routes).is_err() {
            warn!(service, "what is served now would be lost with a restart");
        }
        Ok(())
    }

    /// Whether the routes that are served would be found again after a restart.
    pub(crate) fn routes_are_kept(&self) -> bool {
        !self.routes_unkept.load(Relaxed)
    }

    /// The route of a service as it is now; `None` if there is no such service.
    pub(crate) fn route_of(&self, service: &str) -> Option<Route> {
        let current = self.current();
        current.routes.of(&current.config, service)
    }

    /// By what nothing of a service is to be changed at `now`, in milliseconds since the Unix epoch: of several by what lasts
    /// longest.
    pub(crate) fn frozen(&self, service: &str, now: u64) -> Option<Freeze> {
        let current = self.current();
        let ordered = current.routes.freezes.of(service).cloned();
        current
            .config
            .freezes(service)
            .into_iter()
            .chain(ordered)
            .filter(|freeze| freeze.holds(now))
            .max_by_key(|freeze| freeze.until.unwrap_or(u64::MAX))
    }

    /// Changes what operators have ordered not to be changed, of these services: on disk first. It needs no store.
    pub(crate) fn order_freeze(
        &self,
        deed: &Deed<'_>,
        services: &[String],
        told: String,
        change: impl FnOnce(&mut Freezes),
    ) -> Result<(), Refusal> {
        let _one_at_a_time = self.lock();
        let before = self.current();
        self.may_change(&before, None).map_err(|refusal| self.refuse(deed, refusal))?;
        let mut routes = before.routes.clone();
        change(&mut routes.freezes);
        self.keep_routes(&routes).map_err(|refusal| self.refuse(deed, refusal))?;
        let next = Next { routes, ..Next::like(&before) };
        let current = self.reroute(&before, next, deed).map_err(|refusal| self.refuse(deed, refusal))?;
        self.account_as(&current, deed, services, ("freeze", told));
        Ok(())
    }

    pub(super) fn keep_routes(&self, routes: &Routes) -> Result<(), Refusal> {
        let path = self.routes.path().display();
        crash::point("before-routes");
        let kept = if self.both_unkept.load(Relaxed) {
            self.finish_with(&self.current(), routes)
        } else {
            self.routes.write(routes)
        };
        crash::point("after-routes");
        self.routes_unkept.store(kept.is_err(), Relaxed);
        let trouble = kept.as_ref().err().map(|error| format!("{path}: {error}"));
        self.storage(Medium::Routes, trouble.map_or(Ok(()), Err));
        kept.map_err(|error| Refusal::NotKept { path: path.to_string(), reason: error.to_string() })
    }

    /// As they are on disk; as they were, if they can't be read.
    pub(super) fn read_routes(&self, before: &Current) -> Routes {
        self.routes.read().unwrap_or_else(|error| {
            error!(%error, "the routes stay as they were");
            before.routes.clone()
        })
    }
}
