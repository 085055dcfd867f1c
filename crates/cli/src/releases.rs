//! Releases of a process that serves: begin when the store is open.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backstop_config::Store as Configured;
use backstop_controller::{Control, Releases};
use backstop_core::event::Medium;
use backstop_store::{Store, StoreError};
use tracing::{error, info};

/// Pause before a store that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Opens the store, as often as it takes, puts the releases in it into `place`, and looks after them for ever.
pub(crate) async fn look_after(
    configured: Configured,
    control: Arc<Control>,
    place: Arc<OnceLock<Arc<Releases>>>,
) {
    let mut said = None;
    let (releases, store) = loop {
        match open(&configured, &control).await {
            Ok(opened) => break opened,
            Err(error) => {
                // Once, and again when it is another one.
                control.storage(Medium::Store, Err(error.to_string()));
                if said.as_ref() != Some(&error) {
                    error!(%error, "there are no releases and no notifications until the store can be used; requests are served all the same");
                }
                said = Some(error);
            }
        }
        tokio::time::sleep(AGAIN).await;
    };
    control.storage(Medium::Store, Ok(()));
    if said.is_some() {
        info!("the store is open");
    }
    let releases = place.get_or_init(|| releases);
    let (run, measure) = (Arc::clone(releases).run(), Arc::clone(releases).measure());
    let recording = backstop_controller::record(Arc::clone(&control), store.clone());
    tokio::join!(run, measure, recording, backstop_controller::notify(control, store));
}

async fn open(configured: &Configured, control: &Arc<Control>) -> Result<(Arc<Releases>, Store), StoreError> {
    let store = match configured {
        Configured::Sqlite(path) => Store::open(path).await?,
        Configured::Memory => Store::in_memory().await?,
    };
    let releases = Releases::open(Arc::clone(control), store.clone()).await?;
    Ok((releases, store))
}
