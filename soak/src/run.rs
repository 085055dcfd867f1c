//! A run: start, act under load, heal, stop, judge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::api::Totals;
use crate::load::{Gauge, Load, Seen};
use crate::log::Log;
use crate::plan::{self, Action};
use crate::report::{FirstToken, Report, today};
use crate::verdict::{Done, Evidence, Verdict};
use crate::watch::{Sample, Watch};
use crate::world::World;

/// Load without faults at the beginning, so that what leaving clients do shows by itself.
const CALM: Duration = Duration::from_secs(5);
/// How long nothing may stay in flight once all clients have gone.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The program to test
    #[arg(long, value_name = "FILE")]
    pub(crate) backstop: PathBuf,
    /// How long to go on
    #[arg(long, default_value_t = 20.0, value_parser = minutes)]
    pub(crate) minutes: f64,
    /// Model servers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(4..=16))]
    pub(crate) replicas: u16,
    /// Clients that ask at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) clients: u16,
    /// Chooses what is asked and what is done [default: by chance]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Directory for `soak.json`, `soak.md` and `soak.svg`
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write `soak.md` and `soak.svg` here as well, if the run was long enough to judge growth and all was well
    #[arg(long, value_name = "DIR")]
    pub(crate) docs: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.5..=10_000.0).contains(&minutes) { Ok(minutes) } else { Err("must be 0.5 to 10000".to_owned()) }
}

/// What was done, and what was wrong.
struct Course {
    started: Instant,
    seed: u64,
    step: u64,
    done: Vec<Done>,
    problems: Vec<(Duration, String)>,
}

/// To be called on a `LocalSet`.
pub(crate) async fn run(args: &Args, seed: u64) -> Result<Report> {
    ensure!(
        args.backstop.is_file(),
        "there is no `{}`\nhint: cargo build -p backstop",
        args.backstop.display()
    );
    let started = Instant::now();
    let mut course = Course { started, seed, step: 0, done: Vec::new(), problems: Vec::new() };
    let mut world = World::start(&args.backstop, args.replicas.into(), args.clients.into(), started).await?;
    let embeddings = world.embeddings().await.context("a replica does not embed")?;
    let load = Load::start(world.listen(), args.clients.into(), seed, started, embeddings);
    let gauge = load.gauge();
    let watch =
        Watch::start(world.backstop_id(), world.admin(), world.urls().to_vec(), gauge.clone(), started);

    tokio::time::sleep(CALM).await;
    let begin = started.elapsed();
    let until = started + Duration::from_secs_f64(args.minutes * 60.0);
    course.act(&mut world, until, &watch, &gauge).await;
    let end = started.elapsed();
    let healed = world.heal().await;
    course.note(healed);
    // The replicas are all well, so these requests tell whether they serve again.
    tokio::time::sleep(CALM).await;
    let seen = load.stop().await;
    let totals = settle(&world).await;
    let totals = course.note(totals);
    let samples = watch.stop();
    let stopped = world.stop().await;
    course.note(stopped);

    let ids: BTreeSet<&str> = seen.incidents.iter().map(|incident| incident.id.as_str()).collect();
    let log = Log::read(&world.log_since(0)?, &ids);
    let Course { done, problems, .. } = course;
    let evidence = Evidence {
        seen: &seen,
        samples: &samples,
        troubles: world.troubles(),
        done: &done,
        log: &log,
        length: until - started,
        faults: (begin, end),
        totals,
        problems,
    };
    let verdict = evidence.judge();
    if !verdict.violations.is_empty() {
        eprintln!("configuration and logs are kept in {}", world.keep());
    }
    Ok(report(args, seed, seen, verdict, (totals, done, samples)))
}

fn report(
    args: &Args,
    seed: u64,
    seen: Seen,
    verdict: Verdict,
    (totals, actions, samples): (Option<Totals>, Vec<Done>, Vec<Sample>),
) -> Report {
    let mut cut_by_code = BTreeMap::new();
    for cut in seen.incidents.iter().filter(|incident| incident.breach.is_none()) {
        *cut_by_code.entry(cut.what.clone()).or_default() += 1;
    }
    let mut by_kind = BTreeMap::new();
    for action in &actions {
        *by_kind.entry(action.kind).or_default() += 1;
    }
    Report {
        date: today(),
        seed,
        minutes: args.minutes,
        replicas: args.replicas.into(),
        clients: args.clients.into(),
        counts: seen.counts,
        totals,
        first_token: FirstToken::of(seen.first_tokens),
        peak_streams: samples.iter().map(|sample| sample.open_streams).max().unwrap_or(0),
        cut_by_code,
        by_kind,
        verdict,
        actions,
        samples,
    }
}

impl Course {
    /// One action after the other until the time has come, or until going on makes no sense.
    async fn act(&mut self, world: &mut World, until: Instant, watch: &Watch, gauge: &Gauge) {
        let mut told = 0;
        loop {
            let pause = plan::pause(self.seed, self.step);
            if Instant::now() + pause >= until {
                return;
            }
            tokio::time::sleep(pause).await;
            if let Err(error) = world.look().await {
                // The guard no longer knows what it does.
                self.note::<()>(Err(error));
                return;
            }
            let now = self.started.elapsed();
            let action = plan::next(self.seed, self.step, &world.standings(), now);
            self.take(world, &action, now).await;
            self.step += 1;
            let minute = self.started.elapsed().as_secs() / 60;
            if minute > told {
                told = minute;
                tell(minute, watch, gauge);
            }
        }
    }

    async fn take(&mut self, world: &mut World, action: &Action, now: Duration) {
        let outcome = world.act(self.step, action).await;
        let problem = outcome.err().map(|error| format!("{error:#}"));
        self.done.push(Done {
            at: now.as_secs_f64(),
            kind: action.kind(),
            what: action.to_string(),
            problem,
        });
    }

    /// Remembers what is wrong.
    fn note<T>(&mut self, outcome: Result<T>) -> Option<T> {
        let now = self.started.elapsed();
        outcome.map_err(|error| self.problems.push((now, format!("{error:#}")))).ok()
    }
}

fn tell(minute: u64, watch: &Watch, gauge: &Gauge) {
    let counts = gauge.counts();
    let taken = watch.last().map(|sample| {
        format!("{:.1} MiB, {} descriptors", sample.memory_kib as f64 / 1024.0, sample.descriptors)
    });
    eprintln!(
        "{minute:>4} min: {} requests, {} answered, {} cut with an error event, {} broken; {}",
        counts.requests,
        counts.answered,
        counts.cut,
        counts.broken,
        taken.unwrap_or_default()
    );
}

/// Backstop's account once nothing is in flight.
async fn settle(world: &World) -> Result<Totals> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let status = world.admin().status().await?;
        let totals = status.totals;
        let ended = totals.answered + totals.refused + totals.failed + totals.cut + totals.cancelled;
        let in_flight: u64 = status.endpoints().map(|endpoint| endpoint.in_flight).sum();
        if in_flight == 0 && ended == totals.requests {
            return Ok(totals);
        }
        let open = totals.requests - ended;
        ensure!(
            Instant::now() < deadline,
            "all clients have gone, but {in_flight} attempts are in flight and {open} requests have not ended"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
