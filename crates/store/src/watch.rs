//! [`Watch`]: who wants to know what changes.

use std::time::Duration;

use tokio::sync::watch;

use crate::backend::Change;
use crate::commit::Revision;
use crate::error::StoreError;
use crate::handle::Store;

/// How often changes by other processes are looked for; those of this one are known at once.
const POLL: Duration = Duration::from_secs(1);

/// Follows the keys of a store.
pub struct Watch {
    store: Store,
    changed: watch::Receiver<Revision>,
    /// Everything up to here has been told.
    told: Revision,
}

/// What a watch has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// In the order of the last change of each key; never none.
    Changes(Vec<Change>),
    /// It was away for so long that deletions are forgotten: list anew, and go on from what the list says.
    TooLate,
}

impl Watch {
    pub(crate) fn new(store: Store, changed: watch::Receiver<Revision>, from: Revision) -> Self {
        Self { store, changed, told: from }
    }

    /// Everything up to here has been told.
    pub fn revision(&self) -> Revision {
        self.told
    }

    /// Waits for changes.
    ///
    /// # Errors
    ///
    /// The store can't be read. The next call begins where this one did.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if it is dropped.
    pub async fn next(&mut self) -> Result<Seen, StoreError> {
        loop {
            self.changed.mark_unchanged();
            let changes = self.store.changes(self.told).await?;
            match changes.changes {
                None => {
                    self.told = changes.revision;
                    return Ok(Seen::TooLate);
                }
                Some(seen) if !seen.is_empty() => {
                    self.told = changes.revision;
                    return Ok(Seen::Changes(seen));
                }
                Some(_) => self.told = changes.revision,
            }
            // The other end is in the store that this has.
            drop(tokio::time::timeout(POLL, self.changed.changed()).await);
        }
    }
}
