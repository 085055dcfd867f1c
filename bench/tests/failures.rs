//! What a run does when peers are missing, die or do not start. wrk is a stand-in that counts its calls.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_backstop-bench");

/// Answers at once with made-up figures; from the sixth call on the file `die` is there.
const WRK: &str = r#"#!/bin/sh
echo call >> DIRECTORY/calls
[ "$(wc -l < DIRECTORY/calls)" -lt 6 ] || touch DIRECTORY/die
echo 'BENCH {"requests":1000,"bytes":1000000,"duration_us":1000000,"connect":0,"read":0,"write":0,"status":0,"timeout":0,"p50_us":1,"p99_us":2}'
"#;

/// Forwards as it should until the file `die` is there.
const MORTAL: &str = r#"#!/bin/sh
for word; do
  case "$last" in
    --port) port=$word ;;
    --worker-urls) upstream=${word#http://} ;;
  esac
  last=$word
done
BENCH proxy --listen "127.0.0.1:$port" --upstream "$upstream" &
proxy=$!
trap 'kill $proxy; exit' TERM
while [ ! -e DIRECTORY/die ]; do sleep 0.05; done
kill $proxy
"#;

const STILLBORN: &str = "#!/bin/sh\nexit 3\n";

/// Two runs at once might choose the same ports.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A directory for one test, removed when it is over.
struct Scratch(PathBuf, #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("backstop-bench-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = Self(path, turn);
        scratch.script("bin/wrk", WRK);
        scratch
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = text
            .replace("DIRECTORY", self.0.to_str().unwrap())
            .replace("BENCH proxy", &format!("{BENCH} proxy"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A quick run with these arguments, and its result file.
    fn run(&self, backstop: &Path, args: &[&str]) -> (Output, Value) {
        let out = self.0.join("results.json");
        let path = format!("{}:{}", self.0.join("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new(BENCH)
            .args([
                "run",
                "--quick",
                "--no-pin",
                "--failover-streams",
                "0",
                "--rollbacks",
                "0",
                "--idle-interval",
                "1",
                "--backstop",
            ])
            .arg(backstop)
            .arg("--environments")
            .arg(&self.0)
            .arg("--out")
            .arg(&out)
            .args(args)
            .env("PATH", path)
            .output()
            .unwrap();
        let json = fs::read_to_string(&out).unwrap_or_else(|_| panic!("{output:?}"));
        (output, serde_json::from_str(&json).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Why `peer` has no figures in a case, or `None` if it has some.
fn absence(case: &Value, peer: &str) -> Option<String> {
    let part = case["peers"].as_array().unwrap().iter().find(|part| part["peer"] == peer).unwrap();
    assert_eq!(part["absent"].is_null(), part["summary"].is_object(), "{part}");
    part["absent"].as_str().map(str::to_owned)
}

#[test]
fn a_run_goes_on_without_peers_that_die_or_are_missing() {
    let scratch = Scratch::new("peers");
    scratch.script("vllm-router/bin/vllm-router", STILLBORN);
    scratch.script("sglang-router/bin/sglang-router", MORTAL);
    let peers = "vllm-router,sglang-router,litellm,bare";
    let args = ["--peers", peers, "--cases", "plain,idle1000", "--rounds", "5"];
    let (output, results) = scratch.run(Path::new("/missing"), &args);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(results["valid"], true);

    let (plain, idle) = (&results["cases"][0], &results["idle"][0]);
    let why = absence(plain, "vllm-router").unwrap();
    assert_eq!(why, "failed: ended before it was ready");
    let why = absence(plain, "sglang-router").unwrap();
    assert!(why.starts_with("failed: round "), "{why}");
    assert!(absence(idle, "vllm-router").is_some() && absence(idle, "sglang-router").is_some());
    assert_eq!(absence(plain, "bare"), None);
    assert_eq!(absence(idle, "bare"), None);
    let failed = results["failures"].as_array().unwrap().iter();
    let failed: Vec<&str> = failed.map(|failure| failure["peer"].as_str().unwrap()).collect();
    assert_eq!(failed, ["vllm-router", "sglang-router", "vllm-router", "sglang-router"]);

    let skipped = results["peers"].as_array().unwrap().iter().find(|peer| peer["name"] == "litellm");
    assert_eq!(skipped.unwrap()["skipped"], "not installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("skipping a peer: `litellm` is not here\nhint: scripts/install_peers"),
        "{errors}"
    );
}

#[test]
fn a_run_in_which_backstop_fails_is_not_valid() {
    let scratch = Scratch::new("backstop");
    let backstop = scratch.script("bin/backstop", STILLBORN);
    let (output, results) = scratch.run(&backstop, &["--peers", "bare,backstop", "--cases", "plain"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(results["valid"], false);
    assert_eq!(absence(&results["cases"][0], "bare"), None);
    assert!(absence(&results["cases"][0], "backstop").is_some());
    let page = Command::new(BENCH).arg("report").arg(scratch.0.join("results.json")).output().unwrap();
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("**This run is not valid.**"), "{page}");
    assert!(page.contains("| backstop | failed: ended before it was ready |"), "{page}");
}
