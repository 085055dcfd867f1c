//! `backstop failback`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::client::{Call, encode};
use super::{Guard, Remote, print_json};

/// Give work that moved to a standby back to the endpoints that had it
///
/// Endpoints of higher priority that have recovered get it back by the steps of `failover.ramp`, each of which has to
/// prove itself. With `failback: auto` Backstop does so by itself once they have been stable; with `manual` it waits
/// for this command.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop failback chat
  backstop events --follow --types failover    how it goes on")]
pub(crate) struct Args {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Serialize, Deserialize)]
struct FailedBack {
    tiers: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = format!("/api/v1/services/{}/failback", encode(&args.service));
    let call = Call::post(&path).if_revision(args.guard.if_revision);
    let back: FailedBack = args.remote.connect()?.json(call)?;
    if args.remote.json {
        print_json(&back)?;
    } else {
        for tier in &back.tiers {
            println!("{}: {tier} gets its work back", args.service);
        }
    }
    Ok(ExitCode::SUCCESS)
}
