//! A version is sent back under load while nothing can be written to the store: how soon nobody is assigned to it any
//! more, and what clients notice.

use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::site::{Seen, Setup, follow};
use crate::measure::Spread;
use crate::results::Rollback;

const STREAMS: u32 = 100;
/// Of each stream: it outlives the rollback by far.
const TOKENS: u32 = 100;
/// Of small requests.
const CLIENTS: u32 = 32;
/// Between a client's requests.
const PAUSE: Duration = Duration::from_millis(10);
/// How long requests are watched after the order.
const WATCHED: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a replica. Small requests are to be quick, so that the last one that is assigned is known well.
const FIRST_TOKEN: Duration = Duration::from_millis(2);
const REPLICAS: usize = 2;

/// `backstop` is the program; its table has `others` endpoints of other services.
pub(super) async fn measure(backstop: &Path, rounds: u32, others: u32) -> Result<Rollback> {
    let config = |directory: &Path, replicas: &[u16]| config(directory, replicas, others);
    let setup = Setup::start(backstop, (REPLICAS, FIRST_TOKEN), TOKENS, config).await?;
    let expected = follow(setup.port, 0, &AtomicU32::new(0)).await?;
    let load = Load::start(setup.port);
    let mut figures = Vec::new();
    for _ in 0..rounds {
        figures.push(round(&setup, &load, &expected).await?);
    }
    let (requests, failed) = load.end().await;
    let spread = |value: fn(&Figures) -> f64| Spread::of(figures.iter().map(value)).context("no rounds");
    Ok(Rollback {
        rounds,
        endpoints: others + REPLICAS as u32,
        clients: CLIENTS,
        requests,
        failed,
        streams: STREAMS * rounds,
        whole: figures.iter().map(|it| it.whole).sum(),
        swap_ms: spread(|it| it.swap_ms)?,
        last_assigned_ms: spread(|it| it.last_assigned_ms)?,
        answered_ms: spread(|it| it.answered_ms)?,
    })
}

/// Of one rollback.
struct Figures {
    swap_ms: f64,
    last_assigned_ms: f64,
    answered_ms: f64,
    whole: u32,
}

fn config(directory: &Path, replicas: &[u16], others: u32) -> String {
    let directory = directory.display();
    let mut text = format!("store: \"sqlite:{directory}/bench.db\"\nstate_dir: \"{directory}\"\nservices:\n");
    let version = |name: &str, port: u16| {
        format!(
            "      - {{ name: {name}, endpoints: [{{ url: \"http://127.0.0.1:{port}\", engine: sim }}] }}\n"
        )
    };
    text += &format!(
        "  - name: bench\n    stable: v1\n    versions:\n{}{}    release: {{ steps: [{{ weight: 50%, hold: 1h }}, \
         {{ weight: 100% }}], alpha: 0.000001, verify: 1s }}\n",
        version("v1", replicas[0]),
        version("v2", replicas[1])
    );
    for service in 0..others / REPLICAS as u32 {
        // Nothing fails to be written to a text.
        let _ = writeln!(text, "  - name: other-{service}\n    health: {{ interval: 60s }}\n    versions:");
        let _ = writeln!(text, "      - name: v1\n        endpoints:");
        for port in replicas {
            let _ = writeln!(text, "          - {{ url: \"http://127.0.0.1:{port}\", engine: sim }}");
        }
    }
    text
}

async fn round(setup: &Setup, load: &Load, expected: &Seen) -> Result<Figures> {
    let admin = Admin::new(setup.admin);
    admin.ask(Method::POST, "releases", &json!({ "to": "v2", "again": true })).await?;
    admin.until(|release| release["phase"] == "step 1").await?;
    let deadline = Instant::now() + PATIENCE;
    while !load.take().iter().any(|seen| seen.is_sent_back) {
        ensure!(Instant::now() < deadline, "v2 gets no traffic");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let flowing = Arc::new(AtomicU32::new(0));
    let mut streams = JoinSet::new();
    for session in 0..STREAMS {
        let (port, flowing) = (setup.port, Arc::clone(&flowing));
        streams.spawn(async move { follow(port, session, &flowing).await });
    }
    while flowing.load(Ordering::Relaxed) < STREAMS {
        ensure!(Instant::now() < deadline, "not all streams have begun in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // Nothing is written while somebody else writes.
    let lock = Connection::open(setup.scratch.path().join("bench.db"))?;
    lock.busy_timeout(PATIENCE)?;
    lock.execute_batch("BEGIN IMMEDIATE")?;
    let ordered = Instant::now();
    let order = tokio::spawn(async move {
        admin.ask(Method::POST, "rollback", &json!({ "reason": "measured" })).await?;
        anyhow::Ok((admin, ordered.elapsed()))
    });
    tokio::time::sleep(WATCHED).await;
    let swap_ms = setup.metric("backstop_table_swap_seconds").await? * 1e3;
    let last = load.take().into_iter().filter(|seen| seen.is_sent_back && seen.begun >= ordered);
    let last_assigned = last.map(|seen| seen.begun - ordered).max().unwrap_or_default();
    let (admin, answered) = order.await??;
    lock.execute_batch("ROLLBACK")?;
    admin.until(|release| release["ended"] == true).await?;

    let seen: Vec<Result<Seen>> = streams.join_all().await;
    let is_whole = |seen: &&Seen| seen.done && seen.text == expected.text;
    let whole = seen.iter().flatten().filter(is_whole).count() as u32;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    Ok(Figures { swap_ms, last_assigned_ms: ms(last_assigned), answered_ms: ms(answered), whole })
}

/// The control API, as far as it is about the releases of the service.
struct Admin {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Admin {
    fn new(port: u16) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, base: format!("http://127.0.0.1:{port}/api/v1/services/bench") }
    }

    async fn ask(&self, method: Method, what: &str, body: &Value) -> Result<Value> {
        let body = if method == Method::GET { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/{what}", self.base))
            .header("content-type", "application/json")
            .body(Full::new(body.into()))?;
        let answer = self.client.request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "`{what}` answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    async fn until(&self, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let release = self.ask(Method::GET, "release", &Value::Null).await?;
            if is_so(&release) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the release stays in `{}`", release["phase"]);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Clients that ask again and again, each time as another one.
struct Load {
    answers: Arc<Mutex<Vec<Answer>>>,
    failed: Arc<AtomicU32>,
    requests: Arc<AtomicU32>,
    ended: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

/// What came of a request.
struct Answer {
    begun: Instant,
    /// It came from the version that is sent back.
    is_sent_back: bool,
}

impl Load {
    fn start(port: u16) -> Self {
        let mut load = Self {
            answers: Arc::default(),
            failed: Arc::default(),
            requests: Arc::default(),
            ended: Arc::default(),
            clients: JoinSet::new(),
        };
        for client in 0..CLIENTS {
            let (answers, failed) = (Arc::clone(&load.answers), Arc::clone(&load.failed));
            let (requests, ended) = (Arc::clone(&load.requests), Arc::clone(&load.ended));
            load.clients.spawn(async move {
                let http = Client::builder(TokioExecutor::new()).build_http();
                for number in 0_u32.. {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let begun = Instant::now();
                    requests.fetch_add(1, Ordering::Relaxed);
                    match ask(&http, port, &format!("{client}-{number}")).await {
                        Ok(is_sent_back) => {
                            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                            answers.push(Answer { begun, is_sent_back });
                        }
                        Err(error) => {
                            if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                                eprintln!("  the first request that failed: {error:#}");
                            }
                        }
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        load
    }

    /// Answers since the last time.
    fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many requests there were, and how many of them failed.
    async fn end(self) -> (u32, u32) {
        self.ended.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        (self.requests.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// One small answer; whether it came from the version that is sent back.
async fn ask(client: &Client<HttpConnector, Full<Bytes>>, port: u16, session: &str) -> Result<bool> {
    const BODY: &str = r#"{"model":"bench","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .header("content-type", "application/json")
        .header("x-session-id", session)
        .body(Full::new(Bytes::from_static(BODY.as_bytes())))?;
    let answer = client.request(request).await?;
    let (status, version) = (answer.status(), answer.headers().get("x-backstop-version").cloned());
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{status}");
    let answer: Value = serde_json::from_slice(&body)?;
    ensure!(answer["choices"][0]["finish_reason"].is_string(), "not a whole answer");
    Ok(version.is_some_and(|version| version == "v2"))
}
