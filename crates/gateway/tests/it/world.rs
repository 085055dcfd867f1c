//! A gateway with its simulated engines, on free ports of the loopback interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstop_core::event::What;
use backstop_core::health::State;
use backstop_core::standby::Stage;
use backstop_core::status::{EndpointStatus, Totals};
use backstop_core::table::{
    BalancePolicy, BreakerSpec, Condition, EndpointSpec, Engine, FailoverSpec, HealthSpec, OutlierSpec,
    RateSpec, RegionSpec, ResumeSpec, RetrySpec, RuleSpec, ServiceSpec, TableSpec, Timeouts, TrialSpec,
    UnitSource, VersionSpec,
};
use backstop_engine_sim::{Sim, SimConfig, expected_text};
use backstop_gateway::Gateway;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::until;

/// Tokens of a whole answer of [`SimConfig::default`].
pub(crate) const TOKENS: usize = 64;

pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The first tokens of the answer to "hi".
pub(crate) fn oracle(tokens: usize) -> String {
    expected_text(0, &[("user", "hi")], tokens)
}

pub(crate) struct World {
    pub(crate) sims: Vec<Sim>,
    pub(crate) spec: TableSpec,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) addr: SocketAddr,
}

/// A service `chat` whose only version `v1` has the engines in this order, each with a priority of its own, so
/// that the first gets all requests while it can. Active checks never take an engine out, nor does the breaker.
pub(crate) fn service(sims: &[Sim]) -> ServiceSpec {
    let endpoints = sims.iter().zip(0..).map(|(sim, priority)| endpoint(sim, priority)).collect();
    ServiceSpec {
        name: "chat".to_owned(),
        models: vec!["chat".to_owned()],
        stable: "v1".to_owned(),
        versions: vec![VersionSpec::new("v1", endpoints)],
        rules: Vec::new(),
        groups: BTreeMap::new(),
        sticky: vec![UnitSource::Request],
        trial: None,
        shadow: None,
        balance: BalancePolicy::RoundRobin,
        regions: RegionSpec::default(),
        dependencies: Vec::new(),
        timeouts: Timeouts {
            connect: LONG,
            first_token: LONG,
            inter_token: LONG,
            response: LONG,
            total: LONG,
            queue: LONG,
        },
        retry: RetrySpec { attempts: 2, backoff: ms(2), budget: 1.0, retry_after_max: ms(5000) },
        fallback: Vec::new(),
        cache: None,
        admission: None,
        limits: RateSpec::default(),
        limits_per_user: RateSpec::default(),
        drift: 0,
        resume: ResumeSpec { attempts: 0, modes: Vec::new(), across: Vec::new() },
        failover: FailoverSpec {
            ramp: vec![1.0],
            stable_for: Duration::ZERO,
            drain: LONG,
            ..FailoverSpec::default()
        },
        breaker: BreakerSpec { failures: 1000, open: LONG },
        outlier: OutlierSpec { interval: LONG, ejection: LONG, max_ejected: 0.5 },
        health: HealthSpec {
            interval: LONG,
            timeout: Duration::from_secs(5),
            path: None,
            up: 1,
            down: 1000,
            stall: LONG,
            slow_start: Duration::ZERO,
            inference: None,
            checks: Vec::new(),
        },
    }
}

pub(crate) fn endpoint(sim: &Sim, priority: u8) -> EndpointSpec {
    EndpointSpec { priority, ..EndpointSpec::new(sim.addr().into(), Engine::Sim) }
}

/// Sends requests with this header to `version`.
pub(crate) fn header_rule(name: &str, value: &str, version: &str) -> RuleSpec {
    let when = vec![Condition::Header(name.to_owned(), value.to_owned())];
    RuleSpec { when, version: version.to_owned() }
}

/// Gives version `v2` so many of all buckets.
pub(crate) fn trial(buckets: u32) -> TrialSpec {
    TrialSpec {
        release: "r-1".to_owned(),
        salt: "r-1".to_owned(),
        canary: "v2".to_owned(),
        buckets,
        epoch: 1,
        step: 1,
        limits: Vec::new(),
        patience: ms(300),
    }
}

/// All endpoints on one level.
pub(crate) fn side_by_side(service: &mut ServiceSpec) {
    for endpoint in service.versions.iter_mut().flat_map(|version| &mut version.endpoints) {
        endpoint.priority = 0;
    }
}

impl World {
    /// `count` engines that answer at once, and the service as `change` makes it.
    pub(crate) async fn start(count: usize, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        Self::of(vec![SimConfig::default(); count], change).await
    }

    pub(crate) async fn of(sims: Vec<SimConfig>, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        let world = Self::unchecked(sims, change).await;
        world.until_all(State::Healthy).await;
        world
    }

    /// Two engines, of which the second is the only one of version `v2`.
    pub(crate) async fn versions(sims: [SimConfig; 2], change: impl FnOnce(&mut ServiceSpec)) -> Self {
        Self::of(sims.to_vec(), |service| {
            let mut gray = service.versions[0].endpoints.pop().unwrap();
            gray.priority = 0;
            service.versions.push(VersionSpec::new("v2", vec![gray]));
            change(service);
        })
        .await
    }

    /// Does not wait for the first checks.
    pub(crate) async fn unchecked(sims: Vec<SimConfig>, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        let mut started = Vec::new();
        for (config, i) in sims.into_iter().zip(0..) {
            let config = SimConfig { name: format!("sim{i}"), log: 4096, ..config };
            started.push(Sim::start(config).await.unwrap());
        }
        let mut service = service(&started);
        change(&mut service);
        Self::serve(started, vec![service]).await
    }

    pub(crate) async fn serve(sims: Vec<Sim>, services: Vec<ServiceSpec>) -> Self {
        Self::with(sims, TableSpec { revision: 1, services, ..TableSpec::default() }).await
    }

    pub(crate) async fn with(sims: Vec<Sim>, spec: TableSpec) -> Self {
        let gateway = Arc::new(Gateway::new());
        gateway.apply(&spec).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn({
            let gateway = Arc::clone(&gateway);
            async move { gateway.serve(listener, None, std::future::pending(), Duration::ZERO).await }
        });
        Self { sims, spec, gateway, addr }
    }

    /// Serves another table from now on.
    pub(crate) fn apply(&mut self, change: impl FnOnce(&mut TableSpec)) {
        self.spec.revision += 1;
        change(&mut self.spec);
        self.gateway.apply(&self.spec).unwrap();
    }

    /// The same of a table in which only who gets what is another.
    pub(crate) fn reroute(&mut self, change: impl FnOnce(&mut TableSpec)) {
        self.spec.revision += 1;
        change(&mut self.spec);
        self.gateway.reroute(&self.spec).unwrap();
    }

    pub(crate) fn endpoints(&self) -> Vec<EndpointStatus> {
        let services = self.gateway.status().services;
        services.into_iter().flat_map(|it| it.versions).flat_map(|it| it.endpoints).collect()
    }

    /// The endpoint of an engine, wherever its version lists it.
    pub(crate) fn endpoint(&self, sim: usize) -> EndpointStatus {
        let url = self.sims[sim].url();
        self.endpoints().into_iter().find(|it| it.url == url).unwrap()
    }

    pub(crate) fn state(&self, sim: usize) -> State {
        self.endpoint(sim).state
    }

    pub(crate) fn totals(&self) -> Totals {
        self.gateway.status().totals
    }

    /// Requests that reached each engine, those of probes not counted.
    pub(crate) fn requests(&self) -> Vec<usize> {
        let ours = |sim: &Sim| {
            let log = sim.request_log();
            log.iter().filter(|it| !it.header("user-agent").is_some_and(|it| it.contains("probe"))).count()
        };
        self.sims.iter().map(ours).collect()
    }

    /// `from → to: reason` of every change of health so far.
    pub(crate) fn health_changes(&self) -> Vec<String> {
        let events = self.gateway.events_after(0).into_iter();
        let changes = events.filter_map(|event| match event.what {
            What::Health { from, to, reason, .. } => Some(format!("{from} → {to}: {reason}")),
            _ => None,
        });
        changes.collect()
    }

    /// Until the first tier of the service has its work.
    pub(crate) async fn until_primary(&self) {
        let first = || self.gateway.status().services[0].versions[0].tiers[0].stage;
        until("the first tier has its work", || first() == Stage::Primary).await;
    }

    pub(crate) async fn until_all(&self, state: State) {
        until(&format!("all {state}"), || self.endpoints().iter().all(|it| it.state == state)).await;
    }

    pub(crate) async fn until_state(&self, sim: usize, state: State) {
        until(&format!("endpoint {sim} {state}"), || self.state(sim) == state).await;
    }
}

/// A world whose first engine is none of ours: it answers everything but checks with the same bytes.
pub(crate) struct Raw {
    pub(crate) world: World,
    asked: Arc<AtomicUsize>,
}

impl Raw {
    /// Requests that reached it, those of checks not counted.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// The endpoint that answers `status`, `headers` (whole lines) and `body`, and `spares` engines behind it.
pub(crate) async fn with_raw(
    spares: usize,
    status: &str,
    headers: &str,
    body: &str,
    change: impl FnOnce(&mut ServiceSpec),
) -> Raw {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}connection: close\r\n\r\n{body}");
    tokio::spawn({
        let asked = Arc::clone(&asked);
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer_raw(stream, answer.clone(), Arc::clone(&asked)));
            }
        }
    });
    let mut sims = Vec::new();
    for _ in 0..spares {
        sims.push(Sim::start(SimConfig { log: 4096, ..SimConfig::default() }).await.unwrap());
    }
    let mut spec = service(&sims);
    let endpoints = &mut spec.versions[0].endpoints;
    for endpoint in &mut *endpoints {
        endpoint.priority += 1;
    }
    let target = addr.into();
    endpoints.insert(0, EndpointSpec::new(target, Engine::OpenAi));
    change(&mut spec);
    let world = World::serve(sims, vec![spec]).await;
    world.until_all(State::Healthy).await;
    Raw { world, asked }
}

async fn answer_raw(mut stream: TcpStream, answer: String, asked: Arc<AtomicUsize>) {
    const MODELS: &str = r#"{"data":[{"id":"chat"}]}"#;
    let mut request = Vec::new();
    let end = loop {
        if let Some(at) = request.windows(4).position(|it| it == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
            continue;
        }
        return;
    };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|it| it.lines().next()?.parse().ok());
    while request.len() < end + length.unwrap_or(0) {
        if !stream.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let reply = if head.starts_with("get ") && !path.starts_with("/v1/files") {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{MODELS}", MODELS.len())
    } else {
        asked.fetch_add(1, Ordering::SeqCst);
        answer
    };
    let _ = stream.write_all(reply.as_bytes()).await;
}
