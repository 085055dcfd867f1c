//! Loader for open streams that are idle nearly all of the time.

use std::sync::atomic::{AtomicU32, Ordering};
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
    first: AtomicU32,
    second: AtomicU32,
    dead: AtomicU32,
    why: Mutex<Option<String>>,
}

impl Fleet {
    /// Opens `size` streams, each on a connection of its own, and waits for every first token.
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

    async fn wait_for(&self, count: &AtomicU32, token: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let (seen, dead) = (count.load(Ordering::Relaxed), self.counts.dead.load(Ordering::Relaxed));
            let size = self.size;
            if dead > 0 {
                let why = self.counts.why.lock().ok().and_then(|why| why.clone()).unwrap_or_default();
                bail!("{dead} of {size} streams died, the first: {why}");
            }
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
    let body = Case::Idle.body();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: text/event-stream\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut text = Vec::with_capacity(1024);
    while tokens(&text) < 1 {
        ensure!(stream.read_buf(&mut text).await? > 0, "closed before the first token: {}", start(&text));
        ensure!(text.len() < 12 || text.starts_with(b"HTTP/1.1 200"), "refused: {}", start(&text));
    }
    counts.first.fetch_add(1, Ordering::Relaxed);
    drop(permit);
    while tokens(&text) < 2 {
        ensure!(stream.read_buf(&mut text).await? > 0, "closed before the second token");
    }
    counts.second.fetch_add(1, Ordering::Relaxed);
    drop(text);
    let mut rest = [0; 512];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

fn tokens(text: &[u8]) -> usize {
    text.windows(TOKEN.len()).filter(|window| *window == TOKEN.as_bytes()).count()
}

fn start(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned()
}
