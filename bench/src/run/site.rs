//! A Backstop of a measurement's own, with simulated replicas, and the clients that read streams from it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::child::{self, Child, Scratch};
use crate::load::Prober;

/// Of a replica.
pub(super) const PER_TOKEN: Duration = Duration::from_millis(50);

/// Backstop and replicas; ended on drop.
pub(super) struct Setup {
    _backstop: Child,
    pub(super) replicas: Vec<Child>,
    pub(super) scratch: Scratch,
    pub(super) port: u16,
    pub(super) admin: u16,
}

impl Setup {
    /// `program` has the replicas in it too. `config` gives what follows the listeners, from the directory and the ports of the
    /// replicas.
    pub(super) async fn start(
        program: &Path,
        (replicas, first_token): (usize, Duration),
        tokens: u32,
        config: impl FnOnce(&Path, &[u16]) -> String,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let (port, admin) = (child::free_port()?, child::free_port()?);
        let (mut children, mut ports) = (Vec::new(), Vec::new());
        for number in 0..replicas {
            let port = child::free_port()?;
            let (first, next) = (first_token.as_millis(), PER_TOKEN.as_millis());
            let args = format!(
                "engine-sim --listen 127.0.0.1:{port} --tokens {tokens} --ttft {first}ms --itl {next}ms"
            );
            children.push(start(program, &args, &scratch, &format!("replica-{number}"))?);
            Prober::new(port).until_ready("/health").await?;
            ports.push(port);
        }
        let file = format!(
            "listen: 127.0.0.1:{port}\nadmin: {{ listen: 127.0.0.1:{admin} }}\n{}",
            config(scratch.path(), &ports)
        );
        let path = scratch.path().join("backstop.yaml");
        fs::write(&path, file)?;
        let args = format!("serve --access-log off -c {}", path.display());
        let backstop = start(program, &args, &scratch, "backstop")?;
        Prober::new(port).until_ready("/health/readiness").await?;
        Ok(Self { _backstop: backstop, replicas: children, scratch, port, admin })
    }

    /// The sum of a metric over its labels.
    pub(super) async fn metric(&self, name: &str) -> Result<f64> {
        let page = Prober::new(self.admin).text("/metrics").await?;
        let is_meant = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values = page.lines().filter(is_meant);
        Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

fn start(program: &Path, args: &str, scratch: &Scratch, name: &str) -> Result<Child> {
    let args: Vec<_> = args.split_whitespace().map(Into::into).collect();
    Child::spawn(program, &args, &[], &[], scratch.path().join(format!("{name}.log")))
}

/// What a client saw of a stream.
pub(super) struct Seen {
    pub(super) first_token: Duration,
    /// The longest silence after its first token.
    pub(super) gap: Duration,
    pub(super) text: String,
    pub(super) done: bool,
}

/// Reads one stream of the session `session` to its end.
pub(super) async fn follow(port: u16, session: u32, flowing: &AtomicU32) -> Result<Seen> {
    const BODY: &str = r#"{"model":"bench","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\
         x-session-id: stream-{session}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let (mut answer, mut last, mut first_token, mut gap) = (Vec::new(), begun, None, Duration::ZERO);
    while stream.read_buf(&mut answer).await? > 0 {
        let now = Instant::now();
        if first_token.is_some() {
            gap = gap.max(now - last);
        } else if contents(&answer).next().is_some() {
            first_token = Some(now - begun);
            flowing.fetch_add(1, Ordering::Relaxed);
        }
        last = now;
    }
    let text = contents(&answer).collect();
    let done = answer.windows(12).any(|part| part == b"data: [DONE]");
    Ok(Seen { first_token: first_token.context("nothing came")?, gap, text, done })
}

/// Pieces of text in an answer, whatever the framing of its body: an event is never cut by a chunk of ours.
fn contents(answer: &[u8]) -> impl Iterator<Item = String> {
    let lines = answer.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data: "));
    lines.filter_map(|data| {
        let chunk: serde_json::Value = serde_json::from_slice(data).ok()?;
        let text = chunk["choices"][0]["delta"]["content"].as_str()?;
        (!text.is_empty()).then(|| text.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_in_events() {
        let answer =
            b"HTTP/1.1 200 OK\r\n\r\n2c\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\n\r\n\
            2d\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a \"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        assert_eq!(contents(answer).collect::<String>(), "a b");
    }
}
