//! Answers in unusual framings and under wrong names: what is complete by the API's own account passes, whatever it is
//! wrapped in, and nothing else does.

use backstop_core::table::ServiceSpec;
use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};

use crate::client::{CHAT, Conn, End, all, call, chat, hi, until};
use crate::retry::check_whole;
use crate::stream_end::{check_cut, late_fault};
use crate::world::{TOKENS, World, ms, oracle, with_raw};

fn slow() -> SimConfig {
    SimConfig { itl: Dist::Constant(ms(20)), tokens: 12, ..SimConfig::default() }
}

fn cut(after: u64, how: Cut) -> Fault {
    Fault::Cut { after, how, mid_event: false }
}

fn once(service: &mut ServiceSpec) {
    service.retry.attempts = 0;
}

const FRAMINGS: [Fault; 3] = [Fault::Http10, Fault::ChunkExtensions, Fault::Trailers];

#[tokio::test]
async fn legal_framings_make_no_difference() {
    for framing in FRAMINGS {
        let world = World::start(1, once).await;
        world.sims[0].set_fault(framing.clone());
        for round in 0..3 {
            for stream in [true, false] {
                let context = format!("{framing:?}, stream {stream}, round {round}");
                let reply = chat(world.addr, stream).await;
                check_whole(&reply, stream, &context);
                // The client's side has a framing of its own.
                let length = if stream { None } else { Some(reply.body.len().to_string()) };
                assert_eq!(reply.header("content-length"), length.as_deref(), "{context}");
                for header in ["x-checksum", "server-timing", "trailer"] {
                    assert_eq!(reply.header(header), None, "{context}");
                }
            }
        }
        let totals = world.totals();
        assert_eq!((totals.answered, totals.failed, totals.cut), (6, 0, 0), "{framing:?}");
        // Pieces of any size within them.
        for bytes in [1, 7] {
            world.sims[0].set_fault(Fault::Dribble { bytes });
            world.sims[0].faults().add(framing.clone());
            check_whole(&chat(world.addr, true).await, true, &format!("{framing:?} in pieces of {bytes}"));
        }
    }
}

/// The end of the connection says nothing about the end of the answer.
#[tokio::test]
async fn answers_that_end_too_soon_are_incomplete_in_any_framing() {
    let mut running = Vec::new();
    for framing in FRAMINGS {
        for how in [Cut::Fin, Cut::End] {
            running.push(tokio::spawn(case(framing.clone(), how)));
        }
    }
    all(running).await;

    async fn case(framing: Fault, how: Cut) {
        let context = format!("{framing:?}, {how:?}");
        // Without chunks a lost connection can't be told from an end.
        let lost = how == Cut::Fin && framing != Fault::Http10;
        let code = if lost { "upstream_disconnected" } else { "upstream_truncated" };
        let world = World::of(vec![slow(); 2], |_| {}).await;
        let set = |sim: usize, fault: Fault| {
            world.sims[sim].set_fault(fault);
            world.sims[sim].faults().add(framing.clone());
        };
        // Before the first output another engine helps.
        set(0, cut(0, how));
        let reply = chat(world.addr, true).await;
        assert_eq!((reply.attempts(), reply.content(), reply.is_done()), (2, oracle(12), true), "{context}");
        let reply = chat(world.addr, false).await;
        assert_eq!((reply.attempts(), reply.content()), (2, oracle(12)), "{context}");
        // Then nobody does.
        set(0, cut(3, how));
        check_cut(&late_fault(&world).await, &oracle(3), code, &context);
        // And if nobody can, it is an error.
        set(0, cut(0, how));
        set(1, cut(0, how));
        let reply = chat(world.addr, true).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, code), "{context}");
        let reply = chat(world.addr, false).await;
        let code = if lost { code } else { "upstream_malformed_answer" };
        assert_eq!((reply.status, reply.error_code().as_str()), (502, code), "{context}");
    }
}

/// All was said but for the end mark.
#[tokio::test]
async fn answers_complete_by_their_own_account_are_complete_in_any_framing() {
    for framing in FRAMINGS {
        for how in [Cut::Fin, Cut::Rst, Cut::End] {
            let world = World::start(1, once).await;
            world.sims[0].set_fault(Fault::CutAfterFinish { how });
            world.sims[0].faults().add(framing.clone());
            let reply = chat(world.addr, true).await;
            // A reset may throw away what was not read yet; then the answer is not taken for a whole one.
            if how == Cut::Rst && (reply.status == 502 || !reply.is_done()) {
                continue;
            }
            check_whole(&reply, true, &format!("{framing:?}, {how:?}"));
            assert_eq!(reply.text().matches("[DONE]").count(), 1);
        }
    }
}

#[tokio::test]
async fn a_page_is_no_answer() {
    for stream in [true, false] {
        let world = World::start(2, |_| {}).await;
        world.sims[0].set_fault(Fault::HtmlPage);
        let reply = chat(world.addr, stream).await;
        check_whole(&reply, stream, "another engine");
        assert_eq!((reply.attempts(), world.requests()), (2, vec![1, 1]));
        world.sims[1].set_fault(Fault::HtmlPage);
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_malformed_answer"));
        assert!(!reply.text().contains("doctype"), "{}", reply.text());
    }
}

/// A stream that is not called one would be read to its end before anything is said.
#[tokio::test]
async fn a_stream_must_be_called_one() {
    for value in ["text/plain", "application/json", "text/html", "application/octet-stream"] {
        let world = World::start(2, |_| {}).await;
        world.sims[0].set_fault(Fault::ContentType { value: value.to_owned() });
        let reply = chat(world.addr, true).await;
        check_whole(&reply, true, value);
        assert_eq!((reply.attempts(), world.requests()), (2, vec![1, 1]), "{value}");
        world.sims[1].set_fault(Fault::ContentType { value: value.to_owned() });
        let reply = chat(world.addr, true).await;
        assert_eq!(
            (reply.status, reply.error_code().as_str()),
            (502, "upstream_malformed_answer"),
            "{value}"
        );
    }
}

/// It need not end, either.
#[tokio::test]
async fn an_endless_answer_that_is_no_stream_is_left_at_once() {
    let config = SimConfig { itl: Dist::Constant(ms(1000)), tokens: 1 << 20, ..SimConfig::default() };
    let world = World::of(vec![config, SimConfig::default()], |_| {}).await;
    world.sims[0].set_fault(Fault::ContentType { value: "text/plain".to_owned() });
    let reply = chat(world.addr, true).await;
    check_whole(&reply, true, "from the second");
    until("the first is left", || world.sims[0].cancelled() == 1).await;
}

/// The answer is there and has been checked: it goes by its right name.
#[tokio::test]
async fn json_by_another_name_is_json() {
    for value in ["text/plain", "text/plain; charset=utf-8", "application/octet-stream", "text/html"] {
        let world = World::start(2, |_| {}).await;
        world.sims[0].set_fault(Fault::ContentType { value: value.to_owned() });
        let reply = chat(world.addr, false).await;
        check_whole(&reply, false, value);
        assert_eq!(reply.header("content-type"), Some("application/json"), "{value}");
        assert_eq!((reply.attempts(), world.requests()), (1, vec![1, 0]), "{value}");
        // Half of it is no JSON by any name.
        world.sims[0].set_fault(cut(0, Cut::End));
        let reply = chat(world.addr, false).await;
        assert_eq!((reply.attempts(), reply.content()), (2, oracle(TOKENS)), "{value}");
    }
    // Names that are right stay as they are, and errors get one as well.
    for (status, headers, body, expected) in [
        (
            "200 OK",
            "content-type: application/json; charset=utf-8\r\n",
            r#"{"choices":[{}]}"#,
            "application/json; charset=utf-8",
        ),
        (
            "200 OK",
            "content-type: application/vnd.x+json\r\n",
            r#"{"choices":[{}]}"#,
            "application/vnd.x+json",
        ),
        ("200 OK", "", r#"{"choices":[{}]}"#, "application/json"),
        (
            "400 Bad Request",
            "content-type: text/plain\r\n",
            r#"{"error":{"message":"no"}}"#,
            "application/json",
        ),
        ("422 Unprocessable Entity", "", "no", "application/json"),
    ] {
        let raw = with_raw(0, status, headers, body, once).await;
        let reply = chat(raw.world.addr, false).await;
        assert_eq!(reply.header("content-type"), Some(expected), "{status} {headers}{body}");
        assert_eq!(reply.status.to_string(), status[..3], "{body}");
    }
}

/// Requests on one connection of the client's, while the engine closes its own each time.
#[tokio::test]
async fn the_clients_connection_outlives_the_engines() {
    let world = World::start(1, once).await;
    world.sims[0].set_fault(Fault::Http10);
    let mut conn = Conn::open(world.addr).await;
    for round in 0..10 {
        let stream = round % 2 == 0;
        conn.send("POST", CHAT, "", &hi(stream)).await;
        check_whole(&conn.reply().await, stream, &format!("round {round}"));
    }
    assert_eq!(world.totals().answered, 10);
    let embeddings =
        call(world.addr, "POST", "/v1/embeddings", "", br#"{"model":"chat","input":"hi"}"#).await;
    assert_eq!((embeddings.status, embeddings.end), (200, End::Complete));
}
