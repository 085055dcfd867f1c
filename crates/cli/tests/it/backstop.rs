//! `backstop serve` as a process, in a directory of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use backstop_engine_sim::{Dist, Sim, SimConfig, expected_text};
use serde_json::Value;

use crate::client::{call, until};

pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_backstop");

pub(crate) struct Backstop {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A directory with a configuration; removed when the last process in it has ended.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn with(config: &str) -> Arc<Self> {
        let directory = directory();
        std::fs::write(directory.join("backstop.yaml"), config).unwrap();
        Arc::new(Self(directory))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A directory that no other test has.
pub(crate) fn directory() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A service `chat` on these engines.
pub(crate) fn config(sims: &[&Sim]) -> String {
    let endpoints: String =
        sims.iter().map(|sim| format!("          - {{ url: \"{}\", engine: sim }}\n", sim.url())).collect();
    format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: 127.0.0.1:0 }}\nservices:\n  - name: chat\n    versions:\n      \
         - name: v1\n        endpoints:\n{endpoints}    health: {{ interval: 100ms, down: 2, slow_start: 0s }}\n"
    )
}

/// The first tokens of the answer to "hi".
pub(crate) fn oracle(tokens: usize) -> String {
    expected_text(0, &[("user", "hi")], tokens)
}

pub(crate) async fn sim(itl_millis: u64, tokens: u64) -> Sim {
    let itl = Dist::Constant(std::time::Duration::from_millis(itl_millis));
    Sim::start(SimConfig { itl, tokens, ..SimConfig::default() }).await.unwrap()
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(mut command: Command) -> Self {
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: status.code(), out: text(stdout), err: text(stderr) }
    }
}

/// The process, and the lines of its log as they come.
fn start(directory: &Path, arguments: &[&str], env: &[(&str, &str)]) -> (Child, Arc<Mutex<Vec<String>>>) {
    let mut child = Command::new(BIN)
        .args(["serve", "--log-format", "json"])
        .args(arguments)
        .current_dir(directory)
        .env("UPSTREAM_KEY", "KEY-OF-THE-UPSTREAM")
        .envs(env.iter().copied())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let stderr = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn({
        // Let go of when there is no more.
        let lines = Arc::clone(&lines);
        move || stderr.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
    });
    (child, lines)
}

impl Backstop {
    pub(crate) async fn serve(config: &str, arguments: &[&str]) -> Self {
        let mut backstop = Self::start(&Directory::with(config), arguments, &[]);
        backstop.serving().await;
        backstop
    }

    /// A process in `directory`, without waiting for anything.
    pub(crate) fn start(directory: &Arc<Directory>, arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let (child, lines) = start(&directory.0, arguments, env);
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { child, lines, directory: Arc::clone(directory), addr: unknown, admin: unknown }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as it stands, and starts another one in its place.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.kill();
        (self.child, self.lines) = start(&self.directory.0, &[], &[]);
        self.serving().await;
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it serves; `false` if it ends before that.
    pub(crate) async fn serves(&mut self) -> bool {
        until("serving, or the end", || self.logged("serving") || self.has_ended()).await;
        let serves = self.logged("serving");
        if serves {
            self.serving().await;
        }
        serves
    }

    pub(crate) async fn serving(&mut self) {
        until("serving", || self.logged("serving")).await;
        let line = self.log().into_iter().find(|line| line["message"] == "serving").unwrap();
        self.addr = line["listen"].as_str().unwrap().parse().unwrap();
        self.admin = line["admin"].as_str().unwrap().parse().unwrap();
    }

    /// A file in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    /// What a command prints that asks it: exit code, standard output, standard error.
    pub(crate) fn ask(&self, arguments: &[&str], token: &str) -> Said {
        let mut command = Command::new(BIN);
        command
            .args(arguments)
            .env("BACKSTOP_ADMIN", format!("http://{}", self.admin))
            .env("BACKSTOP_TOKEN", token);
        Said::of(command)
    }

    /// The same, and it must work.
    #[track_caller]
    pub(crate) fn order(&self, arguments: &[&str]) -> String {
        let said = self.ask(arguments, "");
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out
    }

    pub(crate) async fn ready(&self) {
        let polling = async { while self.readiness().await.0 != 200 {} };
        crate::client::soon("ready", polling).await;
    }

    pub(crate) async fn readiness(&self) -> (u16, Value) {
        let reply = call(self.addr, "GET", "/ready", "", b"").await;
        (reply.status, reply.json())
    }

    /// The models that are served now.
    pub(crate) async fn models(&self) -> Vec<String> {
        let json = call(self.addr, "GET", "/v1/models", "", b"").await.json();
        json["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn write(&self, config: &str) {
        // As editors and config maps do it: another file in the same place.
        let new = self.path("new.yaml");
        std::fs::write(&new, config).unwrap();
        std::fs::rename(new, self.path("backstop.yaml")).unwrap();
    }

    /// `kill -NAME`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        until("exit", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        self.child.wait().unwrap()
    }

    /// Whether the log is complete, after the end of the process.
    pub(crate) fn has_been_read(&self) -> bool {
        Arc::strong_count(&self.lines) == 1
    }

    pub(crate) fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Every line of the log, each of which must be a JSON object with time, level and message.
    pub(crate) fn log(&self) -> Vec<Value> {
        let parse = |line: &String| {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(value["timestamp"].is_string() && value["level"].is_string(), "{line}");
            assert!(value["message"].is_string(), "{line}");
            value
        };
        self.lines.lock().unwrap().iter().map(parse).collect()
    }

    pub(crate) fn logged(&self, message: &str) -> bool {
        self.log().iter().any(|line| line["message"].as_str().unwrap().contains(message))
    }
}

impl Drop for Backstop {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
