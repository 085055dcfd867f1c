//! `backstop snapshot`: what is served, saved and restored.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Subcommand;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Call, encode};
use super::table::{Cell, Column, Paper, Room, render};
use super::{Guard, Remote, config, print_json, text};

/// Save what is served, look at it later, and restore it
///
/// A snapshot has of each service its definition with all changes made at run time, which version is stable, which were
/// before, and which were sent back. One is taken by itself before each restore and each promotion.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Save(Save),
    List(List),
    Show(Show),
    Restore(Restore),
    Delete(Delete),
}

/// Save what is served now
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop snapshot save --description \"before the move to the new GPUs\"
  backstop snapshot save --service chat --service embed")]
struct Save {
    /// What it is for, for those who look for it later
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// Only this service; may be given several times [default: all]
    #[arg(long = "service", value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    remote: Remote,
}

/// List snapshots, the last one first
#[derive(clap::Args)]
struct List {
    /// Only those of this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only those in which a service has this version
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Show a snapshot, in the form of the configuration file
///
/// What the file has no words for (which versions were sent back, which endpoints were drained) comes as comments.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop snapshot show 20261122T19
  backstop snapshot show 20261122T19 --service chat > chat.yaml")]
struct Show {
    /// Its id, or enough of its beginning
    #[arg(value_name = "ID")]
    id: String,
    /// Only this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Restore a snapshot: its services are as they were, at once
///
/// It holds in place of what the file says of these services, over restarts too, until the file says something else of them.
/// Versions that were sent back since stay so. What there was before is saved first, so that it can be restored as well.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop snapshot restore 20261122T19 --dry-run
  backstop snapshot restore 20261122T19 --service chat --description \"the new prompts were a mistake\"")]
struct Restore {
    /// Its id, or enough of its beginning
    #[arg(value_name = "ID")]
    id: String,
    /// Only this service; may be given several times [default: all of the snapshot]
    #[arg(long = "service", value_name = "SERVICE")]
    services: Vec<String>,
    /// Why; for the history
    #[arg(long, value_name = "WHY", default_value = "")]
    description: String,
    /// Also a stable version that was sent back since, as it is
    #[arg(long)]
    again: bool,
    /// Also a stable version without an endpoint that is known to be well
    #[arg(long)]
    force: bool,
    /// Only say what it would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    remote: Remote,
}

/// Forget a snapshot; what was restored from it stays as it is
#[derive(clap::Args)]
struct Delete {
    /// Its id, or enough of its beginning
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Deserialize)]
struct Summary {
    id: String,
    at: u64,
    actor: String,
    description: String,
    automatic: bool,
    digest: String,
    services: Vec<SavedSummary>,
}

#[derive(Deserialize)]
struct SavedSummary {
    service: String,
    stable: String,
    release: Option<String>,
}

#[derive(Deserialize)]
struct Snapshot {
    #[serde(flatten)]
    summary: Summary,
    saved: BTreeMap<String, Saved>,
}

#[derive(Deserialize)]
struct Saved {
    definition: Value,
    endpoints: Vec<Endpoint>,
    previous: Vec<String>,
    sent_back: Vec<SentBack>,
}

#[derive(Deserialize)]
struct Endpoint {
    version: String,
    url: String,
    standing: String,
}

#[derive(Deserialize)]
struct SentBack {
    version: String,
    release: String,
    reason: String,
}

#[derive(Deserialize)]
struct Restored {
    snapshot: String,
    before: Option<String>,
    changes: BTreeMap<String, Vec<String>>,
}

const PATH: &str = "/api/v1/snapshots";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Save(args) => save(args)?,
        Command::List(args) => list(args)?,
        Command::Show(args) => show(args)?,
        Command::Restore(args) => restore(args)?,
        Command::Delete(args) => delete(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn path(id: &str) -> String {
    format!("{PATH}/{}", encode(id))
}

fn save(Save { description, services, remote }: &Save) -> anyhow::Result<()> {
    let body = json!({ "description": description, "services": services });
    let saved: Value = remote.connect()?.json(Call::post(PATH).body(body))?;
    if remote.json {
        return print_json(&saved);
    }
    let Summary { id, services, .. } = serde_json::from_value(saved)?;
    println!("{id}: {}", listed(&services));
    for SavedSummary { service, release, .. } in &services {
        if let Some(release) = release {
            println!("{service}: release {release} is under way; nothing of it is saved");
        }
    }
    Ok(())
}

fn list(List { service, version, remote }: &List) -> anyhow::Result<()> {
    let call = Call::get(PATH).query("service", service.as_ref()).query("version", version.as_ref());
    let found: Value = remote.connect()?.json(call)?;
    if remote.json {
        return print_json(&found);
    }
    let found: Vec<Summary> = serde_json::from_value(found)?;
    if found.is_empty() {
        eprintln!("there is no such snapshot");
        return Ok(());
    }
    let columns = [
        Column::new("SAVED", Room::Drop(2)),
        Column::new("ID", Room::Needed),
        Column::new("BY", Room::Drop(1)),
        Column::new("STABLE", Room::Wrap),
        Column::new("DESCRIPTION", Room::Wrap),
    ];
    let row = |it: &Summary| -> Vec<Cell> {
        let by = if it.automatic { format!("{}, automatic", it.actor) } else { it.actor.clone() };
        vec![
            text::time(it.at).into(),
            it.id.as_str().into(),
            by.into(),
            listed(&it.services).into(),
            it.description.as_str().into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = found.iter().map(row).collect();
    print!("{}", render(&columns, &rows, Paper::stdout()));
    Ok(())
}

fn show(Show { id, service, remote }: &Show) -> anyhow::Result<()> {
    let path = path(id);
    let mut found: Value = remote.connect()?.json(Call::get(&path))?;
    if let (Some(wanted), Some(saved)) = (service, found["saved"].as_object_mut()) {
        if !saved.contains_key(wanted) {
            let known: Vec<String> = saved.keys().map(|name| format!("`{name}`")).collect();
            anyhow::bail!("the snapshot has no service `{wanted}`; it has {}", known.join(", "));
        }
        saved.retain(|name, _| name == wanted);
    }
    if remote.json {
        return print_json(&found);
    }
    print!("{}", page(&serde_json::from_value(found)?)?);
    Ok(())
}

/// The definitions as YAML, below what the file has no words for.
fn page(Snapshot { summary, saved }: &Snapshot) -> anyhow::Result<String> {
    let Summary { id, at, actor, description, digest, services, .. } = summary;
    let description = if description.is_empty() { String::new() } else { format!(": {description}") };
    let mut out =
        format!("# snapshot {id}, saved {} by {actor}{description}\n# digest {digest}\n", text::time(*at));
    for (name, saved) in saved {
        for SavedSummary { stable, release, .. } in services.iter().filter(|it| it.service == *name) {
            let before = &saved.previous;
            let before =
                if before.is_empty() { String::new() } else { format!(", before it {}", before.join(", ")) };
            out += &format!("# {name}: {stable} is stable{before}\n");
            if let Some(release) = release {
                out += &format!("# {name}: release {release} was under way; nothing of it is saved\n");
            }
        }
        for SentBack { version, release, reason } in &saved.sent_back {
            out += &format!("# {name}: {version} had been sent back by release {release} ({reason})\n");
        }
        for Endpoint { version, url, standing } in &saved.endpoints {
            out += &format!("# {name}: endpoint {url} of {version} was {standing}\n");
        }
    }
    let definitions: Value = saved.values().map(|saved| saved.definition.clone()).collect();
    if definitions.to_string().contains("\"api_key\":\"***\"") {
        out += "# a key that stands in the file in clear is not kept: `***`\n";
    }
    out += &config::yaml_text(&json!({ "services": definitions }))?;
    Ok(out)
}

fn restore(args: &Restore) -> anyhow::Result<()> {
    let Restore { id, services, description, again, force, dry_run, guard, remote } = args;
    let path = format!("{}/restore", path(id));
    let body = json!({
        "services": services,
        "description": description,
        "again": again,
        "force": force,
        "dry_run": dry_run,
    });
    let call = Call::post(&path).body(body).if_revision(guard.if_revision);
    let done: Value = remote.connect()?.json(call)?;
    if remote.json {
        return print_json(&done);
    }
    let Restored { snapshot, before, changes } = serde_json::from_value(done)?;
    for (service, changes) in &changes {
        for change in changes {
            println!("{service}: {change}");
        }
    }
    match before {
        _ if changes.values().all(Vec::is_empty) => println!("all is as in snapshot {snapshot} already"),
        Some(before) => println!("snapshot {snapshot} is restored; {before} has what there was before"),
        None => println!("nothing was changed: without `--dry-run` that would be restored from {snapshot}"),
    }
    Ok(())
}

fn delete(Delete { id, remote }: &Delete) -> anyhow::Result<()> {
    let path = path(id);
    let deleted: Value = remote.connect()?.json(Call::delete(&path))?;
    if remote.json {
        return print_json(&deleted);
    }
    let Summary { id, .. } = serde_json::from_value(deleted)?;
    println!("{id} is deleted");
    Ok(())
}

/// `chat v2, embed v1`
fn listed(services: &[SavedSummary]) -> String {
    let told = services.iter().map(|it| format!("{} {}", it.service, it.stable));
    told.collect::<Vec<_>>().join(", ")
}
