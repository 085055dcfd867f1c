//! Who gets a service's traffic, as releases have left it: on top of the file.
//!
//! Kept in `state_dir/routes.json`, so that a gateway that starts while the store can't be reached still serves what was
//! decided last, and never a version that was sent back. The file's `stable` is a seed: as long as it says the same,
//! what releases have made of it holds; when it changes, an operator has decided anew.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use backstop_config::Config;
use backstop_core::rollout::{Cause, Kind, Release};
use backstop_core::table::{Duty, LatencyLimit, ServiceSpec, TableSpec, TrialSpec, VersionSpec};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::releases::Freezes;
use crate::reserve;
use crate::stored::{About, StateFile, StateFileError};

/// Raised when an older Backstop would misread the file.
const FORMAT: u32 = 1;

/// By service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Routes {
    services: BTreeMap<String, Route>,
    /// What operators have ordered not to be changed.
    #[serde(default, skip_serializing_if = "Freezes::is_empty")]
    pub(crate) freezes: Freezes,
}

/// Of one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Route {
    /// What the file called stable when this was decided.
    pub(crate) seed: String,
    pub(crate) stable: String,
    /// The last release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active: Option<Active>,
    /// Versions that were sent back, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) vetoes: BTreeMap<String, Veto>,
    /// Versions that were stable before, the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) previous: Vec<String>,
}

/// A release as it is served: what it takes to go on with it, should the store know less of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Active {
    /// Without what changes while the split stays the same.
    pub(crate) release: Release,
    /// Of the version on trial, when the release began.
    pub(crate) digest: String,
    pub(crate) salt: String,
    pub(crate) limits: Vec<LatencyLimit>,
    pub(crate) patience: Duration,
}

/// What keeps a version from getting any traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Veto {
    /// Of the version as it was: one that has been changed since is another one.
    pub(crate) digest: String,
    pub(crate) release: String,
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
    pub(crate) cause: Cause,
    /// What runs on it is taken from it at once; before, it may end within `failover.drain`.
    pub(crate) isolated: bool,
}

impl Active {
    pub(crate) fn new(
        release: &Release,
        (digest, salt): (&str, &str),
        limits: &[LatencyLimit],
        patience: Duration,
    ) -> Self {
        let release = Release {
            now: release.since,
            clean: 0,
            holds: BTreeMap::new(),
            approved: false,
            ..release.clone()
        };
        let (digest, salt) = (digest.to_owned(), salt.to_owned());
        Self { release, digest, salt, limits: limits.to_vec(), patience }
    }

    pub(crate) fn is_under_way(&self) -> bool {
        !self.release.phase.is_final()
    }

    /// A drill is nothing that anybody has to wait for: it ends when something changes.
    fn is_drill(&self) -> bool {
        self.release.kind == Kind::Drill
    }

    /// The split; with no share it still says how stable fares, before and after.
    fn trial(&self) -> Option<TrialSpec> {
        let exposure = self.release.exposure();
        self.is_under_way().then(|| TrialSpec {
            release: self.release.id.clone(),
            salt: self.salt.clone(),
            canary: exposure.canary,
            buckets: exposure.buckets,
            epoch: self.release.epoch,
            step: exposure.step,
            limits: self.limits.clone(),
            patience: self.patience,
        })
    }
}

/// How many earlier stable versions are remembered.
const MOST_PREVIOUS: usize = 10;

impl Route {
    pub(crate) fn of_file(stable: &str) -> Self {
        Self {
            seed: stable.to_owned(),
            stable: stable.to_owned(),
            active: None,
            vetoes: BTreeMap::new(),
            previous: Vec::new(),
        }
    }

    /// Makes `version` the stable one.
    pub(crate) fn make_stable(&mut self, version: &str) {
        if self.stable != version {
            let before = std::mem::replace(&mut self.stable, version.to_owned());
            self.previous.retain(|other| *other != before && *other != version);
            self.previous.insert(0, before);
            self.previous.truncate(MOST_PREVIOUS);
        }
        self.vetoes.remove(version);
    }

    /// The route that follows from a release.
    pub(crate) fn with(mut self, active: Active, now: u64) -> Self {
        let release = &active.release;
        if active.is_drill() {
            // Whatever comes of it, who is stable and who was sent back stays as it is.
            self.active = Some(active);
            return self;
        }
        let exposure = release.exposure();
        self.make_stable(&exposure.stable);
        match &release.cause {
            Some(cause) if release.phase.is_back() && exposure.buckets == 0 && *cause != Cause::Expired => {
                let veto = self.vetoes.entry(exposure.canary).or_insert_with(|| Veto {
                    digest: active.digest.clone(),
                    release: release.id.clone(),
                    at: now,
                    cause: cause.clone(),
                    isolated: false,
                });
                veto.isolated = release.phase.is_final();
            }
            // It is tried again.
            _ if active.is_under_way() => drop(self.vetoes.remove(&exposure.canary)),
            _ => {}
        }
        self.active = Some(active);
        self
    }
}

impl Routes {
    /// The route of a service that the configuration has.
    pub(crate) fn of(&self, config: &Config, service: &str) -> Option<Route> {
        let stable = config.stable(service)?;
        Some(self.services.get(service).cloned().unwrap_or_else(|| Route::of_file(&stable)))
    }

    /// The last releases, as they are served.
    pub(crate) fn active(&self) -> impl Iterator<Item = &Active> {
        self.services.values().filter_map(|route| route.active.as_ref())
    }

    pub(crate) fn set(&mut self, service: &str, route: Route) {
        self.services.insert(service.to_owned(), route);
    }

    /// The release of a service that is under way.
    pub(crate) fn under_way(&self, service: &str) -> Option<&str> {
        let active = self.services.get(service)?.active.as_ref()?;
        active.is_under_way().then_some(active.release.id.as_str())
    }

    /// The service and the release under way for which `config`, which `file` leads to, lacks something, or means something
    /// else, and what.
    pub(crate) fn disturbs(&self, file: &Config, config: &Config) -> Option<(String, String, &'static str)> {
        self.services.iter().find_map(|(name, route)| {
            let has = |version: &str| config.version_digest(name, version).is_some();
            if let Some(veto) = file.stable(name).and_then(|seed| route.vetoes.get(&seed))
                && file.stable(name).is_some_and(|seed| seed == route.seed)
                && !has(&route.stable)
            {
                let what = "the version that serves can't be removed while the file calls one stable that was sent back";
                return Some((name.clone(), veto.release.clone(), what));
            }
            let active = route.active.as_ref().filter(|active| active.is_under_way() && !active.is_drill())?;
            let canary = &active.release.canary;
            let what = if file.stable(name).is_some_and(|stable| stable != route.seed) {
                "its `stable` can't be changed now"
            } else if !has(&route.stable) || !has(canary) {
                "the versions that it is about can't be removed now"
            } else if config.version_digest(name, canary).is_some_and(|digest| digest != active.digest) {
                "the version on trial can't be changed now"
            } else {
                return None;
            };
            Some((name.clone(), active.release.id.clone(), what))
        })
    }

    /// Services of which `file` says something else than when their route was decided: with the versions that were
    /// stable and that the file calls so now. Their routes follow the file from now on, unless a release is under way.
    pub(crate) fn follow_file(&mut self, file: &Config) -> Vec<(String, String, String)> {
        let mut changed = Vec::new();
        for (name, route) in &mut self.services {
            let decided =
                !route.active.as_ref().is_some_and(|active| active.is_under_way() && !active.is_drill());
            let Some(seed) = file.stable(name).filter(|stable| decided && *stable != route.seed) else {
                continue;
            };
            let before = route.stable.clone();
            route.make_stable(&seed);
            route.seed.clone_from(&seed);
            if before != seed {
                changed.push((name.clone(), before, seed));
            }
        }
        changed
    }

    /// Routes what `table` describes.
    pub(crate) fn overlay(&self, config: &Config, table: &mut TableSpec) {
        for service in &mut table.services {
            let Some(route) = self.services.get(&service.name) else { continue };
            let has = |name: &str| service.versions.iter().any(|version| version.name == name);
            if has(&route.stable) {
                service.stable.clone_from(&route.stable);
            } else {
                warn!(
                    service = service.name,
                    version = route.stable,
                    serves = service.stable,
                    "the configuration no longer has the version that was released; the one it calls stable serves"
                );
            }
            let vetoed = |name: &str| {
                let digest = config.version_digest(&service.name, name);
                route.vetoes.get(name).is_some_and(|veto| Some(&veto.digest) == digest.as_ref())
            };
            // One that has been changed meanwhile is another version; and a drill is about the version that is stable.
            let is_same = |active: &&Active| {
                let digest = config.version_digest(&service.name, active.release.backed_by());
                digest.as_ref() == Some(&active.digest)
                    && (!active.is_drill() || active.release.stable == service.stable)
            };
            let trial = route.active.as_ref().filter(is_same).and_then(Active::trial);
            service.trial = trial.filter(|trial| {
                trial.canary != service.stable && (trial.buckets == 0 || !vetoed(&trial.canary))
            });
            let stable = service.stable.clone();
            let barred = |name: &str| name != stable && vetoed(name);
            service.rules.retain(|rule| !barred(&rule.version));
            for version in service.versions.iter_mut().filter(|version| barred(&version.name)) {
                let isolated = route.vetoes.get(&version.name).is_some_and(|veto| veto.isolated);
                let duty = if isolated { Duty::Isolated } else { Duty::Draining };
                for endpoint in version.endpoints.iter_mut().filter(|it| it.duty == Duty::Active) {
                    endpoint.duty = duty;
                    let by = |veto: &Veto| format!("release {}", veto.release);
                    endpoint.ordered_by = route.vetoes.get(&version.name).map(by);
                }
            }
            if let Some(active) = &route.active {
                add_twin(service, active);
            }
        }
    }

    /// Ends the drills under way: whoever measured them is gone. Gives whether there were any.
    pub(crate) fn end_drills(&mut self) -> bool {
        let mut ended = false;
        let active = self.services.values_mut().filter_map(|route| route.active.as_mut());
        for active in active.filter(|active| active.is_drill() && active.is_under_way()) {
            let (release, _) = active.release.called_off(INTERRUPTED, active.release.now);
            (active.release, ended) = (release, true);
        }
        ended
    }
}

/// Why a drill ends that has outlived the process that measured it.
pub(crate) const INTERRUPTED: &str = "Backstop was restarted in the middle of it";

/// The version on trial of a drill may be another name of the stable one.
fn add_twin(service: &mut ServiceSpec, active: &Active) {
    let (canary, stable) = (&active.release.canary, active.release.backed_by());
    if stable == canary || service.trial.as_ref().is_none_or(|trial| trial.canary != *canary) {
        return;
    }
    let Some(original) = service.versions.iter().find(|version| version.name == stable) else { return };
    let twin = VersionSpec { name: canary.clone(), twin_of: Some(stable.to_owned()), ..original.clone() };
    service.versions.push(twin);
}

/// The routes on disk.
#[derive(Debug)]
pub(crate) struct RoutesFile(StateFile);

impl RoutesFile {
    pub(crate) fn in_dir(state_dir: &Path) -> Self {
        Self(StateFile::new(
            state_dir.join("routes.json"),
            FORMAT,
            About {
                what: "the routes",
                without: "go on with the versions that the configuration calls stable; versions that were sent back \
                          may then get traffic by rules again",
            },
        ))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// What is stored; nothing if there is no file.
    pub(crate) fn read(&self) -> Result<Routes, StateFileError> {
        Ok(self.0.read()?.unwrap_or_default())
    }

    pub(crate) fn write(&self, routes: &Routes) -> std::io::Result<()> {
        let directory = self.path().parent().unwrap_or_else(|| Path::new("."));
        reserve::within(directory, || self.0.write(routes))
    }
}
