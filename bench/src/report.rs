//! The result file as Markdown. It formats figures and computes none.

mod tables;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use crate::results::{Results, Verdict};

pub(crate) fn render(results: &Results) -> String {
    let mut page = String::from("# Benchmarks\n\n");
    line(
        &mut page,
        format_args!("Measured on {} by `make bench`; every figure is from that run.", results.date),
    );
    warnings(&mut page, results);
    bars(&mut page, results);
    for case in &results.cases {
        tables::cpu(&mut page, case, &results.parameters);
    }
    for case in &results.idle {
        tables::memory(&mut page, case, &results.parameters);
    }
    if let Some(failover) = &results.failover {
        tables::failover(&mut page, failover);
    }
    tables::rollbacks(&mut page, &results.rollbacks);
    surroundings(&mut page, results);
    method(&mut page, results);
    setups(&mut page, results);
    again(&mut page);
    page
}

/// Writing to a `String` can't fail.
fn line(page: &mut String, text: std::fmt::Arguments) {
    let _ = writeln!(page, "{text}");
}

fn warnings(page: &mut String, results: &Results) {
    if !results.valid {
        line(page, format_args!("\n**This run is not valid.** Its figures must not be used."));
    }
    if results.parameters.quick {
        line(
            page,
            format_args!(
                "\n**This was a quick run**, which shows that everything works and no more: its figures must not \
                 be used."
            ),
        );
    }
    if !results.failures.is_empty() {
        line(page, format_args!("\nWhat failed has no figures below:\n"));
    }
    for failure in &results.failures {
        line(page, format_args!("- {}, {}: {}", failure.case.name(), failure.peer, failure.what));
    }
}

fn bars(page: &mut String, results: &Results) {
    line(page, format_args!("\n## Bars\n"));
    let missed: Vec<String> = results
        .bars
        .iter()
        .filter(|bar| bar.verdict != Verdict::Met)
        .map(|bar| format!("{} ≤ {} {}", bar.about, bar.limit, bar.unit))
        .collect();
    let met = results.bars.len() - missed.len();
    let rest = if missed.is_empty() {
        String::new()
    } else {
        format!("; not met or not measured: {}", missed.join(", "))
    };
    line(page, format_args!("Backstop meets {met} of {} bars{rest}.\n", results.bars.len()));
    line(page, format_args!("| what | bar | measured (median) | |\n|---|---|---|---|"));
    for bar in &results.bars {
        let value =
            bar.value.map_or("–".to_owned(), |value| format!("{} {}", tables::figure(value), bar.unit));
        let verdict = match bar.verdict {
            Verdict::Met => "met",
            Verdict::Missed => "not met",
            Verdict::NotMeasured => "not measured",
        };
        line(page, format_args!("| {} | ≤ {} {} | {value} | {verdict} |", bar.about, bar.limit, bar.unit));
    }
}

fn surroundings(page: &mut String, results: &Results) {
    let machine = &results.machine;
    line(page, format_args!("\n## Proxies\n\n| proxy | what it is | version |\n|---|---|---|"));
    for peer in &results.peers {
        let version = match (&peer.skipped, results.versions.get(&peer.name)) {
            (Some(why), _) => format!("not measured: {why}"),
            (None, Some(version)) => version.clone(),
            (None, None) => "unknown".to_owned(),
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
             three fare together. CPU time is the proxy's own. {placing}\n\
             - Worker threads (nginx, LiteLLM: processes) of each proxy: {threads}. The proxies take turns. \
             Rounds: {rounds} of {seconds} s each after a warm-up; with paced streams {paced_rounds} of \
             {paced_seconds} s. Figures are medians over rounds, with least and greatest in parentheses. \
             Ratios are taken within a round, then their median.\n\
             - CPU time is user and system time of the proxy's process tree as the kernel counts it, up to a \
             moment after the last answer, divided by the answers that wrk counted or the chunks that came. RSS \
             is the sum over the process tree.\n\
             - The upstream is the same small program for all proxies and answers with constants. Between two \
             chunks of a stream it serves its other streams.\n\
             - Memory of open streams, rounds: {idle_rounds}, each with a fresh process of the proxy. Memory per \
             stream is RSS after every stream has had two tokens, sent {interval} s apart, less RSS before the \
             first, divided by the streams. Socket buffers in the kernel are not in it.\n\
             - A proxy that dies, answers wrongly, leaves out or cuts short an answer or passes on less than half of \
             the chunks in time has failed that case and has no figures there. If it is Backstop, bare or nginx, the run is \
             marked as not valid.",
            placing = if parameters.pinned { PINNED } else { "The scheduler places all processes." },
            threads = parameters.threads,
            rounds = parameters.rounds,
            seconds = parameters.seconds,
            paced_rounds = parameters.paced_rounds,
            paced_seconds = parameters.paced_seconds,
            idle_rounds = parameters.idle_rounds,
            interval = parameters.idle_interval_seconds,
        ),
    );
    for note in &results.notes {
        line(page, format_args!("- {note}."));
    }
}

fn setups(page: &mut String, results: &Results) {
    line(
        page,
        format_args!(
            "\n## How each proxy is set up\n\nAll keep connections on both sides alive, write no access log and \
             pass chunks on at once. Where nothing is said they have their defaults. The ports are examples: 8000 \
             is the proxy's, 9000 the upstream's; limits on connections grow with the case."
        ),
    );
    for peer in &results.peers {
        line(page, format_args!("\n### {}\n\n```sh\n{}```", peer.name, peer.setup));
    }
}

fn again(page: &mut String) {
    line(
        page,
        format_args!(
            "\n## Run it again\n\n```sh\napt-get install nginx wrk haproxy\nmake bench\n```\n\n\
             On a machine that does nothing else; it takes about ten minutes. The other proxies are installed \
             into `.venv-peers`; what can't be installed is left out and said so. `make bench ARGS=\"--peers \
             bare,nginx,backstop --cases plain\"` runs a part and leaves this page alone, and \
             `target/release/backstop-bench run --help` lists what else can be changed; `--quick` only shows that \
             it works. The figures behind this page are in [`benchmarks.json`](benchmarks.json), and \
             `backstop-bench report docs/benchmarks.json` renders it."
        ),
    );
}
