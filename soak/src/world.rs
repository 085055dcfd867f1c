//! Backstop and the replicas behind it: real processes, and what is done to them.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::api::{self, Admin, Order, Status};
use crate::ask::{self, ENGINE_SEED};
use crate::plan::{Action, Deed, Duty, Process, Standing, Trigger};
use crate::process::{Child, Scratch, free_address};
use crate::settings::{Mistake, Places, SERVICE, Settings};

/// How long anything may take that takes a moment: a process to start, a file to be noticed.
const PATIENCE: Duration = Duration::from_secs(15);
/// A second look at the file, and a little more.
const SETTLE: Duration = Duration::from_millis(700);

/// How long a replica's faults wait for somebody to meet.
const BAD_TIMES: Duration = Duration::from_secs(3);

pub(crate) struct World {
    program: PathBuf,
    backstop: Child,
    replicas: Vec<Replica>,
    places: OwnPlaces,
    settings: Settings,
    troubles: Vec<Trouble>,
    started: Instant,
    /// Of the replicas.
    pace: f64,
    scratch: Scratch,
}

struct Replica {
    addr: SocketAddr,
    child: Child,
    standing: Standing,
    /// Since when it may answer badly.
    errs: Option<Duration>,
}

impl Replica {
    /// Takes back faults that have met nobody, or they would do so when nobody expects them.
    async fn forgive(&mut self, now: Duration) -> Result<()> {
        let is_old = self.errs.is_some_and(|since| now.saturating_sub(since) > BAD_TIMES);
        if is_old && self.standing.process == Process::Running {
            api::request(self.addr, Method::DELETE, "/sim/faults", None).await?;
            self.errs = None;
        }
        Ok(())
    }
}

struct OwnPlaces {
    listen: SocketAddr,
    admin: SocketAddr,
    urls: Vec<String>,
    /// Requests at a time.
    places: u32,
}

/// A time during which a replica may fail requests. It ends when the replica is seen to be well again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) replica: usize,
    pub(crate) from: Duration,
    pub(crate) to: Option<Duration>,
}

impl World {
    /// Starts everything, and waits until Backstop calls all replicas healthy. Times count from `started`.
    pub(crate) async fn start(
        program: &Path,
        replicas: usize,
        clients: u32,
        started: Instant,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let pace = pace(clients);
        let mut all = Vec::new();
        for number in 0..replicas {
            let addr = free_address()?;
            let child = start_replica(program, number, addr, pace, scratch.path())?;
            let standing =
                Standing { process: Process::Running, duty: Duty::Active, healthy: true, harmed: None };
            all.push(Replica { addr, child, standing, errs: None });
        }
        let places = OwnPlaces {
            listen: free_address()?,
            admin: free_address()?,
            urls: all.iter().map(|replica| format!("http://{}", replica.addr)).collect(),
            places: 2 * clients,
        };
        let settings = Settings::first(replicas);
        fs::write(scratch.path().join("backstop.yaml"), places.yaml(&settings, 0, scratch.path()))?;
        let backstop = start_backstop(program, scratch.path())?;
        let program = program.to_owned();
        let mut world = Self {
            program,
            backstop,
            replicas: all,
            places,
            settings,
            troubles: Vec::new(),
            started,
            pace,
            scratch,
        };
        if let Err(error) = world.until_well().await {
            let end = world.log_since(0).unwrap_or_default();
            let end = end.lines().rev().take(5).collect::<Vec<_>>().join("\n");
            return Err(error.context(format!("Backstop did not get ready; its log ends with:\n{end}")));
        }
        Ok(world)
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.places.listen
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin(self.places.admin)
    }

    pub(crate) fn backstop_id(&self) -> u32 {
        self.backstop.id()
    }

    pub(crate) fn urls(&self) -> &[String] {
        &self.places.urls
    }

    pub(crate) fn standings(&self) -> Vec<Standing> {
        self.replicas.iter().map(|replica| replica.standing).collect()
    }

    pub(crate) fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }

    /// The embeddings of all texts, by a replica itself.
    pub(crate) async fn embeddings(&self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for text in 0..ask::TEXTS.len() {
            let body = serde_json::from_str(&ask::embedding(text))?;
            let (_, answer) =
                api::request(self.replicas[0].addr, Method::POST, "/v1/embeddings", Some(body)).await?;
            let answer: Value = serde_json::from_slice(&answer)?;
            ensure!(answer["data"][0]["embedding"].is_array(), "no embedding: {answer}");
            all.push(answer["data"].clone());
        }
        Ok(all)
    }

    /// Takes in how things stand.
    ///
    /// # Errors
    ///
    /// Something is not as it was left: a process has ended, or an endpoint does what nobody wants.
    pub(crate) async fn look(&mut self) -> Result<Status> {
        let now = self.started.elapsed();
        if let Some(status) = self.backstop.ended() {
            bail!("Backstop has ended: {status}");
        }
        let status = self.admin().status().await?;
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            replica.forgive(now).await.with_context(|| format!("replica {number} keeps its faults"))?;
            if replica.standing.process != Process::Dead
                && let Some(status) = replica.child.ended()
            {
                bail!("replica {number} has ended by itself: {status}");
            }
            let url = &self.places.urls[number];
            let endpoint = status.endpoints().find(|endpoint| endpoint.url == *url);
            let duty = endpoint.map_or("removed", |endpoint| endpoint.duty.as_str());
            let wanted = name(replica.standing.duty);
            ensure!(duty == wanted, "replica {number} should be {wanted}, but Backstop says {duty}");
            replica.standing.healthy = endpoint.is_some_and(|endpoint| endpoint.state == "healthy");
            if replica.standing.is_usable() && replica.errs.is_none() {
                let open = self.troubles.iter_mut().filter(|it| it.replica == number && it.to.is_none());
                open.for_each(|trouble| trouble.to = Some(now));
            }
        }
        Ok(status)
    }

    /// # Errors
    ///
    /// It could not be done, or did not have the effect that it should.
    pub(crate) async fn act(&mut self, step: u64, action: &Action) -> Result<()> {
        match action {
            Action::Replica(deed, replica) => self.act_on(*deed, *replica).await,
            Action::Reload(settings, trigger) => self.reload(step, settings, *trigger).await,
            Action::BadReload(mistake, trigger) => self.reload_badly(step, *mistake, *trigger).await,
        }
    }

    async fn act_on(&mut self, deed: Deed, number: usize) -> Result<()> {
        let now = self.started.elapsed();
        if deed.is_to_blame() {
            self.troubles.push(Trouble { replica: number, from: now, to: None });
        }
        let (admin, url, weight) = (self.admin(), &self.places.urls[number], self.settings.weights[number]);
        let replica = &mut self.replicas[number];
        if deed.harms() {
            replica.standing.harmed = Some(now);
        }
        match deed {
            Deed::Kill => {
                replica.child.kill()?;
                replica.standing.process = Process::Dead;
            }
            Deed::Restart => {
                replica.child =
                    start_replica(&self.program, number, replica.addr, self.pace, self.scratch.path())?;
                until_up(replica.addr).await.with_context(|| format!("replica {number} did not start"))?;
                replica.standing.process = Process::Running;
                replica.errs = None;
            }
            Deed::Stop => {
                replica.child.send(Signal::STOP)?;
                replica.standing.process = Process::Stopped;
            }
            Deed::Continue => {
                replica.child.send(Signal::CONT)?;
                replica.standing.process = Process::Running;
            }
            Deed::Stutter(time) => {
                replica.child.send(Signal::STOP)?;
                tokio::time::sleep(time).await;
                replica.child.send(Signal::CONT)?;
            }
            Deed::Err(fault) => {
                replica.errs = Some(now);
                let answer =
                    api::request(replica.addr, Method::POST, "/sim/faults", Some(fault.json())).await;
                let (status, body) = answer?;
                let body = String::from_utf8_lossy(&body);
                ensure!(status < 300, "replica {number} does not take {fault}: {status} {body}");
            }
            Deed::Drain | Deed::Isolate | Deed::Restore | Deed::Remove | Deed::Add => {
                let (order, duty) = order(deed);
                admin.order(order, url, weight).await?;
                replica.standing.duty = duty;
            }
        }
        Ok(())
    }

    async fn reload(&mut self, step: u64, settings: &Settings, trigger: Trigger) -> Result<()> {
        let before = self.admin().status().await?.revision;
        let yaml = self.places.yaml(settings, step, self.scratch.path());
        self.rewrite(step, &yaml, trigger)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.admin().status().await?;
            if status.revision > before && self.weighs(&status, settings) {
                self.settings = settings.clone();
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the new configuration does not serve after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn reload_badly(&mut self, step: u64, mistake: Mistake, trigger: Trigger) -> Result<()> {
        let before = self.admin().status().await?.revision;
        let mark = fs::metadata(self.log())?.len();
        let yaml = mistake.make_in(&self.places.yaml(&self.settings, step, self.scratch.path()));
        self.rewrite(step, &yaml, trigger)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.log_since(mark)?.contains("reload refused") {
            ensure!(Instant::now() < deadline, "the invalid file was not refused within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(SETTLE).await;
        let status = self.admin().status().await?;
        let same = status.revision == before && self.weighs(&status, &self.settings);
        ensure!(
            same,
            "the invalid file has changed what serves: revision {} after {before}",
            status.revision
        );
        Ok(())
    }

    /// Whether the weights are those of `settings`.
    fn weighs(&self, status: &Status, settings: &Settings) -> bool {
        let mut weights = self.places.urls.iter().zip(&settings.weights);
        weights.all(|(url, weight)| {
            let mut endpoints = status.endpoints().filter(|endpoint| endpoint.url == *url);
            endpoints.all(|endpoint| (endpoint.weight - f64::from(*weight)).abs() < 1e-9)
        })
    }

    /// Replaces the file as editors do, one way or the other.
    fn rewrite(&mut self, step: u64, yaml: &str, trigger: Trigger) -> Result<()> {
        let (path, new) = (self.scratch.path().join("backstop.yaml"), self.scratch.path().join("new.yaml"));
        if step.is_multiple_of(2) {
            fs::write(&path, yaml)?;
        } else {
            fs::write(&new, yaml)?;
            fs::rename(&new, &path)?;
        }
        if trigger == Trigger::Hangup {
            self.backstop.send(Signal::HUP)?;
        }
        Ok(())
    }

    /// Repairs everything, and waits until Backstop has noticed.
    ///
    /// # Errors
    ///
    /// It does not notice.
    pub(crate) async fn heal(&mut self) -> Result<()> {
        for number in 0..self.replicas.len() {
            self.replicas[number].forgive(Duration::MAX).await?;
            let Standing { process, duty, .. } = self.replicas[number].standing;
            match process {
                Process::Running => {}
                Process::Stopped => self.act_on(Deed::Continue, number).await?,
                Process::Dead => self.act_on(Deed::Restart, number).await?,
            }
            match duty {
                Duty::Active => {}
                Duty::Removed => self.act_on(Deed::Add, number).await?,
                Duty::Draining | Duty::Isolated => self.act_on(Deed::Restore, number).await?,
            }
        }
        self.until_well().await.context("not all replicas are healthy again, though nothing ails them")
    }

    async fn until_well(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let looked = self.look().await.map(drop);
            if looked.is_ok() && self.replicas.iter().all(|replica| replica.standing.is_usable()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                looked?;
                bail!("not healthy within {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops Backstop as an operator does.
    ///
    /// # Errors
    ///
    /// It does not end, or not well.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.backstop.send(Signal::TERM)?;
        let status = self.backstop.wait(PATIENCE).await;
        let status = status.with_context(|| format!("Backstop does not stop within {PATIENCE:?}"))?;
        ensure!(status.success(), "Backstop ended with {status}");
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("backstop.log")
    }

    /// What Backstop has logged after `mark` bytes.
    pub(crate) fn log_since(&self, mark: u64) -> Result<String> {
        let mut file = fs::File::open(self.log())?;
        file.seek(SeekFrom::Start(mark))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Leaves configuration and logs where they are, and says where that is.
    pub(crate) fn keep(&mut self) -> String {
        self.scratch.keep().display().to_string()
    }
}

impl OwnPlaces {
    fn yaml(&self, settings: &Settings, step: u64, scratch: &Path) -> String {
        let state_dir = &scratch.join("state");
        let Self { listen, admin, urls, places } = self;
        let (listen, admin, places) = (*listen, *admin, *places);
        settings.yaml(&Places { listen, admin, state_dir, replicas: urls, places }, step)
    }
}

/// Many clients get slower replicas, or the machine would be what is tested.
fn pace(clients: u32) -> f64 {
    (f64::from(clients) / 64.0).clamp(1.0, 4.0)
}

fn order(deed: Deed) -> (Order, Duty) {
    match deed {
        Deed::Drain => (Order::Drain, Duty::Draining),
        Deed::Isolate => (Order::Isolate, Duty::Isolated),
        Deed::Remove => (Order::Remove, Duty::Removed),
        Deed::Add => (Order::Add, Duty::Active),
        _ => (Order::Restore, Duty::Active),
    }
}

/// As the control API writes it.
fn name(duty: Duty) -> &'static str {
    match duty {
        Duty::Active => "active",
        Duty::Draining => "draining",
        Duty::Isolated => "isolated",
        Duty::Removed => "removed",
    }
}

fn start_replica(
    program: &Path,
    number: usize,
    addr: SocketAddr,
    pace: f64,
    scratch: &Path,
) -> Result<Child> {
    let (least, most) = (4.0 * pace, 12.0 * pace);
    let args = format!(
        "engine-sim --listen {addr} --name replica-{number} --model {SERVICE} --seed {ENGINE_SEED} --tokens 100000 \
         --ttft lognormal(30ms,0.5) --itl uniform({least}ms,{most}ms)"
    );
    let args: Vec<_> = args.split_whitespace().map(Into::into).collect();
    Child::spawn(program, &args, &scratch.join(format!("replica-{number}.log")))
}

fn start_backstop(program: &Path, scratch: &Path) -> Result<Child> {
    let args = "serve --drain 5s --log-format json --log-level info,backstop_gateway=debug -c";
    let mut args: Vec<_> = args.split_whitespace().map(Into::into).collect();
    args.push(scratch.join("backstop.yaml").into());
    Child::spawn(program, &args, &scratch.join("backstop.log"))
}

async fn until_up(addr: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match api::request(addr, Method::GET, "/health", None).await {
            Ok((200, _)) => return Ok(()),
            Ok((status, _)) if Instant::now() >= deadline => bail!("its health is {status}"),
            Err(error) if Instant::now() >= deadline => return Err(error),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
