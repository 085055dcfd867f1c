//! Answers without measure: everything that is kept has a bound, and every wait an end.

use backstop_engine_sim::{Dist, Fault, SimConfig};
use serde_json::json;

use crate::client::{CHAT, Conn, End, call, chat, hi, until};
use crate::retry::check_whole;
use crate::stream_end::{check_cut, late_fault};
use crate::world::{TOKENS, World, ms, oracle};

/// More than the gateway may hold of one event and all sockets between the engine and it, and much less than the
/// engine would send.
const FEW: u64 = 32 << 20;
const MANY: u64 = 100 << 20;

fn huge(after: u64) -> Fault {
    Fault::HugeEvent { after, bytes: MANY }
}

#[tokio::test]
async fn an_event_of_a_hundred_megabytes_is_not_waited_for() {
    let config = SimConfig { itl: Dist::Constant(ms(20)), ..SimConfig::default() };
    let world = World::of(vec![config; 2], |_| {}).await;
    world.sims[0].set_fault(huge(3));
    let reply = late_fault(&world).await;
    check_cut(&reply, &oracle(3), "upstream_malformed_event", "behind the first output");
    // Before it: what one engine says at such length another would as well.
    let (asked, left) = (world.requests(), world.sims[0].cancelled());
    world.sims[0].set_fault(huge(0));
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_malformed_event"));
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert_eq!((reply.attempts(), world.requests()), (1, vec![asked[0] + 1, asked[1]]));
    until("left", || world.sims[0].cancelled() > left).await;
    let sent = world.sims[0].stats().sent_bytes;
    assert!(sent < asked[0] as u64 * FEW + FEW, "{sent}");
    // It is the request's doing rather than the engine's.
    assert!(!world.endpoint(0).breaker_open);
    world.sims[0].clear_faults();
    check_whole(&chat(world.addr, true).await, true, "afterwards");
}

#[tokio::test]
async fn a_large_event_passes() {
    let world = World::start(1, |_| {}).await;
    world.sims[0].set_fault(Fault::HugeEvent { after: 3, bytes: 1_000_000 });
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.attempts(), reply.content(), reply.is_done()), (1, oracle(TOKENS), true));
    assert!(reply.body.len() > 1_000_000);
}

#[tokio::test]
async fn a_plain_answer_of_a_hundred_megabytes_is_refused_unread() {
    let world = World::start(2, |_| {}).await;
    world.sims[0].set_fault(huge(0));
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_answer_too_large"));
    assert_eq!((reply.attempts(), world.requests()), (1, vec![1, 0]));
    until("left", || world.sims[0].cancelled() == 1).await;
    let sent = world.sims[0].stats().sent_bytes;
    assert!(sent < FEW, "{sent}");
    // Without a length in front it is read up to the limit, and not to its end.
    world.sims[0].faults().add(Fault::Http10);
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_answer_too_large"));
    until("left", || world.sims[0].cancelled() == 2).await;
    let more = world.sims[0].stats().sent_bytes - sent;
    assert!(more < MANY, "{more}");
}

/// Fewer tokens than sockets hold would show nothing.
#[tokio::test]
async fn a_flood_passes_whole() {
    const TOKENS: usize = 50_000;
    let config = SimConfig { tokens: TOKENS as u64, ..SimConfig::default() };
    let world = World::of(vec![config], |_| {}).await;
    world.sims[0].set_fault(Fault::Flood);
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.end, reply.is_done()), (End::Complete, true));
    assert!(reply.content() == oracle(TOKENS));
}

#[tokio::test]
async fn an_endless_stream_ends_with_the_total_time() {
    for flood in [true, false] {
        let itl = if flood { Dist::ZERO } else { Dist::Constant(ms(5)) };
        let config = SimConfig { itl, ..SimConfig::default() };
        let world = World::of(vec![config; 2], |service| service.timeouts.total = ms(400)).await;
        world.sims[0].set_fault(Fault::Endless);
        world.sims[0].faults().add(if flood { Fault::Flood } else { Fault::Trailers });
        let reply = chat(world.addr, true).await;
        let content = reply.content();
        let events = reply.events().len();
        assert!(content.len() > 10 && oracle(events).starts_with(&content), "{events} events");
        check_cut(&reply, &content, "total_timeout", &format!("flood {flood}"));
        until("left", || world.sims[0].cancelled() == 1).await;
        assert_eq!((world.totals().cut, world.requests()), (1, vec![1, 0]));
        // Long answers are nothing to hold against an engine.
        assert_eq!(world.endpoint(0).in_flight, 0);
        assert!(!world.endpoint(0).breaker_open);
    }
}

#[tokio::test]
async fn a_plain_answer_that_never_ends_is_left() {
    let world = World::start(2, |service| service.timeouts.response = ms(300)).await;
    world.sims[0].set_fault(Fault::Endless);
    let reply = chat(world.addr, false).await;
    check_whole(&reply, false, "another engine");
    assert_eq!((reply.attempts(), world.requests()), (2, vec![1, 1]));
    until("left", || world.sims[0].cancelled() == 1).await;
    world.sims[1].set_fault(Fault::Endless);
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (504, "response_timeout"));
}

/// A client that does not read stops the engine, not the gateway's memory.
#[tokio::test]
async fn an_endless_flood_waits_for_its_reader() {
    let world = World::start(1, |_| {}).await;
    world.sims[0].set_fault(Fault::Endless);
    world.sims[0].faults().add(Fault::Flood);
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    // Until nothing moves any more; the sockets on the way hold some megabytes.
    let mut before = 0;
    loop {
        tokio::time::sleep(ms(300)).await;
        let sent = world.sims[0].stats().sent_bytes;
        assert!(sent < FEW, "{sent} bytes for nobody");
        if sent == before {
            break;
        }
        before = sent;
    }
    assert_eq!(world.sims[0].in_flight(), 1);
    // It goes on where it stood.
    conn.contents(1000).await;
    drop(conn);
    until("left", || world.sims[0].cancelled() == 1).await;
    until("settled", || world.endpoint(0).in_flight == 0).await;
}

/// Choices without end, and other APIs.
#[tokio::test]
async fn other_endless_streams_end_in_the_same_way() {
    let cases = [
        (
            CHAT,
            json!({"model": "chat", "stream": true, "n": 3, "messages": [{"role": "user", "content": "hi"}]}),
        ),
        ("/v1/completions", json!({"model": "chat", "stream": true, "prompt": "hi"})),
        ("/v1/responses", json!({"model": "chat", "stream": true, "input": "hi"})),
    ];
    for (path, body) in cases {
        let config = SimConfig { itl: Dist::Constant(ms(2)), ..SimConfig::default() };
        let world = World::of(vec![config], |service| service.timeouts.total = ms(300)).await;
        world.sims[0].set_fault(Fault::Endless);
        let reply = call(world.addr, "POST", path, "", body.to_string().as_bytes()).await;
        let last: serde_json::Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
        assert_eq!((reply.status, reply.end), (200, End::Complete), "{path}");
        assert_eq!(last["error"]["code"], "total_timeout", "{path}: {last}");
        assert!(!reply.text().contains("[DONE]") && !reply.text().contains("response.completed"), "{path}");
    }
}
