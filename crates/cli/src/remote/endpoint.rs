//! `backstop endpoint`: the model servers behind a running Backstop.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anstyle::AnsiColor;
use anyhow::bail;
use backstop_core::health::State;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Admin, Call};
use super::definition::Definition;
use super::table::{Cell, Column, Paper, Room, render};
use super::{Guard, Remote, print_json};
use crate::duration;

/// How often `--wait` looks.
const LOOK: Duration = Duration::from_millis(500);
const PATH: &str = "/api/v1/endpoints";

/// Look at the endpoints of a running Backstop, and change what they do
///
/// Changes take effect at once, without a word lost, and last until they are taken back, over restarts too. The
/// configuration file stays as it is: they lie on top of it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop endpoint list
  backstop endpoint drain http://10.0.0.7:8000 --wait    before maintenance of that machine
  backstop endpoint restore http://10.0.0.7:8000         after it")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(ListArgs),
    Add(Box<AddArgs>),
    Drain(DrainArgs),
    /// Give an endpoint no new work, and take from it what it has not begun to answer
    ///
    /// That goes elsewhere; streams that flow may end. It stays checked, so that it can be inspected.
    #[command(after_help = "\
Example:
  backstop endpoint isolate http://10.0.0.7:8000")]
    Isolate(ChangeArgs),
    /// Let a drained or isolated endpoint serve again
    #[command(after_help = "\
Example:
  backstop endpoint restore http://10.0.0.7:8000")]
    Restore(ChangeArgs),
    /// Remove an endpoint
    ///
    /// Requests that run on it may end. One that the configuration file has comes back with `backstop endpoint add`. The
    /// last endpoint of a version is never removed.
    #[command(after_help = "\
Example:
  backstop endpoint drain http://10.0.0.7:8000 --wait && backstop endpoint remove http://10.0.0.7:8000")]
    Remove(ChangeArgs),
}

/// List the endpoints with their state and load, and why one is not used
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop endpoint list --service chat
  backstop endpoint list --state unhealthy --json")]
struct ListArgs {
    /// Only those of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only those of versions of this name
    #[arg(long, value_name = "NAME")]
    version: Option<String>,
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = ["starting", "healthy", "degraded", "unhealthy", "draining", "isolated"])]
    state: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Add an endpoint to a version
///
/// It gets traffic as soon as it is healthy, and stays until it is removed. To keep it for good, write it into the
/// configuration file as well.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop endpoint add http://10.0.0.9:8000 --service chat --engine vllm
  backstop endpoint add https://gpu-9:8443 --service chat --version v2 --tls-ca ./ca.pem --api-key '${GPU_KEY}'")]
struct AddArgs {
    /// Its URL
    #[arg(value_name = "URL")]
    url: String,
    /// The service that it is for
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The version that it runs [default: the stable one]
    #[arg(long, value_name = "NAME")]
    version: Option<String>,
    /// Why; for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    definition: Definition,
    #[command(flatten)]
    remote: Remote,
}

/// Give an endpoint no new work; what runs on it may end
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop endpoint drain http://10.0.0.7:8000 --wait
  backstop endpoint drain http://10.0.0.7:8000 --service chat --version v1 --wait 30m")]
struct DrainArgs {
    /// Wait until nothing runs on it, for up to TIME [default: 10m]
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "10m", value_parser = wait_time)]
    wait: Option<Duration>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(clap::Args)]
struct ChangeArgs {
    /// Its URL, as `backstop endpoint list` shows it
    #[arg(value_name = "URL")]
    url: String,
    /// The service that it belongs to; needed if several have an endpoint of this URL
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The version that it belongs to; needed if several have an endpoint of this URL
    #[arg(long, value_name = "NAME")]
    version: Option<String>,
    /// Even if it is the last one that serves its version
    #[arg(long)]
    force: bool,
    /// Why; for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Deserialize)]
struct Row {
    service: String,
    version: String,
    url: String,
    state: State,
    reason: String,
    in_flight: u32,
    requests: u64,
    breaker_open: bool,
    ejected: bool,
}

/// A change that was made.
#[derive(Serialize, Deserialize)]
struct Done {
    revision: u64,
    changed: bool,
    endpoint: Place,
}

#[derive(Serialize, Deserialize)]
struct Place {
    service: String,
    version: String,
    url: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List(args) => list(args)?,
        Command::Add(args) => add(args)?,
        Command::Drain(args) => drain(args)?,
        Command::Isolate(args) => change(args, "isolate", "isolated")?,
        Command::Restore(args) => change(args, "restore", "in service")?,
        Command::Remove(args) => remove(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let call = Call::get(PATH)
        .query("service", args.service.as_ref())
        .query("version", args.version.as_ref())
        .query("state", args.state.as_ref());
    let answer: Value = args.remote.connect()?.json(call)?;
    if args.remote.json {
        return print_json(&answer);
    }
    let rows: Vec<Row> = serde_json::from_value(answer)?;
    if rows.is_empty() {
        eprintln!("there is no such endpoint");
    } else {
        print!("{}", table(&rows, Paper::stdout()));
    }
    Ok(())
}

const COLUMNS: [Column; 7] = [
    Column::new("SERVICE", Room::Drop(0)),
    Column::new("VERSION", Room::Drop(2)),
    Column::new("ENDPOINT", Room::Cut),
    Column::new("STATE", Room::Needed),
    Column::number("IN FLIGHT", Room::Drop(1)),
    Column::number("ATTEMPTS", Room::Drop(3)),
    Column::new("WHY", Room::Wrap),
];

fn table(rows: &[Row], paper: Paper) -> String {
    let cells = |row: &Row| {
        let mut why = Vec::new();
        if row.state != State::Healthy {
            why.push(row.reason.as_str());
        }
        if row.breaker_open {
            why.push("breaker open");
        }
        if row.ejected {
            why.push("ejected");
        }
        vec![
            row.service.as_str().into(),
            row.version.as_str().into(),
            row.url.as_str().into(),
            Cell::coloured(row.state, colour(row.state)),
            row.in_flight.to_string().into(),
            row.requests.to_string().into(),
            why.join("; ").into(),
        ]
    };
    render(&COLUMNS, &rows.iter().map(cells).collect::<Vec<_>>(), paper)
}

fn colour(state: State) -> Option<AnsiColor> {
    match state {
        State::Starting => None,
        State::Healthy => Some(AnsiColor::Green),
        State::Degraded | State::Draining => Some(AnsiColor::Yellow),
        State::Unhealthy => Some(AnsiColor::Red),
        State::Isolated => Some(AnsiColor::Magenta),
    }
}

fn add(args: &AddArgs) -> anyhow::Result<()> {
    let body = json!({
        "service": args.service,
        "version": args.version,
        "endpoint": args.definition.of(&args.url),
        "reason": args.reason,
    });
    let call = Call::post(PATH).body(body).if_revision(args.guard.if_revision);
    told(&args.remote, &args.remote.connect()?.json(call)?, "added")
}

/// Posts what `args` say to `/drain` and the like.
fn post(admin: &Admin, args: &ChangeArgs, action: &str) -> anyhow::Result<Done> {
    let body = json!({
        "url": args.url,
        "service": args.service,
        "version": args.version,
        "force": args.force,
        "reason": args.reason,
    });
    let path = format!("{PATH}/{action}");
    admin.json(Call::post(&path).body(body).if_revision(args.guard.if_revision))
}

fn change(args: &ChangeArgs, action: &str, outcome: &str) -> anyhow::Result<()> {
    told(&args.remote, &post(&args.remote.connect()?, args, action)?, outcome)
}

fn remove(args: &ChangeArgs) -> anyhow::Result<()> {
    let call = Call::delete(PATH)
        .query("url", Some(&args.url))
        .query("service", args.service.as_ref())
        .query("version", args.version.as_ref())
        .query("force", args.force.then_some(true))
        .query("reason", Some(&args.reason).filter(|reason| !reason.is_empty()))
        .if_revision(args.guard.if_revision);
    told(&args.remote, &args.remote.connect()?.json(call)?, "removed")
}

fn drain(args: &DrainArgs) -> anyhow::Result<()> {
    let DrainArgs { change, wait } = args;
    let admin = change.remote.connect()?;
    let done = post(&admin, change, "drain")?;
    if let Some(limit) = wait {
        if !change.remote.json {
            told(&change.remote, &done, "draining")?;
        }
        wait_until_idle(&admin, &done.endpoint, *limit)?;
        return told(&change.remote, &done, "idle");
    }
    told(&change.remote, &done, "draining")
}

/// Looks until nothing runs on the endpoint.
fn wait_until_idle(admin: &Admin, place: &Place, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let call =
            Call::get(PATH).query("service", Some(&place.service)).query("version", Some(&place.version));
        let rows: Vec<Row> = admin.json(call)?;
        let in_flight: u32 = rows.iter().filter(|row| row.url == place.url).map(|row| row.in_flight).sum();
        if in_flight == 0 {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "{in_flight} still in flight on `{}` after {} s; it gets no new work\nhint: wait longer with `--wait TIME`, \
                 or take the work from it with `backstop endpoint isolate`",
                place.url,
                limit.as_secs()
            );
        }
        std::thread::sleep(LOOK.min(left));
    }
}

fn told(remote: &Remote, done: &Done, outcome: &str) -> anyhow::Result<()> {
    if remote.json {
        return print_json(done);
    }
    let Place { service, version, url } = &done.endpoint;
    let already = if done.changed { "" } else { " already" };
    println!("{url} of {service}/{version}: {outcome}{already} (revision {})", done.revision);
    Ok(())
}

fn wait_time(text: &str) -> Result<Duration, String> {
    if text.contains("://") {
        return Err("this is a time; write the URL before `--wait`".to_owned());
    }
    duration::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |url: &str, state, requests, reason: &str| Row {
            service: "chat".to_owned(),
            version: "v1".to_owned(),
            url: url.to_owned(),
            state,
            reason: reason.to_owned(),
            in_flight: 3,
            requests,
            breaker_open: state == State::Unhealthy,
            ejected: false,
        };
        vec![
            row("http://a:1", State::Healthy, 1_200_345, "process: 200"),
            row(
                "http://gpu-2.rack-17.example:8000/openai",
                State::Unhealthy,
                7,
                "process: connection refused",
            ),
            row("http://gpu-3:8000", State::Draining, 0, "drained by an operator"),
        ]
    }

    #[test]
    fn tables_fit_where_they_are_shown() {
        for width in [60, 100] {
            let table = table(&rows(), Paper { width: Some(width), colour: false });
            assert!(table.lines().all(|line| line.chars().count() <= width), "{table}");
            insta::assert_snapshot!(format!("table-{width}"), table);
        }
        insta::assert_snapshot!("table", table(&rows(), Paper { width: None, colour: false }));
    }

    /// However narrow it is: URLs show that they are cut, and nothing panics.
    #[test]
    fn urls_are_never_cut_in_silence() {
        for width in 1..120 {
            let table = table(&rows(), Paper { width: Some(width), colour: false });
            for line in table.lines().filter(|line| line.contains("http:")) {
                let whole = rows().iter().any(|row| line.contains(&row.url));
                assert!(whole || line.contains('…'), "{width}: {line}");
            }
        }
    }

    #[test]
    fn colour_is_only_added() {
        let plain = table(&rows(), Paper { width: None, colour: false });
        let coloured = table(&rows(), Paper { width: None, colour: true });
        assert!(coloured.contains("\u{1b}[31munhealthy\u{1b}[0m"), "{coloured}");
        let mut stripped = String::new();
        for (index, piece) in coloured.split('\u{1b}').enumerate() {
            stripped += if index == 0 { piece } else { piece.split_once('m').unwrap().1 };
        }
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(trimmed(&stripped), trimmed(&plain));
    }
}
