//! One run: every case, every peer, in interleaved rounds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::child::{self, Scratch, Split};
use crate::idle::Fleet;
use crate::load::{self, Case, Prober};
use crate::measure::{Machine, utc_now};
use crate::peer::{self, Absence, BASES, PEERS, Peer, Running, Site, Tools};
use crate::results::{CaseResult, FORMAT, IdleResult, IdleRound, Parameters, PeerInfo, Results, Round};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Backstop program; without it the other peers are measured alone
    #[arg(long, default_value = "target/release/backstop")]
    backstop: PathBuf,
    /// Result file
    #[arg(long, default_value = "bench/results/latest.json")]
    pub(crate) out: PathBuf,
    /// Peers to measure: `bare`, `nginx`, `backstop`
    #[arg(long, value_delimiter = ',', default_value = "bare,nginx,backstop")]
    peers: Vec<String>,
    /// Cases to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "plain,sse100,idle")]
    cases: Vec<Case>,
    /// Worker threads (nginx: processes) of each peer
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Rounds per peer and case [default: 5, quick: 2]
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds per round [default: 5, quick: 1]
    #[arg(long)]
    seconds: Option<u64>,
    /// Open streams of the idle case [default: 9000, quick: 500]
    #[arg(long)]
    idle_streams: Option<u32>,
    /// Rounds of the idle case [default: 3, quick: 1]
    #[arg(long)]
    idle_rounds: Option<u32>,
    /// Seconds between the tokens of an idle stream [default: 10, quick: 2]
    #[arg(long)]
    idle_interval: Option<u64>,
    /// Let the scheduler place all processes; else each worker of a proxy has a processor of its own
    #[arg(long)]
    no_pin: bool,
    /// A short run, to see that everything works
    #[arg(long)]
    quick: bool,
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
            seconds: self.seconds.unwrap_or(pick(5, 1)).max(1),
            idle_streams: self.idle_streams.unwrap_or(pick_small(9_000, 500)).max(1),
            idle_rounds: self.idle_rounds.unwrap_or(pick_small(3, 1)).max(1),
            idle_interval_seconds: self.idle_interval.unwrap_or(pick(10, 2)).max(1),
        }
    }
}

pub(crate) async fn run(args: &Args) -> Result<Results> {
    let machine = Machine::read()?;
    let wrk = peer::find_program("wrk").context("`wrk` is not here\nhint: apt-get install wrk")?;
    let mut parameters = args.parameters();
    let split = if args.no_pin { Split::default() } else { Split::new(parameters.threads) };
    split.apply()?;
    parameters.pinned = !split.proxies.is_empty();
    let mut runner = Runner {
        parameters,
        split,
        descriptors: child::raise_descriptor_limit(),
        scratch: Scratch::new()?,
        wrk,
        peers: Vec::new(),
        infos: Vec::new(),
        versions: BTreeMap::new(),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    runner.choose_peers(args)?;
    let (mut cases, mut idle) = (Vec::new(), None);
    for case in &args.cases {
        match case {
            Case::Plain | Case::Sse100 => cases.push(runner.closed_loop(*case).await?),
            Case::Idle => idle = Some(runner.idle().await?),
        }
    }
    Ok(runner.finish(machine, cases, idle))
}

/// What all cases of a run share.
struct Runner {
    parameters: Parameters,
    split: Split,
    descriptors: u64,
    scratch: Scratch,
    wrk: PathBuf,
    peers: Vec<(&'static Peer, PathBuf)>,
    infos: Vec<PeerInfo>,
    versions: BTreeMap<String, String>,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Runner {
    fn choose_peers(&mut self, args: &Args) -> Result<()> {
        let tools = Tools { backstop: args.backstop.clone() };
        for name in &args.peers {
            let Some(peer) = PEERS.iter().find(|peer| peer.name == *name) else {
                let known: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
                bail!("no peer is named `{name}`\nhint: one of {}", known.join(", "));
            };
            let mut skipped = None;
            match peer.program(&tools) {
                Ok(program) => {
                    if let Some(version) = peer.version(&program) {
                        self.versions.insert(name.clone(), version);
                    }
                    self.peers.push((peer, program));
                }
                Err(error) if peer.absence == Absence::Fails => return Err(error),
                Err(error) => {
                    eprintln!("skipping a peer: {error:#}");
                    skipped = Some("not built".to_owned());
                }
            }
            self.infos.push(PeerInfo { name: name.clone(), about: peer.about.to_owned(), skipped });
        }
        Ok(())
    }

    /// Something that makes the run invalid.
    fn problem(&mut self, case: Case, peer: &str, what: &str) {
        let problem = format!("{}, {peer}: {what}", case.name());
        eprintln!("  problem: {problem}");
        self.problems.push(problem);
    }

    /// All peers stay up; only the one whose turn it is gets requests.
    async fn closed_loop(&mut self, case: Case) -> Result<CaseResult> {
        let (_upstream, upstream) = peer::start_upstream(self.scratch.path(), 0).await?;
        let mut running = Vec::new();
        for (peer, program) in self.peers.clone() {
            match self.start(peer, &program, upstream, case).await {
                Ok(peer) => running.push((peer, Vec::new())),
                Err(error) => self.problem(case, peer.name, &format!("{error:#}")),
            }
        }
        for (peer, _) in &running {
            // Pools fill and allocators settle; not counted.
            if let Err(error) = load::drive(&self.wrk, self.scratch.path(), case, peer.port, 1).await {
                self.problem(case, peer.name, &format!("warm-up: {error:#}"));
            }
        }
        for round in 0..self.parameters.rounds {
            for (peer, rounds) in &mut running {
                match self.round(peer, case, round).await {
                    Ok(result) => rounds.push(result),
                    Err(error) => self.problem(case, peer.name, &format!("{error:#}")),
                }
            }
        }
        for (peer, _) in &running {
            if let Err(error) = Prober::new(peer.port).check(case).await {
                self.problem(case, peer.name, &format!("wrong answer after the rounds: {error:#}"));
            }
        }
        let rounds = running.into_iter().map(|(peer, rounds)| (peer.name, rounds)).collect();
        Ok(CaseResult::new(case, rounds, &BASES))
    }

    async fn start(&self, peer: &Peer, program: &Path, upstream: u16, case: Case) -> Result<Running> {
        let connections = match case {
            Case::Idle => self.idle_streams() as usize,
            Case::Plain | Case::Sse100 => case.connections(),
        };
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

    async fn round(&mut self, peer: &Running, case: Case, round: u32) -> Result<Round> {
        const MIB: f64 = 1024.0;
        let before = peer.usage()?;
        let seconds = self.parameters.seconds;
        let outcome = load::drive(&self.wrk, self.scratch.path(), case, peer.port, seconds).await?;
        let after = peer.usage()?;
        if let Some(problem) = outcome.problem(case) {
            self.problem(case, peer.name, &format!("round {}: {problem}", round + 1));
        }
        if outcome.requests == 0 {
            bail!("round {} has no figures", round + 1);
        }
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        let result = Round {
            round,
            requests: outcome.requests,
            errors: outcome.errors(),
            seconds: outcome.seconds(),
            cpu_seconds,
            cpu_us: cpu_seconds * 1e6 / outcome.requests as f64,
            rate: outcome.requests as f64 / outcome.seconds(),
            p50_us: outcome.p50_us,
            p99_us: outcome.p99_us,
            rss_mib: after.rss_kib as f64 / MIB,
            peak_rss_mib: after.peak_rss_kib as f64 / MIB,
        };
        eprintln!(
            "{:7} {:9} round {}: {:8.1} us CPU each, {:6.0}/s, p99 {:.0} us",
            case.name(),
            peer.name,
            round + 1,
            result.cpu_us,
            result.rate,
            result.p99_us
        );
        Ok(result)
    }

    /// A proxy needs two descriptors per stream, and the loader one port of the ephemeral range.
    fn idle_streams(&self) -> u32 {
        const EPHEMERAL: u32 = 25_000;
        let by_descriptors = self.descriptors.saturating_sub(256) / 2;
        self.parameters
            .idle_streams
            .min(EPHEMERAL)
            .min(u32::try_from(by_descriptors).unwrap_or(EPHEMERAL))
            .max(1)
    }

    /// Each round takes a fresh process: an allocator that keeps memory would hide the cost of the next.
    async fn idle(&mut self) -> Result<IdleResult> {
        let streams = self.idle_streams();
        if streams < self.parameters.idle_streams {
            let asked = self.parameters.idle_streams;
            let limit = self.descriptors;
            self.notes.push(format!(
                "{streams} idle streams instead of {asked}: the limit here is {limit} descriptors per process"
            ));
        }
        let mut rounds: Vec<_> = self.peers.iter().map(|(peer, _)| (peer.name, Vec::new())).collect();
        for round in 0..self.parameters.idle_rounds {
            for (index, (peer, program)) in self.peers.clone().into_iter().enumerate() {
                match self.idle_round(peer, &program, streams, round).await {
                    Ok(result) => rounds[index].1.push(result),
                    Err(error) => self.problem(Case::Idle, peer.name, &format!("{error:#}")),
                }
            }
        }
        Ok(IdleResult::new(streams, rounds, &BASES))
    }

    async fn idle_round(&self, peer: &Peer, program: &Path, streams: u32, round: u32) -> Result<IdleRound> {
        const MIB: f64 = 1024.0;
        let pace = self.parameters.idle_interval_seconds;
        let (_upstream, upstream) = peer::start_upstream(self.scratch.path(), pace).await?;
        let running = self.start(peer, program, upstream, Case::Idle).await?;
        let before = running.usage()?.rss_kib as f64;
        let begun = Instant::now();
        let fleet = Fleet::open(running.port, streams).await?;
        let open_seconds = begun.elapsed().as_secs_f64();
        fleet.second_token(Duration::from_secs(pace)).await?;
        let open = running.usage()?.rss_kib as f64;
        let result = IdleRound {
            round,
            rss_before_mib: before / MIB,
            rss_open_mib: open / MIB,
            kib_per_stream: (open - before) / f64::from(streams),
            open_seconds,
        };
        eprintln!(
            "idle    {:9} round {}: {:8.2} KiB per stream, {streams} streams open in {open_seconds:.1} s",
            peer.name,
            round + 1,
            result.kib_per_stream
        );
        Ok(result)
    }

    fn finish(mut self, machine: Machine, cases: Vec<CaseResult>, idle: Option<IdleResult>) -> Results {
        let mut add = |name: &str, version: Option<String>| {
            self.versions.extend(version.map(|version| (name.to_owned(), version)));
        };
        add("wrk", peer::version(&self.wrk, "-v"));
        add("rustc", Some(env!("BENCH_RUSTC").to_owned()).filter(|version| !version.is_empty()));
        add("backstop-bench", Some(env!("CARGO_PKG_VERSION").to_owned()));
        let mut results = Results {
            format: FORMAT,
            date: utc_now(),
            valid: self.problems.is_empty(),
            problems: self.problems,
            notes: self.notes,
            machine,
            versions: self.versions,
            parameters: self.parameters,
            peers: self.infos,
            cases,
            idle,
            bars: Vec::new(),
        };
        results.judge();
        results
    }
}
