//! Child processes: started with a log file, ended by their own ids.
//!
//! A child is ended when its `Child` is dropped, and by the kernel if this process dies first.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::measure;

/// How long a child may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) struct Child {
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    pub(crate) fn spawn(
        program: &Path,
        args: &[OsString],
        env: &[(&str, String)],
        cpus: &[usize],
        log: PathBuf,
    ) -> Result<Self> {
        let sink = File::create(&log).context("can't create a log file")?;
        let process = Command::new(std::env::current_exe()?)
            .arg("exec")
            .args(cpus.iter().map(|cpu| format!("--cpus={cpu}")))
            .arg(program)
            .args(args)
            .envs(env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(sink.try_clone()?)
            .stderr(sink)
            .spawn()
            .with_context(|| format!("can't start `{}`", program.display()))?;
        Ok(Self { process, log })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// As a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill().context("can't kill a process")
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// The last lines the child wrote, for error messages.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn wait_until(&mut self, deadline: Instant) -> bool {
        while !self.has_ended() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        let workers = measure::descendants(self.id());
        let _ = rustix::process::kill_process(Pid::from_child(&self.process), Signal::TERM);
        if !self.wait_until(Instant::now() + GRACE) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        // A worker whose parent had to be killed lives on; the start time guards against a reused id.
        for worker in workers {
            let same = measure::stat(worker.pid).is_ok_and(|now| now.started == worker.started);
            if let (true, Some(pid)) = (same, Pid::from_raw(worker.pid.cast_signed())) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Replaces this process by `program`, to be ended by the kernel when the parent ends.
/// Returns only on failure.
pub(crate) fn become_program(cpus: &[usize], program: &OsStr, args: &[OsString]) -> anyhow::Error {
    if let Err(error) = stay_on(cpus) {
        return error.into();
    }
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
        return error.into();
    }
    let error = Command::new(program).args(args).exec();
    anyhow::Error::from(error).context(format!("can't start `{}`", program.display()))
}

/// Which processors the proxies run on, and which the rest. Without this the scheduler now and then
/// lets the upstream run ahead of a proxy, which then meets many chunks at once and looks cheap.
#[derive(Default)]
pub(crate) struct Split {
    /// Empty: anywhere.
    pub(crate) proxies: Vec<usize>,
    rest: Vec<usize>,
}

impl Split {
    /// One processor per worker of a proxy, if that leaves one for the rest; else no split.
    pub(crate) fn new(workers: usize) -> Self {
        let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let mut rest: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        if rest.len() <= workers {
            return Self::default();
        }
        Self { proxies: rest.split_off(rest.len() - workers), rest }
    }

    /// Binds this process, and so the children that are not told otherwise.
    pub(crate) fn apply(&self) -> Result<()> {
        stay_on(&self.rest).context("can't bind to processors\nhint: `--no-pin`")
    }
}

fn stay_on(cpus: &[usize]) -> rustix::io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    sched_setaffinity(None, &set)
}

/// Raises the descriptor limit of this process, and so of its children, as far as allowed.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// A free loopback port below the ephemeral range, so that no outgoing connection can take it first.
pub(crate) fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 1_000).unwrap_or(0) * 11;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free loopback port in {FIRST}..{}", FIRST + COUNT)
}

/// A directory for configuration and logs, removed on drop.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("backstop-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
