//! The control plane on a data plane that only remembers.

mod access;
mod account;
mod changes;
mod document;
mod events;
mod requests;
mod routes;
mod server;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use backstop_core::event::{Event, What};
use backstop_core::health::State;
use backstop_core::report::{DrillResult, Latencies, TrialReport};
use backstop_core::status::{DependencyState, EndpointStatus, ServiceStatus, Status, Totals, VersionStatus};
use backstop_core::table::{Duty, EndpointSpec, ServiceSpec, TableSpec, VersionSpec};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::broadcast;
use tower::ServiceExt;

use crate::{Control, DataPlane, StartError};

const FILE: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions:
      - { name: v1, endpoints: [{ url: \"http://h:1\" }, { url: \"http://h:2\" }] }
  - name: embed
    versions: [{ name: v1, endpoints: [{ url: \"http://h:1\" }] }]
";

/// Remembers what it was given.
pub(crate) struct Plane {
    tables: Mutex<Vec<TableSpec>>,
    refuses: AtomicBool,
    kept: Mutex<Vec<Event>>,
    sender: broadcast::Sender<Event>,
}

impl Plane {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tables: Mutex::default(),
            refuses: AtomicBool::new(false),
            kept: Mutex::default(),
            sender: broadcast::channel(16).0,
        })
    }

    fn table(&self) -> TableSpec {
        self.tables.lock().unwrap().last().unwrap().clone()
    }

    /// `url duty` of the endpoints of the first service.
    fn endpoints(&self) -> Vec<String> {
        let told = |duty| match duty {
            Duty::Active => "active",
            Duty::Draining => "draining",
            Duty::Isolated => "isolated",
        };
        let endpoints = &self.table().services[0].versions[0].endpoints;
        endpoints.iter().map(|it| format!("{} {}", it.target.url(), told(it.duty))).collect()
    }

    /// What happened, without table swaps.
    pub(crate) fn happened(&self) -> Vec<What> {
        self.kept.lock().unwrap().iter().map(|event| event.what.clone()).collect()
    }

    /// Forgets the oldest events.
    fn forget(&self, count: usize) {
        self.kept.lock().unwrap().drain(..count);
    }
}

impl DataPlane for Plane {
    fn try_version(&self, _: &str, _: &str) -> futures_util::future::BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn apply(&self, table: &TableSpec) -> Result<(), String> {
        if self.refuses.load(Relaxed) {
            return Err("no such certificate".to_owned());
        }
        self.tables.lock().unwrap().push(table.clone());
        Ok(())
    }

    fn status(&self) -> Status {
        let table = self.table();
        let endpoint = |it: &EndpointSpec| EndpointStatus {
            url: it.target.url(),
            state: State::Healthy,
            duty: it.duty,
            reason: String::new(),
            since_seconds: 0.0,
            weight: it.weight,
            priority: it.priority,
            region: None,
            in_flight: 0,
            requests: 0,
            breaker_open: false,
            ejected: false,
            resident_bytes: None,
            cpu_seconds: None,
        };
        let version = |it: &VersionSpec| VersionStatus {
            name: it.name.clone(),
            tiers: Vec::new(),
            endpoints: it.endpoints.iter().map(endpoint).collect(),
        };
        let service = |it: &ServiceSpec| ServiceStatus {
            name: it.name.clone(),
            stable: it.stable.clone(),
            versions: it.versions.iter().map(version).collect(),
            dependencies: Vec::new(),
        };
        let totals: Totals = serde_json::from_value(serde_json::json!({
            "requests": 0, "answered": 0, "refused": 0, "failed": 0, "cut": 0, "cancelled": 0, "retries": 0,
            "failovers": 0,
        }))
        .unwrap();
        let services = table.services.iter().map(service).collect();
        Status { revision: table.revision, totals, services }
    }

    fn metrics(&self) -> String {
        "up 1\n".to_owned()
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    fn events_after(&self, id: u64) -> Vec<Event> {
        self.kept.lock().unwrap().iter().filter(|event| event.id > id).cloned().collect()
    }

    fn emit(&self, what: What) {
        let mut kept = self.kept.lock().unwrap();
        let event = Event { id: kept.last().map_or(1, |last| last.id + 1), at: 0, what };
        kept.push(event.clone());
        // No subscriber is fine.
        let _ = self.sender.send(event);
    }

    fn force_dependency(&self, _: Option<&str>, name: &str, _: Option<DependencyState>) -> usize {
        usize::from(name == "a/b")
    }

    fn fail_back(&self, service: &str) -> Result<Vec<String>, String> {
        if service == "chat" {
            Ok(vec!["priority 0 of version `v1`".to_owned()])
        } else {
            Err(format!("nothing of `{service}` has moved to a standby"))
        }
    }

    fn trial_report(&self, _: &str) -> Option<TrialReport> {
        None
    }

    fn drilled(&self, _: &str, _: DrillResult) {}

    fn latencies(&self, _: &str, _: &str) -> Option<Latencies> {
        None
    }
}

/// A directory with a configuration file.
pub(crate) struct World {
    directory: PathBuf,
    pub(crate) plane: Arc<Plane>,
}

impl World {
    /// `text` with its state in the directory too.
    pub(crate) fn new(text: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("backstop-controller-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let world = Self { directory, plane: Plane::new() };
        world.write(text);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn write(&self, text: &str) {
        let state = self.path("state");
        std::fs::write(self.path("backstop.yaml"), format!("{text}\nstate_dir: {}\n", state.display()))
            .unwrap();
    }

    pub(crate) fn start(&self) -> Result<Arc<Control>, StartError> {
        let path: &Path = &self.path("backstop.yaml");
        let config = backstop_config::load(path).unwrap();
        Control::start(path, config, Arc::clone(&self.plane) as Arc<dyn DataPlane>).map(Arc::new)
    }

    fn router(&self) -> (Arc<Control>, Router) {
        let control = self.start().unwrap();
        (Arc::clone(&control), crate::api::router(control, Arc::default()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// An answer, read whole.
struct Reply {
    status: StatusCode,
    etag: Option<String>,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Status and code of an error, which must have a message.
    fn error(&self) -> (u16, String) {
        let json = self.json();
        assert!(json["error"]["message"].as_str().is_some_and(|it| !it.is_empty()), "{json}");
        (self.status.as_u16(), json["error"]["code"].as_str().unwrap().to_owned())
    }
}

/// A request from this machine; `headers` as `name: value`.
async fn ask(router: &Router, method: &str, path: &str, headers: &[&str], body: impl Into<Body>) -> Reply {
    let mut request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path);
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    if !headers.iter().any(|it| it.starts_with("host: ")) {
        request = request.header("host", "127.0.0.1:9090");
    }
    let response = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let etag = response.headers().get("etag").map(|it| it.to_str().unwrap().to_owned());
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
    Reply { status, etag, body }
}

async fn get(router: &Router, path: &str) -> Reply {
    ask(router, "GET", path, &[], Body::empty()).await
}

async fn post(router: &Router, path: &str, body: Value) -> Reply {
    ask(router, "POST", path, &["content-type: application/json"], body.to_string()).await
}
