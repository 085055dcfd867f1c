//! The gateway as the control plane sees it.

use std::pin::Pin;
use std::sync::Arc;

use backstop_controller::DataPlane;
use backstop_core::event::{Event, What};
use backstop_core::report::{DrillResult, Latencies, TrialReport};
use backstop_core::status::{DependencyState, Status};
use backstop_core::table::TableSpec;
use backstop_gateway::Gateway;
use tokio::sync::broadcast;

use crate::tls::with_hint;

pub(crate) struct Plane(pub(crate) Arc<Gateway>);

impl DataPlane for Plane {
    fn apply(&self, table: &TableSpec) -> Result<(), String> {
        self.0.apply(table).map_err(|error| with_hint(&error, error.hint()))
    }

    fn reroute(&self, table: &TableSpec) -> Result<(), String> {
        self.0.reroute(table).map_err(|error| with_hint(&error, error.hint()))
    }

    fn status(&self) -> Status {
        self.0.status()
    }

    fn metrics(&self) -> String {
        self.0.metrics()
    }

    fn try_version(
        &self,
        service: &str,
        version: &str,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        Box::pin(self.0.try_version(service, version))
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    fn events_after(&self, id: u64) -> Vec<Event> {
        self.0.events_after(id)
    }

    fn emit(&self, what: What) {
        self.0.emit(what);
    }

    fn force_dependency(&self, service: Option<&str>, name: &str, state: Option<DependencyState>) -> usize {
        self.0.force_dependency(service, name, state)
    }

    fn fail_back(&self, service: &str) -> Result<Vec<String>, String> {
        self.0.fail_back(service).map_err(|error| error.to_string())
    }

    fn trial_report(&self, service: &str) -> Option<TrialReport> {
        self.0.trial_report(service)
    }

    fn drilled(&self, service: &str, result: DrillResult) {
        self.0.drilled(service, result);
    }

    fn latencies(&self, service: &str, version: &str) -> Option<Latencies> {
        self.0.latencies(service, version)
    }
}
