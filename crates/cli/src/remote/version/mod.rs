//! `backstop version`: what there is to release, and its files.

mod diff;
mod view;
mod wait;

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::client::{Admin, Call, encode};
use super::table::Paper;
use super::{Remote, print_json};
use view::{Pruned, Summary, Version};

/// Register versions, and keep their files
///
/// A version is a way to serve a service: endpoints, a prompt, parameters, and the files that its engines run. Those of the
/// configuration file are there already; others are registered here and can be released like them. Files are copied to where
/// Backstop keeps them (`state_dir`), so that what was stable can be had again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop version add chat v3 --endpoint http://10.0.0.7:8000 --artifact ./model.gguf
  backstop version list chat
  backstop release start chat --to v3")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Add(Box<Add>),
    /// List the versions of a service
    ///
    /// Those that are served, of the configuration file and registered ones, then those of which nothing is served, and only
    /// what they were, or their files, are kept.
    List(Of),
    /// Show all that is known of a version, with its definition as it was written
    Show(One),
    Diff(Diff),
    Verify(Verify),
    Mark(Mark),
    Prune(Prune),
}

/// Register a version, or add to one
///
/// Its endpoints can be released, and are checked, from now on. One of the configuration file can be given artifacts, labels
/// and a description. What was registered stays as it is; the same again copies what could not be copied.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop version add chat v3 --endpoint http://10.0.0.7:8000 --artifact ./model.gguf --digest sha256:9f86…
  backstop version add chat --file v3.yaml --label owner=search   named by the time, or by `name` in the file
  backstop version add chat v2 --artifact ./llama-2/              every file in the directory
  backstop version add chat v1 --kept                             one that the file has lost")]
struct Add {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Its name [default: the time, such as `20261122T191500Z`]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// A file, a directory or an HTTP URL of a file, on the machine of the running Backstop; repeatable
    #[arg(long, value_name = "PATH|URL")]
    artifact: Vec<String>,
    /// SHA-256 that the file must have; that of a directory, or of several, is made of the list of files
    #[arg(long, value_name = "sha256:HEX", requires = "artifact")]
    digest: Option<String>,
    /// A model server that runs it; repeatable
    #[arg(long, value_name = "URL", conflicts_with_all = ["file", "kept"])]
    endpoint: Vec<String>,
    /// How it is served, in YAML as in the configuration file: `endpoints`, `request`, `price`; `-` = standard input
    #[arg(long, value_name = "FILE", conflicts_with = "kept")]
    file: Option<String>,
    /// By the definition that was kept when it was registered or became stable
    #[arg(long)]
    kept: bool,
    /// Something to remember of it; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// What it is, in a sentence
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Mark it as production when its files are there
    #[arg(long)]
    production: bool,
    /// Don't wait until its files are copied
    #[arg(long)]
    no_wait: bool,
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

/// A version.
#[derive(clap::Args)]
struct One {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The version
    #[arg(value_name = "VERSION")]
    version: String,
    #[command(flatten)]
    remote: Remote,
}

/// Show what differs between two versions: definition, labels, files
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  backstop version diff chat v1 v2")]
struct Diff {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The one
    #[arg(value_name = "A")]
    a: String,
    /// The other
    #[arg(value_name = "B")]
    b: String,
    #[command(flatten)]
    remote: Remote,
}

/// Read the files of versions again, and say which are not as they were copied
///
/// Exits with 1 if a file is missing, changed or one too many; the version is then not released.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  backstop version verify chat          all versions that have files")]
struct Verify {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The version [default: all that have files]
    #[arg(value_name = "VERSION")]
    version: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Mark a version as production
///
/// The path `state_dir/artifacts/SERVICE/current` leads to its files from now on, and `previous` to those it led to before.
/// When a version with files becomes stable, it is marked by itself.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  backstop version mark chat v3 production")]
struct Mark {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The version
    #[arg(value_name = "VERSION")]
    version: String,
    /// How to mark it
    #[arg(value_name = "MARK")]
    mark: MarkAs,
    /// Even if it was sent back, and has not been changed since
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum MarkAs {
    Production,
}

/// Take away old versions, with their files
///
/// What is stable, was stable last, is under release, marked or new stays. Of versions in the configuration file only the files
/// go.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop version prune chat --dry-run
  backstop version prune chat --keep 5")]
struct Prune {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// So many of the last stable versions stay
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u16).range(3..))]
    keep: u16,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Add(args) => add(args),
        Command::List(of) => list(of),
        Command::Show(one) => show(one),
        Command::Diff(args) => diff::run(args),
        Command::Verify(args) => verify(args),
        Command::Mark(args) => mark(args),
        Command::Prune(args) => prune(args),
    }
}

fn versions(service: &str) -> String {
    format!("/api/v1/services/{}/versions", encode(service))
}

fn one(service: &str, version: &str) -> String {
    format!("{}/{}", versions(service), encode(version))
}

fn add(args: &Add) -> anyhow::Result<ExitCode> {
    let admin = args.remote.connect()?;
    let path = versions(&args.service);
    let mut done: Value = admin.json(Call::post(&path).body(body(args)?))?;
    let version: Version = serde_json::from_value(done.clone())?;
    let is_copying = version.summary.state == "copying";
    if is_copying && !args.no_wait {
        done = wait::until_done(&admin, &args.service, &version.summary.name, args.remote.json)?;
    }
    let version: Version = serde_json::from_value(done.clone())?;
    if args.remote.json {
        print_json(&done)?;
    } else {
        println!("{}", view::line(&version));
    }
    let summary = &version.summary;
    if summary.state == "failed" {
        let reason = summary.reason.as_deref().unwrap_or_default();
        bail!(
            "the artifacts of `{}` were not copied: {reason}\nhint: the same command tries it again",
            summary.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What the command says, for the API.
fn body(args: &Add) -> anyhow::Result<Value> {
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| drop(body.insert(key.to_owned(), value));
    let (file, definition) = match &args.file {
        Some(file) if file == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("can't read the standard input")?;
            ("standard input", Some(text.into()))
        }
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("can't read `{file}`"))?;
            (file.as_str(), Some(text.into()))
        }
        None if args.endpoint.is_empty() => ("", None),
        None => {
            let endpoints: Vec<Value> = args.endpoint.iter().map(|url| json!({ "url": url })).collect();
            ("", Some(json!({ "endpoints": endpoints })))
        }
    };
    let artifacts: anyhow::Result<Vec<String>> = args.artifact.iter().map(|it| artifact(it)).collect();
    let labels: Map<String, Value> =
        args.label.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    put("name", json!(args.name));
    put("definition", json!(definition));
    put("file", json!(file));
    put("kept", args.kept.into());
    put("artifacts", artifacts?.into());
    put("digest", json!(args.digest));
    put("labels", labels.into());
    put("description", json!(args.description));
    put("production", args.production.into());
    Ok(body.into())
}

/// A path as seen from here.
fn artifact(given: &str) -> anyhow::Result<String> {
    if given.contains("://") {
        return Ok(given.to_owned());
    }
    let path = std::path::absolute(Path::new(given)).with_context(|| format!("`{given}` is no path"))?;
    Ok(path.to_str().with_context(|| format!("`{given}` is not UTF-8"))?.to_owned())
}

fn list(of: &Of) -> anyhow::Result<ExitCode> {
    let path = versions(&of.service);
    let answer: Value = of.remote.connect()?.json(Call::get(&path))?;
    if of.remote.json {
        print_json(&answer)?;
    } else {
        let versions: Vec<Summary> = serde_json::from_value(answer)?;
        print!("{}", view::table(&versions, Paper::stdout()));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(args: &One) -> anyhow::Result<ExitCode> {
    let path = one(&args.service, &args.version);
    let answer: Value = args.remote.connect()?.json(Call::get(&path))?;
    if args.remote.json {
        print_json(&answer)?;
    } else {
        print!("{}", view::page(&serde_json::from_value(answer)?, Paper::stdout())?);
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &Verify) -> anyhow::Result<ExitCode> {
    let admin = args.remote.connect()?;
    let names = match &args.version {
        Some(version) => vec![version.clone()],
        None => with_files(&admin, &args.service)?,
    };
    if names.is_empty() {
        eprintln!("no version of `{}` has files", args.service);
    }
    let mut answers = Vec::new();
    let mut whole = true;
    for name in names {
        let path = format!("{}/verify", one(&args.service, &name));
        let begun: Version = admin.json(Call::post(&path))?;
        let answer = wait::until_done(&admin, &args.service, &name, args.remote.json)?;
        let version: Version = serde_json::from_value(answer.clone())?;
        if version.summary.progress.is_some() || version.summary.verified_at == begun.summary.verified_at {
            bail!(
                "`{name}` has not been verified to its end\nhint: the log of Backstop says why; try it again"
            );
        }
        whole &= version.summary.state != "damaged";
        if !args.remote.json {
            print!("{}", view::verified(&version));
        }
        answers.push(answer);
    }
    if args.remote.json {
        print_json(&answers)?;
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The versions whose files can be read.
fn with_files(admin: &Admin, service: &str) -> anyhow::Result<Vec<String>> {
    let path = versions(service);
    let all: Vec<Summary> = admin.json(Call::get(&path))?;
    let has = |it: &Summary| matches!(it.state.as_str(), "ready" | "damaged") && it.files() > 0;
    Ok(all.into_iter().filter(has).map(|it| it.name).collect())
}

fn mark(args: &Mark) -> anyhow::Result<ExitCode> {
    let MarkAs::Production = args.mark;
    let path = format!("{}/mark", one(&args.service, &args.version));
    let body = json!({ "mark": "production", "again": args.again });
    let answer: Value = args.remote.connect()?.json(Call::post(&path).body(body))?;
    if args.remote.json {
        print_json(&answer)?;
    } else {
        let version: Version = serde_json::from_value(answer)?;
        println!("{}/{}: production; {} leads to its files", args.service, args.version, version.current);
    }
    Ok(ExitCode::SUCCESS)
}

fn prune(args: &Prune) -> anyhow::Result<ExitCode> {
    let path = versions(&args.service);
    let call = Call::delete(&path).query("keep", Some(args.keep)).query("dry_run", Some(args.dry_run));
    let answer: Value = args.remote.connect()?.json(call)?;
    if args.remote.json {
        print_json(&answer)?;
    } else {
        let pruned: Pruned = serde_json::from_value(answer)?;
        print!("{}", view::pruned(&pruned, Paper::stdout()));
    }
    Ok(ExitCode::SUCCESS)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("`{text}` is not a label, such as `owner=search`"))?;
    if name.is_empty() {
        return Err(format!("`{text}` has no name before the `=`"));
    }
    Ok((name.to_owned(), value.to_owned()))
}
