//! A store whose thread is held up.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::backend::{Backend, Changes};
use crate::history::{Chain, Stored};
use crate::{HistoryFilter, Listed, Pending, Recorded, StoreError, Value};

const PATIENCE: Duration = Duration::from_secs(3);

/// Takes each commit only when it is let.
struct Slow {
    begun: Sender<()>,
    go_on: Receiver<()>,
    commits: u64,
}

impl Backend for Slow {
    fn commit(&mut self, _: &Commit) -> Result<Revision, CommitError> {
        self.begun.send(()).unwrap();
        self.go_on.recv().unwrap();
        self.commits += 1;
        Ok(Revision(self.commits))
    }
    fn get(&mut self, _: &Key) -> Result<Option<Value>, StoreError> {
        panic!("a backend that has died")
    }
    fn list(&mut self, _: &Key) -> Result<Listed, StoreError> {
        unreachable!()
    }
    fn last(&mut self, _: &Key, _: usize) -> Result<Vec<(Key, Value)>, StoreError> {
        unreachable!()
    }
    fn keys(&mut self, _: &Key) -> Result<Vec<Key>, StoreError> {
        unreachable!()
    }
    fn changes(&mut self, _: Revision) -> Result<Changes, StoreError> {
        unreachable!()
    }
    fn history(&mut self, _: &HistoryFilter) -> Result<Vec<Recorded>, StoreError> {
        unreachable!()
    }
    fn entries(&mut self, _: u64) -> Result<Vec<Stored>, StoreError> {
        unreachable!()
    }
    fn head(&mut self) -> Result<Chain, StoreError> {
        unreachable!()
    }
    fn pending(&mut self, _: &str, _: u64, _: usize) -> Result<Vec<Pending>, StoreError> {
        unreachable!()
    }
    fn count(&mut self, _: &str) -> Result<u64, StoreError> {
        unreachable!()
    }
    fn acquire(&mut self, _: &str, _: &str, _: u64, _: u64) -> Result<Option<u64>, StoreError> {
        unreachable!()
    }
    fn holder(&mut self, _: &str) -> Result<Option<String>, StoreError> {
        unreachable!()
    }
    fn renew(&mut self, _: &str, _: u64, _: u64, _: u64) -> Result<bool, StoreError> {
        unreachable!()
    }
    fn release(&mut self, _: &str, _: u64) -> Result<(), StoreError> {
        unreachable!()
    }
    fn check(&mut self) -> Result<(), StoreError> {
        unreachable!()
    }
    fn backup(&mut self, _: &Path) -> Result<(), StoreError> {
        unreachable!()
    }
}

async fn slow() -> (Store, Receiver<()>, Sender<()>) {
    let ((begun, begins), (goes_on, go_on)) = (channel(), channel());
    let store = Store::start(move || Ok(Slow { begun, go_on, commits: 0 }), PATIENCE).await.unwrap();
    (store, begins, goes_on)
}

fn write(store: &Store) -> impl Future<Output = Result<Revision, CommitError>> {
    store.commit(Commit { ops: vec![put("chat", "1")], ..Commit::default() })
}

#[tokio::test]
async fn a_call_that_was_given_up_before_its_turn_never_happens() {
    let (store, begins, goes_on) = slow().await;
    tokio::time::pause();
    // The first has begun and nobody knows what becomes of it; the others have not, as many as there are.
    let (first, others) = tokio::join!(write(&store), async {
        begins.recv().unwrap();
        let mut others = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let store = store.clone();
            others.spawn(async move { write(&store).await });
        }
        others.join_all().await
    });
    assert_eq!(first, Err(StoreError::Unknown { seconds: 3 }.into()));
    assert_eq!(others.len(), 100);
    assert!(others.iter().all(|other| *other == Err(StoreError::Timeout { seconds: 3 }.into())));
    tokio::time::resume();
    goes_on.send(()).unwrap();
    goes_on.send(()).unwrap();
    // So this is the second that happens.
    assert_eq!(write(&store).await, Ok(Revision(2)));
}

#[tokio::test]
async fn a_call_that_was_dropped_before_its_turn_never_happens() {
    let (store, begins, goes_on) = slow().await;
    let (first, ()) = tokio::join!(write(&store), async {
        begins.recv().unwrap();
        let mut dropped = Box::pin(write(&store));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx))).await.is_pending()
        );
        drop(dropped);
        goes_on.send(()).unwrap();
    });
    goes_on.send(()).unwrap();
    assert_eq!((first, write(&store).await), (Ok(Revision(1)), Ok(Revision(2))));
}

#[tokio::test]
async fn callers_are_told_that_the_store_is_gone() {
    let (store, _begins, _goes_on) = slow().await;
    for _ in 0..2 {
        assert_eq!(store.get(&key("chat")).await, Err(StoreError::Closed));
    }
}
