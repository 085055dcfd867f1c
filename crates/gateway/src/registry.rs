//! All endpoints and dependencies that the table names, with the tasks that watch them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use backstop_core::standby::Away;
use backstop_core::table::{
    CacheSpec, DependencySpec, Duty, EndpointSpec, ServiceSpec, TableSpec, TrialSpec,
};

use crate::admission::Gate;
use crate::cache::Cache;
use crate::dependency::{self, Dependency};
use crate::discovery::{Discovery, Located};
use crate::endpoint::{Endpoint, EndpointId, Settings};
use crate::events::Events;
use crate::load::ServiceLoad;
use crate::metrics::{ServiceMetrics, VersionMetrics};
use crate::probe;
use crate::standby::TierSwitch;
use crate::table::{Rank, Service, Table};
use crate::tasks::OwnedTask;
use crate::tls::{Trust, TrustError};
use crate::trial::{Epoch, Trial};
use crate::upstream::Connector;

pub(crate) struct Registry {
    entries: Mutex<HashMap<EndpointId, Entry>>,
    /// By service and version.
    metrics: Mutex<HashMap<(String, String), Arc<VersionMetrics>>>,
    services: Mutex<HashMap<String, OfService>>,
    caches: Mutex<HashMap<String, Arc<Cache>>>,
    /// By service, version and tier.
    switches: Mutex<HashMap<(String, String, Rank), Arc<TierSwitch>>>,
    /// The last of each service.
    trials: Mutex<HashMap<String, Arc<Trial>>>,
    /// Tells this process from the one before it.
    boot: u64,
    /// By service and name.
    dependencies: Mutex<HashMap<(String, String), WatchedDependency>>,
    pub(crate) discovery: Discovery,
    /// For the table that is linked last.
    trust: Mutex<Trust>,
    /// Orders to give no more work to an endpoint, until the table serves that has others for it.
    leaving: Mutex<Vec<(Arc<Endpoint>, Duty)>>,
    pub(crate) events: Arc<Events>,
}

struct Entry {
    endpoint: Arc<Endpoint>,
    /// End with the entry.
    _probes: [OwnedTask; 2],
}

/// What is known of a service, whatever its versions.
#[derive(Clone)]
pub(crate) struct OfService {
    pub(crate) load: Arc<ServiceLoad>,
    pub(crate) metrics: Arc<ServiceMetrics>,
    /// Open if the service has no admission.
    pub(crate) gate: Arc<Gate>,
}

struct WatchedDependency {
    dependency: Arc<Dependency>,
    _watch: OwnedTask,
}

impl Registry {
    pub(crate) fn new(events: Arc<Events>) -> Self {
        Self {
            entries: Mutex::default(),
            metrics: Mutex::default(),
            services: Mutex::default(),
            caches: Mutex::default(),
            switches: Mutex::default(),
            trials: Mutex::default(),
            boot: rand::random(),
            dependencies: Mutex::default(),
            discovery: Discovery::new(Arc::clone(&events)),
            trust: Mutex::default(),
            leaving: Mutex::default(),
            events,
        }
    }

    /// Reads the certificate authorities that `spec` names. To be called before it is linked.
    pub(crate) fn trust(&self, spec: &TableSpec) -> Result<(), TrustError> {
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        *trust = Trust::read(spec, &trust)?;
        Ok(())
    }

    /// Whether all authorities that `spec` names have been read.
    pub(crate) fn trusts(&self, spec: &TableSpec) -> bool {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner).covers(spec)
    }

    /// The endpoint that a spec names, in its place: the one that is known, with its new settings, or a new one.
    pub(crate) fn endpoint(
        &self,
        service: &ServiceSpec,
        version: &str,
        spec: &EndpointSpec,
        located: Located,
    ) -> Arc<Endpoint> {
        let id = EndpointId {
            service: service.name.as_str().into(),
            version: version.into(),
            url: located.url.into(),
        };
        let settings = Settings::new(service, spec);
        let trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let tls = trust.client(&spec.target, spec.protocol, &spec.tls);
        drop(trust);
        let connector = Connector::new(spec.target.clone(), located.host, spec.protocol, tls);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&id) {
            if entry.endpoint.pool.reconfigure(connector) {
                entry.endpoint.suspicion.notify_one();
            }
            if **entry.endpoint.settings.load() != settings {
                entry.endpoint.settings.store(Arc::new(settings));
                if spec.duty == Duty::Active {
                    entry.endpoint.obey(spec.duty);
                } else {
                    let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
                    leaving.push((Arc::clone(&entry.endpoint), spec.duty));
                }
                entry.endpoint.suspicion.notify_one();
            }
            return Arc::clone(&entry.endpoint);
        }
        let endpoint = Arc::new(Endpoint::new(id.clone(), settings, connector, Arc::clone(&self.events)));
        endpoint.obey(spec.duty);
        let probes = [
            OwnedTask::spawn("probe", probe::watch(Arc::clone(&endpoint))),
            OwnedTask::spawn("inference probe", probe::watch_inference(Arc::clone(&endpoint))),
        ];
        entries.insert(id, Entry { endpoint: Arc::clone(&endpoint), _probes: probes });
        endpoint
    }

    /// Lets endpoints go as the table says that is served by now. Before, requests would have found nothing in its place.
    pub(crate) fn let_go(&self) {
        let leaving = std::mem::take(&mut *self.leaving.lock().unwrap_or_else(PoisonError::into_inner));
        for (endpoint, duty) in leaving {
            endpoint.obey(duty);
        }
    }

    /// The counts of a version: those it has, or new ones.
    pub(crate) fn version_metrics(&self, service: &str, version: &str) -> Arc<VersionMetrics> {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(metrics.entry((service.to_owned(), version.to_owned())).or_default())
    }

    /// Tiers that another process has left without their work.
    pub(crate) fn set_away(&self, away: &[Away]) {
        let mut switches = self.switches.lock().unwrap_or_else(PoisonError::into_inner);
        for Away { service, version, priority, nearness } in away {
            let id = (service.clone(), version.clone(), (*priority, *nearness));
            switches.insert(id, Arc::new(TierSwitch::away()));
        }
    }

    /// What is known of a tier that has others after it.
    pub(crate) fn switch(&self, service: &str, version: &str, tier: Rank) -> Arc<TierSwitch> {
        let mut switches = self.switches.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (service.to_owned(), version.to_owned(), tier);
        Arc::clone(switches.entry(id).or_insert_with(|| Arc::new(TierSwitch::new())))
    }

    /// The counts for a release: those there are, or new ones.
    pub(crate) fn trial(&self, service: &str, spec: &TrialSpec) -> (Arc<Trial>, Arc<Epoch>) {
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        let known = trials.get(service).filter(|trial| *trial.release == *spec.release).map(Arc::clone);
        let trial = known.unwrap_or_else(|| Arc::new(Trial::new(&spec.release, self.boot)));
        trials.insert(service.to_owned(), Arc::clone(&trial));
        let epoch = trial.epoch(spec);
        (trial, epoch)
    }

    /// The counts for the last release of a service.
    pub(crate) fn trial_of(&self, service: &str) -> Option<Arc<Trial>> {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner).get(service).map(Arc::clone)
    }

    /// What is known of a service, with its new settings: what was, or nothing yet.
    pub(crate) fn service(&self, spec: &ServiceSpec) -> OfService {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let of_service = services.entry(spec.name.clone()).or_insert_with(|| {
            let metrics = Arc::<ServiceMetrics>::default();
            OfService { load: Arc::default(), gate: Arc::new(Gate::new(Arc::clone(&metrics))), metrics }
        });
        of_service.gate.configure(spec.admission.as_ref());
        of_service.clone()
    }

    /// The answers that a service keeps: those it has, unless they are to be kept otherwise from now on.
    pub(crate) fn cache(&self, service: &str, spec: Option<CacheSpec>) -> Option<Arc<Cache>> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(spec) = spec else {
            caches.remove(service);
            return None;
        };
        let cache = caches.entry(service.to_owned()).or_insert_with(|| Arc::new(Cache::new(spec)));
        if cache.spec != spec {
            *cache = Arc::new(Cache::new(spec));
        }
        Some(Arc::clone(cache))
    }

    /// The dependency that a spec names: the one that is known, with its new settings, or a new one. One that is looked
    /// for elsewhere from now on is new.
    pub(crate) fn dependency(&self, service: &Arc<str>, spec: &DependencySpec) -> Arc<Dependency> {
        let mut dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (service.to_string(), spec.name.clone());
        let trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let connector = dependency::connector(spec, &self.discovery, &trust);
        drop(trust);
        if let Some(WatchedDependency { dependency, .. }) = dependencies.get(&id)
            && dependency.spec.load().check == spec.check
        {
            dependency.pool.reconfigure(connector);
            dependency.spec.store(Arc::new(spec.clone()));
            return Arc::clone(dependency);
        }
        let dependency =
            Arc::new(Dependency::new(Arc::clone(service), spec, connector, Arc::clone(&self.events)));
        let watch = OwnedTask::spawn("dependency", dependency::watch(Arc::clone(&dependency)));
        dependencies.insert(id, WatchedDependency { dependency: Arc::clone(&dependency), _watch: watch });
        dependency
    }

    /// Lets go of the endpoints and versions that `table` no longer names, for this reason. Requests that run on them
    /// may end.
    pub(crate) fn retain(&self, table: &Table, reason: &str) {
        let named: HashSet<&EndpointId> = table.targets().map(|target| &target.endpoint.id).collect();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|id, entry| {
            let kept = named.contains(id);
            if !kept {
                entry.endpoint.retire(reason);
            }
            kept
        });
        drop(entries);
        let mut dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        dependencies.retain(|(service, name), _| {
            let named = |service: &Arc<Service>| service.dependencies.iter().any(|it| *it.name == *name);
            table.services.get(service.as_str()).is_some_and(named)
        });
        drop(dependencies);
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.retain(|service, of_service| {
            let kept = table.services.contains_key(service.as_str());
            if !kept {
                // Whoever waits has nothing more to wait for.
                of_service.gate.configure(None);
            }
            kept
        });
        drop(services);
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        trials.retain(|service, _| table.services.contains_key(service.as_str()));
        drop(trials);
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|service, _| table.services.contains_key(service.as_str()));
        drop(caches);
        let mut switches = self.switches.lock().unwrap_or_else(PoisonError::into_inner);
        switches.retain(|(service, version, tier), _| {
            let version = table.services.get(service.as_str()).and_then(|service| service.version(version));
            version
                .is_some_and(|version| version.tiers.iter().any(|it| it.rank == *tier && it.switch.is_some()))
        });
        drop(switches);
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.retain(|(service, version), _| {
            table.services.get(service.as_str()).is_some_and(|service| service.version(version).is_some())
        });
    }
}
