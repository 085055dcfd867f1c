//! The control API and the command that reads it.

use std::process::Command;

use serde_json::Value;

use crate::backstop::{BIN, Backstop, config, sim};
use crate::client::{Conn, call, soon};

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
                events.push((id.parse().unwrap(), serde_json::from_str(data).unwrap()));
            }
        }
    }
    events
}

#[tokio::test]
async fn events_are_replayed_and_then_followed() {
    let engine = sim(0, 3).await;
    let settings = config(&[&engine]);
    let backstop = Backstop::serve(&settings, &[]).await;
    backstop.ready().await;
    let mut conn = Conn::open(backstop.admin).await;
    conn.send("GET", "/api/v1/events", "", b"").await;
    let head = conn.head().await.unwrap();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let old = next(&mut conn, 2).await;
    assert_eq!((old[0].0, &old[0].1["event"]), (1, &Value::from("table")));
    assert_eq!((old[1].0, &old[1].1["to"]), (2, &Value::from("healthy")));

    engine.kill().await;
    let new = next(&mut conn, 1).await;
    assert_eq!((new[0].0, &new[0].1["to"]), (3, &Value::from("unhealthy")));
    // Whoever comes back gets what came after the last that it saw, and nothing twice.
    let mut again = Conn::open(backstop.admin).await;
    again.send("GET", "/api/v1/events", "last-event-id: 2\r\n", b"").await;
    again.head().await.unwrap();
    assert_eq!(next(&mut again, 1).await, new);
}

#[tokio::test]
async fn the_list_of_endpoints() {
    let engine = sim(0, 3).await;
    let backstop = Backstop::serve(&config(&[&engine]), &[]).await;
    backstop.ready().await;
    let admin = format!("http://{}", backstop.admin);
    let list = |arguments: &[&str]| {
        let output = Command::new(BIN).args(["endpoint", "list"]).args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, table, _) = list(&["--admin", &admin]);
    assert_eq!(code, Some(0));
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["chat", "v1", engine.url().as_str(), "healthy"]);

    let (_, json, _) = list(&["--admin", &admin, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()[0]["state"], "healthy");

    let page = call(backstop.admin, "GET", "/metrics", "", b"").await.text();
    assert!(page.contains("backstop_build_info"), "{page}");

    drop(backstop);
    let (code, _, error) = list(&["--admin", &admin]);
    assert_eq!(code, Some(1));
    assert!(error.starts_with("error: can't ask") && error.contains("hint:"), "{error}");
    let (code, _, error) = list(&["--admin", "nonsense"]);
    assert!(code == Some(1) && error.contains("`nonsense` is not a URL with a port"), "{error}");
}
