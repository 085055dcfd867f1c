//! The processes of the demo.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio::process::{Child, Command};

use super::release::ReleaseView;
use super::{Engine, free_port};
use crate::client;

/// A directory for configuration and logs; removed at the end unless something went wrong.
pub(super) struct Workspace {
    path: PathBuf,
    kept: std::cell::Cell<bool>,
}

impl Workspace {
    pub(super) fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("backstop-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("can't make `{}`", path.display()))?;
        Ok(Self { path, kept: std::cell::Cell::new(false) })
    }

    fn log(&self, name: &str) -> anyhow::Result<Stdio> {
        let path = self.path.join(name);
        let file = File::options().create(true).append(true).open(&path);
        Ok(file.with_context(|| format!("can't write `{}`", path.display()))?.into())
    }

    /// Leaves the logs where they are and says where that is.
    pub(super) fn keep(&self) -> String {
        self.kept.set(true);
        format!("the logs are in {}", self.path.display())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.kept.get() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// A model server.
pub(super) struct Replica {
    engine: Engine,
    addr: SocketAddr,
    process: Child,
}

impl Replica {
    pub(super) fn start(
        engine: Engine,
        command: Option<&str>,
        manner: Manner,
        workspace: &Workspace,
    ) -> anyhow::Result<Self> {
        let addr = free_port()?;
        Ok(Self { engine, addr, process: spawn(addr, command, manner, workspace)? })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(super) async fn is_up(&self) -> bool {
        client::get(self.addr, "/health").await.is_ok_and(|(status, _)| status == 200)
    }

    /// As the kernel would when memory runs out.
    pub(super) async fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.process.kill().await;
    }

    pub(super) fn restart(&mut self, command: Option<&str>, workspace: &Workspace) -> anyhow::Result<()> {
        self.process = spawn(self.addr, command, Manner::Well, workspace)?;
        Ok(())
    }
}

/// How a replica works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Well,
    /// It fails now and then, and takes longer to begin; simulated only.
    Worse,
}

fn spawn(
    addr: SocketAddr,
    command: Option<&str>,
    manner: Manner,
    workspace: &Workspace,
) -> anyhow::Result<Child> {
    let mut process = match command {
        None => {
            let mut process = Command::new(std::env::current_exe()?);
            process.args(["engine-sim", "--listen", &addr.to_string(), "--model", "demo", "--tokens", "40"]);
            let ttft = if manner == Manner::Well { "lognormal(60ms,0.4)" } else { "lognormal(130ms,0.4)" };
            process.args(["--ttft", ttft, "--itl", "lognormal(20ms,0.3)"]);
            if manner == Manner::Worse {
                process.args(["--fault", "status=500;probability=0.03"]);
            }
            process
        }
        Some(command) => {
            let command = command.replace("{port}", &addr.port().to_string());
            let mut words = command.split_whitespace().map(str::to_owned);
            let program = words.next().context("`--server-command` is empty")?;
            let mut process = Command::new(program);
            process.args(words);
            process
        }
    };
    let log = format!("replica-{}.log", addr.port());
    process.stdin(Stdio::null()).stdout(workspace.log(&log)?).stderr(workspace.log(&log)?).kill_on_drop(true);
    process.spawn().with_context(|| format!("can't start `{}`", process.as_std().get_program().display()))
}

/// Steps as short as a demo needs them.
const RELEASE: &str = "    release:
      steps: [{ weight: 20%, hold: 2s, min_requests: 5 }, { weight: 50%, hold: 4s, min_requests: 20 }, { weight: 100%, min_requests: 5 }]
      bake: 2s
      warmup: 0s
      verify: 10s
";

/// Backstop itself.
pub(super) struct Backstop {
    pub(super) listen: SocketAddr,
    admin: SocketAddr,
    process: Child,
}

/// An endpoint as the control API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct EndpointView {
    pub(super) url: String,
    pub(super) state: String,
    pub(super) reason: String,
    pub(super) in_flight: u32,
    pub(super) requests: u64,
}

impl Backstop {
    /// In front of the replicas of the versions `v1`, `v2` and so on.
    pub(super) fn start(
        engine: Engine,
        versions: &[&[Replica]],
        workspace: &Workspace,
    ) -> anyhow::Result<Self> {
        let (listen, admin) = (free_port()?, free_port()?);
        let endpoint = |replica: &Replica| {
            format!("{{ url: \"{}\", engine: {} }}", replica.url(), replica.engine.name())
        };
        let versions: Vec<String> = (1..)
            .zip(versions)
            .map(|(number, replicas)| {
                let endpoints: Vec<String> = replicas.iter().map(endpoint).collect();
                format!("{{ name: v{number}, endpoints: [{}] }}", endpoints.join(", "))
            })
            .collect();
        let (interval, timeout, first_token) =
            if engine == Engine::Sim { ("500ms", "500ms", "2s") } else { ("1s", "2s", "10s") };
        let state = workspace.path.join("state");
        let config = format!(
            "listen: {listen}\nadmin: {{ listen: {admin} }}\nstore: \"memory:\"\nstate_dir: {state:?}\nservices:\n  - name: demo\n    \
             versions: [{}]\n    \
             health: {{ interval: {interval}, timeout: {timeout}, down: 2, slow_start: 5s }}\n    \
             timeouts: {{ first_token: {first_token} }}\n{RELEASE}",
            versions.join(", ")
        );
        let path = workspace.path.join("backstop.yaml");
        std::fs::write(&path, config).with_context(|| format!("can't write `{}`", path.display()))?;
        let process = Command::new(std::env::current_exe()?)
            .args(["serve", "--drain", "5s", "--log-format", "json", "-c"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(workspace.log("backstop.log")?)
            .kill_on_drop(true)
            .spawn()
            .context("can't start backstop")?;
        Ok(Self { listen, admin, process })
    }

    pub(super) async fn is_ready(&self) -> bool {
        client::get(self.listen, "/health/readiness").await.is_ok_and(|(status, _)| status == 200)
    }

    pub(super) async fn endpoints(&self) -> anyhow::Result<Vec<EndpointView>> {
        let (_, body) = client::get(self.admin, "/api/v1/endpoints").await?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Begins to release a version.
    pub(super) async fn release(&self, version: &str) -> anyhow::Result<()> {
        let body = serde_json::json!({ "to": version, "reason": "demo" });
        let (status, body) = client::post(self.admin, "/api/v1/services/demo/releases", &body).await?;
        anyhow::ensure!(status == 201, "{}", String::from_utf8_lossy(&body));
        Ok(())
    }

    /// The last release.
    pub(super) async fn released(&self) -> anyhow::Result<ReleaseView> {
        let (_, body) = client::get(self.admin, "/api/v1/services/demo/release").await?;
        Ok(serde_json::from_slice(&body)?)
    }

    pub(super) fn log_hint(&self, workspace: &Workspace) -> String {
        workspace.keep()
    }

    /// Lets it drain; ends it if that takes too long.
    pub(super) async fn stop(mut self) {
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = tokio::time::timeout(Duration::from_secs(8), self.process.wait()).await;
        }
    }
}
