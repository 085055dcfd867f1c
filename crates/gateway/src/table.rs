//! The table that serves: a [`TableSpec`] linked to the registry's endpoints.

mod version;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use backstop_core::balance;
use backstop_core::rate::Owner;
use backstop_core::table::{
    BalancePolicy, EndpointSpec, FailoverSpec, FallbackSpec, OutlierSpec, PriceSpec, RateSpec, ReadinessSpec,
    ResumeSpec, RetrySpec, ServiceSpec, TableSpec, Timeouts, VersionSpec,
};
use http::HeaderValue;

use crate::admission::Gate;
use crate::assign::{Asker, Rule, Split};
use crate::cache::Cache;
use crate::dependency::Dependency;
use crate::discovery::Linked;
use crate::endpoint::{AnswerKind, Endpoint};
use crate::identity::{Client, Identities};
use crate::load::ServiceLoad;
use crate::metrics::{ServiceMetrics, VersionMetrics};
use crate::rate;
use crate::registry::{OfService, Registry};
use crate::request::Routed;
use crate::shadow::Shadow;
use crate::shape::Shape;
use crate::standby::TierSwitch;
use crate::trial::Side;

/// Routes of one revision; replaced as a whole.
pub(crate) struct Table {
    pub(crate) revision: u64,
    pub(crate) services: HashMap<Arc<str>, Arc<Service>>,
    models: HashMap<String, Arc<Service>>,
    pub(crate) identities: Identities,
    pub(crate) readiness: ReadinessSpec,
    /// There are rate limits somewhere.
    pub(crate) is_limited: bool,
}

pub(crate) struct Service {
    pub(crate) name: Arc<str>,
    pub(crate) versions: Vec<Arc<Version>>,
    pub(crate) dependencies: Vec<Arc<Dependency>>,
    stable: Arc<Version>,
    rules: Vec<Rule>,
    /// While a release is on its way.
    pub(crate) split: Option<Split>,
    pub(crate) shadow: Option<Arc<Shadow>>,
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: RetrySpec,
    pub(crate) resume: Arc<ResumeSpec>,
    pub(crate) fallback: Vec<FallbackSpec>,
    pub(crate) load: Arc<ServiceLoad>,
    pub(crate) metrics: Arc<ServiceMetrics>,
    /// `None` = everybody comes in.
    pub(crate) admission: Option<Arc<Gate>>,
    pub(crate) limits: RateSpec,
    pub(crate) limits_per_user: RateSpec,
    /// Points in which it differs from its file.
    pub(crate) drift: usize,
    pub(crate) cache: Option<Arc<Cache>>,
    /// The first of the values of `model` that select it.
    pub(crate) model: String,
    pub(crate) outlier: OutlierSpec,
    pub(crate) failover: FailoverSpec,
}

pub(crate) struct Version {
    pub(crate) name: Arc<str>,
    /// Its endpoints are those of another version of the service, which looks after them.
    pub(crate) is_twin: bool,
    /// For `x-backstop-version`.
    pub(crate) header: HeaderValue,
    /// `stable` or `gray`, as logs and metrics call it.
    pub(crate) env: &'static str,
    /// By tier.
    pub(crate) targets: Vec<Target>,
    /// In the order in which they are used.
    pub(crate) tiers: Vec<Tier>,
    pub(crate) metrics: Arc<VersionMetrics>,
    pub(crate) shape: Option<Arc<Shape>>,
    pub(crate) price: Option<PriceSpec>,
    balance: BalancePolicy,
    turn: AtomicU64,
    /// Names whose addresses are among the targets.
    names: Vec<Linked>,
}

/// The version that a request is assigned to.
pub(crate) struct Assigned<'t> {
    pub(crate) version: &'t Arc<Version>,
    /// By which split, if no rule came before it: the side, and the hash of the unit if it has one.
    pub(crate) split: Option<(&'t Split, Side, Option<u64>)>,
}

/// What a request asks of the balancer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) kind: AnswerKind,
    /// From [`Version::next_turn`].
    pub(crate) turn: u64,
    /// Hash of the client's session.
    pub(crate) session: u64,
}

/// An endpoint in its place in a version.
pub(crate) struct Target {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) weight: f64,
    pub(crate) priority: u8,
    /// Its place in [`Version::tiers`].
    pub(crate) tier: usize,
}

/// Priority, then nearness of the region: lower ones first.
pub(crate) type Rank = (u8, usize);

/// Endpoints that are used alike: of one priority and nearness.
pub(crate) struct Tier {
    pub(crate) rank: Rank,
    pub(crate) name: String,
    /// `None` for the last one.
    pub(crate) switch: Option<Arc<TierSwitch>>,
}

impl Table {
    /// Nothing to serve yet.
    pub(crate) fn empty() -> Self {
        Self {
            revision: 0,
            services: HashMap::new(),
            models: HashMap::new(),
            identities: Identities::default(),
            readiness: ReadinessSpec::default(),
            is_limited: false,
        }
    }

    /// Services of which `before` says the same, if it is given, are taken from the table that it was linked to.
    pub(crate) fn link(spec: &TableSpec, registry: &Registry, before: Option<(&TableSpec, &Self)>) -> Self {
        let before = before.filter(|(before, _)| before.region == spec.region);
        let specs = before.into_iter().flat_map(|(before, _)| &before.services);
        let specs: HashMap<&str, &ServiceSpec> = specs.map(|it| (it.name.as_str(), it)).collect();
        let linked = |service: &ServiceSpec| {
            let is_same = specs.get(service.name.as_str()).is_some_and(|before| *before == service);
            let linked = before.filter(|_| is_same)?.1.services.get(service.name.as_str())?;
            (!linked.is_outdated()).then(|| Arc::clone(linked))
        };
        let mut table = Self {
            revision: spec.revision,
            identities: Identities::new(spec),
            readiness: spec.readiness,
            ..Self::empty()
        };
        let mut limits = spec.keys.iter().map(|key| key.limits);
        table.is_limited = limits.any(|limits| !limits.is_none());
        for service_spec in &spec.services {
            let link = || Arc::new(Service::link(service_spec, spec.region.as_deref(), registry));
            let service = linked(service_spec).unwrap_or_else(link);
            table.is_limited |= !service.limits.is_none() || !service.limits_per_user.is_none();
            for model in &service_spec.models {
                table.models.insert(model.clone(), Arc::clone(&service));
            }
            table.services.insert(Arc::clone(&service.name), service);
        }
        table
    }

    pub(crate) fn by_model(&self, model: &str) -> Option<&Arc<Service>> {
        self.models.get(model)
    }

    /// The values of `model` that are served to `client`, in order.
    pub(crate) fn models(&self, client: Option<&Client>) -> Vec<&str> {
        let allowed = |service: &Service| client.is_none_or(|client| client.may_use(&service.name));
        let served = self.models.iter().filter(|(_, service)| allowed(service));
        let mut models: Vec<_> = served.map(|(model, _)| model.as_str()).collect();
        models.sort_unstable();
        models
    }

    /// Lets `rates` forget the keys and services that have no limits here.
    pub(crate) fn forget_others(&self, rates: &dyn rate::Store) {
        let keys = self.identities.limited();
        rates.retain(&|owner| match owner {
            Owner::Key(name) => keys.contains(&**name),
            Owner::Service(name) => self.services.get(name).is_some_and(|service| !service.limits.is_none()),
            Owner::User(_) => true,
        });
    }

    pub(crate) fn dependencies(&self) -> impl Iterator<Item = &Arc<Dependency>> {
        self.services.values().flat_map(|service| &service.dependencies)
    }

    /// Whether a name has other endpoints by now.
    pub(crate) fn is_outdated(&self) -> bool {
        self.services.values().any(|service| service.is_outdated())
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.services
            .values()
            .flat_map(|service| service.real_versions())
            .flat_map(|version| &version.targets)
    }
}

impl Service {
    fn link(spec: &ServiceSpec, own_region: Option<&str>, registry: &Registry) -> Self {
        let tier = |endpoint: &EndpointSpec| {
            let region = endpoint.region.as_deref();
            (endpoint.priority, balance::region_rank(&spec.regions, own_region, region))
        };
        let name: Arc<str> = spec.name.as_str().into();
        let versions: Vec<_> = spec
            .versions
            .iter()
            .map(|version| {
                let (targets, tiers, names) = targets(spec, version, tier, registry);
                Arc::new(Version {
                    name: version.name.as_str().into(),
                    is_twin: version.twin_of.is_some(),
                    header: HeaderValue::from_str(&version.name)
                        .unwrap_or(HeaderValue::from_static("unnamed")),
                    env: if version.name == spec.stable { "stable" } else { "gray" },
                    targets,
                    tiers,
                    metrics: registry.version_metrics(&spec.name, &version.name),
                    shape: Shape::new(&version.request),
                    price: version.price,
                    balance: spec.balance,
                    turn: AtomicU64::new(0),
                    names,
                })
            })
            .collect();
        let empty = || {
            Arc::new(Version {
                name: spec.stable.as_str().into(),
                is_twin: false,
                header: HeaderValue::from_static("none"),
                env: "stable",
                targets: Vec::new(),
                tiers: Vec::new(),
                metrics: Arc::default(),
                shape: None,
                price: None,
                balance: spec.balance,
                turn: AtomicU64::new(0),
                names: Vec::new(),
            })
        };
        // A rule for a version that is not there sends nobody anywhere.
        let by_name = |name: &str| versions.iter().find(|version| *version.name == *name).map(Arc::clone);
        let rule = |rule| Some(Rule::new(rule, &spec.groups, by_name(&rule.version)?));
        let rules = spec.rules.iter().filter_map(rule).collect();
        let split = spec.trial.as_ref().and_then(|trial| {
            let counts = registry.trial(&spec.name, trial);
            Some(Split::new(trial, &spec.sticky, by_name(&trial.canary)?, counts))
        });
        let shadow = spec.shadow.as_ref().and_then(|shadow| {
            let version = by_name(&shadow.to)?;
            Some(Arc::new(Shadow { version, share: shadow.share, compare: shadow.compare }))
        });
        let dependencies =
            spec.dependencies.iter().map(|dependency| registry.dependency(&name, dependency)).collect();
        let OfService { load, metrics, gate } = registry.service(spec);
        Self {
            dependencies,
            stable: by_name(&spec.stable).unwrap_or_else(empty),
            name,
            versions,
            rules,
            split,
            shadow,
            timeouts: spec.timeouts,
            retry: spec.retry,
            resume: Arc::new(spec.resume.clone()),
            fallback: spec.fallback.clone(),
            load,
            metrics,
            admission: spec.admission.map(|_| gate),
            limits: spec.limits,
            limits_per_user: spec.limits_per_user,
            drift: spec.drift,
            cache: registry.cache(&spec.name, spec.cache),
            model: spec.models.first().unwrap_or(&spec.name).clone(),
            outlier: spec.outlier,
            failover: spec.failover.clone(),
        }
    }

    fn is_outdated(&self) -> bool {
        self.versions.iter().flat_map(|version| &version.names).any(Linked::is_outdated)
    }

    /// What a request is assigned to.
    pub(crate) fn assign(&self, asker: Asker<'_>) -> Assigned<'_> {
        if let Some(rule) = self.rules.iter().find(|rule| rule.matches(asker)) {
            return Assigned { version: &rule.version, split: None };
        }
        let Some(split) = &self.split else { return Assigned { version: &self.stable, split: None } };
        let (side, unit) = split.side(asker);
        let version = if side == Side::Canary { &split.canary } else { &self.stable };
        Assigned { version, split: Some((split, side, unit)) }
    }

    /// The version that a request is assigned to, or the stable one if that has been taken back since.
    pub(crate) fn pinned(&self, routed: &Routed) -> &Arc<Version> {
        let goes_on = |release: &Arc<str>| {
            let same = |split: &Split| split.release() == release && split.canary.name == routed.version;
            self.split.as_ref().is_some_and(|split| same(split) && split.buckets > 0)
        };
        let version = self.version(&routed.version).filter(|_| routed.release.as_ref().is_none_or(goes_on));
        version.unwrap_or(&self.stable)
    }

    /// Each endpoint is in one of them, and only once.
    pub(crate) fn real_versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.versions.iter().filter(|version| !version.is_twin)
    }

    pub(crate) fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.iter().find(|version| *version.name == *name)
    }

    pub(crate) fn stable(&self) -> &Arc<Version> {
        &self.stable
    }
}

/// The endpoints of a version in the order of their tiers, these, and the names that some of them are found by.
fn targets(
    service: &ServiceSpec,
    version: &VersionSpec,
    tier: impl Fn(&EndpointSpec) -> Rank,
    registry: &Registry,
) -> (Vec<Target>, Vec<Tier>, Vec<Linked>) {
    let owner = version.twin_of.as_ref().unwrap_or(&version.name);
    let mut ranks: Vec<Rank> = version.endpoints.iter().map(&tier).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let named = |rank: &Rank| {
        let of_tier = version.endpoints.iter().filter(|spec| tier(spec) == *rank);
        let mut regions: Vec<&str> = of_tier.filter_map(|spec| spec.region.as_deref()).collect();
        regions.sort_unstable();
        regions.dedup();
        let regions: String = regions.iter().map(|region| format!(", {region}")).collect();
        format!("priority {}{regions}", rank.0)
    };
    let tier_of = |(place, rank): (usize, &Rank)| {
        let is_last = place + 1 == ranks.len();
        let switch = (!is_last).then(|| registry.switch(&service.name, owner, *rank));
        Tier { rank: *rank, name: named(rank), switch }
    };
    let tiers = ranks.iter().enumerate().map(tier_of).collect();
    let (mut targets, mut names) = (Vec::<Target>::new(), Vec::new());
    for spec in &version.endpoints {
        let (located, name) = registry.discovery.locate(spec);
        names.extend(name);
        for located in located {
            // Two names may lead to the same server.
            if targets.iter().any(|target| *target.endpoint.id.url == *located.url) {
                continue;
            }
            let endpoint = registry.endpoint(service, owner, spec, located);
            let (weight, priority) = (spec.weight, spec.priority);
            let tier = ranks.iter().position(|rank| *rank == tier(spec)).unwrap_or_default();
            targets.push(Target { endpoint, weight, priority, tier });
        }
    }
    targets.sort_by_key(|target| target.tier);
    (targets, tiers, names)
}

impl Tier {
    /// Of the requests that reach it, how much it may take, 0–1.
    pub(crate) fn share(&self) -> f64 {
        self.switch.as_ref().map_or(1.0, |switch| switch.share())
    }
}
