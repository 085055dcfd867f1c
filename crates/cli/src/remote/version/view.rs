//! Versions on paper.

use std::collections::BTreeMap;
use std::fmt::Write;

use anstyle::AnsiColor;
use serde::Deserialize;
use serde_json::Value;

use super::super::table::{Cell, Column, Paper, Room, render};
use super::super::{config::yaml_text, text};

/// Digits of a digest that are enough to tell it from others.
const DIGITS: usize = 12;

#[derive(Deserialize)]
pub(super) struct Summary {
    service: String,
    pub(super) name: String,
    from: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) progress: Option<Progress>,
    digest: Option<String>,
    artifacts: Option<Artifacts>,
    marks: Vec<String>,
    stable_at: Vec<u64>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) description: String,
    created_at: Option<u64>,
    created_by: Option<String>,
    pub(super) verified_at: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct Progress {
    pub(super) what: String,
    pub(super) done: u64,
    pub(super) total: u64,
}

#[derive(Deserialize)]
struct Artifacts {
    sources: Vec<String>,
    digest: Option<String>,
    files: usize,
    bytes: u64,
}

#[derive(Deserialize)]
pub(super) struct Version {
    #[serde(flatten)]
    pub(super) summary: Summary,
    pub(super) definition: Option<Value>,
    #[serde(default)]
    without: Vec<String>,
    pub(super) files: Vec<File>,
    faults: Vec<Fault>,
    path: Option<String>,
    pub(super) current: String,
}

#[derive(Deserialize)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) digest: String,
}

#[derive(Deserialize)]
struct Fault {
    path: String,
    what: String,
}

#[derive(Deserialize)]
pub(super) struct Pruned {
    dry_run: bool,
    removed: Vec<Fate>,
    kept: Vec<Fate>,
}

#[derive(Deserialize)]
struct Fate {
    name: String,
    what: String,
    bytes: u64,
    why: String,
}

impl Summary {
    pub(super) fn files(&self) -> usize {
        self.artifacts.as_ref().map_or(0, |artifacts| artifacts.files)
    }

    fn is(&self, mark: &str) -> bool {
        self.marks.iter().any(|it| it == mark)
    }

    /// With how far it is.
    fn state(&self) -> Cell {
        let share = self.progress.as_ref().filter(|progress| progress.total > 0);
        let share = share.map(|progress| format!(" {}%", progress.done * 100 / progress.total));
        let doing = self.progress.as_ref().map_or(self.state.as_str(), |progress| &progress.what);
        let colour = match self.state.as_str() {
            "ready" => Some(AnsiColor::Green),
            "failed" | "damaged" => Some(AnsiColor::Red),
            "copying" => Some(AnsiColor::Cyan),
            _ => None,
        };
        Cell::coloured(format!("{doing}{}", share.unwrap_or_default()), colour)
    }

    fn stable(&self) -> String {
        let last = self.stable_at.last().map(|at| text::time(*at));
        match (self.is("stable"), last) {
            (true, Some(since)) => format!("since {since}"),
            (true, None) => "now".to_owned(),
            (false, Some(from)) => format!("was, from {from}"),
            (false, None) => String::new(),
        }
    }

    /// But for that it is stable.
    fn marks(&self) -> String {
        let marks: Vec<String> =
            self.marks.iter().filter(|mark| *mark != "stable").map(|mark| mark.replace('_', " ")).collect();
        marks.join(", ")
    }

    fn labels(&self) -> String {
        let labels: Vec<String> = self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        labels.join(" ")
    }
}

pub(super) fn table(versions: &[Summary], paper: Paper) -> String {
    let columns = [
        Column::new("VERSION", Room::Needed),
        Column::new("FROM", Room::Drop(2)),
        Column::new("STATE", Room::Needed),
        Column::new("DIGEST", Room::Drop(4)),
        Column::number("SIZE", Room::Drop(5)),
        Column::new("STABLE", Room::Drop(1)),
        Column::new("MARKS", Room::Needed),
        Column::new("LABELS", Room::Drop(3)),
        Column::new("DESCRIPTION", Room::Wrap),
    ];
    let row = |it: &Summary| {
        let artifacts = it.artifacts.as_ref();
        let digest = artifacts.and_then(|artifacts| artifacts.digest.as_deref()).map(short);
        let size = artifacts.filter(|artifacts| artifacts.files > 0).map(|it| text::bytes(it.bytes));
        let told = [it.reason.as_deref().unwrap_or_default(), it.description.as_str()];
        let told: Vec<&str> = told.into_iter().filter(|text| !text.is_empty()).collect();
        vec![
            it.name.as_str().into(),
            it.from.as_str().into(),
            it.state(),
            digest.unwrap_or_default().into(),
            size.unwrap_or_default().into(),
            it.stable().into(),
            it.marks().into(),
            it.labels().into(),
            told.join("; ").into(),
        ]
    };
    render(&columns, &versions.iter().map(row).collect::<Vec<_>>(), paper)
}

/// A version in a line.
pub(super) fn line(version: &Version) -> String {
    let summary = &version.summary;
    let mut told = vec![format!("{} ({})", summary.state, summary.from)];
    if let Some(artifacts) = summary.artifacts.as_ref().filter(|artifacts| artifacts.files > 0) {
        told.push(format!("{}, {}", count(artifacts.files), text::bytes(artifacts.bytes)));
        told.extend(artifacts.digest.as_ref().map(|digest| format!("sha256:{digest}")));
    }
    told.extend(summary.is("production").then(|| "production".to_owned()));
    format!("{}/{}: {}", summary.service, summary.name, told.join(", "))
}

/// All that is known of a version; its definition comes last.
pub(super) fn page(version: &Version, paper: Paper) -> anyhow::Result<String> {
    let summary = &version.summary;
    let mut out = String::new();
    let state = summary.state();
    let (on, off) = if paper.colour {
        (state.style.render().to_string(), state.style.render_reset().to_string())
    } else {
        Default::default()
    };
    let _ = writeln!(out, "{}/{}  {on}{}{off}", summary.service, summary.name, state.text);
    let mut line = |label: &str, text: &str| {
        if !text.is_empty() {
            let _ = writeln!(out, "  {label:<13}{text}");
        }
    };
    line("why", summary.reason.as_deref().unwrap_or_default());
    line("description", &summary.description);
    line("from", &summary.from);
    line("labels", &summary.labels());
    line("marks", &summary.marks());
    let times: Vec<String> = summary.stable_at.iter().map(|at| text::time(*at)).collect();
    line("stable", &summary.stable());
    if times.len() > 1 {
        line("", &format!("before: {}", times[..times.len() - 1].join(", ")));
    }
    let by = summary.created_by.as_deref().unwrap_or_default();
    line(
        "registered",
        &summary.created_at.map(|at| format!("{} by {by}", text::time(at))).unwrap_or_default(),
    );
    line("digest", summary.digest.as_deref().unwrap_or_default());
    if let Some(artifacts) = &summary.artifacts {
        line("artifacts", &artifacts.sources.join(", "));
        line("", &artifacts.digest.as_ref().map(|digest| format!("sha256:{digest}")).unwrap_or_default());
    }
    line("files", version.path.as_deref().unwrap_or_default());
    for file in &version.files {
        line("", &format!("{}  {:>10}  {}", short(&file.digest), text::bytes(file.bytes), file.path));
    }
    line("verified", &summary.verified_at.map(text::time).unwrap_or_default());
    for Fault { path, what } in &version.faults {
        line("", &format!("{what}: {path}"));
    }
    if let Some(definition) = &version.definition {
        out.push('\n');
        if !version.without.is_empty() {
            let _ = writeln!(out, "# not kept, since written in clear: {}", version.without.join(", "));
        }
        out += &yaml_text(definition)?;
    }
    Ok(out)
}

/// What was found of a version's files.
pub(super) fn verified(version: &Version) -> String {
    let Summary { service, name, .. } = &version.summary;
    if version.faults.is_empty() {
        return format!("{service}/{name}: {} as copied\n", count(version.files.len()));
    }
    let fault = |Fault { path, what }: &Fault| format!("{service}/{name}: {path} is {what}\n");
    version.faults.iter().map(fault).collect()
}

pub(super) fn pruned(pruned: &Pruned, paper: Paper) -> String {
    let columns = [
        Column::new("VERSION", Room::Needed),
        Column::new("WHAT", Room::Needed),
        Column::number("SIZE", Room::Drop(1)),
        Column::new("WHY", Room::Wrap),
    ];
    let goes = if pruned.dry_run { "would go" } else { "removed" };
    let row = |fate: &Fate, is_gone: bool| {
        let what = match (is_gone, fate.what.as_str()) {
            (true, "files") => Cell::coloured(format!("{goes} (files)"), Some(AnsiColor::Yellow)),
            (true, _) => Cell::coloured(goes, Some(AnsiColor::Yellow)),
            (false, _) => Cell::coloured("stays", Some(AnsiColor::Green)),
        };
        let size = if fate.bytes > 0 { text::bytes(fate.bytes) } else { String::new() };
        vec![fate.name.as_str().into(), what, size.into(), fate.why.as_str().into()]
    };
    let gone = pruned.removed.iter().map(|fate| row(fate, true));
    let rows: Vec<Vec<Cell>> = gone.chain(pruned.kept.iter().map(|fate| row(fate, false))).collect();
    render(&columns, &rows, paper)
}

fn short(digest: &str) -> &str {
    digest.get(..DIGITS).unwrap_or(digest)
}

fn count(files: usize) -> String {
    format!("{files} file{}", if files == 1 { "" } else { "s" })
}
