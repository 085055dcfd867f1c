//! The `backstop` binary: parses the command line, composes the crates, prints.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool prints")]

mod check;
mod client;
mod demo;
mod duration;
mod handover;
mod key;
mod lab;
mod listeners;
mod log;
mod plane;
mod releases;
mod remote;
mod serve;
mod store;
mod tiers;
mod tls;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A request allocates some 20 times, partly in pieces of 8 KiB, which glibc's allocator is slow at
/// (docs/decisions.md has the figures).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps an LLM service answering while its machines fail and its models change.
///
/// Backstop stands in front of LLM servers (vLLM, SGLang, llama.cpp, Ollama, any OpenAI-compatible API). Clients
/// see one OpenAI-compatible endpoint; behind it Backstop checks health, balances and fails over.
#[derive(Parser)]
#[command(name = "backstop", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Args),
    Check(check::Args),
    Endpoint(remote::endpoint::Args),
    Release(remote::release::Args),
    Snapshot(remote::snapshot::Args),
    Version(remote::version::Args),
    Drill(remote::drill::Args),
    Failback(remote::failback::Args),
    Reload(remote::reload::Args),
    Config(remote::config::Args),
    Events(remote::events::Args),
    Dependency(remote::dependency::Args),
    Key(key::Args),
    Store(store::Args),
    Demo(demo::Args),
    Lab(lab::Args),
    /// Run a simulated model server with seeded faults, for tests and trials
    EngineSim(backstop_engine_sim::SimArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(&args),
        Command::Endpoint(args) => remote::endpoint::run(&args),
        Command::Release(args) => remote::release::run(&args),
        Command::Snapshot(args) => remote::snapshot::run(&args),
        Command::Version(args) => remote::version::run(&args),
        Command::Drill(args) => remote::drill::run(&args),
        Command::Failback(args) => remote::failback::run(&args),
        Command::Reload(args) => remote::reload::run(&args),
        Command::Config(args) => remote::config::run(&args),
        Command::Events(args) => remote::events::run(&args),
        Command::Dependency(args) => remote::dependency::run(&args),
        Command::Key(args) => key::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::EngineSim(args) => engine_sim(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn engine_sim(args: backstop_engine_sim::SimArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(backstop_engine_sim::run(args))?;
    Ok(ExitCode::SUCCESS)
}
