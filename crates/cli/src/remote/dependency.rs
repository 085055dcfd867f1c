//! `backstop dependency`: what services need besides their endpoints.

use std::process::ExitCode;

use anstyle::AnsiColor;
use backstop_core::status::DependencyState;
use clap::{Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Call, encode};
use super::table::{Cell, Column, Paper, Room, render};
use super::{Guard, Remote, print_json};

const PATH: &str = "/api/v1/dependencies";

/// Look at what services depend on, and force its state for tests and maintenance
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop dependency list
  backstop dependency set vectors down    as if it had failed
  backstop dependency set vectors auto    as its checks find it again")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(ListArgs),
    Set(SetArgs),
}

/// List the dependencies with their state
#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    remote: Remote,
}

/// Force the state of a dependency, until it is set to `auto` or Backstop ends
#[derive(clap::Args)]
struct SetArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    name: String,
    /// The state
    #[arg(value_name = "STATE")]
    state: Forced,
    /// Only that of this service [default: all of this name]
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Forced {
    /// There, whatever its checks find
    Up,
    /// Gone, whatever its checks find
    Down,
    /// As its checks find it
    Auto,
}

impl Forced {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Auto => "auto",
        }
    }
}

#[derive(Deserialize)]
struct Row {
    service: String,
    name: String,
    state: DependencyState,
    reason: String,
    forced: bool,
}

const COLUMNS: [Column; 4] = [
    Column::new("SERVICE", Room::Drop(0)),
    Column::new("DEPENDENCY", Room::Cut),
    Column::new("STATE", Room::Needed),
    Column::new("WHY", Room::Wrap),
];

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List(args) => list(args)?,
        Command::Set(args) => set(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let answer: Value = args.remote.connect()?.json(Call::get(PATH))?;
    if args.remote.json {
        return print_json(&answer);
    }
    let rows: Vec<Row> = serde_json::from_value(answer)?;
    if rows.is_empty() {
        eprintln!("no service declares `dependencies`");
    } else {
        print!("{}", table(&rows, Paper::stdout()));
    }
    Ok(())
}

fn table(rows: &[Row], paper: Paper) -> String {
    let cells = |row: &Row| {
        let (state, colour) = match row.state {
            DependencyState::Unknown => ("unknown", None),
            DependencyState::Up => ("up", Some(AnsiColor::Green)),
            DependencyState::Down => ("down", Some(AnsiColor::Red)),
        };
        let why = if row.forced { "set by an operator" } else { &row.reason };
        vec![row.service.as_str().into(), row.name.as_str().into(), Cell::coloured(state, colour), why.into()]
    };
    render(&COLUMNS, &rows.iter().map(cells).collect::<Vec<_>>(), paper)
}

fn set(args: &SetArgs) -> anyhow::Result<()> {
    let path = format!("{PATH}/{}", encode(&args.name));
    let body = json!({ "service": args.service, "state": args.state.name() });
    let call = Call::post(&path).body(body).if_revision(args.guard.if_revision);
    let answer: Value = args.remote.connect()?.json(call)?;
    if args.remote.json {
        return print_json(&answer);
    }
    println!("{}: {}", args.name, args.state.name());
    Ok(())
}
