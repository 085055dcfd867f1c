//! A model server that believes nothing: it keeps what it gets, to the byte, and answers with what it was asked, so
//! that an answer in the wrong hands shows. On request it answers something else.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use backstop_core::health::State;
use backstop_core::table::{EndpointSpec, Engine, ServiceSpec};
use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::until;
use crate::world::{World, ms, service};

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// With its line ends, without the blank line.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }
}

/// What it answers instead of an echo.
#[derive(Debug, Clone, Default)]
pub(crate) struct Odd {
    pub(crate) answer: Vec<u8>,
    /// Sent after the answer, in a packet of its own.
    pub(crate) later: Vec<u8>,
    pub(crate) close: bool,
}

#[derive(Default)]
struct Inner {
    seen: Vec<Seen>,
    odd: VecDeque<Odd>,
    /// Odd answers that are on their way.
    sending: usize,
    /// Connections that brought something that is not a request.
    nonsense: Vec<String>,
}

pub(crate) struct Recorder {
    pub(crate) addr: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

impl Recorder {
    /// The server, alone behind a gateway.
    pub(crate) async fn start(change: impl FnOnce(&mut ServiceSpec)) -> (Self, World) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Mutex::new(Inner::default()));
        tokio::spawn({
            let inner = Arc::clone(&inner);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, Arc::clone(&inner)));
                }
            }
        });
        let mut service = service(&[]);
        let api_key = Some("engine-key".to_owned());
        let endpoint = EndpointSpec { api_key, ..EndpointSpec::new(addr.into(), Engine::OpenAi) };
        service.versions[0].endpoints.push(endpoint);
        change(&mut service);
        let world = World::serve(Vec::new(), vec![service]).await;
        world.until_all(State::Healthy).await;
        (Self { addr, inner }, world)
    }

    /// Takes the requests since the last time, those of checks left out. Panics if any of them was not one request
    /// beyond doubt.
    #[track_caller]
    pub(crate) fn take(&self) -> Vec<Seen> {
        let mut inner = self.inner.lock().unwrap();
        assert!(inner.nonsense.is_empty(), "{:?}", inner.nonsense);
        std::mem::take(&mut inner.seen)
    }

    /// Answers the next request like this.
    pub(crate) fn answer_next(&self, odd: Odd) {
        self.inner.lock().unwrap().odd.push_back(odd);
    }

    /// Waits until all odd answers have been sent as far as the gateway takes them.
    pub(crate) async fn all_sent(&self) {
        until("odd answers", || {
            let inner = self.inner.lock().unwrap();
            inner.odd.is_empty() && inner.sending == 0
        })
        .await;
    }
}

/// A chat about `text`.
pub(crate) fn about(text: &str) -> Vec<u8> {
    json!({"model": "chat", "messages": [{"role": "user", "content": text}]}).to_string().into_bytes()
}

async fn serve(mut stream: TcpStream, inner: Arc<Mutex<Inner>>) {
    // What is sent later must not wait for what was sent before to be acknowledged.
    stream.set_nodelay(true).unwrap();
    let mut buffer = BytesMut::new();
    while let Some(seen) = request(&mut stream, &mut buffer, &inner).await {
        let is_check = seen.header("user-agent").iter().any(|agent| agent.starts_with("backstop-probe"));
        let odd = {
            let mut inner = inner.lock().unwrap();
            let odd = if is_check { None } else { inner.odd.pop_front() };
            inner.sending += usize::from(odd.is_some());
            if !is_check {
                inner.seen.push(seen.clone());
            }
            odd
        };
        let go_on = match odd {
            None => stream.write_all(&echo(&seen)).await.is_ok(),
            Some(odd) => {
                let go_on = send(&mut stream, odd).await;
                inner.lock().unwrap().sending -= 1;
                go_on
            }
        };
        if !go_on {
            return;
        }
    }
}

/// Whether the connection goes on. The gateway may hang up before it has read everything.
async fn send(stream: &mut TcpStream, Odd { answer, later, close }: Odd) -> bool {
    let mut sent = stream.write_all(&answer).await;
    if !later.is_empty() {
        // So that the answer is there, and read, before it comes.
        tokio::time::sleep(ms(20)).await;
        sent = sent.and(stream.write_all(&later).await);
    }
    sent.is_ok() && !close
}

/// The next request on a connection. What could be taken in two ways is nonsense.
async fn request(stream: &mut TcpStream, buffer: &mut BytesMut, inner: &Mutex<Inner>) -> Option<Seen> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|it| it == b"\r\n\r\n") {
            break at;
        }
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            if !buffer.is_empty() {
                inner.lock().unwrap().nonsense.push(format!("half a head: {buffer:?}"));
            }
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer.split_to(end + 4)[..end]).into_owned();
    let mut seen = Seen { head, body: Vec::new() };
    let lengths = seen.header("content-length");
    let length = match lengths[..] {
        [] => 0,
        [length] => length.parse().unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let lines = seen.head.split("\r\n").collect::<Vec<_>>();
    let is_odd = |line: &&str| line.contains(['\r', '\n', '\0']) || line.starts_with([' ', '\t']);
    let sound = lines.iter().all(|line| !is_odd(line))
        && lines[0].split(' ').count() == 3
        && lines[0].ends_with(" HTTP/1.1")
        && lines[1..]
            .iter()
            .all(|line| line.split_once(':').is_some_and(|(name, _)| !name.ends_with([' ', '\t'])))
        && seen.header("host").len() == 1
        && seen.header("transfer-encoding").is_empty()
        && length < usize::MAX;
    if !sound {
        inner.lock().unwrap().nonsense.push(seen.head);
        return None;
    }
    while buffer.len() < length {
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return None;
        }
    }
    seen.body = buffer.split_to(length).to_vec();
    Some(seen)
}

/// A chat's answer that repeats its first message, or a list of models.
fn echo(seen: &Seen) -> Vec<u8> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let message = json!({"role": "assistant", "content": asked["messages"][0]["content"]});
    let body = json!({
        "data": [{"id": "chat"}],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    });
    answer(&body.to_string())
}

/// A whole answer, on a connection that stays open.
pub(crate) fn answer(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}
