//! One run: every case, every peer, in interleaved rounds. A peer that fails is out of the case, not the run.

mod cpu;
mod failover;
mod memory;
mod rollback;
mod site;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::child::{self, Scratch, Split};
use crate::load::Case;
use crate::measure::{Machine, utc_now};
use crate::peer::roster::PEERS;
use crate::peer::{self, Peer, Running, Site, Tools};
use crate::results::{FORMAT, Failover, Failure, Parameters, Part, PeerInfo, Results, Rollback};

const MIB: f64 = 1024.0; // in KiB

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Backstop program; without it the other peers are measured alone
    #[arg(long, default_value = "target/release/backstop")]
    backstop: PathBuf,
    /// Where `scripts/install_peers` has put the peers that are Python packages
    #[arg(long, default_value = ".venv-peers")]
    environments: PathBuf,
    /// Result file
    #[arg(long, default_value = "bench/results/latest.json")]
    pub(crate) out: PathBuf,
    /// Peers to measure, of `bare`, `nginx`, `haproxy`, `backstop`, `backstop-no-resume`, `backstop-releasing`, `vllm-router`, `sglang-router`, `litellm`
    /// [default: all]
    #[arg(long, value_delimiter = ',', hide_default_value = true, default_values_t = all_peers())]
    peers: Vec<String>,
    /// Cases to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "plain,sse100,paced,idle1000,idle9000")]
    cases: Vec<Case>,
    /// Streams under which one of four replicas dies; 0 to leave that out
    #[arg(long, default_value_t = 500)]
    failover_streams: u32,
    /// Rollbacks to measure under load; 0 to leave that out
    #[arg(long, default_value_t = 5)]
    rollbacks: u32,
    /// Worker threads (nginx, LiteLLM: processes) of each peer
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Rounds per peer of the cases `plain` and `sse100` [default: 5, quick: 2]
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of such a round [default: 3, quick: 1]
    #[arg(long)]
    seconds: Option<u64>,
    /// Rounds per peer of the case `paced` [default: 3, quick: 1]
    #[arg(long)]
    paced_rounds: Option<u32>,
    /// Seconds of such a round, streams being open already [default: 5, quick: 1]
    #[arg(long)]
    paced_seconds: Option<u64>,
    /// Rounds per peer of the idle cases [default: 2, quick: 1]
    #[arg(long)]
    idle_rounds: Option<u32>,
    /// Seconds between the tokens of an idle stream [default: 5, quick: 2]
    #[arg(long)]
    idle_interval: Option<u64>,
    /// Let the scheduler place all processes; else each worker of a proxy has a processor of its own
    #[arg(long)]
    no_pin: bool,
    /// A short run with a tenth of the streams, to see that everything works
    #[arg(long)]
    quick: bool,
}

fn all_peers() -> Vec<String> {
    PEERS.iter().map(|peer| peer.name.to_owned()).collect()
}

impl Args {
    fn parameters(&self) -> Parameters {
        let pick = |full: u64, quick: u64| if self.quick { quick } else { full };
        let pick_small = |full: u32, quick: u32| if self.quick { quick } else { full };
        Parameters {
            quick: self.quick,
            pinned: false,
            threads: self.threads.max(1),
            rounds: self.rounds.unwrap_or(pick_small(5, 2)).max(1),
            seconds: self.seconds.unwrap_or(pick(3, 1)).max(1),
            paced_rounds: self.paced_rounds.unwrap_or(pick_small(3, 1)).max(1),
            paced_seconds: self.paced_seconds.unwrap_or(pick(5, 1)).max(1),
            paced_interval_ms: 50,
            idle_rounds: self.idle_rounds.unwrap_or(pick_small(2, 1)).max(1),
            idle_interval_seconds: self.idle_interval.unwrap_or(pick(5, 2)).max(1),
        }
    }
}

pub(crate) async fn run(args: &Args) -> Result<Results> {
    let machine = Machine::read()?;
    let wrk = peer::find_program("wrk");
    if wrk.is_none() && args.cases.iter().any(|case| case.is_closed_loop()) {
        bail!("`wrk` is not here\nhint: apt-get install wrk, or name other cases with `--cases`");
    }
    let mut parameters = args.parameters();
    let split = if args.no_pin { Split::default() } else { Split::new(parameters.threads) };
    split.apply()?;
    parameters.pinned = !split.proxies.is_empty();
    let mut runner = Runner {
        parameters,
        split,
        descriptors: child::raise_descriptor_limit(),
        scratch: Scratch::new()?,
        wrk: wrk.unwrap_or_default(),
        peers: Vec::new(),
        infos: Vec::new(),
        versions: BTreeMap::new(),
        failures: Vec::new(),
        notes: Vec::new(),
    };
    runner.choose_peers(args)?;
    let (mut cases, mut idle) = (Vec::new(), Vec::new());
    for case in &args.cases {
        match case {
            Case::Plain | Case::Sse100 | Case::Paced => cases.push(runner.cpu(*case).await?),
            Case::Idle1000 | Case::Idle9000 => idle.push(runner.memory(*case).await?),
        }
    }
    let streams = if args.quick { args.failover_streams / 10 } else { args.failover_streams };
    let failover = if streams > 0 { runner.failover(streams).await } else { None };
    let rollbacks = if args.rollbacks > 0 { runner.rollbacks(args.rollbacks).await } else { Vec::new() };
    let mut results = runner.finish(machine);
    (results.cases, results.idle, results.failover) = (cases, idle, failover);
    results.rollbacks = rollbacks;
    results.derive();
    Ok(results)
}

/// What all cases of a run share.
struct Runner {
    parameters: Parameters,
    split: Split,
    descriptors: u64,
    scratch: Scratch,
    /// Empty if no case needs it.
    wrk: PathBuf,
    peers: Vec<(&'static Peer, PathBuf)>,
    infos: Vec<PeerInfo>,
    versions: BTreeMap<String, String>,
    failures: Vec<Failure>,
    notes: Vec<String>,
}

impl Runner {
    fn choose_peers(&mut self, args: &Args) -> Result<()> {
        let tools = Tools { backstop: args.backstop.clone(), environments: args.environments.clone() };
        for name in &args.peers {
            let Some(peer) = PEERS.iter().find(|peer| peer.name == *name) else {
                bail!("no peer is named `{name}`\nhint: one of {}", all_peers().join(", "));
            };
            let mut skipped = None;
            match peer.program(&tools) {
                Ok(program) => {
                    if let Some(version) = peer.version(&program) {
                        self.versions.insert(name.clone(), version);
                    }
                    self.peers.push((peer, program));
                }
                Err(error) if peer.is_needed() => return Err(error),
                Err(error) => {
                    eprintln!("skipping a peer: {error:#}");
                    skipped = Some("not installed".to_owned());
                }
            }
            self.infos.push(PeerInfo {
                name: name.clone(),
                about: peer.about.to_owned(),
                setup: peer.setup(self.parameters.threads, Case::Paced.connections()),
                skipped,
            });
        }
        Ok(())
    }

    /// `None` if Backstop is not in the run, or the measurement went wrong.
    async fn failover(&mut self, streams: u32) -> Option<Failover> {
        let (_, program) = self.peers.iter().find(|(peer, _)| peer.name == "backstop")?;
        match failover::measure(program, streams).await {
            Ok(result) => {
                let Failover { whole, resumed, gap_p50_ms, gap_max_ms, .. } = result;
                eprintln!(
                    "failover {streams} streams: {whole} whole, {resumed} carried on, silent for {gap_p50_ms:.0} ms (median), {gap_max_ms:.0} ms (longest)"
                );
                Some(result)
            }
            Err(error) => {
                eprintln!("failover failed: {error:#}");
                self.notes.push(format!("The failover could not be measured: {error:#}"));
                None
            }
        }
    }

    /// With a small table and a large one; nothing if Backstop is not in the run, or the measurement went wrong.
    async fn rollbacks(&mut self, rounds: u32) -> Vec<Rollback> {
        const OTHERS: [u32; 2] = [0, 1_000];
        let mut measured = Vec::new();
        let backstop = self.peers.iter().find(|(peer, _)| peer.name == "backstop").cloned();
        let Some((_, program)) = backstop else { return measured };
        for others in OTHERS {
            match rollback::measure(&program, rounds, others).await {
                Ok(result) => {
                    eprintln!(
                        "rollback, {} endpoints: swap {:.2} ms, last request assigned {:.1} ms after the order, {} of {} requests failed",
                        result.endpoints,
                        result.swap_ms.median,
                        result.last_assigned_ms.max,
                        result.failed,
                        result.requests
                    );
                    measured.push(result);
                }
                Err(error) => {
                    eprintln!("rollback failed: {error:#}");
                    self.notes.push(format!("The rollback could not be measured: {error:#}"));
                }
            }
        }
        measured
    }

    /// Takes a peer out of a case: its figures there are not to be trusted.
    fn fail<R, S>(&mut self, case: Case, part: &mut Part<R, S>, error: &anyhow::Error) {
        let what = format!("{error:#}");
        eprintln!("{:8} {:13} failed: {what}", case.name(), part.peer);
        part.fail(&what);
        self.failures.push(Failure { case, peer: part.peer.clone(), what });
    }

    /// Connections or streams of a case; a proxy needs two descriptors for each and some to spare, and the
    /// loader one port of the ephemeral range.
    fn connections(&mut self, case: Case) -> u32 {
        const EPHEMERAL: u32 = 25_000;
        const SPARE: u64 = 1_256;
        let asked = case.connections();
        if case.is_closed_loop() {
            return asked;
        }
        let asked = if self.parameters.quick { asked / 10 } else { asked };
        let by_descriptors = self.descriptors.saturating_sub(SPARE) / 2;
        let possible = u32::try_from(by_descriptors).unwrap_or(EPHEMERAL).clamp(1, EPHEMERAL);
        if possible < asked {
            let limit = self.descriptors;
            self.notes.push(format!(
                "{possible} streams instead of {asked}: the limit here is {limit} descriptors per process"
            ));
        }
        asked.min(possible)
    }

    async fn start(
        &self,
        (peer, program): &(&'static Peer, PathBuf),
        upstream: u16,
        case: Case,
        connections: u32,
    ) -> Result<Running> {
        let site = Site {
            directory: self.scratch.path(),
            port: child::free_port()?,
            second_port: child::free_port()?,
            upstream,
            threads: self.parameters.threads,
            cpus: &self.split.proxies,
            connections,
        };
        peer.start(program, &site, case).await
    }

    /// Between two tokens of a stream; zero for streams that come at once.
    fn pace(&self, case: Case) -> Duration {
        match case {
            Case::Plain | Case::Sse100 => Duration::ZERO,
            Case::Paced => Duration::from_millis(self.parameters.paced_interval_ms),
            Case::Idle1000 | Case::Idle9000 => Duration::from_secs(self.parameters.idle_interval_seconds),
        }
    }

    fn finish(mut self, machine: Machine) -> Results {
        let mut add = |name: &str, version: Option<String>| {
            self.versions.extend(version.map(|version| (name.to_owned(), version)));
        };
        add("wrk", peer::version(&self.wrk, "-v"));
        add("rustc", Some(env!("BENCH_RUSTC").to_owned()).filter(|version| !version.is_empty()));
        add("backstop-bench", Some(env!("CARGO_PKG_VERSION").to_owned()));
        let matters = |name: &str| {
            PEERS.iter().any(|peer| peer.name == name && (peer.is_needed() || name == "backstop"))
        };
        Results {
            format: FORMAT,
            date: utc_now(),
            valid: !self.failures.iter().any(|failure| matters(&failure.peer)),
            failures: self.failures,
            notes: self.notes,
            machine,
            versions: self.versions,
            parameters: self.parameters,
            peers: self.infos,
            cases: Vec::new(),
            idle: Vec::new(),
            failover: None,
            rollbacks: Vec::new(),
            bars: Vec::new(),
        }
    }
}
