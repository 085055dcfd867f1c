//! What clients may send, on purpose or not: every mistake has its status, an error body, and a connection in a
//! known state, and no engine ever sees it.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::client::{CHAT, Conn, End, call, chat, hi};
use crate::world::{TOKENS, World, oracle};

const MAX_BODY: usize = 16 * 1024 * 1024;

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next request on it is served.
    Open,
    Closed,
}
use After::{Closed, Open};

/// Sends `bytes`, expects an error of `status` and `code`, and that no engine hears of it.
async fn check(world: &World, name: &str, bytes: &[u8], status: u16, code: &str, after: After) {
    let before = world.requests();
    let mut conn = Conn::open(world.addr).await;
    conn.write(bytes).await;
    let reply = conn.reply().await;
    assert_eq!((reply.status, reply.end), (status, End::Complete), "{name}: {}", reply.text());
    assert_eq!(reply.error_code(), code, "{name}: {}", reply.text());
    if after == Open {
        conn.send("POST", CHAT, "", &hi(false)).await;
        let reply = conn.reply().await;
        assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)), "{name}");
        assert_eq!(world.requests()[0], before[0] + 1, "{name}");
    } else {
        assert_eq!(reply.header("connection"), Some("close"), "{name}");
        let (rest, _) = conn.rest().await;
        assert!(rest.is_empty(), "{name}: {}", String::from_utf8_lossy(&rest));
        assert_eq!(world.requests(), before, "{name}");
    }
}

fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn bodies_that_make_no_sense() {
    let world = World::start(1, |_| {}).await;
    let deep = format!(r#"{{"model":"chat","x":{}}}"#, "[".repeat(100_000));
    let cases: [(&[u8], u16, &str); 21] = [
        (b"", 400, "invalid_request_body"),
        (b"{", 400, "invalid_request_body"),
        (b"nonsense", 400, "invalid_request_body"),
        (b"[]", 400, "invalid_request_body"),
        (b"null", 400, "invalid_request_body"),
        (br#""chat""#, 400, "invalid_request_body"),
        (br#"["chat",true,"u"]"#, 400, "invalid_request_body"),
        (b"{}", 400, "invalid_request_body"),
        (br#"{"model":null}"#, 400, "invalid_request_body"),
        (br#"{"model":7}"#, 400, "invalid_request_body"),
        (br#"{"model":["chat"]}"#, 400, "invalid_request_body"),
        (br#"{"model":"chat","model":"chat"}"#, 400, "invalid_request_body"),
        (br#"{"model":"chat","stream":1}"#, 400, "invalid_request_body"),
        (br#"{"model":"chat","stream":true,"stream":false}"#, 400, "invalid_request_body"),
        (br#"{"model":"chat"} {"model":"chat"}"#, 400, "invalid_request_body"),
        (br#"{"model":"chat",}"#, 400, "invalid_request_body"),
        (b"{\"model\":\"chat\xff\"}", 400, "invalid_request_body"),
        (b"{\"model\":\"chat\",\"x\":\"\0\"}", 400, "invalid_request_body"),
        (b"\xef\xbb\xbf{\"model\":\"chat\"}", 400, "invalid_request_body"),
        (deep.as_bytes(), 400, "invalid_request_body"),
        (br#"{"model":"nobody"}"#, 404, "model_not_found"),
    ];
    for (body, status, code) in cases {
        let name = String::from_utf8_lossy(&body[..body.len().min(50)]).into_owned();
        for path in [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"] {
            check(&world, &name, &post(path, "", body), status, code, Open).await;
        }
        // The same body in pieces of one chunk each.
        let mut chunked =
            format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
        for piece in body.chunks(body.len().div_ceil(3).max(1)) {
            chunked.extend(format!("{:x}\r\n", piece.len()).as_bytes());
            chunked.extend(piece);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\n\r\n");
        check(&world, &name, &chunked, status, code, Open).await;
    }
    let reply = call(world.addr, "POST", CHAT, "", br#"{"model":"nobody"}"#).await.json();
    assert_eq!(reply["error"]["param"], "model");
    assert_eq!(reply["error"]["type"], "invalid_request_error");
    assert!(reply["error"]["message"].as_str().unwrap().contains("`chat`"), "names what there is: {reply}");
}

#[tokio::test]
async fn heads_that_ask_for_the_wrong_thing() {
    let world = World::start(1, |_| {}).await;
    let body = &hi(false);
    let line =
        |line: &str, headers: &str| format!("{line} HTTP/1.1\r\nhost: g\r\n{headers}\r\n").into_bytes();
    let cases = [
        ("content type", post(CHAT, "content-type: text/plain\r\n", body), 415, "unsupported_content_type"),
        (
            "form",
            post(CHAT, "content-type: multipart/form-data; boundary=x\r\n", body),
            415,
            "unsupported_content_type",
        ),
        ("binary type", post(CHAT, "content-type: \u{fc}\r\n", body), 415, "unsupported_content_type"),
        ("encoding", post(CHAT, "content-encoding: gzip\r\n", body), 415, "unsupported_content_encoding"),
        ("root", line("GET /", ""), 404, "unknown_path"),
        ("v2", post("/v2/chat/completions", "", body), 404, "unknown_path"),
        ("upwards", post("/v1/../admin", "x-backstop-service: chat\r\n", body), 404, "unknown_path"),
        ("GET", line(&format!("GET {CHAT}"), ""), 405, "method_not_allowed"),
        ("PUT", line(&format!("PUT {CHAT}"), "content-length: 0\r\n"), 405, "method_not_allowed"),
        ("DELETE", line(&format!("DELETE {CHAT}"), ""), 405, "method_not_allowed"),
        ("TRACE", line(&format!("TRACE {CHAT}"), ""), 405, "method_not_allowed"),
        ("own method", line(&format!("BREW {CHAT}"), ""), 405, "method_not_allowed"),
        (
            "upwards in disguise",
            post("/v1/x/%2E./.%2e/a", "x-backstop-service: chat\r\n", body),
            404,
            "unknown_path",
        ),
        ("no service", line("GET /v1/files", ""), 400, "service_not_named"),
        (
            "unknown service",
            line("GET /v1/files", "x-backstop-service: nobody\r\n"),
            400,
            "service_not_named",
        ),
        ("unknown model", line("GET /v1/models/nobody", ""), 404, "model_not_found"),
    ];
    for (name, bytes, status, code) in cases {
        // A body that comes along with a refused head may be dropped together with the connection.
        let reply = {
            let mut conn = Conn::open(world.addr).await;
            conn.write(&bytes).await;
            conn.reply().await
        };
        assert_eq!((reply.status, reply.end), (status, End::Complete), "{name}: {}", reply.text());
        assert_eq!(reply.error_code(), code, "{name}");
        if status == 405 {
            assert_eq!(reply.header("allow"), Some("POST"));
        }
        assert_eq!(world.requests(), [0], "{name}");
    }
}

/// What hyper refuses by itself still looks like OpenAI's API.
#[tokio::test]
async fn heads_that_are_not_http() {
    let world = World::start(1, |_| {}).await;
    let with = |headers: &str| post(CHAT, headers, &hi(false));
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(100 * 1024));
    let uri = format!("GET /v1/{} HTTP/1.1\r\nhost: g\r\n\r\n", "a".repeat(70_000));
    let chunked = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n");
    let both = [chunked.as_bytes(), b"content-length: 5\r\n\r\n0\r\n\r\n"].concat();
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("too many headers", with(&many), &[431]),
        ("too long a header", with(&long), &[431]),
        ("too long a target", uri.into_bytes(), &[414, 431]),
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400]),
        ("words", b"hello there\r\n\r\n".to_vec(), &[400]),
        ("NUL in the target", b"GET /v1/\0 HTTP/1.1\r\nhost: g\r\n\r\n".to_vec(), &[400]),
        ("NUL in a header", with("x: a\0b\r\n"), &[400]),
        ("NUL in a name", with("x\0y: 1\r\n"), &[400]),
        ("space before the colon", with("transfer-encoding : chunked\r\n"), &[400]),
        ("folded header", with("x: 1\r\n folded\r\n"), &[400]),
        ("two lengths", with("content-length: 3\r\n"), &[400]),
        (
            "negative length",
            format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: -1\r\n\r\n").into(),
            &[400],
        ),
        (
            "signed length",
            format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: +2\r\n\r\n{{}}").into(),
            &[400],
        ),
        (
            "hex length",
            format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: 0x2\r\n\r\n{{}}").into(),
            &[400],
        ),
        (
            "huge length",
            format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: 99999999999999999999\r\n\r\n").into(),
            &[400],
        ),
        (
            "unknown coding",
            format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: gzip\r\n\r\n").into(),
            &[400],
        ),
        (
            "chunked, then more",
            format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n")
                .into(),
            &[400],
        ),
        ("bad version", format!("GET {CHAT} HTTP/9.9\r\nhost: g\r\n\r\n").into(), &[400, 505]),
        ("length and chunks", both, &[400]),
    ];
    for (name, bytes, statuses) in cases {
        let mut conn = Conn::open(world.addr).await;
        conn.write(&bytes).await;
        let reply = conn.reply().await;
        assert!(statuses.contains(&reply.status), "{name}: {} {}", reply.status, reply.text());
        reply.error_code();
        assert_eq!(world.requests(), [0], "{name}");
        let (rest, _) = conn.rest_or_idle().await;
        assert!(rest.is_empty(), "{name}: {}", String::from_utf8_lossy(&rest));
        assert_eq!(world.requests(), [0], "{name}");
    }
    assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS));
}

/// A request that hides in another's body must never be taken for one of its own.
#[tokio::test]
async fn nothing_is_smuggled() {
    let hidden = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\nx-hidden: 1\r\n\r\n{{}}");
    let whole = String::from_utf8(hi(false)).unwrap();
    let (length, chunk) = (whole.len(), format!("{:x}\r\n{whole}\r\n0\r\n\r\n", whole.len()));
    let start = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\n");
    for (name, bytes) in [
        (
            "CL.TE",
            format!("{start}content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{hidden}"),
        ),
        ("TE.CL", format!("{start}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{chunk}{hidden}")),
        (
            "TE, twice",
            format!(
                "{start}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n{chunk}{hidden}"
            ),
        ),
        ("TE, odd", format!("{start}transfer-encoding: xchunked\r\n\r\n{chunk}{hidden}")),
        ("TE, tab", format!("{start}transfer-encoding:\tchunked\x0b\r\n\r\n{chunk}{hidden}")),
        (
            "two lengths",
            format!("{start}content-length: {length}\r\ncontent-length: 0\r\n\r\n{whole}{hidden}"),
        ),
        ("list of lengths", format!("{start}content-length: {length}, {length}\r\n\r\n{whole}{hidden}")),
        (
            "HTTP/1.0 chunks",
            format!("POST {CHAT} HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{hidden}"),
        ),
        (
            "chunk size junk",
            format!("{start}transfer-encoding: chunked\r\n\r\nzz\r\n{whole}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "chunk size overflow",
            format!(
                "{start}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{whole}\r\n0\r\n\r\n{hidden}"
            ),
        ),
        (
            "chunk without end",
            format!("{start}transfer-encoding: chunked\r\n\r\n2\r\n{{}}xx0\r\n\r\n{hidden}"),
        ),
    ] {
        let world = World::start(1, |_| {}).await;
        let mut conn = Conn::open(world.addr).await;
        conn.write(bytes.as_bytes()).await;
        conn.stream.shutdown().await.unwrap();
        let (answers, _) = conn.rest().await;
        let answers = String::from_utf8(answers).unwrap();
        let log = world.sims[0].request_log();
        let ours: Vec<_> = log.iter().filter(|it| it.method == "POST").collect();
        // Either it was refused, or understood in the one way that leaves nothing to interpret.
        assert!(ours.len() <= 1 && ours.iter().all(|it| it.body == whole.as_bytes()), "{name}: {ours:?}");
        assert!(ours.iter().all(|it| it.header("x-hidden").is_none()), "{name}");
        assert!(answers.starts_with("HTTP/1."), "{name}: {answers}");
        assert!(answers.matches("HTTP/1.1 200").count() == ours.len(), "{name}: {answers}");
        assert_eq!(chat(world.addr, false).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn bodies_beyond_the_limit() {
    let world = World::start(1, |_| {}).await;
    let sized = |size: usize| {
        let mut body = br#"{"model":"chat","messages":[{"role":"user","content":"hi"}],"pad":""#.to_vec();
        body.resize(size - 2, b'x');
        body.extend(b"\"}");
        body
    };
    // The largest passes, to the byte.
    let largest = sized(MAX_BODY);
    let reply = call(world.addr, "POST", CHAT, "", &largest).await;
    assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
    assert!(world.sims[0].request_log().last().is_some_and(|it| it.body == largest));
    let more = sized(MAX_BODY + 1);
    check(&world, "by length", &post(CHAT, "", &more), 413, "request_too_large", Closed).await;
    let mut chunked =
        format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    for piece in more.chunks(1 << 20) {
        chunked.extend(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend(piece);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    check(&world, "in chunks", &chunked, 413, "request_too_large", Closed).await;
    // Who asks first need not send anything.
    let asking = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        MAX_BODY + 1
    );
    check(&world, "expect", asking.as_bytes(), 413, "request_too_large", Closed).await;
}

/// Heads and bodies that never end hold up nobody else, and close without a trace.
#[tokio::test]
async fn slow_senders_hold_up_nobody() {
    let world = World::start(1, |_| {}).await;
    let mut slow = Vec::new();
    for begun in [
        "P".to_owned(),
        format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\nx-slow: "),
        format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: 500\r\n\r\n{{\"model\":\"chat\","),
        format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{{\"mod"),
        format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: 500\r\n\r\n"),
    ] {
        for _ in 0..20 {
            let mut conn = Conn::open(world.addr).await;
            conn.write(begun.as_bytes()).await;
            slow.push(conn);
        }
    }
    for stream in [true, false] {
        assert_eq!(chat(world.addr, stream).await.content(), oracle(TOKENS));
    }
    assert_eq!(world.requests(), [2]);
    // Those that give up are no one's request but their own.
    for mut conn in slow {
        conn.stream.shutdown().await.unwrap();
        let (answer, _) = conn.rest().await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(world.requests(), [2]);
    assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS));
}

#[tokio::test]
async fn requests_in_a_row() {
    let world = World::start(1, |_| {}).await;
    // Several at once are answered in order.
    let mut conn = Conn::open(world.addr).await;
    let bad = post(CHAT, "", b"{");
    let all =
        [post(CHAT, "", &hi(false)), bad, post(CHAT, "", &hi(true)), post(CHAT, "", &hi(false))].concat();
    conn.write(&all).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let reply = conn.reply().await;
        statuses.push(reply.status);
        assert!(reply.status == 400 || reply.content() == oracle(TOKENS));
    }
    assert_eq!((statuses, world.requests()), (vec![200, 400, 200, 200], vec![3]));
    // Junk behind a good one: that is answered, and nothing else is believed.
    let mut conn = Conn::open(world.addr).await;
    conn.write(&[post(CHAT, "", &hi(false)), b"\0\0junk\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_vec()].concat())
        .await;
    assert_eq!(conn.reply().await.content(), oracle(TOKENS));
    let junk = conn.reply().await;
    assert_eq!((junk.status, junk.error_code().as_str()), (400, "invalid_http"));
    assert!(conn.rest().await.0.is_empty());
    assert_eq!(world.requests(), [4]);
}

#[tokio::test]
async fn unusual_but_right() {
    let world = World::start(1, |_| {}).await;
    let body = String::from_utf8(hi(false)).unwrap();
    let length = body.len();
    let rest = format!("content-length: {length}\r\n\r\n{body}");
    for (name, text) in [
        (
            "absolute form",
            format!("POST http://other.example{CHAT} HTTP/1.1\r\nhost: other.example\r\n{rest}"),
        ),
        ("HTTP/1.0", format!("POST {CHAT} HTTP/1.0\r\n{rest}")),
        ("slash at the end", format!("POST {CHAT}/ HTTP/1.1\r\nhost: g\r\n{rest}")),
        ("query", format!("POST {CHAT}?api-version=1 HTTP/1.1\r\nhost: g\r\n{rest}")),
        (
            "type in capitals",
            format!(
                "POST {CHAT} HTTP/1.1\r\nHOST: g\r\nCONTENT-TYPE: APPLICATION/JSON; CHARSET=UTF-8\r\n{rest}"
            ),
        ),
        ("identity", format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-encoding: identity\r\n{rest}")),
    ] {
        let before = world.requests()[0];
        let mut conn = Conn::open(world.addr).await;
        conn.write(text.as_bytes()).await;
        let reply = conn.reply().await;
        assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)), "{name}");
        let log = world.sims[0].request_log();
        let sent = log.last().unwrap();
        assert_eq!(world.requests()[0], before + 1, "{name}");
        assert!(sent.path.starts_with(CHAT), "{name}: {}", sent.path);
        assert_eq!(sent.header("host"), Some(world.sims[0].addr().to_string().as_str()), "{name}");
        assert_eq!(sent.json(), serde_json::from_str::<Value>(&body).unwrap(), "{name}");
    }
    let reply = call(world.addr, "CONNECT", "engine:80", "", b"").await;
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    reply.error_code();
    let nul = json!({"model": "chat", "messages": [{"role": "user", "content": "a\0b"}]}).to_string();
    assert_eq!(call(world.addr, "POST", CHAT, "", nul.as_bytes()).await.status, 200, "escaped, it is text");
}
