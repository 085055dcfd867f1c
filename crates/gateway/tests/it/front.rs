//! TLS and HTTP/2 in front of a simulated engine, which speaks neither.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use backstop_core::health::State as Health;
use backstop_core::table::{EndpointSpec, Engine, Protocol, Scheme, Target, TlsSpec};
use backstop_engine_sim::{Sim, SimConfig};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::client::{chat, until};
use crate::secure::{Authority, Folder};
use crate::world::{TOKENS, World, oracle, service};

type BoxError = Box<dyn Error + Send + Sync>;

/// How it speaks, and what it has seen.
pub(crate) struct Front {
    pub(crate) addr: SocketAddr,
    pub(crate) state: Arc<State>,
}

pub(crate) struct State {
    engine: SocketAddr,
    speaks: Speaks,
    tls: Mutex<Option<TlsAcceptor>>,
    /// Connections so far, and those that resumed a session.
    pub(crate) connections: AtomicUsize,
    pub(crate) resumed: AtomicUsize,
    pub(crate) open: AtomicUsize,
    /// So many streams are refused before one is taken.
    pub(crate) refuse: AtomicUsize,
    /// So many requests end the connection that they come on.
    pub(crate) hang_up: AtomicUsize,
    /// Answers are reset for this reason after their first piece.
    pub(crate) reset: Mutex<Option<h2::Reason>>,
    /// As many handshakes may go on.
    handshakes: Semaphore,
    /// Tells all connections to end with what runs on them.
    goaway: Notify,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Speaks {
    /// As the engine does, byte by byte.
    Http1,
    /// So many streams at once on a connection.
    Http2(u32),
}

impl Front {
    pub(crate) async fn start(engine: SocketAddr, speaks: Speaks, tls: Option<Arc<ServerConfig>>) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), engine, speaks, tls).await
    }

    /// The same on an address of its own.
    pub(crate) async fn at(
        addr: SocketAddr,
        engine: SocketAddr,
        speaks: Speaks,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            engine,
            speaks,
            tls: Mutex::new(tls.map(TlsAcceptor::from)),
            connections: AtomicUsize::new(0),
            resumed: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            refuse: AtomicUsize::new(0),
            hang_up: AtomicUsize::new(0),
            reset: Mutex::default(),
            handshakes: Semaphore::new(Semaphore::MAX_PERMITS),
            goaway: Notify::new(),
        });
        let accepting = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(Arc::clone(&accepting), stream));
            }
        });
        Self { addr, state }
    }

    /// Shows another certificate from now on.
    pub(crate) fn show(&self, config: Arc<ServerConfig>) {
        *self.state.tls.lock().unwrap() = Some(config.into());
    }

    pub(crate) fn go_away(&self) {
        self.state.goaway.notify_waiters();
    }

    /// Connections are accepted, but TLS waits for [`Self::let_in`].
    pub(crate) fn hold(&self) {
        self.state.handshakes.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn let_in(&self, connections: usize) {
        self.state.handshakes.add_permits(connections);
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// As an endpoint of a table.
    pub(crate) fn endpoint(&self, protocol: Protocol, tls: TlsSpec) -> EndpointSpec {
        let scheme = if self.state.tls.lock().unwrap().is_some() { Scheme::Https } else { Scheme::Http };
        let target = Target { scheme, ..self.addr.into() };
        EndpointSpec { protocol, tls, ..EndpointSpec::new(target, Engine::Sim) }
    }
}

/// Counts while it lives.
struct Open(Arc<State>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

async fn connection(state: Arc<State>, stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    state.connections.fetch_add(1, SeqCst);
    state.open.fetch_add(1, SeqCst);
    let _open = Open(Arc::clone(&state));
    let tls = state.tls.lock().unwrap().clone();
    match tls {
        None => serve(state, stream).await,
        Some(tls) => {
            state.handshakes.acquire().await.unwrap().forget();
            // Those who do not like the certificate leave.
            let Ok(stream) = tls.accept(stream).await else { return };
            if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                state.resumed.fetch_add(1, SeqCst);
            }
            serve(state, stream).await;
        }
    }
}

async fn serve(state: Arc<State>, mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let Speaks::Http2(max_streams) = state.speaks else {
        let mut engine = TcpStream::connect(state.engine).await.unwrap();
        // Either side may be cut off at any time.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut engine).await;
        return;
    };
    let hung_up = Notify::new();
    let service = service_fn(|request| {
        let hangs_up = state.hang_up.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if hangs_up {
            hung_up.notify_one();
        }
        forward(Arc::clone(&state), request, hangs_up)
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(max_streams)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let goaway = state.goaway.notified();
    tokio::select! {
        _ = serving.as_mut() => return,
        () = hung_up.notified() => return,
        () = goaway => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

async fn forward(
    state: Arc<State>,
    request: Request<Incoming>,
    hangs_up: bool,
) -> Result<Response<Answer>, BoxError> {
    if hangs_up {
        std::future::pending::<()>().await;
    }
    let refuse = state.refuse.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
    if refuse.is_ok() {
        return Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into());
    }
    let (head, body) = request.into_parts();
    let mut outgoing =
        Request::builder().method(head.method).uri(head.uri.path_and_query().unwrap().as_str());
    *outgoing.headers_mut().unwrap() = head.headers;
    let authority = head.uri.authority().unwrap().as_str();
    let outgoing = outgoing.header("host", authority).body(Full::new(body.collect().await?.to_bytes()))?;
    let stream = TcpStream::connect(state.engine).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(outgoing).await?;
    let reset = *state.reset.lock().unwrap();
    Ok(answer.map(|body| Answer { body, _sender: Arc::new(sender), reset, pieces: 0 }))
}

struct Answer {
    body: Incoming,
    /// The connection to the engine lives as long as the answer.
    _sender: Arc<dyn Send + Sync>,
    reset: Option<h2::Reason>,
    pieces: usize,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(reason) = self.reset.filter(|_| self.pieces > 0) {
            return Poll::Ready(Some(Err(h2::Error::from(reason).into())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.pieces += 1;
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }
}

pub(crate) const HTTP1: &[&str] = &["http/1.1"];
pub(crate) const BOTH: &[&str] = &["h2", "http/1.1"];
pub(crate) const MANY: Speaks = Speaks::Http2(100);

/// A gateway with one engine behind a front.
pub(crate) struct Fronted {
    pub(crate) world: World,
    pub(crate) front: Front,
    pub(crate) folder: Folder,
    /// Of the authorities that are trusted.
    pub(crate) ca: String,
}

impl Fronted {
    /// By TLS that offers `offered`.
    pub(crate) async fn tls(config: SimConfig, speaks: Speaks, offered: &[&str], protocol: Protocol) -> Self {
        let authority = Authority::new();
        let tls = (authority.pem.as_str(), authority.issue().server(offered));
        let fronted = Self::of(config, speaks, Some(tls), protocol, |_| {}).await;
        fronted.checked().await;
        fronted
    }

    pub(crate) async fn cleartext(config: SimConfig, speaks: Speaks) -> Self {
        let fronted = Self::of(config, speaks, None, Protocol::Http2, |_| {}).await;
        fronted.checked().await;
        fronted
    }

    /// Waits for the first round of checks, each of which has a connection of its own.
    pub(crate) async fn checked(&self) {
        self.world.until_all(Health::Healthy).await;
        let last = || self.world.sims[0].request_log().iter().any(|it| it.path == "/v1/models");
        until("the last check", last).await;
        until("it is over", || self.front.state.open.load(SeqCst) == 0).await;
    }

    pub(crate) async fn of(
        config: SimConfig,
        speaks: Speaks,
        tls: Option<(&str, Arc<ServerConfig>)>,
        protocol: Protocol,
        change: impl FnOnce(&mut EndpointSpec),
    ) -> Self {
        let sim = Sim::start(SimConfig { log: 4096, ..config }).await.unwrap();
        let (ca, server) = tls.map_or(("", None), |(ca, server)| (ca, Some(server)));
        let front = Front::start(sim.addr(), speaks, server).await;
        let folder = Folder::new();
        let path = Some(folder.write("ca.pem", ca));
        let mut spec = service(&[]);
        let mut endpoint = front.endpoint(protocol, TlsSpec { ca: path, server_name: None });
        change(&mut endpoint);
        spec.versions[0].endpoints.push(endpoint);
        let world = World::serve(vec![sim], vec![spec]).await;
        Self { world, front, folder, ca: ca.to_owned() }
    }

    pub(crate) fn connections(&self) -> usize {
        self.front.connections()
    }
}

pub(crate) async fn check_answers(world: &World, context: &str) {
    for stream in [true, false] {
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.attempts()), (200, 1), "{context}: {}", reply.text());
        assert_eq!(reply.content(), oracle(TOKENS), "{context}");
    }
}

/// Something that is none of ours: says `words` to everybody, whatever they say, and hangs up.
pub(crate) async fn parrot(words: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = [0; 1024];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut heard).await;
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, words).await;
                Ok::<(), Infallible>(())
            });
        }
    });
    addr
}
