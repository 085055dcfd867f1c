//! How files come into managed storage, and what becomes of them there.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::net::TcpListener;

use super::*;

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
