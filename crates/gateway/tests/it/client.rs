//! A client on a raw socket: every byte that is sent and every way of closing counts.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Nothing in these tests takes nearly as long; whatever does has hung.
pub(crate) const HUNG: Duration = Duration::from_secs(30);

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// Waits for what must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HUNG, future).await.unwrap_or_else(|_| panic!("hung: {what}"))
}

/// Looks again and again until `condition` holds.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let polling = async move {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let what = format!("{what} ({})", std::panic::Location::caller());
    async move { soon(&what, polling).await }
}

/// How the transport ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As HTTP framing says it should.
    Complete,
    /// Closed in the middle.
    Fin,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Reply {
    /// 0 if there was none.
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    buffer: BytesMut,
}

impl Conn {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self::of(TcpStream::connect(addr).await.unwrap())
    }

    pub(crate) fn of(stream: TcpStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// `headers` are whole lines, each with its line end.
    pub(crate) async fn send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        self.write(&[head.as_bytes(), body].concat()).await;
    }

    /// Sends bytes as they are. The other side may close before it has read them all.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = soon("writing", self.stream.write_all(bytes)).await;
    }

    /// Reads more; the way of closing if there is no more.
    async fn fill(&mut self) -> Result<(), End> {
        match soon("reading", self.stream.read_buf(&mut self.buffer)).await {
            Ok(0) => Err(End::Fin),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(End::Reset),
            Err(error) => panic!("{error}"),
        }
    }

    /// Everything up to and with `needle`.
    async fn until(&mut self, needle: &[u8]) -> Result<Bytes, End> {
        loop {
            if let Some(at) = self.buffer.windows(needle.len()).position(|it| it == needle) {
                return Ok(self.take(at + needle.len()));
            }
            self.fill().await?;
        }
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.buffer.split_to(length).freeze()
    }

    /// Status and headers of the next answer, with an empty body.
    pub(crate) async fn head(&mut self) -> Result<Reply, End> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?.into()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().strip_prefix("HTTP/1.").unwrap()[2..5].parse().unwrap();
        let split = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Ok(Reply { status, headers: lines.map(split).collect(), body: Vec::new(), end: End::Complete })
    }

    /// One chunk of a chunked body; empty at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Bytes, End> {
        let size = String::from_utf8(self.until(b"\r\n").await?.into()).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        while self.buffer.len() < size + 2 {
            self.fill().await?;
        }
        let mut chunk = self.take(size + 2);
        chunk.truncate(size);
        Ok(chunk)
    }

    /// The next whole answer.
    pub(crate) async fn reply(&mut self) -> Reply {
        match self.head().await {
            Ok(mut reply) => {
                self.body(&mut reply).await;
                reply
            }
            Err(end) => Reply { status: 0, headers: Vec::new(), body: self.buffer.to_vec(), end },
        }
    }

    /// What is left of the body of `reply`.
    pub(crate) async fn body(&mut self, reply: &mut Reply) {
        if reply.header("transfer-encoding") == Some("chunked") {
            assert_eq!(reply.header("content-length"), None);
            reply.end = loop {
                match self.chunk().await {
                    Ok(chunk) if chunk.is_empty() => break End::Complete,
                    Ok(chunk) => reply.body.extend(chunk),
                    Err(end) => break end,
                }
            };
            return;
        }
        let length = reply.header("content-length").map_or(usize::MAX, |length| length.parse().unwrap());
        reply.end = loop {
            if self.buffer.len() >= length {
                break End::Complete;
            }
            match self.fill().await {
                Ok(()) => {}
                // Without a length the end of the connection is the end of the body.
                Err(End::Fin) if length == usize::MAX => break End::Complete,
                Err(end) => break end,
            }
        };
        reply.body = self.take(length.min(self.buffer.len())).into();
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.fill().await {
                return (std::mem::take(&mut self.buffer).into(), end);
            }
        }
    }

    /// Everything up to the end of the connection, or until nothing comes any more.
    pub(crate) async fn rest_or_idle(&mut self) -> (Vec<u8>, Option<End>) {
        loop {
            match tokio::time::timeout(Duration::from_millis(50), self.fill()).await {
                Ok(Ok(())) => {}
                Ok(Err(end)) => return (std::mem::take(&mut self.buffer).into(), Some(end)),
                Err(_) => return (std::mem::take(&mut self.buffer).into(), None),
            }
        }
    }

    /// The events of a stream until `count` of them carry content, without waiting for its end.
    pub(crate) async fn contents(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while content_of(&events(&all).unwrap_or_default()).1 < count {
            let chunk = self.chunk().await.unwrap();
            assert!(!chunk.is_empty(), "the stream ended after {}", String::from_utf8_lossy(&all));
            all.extend(chunk);
        }
        all
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap_or_else(|_| panic!("not UTF-8: {}", tail(&self.body)))
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    /// The data of every event. The body must consist of whole ones.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<String> {
        events(&self.body).unwrap_or_else(|| panic!("not whole events: {:?}", tail(&self.body)))
    }

    /// The text of choice 0, streamed or not.
    #[track_caller]
    pub(crate) fn content(&self) -> String {
        if self.header("content-type").is_some_and(|it| it.starts_with("text/event-stream")) {
            return content_of(&self.events()).0;
        }
        let json = self.json();
        let choice = &json["choices"][0];
        choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned()
    }

    /// How many events there are, if any are expected.
    #[track_caller]
    pub(crate) fn events_or_nothing(&self, expected: bool) -> usize {
        if expected { self.events().len() } else { 0 }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.events().last().is_some_and(|event| event == "[DONE]")
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.header("x-backstop-attempts").map_or(0, |count| count.parse().unwrap())
    }

    /// `code` of an error in OpenAI's shape; panics if it has another.
    #[track_caller]
    pub(crate) fn error_code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.text());
        error_code(&self.json())
    }
}

#[track_caller]
pub(crate) fn error_code(json: &Value) -> String {
    let error = json["error"].as_object().unwrap_or_else(|| panic!("not an error: {json}"));
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{json}");
    assert!(error["type"].is_string(), "{json}");
    for key in ["param", "code"] {
        assert!(error.get(key).is_some_and(|it| it.is_string() || it.is_null()), "{key} in {json}");
    }
    error["code"].as_str().unwrap_or_default().to_owned()
}

fn tail(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[body.len().saturating_sub(1000)..]).into_owned()
}

/// Runs cases next to each other and shows all that fail.
pub(crate) async fn all(cases: Vec<JoinHandle<()>>) {
    let mut failed = 0;
    for case in cases {
        failed += usize::from(case.await.is_err());
    }
    assert_eq!(failed, 0, "cases failed");
}

/// The data of each event, if there is nothing but whole ones.
pub(crate) fn events(body: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(body).ok()?;
    let mut blocks: Vec<_> = text.split("\n\n").collect();
    if blocks.pop() != Some("") {
        return None;
    }
    // A comment says nothing.
    blocks.retain(|block| !block.starts_with(": "));
    // Named events of the responses API come with an `event:` line.
    let data = |block: &str| block.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
    blocks.into_iter().map(data).collect()
}

/// Text of choice 0 and the number of events that had any.
fn content_of(events: &[String]) -> (String, usize) {
    let json = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let pieces: Vec<String> = json
        .filter_map(|it| {
            let choice = &it["choices"][0];
            let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            piece.or(it["delta"].as_str()).filter(|piece| !piece.is_empty()).map(str::to_owned)
        })
        .collect();
    (pieces.concat(), pieces.len())
}

pub(crate) async fn call(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
    let mut conn = Conn::open(addr).await;
    conn.send(method, path, headers, body).await;
    conn.reply().await
}

/// A chat about "hi" with the model `chat`.
pub(crate) fn hi(stream: bool) -> Vec<u8> {
    json!({"model": "chat", "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
        .to_string()
        .into_bytes()
}

pub(crate) async fn chat(addr: SocketAddr, stream: bool) -> Reply {
    call(addr, "POST", CHAT, "", &hi(stream)).await
}
