//! `backstop lab`: simulations of what nobody can try out often enough on real users.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use backstop_lab::decision::{self, Options, Results};
use clap::Subcommand;

/// Simulate decisions before they are made on real users
///
/// Nothing is asked of a running Backstop, and nothing is changed. The same seed gives the same results.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Decision(DecisionArgs),
}

/// Compare rules of release: how often they are wrong, and how long a bad version stays
///
/// Each case is a way in which a release can go: both versions the same, an incident of both, errors or latency of the new
/// one. Backstop's rule and those of other tools look at the same requests.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop lab decision --runs 500
  backstop lab decision --runs 1000 --case latency-1.5
  backstop lab decision --out docs              results, a page and plots; takes long
  backstop lab decision --from docs/decision-quality.json")]
struct DecisionArgs {
    /// Releases of our rule for each case in which nothing is wrong; a tenth of it of all else
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    runs: u64,
    /// Repeats a simulation
    #[arg(long, value_name = "SEED", default_value_t = 2026)]
    seed: u64,
    /// Only this case
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// Show results that were written before, and simulate nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "seed", "case"])]
    from: Option<PathBuf>,
    /// Write decision-quality.json, decision-quality.md and plots there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Command::Decision(args) => decide(args),
    }
}

fn decide(args: &DecisionArgs) -> Result<ExitCode> {
    if let Some(directory) = &args.out {
        // Before all the work, not after it.
        fs::create_dir_all(directory).with_context(|| format!("can't make `{}`", directory.display()))?;
    }
    let results = match &args.from {
        Some(file) => read(file)?,
        None => simulate(args)?,
    };
    if let Some(directory) = &args.out {
        write(&results, directory)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print!("{}", decision::table(&results));
    }
    Ok(ExitCode::SUCCESS)
}

fn simulate(args: &DecisionArgs) -> Result<Results> {
    let options = Options { runs: args.runs, seed: args.seed, case: args.case.clone() };
    if !std::io::stderr().is_terminal() {
        return decision::run(&options, &|_, _| {});
    }
    let shown = AtomicU64::new(u64::MAX);
    let results = decision::run(&options, &|done, total| {
        let thousandths = done * 1000 / total;
        if shown.swap(thousandths, Ordering::Relaxed) != thousandths {
            bar(thousandths);
        }
    });
    eprint!("\r\x1b[K");
    results
}

fn bar(thousandths: u64) {
    const WIDTH: usize = 40;
    let full = "#".repeat(WIDTH * thousandths as usize / 1000);
    eprint!("\r[{full:<WIDTH$}] {:5.1} %", thousandths as f64 / 10.0);
    // A bar that can't be shown is no reason to stop.
    let _ = std::io::stderr().flush();
}

fn read(file: &Path) -> Result<Results> {
    let text = fs::read_to_string(file).with_context(|| format!("can't read `{}`", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("`{}` has no results of `lab decision`", file.display()))
}

fn write(results: &Results, directory: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(results)? + "\n";
    let mut files = vec![("decision-quality.json", json), ("decision-quality.md", decision::page(results))];
    files.extend(decision::plots(results)?);
    for (name, text) in files {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("can't write `{}`", path.display()))?;
    }
    Ok(())
}
