//! Versions with their files, on a data plane that only remembers.

mod files;

use std::fs;
use std::path::{Path, PathBuf};

use backstop_config::{Force, read_version};
use backstop_core::rollout::Way;
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
    site.until("v2", |_| link("current") == Some("v2".into())).await;
    assert!(site.view("v2").await["marks"].as_array().unwrap().contains(&json!("production")));
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
