//! The archive: the last releases of a service that have ended, whole. Of earlier ones the history has what was told.

use backstop_core::rollout::Release;
use backstop_store::{Key, Op};
use tokio::time::timeout;

use super::{COMMIT_TIMEOUT, MOST_LISTED, Releases, key, lock};

/// So many are dropped with one commit: it takes only so much.
const MOST_DROPPED: usize = 10;

impl Releases {
    /// What has to go when release `id` of `service` is put into the archive. Nothing, if that can't be told now: then the next
    /// one drops more.
    pub(super) async fn out_of_the_archive(&self, service: &str, id: &str) -> Vec<Op> {
        let known = lock(&self.archived).get(service).cloned();
        let mut ids = match known {
            Some(ids) => ids,
            None => {
                let read = timeout(COMMIT_TIMEOUT, self.store.keys(&key(&["ended", service]))).await;
                let Ok(Ok(keys)) = read else { return Vec::new() };
                let ids: Vec<String> = keys.iter().filter_map(|key| key.parts().pop()).collect();
                lock(&self.archived).insert(service.to_owned(), ids.clone());
                ids
            }
        };
        ids.retain(|known| known != id);
        // With the one that comes.
        let too_many = (ids.len() + 1).saturating_sub(MOST_LISTED).min(MOST_DROPPED);
        ids.drain(..too_many).map(|id| Op::Delete { key: key_of(service, &id) }).collect()
    }

    /// A release is in the archive, and those that had to go are not.
    pub(super) fn archived(&self, release: &Release) {
        let mut archived = lock(&self.archived);
        let Some(ids) = archived.get_mut(&release.service) else { return };
        ids.retain(|known| *known != release.id);
        let too_many = (ids.len() + 1).saturating_sub(MOST_LISTED).min(MOST_DROPPED);
        ids.drain(..too_many);
        ids.push(release.id.clone());
    }
}

pub(super) fn key_of(service: &str, id: &str) -> Key {
    key(&["ended", service, id])
}
