//! The control API and the metrics, as an operator's tool uses them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::settings::SERVICE;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// An endpoint, as the API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) state: String,
    pub(crate) duty: String,
    pub(crate) weight: f64,
    pub(crate) in_flight: u64,
}

/// What is served, and what became of the requests so far.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) revision: u64,
    pub(crate) totals: Totals,
    services: Vec<Service>,
}

#[derive(Debug, Deserialize)]
struct Service {
    versions: Vec<Version>,
}

#[derive(Debug, Deserialize)]
struct Version {
    endpoints: Vec<Endpoint>,
}

/// Requests by how they ended.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) answered: u64,
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    pub(crate) cut: u64,
    pub(crate) cancelled: u64,
    pub(crate) retries: u64,
    pub(crate) failovers: u64,
}

impl Status {
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.services.iter().flat_map(|service| &service.versions).flat_map(|version| &version.endpoints)
    }
}

/// What is asked of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Drain,
    Isolate,
    Restore,
    Remove,
    Add,
}

/// Where the API is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admin(pub(crate) SocketAddr);

impl Admin {
    pub(crate) async fn status(self) -> Result<Status> {
        let body = self.ok(Method::GET, "/api/v1/services", None).await?;
        serde_json::from_slice(&body).context("the status is not as expected")
    }

    pub(crate) async fn metrics(self) -> Result<Metrics> {
        let page = self.ok(Method::GET, "/metrics", None).await?;
        Ok(Metrics::read(&String::from_utf8_lossy(&page)))
    }

    /// Changes what is wanted of an endpoint.
    ///
    /// # Errors
    ///
    /// It was not done.
    pub(crate) async fn order(self, order: Order, url: &str, weight: u32) -> Result<()> {
        let which = json!({"service": SERVICE, "url": url});
        let post = |action: &str| (Method::POST, format!("/api/v1/endpoints{action}"));
        let ((method, path), body) = match order {
            Order::Drain => (post("/drain"), Some(which)),
            Order::Isolate => (post("/isolate"), Some(which)),
            Order::Restore => (post("/restore"), Some(which)),
            Order::Add => {
                let endpoint = json!({"url": url, "engine": "sim", "weight": weight});
                (post(""), Some(json!({"service": SERVICE, "endpoint": endpoint})))
            }
            Order::Remove => {
                ((Method::DELETE, format!("/api/v1/endpoints?service={SERVICE}&url={url}")), None)
            }
        };
        self.ok(method, &path, body).await.map(drop)
    }

    async fn ok(self, method: Method, path: &str, body: Option<Value>) -> Result<Bytes> {
        let (status, answer) = request(self.0, method.clone(), path, body).await?;
        let text = String::from_utf8_lossy(&answer);
        ensure!((200..300).contains(&status), "{method} {path} answered {status}: {text:.300}");
        Ok(answer)
    }
}

/// Sends one request on a connection of its own: status and body.
pub(crate) async fn request(
    addr: SocketAddr,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(u16, Bytes)> {
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", addr.to_string())
        .header("content-type", "application/json")
        .body(Full::new(body))?;
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        connection.abort();
        Ok((status, body))
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("`{addr}{path}` gave no answer within {PATIENCE:?}"))?
}

/// What a page of metrics says.
#[derive(Debug, PartialEq)]
pub(crate) struct Metrics {
    /// Attempts that each endpoint has been blamed for, by URL.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Streams that were carried on by another endpoint.
    pub(crate) resumes: u64,
}

impl Metrics {
    fn read(page: &str) -> Self {
        let number = |line: &str| Some(line.rsplit(' ').next()?.parse::<f64>().ok()? as u64);
        let of = |name: &'static str| page.lines().filter(move |line| line.starts_with(name));
        let failed = of("backstop_attempts_total{").filter(|line| line.contains("outcome=\"failure\""));
        let failures = failed.filter_map(|line| {
            let url = line.split("endpoint=\"").nth(1)?.split('"').next()?;
            Some((url.to_owned(), number(line)?))
        });
        Self { failures: failures.collect(), resumes: of("backstop_resumes_total{").filter_map(number).sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read() {
        let page = r#"# TYPE backstop_attempts_total counter
backstop_attempts_total{service="s",version="v1",endpoint="http://127.0.0.1:1",outcome="success"} 5
backstop_attempts_total{service="s",version="v1",endpoint="http://127.0.0.1:1",outcome="failure"} 3
backstop_attempts_total{service="s",version="v1",endpoint="http://127.0.0.1:2",outcome="failure"} 0
backstop_attempts_total{service="s",version="v1",endpoint="http://127.0.0.1:2",outcome="neutral"} 7
backstop_resumes_total{service="s",version="v1",mode="continue"} 40
backstop_resumes_total{service="s",version="v1",mode="replay"} 2
"#;
        let failures = [("http://127.0.0.1:1".to_owned(), 3), ("http://127.0.0.1:2".to_owned(), 0)];
        assert_eq!(Metrics::read(page), Metrics { failures: BTreeMap::from(failures), resumes: 42 });
    }
}
