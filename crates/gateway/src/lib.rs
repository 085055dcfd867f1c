//! Data plane of Backstop: clients in front, model servers behind.
//!
//! It serves from the last [`TableSpec`] it was given, for ever, and asks nobody anything while doing so. Start
//! reading in `request`, which has the way of a request from top to bottom.

mod admission;
mod answer;
mod assign;
mod attempt;
mod body;
mod cache;
mod clock;
mod counting;
mod dependency;
mod discovery;
mod endpoint;
mod entry;
mod events;
mod failover;
mod fault;
mod headers;
mod identity;
mod latencies;
mod load;
mod local;
mod machine;
mod metrics;
mod outliers;
mod probe;
mod rate;
mod record;
mod registry;
mod relay;
mod reply;
mod request;
mod resume;
mod server;
mod shadow;
mod shape;
mod standby;
mod status;
mod stream;
mod table;
mod tasks;
mod tls;
mod trial;
mod upstream;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use backstop_core::event::{Event, What};
use backstop_core::report::{DrillResult, Latencies, TrialReport};
use backstop_core::standby::Away;
use backstop_core::status::{DependencyState, Status};
use backstop_core::table::TableSpec;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use upstream::fuzzing;

use events::Events;
use local::LastDeepCheck;
use machine::Machine;
use metrics::ByCode;
use record::Totals;
use registry::Registry;
pub use server::Leave;
use server::Phase;
pub use standby::FailbackError;
use table::Table;
use tasks::OwnedTask;
use tls::Certificates;

pub use tls::{
    Certificate, CertificateFiles, Listener, PemError, TrustError, check_authorities, check_certificate,
};

/// Why a table can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl ApplyError {
    pub fn hint(&self) -> Option<&'static str> {
        let Self::Trust(error) = self;
        error.hint()
    }
}

/// Between two tables that are linked anew because names lead elsewhere.
const RELINK_PAUSE: Duration = Duration::from_millis(50);

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) table: ArcSwap<Table>,
    pub(crate) totals: Arc<Totals>,
    pub(crate) refused: Arc<ByCode>,
    pub(crate) rates: Arc<dyn rate::Store>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) deep_check: LastDeepCheck,
    /// Nanoseconds from the order to serve the present table until it did.
    pub(crate) swap: AtomicU64,
    /// Every service has had an endpoint that could serve.
    pub(crate) started: AtomicBool,
    pub(crate) certificates: Certificates,
    phases: watch::Sender<Phase>,
    /// The value of `phases`, readable without a lock.
    phase: AtomicU8,
    /// Another process has taken over this one's clients.
    handed_over: AtomicBool,
}

impl Shared {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Running,
            1 => Phase::Leaving,
            2 => Phase::Draining,
            _ => Phase::Closing,
        }
    }

    /// Runs `future` unless the process must close first. The connection's task is woken when that happens, so a look
    /// at each poll is enough.
    pub(crate) async fn unless_closing<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Pending if self.phase() == Phase::Closing => Poll::Ready(None),
            polled => polled.map(Some),
        })
        .await
    }

    /// Never goes back: whoever has been told to close does not begin to drain.
    fn set_phase(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Relaxed);
        self.phases.send_modify(|old| *old = phase.max(*old));
    }

    fn hand_over(&self) {
        self.handed_over.store(true, Relaxed);
        self.set_phase(Phase::Leaving);
    }

    /// Whether new connections find nobody: then readiness fails. After a hand-over the other process answers them,
    /// and whoever asks this one on an old connection means the service.
    pub(crate) fn is_closed_to_new(&self) -> bool {
        self.phase() != Phase::Running && !self.handed_over.load(Relaxed)
    }
}

/// A running data plane. Dropping it stops its probes; connections end with [`Gateway::serve`].
pub struct Gateway {
    shared: Arc<Shared>,
    events: Arc<Events>,
    linker: Arc<Linker>,
    _watches: [OwnedTask; 4],
}

/// Puts tables into service, one after the other.
struct Linker {
    shared: Arc<Shared>,
    registry: Registry,
    /// What serves now.
    spec: Mutex<TableSpec>,
}

impl Linker {
    fn apply(&self, spec: &TableSpec) -> Result<(), ApplyError> {
        let ordered = clock::now();
        let mut serving = self.spec.lock().unwrap_or_else(PoisonError::into_inner);
        self.registry.trust(spec)?;
        serving.clone_from(spec);
        self.registry.discovery.configure(&spec.dns);
        let table = Table::link(spec, &self.registry, None);
        self.put(table, ordered, "no longer in the configuration");
        self.registry.events.emit(What::Table { revision: spec.revision });
        Ok(())
    }

    fn reroute(&self, spec: &TableSpec) -> Result<(), ApplyError> {
        let ordered = clock::now();
        let mut serving = self.spec.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.registry.trusts(spec) {
            drop(serving);
            return self.apply(spec);
        }
        let table = Table::link(spec, &self.registry, Some((&serving, &self.shared.table.load())));
        self.put(table, ordered, "no longer in the table");
        serving.clone_from(spec);
        self.registry.events.emit(What::Table { revision: spec.revision });
        Ok(())
    }

    /// Lets `table` serve.
    fn put(&self, table: Table, ordered: Instant, reason: &str) {
        let table = Arc::new(table);
        self.shared.table.store(Arc::clone(&table));
        let swap = u64::try_from(ordered.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.shared.swap.store(swap, Relaxed);
        self.registry.let_go();
        self.registry.retain(&table, reason);
        table.forget_others(&*self.shared.rates);
    }

    /// Links the table anew whenever a name has other endpoints.
    async fn follow_names(self: Arc<Self>) {
        loop {
            self.registry.discovery.changed().await;
            {
                let spec = self.spec.lock().unwrap_or_else(PoisonError::into_inner);
                if self.shared.table.load().is_outdated() {
                    let ordered = clock::now();
                    let table = Table::link(&spec, &self.registry, None);
                    self.put(table, ordered, "its host name leads elsewhere");
                }
            }
            // Names that change together, or all the time.
            tokio::time::sleep(RELINK_PAUSE).await;
        }
    }
}

impl Gateway {
    /// A gateway with nothing to serve yet. Must be called within a tokio runtime.
    pub fn new() -> Self {
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(Table::empty()),
            totals: Arc::default(),
            refused: Arc::default(),
            rates: Arc::new(rate::Memory::default()),
            machine: Arc::default(),
            deep_check: LastDeepCheck::default(),
            swap: AtomicU64::new(0),
            started: AtomicBool::new(false),
            certificates: Certificates::default(),
            phases: watch::Sender::new(Phase::Running),
            phase: AtomicU8::new(Phase::Running as u8),
            handed_over: AtomicBool::new(false),
        });
        let events = Arc::new(Events::new());
        let registry = Registry::new(Arc::clone(&events));
        let linker = Arc::new(Linker { shared: Arc::clone(&shared), registry, spec: Mutex::default() });
        let watches = [
            OwnedTask::spawn("outliers", outliers::watch(Arc::clone(&shared))),
            OwnedTask::spawn("machine", machine::watch(Arc::clone(&shared.machine))),
            OwnedTask::spawn("tiers", standby::watch(Arc::clone(&shared), Arc::clone(&events))),
            OwnedTask::spawn("names", Arc::clone(&linker).follow_names()),
        ];
        Self { shared, events, linker, _watches: watches }
    }

    /// Serves from `spec` from now on, in one swap. Endpoints that it names again keep all that is known of them;
    /// requests in flight end on the table they began with.
    ///
    /// # Errors
    ///
    /// Why it can't be served; then the one before it stays.
    pub fn apply(&self, spec: &TableSpec) -> Result<(), ApplyError> {
        self.linker.apply(spec)
    }

    /// The same for a table that differs from the one in service only in who gets what: no file is read for it, and services of
    /// which it says the same stay as they are.
    ///
    /// # Errors
    ///
    /// Why it can't be served; then the one before it stays.
    pub fn reroute(&self, spec: &TableSpec) -> Result<(), ApplyError> {
        self.linker.reroute(spec)
    }

    /// The certificate that a listener is to show, followed on disk while it lives; it is among the metrics.
    ///
    /// # Errors
    ///
    /// Which of the files can't be used, and why.
    pub fn certificate(&self, listener: Listener, files: CertificateFiles) -> Result<Certificate, PemError> {
        let certificate = Certificate::read(listener, files, Arc::clone(&self.events))?;
        self.shared.certificates.add(&certificate);
        Ok(certificate)
    }

    /// Serves clients of `listener`, in cleartext or by TLS, until `stop` resolves. Then new connections are refused,
    /// or left to another process, and requests in flight may end for up to `drain`; what is left ends with a proper
    /// error.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Option<&Certificate>,
        stop: impl Future<Output = Leave>,
        drain: Duration,
    ) {
        server::run(Arc::clone(&self.shared), listener, tls, stop, drain).await;
    }

    /// Ends what is still in flight now, with a proper error.
    pub fn close(&self) {
        self.shared.set_phase(Phase::Closing);
    }

    pub fn status(&self) -> Status {
        status::of(&self.shared)
    }

    /// All metrics, in Prometheus' text format (version 0.0.4).
    pub fn metrics(&self) -> String {
        metrics::page(&self.shared, &self.linker.registry.discovery, &self.events)
    }

    /// Events from now on. A subscriber that falls more than 1,024 behind misses some, and is told so.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Tells everybody who reads events something that happened elsewhere.
    pub fn emit(&self, what: What) {
        self.events.emit(what);
    }

    /// Sets the state of dependencies called `name`, of one service or of all, whatever their checks find; `None`
    /// gives them back to their checks. How many there are.
    pub fn force_dependency(
        &self,
        service: Option<&str>,
        name: &str,
        state: Option<DependencyState>,
    ) -> usize {
        let table = self.shared.table.load();
        let meant = table.dependencies().filter(|dependency| {
            *dependency.name == *name && service.is_none_or(|service| *dependency.service == *service)
        });
        meant.map(|dependency| dependency.force(state)).count()
    }

    /// Tiers whose work is with their standby.
    pub fn away(&self) -> Vec<Away> {
        standby::away(&self.shared.table.load())
    }

    /// Tiers that another process has left without their work. To be called before the first table.
    pub fn set_away(&self, away: &[Away]) {
        self.linker.registry.set_away(away);
    }

    /// Begins to give the tiers of a service whose standby has their work that work back, as soon as they are healthy;
    /// gives their names.
    ///
    /// # Errors
    ///
    /// Why there is nothing to do.
    pub fn fail_back(&self, service: &str) -> Result<Vec<String>, FailbackError> {
        standby::fail_back(&self.shared.table.load(), &self.events, service)
    }

    /// Has each endpoint of a version that is up answer a small request.
    ///
    /// # Errors
    ///
    /// Why one of them did not.
    pub fn try_version(
        &self,
        service: &str,
        version: &str,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let table = self.shared.table.load_full();
        let (service, version) = (service.to_owned(), version.to_owned());
        async move { local::try_version(table, &service, &version).await }
    }

    /// What has been counted for the release that a service is split for, or was split for last; `None` if there is none.
    pub fn trial_report(&self, service: &str) -> Option<TrialReport> {
        self.linker.registry.trial_of(service).map(|trial| trial.report(clock::now()))
    }

    /// How long the answers of a version took in the last ten to twenty minutes; `None` if there is no such version.
    pub fn latencies(&self, service: &str, version: &str) -> Option<Latencies> {
        let table = self.shared.table.load();
        let version = table.services.get(service)?.version(version)?;
        Some(version.metrics.recent.latencies(clock::now()))
    }

    /// What came of the last drill of a service, for its metrics.
    pub fn drilled(&self, service: &str, result: DrillResult) {
        let table = self.shared.table.load();
        if let Some(service) = table.services.get(service) {
            *service.metrics.drill.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    }

    /// The kept events after the one with `id`; at most 1,024 are kept.
    pub fn events_after(&self, id: u64) -> Vec<Event> {
        self.events.after(id)
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self::new()
    }
}
