//! Services as they are written, and as snapshots had them.

use serde_json::json;

use super::*;
use crate::{Force, Standing};

const TWO: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions:
      - { name: v1, endpoints: [{ url: \"http://h:${PORT}\", api_key: \"${SECRET}\" }, { url: \"http://h:2\", api_key: in-clear }] }
      - { name: v2, endpoints: [{ url: \"http://h:3\" }] }
  - name: embed
    versions: [{ name: v1, endpoints: [{ url: \"http://h:1\" }] }]
";

/// What is added at run time is read with the environment of the process.
fn everything(name: &str) -> Option<String> {
    env(name).or_else(|| std::env::var(name).ok())
}

fn intent(config: &Config) -> Intent {
    let mut intent = Intent::default();
    let added = json!({ "url": "http://h:9", "api_key": "${HOME}", "weight": 2 });
    intent.add(config, "chat", Some("v2"), &added).unwrap();
    for (url, standing) in [
        ("http://h:3", Standing::Removed),
        ("http://h:2", Standing::Draining),
        ("http://h:9", Standing::Isolated),
    ] {
        intent.set(config, Some("chat"), None, url, standing, Force::Yes).unwrap();
    }
    intent
}

/// Says something else of `chat`.
fn changed() -> Config {
    read(&TWO.replace("name: chat\n", "name: chat\n    balance: random\n").replace("h:3", "h:5")).unwrap()
}

/// `chat` as it is in `config` with `intent`, when the file is `file`.
fn restored(file: &Config, config: &Config, intent: &Intent) -> (Intent, Config) {
    let (definition, changes) = intent.saved(config, "chat").unwrap();
    let mut restored = Intent::default();
    restored.restore((file, file), ("s1", 7), "chat", (&definition, &changes)).unwrap();
    let in_force = restored.in_force(file, "backstop.yaml", &everything).unwrap();
    (restored, in_force)
}

#[test]
fn what_is_written_means_the_same_when_it_is_read_again() {
    for text in [FULL, MINIMAL, TWO, "listen: 127.0.0.1:0\nx: &e [{ url: \"http://h:1\" }]\n"] {
        let Ok(config) = read(text) else { continue };
        assert_eq!(read(&config.raw.text()).unwrap().document, config.document);
    }
    let quoted = with_service("models: [\"5\", '1.5', \"a\\tb\", \"$${A}\", \"${DIGITS}\", 'it''s', \"<<\"]");
    let config = read(&quoted).unwrap();
    assert_eq!(read(&config.raw.text()).unwrap().document, config.document);
    assert!(config.raw.text().contains("\"$${A}\"") && config.raw.text().contains("\"${DIGITS}\""));
}

#[test]
fn a_definition_has_the_run_time_changes_and_no_keys() {
    let config = read(TWO).unwrap();
    let intent = intent(&config);
    let definition = intent.definition(&config, "chat", "v2").unwrap();
    let expected = json!({
        "name": "chat",
        "stable": "v2",
        "versions": [
            { "name": "v1", "endpoints": [
                { "url": "http://h:${PORT}", "api_key": "${SECRET}" },
                { "url": "http://h:2", "api_key": "***" },
            ] },
            { "name": "v2", "endpoints": [{ "url": "http://h:9", "api_key": "${HOME}", "weight": 2 }] },
        ],
    });
    assert_eq!(definition, expected);
    assert!(!format!("{config:?}").contains("in-clear"));
    // The file names the first one stable if it says nothing.
    assert_eq!(intent.definition(&config, "chat", "v1").unwrap().get("stable"), None);
}

#[test]
fn what_was_restored_is_in_force() {
    let before = read(TWO).unwrap();
    let intent = intent(&before);
    let (restored, in_force) = restored(&changed(), &before, &intent);
    assert_eq!(in_force.document, before.document, "keys and all");
    assert_eq!(compile(&in_force, &restored, 1), compile(&before, &intent, 1));
    assert!(!format!("{restored:?}").contains("in-clear"));
    let kept = serde_json::to_string(&restored).unwrap();
    assert_eq!(serde_json::from_str::<Intent>(&kept).unwrap(), restored);
    // A version is the same one, whatever was changed about it at run time.
    let digest = |config: &Config| config.version_digest("chat", "v2");
    assert_eq!(digest(&in_force), digest(&before));

    // What is in force can be saved and restored again.
    assert_eq!(restored.saved(&in_force, "chat"), intent.saved(&before, "chat"));
    let shown = restored.definition(&in_force, "chat", "v2");
    assert_eq!(shown, intent.definition(&before, "chat", "v2"));
}

#[test]
fn keys_of_endpoints_that_were_added_stay_at_home() {
    let config = read(TWO).unwrap();
    let mut intent = Intent::default();
    let added = json!({ "url": "http://h:9", "api_key": "added-in-clear" });
    intent.add(&config, "chat", Some("v2"), &added).unwrap();
    let (definition, changes) = intent.saved(&config, "chat").unwrap();
    let kept = format!("{definition}{}", serde_json::to_string(&changes).unwrap());
    assert!(!kept.contains("in-clear"), "{kept}");
    let mut restored = intent.clone();
    restored.restore((&config, &config), ("s1", 7), "chat", (&definition, &changes)).unwrap();
    assert_eq!(restored, intent);
    let lost = Intent::default().restore((&config, &config), ("s1", 7), "chat", (&definition, &changes));
    assert_eq!(lost.unwrap_err().url, "http://h:9");
}

#[test]
fn it_holds_until_the_file_says_something_else() {
    let file = read(TWO).unwrap();
    let before = read(&TWO.replace("h:3", "h:5")).unwrap();
    let (mut restored, _) = restored(&file, &before, &Intent::default());
    let spelt = TWO.replace("  - name: chat\n", "  # the same\n  - name: \"chat\"\n");
    assert_eq!(restored.leave_restored(&read(&spelt).unwrap()), []);
    let other = read(&TWO.replace("name: embed", "name: embeds")).unwrap();
    assert_eq!(restored.leave_restored(&other), [], "of another service");
    let changed = read(&TWO.replace("h:3", "h:4")).unwrap();
    let left = restored.leave_restored(&changed);
    assert_eq!((left.len(), left[0].snapshot.as_str()), (1, "s1"));
    assert_eq!(restored.in_force(&changed, "f", &env).unwrap(), changed);
}

#[test]
fn a_service_that_the_file_has_lost_is_there_again() {
    let config = read(TWO).unwrap();
    let file = read(&TWO.replace("name: chat", "name: other")).unwrap();
    let intent = Intent::default();
    let mut restored = Intent::default();
    let (mut definition, _) = intent.saved(&config, "chat").unwrap();
    let lost = restored.restore((&file, &file), ("s1", 7), "chat", (&definition, &[])).unwrap_err();
    assert!(lost.to_string().contains("`http://h:2` of chat/v1 stood in the file in clear"), "{lost}");
    definition["versions"][0]["endpoints"][1]["api_key"] = "${SECRET}".into();
    restored.restore((&file, &file), ("s1", 7), "chat", (&definition, &[])).unwrap();
    let in_force = restored.in_force(&file, "f", &env).unwrap();
    assert_eq!(in_force.services().collect::<Vec<_>>(), ["other", "embed", "chat"]);
    assert_eq!(restored.leave_restored(&config).len(), 1, "the file has it again");
}

#[test]
fn a_definition_that_can_not_be_used_is_told_of() {
    let file = read(TWO).unwrap();
    let (restored, _) = restored(&changed(), &file, &intent(&file));
    let without = |name: &str| everything(name).filter(|_| name != "PORT");
    let problems = restored.in_force(&file, "backstop.yaml", &without).unwrap_err().to_string();
    assert!(
        problems.starts_with(
            "backstop.yaml with snapshot s1: services[0].versions[0].endpoints[0].url: environment variable `PORT`"
        ),
        "{problems}"
    );
    let mut intent = Intent::default();
    let old = json!({ "name": "chat", "colour": 1, "versions": [{ "name": "v1", "endpoints": [{ "url": "http://h:1" }] }] });
    intent.restore((&file, &file), ("s0", 7), "chat", (&old, &[])).unwrap();
    let problems = intent.in_force(&file, "f", &env).unwrap_err().to_string();
    assert!(problems.contains("unknown key `colour`"), "{problems}");
}

#[test]
fn nothing_is_held_that_the_file_says_itself() {
    let plain = TWO.replace(", api_key: in-clear", "");
    let file = read(&plain).unwrap();
    let (restored, in_force) = restored(&file, &file, &Intent::default());
    assert_eq!((restored, in_force), (Intent::default(), file));
}

#[test]
fn changes_in_words() {
    let before = read(TWO).unwrap().outline("chat").unwrap();
    let check = |from: &str, to: &str, expected: &[&str]| {
        let now = read(&TWO.replace(from, to)).unwrap().outline("chat").unwrap();
        assert_eq!(before.changes(&now), expected);
        assert_eq!(before.is_same(&now), expected.is_empty());
        let kept = serde_json::to_string(&now).unwrap();
        assert_eq!(serde_json::from_str::<crate::Outline>(&kept).unwrap(), now);
    };
    check("name: embed", "name: other", &[]);
    check("name: v2", "name: v3", &["version v2 is gone", "version v3 is new"]);
    check("http://h:3\"", "http://h:4\"", &["version v2: http://h:3 is gone, http://h:4 is new"]);
    check("http://h:3\"", "http://h:3\", weight: 2", &["version v2: http://h:3 is changed"]);
    check("in-clear", "another", &["written in another way, or with another key"]);
    check(
        "  - name: chat\n",
        "  - name: chat\n    stable: v2\n    balance: random\n",
        &["stable: v1 → v2", "changed: `balance`"],
    );
}
