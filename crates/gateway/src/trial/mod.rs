//! What is counted while a service is split between two versions: the evidence for or against a release.
//!
//! Each side answers for the *first attempts* of the requests that are assigned to it (intention to treat); what retries,
//! resumes and fallbacks make good shows in metrics only. Locks are short and only taken while there is a trial.

mod epoch;
mod subject;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use backstop_core::report::TrialReport;
use backstop_core::table::TrialSpec;

pub(crate) use epoch::{Epoch, Side};
pub(crate) use subject::{Asked, Subject, Whole};

use epoch::Step;
use subject::Waiting;

/// The most epochs of a trial that are kept.
const MOST_EPOCHS: usize = 64;
/// Requests in flight are kept in so many parts, so that few wait for the same lock.
const SHARDS: usize = 16;

/// The counts of one release in one service.
pub(crate) struct Trial {
    pub(crate) release: Arc<str>,
    boot: u64,
    /// Rising.
    epochs: Mutex<Vec<Arc<Epoch>>>,
    /// Requests whose first attempt has not ended.
    waiting: [Mutex<HashMap<u64, Arc<Waiting>>>; SHARDS],
    next: AtomicU64,
}

impl Trial {
    pub(crate) fn new(release: &str, boot: u64) -> Self {
        Self {
            release: release.into(),
            boot,
            epochs: Mutex::default(),
            waiting: Default::default(),
            next: AtomicU64::new(0),
        }
    }

    /// The epoch that `spec` names: the one that is known, or a new one.
    pub(crate) fn epoch(&self, spec: &TrialSpec) -> Arc<Epoch> {
        let mut epochs = lock(&self.epochs);
        let at = match epochs.binary_search_by_key(&spec.epoch, |epoch| epoch.number) {
            Ok(at) => return Arc::clone(&epochs[at]),
            Err(at) => at,
        };
        let same_step = epochs.iter().find(|epoch| epoch.step.number == spec.step);
        let step = same_step.map_or_else(|| Arc::new(Step::new(spec.step)), |epoch| Arc::clone(&epoch.step));
        let epoch = Arc::new(Epoch::new(spec, step));
        epochs.insert(at, Arc::clone(&epoch));
        if epochs.len() > MOST_EPOCHS {
            epochs.remove(0);
        }
        epoch
    }

    /// All that has been counted, after a look at the requests that have waited for too long by now.
    pub(crate) fn report(&self, now: Instant) -> TrialReport {
        let mut silent: HashMap<u32, [u64; 2]> = HashMap::new();
        for shard in &self.waiting {
            // Not under the lock, which every request of the shard needs.
            let waiting: Vec<Arc<Waiting>> = lock(shard).values().cloned().collect();
            for request in waiting {
                request.look(now);
                if request.is_silent(now) {
                    let (epoch, side) = request.place();
                    silent.entry(epoch).or_insert([0; 2])[side as usize] += 1;
                }
            }
        }
        let epochs = lock(&self.epochs).clone();
        TrialReport {
            release: self.release.to_string(),
            boot: self.boot,
            epochs: epochs
                .iter()
                .map(|epoch| epoch.report(silent.get(&epoch.number).copied().unwrap_or_default(), now))
                .collect(),
        }
    }

    fn begin(&self, request: Arc<Waiting>) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        lock(&self.waiting[id as usize % SHARDS]).insert(id, request);
        id
    }

    fn end(&self, id: u64) {
        lock(&self.waiting[id as usize % SHARDS]).remove(&id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
