//! What is put on record of changes: in the ledger with the change itself, from there in the store's history.

use backstop_config::{EndpointIntent, Intent, Place, Restored, Standing};
use backstop_core::event::What;
use backstop_store::HistoryEntry;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::{Control, Current, Deed, cut, unix_millis};
use crate::change::{Actor, Refusal};
use crate::ledger::Numbered;
use crate::stored::Stored;

/// What follows from a file that says something else.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// Services with another stable version: before, and now.
    pub(super) stable: Vec<(String, String, String)>,
    /// What was restored and holds no longer.
    pub(super) left: Vec<Restored>,
}

impl Control {
    /// Accounts for what was changed in the file while nobody looked. For a process that begins to take changes.
    pub fn take_stock(&self) {
        let _one_at_a_time = self.lock();
        let current = self.current();
        if let Err(error) = self.may_change(&current, None) {
            return info!(%error, "the file is not accounted for");
        }
        let followed = self.at_start.lock().map(|mut it| std::mem::take(&mut *it)).unwrap_or_default();
        // The routes first: if the process ends in between, the file still differs from what was accounted for.
        if !followed.stable.is_empty()
            && let Err(error) = self.keep_routes(&current.routes)
        {
            warn!(%error, "what follows from the file is kept later");
        }
        self.account_for_file(&current, &Actor::File, &followed);
    }

    /// Puts on record what has been changed in the file that serves now.
    pub(super) fn account_for_file(&self, current: &Current, actor: &Actor, followed: &Followed) {
        let mut changed = self.ledger().take_stock(&current.file);
        for Restored { service, snapshot, .. } in &followed.left {
            let told = format!("the file takes the place of snapshot {snapshot}, which was restored");
            changed.entry(service.clone()).or_default().push(told);
            self.tell(actor, "leave snapshot", format!("{snapshot} of {service}"), current.revision);
        }
        for (service, before, now) in &followed.stable {
            changed.entry(service.clone()).or_default().push(format!("{now} serves in place of {before}"));
            self.tell(
                actor,
                "make stable",
                format!("{now} of {service} in place of {before}"),
                current.revision,
            );
        }
        if changed.is_empty() {
            return;
        }
        let subject = self.path.display().to_string();
        let deed = Deed { actor, action: "reload", subject };
        for (service, told) in changed {
            let stable = followed.stable.iter().find(|(name, ..)| *name == service).map(|(.., now)| now);
            let what = json!({
                "revision": current.revision,
                "makes_stable": stable,
                "versions": versions(current, &service),
            });
            self.ledger().note(entry(&deed, &service, "file", "done", &told, what));
        }
        self.keep_ledger(current);
    }

    /// Puts on record what needs no other file than the ledger's.
    pub(super) fn account_for(&self, current: &Current, deed: &Deed<'_>, services: &[String], kind: &str) {
        let told = format!("{} {}", deed.action, deed.subject);
        self.account_as(current, deed, services, (kind, told));
    }

    /// The same, told in other words.
    pub(super) fn account_as(
        &self,
        current: &Current,
        deed: &Deed<'_>,
        services: &[String],
        (kind, told): (&str, String),
    ) {
        let told = [told];
        for service in services {
            let what = json!({ "revision": current.revision });
            self.ledger().note(entry(deed, service, kind, "done", &told, what));
        }
        if !services.is_empty() {
            self.keep_ledger(current);
        }
    }

    /// Puts on record that a change of a service was not made. Who was too late or asked the wrong process is no matter of
    /// the service.
    pub(super) fn account_for_refused(&self, service: &str, kind: &str, deed: &Deed<'_>, refusal: &Refusal) {
        let status = match refusal {
            Refusal::Conflict { .. } | Refusal::Following => return,
            Refusal::NotKept { .. } | Refusal::DataPlane(_) => "failed",
            _ => "refused",
        };
        let current = self.current();
        if current.config.stable(service).is_none() {
            return;
        }
        let told = [format!("{} {}: {}", deed.action, deed.subject, cut(&refusal.to_string()))];
        let what = json!({ "revision": current.revision });
        self.ledger().note_refused(entry(deed, service, kind, status, &told, what));
    }

    /// What waits to be put on record, and by which name the store knows it.
    pub(crate) fn waiting(&self) -> (String, Vec<Numbered>) {
        let ledger = self.ledger();
        (ledger.id().to_owned(), ledger.waiting().to_vec())
    }

    /// The store has everything up to this number.
    pub(crate) fn recorded(&self, number: u64) {
        let _one_at_a_time = self.lock();
        if self.ledger().recorded(number) && self.may_change(&self.current(), None).is_ok() {
            self.keep_ledger(&self.current());
        }
    }

    /// What `intent.json` is to hold.
    pub(super) fn to_store(&self, revision: u64, intent: Intent) -> Stored {
        Stored { revision, intent, ledger: self.ledger().clone() }
    }

    fn keep_ledger(&self, current: &Current) {
        let stored = self.to_store(current.revision, current.intent.clone());
        if let Err(error) = self.stored.write(&stored) {
            error!(%error, path = %self.stored.path().display(), "what was done is not in the history if the process ends now");
        }
    }

    fn tell(&self, actor: &Actor, action: &str, subject: String, revision: u64) {
        let (actor, action) = (actor.to_string(), action.to_owned());
        self.data_plane.emit(What::Change { actor, action, subject, revision });
    }
}

/// What an endpoint has become, for the history.
pub(super) fn of_endpoint(
    deed: &Deed<'_>,
    place: &Place,
    intent: &Intent,
    (revision, reason): (u64, &str),
) -> HistoryEntry {
    let told = [format!("{} {} of version {}", deed.action, place.url, place.version)];
    let standing = intent.of(place).map(|EndpointIntent { standing, .. }| *standing);
    let what = json!({
        "revision": revision,
        "version": place.version,
        "endpoint": place.url,
        "reason": cut(reason),
        "standing": standing.unwrap_or(if deed.action == "remove" { Standing::Removed } else { Standing::Active }),
    });
    entry(deed, &place.service, "endpoint", "done", &told, what)
}

/// An entry of the history. `told` is in words what `what` is for programs.
pub(super) fn entry(
    deed: &Deed<'_>,
    service: &str,
    kind: &str,
    status: &str,
    told: &[String],
    mut what: Value,
) -> HistoryEntry {
    what["status"] = status.into();
    what["told"] = told.into();
    HistoryEntry {
        at: unix_millis(),
        actor: deed.actor.to_string(),
        service: service.to_owned(),
        kind: kind.to_owned(),
        subject: cut(&deed.subject),
        body: what,
    }
}

/// The versions of a service, with what each is.
fn versions(current: &Current, service: &str) -> Value {
    let Some(outline) = current.config.outline_with(&current.intent, service) else { return Value::Null };
    let version = |name: &str| {
        let digest = current.config.version_digest(service, name);
        (name.to_owned(), json!({ "digest": digest, "endpoints": outline.endpoints(name) }))
    };
    outline.versions().map(version).collect()
}
