//! `backstop store`: the file where releases, history and notifications are kept.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use backstop_config::Store as Configured;
use backstop_store::{Checked, Store, StoreError};
use clap::Subcommand;
use serde_json::{Value, json};

/// Copy or check the store
///
/// Both work on the file that the configuration names in `store`, whether or not a Backstop serves from it, and change
/// nothing in it.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Backup(BackupArgs),
    Check(CheckArgs),
}

/// Copy the store, as it is at one moment, to a new file
///
/// The copy is itself a store: to go back to it, stop Backstop, move the files of the old one away, and put the copy in
/// its place.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  backstop store backup -c backstop.yaml --to /backup/backstop-2026-11-22.db")]
struct BackupArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "backstop.yaml")]
    config: PathBuf,
    /// The file to make; one that is there is not replaced
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Check that the file is whole and the history is as it was written
///
/// Each entry of the history has the hash of the one before in its own. The hash that is printed stands for all of them:
/// keep it elsewhere, and nobody can change what is in the history by then without your noticing. Exits with 1 if
/// something is wrong.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  backstop store check -c backstop.yaml --json")]
struct CheckArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "backstop.yaml")]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &args.command {
        Command::Backup(args) => runtime.block_on(backup(args)),
        Command::Check(args) => runtime.block_on(check(args)),
    }
}

async fn backup(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let Some(path) = file(&args.config)? else { return Ok(ExitCode::FAILURE) };
    Store::open_existing(&path).await?.backup(&args.to).await?;
    // What can't be read back is no backup.
    let copy = Store::open_existing(&args.to).await?;
    let checked = copy.check().await?;
    if args.json {
        println!("{:#}", json!({ "store": path, "backup": args.to, "history": history(&checked) }));
    } else {
        let (to, entries) = (args.to.display(), entries(checked.entries));
        println!("{to}: copied from {}, {entries}", path.display());
    }
    if let Some(broken) = &checked.broken {
        eprintln!("warning: {broken}, here as in {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let Some(path) = file(&args.config)? else { return Ok(ExitCode::FAILURE) };
    let checked = checked(&path).await;
    if args.json {
        let ok = matches!(&checked, Ok(checked) if checked.broken.is_none());
        let error = checked.as_ref().err().map(ToString::to_string);
        let history = checked.as_ref().map(history).ok();
        println!("{:#}", json!({ "store": path, "ok": ok, "error": error, "history": history }));
        return Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let checked = checked?;
    if let Some(broken) = checked.broken {
        let path = path.display();
        bail!(
            "{path}: {broken}\nhint: compare it with a backup: `backstop store check` with a configuration that names \
             it; up to entry {} nothing has been changed",
            checked.entries
        );
    }
    println!("{}: ok, {}", path.display(), entries(checked.entries));
    if checked.entries > 0 {
        println!("the last has the hash {}", checked.head);
    }
    Ok(ExitCode::SUCCESS)
}

async fn checked(path: &Path) -> Result<Checked, StoreError> {
    Store::open_existing(path).await?.check().await
}

/// The file that the configuration names; `None` if there is none, which has been told.
fn file(config: &Path) -> anyhow::Result<Option<PathBuf>> {
    match backstop_config::load(config) {
        Ok(config) => match config.store() {
            Configured::Sqlite(path) => Ok(Some(path.clone())),
            Configured::Memory => {
                bail!("the store is `memory:`, which ends with the process: there is no file")
            }
        },
        Err(problems) => {
            eprintln!("{problems}");
            Ok(None)
        }
    }
}

fn history(checked: &Checked) -> Value {
    json!({ "entries": checked.entries, "head": checked.head, "broken": checked.broken })
}

fn entries(count: u64) -> String {
    format!("{count} {} of history", if count == 1 { "entry" } else { "entries" })
}
