//! The result file: every figure of the report is here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::load::Case;
use crate::measure::{Machine, Spread};

/// Raised when a field changes its meaning.
pub(crate) const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) format: u32,
    /// UTC.
    pub(crate) date: String,
    /// False if any answer was wrong or any peer failed.
    pub(crate) valid: bool,
    pub(crate) problems: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) parameters: Parameters,
    pub(crate) peers: Vec<PeerInfo>,
    pub(crate) cases: Vec<CaseResult>,
    pub(crate) idle: Option<IdleResult>,
    pub(crate) bars: Vec<Bar>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Parameters {
    pub(crate) quick: bool,
    /// Whether proxies have processors of their own.
    pub(crate) pinned: bool,
    pub(crate) threads: usize,
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
    pub(crate) idle_streams: u32,
    pub(crate) idle_rounds: u32,
    pub(crate) idle_interval_seconds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PeerInfo {
    pub(crate) name: String,
    pub(crate) about: String,
    /// Why it was not measured.
    pub(crate) skipped: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaseResult {
    pub(crate) case: Case,
    pub(crate) connections: usize,
    pub(crate) request_bytes: usize,
    /// Transfer coding not counted.
    pub(crate) answer_bytes: usize,
    pub(crate) peers: Vec<PeerResult>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PeerResult {
    pub(crate) peer: String,
    pub(crate) rounds: Vec<Round>,
    pub(crate) summary: Option<Summary>,
}

/// One peer's part of one round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) round: u32,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// CPU time per request, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) rss_mib: f64,
    pub(crate) peak_rss_mib: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) cpu_us: Spread,
    pub(crate) rate: Spread,
    pub(crate) p50_us: Spread,
    pub(crate) p99_us: Spread,
    pub(crate) rss_mib: Spread,
    pub(crate) peak_rss_mib: Spread,
    /// CPU time per request relative to a base peer of the same round.
    pub(crate) cpu_ratio: BTreeMap<String, Spread>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IdleResult {
    pub(crate) streams: u32,
    pub(crate) peers: Vec<IdlePeer>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IdlePeer {
    pub(crate) peer: String,
    pub(crate) rounds: Vec<IdleRound>,
    pub(crate) summary: Option<IdleSummary>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IdleRound {
    pub(crate) round: u32,
    pub(crate) rss_before_mib: f64,
    pub(crate) rss_open_mib: f64,
    pub(crate) kib_per_stream: f64,
    pub(crate) open_seconds: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IdleSummary {
    pub(crate) kib_per_stream: Spread,
    pub(crate) rss_open_mib: Spread,
    pub(crate) open_seconds: Spread,
    /// Memory per stream relative to a base peer of the same round.
    pub(crate) memory_ratio: BTreeMap<String, Spread>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bar {
    pub(crate) about: String,
    pub(crate) limit: f64,
    pub(crate) unit: String,
    pub(crate) value: Option<f64>,
    pub(crate) verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl CaseResult {
    pub(crate) fn new(case: Case, rounds: Vec<(&'static str, Vec<Round>)>, bases: &[&str]) -> Self {
        let cpu = |rounds: &[Round]| rounds.iter().map(|round| (round.round, round.cpu_us)).collect();
        let base_cpu: Vec<(&str, Vec<(u32, f64)>)> = rounds
            .iter()
            .filter(|(peer, _)| bases.contains(peer))
            .map(|(peer, rounds)| (*peer, cpu(rounds)))
            .collect();
        let peers = rounds.into_iter().map(|(peer, rounds)| PeerResult {
            peer: peer.to_owned(),
            summary: summary(&rounds, ratios(&cpu(&rounds), &base_cpu)),
            rounds,
        });
        Self {
            case,
            connections: case.connections(),
            request_bytes: case.body().len(),
            answer_bytes: case.answer_len(),
            peers: peers.collect(),
        }
    }
}

fn summary(rounds: &[Round], cpu_ratio: BTreeMap<String, Spread>) -> Option<Summary> {
    let spread = |field: fn(&Round) -> f64| Spread::of(rounds.iter().map(field));
    Some(Summary {
        cpu_us: spread(|round| round.cpu_us)?,
        rate: spread(|round| round.rate)?,
        p50_us: spread(|round| round.p50_us)?,
        p99_us: spread(|round| round.p99_us)?,
        rss_mib: spread(|round| round.rss_mib)?,
        peak_rss_mib: spread(|round| round.peak_rss_mib)?,
        cpu_ratio,
    })
}

impl IdleResult {
    pub(crate) fn new(streams: u32, rounds: Vec<(&'static str, Vec<IdleRound>)>, bases: &[&str]) -> Self {
        let memory =
            |rounds: &[IdleRound]| rounds.iter().map(|round| (round.round, round.kib_per_stream)).collect();
        let base_memory: Vec<(&str, Vec<(u32, f64)>)> = rounds
            .iter()
            .filter(|(peer, _)| bases.contains(peer))
            .map(|(peer, rounds)| (*peer, memory(rounds)))
            .collect();
        let peers = rounds.into_iter().map(|(peer, rounds)| IdlePeer {
            peer: peer.to_owned(),
            summary: idle_summary(&rounds, ratios(&memory(&rounds), &base_memory)),
            rounds,
        });
        Self { streams, peers: peers.collect() }
    }
}

fn idle_summary(rounds: &[IdleRound], memory_ratio: BTreeMap<String, Spread>) -> Option<IdleSummary> {
    let spread = |field: fn(&IdleRound) -> f64| Spread::of(rounds.iter().map(field));
    Some(IdleSummary {
        kib_per_stream: spread(|round| round.kib_per_stream)?,
        rss_open_mib: spread(|round| round.rss_open_mib)?,
        open_seconds: spread(|round| round.open_seconds)?,
        memory_ratio,
    })
}

fn ratios(values: &[(u32, f64)], bases: &[(&str, Vec<(u32, f64)>)]) -> BTreeMap<String, Spread> {
    let ratio = |base: &[(u32, f64)]| Spread::of_ratios(values, base);
    bases.iter().filter_map(|(name, base)| Some(((*name).to_owned(), ratio(base)?))).collect()
}

impl Results {
    /// Judges Backstop's medians.
    pub(crate) fn judge(&mut self) {
        const RATIO: f64 = 1.3;
        const KIB: f64 = 24.0;
        let cpu = |case: Case| {
            let result = self.cases.iter().find(|result| result.case == case)?;
            let peer = result.peers.iter().find(|peer| peer.peer == "backstop")?;
            Some(peer.summary.as_ref()?.cpu_ratio.get("bare")?.median)
        };
        let idle = || {
            let peer = self.idle.as_ref()?.peers.iter().find(|peer| peer.peer == "backstop")?;
            Some(peer.summary.as_ref()?.kib_per_stream.median)
        };
        self.bars = vec![
            Bar::new("CPU per small chat completion", RATIO, "× bare", cpu(Case::Plain)),
            Bar::new("CPU per stream of 100 chunks", RATIO, "× bare", cpu(Case::Sse100)),
            Bar::new("Memory per open stream", KIB, "KiB", idle()),
        ];
    }
}

impl Bar {
    fn new(about: &str, limit: f64, unit: &str, value: Option<f64>) -> Self {
        let verdict = match value {
            None => Verdict::NotMeasured,
            Some(value) if value <= limit => Verdict::Met,
            Some(_) => Verdict::Missed,
        };
        Self { about: about.to_owned(), limit, unit: unit.to_owned(), value, verdict }
    }
}
