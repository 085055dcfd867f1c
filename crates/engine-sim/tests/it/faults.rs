//! Every fault, seen from the client.

use std::time::Duration;

use backstop_engine_sim::{Cut, Dist, Fault, Rule, Sim, SimConfig, expected_text};
use serde_json::{Value, json};

use crate::client::{Conn, End, call, events, faulty_chat, hi, post};
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
        assert!(serde_json::from_slice::<Value>(&reply.body).is_err());
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
    let invalid = reply.events().iter().filter(|it| serde_json::from_str::<Value>(it).is_err()).count();
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

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn comments_are_sent_while_nothing_else_is() {
    let pings = |text: &str| text.matches(": ping\n\n").count();
    let sim = sim().await;
    // A stall: the comments go on and on.
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "x-sim-fault: stall=2, ping=5ms\r\n", &hi(true)).await;
    conn.head().await.unwrap();
    let mut text = String::new();
    while pings(&text) < 5 {
        text.push_str(std::str::from_utf8(&conn.chunk().await.unwrap()).unwrap());
    }
    assert_eq!(events(&text).len(), 3);
    drop(conn);
    // Frozen from the start, by rules: the same, and then the answer.
    sim.set_fault(Fault::Freeze);
    sim.faults().add(Fault::Ping { every: Duration::from_millis(5) });
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    for _ in 0..5 {
        assert_eq!(conn.chunk().await.unwrap(), b": ping\n\n");
    }
    sim.clear_faults();
    assert_eq!(conn.reply_end().await, End::Complete);
    // Slow: between tokens, which come all the same.
    let slow =
        SimConfig { itl: Dist::Constant(Duration::from_millis(50)), tokens: 3, ..SimConfig::default() };
    let sim = Sim::start(slow).await.unwrap();
    let reply = faulty_chat(sim.addr(), "ping=5ms", true).await;
    assert!(reply.is_done() && pings(&reply.text()) > 3, "{}", reply.text());
    assert_eq!(reply.content(), expected_text(0, HI, 3));
}

#[tokio::test]
async fn finish_reasons_may_be_empty() {
    let sim = sim().await;
    let reply = faulty_chat(sim.addr(), "empty_finish", true).await;
    let reasons = |reply: &crate::client::Reply| -> Vec<Value> {
        let json = reply.events().into_iter().filter_map(|event| serde_json::from_str::<Value>(&event).ok());
        json.map(|it| it["choices"][0]["finish_reason"].clone()).collect()
    };
    let mut expected = vec![json!(""); 65];
    expected.push(json!("stop"));
    assert_eq!(reasons(&reply), expected);
    assert_eq!((reply.content(), reply.is_done()), (expected_text(0, HI, 64), true));
}

/// `choice` and its finish reason, event by event.
fn choices(reply: &crate::client::Reply) -> Vec<(u64, bool)> {
    let json = reply.events().into_iter().filter_map(|event| serde_json::from_str::<Value>(&event).ok());
    let choice = |it: Value| {
        (it["choices"][0]["index"].as_u64().unwrap(), it["choices"][0]["finish_reason"] != Value::Null)
    };
    json.map(choice).collect()
}

#[tokio::test]
async fn choices_may_come_one_by_one() {
    let sim = sim().await;
    let body = json!({
        "stream": true, "n": 2, "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}],
    })
    .to_string();
    let ask =
        async |fault: &str| call(sim.addr(), "POST", CHAT, &format!("x-sim-fault: {fault}\r\n"), &body).await;
    let of = |choice| (0..5).map(move |event| (choice, event == 4));
    let reply = ask("one_by_one").await;
    assert_eq!(choices(&reply), of(0).chain(of(1)).collect::<Vec<_>>());
    assert!(reply.is_done());
    // Role chunks and tokens take turns otherwise.
    assert_eq!(choices(&ask("no_done").await)[..4], [(0, false), (1, false), (0, false), (1, false)]);
    for (how, end) in [("fin", End::Fin), ("end", End::Complete)] {
        let reply = ask(&format!("one_by_one, cut=3;how={how}")).await;
        assert_eq!((reply.end, choices(&reply)), (end, of(0).collect()), "{how}");
    }
    let reply = ask("one_by_one, cut=6").await;
    assert_eq!(choices(&reply), of(0).chain(of(1).take(4)).collect::<Vec<_>>());
}

#[tokio::test]
async fn answers_of_the_wrong_kind() {
    let sim = sim().await;
    let whole = expected_text(0, HI, 64);
    let reply = faulty_chat(sim.addr(), "plain_for_stream", true).await;
    assert!(reply.status == 200 && reply.head.contains("content-type: application/json"));
    assert_eq!(reply.json()["choices"][0]["message"]["content"], whole);
    let reply = faulty_chat(sim.addr(), "stream_for_plain", false).await;
    assert!(reply.status == 200 && reply.head.contains("content-type: text/event-stream"));
    assert_eq!((reply.content(), reply.is_done()), (whole, true));
    // Neither changes what is asked for the right way.
    assert!(faulty_chat(sim.addr(), "plain_for_stream", false).await.json()["choices"].is_array());
    assert!(faulty_chat(sim.addr(), "stream_for_plain", true).await.is_done());
    let reply = faulty_chat(sim.addr(), "redirect=http://127.0.0.1:9/there", true).await;
    assert!(
        reply.status == 307 && reply.head.contains("location: http://127.0.0.1:9/there"),
        "{}",
        reply.head
    );
    sim.set_fault(Fault::NoChat);
    for _ in 0..2 {
        let reply = call(sim.addr(), "POST", CHAT, "", &hi(false)).await;
        assert!(reply.status == 400 && reply.text().contains("does not support chat"));
        assert_eq!(post(sim.addr(), "/v1/embeddings", &json!({"input": "hi"})).await.status, 200);
    }
    assert_eq!((sim.in_flight(), sim.cancelled()), (0, 0));
}

#[tokio::test]
async fn streams_end_behind_the_finish_reason_and_by_failing() {
    let sim = sim().await;
    for (how, end) in [("fin", End::Fin), ("end", End::Complete)] {
        let reply = faulty_chat(sim.addr(), &format!("cut_after_finish={how}"), true).await;
        assert_eq!((reply.end, reply.content()), (end, expected_text(0, HI, 64)));
        assert!(reply.has_finish() && !reply.is_done());
    }
    let input = json!({"stream": true, "input": "hi"}).to_string();
    for (after, events) in [(0, 5), (2, 7)] {
        let fault = format!("x-sim-fault: failed={after}\r\n");
        let reply = call(sim.addr(), "POST", "/v1/responses", &fault, &input).await;
        assert_eq!((reply.end, reply.events().len()), (End::Complete, events));
        let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
        assert_eq!(
            (&last["type"], &last["response"]["status"]),
            (&json!("response.failed"), &json!("failed"))
        );
    }
    assert!(faulty_chat(sim.addr(), "failed=0", true).await.events()[1].starts_with("{\"error\":"));
}
