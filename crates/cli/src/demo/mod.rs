//! The story in less than a minute: two replicas, a load, one replica killed and brought back; a good version released, a
//! worse one and a dead one sent back.
//!
//! Everything is real but the model: Backstop and the replicas are processes of their own, and the replica dies by
//! `kill -9`.

mod load;
mod release;
mod replica;
mod view;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;

use load::{Counts, Load};
use release::Outcome;
use replica::{Backstop, EndpointView, Manner, Replica, Workspace};
use view::View;

/// How long anything may take to happen before the demo gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long each calm part lasts.
const CALM: Duration = Duration::from_secs(3);

/// Watch a replica being killed, and versions being released, and no client noticing
///
/// Starts two replicas of a model server, Backstop in front of them and clients that stream. One replica is killed with
/// `kill -9`: its streams go on at the other one; then it is brought back. A new version takes over step by step and is
/// promoted; a version that fails now and then and is slower, and one that dies, are sent back by themselves.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// No live view: print one JSON line at the end. The exit code is not 0 if a request failed, a stream was cut
    /// without an error event, the replica did not return, or a release did not end as it should
    #[arg(long)]
    headless: bool,
    /// The model server
    #[arg(long, value_name = "ENGINE", default_value = "sim")]
    engine: Engine,
    /// Command that starts a model server, with `{port}` where its port goes [default: the built-in simulator]
    #[arg(long, value_name = "COMMAND", required_if_eq("engine", "llama.cpp"))]
    server_command: Option<String>,
    /// Clients that stream at the same time [default: 24, or 3 with a real engine]
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// How often a replica is killed and brought back
    #[arg(long, value_name = "N", default_value = "1")]
    cycles: u32,
    /// Leave the releases out
    #[arg(long)]
    no_releases: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// The built-in simulator
    Sim,
    /// A real llama.cpp server, started by `--server-command`
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl Engine {
    fn title(self) -> &'static str {
        match self {
            Self::Sim => "a simulated model server",
            Self::LlamaCpp => "a real llama.cpp server",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::LlamaCpp => "llama.cpp",
        }
    }
}

/// A version to release.
struct Trial {
    manner: Manner,
    /// As soon as it gets traffic.
    dies: bool,
}

impl Trial {
    const GOOD: Self = Self { manner: Manner::Well, dies: false };
    const WORSE: Self = Self { manner: Manner::Worse, dies: false };
    const DIES: Self = Self { manner: Manner::Well, dies: true };

    fn is_good(&self) -> bool {
        self.manner == Manner::Well && !self.dies
    }
}

impl Engine {
    /// `v2`, `v3` and so on.
    fn trials(self) -> &'static [Trial] {
        match self {
            Self::Sim => &[Trial::GOOD, Trial::WORSE, Trial::DIES],
            // A real engine can't be asked to be worse.
            Self::LlamaCpp => &[Trial::GOOD, Trial::DIES],
        }
    }
}

/// What a run came to.
#[derive(Debug, Serialize)]
struct Summary {
    engine: &'static str,
    #[serde(flatten)]
    counts: Counts,
    kills: u32,
    /// Every killed replica was noticed, came back and served again.
    recovered: bool,
    releases: Vec<Outcome>,
    /// Each release ended as it should.
    as_expected: bool,
    /// From the last kill until Backstop called the replica unhealthy.
    noticed_ms: u128,
    /// From the last restart until Backstop called it healthy.
    returned_ms: u128,
    seconds: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(tell(args))
}

async fn tell(args: &Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let workspace = Workspace::new()?;
    let mut view = View::new(args.headless, args.engine.title());
    view.note("starting two replicas and backstop");
    let start = |manner| Replica::start(args.engine, args.server_command.as_deref(), manner, &workspace);
    let mut replicas = [start(Manner::Well)?, start(Manner::Well)?];
    let trials = if args.no_releases { &[] } else { args.engine.trials() };
    let mut others = Vec::new();
    for trial in trials {
        others.push([start(trial.manner)?]);
    }
    for replica in replicas.iter().chain(others.iter().flatten()) {
        wait_for(&format!("the replica at {}", replica.url()), || replica.is_up()).await?;
    }
    let versions: Vec<&[Replica]> =
        std::iter::once(&replicas[..]).chain(others.iter().map(|version| &version[..])).collect();
    let backstop = Backstop::start(args.engine, &versions, &workspace)?;
    wait_for("backstop", || backstop.is_ready()).await.with_context(|| backstop.log_hint(&workspace))?;

    let clients = args.clients.unwrap_or(if args.engine == Engine::Sim { 24 } else { 3 });
    let load = Load::start(backstop.listen, clients);
    view.open(backstop.listen, clients);
    calm(&mut view, &backstop, &load).await;

    let (mut noticed, mut returned) = (Duration::ZERO, Duration::ZERO);
    let mut recovered = true;
    for cycle in 0..args.cycles {
        let victim = &mut replicas[(cycle as usize + 1) % 2];
        match kill_and_return(&mut view, &backstop, &load, victim, args, &workspace).await {
            Ok(times) => (noticed, returned) = times,
            Err(error) => {
                view.note(&format!("{error:#}"));
                recovered = false;
                break;
            }
        }
    }
    let mut releases = Vec::new();
    let mut as_expected = recovered;
    for (index, trial) in trials.iter().enumerate().filter(|_| recovered) {
        let victim = others[index].first_mut().filter(|_| trial.dies);
        match release::release(&mut view, &backstop, &load, &format!("v{}", index + 2), victim).await {
            Ok(outcome) => {
                as_expected &= if trial.is_good() { outcome.is_promoted() } else { outcome.is_back() };
                releases.push(outcome);
            }
            Err(error) => {
                view.note(&format!("{error:#}"));
                as_expected = false;
                break;
            }
        }
        calm(&mut view, &backstop, &load).await;
    }
    let counts = load.stop().await;
    let summary = Summary {
        releases,
        as_expected,
        engine: args.engine.name(),
        counts,
        kills: args.cycles,
        recovered,
        noticed_ms: noticed.as_millis(),
        returned_ms: returned.as_millis(),
        seconds: started.elapsed().as_secs_f64(),
    };
    backstop.stop().await;
    let good = recovered
        && summary.as_expected
        && counts.answered > 0
        && counts.failed == 0
        && counts.truncated == 0;
    if args.headless {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        view.finish(&summary);
    }
    if good {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{}", workspace.keep());
    Ok(ExitCode::FAILURE)
}

/// One kill and one return; how long each took to be noticed.
async fn kill_and_return(
    view: &mut View,
    backstop: &Backstop,
    load: &Load,
    victim: &mut Replica,
    args: &Args,
    workspace: &Workspace,
) -> anyhow::Result<(Duration, Duration)> {
    let url = victim.url();
    view.note(&format!("kill -9 of the replica at {url}"));
    victim.kill().await;
    let noticed = watch(view, backstop, load, &url, |endpoint| endpoint.state == "unhealthy").await?;
    view.note(&format!("noticed after {:.1} s; all traffic goes to the other one", noticed.as_secs_f64()));
    calm(view, backstop, load).await;

    view.note(&format!("the replica at {url} is started again"));
    victim.restart(args.server_command.as_deref(), workspace)?;
    let returned = watch(view, backstop, load, &url, |endpoint| endpoint.state == "healthy").await?;
    let before = backstop.endpoints().await?.into_iter().find(|e| e.url == url).map_or(0, |e| e.requests);
    watch(view, backstop, load, &url, |endpoint| endpoint.requests > before).await?;
    view.note(&format!("healthy again after {:.1} s, and serving", returned.as_secs_f64()));
    calm(view, backstop, load).await;
    Ok((noticed, returned))
}

async fn calm(view: &mut View, backstop: &Backstop, load: &Load) {
    let until = Instant::now() + CALM;
    while Instant::now() < until {
        view.draw(&backstop.endpoints().await.unwrap_or_default(), load.counts());
        tokio::time::sleep(view::REFRESH).await;
    }
}

/// Draws until the endpoint is as wanted; how long that took.
async fn watch(
    view: &mut View,
    backstop: &Backstop,
    load: &Load,
    url: &str,
    wanted: impl Fn(&EndpointView) -> bool,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let endpoints = backstop.endpoints().await.unwrap_or_default();
        view.draw(&endpoints, load.counts());
        if endpoints.iter().any(|endpoint| endpoint.url == url && wanted(endpoint)) {
            return Ok(started.elapsed());
        }
        tokio::time::sleep(view::REFRESH).await;
    }
    bail!("the replica at {url} is not as expected after {} s", PATIENCE.as_secs())
}

async fn wait_for<F: Future<Output = bool>>(what: &str, ready: impl Fn() -> F) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if ready().await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("{what} was not ready within {} s", PATIENCE.as_secs())
}

/// A loopback port that nobody uses at the moment.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

type SharedCounts = Arc<std::sync::Mutex<Counts>>;
