//! [`Ledger`]: what was done and is not in the store's history yet.
//!
//! It is kept in `intent.json`, with the changes themselves: an entry is there if its change is, whatever happens to the
//! process or to the store.

use std::collections::BTreeMap;

use backstop_config::{Config, Outline};
use backstop_store::HistoryEntry;
use serde::{Deserialize, Serialize};
use tracing::error;

/// Entries that wait for the store.
const MOST_WAITING: usize = 1000;

/// What was done and is not in the store's history yet, and what has been accounted for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// By which the store knows how much of it it has: each new file has a new one.
    id: String,
    /// Number of the last entry.
    last: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<Numbered>,
    /// The file's services, as they were when they were accounted for last.
    services: BTreeMap<String, Outline>,
    /// What was refused last, by service: it is not put on record again and again.
    #[serde(skip)]
    refused: BTreeMap<String, String>,
}

/// An entry that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) entry: HistoryEntry,
}

impl Ledger {
    /// Gives it an id if it is new.
    pub(crate) fn begun(mut self) -> Self {
        if self.id.is_empty() {
            self.id = format!("{:016x}", rand::random::<u64>());
        }
        self
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Oldest first.
    pub(crate) fn waiting(&self) -> &[Numbered] {
        &self.waiting
    }

    pub(crate) fn note(&mut self, entry: HistoryEntry) {
        if self.waiting.len() >= MOST_WAITING {
            let lost = self.waiting.remove(0);
            error!(
                kind = lost.entry.kind,
                "too much waits for the store; the oldest of it will not be in the history"
            );
        }
        self.last += 1;
        self.waiting.push(Numbered { number: self.last, entry });
    }

    /// Notes what was refused, unless it is the same as the last time.
    pub(crate) fn note_refused(&mut self, entry: HistoryEntry) {
        let told = format!("{} {} {} {}", entry.actor, entry.kind, entry.subject, entry.body["told"]);
        if self.refused.insert(entry.service.clone(), told.clone()) != Some(told) {
            self.note(entry);
        }
    }

    /// Takes up to this number off. Gives whether there was any.
    pub(crate) fn recorded(&mut self, number: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.number > number);
        self.waiting.len() < before
    }

    /// Accounts for the services of `file`. Gives those that are others than the last time, and what has been changed, in
    /// words.
    pub(crate) fn take_stock(&mut self, file: &Config) -> BTreeMap<String, Vec<String>> {
        let outlines = file.services().filter_map(|name| Some((name.to_owned(), file.outline(name)?)));
        let now: BTreeMap<String, Outline> = outlines.collect();
        let mut changed = BTreeMap::new();
        for (name, outline) in &now {
            let told = match self.services.get(name) {
                Some(before) if before.is_same(outline) => continue,
                Some(before) => before.changes(outline),
                None => {
                    let versions: Vec<&str> = outline.versions().collect();
                    vec![format!("new in the file: stable {} of {}", outline.stable, versions.join(", "))]
                }
            };
            changed.insert(name.clone(), told);
        }
        let gone = self.services.keys().filter(|name| !now.contains_key(*name));
        changed.extend(gone.map(|name| (name.clone(), vec!["gone from the file".to_owned()])));
        self.services = now;
        changed
    }
}
