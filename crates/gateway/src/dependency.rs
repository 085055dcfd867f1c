//! What services need besides model servers: watched, for readiness and operators.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use backstop_core::dependency::{Change, Dependency as Health};
use backstop_core::event::What;
use backstop_core::status::{DependencyState, DependencyStatus};
use backstop_core::table::{DependencyCheck, DependencySpec, Protocol, Target, TlsSpec};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use rand::RngExt;

use crate::discovery::Discovery;
use crate::events::Events;
use crate::tls::Trust;
use crate::upstream::{Connector, Exchange, Pool, UpstreamRequest};

/// The longest answer to a check that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// One dependency of one service; it outlives changes of the table.
pub(crate) struct Dependency {
    pub(crate) service: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) spec: ArcSwap<DependencySpec>,
    pub(crate) pool: Arc<Pool>,
    health: Mutex<Health>,
    events: Arc<Events>,
}

impl Dependency {
    pub(crate) fn new(
        service: Arc<str>,
        spec: &DependencySpec,
        connector: Connector,
        events: Arc<Events>,
    ) -> Self {
        Self {
            pool: Arc::new(Pool::new(connector).for_probes()),
            service,
            name: spec.name.as_str().into(),
            spec: ArcSwap::from_pointee(spec.clone()),
            health: Mutex::default(),
            events,
        }
    }

    pub(crate) fn state(&self) -> DependencyState {
        self.health().state()
    }

    pub(crate) fn status(&self) -> DependencyStatus {
        let health = self.health();
        DependencyStatus {
            name: self.name.to_string(),
            state: health.state(),
            reason: health.reason().to_owned(),
            forced: health.is_forced(),
        }
    }

    /// Sets the state, whatever the checks find; `None` gives it back to them.
    pub(crate) fn force(&self, state: Option<DependencyState>) {
        let change = self.health().force(state);
        self.publish(change);
    }

    fn observe(&self, found: Result<(), String>) {
        let change = self.health().observe(found, &self.spec.load());
        self.publish(change);
    }

    fn publish(&self, change: Option<Change>) {
        if let Some(Change { to, reason }) = change {
            let (service, name) = (self.service.to_string(), self.name.to_string());
            self.events.emit(What::Dependency { service, name, state: to, reason });
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to reach what `spec` asks to check.
pub(crate) fn connector(spec: &DependencySpec, discovery: &Discovery, trust: &Trust) -> Connector {
    let target = match &spec.check {
        DependencyCheck::Tcp { host, port } => {
            Target { host: host.clone(), port: *port, ..Target::default() }
        }
        DependencyCheck::Http { target, .. } => target.clone(),
    };
    let tls = trust.client(&target, Protocol::Auto, &TlsSpec::default());
    let host = discovery.host(&target.host);
    Connector::new(target, host, Protocol::Auto, tls)
}

/// Checks `dependency` for as long as the task lives.
pub(crate) async fn watch(dependency: Arc<Dependency>) {
    loop {
        let spec = dependency.spec.load_full();
        dependency.observe(check(&spec, &dependency.pool).await);
        let jittered = spec.interval.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::time::sleep(jittered).await;
    }
}

async fn check(spec: &DependencySpec, pool: &Arc<Pool>) -> Result<(), String> {
    let found = async {
        match &spec.check {
            DependencyCheck::Tcp { .. } => {
                pool.try_connect(spec.timeout).await.map_err(|error| error.to_string())
            }
            DependencyCheck::Http { target, path } => get(pool, target, path, spec.timeout).await,
        }
    };
    let late = || Err(format!("no answer within {:?}", spec.timeout));
    tokio::time::timeout(spec.timeout, found).await.unwrap_or_else(|_| late())
}

async fn get(pool: &Arc<Pool>, target: &Target, path: &str, timeout: Duration) -> Result<(), String> {
    let host = HeaderValue::from_str(&target.authority()).map_err(|error| error.to_string())?;
    let agent = HeaderValue::from_static(concat!("backstop-probe/", env!("CARGO_PKG_VERSION")));
    let headers = HeaderMap::from_iter([
        (header::HOST, host),
        (header::CONNECTION, HeaderValue::from_static("close")),
        (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        (header::USER_AGENT, agent),
    ]);
    let request =
        UpstreamRequest { method: Method::GET, target: path.to_owned(), headers, body: Bytes::new() };
    let answer = Exchange::send(pool, &request, timeout).await.map_err(|error| error.to_string())?;
    let status = answer.status;
    // A server that is cut off while it writes may log an error each time.
    drop(answer.exchange.collect(MAX_ANSWER).await);
    if status.is_success() { Ok(()) } else { Err(format!("answered {status}")) }
}
