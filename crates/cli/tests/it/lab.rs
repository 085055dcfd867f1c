//! `backstop lab`: what it prints and writes.

use std::process::Command;

use serde_json::Value;

use crate::backstop::{BIN, Said, directory};

fn decide(arguments: &[&str]) -> Said {
    let mut command = Command::new(BIN);
    command.args(["lab", "decision"]).args(arguments);
    Said::of(command)
}

#[test]
fn a_dead_canary_in_words_and_as_json() {
    let said = decide(&["--runs", "20", "--case", "dead"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out.starts_with("dead: every request of the canary fails (the canary is worse)\n"),
        "{}",
        said.out
    );
    assert!(
        said.out.contains("\nmet    `dead`: requests of the canary until it is sent back ≤ 10: "),
        "{}",
        said.out
    );
    let said = decide(&["--runs", "20", "--case", "dead", "--json"]);
    let results: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(results["cases"][0]["rules"][0]["rolled_back"]["count"], 2);
}

#[test]
fn results_are_written_and_read_again() {
    let directory = directory();
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let first = decide(&["--runs", "10", "--case", "latency-2", "--out", &path("new")]);
    assert_eq!((first.code, first.err.as_str()), (Some(0), ""));
    let again = decide(&["--from", &path("new/decision-quality.json")]);
    assert_eq!(again.out, first.out);
    let page = std::fs::read_to_string(directory.join("new/decision-quality.md")).unwrap();
    assert!(page.starts_with("# Quality of release decisions\n"), "{page}");
    let plot = std::fs::read_to_string(directory.join("new/decision-exposure.svg")).unwrap();
    assert!(plot.starts_with("<svg "), "{plot}");
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_can_not_be_simulated_is_refused() {
    let check = |arguments: &[&str], message: &str| {
        let said = decide(arguments);
        assert_ne!(said.code, Some(0), "{arguments:?}");
        assert!(said.err.contains(message), "{arguments:?}: {}", said.err);
    };
    check(&["--case", "nothing"], "there is no case `nothing`\nhint: same, same-100");
    check(&["--runs", "0"], "invalid value '0' for '--runs <N>'");
    check(&["--from", "nowhere.json"], "can't read `nowhere.json`");
    check(&["--from", "nowhere.json", "--case", "dead"], "cannot be used with");
}
