//! The result file: every figure of the report is here.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::load::Case;
use crate::measure::{Machine, Spread};
use crate::peer::roster::{BASES, NO_RESUME, RELEASING};

/// Raised when a field changes its meaning.
pub(crate) const FORMAT: u32 = 2;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) format: u32,
    /// UTC.
    pub(crate) date: String,
    /// False if Backstop or a peer that ratios are taken to has failed.
    pub(crate) valid: bool,
    pub(crate) failures: Vec<Failure>,
    pub(crate) notes: Vec<String>,
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) parameters: Parameters,
    pub(crate) peers: Vec<PeerInfo>,
    pub(crate) cases: Vec<CaseResult>,
    pub(crate) idle: Vec<IdleResult>,
    /// `None` if it was not measured.
    pub(crate) failover: Option<Failover>,
    #[serde(default)]
    pub(crate) rollbacks: Vec<Rollback>,
    pub(crate) bars: Vec<Bar>,
}

/// One of several replicas was killed under many streams.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Failover {
    pub(crate) replicas: u32,
    pub(crate) streams: u32,
    /// Streams whose client has the whole text in the end, once.
    pub(crate) whole: u32,
    /// Streams that were carried on by another replica.
    pub(crate) resumed: u32,
    /// Of a stream alone, from the request.
    pub(crate) first_token_ms: f64,
    pub(crate) per_token_ms: f64,
    /// From the last token of the dead replica to the first of the other.
    pub(crate) gap_p50_ms: f64,
    pub(crate) gap_p99_ms: f64,
    pub(crate) gap_max_ms: f64,
}

impl Failover {
    /// The silence relative to what it must be: a replica dies half a token's time after a token, as a rule, and the
    /// other one needs its time to the first token.
    pub(crate) fn gap_ratio(&self) -> f64 {
        self.gap_p50_ms / (self.per_token_ms / 2.0 + self.first_token_ms)
    }
}

/// A version was sent back again and again under load, while nothing could be written to the store.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Rollback {
    pub(crate) rounds: u32,
    /// Of all services in the table.
    pub(crate) endpoints: u32,
    pub(crate) clients: u32,
    /// Small ones, of all rounds.
    pub(crate) requests: u32,
    pub(crate) failed: u32,
    /// That were open when the version was sent back, of all rounds.
    pub(crate) streams: u32,
    /// Streams whose client has the whole text in the end, once.
    pub(crate) whole: u32,
    /// From the table's arrival at the gateway until it serves.
    pub(crate) swap_ms: Spread,
    /// From the operator's order to the beginning of the last request that was still assigned to the version; 0 if
    /// there was none.
    pub(crate) last_assigned_ms: Spread,
    /// From the operator's order to its answer, which waits for the store for a while.
    pub(crate) answered_ms: Spread,
}

/// A peer that died or answered wrongly; it has no figures for that case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) case: Case,
    pub(crate) peer: String,
    pub(crate) what: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Parameters {
    pub(crate) quick: bool,
    /// Whether proxies have processors of their own.
    pub(crate) pinned: bool,
    pub(crate) threads: usize,
    /// Of the closed loop.
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
    pub(crate) paced_rounds: u32,
    pub(crate) paced_seconds: u64,
    /// Between two tokens of a stream.
    pub(crate) paced_interval_ms: u64,
    pub(crate) idle_rounds: u32,
    pub(crate) idle_interval_seconds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PeerInfo {
    pub(crate) name: String,
    pub(crate) about: String,
    /// Environment, command line and configuration, with example ports.
    pub(crate) setup: String,
    /// Why it was not measured.
    pub(crate) skipped: Option<String>,
}

/// A case of which CPU time is measured, per answer or per chunk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaseResult {
    pub(crate) case: Case,
    pub(crate) connections: u32,
    pub(crate) request_bytes: usize,
    /// Transfer coding not counted.
    pub(crate) answer_bytes: usize,
    pub(crate) peers: Vec<Part<Round, Summary>>,
}

/// One peer's part of a case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part<R, S> {
    pub(crate) peer: String,
    /// Fewer than the case's for a slow peer.
    pub(crate) connections: u32,
    /// Why there are no figures.
    pub(crate) absent: Option<String>,
    pub(crate) rounds: Vec<R>,
    pub(crate) summary: Option<S>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) round: u32,
    /// Answers, or chunks of paced streams.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// CPU time per answer or chunk, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) rate: f64,
    pub(crate) latency: Option<Latency>,
    pub(crate) rss_mib: f64,
    pub(crate) peak_rss_mib: f64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) cpu_us: Spread,
    pub(crate) rate: Spread,
    pub(crate) p50_us: Option<Spread>,
    pub(crate) p99_us: Option<Spread>,
    pub(crate) rss_mib: Spread,
    pub(crate) peak_rss_mib: Spread,
    /// CPU time relative to a base peer of the same round.
    pub(crate) cpu_ratio: BTreeMap<String, Spread>,
}

/// A case of which the memory of open streams is measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IdleResult {
    pub(crate) case: Case,
    pub(crate) streams: u32,
    pub(crate) peers: Vec<Part<IdleRound, IdleSummary>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IdleRound {
    pub(crate) round: u32,
    pub(crate) rss_before_mib: f64,
    pub(crate) rss_open_mib: f64,
    pub(crate) kib_per_stream: f64,
    pub(crate) open_seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
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

impl Results {
    pub(crate) fn parse(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_str(json).context("not a result file")?;
        ensure!(format == FORMAT, "a result file of format {format}, not {FORMAT}\nhint: run it again");
        serde_json::from_str(json).context("not a result file")
    }

    /// Works out everything that follows from the rounds: summaries, ratios and bars.
    pub(crate) fn derive(&mut self) {
        for result in &mut self.cases {
            let bases = bases(&result.peers, |round| (round.round, round.cpu_us));
            for part in &mut result.peers {
                part.summary = summary(&part.rounds, &bases);
            }
        }
        for result in &mut self.idle {
            let bases = bases(&result.peers, |round| (round.round, round.kib_per_stream));
            for part in &mut result.peers {
                part.summary = idle_summary(&part.rounds, &bases);
            }
        }
        self.bars = self.judge();
    }

    /// Judges Backstop's medians.
    fn judge(&self) -> Vec<Bar> {
        let cpu = |case: Case, base: &str| {
            let result = self.cases.iter().find(|result| result.case == case)?;
            let backstop = result.peers.iter().find(|part| part.peer == "backstop")?;
            Some(backstop.summary.as_ref()?.cpu_ratio.get(base)?.median)
        };
        let split = self.cases.iter().find(|result| result.case == Case::Plain).and_then(|result| {
            let releasing = result.peers.iter().find(|part| part.peer == RELEASING)?;
            Some(releasing.summary.as_ref()?.cpu_ratio.get("backstop")?.median)
        });
        let open = Case::Idle9000.connections();
        let memory = || {
            // With fewer streams the cost of the first ones weighs too much.
            let full = |result: &&IdleResult| result.case == Case::Idle9000 && result.streams == open;
            let result = self.idle.iter().find(full)?;
            let backstop = result.peers.iter().find(|part| part.peer == "backstop")?;
            Some(backstop.summary.as_ref()?.kib_per_stream.median)
        };
        let swap = self.rollbacks.first().map(|rollback| rollback.swap_ms.max);
        let gap = self.failover.map(|failover| failover.gap_ratio());
        vec![
            Bar::new("Silence of a stream that is carried on", 1.2, "× first token", gap),
            Bar::new("Swap of a rollback, longest", 1.0, "ms", swap),
            Bar::new("CPU per small chat completion", 1.3, "× bare", cpu(Case::Plain, "bare")),
            Bar::new("CPU per small chat completion", 0.5, "× vllm-router", cpu(Case::Plain, "vllm-router")),
            Bar::new("CPU per stream of 100 chunks", 1.3, "× bare", cpu(Case::Sse100, "bare")),
            Bar::new("CPU per stream of 100 chunks", 1.05, "× without resume", cpu(Case::Sse100, NO_RESUME)),
            Bar::new("CPU per chunk of paced streams", 1.05, "× without resume", cpu(Case::Paced, NO_RESUME)),
            Bar::new("CPU per small chat completion, split", 1.1, "× without release", split),
            Bar::new(&format!("Memory per stream, {open} open"), 24.0, "KiB", memory()),
        ]
    }
}

impl<R, S> Part<R, S> {
    pub(crate) fn new(peer: &str, connections: u32) -> Self {
        Self { peer: peer.to_owned(), connections, absent: None, rounds: Vec::new(), summary: None }
    }

    /// Figures of a peer that went wrong are not to be trusted, and are not kept.
    pub(crate) fn fail(&mut self, what: &str) {
        self.rounds.clear();
        self.absent = Some(format!("failed: {what}"));
    }
}

type Values = Vec<(u32, f64)>;

/// The figures that ratios are taken to, by round.
fn bases<R, S>(peers: &[Part<R, S>], value: fn(&R) -> (u32, f64)) -> Vec<(String, Values)> {
    let bases = peers.iter().filter(|part| BASES.contains(&part.peer.as_str()));
    bases.map(|part| (part.peer.clone(), part.rounds.iter().map(value).collect())).collect()
}

fn ratios(values: &[(u32, f64)], bases: &[(String, Values)]) -> BTreeMap<String, Spread> {
    let ratio = |base: &[(u32, f64)]| Spread::of_ratios(values, base);
    bases.iter().filter_map(|(name, base)| Some((name.clone(), ratio(base)?))).collect()
}

fn summary(rounds: &[Round], bases: &[(String, Values)]) -> Option<Summary> {
    let spread = |field: fn(&Round) -> f64| Spread::of(rounds.iter().map(field));
    let latency = |field: fn(&Latency) -> f64| {
        Spread::of(rounds.iter().filter_map(|round| round.latency.as_ref()).map(field))
    };
    let values: Values = rounds.iter().map(|round| (round.round, round.cpu_us)).collect();
    Some(Summary {
        cpu_us: spread(|round| round.cpu_us)?,
        rate: spread(|round| round.rate)?,
        p50_us: latency(|latency| latency.p50_us),
        p99_us: latency(|latency| latency.p99_us),
        rss_mib: spread(|round| round.rss_mib)?,
        peak_rss_mib: spread(|round| round.peak_rss_mib)?,
        cpu_ratio: ratios(&values, bases),
    })
}

fn idle_summary(rounds: &[IdleRound], bases: &[(String, Values)]) -> Option<IdleSummary> {
    let spread = |field: fn(&IdleRound) -> f64| Spread::of(rounds.iter().map(field));
    let values: Values = rounds.iter().map(|round| (round.round, round.kib_per_stream)).collect();
    Some(IdleSummary {
        kib_per_stream: spread(|round| round.kib_per_stream)?,
        rss_open_mib: spread(|round| round.rss_open_mib)?,
        open_seconds: spread(|round| round.open_seconds)?,
        memory_ratio: ratios(&values, bases),
    })
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
