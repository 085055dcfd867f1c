use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use super::engine_metrics::EngineMetrics;
use crate::endpoint::Settings;
use crate::upstream::{Exchange, Pool, SendError, UpstreamRequest, WireError};

/// The longest answer that a probe reads, in bytes; vLLM's metrics are about 100 KiB.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Probes one endpoint, each time over a new connection: that it can be opened is part of the check.
pub(super) struct Client {
    pool: Arc<Pool>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("{0}")]
    Body(#[from] WireError),
    #[error("the answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
}

impl Client {
    pub(super) fn new(pool: &Pool) -> Self {
        Self { pool: Arc::new(pool.for_probes()) }
    }

    pub(super) async fn get(&self, path: &str, settings: &Settings) -> Result<Answer, ProbeError> {
        self.send(Method::GET, path, Bytes::new(), settings, settings.health.timeout).await
    }

    pub(super) async fn post(
        &self,
        path: &str,
        body: &Value,
        settings: &Settings,
        timeout: Duration,
    ) -> Result<Answer, ProbeError> {
        self.send(Method::POST, path, Bytes::from(body.to_string()), settings, timeout).await
    }

    /// `None` if the engine has no metrics, or none that are known.
    pub(super) async fn engine_metrics(&self, settings: &Settings) -> Option<EngineMetrics> {
        if !EngineMetrics::expected_of(settings.spec.engine) {
            return None;
        }
        let answer = self.get("/metrics", settings).await.ok()?;
        let text = std::str::from_utf8(&answer.body).ok().filter(|_| answer.status.is_success())?;
        Some(EngineMetrics::parse(text))
    }

    pub(super) async fn port_is_open(&self) -> bool {
        self.pool.try_connect(Duration::from_secs(1)).await.is_ok()
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        settings: &Settings,
        timeout: Duration,
    ) -> Result<Answer, ProbeError> {
        let json = HeaderValue::from_static("application/json");
        let agent = HeaderValue::from_static(concat!("backstop-probe/", env!("CARGO_PKG_VERSION")));
        let mut headers = HeaderMap::from_iter([
            (header::HOST, settings.host.clone()),
            (header::CONNECTION, HeaderValue::from_static("close")),
            (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            (header::CONTENT_TYPE, json),
            (header::USER_AGENT, agent),
        ]);
        if let Some(credentials) = &settings.credentials {
            headers.insert(header::AUTHORIZATION, credentials.clone());
        }
        let target = format!("{}{path}", self.pool.connector().target().base_path);
        let request = UpstreamRequest { method, target, headers, body };
        let exchange = async {
            let answer = Exchange::send(&self.pool, &request, timeout).await?;
            let body = answer.exchange.collect(MAX_ANSWER).await?.ok_or(ProbeError::TooLong)?;
            Ok(Answer { status: answer.status, body })
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(ProbeError::Timeout(timeout)))
    }
}
