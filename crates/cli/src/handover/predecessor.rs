//! The new process' side: it finds the running one, receives its sockets, and relieves it.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{info, warn};

use super::wire::{Channel, FromNew, FromOld, PROTOCOL};
use super::{ANSWER, SOCKET};
use crate::listeners::Handed;

/// How often, and with which pause, one that ends or is replaced just now is looked for again.
const LOOKS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// The process that serves now and will, as soon as it is relieved, serve no more.
pub(crate) struct Predecessor {
    channel: Channel,
    pid: Option<i32>,
    sockets: Vec<Handed>,
}

impl Predecessor {
    /// `None` if no process serves with this state directory.
    pub(crate) async fn find(state_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = state_dir.join(SOCKET);
        let context = || format!("can't take over from the process at `{}`", path.display());
        for _ in 0..LOOKS {
            match UnixStream::connect(&path).await {
                Ok(stream) => {
                    if let Some(found) = timeout(ANSWER, Self::ask(stream))
                        .await
                        .unwrap_or_else(|_| Err(anyhow!("it does not answer within {ANSWER:?}")))
                        .with_context(context)?
                    {
                        info!(pid = found.pid, "taking over");
                        return Ok(Some(found));
                    }
                }
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    return Err(anyhow!("{error}\nhint: run it as the same user").context(context()));
                }
                Err(error) if is_nobody(&error) => return Ok(None),
                Err(error) => return Err(anyhow!(error).context(context())),
            }
            // It ended, or another one took its place.
            tokio::time::sleep(PAUSE).await;
        }
        Err(anyhow!("it closes the connection").context(context()))
    }

    /// `None` if it has gone.
    async fn ask(stream: UnixStream) -> anyhow::Result<Option<Self>> {
        let peer = stream.peer_cred()?;
        let own = rustix::process::geteuid().as_raw();
        if peer.uid() != own {
            bail!("it runs as the user {}, and this one as {own}\nhint: run it as the same user", peer.uid());
        }
        let mut channel = Channel::new(stream);
        if channel.send(&FromNew::TakeOver { protocol: PROTOCOL }, &[]).await.is_err() {
            return Ok(None);
        }
        let labels = match channel.receive().await? {
            None => return Ok(None),
            Some(FromOld::Sockets { labels }) => labels,
            Some(FromOld::Refused { reason }) => bail!("{reason}"),
            Some(FromOld::Draining) => bail!("it is not understood"),
        };
        let received = std::mem::take(&mut channel.sockets);
        let sockets =
            labels.into_iter().zip(received).map(|(label, socket)| Handed { label, socket }).collect();
        Ok(Some(Self { channel, pid: peer.pid(), sockets }))
    }

    /// The sockets that it listens on.
    pub(crate) fn take_sockets(&mut self) -> Vec<Handed> {
        std::mem::take(&mut self.sockets)
    }

    /// Tells it that this process serves. It can be found until what this returns is dropped.
    pub(super) async fn relieve(mut self) -> anyhow::Result<Option<Self>> {
        let pid = self.pid;
        let gone = || {
            warn!(pid, "the old process ended before it was relieved");
            Ok(None)
        };
        if self.channel.send(&FromNew::Serving, &[]).await.is_err() {
            return gone();
        }
        match timeout(ANSWER, self.channel.receive()).await {
            Ok(Ok(Some(FromOld::Draining))) => {
                info!(pid, "taken over; the old process drains");
                Ok(Some(self))
            }
            Ok(Ok(None)) => gone(),
            Ok(Ok(Some(FromOld::Refused { reason }))) => bail!("the old process goes on: {reason}"),
            Ok(said) => bail!("the old process is not understood: {said:?}"),
            Err(_) => {
                warn!(pid, "the old process does not answer; it may still accept connections");
                // It will find that it is relieved when it comes to itself.
                drop(tokio::spawn(async move { self.channel.receive::<FromOld>().await }));
                Ok(None)
            }
        }
    }
}

/// Whether an attempt to connect shows that nobody can be there.
fn is_nobody(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::ConnectionRefused,
        ErrorKind::NotADirectory,
        ErrorKind::InvalidInput,
    ];
    kinds.contains(&error.kind())
}
