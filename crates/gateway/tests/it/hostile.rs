//! Model servers that answer what could be taken in two ways, too much, or without end: the client gets an error that
//! says so, and nobody gets what is left of it.

use std::fmt::Write as _;

use crate::client::{CHAT, Conn, End, Reply, call};
use crate::recorder::{Odd, Recorder, about, answer};
use crate::world::World;

struct Hostile {
    recorder: Recorder,
    world: World,
}

impl Hostile {
    /// Without retries, so that the client sees the first answer.
    async fn start() -> Self {
        let (recorder, world) = Recorder::start(|service| service.retry.attempts = 0).await;
        Self { recorder, world }
    }

    /// Asks, gets `odd`, and sees to it that the next ones get their own.
    async fn ask(&self, name: &str, method: &str, path: &str, odd: Odd) -> Reply {
        self.recorder.answer_next(odd);
        let body = if method == "POST" { about("first") } else { Vec::new() };
        let mut conn = Conn::open(self.world.addr).await;
        conn.send(method, path, "x-backstop-service: chat\r\n", &body).await;
        let mut reply = conn.head().await.unwrap();
        // Of the others the head is all there may be: anything else would be in the way of the last answer here.
        if method == "POST" {
            conn.body(&mut reply).await;
        }
        self.recorder.all_sent().await;
        for chat in ["second", "third"] {
            let reply = call(self.world.addr, "POST", CHAT, "", &about(chat)).await;
            assert_eq!((reply.status, reply.end), (200, End::Complete), "{name}: {}", reply.text());
            assert_eq!(reply.content(), chat, "{name}");
        }
        // On the client's connection too.
        conn.send("POST", CHAT, "", &about("fourth")).await;
        assert_eq!(conn.reply().await.content(), "fourth", "{name}");
        assert_eq!(self.recorder.take().len(), 4, "{name}");
        reply
    }

    async fn chat(&self, name: &str, odd: Odd) -> Reply {
        self.ask(name, "POST", CHAT, odd).await
    }
}

fn odd(answer: impl Into<Vec<u8>>) -> Odd {
    Odd { answer: answer.into(), ..Odd::default() }
}

/// An answer that nobody has asked for.
fn poison() -> Vec<u8> {
    answer(
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"poison"},"finish_reason":"stop"}]}"#,
    )
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const BODY: &str = r#"{"choices":[{"index":0,"message":{"content":"odd"},"finish_reason":"stop"}]}"#;

#[tokio::test]
async fn heads_that_are_not_beyond_doubt() {
    let server = Hostile::start().await;
    let length = BODY.len();
    let chunks = format!("{length:x}\r\n{BODY}\r\n0\r\n\r\n");
    let many: String = (0..200).fold(String::new(), |mut all, i| {
        let _ = write!(all, "x-{i}: 1\r\n");
        all
    });
    for (name, head, body) in [
        (
            "length and chunks",
            format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
            &chunks[..],
        ),
        ("chunks and length", format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"), &chunks),
        ("two lengths", format!("content-length: {length}\r\ncontent-length: 1\r\n"), BODY),
        ("list of lengths", format!("content-length: {length}, 1\r\n"), BODY),
        ("negative length", format!("content-length: -{length}\r\n"), BODY),
        ("signed length", format!("content-length: +{length}\r\n"), BODY),
        ("no length", "content-length:\r\n".to_owned(), BODY),
        ("huge length", "content-length: 18446744073709551616\r\n".to_owned(), BODY),
        ("unknown coding", "transfer-encoding: gzip\r\n".to_owned(), BODY),
        ("two codings", "transfer-encoding: gzip, chunked\r\n".to_owned(), &chunks),
        ("coding twice", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n".to_owned(), &chunks),
        ("NUL", format!("x: a\0b\r\ncontent-length: {length}\r\n"), BODY),
        ("CR", format!("x: a\rcontent-length: 1\r\ncontent-length: {length}\r\n"), BODY),
        ("folded", format!("x: a\r\n content-length: 1\r\ncontent-length: {length}\r\n"), BODY),
        ("space before the colon", format!("content-length : 1\r\ncontent-length: {length}\r\n"), BODY),
        ("many headers", format!("{many}content-length: {length}\r\n"), BODY),
        ("negative chunk", "transfer-encoding: chunked\r\n".to_owned(), "-1\r\n\r\n0\r\n\r\n"),
        ("long chunk", "transfer-encoding: chunked\r\n".to_owned(), "2\r\n{}}\r\n0\r\n\r\n"),
        ("lines in a chunk's size", "transfer-encoding: chunked\r\n".to_owned(), "2\n{}\n0\n\n"),
    ] {
        let reply = server.chat(name, odd(format!("{OK}{head}\r\n{body}"))).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_disconnected"), "{name}");
    }
    for (name, head) in [
        ("coding of HTTP/1.0", format!("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}")),
        ("HTTP/2", format!("HTTP/2 200 OK\r\ncontent-length: {length}\r\n\r\n{BODY}")),
        ("HTTP/0.9", format!("{BODY}\r\n\r\n")),
        ("status of two digits", format!("HTTP/1.1 20 OK\r\ncontent-length: {length}\r\n\r\n{BODY}")),
        (
            "upgrade",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n".to_owned(),
        ),
    ] {
        let reply = server.chat(name, odd(head)).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_disconnected"), "{name}");
    }
}

/// What never ends is given up, however it comes.
#[tokio::test]
async fn heads_without_end() {
    let server = Hostile::start().await;
    let megabytes = 8 * 1024 * 1024;
    for (name, answer) in [
        ("one long header", format!("{OK}x: {}\r\n\r\n", "a".repeat(megabytes))),
        ("a long reason", format!("HTTP/1.1 200 {}\r\n\r\n", "a".repeat(megabytes))),
        ("blank lines", "\r\n".repeat(megabytes / 2)),
        ("informational answers", "HTTP/1.1 102 Processing\r\n\r\n".repeat(megabytes / 27)),
        (
            "trailers",
            format!("{OK}transfer-encoding: chunked\r\n\r\n0\r\n{}", "x: y\r\n".repeat(megabytes / 6)),
        ),
        (
            "a long trailer",
            format!("{OK}transfer-encoding: chunked\r\n\r\n0\r\nx: {}", "y".repeat(megabytes)),
        ),
        ("a long extension", format!("{OK}transfer-encoding: chunked\r\n\r\n2;{}", "y".repeat(megabytes))),
        ("zeros", format!("{OK}transfer-encoding: chunked\r\n\r\n{}", "0".repeat(megabytes))),
    ] {
        let reply = server.chat(name, odd(answer)).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_disconnected"), "{name}");
    }
}

/// Only what belongs to an answer is one; what is behind it is not the answer to the next request.
#[tokio::test]
async fn nothing_is_left_in_a_connection() {
    let server = Hostile::start().await;
    let good = answer(BODY);
    let chunked = format!("{OK}transfer-encoding: chunked\r\n\r\n{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    let informed =
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n{chunked}");
    let listed = format!("{OK}content-length: {0}, {0}\r\ncontent-length: {0}\r\n\r\n{BODY}", BODY.len());
    for (name, answer) in [
        ("length", good),
        ("chunks", chunked.into_bytes()),
        ("informational answers first", informed.into_bytes()),
        ("one length, three times", listed.into_bytes()),
    ] {
        for behind in [&b""[..], b"x", b"\r\n", &poison()] {
            let together = odd([&answer, behind].concat());
            let apart = Odd { later: behind.to_vec(), ..odd(answer.clone()) };
            for odd in [together, apart] {
                let reply = server.chat(name, odd).await;
                assert_eq!((reply.status, reply.content().as_str()), (200, "odd"), "{name}");
            }
        }
    }
}

/// Statuses and methods whose answers have no body, whatever their heads say.
#[tokio::test]
async fn answers_that_have_no_body() {
    let server = Hostile::start().await;
    for (method, status) in [("GET", "204 No Content"), ("GET", "304 Not Modified"), ("HEAD", "200 OK")] {
        for headers in ["", "content-length: 5\r\n", "transfer-encoding: chunked\r\n"] {
            let head = format!("HTTP/1.1 {status}\r\n{headers}\r\n");
            for body in [&b""[..], b"hello", b"5\r\nhello\r\n0\r\n\r\n", &poison()] {
                let name = format!("{method} {status} {headers}");
                let together = odd([head.as_bytes(), body].concat());
                let apart = Odd { later: body.to_vec(), ..odd(head.clone()) };
                for odd in [together, apart] {
                    let reply = server.ask(&name, method, "/v1/files", odd).await;
                    assert_eq!(reply.status.to_string(), status[..3], "{name}");
                }
            }
        }
    }
}

/// The end of a connection ends an answer only if nothing else does, and that connection serves nobody else.
#[tokio::test]
async fn answers_that_end_with_the_connection() {
    let server = Hostile::start().await;
    let closed = |answer: String| Odd { close: true, ..odd(answer) };
    let reply = server.chat("until closed", closed(format!("{OK}\r\n{BODY}"))).await;
    assert_eq!((reply.status, reply.content().as_str()), (200, "odd"));
    let more = BODY.len() + 1;
    for (name, answer) in [
        ("short", format!("{OK}content-length: {more}\r\n\r\n{BODY}")),
        ("no last chunk", format!("{OK}transfer-encoding: chunked\r\n\r\n{:x}\r\n{BODY}\r\n", BODY.len())),
        (
            "no end of trailers",
            format!("{OK}transfer-encoding: chunked\r\n\r\n{:x}\r\n{BODY}\r\n0\r\n", BODY.len()),
        ),
        ("half a head", OK.to_owned()),
    ] {
        let reply = server.chat(name, closed(answer)).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_disconnected"), "{name}");
    }
}

/// In a stream too: what is behind its end is nobody's, and what readers would not agree on does not pass.
#[tokio::test]
async fn streams() {
    const HEAD: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let server = Hostile::start().await;
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let start = chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n");
    let end = chunk(
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    );
    let mut body = about("first");
    body.pop();
    body.extend(b",\"stream\":true}");
    let ask = async |odd: Odd| {
        server.recorder.answer_next(odd);
        let reply = call(server.world.addr, "POST", CHAT, "", &body).await;
        server.recorder.all_sent().await;
        let next = call(server.world.addr, "POST", CHAT, "", &about("second")).await;
        assert_eq!(next.content(), "second");
        reply
    };
    for last in ["0\r\n\r\n", "", "x\r\n", "0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"] {
        let reply = ask(odd(format!("{HEAD}{start}{end}{last}"))).await;
        assert!(reply.is_done() && reply.content() == "a", "{last:?}: {}", reply.text());
        let reply = ask(Odd { later: last.into(), ..odd(format!("{HEAD}{start}{end}")) }).await;
        assert!(reply.is_done() && reply.content() == "a", "{last:?}: {}", reply.text());
    }
    for event in [": ping\rdata: [DONE]\r\r\n\n", "\u{feff}data: [DONE]\n\n", "event: x\rdata: {}\n\n"] {
        let reply = ask(odd(format!("{HEAD}{start}{}{end}0\r\n\r\n", chunk(event)))).await;
        let text = reply.text();
        assert!(!text.contains("[DONE]") && text.contains("upstream_malformed_event"), "{text}");
        assert!(!text.contains('\r') && !text.contains('\u{feff}'), "{text}");
    }
    // Blank lines between events are none of those, wherever they are cut.
    let reply = ask(odd(format!("{HEAD}{start}{}{}{end}0\r\n\r\n", chunk("\n"), chunk("\r\n")))).await;
    assert!(
        reply.text().ends_with("data: [DONE]\n\n") && !reply.text().contains("error"),
        "{}",
        reply.text()
    );
}
