//! [`Outbox`]: from what has happened to who is to be told, in commits that survive `kill -9` at any point.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstop_config::{Recipient, Topic};
use backstop_store::{Commit, CommitError, Effect, Fence, Key, Op, Pending, Revision, Store, StoreError};
use serde_json::from_value;
use sha2::{Digest, Sha256};
use tracing::{error, warn};

use super::notice::{KIND, Notice, Status};
use super::told::{self, Heard, Told};
use crate::Control;

/// That wait for one recipient; then the oldest is given up, since what is new says more.
const MOST_WAITING: u64 = 1000;
/// Notices that are looked at in one go.
const BATCH: usize = 20;

/// The part of the store that is about telling people, as long as this process has the lease.
#[derive(Clone)]
pub(super) struct Outbox {
    pub(super) control: Arc<Control>,
    pub(super) store: Store,
    pub(super) fence: Fence,
    /// For so long a state is not told again, in milliseconds.
    pub(super) window: u64,
}

/// What was given up: by whom it was to be known, and which notice.
pub(super) type Dropped = (String, Notice);

impl Outbox {
    /// Finds out who has to be told of what has been enqueued. Gives what had to be given up for it.
    pub(super) async fn fan_out(&self, now: u64) -> Result<Vec<Dropped>, CommitError> {
        let mut dropped = Vec::new();
        loop {
            let pending = self.store.pending(KIND, u64::MAX, BATCH).await?;
            if pending.is_empty() {
                return Ok(dropped);
            }
            // Looked up after what is to be told: whoever was configured before it happened is told.
            let recipients = self.recipients();
            for Pending { effect, .. } in pending {
                let finish = Op::Finish { effect: effect.id.clone() };
                let Ok(notice) = from_value::<Notice>(effect.body) else {
                    error!(effect = effect.id, "a notice in the store can't be read, and is left out");
                    self.commit(Vec::new(), vec![finish]).await?;
                    continue;
                };
                let (key, before, revision) = self.told(&notice.subject).await?;
                let heard = told::hear(before, notice, now, self.window);
                dropped.extend(self.tell((key, revision), heard, &recipients, vec![finish]).await?);
            }
        }
    }

    /// Tells what has waited for long enough, and forgets what is over.
    pub(super) async fn wait(&self, now: u64) -> Result<Vec<Dropped>, CommitError> {
        let mut dropped = Vec::new();
        let all = self.all().await?;
        let recipients = self.recipients();
        for (key, before, revision) in all {
            let (after, tell) = told::wait(before.clone(), now, self.window);
            if after.as_ref() != Some(&before) {
                let heard = (after, tell);
                dropped.extend(self.tell((key, Some(revision)), heard, &recipients, Vec::new()).await?);
            }
        }
        Ok(dropped)
    }

    /// What lasts, of those that `is_gone` is wrong for; the others are resolved.
    pub(super) async fn firing(
        &self,
        is_gone: impl Fn(&Notice) -> bool,
        now: u64,
    ) -> Result<Vec<Notice>, CommitError> {
        let mut firing = Vec::new();
        for (_, told, _) in self.all().await? {
            if told.last.status != Status::Firing {
                continue;
            }
            if !is_gone(&told.last) {
                firing.push(told.last);
                continue;
            }
            let title = format!("{} is over", told.last.subject);
            let resolved = Notice {
                id: format!("{}-gone", told.last.id),
                at: now,
                status: Status::Resolved,
                state: "gone".to_owned(),
                title,
                reason: "no longer in the configuration".to_owned(),
                ..told.last
            };
            self.commit(Vec::new(), vec![resolved.enqueue()]).await?;
        }
        Ok(firing)
    }

    pub(super) fn recipients(&self) -> Vec<Recipient> {
        self.control.current().config.notify()
    }

    /// Keeps what is known of a subject, with what follows from it.
    async fn tell(
        &self,
        (key, revision): (Key, Option<Revision>),
        (told, notice): Heard,
        recipients: &[Recipient],
        mut ops: Vec<Op>,
    ) -> Result<Vec<Dropped>, CommitError> {
        let mut dropped = Vec::new();
        if let Some(notice) = notice {
            for recipient in recipients.iter().filter(|recipient| wants(recipient, &notice)) {
                let kind = kind(recipient);
                if self.store.count(&kind).await? >= MOST_WAITING {
                    let (drop, oldest) = self.give_up_oldest(&kind).await?;
                    ops.extend(drop);
                    dropped.extend(oldest.map(|oldest| (recipient.to_string(), oldest)));
                }
                let (id, body) = (format!("{} {kind}", notice.id), serde_json::to_value(&notice));
                let body = body.unwrap_or_default();
                ops.push(Op::Enqueue(Effect { id, kind, body, not_before: 0 }));
            }
        }
        ops.push(match told {
            Some(told) => Op::Put { key: key.clone(), value: serde_json::to_vec(&told).unwrap_or_default() },
            None => Op::Delete { key: key.clone() },
        });
        self.commit(vec![(key, revision)], ops).await?;
        Ok(dropped)
    }

    async fn give_up_oldest(&self, kind: &str) -> Result<(Option<Op>, Option<Notice>), CommitError> {
        let oldest = self.store.pending(kind, u64::MAX, 1).await?.pop();
        let Some(Pending { effect, .. }) = oldest else { return Ok((None, None)) };
        Ok((Some(Op::Finish { effect: effect.id }), from_value(effect.body).ok()))
    }

    /// The next that a recipient is to be told.
    pub(super) async fn next(&self, kind: &str) -> Result<Option<Pending>, StoreError> {
        Ok(self.store.pending(kind, u64::MAX, 1).await?.pop())
    }

    /// Forgets what recipients were to be told who are not configured any more.
    pub(super) async fn forget_others(&self, recipients: &[Recipient]) -> Result<(), CommitError> {
        let key = Key::new(&["notify", "recipients"]).map_err(unreachable_key)?;
        let known = self.store.get(&key).await?;
        let revision = known.as_ref().map(|known| known.revision);
        let before: BTreeMap<String, String> =
            known.and_then(|known| serde_json::from_slice(&known.value).ok()).unwrap_or_default();
        let now: BTreeMap<String, String> =
            recipients.iter().map(|recipient| (kind(recipient), recipient.to_string())).collect();
        if before == now {
            return Ok(());
        }
        for (kind, name) in before.iter().filter(|(kind, _)| !now.contains_key(*kind)) {
            let mut count = 0;
            loop {
                let pending = self.store.pending(kind, u64::MAX, BATCH).await?;
                if pending.is_empty() {
                    break;
                }
                count += pending.len();
                let finish = |pending: Pending| Op::Finish { effect: pending.effect.id };
                self.commit(Vec::new(), pending.into_iter().map(finish).collect()).await?;
            }
            if count > 0 {
                warn!(recipient = name, count, "was not told of all, and is not configured any more");
            }
        }
        let value = serde_json::to_vec(&now).unwrap_or_default();
        self.commit(vec![(key.clone(), revision)], vec![Op::Put { key, value }]).await
    }

    pub(super) async fn commit(
        &self,
        expect: Vec<(Key, Option<Revision>)>,
        ops: Vec<Op>,
    ) -> Result<(), CommitError> {
        let fence = Some(self.fence.clone());
        self.store.commit(Commit { fence, expect, ops }).await.map(drop)
    }

    async fn told(&self, subject: &str) -> Result<(Key, Option<Told>, Option<Revision>), CommitError> {
        let key = Key::new(&["notify", "told", &digest(subject)]).map_err(unreachable_key)?;
        let Some(found) = self.store.get(&key).await? else { return Ok((key, None, None)) };
        Ok((key, serde_json::from_slice(&found.value).ok(), Some(found.revision)))
    }

    async fn all(&self) -> Result<Vec<(Key, Told, Revision)>, CommitError> {
        let key = Key::new(&["notify", "told"]).map_err(unreachable_key)?;
        let listed = self.store.list(&key).await?.entries.into_iter();
        let read = |(key, value): (Key, backstop_store::Value)| {
            Some((key, serde_json::from_slice(&value.value).ok()?, value.revision))
        };
        Ok(listed.filter_map(read).collect())
    }
}

/// Triggers are those of releases.
pub(super) fn wants(recipient: &Recipient, notice: &Notice) -> bool {
    let topics = &recipient.topics;
    topics.contains(&notice.topic)
        || (matches!(notice.topic, Topic::Trigger | Topic::Drill) && topics.contains(&Topic::Release))
}

/// Of what is to be sent to a recipient: the same as long as its URL is, and nothing that would give it away.
pub(super) fn kind(recipient: &Recipient) -> String {
    let Recipient { form, target, path, .. } = recipient;
    format!("{KIND}:{}", &digest(&format!("{form:?} {}{path}", target.url()))[..16])
}

/// A text of any length as a short one.
fn digest(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Our keys are short.
fn unreachable_key(error: backstop_store::InvalidKey) -> CommitError {
    CommitError::Store(StoreError::Unusable { store: "store".to_owned(), reason: error.to_string() })
}
