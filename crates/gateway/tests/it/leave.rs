//! How connections of HTTP/2 end when the process does: nobody who is answered still is told to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstop_engine_sim::{Dist, Fault, SimConfig};
use backstop_gateway::{Gateway, Leave, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::client::{CHAT, End, error_code, events, hi, soon, until};
use crate::h2client::{H2, STREAM_WINDOW, Tape, Taped, piece, reply};
use crate::http2::{PREFACE, SETTINGS};
use crate::secure::{Authority, Folder, connect};
use crate::world::{LONG, World, ms, oracle};

fn slow(itl: u64, tokens: u64) -> SimConfig {
    SimConfig { itl: Dist::Constant(ms(itl)), tokens, ..SimConfig::default() }
}

/// A gateway that can be told to stop.
struct Stopping {
    world: World,
    addr: std::net::SocketAddr,
    /// The same by TLS, and whom to trust there.
    secure: std::net::SocketAddr,
    ca: String,
    stop: watch::Sender<Option<Leave>>,
    ended: Arc<AtomicUsize>,
}

impl Stopping {
    async fn start(config: SimConfig, drain: Duration) -> Self {
        let world = World::of(vec![config], |_| {}).await;
        let gateway: Arc<Gateway> = Arc::clone(&world.gateway);
        let (authority, folder) = (Authority::new(), Folder::new());
        let certificate = gateway.certificate(Listener::Clients, folder.pair(&authority.issue())).unwrap();
        let (stop, stopped) = watch::channel(None);
        let ended = Arc::new(AtomicUsize::new(0));
        let mut addrs = Vec::new();
        for certificate in [None, Some(certificate)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addrs.push(listener.local_addr().unwrap());
            let (gateway, ended) = (Arc::clone(&gateway), Arc::clone(&ended));
            let mut stopped = stopped.clone();
            tokio::spawn(async move {
                let stop = async { stopped.wait_for(Option::is_some).await.unwrap().unwrap() };
                gateway.serve(listener, certificate.as_ref(), stop, drain).await;
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        Self { world, addr: addrs[0], secure: addrs[1], ca: authority.pem.clone(), stop, ended }
    }

    fn stop(&self, how: Leave) {
        self.stop.send_replace(Some(how));
    }

    async fn ended(&self) {
        until("the end", || self.ended.load(Ordering::SeqCst) == 2).await;
    }
}

/// Clients whose library gives up a connection, with all that runs on it, as soon as it is told to go (Python's `h2`
/// does) are told only when nothing runs.
#[tokio::test]
async fn running_streams_end_before_the_client_is_told() {
    for how in [Leave::Stop, Leave::HandOver] {
        let gateway = Stopping::start(slow(15, 64), LONG).await;
        let (busy_tape, idle_tape) = (Tape::default(), Tape::default());
        let open = async |tape: &Tape| {
            H2::over(Taped(TcpStream::connect(gateway.addr).await.unwrap(), tape.clone())).await
        };
        let (busy, idle) = (open(&busy_tape).await, open(&idle_tape).await);
        assert_eq!(idle.call("GET", "/health", &[], "").await.status, 200);
        let mut streaming = busy.begin().await;
        let begun = piece(&mut streaming).await;
        gateway.stop(how);
        until("idle connections are told to go", || idle.is_closed()).await;
        assert!(!busy.is_closed(), "{how:?}");
        let mut rest = reply(streaming).await;
        rest.body.splice(..0, begun);
        assert_eq!((rest.end, rest.content(), rest.is_done()), (End::Complete, oracle(64), true));
        until("then the other", || busy.is_closed()).await;
        assert_eq!((busy_tape.ended_before_goaway(), idle_tape.ended_before_goaway()), (Some(1), Some(1)));
        gateway.ended().await;
    }
}

/// One request after the other, so that the connection is never idle: it is told all the same, and loses nothing that
/// the client's library does not give up.
#[tokio::test]
async fn whoever_goes_on_asking_is_told() {
    for how in [Leave::Stop, Leave::HandOver] {
        let gateway = Stopping::start(slow(15, 64), LONG).await;
        let client = H2::open(gateway.addr).await;
        let mut running = client.begin().await;
        gateway.stop(how);
        let told = async {
            loop {
                let next = match client.send("POST", CHAT, &[], hi(true)).await {
                    Ok(next) => next,
                    Err(_) => break,
                };
                let ended = reply(std::mem::replace(&mut running, next)).await;
                assert_eq!((ended.end, ended.content(), ended.is_done()), (End::Complete, oracle(64), true));
            }
        };
        soon("told", told).await;
        let last = reply(running).await;
        assert_eq!((last.end, last.content(), last.is_done()), (End::Complete, oracle(64), true));
        gateway.ended().await;
    }
}

/// They answer nothing, so that the end has to come without them.
#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody() {
    for how in [Leave::Stop, Leave::HandOver] {
        let gateway = Stopping::start(SimConfig::default(), 10 * LONG).await;
        let mut idle = TcpStream::connect(gateway.addr).await.unwrap();
        idle.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
        let mut answer = [0; 9];
        soon("settings", idle.read_exact(&mut answer)).await.unwrap();
        // Agreed, and nothing more said.
        let silent = connect(gateway.secure, &gateway.ca, &["h2"]).await;
        gateway.stop(how);
        gateway.ended().await;
        drop((idle, silent));
    }
}

/// What is left of an answer waits for the client's window: not told to go before it has that, too.
#[tokio::test]
async fn answers_that_are_still_on_their_way_arrive() {
    let tokens = (1..).find(|tokens| oracle(*tokens).len() > STREAM_WINDOW as usize).unwrap();
    let config = SimConfig { tokens: tokens as u64, ..SimConfig::default() };
    for how in [Leave::Stop, Leave::HandOver] {
        let gateway = Stopping::start(config.clone(), LONG).await;
        let tape = Tape::default();
        let stream = TcpStream::connect(gateway.addr).await.unwrap();
        let client = H2::over(Taped(stream, tape.clone())).await;
        let unread = client.send("POST", CHAT, &[], hi(false)).await.unwrap();
        gateway.stop(how);
        tokio::time::sleep(ms(100)).await;
        let reply = reply(unread).await;
        assert_eq!(reply.end, End::Complete);
        assert!(reply.content() == oracle(tokens));
        until("told", || client.is_closed()).await;
        assert_eq!(tape.ended_before_goaway(), Some(1));
        gateway.ended().await;
    }
}

#[tokio::test]
async fn what_does_not_end_in_time_ends_told() {
    let gateway = Stopping::start(slow(15, 100_000), ms(300)).await;
    let client = H2::open(gateway.addr).await;
    let mut streaming = client.begin().await;
    let begun = piece(&mut streaming).await;
    gateway.world.sims[0].set_fault(Fault::NoAnswer);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.chat(false).await }
    });
    until("both run", || gateway.world.sims[0].in_flight() == 2).await;
    gateway.stop(Leave::Stop);
    let mut rest = reply(streaming).await;
    rest.body.splice(..0, begun);
    let last = events(&rest.body).unwrap().pop().unwrap();
    assert_eq!(error_code(&serde_json::from_str(&last).unwrap()), "shutting_down");
    assert_eq!(rest.end, End::Complete);
    let waiting = waiting.await.unwrap();
    assert_eq!((waiting.status, waiting.error_code().as_str()), (503, "shutting_down"));
    gateway.ended().await;
}
