//! What commands print: help of every command, and what they say of a running Backstop.

use std::process::Command;

use crate::backstop::{BIN, Backstop, Said, config, sim};

fn help(arguments: &[&str]) -> String {
    let mut command = Command::new(BIN);
    command.args(arguments).arg("--help").env("COLUMNS", "100");
    for name in ["BACKSTOP_ADMIN", "BACKSTOP_TOKEN", "BACKSTOP_CA", "BACKSTOP_LOG"] {
        command.env_remove(name);
    }
    let said = Said::of(command);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    said.out
}

/// The names of the commands that a help text lists.
fn listed(help: &str) -> Vec<String> {
    let lines =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
}

/// Every command there is, found by asking.
#[test]
fn help_of_every_command() {
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    let mut count = 0;
    while let Some(command) = open.pop() {
        let text = help(&command.iter().map(String::as_str).collect::<Vec<_>>());
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest.is_some_and(|longest| longest <= 100), "{command:?}");
        let name = if command.is_empty() { "backstop".to_owned() } else { command.join("-") };
        insta::assert_snapshot!(format!("help-{name}"), text);
        count += 1;
        for below in listed(&text) {
            open.push(command.iter().cloned().chain([below]).collect());
        }
    }
    assert!(count >= 20, "{count}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_backstop_in_words() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let text = config(&[&first, &second])
        + "    dependencies: [{ name: db, url: \"tcp://127.0.0.1:1\", interval: 100ms }]\n";
    let backstop = Backstop::serve(&text, &[]).await;
    let list = || backstop.order(&["endpoint", "list"]);
    crate::client::until("healthy", || list().matches(" healthy ").count() == 2).await;
    backstop.order(&["dependency", "set", "db", "up"]);
    backstop.order(&["endpoint", "drain", &second.url()]);
    crate::client::until("draining", || list().contains(" draining ")).await;
    backstop.ask(&["endpoint", "drain", &first.url()], "");

    let (url, other) = (first.url(), second.url());
    let settled = |said: String| {
        // Ports and points in time are others each time; what they are in is as wide.
        let said = said.replace(&url, "http://first").replace(&other, "http://second");
        let is_time = |word: &str| word.len() == 20 && word.ends_with('Z');
        let words = |line: &str| {
            let words: Vec<&str> =
                line.split(' ').map(|word| if is_time(word) { "TIME" } else { word }).collect();
            words.join(" ")
        };
        said.lines().map(words).collect::<Vec<_>>().join("\n")
    };
    let squeezed = |said: String| {
        let lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!("endpoint-list", squeezed(settled(list())));
    insta::assert_snapshot!("dependency-list", backstop.order(&["dependency", "list"]));
    // How many events there were before is not always the same.
    let events = settled(backstop.order(&["events", "--types", "change,refused"]));
    let unnumbered: Vec<&str> = events.lines().map(|line| &line[5..]).collect();
    insta::assert_snapshot!(
        "events-change",
        unnumbered.join(
            "
"
        )
    );
    let shown = settled(backstop.order(&["config"]));
    let head: Vec<&str> = shown.lines().take_while(|line| line.starts_with('#')).collect();
    insta::assert_snapshot!("config-head", head.join("\n"));
    assert!(shown.contains("\nservices:\n") && shown.contains("duty: draining"), "{shown}");

    let filtered = backstop.ask(&["endpoint", "list", "--state", "unhealthy"], "");
    assert_eq!((filtered.out.as_str(), filtered.err.as_str()), ("", "there is no such endpoint\n"));
    let unknown = backstop.ask(&["dependency", "set", "cache", "down"], "");
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.starts_with("error: there is no dependency `cache`\nhint: "), "{}", unknown.err);
    let invalid = backstop.ask(&["endpoint", "add", "h:9", "--service", "chat", "--engine", "vlm"], "");
    assert_eq!(invalid.code, Some(1));
    insta::assert_snapshot!("endpoint-add-invalid", invalid.err);
    let ambiguous = backstop.ask(&["events", "--types", "helth"], "");
    assert!(
        ambiguous.code == Some(1) && ambiguous.err.contains("hint: there are health"),
        "{}",
        ambiguous.err
    );
}
