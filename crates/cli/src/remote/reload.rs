//! `backstop reload`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::client::Call;
use super::{Guard, Remote, print_json};

/// Make a running Backstop read its configuration file again
///
/// A running Backstop notices by itself that the file has changed; this says at once what came of it. A file with
/// mistakes is refused with all of them, and the old configuration goes on serving. Run-time changes of endpoints stay.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop check backstop.yaml && backstop reload
  backstop reload --if-revision 7    only if nobody else has changed anything since revision 7")]
pub(crate) struct Args {
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Serialize, Deserialize)]
struct Reloaded {
    revision: u64,
    needs_restart: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let call = Call::post("/api/v1/config/reload").if_revision(args.guard.if_revision);
    let done: Reloaded = args.remote.connect()?.json(call)?;
    if args.remote.json {
        print_json(&done)?;
    } else {
        println!("reloaded (revision {})", done.revision);
        if !done.needs_restart.is_empty() {
            let keys: Vec<String> = done.needs_restart.iter().map(|key| format!("`{key}`")).collect();
            eprintln!("warning: {} change only with a restart; the rest is applied", keys.join(", "));
        }
    }
    Ok(ExitCode::SUCCESS)
}
