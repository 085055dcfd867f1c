//! Puts what the [`Ledger`](crate::ledger::Ledger) has into the history of the store, each entry once: with them the store
//! keeps the number of the last one.

use std::sync::Arc;
use std::time::Duration;

use backstop_store::{Commit, CommitError, InvalidKey, Key, Op, Store, StoreError};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::{Control, crash, notify, snapshots};

/// How often it is looked at what waits.
const TICK: Duration = Duration::from_secs(1);
/// Entries that are kept with one commit, each perhaps with a notice: it takes only so many.
const MOST_AT_ONCE: usize = 40;
/// Ticks between two looks at the snapshots.
const PRUNE_TICKS: u64 = 60;

/// Puts what was done on record, for ever.
///
/// # Cancel safety
///
/// It can end anywhere, as the process can.
pub async fn record(control: Arc<Control>, store: Store) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut in_trouble, mut count) = (false, 0);
    loop {
        ticks.tick().await;
        match turn(&control, &store).await {
            Ok(()) => in_trouble = false,
            Err(error) => {
                if !std::mem::replace(&mut in_trouble, true) {
                    warn!(%error, "what is done waits to be put on record; it is tried again");
                }
            }
        }
        if count % PRUNE_TICKS == 0
            && let Err(error) = snapshots::prune(&store).await
        {
            debug!(%error, "old automatic snapshots are still there");
        }
        count += 1;
    }
}

pub(crate) async fn turn(control: &Arc<Control>, store: &Store) -> Result<(), CommitError> {
    let (ledger, waiting) = control.waiting();
    let Some(last) = waiting.last().map(|last| last.number) else { return Ok(()) };
    let key = key(&["recorded", &ledger]).map_err(unusable)?;
    let found = store.get(&key).await?;
    let known = found.as_ref().and_then(|it| serde_json::from_slice(&it.value).ok()).unwrap_or(0_u64);
    let mut revision = found.map(|it| it.revision);
    let new: Vec<_> = waiting.into_iter().filter(|it| it.number > known).collect();
    for some in new.chunks(MOST_AT_ONCE) {
        let number = some.last().map_or(known, |last| last.number);
        let mut ops = vec![Op::Put { key: key.clone(), value: json!(number).to_string().into_bytes() }];
        for it in some {
            ops.push(Op::Append(it.entry.clone()));
            ops.extend(notify::of_file(&it.entry, &format!("{ledger}-{}", it.number)));
        }
        crash::point("before-record");
        let commit = Commit { fence: None, expect: vec![(key.clone(), revision)], ops };
        revision = Some(store.commit(commit).await?);
        crash::point("after-record");
    }
    let control = Arc::clone(control);
    drop(tokio::task::spawn_blocking(move || control.recorded(last)).await);
    Ok(())
}

fn key(parts: &[&str]) -> Result<Key, InvalidKey> {
    Key::new(parts)
}

/// Ids of ours are short; one in a file that somebody has changed may not be.
fn unusable(error: InvalidKey) -> CommitError {
    CommitError::Store(StoreError::Unusable { store: "store".to_owned(), reason: error.to_string() })
}
