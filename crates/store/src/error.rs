//! [`StoreError`]: why the store does not do what it was asked.

/// What callers have to tell apart. A store is called as the configuration does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing has happened.
    #[error(
        "the store `{store}` is locked by another process\nhint: it tries for some seconds by itself; \
         `fuser {store}` tells who has it open"
    )]
    Busy { store: String },
    /// Nothing has happened.
    #[error(
        "there is no space left for the store `{store}`\nhint: make room on its disk; nothing of it is lost"
    )]
    Full { store: String },
    #[error(
        "the store `{store}` is damaged: {what}\nhint: stop backstop and keep a copy of the file and of those beside \
         it (`{store}-wal`, `{store}-shm`); then put back the last one that `backstop store backup` made, or move all \
         three away to begin with an empty store"
    )]
    Damaged { store: String, what: String },
    #[error(
        "the store `{store}` was written by a newer backstop (schema {found}, this one knows {known})\nhint: use that \
         version again, or put back a backup from before it"
    )]
    TooNew { store: String, found: u32, known: u32 },
    /// The file can't be opened, read or written.
    #[error("the store `{store}` can't be used: {reason}")]
    Unusable { store: String, reason: String },
    #[error("the store has been closed")]
    Closed,
    /// It had so much to do that nothing has happened.
    #[error("the store was too busy for {seconds} s to begin")]
    Timeout { seconds: u64 },
    /// It has begun, and what was asked for may still happen.
    #[error("the store has not answered for {seconds} s; its disk may hang")]
    Unknown { seconds: u64 },
}
