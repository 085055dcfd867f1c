//! `backstop engine-sim` as a process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::backstop::BIN;
use crate::client::{call, chat};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn faults_given_at_the_start_are_in_force() {
    let mut child = Command::new(BIN)
        .args(["engine-sim", "--dialect", "openai", "--context", "4"])
        .args(["--fault", "status=502;times=1", "--fault", "health=500"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _child = Killed(child);
    let addr = line.trim().strip_prefix("listening on http://").unwrap().parse().unwrap();
    assert_eq!(call(addr, "GET", "/health", "", b"").await.status, 500);
    assert_eq!(chat(addr, true).await.status, 502);
    let reply = chat(addr, true).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (400, "context_length_exceeded"));
}

#[test]
fn wrong_faults_are_explained() {
    for (fault, why) in [
        ("cut=x", "is not a fault"),
        ("no_such", "unknown variant `no_such`, expected one of `status`"),
        ("status=20", "status `20` is not between 200 and 999"),
    ] {
        let output = Command::new(BIN).args(["engine-sim", "--fault", fault]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("--fault") && error.contains(why), "{error}");
    }
    let output = Command::new(BIN).args(["engine-sim", "--help"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("\n  cut=3;how=rst  "));
}
