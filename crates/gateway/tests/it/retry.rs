//! What fails before anything was sent to the client is tried elsewhere, and nobody notices.

use std::time::Duration;

use backstop_core::health::State;
use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};
use serde_json::json;

use crate::client::{CHAT, Conn, End, Reply, all, call, chat, hi, until};
use crate::world::{TOKENS, World, ms, oracle, with_raw};

/// What happens to the first engine.
#[derive(Debug, Clone)]
enum Trouble {
    Dead,
    Fault(Fault),
}

/// How the same trouble looks when no other engine can help.
struct Alone {
    status: u16,
    code: &'static str,
    attempts: u32,
}

struct Case {
    trouble: Trouble,
    /// `None`: streamed and plain alike.
    stream: Option<bool>,
    alone: Alone,
}

fn case(fault: Fault, stream: Option<bool>, status: u16, code: &'static str, attempts: u32) -> Case {
    Case { trouble: Trouble::Fault(fault), stream, alone: Alone { status, code, attempts } }
}

fn status(status: u16, retry_after: Option<u64>) -> Fault {
    Fault::Status { status, retry_after, message: Some("engine says no".to_owned()) }
}

fn cases() -> Vec<Case> {
    let cut = |how| Fault::Cut { after: 0, how, mid_event: false };
    let half = |how| Fault::Cut { after: 0, how, mid_event: true };
    let slow = Fault::SlowFirstToken { delay: Duration::from_secs(3600) };
    vec![
        Case {
            trouble: Trouble::Dead,
            stream: None,
            alone: Alone { status: 502, code: "upstream_unreachable", attempts: 3 },
        },
        // Silence is not repeated: it would only double the wait.
        case(Fault::NoAnswer, Some(true), 504, "first_token_timeout", 1),
        case(Fault::NoAnswer, Some(false), 504, "response_timeout", 1),
        case(slow.clone(), Some(true), 504, "first_token_timeout", 1),
        case(slow, Some(false), 504, "response_timeout", 1),
        case(Fault::Freeze, Some(true), 504, "first_token_timeout", 1),
        case(Fault::Freeze, Some(false), 504, "response_timeout", 1),
        case(Fault::Stall { after: 0 }, Some(true), 504, "first_token_timeout", 1),
        case(Fault::Stall { after: 0 }, Some(false), 504, "response_timeout", 1),
        case(Fault::Hangup { how: Cut::Fin }, None, 502, "upstream_disconnected", 3),
        case(Fault::Hangup { how: Cut::Rst }, None, 502, "upstream_disconnected", 3),
        // The engine's own words are passed on.
        case(status(500, None), None, 500, "engine", 3),
        case(status(502, None), None, 502, "engine", 3),
        case(status(504, None), None, 504, "engine", 3),
        case(status(503, None), None, 503, "engine", 3),
        case(status(429, None), None, 429, "engine", 3),
        case(status(408, None), None, 408, "engine", 3),
        case(status(503, Some(0)), None, 503, "engine", 3),
        // A longer pause than a request may wait for.
        case(status(503, Some(20)), None, 503, "engine", 1),
        case(status(429, Some(20)), None, 429, "engine", 1),
        // Ours to blame, not the client's; and the same key will not do better.
        case(status(401, None), None, 502, "upstream_credentials", 1),
        case(status(407, None), None, 502, "upstream_credentials", 1),
        case(cut(Cut::Fin), None, 502, "upstream_disconnected", 3),
        case(cut(Cut::Rst), None, 502, "upstream_disconnected", 3),
        case(cut(Cut::End), Some(true), 502, "upstream_truncated", 3),
        case(cut(Cut::End), Some(false), 502, "upstream_malformed_answer", 3),
        case(half(Cut::Fin), Some(true), 502, "upstream_disconnected", 3),
        case(half(Cut::Rst), Some(true), 502, "upstream_disconnected", 3),
        case(half(Cut::End), Some(true), 502, "upstream_truncated", 3),
        case(Fault::InvalidEvent { after: 0 }, Some(true), 502, "upstream_malformed_event", 3),
        case(Fault::Garbage { after: 0 }, Some(true), 502, "upstream_malformed_event", 3),
        case(Fault::ErrorEvent { after: 0, done: false }, Some(true), 502, "upstream_stream_error", 3),
        case(Fault::PlainForStream, Some(true), 502, "upstream_malformed_answer", 3),
        case(Fault::StreamForPlain, Some(false), 502, "upstream_malformed_answer", 3),
    ]
}

async fn troubled(engines: usize, trouble: &Trouble) -> World {
    let world = World::start(engines, |service| {
        service.timeouts.first_token = ms(250);
        service.timeouts.response = ms(250);
        // A key that one engine refuses another may take, if it is another key.
        service.versions[0].endpoints[0].api_key = Some("of-the-first".to_owned());
    })
    .await;
    match trouble {
        Trouble::Dead => world.sims[0].kill().await,
        Trouble::Fault(fault) => world.sims[0].set_fault(fault.clone()),
    }
    world
}

#[track_caller]
pub(crate) fn check_whole(reply: &Reply, stream: bool, context: &str) {
    assert_eq!((reply.status, reply.end), (200, End::Complete), "{context}: {}", reply.text());
    assert_eq!(reply.content(), oracle(TOKENS), "{context}");
    assert!(!stream || reply.is_done(), "{context}");
}

#[tokio::test]
async fn another_engine_helps() {
    let mut running = Vec::new();
    for Case { trouble, stream: only, .. } in cases() {
        for stream in [true, false] {
            if only.is_some_and(|only| only != stream) {
                continue;
            }
            let trouble = trouble.clone();
            running.push(tokio::spawn(async move {
                let context = format!("{trouble:?}, stream {stream}");
                let world = troubled(2, &trouble).await;
                let reply = chat(world.addr, stream).await;
                check_whole(&reply, stream, &context);
                assert_eq!(reply.attempts(), 2, "{context}");
                assert_eq!(reply.header("x-should-retry"), None, "{context}");
                // Each engine is asked once and no more.
                let dead = matches!(trouble, Trouble::Dead);
                assert_eq!(world.requests(), [usize::from(!dead), 1], "{context}");
                let totals = world.totals();
                assert_eq!((totals.answered, totals.retries, totals.failovers), (1, 1, 1), "{context}");
            }));
        }
    }
    all(running).await;
}

#[tokio::test]
async fn without_another_engine_the_error_is_clear() {
    let mut running = Vec::new();
    for Case { trouble, stream: only, alone } in cases() {
        for stream in [true, false] {
            if only.is_some_and(|only| only != stream) {
                continue;
            }
            let (trouble, Alone { status, code, attempts }) =
                (trouble.clone(), Alone { status: alone.status, code: alone.code, attempts: alone.attempts });
            running.push(tokio::spawn(async move {
                let context = format!("{trouble:?}, stream {stream}");
                let world = troubled(1, &trouble).await;
                let reply = chat(world.addr, stream).await;
                assert_eq!((reply.status, reply.end), (status, End::Complete), "{context}: {}", reply.text());
                if code == "engine" {
                    assert_eq!(reply.json()["error"]["message"], "engine says no", "{context}");
                } else {
                    assert_eq!(reply.error_code(), code, "{context}");
                }
                // OpenAI's clients would try again otherwise, on top of what we have tried.
                assert_eq!(reply.header("x-should-retry"), Some("false"), "{context}");
                let asked = match &trouble {
                    Trouble::Fault(Fault::Status { retry_after, .. }) => retry_after.map(|it| it.to_string()),
                    _ => None,
                };
                assert_eq!(reply.header("retry-after"), asked.as_deref(), "{context}");
                assert_eq!(reply.attempts(), attempts, "{context}");
                let dead = matches!(trouble, Trouble::Dead);
                assert_eq!(world.requests(), [if dead { 0 } else { attempts as usize }], "{context}");
                assert_eq!(world.totals().failed, 1, "{context}");
                assert_eq!(world.endpoint(0).in_flight, 0, "{context}");
            }));
        }
    }
    all(running).await;
}

/// What is not a chat's answer, whatever its status says.
#[tokio::test]
async fn answers_without_content_are_faults() {
    let event_stream = "content-type: text/event-stream\r\n";
    let json = "content-type: application/json\r\n";
    let cases = [
        (event_stream, "data: [DONE]\n\n", true, "upstream_truncated"),
        (event_stream, "", true, "upstream_truncated"),
        (event_stream, ": ping\n\n", true, "upstream_truncated"),
        (json, "", true, "upstream_malformed_answer"),
        (json, "", false, "upstream_malformed_answer"),
        ("", "", false, "upstream_malformed_answer"),
        (json, " ", false, "upstream_malformed_answer"),
        ("content-type: text/html\r\n", "<h1>It works!</h1>", false, "upstream_malformed_answer"),
        ("content-type: text/html\r\n", "<h1>It works!</h1>", true, "upstream_malformed_answer"),
    ];
    for (headers, body, stream, code) in cases {
        let context = format!("{headers:?} {body:?}, stream {stream}");
        let raw = with_raw(1, "200 OK", headers, body, |_| {}).await;
        let reply = chat(raw.world.addr, stream).await;
        check_whole(&reply, stream, &context);
        assert_eq!((reply.attempts(), raw.asked(), raw.world.requests()), (2, 1, vec![1]), "{context}");
        let raw = with_raw(0, "200 OK", headers, body, |_| {}).await;
        let reply = chat(raw.world.addr, stream).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, code), "{context}");
        assert_eq!((reply.attempts(), raw.asked()), (3, 3), "{context}");
    }
}

/// An answer that failed before it said anything is none; later it is the engine's own word.
#[tokio::test]
async fn a_failed_response_is_retried_before_its_first_output() {
    let input = json!({"model": "chat", "stream": true, "input": "hi"}).to_string();
    let config = SimConfig { itl: Dist::Constant(ms(5)), ..SimConfig::default() };
    let world = World::of(vec![config; 2], |_| {}).await;
    world.sims[0].set_fault(Fault::Failed { after: 0 });
    let reply = call(world.addr, "POST", "/v1/responses", "", input.as_bytes()).await;
    assert_eq!((reply.status, reply.attempts(), reply.content()), (200, 2, oracle(TOKENS)));
    assert!(reply.text().contains("response.completed") && !reply.text().contains("response.failed"));
    world.sims[0].set_fault(Fault::Failed { after: 5 });
    let reply = call(world.addr, "POST", "/v1/responses", "", input.as_bytes()).await;
    assert_eq!((reply.status, reply.attempts(), reply.content()), (200, 1, oracle(5)));
    let last: serde_json::Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["error"]["code"]),
        (&json!("response.failed"), &json!("server_error"))
    );
    assert_eq!(reply.text().matches("event: response.failed\n").count(), 1);
}

/// A redirect leads out of the table: it is neither followed nor passed on. Another engine may know better; the same one
/// will not.
#[tokio::test]
async fn redirects_are_not_passed_on() {
    for stream in [true, false] {
        let world = World::start(2, |_| {}).await;
        world.sims[0].set_fault(Fault::Redirect { location: format!("{}/v1/chat", world.sims[1].url()) });
        check_whole(&chat(world.addr, stream).await, stream, "with another engine");
        assert_eq!(world.requests(), [1, 1]);

        let world = World::start(1, |_| {}).await;
        world.sims[0].set_fault(Fault::Redirect { location: "http://127.0.0.1:9/".to_owned() });
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.end), (502, End::Complete), "{}", reply.text());
        assert_eq!(reply.error_code(), "upstream_redirect");
        assert_eq!((reply.header("location"), reply.header("x-should-retry")), (None, Some("false")));
        assert_eq!((reply.attempts(), world.requests()), (1, vec![1]));
    }
}

/// The engine does not offer what was asked for; that is no fault.
#[tokio::test]
async fn not_implemented_is_an_answer() {
    for stream in [true, false] {
        let world = World::start(2, |service| service.breaker.failures = 3).await;
        world.sims[0].set_fault(status(501, None));
        for asked in 1..=10 {
            let reply = chat(world.addr, stream).await;
            assert_eq!((reply.status, reply.attempts()), (501, 1));
            assert_eq!(reply.json()["error"]["message"], "engine says no");
            assert_eq!(world.requests(), [asked, 0]);
        }
        assert!(!world.endpoint(0).breaker_open);
    }
}

/// A request keeps waiting for an engine whose health check fails if nobody else could do better.
#[tokio::test]
async fn an_ill_engine_may_still_answer_what_it_has_begun() {
    for stream in [true, false] {
        let config = SimConfig { ttft: Dist::Constant(ms(2500)), ..SimConfig::default() };
        let world = World::of(vec![config], |service| {
            service.health.interval = ms(30);
            service.health.down = 2;
        })
        .await;
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(stream)).await;
        until("in flight", || world.sims[0].in_flight() == 1).await;
        world.sims[0].set_fault(Fault::Health { status: 500 });
        world.until_state(0, State::Unhealthy).await;
        let reply = conn.reply().await;
        check_whole(&reply, stream, "the only one");
        assert_eq!((reply.attempts(), world.requests()), (1, vec![1]));
    }
}

/// A request leaves an engine that is found dead or frozen if another can take it.
#[tokio::test]
async fn requests_leave_an_engine_that_is_found_dead() {
    for stream in [true, false] {
        for frozen in [true, false] {
            let context = format!("frozen {frozen}, stream {stream}");
            let world = World::of(vec![SimConfig::default(); 2], |service| {
                service.health.interval = ms(30);
                service.health.down = 2;
                service.health.stall = ms(300);
            })
            .await;
            world.sims[0].set_fault(if frozen { Fault::Freeze } else { Fault::NoAnswer });
            let mut conn = Conn::open(world.addr).await;
            conn.send("POST", CHAT, "", &hi(stream)).await;
            until("in flight", || world.sims[0].in_flight() == 1).await;
            if !frozen {
                world.sims[0].kill().await;
            }
            let reply = conn.reply().await;
            check_whole(&reply, stream, &context);
            assert_eq!((reply.attempts(), world.requests()), (2, vec![1, 1]), "{context}");
        }
    }
}

/// However many attempts are left: each silence costs its whole time.
#[tokio::test]
async fn the_silent_one_is_asked_once() {
    for silent in [0, 1] {
        let world = World::start(2, |service| {
            service.timeouts.first_token = ms(150);
            service.retry.attempts = 3;
        })
        .await;
        world.sims[silent].set_fault(Fault::NoAnswer);
        world.sims[1 - silent].set_fault(status(500, None));
        let reply = chat(world.addr, true).await;
        assert!(matches!(reply.status, 500 | 504), "{}", reply.text());
        assert_eq!(world.requests()[silent], 1, "silent {silent}: {:?}", world.requests());
        assert!(world.requests()[1 - silent] >= 1);
    }
}

#[tokio::test]
async fn client_mistakes_are_not_retried() {
    for code in [400, 403, 404, 405, 409, 413, 415, 422, 451] {
        for stream in [true, false] {
            let world = World::start(2, |_| {}).await;
            world.sims[0].set_fault(status(code, Some(3)));
            let reply = chat(world.addr, stream).await;
            assert_eq!(reply.status, code);
            assert_eq!(reply.json()["error"]["message"], "engine says no");
            assert_eq!((reply.attempts(), world.requests()), (1, vec![1, 0]), "{code}");
            assert_eq!(reply.header("retry-after"), Some("3"), "headers pass as well");
            assert_eq!(world.totals().answered, 1);
        }
    }
}

/// A fault that goes away is outlived even with a single engine.
#[tokio::test]
async fn a_passing_fault_is_outlived_on_the_same_engine() {
    for fault in [
        Fault::Hangup { how: Cut::Rst },
        status(500, None),
        status(503, Some(0)),
        Fault::Cut { after: 0, how: Cut::Fin, mid_event: true },
    ] {
        for stream in [true, false] {
            let context = format!("{fault:?}, stream {stream}");
            let world = World::start(1, |_| {}).await;
            world.sims[0].faults().add(backstop_engine_sim::Rule::times(fault.clone(), 2));
            let reply = chat(world.addr, stream).await;
            check_whole(&reply, stream, &context);
            assert_eq!((reply.attempts(), world.requests()), (3, vec![3]), "{context}");
            assert_eq!((world.totals().retries, world.totals().failovers), (2, 0), "{context}");
        }
    }
}

/// A connection that is kept for later and was closed meanwhile is no fault of the engine.
#[tokio::test]
async fn connections_closed_while_idle_cost_nothing() {
    let world = World::start(1, |service| service.retry.attempts = 0).await;
    for stream in [true, false] {
        check_whole(&chat(world.addr, stream).await, stream, "first");
        world.sims[0].restart().await.unwrap();
        let reply = chat(world.addr, stream).await;
        check_whole(&reply, stream, "after the restart");
        assert_eq!(reply.attempts(), 1);
    }
    assert_eq!(world.totals().failed, 0);
}

/// A hangup on a kept connection can't be told from its idle closing: the same engine is asked once more, over a
/// new connection, and that is all.
#[tokio::test]
async fn hangups_on_kept_connections_are_repeated_once() {
    for how in [Cut::Fin, Cut::Rst] {
        let world = World::start(2, |_| {}).await;
        check_whole(&chat(world.addr, false).await, false, "first");
        world.sims[0].set_fault(Fault::Hangup { how });
        let reply = chat(world.addr, true).await;
        check_whole(&reply, true, "second");
        assert_eq!((reply.attempts(), world.requests()), (2, vec![3, 1]));
    }
}

#[tokio::test]
async fn attempts_are_bounded_however_many_engines_there_are() {
    for (allowed, expected) in [(0, 1), (1, 2), (4, 5), (10, 6)] {
        let world = World::start(6, |service| service.retry.attempts = allowed).await;
        for sim in &world.sims {
            sim.set_fault(Fault::NoAnswer);
        }
        let mut spec = world.spec.clone();
        spec.services[0].timeouts.first_token = ms(30);
        world.gateway.apply(&spec).unwrap();
        let reply = chat(world.addr, true).await;
        assert_eq!((reply.status, reply.attempts()), (504, expected));
        assert!(world.requests().iter().all(|&asked| asked <= 1), "{:?}", world.requests());
    }
}

/// The total time is over all attempts.
#[tokio::test]
async fn the_total_time_ends_the_attempts() {
    let world = World::start(3, |service| {
        service.timeouts.first_token = ms(150);
        service.timeouts.total = ms(200);
        service.retry.attempts = 10;
    })
    .await;
    for sim in &world.sims {
        sim.set_fault(Fault::NoAnswer);
    }
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, reply.error_code().as_str(), reply.attempts()), (504, "total_timeout", 2));
    assert_eq!(world.requests(), [1, 1, 0]);
}
