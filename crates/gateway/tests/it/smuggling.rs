//! Requests that two readers could take for different ones, with another request hidden in them. Whatever the gateway
//! makes of them, the model server gets that and nothing else, and nobody gets another's answer.
//!
//! What is plainly wrong, and the usual forms that hyper refuses, are in `input`.

use tokio::io::AsyncWriteExt;

use crate::client::{CHAT, Conn, End};
use crate::recorder::{Recorder, Seen, about};
use crate::world::World;

/// What becomes of the bytes.
enum Expect<'a> {
    /// One error of this status; then the connection is closed, and the model server has heard nothing.
    Refused(u16),
    /// These chats, in this order, and then the connection goes on.
    Served(&'a [&'a str]),
    /// These chats, and then the connection is closed.
    ServedAndClosed(&'a [&'a str]),
}
use Expect::{Refused, Served, ServedAndClosed};

struct Attack {
    recorder: Recorder,
    world: World,
}

impl Attack {
    async fn start() -> Self {
        let (recorder, world) = Recorder::start(|_| {}).await;
        Self { recorder, world }
    }

    /// Returns what the model server got of it.
    async fn check(&self, name: &str, bytes: &[u8], expect: Expect<'_>) -> Vec<Seen> {
        let mut conn = Conn::open(self.world.addr).await;
        conn.write(bytes).await;
        let (chats, closed) = match expect {
            Refused(status) => {
                let reply = conn.reply().await;
                assert_eq!((reply.status, reply.end), (status, End::Complete), "{name}: {}", reply.text());
                assert!(!reply.error_code().is_empty(), "{name}");
                assert_eq!(reply.header("connection"), Some("close"), "{name}: {}", reply.text());
                (&[][..], true)
            }
            Served(chats) => (chats, false),
            ServedAndClosed(chats) => (chats, true),
        };
        for chat in chats {
            self.answers(&mut conn, name, chat).await;
        }
        if closed {
            let (rest, _) = conn.rest().await;
            assert!(rest.is_empty(), "{name}: {}", String::from_utf8_lossy(&rest));
        } else {
            // Nothing of it is left that this could be taken for a part of.
            conn.send("POST", CHAT, "", &about("after")).await;
            self.answers(&mut conn, name, "after").await;
        }
        let seen = self.recorder.take();
        let bodies: Vec<_> = seen.iter().map(|it| String::from_utf8_lossy(&it.body)).collect();
        let after = ["after"].into_iter().filter(|_| !closed);
        let expected: Vec<_> = chats.iter().copied().chain(after).map(about).collect();
        assert!(seen.iter().map(|it| &it.body).eq(&expected), "{name}: {bodies:?}");
        for request in &seen {
            assert_eq!(request.header("host"), [self.recorder.addr.to_string()], "{name}: {}", request.head);
            assert_eq!(request.header("authorization"), ["Bearer engine-key"], "{name}: {}", request.head);
            assert_eq!(request.header("content-length").len(), 1, "{name}: {}", request.head);
        }
        self.others(name).await;
        seen
    }

    async fn answers(&self, conn: &mut Conn, name: &str, chat: &str) {
        let reply = conn.reply().await;
        let text = String::from_utf8_lossy(&reply.body);
        assert_eq!((reply.status, reply.end), (200, End::Complete), "{name}, {chat}: {text}");
        assert_eq!(reply.content(), chat, "{name}");
    }

    /// Others, over the same connections to the model server, get what they ask for.
    async fn others(&self, name: &str) {
        for other in ["one", "two"] {
            let mut conn = Conn::open(self.world.addr).await;
            conn.send("POST", CHAT, "", &about(other)).await;
            self.answers(&mut conn, name, other).await;
        }
        let bodies: Vec<_> = self.recorder.take().into_iter().map(|it| it.body).collect();
        assert_eq!(bodies, [about("one"), about("two")], "{name}");
    }
}

/// A whole request about `text` that comes along with the head of another.
fn hidden() -> String {
    let body = String::from_utf8(about("hidden")).unwrap();
    format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The chat "outer" after a head with these lines, its body as it is, and the hidden request behind it.
fn plain(line: &str, headers: &str) -> String {
    let body = String::from_utf8(about("outer")).unwrap();
    let length = body.len();
    let headers = headers.replace("{length}", &length.to_string());
    format!("{line}\r\n{headers}\r\n{body}{}", hidden())
}

/// The same in one chunk.
fn chunked(headers: &str) -> String {
    chunks(headers, "{size}\r\n{body}\r\n0\r\n\r\n")
}

fn chunks(headers: &str, chunks: &str) -> String {
    let body = String::from_utf8(about("outer")).unwrap();
    let chunks = chunks.replace("{size}", &format!("{:x}", body.len())).replace("{body}", &body);
    format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\n{headers}\r\n{chunks}{}", hidden())
}

const BOTH: Expect<'static> = Served(&["outer", "hidden"]);

#[tokio::test]
async fn transfer_codings() {
    let attack = Attack::start().await;
    // What is chunked beyond doubt.
    for line in
        ["Transfer-Encoding:  chunked ", "transfer-encoding:\tchunked\t", "tRANSFER-eNCODING: cHUNKED"]
    {
        attack.check(line, chunked(&format!("{line}\r\n")).as_bytes(), BOTH).await;
    }
    for value in [
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked, chunked",
        ",chunked",
        "chunked,",
        "\"chunked\"",
        "chunked;q=1",
        "chunkedchunked",
        "chun ked",
        "",
        "identity",
    ] {
        attack
            .check(value, chunked(&format!("transfer-encoding: {value}\r\n")).as_bytes(), Refused(400))
            .await;
    }
    for lines in [
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: x\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "transfer-encoding\t: chunked\r\n",
        "x: y\rtransfer-encoding: chunked\r\n",
    ] {
        attack.check(lines, chunked(lines).as_bytes(), Refused(400)).await;
    }
    // A bare LF ends a line for all that accept it at all.
    attack.check("LF", chunked("x: y\ntransfer-encoding: chunked\r\n").as_bytes(), BOTH).await;
    // With both, the chunks count, and nothing else on the connection does.
    let outer = ServedAndClosed(&["outer"]);
    attack
        .check("TE.CL", chunked("transfer-encoding: chunked\r\ncontent-length: 4\r\n").as_bytes(), outer)
        .await;
    let outer = ServedAndClosed(&["outer"]);
    attack
        .check("CL.TE", chunked("content-length: 4\r\ntransfer-encoding: chunked\r\n").as_bytes(), outer)
        .await;
}

#[tokio::test]
async fn lengths() {
    let attack = Attack::start().await;
    let post = &format!("POST {CHAT} HTTP/1.1\r\nhost: g");
    for line in [
        "content-length: {length}\r\ncontent-length: {length}",
        "content-length: 000{length}",
        "content-length:\t{length}\t",
    ] {
        attack.check(line, plain(post, &format!("{line}\r\n")).as_bytes(), BOTH).await;
    }
    for line in [
        "content-length: {length}, 0",
        "content-length: 0, {length}",
        "content-length:",
        "content-length: ,{length}",
        "content-length: {length} 0",
        "content-length: {length}.0",
        "content-length: {length}e0",
        "content-length: {length}\r\ncontent-length:",
        "content-length: {length}\r\ncontent-length: -1",
    ] {
        attack.check(line, plain(post, &format!("{line}\r\n")).as_bytes(), Refused(400)).await;
    }
    // Without a length there is no body: what follows is a request, and not one.
    let bytes = format!("{post}\r\n\r\n{}", hidden());
    let mut conn = Conn::open(attack.world.addr).await;
    conn.write(bytes.as_bytes()).await;
    assert_eq!(conn.reply().await.error_code(), "invalid_request_body");
    attack.answers(&mut conn, "no length", "hidden").await;
    assert_eq!(attack.recorder.take().len(), 1);
}

#[tokio::test]
async fn chunk_framing() {
    let attack = Attack::start().await;
    let te = "transfer-encoding: chunked\r\n";
    let zeros = format!("{}{{size}}\r\n{{body}}\r\n000\r\n\r\n", "0".repeat(40));
    for good in ["{size};a=b;c=\"d\"\r\n{body}\r\n0;e\r\n\r\n", "{size} \r\n{body}\r\n0\r\n\r\n", &zeros] {
        attack.check(good, chunks(te, good).as_bytes(), BOTH).await;
    }
    let huge = format!("{{size}};{}\r\n{{body}}\r\n0\r\n\r\n", "x".repeat(20_000));
    let many = format!("{}{{size}}\r\n{{body}}\r\n0\r\n\r\n", "1;x=y\r\n \r\n".repeat(6000));
    let trailer = format!("{{size}}\r\n{{body}}\r\n0\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    for bad in [
        "+{size}\r\n{body}\r\n0\r\n\r\n",
        "-{size}\r\n{body}\r\n0\r\n\r\n",
        "0x{size}\r\n{body}\r\n0\r\n\r\n",
        " {size}\r\n{body}\r\n0\r\n\r\n",
        "\r\n{body}\r\n0\r\n\r\n",
        "{size}z\r\n{body}\r\n0\r\n\r\n",
        "{size} {size}\r\n{body}\r\n0\r\n\r\n",
        "100000000000000{size}\r\n{body}\r\n0\r\n\r\n",
        "{size}\n{body}\n0\n\n",
        "{size}\r\n{body}\n0\r\n\r\n",
        "{size}\r\n{body}0\r\n\r\n",
        "{size};a\nb\r\n{body}\r\n0\r\n\r\n",
        "{size};a\rb\r\n{body}\r\n0\r\n\r\n",
        "{size}\r\n{body}\r\n0\r\nno colon\r\n\r\n",
        &huge,
        &many,
        &trailer,
    ] {
        attack.check(bad, chunks(te, bad).as_bytes(), Refused(400)).await;
    }
    // Trailers say nothing about a request that has been understood already.
    let trailers = "{size}\r\n{body}\r\n0\r\ncontent-length: 0\r\ntransfer-encoding: x\r\nauthorization: Bearer t\r\n\
                    x-trailer: 1\r\n\r\n";
    let seen = attack
        .check("trailers", chunks(&format!("{te}trailer: x-trailer\r\n"), trailers).as_bytes(), BOTH)
        .await;
    assert!(seen[0].header("x-trailer").is_empty() && seen[0].header("trailer").is_empty());
}

#[tokio::test]
async fn hosts_and_targets() {
    let attack = Attack::start().await;
    let length = "content-length: {length}\r\n";
    let lines = |line: &str, hosts: &str| plain(line, &format!("{hosts}{length}"));
    let post = format!("POST {CHAT} HTTP/1.1");
    for hosts in [
        "",
        "host: a\r\nhost: b\r\n",
        "host: a\r\nhost: a\r\n",
        "host: a b\r\n",
        "host: u@h\r\n",
        "host: a/b\r\n",
    ] {
        attack.check(hosts, lines(&post, hosts).as_bytes(), Refused(400)).await;
    }
    for host in ["", "a_b:80", "[::1]:8080", "other.example"] {
        attack.check(host, lines(&post, &format!("host: {host}\r\n")).as_bytes(), BOTH).await;
    }
    let old = lines(&format!("POST {CHAT} HTTP/1.0"), "");
    attack.check("1.0 without host", old.as_bytes(), ServedAndClosed(&["outer"])).await;
    // The target's host is not ours to follow.
    let absolute = format!("POST http://other.example:1{CHAT} HTTP/1.1");
    let seen = attack.check("absolute", lines(&absolute, "host: g\r\n").as_bytes(), BOTH).await;
    assert!(seen[0].head.starts_with(&format!("POST {CHAT} HTTP/1.1\r\n")), "{}", seen[0].head);
    let escaped = format!("POST {CHAT}?x=%0d%0aX-Evil:%201%00 HTTP/1.1");
    let seen = attack.check("escaped", lines(&escaped, "host: g\r\n").as_bytes(), BOTH).await;
    assert!(seen[0].head.starts_with(&escaped) && seen[0].header("x-evil").is_empty(), "{}", seen[0].head);
    for line in [
        format!("POST\t{CHAT}\tHTTP/1.1"),
        format!("POST  {CHAT} HTTP/1.1"),
        format!("POST {CHAT}  HTTP/1.1"),
        format!(" POST {CHAT} HTTP/1.1"),
        format!("POST {CHAT} HTTP/1.1 "),
        format!("POST {CHAT} x HTTP/1.1"),
        format!("POST {CHAT} http/1.1"),
        format!("POST {CHAT} HTTP/1.2"),
        format!("POST {CHAT}\u{b}HTTP/1.1"),
    ] {
        attack.check(&line, lines(&line, "host: g\r\n").as_bytes(), Refused(400)).await;
    }
    let seen =
        attack.check("blank lines", lines(&format!("\r\n\r\n{post}"), "host: g\r\n").as_bytes(), BOTH).await;
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn headers_that_mean_something_to_the_next() {
    let attack = Attack::start().await;
    let with = |headers: &str| {
        plain(
            &format!("POST {CHAT} HTTP/1.1\r\nhost: g"),
            &format!("{headers}content-length: {{length}}\r\n"),
        )
    };
    for headers in [
        "Transfer_Encoding: chunked\r\nContent_Length: 0\r\n",
        "connection: content-length\r\n",
        "connection: authorization, host, x-request-id\r\nauthorization: Bearer client\r\n",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
        "te: trailers, chunked\r\ntrailer: content-length\r\n",
        "proxy-connection: close\r\nkeep-alive: timeout=0\r\n",
        "expect: 200-ok\r\n",
        "X_Api_Key: client\r\nproxy-authorization: Basic eA==\r\n",
        "x: \u{e9}\r\n",
    ] {
        let seen = attack.check(headers, with(headers).as_bytes(), BOTH).await;
        let head = seen[0].head.to_ascii_lowercase().replace('_', "-");
        let ours = ["host", "authorization", "x-request-id", "content-length"];
        let names = headers.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name);
        for name in names.map(|name| name.to_ascii_lowercase().replace('_', "-")) {
            let is_ours = ours.contains(&name.as_str()) || name == "x" || name == "sec-websocket-version";
            let count = head.matches(&format!("\r\n{name}:")).count();
            assert!(count <= usize::from(is_ours), "{name} in {head}");
        }
        assert_eq!(seen[0].header("x-request-id").len(), 1);
        assert!(!head.contains("client"), "{head}");
    }
    let closing = with("connection: close\r\nconnection: keep-alive\r\n");
    attack.check("close wins", closing.as_bytes(), ServedAndClosed(&["outer"])).await;
}

/// Who asks first is told, once, and what follows is the body even if it looks like a request.
#[tokio::test]
async fn expectations() {
    let attack = Attack::start().await;
    let body = about("outer");
    for headers in ["expect: 100-continue\r\n", "Expect: 100-CONTINUE\r\nexpect: 100-continue\r\n"] {
        let mut conn = Conn::open(attack.world.addr).await;
        let length = body.len();
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\n{headers}content-length: {length}\r\n\r\n");
        conn.write(head.as_bytes()).await;
        let told = conn.head().await.unwrap();
        assert_eq!(told.status, 100);
        conn.write(&[&body, hidden().as_bytes()].concat()).await;
        for chat in ["outer", "hidden"] {
            attack.answers(&mut conn, headers, chat).await;
        }
        assert_eq!(attack.recorder.take().len(), 2);
    }
    // Refused before the body: whether that is read or the connection ends, no part of it is a request.
    for line in ["POST /v2/x", &format!("PUT {CHAT}"), &format!("GET {CHAT}")] {
        for expect in ["", "expect: 100-continue\r\n"] {
            let mut conn = Conn::open(attack.world.addr).await;
            let body = hidden();
            let head =
                format!("{line} HTTP/1.1\r\nhost: g\r\n{expect}content-length: {}\r\n\r\n", body.len());
            conn.write(&[head.as_bytes(), body.as_bytes()].concat()).await;
            let reply = conn.reply().await;
            assert!((400..500).contains(&reply.status) && !reply.error_code().is_empty(), "{line}");
            conn.stream.shutdown().await.unwrap();
            let (rest, _) = conn.rest().await;
            assert!(rest.is_empty(), "{line}: {}", String::from_utf8_lossy(&rest));
            assert!(attack.recorder.take().is_empty(), "{line}");
        }
    }
}

/// Servers disagree about bodies of requests that need none, and about methods that few know.
#[tokio::test]
async fn methods() {
    let attack = Attack::start().await;
    let other = |method: &str, body: &str| {
        let length = body.len();
        let head = format!("{method} /v1/files HTTP/1.1\r\nhost: g\r\nx-backstop-service: chat\r\n");
        format!("{head}content-length: {length}\r\n\r\n{body}")
    };
    for method in ["GET", "HEAD"] {
        let mut conn = Conn::open(attack.world.addr).await;
        conn.write(other(method, &hidden()).as_bytes()).await;
        let head = conn.head().await.unwrap();
        assert_eq!((head.status, head.header("connection")), (400, Some("close")), "{method}");
        assert!(attack.recorder.take().is_empty());
        attack.others(method).await;
    }
    let long = "M".repeat(30_000);
    for method in ["TRACE", "CONNECT", "PRI", "get", "BREW", &long] {
        let mut conn = Conn::open(attack.world.addr).await;
        conn.write(other(method, "").as_bytes()).await;
        let reply = conn.reply().await;
        assert_eq!((reply.status, reply.error_code().as_str()), (405, "method_not_allowed"), "{method}");
        assert!(reply.body.len() < 1000, "the answer does not repeat all of it");
        assert!(attack.recorder.take().is_empty(), "{method}");
    }
    // In the path too, what is escaped stays so.
    for (method, path) in [
        ("GET", "/v1/files/%0d%0aX-Evil:%201%0d%0a%0d%0aGET%20/v1/x%20HTTP/1.1"),
        ("POST", "/v1/files"),
        ("PUT", "/v1/files/%00"),
        ("PATCH", "/v1/files"),
        ("DELETE", "/v1/files/a%20b"),
        ("OPTIONS", "/v1/files"),
    ] {
        let mut conn = Conn::open(attack.world.addr).await;
        conn.write(other(method, "").replace("/v1/files", path).as_bytes()).await;
        assert_eq!(conn.reply().await.status, 200, "{method}");
        assert!(attack.recorder.take()[0].head.starts_with(&format!("{method} {path} HTTP/1.1\r\n")));
    }
}
