//! Versions as a user registers, releases and keeps them.

use std::path::Path;
use std::process::Command;

use backstop_engine_sim::Sim;
use serde_json::{Value, json};

use crate::backstop::{Backstop, Directory, Said, sim};
use crate::client::{chat, until};
use crate::release::{Load, QUICK, config, phase, store_is_open};

/// Of `model`.
const DIGEST: &str = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4";

async fn serve(sims: &[&Sim]) -> Backstop {
    let backstop = Backstop::serve(&config(sims, QUICK), &[]).await;
    store_is_open(&backstop).await;
    backstop
}

fn show(backstop: &Backstop, version: &str) -> Value {
    serde_json::from_str(&backstop.order(&["version", "show", "chat", version, "--json"])).unwrap()
}

/// The words of the line of `list` that begins with this one.
fn listed(backstop: &Backstop, version: &str) -> Vec<String> {
    let list = backstop.order(&["version", "list", "chat"]);
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(version));
    line.unwrap_or_else(|| panic!("no {version} in\n{list}")).split_whitespace().map(str::to_owned).collect()
}

fn refused(backstop: &Backstop, arguments: &[&str]) -> String {
    let Said { code, err, .. } = backstop.ask(arguments, "");
    assert_eq!(code, Some(1), "{err}");
    assert!(err.starts_with("error: "), "{err}");
    err
}

fn file(backstop: &Backstop, name: &str, content: &str) -> String {
    let path = backstop.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A definition of a version on this engine.
fn definition(sim: &Sim) -> String {
    let headers = "request: { headers: { x-namespace: \"${NAMESPACE:-gray}\" } }\n";
    format!("endpoints:\n  - {{ url: \"{}\", engine: sim }}\n{headers}", sim.url())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_version_is_released_and_kept() {
    let (first, other, second) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &other]).await;
    let model = file(&backstop, "model.gguf", "model");
    let yaml = file(&backstop, "v3.yaml", &definition(&second));
    let digest = format!("sha256:{DIGEST}");
    let add = ["version", "add", "chat", "v3", "--file", &yaml, "--artifact", &model, "--digest", &digest];
    let said =
        backstop.order(&[&add[..], &["--label", "owner=search", "--description", "a better one"]].concat());
    assert_eq!(said, format!("chat/v3: ready (registered), 1 file, 5 B, {digest}\n"));
    assert_eq!(backstop.order(&add), said, "the same again changes nothing");
    let words = listed(&backstop, "v3").join(" ");
    assert_eq!(words, "v3 registered ready 9372c470eead 5 B owner=search a better one");
    let shown = backstop.order(&["version", "show", "chat", "v3"]);
    assert!(
        shown.contains("  labels       owner=search\n")
            && shown.contains("x-namespace: \"${NAMESPACE:-gray}\""),
        "{shown}"
    );

    until("healthy", || backstop.order(&["endpoint", "list", "--version", "v3"]).contains(" healthy ")).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v3"]);
    phase(&backstop, "promoted").await;
    load.none_lost();
    drop(load);
    until("it is noted", || listed(&backstop, "v3").contains(&"since".to_owned())).await;
    let current = backstop.path("state/artifacts/chat/current");
    assert_eq!(std::fs::read_to_string(current.join("model.gguf")).unwrap(), "model", "`current` follows");
    assert_eq!(show(&backstop, "v3")["marks"], json!(["stable", "production"]));
    assert_eq!(show(&backstop, "v1")["marks"], json!(["previous"]));

    backstop.kill_and_restart().await;
    store_is_open(&backstop).await;
    assert_eq!(chat(backstop.addr, false).await.header("x-backstop-version"), Some("v3"));
    assert_eq!(show(&backstop, "v3")["marks"], json!(["stable", "production"]));
    let history = backstop.order(&["release", "history", "chat", "--limit", "100"]);
    for told in ["version v3: registered with its endpoints; artifacts to be copied", "version v3: is stable"]
    {
        assert!(history.contains(told), "{told}: {history}");
    }
    let diff = backstop.order(&["version", "diff", "chat", "v1", "v3"]);
    assert!(diff.starts_with("--- chat/v1\n+++ chat/v3\n"), "{diff}");
    assert!(diff.contains(&format!("+    - url: \"{}\"", second.url())), "{diff}");
    assert!(diff.contains(&format!("+  model.gguf: \"sha256:{DIGEST}, 5 bytes\"")), "{diff}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_verified_marked_and_pruned() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second]).await;
    let directory = backstop.path("hub").to_str().unwrap().to_owned();
    for (name, content) in [("hub/a.bin", "aaaa"), ("hub/sub/b.bin", "bb"), ("hub/Z", "")] {
        file(&backstop, name, content);
    }
    let added = backstop.order(&["version", "add", "chat", "v2", "--artifact", &directory]);
    assert_eq!(
        added,
        format!("chat/v2: ready (file), 3 files, 6 B, sha256:{}\n", list_digest(Path::new(&directory)))
    );
    assert_eq!(backstop.order(&["version", "verify", "chat"]), "chat/v2: 3 files as copied\n");

    let none = refused(&backstop, &["version", "mark", "chat", "v1", "production"]);
    assert!(none.contains("`v1` can't be marked as production: it has no artifacts"), "{none}");
    let marked = backstop.order(&["version", "mark", "chat", "v2", "production"]);
    assert!(marked.ends_with("state/artifacts/chat/current leads to its files\n"), "{marked}");
    assert!(backstop.path("state/artifacts/chat/current/sub/b.bin").is_file());

    file(&backstop, "state/artifacts/chat/v2/a.bin", "aaab");
    let found = backstop.ask(&["version", "verify", "chat", "v2"], "");
    assert_eq!((found.code, found.out.as_str()), (Some(1), "chat/v2: a.bin is changed\n"));
    assert!(listed(&backstop, "v2").contains(&"damaged".to_owned()));
    let release = refused(&backstop, &["release", "start", "chat", "--to", "v2"]);
    assert!(release.contains("version `v2` can't be released: its artifacts are damaged"), "{release}");
    backstop.order(&["version", "add", "chat", "v2", "--artifact", &directory]);
    assert_eq!(backstop.order(&["version", "verify", "chat", "v2"]), "chat/v2: 3 files as copied\n");

    let pruned = backstop.order(&["version", "prune", "chat", "--dry-run"]);
    assert!(pruned.contains("`current` leads to its files") && pruned.contains("is stable"), "{pruned}");
    let few = backstop.ask(&["version", "prune", "chat", "--keep", "2"], "");
    assert_eq!(few.code, Some(2), "{few:?}");
}

/// As docs/operations.md says how to make it.
fn list_digest(directory: &Path) -> String {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let recipe = guide.split("```sh\n").find(|block| block.starts_with("find . -type f")).unwrap();
    let recipe = recipe.split("```").next().unwrap();
    let output = Command::new("bash").args(["-c", recipe]).current_dir(directory).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_says_what_and_where() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second]).await;
    let yaml = file(&backstop, "bad.yaml", "endpoints:\n  - { url: \"h:1\", wieght: 2, api_key: secret }\n");
    let invalid = refused(&backstop, &["version", "add", "chat", "v3", "--file", &yaml]);
    for told in [
        &format!("{yaml}:2:12: endpoints[0].url: `h:1` is not an HTTP URL"),
        "endpoints[0].wieght: unknown key `wieght`",
        "endpoints[0].api_key: this key would be kept in clear",
    ] {
        assert!(invalid.contains(told), "{told}: {invalid}");
    }
    assert!(!invalid.contains("secret"), "{invalid}");
    for (arguments, told) in [
        (&["chat", "v3"][..], "there is nothing to register"),
        (&["chta", "v3", "--endpoint", "http://h:1"], "there is no service `chta`"),
        (
            &["chat", "v1", "--endpoint", "http://h:1"],
            "`v1` of service `chat` is defined in the configuration file",
        ),
        (&["chat", "v3", "--endpoint", "h:1"], "endpoints[0].url: `h:1` is not an HTTP URL"),
        (&["chat", "v3", "--artifact", "/nowhere/m.gguf"], "`/nowhere/m.gguf`: there is no such file"),
        (&["chat", "v3", "--artifact", "/etc/hostname", "--digest", "md5:1"], "`md5:1` is not a digest"),
        (&["chat", "v 3", "--endpoint", "http://h:1"], "`v 3` is not a name"),
        (&["chat", "v1", "--kept", "--production"], "it has no artifacts"),
    ] {
        let said = refused(&backstop, &[&["version", "add"], arguments].concat());
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
    let model = file(&backstop, "model.gguf", "modem");
    let wrong = format!("sha256:{DIGEST}");
    let mismatch = backstop.ask(&["version", "add", "chat", "--artifact", &model, "--digest", &wrong], "");
    assert_eq!(mismatch.code, Some(1), "{mismatch:?}");
    assert!(mismatch.err.contains("were not copied: its digest is sha256:"), "{mismatch:?}");
    // Named by the time.
    let name = mismatch.out.split([':', '/']).nth(1).unwrap();
    assert!(name.len() == 16 && name.starts_with("20") && name.ends_with('Z'), "{name}");
    assert!(listed(&backstop, name).contains(&"failed".to_owned()));
    assert!(!backstop.path("state/artifacts/chat").join(name).exists());
}

/// `kill -9` before and after the files are put in their place, and with neither the store nor what is served told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_taken_up_again_after_kill_9() {
    for point in ["before-artifacts", "after-artifacts"] {
        let (first, other, second) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
        let directory = Directory::with(&config(&[&first, &other], QUICK));
        let env = [("BACKSTOP_CRASH_AT", &*format!("{point}:1"))];
        let mut backstop = Backstop::start(&directory, &[], &env);
        backstop.serving().await;
        store_is_open(&backstop).await;
        let model = file(&backstop, "model.gguf", "model");
        let yaml = file(&backstop, "v3.yaml", &definition(&second));
        backstop.ask(
            &[
                "version",
                "add",
                "chat",
                "v3",
                "--file",
                &yaml,
                "--artifact",
                &model,
                "--production",
                "--no-wait",
            ],
            "",
        );
        until("it ends", || backstop.has_ended()).await;
        backstop.kill_and_restart().await;
        store_is_open(&backstop).await;
        until("it is there", || show(&backstop, "v3")["state"] == "ready").await;
        let current = backstop.path("state/artifacts/chat/current/model.gguf");
        until("it is marked", || std::fs::read_to_string(&current).is_ok_and(|text| text == "model")).await;
        let left = std::fs::read_dir(backstop.path("state/artifacts/.unfinished")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{point}");
        assert_eq!(backstop.order(&["version", "verify", "chat"]), "chat/v3: 1 file as copied\n");
    }
}
