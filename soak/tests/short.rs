//! The short form: a minute of load and faults with a fixed seed, on the binaries that the tests were built with.

use std::path::Path;
use std::process::Command;

#[test]
fn a_minute_of_faults_loses_nothing() {
    let soak = Path::new(env!("CARGO_BIN_EXE_backstop-soak"));
    let backstop = soak.with_file_name("backstop");
    assert!(backstop.is_file(), "no `{}`\nhint: cargo build -p backstop", backstop.display());
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak");
    let run = Command::new(soak)
        .arg("--backstop")
        .arg(backstop)
        .args(["--minutes", "1", "--clients", "16", "--seed", "1092", "--out"])
        .arg(&out)
        .output()
        .unwrap();
    let told = [run.stderr, run.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(run.status.success(), "{told}");
    for file in ["soak.json", "soak.md", "soak.svg"] {
        assert!(out.join(file).is_file(), "{file}");
    }
}
