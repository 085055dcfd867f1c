//! [`Control`]: the one place where what is to be served changes.

mod account;
mod handover;
mod restore;
mod routing;
mod versions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use backstop_config::{Config, Intent, Place, Problems};
use backstop_core::event::{Medium, What};
use backstop_core::status::DependencyState;
use backstop_core::table::{TableSpec, TokenSpec};
use backstop_store::HistoryEntry;
use tracing::{error, info, warn};

use crate::change::{Actor, Changed, EndpointChange, LastChange, Refusal, StartError, count};
use crate::drift::{self, Served};
use crate::ledger::Ledger;
use crate::routes::{Routes, RoutesFile};
use crate::stored::{Both, BothFile, IntentFile, Stored};
use crate::{DataPlane, crash};
use account::Followed;
pub(crate) use restore::Restoring;
pub(crate) use routing::Order;
pub(crate) use versions::VersionChange;

/// Texts of clients in events are cut at this length: a thousand events are kept.
const LONGEST_TEXT: usize = 500;

/// What is served now.
#[derive(Debug)]
pub(crate) struct Current {
    /// The file, with what was restored in its place and the versions that were registered.
    pub(crate) config: Config,
    /// The file alone.
    pub(crate) file: Config,
    pub(crate) intent: Intent,
    pub(crate) routes: Routes,
    pub(crate) revision: u64,
    pub(crate) tokens: Vec<TokenSpec>,
    /// When the file was read, in milliseconds since the Unix epoch.
    pub(crate) loaded_at: u64,
    /// Keys whose new values wait for a restart.
    pub(crate) needs_restart: Vec<&'static str>,
    pub(crate) last_change: Option<LastChange>,
}

/// The single owner of {configuration, run-time changes, revision}. Its methods that change something block on
/// files.
pub struct Control {
    data_plane: Arc<dyn DataPlane>,
    path: PathBuf,
    stored: IntentFile,
    routes: RoutesFile,
    both: BothFile,
    /// The file of the routes is older than what serves.
    routes_unkept: AtomicBool,
    /// What can't be written now, and why.
    troubles: Mutex<BTreeMap<Medium, String>>,
    /// The process before this one ended while both files changed.
    both_unkept: AtomicBool,
    /// Also in the file of the run-time changes.
    ledger: Mutex<Ledger>,
    /// What follows from the file that this process began with, until it is put on record.
    at_start: Mutex<Followed>,
    /// What a reload can't change.
    started_with: Config,
    current: ArcSwap<Current>,
    /// One change after the other.
    changing: Mutex<()>,
    following: AtomicBool,
}

impl Control {
    /// Serves `config`, which was read from `path`, with the changes kept in its state directory.
    ///
    /// # Errors
    ///
    /// The changes can't be read, or the data plane can't serve the outcome.
    pub fn start(path: &Path, config: Config, data_plane: Arc<dyn DataPlane>) -> Result<Self, StartError> {
        let file = config;
        let stored = IntentFile::in_dir(file.state_dir());
        let routes_file = RoutesFile::in_dir(file.state_dir());
        let both = BothFile::in_dir(file.state_dir());
        let unfinished = both.read()?;
        let both_unkept = unfinished.is_some();
        let Both { intent: Stored { revision, mut intent, ledger }, mut routes } = match unfinished {
            Some(both) => both,
            None => Both { intent: stored.read()?, routes: routes_file.read()? },
        };
        let left = intent.leave_restored(&file);
        let interrupted = routes.end_drills();
        let followed = routes.follow_file(&file);
        let config = in_force(path, &file, &intent).map_err(|refusal| match refusal {
            Refusal::Config { problems, .. } => StartError::Restored(problems),
            other => StartError::DataPlane(other.to_string()),
        })?;
        let revision = revision + 1;
        let served = Served { file: &file, config: &config, intent: &intent, routes: &routes };
        let table = compile(served, revision);
        data_plane.apply(&table).map_err(StartError::DataPlane)?;
        for (service, before, now) in &followed {
            info!(service, before, now, "the configuration calls another version stable");
        }
        for it in &left {
            info!(
                service = it.service,
                snapshot = it.snapshot,
                "the file takes the place of what was restored"
            );
        }
        for change in intent.pending(&config) {
            let Place { service, version, url } = &change.place;
            warn!(
                service,
                version,
                endpoint = url,
                "a run-time change waits: the configuration has no such endpoint"
            );
        }
        versions::tell_waiting(&intent, &config);
        let current = Current {
            config,
            file: file.clone(),
            intent,
            routes,
            revision,
            tokens: table.tokens,
            loaded_at: unix_millis(),
            needs_restart: Vec::new(),
            last_change: None,
        };
        Ok(Self {
            data_plane,
            path: path.to_owned(),
            stored,
            routes: routes_file,
            both,
            routes_unkept: AtomicBool::new(interrupted || !followed.is_empty()),
            troubles: Mutex::default(),
            both_unkept: AtomicBool::new(both_unkept),
            ledger: Mutex::new(ledger.begun()),
            at_start: Mutex::new(Followed { stable: followed, left }),
            started_with: file,
            current: ArcSwap::from_pointee(current),
            changing: Mutex::default(),
            following: AtomicBool::new(false),
        })
    }

    /// The configuration file.
    pub fn config_path(&self) -> &Path {
        &self.path
    }

    /// The file of the run-time changes.
    pub fn intent_path(&self) -> &Path {
        self.stored.path()
    }

    /// The file of the routes.
    pub fn routes_path(&self) -> &Path {
        self.routes.path()
    }

    /// Of the table that serves.
    pub fn revision(&self) -> u64 {
        self.current.load().revision
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    pub(crate) fn data_plane(&self) -> &dyn DataPlane {
        &*self.data_plane
    }

    /// Reads the file and serves it; the run-time changes stay on top of it. Gives the new revision. `if_match`: only
    /// if one of these is the revision now.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file. The old configuration goes on serving.
    pub fn reload(&self, actor: &Actor, if_match: Option<&[u64]>) -> Result<u64, Refusal> {
        let _one_at_a_time = self.lock();
        let deed = Deed { actor, action: "reload", subject: self.path.display().to_string() };
        let before = self.current();
        let mut followed = Followed::default();
        let current = self
            .may_change(&before, if_match)
            .and_then(|()| {
                let config = self.read_config()?;
                let mut intent = before.intent.clone();
                followed.left = intent.leave_restored(&config);
                let in_force = in_force(&self.path, &config, &intent)?;
                if let Some((service, release, what)) = before.routes.disturbs(&config, &in_force) {
                    return Err(Refusal::Releasing { service, release, what });
                }
                let mut routes = before.routes.clone();
                followed.stable = routes.follow_file(&config);
                if !followed.stable.is_empty() {
                    self.keep_routes(&routes)?;
                }
                let next = Next { config, in_force, loaded_at: unix_millis(), intent, routes };
                self.apply(before.revision, next, &deed)
            })
            .map_err(|refusal| {
                if let Refusal::Releasing { service, .. } = &refusal {
                    self.account_for_refused(service, "file", &deed, &refusal);
                }
                self.refuse(&deed, refusal)
            })?;
        self.account_for_file(&current, actor, &followed);
        info!(%actor, revision = current.revision, "configuration reloaded");
        versions::tell_waiting(&current.intent, &current.config);
        if !current.needs_restart.is_empty() {
            let keys = current.needs_restart.join(", ");
            warn!(keys, "these keys change only with a restart; the rest is applied");
        }
        Ok(current.revision)
    }

    /// Makes a change of one endpoint: on disk first, then in the data plane.
    pub(crate) fn change(
        &self,
        actor: &Actor,
        if_match: Option<&[u64]>,
        change: &EndpointChange,
        reason: &str,
    ) -> Result<Changed, Refusal> {
        let _one_at_a_time = self.lock();
        let mut deed = Deed { actor, action: change.action(), subject: change.url().to_owned() };
        let before = self.current();
        let mut intent = before.intent.clone();
        let place = self
            .may_change(&before, if_match)
            .and_then(|()| change.make(&before.config, &mut intent).map_err(Refusal::Intent))
            .map_err(|refusal| {
                if let Some(service) = change.service() {
                    self.account_for_refused(service, "endpoint", &deed, &refusal);
                }
                self.refuse(&deed, refusal)
            })?;
        if intent.of(&place) == before.intent.of(&place) {
            return Ok(Changed { revision: before.revision, place, changed: false });
        }
        deed.subject = format!("{} of {}/{}", place.url, place.service, place.version);
        let entry = account::of_endpoint(&deed, &place, &intent, (before.revision + 1, reason));
        let current = self
            .keep_and_apply(&before, (intent, before.config.clone()), &deed, Some(entry))
            .map_err(|refusal| {
                self.account_for_refused(&place.service, "endpoint", &deed, &refusal);
                self.refuse(&deed, refusal)
            })?;
        Ok(Changed { revision: current.revision, place, changed: true })
    }

    /// Sets the state of a dependency, or leaves it to its checks again. Holds until the process ends. Gives how many
    /// dependencies were meant, and the revision.
    pub(crate) fn force_dependency(
        &self,
        actor: &Actor,
        if_match: Option<&[u64]>,
        service: Option<&str>,
        name: &str,
        state: Option<DependencyState>,
    ) -> Result<(usize, u64), Refusal> {
        let _one_at_a_time = self.lock();
        let subject = service.map_or_else(|| name.to_owned(), |service| format!("{name} of {service}"));
        let action = match state {
            Some(DependencyState::Up) => "force up",
            Some(DependencyState::Down) => "force down",
            Some(DependencyState::Unknown) | None => "unforce",
        };
        let deed = Deed { actor, action, subject };
        let current = self.current();
        self.may_change(&current, if_match).map_err(|refusal| self.refuse(&deed, refusal))?;
        let meant = self.data_plane.force_dependency(service, name, state);
        if meant > 0 {
            self.emit(&deed, current.revision);
            let mut services = self.data_plane.status().services;
            services.retain(|it| {
                service.is_none_or(|service| it.name == service)
                    && it.dependencies.iter().any(|it| it.name == name)
            });
            let services: Vec<String> = services.into_iter().map(|it| it.name).collect();
            self.account_for(&current, &deed, &services, "dependency");
        }
        Ok((meant, current.revision))
    }

    /// Begins to give the tiers of a service whose standby has their work that work back. Gives their names, and the
    /// revision.
    pub(crate) fn fail_back(
        &self,
        actor: &Actor,
        if_match: Option<&[u64]>,
        service: &str,
    ) -> Result<(Vec<String>, u64), Refusal> {
        let _one_at_a_time = self.lock();
        let deed = Deed { actor, action: "fail back", subject: service.to_owned() };
        let current = self.current();
        let tiers = self
            .may_change(&current, if_match)
            .and_then(|()| self.data_plane.fail_back(service).map_err(Refusal::NoFailback))
            .map_err(|refusal| {
                self.account_for_refused(service, "failback", &deed, &refusal);
                self.refuse(&deed, refusal)
            })?;
        self.emit(&deed, current.revision);
        self.account_for(&current, &deed, &[service.to_owned()], "failback");
        Ok((tiers, current.revision))
    }

    /// Whether what was decided could be written there, or why not. What is news is told.
    pub fn storage(&self, what: Medium, outcome: Result<(), String>) {
        let works = outcome.is_ok();
        let reason = match outcome {
            Ok(()) => "what is decided can be written down again".to_owned(),
            Err(reason) => reason,
        };
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if works { troubles.remove(&what) } else { troubles.insert(what, reason.clone()) };
        if before.is_none() != works {
            self.data_plane.emit(What::Storage { what, works, reason: cut(&reason) });
        }
    }

    /// Why nothing can be written there now.
    pub(crate) fn trouble(&self, what: Medium) -> Option<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).get(&what).cloned()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_lead(&self) -> Result<(), Refusal> {
        if self.following.load(Relaxed) { Err(Refusal::Following) } else { Ok(()) }
    }

    /// Whether nobody else has changed something since the caller looked, and what was begun before is done.
    fn may_change(&self, before: &Current, if_match: Option<&[u64]>) -> Result<(), Refusal> {
        self.may_lead()?;
        self.finish_restore(before)?;
        match if_match {
            Some(expected) if !expected.contains(&before.revision) => Err(Refusal::Conflict {
                revision: before.revision,
                expected: expected.iter().map(u64::to_string).collect::<Vec<_>>().join(" or "),
                last: before.last_change.clone().map(Box::new),
            }),
            _ => Ok(()),
        }
    }

    fn read_config(&self) -> Result<Config, Refusal> {
        let file = self.path.display().to_string();
        let config = backstop_config::load(&self.path)
            .map_err(|problems| Refusal::Config { file: file.clone(), problems })?;
        // The listener stays where it is until the restart, whatever the file says by now.
        let listens = self.started_with.admin_listen();
        if !listens.ip().is_loopback() && !config.has_tokens() {
            let what = format!(
                "the control API listens on `{listens}` until the restart, where other machines can reach it, so \
                 there must be tokens"
            );
            return Err(Refusal::Config {
                file: file.clone(),
                problems: Problems::one(&file, "admin.tokens", what),
            });
        }
        Ok(config)
    }

    fn keep_and_apply(
        &self,
        before: &Current,
        (intent, in_force): (Intent, Config),
        deed: &Deed<'_>,
        entry: Option<HistoryEntry>,
    ) -> Result<Arc<Current>, Refusal> {
        let not_kept = |error: std::io::Error| Refusal::NotKept {
            path: self.stored.path().display().to_string(),
            reason: error.to_string(),
        };
        let ledger = self.ledger().clone();
        entry.into_iter().for_each(|entry| self.ledger().note(entry));
        let kept = self.stored.write(&self.to_store(before.revision + 1, intent.clone())).map_err(not_kept);
        let was_kept = kept.is_ok();
        let next = Next { intent, in_force, ..Next::like(before) };
        kept.and_then(|()| self.apply(before.revision, next, deed)).inspect_err(|_| {
            *self.ledger() = ledger;
            // As it was, or the next start would find what could not be served.
            let stored = self.to_store(before.revision, before.intent.clone());
            if was_kept && let Err(error) = self.stored.write(&stored) {
                error!(%error, path = %self.stored.path().display(), "a refused change is still on disk");
            }
        })
    }

    /// Gives the data plane a new table; once it has taken it, that is what is current.
    fn apply(&self, last_revision: u64, next: Next, deed: &Deed<'_>) -> Result<Arc<Current>, Refusal> {
        self.put(last_revision, next, deed, |table| self.data_plane.apply(table))
    }

    /// The same if nothing but the routes is another.
    fn reroute(&self, before: &Current, next: Next, deed: &Deed<'_>) -> Result<Arc<Current>, Refusal> {
        self.put(before.revision, next, deed, |table| self.data_plane.reroute(table))
    }

    fn put(
        &self,
        last_revision: u64,
        Next { config: file, in_force: config, loaded_at, intent, routes }: Next,
        deed: &Deed<'_>,
        put: impl FnOnce(&TableSpec) -> Result<(), String>,
    ) -> Result<Arc<Current>, Refusal> {
        let revision = last_revision + 1;
        let served = Served { file: &file, config: &config, intent: &intent, routes: &routes };
        let table = compile(served, revision);
        crash::point("before-apply");
        put(&table).map_err(Refusal::DataPlane)?;
        crash::point("after-apply");
        let now = unix_millis();
        let current = Arc::new(Current {
            needs_restart: needs_restart(&self.started_with, &file),
            config,
            file,
            intent,
            routes,
            revision,
            tokens: table.tokens,
            loaded_at,
            last_change: Some(LastChange {
                actor: deed.actor.to_string(),
                action: deed.action.to_owned(),
                subject: cut(&deed.subject),
                revision,
                at: now,
            }),
        });
        self.current.store(Arc::clone(&current));
        self.emit(deed, revision);
        Ok(current)
    }

    fn emit(&self, deed: &Deed<'_>, revision: u64) {
        self.data_plane.emit(What::Change {
            actor: deed.actor.to_string(),
            action: deed.action.to_owned(),
            subject: cut(&deed.subject),
            revision,
        });
    }

    /// Tells everybody who wants to know that a change was refused.
    fn refuse(&self, deed: &Deed<'_>, refusal: Refusal) -> Refusal {
        if let Refusal::Config { problems, .. } = &refusal {
            let count = count(problems.len(), "problem");
            let (actor, revision) = (deed.actor, self.revision());
            let action = deed.action;
            error!(%actor, revision, "{action} refused, the old configuration keeps serving: {count}");
            for problem in problems {
                error!("{problem}");
            }
        } else if let Refusal::DataPlane(reason) = &refusal {
            let (actor, action, revision) = (deed.actor, deed.action, self.revision());
            error!(%actor, revision, "{action} refused, what served before keeps serving: {reason}");
        }
        self.data_plane.emit(What::Refused {
            actor: deed.actor.to_string(),
            action: deed.action.to_owned(),
            subject: cut(&deed.subject),
            reason: cut(&refusal.to_string()),
        });
        refusal
    }
}

/// What is to be served.
struct Next {
    /// The file alone.
    config: Config,
    /// With what was restored in its place, and with the versions that were registered.
    in_force: Config,
    loaded_at: u64,
    intent: Intent,
    routes: Routes,
}

impl Next {
    /// The same again.
    fn like(current: &Current) -> Self {
        let Current { file, config, loaded_at, intent, routes, .. } = current;
        Self {
            config: file.clone(),
            in_force: config.clone(),
            loaded_at: *loaded_at,
            intent: intent.clone(),
            routes: routes.clone(),
        }
    }
}

/// Who does what to what.
pub(crate) struct Deed<'a> {
    pub(crate) actor: &'a Actor,
    pub(crate) action: &'static str,
    pub(crate) subject: String,
}

/// The file with what was restored in its place, and with the versions that were registered.
fn in_force(path: &Path, file: &Config, intent: &Intent) -> Result<Config, Refusal> {
    let name = path.display().to_string();
    intent.in_force(file, &name, &|name| std::env::var(name).ok()).map_err(|problems| Refusal::Config {
        file: problems.iter().next().map_or(name, |problem| problem.file.clone()),
        problems,
    })
}

fn compile(served: Served<'_>, revision: u64) -> TableSpec {
    let mut table = backstop_config::compile(served.config, served.intent, revision);
    served.routes.overlay(served.config, &mut table);
    for service in &mut table.services {
        service.drift = drift::of(served, &service.name).len();
    }
    table
}

/// The keys that differ and are read only at the start.
fn needs_restart(started_with: &Config, config: &Config) -> Vec<&'static str> {
    let differ = [
        ("listen", started_with.listen() != config.listen()),
        ("tls", started_with.tls() != config.tls()),
        ("admin.listen", started_with.admin_listen() != config.admin_listen()),
        ("admin.tls", started_with.admin_tls() != config.admin_tls()),
        ("store", started_with.store() != config.store()),
        ("state_dir", started_with.state_dir() != config.state_dir()),
    ];
    differ.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

/// In one line, and not too long.
fn cut(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
