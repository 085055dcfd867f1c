//! Loader for many open streams, each on a connection of its own.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::load::Case;
use crate::upstream::TOKEN;

/// Streams that may wait for their first token at once, so that no backlog overflows.
const OPENING: usize = 128;
/// How long all streams may take to open, or to get one more token beyond its pace.
const PATIENCE: Duration = Duration::from_secs(60);

/// Open streams; closed on drop.
pub(crate) struct Fleet {
    size: u32,
    counts: Arc<Counts>,
    _streams: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    /// Streams that have had their first token.
    first: AtomicU32,
    second: AtomicU32,
    dead: AtomicU32,
    /// Of all streams together.
    tokens: AtomicU64,
    why: Mutex<Option<String>>,
}

impl Fleet {
    /// Opens `size` streams and waits for every first token.
    pub(crate) async fn open(port: u16, size: u32) -> Result<Self> {
        let counts = Arc::new(Counts::default());
        let opening = Arc::new(Semaphore::new(OPENING));
        let mut streams = JoinSet::new();
        for _ in 0..size {
            let (counts, opening) = (Arc::clone(&counts), Arc::clone(&opening));
            streams.spawn(async move {
                // A stream is not meant to end: the loader closes it by dropping the task.
                let why = match follow(port, &counts, &opening).await {
                    Ok(()) => "closed by the proxy".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                counts.dead.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut first) = counts.why.lock() {
                    first.get_or_insert(why);
                }
            });
        }
        let fleet = Self { size, counts, _streams: streams };
        fleet.wait_for(&fleet.counts.first, "first", PATIENCE).await?;
        Ok(fleet)
    }

    /// Waits until every stream has had its second token, sent `pace` after the first.
    pub(crate) async fn second_token(&self, pace: Duration) -> Result<()> {
        self.wait_for(&self.counts.second, "second", pace + PATIENCE).await
    }

    /// Tokens that have come so far; an error once a stream has died.
    pub(crate) fn tokens(&self) -> Result<u64> {
        self.check_alive()?;
        Ok(self.counts.tokens.load(Ordering::Relaxed))
    }

    fn check_alive(&self) -> Result<()> {
        let (dead, size) = (self.counts.dead.load(Ordering::Relaxed), self.size);
        if dead > 0 {
            let why = self.counts.why.lock().ok().and_then(|why| why.clone()).unwrap_or_default();
            bail!("{dead} of {size} streams died, the first: {why}");
        }
        Ok(())
    }

    async fn wait_for(&self, count: &AtomicU32, token: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            self.check_alive()?;
            let (seen, size) = (count.load(Ordering::Relaxed), self.size);
            if seen == size {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "only {seen} of {size} streams had their {token} token in time"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Opens a stream and reads it until it ends.
async fn follow(port: u16, counts: &Counts, opening: &Semaphore) -> Result<()> {
    let permit = opening.acquire().await?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let body = Case::Paced.body();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: text/event-stream\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut scan = TokenScan::default();
    let mut text = Vec::with_capacity(1024);
    let mut seen = 0;
    while seen == 0 {
        let before = text.len();
        ensure!(stream.read_buf(&mut text).await? > 0, "closed before the first token: {}", start(&text));
        ensure!(text.len() < 12 || text.starts_with(b"HTTP/1.1 200"), "refused: {}", start(&text));
        seen = scan.count(&text[before..]);
    }
    drop(text);
    counts.first.fetch_add(1, Ordering::Relaxed);
    counts.tokens.fetch_add(seen, Ordering::Relaxed);
    drop(permit);
    let mut had_second = false;
    let mut buffer = [0; 1024];
    loop {
        if !had_second && seen >= 2 {
            had_second = true;
            counts.second.fetch_add(1, Ordering::Relaxed);
        }
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let new = scan.count(&buffer[..length]);
        seen += new;
        counts.tokens.fetch_add(new, Ordering::Relaxed);
    }
}

/// Finds tokens, also those that a read cuts in two.
#[derive(Default)]
struct TokenScan {
    /// Bytes of the token that have just been seen.
    matched: usize,
}

impl TokenScan {
    fn count(&mut self, text: &[u8]) -> u64 {
        let token = TOKEN.as_bytes();
        let mut found = 0;
        for byte in text {
            // The first byte of the token is in it only once, so nothing but that byte can begin another.
            let next = if *byte == token[self.matched] { self.matched + 1 } else { 0 };
            self.matched = if next == 0 { usize::from(*byte == token[0]) } else { next };
            if self.matched == token.len() {
                found += 1;
                self.matched = 0;
            }
        }
        found
    }
}

fn start(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(parts: &[&str], expected: u64) {
        let mut scan = TokenScan::default();
        let found: u64 = parts.iter().map(|part| scan.count(part.as_bytes())).sum();
        assert_eq!(found, expected, "{parts:?}");
    }

    #[test]
    fn tokens_are_found_wherever_reads_cut_them() {
        check(&["data: x token\n\ndata: y token"], 2);
        check(&["x to", "ken y", " token"], 2);
        check(&["  token"], 1);
        check(&[" to token"], 1);
        check(&["token", " toke", "", "n"], 1);
        check(&["tokens, no space"], 0);
    }

    #[test]
    fn the_first_byte_of_the_token_is_in_it_once() {
        let first = TOKEN.as_bytes()[0];
        assert_eq!(TOKEN.bytes().filter(|byte| *byte == first).count(), 1);
    }
}
