//! Closed-loop load by wrk, and single checked requests.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};

use crate::peer::START;
use crate::upstream;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Case {
    /// Small chat completions
    Plain,
    /// Streams of 100 chunks, unpaced
    Sse100,
    /// 1,000 open streams with 20 tokens a second each
    Paced,
    /// 1,000 open streams with a token now and then
    Idle1000,
    /// 9,000 open streams with a token now and then
    Idle9000,
}

impl Case {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Sse100 => "sse100",
            Self::Paced => "paced",
            Self::Idle1000 => "idle1000",
            Self::Idle9000 => "idle9000",
        }
    }

    /// Whether wrk drives it: a new request as soon as one is answered.
    pub(crate) fn is_closed_loop(self) -> bool {
        matches!(self, Self::Plain | Self::Sse100)
    }

    pub(crate) fn body(self) -> &'static str {
        match self {
            Self::Plain => {
                r#"{"model":"bench","messages":[{"role":"user","content":"Say hello to the benchmark."}],"max_tokens":16}"#
            }
            _ => {
                r#"{"model":"bench","messages":[{"role":"user","content":"Say hello to the benchmark."}],"max_tokens":100,"stream":true}"#
            }
        }
    }

    /// Client connections of a full run.
    pub(crate) fn connections(self) -> u32 {
        match self {
            Self::Plain => 32,
            Self::Sse100 => 16,
            Self::Paced | Self::Idle1000 => 1_000,
            Self::Idle9000 => 9_000,
        }
    }

    /// Bytes of the body of an answer as the upstream sends it, transfer coding not counted; of one
    /// chunk where the answer has no end.
    pub(crate) fn answer_len(self) -> usize {
        match self {
            Self::Plain => upstream::chat_len(),
            Self::Sse100 => upstream::stream_len(),
            Self::Paced | Self::Idle1000 | Self::Idle9000 => upstream::token_len(),
        }
    }
}

/// What one wrk run saw.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    bytes: u64,
    duration_us: u64,
    connect: u64,
    read: u64,
    write: u64,
    status: u64,
    timeout: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Outcome {
    fn errors(&self) -> u64 {
        self.connect + self.read + self.write + self.status + self.timeout
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.duration_us as f64 / 1e6
    }

    /// What is wrong, if anything.
    pub(crate) fn problem(&self, case: Case) -> Option<String> {
        if self.requests == 0 {
            return Some("no request was answered".to_owned());
        }
        if self.errors() > 0 {
            let Self { connect, read, write, status, timeout, .. } = self;
            return Some(format!(
                "errors: connect {connect}, read {read}, write {write}, status {status}, timeout {timeout}"
            ));
        }
        // Heads and transfer coding come on top. A peer may write events anew and leave out empty fields,
        // which saves a fifth at most.
        let (length, least) = (self.bytes / self.requests, case.answer_len() as u64 * 3 / 4);
        (length < least).then(|| format!("answers of {length} bytes on average, at least {least} expected"))
    }
}

/// How hard wrk is to press one peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pressure {
    pub(crate) connections: u32,
    pub(crate) seconds: u64,
    /// After which an answer counts as an error.
    pub(crate) patience_seconds: u64,
}

/// Runs wrk against `port`.
pub(crate) async fn drive(
    wrk: &Path,
    directory: &Path,
    case: Case,
    port: u16,
    pressure: Pressure,
) -> Result<Outcome> {
    let script = directory.join(format!("{}.lua", case.name()));
    fs::write(&script, lua(case))?;
    let Pressure { connections, seconds, patience_seconds } = pressure;
    let output = tokio::process::Command::new(wrk)
        .args(["-t1", "--latency"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{seconds}s"))
        .args(["--timeout", &format!("{patience_seconds}s")])
        .arg("-s")
        .arg(&script)
        .arg(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("can't start `wrk`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(line) = text.lines().find_map(|line| line.strip_prefix("BENCH ")) else {
        bail!("wrk gave no result: {} {}", text.trim(), String::from_utf8_lossy(&output.stderr).trim());
    };
    serde_json::from_str(line).with_context(|| format!("unexpected result of wrk: `{line}`"))
}

/// No `response` function: wrk would call it for each answer and become the bottleneck.
fn lua(case: Case) -> String {
    format!(
        r#"wrk.method = "POST"
wrk.body = '{body}'
wrk.headers["Content-Type"] = "application/json"
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('BENCH {{"requests":%d,"bytes":%d,"duration_us":%d,"connect":%d,"read":%d,"write":%d,' ..
    '"status":%d,"timeout":%d,"p50_us":%d,"p99_us":%d}}\n', summary.requests, summary.bytes, summary.duration,
    e.connect, e.read, e.write, e.status, e.timeout, latency:percentile(50), latency:percentile(99)))
end
"#,
        body = case.body()
    )
}

/// Sends single requests and looks at the whole answer.
pub(crate) struct Prober {
    client: Client<HttpConnector, Full<Bytes>>,
    port: u16,
}

impl Prober {
    pub(crate) fn new(port: u16) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), port }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<()> {
        self.send(Method::GET, path, "").await.map(drop)
    }

    pub(crate) async fn post(&self, path: &str, body: &'static str) -> Result<()> {
        self.send(Method::POST, path, body).await.map(drop)
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        Ok(String::from_utf8(self.send(Method::GET, path, "").await?.into())?)
    }

    /// Waits until `path` is answered well.
    pub(crate) async fn until_ready(&self, path: &str) -> Result<()> {
        let deadline = Instant::now() + START;
        while let Err(error) = self.get(path).await {
            ensure!(Instant::now() < deadline, "`{path}` is not answered within {START:?}: {error:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Whether one request of this case is answered in full. A stream of the other cases never ends, so
    /// a plain request stands for it here; the loader checks each stream itself.
    pub(crate) async fn check(&self, case: Case) -> Result<()> {
        let case = if case.is_closed_loop() { case } else { Case::Plain };
        let body = self.send(Method::POST, "/v1/chat/completions", case.body()).await?;
        check_answer(case, std::str::from_utf8(&body)?)
    }

    async fn send(&self, method: Method, path: &str, body: &'static str) -> Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}{path}", self.port))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(body.as_bytes())))?;
        let answer = self.client.request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "`{path}` answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}

fn check_answer(case: Case, body: &str) -> Result<()> {
    if case == Case::Plain {
        let answer: serde_json::Value = serde_json::from_str(body)?;
        let content = answer.pointer("/choices/0/message/content").and_then(serde_json::Value::as_str);
        ensure!(content.is_some_and(|content| !content.is_empty()), "not a chat completion: `{body}`");
        return Ok(());
    }
    let tokens = body.matches(upstream::TOKEN).count();
    ensure!(tokens == upstream::CHUNKS - 2, "{tokens} tokens, {} expected", upstream::CHUNKS - 2);
    ensure!(body.contains(r#""finish_reason":"stop""#), "the stream has no finish reason");
    ensure!(body.trim_end().ends_with("data: [DONE]"), "the stream has no `[DONE]`");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_of_the_documented_size() {
        for case in [Case::Plain, Case::Sse100] {
            serde_json::from_str::<serde_json::Value>(case.body()).unwrap();
        }
        assert!((100..=120).contains(&Case::Plain.body().len()), "{}", Case::Plain.body().len());
    }

    #[test]
    fn outcomes() {
        let outcome = |json: &str| -> Outcome { serde_json::from_str(json).unwrap() };
        let line = |requests: u64, bytes: u64, read: u64| {
            outcome(&format!(
                r#"{{"requests":{requests},"bytes":{bytes},"duration_us":1,"connect":0,"read":{read},"write":0,
                "status":0,"timeout":0,"p50_us":1,"p99_us":2}}"#
            ))
        };
        assert_eq!(line(10, 4_000, 0).problem(Case::Plain), None);
        assert!(line(0, 0, 0).problem(Case::Plain).is_some());
        assert!(line(10, 4_000, 1).problem(Case::Plain).is_some());
        assert!(line(10, 4_000, 0).problem(Case::Sse100).is_some());
    }

    #[test]
    fn truncated_streams_are_refused() {
        let tokens = "data: {\"x\":\" token\"}\n\n".repeat(98);
        let whole = format!("{tokens}data: {{\"finish_reason\":\"stop\"}}\n\ndata: [DONE]\n\n");
        assert!(check_answer(Case::Sse100, &whole).is_ok());
        assert!(check_answer(Case::Sse100, &whole[..whole.len() - 14]).is_err());
        assert!(check_answer(Case::Sse100, &whole[22..]).is_err());
    }
}
