//! The account of a release, for those who want to know afterwards what happened and why: as Markdown and as a chart.

use std::fmt::Write;

use backstop_core::evidence::{MetricVerdict, Verdict, likelihood};
use backstop_core::report::Quantiles;
use backstop_core::rollout::{Phase, Severity, rounded};
use jiff::Timestamp;
use plotters::prelude::*;

use super::drill::Outcome;
use super::{Kept, Rehearsal};

/// Size of the chart, in pixels.
const CHART: (u32, u32) = (900, 480);

/// The account as Markdown. The chart is named beside it.
pub(crate) fn markdown(kept: &Kept) -> String {
    let release = &kept.release;
    let mut out = String::new();
    let _ = writeln!(out, "# {}: {} → {}\n", release.service, release.stable, release.canary);
    let _ = writeln!(out, "{}\n", in_short(kept));
    out += "| | |\n|---|---|\n";
    let mut row = |what: &str, value: &str| {
        let _ = writeln!(out, "| {what} | {} |", cell(value));
    };
    row("Release", &release.id);
    row("Outcome", &release.phase.to_string());
    if let Some(cause) = &release.cause {
        row("Cause", &cause.to_string());
    }
    row("Begun", &format!("{} by {}", time(kept.started_at), kept.actor));
    row("Why", &kept.reason);
    if let Some(ended) = kept.ended_at {
        row("Ended", &format!("{}, after {}", time(ended), span(ended.saturating_sub(kept.started_at))));
    }
    row("Digest of the version", &kept.digest);
    let all = kept.analysis.counts(None);
    row(
        "Requests",
        &format!(
            "assigned: {} to {}, {} to {}; ended: {} and {}",
            all.canary.requests,
            release.canary,
            all.stable.requests,
            release.stable,
            all.canary.ended,
            all.stable.ended
        ),
    );
    row(
        "Errors",
        &format!("{} of {}, {} of {}", all.canary.bad[0], release.canary, all.stable.bad[0], release.stable),
    );
    if let Some(after) = kept.noticed_after() {
        row("Sent back", &format!("{} after the version got its first share", span(after)));
    }
    if let Some(drill) = &kept.drill {
        rehearsal(drill, &mut out);
    }
    evidence(kept, &mut out);
    baseline(kept, &mut out);
    out += "\n## What happened\n\n| When | Phase | Share | |\n|---|---|---|---|\n";
    for moment in &kept.timeline {
        let mark = match moment.severity {
            Severity::Info => "",
            Severity::Warning => "**warning:** ",
            Severity::Critical => "**critical:** ",
        };
        let share = moment.share * 100.0;
        let _ = writeln!(
            out,
            "| {} | {} | {share:.3} % | {mark}{} |",
            time(moment.at),
            moment.phase,
            cell(&moment.text)
        );
    }
    out
}

fn in_short(kept: &Kept) -> String {
    let release = &kept.release;
    let (new, old) = (&release.canary, &release.stable);
    if let Some(drill) = &kept.drill {
        return match drill.outcome {
            None => format!("A rollback from {new} to {old} is being rehearsed."),
            Some(Outcome::Passed) => format!("**PASS.** A rollback from {new} to {old} was rehearsed."),
            Some(Outcome::Failed) => {
                let findings = drill.findings.join("; ");
                format!("**FAIL.** A rollback from {new} to {old} was rehearsed: {findings}.")
            }
            Some(Outcome::CalledOff) => {
                format!(
                    "The rehearsal of a rollback from {new} to {old} was called off; {old} has all traffic."
                )
            }
        };
    }
    match (release.phase, &release.cause) {
        (Phase::Promoted, _) => format!("{new} took the place of {old}: nothing showed that it is worse."),
        (Phase::Aborted, _) => format!("The release was called off; {old} has all traffic."),
        (phase, Some(cause)) if phase.is_back() => {
            format!("{new} was sent back ({cause}); {old} has the traffic.")
        }
        _ => format!("{new} is being released in place of {old}."),
    }
}

/// What was measured of a drill.
fn rehearsal(drill: &Rehearsal, out: &mut String) {
    let Rehearsal { target_ms, requests, running, assigned_late, failed, .. } = drill;
    let after = |time: Option<f64>, otherwise: &str| {
        time.map_or_else(|| otherwise.to_owned(), |millis| format!("{millis:.1} ms"))
    };
    out.push_str("\n## Measured\n\n| After the decision to go back | | Target |\n|---|---|---|\n");
    let mut row = |what: &str, value: &str, target: &str| {
        let _ = writeln!(out, "| {what} | {value} | {target} |");
    };
    let target = format!("at most {target_ms} ms");
    row(
        "Nothing more assigned to the version that is left (recovery)",
        &after(drill.recovery_ms, "–"),
        &target,
    );
    row("Served without it, and on disk", &after(drill.swap_ms, "–"), "");
    row("Its last request had ended", &after(drill.drained_ms, &format!("{running} still under way")), "");
    row("Stable seen to be as well as before", &after(drill.verified_ms, "too little traffic to tell"), "");
    row("Requests that it was given", &requests.to_string(), "");
    row("Of them assigned after the swap", &assigned_late.to_string(), "0");
    row("Of them failed for their clients", &failed.to_string(), "0");
}

/// What was known when it was decided, which is what is known at last.
fn evidence(kept: &Kept, out: &mut String) {
    let judgement = kept.judgement();
    let _ = writeln!(
        out,
        "\n## Evidence\n\nHow many times more likely what was seen is if {} is worse than if it is not: {}. From {} on it \
         is sent back. Only the first attempt of each request counts, and of each unit one event of a kind in a step.\n",
        kept.release.canary,
        likelihood(judgement.log_m),
        likelihood(judgement.log_certain),
    );
    if let Some(p) = judgement.imbalance {
        let _ =
            writeln!(out, "The split was not what it should be (p = {p:.1e}), so nothing was concluded.\n");
    }
    let (new, old) = (cell(&kept.release.canary), cell(&kept.release.stable));
    let _ = writeln!(
        out,
        "| Metric | Verdict | Alone | Bad units or value ({new} / {old}) | Ratio, at least – at most | Not worse, for sure | Why |\n\
         |---|---|---|---|---|---|---|"
    );
    for metric in &judgement.metrics {
        let verdict = match metric.verdict {
            Verdict::Pass => "pass",
            Verdict::Regressed => "**regressed**",
            Verdict::Insufficient => "insufficient",
            Verdict::NoData => "no data",
            Verdict::ProviderError => "provider error",
        };
        let alone = if metric.figures.is_some() { "–".to_owned() } else { likelihood(metric.log_e) };
        let (seen, ratios) = seen(metric);
        let proven = match (metric.proven, metric.excluded()) {
            (true, Some(times)) => format!("proven; {times:.2} times is excluded"),
            (false, Some(times)) => format!("{times:.2} times is excluded"),
            _ => "nothing is excluded".to_owned(),
        };
        let proven = if ratios.is_empty() { "–".to_owned() } else { proven };
        let (name, why) = (&metric.name, cell(&metric.reason));
        let _ = writeln!(out, "| {name} | {verdict} | {alone} | {seen} | {ratios} | {proven} | {why} |");
    }
}

/// What was counted or measured of a metric, and where its ratio is.
fn seen(metric: &MetricVerdict) -> (String, String) {
    let bad = metric.bad.iter().map(|bad| format!("{}/{}", bad.canary, bad.stable));
    let value = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), rounded);
    let figures = metric.figures.iter().map(|it| format!("{} / {}", value(it.canary), value(it.stable)));
    let of_means = metric.figures.iter().filter_map(|it| it.ratio).map(|it| ratio(it.low, it.high));
    let ratios = metric.ratios.iter().map(|range| ratio(range.low, range.high)).chain(of_means);
    let join = |texts: Vec<String>| texts.join(", ");
    (join(bad.chain(figures).collect()), join(ratios.collect()))
}

fn baseline(kept: &Kept, out: &mut String) {
    let Some(usual) = &kept.baseline else { return };
    let _ = writeln!(out, "\n## {} before the release\n", kept.release.stable);
    out.push_str("| | Answers | p50 | p90 | p95 | p99 |\n|---|---|---|---|---|---|\n");
    for (name, times) in [
        ("Time to the first token", usual.ttft),
        ("Time per token", usual.tpot),
        ("Whole answer", usual.total),
    ] {
        let Quantiles { count, p50, p90, p95, p99 } = times;
        if count > 0 {
            let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
            let _ =
                writeln!(out, "| {name} | {count} | {} | {} | {} | {} |", ms(p50), ms(p90), ms(p95), ms(p99));
        }
    }
}

/// Share and evidence over time, as SVG.
pub(crate) fn chart(kept: &Kept) -> Result<String, String> {
    let mut svg = String::new();
    draw(kept, &mut svg).map_err(|error| error.to_string())?;
    Ok(svg)
}

fn draw(kept: &Kept, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, CHART).into_drawing_area();
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(CHART.1 / 2);
    let end = kept.samples.last().map_or(1.0, |sample| sample.at as f64 / 1e3).max(1.0);
    let seconds = |sample: &super::kept::Sample| sample.at as f64 / 1e3;
    let limit = kept.judgement().log_certain;
    let most =
        kept.samples.iter().map(|sample| sample.log_m).filter(|log| log.is_finite()).fold(limit, f64::max);

    let mut shares = ChartBuilder::on(&upper)
        .caption(format!("Share of {} (%)", kept.release.canary), ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(24)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..end, 0.0..100.0)?;
    shares.configure_mesh().y_labels(5).disable_x_mesh().draw()?;
    let line = kept.samples.iter().map(|sample| (seconds(sample), sample.share * 100.0));
    shares.draw_series(AreaSeries::new(line, 0.0, BLUE.mix(0.2)).border_style(BLUE))?;

    let mut evidence = ChartBuilder::on(&lower)
        .caption("Evidence that it is worse (natural logarithm; dashed: sent back)", ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..end, -1.0..most * 1.1)?;
    evidence.configure_mesh().y_labels(5).disable_x_mesh().x_desc("seconds of the release").draw()?;
    let line = kept.samples.iter().map(|sample| (seconds(sample), sample.log_m.clamp(-1.0, most)));
    evidence.draw_series(LineSeries::new(line, RED.stroke_width(2)))?;
    evidence.draw_series(DashedLineSeries::new([(0.0, limit), (end, limit)], 6, 4, BLACK.into()))?;
    area.present()?;
    Ok(())
}

fn time(millis: u64) -> String {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis)
        .map_or_else(|_| "?".to_owned(), |at| at.strftime("%F %T UTC").to_string())
}

fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) => format!("{:.1} s", millis as f64 / 1e3),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

fn ratio(low: f64, high: f64) -> String {
    if high.is_finite() { format!("{low:.2} – {high:.2}") } else { format!("{low:.2} – any") }
}

/// What operators wrote must not end a cell, nor be taken for HTML.
fn cell(text: &str) -> String {
    let text = text.replace('|', "\\|").replace('<', "&lt;");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
