//! The old process' side: it can be found, gives its sockets away, and lets go when the new one serves.

use std::fs::{self, DirBuilder, Permissions};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, bail};
use backstop_controller::Control;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::signal::unix::Signal;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use super::wire::{Channel, FromNew, FromOld, PROTOCOL};
use super::{ANSWER, SOCKET, notify};
use crate::listeners::Handed;
use crate::watch;

/// How long a new process may take until it serves. It waits for its first health checks.
const PREPARE: Duration = Duration::from_secs(60);

/// The place in the file system where a new process finds this one. Removed when dropped.
pub(super) struct Seat {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: by the time of the drop the path may be another's.
    identity: (u64, u64),
}

/// A process that wants to take over, and what has become of it so far.
struct Candidate<'a> {
    pid: Option<i32>,
    /// Resolves to a channel when it serves, to `None` when it has failed.
    attending: Pin<Box<dyn Future<Output = Option<Channel>> + Send + 'a>>,
}

impl Seat {
    /// Fails if another process has it; what a dead one left behind is replaced.
    pub(super) async fn take_if_free(state_dir: &Path) -> anyhow::Result<Self> {
        if UnixStream::connect(state_dir.join(SOCKET)).await.is_ok() {
            bail!("another process has `{0}`; hint: give each its own `state_dir`", state_dir.display());
        }
        Self::take(state_dir)
    }

    /// Whoever had it is found no more.
    pub(super) fn take(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(SOCKET);
        let bound = Self::bind(state_dir, &path);
        let (listener, identity) = bound.with_context(|| format!("can't create `{}`", path.display()))?;
        Ok(Self { listener, path, identity })
    }

    /// Bound under another name and then moved, so that there is always one to connect to, with the right mode.
    fn bind(state_dir: &Path, path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
        let temporary = state_dir.join(format!("{SOCKET}.{}", std::process::id()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
        let metadata = fs::symlink_metadata(&temporary)?;
        fs::rename(&temporary, path)?;
        Ok((listener, (metadata.dev(), metadata.ino())))
    }

    /// Answers whoever comes, one at a time, until a new process serves.
    pub(super) async fn until_handed_over(
        self,
        sockets: &[Handed],
        control: &Arc<Control>,
        upgrades: &mut Signal,
    ) {
        let mut candidate: Option<Candidate<'_>> = None;
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => admit(stream, sockets, &mut candidate).await,
                    Err(error) => {
                        warn!(%error, "a new process could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                channel = poll_fn(|cx| match &mut candidate {
                    Some(candidate) => candidate.attending.as_mut().poll(cx),
                    None => Poll::Pending,
                }) => {
                    let pid = candidate.take().and_then(|candidate| candidate.pid);
                    if let Some(channel) = channel && let Some(channel) = let_go(channel, pid, control).await {
                        drop(tokio::spawn(self.leave(channel)));
                        return;
                    }
                }
                _ = upgrades.recv() => start_successor(),
            }
        }
    }

    /// Stays until the new process can be found in place of this one.
    async fn leave(self, mut channel: Channel) {
        // Whatever comes, the other side has closed or taken too long.
        drop(timeout(ANSWER, channel.receive::<FromNew>()).await);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let metadata = fs::symlink_metadata(&self.path);
        if metadata.is_ok_and(|it| (it.dev(), it.ino()) == self.identity) {
            // One that stays is replaced by the next process.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a process that has connected the candidate, if it may be one.
async fn admit<'a>(stream: UnixStream, sockets: &'a [Handed], candidate: &mut Option<Candidate<'a>>) {
    let (uid, pid) = match stream.peer_cred() {
        Ok(peer) => (peer.uid(), peer.pid()),
        Err(error) => return warn!(%error, "a process that wants to take over can't be identified"),
    };
    let mut channel = Channel::new(stream);
    let own = rustix::process::geteuid().as_raw();
    if uid != own {
        warn!(pid, uid, "a process of another user wants to take over; refused");
        refuse(&mut channel, format!("it runs as the user {own}, and you as {uid}")).await;
    } else if let Some(other) = candidate {
        let other = other.pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
        refuse(&mut channel, format!("{other} is just taking over")).await;
    } else {
        let attending = Box::pin(attend(channel, pid, sockets));
        *candidate = Some(Candidate { pid, attending });
    }
}

/// From the first word of a new process to the one that it serves; `None` if it does not come to that.
async fn attend(mut channel: Channel, pid: Option<i32>, sockets: &[Handed]) -> Option<Channel> {
    match timeout(ANSWER, channel.receive()).await {
        Ok(Ok(Some(FromNew::TakeOver { protocol: PROTOCOL }))) => {}
        Ok(Ok(Some(FromNew::TakeOver { protocol }))) => {
            warn!(pid, "a process wants to take over with protocol {protocol}, not {PROTOCOL}; refused");
            let reason = format!("it hands over with protocol {PROTOCOL}, not {protocol}");
            refuse(&mut channel, reason).await;
            return None;
        }
        // It only looked whether somebody is here.
        Ok(Ok(None)) => return None,
        said => {
            debug!(pid, ?said, "not understood");
            refuse(&mut channel, "it does not understand what is said".to_owned()).await;
            return None;
        }
    }
    info!(pid, "a new process is taking over");
    let labels = sockets.iter().map(|it| it.label).collect();
    let fds: Vec<_> = sockets.iter().map(|it| it.socket.as_fd()).collect();
    if let Err(error) = channel.send(&FromOld::Sockets { labels }, &fds).await {
        warn!(pid, %error, "the sockets could not be handed over; serving on");
        return None;
    }
    match timeout(PREPARE, channel.receive()).await {
        Ok(Ok(Some(FromNew::Serving))) => return Some(channel),
        Ok(Ok(None)) => warn!(pid, "the new process ended before it served; serving on"),
        Ok(said) => {
            warn!(pid, ?said, "the new process is not understood; serving on");
            refuse(&mut channel, "it does not understand what is said".to_owned()).await;
        }
        Err(_) => {
            warn!(pid, "the new process did not serve within {PREPARE:?}; serving on");
            refuse(&mut channel, format!("it has waited for {PREPARE:?}")).await;
        }
    }
    None
}

/// Tells the new process that this one lets go; `None` if that one is gone already. From that word on the new one takes
/// changes, so this one must not any more.
async fn let_go(channel: Channel, pid: Option<i32>, control: &Arc<Control>) -> Option<Channel> {
    watch::blocking(control, Control::follow).await;
    if let Some(pid) = pid {
        notify(&format!("MAINPID={pid}"));
    }
    match channel.send(&FromOld::Draining, &[]).await {
        Ok(()) => {
            info!(pid, "handed over; draining");
            Some(channel)
        }
        Err(error) => {
            warn!(pid, %error, "the new process ended as it began to serve; serving on");
            notify(&format!("MAINPID={}", std::process::id()));
            watch::blocking(control, Control::lead).await;
            None
        }
    }
}

async fn refuse(channel: &mut Channel, reason: String) {
    // Whoever does not listen is not told.
    drop(timeout(ANSWER, channel.send(&FromOld::Refused { reason }, &[])).await);
}

/// Runs the program anew, whatever it is by now, as this one was run.
fn start_successor() {
    const TAKE_OVER: &str = "--take-over";
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if !arguments.iter().any(|it| it == TAKE_OVER) {
        arguments.push(TAKE_OVER.into());
    }
    let program = arguments.remove(0);
    match Command::new(&program).args(&arguments).stdin(std::process::Stdio::null()).spawn() {
        Ok(mut child) => {
            info!(pid = child.id(), program = %program.display(), "SIGUSR2: started a new process");
            drop(tokio::spawn(async move {
                match child.wait().await {
                    Ok(status) if status.success() => {}
                    Ok(status) => error!("the new process has failed ({status})"),
                    Err(error) => error!(%error, "the new process can't be watched"),
                }
            }));
        }
        Err(error) => error!(%error, program = %program.display(), "SIGUSR2: a new process can't be started"),
    }
}
