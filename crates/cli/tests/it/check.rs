use std::process::{Command, Output};

use serde_json::Value;

use crate::backstop::{BIN, directory};

/// Ten mistakes, each of another kind.
pub(crate) const TEN_MISTAKES: &str = "\
listen: 8080
admin: { listen: 0.0.0.0:9090 }
colour: blue
services:
  - name: chat
    stable: v9
    versions:
      - name: v1
        endpoints:
          - { url: \"ftp://h\", engine: vlm, weight: 0 }
    balance: fastest
    timeouts: { total: 5 }
    retry: { attempts: 99 }
";

fn check(text: &str, arguments: &[&str]) -> Output {
    let directory = directory();
    std::fs::write(directory.join("backstop.yaml"), text).unwrap();
    let output = Command::new(BIN).arg("check").args(arguments).current_dir(&directory).output().unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    output
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_good_file() {
    let good = "listen: 127.0.0.1:8080\nservices:\n  - name: chat\n    versions:\n      - name: v1\n        \
                endpoints:\n          - url: http://127.0.0.1:8000\n";
    let output = check(good, &[]);
    assert!(output.status.success());
    assert_eq!(text(output.stdout), "backstop.yaml: ok, 1 service, 1 endpoint\n");
    assert_eq!(text(output.stderr), "");
    let output = check(good, &["--json", "backstop.yaml"]);
    assert!(output.status.success());
    assert_eq!(text(output.stdout), "[]\n");
}

#[test]
fn a_bad_file_lists_everything() {
    let output = check(TEN_MISTAKES, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(output.stdout), "");
    let problems = text(output.stderr);
    assert!(problems.ends_with("\n10 problems in backstop.yaml\n"), "{problems}");
    for place in [
        "backstop.yaml:1:9: listen: ",
        "backstop.yaml:2:18: admin.listen: ",
        "backstop.yaml:3:1: colour: ",
        "backstop.yaml:6:13: services[0].stable: ",
        "backstop.yaml:10:20: services[0].versions[0].endpoints[0].url: ",
        "backstop.yaml:10:39: services[0].versions[0].endpoints[0].engine: ",
        "backstop.yaml:10:52: services[0].versions[0].endpoints[0].weight: ",
        "backstop.yaml:11:14: services[0].balance: ",
        "backstop.yaml:12:24: services[0].timeouts.total: ",
        "backstop.yaml:13:24: services[0].retry.attempts: ",
    ] {
        assert!(problems.contains(place), "{place} is not in\n{problems}");
    }
    assert!(problems.contains("hint:") && problems.contains("vllm"), "{problems}");
}

#[test]
fn problems_as_json() {
    let output = check(TEN_MISTAKES, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let problems: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = problems.as_array().unwrap();
    assert_eq!(problems.len(), 10);
    for problem in problems {
        assert_eq!(problem["file"], "backstop.yaml");
        assert!(problem["line"].as_u64().is_some_and(|line| line > 0), "{problem}");
        assert!(problem["path"].is_string() && problem["message"].is_string(), "{problem}");
    }
}

#[test]
fn a_file_that_is_not_there() {
    let output = check("", &["nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(output.stderr).starts_with("nowhere.yaml: "));
}

#[test]
fn the_schema() {
    let output = check("", &["--schema"]);
    assert!(output.status.success());
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(schema["properties"]["services"].is_object() && schema["properties"]["listen"].is_object());
}
