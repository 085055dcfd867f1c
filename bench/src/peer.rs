//! The proxies under test, as a list: a new peer is one more entry.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::child::{self, Child};
use crate::load::{Case, Prober};
use crate::measure::{self, Usage};

/// How long a peer may take from start to its first right answer.
const START: Duration = Duration::from_secs(60);

pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// What to do when the program is missing.
    hint: &'static str,
    pub(crate) absence: Absence,
    locate: fn(&Tools) -> Option<PathBuf>,
    version_flag: Option<&'static str>,
    launch: fn(&Site) -> Result<Launch>,
}

/// What a missing program means for the run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    Fails,
    Skips,
}

/// Programs that the command line names.
pub(crate) struct Tools {
    pub(crate) backstop: PathBuf,
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
    pub(crate) connections: usize,
}

pub(crate) struct Launch {
    args: Vec<OsString>,
    env: Vec<(&'static str, String)>,
    /// Must answer 200 before the first request.
    readiness: Option<&'static str>,
}

/// Peers compared with every other one, if they are in the run.
pub(crate) const BASES: [&str; 2] = ["bare", "nginx"];

pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "bare",
        about: "hyper server and hyper-util client with keep-alive, nothing else",
        hint: "",
        absence: Absence::Fails,
        locate: |_| std::env::current_exe().ok(),
        version_flag: None,
        launch: |site| Ok(bare(site)),
    },
    Peer {
        name: "nginx",
        about: "nginx with `proxy_buffering off`, keep-alive to the upstream, no access log",
        hint: "apt-get install nginx, or leave it out with `--peers`",
        absence: Absence::Fails,
        locate: |_| find_program("nginx"),
        version_flag: Some("-v"),
        launch: nginx,
    },
    Peer {
        name: "backstop",
        about: "Backstop with routing, balancing, retries, event checks and health checks on, no access log",
        hint: "cargo build --release -p backstop, or name the program with `--backstop`",
        absence: Absence::Skips,
        locate: |tools| tools.backstop.is_file().then(|| tools.backstop.clone()),
        version_flag: Some("--version"),
        launch: backstop,
    },
];

fn bare(site: &Site) -> Launch {
    let args = [
        "proxy".to_owned(),
        format!("--listen=127.0.0.1:{}", site.port),
        format!("--upstream=127.0.0.1:{}", site.upstream),
        format!("--threads={}", site.threads),
    ];
    Launch { args: args.map(OsString::from).into(), env: Vec::new(), readiness: None }
}

fn nginx(site: &Site) -> Result<Launch> {
    let Site { port, upstream, threads, .. } = site;
    let directory = site.directory.display();
    // nginx begins to close waiting connections when less than a sixteenth of the slots is free.
    let slots = site.connections * 9 / 4 + 512;
    let config = format!(
        r#"daemon off;
worker_processes {threads};
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log warn;
events {{ worker_connections {slots}; }}
http {{
  access_log off;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  keepalive_requests 1000000000;
  upstream bench {{
    server 127.0.0.1:{upstream};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://bench;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 24h;
    }}
  }}
}}
"#
    );
    let path = site.directory.join("nginx.conf");
    fs::write(&path, config)?;
    let log = site.directory.join("nginx-start.log");
    let args = ["-c".into(), path.into(), "-e".into(), log.into()];
    Ok(Launch { args: args.into(), env: Vec::new(), readiness: None })
}

fn backstop(site: &Site) -> Result<Launch> {
    let Site { port, second_port, upstream, .. } = site;
    let config = format!(
        r#"listen: 127.0.0.1:{port}
admin: {{ listen: 127.0.0.1:{second_port} }}
store: "memory:"
services:
  - name: bench
    models: [bench]
    versions: [{{ name: v1, endpoints: [{{ url: "http://127.0.0.1:{upstream}", engine: vllm }}] }}]
    timeouts: {{ first_token: 60s, inter_token: 120s, total: 24h }}
"#
    );
    let path = site.directory.join("backstop.yaml");
    fs::write(&path, config)?;
    let threads = site.threads.to_string();
    let args = ["serve".into(), "-c".into(), path.into(), "--access-log".into(), "off".into()];
    let args = args.into_iter().chain(["--threads".into(), threads.clone().into()]).collect();
    Ok(Launch { args, env: vec![("TOKIO_WORKER_THREADS", threads)], readiness: Some("/health/readiness") })
}

impl Peer {
    /// The program, or what to do about its absence.
    pub(crate) fn program(&self, tools: &Tools) -> Result<PathBuf> {
        (self.locate)(tools).with_context(|| format!("`{}` is not here\nhint: {}", self.name, self.hint))
    }

    pub(crate) fn version(&self, program: &Path) -> Option<String> {
        version(program, self.version_flag?)
    }

    /// Starts the peer and waits until `case` is answered rightly through it.
    pub(crate) async fn start(&self, program: &Path, site: &Site<'_>, case: Case) -> Result<Running> {
        let launch = (self.launch)(site)?;
        let log = site.directory.join(format!("{}.log", self.name));
        let child = Child::spawn(program, &launch.args, &launch.env, site.cpus, log)?;
        let mut running = Running { name: self.name, port: site.port, child };
        running.wait_until_ready(launch.readiness, case).await?;
        Ok(running)
    }
}

/// A started peer; ended on drop.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    child: Child,
}

impl Running {
    pub(crate) fn usage(&self) -> Result<Usage> {
        measure::usage(self.child.id()).with_context(|| format!("`{}`", self.name))
    }

    async fn wait_until_ready(&mut self, readiness: Option<&str>, case: Case) -> Result<()> {
        let prober = Prober::new(self.port);
        let deadline = Instant::now() + START;
        let mut ready = readiness.is_none();
        loop {
            let attempt = match readiness {
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
            let words = self.child.last_words();
            if self.child.has_ended() {
                bail!("`{}` ended before it was ready; its last words: {words}", self.name);
            }
            if Instant::now() >= deadline {
                let seconds = START.as_secs();
                bail!("`{}` is not ready after {seconds} s: {error:#}; its last words: {words}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Starts the upstream; `pace_seconds` of 0 means unpaced.
pub(crate) async fn start_upstream(directory: &Path, pace_seconds: u64) -> Result<(Child, u16)> {
    let port = child::free_port()?;
    let args = [
        "upstream".to_owned(),
        format!("--listen=127.0.0.1:{port}"),
        format!("--pace-seconds={pace_seconds}"),
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

/// The first line that `program` prints about its version, on either output.
pub(crate) fn version(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
