//! Clients that stream, one request after the other, and judge each answer as an SDK would.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use serde::Serialize;
use tokio::task::JoinSet;

use super::SharedCounts;
use crate::client;

/// The longest a whole request may take; anything slower would be a hang.
const REQUEST: Duration = Duration::from_secs(60);

/// How requests ended.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    /// Streamed to `[DONE]`.
    pub(crate) answered: u64,
    /// No answer at all, or an error in its place.
    pub(crate) failed: u64,
    /// Ended in the middle with a valid error event.
    pub(crate) cut: u64,
    /// Ended in the middle without one: what must never happen.
    pub(crate) truncated: u64,
    /// Answered by another replica than the first one tried.
    pub(crate) failovers: u64,
    /// Pieces of text received.
    pub(crate) tokens: u64,
}

pub(super) struct Load {
    counts: SharedCounts,
    stopping: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    pub(super) fn start(addr: SocketAddr, clients: usize) -> Self {
        let (counts, stopping) = (SharedCounts::default(), Arc::new(AtomicBool::new(false)));
        let mut set = JoinSet::new();
        for client in 0..clients {
            let (counts, stopping) = (Arc::clone(&counts), Arc::clone(&stopping));
            set.spawn(async move {
                let mut turn = 0;
                while !stopping.load(Relaxed) {
                    let stream = stream(addr, client, turn);
                    let ended =
                        tokio::time::timeout(REQUEST, stream).await.unwrap_or(Ended::Truncated { tokens: 0 });
                    count(&counts, ended);
                    turn += 1;
                }
            });
        }
        Self { counts, stopping, clients: set }
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the requests in flight end.
    pub(super) async fn stop(mut self) -> Counts {
        self.stopping.store(true, Relaxed);
        while self.clients.join_next().await.is_some() {}
        self.counts()
    }
}

enum Ended {
    Answered { tokens: u64, attempts: u32 },
    Failed,
    Cut { tokens: u64 },
    Truncated { tokens: u64 },
}

fn count(counts: &SharedCounts, ended: Ended) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    counts.requests += 1;
    match ended {
        Ended::Answered { tokens, attempts } => {
            counts.answered += 1;
            counts.tokens += tokens;
            counts.failovers += u64::from(attempts > 1);
        }
        Ended::Failed => counts.failed += 1,
        Ended::Cut { tokens } => {
            counts.cut += 1;
            counts.tokens += tokens;
        }
        Ended::Truncated { tokens } => {
            counts.truncated += 1;
            counts.tokens += tokens;
        }
    }
}

async fn stream(addr: SocketAddr, client: usize, turn: u64) -> Ended {
    let prompt = format!("Client {client}, question {turn}: what keeps a service up?");
    let body = serde_json::json!({
        "model": "demo",
        "stream": true,
        "max_tokens": 40,
        "messages": [{ "role": "user", "content": prompt }],
    });
    let request = Request::post("/v1/chat/completions")
        .header("host", addr.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())));
    let Ok(request) = request else { return Ended::Failed };
    let Ok(response) = client::send(addr, request).await else { return Ended::Failed };
    if response.status() != 200 {
        return Ended::Failed;
    }
    let attempts = response.headers().get("x-backstop-attempts");
    let attempts = attempts.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(1);
    read(response.into_body(), attempts).await
}

async fn read(mut body: hyper::body::Incoming, attempts: u32) -> Ended {
    let (mut tokens, mut text) = (0, Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            text.extend_from_slice(&data);
        }
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            let Some(data) = event.strip_prefix(b"data: ").map(|data| data.trim_ascii_end()) else {
                continue;
            };
            if data == b"[DONE]" {
                return Ended::Answered { tokens, attempts };
            }
            let Ok(event) = serde_json::from_slice::<serde_json::Value>(data) else {
                return Ended::Truncated { tokens };
            };
            if event.pointer("/error/message").is_some() {
                return Ended::Cut { tokens };
            }
            tokens +=
                u64::from(event.pointer("/choices/0/delta/content").is_some_and(|content| content != ""));
        }
    }
    Ended::Truncated { tokens }
}
