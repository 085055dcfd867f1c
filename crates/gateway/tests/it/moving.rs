//! Servers with TLS and HTTP/2 that have several addresses, or change them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use backstop_core::health::State;
use backstop_core::table::{DnsSpec, EndpointSpec, Protocol, TableSpec, Target, TlsSpec};
use backstop_engine_sim::{Dist, Sim, SimConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::client::{CHAT, Conn, call, chat, hi, until};
use crate::dns::{Dns, addresses};
use crate::front::{BOTH, Front, MANY, check_answers};
use crate::secure::{Authority, Folder, days_from_now};
use crate::world::{World, ms, oracle, service};

const NAME: &str = "engine.test";

/// A world whose only endpoint is `front`, by its name.
async fn world(sims: Vec<Sim>, front: &Front, dns: &Dns, protocol: Protocol, tls: TlsSpec) -> World {
    let endpoint = front.endpoint(protocol, tls);
    let target = Target { host: NAME.to_owned(), ..endpoint.target.clone() };
    let mut service = service(&[]);
    service.versions[0].endpoints = vec![EndpointSpec { target, ..endpoint }];
    (service.health.interval, service.health.timeout) = (ms(30), ms(1000));
    service.timeouts.connect = ms(1000);
    let dns = DnsSpec { servers: vec![dns.addr], min_ttl: ms(10), max_ttl: ms(10) };
    let spec = TableSpec { revision: 1, dns, services: vec![service], ..TableSpec::default() };
    let world = World::with(sims, spec).await;
    world.until_all(State::Healthy).await;
    world
}

/// Listens at `addr`; says `words` to everybody, or nothing at all. Counts whom it has accepted.
async fn stranger(addr: SocketAddr, words: Option<&'static [u8]>) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(addr).await.unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let accepted = Arc::clone(&accepted);
        async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                accepted.fetch_add(1, SeqCst);
                match words {
                    None => open.push(stream),
                    Some(words) => {
                        let _ = stream.read(&mut [0; 1024]).await;
                        let _ = stream.write_all(words).await;
                    }
                }
            }
        }
    });
    accepted
}

/// Whoever listens at an address without speaking as agreed is passed over.
#[tokio::test]
async fn an_address_that_only_accepts_is_passed_over() {
    let authority = Authority::new();
    let folder = Folder::new();
    let tls = TlsSpec { ca: Some(folder.write("ca.pem", &authority.pem)), server_name: None };
    for by_tls in [true, false] {
        for words in [Some(&b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..]), None] {
            let sim = Sim::start(SimConfig { log: 4096, ..SimConfig::default() }).await.unwrap();
            let pair = authority.issue_for(&[NAME], days_from_now(30));
            let server = by_tls.then(|| pair.server(BOTH));
            let front = Front::at(([127, 0, 0, 3], 0).into(), sim.addr(), MANY, server).await;
            let accepted = stranger(([127, 0, 0, 2], front.addr.port()).into(), words).await;
            let dns = Dns::start().await;
            dns.set(NAME, addresses(0, "127.0.0.2 127.0.0.3"));
            let world = world(vec![sim], &front, &dns, Protocol::Http2, tls.clone()).await;
            let before = accepted.load(SeqCst);
            for _ in 0..3 {
                check_answers(&world, "by the other address").await;
                // The next request needs a new connection.
                call(world.addr, "POST", "/health/trigger_gc", "", b"").await;
            }
            assert!(before > 0);
            assert_eq!(accepted.load(SeqCst), before, "TLS: {by_tls}, {words:?}");
        }
    }
}

/// Connections lead where the name leads; what runs on them ends where it began.
#[tokio::test]
async fn shared_connections_follow_the_name() {
    let config = SimConfig { itl: Dist::Constant(ms(20)), tokens: 100, log: 4096, ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let old = Front::at(([127, 0, 0, 2], 0).into(), sim.addr(), MANY, None).await;
    let new = Front::at(([127, 0, 0, 3], old.addr.port()).into(), sim.addr(), MANY, None).await;
    let dns = Dns::start().await;
    dns.set(NAME, addresses(0, "127.0.0.2"));
    let world = world(vec![sim], &old, &dns, Protocol::Http2, TlsSpec::default()).await;
    for (from, to, address) in [(&old, &new, "127.0.0.3"), (&new, &old, "127.0.0.2")] {
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(true)).await;
        let mut running = conn.head().await.unwrap();
        assert!(from.state.open.load(SeqCst) > 0);
        dns.set(NAME, addresses(0, address));
        // Checks have connections of their own, which do not stay.
        let before = to.connections();
        until("the name is followed", || to.connections() > before).await;
        let reply = chat(world.addr, true).await;
        assert_eq!((reply.content(), reply.is_done(), reply.attempts()), (oracle(100), true, 1));
        conn.body(&mut running).await;
        assert_eq!((running.content(), running.is_done()), (oracle(100), true));
        until("nothing is left there", || from.state.open.load(SeqCst) == 0).await;
    }
    // An idle one is left as well.
    dns.set(NAME, addresses(0, "127.0.0.3"));
    until("closed", || old.state.open.load(SeqCst) == 0).await;
    assert_eq!(chat(world.addr, true).await.content(), oracle(100));
}
