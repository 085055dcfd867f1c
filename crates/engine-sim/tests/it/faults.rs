//! Every fault, seen from the client.

use backstop_engine_sim::{Cut, Fault, Rule, expected_text};

use crate::client::{Conn, End, call, events, faulty_chat, hi};
use crate::load::until;
use crate::protocol::{HI, sim};

#[tokio::test]
async fn a_status_is_answered() {
    let sim = sim().await;
    let reply = faulty_chat(sim.addr(), "status=503;retry_after=2", true).await;
    assert_eq!(reply.status, 503);
    assert!(reply.head.contains("retry-after: 2"));
    assert!(reply.json()["error"]["message"].is_string());
    let reply = faulty_chat(sim.addr(), "status=500", false).await;
    assert!(reply.status == 500 && !reply.head.contains("retry-after"));
    assert_eq!(faulty_chat(sim.addr(), "nonsense=1", true).await.status, 400);
    assert_eq!((sim.stats().faulted, sim.in_flight(), sim.cancelled()), (2, 0, 0));
}

#[tokio::test]
async fn streams_are_cut_in_every_way() {
    let sim = sim().await;
    for (how, end) in [("fin", End::Fin), ("rst", End::Reset), ("end", End::Complete)] {
        for after in [0, 1, 7, 64] {
            let reply = faulty_chat(sim.addr(), &format!("cut={after};how={how}"), true).await;
            assert_eq!((reply.status, reply.end), (200, end));
            let sent = expected_text(0, HI, after);
            // A reset may throw away what the client has not read yet.
            assert!(reply.content() == sent || how == "rst" && sent.starts_with(&reply.content()));
            assert!(!reply.is_done() && !reply.has_finish());
        }
        let reply = faulty_chat(sim.addr(), &format!("cut=3;how={how};mid_event"), true).await;
        assert_eq!(reply.end, end);
        if how != "rst" {
            assert_eq!(reply.content(), expected_text(0, HI, 3));
            assert!(!reply.text().ends_with("\n\n"));
        }
    }
    assert_eq!((sim.in_flight(), sim.cancelled()), (0, 0));
}

#[tokio::test]
async fn plain_answers_are_cut_in_every_way() {
    let sim = sim().await;
    for (how, end) in [("fin", End::Fin), ("rst", End::Reset), ("end", End::Complete)] {
        let reply = faulty_chat(sim.addr(), &format!("cut=1;how={how}"), false).await;
        assert_eq!((reply.status, reply.end), (200, end));
        assert!(how == "rst" || !reply.body.is_empty());
        assert!(serde_json::from_slice::<serde_json::Value>(&reply.body).is_err());
    }
}

#[tokio::test]
async fn connections_are_closed_without_an_answer() {
    let sim = sim().await;
    assert_eq!(faulty_chat(sim.addr(), "hangup", true).await.end, End::Fin);
    assert_eq!(faulty_chat(sim.addr(), "hangup=rst", true).await.end, End::Reset);
}

#[tokio::test]
async fn stalled_and_unanswered_requests_end_with_their_clients() {
    let sim = sim().await;
    let mut stalled = Conn::open(sim.addr()).await;
    stalled.send("POST", "/v1/chat/completions", "x-sim-fault: stall=2\r\n", &hi(true)).await;
    stalled.head().await.unwrap();
    for _ in 0..3 {
        assert_eq!(events(std::str::from_utf8(&stalled.chunk().await.unwrap()).unwrap()).len(), 1);
    }
    let mut silent = Conn::open(sim.addr()).await;
    silent.send("POST", "/v1/chat/completions", "x-sim-fault: no_answer\r\n", &hi(true)).await;
    until(|| sim.in_flight() == 2).await;
    assert_eq!(sim.stats().running, 1);
    drop(stalled);
    until(|| sim.cancelled() == 1).await;
    assert_eq!(sim.stats().running, 0);
    drop(silent);
    until(|| sim.cancelled() == 2).await;
    assert_eq!(sim.in_flight(), 0);
}

#[tokio::test]
async fn rules_hit_the_next_requests() {
    let sim = sim().await;
    sim.faults().add(Rule::times(Fault::Status { status: 502, retry_after: None, message: None }, 1));
    sim.faults().add(Rule::times(Fault::Cut { after: 2, how: Cut::Fin, mid_event: false }, 1));
    let mut replies = Vec::new();
    for _ in 0..3 {
        let reply = call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(true)).await;
        replies.push((reply.status, reply.end));
    }
    assert_eq!(replies, [(502, End::Complete), (200, End::Fin), (200, End::Complete)]);
    assert!(sim.faults().list().is_empty());
}

#[tokio::test]
async fn kill_resets_and_restart_serves_again() {
    let sim = sim().await;
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", "/v1/chat/completions", "x-sim-fault: stall=1\r\n", &hi(true)).await;
    conn.head().await.unwrap();
    sim.kill().await;
    assert_eq!(conn.reply_end().await, End::Reset);
    assert!(tokio::net::TcpStream::connect(sim.addr()).await.is_err());
    sim.restart().await.unwrap();
    assert!(call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(true)).await.is_done());
    assert_eq!((sim.cancelled(), sim.in_flight()), (0, 0));
}

#[tokio::test]
async fn streams_are_spoiled_in_every_way() {
    let sim = sim().await;
    let whole = expected_text(0, HI, 64);
    let chat = async |fault| faulty_chat(sim.addr(), fault, true).await;

    let reply = chat("invalid_event=2").await;
    assert_eq!((reply.content(), reply.is_done()), (whole.clone(), true));
    let invalid =
        reply.events().iter().filter(|it| serde_json::from_str::<serde_json::Value>(it).is_err()).count();
    assert_eq!(invalid, 2, "the event itself and [DONE]");

    let reply = chat("garbage=2").await;
    assert!(reply.end == End::Complete && std::str::from_utf8(&reply.body).is_err());

    let reply = chat("error_event=2").await;
    assert_eq!((reply.end, reply.content()), (End::Complete, expected_text(0, HI, 2)));
    assert!(reply.events()[3].starts_with("{\"error\":") && !reply.is_done());

    let reply = chat("no_done").await;
    assert_eq!((reply.content(), reply.has_finish(), reply.is_done()), (whole.clone(), true, false));
    let reply = chat("no_finish").await;
    assert_eq!((reply.content(), reply.has_finish(), reply.is_done()), (whole.clone(), false, true));
}

#[tokio::test]
async fn streams_are_written_in_any_size() {
    let sim = sim().await;
    for size in [1, 5, 300] {
        let mut conn = Conn::open(sim.addr()).await;
        let header = format!("x-sim-fault: dribble={size}\r\n");
        conn.send("POST", "/v1/chat/completions", &header, &hi(true)).await;
        conn.head().await.unwrap();
        let mut body = Vec::new();
        loop {
            let chunk = conn.chunk().await.unwrap();
            assert!(chunk.len() <= size);
            if chunk.is_empty() {
                break;
            }
            body.extend(chunk);
        }
        assert!(events(&String::from_utf8(body).unwrap()).ends_with(&["[DONE]".to_owned()]));
    }
}

#[tokio::test]
async fn faults_for_others_are_ignored() {
    let sim = sim().await;
    assert!(faulty_chat(sim.addr(), "cut=1;only=other", true).await.is_done());
    assert!(!faulty_chat(sim.addr(), "cut=1;only=sim", true).await.is_done());
}
