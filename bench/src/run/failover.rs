//! One of several replicas dies under many streams: how many are whole in the end, and how long they stood still.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::child::{self, Child, Scratch};
use crate::load::Prober;
use crate::results::Failover;

const REPLICAS: usize = 4;
/// Of a replica.
const FIRST_TOKEN: Duration = Duration::from_millis(200);
const PER_TOKEN: Duration = Duration::from_millis(50);
/// Of each answer.
const TOKENS: u32 = 200;
/// How long all streams flow before the replica dies.
const CALM: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client saw.
struct Seen {
    first_token: Duration,
    /// The longest silence after its first token.
    gap: Duration,
    text: String,
    done: bool,
}

/// `backstop` is the program, which has the replicas in it too.
pub(super) async fn measure(backstop: &Path, streams: u32) -> Result<Failover> {
    let scratch = Scratch::new()?;
    let (port, admin) = (child::free_port()?, child::free_port()?);
    let mut replicas = Vec::new();
    let mut endpoints = String::new();
    for number in 0..REPLICAS {
        let port = child::free_port()?;
        let (first, next) = (FIRST_TOKEN.as_millis(), PER_TOKEN.as_millis());
        let args =
            format!("engine-sim --listen 127.0.0.1:{port} --tokens {TOKENS} --ttft {first}ms --itl {next}ms");
        replicas.push(start(backstop, &args, &scratch, &format!("replica-{number}"))?);
        Prober::new(port).until_ready("/health").await?;
        endpoints += &format!("          - {{ url: \"http://127.0.0.1:{port}\", engine: sim }}\n");
    }
    let config = scratch.path().join("failover.yaml");
    let file = format!(
        "listen: 127.0.0.1:{port}\nadmin: {{ listen: 127.0.0.1:{admin} }}\nstore: \"memory:\"\nstate_dir: \"{}\"\n\
         services:\n  - name: bench\n    balance: round_robin\n    versions:\n      - name: v1\n        endpoints:\n{endpoints}",
        scratch.path().display()
    );
    fs::write(&config, file)?;
    let args = format!("serve --access-log off -c {}", config.display());
    let _backstop = start(backstop, &args, &scratch, "failover")?;
    Prober::new(port).until_ready("/health/readiness").await?;

    let expected = follow(port, &AtomicU32::new(0)).await?;
    ensure!(expected.done, "a stream of a healthy replica is not whole");
    let flowing = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        let flowing = Arc::clone(&flowing);
        clients.spawn(async move { follow(port, &flowing).await });
    }
    let deadline = Instant::now() + PATIENCE;
    while flowing.load(Ordering::Relaxed) < streams {
        ensure!(Instant::now() < deadline, "not all streams have begun in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(CALM).await;
    replicas[0].kill()?;
    let seen: Vec<Result<Seen>> = clients.join_all().await;
    let seen: Vec<Seen> = seen.into_iter().flatten().collect();
    let resumed = resumes(admin).await?;
    Ok(summary(streams, resumed, &seen, &expected))
}

fn summary(streams: u32, resumed: u32, seen: &[Seen], expected: &Seen) -> Failover {
    let whole = seen.iter().filter(|seen| seen.done && seen.text == expected.text).count();
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    // Those that were carried on stood still for longer than any other.
    let mut gaps: Vec<f64> = seen.iter().map(|seen| ms(seen.gap)).collect();
    gaps.sort_by(|a, b| b.total_cmp(a));
    gaps.truncate(resumed as usize);
    gaps.reverse();
    let at = |sorted: &[f64], share: f64| {
        let place = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
        sorted.get(place).copied().unwrap_or_default()
    };
    Failover {
        replicas: REPLICAS as u32,
        streams,
        whole: whole as u32,
        resumed,
        first_token_ms: ms(expected.first_token),
        per_token_ms: ms(PER_TOKEN),
        gap_p50_ms: at(&gaps, 0.5),
        gap_p99_ms: at(&gaps, 0.99),
        gap_max_ms: at(&gaps, 1.0),
    }
}

fn start(program: &Path, args: &str, scratch: &Scratch, name: &str) -> Result<Child> {
    let args: Vec<_> = args.split_whitespace().map(Into::into).collect();
    Child::spawn(program, &args, &[], &[], scratch.path().join(format!("{name}.log")))
}

/// Reads one stream to its end.
async fn follow(port: u16, flowing: &AtomicU32) -> Result<Seen> {
    const BODY: &str = r#"{"model":"bench","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
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

/// Streams that Backstop has carried on, by its metrics.
async fn resumes(admin: u16) -> Result<u32> {
    let page = Prober::new(admin).text("/metrics").await?;
    let counts = page.lines().filter(|line| line.starts_with("backstop_resumes_total{"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum::<f64>() as u32)
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

    #[test]
    fn only_streams_that_were_carried_on_have_gaps_to_speak_of() {
        let seen = |gap: u64, text: &str| Seen {
            first_token: Duration::from_millis(200),
            gap: Duration::from_millis(gap),
            text: text.to_owned(),
            done: true,
        };
        let all = [seen(60, "a"), seen(260, "a"), seen(50, "a"), seen(240, "a"), seen(250, "b")];
        let result = summary(5, 3, &all, &seen(50, "a"));
        assert_eq!((result.whole, result.resumed), (4, 3));
        assert_eq!((result.gap_p50_ms, result.gap_max_ms, result.first_token_ms), (250.0, 260.0, 200.0));
    }
}
