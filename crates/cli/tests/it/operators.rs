//! Operators with tokens, and several of them at once.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::backstop::{BIN, Backstop, config, sim};
use crate::check::TEN_MISTAKES;
use crate::client::{call, chat, until};

const TOKENS: &str = "tokens: [{ name: ops, token: TOKEN-O, role: operator }, { name: eye, token: TOKEN-V }]";

fn with_tokens(config: &str) -> String {
    config.replace("admin: { listen: 127.0.0.1:0 }", &format!("admin: {{ listen: 127.0.0.1:0, {TOKENS} }}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_token_is_kept_out() {
    let (first, second) = (sim(0, 8).await, sim(0, 8).await);
    let backstop = Backstop::serve(&with_tokens(&config(&[&first, &second])), &[]).await;
    backstop.ready().await;
    let list = ["endpoint", "list"];
    let drain = ["endpoint", "drain", &first.url()];

    let none = backstop.ask(&list, "");
    assert_eq!(none.code, Some(1));
    assert_eq!(
        none.err,
        "error: this control API asks for a token\nhint: set BACKSTOP_TOKEN to one of its `admin.tokens`\n"
    );
    let wrong = backstop.ask(&list, "TOKEN-X");
    assert_eq!(wrong.code, Some(1));
    assert!(
        wrong.err.starts_with("error: this is none of the tokens\nhint: look at BACKSTOP_TOKEN"),
        "{}",
        wrong.err
    );
    let broken = backstop.ask(&list, "TOKEN-V\n");
    assert!(broken.code == Some(1) && broken.err.contains("hint: is the token whole"), "{}", broken.err);
    let metrics = call(backstop.admin, "GET", "/metrics", "", b"").await;
    assert_eq!((metrics.status, metrics.header("www-authenticate")), (401, Some("Bearer")));

    assert_eq!(backstop.ask(&list, "TOKEN-V").code, Some(0));
    let viewer = backstop.ask(&drain, "TOKEN-V");
    assert_eq!(viewer.code, Some(1));
    assert!(
        viewer.err.starts_with("error: `eye` is a viewer; this needs the role `operator`\nhint: "),
        "{}",
        viewer.err
    );
    assert_eq!(backstop.ask(&drain, "TOKEN-O").code, Some(0));

    let events = backstop.ask(&["events", "--types", "change", "--json"], "TOKEN-V").out;
    let change: Value = serde_json::from_str(events.trim()).unwrap();
    assert_eq!((&change["actor"], &change["action"]), (&"ops".into(), &"drain".into()));
    until("failures are logged", || backstop.logged("authentication at the control API failed")).await;
    let text = backstop.text();
    assert!(!text.contains("TOKEN-"), "{text}");
    assert_eq!(chat(backstop.addr, true).await.status, 200, "clients need no token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_come_with_a_reload() {
    let engine = sim(0, 8).await;
    let text = config(&[&engine]);
    let backstop = Backstop::serve(&text, &[]).await;
    backstop.write(&with_tokens(&text));
    // The file may have been noticed before, and then there are tokens already.
    backstop.ask(&["reload"], "TOKEN-O");
    assert_eq!(backstop.ask(&["endpoint", "list"], "").code, Some(1));
    assert_eq!(backstop.ask(&["endpoint", "list"], "TOKEN-V").code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_of_two_operators_is_told_what_the_first_did() {
    let (first, second) = (sim(0, 8).await, sim(0, 8).await);
    let backstop = Backstop::serve(&with_tokens(&config(&[&first, &second])), &[]).await;
    let seen: Value = serde_json::from_str(&backstop.ask(&["config", "--json"], "TOKEN-O").out).unwrap();
    let revision = seen["revision"].to_string();
    let drain = |url: &str| backstop.ask(&["endpoint", "drain", url, "--if-revision", &revision], "TOKEN-O");
    assert_eq!(drain(&first.url()).code, Some(0));
    let late = drain(&second.url());
    assert_eq!(late.code, Some(1));
    let expected = format!(
        "error: this is revision 2, not 1: since then `ops` did `drain` ({} of chat/v1)\nhint: look at what changed \
         (`backstop config`), then repeat with `--if-revision 2`\n",
        first.url()
    );
    assert_eq!(late.err, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_reload_tells_every_reason() {
    let engine = sim(0, 8).await;
    let text = config(&[&engine]);
    let backstop = Backstop::serve(&text, &[]).await;
    backstop.ready().await;
    backstop.write(TEN_MISTAKES);
    let said = backstop.ask(&["reload"], "");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.starts_with("error: 10 problems in `backstop.yaml`, so nothing was changed\n"),
        "{}",
        said.err
    );
    assert!(said.err.contains("\n  backstop.yaml:6:13: services[0].stable: "), "{}", said.err);
    assert_eq!(said.err.matches("\n  backstop.yaml").count(), 10, "{}", said.err);
    assert_eq!(chat(backstop.addr, false).await.status, 200);

    let restart = text.replace("listen: 127.0.0.1:0\nadmin", "listen: 127.0.0.1:1\nadmin");
    backstop.write(&restart);
    let said = backstop.ask(&["reload"], "");
    assert_eq!(said.code, Some(0));
    assert!(said.out.starts_with("reloaded (revision "), "{}", said.out);
    assert_eq!(said.err, "warning: `listen` change only with a restart; the rest is applied\n");
}

/// Nothing is left out and nothing told twice when Backstop is started anew under a follower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_followed_over_a_restart() {
    let (first, second) = (sim(0, 8).await, sim(0, 8).await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = config(&[&first, &second])
        .replace("admin: { listen: 127.0.0.1:0 }", &format!("admin: {{ listen: \"{free}\" }}"));
    let mut backstop = Backstop::serve(&text, &[]).await;
    let mut follower = Command::new(BIN)
        .args(["events", "--follow", "--types", "change", "--admin", &format!("http://{free}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(follower.stdout.take().unwrap());
    let (lines, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        out.lines().map_while(Result::ok).for_each(|line| lines.send(line).unwrap_or(()))
    });
    let heard = || told.recv_timeout(crate::client::HUNG).unwrap();
    backstop.order(&["endpoint", "drain", &first.url()]);
    assert!(heard().contains(": drain "), "the first");
    backstop.kill_and_restart().await;
    // More than the first process had, so that numbers alone would mislead.
    for _ in 0..4 {
        backstop.order(&["endpoint", "restore", &first.url()]);
        backstop.order(&["endpoint", "isolate", &first.url()]);
    }
    for _ in 0..4 {
        assert!(heard().contains(": restore "));
        assert!(heard().contains(": isolate "));
    }
    follower.kill().unwrap();
    follower.wait().unwrap();
}
