//! [`Store`]: what the rest of Backstop holds of a store.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::backend::{Backend, Listed, Value};
use crate::commit::{Commit, CommitError, Pending, Revision};
use crate::error::StoreError;
use crate::history::{Chain, Checked, HistoryFilter, Recorded};
use crate::key::Key;
use crate::sqlite::{BUSY_TIMEOUT, Sqlite};
use crate::watch::Watch;

/// Calls that wait for the store's thread; more wait until one of these has been answered.
const MAX_QUEUE: usize = 64;
/// How long a call may take, with the time before it begins.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for what goes through the whole file.
const WHOLE_FILE_TIMEOUT: Duration = Duration::from_secs(600);

type Job = Box<dyn FnOnce(&mut dyn Backend) + Send>;

/// A store. Its work is done by a thread of its own, one call after the other; the thread ends, and the file is closed,
/// when the last clone is dropped.
///
/// # Cancel safety
///
/// A call that is dropped before its turn never happens; one that has begun happens.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    /// The last revision that was committed here.
    changed: Arc<watch::Sender<Revision>>,
    call_timeout: Duration,
}

impl Store {
    /// The store in the file at `path`, which is made if it is not there, and so is its directory.
    ///
    /// # Errors
    ///
    /// It can't be opened, is damaged or too new, or is locked.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        Self::start(move || Sqlite::open(&path, BUSY_TIMEOUT), CALL_TIMEOUT).await
    }

    /// The store in a file that has to be there, for looking at it and copying it only.
    ///
    /// # Errors
    ///
    /// It is not there, can't be opened, or is too new.
    pub async fn open_existing(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        Self::start(move || Sqlite::open_existing(&path, BUSY_TIMEOUT), CALL_TIMEOUT).await
    }

    /// A store that ends with the process.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub async fn in_memory() -> Result<Self, StoreError> {
        Self::start(Sqlite::in_memory, CALL_TIMEOUT).await
    }

    pub(crate) async fn start<B: Backend + 'static>(
        open: impl FnOnce() -> Result<B, StoreError> + Send + 'static,
        call_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let (jobs, mut queue) = mpsc::channel::<Job>(MAX_QUEUE);
        let (opened, is_open) = oneshot::channel();
        let run = move || {
            let mut backend = match open() {
                Ok(backend) => backend,
                Err(error) => return drop(opened.send(Err(error))),
            };
            // Whoever has asked may be gone; then the queue is too.
            let _ = opened.send(Ok(()));
            while let Some(job) = queue.blocking_recv() {
                job(&mut backend);
            }
        };
        let thread = std::thread::Builder::new().name("store".to_owned());
        if let Err(error) = thread.spawn(run) {
            let reason = format!("there is no thread for it: {error}");
            return Err(StoreError::Unusable { store: "store".to_owned(), reason });
        }
        is_open.await.unwrap_or(Err(StoreError::Closed))?;
        Ok(Self { jobs, changed: Arc::new(watch::Sender::new(Revision(0))), call_timeout })
    }

    /// Makes all of `commit` happen, on disk, or nothing of it. Gives the store's revision after it.
    ///
    /// # Errors
    ///
    /// Why nothing happened; after [`StoreError::Unknown`] it may have happened or happen yet.
    pub async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let changed = Arc::clone(&self.changed);
        let work = move |backend: &mut dyn Backend| {
            let revision = backend.commit(&commit)?;
            changed.send_replace(revision);
            Ok(revision)
        };
        self.ask(self.call_timeout, work).await
    }

    /// What `key` stands for.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub async fn get(&self, key: &Key) -> Result<Option<Value>, StoreError> {
        let key = key.clone();
        self.ask(self.call_timeout, move |backend| backend.get(&key)).await
    }

    /// The keys below `key`, those that begin with its parts and have more, in order.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn list(&self, key: &Key) -> Result<Listed, StoreError> {
        let key = key.clone();
        self.ask(self.call_timeout, move |backend| backend.list(&key)).await
    }

    /// The last `limit` entries below `key`, the last one first.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn last(&self, key: &Key, limit: usize) -> Result<Vec<(Key, Value)>, StoreError> {
        let key = key.clone();
        self.ask(self.call_timeout, move |backend| backend.last(&key, limit)).await
    }

    /// The keys below `key`, in their order.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn keys(&self, key: &Key) -> Result<Vec<Key>, StoreError> {
        let key = key.clone();
        self.ask(self.call_timeout, move |backend| backend.keys(&key)).await
    }

    /// Tells which keys change after `from`, also if other processes change them.
    pub fn watch(&self, from: Revision) -> Watch {
        Watch::new(self.clone(), self.changed.subscribe(), from)
    }

    pub(crate) async fn changes(&self, after: Revision) -> Result<crate::backend::Changes, StoreError> {
        self.ask(self.call_timeout, move |backend| backend.changes(after)).await
    }

    /// What was done, the newest first.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub async fn history(&self, filter: &HistoryFilter) -> Result<Vec<Recorded>, StoreError> {
        let filter = filter.clone();
        self.ask(self.call_timeout, move |backend| backend.history(&filter)).await
    }

    /// At most `limit` effects of a kind that are due at `now`, in the order in which they were enqueued. With a `now` of
    /// the far future: all that there are.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn pending(&self, kind: &str, now: u64, limit: usize) -> Result<Vec<Pending>, StoreError> {
        let kind = kind.to_owned();
        self.ask(self.call_timeout, move |backend| backend.pending(&kind, now, limit)).await
    }

    /// How many effects of a kind are not finished.
    ///
    /// # Errors
    ///
    /// They can't be counted.
    pub async fn count(&self, kind: &str) -> Result<u64, StoreError> {
        let kind = kind.to_owned();
        self.ask(self.call_timeout, move |backend| backend.count(&kind)).await
    }

    /// Takes the lease of that name for `ttl`, unless somebody else has it: `None`. Each time it is taken it has a new
    /// epoch, also by a holder who has it already: what it was before the restart can't write any more.
    ///
    /// # Errors
    ///
    /// The store can't be written.
    pub async fn acquire(
        &self,
        lease: &str,
        holder: &str,
        ttl: Duration,
        now: u64,
    ) -> Result<Option<u64>, StoreError> {
        let (lease, holder, ttl) = (lease.to_owned(), holder.to_owned(), millis(ttl));
        self.ask(self.call_timeout, move |backend| backend.acquire(&lease, &holder, ttl, now)).await
    }

    /// Who has taken the lease last, whether or not it still lasts; `None` if nobody ever has.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub async fn holder(&self, lease: &str) -> Result<Option<String>, StoreError> {
        let lease = lease.to_owned();
        self.ask(self.call_timeout, move |backend| backend.holder(&lease)).await
    }

    /// Keeps the lease for `ttl` from now. `false`: somebody else has taken it.
    ///
    /// # Errors
    ///
    /// The store can't be written.
    pub async fn renew(&self, lease: &str, epoch: u64, ttl: Duration, now: u64) -> Result<bool, StoreError> {
        let (lease, ttl) = (lease.to_owned(), millis(ttl));
        self.ask(self.call_timeout, move |backend| backend.renew(&lease, epoch, ttl, now)).await
    }

    /// Lets others take the lease at once.
    ///
    /// # Errors
    ///
    /// The store can't be written; then they wait until it has expired.
    pub async fn release(&self, lease: &str, epoch: u64) -> Result<(), StoreError> {
        let lease = lease.to_owned();
        self.ask(self.call_timeout, move |backend| backend.release(&lease, epoch)).await
    }

    /// Goes through all there is: whether the file is whole, and whether the history is as it was written. Other calls
    /// are answered in between.
    ///
    /// # Errors
    ///
    /// It is damaged, or can't be read.
    pub async fn check(&self) -> Result<Checked, StoreError> {
        self.ask(WHOLE_FILE_TIMEOUT, |backend| backend.check()).await?;
        let mut chain = Chain::default();
        loop {
            // The end first: what is appended after this look is among the entries.
            let look = move |backend: &mut dyn Backend| {
                Ok::<_, StoreError>((backend.head()?, backend.entries(chain.entries)?))
            };
            let (head, entries) = self.ask(self.call_timeout, look).await?;
            if entries.is_empty() {
                return Ok(chain.checked_against(head));
            }
            for entry in &entries {
                if let Err(broken) = chain.follow(entry) {
                    return Ok(chain.broken(broken));
                }
            }
        }
    }

    /// Copies everything, as it is at one moment, to a new file. Other calls wait for it.
    ///
    /// # Errors
    ///
    /// The file exists already, or can't be written.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_owned();
        self.ask(WHOLE_FILE_TIMEOUT, move |backend| backend.backup(&to)).await
    }

    /// Has `work` done by the store's thread.
    async fn ask<T, E>(
        &self,
        timeout: Duration,
        work: impl FnOnce(&mut dyn Backend) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let deadline = Instant::now() + timeout;
        let seconds = timeout.as_secs();
        let turn = Turn::default();
        let (answer, mut answered) = oneshot::channel();
        let begin = turn.clone();
        let job: Job = Box::new(move |backend| {
            if begin.take(BEGUN) {
                // Whoever has asked may be gone.
                let _ = answer.send(work(backend));
            }
        });
        let _unless_begun = GiveUp(&turn);
        match tokio::time::timeout_at(deadline, self.jobs.send(job)).await {
            Err(_) => return Err(StoreError::Timeout { seconds }.into()),
            Ok(Err(_)) => return Err(StoreError::Closed.into()),
            Ok(Ok(())) => {}
        }
        match tokio::time::timeout_at(deadline, &mut answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(StoreError::Closed.into()),
            Err(_) if turn.take(GIVEN_UP) => Err(StoreError::Timeout { seconds }.into()),
            Err(_) => Err(StoreError::Unknown { seconds }.into()),
        }
    }
}

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Either the thread begins a call or its caller gives it up.
#[derive(Clone, Default)]
struct Turn(Arc<AtomicU8>);

impl Turn {
    fn take(&self, by: u8) -> bool {
        self.0.compare_exchange(WAITING, by, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A call that nobody waits for any more is not begun.
struct GiveUp<'a>(&'a Turn);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.take(GIVEN_UP);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
