//! What was done to a service, as its history has it: by the file, by operators, whatever happens to process and store.

use serde_json::Value;

use crate::backstop::{Backstop, Said, config, sim};
use crate::client::{call, until};

const STORE: &str = "store: sqlite:./backstop.db\n";

fn history(backstop: &Backstop) -> String {
    backstop.ask(&["release", "history", "chat", "--limit", "100"], "").out
}

async fn told(backstop: &Backstop, what: &str) {
    until(what, || history(backstop).contains(what)).await;
}

fn drift(backstop: &Backstop) -> String {
    let shown = backstop.order(&["config"]);
    shown.lines().filter(|line| line.starts_with("# differs")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn the_history_of_a_service() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let two = format!("{STORE}{}", config(&[&first, &second]));
    let v2 = format!(
        "      - {{ name: v2, endpoints: [{{ url: \"{}\", engine: sim }}] }}\n    health:",
        second.url()
    );
    let with_v2 = two.replace("    health:", &v2);
    let mut backstop = Backstop::serve(&two, &[]).await;
    told(&backstop, "file      file backstop.yaml: new in the file: stable v1 of v1").await;
    backstop.order(&["endpoint", "drain", &second.url(), "--reason", "a new driver"]);
    let drained = "local     endpoint URL of chat/v1: drain URL of version v1 (a new driver)";
    told(&backstop, &drained.replace("URL", &second.url())).await;
    assert!(drift(&backstop).ends_with(&format!("chat: endpoint {} of v1 is drained", second.url())));
    let metrics = call(backstop.admin, "GET", "/metrics", "", b"").await.text();
    assert!(metrics.contains("backstop_config_drift{service=\"chat\"} 1\n"));
    backstop.ask(&["endpoint", "drain", &first.url(), "--service", "chat"], "");
    told(&backstop, "refused: drain").await;
    backstop.write(&with_v2);
    told(&backstop, "version v2 is new").await;

    // While the process is down.
    backstop.kill();
    backstop.write(&with_v2.replace("  - name: chat\n", "  - name: chat\n    stable: v2\n"));
    backstop.kill_and_restart().await;
    told(&backstop, "stable: v1 → v2").await;
    // The same file again is nothing new.
    let before = history(&backstop);
    backstop.kill_and_restart().await;
    told(&backstop, "stable: v1 → v2").await;
    backstop.order(&["endpoint", "restore", &second.url(), "--version", "v1"]);
    told(&backstop, "restore http").await;
    assert_eq!(history(&backstop).lines().count(), before.lines().count() + 1, "{}", history(&backstop));
    assert_eq!(drift(&backstop), "");
    let json: Value =
        serde_json::from_str(&backstop.order(&["release", "history", "chat", "--json"])).unwrap();
    let last = &json[0];
    assert_eq!((&last["kind"], &last["body"]["status"]), (&"endpoint".into(), &"done".into()));
}

#[tokio::test]
async fn a_store_that_is_down_delays_it() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = Backstop::serve(&format!("{STORE}{}", config(&[&first, &second])), &[]).await;
    told(&backstop, "new in the file").await;
    // Somebody else writes, and does not come to an end.
    let lock = rusqlite::Connection::open(backstop.path("backstop.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    backstop.order(&["endpoint", "drain", &second.url()]);
    backstop.kill_and_restart().await;
    drop(lock);
    told(&backstop, "local     endpoint").await;
    assert_eq!(history(&backstop).matches(": drain ").count(), 1);
    let check = Said::of({
        let mut command = std::process::Command::new(crate::backstop::BIN);
        command.args(["store", "check"]).current_dir(&backstop.directory.0);
        command
    });
    assert_eq!(check.code, Some(0), "{check:?}");
}
