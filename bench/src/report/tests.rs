//! The page of made-up results, and that of the run that is published.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::load::Case;
use crate::measure::{Machine, Spread};
use crate::results::{CaseResult, FORMAT, Failover, Failure, IdleResult, IdleRound, Latency};
use crate::results::{Parameters, Part, PeerInfo, Rollback, Round};

fn round(round: u32, cpu_us: f64) -> Round {
    Round {
        round,
        count: 1_000,
        seconds: 1.0,
        cpu_seconds: cpu_us / 1e3,
        cpu_us,
        rate: 1_000.0,
        latency: Some(Latency { p50_us: 500.0, p99_us: 1_500.0 }),
        rss_mib: 8.0,
        peak_rss_mib: 9.0,
    }
}

fn part<S>(peer: &str, connections: u32, cpu_us: [f64; 2]) -> Part<Round, S> {
    Part { rounds: vec![round(0, cpu_us[0]), round(1, cpu_us[1])], ..Part::new(peer, connections) }
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
        part("bare", 32, [20.0, 40.0]),
        part("nginx", 32, [16.0, 20.0]),
        part("backstop", 32, [24.0, 48.0]),
        part("vllm-router", 32, [48.0, 96.0]),
        part("litellm", 4, [14_000.0, 15_000.0]),
    ];
    let peer = |name: &str| PeerInfo {
        name: name.to_owned(),
        about: "about".to_owned(),
        setup: format!("{name} --port 8000\n"),
        skipped: None,
    };
    let case = |case: Case, peers| CaseResult {
        case,
        connections: case.connections(),
        request_bytes: 102,
        answer_bytes: 259,
        peers,
    };
    let mut results = Results {
        format: FORMAT,
        date: "2026-11-22T06:30:04Z".to_owned(),
        valid: true,
        failures: Vec::new(),
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
            seconds: 3,
            paced_rounds: 2,
            paced_seconds: 1,
            paced_interval_ms: 50,
            idle_rounds: 1,
            idle_interval_seconds: 10,
        },
        peers: ["bare", "nginx", "backstop", "vllm-router", "litellm"].map(peer).into(),
        cases: vec![case(Case::Plain, plain), case(Case::Paced, vec![part("backstop", 1_000, [5.0, 6.0])])],
        idle: vec![IdleResult {
            case: Case::Idle9000,
            streams: 9_000,
            peers: vec![Part { rounds: vec![idle], ..Part::new("backstop", 9_000) }],
        }],
        failover: Some(Failover {
            replicas: 4,
            streams: 500,
            whole: 500,
            resumed: 125,
            first_token_ms: 200.0,
            per_token_ms: 50.0,
            gap_p50_ms: 247.5,
            gap_p99_ms: 280.0,
            gap_max_ms: 290.0,
        }),
        rollbacks: vec![Rollback {
            rounds: 5,
            endpoints: 2,
            clients: 32,
            requests: 40_000,
            failed: 0,
            streams: 500,
            whole: 499,
            swap_ms: Spread::of([0.3, 0.2, 0.4]).unwrap(),
            last_assigned_ms: Spread::of([1.5, 0.0, 2.0]).unwrap(),
            answered_ms: Spread::of([2000.0, 2000.0, 2000.0]).unwrap(),
        }],
        bars: Vec::new(),
    };
    results.derive();
    results
}

#[track_caller]
fn check(results: &Results, expected: &[&str]) {
    let page = render(results);
    for expected in expected {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
}

#[test]
fn bars_and_ratios_are_stated() {
    let results = results();
    check(
        &results,
        &[
            "Backstop meets 4 of 9 bars; not met or not measured: CPU per stream of 100 chunks ≤ 1.3 × bare, \
             CPU per stream of 100 chunks ≤ 1.05 × without resume, \
             CPU per chunk of paced streams ≤ 1.05 × without resume, \
             CPU per small chat completion, split ≤ 1.1 × without release, \
             Memory per stream, 9000 open ≤ 24 KiB.",
            "| CPU per small chat completion | ≤ 1.3 × bare | 1.20 × bare | met |",
            "| CPU per small chat completion | ≤ 0.5 × vllm-router | 0.50 × vllm-router | met |",
            "| CPU per stream of 100 chunks | ≤ 1.3 × bare | – | not measured |",
            "| Memory per stream, 9000 open | ≤ 24 KiB | 25.5 KiB | not met |",
            "| Silence of a stream that is carried on | ≤ 1.2 × first token | 1.10 × first token | met |",
            "| streams whose client had the whole text, once | 500 of 500 |",
            "| Swap of a rollback, longest | ≤ 1 ms | 0.40 ms | met |",
            "| 2 | 5 | 0.30 (0.20–0.40) | 1.50 (0.00–2.00) | 2000 | 0 of 40000 | 499 of 500 |",
            "| backstop | 36.0 (24.0–48.0) | 1.20 | 1.95 (1.50–2.40) | 1000 | 0.50 | 1.50 | 8.00 (9.00) |",
            "litellm: only 4 connections and 1 s a round, since it is slow.",
            "| backstop | 5.50 (5.00–6.00) | – | – | 1000 | 8.00 (9.00) |",
            "| nginx | about | nginx/1.22.1 |",
            "### nginx\n\n```sh\nnginx --port 8000\n```",
        ],
    );
    let page = render(&results);
    assert!(!page.contains("not valid.**") && !page.contains("quick run**"), "{page}");
}

#[test]
fn a_peer_that_failed_has_no_figures_and_the_rest_has() {
    let mut results = results();
    results.cases[0].peers[3].fail("round 2: process | has ended");
    results.failures.push(Failure {
        case: Case::Plain,
        peer: "vllm-router".to_owned(),
        what: "round 2: process has ended".to_owned(),
    });
    results.derive();
    check(
        &results,
        &[
            "- plain, vllm-router: round 2: process has ended",
            "| vllm-router | failed: round 2: process / has ended | – | – | – | – | – | – |",
            "| CPU per small chat completion | ≤ 0.5 × vllm-router | – | not measured |",
            "| CPU per small chat completion | ≤ 1.3 × bare | 1.20 × bare | met |",
        ],
    );
}

#[test]
fn memory_is_judged_with_all_streams_only() {
    let mut results = results();
    results.idle[0].streams = 900;
    results.derive();
    check(&results, &["| Memory per stream, 9000 open | ≤ 24 KiB | – | not measured |"]);
}

#[test]
fn an_invalid_run_and_a_missing_peer_are_told() {
    let mut results = results();
    results.valid = false;
    results.peers[2].skipped = Some("not installed".to_owned());
    check(&results, &["**This run is not valid.**", "| backstop | about | not measured: not installed |"]);
}

#[test]
fn every_table_has_as_many_cells_as_its_head() {
    let mut results = results();
    for case in &mut results.cases {
        case.peers[0].fail("gone");
    }
    results.idle[0].peers[0].fail("gone");
    results.derive();
    let page = render(&results);
    let mut cells = 0;
    for row in page.lines() {
        let now = row.matches('|').count();
        assert!(cells == 0 || now == 0 || now == cells, "{row}\n{page}");
        cells = now;
    }
}

#[test]
fn the_file_is_read_back() {
    let json = serde_json::to_string(&results()).unwrap();
    assert_eq!(render(&Results::parse(&json).unwrap()), render(&results()));
}

#[test]
fn files_of_other_formats_are_refused() {
    let json = serde_json::to_string(&results()).unwrap().replacen(r#""format":2"#, r#""format":1"#, 1);
    let error = format!("{:#}", Results::parse(&json).unwrap_err());
    assert!(error.contains("format 1") && error.contains("hint:"), "{error}");
    assert!(Results::parse("{}").is_err());
}

/// `UPDATE_DOCS=1` renders the page anew.
#[test]
fn the_published_page_is_what_its_figures_render_to() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut results = Results::parse(&fs::read_to_string(docs.join("benchmarks.json")).unwrap()).unwrap();
    results.derive();
    let page = docs.join("benchmarks.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&page, render(&results)).unwrap();
    }
    assert!(
        fs::read_to_string(&page).unwrap() == render(&results),
        "docs/benchmarks.md is not what docs/benchmarks.json renders to\n\
         hint: UPDATE_DOCS=1 cargo test -p backstop-bench"
    );
}
