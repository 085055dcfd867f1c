//! Load and random faults for a long time, with proof that nothing was lost.
//!
//! Starts Backstop and replicas of a simulated engine as real processes, asks with many clients, and every few seconds
//! kills, stops, drains or reconfigures something ([`plan`]). Each answer is compared with what it must be
//! ([`oracle`]), Backstop's memory and descriptors are watched ([`watch`]), and at the end everything is judged
//! ([`verdict`]). Nothing here is linked into Backstop.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod api;
mod ask;
mod fault;
mod load;
mod log;
mod oracle;
mod plan;
mod plot;
mod process;
mod report;
mod run;
mod settings;
mod verdict;
mod watch;
mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::report::Report;
use crate::run::Args;
use crate::verdict::LONG_ENOUGH;

/// Load and random faults for a long time, with proof that nothing was lost
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    args: Option<Args>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Become another program that ends when its parent does
    #[command(hide = true)]
    Exec {
        program: OsString,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli { command: Some(Command::Exec { program, args }), .. } => {
            Err(process::become_program(&program, &args))
        }
        Cli { args: Some(args), .. } => soak(&args),
        Cli { .. } => bail_without_args(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn bail_without_args() -> Result<ExitCode> {
    bail!("`--backstop` and `--out` are needed\nhint: `make soak`")
}

/// One thread only: children ask the kernel to be ended with the *thread* that started them.
fn soak(args: &Args) -> Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    eprintln!("seed {seed}: {} minutes, {} replicas, {} clients", args.minutes, args.replicas, args.clients);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Dropping the run ends its children.
        tokio::select! {
            report = run::run(args, seed) => report,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    report.write(&args.out)?;
    print!("{}", report.table());
    publish(&report, args)?;
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn publish(report: &Report, args: &Args) -> Result<()> {
    eprintln!("wrote soak.json, soak.md and soak.svg to {}", args.out.display());
    let Some(docs) = &args.docs else { return Ok(()) };
    let long_enough = report.minutes * 60.0 >= LONG_ENOUGH.as_secs_f64();
    if report.passed() && long_enough {
        report.write_page(docs)?;
        eprintln!("wrote soak.md and soak.svg to {}", docs.display());
    }
    Ok(())
}
