//! One table per case.

use super::line;
use crate::load::Case;
use crate::measure::Spread;
use crate::peer::roster::BASES;
use crate::results::{CaseResult, Failover, IdleResult, Parameters, Part, Rollback, Summary};

/// Ratios to these peers are columns of every table.
const COLUMNS: [&str; 2] = [BASES[0], BASES[1]];

pub(super) fn cpu(page: &mut String, result: &CaseResult, parameters: &Parameters) {
    let CaseResult { connections, request_bytes, answer_bytes, .. } = result;
    let loop_of = format!("answer {answer_bytes} bytes, {connections} connections, closed loop");
    let (title, unit, about) = match result.case {
        Case::Plain => (
            "Small chat completions",
            "request",
            format!("An answer in one piece. Request {request_bytes} bytes, {loop_of}."),
        ),
        Case::Sse100 => (
            "Streams of 100 chunks",
            "response",
            format!(
                "The upstream writes each chunk, a server-sent event, by itself and without a pause. Request \
                 {request_bytes} bytes, {loop_of}."
            ),
        ),
        Case::Paced | Case::Idle1000 | Case::Idle9000 => (
            "Paced streams",
            "chunk",
            format!(
                "{connections} streams open at once, each with a chunk of {answer_bytes} bytes every {} ms, so \
                 {:.0} chunks per second in all. Opening them is not counted.",
                parameters.paced_interval_ms,
                f64::from(*connections) * 1e3 / parameters.paced_interval_ms as f64
            ),
        ),
    };
    line(page, format_args!("\n## {title}\n\n{about}\n"));
    let timed = result.case.is_closed_loop();
    let (head, rule) = if timed { (" p50 ms | p99 ms |", "---|---|") } else { ("", "") };
    line(
        page,
        format_args!(
            "| proxy | CPU µs per {unit} | × bare | × nginx | {unit}s per second |{head} RSS MiB (peak) |\n\
             |---|---|---|---|---|{rule}---|"
        ),
    );
    for part in &result.peers {
        match &part.summary {
            Some(summary) => cpu_row(page, part, summary, timed),
            None => absent_row(page, part, if timed { 6 } else { 4 }),
        }
    }
    for part in &result.peers {
        let Some(first) = part.rounds.first().filter(|_| part.connections < *connections) else { continue };
        let unit = if timed { "connections" } else { "streams" };
        let shorter = if timed && first.seconds.round() < parameters.seconds as f64 {
            format!(" and {:.0} s a round", first.seconds)
        } else {
            String::new()
        };
        let less = format!("{} {unit}{shorter}", part.connections);
        line(page, format_args!("\n{}: only {less}, since it is slow.", part.peer));
    }
}

/// A replica's death.
pub(super) fn failover(page: &mut String, result: &Failover) {
    let Failover { replicas, streams, whole, resumed, .. } = result;
    let Failover { first_token_ms, per_token_ms, gap_p50_ms, gap_p99_ms, gap_max_ms, .. } = result;
    line(
        page,
        format_args!(
            "\n## A replica dies under {streams} streams\n\n\
             `kill -9` of one of {replicas} simulated replicas, each with a token every {per_token_ms:.0} ms, behind \
             Backstop.\n\n\
             | what | |\n|---|---|\n\
             | streams that were carried on by another replica | {resumed} |\n\
             | streams whose client had the whole text, once | {whole} of {streams} |\n\
             | time to the first token of a stream alone | {} ms |\n\
             | silence of a stream that was carried on | {} ms (median), {} ms (99 %), {} ms (longest) |",
            figure(*first_token_ms),
            figure(*gap_p50_ms),
            figure(*gap_p99_ms),
            figure(*gap_max_ms)
        ),
    );
}

/// A version that is sent back.
pub(super) fn rollbacks(page: &mut String, results: &[Rollback]) {
    let Some(Rollback { clients, .. }) = results.first() else { return };
    line(
        page,
        format_args!(
            "\n## A version is sent back under load\n\n\
             An operator sends back a version that has half of the traffic, of {clients} clients with small requests and of \
             open streams, while nothing can be written to the store: another process holds its lock. Times are in ms.\n\n\
             | endpoints in the table | rollbacks | until the new table serves | last request assigned to the version, after the \
             order | answer to the operator | requests that failed | streams that were whole |\n\
             |---|---|---|---|---|---|---|"
        ),
    );
    for result in results {
        let Rollback { rounds, endpoints, requests, failed, streams, whole, .. } = result;
        let [swap, last, answer] = [result.swap_ms, result.last_assigned_ms, result.answered_ms].map(spread);
        line(
            page,
            format_args!(
                "| {endpoints} | {rounds} | {swap} | {last} | {answer} | {failed} of {requests} | {whole} of {streams} |"
            ),
        );
    }
}

fn cpu_row<R>(page: &mut String, part: &Part<R, Summary>, summary: &Summary, timed: bool) {
    let [bare, nginx] = COLUMNS.map(|base| ratio(&part.peer, base, summary.cpu_ratio.get(base)));
    let latency = |value: Option<Spread>| value.map_or("–".to_owned(), milliseconds);
    let latencies = if timed {
        format!(" {} | {} |", latency(summary.p50_us), latency(summary.p99_us))
    } else {
        String::new()
    };
    line(
        page,
        format_args!(
            "| {} | {} | {bare} | {nginx} | {} |{latencies} {} ({}) |",
            part.peer,
            spread(summary.cpu_us),
            spread(summary.rate),
            figure(summary.rss_mib.median),
            figure(summary.peak_rss_mib.max),
        ),
    );
}

pub(super) fn memory(page: &mut String, result: &IdleResult, parameters: &Parameters) {
    line(
        page,
        format_args!(
            "\n## {} open streams\n\nEach on a connection of its own, each with a token every {} s.\n\n\
             | proxy | KiB per stream | × bare | × nginx | RSS MiB with all open | seconds to open all |\n\
             |---|---|---|---|---|---|",
            result.streams, parameters.idle_interval_seconds
        ),
    );
    for part in &result.peers {
        let Some(summary) = &part.summary else {
            absent_row(page, part, 4);
            continue;
        };
        let [bare, nginx] = COLUMNS.map(|base| ratio(&part.peer, base, summary.memory_ratio.get(base)));
        line(
            page,
            format_args!(
                "| {} | {} | {bare} | {nginx} | {} | {} |",
                part.peer,
                spread(summary.kib_per_stream),
                figure(summary.rss_open_mib.median),
                figure(summary.open_seconds.median),
            ),
        );
    }
    for part in &result.peers {
        if part.summary.is_some() && part.connections < result.streams {
            let less = format!("{} streams", part.connections);
            line(page, format_args!("\n{}: only {less}, since it is slow.", part.peer));
        }
    }
}

/// `empty` cells follow the reason.
fn absent_row<R, S>(page: &mut String, part: &Part<R, S>, empty: usize) {
    let why = part.absent.as_deref().unwrap_or("not measured").replace('|', "/").replace('\n', " ");
    line(page, format_args!("| {} | {why} |{}", part.peer, " – |".repeat(empty)));
}

/// The median, with the range if it shows.
fn spread(spread: Spread) -> String {
    let [median, min, max] = [spread.median, spread.min, spread.max].map(figure);
    if min == max { median } else { format!("{median} ({min}–{max})") }
}

fn milliseconds(microseconds: Spread) -> String {
    let scale = |value: f64| value / 1e3;
    let Spread { median, min, max } = microseconds;
    spread(Spread { median: scale(median), min: scale(min), max: scale(max) })
}

fn ratio(peer: &str, base: &str, ratio: Option<&Spread>) -> String {
    match ratio {
        Some(_) if peer == base => "1".to_owned(),
        Some(ratio) => spread(*ratio),
        None => "–".to_owned(),
    }
}

/// About three digits: more would be noise.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
