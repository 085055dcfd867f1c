//! The engine as a whole: health that flaps or dawdles, a process that dies again and again.

use std::time::Duration;

use backstop_engine_sim::{Fault, Rule};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{Conn, End, call, hi};
use crate::load::until;
use crate::protocol::sim;

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn health_flaps_as_scheduled() {
    let sim = sim().await;
    sim.set_fault(Fault::Flap { up: 2, down: 3, status: 500 });
    let mut seen = Vec::new();
    for _ in 0..12 {
        seen.push(call(sim.addr(), "GET", "/health", "", "").await.status);
        // Requests are served all the time.
        assert_eq!(call(sim.addr(), "POST", CHAT, "", &hi(false)).await.status, 200);
    }
    assert_eq!(seen, [200, 200, 500, 500, 500, 200, 200, 500, 500, 500, 200, 200]);
}

#[tokio::test(start_paused = true)]
async fn health_may_take_its_time() {
    let sim = sim().await;
    let delay = Duration::from_secs(100);
    sim.set_fault(Rule::times(Fault::SlowHealth { delay }, 1));
    for seconds in [100, 0] {
        let start = Instant::now();
        assert_eq!(call(sim.addr(), "GET", "/health", "", "").await.status, 200);
        assert_eq!(start.elapsed().as_secs(), seconds);
    }
}

#[tokio::test]
async fn a_process_dies_and_comes_back() {
    let sim = sim().await;
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "x-sim-fault: stall=1\r\n", &hi(true)).await;
    conn.head().await.unwrap();
    let ms = Duration::from_millis;
    sim.set_fault(Rule::times(Fault::Refuse { up: ms(20), down: ms(20) }, 3));
    assert_eq!(conn.reply_end().await, End::Reset);
    // Three outages with time to serve between them, and that was all.
    until(|| sim.faults().list().is_empty()).await;
    while TcpStream::connect(sim.addr()).await.is_err() {
        tokio::time::sleep(ms(1)).await;
    }
    assert!(call(sim.addr(), "POST", CHAT, "", &hi(true)).await.is_done());
    // What broke off was not the clients' doing.
    assert_eq!((sim.cancelled(), sim.in_flight()), (0, 0));
}

#[tokio::test]
async fn an_outage_ends_with_the_simulator_and_not_with_its_rule() {
    let sim = sim().await;
    let ms = Duration::from_millis;
    sim.set_fault(Fault::Refuse { up: ms(1), down: Duration::from_secs(3600) });
    while TcpStream::connect(sim.addr()).await.is_ok() {
        tokio::time::sleep(ms(1)).await;
    }
    sim.clear_faults();
    assert!(TcpStream::connect(sim.addr()).await.is_err());
    sim.restart().await.unwrap();
    assert!(call(sim.addr(), "POST", CHAT, "", &hi(true)).await.is_done());
}
