//! Snapshots: saved, restored, and what stands against it.

use std::sync::OnceLock;

use backstop_core::rollout::Cause;
use backstop_store::{HistoryFilter, Store};
use serde_json::json;

use super::*;
use crate::control::{Order, VersionChange};
use crate::routes::{Route, Veto};
use crate::{Actor, Releases};

const TWO: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions:
      - { name: v1, endpoints: [{ url: \"http://h:1\", api_key: in-clear }, { url: \"http://h:2\" }] }
      - { name: v2, endpoints: [{ url: \"http://h:3\", api_key: \"${HOME}\" }] }
    rules: [{ match: { header: { x-version: v2 } }, version: v2 }]
  - name: embed
    versions: [{ name: v1, endpoints: [{ url: \"http://h:1\" }] }]
";
const SNAPSHOTS: &str = "/api/v1/snapshots";

struct Served {
    world: World,
    control: Arc<Control>,
    router: Router,
    store: Store,
}

impl Served {
    async fn new(text: &str) -> Self {
        Self::on(World::new(text), Store::in_memory().await.unwrap()).await
    }

    async fn on(world: World, store: Store) -> Self {
        let control = world.start().unwrap();
        let releases = Releases::open(Arc::clone(&control), store.clone()).await.unwrap();
        let place = OnceLock::new();
        drop(place.set(releases));
        let router = crate::api::router(Arc::clone(&control), Arc::new(place));
        control.take_stock();
        Self { world, control, router, store }
    }

    /// Another process in its place.
    async fn again(&self) -> Self {
        let world = World { directory: self.world.directory.clone(), plane: Plane::new() };
        Self::on(world, self.store.clone()).await
    }

    async fn save(&self) -> String {
        let saved = post(&self.router, SNAPSHOTS, json!({ "description": "as it was" })).await;
        assert_eq!(saved.status, StatusCode::CREATED);
        saved.json()["id"].as_str().unwrap().to_owned()
    }

    async fn restore(&self, id: &str, wanted: Value) -> Reply {
        post(&self.router, &format!("{SNAPSHOTS}/{id}/restore"), wanted).await
    }

    /// Changes the route of `chat`, as a release does.
    fn route(&self, change: impl FnOnce(&mut Route)) {
        let actor = Actor::Release;
        let deed = crate::control::Deed { actor: &actor, action: "release", subject: String::new() };
        let changed = |mut route: Route| {
            change(&mut route);
            Some(route)
        };
        self.control.route("chat", Order::KeepFirst, &deed, changed).unwrap();
    }

    fn veto(&self, version: &str) -> Veto {
        let digest = self.control.current().config.version_digest("chat", version).unwrap();
        let (release, cause) = ("r7".to_owned(), Cause::Expired);
        Veto { digest, release, at: 1, cause, isolated: true }
    }

    /// `chat` as it is in the last table, however much that differs from the file.
    fn chat(&self) -> ServiceSpec {
        ServiceSpec { drift: 0, ..self.world.plane.table().services.remove(0) }
    }

    async fn change_much(&self) {
        let added = json!({ "service": "chat", "version": "v2", "endpoint": { "url": "http://h:9" } });
        post(&self.router, "/api/v1/endpoints", added).await;
        post(&self.router, "/api/v1/endpoints/drain", json!({ "url": "http://h:2" })).await;
        self.route(|route| route.make_stable("v2"));
    }
}

#[tokio::test]
async fn what_is_restored_is_as_it_was() {
    let served = Served::new(TWO).await;
    served.change_much().await;
    let before = served.chat();
    let id = served.save().await;
    // Everything else, in the file and at run time.
    served.route(|route| route.make_stable("v1"));
    ask(&served.router, "DELETE", "/api/v1/endpoints?url=http://h:9", &[], Body::empty()).await;
    let renamed =
        TWO.replace("name: v2, endpoints", "name: v3, endpoints").replace("version: v2", "version: v3");
    served.world.write(&renamed.replace("h:3", "h:8"));
    served.control.reload(&Actor::File, None).unwrap();
    assert_ne!(served.chat(), before);

    let planned = served.restore(&id, json!({ "dry_run": true, "force": true })).await.json();
    let changes = planned["changes"]["chat"].to_string();
    for told in ["stable: v1 → v2", "version v3 is gone", "version v2 is new", "`rules`"] {
        assert!(changes.contains(told), "no `{told}` in {changes}");
    }
    assert_eq!(planned["changes"]["embed"], json!([]));
    assert_ne!(served.chat(), before, "that was a trial");
    // The endpoints of `v2` are not in the table, so that nothing is known of them.
    let refused = served.restore(&id, json!({})).await;
    assert_eq!(refused.error(), (409, "version_not_ready".to_owned()));
    let done = served.restore(&id[..18], json!({ "force": true, "description": "back" })).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.json());
    assert_eq!(served.chat(), before);
    let again = served.restore(&id, json!({})).await.json();
    assert_eq!((&again["changes"]["chat"], &again["before"]), (&json!([]), &Value::Null), "nothing to do");

    // Over restarts, and with another service changed in the file.
    let other = served.again().await;
    assert_eq!(other.chat(), before);
    let file = std::fs::read_to_string(served.world.path("backstop.yaml")).unwrap();
    std::fs::write(served.world.path("backstop.yaml"), file.replace("name: embed", "name: embeds")).unwrap();
    let other = other.again().await;
    assert_eq!(other.chat(), before);
    let drift = get(&other.router, "/api/v1/services/chat").await.json()["drift"].to_string();
    assert!(drift.contains(&format!("snapshot {id} was restored")), "{drift}");

    // What there was before can be had again.
    let undo = done.json()["before"].as_str().unwrap().to_owned();
    assert_eq!(other.restore(&undo, json!({ "services": ["chat"] })).await.status, StatusCode::OK);
    assert_eq!(other.chat().versions[1].name, "v3");

    let told = |it: backstop_store::Recorded| format!("{} {}", it.entry.kind, it.entry.body["told"]);
    crate::record::turn(&other.control, &other.store).await.unwrap();
    let filter = HistoryFilter { service: Some("chat".to_owned()), limit: 50, ..HistoryFilter::default() };
    let history: Vec<String> = other.store.history(&filter).await.unwrap().into_iter().map(told).collect();
    let history = history.join("\n");
    for part in ["snapshot [\"saved: as it was\"]", "restore [\"stable: v1 → v2\"", "before snapshot"] {
        assert!(history.contains(part), "no `{part}` in\n{history}");
    }
}

#[tokio::test]
async fn the_file_takes_over_again() {
    let served = Served::new(TWO).await;
    served.change_much().await;
    let before = served.chat();
    let id = served.save().await;
    served.route(|route| route.make_stable("v1"));
    let changed = |balance: &str| TWO.replace("    rules:", &format!("    balance: {balance}\n    rules:"));
    served.world.write(&changed("random"));
    served.control.reload(&Actor::File, None).unwrap();
    assert_eq!(served.restore(&id, json!({})).await.status, StatusCode::OK);
    assert_eq!(served.chat(), before);
    served.world.write(&changed("round_robin"));
    served.control.reload(&Actor::File, None).unwrap();
    assert_eq!(served.chat().balance, backstop_core::table::BalancePolicy::RoundRobin);
    // The file's `stable` is what it was, so that the store's holds.
    assert_eq!(served.chat().stable, "v2");
    let (_, waiting) = served.control.waiting();
    let told = waiting.last().unwrap().entry.body["told"].to_string();
    assert!(told.contains(&format!("the file takes the place of snapshot {id}")), "{told}");
    let kept = std::fs::read_to_string(served.world.path("state/intent.json")).unwrap();
    assert!(!kept.contains("\"definition\""), "{kept}");
}

#[tokio::test]
async fn a_version_that_was_sent_back_stays_away() {
    let served = Served::new(TWO).await;
    served.route(|route| route.make_stable("v2"));
    let id = served.save().await;
    let veto = served.veto("v2");
    served.route(|route| {
        route.make_stable("v1");
        route.vetoes.insert("v2".to_owned(), veto);
    });
    let refused = served.restore(&id, json!({ "dry_run": true })).await;
    assert_eq!(refused.error(), (409, "sent_back".to_owned()));
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("`r7`"));
    assert_eq!(served.restore(&id, json!({})).await.error().1, "sent_back");
    let again = served.restore(&id, json!({ "again": true })).await;
    assert_eq!((again.status, served.chat().stable.as_str()), (StatusCode::OK, "v2"), "{}", again.json());

    // One that is not stable in the snapshot stays sent back without further ado.
    served.route(|route| route.make_stable("v1"));
    let id = served.save().await;
    let veto = served.veto("v2");
    served.route(|route| drop(route.vetoes.insert("v2".to_owned(), veto)));
    post(&served.router, "/api/v1/endpoints/drain", json!({ "url": "http://h:2" })).await;
    assert_eq!(served.restore(&id, json!({})).await.status, StatusCode::OK);
    assert_eq!(served.chat().versions[1].endpoints[0].duty, Duty::Isolated);
    assert_eq!(served.chat().versions[0].endpoints[1].duty, Duty::Active);
    // And one that had been sent back when it was saved is so again.
    let id = served.save().await;
    served.route(|route| drop(route.vetoes.remove("v2")));
    assert!(
        served.restore(&id, json!({})).await.json()["changes"]["chat"]
            .to_string()
            .contains("v2 gets nothing")
    );
    assert!(served.chat().rules.is_empty());
}

/// What was changed about it at run time makes it no other version.
#[tokio::test]
async fn a_version_is_known_whatever_was_changed_at_run_time() {
    let served = Served::new(TWO).await;
    served.change_much().await;
    let id = served.save().await;
    let veto = served.veto("v2");
    served.route(|route| {
        route.make_stable("v1");
        route.vetoes.insert("v2".to_owned(), veto);
    });
    assert_eq!(served.restore(&id, json!({})).await.error().1, "sent_back");
    // Sent back under a snapshot, it stays so when the file holds again.
    assert_eq!(served.restore(&id, json!({ "again": true })).await.status, StatusCode::OK);
    let veto = served.veto("v2");
    served.route(|route| {
        route.make_stable("v1");
        route.vetoes.insert("v2".to_owned(), veto);
    });
    served.world.write(&TWO.replace("    rules:", "    balance: random\n    rules:"));
    served.control.reload(&Actor::File, None).unwrap();
    assert_eq!(served.chat().versions[1].endpoints[0].duty, Duty::Isolated);
}

#[tokio::test]
async fn versions_that_were_registered_are_saved_too() {
    let served = Served::new(TWO).await;
    let change = |change: VersionChange| {
        served.control.change_version(&Actor::Local, "chat", "v3", &change).unwrap();
    };
    change(VersionChange::Define(json!({ "endpoints": [{ "url": "http://h:7" }] })));
    let drift = get(&served.router, "/api/v1/services/chat").await.json()["drift"][0]["what"].clone();
    assert_eq!(drift, "version v3 was registered");
    served.route(|route| route.make_stable("v3"));
    let (before, id) = (served.chat(), served.save().await);
    served.route(|route| route.make_stable("v1"));
    change(VersionChange::Forget);
    assert_eq!(served.chat().versions.len(), 2);
    assert_eq!(served.restore(&id, json!({ "force": true })).await.status, StatusCode::OK);
    assert_eq!(served.chat(), before);
    assert_eq!(served.again().await.chat(), before);
}

/// Such as after the environment or Backstop has become another one.
#[tokio::test]
async fn what_was_restored_and_can_not_be_served_any_more_is_told_of() {
    let served = Served::new(TWO).await;
    let id = served.save().await;
    served.world.write(&TWO.replace("    rules:", "    balance: random\n    rules:"));
    served.control.reload(&Actor::File, None).unwrap();
    assert_eq!(served.restore(&id, json!({})).await.status, StatusCode::OK);
    let path = served.world.path("state/intent.json");
    let kept = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, kept.replace("${HOME}", "${NO_SUCH_NAME}")).unwrap();
    let Err(error) = served.world.start() else { panic!("it has begun") };
    let told = error.to_string();
    assert!(told.contains("`NO_SUCH_NAME` is not set") && told.contains(&id), "{told}");
    // A change of the file is the way out.
    served.world.write(&TWO.replace("    rules:", "    balance: round_robin\n    rules:"));
    assert!(served.world.start().is_ok());
}

#[tokio::test]
async fn what_stands_against_it() {
    let served = Served::new(TWO).await;
    let id = served.save().await;
    for (id, wanted, expected) in [
        ("2001", json!({}), (404, "unknown_snapshot")),
        ("", json!({}), (404, "unknown_snapshot")),
        (&id, json!({ "services": ["chta"] }), (404, "unknown_service")),
        (&id, json!({ "service": "chat" }), (400, "invalid_json")),
    ] {
        assert_eq!(served.restore(id, wanted).await.error(), (expected.0, expected.1.to_owned()));
    }
    let other = served.save().await;
    let refused = get(&served.router, &format!("{SNAPSHOTS}/{}", &id[..8])).await;
    assert_eq!(refused.error(), (409, "ambiguous_snapshot".to_owned()));
    let unknown = post(&served.router, SNAPSHOTS, json!({ "services": ["chta"] })).await;
    assert_eq!(unknown.error(), (404, "unknown_service".to_owned()));

    // The file has lost the endpoint, and with it the key.
    served.world.write(&TWO.replace("{ url: \"http://h:1\", api_key: in-clear }, ", ""));
    served.control.reload(&Actor::File, None).unwrap();
    let table = served.world.plane.tables.lock().unwrap().len();
    let lost = served.restore(&id, json!({})).await;
    assert_eq!(lost.error(), (422, "lost_key".to_owned()));
    assert!(lost.json()["error"]["message"].as_str().unwrap().contains("`http://h:1` of chat/v1"));
    // The gateway says no: everything is as it was.
    served.world.write(&TWO.replace("    rules:", "    balance: random\n    rules:"));
    served.control.reload(&Actor::File, None).unwrap();
    let state = || std::fs::read_to_string(served.world.path("state/intent.json")).unwrap();
    served.world.plane.refuses.store(true, Relaxed);
    let refused = served.restore(&id, json!({})).await;
    assert_eq!(refused.error(), (422, "not_servable".to_owned()));
    assert!(!state().contains("definition") && !served.world.path("state/restore.json").exists());
    served.world.plane.refuses.store(false, Relaxed);
    assert_eq!(served.world.plane.tables.lock().unwrap().len(), table + 1);
    let stale = ["content-type: application/json", "if-match: \"1\""];
    let path = format!("{SNAPSHOTS}/{id}/restore");
    assert_eq!(ask(&served.router, "POST", &path, &stale, "{}").await.status, 412);

    let deleted = ask(&served.router, "DELETE", &format!("{SNAPSHOTS}/{other}"), &[], Body::empty()).await;
    assert_eq!((deleted.status, deleted.json()["id"].clone()), (StatusCode::OK, json!(other)));
    let listed = get(&served.router, &format!("{SNAPSHOTS}?service=chat&version=v2")).await.json();
    let listed: Vec<&Value> =
        listed.as_array().unwrap().iter().filter(|it| it["automatic"] == false).collect();
    assert_eq!((listed.len(), &listed[0]["id"]), (1, &json!(id)));
    let none = get(&served.router, &format!("{SNAPSHOTS}?service=embed&version=v2")).await.json();
    assert_eq!(none, json!([]));
}

#[tokio::test]
async fn a_restore_that_can_not_be_kept_is_not_made() {
    let served = Served::new(TWO).await;
    let id = served.save().await;
    served.change_much().await;
    let before = served.chat();
    let kept = || {
        let text = std::fs::read(served.world.path("state/intent.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["endpoints"].clone()
    };
    let endpoints = kept();
    let mut later = Vec::new();
    for file in ["restore.json", "intent.json", "routes.json"] {
        // A file takes no directory's place, whoever one is.
        let (path, aside) = (served.world.path(&format!("state/{file}")), served.world.path("aside"));
        let there = std::fs::rename(&path, &aside).is_ok();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(served.restore(&id, json!({})).await.error(), (500, "not_kept".to_owned()), "{file}");
        std::fs::remove_dir(&path).unwrap();
        if there {
            std::fs::rename(&aside, &path).unwrap();
        }
        assert_eq!(served.chat(), before, "{file}");
        // The directory goes with the last of them.
        later.push(served.again().await);
        assert_eq!(later[later.len() - 1].chat(), before, "{file}");
    }
    assert_eq!(kept(), endpoints);
    assert_eq!(served.restore(&id, json!({})).await.status, StatusCode::OK);
}

/// A key in clear is in none of the files but the ones that only we read.
#[tokio::test]
async fn keys_stay_at_home() {
    let served = Served::new(TWO).await;
    let id = served.save().await;
    let shown = get(&served.router, &format!("{SNAPSHOTS}/{id}")).await.json();
    let endpoints = &shown["saved"]["chat"]["definition"]["versions"][0]["endpoints"];
    assert_eq!(endpoints[0]["api_key"], "***");
    let second = &shown["saved"]["chat"]["definition"]["versions"][1]["endpoints"];
    assert_eq!(second[0]["api_key"], "${HOME}");
    let all =
        format!("{shown}{:?}", served.store.list(&backstop_store::Key::new(&["snapshot"]).unwrap()).await);
    assert!(!all.contains("in-clear") && !all.contains(&std::env::var("HOME").unwrap()));
    // It is served with its key all the same.
    served.route(|route| route.make_stable("v2"));
    served.world.write(&TWO.replace("    rules:", "    balance: random\n    rules:"));
    served.control.reload(&Actor::File, None).unwrap();
    assert_eq!(served.restore(&id, json!({})).await.status, StatusCode::OK);
    assert_eq!(served.chat().versions[0].endpoints[0].api_key.as_deref(), Some("in-clear"));
}

#[tokio::test]
async fn old_automatic_ones_go() {
    let served = Served::new(TWO).await;
    let kept = served.save().await;
    for n in 0..25 {
        served.route(|route| route.make_stable(if n % 2 == 0 { "v2" } else { "v1" }));
        let mut wanted = json!({ "services": ["chat"] });
        wanted["force"] = true.into();
        served.restore(&kept, wanted).await;
        served.route(|route| route.make_stable("v2"));
        let done = served.restore(&kept, json!({ "services": ["chat"], "force": true })).await;
        assert_eq!(done.status, StatusCode::OK);
    }
    crate::snapshots::prune(&served.store).await.unwrap();
    let all = get(&served.router, SNAPSHOTS).await.json();
    let all = all.as_array().unwrap();
    let automatic = all.iter().filter(|it| it["automatic"] == true).count();
    assert_eq!((automatic, all.last().unwrap()["id"].clone()), (20, json!(kept)));
    assert!(all.windows(2).all(|two| two[0]["id"].as_str() > two[1]["id"].as_str()), "the last one first");
}
