//! After the first byte: the client gets what was good, then the truth.

use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::client::{CHAT, Conn, End, Reply, all, call, chat, error_code, hi, until};
use crate::world::{TOKENS, World, ms, oracle};

/// Good content, then one error event, and nothing after it.
#[track_caller]
pub(crate) fn check_cut(reply: &Reply, good: &str, code: &str, context: &str) {
    assert_eq!((reply.status, reply.end), (200, End::Complete), "{context}");
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"), "{context}");
    let mut events = reply.events();
    let last = events.pop().unwrap();
    assert_ne!(last, "[DONE]", "{context}");
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(error_code(&last), code, "{context}: {last}");
    for event in &events {
        let event: Value = serde_json::from_str(event).unwrap();
        assert!(event.get("error").is_none() && event["choices"].is_array(), "{context}: {event}");
    }
    assert_eq!(reply.content(), good, "{context}");
}

#[tokio::test]
async fn streams_that_break_end_with_an_error_event() {
    let cut = |after, how, mid_event| Fault::Cut { after, how, mid_event };
    let mut cases = Vec::new();
    for after in [1, 3, 63, 64] {
        cases.push((cut(after, Cut::Fin, false), after, "upstream_disconnected"));
        cases.push((cut(after, Cut::End, false), after, "upstream_truncated"));
    }
    cases.extend([
        (cut(3, Cut::Fin, true), 3, "upstream_disconnected"),
        (cut(3, Cut::End, true), 3, "upstream_truncated"),
        (Fault::Stall { after: 3 }, 3, "upstream_stalled"),
        (Fault::InvalidEvent { after: 3 }, 3, "upstream_malformed_event"),
        (Fault::Garbage { after: 3 }, 3, "upstream_malformed_event"),
        (Fault::ErrorEvent { after: 3, done: false }, 3, "upstream_stream_error"),
    ]);
    let running = cases.into_iter().map(|(fault, after, code)| tokio::spawn(broken(fault, after, code)));
    all(running.collect()).await;

    async fn broken(fault: Fault, after: u64, code: &'static str) {
        let context = format!("{fault:?}");
        let (world, mut conn, reply) = broken_after_the_first_byte(&fault).await;
        check_cut(&reply, &oracle(after as usize), code, &context);
        assert_eq!(world.requests(), [1, 0], "{context}");
        assert_eq!((world.totals().cut, world.totals().answered), (1, 0), "{context}");
        assert_eq!(world.endpoint(0).in_flight, 0, "{context}");
        // The connection is as good as new.
        world.sims[0].clear_faults();
        conn.send("POST", CHAT, "", &hi(true)).await;
        assert_eq!(conn.reply().await.content(), oracle(TOKENS), "{context}");
    }
}

/// Engines write one event at a time, but on a busy machine several may arrive together with the fault; then
/// nothing has been sent yet and another engine helps. That is another test's business.
async fn broken_after_the_first_byte(fault: &Fault) -> (World, Conn, Reply) {
    for _ in 0..20 {
        let config = SimConfig { itl: Dist::Constant(ms(5)), ..SimConfig::default() };
        let world = World::of(vec![config; 2], |service| service.timeouts.inter_token = ms(150)).await;
        world.sims[0].set_fault(fault.clone());
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(true)).await;
        let reply = conn.reply().await;
        if reply.attempts() == 1 {
            return (world, conn, reply);
        }
        assert_eq!((reply.attempts(), reply.content()), (2, oracle(TOKENS)));
    }
    panic!("{fault:?} always comes with the first byte");
}

/// A streamed chat whose fault does not arrive together with the first output (see above).
pub(crate) async fn late_fault(world: &World) -> Reply {
    for _ in 0..20 {
        let reply = chat(world.addr, true).await;
        if (reply.status, reply.attempts()) == (200, 1) {
            return reply;
        }
    }
    panic!("the fault always comes with the first byte");
}

/// A reset may throw away what was not read yet, but what arrives is still good.
#[tokio::test]
async fn a_reset_in_the_stream_leaves_a_prefix() {
    for mid_event in [true, false] {
        let world = World::start(2, |_| {}).await;
        world.sims[0].set_fault(Fault::Cut { after: 20, how: Cut::Rst, mid_event });
        let reply = chat(world.addr, true).await;
        if reply.attempts() == 2 {
            // Nothing of it arrived, so it was not too late to go elsewhere.
            assert_eq!(reply.content(), oracle(TOKENS));
            continue;
        }
        let content = reply.content();
        assert!(oracle(20).starts_with(&content), "{content}");
        check_cut(&reply, &content, "upstream_disconnected", "reset");
    }
}

#[tokio::test]
async fn a_killed_engine_ends_its_streams_properly() {
    let world = World::start(1, |_| {}).await;
    world.sims[0].set_fault(Fault::Stall { after: 5 });
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = conn.head().await.unwrap();
    reply.body = conn.contents(5).await;
    world.sims[0].kill().await;
    conn.body(&mut reply).await;
    check_cut(&reply, &oracle(5), "upstream_disconnected", "killed");
}

#[tokio::test]
async fn a_complete_answer_without_its_end_mark_gets_one() {
    let world = World::start(1, |_| {}).await;
    world.sims[0].set_fault(Fault::NoDone);
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, reply.end), (200, End::Complete));
    assert_eq!((reply.content(), reply.is_done()), (oracle(TOKENS), true));
    assert_eq!(reply.events().iter().filter(|it| *it == "[DONE]").count(), 1);
    assert_eq!((world.totals().answered, world.totals().cut), (1, 0));
}

/// An end mark is not believed before every choice has finished.
#[tokio::test]
async fn an_end_mark_without_a_finish_is_none() {
    let config = SimConfig { itl: Dist::Constant(ms(2)), ..SimConfig::default() };
    let world = World::of(vec![config], |_| {}).await;
    world.sims[0].set_fault(Fault::NoFinish);
    let reply = chat(world.addr, true).await;
    check_cut(&reply, &oracle(TOKENS), "upstream_truncated", "no finish");
    assert_eq!((world.totals().answered, world.totals().cut), (0, 1));
}

/// Some engines send an empty finish reason with every chunk. The pauses are longer than a complete answer is
/// waited for.
#[tokio::test]
async fn an_empty_finish_reason_is_none() {
    let config = SimConfig { itl: Dist::Constant(ms(1300)), tokens: 3, ..SimConfig::default() };
    let world = World::of(vec![config], |_| {}).await;
    world.sims[0].set_fault(Fault::EmptyFinish);
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(3), true), "{}", reply.text());
    assert_eq!(reply.events().iter().filter(|it| *it == "[DONE]").count(), 1);
    assert_eq!(reply.events().len(), 1 + 3 + 1 + 1, "{}", reply.text());
    // Nor does it complete an answer that is cut.
    world.sims[0].set_fault(Fault::Cut { after: 2, how: Cut::End, mid_event: false });
    world.sims[0].faults().add(Fault::EmptyFinish);
    let reply = chat(world.addr, true).await;
    check_cut(&reply, &oracle(2), "upstream_truncated", "empty finish");
}

fn hi_with(more: Value) -> Vec<u8> {
    let mut body: Value = serde_json::from_slice(&hi(true)).unwrap();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

/// The second choice has not begun when the first is finished.
#[tokio::test]
async fn every_choice_must_finish() {
    let config = SimConfig { itl: Dist::Constant(ms(5)), tokens: 8, ..SimConfig::default() };
    let world = World::of(vec![config], |service| service.retry.attempts = 0).await;
    let two = hi_with(json!({"n": 2}));
    world.sims[0].set_fault(Fault::OneByOne);
    let reply = call(world.addr, "POST", CHAT, "", &two).await;
    assert_eq!((reply.events().len(), reply.is_done()), (10 + 10 + 1, true));
    for (how, code) in [
        (Cut::Fin, "upstream_disconnected"),
        (Cut::Rst, "upstream_disconnected"),
        (Cut::End, "upstream_truncated"),
    ] {
        for after in [8, 12, 16] {
            let context = format!("{how:?} after {after}");
            world.sims[0].set_fault(Fault::Cut { after, how, mid_event: false });
            world.sims[0].faults().add(Fault::OneByOne);
            let reply = call(world.addr, "POST", CHAT, "", &two).await;
            let mut events = reply.events();
            let last: Value = serde_json::from_str(&events.pop().unwrap()).unwrap();
            assert_eq!((reply.status, error_code(&last).as_str()), (200, code), "{context}: {last}");
            assert!(!reply.text().contains("[DONE]"), "{context}");
            if how == Cut::Rst {
                // What had not been read yet may be lost.
                assert!(!events.is_empty(), "{context}");
                continue;
            }
            let whole = if after == 8 { 10 } else { 10 + 1 + after as usize - 8 };
            assert_eq!(events.len(), whole, "{context}");
            assert!(events[9].contains(r#""finish_reason":"stop""#), "{context}");
        }
    }
}

/// Several prompts are several choices, whatever `n` says; and `n` is for each of them.
#[tokio::test]
async fn every_prompt_must_be_answered() {
    let config = SimConfig { itl: Dist::Constant(ms(5)), tokens: 4, ..SimConfig::default() };
    let world = World::of(vec![config], |service| service.retry.attempts = 0).await;
    let cases = [
        (r#"{"model":"chat","stream":true,"prompt":["a","b"]}"#, 2),
        (r#"{"model":"chat","stream":true,"prompt":[[1,2],[3]]}"#, 2),
        (r#"{"model":"chat","stream":true,"prompt":["a","b"],"n":2}"#, 4),
        (r#"{"model":"chat","stream":true,"prompt":"a","n":3}"#, 3),
        (r#"{"model":"chat","stream":true,"prompt":[1,2,3]}"#, 1),
        (r#"{"model":"chat","stream":true,"prompt":["a"]}"#, 1),
    ];
    for (body, choices) in cases {
        let ask = async || call(world.addr, "POST", "/v1/completions", "", body.as_bytes()).await;
        world.sims[0].set_fault(Fault::OneByOne);
        let reply = ask().await;
        assert_eq!((reply.events().len(), reply.is_done()), (choices * 5 + 1, true), "{body}");
        for finished in 1..choices {
            world.sims[0].set_fault(Fault::Cut {
                after: 4 * finished as u64,
                how: Cut::End,
                mid_event: false,
            });
            world.sims[0].faults().add(Fault::OneByOne);
            let reply = ask().await;
            let mut events = reply.events();
            let last = events.pop().unwrap();
            assert_ne!(last, "[DONE]", "{finished} of {body}");
            assert_eq!(error_code(&serde_json::from_str(&last).unwrap()), "upstream_truncated", "{body}");
            assert_eq!(events.len(), finished * 5, "{finished} of {body}");
        }
        // Complete without the end mark, as well.
        world.sims[0].set_fault(Fault::CutAfterFinish { how: Cut::Fin });
        assert!(ask().await.is_done(), "{body}");
    }
}

/// A pause between choices, or before the usage, may be longer than a complete answer is waited for.
#[tokio::test]
async fn a_pause_between_choices_ends_nothing() {
    let config = SimConfig { itl: Dist::Constant(ms(1300)), tokens: 1, ..SimConfig::default() };
    let world = World::of(vec![config], |_| {}).await;
    world.sims[0].set_fault(Fault::OneByOne);
    let body = hi_with(json!({"n": 2, "stream_options": {"include_usage": true}}));
    let reply = call(world.addr, "POST", CHAT, "", &body).await;
    assert_eq!((reply.events().len(), reply.is_done()), (3 + 3 + 1 + 1, true), "{}", reply.text());
}

/// Whoever asked for the usage is not told that all is well without it.
#[tokio::test]
async fn the_usage_that_was_asked_for_is_part_of_the_answer() {
    let config = SimConfig { itl: Dist::Constant(ms(2)), ..SimConfig::default() };
    let world = World::of(vec![config], |_| {}).await;
    let with = hi_with(json!({"stream_options": {"include_usage": true}}));
    let reply = call(world.addr, "POST", CHAT, "", &with).await;
    assert_eq!((reply.events().len(), reply.is_done()), (1 + TOKENS + 1 + 1 + 1, true));
    for how in [Cut::Fin, Cut::End] {
        world.sims[0].set_fault(Fault::CutAfterFinish { how });
        let reply = call(world.addr, "POST", CHAT, "", &with).await;
        let code = if how == Cut::Fin { "upstream_disconnected" } else { "upstream_truncated" };
        check_cut(&reply, &oracle(TOKENS), code, &format!("{how:?}"));
        for without in [hi(true), hi_with(json!({"stream_options": {"include_usage": false}}))] {
            let reply = call(world.addr, "POST", CHAT, "", &without).await;
            assert_eq!((reply.content(), reply.is_done()), (oracle(TOKENS), true), "{how:?}");
            assert_eq!(reply.events().len(), 1 + TOKENS + 1 + 1, "{how:?}");
        }
    }
    // With the end mark only the usage chunk is missing: some engines have none to give.
    world.sims[0].set_fault(Fault::NoDone);
    let reply = call(world.addr, "POST", CHAT, "", &with).await;
    assert_eq!((reply.events().len(), reply.is_done()), (1 + TOKENS + 1 + 1 + 1, true));
}

/// Comments keep a connection open; they are no tokens.
#[tokio::test]
async fn comments_are_no_sign_of_life() {
    let config = SimConfig { itl: Dist::Constant(ms(5)), ..SimConfig::default() };
    let world = World::of(vec![config], |service| service.timeouts.inter_token = ms(300)).await;
    world.sims[0].set_fault(Fault::Stall { after: 3 });
    world.sims[0].faults().add(Fault::Ping { every: ms(20) });
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, reply.end, reply.content()), (200, End::Complete, oracle(3)));
    let text = reply.text();
    let (_, last) = text.trim_end().rsplit_once("\n\n").unwrap();
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error_code(&last), "upstream_stalled");
    assert_eq!(world.totals().cut, 1);
}

#[tokio::test]
async fn pieces_of_any_size_make_the_same_stream() {
    let world = World::start(1, |_| {}).await;
    let whole = chat(world.addr, true).await;
    for bytes in [1, 3, 100, 10_000] {
        world.sims[0].set_fault(Fault::Dribble { bytes });
        let reply = chat(world.addr, true).await;
        assert_eq!((reply.content(), reply.is_done()), (oracle(TOKENS), true), "{bytes}");
        assert_eq!(reply.events().len(), whole.events().len(), "{bytes}");
    }
}

#[tokio::test]
async fn other_apis_are_cut_in_the_same_way() {
    let cases = [
        ("/v1/completions", r#"{"model":"chat","stream":true,"prompt":"hi"}"#),
        ("/v1/responses", r#"{"model":"chat","stream":true,"input":"hi"}"#),
    ];
    for (path, body) in cases {
        let world = World::start(1, |_| {}).await;
        let whole = call(world.addr, "POST", path, "", body.as_bytes()).await;
        assert_eq!((whole.status, whole.end), (200, End::Complete));
        for how in [Cut::Fin, Cut::End] {
            world.sims[0].set_fault(Fault::Cut { after: 4, how, mid_event: true });
            let reply = call(world.addr, "POST", path, "", body.as_bytes()).await;
            let mut events = reply.events();
            let last: Value = serde_json::from_str(&events.pop().unwrap()).unwrap();
            error_code(&last);
            assert_eq!((reply.status, reply.end), (200, End::Complete), "{path}");
            let content = reply.content();
            assert!(!content.is_empty() && whole.content().starts_with(&content), "{path}: {content}");
            assert!(content.len() < whole.content().len(), "{path}");
            assert!(!reply.text().contains("[DONE]") && !reply.text().contains("response.completed"));
        }
    }
}

/// The time between tokens is the upstream's alone: a client that reads slowly is nobody's stall.
#[tokio::test]
async fn a_slow_reader_gets_everything() {
    const MANY: usize = 80_000;
    let config = SimConfig { tokens: MANY as u64, ..SimConfig::default() };
    let world = World::of(vec![config], |service| service.timeouts.inter_token = ms(150)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut conn = Conn::of(socket.connect(world.addr).await.unwrap());
    conn.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = conn.head().await.unwrap();
    // The pause is what is tested: much longer than the upstream may take between two tokens.
    tokio::time::sleep(ms(600)).await;
    assert_eq!(world.sims[0].in_flight(), 1, "the stream fits into buffers; make it longer");
    conn.body(&mut reply).await;
    assert!(reply.is_done());
    assert_eq!(reply.content(), oracle(MANY));
}

#[tokio::test]
async fn the_total_time_ends_a_stream() {
    let config = SimConfig { itl: Dist::Constant(ms(20)), tokens: 100_000, ..SimConfig::default() };
    let world = World::of(vec![config], |service| service.timeouts.total = ms(300)).await;
    let reply = chat(world.addr, true).await;
    let content = reply.content();
    assert!(!content.is_empty() && oracle(1000).starts_with(&content), "{content}");
    check_cut(&reply, &content, "total_timeout", "total");
    until("cancelled upstream", || world.sims[0].cancelled() == 1).await;
}
