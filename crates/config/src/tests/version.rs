//! Versions registered at run time, on top of a file.

use serde_json::{Value, json};

use super::*;
use crate::{IntentError, fetch_url, read_version};

const FILE: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions:
      - { name: v1, endpoints: [{ url: \"http://h:1\" }] }
      - name: v2
        endpoints:
          - { url: \"http://h:${PORT:-2}\", weight: 2, api_key: \"in-clear\" }
          - { url: \"http://h:3\", api_key: \"${KEY}\" }
        request: { system: \"Costs $${5}.\", params: { api_key: x, stop: null } }
";

fn file() -> Config {
    parse(FILE, "backstop.yaml", &|name| (name == "KEY").then(|| "of-the-upstream".to_owned())).unwrap()
}

fn in_force(intent: &Intent) -> Config {
    intent.in_force(&file(), "backstop.yaml", &|_| None).unwrap()
}

fn names(config: &Config, intent: &Intent) -> Vec<String> {
    let table = compile(config, intent, 1);
    table.services[0].versions.iter().map(|version| version.name.clone()).collect()
}

fn definition(url: &str) -> Value {
    json!({ "endpoints": [{ "url": url }] })
}

#[test]
fn a_registered_version_is_served_like_those_of_the_file() {
    let mut intent = Intent::default();
    assert_eq!(intent.define(&file(), "chat", "v3", &definition("http://h:9")), Ok(true));
    assert_eq!(intent.define(&file(), "chat", "v3", &definition("http://h:9")), Ok(false), "it is there");
    assert_eq!(names(&file(), &intent), ["v1", "v2", "v3"]);
    let stored = serde_json::to_string(&intent).unwrap();
    assert_eq!(serde_json::from_str::<Intent>(&stored).unwrap(), intent);

    let config = in_force(&intent);
    assert_eq!(config.versions("chat"), ["v1", "v2", "v3"]);
    assert_eq!(config.written("chat", "v3").unwrap().definition, definition("http://h:9"));
    // An endpoint of it can be drained like others, and gets siblings.
    intent.add(&config, "chat", Some("v3"), &json!({ "url": "http://h:10" })).unwrap();
    let table = compile(&config, &intent, 1);
    assert_eq!(table.services[0].versions[2].endpoints.len(), 2);

    intent.forget_version("chat", "v3");
    assert_eq!(names(&file(), &intent), ["v1", "v2"]);
}

#[test]
fn the_file_wins() {
    let mut intent = Intent::default();
    let error = intent.define(&file(), "chat", "v1", &definition("http://h:9")).unwrap_err();
    assert_eq!(error.to_string(), "version `v1` of service `chat` is defined in the configuration file");
    intent.define(&file(), "chat", "v3", &definition("http://h:9")).unwrap();
    let error = intent.define(&file(), "chat", "v3", &definition("http://h:8")).unwrap_err();
    assert!(matches!(error, IntentError::VersionExists { .. }), "{error}");
    assert_eq!(intent.waiting_versions(&file()), []);

    let later = read(&FILE.replace("name: v1", "name: v3").replace("${KEY}", "k")).unwrap();
    assert_eq!(names(&later, &intent), ["v3", "v2"]);
    assert_eq!(compile(&later, &intent, 1).services[0].versions[0].endpoints[0].target.url(), "http://h:1");
    let waiting = intent.waiting_versions(&later);
    assert_eq!(waiting[0].1, "the configuration has a version of this name, which is served instead");
    let other = read(&FILE.replace("name: chat", "name: talk").replace("${KEY}", "k")).unwrap();
    assert_eq!(intent.waiting_versions(&other)[0].1, "the configuration has no such service");
}

#[test]
fn files_make_another_version_of_it() {
    let mut intent = Intent::default();
    for name in ["v3", "v4"] {
        intent.define(&file(), "chat", name, &definition("http://h:9")).unwrap();
    }
    let digest = |intent: &Intent, name| in_force(intent).version_digest("chat", name).unwrap();
    let without = digest(&intent, "v3");
    assert_eq!(without, digest(&intent, "v4"), "the same by another name");
    intent.set_artifacts("chat", "v3", "ab").unwrap();
    assert_ne!(without, digest(&intent, "v3"));
    intent.set_artifacts("chat", "v4", "cd").unwrap();
    assert_ne!(digest(&intent, "v3"), digest(&intent, "v4"));
    intent.set_artifacts("chat", "v4", "ab").unwrap();
    assert_eq!(digest(&intent, "v3"), digest(&intent, "v4"));
    // One of the file can have files too, and is served as the file says.
    let of_file = digest(&intent, "v1");
    intent.set_artifacts("chat", "v1", "ab").unwrap();
    assert_ne!(of_file, digest(&intent, "v1"));
    assert_eq!(names(&file(), &intent), ["v1", "v2", "v3", "v4"]);
}

#[test]
fn what_is_kept_has_no_secrets() {
    let config = file();
    let written = config.written("chat", "v2").unwrap();
    assert_eq!(
        written.definition,
        json!({
            "endpoints": [
                { "url": "http://h:${PORT:-2}", "weight": 2 },
                { "url": "http://h:3", "api_key": "${KEY}" },
            ],
            "request": { "system": "Costs $${5}.", "params": { "api_key": "x", "stop": null } },
        })
    );
    assert_eq!(written.without, ["endpoints[0].api_key"]);
    // It means the same when it is read again.
    let again = read_version(&written.definition.to_string().replace("${KEY}", "${PATH}"), "kept");
    let told = again.unwrap().written.definition.to_string();
    assert!(told.contains("$${5}") && told.contains("${PATH}"), "{told}");
}

#[test]
fn definitions_are_checked_like_the_file() {
    let text = "name: v9\nendpoints:\n  - url: h:1\n    api_key: secret\n  - { url: \"http://h:1\", wieght: 1 }\nprise: {}\n";
    let problems = read_version(text, "v9.yaml").unwrap_err();
    let told: Vec<String> =
        problems.iter().map(|it| format!("{}:{} {}", it.line, it.path, it.message)).collect();
    assert_eq!(
        told,
        [
            "3:endpoints[0].url `h:1` is not an HTTP URL",
            "4:endpoints[0].api_key this key would be kept in clear",
            "5:endpoints[1].wieght unknown key `wieght`",
            "6:prise unknown key `prise`",
        ]
    );
    assert!(!problems.to_string().contains("secret"), "{problems}");
    let empty = read_version("price: { input: 1, output: 2 }", "v9.yaml").unwrap_err().to_string();
    assert!(empty.contains("`endpoints` is missing"), "{empty}");
    let twice = "endpoints: [{ url: \"http://h:1\" }, { url: \"http://H:1/\" }]";
    let twice = read_version(twice, "v9.yaml").unwrap_err().to_string();
    assert!(twice.contains("endpoints[1].url: another endpoint is at"), "{twice}");
    let draft = read_version("name: v9\nendpoints: [{ url: \"http://h:1\" }]", "v9.yaml").unwrap();
    assert_eq!(draft.name.as_deref(), Some("v9"));
    assert_eq!(draft.written.definition, definition("http://h:1"), "without the name");
}

#[test]
fn places_to_fetch_from() {
    let (target, path) = fetch_url("https://h/a/b.gguf?x=1").unwrap();
    assert_eq!((target.url().as_str(), path.as_str()), ("https://h:443", "/a/b.gguf?x=1"));
    assert!(fetch_url("https://user:pass@h/a").is_err());
    assert!(fetch_url("ftp://h/a").unwrap_err().starts_with("`ftp://h/a` is not an HTTP URL"));
    let unset = fetch_url("https://h/${BACKSTOP_TEST_NOT_SET}").unwrap_err();
    assert_eq!(unset, "environment variable `BACKSTOP_TEST_NOT_SET` is not set");
    // Only the environment knows what is filled in.
    assert!(fetch_url("nothing:${PATH}").unwrap_err().contains("${PATH}"));
}

/// A snapshot has what was served, and so the registered versions too.
#[test]
fn registered_versions_come_back_with_a_snapshot() {
    let mut intent = Intent::default();
    intent.define(&file(), "chat", "v3", &definition("http://h:9")).unwrap();
    let config = in_force(&intent);
    let saved = |stable| intent.definition(&config, "chat", stable).unwrap();
    assert_eq!(saved("v1")["versions"][2]["name"], "v3");
    let env = |name: &str| (name == "KEY").then(|| "k".to_owned());
    let restored = |intent: &Intent, saved: &Value| {
        let mut intent = intent.clone();
        intent.restore((&file(), &config), ("s1", 1), "chat", (saved, &[])).unwrap();
        let config = intent.in_force(&file(), "backstop.yaml", &env).unwrap();
        (intent, config)
    };
    let (same, now) = restored(&intent, &saved("v1"));
    assert_eq!(same.restored().len(), 0, "nothing has to be held in place of the file");
    assert!(now.is_registered("chat", "v3"));
    let (held, now) = restored(&intent, &saved("v3"));
    assert_eq!((held.restored().len(), now.stable("chat").as_deref()), (1, Some("v3")));
    assert_eq!(held.waiting_versions(&now), [], "it is served as it was registered");
    let (_, now) = restored(&Intent::default(), &saved("v1"));
    assert_eq!(now.versions("chat"), ["v1", "v2", "v3"], "also if it has been pruned since");
}
