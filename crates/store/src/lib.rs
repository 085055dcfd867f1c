//! What Backstop keeps over restarts: state, the history of what was done, and effects that are still to be carried out.
//!
//! The primitive is [`Store::commit`]: if all expectations hold, everything in it happens at once, and is on disk when the
//! call returns; otherwise nothing does. So a decision, its record and its consequences are never apart. Two
//! controllers on one store are safe through leases with epochs: whoever has lost the lease can't write any more.
//!
//! It reads no clock, and knows nothing of what is kept in it. The data plane never asks it anything.

mod backend;
mod commit;
mod error;
mod handle;
mod history;
mod key;
mod sqlite;
#[cfg(test)]
mod tests;
mod watch;

pub use backend::{Change, Listed, Value};
pub use commit::{Commit, CommitError, Effect, Fence, Op, Pending, Revision};
pub use error::StoreError;
pub use handle::Store;
pub use history::{Break, Checked, Hash, HistoryEntry, HistoryFilter, Recorded};
pub use key::{InvalidKey, Key};
pub use watch::{Seen, Watch};
