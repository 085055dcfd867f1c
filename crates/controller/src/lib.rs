//! Control plane of Backstop: what an operator changes while it runs.
//!
//! [`Control`] is the single owner of configuration, run-time changes and revision. Whoever wants a change (the
//! control API, the file's watcher, a signal) asks it; it checks, keeps and applies, one change after the other, and
//! a change that fails anywhere leaves everything as it was. The data plane is known only as [`DataPlane`].

mod api;
mod auth;
mod change;
mod control;
mod crash;
mod drift;
mod error;
mod extract;
mod ledger;
mod notify;
mod prometheus;
mod record;
mod registry;
mod releases;
mod reserve;
mod routes;
mod server;
mod snapshots;
mod stored;
#[cfg(test)]
mod tests;

use backstop_core::event::{Event, What};
use backstop_core::report::{DrillResult, Latencies, TrialReport};
use backstop_core::status::{DependencyState, Status};
use backstop_core::table::TableSpec;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

/// Where the control API listens.
pub use axum::serve::Listener;

pub use crate::change::{Actor, LastChange, Refusal, StartError};
pub use crate::control::Control;
pub use crate::notify::notify;
pub use crate::record::record;
pub use crate::releases::Releases;
pub use crate::server::serve;
pub use crate::stored::{StateFileError, replace};

/// What the control plane needs of a gateway.
pub trait DataPlane: Send + Sync + 'static {
    /// Serves from `table` from now on.
    ///
    /// # Errors
    ///
    /// Why it can't be served, such as a certificate file that can't be read. Then the old table goes on serving.
    fn apply(&self, table: &TableSpec) -> Result<(), String>;

    /// The same for a table that differs from the one in service only in who gets what: it must not wait.
    ///
    /// # Errors
    ///
    /// Why it can't; then it goes on with the table before.
    fn reroute(&self, table: &TableSpec) -> Result<(), String> {
        self.apply(table)
    }

    fn status(&self) -> Status;

    /// All metrics, in Prometheus' text format.
    fn metrics(&self) -> String;

    /// Events from now on. A subscriber that falls too far behind misses some, and is told so.
    fn subscribe(&self) -> broadcast::Receiver<Event>;

    /// The kept events after the one with `id`.
    fn events_after(&self, id: u64) -> Vec<Event>;

    fn emit(&self, what: What);

    /// Sets the state of a dependency against what its checks find; `None` leaves it to them again. Without a service
    /// all dependencies of that name are meant. Gives how many that were.
    fn force_dependency(&self, service: Option<&str>, name: &str, state: Option<DependencyState>) -> usize;

    /// Begins to give the tiers of a service whose standby has their work that work back; gives their names.
    ///
    /// # Errors
    ///
    /// Why there is nothing to do.
    fn fail_back(&self, service: &str) -> Result<Vec<String>, String>;

    /// Has each endpoint of a version that is up answer a small request; fails with the reason of one that does not.
    fn try_version(&self, service: &str, version: &str) -> BoxFuture<'static, Result<(), String>>;

    /// What has been counted for the release that a service is split for, or was split for last; `None` if there is none.
    fn trial_report(&self, service: &str) -> Option<TrialReport>;

    /// How long the answers of a version took in the last ten to twenty minutes; `None` if there is no such version.
    fn latencies(&self, service: &str, version: &str) -> Option<Latencies>;

    /// What came of the last drill of a service, for its metrics.
    fn drilled(&self, service: &str, result: DrillResult);
}

/// The document of the control API, in the form of OpenAPI 3.1.
pub fn openapi() -> serde_json::Value {
    serde_json::to_value(api::document()).unwrap_or_default()
}
