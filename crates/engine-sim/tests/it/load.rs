//! Slots, queue, KV cache, freezing and the end of a simulator.

use std::time::Duration;

use backstop_engine_sim::{Dist, Fault, Sim, SimConfig, expected_text};
use serde_json::json;
use tokio::time::Instant;

use crate::client::{Conn, End, call, hi, post};
use crate::protocol::{HI, sim};

/// Lets the simulator catch up with what its client did.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

const CHAT: &str = "/v1/chat/completions";
const STALL: &str = "x-sim-fault: stall=0\r\n";

/// A stream that holds its slot until the connection is dropped.
async fn occupy(sim: &Sim) -> Conn {
    let mut conn = Conn::open(sim.addr()).await;
    let before = sim.in_flight();
    conn.send("POST", CHAT, STALL, &hi(true)).await;
    until(|| sim.in_flight() == before + 1).await;
    conn
}

#[tokio::test]
async fn the_queue_fills_and_empties() {
    let config = SimConfig { slots: Some(1), queue: Some(1), ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let first = occupy(&sim).await;
    let mut second = occupy(&sim).await;
    assert_eq!((sim.stats().running, sim.stats().waiting), (1, 1));
    let reply = call(sim.addr(), "POST", CHAT, "", &hi(true)).await;
    assert!(reply.status == 503 && reply.head.contains("retry-after: 1"));
    drop(first);
    // The second gets the slot: its role chunk arrives.
    second.head().await.unwrap();
    assert!(!second.chunk().await.unwrap().is_empty());
    drop(second);
    until(|| sim.stats().running == 0).await;
    assert_eq!((sim.cancelled(), sim.stats().rejected, sim.stats().waiting), (2, 1, 0));
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_cancelled() {
    let sim = Sim::start(SimConfig { slots: Some(1), ..SimConfig::default() }).await.unwrap();
    let _first = occupy(&sim).await;
    for stream in [true, false] {
        let mut waiting = Conn::open(sim.addr()).await;
        waiting.send("POST", CHAT, "", &hi(stream)).await;
        until(|| sim.stats().waiting == 1).await;
        drop(waiting);
        until(|| sim.stats().waiting == 0).await;
    }
    assert_eq!((sim.cancelled(), sim.in_flight()), (2, 1));
}

#[tokio::test]
async fn what_does_not_fit_the_kv_cache_waits() {
    let config = SimConfig { kv_tokens: Some(100), tokens: 60, ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let first = occupy(&sim).await;
    let second = occupy(&sim).await;
    assert_eq!((sim.stats().running, sim.stats().waiting), (1, 1));
    let metrics = call(sim.addr(), "GET", "/metrics", "", "").await.text();
    assert!(metrics.contains("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim\"} 0.65"), "{metrics}");
    drop(first);
    until(|| sim.stats().waiting == 0).await;
    drop(second);
    let long =
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1000, "ignore_eos": true});
    let reply = post(sim.addr(), CHAT, &long).await.json();
    assert_eq!(reply["usage"]["total_tokens"], 100);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn frozen_decoding_stands_still_while_health_passes() {
    let sim = sim().await;
    sim.set_fault(Fault::Freeze);
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    until(|| sim.stats().running == 1).await;
    assert_eq!(call(sim.addr(), "GET", "/health", "", "").await.status, 200);
    assert_eq!(sim.stats().generation_tokens, 0);
    sim.clear_faults();
    assert_eq!(conn.reply_end().await, End::Complete);
    assert_eq!(sim.stats().generation_tokens, 64);
}

#[tokio::test]
async fn a_decode_frozen_midway_stops_and_goes_on() {
    let sim = Sim::start(SimConfig { tokens: 1 << 20, ..SimConfig::default() }).await.unwrap();
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    sim.set_fault(Fault::Freeze);
    let before = sim.stats().generation_tokens;
    for _ in 0..100 {
        assert_eq!(call(sim.addr(), "GET", "/health", "", "").await.status, 200);
    }
    // One token may have passed the gate before it closed.
    assert!(sim.stats().generation_tokens <= before + 1);
    sim.clear_faults();
    until(|| sim.stats().generation_tokens > before + 1).await;
}

#[tokio::test(start_paused = true)]
async fn tokens_come_at_their_time() {
    let config = SimConfig {
        ttft: "100s".parse().unwrap(),
        itl: Dist::Constant(Duration::from_secs(10)),
        tokens: 5,
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await.unwrap();
    for stream in [true, false] {
        let start = Instant::now();
        call(sim.addr(), "POST", CHAT, "", &hi(stream)).await;
        // Virtual time: exact up to the timer's millisecond.
        assert_eq!(start.elapsed().as_secs(), 150);
        let start = Instant::now();
        call(sim.addr(), "POST", CHAT, "x-sim-fault: slow_first_token=1000s\r\n", &hi(stream)).await;
        assert_eq!(start.elapsed().as_secs(), 1150);
    }
}

#[tokio::test]
async fn shutdown_lets_answers_end() {
    let config =
        SimConfig { tokens: 500, itl: Dist::Constant(Duration::from_micros(100)), ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    until(|| sim.in_flight() == 1).await;
    let (reply, ()) = tokio::join!(conn.reply(), sim.shutdown());
    assert!(reply.end == End::Complete && reply.is_done());
    assert_eq!(reply.content(), expected_text(0, HI, 500));
    assert!(tokio::net::TcpStream::connect(sim.addr()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn shutdown_cuts_off_what_never_ends() {
    let sim = sim().await;
    let mut conn = occupy(&sim).await;
    sim.shutdown().await;
    assert_eq!(conn.reply().await.end, End::Fin);
    assert_eq!((sim.cancelled(), sim.in_flight()), (0, 0));
}

#[tokio::test]
async fn dropping_stops() {
    let sim = sim().await;
    let addr = sim.addr();
    let mut conn = occupy(&sim).await;
    drop(sim);
    assert_ne!(conn.reply().await.end, End::Complete);
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
