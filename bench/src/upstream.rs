//! The upstream: constant answers over plain sockets.
//!
//! It speaks just enough HTTP/1.1 to be cheap, since load, proxy and upstream share the machine's cores.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::MissedTickBehavior;

/// Chunks of a stream, `[DONE]` not counted.
pub(crate) const CHUNKS: usize = 100;
/// In every token's text and nowhere else. A digit follows: some proxies take a stream that says the same
/// a hundred times for a model gone wrong.
pub(crate) const TOKEN: &str = " token";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Milliseconds between the tokens of an endless stream; 0 sends 100 chunks at once
    #[arg(long, default_value_t = 0)]
    pace_ms: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = listen(args.listen)?;
        let answers = Arc::new(Answers::new());
        let pace = (args.pace_ms > 0).then(|| Duration::from_millis(args.pace_ms));
        loop {
            let (stream, _) = listener.accept().await?;
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                let _ = converse(stream, &answers, pace).await;
            });
        }
    })
}

/// A listener with a backlog that takes thousands of connections opened at once.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

/// Every response, ready to be written.
struct Answers {
    chat: Vec<u8>,
    head: Vec<u8>,
    role: Vec<u8>,
    /// Sent in turns.
    tokens: [Vec<u8>; 10],
    finish: Vec<u8>,
    done: Vec<u8>,
    health: Vec<u8>,
    models: Vec<u8>,
    metrics: Vec<u8>,
    missing: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let models = r#"{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"bench"}]}"#;
        let metrics = "vllm:num_requests_running{model_name=\"bench\"} 0\n\
                       vllm:num_requests_waiting{model_name=\"bench\"} 0\n\
                       vllm:gpu_cache_usage_perc{model_name=\"bench\"} 0\n\
                       vllm:kv_cache_usage_perc{model_name=\"bench\"} 0\n";
        Self {
            chat: response("200 OK", "application/json", CHAT),
            head: b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                    cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_vec(),
            role: chunk(&role()),
            tokens: std::array::from_fn(|index| chunk(&token(index))),
            finish: chunk(&finish()),
            done: [chunk(DONE), b"0\r\n\r\n".to_vec()].concat(),
            health: response("200 OK", "text/plain", ""),
            models: response("200 OK", "application/json", models),
            metrics: response("200 OK", "text/plain; version=0.0.4", metrics),
            missing: response("404 Not Found", "application/json", r#"{"error":{"message":"not found"}}"#),
        }
    }
}

const CHAT: &str = r#"{"id":"chatcmpl-bench-000001","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}"#;
const DONE: &str = "data: [DONE]\n\n";

/// Bytes of a plain answer's body.
pub(crate) fn chat_len() -> usize {
    CHAT.len()
}

/// Bytes of a whole stream's events, transfer coding not counted.
pub(crate) fn stream_len() -> usize {
    role().len() + token_len() * (CHUNKS - 2) + finish().len() + DONE.len()
}

/// Bytes of one chunk that holds a token, transfer coding not counted.
pub(crate) fn token_len() -> usize {
    token(0).len()
}

fn role() -> String {
    event(r#"{"role":"assistant","content":""}"#, "null")
}

/// `index` is one digit, so that all are of one length.
fn token(index: usize) -> String {
    event(&format!(r#"{{"content":"{TOKEN}{index}"}}"#), "null")
}

fn finish() -> String {
    event("{}", r#""stop""#)
}

fn event(delta: &str, finish_reason: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-bench-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
         \"model\":\"bench\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\
         \"finish_reason\":{finish_reason}}}]}}\n\n"
    )
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

fn response(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Answers one connection's requests until the peer closes it.
async fn converse(mut stream: TcpStream, answers: &Answers, pace: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(2048);
    while let Some(request) = next_request(&mut stream, &mut buffer).await? {
        match (request, pace) {
            (Request::Stream, None) => burst(&mut stream, answers).await?,
            (Request::Stream, Some(pace)) => return trickle(&mut stream, answers, pace).await,
            (Request::Chat, _) => stream.write_all(&answers.chat).await?,
            (Request::Health, _) => stream.write_all(&answers.health).await?,
            (Request::Models, _) => stream.write_all(&answers.models).await?,
            (Request::Metrics, _) => stream.write_all(&answers.metrics).await?,
            (Request::Other, _) => stream.write_all(&answers.missing).await?,
        }
    }
    Ok(())
}

/// The whole stream, one write per chunk. Yielding lets other streams' chunks in between, so that a
/// proxy meets single chunks, as from an engine, and not a run of them.
async fn burst(stream: &mut TcpStream, answers: &Answers) -> io::Result<()> {
    stream.write_all(&answers.head).await?;
    stream.write_all(&answers.role).await?;
    for token in answers.tokens.iter().cycle().take(CHUNKS - 2) {
        stream.write_all(token).await?;
        tokio::task::yield_now().await;
    }
    stream.write_all(&answers.finish).await?;
    stream.write_all(&answers.done).await
}

/// One token now and one each `pace`, until the peer closes. A token that can't be sent in time is left
/// out: tokens in a heap would be cheaper for a proxy.
async fn trickle(stream: &mut TcpStream, answers: &Answers, pace: Duration) -> io::Result<()> {
    stream.write_all(&answers.head).await?;
    stream.write_all(&answers.role).await?;
    let mut ticks = tokio::time::interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut closing = [0; 1];
    for token in answers.tokens.iter().cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stream.read(&mut closing) => return Ok(()),
        }
        stream.write_all(token).await?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Chat,
    Stream,
    Health,
    Models,
    Metrics,
    Other,
}

async fn next_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some((request, length)) = parse(buffer)? {
            buffer.drain(..length);
            return Ok(Some(request));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// The first request in `bytes` and its length; `None` while it is incomplete.
fn parse(bytes: &[u8]) -> io::Result<Option<(Request, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return Ok(None),
    };
    let header = |name: &str| request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let rest = &bytes[head..];
    let body = if header("transfer-encoding").is_some() {
        // One request at a time is in flight on a connection, so the last chunk ends the buffer.
        let Some(body) = rest.strip_suffix(b"0\r\n\r\n") else { return Ok(None) };
        (body, rest.len())
    } else {
        let length = header("content-length")
            .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
            .unwrap_or(0);
        let Some(body) = rest.get(..length) else { return Ok(None) };
        (body, length)
    };
    let request = match request.path.unwrap_or_default() {
        "/v1/chat/completions" if asks_for_stream(body.0) => Request::Stream,
        "/v1/chat/completions" => Request::Chat,
        "/health" => Request::Health,
        "/v1/models" => Request::Models,
        "/metrics" => Request::Metrics,
        _ => Request::Other,
    };
    Ok(Some((request, head + body.1)))
}

/// Whether the body has `"stream": true`, with or without spaces.
fn asks_for_stream(body: &[u8]) -> bool {
    const KEY: &[u8] = b"\"stream\"";
    body.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).any(|(start, _)| {
        let value = body[start + KEY.len()..].trim_ascii_start();
        value.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &str, expected: Option<(Request, usize)>) {
        assert_eq!(parse(bytes.as_bytes()).unwrap(), expected, "{bytes}");
    }

    #[test]
    fn requests() {
        let post = "POST /v1/chat/completions HTTP/1.1\r\n";
        check("GET /health HTTP/1.1\r\nhost: a\r\n\r\n", Some((Request::Health, 33)));
        check("GET /health HTTP/1.1\r\nhost: a\r\n", None);
        check(&format!("{post}Content-Length: 2\r\n\r\n{{}}"), Some((Request::Chat, 59)));
        check(&format!("{post}Content-Length: 3\r\n\r\n{{}}"), None);
        check(&format!("{post}content-length: 15\r\n\r\n{{\"stream\":true}}"), Some((Request::Stream, 73)));
        let chunked = format!("{post}transfer-encoding: chunked\r\n\r\n10\r\n{{\"stream\": true}}\r\n");
        check(&chunked, None);
        check(&format!("{chunked}0\r\n\r\n"), Some((Request::Stream, chunked.len() + 5)));
    }

    #[test]
    fn stream_flag() {
        assert!(asks_for_stream(br#"{"stream" : true}"#));
        assert!(!asks_for_stream(br#"{"stream":false,"stream_options":{"x":true}}"#));
    }

    #[test]
    fn sizes_are_those_of_the_documentation() {
        assert!((240..=270).contains(&chat_len()), "{}", chat_len());
        assert!((185..=195).contains(&(stream_len() / CHUNKS)), "{}", stream_len());
    }
}
