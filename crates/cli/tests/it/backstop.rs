//! `backstop serve` as a process, in a directory of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use backstop_engine_sim::{Dist, Sim, SimConfig, expected_text};
use serde_json::Value;

use crate::client::{call, until};

pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_backstop");

pub(crate) struct Backstop {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    directory: PathBuf,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
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

impl Backstop {
    pub(crate) async fn serve(config: &str, arguments: &[&str]) -> Self {
        let directory = directory();
        std::fs::write(directory.join("backstop.yaml"), config).unwrap();
        let mut child = Command::new(BIN)
            .args(["serve", "--log-format", "json"])
            .args(arguments)
            .current_dir(&directory)
            .env("UPSTREAM_KEY", "KEY-OF-THE-UPSTREAM")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn({
            let lines = Arc::clone(&lines);
            move || stderr.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut backstop = Self { child, lines, directory, addr: unknown, admin: unknown };
        until("serving", || backstop.logged("serving")).await;
        let line = backstop.log().into_iter().find(|line| line["message"] == "serving").unwrap();
        backstop.addr = line["listen"].as_str().unwrap().parse().unwrap();
        backstop.admin = line["admin"].as_str().unwrap().parse().unwrap();
        backstop
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
        let new = self.directory.join("new.yaml");
        std::fs::write(&new, config).unwrap();
        std::fs::rename(new, self.directory.join("backstop.yaml")).unwrap();
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
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
