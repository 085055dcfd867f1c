//! The result file as Markdown. It formats figures and computes none.

use std::fmt::Write;

use crate::load::Case;
use crate::measure::Spread;
use crate::peer::BASES;
use crate::results::{CaseResult, IdleResult, Results, Verdict};

pub(crate) fn render(results: &Results) -> String {
    let mut page = String::from("# Benchmarks\n\n");
    let parameters = &results.parameters;
    line(
        &mut page,
        format_args!("Measured on {} by `make bench`; every figure is from that run.", results.date),
    );
    if !results.valid {
        line(&mut page, format_args!("\n**This run is not valid.** Its figures must not be used:\n"));
        for problem in &results.problems {
            line(&mut page, format_args!("- {problem}"));
        }
    }
    if parameters.quick {
        line(
            &mut page,
            format_args!("\n**This was a quick run**, which shows that everything works and no more."),
        );
    }
    bars(&mut page, results);
    for case in &results.cases {
        closed_loop(&mut page, case);
    }
    if let Some(result) = &results.idle {
        idle(&mut page, result);
    }
    surroundings(&mut page, results);
    method(&mut page, results);
    page
}

/// Writing to a `String` can't fail.
fn line(page: &mut String, text: std::fmt::Arguments) {
    let _ = writeln!(page, "{text}");
}

fn bars(page: &mut String, results: &Results) {
    line(page, format_args!("\n## Bars\n\n| what | bar | measured (median) | |\n|---|---|---|---|"));
    for bar in &results.bars {
        let value = bar.value.map_or("–".to_owned(), |value| format!("{} {}", figure(value), bar.unit));
        let verdict = match bar.verdict {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::NotMeasured => "not measured",
        };
        line(page, format_args!("| {} | ≤ {} {} | {value} | {verdict} |", bar.about, bar.limit, bar.unit));
    }
}

fn closed_loop(page: &mut String, result: &CaseResult) {
    let (title, unit, about) = match result.case {
        Case::Sse100 => (
            "Streams of 100 chunks",
            "response",
            "The upstream writes each chunk, a server-sent event, by itself and without a pause.",
        ),
        Case::Plain | Case::Idle => (
            "Small chat completions",
            "request",
            "An answer in one piece, on connections that are kept alive.",
        ),
    };
    let CaseResult { request_bytes, answer_bytes, connections, .. } = result;
    line(
        page,
        format_args!(
            "\n## {title}\n\n{about} Request {request_bytes} bytes, answer {answer_bytes} bytes, \
             {connections} connections, closed loop.\n"
        ),
    );
    line(
        page,
        format_args!(
            "| proxy | CPU µs per {unit} | × bare | × nginx | {unit}s per second | p50 ms | p99 ms | RSS MiB (peak) |\n\
             |---|---|---|---|---|---|---|---|"
        ),
    );
    for peer in &result.peers {
        let Some(summary) = &peer.summary else { continue };
        let [bare, nginx] = BASES.map(|base| ratio(&peer.peer, base, summary.cpu_ratio.get(base)));
        line(
            page,
            format_args!(
                "| {} | {} | {bare} | {nginx} | {} | {} | {} | {} ({}) |",
                peer.peer,
                spread(summary.cpu_us),
                spread(summary.rate),
                milliseconds(summary.p50_us),
                milliseconds(summary.p99_us),
                figure(summary.rss_mib.median),
                figure(summary.peak_rss_mib.max),
            ),
        );
    }
}

fn idle(page: &mut String, result: &IdleResult) {
    line(
        page,
        format_args!(
            "\n## Open streams\n\n{} streams open at once, each on a connection of its own, each with a token \
             now and then.\n\n| proxy | KiB per stream | × bare | × nginx | RSS MiB with all open | seconds to open all |\n\
             |---|---|---|---|---|---|",
            result.streams
        ),
    );
    for peer in &result.peers {
        let Some(summary) = &peer.summary else { continue };
        let [bare, nginx] = BASES.map(|base| ratio(&peer.peer, base, summary.memory_ratio.get(base)));
        line(
            page,
            format_args!(
                "| {} | {} | {bare} | {nginx} | {} | {} |",
                peer.peer,
                spread(summary.kib_per_stream),
                figure(summary.rss_open_mib.median),
                figure(summary.open_seconds.median),
            ),
        );
    }
}

fn surroundings(page: &mut String, results: &Results) {
    let machine = &results.machine;
    line(page, format_args!("\n## Proxies\n\n| proxy | what it is | version |\n|---|---|---|"));
    for peer in &results.peers {
        let version = match (&peer.skipped, results.versions.get(&peer.name)) {
            (Some(why), _) => format!("not measured: {why}"),
            (None, Some(version)) => version.clone(),
            (None, None) => "part of this repository".to_owned(),
        };
        line(page, format_args!("| {} | {} | {version} |", peer.name, peer.about));
    }
    line(
        page,
        format_args!(
            "\n## Machine\n\n{}, {} cores, {} MiB of memory, Linux {}; load average before the run {}.",
            machine.cpu, machine.cores, machine.memory_mib, machine.kernel, machine.load_before
        ),
    );
    let tools: Vec<&str> =
        ["wrk", "rustc"].iter().filter_map(|name| results.versions.get(*name)).map(String::as_str).collect();
    line(page, format_args!("Tools: {}.", tools.join("; ")));
}

const PINNED: &str =
    "Each worker of a proxy has a processor of its own, and load and upstream share the rest.";

fn method(page: &mut String, results: &Results) {
    let parameters = &results.parameters;
    line(
        page,
        format_args!(
            "\n## Method\n\n\
             - Load, proxy and upstream share one machine over loopback, so rates and latencies say how the \
             three fare together. CPU time per request is the proxy's own. {placing}\n\
             - Worker threads (nginx: processes) of each proxy: {threads}. The proxies take turns: {rounds} rounds of \
             {seconds} s each, after a warm-up. Figures are medians over rounds, with least and \
             greatest in parentheses. Ratios are taken within a round, then their median.\n\
             - CPU time is user and system time of the proxy's process tree as the kernel counts it, divided by \
             the answers that wrk counted. RSS is the sum over the process tree.\n\
             - The upstream is the same small program for all proxies and answers with constants. Between two \
             chunks of a stream it serves its other streams.\n\
             - Open streams, rounds: {idle_rounds}, each with a fresh process of the proxy. Memory per stream is \
             RSS after every stream has had two tokens, sent {interval} s apart, less RSS before the first, \
             divided by the streams. Socket buffers in the kernel are not in it.\n\
             - A run with an error, a missing stream or an answer cut short is marked as not valid.",
            placing = if parameters.pinned { PINNED } else { "The scheduler places all processes." },
            threads = parameters.threads,
            rounds = parameters.rounds,
            seconds = parameters.seconds,
            idle_rounds = parameters.idle_rounds,
            interval = parameters.idle_interval_seconds,
        ),
    );
    for note in &results.notes {
        line(page, format_args!("- {note}."));
    }
    line(
        page,
        format_args!(
            "\n## Run it again\n\n```sh\napt-get install nginx wrk\nmake bench\n```\n\n\
             On a machine that does nothing else. `target/release/backstop-bench run --help` lists what can be \
             changed; `--quick` only shows that it works."
        ),
    );
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
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::measure::Machine;
    use crate::results::{FORMAT, IdleRound, Parameters, PeerInfo, Round};

    fn round(round: u32, cpu_us: f64) -> Round {
        Round {
            round,
            requests: 1_000,
            errors: 0,
            seconds: 1.0,
            cpu_seconds: cpu_us / 1e3,
            cpu_us,
            rate: 1_000.0,
            p50_us: 500.0,
            p99_us: 1_500.0,
            rss_mib: 8.0,
            peak_rss_mib: 9.0,
        }
    }

    fn results() -> Results {
        let idle = IdleRound {
            round: 0,
            rss_before_mib: 8.0,
            rss_open_mib: 200.0,
            kib_per_stream: 25.5,
            open_seconds: 2.0,
        };
        let plain = vec![
            ("bare", vec![round(0, 20.0), round(1, 40.0)]),
            ("nginx", vec![round(0, 16.0), round(1, 20.0)]),
            ("backstop", vec![round(0, 24.0), round(1, 48.0)]),
        ];
        let peer = |name: &str| PeerInfo { name: name.to_owned(), about: "about".to_owned(), skipped: None };
        let mut results = Results {
            format: FORMAT,
            date: "2026-11-22T06:30:04Z".to_owned(),
            valid: true,
            problems: Vec::new(),
            notes: Vec::new(),
            machine: Machine {
                cpu: "cpu".to_owned(),
                cores: 2,
                memory_mib: 24_105,
                kernel: "6.1".to_owned(),
                load_before: 0.1,
            },
            versions: BTreeMap::from([("nginx".to_owned(), "nginx/1.22.1".to_owned())]),
            parameters: Parameters {
                quick: false,
                pinned: true,
                threads: 1,
                rounds: 2,
                seconds: 1,
                idle_streams: 9_000,
                idle_rounds: 1,
                idle_interval_seconds: 10,
            },
            peers: ["bare", "nginx", "backstop"].map(peer).into(),
            cases: vec![CaseResult::new(Case::Plain, plain, &BASES)],
            idle: Some(IdleResult::new(9_000, vec![("backstop", vec![idle])], &BASES)),
            bars: Vec::new(),
        };
        results.judge();
        results
    }

    #[test]
    fn bars_and_ratios_are_stated() {
        let page = render(&results());
        for expected in [
            "| CPU per small chat completion | ≤ 1.3 × bare | 1.20 × bare | met |",
            "| CPU per stream of 100 chunks | ≤ 1.3 × bare | – | not measured |",
            "| Memory per open stream | ≤ 24 KiB | 25.5 KiB | missed |",
            "| backstop | 36.0 (24.0–48.0) | 1.20 | 1.95 (1.50–2.40) | 1000 | 0.50 | 1.50 | 8.00 (9.00) |",
            "| nginx | about | nginx/1.22.1 |",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
        assert!(!page.contains("not valid.**") && !page.contains("quick run**"), "{page}");
    }

    #[test]
    fn an_invalid_run_says_so() {
        let mut results = results();
        results.valid = false;
        results.problems.push("plain, nginx: errors".to_owned());
        results.peers[2].skipped = Some("not built".to_owned());
        let page = render(&results);
        assert!(
            page.contains("**This run is not valid.**") && page.contains("- plain, nginx: errors"),
            "{page}"
        );
        assert!(page.contains("| backstop | about | not measured: not built |"), "{page}");
    }

    #[test]
    fn the_file_is_read_back() {
        let json = serde_json::to_string(&results()).unwrap();
        let read: Results = serde_json::from_str(&json).unwrap();
        assert_eq!(render(&read), render(&results()));
    }
}
