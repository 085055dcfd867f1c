//! Answers in unusual framings, of unusual size, without an end.

use std::time::Duration;

use backstop_engine_sim::{Dist, Fault, Rule, Sim, SimConfig, expected_text};
use serde_json::Value;

use crate::client::{Conn, End, call, events, faulty_chat, hi};
use crate::load::until;
use crate::protocol::{HI, sim};

const CHAT: &str = "/v1/chat/completions";

/// Head and everything behind it, up to the end of the connection.
async fn raw(sim: &Sim, fault: &str, stream: bool) -> (String, Vec<u8>, End) {
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, &format!("x-sim-fault: {fault}\r\n"), &hi(stream)).await;
    let (_, head) = conn.head().await.unwrap();
    let (body, end) = conn.rest().await;
    (head, body, end)
}

fn text(body: &[u8]) -> String {
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn http_1_0_ends_with_the_connection() {
    let sim = sim().await;
    let (head, body, end) = raw(&sim, "http10", true).await;
    assert!(head.starts_with("http/1.0 200 ok\r\n"), "{head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    let events = events(&text(&body));
    assert_eq!((end, events.len(), events.last().unwrap().as_str()), (End::Fin, 67, "[DONE]"));
    let (head, body, end) = raw(&sim, "http10", false).await;
    assert!(head.starts_with("http/1.0 200 ok\r\n") && !head.contains("content-length"), "{head}");
    let json: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((end, &json["choices"][0]["finish_reason"]), (End::Fin, &"stop".into()));
    // On top of another fault, which looks the same at the end of the connection.
    let (_, body, end) = raw(&sim, "http10, cut=3", true).await;
    assert_eq!((end, crate::client::events(&text(&body)).len()), (End::Fin, 4));
    assert_eq!((sim.in_flight(), sim.cancelled()), (0, 0));
}

#[tokio::test]
async fn chunks_have_extensions_and_trailers() {
    let sim = sim().await;
    for (fault, last) in [
        ("chunk_extensions", "\r\n0;last\r\n\r\n"),
        ("trailers", "\r\n0\r\nx-checksum: 1234\r\nserver-timing: decode;dur=12\r\n\r\n"),
    ] {
        for stream in [true, false] {
            let (head, body, end) = raw(&sim, fault, stream).await;
            assert!(head.starts_with("http/1.1 200 ok\r\ntransfer-encoding: chunked\r\n"), "{head}");
            assert!(!head.contains("content-length") && head.contains("connection: close"), "{head}");
            let body = text(&body);
            assert!(end == End::Fin && body.ends_with(last), "{body}");
            let extended = body.matches(";name=value;flag;quoted=\"a;b\"\r\n").count();
            let chunks = if stream { 67 } else { 1 };
            assert_eq!(extended, if fault == "trailers" { 0 } else { chunks }, "{body}");
        }
    }
    // The next request on another connection is answered as usual.
    assert!(call(sim.addr(), "POST", CHAT, "", &hi(true)).await.is_done());
}

#[tokio::test]
async fn an_event_may_be_huge() {
    let sim = sim().await;
    let reply = faulty_chat(sim.addr(), "huge_event=2;bytes=300000", true).await;
    assert_eq!((reply.content(), reply.is_done()), (expected_text(0, HI, 64), true));
    let lengths: Vec<_> = reply.events().iter().map(String::len).collect();
    assert!(lengths[3] > 300_000 && lengths.iter().filter(|length| **length > 1000).count() == 1);
    let reply = faulty_chat(sim.addr(), "huge_event=0;bytes=300000", false).await;
    assert!(reply.end == End::Complete && reply.body.len() > 300_000);
    assert_eq!(reply.json()["choices"][0]["message"]["content"], expected_text(0, HI, 64));
    assert!(sim.stats().sent_bytes > 600_000);
    // By default it is much more than anybody should read.
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "x-sim-fault: huge_event=0\r\n", &hi(true)).await;
    conn.head().await.unwrap();
    until(|| sim.stats().sent_bytes > 1_000_000).await;
    drop(conn);
    until(|| sim.cancelled() == 1).await;
    assert!(sim.stats().sent_bytes < 50_000_000);
}

#[tokio::test]
async fn tokens_may_come_for_ever() {
    let sim = Sim::start(SimConfig { tokens: 3, ..SimConfig::default() }).await.unwrap();
    sim.set_fault(Fault::Endless);
    sim.faults().add(Fault::Flood);
    let body = r#"{"stream": true, "max_tokens": 5, "stop": ["the"], "messages": [{"role": "user", "content": "hi"}]}"#;
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "", body).await;
    conn.head().await.unwrap();
    let mut all = Vec::new();
    while all.len() < 1_000_000 {
        let chunk = conn.chunk().await.unwrap();
        assert!(!chunk.is_empty());
        all.extend(chunk);
    }
    assert!(!text(&all).contains("\"finish_reason\":\""));
    drop(conn);
    until(|| sim.cancelled() == 1).await;
    // A plain answer never comes, though the engine works on it.
    let before = sim.stats().generation_tokens;
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "", &hi(false)).await;
    until(|| sim.stats().generation_tokens > before + 20).await;
    assert_eq!(sim.in_flight(), 1);
    drop(conn);
    until(|| sim.in_flight() == 0).await;
}

/// With delays of a day.
#[tokio::test]
async fn a_flood_does_not_wait() {
    let day = Dist::Constant(Duration::from_secs(86_400));
    let sim = Sim::start(SimConfig { ttft: day, itl: day, ..SimConfig::default() }).await.unwrap();
    let reply = faulty_chat(sim.addr(), "flood", true).await;
    assert_eq!((reply.content(), reply.is_done()), (expected_text(0, HI, 64), true));
    assert!(!faulty_chat(sim.addr(), "flood, cut=3;how=end", true).await.is_done());
    sim.faults().add(Rule::times(Fault::Flood, 1));
    assert_eq!(call(sim.addr(), "POST", CHAT, "", &hi(false)).await.status, 200);
}

#[tokio::test]
async fn errors_in_streams_speak_the_engines_dialect() {
    use backstop_engine_sim::Dialect;
    for (dialect, kind, code) in [
        (Dialect::Vllm, "InternalServerError", Value::from(500)),
        (Dialect::Sglang, "InternalServerError", Value::from(500)),
        (Dialect::LlamaCpp, "server_error", Value::from(500)),
        (Dialect::OpenAi, "server_error", Value::Null),
    ] {
        let sim = Sim::start(SimConfig { dialect, ..SimConfig::default() }).await.unwrap();
        for done in [true, false] {
            let fault = if done { "error_event=2;done" } else { "error_event=2" };
            let reply = faulty_chat(sim.addr(), fault, true).await;
            let error: Value = serde_json::from_str(&reply.events()[3]).unwrap();
            assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&kind.into(), &code), "{error}");
            assert_eq!((reply.events().len(), reply.is_done()), (4 + usize::from(done), done));
        }
    }
}
