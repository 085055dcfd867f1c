//! Records the compiler's version, so that a result file can name it.

use std::env;
use std::process::Command;

fn main() {
    let version = env::var("RUSTC")
        .ok()
        .and_then(|rustc| Command::new(rustc).arg("-V").output().ok())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    println!("cargo:rustc-env=BENCH_RUSTC={version}");
    println!("cargo:rerun-if-changed=build.rs");
}
