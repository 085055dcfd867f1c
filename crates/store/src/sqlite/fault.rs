//! [`Fault`]: what goes wrong within SQLite, and what it means to callers.

use rusqlite::ErrorCode;

use super::schema::CURRENT;
use crate::commit::CommitError;
use crate::error::StoreError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("{0}")]
    Damaged(String),
    #[error("schema {0}")]
    TooNew(u32),
    #[error("another program's")]
    NotOurs,
    #[error("{0}")]
    Unusable(String),
}

impl Fault {
    /// As callers are told it; `store` is what the configuration calls the file.
    pub(crate) fn in_store(self, store: &str) -> CommitError {
        let store = store.to_owned();
        CommitError::Store(match self {
            Self::Commit(error) => return error,
            Self::Damaged(what) => StoreError::Damaged { store, what },
            Self::TooNew(found) => StoreError::TooNew { store, found, known: CURRENT },
            Self::NotOurs => {
                let reason = "it is a database of another program\nhint: name another file in `store`";
                StoreError::Unusable { store, reason: reason.to_owned() }
            }
            Self::Unusable(reason) => StoreError::Unusable { store, reason },
            Self::Sqlite(error) => sqlite(error, store),
        })
    }

    /// The same where nothing was to be committed.
    pub(crate) fn of_store(self, store: &str) -> StoreError {
        match self.in_store(store) {
            CommitError::Store(error) => error,
            error => StoreError::Unusable { store: store.to_owned(), reason: error.to_string() },
        }
    }
}

fn sqlite(error: rusqlite::Error, store: String) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy { store },
        Some(ErrorCode::DiskFull) => StoreError::Full { store },
        Some(ErrorCode::NotADatabase) => {
            StoreError::Damaged { store, what: "it does not begin as a database does".to_owned() }
        }
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Damaged { store, what: error.to_string() },
        Some(ErrorCode::SystemIoFailure) => {
            let hint =
                "its disk may be broken, or a limit on the size of files reached; the system's log says more";
            StoreError::Unusable { store, reason: format!("{error}\nhint: {hint}") }
        }
        Some(_) => StoreError::Unusable { store, reason: error.to_string() },
        // What we wrote can't be read back as that.
        None => StoreError::Damaged { store, what: error.to_string() },
    }
}
