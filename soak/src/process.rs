//! Child processes: real ones, killed and stopped by real signals, and never left behind.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

/// A process that is killed when this is dropped, and by the kernel if this process dies first.
pub(crate) struct Child {
    process: std::process::Child,
}

impl Child {
    /// `log` takes what it writes, behind what is there.
    pub(crate) fn spawn(program: &Path, args: &[OsString], log: &Path) -> Result<Self> {
        let sink = File::options().create(true).append(true).open(log);
        let sink = sink.with_context(|| format!("can't write `{}`", log.display()))?;
        let process = Command::new(std::env::current_exe()?)
            .arg("exec")
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(sink.try_clone()?)
            .stderr(sink)
            .spawn()
            .with_context(|| format!("can't start `{}`", program.display()))?;
        Ok(Self { process })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// # Errors
    ///
    /// It has ended. Its id may be another process's by now.
    pub(crate) fn send(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended() {
            anyhow::bail!("the process has ended: {status}");
        }
        Ok(rustix::process::kill_process(Pid::from_child(&self.process), signal)?)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// As the kernel does when memory runs out.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Waits for its end; `None` if it takes longer.
    pub(crate) async fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let patient = async {
            loop {
                if let Some(status) = self.ended() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience, patient).await.ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.kill());
    }
}

/// Replaces this process by `program`, which the kernel kills when the thread that started it ends. Returns only on
/// failure.
pub(crate) fn become_program(program: &OsString, args: &[OsString]) -> anyhow::Error {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    let error = Command::new(program).args(args).exec();
    anyhow::Error::from(error).context(format!("can't start `{}`", program.display()))
}

/// A free loopback port below the ephemeral range: the port of a dead replica must not go to somebody else.
pub(crate) fn free_address() -> Result<SocketAddr> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 1_000).unwrap_or(0) * 11;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let addr = SocketAddr::from(([127, 0, 0, 1], FIRST + start.wrapping_add(step) % COUNT));
        if TcpListener::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    anyhow::bail!("no free loopback port in {FIRST}..{}", FIRST + COUNT)
}

/// A directory for configuration, state and logs; removed at the end unless it is to be kept.
pub(crate) struct Scratch {
    path: PathBuf,
    kept: bool,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("backstop-soak-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("can't make `{}`", path.display()))?;
        Ok(Self { path, kept: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keep(&mut self) -> &Path {
        self.kept = true;
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}
