//! Tells people what happens: failovers of the data plane, and whatever else is enqueued as a [`Notice`].
//!
//! Everything goes through the store: an event is enqueued, then it is decided who has to be told (`told`: nobody, if
//! it is no news), then each recipient is told one thing after the other, again and again until it has taken it. Each
//! step is one commit, so that after `kill -9` it goes on where it was; what was being sent is sent again, with the same
//! id. Of several processes on one store the one with the lease does it.
//!
//! It must not hold up anybody: the data plane keeps its last 1,024 events for whoever comes late.

mod client;
mod delivery;
mod format;
mod mapping;
mod notice;
mod outbox;
mod release;
#[cfg(test)]
mod tests;
mod time;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use backstop_config::{Form, Recipient, Topic};
use backstop_core::event::What;
use backstop_store::{Commit, CommitError, Fence, Op, Store};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, error, warn};

use crate::Control;
use crate::control::unix_millis;
pub(crate) use client::Client;
use notice::Notice;
use outbox::{Dropped, Outbox};
pub(crate) use release::{of_file, of_release};

const LEASE: &str = "notify";
/// How long nobody else tells people after a process has died; the same Backstop goes on at once.
const LEASE_LASTS: Duration = Duration::from_secs(15);
/// Events that are enqueued with one commit.
const BATCH: usize = 50;

/// How long things take; other times are for tests.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two looks at what waits.
    look: Duration,
    /// Between two times that an Alertmanager is told what still lasts.
    refresh: Duration,
    /// For so long a state is not told again.
    window: Duration,
    /// How long a recipient may take to answer.
    timeout: Duration,
    /// After the first attempt that failed; doubles.
    backoff: Duration,
    backoff_max: Duration,
    /// Age at which a notice is given up.
    give_up: Duration,
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

const PACE: Pace = Pace {
    look: Duration::from_secs(5),
    refresh: Duration::from_secs(60),
    window: Duration::from_secs(60),
    timeout: ANSWER_TIMEOUT,
    backoff: Duration::from_secs(1),
    backoff_max: Duration::from_secs(300),
    give_up: MAX_AGE,
};

/// Tells whom the configuration names, for ever. What is to be told is kept in `store`.
pub async fn notify(control: Arc<Control>, store: Store) {
    Notifier::new(control, store, Client::new(), PACE).run().await;
}

struct Notifier {
    control: Arc<Control>,
    store: Store,
    client: Arc<Client>,
    pace: Pace,
    /// Tells this process from others, in ids of notices.
    process: String,
    /// The last event of the data plane that has been enqueued.
    seen: u64,
    /// Something has gone wrong, and has been told.
    in_trouble: bool,
}

impl Notifier {
    fn new(control: Arc<Control>, store: Store, client: Client, pace: Pace) -> Self {
        let (client, process) = (Arc::new(client), format!("{:016x}", rand::random::<u64>()));
        Self { control, store, client, pace, process, seen: 0, in_trouble: false }
    }

    async fn run(mut self) {
        // The same for the next process of this Backstop, which then goes on at once.
        let state_dir = self.control.current().config.state_dir().to_owned();
        let holder = std::path::absolute(&state_dir).unwrap_or(state_dir).display().to_string();
        loop {
            match self.store.acquire(LEASE, &holder, LEASE_LASTS, unix_millis()).await {
                Ok(Some(epoch)) => self.lead(epoch).await,
                // It is told what happens here, too.
                Ok(None) => {
                    if let Err(error) = self.take_events().await {
                        self.trouble(&error);
                    }
                }
                Err(error) => self.trouble(&error.into()),
            }
            sleep(LEASE_LASTS / 3).await;
        }
    }

    /// Until somebody else has the lease.
    async fn lead(&mut self, epoch: u64) {
        let fence = Fence { lease: LEASE.to_owned(), epoch };
        let window = u64::try_from(self.pace.window.as_millis()).unwrap_or(u64::MAX);
        let (control, store) = (Arc::clone(&self.control), self.store.clone());
        let outbox = Outbox { control, store, fence, window };
        let mut events = self.control.data_plane().subscribe();
        let mut workers = Workers::new(Arc::clone(&self.control), Arc::clone(&self.client), self.pace);
        let mut look = interval(self.pace.look);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refresh = interval(self.pace.refresh);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self.turn(&outbox, &mut workers).await {
                Ok(()) => self.in_trouble = false,
                Err(CommitError::Fenced { .. }) => return,
                Err(error) => self.trouble(&error),
            }
            tokio::select! {
                // All of them are looked up by their ids; missed ones too, as long as they are kept.
                _ = events.recv() => {}
                _ = look.tick() => match self.store.renew(LEASE, epoch, LEASE_LASTS, unix_millis()).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => self.trouble(&error.into()),
                },
                _ = refresh.tick() => self.refresh(&outbox).await,
            }
        }
    }

    /// Everything that is to be done now.
    async fn turn(&mut self, outbox: &Outbox, workers: &mut Workers) -> Result<(), CommitError> {
        self.take_events().await?;
        let now = unix_millis();
        let mut dropped = outbox.fan_out(now).await?;
        dropped.extend(outbox.wait(now).await?);
        let recipients = outbox.recipients();
        outbox.forget_others(&recipients).await?;
        workers.be_for(&recipients, outbox);
        workers.wake();
        for (recipient, notice) in dropped {
            self.undelivered((recipient, notice));
        }
        Ok(())
    }

    /// Enqueues what has happened since the last time. With nobody to tell it is only passed by.
    async fn take_events(&mut self) -> Result<(), CommitError> {
        let events = self.control.data_plane().events_after(self.seen);
        let Some(first) = events.first() else { return Ok(()) };
        if first.id > self.seen + 1 {
            error!(
                missed = first.id - self.seen - 1,
                "events came faster than they could be kept to be told"
            );
        }
        let nobody = self.control.current().config.notify().is_empty();
        for events in events.chunks(BATCH) {
            let notices = events.iter().flat_map(|event| mapping::notices(event, &self.process));
            // What leaves the configuration is drained; nobody has to be told that.
            let is_leaving = |notice: &Notice| notice.state == "draining" && !self.has(&notice.labels);
            let ops: Vec<Op> =
                notices.filter(|notice| !is_leaving(notice)).map(|notice| notice.enqueue()).collect();
            if !ops.is_empty() && !nobody {
                self.store.commit(Commit { ops, ..Commit::default() }).await?;
            }
            self.seen = events.last().map_or(self.seen, |event| event.id);
        }
        Ok(())
    }

    /// Whether there is what the labels of a notice name.
    fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        let label = |name: &str| labels.get(name).map(String::as_str);
        let (Some(service), Some(version)) = (label("service"), label("version")) else { return true };
        let (endpoint, tier) = (label("endpoint"), label("tier"));
        let status = self.control.data_plane().status();
        let service = status.services.iter().find(|it| it.name == service);
        let version = service.and_then(|service| service.versions.iter().find(|it| it.name == version));
        version.is_some_and(|version| {
            endpoint.is_none_or(|url| version.endpoints.iter().any(|it| it.url == url))
                && tier.is_none_or(|tier| version.tiers.iter().any(|it| it.name == tier))
        })
    }

    /// Resolves what is no longer in the configuration, and tells Alertmanagers, which forget, what still lasts.
    async fn refresh(&mut self, outbox: &Outbox) {
        let (now, recipients) = (unix_millis(), outbox.recipients());
        let is_gone = |notice: &Notice| notice.topic == Topic::Failover && !self.has(&notice.labels);
        let firing = match outbox.firing(is_gone, now).await {
            Ok(firing) => firing,
            Err(error) => return self.trouble(&error),
        };
        for recipient in recipients.iter().filter(|recipient| recipient.form == Form::Alertmanager) {
            let theirs = firing.iter().filter(|notice| outbox::wants(recipient, notice));
            // What has not been told yet is told in its turn.
            let is_waiting = outbox.next(&outbox::kind(recipient)).await.map_or(true, |next| next.is_some());
            if is_waiting || theirs.clone().next().is_none() {
                continue;
            }
            let Ok(request) = format::still_firing(recipient, theirs, now) else { continue };
            let sent = timeout(self.pace.timeout, self.client.send(&recipient.target, request)).await;
            if !matches!(&sent, Ok(Ok((head, _))) if head.status.is_success()) {
                debug!(%recipient, "was not told what still lasts; the next time comes soon");
            }
        }
    }

    /// The store does not do what it should.
    fn trouble(&mut self, error: &CommitError) {
        // Somebody else has decided something at the same time; the next turn sees it.
        let is_passing = matches!(error, CommitError::Conflict { .. });
        if !is_passing && !std::mem::replace(&mut self.in_trouble, true) {
            warn!(%error, "people can't be told what happens; it is tried again");
        }
    }

    fn undelivered(&self, (recipient, notice): Dropped) {
        let reason = "too much waits for it".to_owned();
        self.control.data_plane().emit(What::Undelivered { recipient, notice: notice.title, reason });
    }
}

/// One task for each recipient.
struct Workers {
    control: Arc<Control>,
    client: Arc<Client>,
    pace: Pace,
    running: HashMap<String, (Recipient, AbortHandle)>,
    tasks: JoinSet<()>,
    /// There may be something to do.
    news: watch::Sender<u64>,
}

impl Workers {
    fn new(control: Arc<Control>, client: Arc<Client>, pace: Pace) -> Self {
        let (running, tasks, news) = (HashMap::new(), JoinSet::new(), watch::Sender::new(0));
        Self { control, client, pace, running, tasks, news }
    }

    /// There is one for each of `recipients`, and none for others.
    fn be_for(&mut self, recipients: &[Recipient], outbox: &Outbox) {
        while self.tasks.try_join_next().is_some() {}
        self.running.retain(|_, (recipient, task)| {
            let kept = recipients.contains(recipient) && !task.is_finished();
            if !kept {
                task.abort();
            }
            kept
        });
        for recipient in recipients {
            let kind = outbox::kind(recipient);
            if self.running.contains_key(&kind) {
                continue;
            }
            let task = self.tasks.spawn(self.worker(recipient.clone(), outbox.clone()));
            self.running.insert(kind, (recipient.clone(), task));
        }
    }

    fn worker(&self, recipient: Recipient, outbox: Outbox) -> impl Future<Output = ()> + use<> {
        let (control, client, pace) = (Arc::clone(&self.control), Arc::clone(&self.client), self.pace);
        let news = self.news.subscribe();
        async move {
            let given_up = |recipient: &Recipient, notice: &Notice, reason: String| {
                let (recipient, notice) = (recipient.to_string(), notice.title.clone());
                control.data_plane().emit(What::Undelivered { recipient, notice, reason });
            };
            delivery::deliver(recipient, outbox, &client, pace, news, given_up).await;
        }
    }

    fn wake(&self) {
        self.news.send_modify(|count| *count += 1);
    }
}
