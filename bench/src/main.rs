//! Side-by-side benchmarks of Backstop and its peers.
//!
//! `run` starts an upstream and every peer on free loopback ports, drives the same load through each
//! in turn, and writes one JSON file. `report` renders that file as Markdown. The other subcommands are
//! the processes that `run` starts. Nothing here is linked into Backstop.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
#![allow(clippy::disallowed_methods, reason = "measures wall time and its tasks end with the process")]

mod child;
mod fleet;
mod load;
mod measure;
mod peer;
mod proxy;
mod report;
mod results;
mod run;
mod upstream;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::results::Results;

/// Side-by-side benchmarks of Backstop and its peers
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the peers and write the result file
    Run(run::Args),
    /// Render a result file as Markdown on stdout
    Report {
        /// Result file written by `run`
        file: PathBuf,
    },
    /// The upstream that all peers forward to (started by `run`)
    #[command(hide = true)]
    Upstream(upstream::Args),
    /// The bare hyper proxy (started by `run`)
    #[command(hide = true)]
    Proxy(proxy::Args),
    /// Become another program that ends when its parent does (started by `run`)
    #[command(hide = true)]
    Exec {
        /// Processors to run on; anywhere if not given
        #[arg(long, value_delimiter = ',')]
        cpus: Vec<usize>,
        program: OsString,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => measure_all(&args),
        Command::Report { file } => render(&file).map(|()| ExitCode::SUCCESS),
        Command::Upstream(args) => upstream::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Proxy(args) => proxy::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Exec { cpus, program, args } => Err(child::become_program(&cpus, &program, &args)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// One thread only: children ask the kernel to be ended with the *thread* that started them.
fn measure_all(args: &run::Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let results = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Dropping the run ends its children.
        tokio::select! {
            results = run::run(args) => results,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("terminated"),
        }
    })?;
    if let Some(parent) = args.out.parent() {
        fs::create_dir_all(parent).with_context(|| format!("can't create `{}`", parent.display()))?;
    }
    let json = serde_json::to_string_pretty(&results)? + "\n";
    fs::write(&args.out, json).with_context(|| format!("can't write `{}`", args.out.display()))?;
    eprintln!("wrote {}", args.out.display());
    if results.valid {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("the run is not valid:");
    for failure in &results.failures {
        eprintln!("  {}, {}: {}", failure.case.name(), failure.peer, failure.what);
    }
    Ok(ExitCode::FAILURE)
}

fn render(file: &Path) -> Result<()> {
    let json = fs::read_to_string(file).with_context(|| {
        format!("can't read `{}`\nhint: write it first with `backstop-bench run`", file.display())
    })?;
    let mut results = Results::parse(&json).with_context(|| format!("can't use `{}`", file.display()))?;
    results.derive();
    print!("{}", report::render(&results));
    Ok(())
}
