//! Clients: each asks one thing after the other, as a person or a program would, and judges what it gets.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::ask::{Ask, Kind, Leave};
use crate::oracle::{Breach, Ending, StreamJudge, Transport, judge_chat, judge_embedding};

/// How long a client waits for the head of an answer: longer than Backstop's own limit for the whole request.
const PATIENCE: Duration = Duration::from_secs(305);
/// How long a client waits for the next piece of a stream: as long, since another replica may have to say all of it again.
const GAP: Duration = PATIENCE;

/// How requests ended.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) streams: u64,
    pub(crate) chats: u64,
    pub(crate) embeddings: u64,
    /// Whole, and as they should be.
    pub(crate) answered: u64,
    /// In the middle, with a valid error event.
    pub(crate) cut: u64,
    /// The client left first.
    pub(crate) left: u64,
    /// A promise was broken.
    pub(crate) broken: u64,
    /// Answered after more than one attempt.
    pub(crate) retried: u64,
    /// Pieces of text in streams.
    pub(crate) pieces: u64,
}

/// A request that did not end well.
#[derive(Debug, Clone)]
pub(crate) struct Incident {
    pub(crate) id: String,
    /// Since the start of the run.
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    /// `None`: cut with an honest error event.
    pub(crate) breach: Option<Breach>,
    /// The code of the error event, or what is wrong.
    pub(crate) what: String,
}

/// What the clients have seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) counts: Counts,
    pub(crate) incidents: Vec<Incident>,
    /// From the request to the first piece of a stream.
    pub(crate) first_tokens: Vec<Duration>,
    pub(crate) open_streams: u64,
}

/// What the clients share.
struct Shared {
    addr: SocketAddr,
    seed: u64,
    started: Instant,
    embeddings: Vec<Value>,
    seen: RefCell<Seen>,
    stopping: Cell<bool>,
}

pub(crate) struct Load {
    shared: Rc<Shared>,
    clients: JoinSet<()>,
}

impl Load {
    /// To be called on a `LocalSet`. `embeddings` are the right answers to [`crate::ask::TEXTS`].
    pub(crate) fn start(
        addr: SocketAddr,
        clients: u64,
        seed: u64,
        started: Instant,
        embeddings: Vec<Value>,
    ) -> Self {
        let shared = Rc::new(Shared {
            addr,
            seed,
            started,
            embeddings,
            seen: RefCell::default(),
            stopping: Cell::new(false),
        });
        let mut set = JoinSet::new();
        for client in 0..clients {
            set.spawn_local(ask_on_and_on(Rc::clone(&shared), client));
        }
        Self { shared, clients: set }
    }

    pub(crate) fn gauge(&self) -> Gauge {
        Gauge(Rc::clone(&self.shared))
    }

    /// Lets the requests under way end, and tells everything.
    pub(crate) async fn stop(mut self) -> Seen {
        self.shared.stopping.set(true);
        while self.clients.join_next().await.is_some() {}
        self.shared.seen.take()
    }
}

/// Shows how the load does.
#[derive(Clone)]
pub(crate) struct Gauge(Rc<Shared>);

impl Gauge {
    pub(crate) fn counts(&self) -> Counts {
        self.0.seen.borrow().counts
    }

    pub(crate) fn open_streams(&self) -> u64 {
        self.0.seen.borrow().open_streams
    }
}

async fn ask_on_and_on(shared: Rc<Shared>, client: u64) {
    let mut connection = None;
    for number in 0.. {
        if shared.stopping.get() {
            return;
        }
        let ask = Ask::draw(shared.seed, client, number);
        if ask.fresh {
            connection = None;
        }
        let mut asking = Asking { shared: &shared, ask: &ask, since: Instant::now(), open: false };
        let ending = asking.ask(&mut connection).await;
        asking.end(&ending);
        if !matches!(ending, Ending::Answered | Ending::Cut(_)) {
            connection = None;
        }
        if !shared.stopping.get() {
            tokio::time::sleep(ask.think).await;
        }
    }
}

/// A connection to Backstop; closed when dropped.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Connection {
    async fn open(addr: SocketAddr) -> Result<Self, String> {
        let opened = timeout(PATIENCE, TcpStream::connect(addr)).await;
        let stream = opened.map_err(|_| "the connection was not accepted".to_owned())?;
        let stream = stream.map_err(|error| format!("no connection: {error}"))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| format!("no connection: {error}"))?;
        let task = tokio::spawn(async move {
            // What becomes of it shows in the request.
            drop(connection.await);
        });
        Ok(Self { sender, task })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request under way.
struct Asking<'a> {
    shared: &'a Shared,
    ask: &'a Ask,
    since: Instant,
    /// A stream that has begun.
    open: bool,
}

impl Asking<'_> {
    async fn ask(&mut self, connection: &mut Option<Connection>) -> Ending {
        let leave = match self.ask.leave {
            Some(Leave::After(time)) => time,
            _ => Duration::MAX,
        };
        timeout(leave, self.exchange(connection)).await.unwrap_or(Ending::Left)
    }

    async fn exchange(&mut self, connection: &mut Option<Connection>) -> Ending {
        let response = match self.send(connection).await {
            Ok(response) => response,
            Err(ending) => return ending,
        };
        let attempts =
            response.headers().get("x-backstop-attempts").and_then(|it| it.to_str().ok()?.parse().ok());
        if attempts.is_some_and(|attempts: u32| attempts > 1) {
            self.shared.seen.borrow_mut().counts.retried += 1;
        }
        if response.status() != StatusCode::OK {
            return refused(response).await;
        }
        if self.ask.kind == Kind::Stream {
            self.stream(response.into_body()).await
        } else {
            self.whole(response).await
        }
    }

    async fn send(&self, connection: &mut Option<Connection>) -> Result<Response<Incoming>, Ending> {
        let failed = |why: String| Ending::Broken(Breach::Failed, why);
        let request: Request<Full<Bytes>> =
            self.ask.request().map_err(|error| failed(error.to_string()))?.map(Full::new);
        let usable = match connection.take() {
            // One that Backstop has closed after the last answer is no failure, as it is none for an SDK.
            Some(mut open) => open.sender.ready().await.is_ok().then_some(open),
            None => None,
        };
        let open = match usable {
            Some(open) => open,
            None => Connection::open(self.shared.addr).await.map_err(failed)?,
        };
        let answer = connection.insert(open).sender.send_request(request);
        match timeout(PATIENCE, answer).await {
            Err(_) => Err(Ending::Broken(Breach::Hanging, format!("no answer within {PATIENCE:?}"))),
            Ok(answer) => answer.map_err(|error| failed(format!("no answer: {error}"))),
        }
    }

    async fn whole(&self, response: Response<Incoming>) -> Ending {
        let Ok(collected) = timeout(GAP, response.into_body().collect()).await else {
            return Ending::Broken(Breach::Hanging, format!("half an answer for {GAP:?}"));
        };
        match (collected, self.ask.kind) {
            (Err(error), _) => Ending::Broken(Breach::BadEnd, format!("half an answer: {error}")),
            (Ok(body), Kind::Embedding(text)) => {
                judge_embedding(&body.to_bytes(), &self.shared.embeddings[text])
            }
            (Ok(body), _) => judge_chat(&body.to_bytes(), &self.ask.expected()),
        }
    }

    async fn stream(&mut self, mut body: Incoming) -> Ending {
        let mut judge = StreamJudge::new(self.ask.expected());
        let leave = if let Some(Leave::AfterPieces(pieces)) = self.ask.leave { pieces } else { u64::MAX };
        let ending = loop {
            let frame = match timeout(GAP, body.frame()).await {
                Err(_) => break Ending::Broken(Breach::Hanging, format!("a stream stood still for {GAP:?}")),
                Ok(None) => return self.counted(judge, Transport::Whole),
                Ok(Some(Err(_))) => return self.counted(judge, Transport::Broken),
                Ok(Some(Ok(frame))) => frame,
            };
            let data = frame.into_data().unwrap_or_default();
            if let Err(ending) = judge.feed(&data) {
                break ending;
            }
            if !self.open && judge.pieces() > 0 {
                self.begun();
            }
            if judge.pieces() >= leave {
                break Ending::Left;
            }
        };
        self.shared.seen.borrow_mut().counts.pieces += judge.pieces();
        ending
    }

    fn counted(&self, judge: StreamJudge, transport: Transport) -> Ending {
        self.shared.seen.borrow_mut().counts.pieces += judge.pieces();
        judge.end(transport)
    }

    /// The first piece of a stream has come.
    fn begun(&mut self) {
        self.open = true;
        let mut seen = self.shared.seen.borrow_mut();
        seen.open_streams += 1;
        seen.first_tokens.push(self.since.elapsed());
    }

    fn end(self, ending: &Ending) {
        let mut seen = self.shared.seen.borrow_mut();
        let counts = &mut seen.counts;
        counts.requests += 1;
        match self.ask.kind {
            Kind::Stream => counts.streams += 1,
            Kind::Chat => counts.chats += 1,
            Kind::Embedding(_) => counts.embeddings += 1,
        }
        let (breach, what) = match ending {
            Ending::Answered => {
                counts.answered += 1;
                (None, None)
            }
            Ending::Left => {
                counts.left += 1;
                (None, None)
            }
            Ending::Cut(code) => {
                counts.cut += 1;
                (None, Some(code.clone()))
            }
            Ending::Broken(breach, what) => {
                counts.broken += 1;
                (Some(*breach), Some(format!("{what} ({:?})", self.ask.kind)))
            }
        };
        if self.open {
            seen.open_streams -= 1;
        }
        if let Some(what) = what {
            let (from, to) = (self.since - self.shared.started, self.shared.started.elapsed());
            seen.incidents.push(Incident { id: self.ask.id.clone(), from, to, breach, what });
        }
    }
}

/// An error in place of an answer. None of the requests is at fault.
async fn refused(response: Response<Incoming>) -> Ending {
    let status = response.status();
    let body = timeout(GAP, response.into_body().collect()).await;
    let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    Ending::Broken(Breach::Failed, format!("status {status}: {:.300}", String::from_utf8_lossy(&body)))
}
