//! Tiers whose work is elsewhere, kept for the next process: `tiers.json` in the state directory. Without it an upgrade or
//! a crash would fail back by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstop_core::event::What;
use backstop_core::standby::Away;
use backstop_gateway::Gateway;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tracing::warn;

const FILE: &str = "tiers.json";

#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Tiers {
    away: Vec<Away>,
}

/// Lets the gateway begin where the last process ended. To be called before it gets its first table.
pub(crate) fn restore(gateway: &Gateway, state_dir: &Path) {
    let path = state_dir.join(FILE);
    let tiers = std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Tiers>(&bytes)?));
    match tiers {
        Ok(tiers) => gateway.set_away(&tiers.away),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let path = path.display();
            warn!(%path, %error, "which tiers had moved to a standby is not known; beginning with the first that serves");
        }
    }
}

/// Keeps the file as things are, for ever.
pub(crate) async fn keep(gateway: Arc<Gateway>, state_dir: PathBuf) {
    let mut events = gateway.subscribe();
    loop {
        match events.recv().await {
            Ok(event) if matches!(event.what, What::Failover { .. } | What::Table { .. }) => {}
            Ok(_) => continue,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
        let (tiers, directory) = (Tiers { away: gateway.away() }, state_dir.clone());
        let written = tokio::task::spawn_blocking(move || write(&tiers, &directory)).await;
        if let Ok(Err(error)) = written {
            warn!(%error, "which tiers have moved to a standby could not be kept; a restart would fail back");
        }
    }
}

/// Nothing is written as long as there is nothing to tell.
fn write(tiers: &Tiers, directory: &Path) -> io::Result<()> {
    let path = directory.join(FILE);
    if tiers.away.is_empty() && !path.exists() {
        return Ok(());
    }
    backstop_controller::replace(&path, &serde_json::to_vec(tiers)?)
}
