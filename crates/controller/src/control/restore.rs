//! Restoring a snapshot: services as they were take the place of the file's, in one table.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;

use backstop_config::{Config, Intent};
use backstop_core::health::State;
use backstop_core::table::Duty;
use serde_json::json;
use tracing::error;

use super::account::entry;
use super::{Control, Current, Deed, Next, in_force, unix_millis};
use crate::change::{Actor, Refusal};
use crate::ledger::Ledger;
use crate::routes::{Route, Routes};
use crate::snapshots::{Saved, Snapshot};
use crate::stored::{Both, Stored};

/// What is to be restored, and what is accepted for it.
pub(crate) struct Restoring<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// Names of services that the snapshot has.
    pub(crate) services: &'a [String],
    /// For the history.
    pub(crate) description: &'a str,
    /// Also versions that were sent back since.
    pub(crate) again: bool,
    /// Also where nothing that would serve is known to be well.
    pub(crate) force: bool,
}

/// What a restore changes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// In words, by service.
    pub(crate) changes: BTreeMap<String, Vec<String>>,
    in_force: Config,
    intent: Intent,
    routes: Routes,
}

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.values().all(Vec::is_empty)
    }
}

impl Control {
    /// What a restore would change. Nothing is changed.
    pub(crate) fn plan(&self, wanted: &Restoring<'_>) -> Result<Plan, Refusal> {
        let _one_at_a_time = self.lock();
        self.planned(&self.current(), wanted)
    }

    /// Restores services. `before` is the snapshot of what there was, for the history. Gives the revision.
    pub(crate) fn restore(
        &self,
        actor: &Actor,
        if_match: Option<&[u64]>,
        wanted: &Restoring<'_>,
        before: &str,
    ) -> Result<(u64, Plan), Refusal> {
        let _one_at_a_time = self.lock();
        let subject = format!("snapshot {}: {}", wanted.snapshot.id, wanted.services.join(", "));
        let deed = Deed { actor, action: "restore", subject };
        let current = self.current();
        let restored = self.may_change(&current, if_match).and_then(|()| {
            let plan = self.planned(&current, wanted)?;
            if plan.is_empty() {
                return Ok((current.revision, plan));
            }
            self.keep_and_apply_both(&current, &plan, &deed, |ledger| {
                for (service, told) in &plan.changes {
                    let what = json!({
                        "revision": current.revision + 1,
                        "snapshot": wanted.snapshot.id,
                        "before": before,
                        "reason": wanted.description,
                        "again": wanted.again,
                    });
                    ledger.note(entry(&deed, service, "restore", "done", told, what));
                }
            })?;
            Ok((current.revision + 1, plan))
        });
        restored.map_err(|refusal| {
            for service in wanted.services {
                self.account_for_refused(service, "restore", &deed, &refusal);
            }
            self.refuse(&deed, refusal)
        })
    }

    fn planned(&self, current: &Current, wanted: &Restoring<'_>) -> Result<Plan, Refusal> {
        let Restoring { snapshot, services, .. } = wanted;
        let (mut intent, now) = (current.intent.clone(), unix_millis());
        for (service, saved) in services.iter().filter_map(|name| Some((name, snapshot.services.get(name)?)))
        {
            if let Some(release) = current.routes.under_way(service) {
                let (service, release) = (service.clone(), release.to_owned());
                return Err(Refusal::Releasing { service, release, what: "nothing can be restored now" });
            }
            let saved = (&saved.written, saved.changes.as_slice());
            intent
                .restore((&current.file, &current.config), (&snapshot.id, now), service, saved)
                .map_err(Refusal::LostKey)?;
        }
        let config = in_force(&self.path, &current.file, &intent)?;
        let mut routes = current.routes.clone();
        let mut changes = BTreeMap::new();
        for (service, saved) in services.iter().filter_map(|name| Some((name, snapshot.services.get(name)?)))
        {
            self.may_serve(current, (&config, &intent), (service, saved), wanted)?;
            let before = current.routes.of(&current.config, service);
            let seed = current.file.stable(service).unwrap_or_default();
            let digest = |version: &str| config.version_digest(service, version);
            let route = saved.route(before.clone(), &seed, digest);
            changes.insert(
                service.clone(),
                told(current, (&config, &intent), service, (before.as_ref(), &route)),
            );
            routes.set(service, route);
        }
        Ok(Plan { changes, in_force: config, intent, routes })
    }

    /// Whether the stable version of the snapshot may have the traffic.
    fn may_serve(
        &self,
        current: &Current,
        (config, intent): (&Config, &Intent),
        (service, saved): (&str, &Saved),
        wanted: &Restoring<'_>,
    ) -> Result<(), Refusal> {
        let version = saved.stable.clone();
        let before = current.routes.of(&current.config, service);
        let digest = config.version_digest(service, &version);
        let sent_back = before
            .iter()
            .flat_map(|route| route.vetoes.values())
            .find(|it| Some(&it.digest) == digest.as_ref());
        if let Some(veto) = sent_back.filter(|_| !wanted.again) {
            let (release, reason) = (veto.release.clone(), veto.cause.to_string());
            return Err(Refusal::SentBack { service: service.to_owned(), version, release, reason });
        }
        // By the table that would serve, with all that is merged into it.
        let endpoints = |config: &Config, intent: &Intent, version: &str| -> Vec<String> {
            let services = backstop_config::compile(config, intent, 0).services;
            let services = services.into_iter().filter(|it| it.name == service);
            let versions = services.flat_map(|it| it.versions).filter(|it| it.name == version);
            let endpoints = versions.flat_map(|it| it.endpoints).filter(|it| it.duty == Duty::Active);
            endpoints.map(|it| it.target.url()).collect()
        };
        let wanted_urls = endpoints(config, intent, &version);
        let same = before.is_some_and(|before| {
            before.stable == version && endpoints(&current.config, &current.intent, &version) == wanted_urls
        });
        let status = self.data_plane.status();
        let is_well = |url: &String| {
            let services = status.services.iter().filter(|it| it.name == service);
            let mut known = services.flat_map(|it| &it.versions).flat_map(|it| &it.endpoints);
            known.any(|it| it.url == *url && matches!(it.state, State::Healthy | State::Degraded))
        };
        if same || wanted.force || wanted_urls.iter().any(is_well) {
            return Ok(());
        }
        Err(Refusal::NotReady { service: service.to_owned(), version })
    }

    /// Keeps what was planned and serves it; if that fails, everything is as it was.
    fn keep_and_apply_both(
        &self,
        current: &Current,
        plan: &Plan,
        deed: &Deed<'_>,
        note: impl FnOnce(&mut Ledger),
    ) -> Result<(), Refusal> {
        let Plan { intent, routes, .. } = plan;
        let ledger = self.ledger().clone();
        note(&mut self.ledger());
        let old = || Both {
            intent: Stored {
                revision: current.revision,
                intent: current.intent.clone(),
                ledger: ledger.clone(),
            },
            routes: current.routes.clone(),
        };
        let new =
            Both { intent: self.to_store(current.revision + 1, intent.clone()), routes: routes.clone() };
        let kept = self.both.write(&new, &self.stored, &self.routes).map_err(|error| self.not_kept(&error));
        let (in_force, intent, routes) = (plan.in_force.clone(), intent.clone(), routes.clone());
        let next = Next { in_force, intent, routes, ..Next::like(current) };
        let applied = kept.and_then(|()| self.apply(current.revision, next, deed));
        applied.map(drop).inspect_err(|_| {
            *self.ledger() = ledger.clone();
            if let Err(error) = self.both.write(&old(), &self.stored, &self.routes) {
                error!(%error, path = %self.both.path().display(), "a refused restore may still be on disk");
            }
        })
    }

    /// Both files become what they were to become when the process before this one ended.
    pub(super) fn finish_restore(&self, current: &Current) -> Result<(), Refusal> {
        if !self.both_unkept.load(Relaxed) {
            return Ok(());
        }
        self.finish_with(current, &current.routes).map_err(|error| self.not_kept(&error))
    }

    /// The same with the routes as they are by now.
    pub(super) fn finish_with(&self, current: &Current, routes: &Routes) -> io::Result<()> {
        let intent = self.to_store(current.revision, current.intent.clone());
        self.both.write(&Both { intent, routes: routes.clone() }, &self.stored, &self.routes)?;
        self.both_unkept.store(false, Relaxed);
        Ok(())
    }

    fn not_kept(&self, error: &io::Error) -> Refusal {
        Refusal::NotKept { path: self.both.path().display().to_string(), reason: error.to_string() }
    }
}

/// What changes, in words.
fn told(
    current: &Current,
    (config, intent): (&Config, &Intent),
    service: &str,
    (before, now): (Option<&Route>, &Route),
) -> Vec<String> {
    let outline = |config: &Config, intent: &Intent, route: &Route| {
        let mut outline = config.outline_with(intent, service)?;
        outline.stable.clone_from(&route.stable);
        Some(outline)
    };
    let Some(after) = outline(config, intent, now) else { return Vec::new() };
    let Some((route, before)) =
        before.and_then(|it| Some((it, outline(&current.config, &current.intent, it)?)))
    else {
        return vec![format!("the service is there again, with {} as its stable version", now.stable)];
    };
    let mut told = before.changes(&after);
    let vetoed = |route: &Route, config: &Config, version: &str| {
        let veto = route.vetoes.get(version);
        version != route.stable
            && veto.is_some_and(|veto| config.version_digest(service, version).as_ref() == Some(&veto.digest))
    };
    for version in after.versions() {
        match (vetoed(route, &current.config, version), vetoed(now, config, version)) {
            (false, true) => told.push(format!("{version} gets nothing: it had been sent back")),
            (true, false) => told.push(format!("{version} may get traffic again")),
            _ => {}
        }
    }
    let held = |intent: &Intent| {
        let held = intent.restored().iter().find(|it| it.service == service);
        held.map(|it| it.snapshot.clone())
    };
    match (held(&current.intent), held(intent)) {
        (Some(before), None) => told.push(format!("snapshot {before} no longer holds, the file does")),
        (None, Some(_)) if told.is_empty() => {
            told.push("the snapshot holds in place of the file, which means the same".to_owned());
        }
        _ => {}
    }
    // Who may have to go back where to is no matter of what is served, but it is kept.
    if told.is_empty() && (route.previous != now.previous || route.vetoes != now.vetoes) {
        told.push("which versions were stable or sent back before".to_owned());
    }
    told
}
