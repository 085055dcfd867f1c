//! A proxy under test: where its program is, how it is started, whether it is up.

pub(crate) mod roster;

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::child::{self, Child};
use crate::load::{Case, Prober};
use crate::measure::{self, Usage};

/// How long a peer may take from start to its first right answer.
pub(crate) const START: Duration = Duration::from_secs(60);

pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    source: Source,
    /// Answers 200 there once it is up; for others a right answer says so.
    readiness: Option<&'static str>,
    /// What a slow peer is given less of.
    pub(crate) limits: Option<Limits>,
    launch: fn(&Site) -> Launch,
}

/// Where a peer's program comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// This program.
    Own,
    /// Named on the command line.
    Backstop,
    /// A Debian package of the peer's name.
    Debian { version_flag: &'static str },
    /// A Python package of the peer's name, in a virtual environment of its own.
    Python,
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connections: u32,
    pub(crate) seconds: u64,
    pub(crate) paced_streams: u32,
    pub(crate) idle_streams: u32,
}

/// Places that the command line names.
pub(crate) struct Tools {
    pub(crate) backstop: PathBuf,
    /// Where `scripts/install_peers` puts a virtual environment for each Python package.
    pub(crate) environments: PathBuf,
}

/// Where and how wide a peer is to run.
pub(crate) struct Site<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) port: u16,
    /// For a second listener.
    pub(crate) second_port: u16,
    pub(crate) upstream: u16,
    pub(crate) threads: usize,
    /// Processors to run on; empty for anywhere.
    pub(crate) cpus: &'a [usize],
    /// Client connections to expect; a proxy needs as many again to the upstream.
    pub(crate) connections: u32,
}

/// How a peer is started: all of its configuration.
#[derive(Default)]
struct Launch {
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
    /// Name in the site's directory and content.
    file: Option<(&'static str, String)>,
    /// The port of its control API, if a release of `v2` is to be under way.
    releases: Option<u16>,
}

impl Peer {
    /// The program, or what to do about its absence.
    pub(crate) fn program(&self, tools: &Tools) -> Result<PathBuf> {
        let name = self.name;
        let (found, hint) = match self.source {
            Source::Own => (Some(std::env::current_exe()?), String::new()),
            Source::Backstop => (
                Some(tools.backstop.clone()),
                "cargo build --release -p backstop, or name the program with `--backstop`".to_owned(),
            ),
            Source::Debian { .. } => {
                (find_program(name), format!("apt-get install {name}, or leave it out with `--peers`"))
            }
            Source::Python => (
                Some(tools.environments.join(name).join("bin").join(name)),
                "scripts/install_peers, or leave it out with `--peers`".to_owned(),
            ),
        };
        found
            .filter(|program| program.is_file())
            .with_context(|| format!("`{name}` is not here\nhint: {hint}"))
    }

    /// Whether a run without this peer makes no sense, since ratios are to it.
    pub(crate) fn is_needed(&self) -> bool {
        roster::BASES[..2].contains(&self.name)
    }

    pub(crate) fn version(&self, program: &Path) -> Option<String> {
        match self.source {
            Source::Own => Some("part of this repository".to_owned()),
            Source::Backstop => version(program, "--version"),
            Source::Debian { version_flag } => version(program, version_flag),
            Source::Python => {
                let code = format!("from importlib.metadata import version; print(version('{}'))", self.name);
                let python = program.with_file_name("python");
                first_line(Command::new(python).args(["-c", &code]))
                    .map(|line| format!("{} {line}", self.name))
            }
        }
    }

    /// Environment, command line and configuration file, with ports and directory of an example.
    pub(crate) fn setup(&self, threads: usize, connections: u32) -> String {
        let site = Site {
            directory: Path::new("/tmp/bench"),
            port: 8000,
            second_port: 8001,
            upstream: 9000,
            threads,
            cpus: &[],
            connections,
        };
        let Launch { args, env, file, .. } = (self.launch)(&site);
        let program = match self.source {
            Source::Own => "backstop-bench",
            _ => self.name,
        };
        let mut text = String::new();
        for (key, value) in env {
            let _ = writeln!(text, "{key}={value} \\");
        }
        let _ = writeln!(text, "{program} {}", args.join(" "));
        if let Some((name, content)) = file {
            let _ = write!(text, "\n# {}/{name}\n{content}", site.directory.display());
        }
        text
    }

    /// Starts the peer and waits until `case` is answered rightly through it.
    pub(crate) async fn start(&'static self, program: &Path, site: &Site<'_>, case: Case) -> Result<Running> {
        let launch = (self.launch)(site);
        if let Some((name, content)) = launch.file {
            fs::write(site.directory.join(name), content)?;
        }
        let args: Vec<OsString> = launch.args.into_iter().map(OsString::from).collect();
        let log = site.directory.join(format!("{}.log", self.name));
        let child = Child::spawn(program, &args, &launch.env, site.cpus, log)?;
        let mut running = Running { peer: self, port: site.port, child };
        running.wait_until_ready(case).await?;
        if let Some(port) = launch.releases {
            let control = Prober::new(port);
            control.post("/api/v1/services/bench/releases", r#"{"to":"v2"}"#).await?;
            let deadline = Instant::now() + START;
            while !control.text("/api/v1/services/bench/release").await?.contains(r#""phase":"step 1""#) {
                ensure!(Instant::now() < deadline, "the release does not begin");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(running)
    }
}

/// A started peer; ended on drop.
pub(crate) struct Running {
    pub(crate) peer: &'static Peer,
    pub(crate) port: u16,
    child: Child,
}

impl Running {
    pub(crate) fn usage(&self) -> Result<Usage> {
        measure::usage(self.child.id())
    }

    /// What it wrote last, for whoever watches the run.
    pub(crate) fn last_words(&self) -> String {
        self.child.last_words()
    }

    async fn wait_until_ready(&mut self, case: Case) -> Result<()> {
        let prober = Prober::new(self.port);
        let deadline = Instant::now() + START;
        let mut ready = self.peer.readiness.is_none();
        loop {
            let attempt = match self.peer.readiness {
                Some(path) if !ready => prober.get(path).await,
                _ => prober.check(case).await,
            };
            let error = match attempt {
                Ok(()) if ready => return Ok(()),
                Ok(()) => {
                    ready = true;
                    continue;
                }
                Err(error) => error,
            };
            // Its words go to the terminal only: they may name paths of this machine.
            if self.child.has_ended() {
                eprintln!("  last words of {}: {}", self.peer.name, self.last_words());
                bail!("ended before it was ready");
            }
            if Instant::now() >= deadline {
                eprintln!("  last words of {}: {}", self.peer.name, self.last_words());
                bail!("not ready after {} s: {error:#}", START.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Starts the upstream; a `pace` of zero means unpaced.
pub(crate) async fn start_upstream(directory: &Path, pace: Duration) -> Result<(Child, u16)> {
    let port = child::free_port()?;
    let args = [
        "upstream".to_owned(),
        format!("--listen=127.0.0.1:{port}"),
        format!("--pace-ms={}", pace.as_millis()),
    ];
    let log = directory.join("upstream.log");
    let child = Child::spawn(&std::env::current_exe()?, &args.map(OsString::from), &[], &[], log)?;
    let prober = Prober::new(port);
    let deadline = Instant::now() + START;
    while let Err(error) = prober.get("/health").await {
        if Instant::now() >= deadline {
            return Err(error.context(format!("upstream is not ready; last words: {}", child.last_words())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((child, port))
}

/// Looks in `PATH` and in the directories of system programs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The first line that `program` prints about its version.
pub(crate) fn version(program: &Path, flag: &str) -> Option<String> {
    first_line(Command::new(program).arg(flag))
}

/// Of either output, without the address that some print after a dash.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next()?;
    let line = line.split(" - ").next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
