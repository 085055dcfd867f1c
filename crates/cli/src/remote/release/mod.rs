//! `backstop release`: versions get the traffic of others, step by step, and lose it.

mod freeze;
mod view;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Admin, Call, encode};
use super::table::Paper;
use super::{Remote, print_json, text};
use view::{Entry, Release, Summary};

/// How often a release is looked at anew.
const LOOK: Duration = Duration::from_secs(1);

/// Release a version, and see how that goes
///
/// A release gives the traffic of the stable version to another one by the steps of `release.steps`. At each of them the
/// two are compared; a version that is worse goes back by itself.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Start(Start),
    /// Show how the last release stands: split, evidence, what it waits for
    Status(Of),
    /// Follow a release until it ends
    ///
    /// A live picture on a terminal, else a line for each thing that happens (`--json`: an object). Exits with 0 if the
    /// version was promoted or the drill passed, and with 1 otherwise.
    Watch(Of),
    /// Let it go no further; what it has it keeps, and it is still sent back if it is worse
    Pause(Of),
    /// Let it go on; after its age has run out: for as long again
    Resume(Of),
    /// Allow the next step, where `approval` is asked for
    Approve(Of),
    Promote(Promote),
    /// Go back to the stable version; nothing is held against the other one
    Abort(Of),
    Rollback(Rollback),
    Freeze(freeze::Freeze),
    Unfreeze(freeze::Unfreeze),
    /// List the releases of a service, the last one first
    List(Of),
    History(History),
    Report(Report),
}

/// Begin to release a version
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop release start chat --to v2 --reason \"new fine-tune\"
  backstop release watch chat                     how it goes")]
struct Start {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The version, one of the configuration
    #[arg(long, value_name = "VERSION")]
    to: String,
    /// Why; for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Even if it was sent back, and has not been changed since
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    remote: Remote,
}

/// A service.
#[derive(clap::Args)]
struct Of {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    #[command(flatten)]
    remote: Remote,
}

/// Make the version on trial the stable one now
#[derive(clap::Args)]
struct Promote {
    /// During a freeze too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    of: Of,
}

/// Go back: from the version on trial to the stable one, or from the stable one to the one before
///
/// At once: when this command returns, nothing more is assigned to the version that is left. It is not released again as it
/// is, unless that is asked for. With `--to` another version than those two, a release under way ends at once, unverified.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop release rollback chat --reason \"answers in Latin\"
  backstop release rollback chat --gradual
  backstop release rollback chat --to v1          to this one, after v3 was promoted")]
struct Rollback {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The version to go back to [default: the stable one, or the one before it]
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// By the shares of `release.rollback.gradual`
    #[arg(long)]
    gradual: bool,
    /// Why; for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Even if no endpoint of the version to go back to can serve, or it was sent back itself
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    remote: Remote,
}

/// Show what was done to a service, by whom and why
///
/// Its releases, what was changed in the file, and what operators did at run time. No entry can be changed: `backstop store check` verifies that.
#[derive(clap::Args)]
struct History {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The last so many entries
    #[arg(long, value_name = "N", default_value = "20")]
    limit: u16,
    #[command(flatten)]
    remote: Remote,
}

/// Print the account of a release: what happened, why, and by which evidence
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop release report chat > post-mortem.md
  backstop release report chat --format svg > post-mortem.svg")]
struct Report {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Id of the release [default: the last one]
    #[arg(long, value_name = "ID")]
    release: Option<String>,
    /// Form of the account; `--json` is the same as `json`
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    format: ReportFormat,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ReportFormat {
    Markdown,
    Json,
    /// A chart of share and evidence
    Svg,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Start(args) => start(args),
        Command::Status(of) => status(of),
        Command::Watch(of) => watch(of),
        Command::Pause(of) => tell(of, "pause"),
        Command::Resume(of) => tell(of, "resume"),
        Command::Approve(of) => tell(of, "approve"),
        Command::Promote(args) => promote(args),
        Command::Abort(of) => tell(of, "abort"),
        Command::Rollback(args) => rollback(args),
        Command::Freeze(args) => freeze::freeze(args),
        Command::Unfreeze(args) => freeze::unfreeze(args),
        Command::List(of) => list(of),
        Command::History(args) => history(args),
        Command::Report(args) => report(args),
    }
}

fn path(service: &str, what: &str) -> String {
    format!("/api/v1/services/{}/{what}", encode(service))
}

fn start(args: &Start) -> anyhow::Result<ExitCode> {
    let Start { service, to, reason, again, remote } = args;
    let path = path(service, "releases");
    let body = json!({ "to": to, "reason": reason, "again": again });
    show(remote, remote.connect()?.json(Call::post(&path).body(body))?)
}

fn status(of: &Of) -> anyhow::Result<ExitCode> {
    let path = path(&of.service, "release");
    show(&of.remote, of.remote.connect()?.json(Call::get(&path))?)
}

fn tell(of: &Of, action: &str) -> anyhow::Result<ExitCode> {
    let path = path(&of.service, &format!("release/{action}"));
    show(&of.remote, of.remote.connect()?.json(Call::post(&path))?)
}

fn promote(Promote { force, of }: &Promote) -> anyhow::Result<ExitCode> {
    let path = path(&of.service, "release/promote");
    let call = Call::post(&path).query("force", force.then_some(true));
    show(&of.remote, of.remote.connect()?.json(call)?)
}

fn rollback(args: &Rollback) -> anyhow::Result<ExitCode> {
    let Rollback { service, to, gradual, reason, force, remote } = args;
    let path = path(service, "rollback");
    let body = json!({ "to": to, "gradual": gradual, "reason": reason, "force": force });
    let done: Value = remote.connect()?.json(Call::post(&path).body(body))?;
    if done.is_null() {
        eprintln!("rolled back; the store can't be reached and will be told later");
        return Ok(ExitCode::SUCCESS);
    }
    show(remote, done)
}

/// Prints a release as it is.
fn show(remote: &Remote, release: Value) -> anyhow::Result<ExitCode> {
    if remote.json {
        print_json(&release)?;
    } else {
        let release: Release = serde_json::from_value(release)?;
        print!("{}", view::render(&release, Paper::stdout()));
    }
    Ok(ExitCode::SUCCESS)
}

fn watch(of: &Of) -> anyhow::Result<ExitCode> {
    let admin = of.remote.connect()?;
    let path = path(&of.service, "release");
    let live = !of.remote.json && std::io::stdout().is_terminal();
    let mut told = 0;
    loop {
        let release: Release = admin.json(Call::get(&path))?;
        if live {
            // From the upper left corner, over what was there.
            print!("\x1b[H\x1b[J{}", view::render(&release, Paper::stdout()));
        } else {
            told = print_news(&release, told, of.remote.json)?;
        }
        std::io::stdout().flush()?;
        if release.summary.ended {
            return Ok(if release.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        std::thread::sleep(LOOK);
    }
}

/// What has happened since `told`; gives when the last of it did. Of a long release the middle is left out, so that moments
/// can't be counted.
fn print_news(release: &Release, told: u64, json: bool) -> anyhow::Result<u64> {
    for moment in release.timeline.iter().filter(|moment| moment.at > told) {
        if json {
            println!("{}", serde_json::to_string(moment)?);
        } else {
            println!("{}  {:<13}  {}", text::time(moment.at), moment.phase, moment.text);
        }
    }
    Ok(release.timeline.last().map_or(told, |last| last.at.max(told)))
}

fn list(of: &Of) -> anyhow::Result<ExitCode> {
    let admin = of.remote.connect()?;
    let path = path(&of.service, "releases");
    if of.remote.json {
        let releases: Value = admin.json(Call::get(&path))?;
        print_json(&releases)?;
        return Ok(ExitCode::SUCCESS);
    }
    let releases: Vec<Summary> = admin.json(Call::get(&path))?;
    for line in freeze::of(&admin, &of.service)? {
        println!("{line}");
    }
    print!("{}", view::table(&releases, Paper::stdout()));
    Ok(ExitCode::SUCCESS)
}

fn history(args: &History) -> anyhow::Result<ExitCode> {
    let admin: Admin = args.remote.connect()?;
    let path = path(&args.service, "history");
    let call = Call::get(&path).query("limit", Some(args.limit));
    if args.remote.json {
        let entries: Value = admin.json(call)?;
        print_json(&entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut entries: Vec<Entry> = admin.json(call)?;
    entries.reverse();
    for entry in &entries {
        println!("{}", view::entry(entry));
    }
    Ok(ExitCode::SUCCESS)
}

fn report(args: &Report) -> anyhow::Result<ExitCode> {
    let admin = args.remote.connect()?;
    let path = path(&args.service, "report");
    let format = match args.format {
        _ if args.remote.json => "json",
        ReportFormat::Markdown => "markdown",
        ReportFormat::Json => "json",
        ReportFormat::Svg => "svg",
    };
    let call = Call::get(&path).query("release", args.release.as_ref()).query("format", Some(format));
    if format == "json" {
        let account: Value = admin.json(call)?;
        print_json(&account)?;
    } else {
        print!("{}", admin.text(call)?);
    }
    Ok(ExitCode::SUCCESS)
}
