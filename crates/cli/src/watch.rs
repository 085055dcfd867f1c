//! Hot reload: a changed file or SIGHUP makes [`Control`] read it again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstop_controller::{Actor, Control};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

/// How often files are looked at. Their content is compared, so that a file that is replaced, linked anew (as
/// Kubernetes does with a ConfigMap) or on a network drive is noticed as well.
const LOOK: Duration = Duration::from_millis(500);

/// Reloads for ever: when the file's content is no longer `seen`, and on SIGHUP.
pub(crate) async fn reload(control: Arc<Control>, seen: Vec<u8>) -> anyhow::Result<()> {
    blocking(&control, Control::take_stock).await;
    let mut hangups = signal(SignalKind::hangup())?;
    let mut file = Watched::new(control.config_path().to_owned(), seen);
    loop {
        let actor = tokio::select! {
            () = file.changed() => Actor::File,
            _ = hangups.recv() => {
                file.skip().await;
                Actor::Signal
            }
        };
        // What comes of it is logged.
        blocking(&control, move |control| drop(control.reload(&actor, None))).await;
    }
}

/// For a process that has handed over to a new one: takes what that one serves, for as long as requests run here.
pub(crate) async fn follow(control: Arc<Control>) {
    let mut config = Watched::new(control.config_path().to_owned(), Vec::new());
    let mut intent = Watched::new(control.intent_path().to_owned(), Vec::new());
    let mut routes = Watched::new(control.routes_path().to_owned(), Vec::new());
    loop {
        blocking(&control, Control::follow).await;
        tokio::select! {
            () = config.changed() => {}
            () = intent.changed() => {}
            () = routes.changed() => {}
        }
    }
}

/// Runs what blocks on files where that holds up nobody.
pub(crate) async fn blocking(control: &Arc<Control>, work: impl FnOnce(&Control) + Send + 'static) {
    let control = Arc::clone(control);
    if let Err(error) = tokio::task::spawn_blocking(move || work(&control)).await {
        error!(%error, "files could not be read or written; this is a bug in backstop");
    }
}

/// A file whose content is looked at again and again.
struct Watched {
    path: PathBuf,
    /// As last taken, good or bad.
    seen: Vec<u8>,
    before: Vec<u8>,
}

impl Watched {
    fn new(path: PathBuf, seen: Vec<u8>) -> Self {
        Self { path, before: seen.clone(), seen }
    }

    /// Waits until it holds something else.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what was not told is told the next time.
    async fn changed(&mut self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            // A file that is just being replaced is looked at again in a moment.
            let Ok(content) = tokio::fs::read(&self.path).await else { continue };
            // Two equal looks: a file that is just being written may be valid and still not whole.
            if content == self.before && content != self.seen {
                self.seen = content;
                return;
            }
            self.before = content;
        }
    }

    /// What it holds now counts as seen.
    async fn skip(&mut self) {
        self.seen = tokio::fs::read(&self.path).await.unwrap_or_default();
    }
}
