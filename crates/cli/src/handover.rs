//! Restart without a gap: a new process takes over the listening sockets of the one that runs.
//!
//! The running process listens on `handover.sock` in its state directory. A new one connects there, receives the
//! sockets, prepares until it could serve, begins to accept, and only then says so; then the old one stops accepting
//! and drains. The sockets exist all the while, with the connections that wait in them, so that none is refused or
//! lost. Until the new process has said that it serves, its failure changes nothing; and whichever of the two is
//! killed, the other one still has the sockets.

mod predecessor;
mod seat;
mod systemd;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstop_controller::Control;
use backstop_core::health::State;
use backstop_core::status::EndpointStatus;
use backstop_gateway::Gateway;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tracing::{error, warn};

use crate::listeners::Handed;
use crate::watch;
pub(crate) use predecessor::Predecessor;
use seat::Seat;
pub(crate) use systemd::notify;

/// The unix socket in the state directory.
const SOCKET: &str = "handover.sock";
/// How long a process that takes over waits for its first health checks.
const FIRST_CHECKS: Duration = Duration::from_secs(5);
/// How long the other process may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// This process' part in hand-overs: first as the new one, if it takes over from another, then as the old one.
pub(crate) struct Handover {
    state_dir: PathBuf,
    sockets: Vec<Handed>,
    predecessor: Option<Predecessor>,
    /// Where the next process finds this one.
    seat: Option<Seat>,
    control: Arc<Control>,
    /// SIGUSR2: start the program anew and hand over to it.
    upgrades: Signal,
}

impl Handover {
    /// `sockets` are copies of those that this process accepts from.
    pub(crate) fn new(
        state_dir: &Path,
        sockets: Vec<Handed>,
        predecessor: Option<Predecessor>,
        control: Arc<Control>,
    ) -> anyhow::Result<Self> {
        let upgrades = signal(SignalKind::user_defined2())?;
        let state_dir = state_dir.to_owned();
        Ok(Self { state_dir, sockets, predecessor, seat: None, control, upgrades })
    }

    /// Waits until each service has an endpoint that is found fit to serve, as far as that comes soon: a process that
    /// takes over must not begin blind. The first process of all lets its clients see how it stands.
    pub(crate) async fn prepared(&self, gateway: &Gateway) {
        if self.predecessor.is_none() {
            return;
        }
        let checked = async {
            while !without_endpoint(gateway).is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(FIRST_CHECKS, checked).await.is_err() {
            for service in without_endpoint(gateway) {
                warn!(service, "taking over though no endpoint is healthy yet");
            }
        }
    }

    /// Makes this process the one that is found and that takes changes. Fails if it must not serve, since its
    /// predecessor goes on. To be called only once connections are accepted.
    pub(crate) async fn relieve(&mut self) -> anyhow::Result<()> {
        let seat = match self.predecessor.take() {
            Some(predecessor) => {
                let predecessor = predecessor.relieve().await?;
                let seat = Seat::take(&self.state_dir);
                // It keeps its own until now, so that a third process always finds somebody.
                drop(predecessor);
                // Changes that were made there meanwhile.
                watch::blocking(&self.control, Control::lead).await;
                seat
            }
            None => Seat::take_if_free(&self.state_dir).await,
        };
        self.seat =
            seat.inspect_err(|error| warn!("`--take-over` will not find this process: {error:#}")).ok();
        notify("READY=1");
        Ok(())
    }

    /// Resolves when another process accepts connections and takes changes in place of this one.
    pub(crate) async fn until_handed_over(mut self) {
        let Some(seat) = self.seat.take() else {
            while self.upgrades.recv().await.is_some() {
                error!("SIGUSR2: a new process would not find this one, as was said when it began to serve");
            }
            return std::future::pending().await;
        };
        seat.until_handed_over(&self.sockets, &self.control, &mut self.upgrades).await;
    }
}

/// Services whose stable version has no endpoint that serves.
fn without_endpoint(gateway: &Gateway) -> Vec<String> {
    let serves = |endpoint: &EndpointStatus| matches!(endpoint.state, State::Healthy | State::Degraded);
    let mut services = gateway.status().services;
    services.retain(|service| {
        let stable = service.versions.iter().filter(|version| version.name == service.stable);
        !stable.flat_map(|version| &version.endpoints).any(serves)
    });
    services.into_iter().map(|service| service.name).collect()
}
