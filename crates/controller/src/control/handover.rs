//! One process follows another, or takes over from it.

use std::sync::atomic::Ordering::Relaxed;

use tracing::error;

use super::account::Followed;
use super::{Control, Deed, Next, in_force, unix_millis};
use crate::change::Actor;
use crate::stored::{Both, Stored};

impl Control {
    /// For a process that has handed over to a new one and only lets its requests end: takes the file and the
    /// run-time changes as they are now, and makes no changes of its own from here on.
    pub fn follow(&self) {
        self.following.store(true, Relaxed);
        let _one_at_a_time = self.lock();
        let deed = Deed { actor: &Actor::File, action: "follow", subject: self.path.display().to_string() };
        let before = self.current();
        // What of the two can't be read stays as it was.
        let config = self.read_config().unwrap_or_else(|refusal| {
            self.refuse(&deed, refusal);
            before.file.clone()
        });
        let (mut intent, mut routes) = match self.read_both() {
            Some(Both { intent, routes }) => (intent.intent, routes),
            None => {
                let intent = self.stored.read().map(|stored| stored.intent).unwrap_or_else(|error| {
                    error!(%error, "the run-time changes stay as they were");
                    before.intent.clone()
                });
                (intent, self.read_routes(&before))
            }
        };
        intent.leave_restored(&config);
        routes.follow_file(&config);
        if (&config, &intent, &routes) == (&before.file, &before.intent, &before.routes) {
            return;
        }
        let loaded_at = if config == before.file { before.loaded_at } else { unix_millis() };
        let applied = in_force(&self.path, &config, &intent).and_then(|in_force| {
            let next = Next { config, in_force, loaded_at, intent, routes };
            self.apply(before.revision, next, &deed)
        });
        if let Err(refusal) = applied {
            self.refuse(&deed, refusal);
        }
    }

    /// For a process that has taken over from an old one: takes the run-time changes that were made there while this
    /// one prepared itself, and makes changes from here on. Also takes back a [`Control::follow`].
    pub fn lead(&self) {
        self.following.store(false, Relaxed);
        let _one_at_a_time = self.lock();
        let deed =
            Deed { actor: &Actor::File, action: "take over", subject: self.path.display().to_string() };
        let before = self.current();
        let unfinished = self.read_both();
        self.both_unkept.store(unfinished.is_some(), Relaxed);
        let Both { intent: Stored { revision, mut intent, ledger }, mut routes } = match unfinished {
            Some(both) => both,
            None => match self.stored.read() {
                Ok(intent) => Both { intent, routes: self.read_routes(&before) },
                Err(error) => return error!(%error, "the run-time changes stay as they were"),
            },
        };
        *self.ledger() = ledger.begun();
        if routes.end_drills() {
            self.routes_unkept.store(true, Relaxed);
        }
        let followed =
            Followed { left: intent.leave_restored(&before.file), stable: routes.follow_file(&before.file) };
        if let Ok(mut at_start) = self.at_start.lock() {
            *at_start = followed;
        }
        if (&intent, &routes) == (&before.intent, &before.routes) {
            return;
        }
        let last_revision = before.revision.max(revision);
        let applied = in_force(&self.path, &before.file, &intent).and_then(|in_force| {
            let next = Next { in_force, intent, routes, ..Next::like(&before) };
            self.apply(last_revision, next, &deed)
        });
        if let Err(refusal) = applied {
            self.refuse(&deed, refusal);
        }
    }

    /// What both files are just becoming.
    pub(super) fn read_both(&self) -> Option<Both> {
        self.both.read().unwrap_or_else(|error| {
            error!(%error, "what was being restored is passed by");
            None
        })
    }
}
