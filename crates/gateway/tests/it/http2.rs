//! Clients that speak HTTP/2: one connection, many requests, none of which suffers from another.

use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::{CHAT, Conn, End, all, hi, soon, until};
use crate::h2client::{H2, STREAM_WINDOW, piece, reply};
use crate::stream_end::check_cut;
use crate::world::{TOKENS, World, ms, oracle};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

fn slow(itl: u64, tokens: u64) -> SimConfig {
    SimConfig { itl: Dist::Constant(ms(itl)), tokens, ..SimConfig::default() }
}

#[tokio::test]
async fn answers_are_the_same() {
    let world = World::start(1, |_| {}).await;
    let client = H2::open(world.addr).await;
    for stream in [true, false] {
        let new = client.chat(stream).await;
        let old = crate::client::chat(world.addr, stream).await;
        assert_eq!((new.status, new.end, new.content()), (200, End::Complete, oracle(TOKENS)));
        // Request ids and dates differ, and what frames a body in HTTP/1.1.
        let names = |headers: &[(String, String)]| {
            let mut names: Vec<_> = headers.iter().map(|(name, _)| name.clone()).collect();
            names.retain(|name| name != "transfer-encoding");
            names.sort();
            names
        };
        assert_eq!(names(&new.headers), names(&old.headers));
        assert_eq!(new.events_or_nothing(stream), old.events_or_nothing(stream));
    }
    assert_eq!(world.totals().answered, 4);
}

#[tokio::test]
async fn mistakes_have_the_same_answers() {
    let world = World::start(1, |_| {}).await;
    let client = H2::open(world.addr).await;
    let large = vec![b'x'; 16 * 1024 * 1024 + 1];
    let cases = [
        ("POST", CHAT, "application/json", large, 413, "request_too_large"),
        ("GET", CHAT, "application/json", Vec::new(), 405, "method_not_allowed"),
        ("POST", "/v2/x", "application/json", hi(true), 404, "unknown_path"),
        ("POST", CHAT, "text/plain", hi(true), 415, "unsupported_content_type"),
        ("POST", CHAT, "application/json", b"{".to_vec(), 400, "invalid_request_body"),
        ("POST", CHAT, "application/json", br#"{"model":"nobody"}"#.to_vec(), 404, "model_not_found"),
    ];
    for (method, path, kind, body, status, code) in cases {
        let reply = client.call(method, path, &[("content-type", kind)], body).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (status, code), "{}", reply.text());
        assert_eq!(reply.header("connection"), None);
    }
    // What the library itself refuses has no body.
    let long = "a".repeat(70 * 1024);
    let reply = client.call("POST", CHAT, &[("x-long", &long)], hi(true)).await;
    assert_eq!(reply.status, 431);
    assert_eq!(world.requests(), [0]);
    // None of this was the connection's fault.
    assert_eq!(client.chat(true).await.content(), oracle(TOKENS));
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let world = World::start(1, |_| {}).await;
    let client = H2::open(world.addr).await;
    let whole = client.call("GET", "/health", &[], "").await;
    let head = client.call("HEAD", "/health", &[], "").await;
    assert_eq!((head.status, head.end, head.body.len()), (200, End::Complete, 0));
    assert_eq!(head.header("content-length"), Some(whole.body.len().to_string().as_str()));
}

#[tokio::test]
async fn streams_that_break_end_with_an_error_event() {
    for (fault, code) in [
        (Fault::Cut { after: 3, how: Cut::Fin, mid_event: true }, "upstream_disconnected"),
        (Fault::Cut { after: 3, how: Cut::End, mid_event: false }, "upstream_truncated"),
        (Fault::Stall { after: 3 }, "upstream_stalled"),
    ] {
        let world = World::of(vec![slow(20, 64)], |service| service.timeouts.inter_token = ms(300)).await;
        let client = H2::open(world.addr).await;
        world.sims[0].set_fault(fault);
        let reply = client.chat(true).await;
        check_cut(&reply, &oracle(3), code, code);
        world.sims[0].clear_faults();
        assert_eq!(client.chat(true).await.content(), oracle(TOKENS), "on the same connection");
    }
}

#[tokio::test]
async fn a_cancelled_stream_is_cancelled_upstream_and_harms_nobody() {
    let world = World::of(vec![slow(20, 200)], |_| {}).await;
    let client = H2::open(world.addr).await;
    let (mut stays, mut leaves) = (client.begin().await, client.begin().await);
    piece(&mut leaves).await;
    piece(&mut stays).await;
    until("both run", || world.sims[0].in_flight() == 2).await;
    drop(leaves);
    until("cancelled upstream", || world.sims[0].cancelled() == 1).await;
    until("accounted for", || world.totals().cancelled == 1).await;
    // Before the head as well.
    world.sims[0].set_fault(Fault::NoAnswer);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.chat(true).await }
    });
    until("it waits", || world.sims[0].in_flight() == 2).await;
    waiting.abort();
    until("cancelled upstream", || world.sims[0].cancelled() == 2).await;
    let rest = reply(stays).await;
    assert!(rest.end == End::Complete && rest.is_done());
    until("all over", || world.endpoint(0).in_flight == 0).await;
    assert_eq!((world.totals().cancelled, world.totals().answered), (2, 1));
}

#[tokio::test]
async fn many_streams_at_once_on_one_connection() {
    let world = World::of(vec![slow(2, 64)], |_| {}).await;
    let client = H2::open(world.addr).await;
    let running = (0..300).map(|i| {
        let client = client.clone();
        tokio::spawn(async move {
            let reply = client.chat(i % 3 != 0).await;
            assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
        })
    });
    all(running.collect()).await;
    assert_eq!(world.totals().answered, 300);
}

/// One stream that is not read fills its own window and nobody else's.
#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_nobody() {
    const MANY: usize = 20_000;
    let config = SimConfig { tokens: MANY as u64, ..SimConfig::default() };
    let world = World::of(vec![config], |service| service.timeouts.inter_token = ms(400)).await;
    let client = H2::open(world.addr).await;
    let unread = client.begin().await;
    until("its window is full", || world.sims[0].in_flight() == 1).await;
    let few =
        br#"{"model":"chat","stream":true,"max_tokens":50,"messages":[{"role":"user","content":"hi"}]}"#;
    for _ in 0..5 {
        let reply = client.call("POST", CHAT, &[], &few[..]).await;
        assert_eq!((reply.status, reply.content(), reply.is_done()), (200, oracle(50), true));
    }
    // Longer than the upstream may take between two tokens: it is the client that is slow.
    tokio::time::sleep(ms(800)).await;
    assert_eq!(world.sims[0].in_flight(), 1, "{STREAM_WINDOW} bytes and all buffers hold it; make it longer");
    let reply = reply(unread).await;
    assert!(reply.end == End::Complete && reply.is_done() && reply.content() == oracle(MANY));
}

/// Streams opened and cancelled as fast as they can be written leave nothing behind.
#[tokio::test]
async fn rapid_reset_exhausts_nothing() {
    let world = World::of(vec![slow(50, 1000)], |_| {}).await;
    let good = H2::open(world.addr).await;
    let body = Bytes::from(hi(true));
    for _ in 0..3 {
        let stream = TcpStream::connect(world.addr).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..3000 {
            let Ok(ready) = soon("ready", sender.clone().ready()).await else { break };
            sender = ready;
            let request = http::Request::post(format!("http://gateway{CHAT}")).body(()).unwrap();
            let Ok((_, mut stream)) = sender.send_request(request, false) else { break };
            let _ = stream.send_data(body.clone(), true);
            stream.send_reset(h2::Reason::CANCEL);
        }
        drop(sender);
        // It may have been told to go away.
        let _ = soon("the end", connection).await;
    }
    until("nothing is left", || world.endpoint(0).in_flight == 0 && world.sims[0].in_flight() == 0).await;
    let mut stays = good.begin().await;
    piece(&mut stays).await;
}

#[tokio::test]
async fn no_more_streams_than_allowed() {
    let world = World::start(1, |_| {}).await;
    let stream = TcpStream::connect(world.addr).await.unwrap();
    let (sender, connection) =
        h2::client::Builder::new().initial_max_send_streams(1).handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    until("the limit is known", || sender.current_max_send_streams() > 1).await;
    assert_eq!(sender.current_max_send_streams(), 250);
}

#[tokio::test]
async fn the_first_bytes_may_come_one_by_one() {
    let world = World::start(1, |_| {}).await;
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in PREFACE {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::time::sleep(ms(1)).await;
    }
    stream.write_all(SETTINGS).await.unwrap();
    let mut answer = [0; 9];
    soon("settings", tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer)).await.unwrap();
    assert_eq!(answer[3], 4, "the first frame is one of settings: {answer:?}");

    let request = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n", hi(false).len());
    let mut conn = Conn::open(world.addr).await;
    for byte in request.as_bytes() {
        conn.write(&[*byte]).await;
        tokio::time::sleep(ms(1)).await;
    }
    conn.write(&hi(false)).await;
    assert_eq!(conn.reply().await.content(), oracle(TOKENS));
}

#[tokio::test]
async fn almost_http2_is_http1() {
    let world = World::start(1, |_| {}).await;
    for almost in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"[..], b"PRI * HTTP/2.0\r\n\r\n", b"PRI", b"P"] {
        let mut conn = Conn::open(world.addr).await;
        conn.write(almost).await;
        conn.write(b"x\r\n\r\n").await;
        assert_eq!((conn.reply().await.status, conn.rest().await.0.len()), (400, 0));
        // Or nothing follows.
        let mut conn = Conn::open(world.addr).await;
        conn.write(almost).await;
        conn.stream.shutdown().await.unwrap();
        let (rest, _) = conn.rest().await;
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "), "{almost:?}");
    }
    assert_eq!(world.requests(), [0]);
}

#[tokio::test]
async fn an_upgrade_is_not_taken_up() {
    let world = World::start(1, |_| {}).await;
    let headers =
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n";
    let reply = crate::client::call(world.addr, "POST", CHAT, headers, &hi(false)).await;
    assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
    let log = world.sims[0].request_log();
    let sent = log.last().unwrap();
    assert!(["upgrade", "http2-settings"].iter().all(|name| sent.header(name).is_none()), "{sent:?}");
}

/// Hyper shows an upload that is cancelled as one that has ended.
#[tokio::test]
async fn half_an_upload_goes_nowhere() {
    let world = World::start(1, |_| {}).await;
    for sent in [&b""[..], b"half of it"] {
        let stream = TcpStream::connect(world.addr).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let request = http::Request::post("http://gateway/v1/audio/transcriptions")
            .header("content-type", "multipart/form-data; boundary=x")
            .header("x-backstop-service", "chat")
            .body(())
            .unwrap();
        let (_response, mut stream) = sender.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(sent), false).unwrap();
        let before = world.totals().requests;
        until("it has arrived", || world.totals().requests > before).await;
        stream.send_reset(h2::Reason::CANCEL);
        // The connection goes on, so that all that came before has been seen.
        let request = http::Request::get("http://gateway/health").body(()).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(soon("health", response).await.unwrap().status(), 200);
    }
    until("both are over", || world.totals().cancelled + world.totals().refused == 2).await;
    assert_eq!(world.requests(), [0]);
}
