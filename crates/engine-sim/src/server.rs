//! The simulator as a running server: accepts, stops gracefully, or dies.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::api::handle;
use crate::config::SimConfig;
use crate::connection::{Connection, Steering};
use crate::engine::{Engine, Stats, count};
use crate::faults::Faults;
use crate::requestlog::LoggedRequest;
use crate::rule::Rule;

/// Connections the kernel holds before they are accepted.
const BACKLOG: u32 = 4096;

/// A running simulator, on the runtime it was started on. Dropping it stops it.
pub struct Sim {
    engine: Arc<Engine>,
    addr: SocketAddr,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    phase: watch::Sender<Phase>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Killed,
}

impl Sim {
    /// Binds and serves.
    pub async fn start(config: SimConfig) -> io::Result<Self> {
        let listener = listen(config.listen)?;
        let addr = listener.local_addr()?;
        let engine = Arc::new(Engine::new(config));
        let running = Mutex::new(Some(Running::begin(engine.clone(), listener)));
        Ok(Self { engine, addr, running })
    }

    /// Where it listens; the same after [`Sim::restart`].
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://HOST:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The faults in force.
    pub fn faults(&self) -> &Faults {
        &self.engine.faults
    }

    /// Makes `rule` the only one in force.
    pub fn set_fault(&self, rule: impl Into<Rule>) {
        self.engine.faults.set(rule);
    }

    pub fn clear_faults(&self) {
        self.engine.faults.clear();
    }

    /// All counts. They go on through a restart.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// See [`Stats::requests`].
    pub fn requests(&self) -> u64 {
        self.stats().requests
    }

    /// See [`Stats::cancelled`].
    pub fn cancelled(&self) -> u64 {
        self.stats().cancelled
    }

    /// See [`Stats::in_flight`].
    pub fn in_flight(&self) -> u64 {
        self.stats().in_flight
    }

    /// The last requests to the API, oldest first.
    pub fn request_log(&self) -> Vec<LoggedRequest> {
        self.engine.log.list()
    }

    /// Takes no more connections, lets answers under way end (at most [`SimConfig::grace`]), then stops.
    pub async fn shutdown(&self) {
        self.stop(Phase::Draining).await;
    }

    /// Closes the listener and resets every connection at once, as if the process had been killed.
    pub async fn kill(&self) {
        self.stop(Phase::Killed).await;
    }

    /// Serves again on the same port after [`Sim::kill`] or [`Sim::shutdown`]; faults and counts stay.
    pub async fn restart(&self) -> io::Result<()> {
        self.kill().await;
        let listener = listen(self.addr)?;
        let running = Running::begin(self.engine.clone(), listener);
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Ok(())
    }

    async fn stop(&self, phase: Phase) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { phase: signal, acceptor }) = running else { return };
        if phase == Phase::Killed {
            self.engine.stopping.store(true, Ordering::SeqCst);
        }
        signal.send_replace(phase);
        // An error means that the runtime is going down and took the task with it.
        let _ = acceptor.await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            self.engine.stopping.store(true, Ordering::SeqCst);
            running.acceptor.abort();
        }
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Running {
    fn begin(engine: Arc<Engine>, listener: TcpListener) -> Self {
        engine.stopping.store(false, Ordering::SeqCst);
        let phase = watch::Sender::new(Phase::Serving);
        let acceptor = tokio::spawn(live(engine, listener, phase.subscribe()));
        Self { phase, acceptor }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    bind(addr)?.listen(BACKLOG)
}

/// A port taken, where connections are refused until somebody listens.
fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

/// Why connections are no longer accepted.
enum Over {
    /// For good.
    Stopped,
    /// For this long.
    Outage(Duration),
}

/// Serves, with outages as the faults want them.
async fn live(engine: Arc<Engine>, mut listener: TcpListener, mut phase: watch::Receiver<Phase>) {
    loop {
        let addr = listener.local_addr();
        let Over::Outage(down) = accept(&engine, listener, &mut phase).await else { return };
        // Keeps the port from others, and connections out.
        let held = addr.and_then(bind);
        tokio::select! {
            () = tokio::time::sleep(down) => {}
            _ = next_phase(&mut phase) => return,
        }
        listener = match held.and_then(|socket| socket.listen(BACKLOG)) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the port is lost; cannot serve again"),
        };
        engine.stopping.store(false, Ordering::SeqCst);
    }
}

async fn accept(engine: &Arc<Engine>, listener: TcpListener, phase: &mut watch::Receiver<Phase>) -> Over {
    let mut connections = JoinSet::new();
    let ours = watch::Sender::new(Phase::Serving);
    let mut outage = std::pin::pin!(engine.faults.outage());
    let (over, last) = loop {
        tokio::select! {
            // All are cancel-safe: nothing is lost when another branch wins.
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    count(&engine.counters.connections, 1);
                    connections.spawn(serve(Arc::clone(engine), stream, ours.subscribe()));
                }
                // Out of descriptors, most likely: wait for some to come back instead of spinning.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            next = next_phase(phase) => break (Over::Stopped, next),
            down = outage.as_mut() => break (Over::Outage(down), Phase::Killed),
        }
        while connections.try_join_next().is_some() {}
    };
    drop(listener);
    if last == Phase::Killed {
        engine.stopping.store(true, Ordering::SeqCst);
    }
    ours.send_replace(last);
    // The killed end by themselves, which resets them; answers that never end are cut off below.
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(engine.config.grace, all).await;
    engine.stopping.store(true, Ordering::SeqCst);
    connections.shutdown().await;
    over
}

async fn serve(engine: Arc<Engine>, stream: TcpStream, mut phase: watch::Receiver<Phase>) {
    // Fails only for a socket that is already dead.
    let _ = stream.set_nodelay(true);
    let steering = Arc::new(Steering::default());
    let io = TokioIo::new(Connection::new(stream, steering.clone(), engine.clone()));
    let service = {
        let steering = steering.clone();
        service_fn(move |request| handle(engine.clone(), steering.clone(), request))
    };
    let connection = http1::Builder::new().header_read_timeout(None).serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut serving = true;
    loop {
        tokio::select! {
            // Faults and clients that leave end connections with errors all the time.
            _ = connection.as_mut() => return,
            next = next_phase(&mut phase), if serving => {
                serving = false;
                if next == Phase::Killed {
                    return steering.reset();
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// # Cancel safety
/// Safe: the phase is only looked at.
async fn next_phase(phase: &mut watch::Receiver<Phase>) -> Phase {
    // Without a sender the simulator has been dropped, which aborts this task as well.
    phase.wait_for(|phase| *phase != Phase::Serving).await.map_or(Phase::Draining, |phase| *phase)
}
