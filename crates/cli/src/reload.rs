//! Hot reload: a changed file or SIGHUP → read → check → one swap. A bad configuration changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstop_config::{Config, Intent};
use backstop_gateway::Gateway;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// How often the file is looked at. Its content is compared, so that a file that is replaced, linked anew (as
/// Kubernetes does with a ConfigMap) or on a network drive is noticed as well.
const LOOK: Duration = Duration::from_millis(500);

/// What serves now, and the file it came from.
pub(crate) struct Reloader {
    path: PathBuf,
    /// As last taken, good or bad.
    seen: Vec<u8>,
    /// What the process was started with.
    started_with: Config,
    revision: u64,
    gateway: Arc<Gateway>,
    hangups: Signal,
}

impl Reloader {
    /// `config` serves as revision 1; it was read from `path` when that contained `seen`.
    pub(crate) fn new(
        path: &Path,
        seen: Vec<u8>,
        config: Config,
        gateway: Arc<Gateway>,
    ) -> anyhow::Result<Self> {
        let hangups = signal(SignalKind::hangup())?;
        Ok(Self { path: path.to_owned(), seen, started_with: config, revision: 1, gateway, hangups })
    }

    /// Follows the file for ever.
    pub(crate) async fn watch(mut self) {
        let mut before = self.seen.clone();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    // A file that is just being replaced is looked at again in a moment.
                    let Ok(content) = tokio::fs::read(&self.path).await else { continue };
                    // Two equal looks: a file that is just being written may be valid and still not whole.
                    if content == before && content != self.seen {
                        self.seen.clone_from(&content);
                        self.reload("the file changed");
                    }
                    before = content;
                }
                _ = self.hangups.recv() => {
                    self.seen = tokio::fs::read(&self.path).await.unwrap_or_default();
                    self.reload("SIGHUP");
                }
            }
        }
    }

    fn reload(&mut self, why: &str) {
        let config = match backstop_config::load(&self.path) {
            Ok(config) => config,
            Err(problems) => {
                let count = problems.len();
                error!(
                    why,
                    revision = self.revision,
                    "reload refused, the old configuration keeps serving: {count} problems"
                );
                for problem in &problems {
                    error!("{problem}");
                }
                return;
            }
        };
        let fixed = |config: &Config| {
            (config.listen(), config.admin_listen(), format!("{:?} {:?}", config.store(), config.state_dir()))
        };
        if fixed(&config) != fixed(&self.started_with) {
            warn!(
                "`listen`, `admin`, `store` and `state_dir` change only with a restart; the rest is applied"
            );
        }
        self.revision += 1;
        self.gateway.apply(&backstop_config::compile(&config, &Intent::default(), self.revision));
        info!(why, revision = self.revision, "configuration reloaded");
    }
}
