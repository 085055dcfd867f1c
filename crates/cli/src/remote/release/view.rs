//! A release on paper.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use backstop_core::evidence::likelihood;
use backstop_core::rollout::rounded;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::table::{Cell, Column, Paper, Room, render as table_of};
use super::super::text::{self, bar};

/// Cells of a bar.
const BAR: usize = 30;

#[derive(Deserialize)]
pub(super) struct Summary {
    pub(super) id: String,
    service: String,
    kind: String,
    version: String,
    stable: String,
    pub(super) phase: String,
    pub(super) ended: bool,
    share: f64,
    cause: Option<String>,
    actor: String,
    reason: String,
    started_at: u64,
    ended_at: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct Release {
    #[serde(flatten)]
    pub(super) summary: Summary,
    steps: Vec<f64>,
    holds: Vec<Hold>,
    progress: Progress,
    requests: Arms,
    requests_in_all: Arms,
    evidence: Evidence,
    pub(super) timeline: Vec<Moment>,
    drill: Option<Drill>,
}

#[derive(Deserialize)]
struct Drill {
    outcome: Option<String>,
}

impl Release {
    /// It has ended as one hopes.
    pub(super) fn is_good(&self) -> bool {
        let passed = |drill: &Drill| drill.outcome.as_deref() == Some("passed");
        self.summary.phase == "promoted" || self.drill.as_ref().is_some_and(passed)
    }
}

#[derive(Deserialize)]
struct Hold {
    text: String,
    seconds: f64,
}

#[derive(Deserialize)]
struct Progress {
    seconds: f64,
    needs_seconds: f64,
    requests: u64,
    needs_requests: u64,
    age_seconds: f64,
    max_age_seconds: f64,
}

#[derive(Deserialize, Clone, Copy)]
struct Arms {
    stable: u64,
    canary: u64,
}

#[derive(Deserialize)]
struct Evidence {
    log: f64,
    log_limit: f64,
    imbalance: Option<f64>,
    metrics: Vec<Metric>,
}

#[derive(Deserialize)]
struct Metric {
    metric: String,
    verdict: String,
    reason: String,
    bad: Vec<Arms>,
    proven: bool,
    figures: Option<Figures>,
}

#[derive(Deserialize)]
struct Figures {
    stable: Option<f64>,
    canary: Option<f64>,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Moment {
    pub(super) at: u64,
    pub(super) phase: String,
    share: f64,
    severity: String,
    pub(super) text: String,
}

#[derive(Deserialize)]
pub(super) struct Entry {
    seq: u64,
    at: u64,
    actor: String,
    kind: String,
    subject: String,
    body: Value,
}

/// The moments at the end that are shown.
const LAST_MOMENTS: usize = 8;

pub(super) fn render(release: &Release, paper: Paper) -> String {
    let mut out = String::new();
    let Release { summary, progress, evidence, .. } = release;
    let (name, width) = (&summary.version, 12);
    let phase = paint(&summary.phase, colour_of(summary), paper);
    let _ = writeln!(out, "{}: {} → {name}  {phase}", summary.service, summary.stable);
    let mut line = |label: &str, text: &str| {
        let _ = writeln!(out, "  {label:<width$}{text}");
    };
    line(
        "release",
        &format!(
            "{} ({}), begun {} by {}",
            summary.id,
            summary.kind,
            text::time(summary.started_at),
            summary.actor
        ),
    );
    if !summary.reason.is_empty() {
        line("why", &summary.reason);
    }
    if let Some(cause) = &summary.cause {
        line("sent back", &paint(cause, Some(AnsiColor::Red), paper));
    }
    let steps: Vec<String> = release.steps.iter().map(|share| percent(*share)).collect();
    line(
        "split",
        &format!("{} {} of {}", bar(summary.share, BAR), percent(summary.share), steps.join(" → ")),
    );
    let (here, all) = (release.requests, release.requests_in_all);
    line(
        "requests",
        &format!(
            "assigned: {name} {} ({} in all), {} {} ({})",
            here.canary, all.canary, summary.stable, here.stable, all.stable
        ),
    );
    if !summary.ended {
        if progress.needs_seconds > 0.0 || progress.needs_requests > 0 {
            let Progress { seconds, needs_seconds, requests, needs_requests, .. } = progress;
            line(
                "needs",
                &format!(
                    "{} of {}, {requests} of {needs_requests} ended requests",
                    duration(*seconds),
                    duration(*needs_seconds)
                ),
            );
        }
        line(
            "age",
            &format!("{} of at most {}", duration(progress.age_seconds), duration(progress.max_age_seconds)),
        );
    }
    for hold in &release.holds {
        let text = format!("{} (for {})", hold.text, duration(hold.seconds));
        line("held up", &paint(&text, Some(AnsiColor::Yellow), paper));
    }
    line(
        "evidence",
        &format!(
            "{} {} of {}",
            bar(evidence.log.max(0.0) / evidence.log_limit, BAR),
            likelihood(evidence.log),
            likelihood(evidence.log_limit)
        ),
    );
    if let Some(p) = evidence.imbalance {
        line(
            "",
            &paint(&format!("the split is not what it should be (p = {p:.1e})"), Some(AnsiColor::Red), paper),
        );
    }
    out.push('\n');
    out += &metrics(&evidence.metrics, (name, &summary.stable), paper);
    out.push('\n');
    let skipped = release.timeline.len().saturating_sub(LAST_MOMENTS);
    for moment in release.timeline.iter().skip(skipped) {
        let _ = writeln!(out, "  {}  {}", text::time(moment.at), moment.text);
    }
    out
}

fn metrics(metrics: &[Metric], (new, old): (&str, &str), paper: Paper) -> String {
    let bad = format!("BAD UNITS ({new} / {old})");
    let columns = [
        Column::new("METRIC", Room::Needed),
        Column::new("VERDICT", Room::Needed),
        Column::new(&bad, Room::Drop(1)),
        Column::new("PROVEN", Room::Drop(2)),
        Column::new("WHY", Room::Wrap),
    ];
    let rows: Vec<Vec<Cell>> = metrics
        .iter()
        .map(|metric| {
            let colour = match metric.verdict.as_str() {
                "pass" => Some(AnsiColor::Green),
                "regressed" => Some(AnsiColor::Red),
                _ => None,
            };
            let bad = metric.bad.iter().map(|bad| format!("{}/{}", bad.canary, bad.stable));
            let value = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), rounded);
            let figures =
                metric.figures.iter().map(|it| format!("{} / {}", value(it.canary), value(it.stable)));
            let seen: Vec<String> = bad.chain(figures).collect();
            vec![
                metric.metric.as_str().into(),
                Cell::coloured(&metric.verdict, colour),
                seen.join(" ").into(),
                if metric.proven { "yes" } else { "no" }.into(),
                metric.reason.as_str().into(),
            ]
        })
        .collect();
    let text = table_of(&columns, &rows, paper);
    text.lines().map(|line| format!("  {line}\n")).collect()
}

pub(super) fn table(releases: &[Summary], paper: Paper) -> String {
    let columns = [
        Column::new("BEGUN", Room::Needed),
        Column::new("ID", Room::Drop(1)),
        Column::new("KIND", Room::Drop(3)),
        Column::new("FROM", Room::Needed),
        Column::new("TO", Room::Needed),
        Column::new("PHASE", Room::Needed),
        Column::new("BY", Room::Drop(2)),
        Column::new("WHY", Room::Wrap),
    ];
    let row = |it: &Summary| {
        let why = [it.cause.as_deref(), Some(it.reason.as_str())].into_iter().flatten();
        let why: Vec<&str> = why.filter(|text| !text.is_empty()).collect();
        let (from, to) = if it.kind == "rollback" || it.kind == "drill" {
            (&it.version, &it.stable)
        } else {
            (&it.stable, &it.version)
        };
        vec![
            text::time(it.started_at).into(),
            it.id.as_str().into(),
            it.kind.as_str().into(),
            from.as_str().into(),
            to.as_str().into(),
            Cell::coloured(&it.phase, colour_of(it)),
            it.actor.as_str().into(),
            why.join("; ").into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = releases.iter().map(row).collect();
    table_of(&columns, &rows, paper)
}

/// An entry of the history in a line.
pub(super) fn entry(entry: &Entry) -> String {
    let Entry { seq, at, actor, kind, subject, body } = entry;
    let told: Vec<&str> = body["told"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let status = body["status"].as_str().filter(|status| *status != "done");
    let status = status.map(|status| format!("{status}: ")).unwrap_or_default();
    let reason = body["reason"].as_str().filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!(
        "{seq:>5}  {}  {actor:<8}  {kind} {subject}: {status}{}{reason}",
        text::time(*at),
        told.join("; ")
    )
}

fn colour_of(summary: &Summary) -> Option<AnsiColor> {
    match summary.phase.as_str() {
        "promoted" => Some(AnsiColor::Green),
        "rolled back" | "verify failed" | "verifying" => Some(AnsiColor::Red),
        _ if summary.ended_at.is_some() => None,
        _ => Some(AnsiColor::Cyan),
    }
}

fn paint(text: &str, colour: Option<AnsiColor>, paper: Paper) -> String {
    let style = colour.filter(|_| paper.colour).map_or_else(Style::new, |colour| colour.on_default());
    format!("{style}{text}{style:#}")
}

fn percent(share: f64) -> String {
    let percent = (share * 1e5).round() / 1e3;
    format!("{percent}%")
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, 0) => format!("{minutes}m"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes}m"),
        (days, hours, ..) => format!("{days}d{hours}h"),
    }
}
