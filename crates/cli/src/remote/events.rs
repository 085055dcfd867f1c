//! `backstop events`: what happened.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use backstop_core::event::{CertificateState, EndpointName, Event, ResolutionState, What};
use backstop_core::health::State;
use backstop_core::rollout::Severity;
use backstop_core::standby::Stage;
use backstop_core::status::DependencyState;
use serde::Deserialize;

use super::client::{Admin, Call};
use super::table::Paper;
use super::{Remote, text};

/// Pause before a lost connection is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// Show what happened: changes of health, changes by operators, what was refused
///
/// The last 1,024 events of the running process are kept.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop events --types change,refused    who changed what
  backstop events --follow                  as it happens, until Ctrl-C
  backstop events --after 17 --json         one JSON object a line")]
pub(crate) struct Args {
    /// Go on with what happens from now on; a lost connection is made again
    #[arg(short, long)]
    follow: bool,
    /// Only those after the event with this number
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// Only these, separated by commas: health, breaker, ejected, failover, release, dependency, resolution,
    /// certificate, table, change, refused
    #[arg(long, value_name = "TYPES")]
    types: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Deserialize)]
struct Missed {
    missed: u64,
}

/// One event of the stream.
enum Sent {
    Event(Event),
    Missed(u64),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let admin = args.remote.connect()?;
    let mut last = None;
    let paper = Paper::stdout();
    let mut seen_one = false;
    loop {
        match read(&admin, args, last.as_deref()) {
            Ok(lines) => {
                if seen_one && args.follow {
                    eprintln!("connected again");
                }
                seen_one = true;
                if !print(lines, args.remote.json, paper, &mut last) || !args.follow {
                    return Ok(ExitCode::SUCCESS);
                }
                eprintln!("the connection is lost; trying again");
            }
            Err(error) if !seen_one => return Err(error),
            Err(_) => {}
        }
        std::thread::sleep(AGAIN);
    }
}

fn read(admin: &Admin, args: &Args, last: Option<&str>) -> anyhow::Result<impl BufRead + use<>> {
    let call = Call::get("/api/v1/events")
        .query("after", args.after)
        .query("types", args.types.as_ref())
        .query("follow", (!args.follow).then_some(false))
        .last_event(last);
    admin.lines(call)
}

/// Prints events until the stream ends; `false` if nobody reads what is printed. `last` is the `id` of the last one.
fn print(lines: impl BufRead, json: bool, paper: Paper, last: &mut Option<String>) -> bool {
    let mut out = std::io::stdout().lock();
    let mut name = String::new();
    for line in lines.lines() {
        let Ok(line) = line else { break };
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut name);
        }
        if let Some(id) = line.strip_prefix("id: ") {
            *last = Some(id.to_owned());
        }
        if line.is_empty() {
            name.clear();
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let told = match parse(&name, data) {
            Some(Sent::Event(event)) => {
                if json {
                    writeln!(out, "{data}")
                } else {
                    writeln!(out, "{}", told(&event, paper.colour))
                }
            }
            Some(Sent::Missed(missed)) if json => writeln!(out, "{{\"missed\":{missed}}}"),
            Some(Sent::Missed(missed)) => writeln!(out, "… {missed} events are missing here"),
            // Of a newer Backstop.
            None if json => writeln!(out, "{data}"),
            None => writeln!(out, "? {data}"),
        };
        if told.and_then(|()| out.flush()).is_err() {
            return false;
        }
    }
    true
}

fn parse(name: &str, data: &str) -> Option<Sent> {
    if name == "missed" {
        let Missed { missed } = serde_json::from_str(data).ok()?;
        return Some(Sent::Missed(missed));
    }
    serde_json::from_str(data).ok().map(Sent::Event)
}

/// One line for people.
fn told(event: &Event, colour: bool) -> String {
    let at =
        |endpoint: &EndpointName| format!("{} of {}/{}", endpoint.url, endpoint.service, endpoint.version);
    let (what, tone) = match &event.what {
        What::Health { endpoint, from, to, reason } => {
            let tone = match to {
                State::Healthy => Some(AnsiColor::Green),
                State::Unhealthy => Some(AnsiColor::Red),
                _ => Some(AnsiColor::Yellow),
            };
            (format!("{}: {from} → {to} ({reason})", at(endpoint)), tone)
        }
        What::Breaker { endpoint, open } => {
            let tone = if *open { AnsiColor::Red } else { AnsiColor::Green };
            (format!("{}: {}", at(endpoint), if *open { "opened" } else { "closed" }), Some(tone))
        }
        What::Ejected { endpoint, seconds, reason } => {
            (format!("{}: for {seconds:.0} s ({reason})", at(endpoint)), Some(AnsiColor::Red))
        }
        What::Dependency { service, name, state, reason } => {
            let (state, tone) = match state {
                DependencyState::Unknown => ("unknown", None),
                DependencyState::Up => ("up", Some(AnsiColor::Green)),
                DependencyState::Down => ("down", Some(AnsiColor::Red)),
            };
            (format!("{name} of {service}: {state} ({reason})"), tone)
        }
        What::Resolution { name, state, addresses, reason } => {
            let tone = match state {
                ResolutionState::Resolved => AnsiColor::Green,
                ResolutionState::Failing => AnsiColor::Red,
                ResolutionState::Limited => AnsiColor::Yellow,
            };
            (format!("{name}: {reason}, addresses in use: {addresses}"), Some(tone))
        }
        What::Certificate { listener, state, reason, .. } => {
            let tone = match state {
                CertificateState::Renewed => AnsiColor::Green,
                CertificateState::Expiring => AnsiColor::Yellow,
                CertificateState::Refused | CertificateState::Expired => AnsiColor::Red,
            };
            (format!("{listener}: {reason}"), Some(tone))
        }
        What::Failover { service, version, tier, stage, share, reason } => {
            let (to, tone) = match stage {
                Stage::Primary => ("has its work".to_owned(), AnsiColor::Green),
                Stage::Standby => ("its standby has the work".to_owned(), AnsiColor::Red),
                Stage::Leaving | Stage::Returning => {
                    (format!("{stage}, takes {:.0} %", share * 100.0), AnsiColor::Yellow)
                }
            };
            (format!("{tier} of {service}/{version}: {to}: {reason}"), Some(tone))
        }
        What::Release { service, version, phase, share, severity, reason, .. } => {
            let tone = match severity {
                Severity::Info => None,
                Severity::Warning => Some(AnsiColor::Yellow),
                Severity::Critical => Some(AnsiColor::Red),
            };
            (format!("{version} of {service}: {phase}, {:.3} %: {reason}", share * 100.0), tone)
        }
        What::Storage { what, works, reason } => {
            let tone = if *works { AnsiColor::Green } else { AnsiColor::Red };
            (format!("{}: {reason}", what.name()), Some(tone))
        }
        What::Table { revision } => (format!("revision {revision} serves"), None),
        What::Change { actor, action, subject, revision } => {
            (format!("{actor}: {action} {subject} (revision {revision})"), None)
        }
        What::Refused { actor, action, subject, reason } => {
            (format!("{actor}: {action} {subject}: {reason}"), Some(AnsiColor::Red))
        }
        What::Undelivered { recipient, notice, reason } => {
            (format!("{recipient} was not told: {notice} ({reason})"), Some(AnsiColor::Red))
        }
    };
    let style = tone.filter(|_| colour).map_or_else(Style::new, |tone| tone.on_default());
    let kind = format!("{style}{:<11}{style:#}", event.what.kind());
    format!("{:>5}  {}  {kind}  {what}", event.id, text::time(event.at))
}
