//! Model servers that speak HTTP/2: requests share connections, and nothing else.

use std::sync::atomic::Ordering::SeqCst;

use backstop_core::health::State;
use backstop_core::table::{InferenceSpec, Protocol};
use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};

use crate::client::{CHAT, Conn, End, chat, hi, until};
use crate::front::{BOTH, Fronted, HTTP1, MANY, Speaks, check_answers};
use crate::secure::Authority;
use crate::stream_end::check_cut;
use crate::world::{LONG, TOKENS, World, ms, oracle};

fn slow(itl: u64, tokens: u64) -> SimConfig {
    SimConfig { itl: Dist::Constant(ms(itl)), tokens, ..SimConfig::default() }
}

/// Requests share connections as far as the server lets them.
#[tokio::test]
async fn as_many_connections_as_needed() {
    for (allowed, requests, expected) in [(100, 40, 1), (4, 10, 3), (1, 5, 5)] {
        let fronted = Fronted::cleartext(slow(10, 100), Speaks::Http2(allowed)).await;
        let before = fronted.connections();
        let mut clients = Vec::new();
        for _ in 0..requests {
            let mut conn = Conn::open(fronted.world.addr).await;
            conn.send("POST", CHAT, "", &hi(true)).await;
            clients.push(conn);
        }
        until("all run", || fronted.world.sims[0].in_flight() == requests).await;
        assert_eq!(fronted.connections() - before, expected, "{requests} requests, {allowed} at once");
        for mut conn in clients {
            let reply = conn.reply().await;
            assert_eq!((reply.content(), reply.attempts()), (oracle(100), 1));
        }
        // They serve again.
        check_answers_of(&fronted.world, 100).await;
        assert_eq!(fronted.connections() - before, expected);
    }
}

async fn check_answers_of(world: &World, tokens: usize) {
    assert_eq!(chat(world.addr, true).await.content(), oracle(tokens));
}

#[tokio::test]
async fn a_client_that_leaves_resets_its_stream_and_no_other() {
    let fronted = Fronted::cleartext(slow(20, 200), MANY).await;
    let world = &fronted.world;
    let mut stays = Conn::open(world.addr).await;
    stays.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = stays.head().await.unwrap();
    let connections = fronted.connections();
    for faulty in [false, true] {
        if faulty {
            world.sims[0].set_fault(Fault::NoAnswer);
        }
        let mut leaves = Conn::open(world.addr).await;
        leaves.send("POST", CHAT, "", &hi(true)).await;
        if !faulty {
            leaves.head().await.unwrap();
        }
        let cancelled = world.sims[0].cancelled();
        until("both run", || world.sims[0].in_flight() == 2).await;
        drop(leaves);
        until("cancelled upstream", || world.sims[0].cancelled() > cancelled).await;
    }
    stays.body(&mut reply).await;
    assert_eq!((reply.end, reply.content(), reply.is_done()), (End::Complete, oracle(200), true));
    assert_eq!(fronted.connections(), connections, "all on one connection");
    until("nothing is left", || world.endpoint_in_flight() == 0).await;
}

impl World {
    fn endpoint_in_flight(&self) -> u32 {
        self.endpoints().iter().map(|it| it.in_flight).sum()
    }
}

/// A client that does not read holds back its own stream; the others share a connection with it.
#[tokio::test]
async fn a_slow_reader_holds_up_nobody() {
    const MANY_TOKENS: usize = 40_000;
    let config = SimConfig { tokens: MANY_TOKENS as u64, ..SimConfig::default() };
    let mut fronted = Fronted::cleartext(config, MANY).await;
    fronted.world.apply(|spec| spec.services[0].timeouts.total = 10 * LONG);
    let world = &fronted.world;
    let mut slow = Vec::new();
    for _ in 0..2 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let mut conn = Conn::of(socket.connect(world.addr).await.unwrap());
        conn.send("POST", CHAT, "", &hi(true)).await;
        let reply = conn.head().await.unwrap();
        slow.push((conn, reply));
    }
    let connections = fronted.connections();
    let few =
        br#"{"model":"chat","stream":true,"max_tokens":50,"messages":[{"role":"user","content":"hi"}]}"#;
    for _ in 0..5 {
        let reply = crate::client::call(world.addr, "POST", CHAT, "", few).await;
        assert_eq!((reply.content(), reply.is_done()), (oracle(50), true));
    }
    assert_eq!(fronted.connections(), connections);
    for (mut conn, mut reply) in slow {
        conn.body(&mut reply).await;
        assert!(reply.is_done(), "{:?}", reply.events().last());
        assert!(reply.content() == oracle(MANY_TOKENS));
    }
}

#[tokio::test]
async fn streams_that_break_end_with_an_error_event() {
    for (speaks, offered) in [(Speaks::Http1, HTTP1), (MANY, BOTH)] {
        for (fault, code) in [
            (Fault::Cut { after: 3, how: Cut::Fin, mid_event: true }, "upstream_disconnected"),
            (Fault::Cut { after: 3, how: Cut::End, mid_event: false }, "upstream_truncated"),
        ] {
            let fronted = Fronted::tls(slow(20, 64), speaks, offered, Protocol::Auto).await;
            fronted.world.sims[0].set_fault(fault);
            let reply = chat(fronted.world.addr, true).await;
            check_cut(&reply, &oracle(3), code, code);
            fronted.world.sims[0].clear_faults();
            check_answers(&fronted.world, "afterwards").await;
        }
    }
}

/// Some reasons look like a proper end to the library that speaks HTTP/2 for us.
#[tokio::test]
async fn a_reset_is_no_end() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        let fronted = Fronted::cleartext(slow(20, 64), MANY).await;
        *fronted.front.state.reset.lock().unwrap() = Some(reason);
        let reply = chat(fronted.world.addr, true).await;
        let (content, code) = (reply.content(), "upstream_disconnected");
        if reply.header("content-type") == Some("application/json") {
            assert_eq!((reply.status, reply.error_code().as_str()), (502, code), "{reason:?}");
        } else {
            check_cut(&reply, &content, code, &format!("{reason:?}"));
        }
        // Where nothing but the end says that an answer is whole.
        let ask = async || {
            let head = "content-type: application/octet-stream\r\nx-backstop-service: chat\r\n";
            crate::client::call(fronted.world.addr, "GET", "/v1/files/1/content", head, b"").await
        };
        let reply = ask().await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, code), "{reason:?}: {}", reply.text());
        *fronted.front.state.reset.lock().unwrap() = None;
        assert_ne!(ask().await.status, 502);
    }
}

/// A server that refuses streams has enough to do: it is asked again later, and not taken for broken, nor are more
/// connections made to it.
#[tokio::test]
async fn refused_streams_are_back_pressure() {
    let mut fronted = Fronted::cleartext(SimConfig::default(), MANY).await;
    fronted.world.apply(|spec| spec.services[0].breaker.failures = 1);
    check_answers(&fronted.world, "first").await;
    let before = fronted.connections();
    fronted.front.state.refuse.store(1, SeqCst);
    let reply = chat(fronted.world.addr, true).await;
    assert_eq!((reply.status, reply.content(), reply.attempts()), (200, oracle(TOKENS), 2));
    assert_eq!(fronted.world.requests(), [3]);
    fronted.front.state.refuse.store(1000, SeqCst);
    for _ in 0..3 {
        let reply = chat(fronted.world.addr, true).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_refused"));
    }
    fronted.front.state.refuse.store(0, SeqCst);
    check_answers(&fronted.world, "afterwards").await;
    assert_eq!(fronted.connections(), before);
}

/// A connection that ends while a request is on its way to it may have been closed before, as idle ones are at any time.
#[tokio::test]
async fn a_stale_connection_is_replaced() {
    let fronted = Fronted::cleartext(SimConfig::default(), MANY).await;
    check_answers(&fronted.world, "first").await;
    fronted.front.state.hang_up.store(1, SeqCst);
    let addr = fronted.world.addr;
    let clients: Vec<_> = (0..5).map(|i| tokio::spawn(chat(addr, i % 2 == 0))).collect();
    for client in clients {
        let reply = client.await.unwrap();
        assert_eq!((reply.status, reply.content(), reply.attempts()), (200, oracle(TOKENS), 1));
    }
    // A new one that ends so is not stale.
    fronted.front.state.hang_up.store(2, SeqCst);
    let reply = chat(fronted.world.addr, true).await;
    assert_eq!((reply.status, reply.content(), reply.attempts()), (200, oracle(TOKENS), 2));
}

/// One request that gets no answer says nothing about a connection on which others get theirs.
#[tokio::test]
async fn a_request_without_an_answer_is_no_sign_of_a_dead_connection() {
    for others in [true, false] {
        let fronted = Fronted::cleartext(slow(20, 1000), MANY).await;
        let world = &fronted.world;
        let mut conn = Conn::open(world.addr).await;
        if others {
            conn.send("POST", CHAT, "", &hi(true)).await;
            conn.head().await.unwrap();
        } else {
            check_answers_of_one_token(world).await;
        }
        let before = fronted.connections();
        world.sims[0].set_fault(Fault::NoAnswer);
        let mut silent = Conn::open(world.addr).await;
        silent.send("POST", CHAT, "", &hi(true)).await;
        // As long as it takes to be in doubt.
        tokio::time::sleep(ms(5500)).await;
        let cancelled = world.sims[0].cancelled();
        drop(silent);
        until("cancelled upstream", || world.sims[0].cancelled() > cancelled).await;
        world.sims[0].clear_faults();
        check_answers_of_one_token(world).await;
        assert_eq!(fronted.connections(), before + usize::from(!others), "others: {others}");
    }
}

async fn check_answers_of_one_token(world: &World) {
    let one = br#"{"model":"chat","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
    assert_eq!(crate::client::call(world.addr, "POST", CHAT, "", one).await.content(), oracle(1));
}

#[tokio::test]
async fn a_server_that_goes_away_ends_what_it_has() {
    let fronted = Fronted::cleartext(slow(10, 100), MANY).await;
    let world = &fronted.world;
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = conn.head().await.unwrap();
    let before = fronted.connections();
    fronted.front.go_away();
    let second = chat(world.addr, true).await;
    assert_eq!((second.content(), second.attempts()), (oracle(100), 1));
    assert!(fronted.connections() <= before + 1);
    conn.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(100), true));
    until("the old connection is gone", || fronted.front.state.open.load(SeqCst) <= 1).await;
    check_answers_of(world, 100).await;
}

/// Idle connections are closed by servers at any time: nobody notices.
#[tokio::test]
async fn connections_are_used_again_and_replaced() {
    for (speaks, offered) in [(Speaks::Http1, HTTP1), (MANY, BOTH)] {
        let fronted = Fronted::tls(SimConfig::default(), speaks, offered, Protocol::Auto).await;
        check_answers(&fronted.world, "first").await;
        let before = fronted.connections();
        for _ in 0..10 {
            check_answers(&fronted.world, "again").await;
        }
        assert_eq!(fronted.connections(), before, "one connection for all");
        for _ in 0..3 {
            // The process behind it is another one now; connections to the front end with it.
            fronted.world.sims[0].kill().await;
            fronted.world.sims[0].restart().await.unwrap();
            fronted.front.go_away();
            let reply = chat(fronted.world.addr, true).await;
            assert_eq!((reply.status, reply.content(), reply.attempts()), (200, oracle(TOKENS), 1));
        }
        assert!(fronted.front.state.resumed.load(SeqCst) > 0, "sessions are resumed");
    }
}

#[tokio::test]
async fn probes_take_the_same_way() {
    for (speaks, offered) in [(Speaks::Http1, HTTP1), (MANY, BOTH)] {
        let authority = Authority::new();
        let tls = Some((authority.pem.as_str(), authority.issue().server(offered)));
        let mut fronted = Fronted::of(SimConfig::default(), speaks, tls, Protocol::Auto, |_| {}).await;
        fronted.world.apply(|spec| {
            let health = &mut spec.services[0].health;
            (health.interval, health.down) = (ms(30), 1);
            health.inference = Some(InferenceSpec { every: ms(50), max_latency: ms(5000) });
        });
        fronted.world.until_all(State::Healthy).await;
        until("inference", || fronted.world.sims[0].request_log().len() > 3).await;
        fronted.world.sims[0].set_fault(Fault::Health { status: 503 });
        fronted.world.until_all(State::Unhealthy).await;
        let reason = fronted.world.endpoints()[0].reason.clone();
        assert!(reason.contains("answered 503"), "{reason}");
        fronted.world.sims[0].clear_faults();
        fronted.world.until_all(State::Healthy).await;
        // Each had a connection of its own, and none stays.
        until("no connection is left", || fronted.front.state.open.load(SeqCst) <= 2).await;
        assert!(fronted.connections() > 5);
    }
}
