use std::net::TcpListener;
use std::process::Command;

use backstop_engine_sim::{Fault, Sim};
use tokio::net::TcpStream;

use crate::backstop::{BIN, Backstop, config, directory, oracle, sim};
use crate::client::{CHAT, Conn, End, Reply, error_code, events, hi, soon, until};

#[tokio::test]
async fn running_streams_may_end() {
    for signal in ["TERM", "INT"] {
        let sim = sim(15, 64).await;
        let mut backstop = Backstop::serve(&config(&[&sim]), &[]).await;
        backstop.ready().await;
        let mut idle = Conn::open(backstop.addr).await;
        idle.send("GET", "/ready", "", b"").await;
        assert_eq!(idle.reply().await.status, 200);
        let mut conn = Conn::open(backstop.addr).await;
        conn.send("POST", CHAT, "", &hi(true)).await;
        let mut reply = conn.head().await.unwrap();
        reply.body = conn.contents(2).await;
        let mut plain = Conn::open(backstop.addr).await;
        plain.send("POST", CHAT, "", &hi(false)).await;
        until("both run", || sim.in_flight() == 2).await;
        backstop.signal(signal);
        // Nobody else comes in, and who does nothing leaves.
        let refused = async { while TcpStream::connect(backstop.addr).await.is_ok() {} };
        soon("no new connections", refused).await;
        assert!(idle.rest().await.0.is_empty());
        conn.body(&mut reply).await;
        assert_eq!((reply.content(), reply.is_done()), (oracle(64), true));
        let plain = plain.reply().await;
        assert_eq!((plain.status, plain.content()), (200, oracle(64)));
        assert_eq!(backstop.exit().await.code(), Some(0));
        until("said so", || backstop.logged("stopped")).await;
    }
}

/// A stream that stands still after three tokens, and a plain request that gets no answer.
struct Stuck {
    streaming: Conn,
    begun: Reply,
    waiting: Conn,
}

impl Stuck {
    async fn on(backstop: &Backstop, sim: &Sim) -> Self {
        sim.set_fault(Fault::Stall { after: 3 });
        let mut streaming = Conn::open(backstop.addr).await;
        streaming.send("POST", CHAT, "", &hi(true)).await;
        let mut begun = streaming.head().await.unwrap();
        begun.body = streaming.contents(3).await;
        sim.set_fault(Fault::NoAnswer);
        let mut waiting = Conn::open(backstop.addr).await;
        waiting.send("POST", CHAT, "", &hi(false)).await;
        Self { streaming, begun, waiting }
    }

    /// Both end properly, and say why.
    async fn end_told(mut self) {
        self.streaming.body(&mut self.begun).await;
        assert_eq!((self.begun.end, self.begun.content()), (End::Complete, oracle(3)));
        let last = events(&self.begun.body).unwrap().pop().unwrap();
        assert_eq!(error_code(&serde_json::from_str(&last).unwrap()), "shutting_down");
        let reply = self.waiting.reply().await;
        assert_eq!((reply.status, reply.error_code().as_str()), (503, "shutting_down"));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
}

#[tokio::test]
async fn what_does_not_end_in_time_end_told() {
    let sim = sim(0, 64).await;
    let mut backstop = Backstop::serve(&config(&[&sim]), &["--drain", "1s"]).await;
    backstop.ready().await;
    let stuck = Stuck::on(&backstop, &sim).await;
    let mut half = Conn::open(backstop.addr).await;
    half.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 100\r\n\r\n{").await;
    until("both run", || sim.in_flight() == 2).await;
    backstop.signal("TERM");
    stuck.end_told().await;
    let reply = half.reply().await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "shutting_down"));
    assert_eq!(backstop.exit().await.code(), Some(0));
    until("cancelled upstream", || sim.cancelled() == 2).await;
}

/// Whoever can't wait says so again.
#[tokio::test]
async fn a_second_signal_ends_the_drain() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT")] {
        let sim = sim(0, 64).await;
        // Longer than any test waits.
        let mut backstop = Backstop::serve(&config(&[&sim]), &["--drain", "10m"]).await;
        backstop.ready().await;
        let stuck = Stuck::on(&backstop, &sim).await;
        until("both run", || sim.in_flight() == 2).await;
        backstop.signal(first);
        let refused = async { while TcpStream::connect(backstop.addr).await.is_ok() {} };
        soon("draining", refused).await;
        assert_eq!(sim.in_flight(), 2, "one signal leaves them time");
        backstop.signal(second);
        stuck.end_told().await;
        assert_eq!(backstop.exit().await.code(), Some(0));
        until("cancelled upstream", || sim.cancelled() == 2).await;
    }
}

/// The kernel has taken their connections, so they can't be refused any more.
#[tokio::test]
async fn whoever_waits_to_be_accepted_is_answered() {
    let sim = sim(0, 64).await;
    let mut backstop = Backstop::serve(&config(&[&sim]), &[]).await;
    backstop.ready().await;
    // Stopped in its tracks, so that none of them is accepted before the signal is there.
    backstop.signal("STOP");
    let mut waiting = Vec::new();
    for i in 0..50 {
        let mut conn = Conn::open(backstop.addr).await;
        conn.send("POST", CHAT, "", &hi(i % 2 == 0)).await;
        waiting.push(conn);
    }
    backstop.signal("TERM");
    backstop.signal("CONT");
    for (i, conn) in waiting.iter_mut().enumerate() {
        let reply = conn.reply().await;
        assert_eq!((reply.status, reply.end), (200, End::Complete), "{i}");
        assert_eq!(reply.content(), oracle(64), "{i}");
    }
    assert_eq!(backstop.exit().await.code(), Some(0));
}

#[tokio::test]
async fn readiness_follows_the_engines() {
    let sim = sim(0, 64).await;
    let backstop = Backstop::serve(&config(&[&sim]), &[]).await;
    backstop.ready().await;
    sim.kill().await;
    let gone = async {
        loop {
            let (status, body) = backstop.readiness().await;
            if status == 503 {
                break body;
            }
        }
    };
    let body = soon("not ready", gone).await;
    assert_eq!(
        (body["reason"].as_str(), &body["services"][0]),
        (Some("no_healthy_endpoint"), &"chat".into())
    );
    let alive = crate::client::call(backstop.addr, "GET", "/health", "", b"").await;
    assert_eq!(alive.status, 200, "alive all the same");
    sim.restart().await.unwrap();
    backstop.ready().await;
}

#[test]
fn a_port_in_use_is_said_plainly() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let directory = directory();
    let text = format!(
        "listen: {addr}\nservices:\n  - name: chat\n    versions:\n      - name: v1\n        endpoints:\n          \
         - url: http://127.0.0.1:1\n"
    );
    std::fs::write(directory.join("backstop.yaml"), text).unwrap();
    let output = Command::new(BIN).arg("serve").current_dir(&directory).output().unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with(&format!("error: can't listen on `{addr}`: ")), "{error}");
    assert!(error.contains("in use") && error.lines().count() == 2, "{error}");
    assert!(
        error
            .lines()
            .last()
            .unwrap()
            .contains("hint: if it is a backstop that this one is to replace, add `--take-over`")
    );
}
