//! Versions with their files, on a data plane that only remembers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use backstop_config::{Force, read_version};
use backstop_core::rollout::Way;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::Releases;
use crate::releases::{Return, Wanted};
use crate::tests::World;

const FILE: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions:
      - { name: v1, endpoints: [{ url: \"http://h:1\", api_key: \"in-clear\" }] }
      - { name: v2, endpoints: [{ url: \"http://h:2\", model: \"${BACKSTOP_TEST_MODEL:-m}\" }] }
";
/// Of `model`.
const DIGEST: &str = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4";

/// The control plane of a world, as one process has it.
struct Site {
    control: Arc<Control>,
    releases: Arc<Releases>,
    running: JoinHandle<()>,
}

impl Site {
    async fn on(world: &World, store: &Store) -> Self {
        let control = world.start().unwrap();
        let releases = Releases::open(Arc::clone(&control), store.clone()).await.unwrap();
        let running = tokio::spawn(Arc::clone(&releases).run());
        Self { control, releases, running }
    }

    async fn new(world: &World) -> Self {
        Self::on(world, &Store::in_memory().await.unwrap()).await
    }

    fn registry(&self) -> &Arc<Registry> {
        self.releases.registry()
    }

    async fn add(&self, name: &str, addition: Addition) -> Result<Value, Failure> {
        let addition = Addition { name: Some(name.to_owned()), ..addition };
        let view = self.registry().add(Actor::Local, "chat", addition).await?;
        Ok(serde_json::to_value(view).unwrap())
    }

    async fn view(&self, name: &str) -> Value {
        serde_json::to_value(self.registry().view("chat", name).await.unwrap()).unwrap()
    }

    /// The version once nothing is done with its files any more.
    async fn done(&self, name: &str) -> Value {
        self.until(name, |view| view["state"] != "copying" && view.get("progress").is_none()).await
    }

    async fn until(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let waited = async {
            loop {
                let view = self.view(name).await;
                if is_so(&view) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waited).await.expect("it becomes so")
    }

    /// The file calls this version stable now.
    async fn make_stable(&self, world: &World, text: &str, name: &str) {
        world.write(&text.replace("  - name: chat\n", &format!("  - name: chat\n    stable: {name}\n")));
        self.control.reload(&Actor::File, None).unwrap();
        self.until(name, |view| !view["stable_at"].as_array().unwrap().is_empty()).await;
    }

    async fn release(&self, to: &str) -> Result<(), crate::releases::Failure> {
        let (service, to) = ("chat".to_owned(), to.to_owned());
        let wanted = Wanted { service, to, reason: String::new(), again: false };
        self.releases.start(Actor::Local, wanted).await.map(drop)
    }

    async fn told(&self) -> Vec<String> {
        let entries = self.releases.history("chat", 1000, None).await.unwrap();
        let of_versions = entries.iter().rev().filter(|it| it.entry.kind == "version");
        of_versions
            .map(|it| format!("{}: {}", it.entry.subject, it.entry.body["told"][0].as_str().unwrap()))
            .collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn from(sources: &[&Path]) -> Addition {
    Addition {
        sources: sources.iter().map(|path| path.display().to_string()).collect(),
        ..Addition::default()
    }
}

fn served_at(url: &str) -> Addition {
    let draft = read_version(&json!({ "endpoints": [{ "url": url }] }).to_string(), "").unwrap();
    Addition { draft: Some(draft), ..Addition::default() }
}

/// A file in the world's directory.
fn file(world: &World, name: &str, content: &str) -> PathBuf {
    let path = world.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// What is left of copies that were not finished.
fn unfinished(world: &World) -> usize {
    fs::read_dir(world.path("state/artifacts/.unfinished")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn files_are_copied_and_the_version_can_be_released() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let model = file(&world, "model.gguf", "model");
    let labels = BTreeMap::from([("owner".to_owned(), "search".to_owned())]);
    let digest = Some(format!("sha256:{DIGEST}"));
    let addition = Addition { digest, labels, ..served_at("http://h:9") };
    let begun =
        site.add("v3", Addition { sources: from(&[&model]).sources, ..addition.clone() }).await.unwrap();
    assert_eq!((&begun["state"], &begun["from"]), (&json!("copying"), &json!("registered")));
    let done = site.done("v3").await;
    assert_eq!((&done["state"], &done["artifacts"]["digest"]), (&json!("ready"), &json!(DIGEST)), "{done}");
    assert_eq!(done["labels"], json!({ "owner": "search" }));
    let path = PathBuf::from(done["path"].as_str().unwrap());
    assert_eq!(path, world.path("state/artifacts/chat/v3"));
    assert_eq!(fs::read_to_string(path.join("model.gguf")).unwrap(), "model");
    assert_eq!(unfinished(&world), 0);
    assert_eq!(site.control.current().config.versions("chat"), ["v1", "v2", "v3"]);
    site.release("v3").await.unwrap();
    // What runs must not become something else.
    let other = file(&world, "other.gguf", "other");
    let more = site.add("v2", from(&[&other])).await;
    assert!(more.is_ok(), "another version can be added to: {more:?}");
    let told = site.told().await;
    assert!(told.iter().any(|told| *told == format!("v3: artifacts copied: sha256:{DIGEST}")), "{told:?}");
}

#[tokio::test]
async fn what_was_registered_stays_as_it_is() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let (model, other) = (file(&world, "model.gguf", "model"), file(&world, "other.gguf", "other"));
    let addition = Addition { sources: from(&[&model]).sources, ..served_at("http://h:9") };
    site.add("v3", addition.clone()).await.unwrap();
    site.done("v3").await;
    let again = site.add("v3", addition).await.unwrap();
    assert_eq!(again["state"], "ready", "the same again changes nothing");
    assert!(matches!(site.add("v3", from(&[&other])).await, Err(Failure::HasArtifacts(_))));
    let elsewhere = site.add("v3", served_at("http://h:8")).await.unwrap_err();
    assert_eq!(elsewhere.to_string(), "service `chat` has a version `v3` already, with another definition");
    let of_file = site.add("v1", served_at("http://h:8")).await.unwrap_err();
    assert_eq!(of_file.to_string(), "version `v1` of service `chat` is defined in the configuration file");
    assert!(matches!(site.add("v9", Addition::default()).await, Err(Failure::Nothing)));
    let described = Addition { description: Some("the first one".to_owned()), ..from(&[&model]) };
    site.add("v1", described).await.unwrap();
    let first = site.done("v1").await;
    assert_eq!((&first["from"], &first["state"]), (&json!("file"), &json!("ready")));
    assert_eq!(first["description"], "the first one");
    assert!(!first.to_string().contains("in-clear"), "{first}");
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing_behind() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let model = file(&world, "model.gguf", "modem");
    let addition = Addition { digest: Some(format!("sha256:{DIGEST}")), ..from(&[&model]) };
    site.add("v2", addition.clone()).await.unwrap();
    let failed = site.done("v2").await;
    assert_eq!(failed["state"], "failed");
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.starts_with("its digest is sha256:") && reason.ends_with(&format!("not sha256:{DIGEST}")));
    assert!(!world.path("state/artifacts/chat/v2").exists());
    assert_eq!(unfinished(&world), 0);
    let refused = site.release("v2").await.unwrap_err().to_string();
    assert!(
        refused.starts_with("version `v2` can't be released: its artifacts could not be copied"),
        "{refused}"
    );
    fs::write(&model, "model").unwrap();
    site.add("v2", addition).await.unwrap();
    assert_eq!(site.done("v2").await["state"], "ready", "the same command again");
    site.release("v2").await.unwrap();
}

#[tokio::test]
async fn sources_that_can_not_be_copied_are_refused_at_once() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let inside = file(&world, "hub/snapshot/config.json", "{}");
    file(&world, "hub/blob", "model");
    let outside = file(&world, "secret", "secret");
    let directory = world.path("hub");
    let link = |name: &str, to: PathBuf| std::os::unix::fs::symlink(to, directory.join(name)).unwrap();
    let refused = async |sources: &[&Path]| site.add("v2", from(sources)).await.unwrap_err().to_string();
    let missing = refused(&[&world.path("nowhere.gguf")]).await;
    assert!(missing.ends_with("nowhere.gguf`: there is no such file"), "{missing}");
    let relative = refused(&[Path::new("model.gguf")]).await;
    assert!(relative.contains("is not an absolute path"), "{relative}");
    let device = refused(&[Path::new("/dev/null")]).await;
    assert_eq!(device, "`/dev/null` is neither a file nor a directory");
    let twice = refused(&[&inside, &world.path("hub/snapshot")]).await;
    assert_eq!(twice, "two of the artifacts have a file `config.json`");
    link("model.gguf", outside);
    let out = refused(&[&directory]).await;
    assert!(out.contains("is a link that leads out of"), "{out}");
    fs::remove_file(directory.join("model.gguf")).unwrap();
    link("loop", directory.clone());
    let looped = refused(&[&directory]).await;
    assert!(looped.ends_with("loop` is a link to a directory"), "{looped}");
    fs::remove_file(directory.join("loop")).unwrap();
    assert!(site.registry().record("chat", "v2").await.unwrap().is_none(), "nothing was registered");

    // Within the directory they are what they lead to.
    link("model.gguf", directory.join("blob"));
    site.add("v2", from(&[&directory])).await.unwrap();
    let done = site.done("v2").await;
    let paths: Vec<&str> =
        done["files"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["blob", "model.gguf", "snapshot/config.json"]);
    let copied = world.path("state/artifacts/chat/v2/model.gguf");
    assert!(fs::symlink_metadata(&copied).unwrap().is_file());
    assert_eq!(fs::read_to_string(copied).unwrap(), "model");
}

/// A server whose `/model.gguf` comes only in part until it is told to finish.
#[derive(Clone, Default)]
struct Hub {
    finishes: Arc<AtomicBool>,
}

impl Hub {
    async fn start() -> (Self, String) {
        let hub = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(give).with_state(hub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (hub, url)
    }
}

async fn give(Shared(hub): Shared<Hub>, uri: axum::http::Uri) -> Response {
    match uri.path() {
        "/model.gguf" => {
            let rest = if hub.finishes.load(Relaxed) {
                futures_util::stream::iter(["del"]).boxed()
            } else {
                futures_util::stream::pending().boxed()
            };
            let pieces = futures_util::stream::iter(["mo"]).chain(rest);
            let pieces = pieces.map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes())));
            Body::from_stream(pieces).into_response()
        }
        "/old/model.gguf" => (StatusCode::FOUND, [("location", "/model.gguf")]).into_response(),
        "/circle/model.gguf" => (StatusCode::FOUND, [("location", "/circle/model.gguf")]).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_interrupted_is_taken_up_again() {
    let world = World::new(FILE);
    let store = Store::in_memory().await.unwrap();
    let (hub, url) = Hub::start().await;
    let site = Site::on(&world, &store).await;
    let addition = Addition { sources: vec![format!("{url}/model.gguf")], ..Addition::default() };
    site.add("v2", addition).await.unwrap();
    site.until("v2", |view| view["progress"]["done"] == 2).await;
    assert_eq!(unfinished(&world), 1, "it is put together out of the way");
    assert!(!world.path("state/artifacts/chat/v2").exists());
    let refused = site.release("v2").await.unwrap_err().to_string();
    assert_eq!(refused, "version `v2` can't be released: its artifacts are still being copied");
    drop(site);
    // As `kill -9` leaves it.
    file(&world, "state/artifacts/.unfinished/0123/model.gguf", "mo");
    hub.finishes.store(true, Relaxed);

    let site = Site::on(&world, &store).await;
    let done = site.done("v2").await;
    assert_eq!((&done["state"], &done["artifacts"]["digest"]), (&json!("ready"), &json!(DIGEST)), "{done}");
    assert!(!world.path("state/artifacts/.unfinished/0123").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_by_http() {
    let world = World::new(FILE);
    let (hub, url) = Hub::start().await;
    hub.finishes.store(true, Relaxed);
    let site = Site::new(&world).await;
    let get = |path: &str| Addition { sources: vec![format!("{url}{path}")], ..Addition::default() };
    site.add("v1", get("/old/model.gguf")).await.unwrap();
    assert_eq!(site.done("v1").await["artifacts"]["digest"], DIGEST, "where it has moved to");
    for (path, reason) in [
        ("/gone.gguf", "the server answered 404 Not Found"),
        ("/circle/model.gguf", "more than 5 redirections"),
    ] {
        site.add("v2", get(path)).await.unwrap();
        let failed = site.done("v2").await;
        assert_eq!(failed["reason"], format!("`{url}{path}`: {reason}"));
        assert_eq!(unfinished(&world), 0);
    }
    let unset =
        Addition { sources: vec!["http://${BACKSTOP_TEST_NOT_SET}/m".to_owned()], ..Addition::default() };
    let unset = site.add("v2", unset).await.unwrap_err();
    assert_eq!(unset.to_string(), "environment variable `BACKSTOP_TEST_NOT_SET` is not set");
}

#[tokio::test]
async fn a_flipped_byte_is_found_and_mended() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let source = world.path("hub");
    file(&world, "hub/a.bin", "aaaa");
    file(&world, "hub/sub/b.bin", "bbbb");
    site.add("v2", from(&[&source])).await.unwrap();
    site.done("v2").await;
    let verified = async || {
        site.registry().verify(Actor::Local, "chat", "v2").await.unwrap();
        site.done("v2").await
    };
    let whole = verified().await;
    assert_eq!((&whole["state"], &whole["faults"]), (&json!("ready"), &json!([])));

    file(&world, "state/artifacts/chat/v2/a.bin", "aaab");
    fs::remove_file(world.path("state/artifacts/chat/v2/sub/b.bin")).unwrap();
    file(&world, "state/artifacts/chat/v2/sub/c.bin", "c");
    let damaged = verified().await;
    assert_eq!(damaged["state"], "damaged");
    assert_eq!(
        damaged["faults"],
        json!([
            { "path": "a.bin", "what": "changed" },
            { "path": "sub/b.bin", "what": "missing" },
            { "path": "sub/c.bin", "what": "extra" },
        ])
    );
    let refused = site.release("v2").await.unwrap_err().to_string();
    assert!(
        refused.contains("its artifacts are damaged: `a.bin` is changed, `sub/b.bin` is missing"),
        "{refused}"
    );

    file(&world, "hub/a.bin", "aaac");
    site.add("v2", from(&[&source])).await.unwrap();
    let other = site.done("v2").await;
    assert_eq!(other["state"], "failed", "it is mended with the same files only: {other}");
    file(&world, "hub/a.bin", "aaaa");
    site.add("v2", from(&[&source])).await.unwrap();
    assert_eq!(site.done("v2").await["state"], "ready");
    assert_eq!(verified().await["faults"], json!([]));

    // Without having been read: one that is gone is seen.
    fs::remove_file(world.path("state/artifacts/chat/v2/a.bin")).unwrap();
    let vanished = site.release("v2").await.unwrap_err().to_string();
    assert_eq!(
        vanished,
        "version `v2` can't be released: its file `a.bin` has vanished or is not what it was"
    );
}

#[tokio::test]
async fn current_leads_to_what_is_marked_or_becomes_stable() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let model = file(&world, "model.gguf", "model");
    let link = |name: &str| fs::read_link(world.path("state/artifacts/chat").join(name)).ok();
    let none = site.registry().mark(Actor::Local, "chat", "v2", false).await.unwrap_err();
    assert_eq!(none.to_string(), "version `v2` can't be marked as production: it has no artifacts");
    for name in ["v3", "v4"] {
        let addition = Addition { sources: from(&[&model]).sources, ..served_at("http://h:9") };
        site.add(name, addition).await.unwrap();
        assert_eq!(site.done(name).await["state"], "ready");
    }
    assert_eq!(link("current"), None, "nobody has asked for it");
    site.registry().mark(Actor::Local, "chat", "v3", false).await.unwrap();
    assert_eq!((link("current"), link("previous")), (Some("v3".into()), None));
    assert_eq!(fs::read_to_string(world.path("state/artifacts/chat/current/model.gguf")).unwrap(), "model");
    site.registry().mark(Actor::Local, "chat", "v4", false).await.unwrap();
    assert_eq!((link("current"), link("previous")), (Some("v4".into()), Some("v3".into())));

    // The stable one gets files: those are what engines are to be started with.
    site.add("v1", from(&[&model])).await.unwrap();
    site.done("v1").await;
    assert_eq!((link("current"), link("previous")), (Some("v1".into()), Some("v4".into())));
    site.add("v2", from(&[&model])).await.unwrap();
    site.done("v2").await;
    site.make_stable(&world, FILE, "v2").await;
    site.until("v2", |view| view["marks"].as_array().unwrap().contains(&json!("production"))).await;
    assert_eq!((link("current"), link("previous")), (Some("v2".into()), Some("v1".into())));
}

#[tokio::test]
async fn what_was_stable_can_be_had_again() {
    let world = World::new(FILE);
    let store = Store::in_memory().await.unwrap();
    let site = Site::on(&world, &store).await;
    site.until("v1", |view| !view["stable_at"].as_array().unwrap().is_empty()).await;
    site.make_stable(&world, FILE, "v2").await;
    let others = FILE.replace("name: v1", "name: v5").replace("name: v2", "name: v6");
    world.write(&others);
    site.control.reload(&Actor::File, None).unwrap();
    let kept = site.view("v2").await;
    assert_eq!(kept["from"], "kept");
    let definition = json!({ "endpoints": [{ "url": "http://h:2", "model": "${BACKSTOP_TEST_MODEL:-m}" }] });
    assert_eq!(kept["definition"], definition);
    assert_eq!(site.view("v1").await["without"], json!(["endpoints[0].api_key"]));
    assert!(!site.told().await.join(" ").contains("in-clear"));

    let again = Addition { kept: true, ..Addition::default() };
    let lacks = site.add("v1", again.clone()).await.unwrap_err().to_string();
    assert!(lacks.contains("lacks `endpoints[0].api_key`"), "{lacks}");
    assert_eq!(site.add("v2", again.clone()).await.unwrap()["from"], "registered");
    assert_eq!(site.control.current().config.versions("chat"), ["v5", "v6", "v2"]);
    assert!(matches!(site.add("v9", again).await, Err(Failure::NoDefinition(_))));
    site.release("v2").await.unwrap();
    drop(site);
    // It is served after a restart too, before the store is there.
    assert_eq!(world.start().unwrap().current().config.versions("chat"), ["v5", "v6", "v2"]);
}

#[tokio::test]
async fn pruning_keeps_what_may_be_needed() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let model = file(&world, "model.gguf", "model");
    let names: Vec<String> = (1..=6).map(|number| format!("v{number}")).collect();
    let versions: String = names
        .iter()
        .map(|name| format!("      - {{ name: {name}, endpoints: [{{ url: \"http://{name}:1\" }}] }}\n"))
        .collect();
    let text = format!("\nlisten: 127.0.0.1:0\nservices:\n  - name: chat\n    versions:\n{versions}");
    for name in &names {
        site.make_stable(&world, &text, name).await;
        site.add(name, from(&[&model])).await.unwrap();
        assert_eq!(site.done(name).await["state"], "ready");
    }
    // The file forgets two of them, of which one is registered again.
    let shorter = text.replace(&versions, &versions[versions.find("      - { name: v3").unwrap()..]);
    world.write(&shorter.replace("  - name: chat\n", "  - name: chat\n    stable: v6\n"));
    site.control.reload(&Actor::File, None).unwrap();
    site.add("v2", Addition { kept: true, ..Addition::default() }).await.unwrap();
    site.add("v9", served_at("http://h:9")).await.unwrap();

    let prune = async |keep, dry_run| {
        let pruned = site.registry().prune(Actor::Local, "chat", keep, dry_run).await.unwrap();
        let told = |fates: &[prune::Fate]| -> Vec<String> {
            let part = |what| if what == prune::Part::Files { " (files)" } else { "" };
            fates.iter().map(|fate| format!("{}{}", fate.name, part(fate.what))).collect()
        };
        (told(&pruned.removed), told(&pruned.kept))
    };
    let kept = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(prune(6, true).await.0, kept(&[]));
    let (gone, stays) = prune(3, true).await;
    assert_eq!(gone, ["v1", "v2", "v3 (files)"]);
    assert_eq!(stays, ["v4 (files)", "v5 (files)", "v6 (files)", "v9"]);
    assert!(world.path("state/artifacts/chat/v1").exists(), "it was only asked");
    assert_eq!(prune(3, false).await.0, gone);
    for (name, is_there) in [("v1", false), ("v2", false), ("v3", false), ("v4", true), ("v6", true)] {
        assert_eq!(world.path("state/artifacts/chat").join(name).exists(), is_there, "{name}");
    }
    assert_eq!(site.control.current().config.versions("chat"), ["v3", "v4", "v5", "v6", "v9"]);
    assert_eq!(site.view("v3").await["state"], "pruned");
    assert!(matches!(site.registry().view("chat", "v1").await, Err(Failure::UnknownVersion { .. })));
    assert_eq!(prune(3, false).await.0, kept(&[]), "once is enough");
}

/// A veto is of a version with its files: others under the same endpoints are another version.
#[tokio::test]
async fn other_files_are_another_version() {
    let world = World::new(FILE);
    let site = Site::new(&world).await;
    let (one, other) = (file(&world, "1/m.gguf", "1"), file(&world, "2/m.gguf", "2"));
    let digest = async |name: &str, source: &Path| {
        let addition = Addition { sources: from(&[source]).sources, ..served_at("http://h:9") };
        site.add(name, addition).await.unwrap();
        site.done(name).await["digest"].clone()
    };
    let first = digest("a", &one).await;
    assert_eq!(first, digest("b", &one).await);
    assert_ne!(first, digest("c", &other).await);

    site.release("a").await.unwrap();
    let back = Return { to: None, way: Way::Instant, reason: "bad".to_owned(), force: Force::No };
    site.releases.roll_back(Actor::Local, "chat", back).await.unwrap();
    let same = site.release("b").await.unwrap_err().to_string();
    assert!(same.starts_with("`b` was sent back by release"), "{same}");
    let marked = site.registry().mark(Actor::Local, "chat", "a", false).await.unwrap_err().to_string();
    assert!(marked.contains("was sent back by release"), "{marked}");
    site.registry().mark(Actor::Local, "chat", "a", true).await.unwrap();
    site.until("a", |view| view["marks"].as_array().unwrap().contains(&json!("sent_back"))).await;
    // Its files go, and it stays what it was.
    let pruned = site.registry().prune(Actor::Local, "chat", 3, false).await.unwrap();
    assert!(pruned.removed.is_empty(), "{pruned:?}");
    let other = site.release("c").await.unwrap_err();
    assert!(
        matches!(other, crate::releases::Failure::UnderWay { .. }),
        "nothing is held against it: {other}"
    );
}
