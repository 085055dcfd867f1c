//! `backstop release freeze` and `unfreeze`.

use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::client::{Admin, Call};
use super::super::{Remote, print_json};
use crate::duration;

/// Let nothing change for a while: no step begins, and nothing is promoted
///
/// It takes effect at once, holds over restarts, and needs no store. Going back is always possible. What the file has in
/// `release.freeze` holds besides.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop release freeze chat --for 2h --reason \"launch event\"
  backstop release freeze --all --until 2027-01-02T18:00:00+01:00 --reason \"holidays\"
  backstop release list chat                      shows the freezes that hold")]
pub(super) struct Freeze {
    #[command(flatten)]
    whose: Whose,
    /// Until then, such as `2027-01-02T18:00` (UTC) or `2027-01-02T18:00:00+01:00` [default: until `unfreeze`]
    #[arg(long, value_name = "TIME", conflicts_with = "length")]
    until: Option<String>,
    /// For so long, such as `2h`
    #[arg(long = "for", id = "length", value_name = "TIME", value_parser = duration::parse)]
    length: Option<Duration>,
    /// Why; for those who have to wait, and for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    remote: Remote,
}

/// End a freeze that an operator has ordered
///
/// Those of the configuration end with it.
#[derive(clap::Args)]
pub(super) struct Unfreeze {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// All services
    #[arg(long)]
    all: bool,
}

/// One that is in force or still to come.
#[derive(Serialize, Deserialize)]
pub(super) struct Frozen {
    pub(super) service: Option<String>,
    from: u64,
    until: Option<u64>,
    reason: String,
    by: String,
    in_force: bool,
    text: String,
}

const PATH: &str = "/api/v1/freezes";

pub(super) fn freeze(args: &Freeze) -> anyhow::Result<ExitCode> {
    let Freeze { whose, until, length, reason, remote } = args;
    let seconds = length.map(|length| length.as_secs().max(1));
    let body = json!({ "service": whose.service, "until": until, "seconds": seconds, "reason": reason });
    show(remote, &remote.connect()?.json::<Vec<Frozen>>(Call::post(PATH).body(body))?)
}

pub(super) fn unfreeze(args: &Unfreeze) -> anyhow::Result<ExitCode> {
    let Unfreeze { whose, remote } = args;
    let call = Call::delete(PATH).query("service", whose.service.as_ref());
    show(remote, &remote.connect()?.json::<Vec<Frozen>>(call)?)
}

fn show(remote: &Remote, freezes: &[Frozen]) -> anyhow::Result<ExitCode> {
    if remote.json {
        print_json(&freezes)?;
    } else if freezes.is_empty() {
        println!("nothing is frozen");
    }
    for freeze in freezes.iter().filter(|_| !remote.json) {
        println!("{}", line(freeze));
    }
    Ok(ExitCode::SUCCESS)
}

/// Those that a service is subject to, a line each.
pub(super) fn of(admin: &Admin, service: &str) -> anyhow::Result<Vec<String>> {
    let freezes: Vec<Frozen> = admin.json(Call::get(PATH))?;
    let of_service = freezes.iter().filter(|it| it.service.as_deref().is_none_or(|of| of == service));
    Ok(of_service.map(line).collect())
}

fn line(freeze: &Frozen) -> String {
    let whose = freeze.service.as_deref().unwrap_or("all services");
    let still_to_come =
        if freeze.in_force { String::new() } else { format!(" (from {})", super::text::time(freeze.from)) };
    format!("{whose}: {}{still_to_come}", freeze.text)
}
