//! Run-time changes of a running Backstop, and what its clients notice of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::backstop::{BIN, Backstop, Said, config, oracle, sim};
use crate::client::{CHAT, Conn, Reply, call, chat, hi, soon, until};

const JSON: &str = "content-type: application/json\r\n";

async fn post(backstop: &Backstop, path: &str, body: Value) -> Reply {
    call(backstop.admin, "POST", path, JSON, body.to_string().as_bytes()).await
}

async fn until_state(backstop: &Backstop, url: &str, state: &str) {
    let reached = async {
        loop {
            let rows = call(backstop.admin, "GET", "/api/v1/endpoints", "", b"").await.json();
            if rows.as_array().unwrap().iter().any(|row| row["url"] == url && row["state"] == state) {
                break;
            }
        }
    };
    soon(state, reached).await;
}

/// The next events of an event stream, as (id, JSON).
async fn next(conn: &mut Conn, count: usize) -> Vec<(u64, Value)> {
    let (mut text, mut events) = (String::new(), Vec::new());
    while events.len() < count {
        let chunk = soon("an event", conn.chunk()).await.unwrap();
        text += std::str::from_utf8(&chunk).unwrap();
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if let (Some(id), Some(data)) = (field("id:"), field("data:")) {
                let (_process, id) = id.split_once('-').unwrap();
                events.push((id.parse().unwrap(), serde_json::from_str(data).unwrap()));
            }
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_replayed_and_then_followed() {
    let engine = sim(0, 3).await;
    let backstop = Backstop::serve(&config(&[&engine]), &[]).await;
    backstop.ready().await;
    let mut conn = Conn::open(backstop.admin).await;
    conn.send("GET", "/api/v1/events", "", b"").await;
    let head = conn.head().await.unwrap();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let mut old = next(&mut conn, 2).await;
    assert_eq!([old[0].0, old[1].0], [1, 2]);
    // The first look at an endpoint may be done before the table is there.
    old.sort_by_key(|(_, event)| event["event"] == "table");
    assert_eq!((&old[0].1["to"], &old[1].1["event"]), (&Value::from("healthy"), &Value::from("table")));

    engine.kill().await;
    let new = next(&mut conn, 1).await;
    assert_eq!((new[0].0, &new[0].1["to"]), (3, &Value::from("unhealthy")));
    // Whoever comes back gets what came after the last that it saw, and nothing twice.
    let mut again = Conn::open(backstop.admin).await;
    again.send("GET", "/api/v1/events", "last-event-id: 2\r\n", b"").await;
    again.head().await.unwrap();
    assert_eq!(next(&mut again, 1).await, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_endpoint_serves_and_an_isolated_one_does_not() {
    let (first, second) = (sim(0, 8).await, sim(0, 8).await);
    let backstop = Backstop::serve(&config(&[&first]), &[]).await;
    backstop.ready().await;
    let asked =
        |sim: &backstop_engine_sim::Sim| sim.request_log().iter().filter(|it| it.method == "POST").count();

    let said = backstop.order(&["endpoint", "add", &second.url(), "--service", "chat", "--engine", "sim"]);
    assert_eq!(said, format!("{} of chat/v1: added (revision 2)\n", second.url()));
    until_state(&backstop, &second.url(), "healthy").await;
    let said = backstop.order(&["endpoint", "isolate", &first.url()]);
    assert_eq!(said, format!("{} of chat/v1: isolated (revision 3)\n", first.url()));
    until_state(&backstop, &first.url(), "isolated").await;
    let before = asked(&first);
    for stream in [true, false, true] {
        assert_eq!(chat(backstop.addr, stream).await.content(), oracle(8));
    }
    assert_eq!((asked(&first), asked(&second)), (before, 3));
    // The other way round.
    backstop.order(&["endpoint", "restore", &first.url()]);
    until_state(&backstop, &first.url(), "healthy").await;
    backstop.order(&["endpoint", "remove", &second.url()]);
    assert_eq!(chat(backstop.addr, true).await.content(), oracle(8));
    assert_eq!((asked(&first), asked(&second)), (before + 1, 3));
    let said = backstop.ask(&["endpoint", "remove", &first.url()], "");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains(
            "is the last endpoint that serves version `v1` of service `chat`\nhint: add or restore"
        ),
        "{}",
        said.err
    );
    let said = backstop.ask(&["endpoint", "remove", &first.url(), "--force"], "");
    assert_eq!(said.code, Some(1), "not even by force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_can_be_waited_for() {
    let (slow, other) = (sim(50, 64).await, sim(0, 8).await);
    let backstop = Backstop::serve(&config(&[&slow]), &[]).await;
    backstop.ready().await;
    let mut conn = Conn::open(backstop.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = conn.head().await.unwrap();
    backstop.order(&["endpoint", "add", &other.url(), "--service", "chat", "--engine", "sim"]);
    until_state(&backstop, &other.url(), "healthy").await;

    let said = backstop.ask(&["endpoint", "drain", &slow.url(), "--wait", "1ms"], "");
    assert_eq!(said.code, Some(1));
    assert!(said.err.starts_with("error: 1 still in flight on"), "{}", said.err);
    let said = backstop.order(&["endpoint", "drain", &slow.url(), "--wait"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("draining already (revision 3)") && said.contains("idle"), "{said}");
    conn.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(64), true));
    let said = backstop.ask(&["endpoint", "drain", "--wait", &slow.url()], "");
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("write the URL before `--wait`"), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_survive_kill_9() {
    let (first, second, third) = (sim(0, 8).await, sim(0, 8).await, sim(0, 8).await);
    let mut backstop = Backstop::serve(&config(&[&first, &second]), &[]).await;
    backstop.ready().await;
    backstop.order(&["endpoint", "add", &third.url(), "--service", "chat", "--engine", "sim"]);
    backstop.order(&["endpoint", "isolate", &first.url()]);
    // The answer has come, so it is on disk.
    backstop.order(&["endpoint", "drain", &second.url()]);
    backstop.kill_and_restart().await;
    backstop.ready().await;
    let rows: Value = serde_json::from_str(&backstop.order(&["endpoint", "list", "--json"])).unwrap();
    let duties: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["duty"].as_str().unwrap()).collect();
    assert_eq!(duties, ["isolated", "draining", "active"]);
    let polls =
        |sim: &backstop_engine_sim::Sim| sim.request_log().iter().filter(|it| it.method == "POST").count();
    assert_eq!(chat(backstop.addr, true).await.content(), oracle(8));
    assert_eq!((polls(&first), polls(&second), polls(&third)), (0, 0, 1));
    // The numbers go on, so that an operator's revision never means two things.
    let config: Value = serde_json::from_str(&backstop.order(&["config", "--json"])).unwrap();
    assert_eq!(config["revision"], 5);
}

/// Killed at any moment while changes are made, what is found is the last change that was answered or the one that
/// was not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_whole_or_not_there() {
    let (first, second) = (sim(0, 8).await, sim(0, 8).await);
    let mut backstop = Backstop::serve(&config(&[&first, &second]), &[]).await;
    let mut revision = 0;
    for round in 0..5_u64 {
        let (admin, before) = (backstop.admin, revision);
        let url = second.url();
        let answers = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&answers);
        let changing = tokio::spawn(async move {
            let mut answered = before;
            loop {
                for action in ["drain", "restore"] {
                    let Ok(stream) = TcpStream::connect(admin).await else { return answered };
                    let mut conn = Conn::of(stream);
                    let body = json!({ "url": url }).to_string();
                    conn.send("POST", &format!("/api/v1/endpoints/{action}"), JSON, body.as_bytes()).await;
                    let reply = conn.reply().await;
                    if reply.status != 200 {
                        return answered;
                    }
                    counted.fetch_add(1, Relaxed);
                    // What was so already is not stored anew.
                    if reply.json()["changed"] == true {
                        answered = reply.json()["revision"].as_u64().unwrap();
                    }
                }
            }
        });
        until("some changes", || answers.load(Relaxed) > 3 + round).await;
        backstop.kill();
        let answered = changing.await.unwrap();
        backstop.kill_and_restart().await;
        let text = std::fs::read_to_string(backstop.path("state/intent.json")).unwrap();
        let stored: Value = serde_json::from_str(&text).unwrap();
        revision = stored["revision"].as_u64().unwrap();
        // After a restart the numbers go on one above those stored.
        assert!((answered..=answered + 2).contains(&revision), "{answered} {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_changes_stop_the_start() {
    let engine = sim(0, 8).await;
    let mut backstop = Backstop::serve(&config(&[&engine]), &[]).await;
    backstop.kill();
    std::fs::create_dir_all(backstop.path("state")).unwrap();
    std::fs::write(backstop.path("state/intent.json"), "{\"format\":1,").unwrap();
    let mut command = std::process::Command::new(BIN);
    command.arg("serve").current_dir(backstop.path("."));
    let said = Said::of(command);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .contains("error: the run-time changes in `./state/intent.json` are damaged: the end is missing"),
        "{}",
        said.err
    );
    assert!(
        said.err.contains("hint: put back a copy of the file, or move it aside (`mv ./state/intent.json ")
    );
    std::fs::rename(backstop.path("state/intent.json"), backstop.path("state/aside")).unwrap();
    backstop.kill_and_restart().await;
    backstop.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_read_holds_up_nobody() {
    let engine = sim(0, 8).await;
    let backstop = Backstop::serve(&config(&[&engine]), &[]).await;
    backstop.ready().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = Conn::of(socket.connect(backstop.admin).await.unwrap());
    deaf.send("GET", "/api/v1/events?types=refused", "", b"").await;
    // Refusals, each with all that may be told: more than all buffers in between hold.
    let url = format!("http://{}", "x".repeat(600));
    let body = json!({ "url": url }).to_string();
    let mut operators = Vec::new();
    for _ in 0..8 {
        let (admin, body) = (backstop.admin, body.clone());
        operators.push(tokio::spawn(async move {
            let mut conn = Conn::open(admin).await;
            for _ in 0..1000 {
                conn.send("POST", "/api/v1/endpoints/drain", JSON, body.as_bytes()).await;
                assert_eq!(conn.reply().await.status, 404);
            }
        }));
    }
    for operator in operators {
        operator.await.unwrap();
    }
    assert_eq!(chat(backstop.addr, true).await.content(), oracle(8));
    // It reads at last, and is told how many it missed.
    deaf.head().await.unwrap();
    let (mut text, mut told) = (String::new(), 0);
    while told == 0 {
        text += std::str::from_utf8(&soon("events", deaf.chunk()).await.unwrap()).unwrap();
        let data = text.split_once("event: missed\ndata: ").and_then(|(_, rest)| rest.split_once('\n'));
        if let Some((data, _)) = data {
            told = serde_json::from_str::<Value>(data).unwrap()["missed"].as_u64().unwrap();
        }
    }
    assert!((1..8000).contains(&told), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sites_are_kept_out() {
    let (first, second) = (sim(0, 8).await, sim(0, 8).await);
    let backstop = Backstop::serve(&config(&[&first, &second]), &[]).await;
    let body = json!({ "url": first.url() }).to_string();
    for headers in ["host: evil.example:9090\r\n", "host: 127.0.0.1:9090\r\norigin: https://evil.example\r\n"]
    {
        let mut conn = Conn::open(backstop.admin).await;
        let head = format!(
            "POST /api/v1/endpoints/drain HTTP/1.1\r\n{headers}{JSON}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        conn.write(head.as_bytes()).await;
        let reply = conn.reply().await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("other_site")));
    }
    assert_eq!(post(&backstop, "/api/v1/endpoints/drain", json!({ "url": first.url() })).await.status, 200);
}

/// Connections that say nothing, or half of something, take nothing from those that do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() {
    let engine = sim(0, 8).await;
    let backstop = Backstop::serve(&config(&[&engine]), &[]).await;
    backstop.ready().await;
    let mut idle = Vec::new();
    for number in 0..600 {
        let mut conn = Conn::open(backstop.admin).await;
        if number % 2 == 0 {
            conn.write(b"GET /api/v1/services HTTP/1.1\r\nhost: local").await;
        }
        idle.push(conn);
    }
    assert_eq!(chat(backstop.addr, true).await.content(), oracle(8), "traffic does not notice");
    let mut late = Conn::open(backstop.admin).await;
    late.send("GET", "/api/v1/version", "", b"").await;
    idle.drain(..200);
    assert_eq!(late.reply().await.status, 200, "it had to wait for a place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_made_here_works_here() {
    let engine = sim(0, 8).await;
    let mut command = std::process::Command::new(BIN);
    command.args(["key", "create", "--name", "team #1", "--json"]);
    assert_eq!(Said::of(command).code, Some(2), "a name has no spaces");
    let mut command = std::process::Command::new(BIN);
    command.args(["key", "create", "--name", "team:#1", "--tenant", "a", "--services", "chat"]);
    let said = Said::of(command).out;
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let (key, hash) = (field("key "), field("hash "));
    assert!(key.starts_with("sk-bs-") && key.len() == 46, "{key}");
    let line = said.lines().find(|line| line.starts_with("  - {")).unwrap();
    let backstop = Backstop::serve(&format!("keys:\n{line}\n{}", config(&[&engine])), &[]).await;
    backstop.ready().await;
    assert_eq!(chat(backstop.addr, false).await.status, 401);
    let reply =
        call(backstop.addr, "POST", CHAT, &format!("authorization: Bearer {key}\r\n"), &hi(false)).await;
    assert_eq!((reply.status, reply.content()), (200, oracle(8)));
    // The same hash from the key alone.
    let file = backstop.path("key.txt");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let output = std::process::Command::new(BIN)
        .args(["key", "hash"])
        .stdin(std::fs::File::open(file).unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), hash);
    until("no key in the log", || !backstop.text().contains(&key)).await;
}
