//! Run-time changes on top of a file.

use backstop_core::table::Duty;
use serde_json::json;

use super::*;
use crate::{Force, IntentError, Place, Standing};

const TWO: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions:
      - { name: v1, endpoints: [{ url: \"http://h:1\" }, { url: \"http://h:2\" }] }
      - { name: v2, endpoints: [{ url: \"http://h:1\" }, { url: \"http://h:3\" }] }
";

fn config() -> Config {
    read(TWO).unwrap()
}

/// `version url duty` of every endpoint.
#[track_caller]
fn endpoints(intent: &Intent, expected: &[&str]) {
    let table = compile(&config(), intent, 1);
    let found: Vec<String> = table.services[0]
        .versions
        .iter()
        .flat_map(|version| {
            version.endpoints.iter().map(|endpoint| {
                let duty = match endpoint.duty {
                    Duty::Active => "active",
                    Duty::Draining => "draining",
                    Duty::Isolated => "isolated",
                };
                format!("{} {} {duty}", version.name, endpoint.target.url())
            })
        })
        .collect();
    assert_eq!(found, expected);
}

fn set(
    intent: &mut Intent,
    version: Option<&str>,
    url: &str,
    standing: Standing,
) -> Result<Place, IntentError> {
    intent.set(&config(), None, version, url, standing, Force::No)
}

#[test]
fn endpoints_come_and_go() {
    let mut intent = Intent::default();
    let place =
        intent.add(&config(), "chat", None, &json!({ "url": "HTTP://h:9/v1/", "weight": 2 })).unwrap();
    assert_eq!((place.version.as_str(), place.url.as_str()), ("v1", "http://h:9"));
    set(&mut intent, Some("v1"), "http://h:1", Standing::Draining).unwrap();
    set(&mut intent, None, "http://h:2/v1", Standing::Isolated).unwrap();
    set(&mut intent, None, "http://h:3", Standing::Removed).unwrap();
    endpoints(
        &intent,
        &["v1 http://h:1 draining", "v1 http://h:2 isolated", "v1 http://h:9 active", "v2 http://h:1 active"],
    );
    let stored = serde_json::to_string(&intent).unwrap();
    assert_eq!(serde_json::from_str::<Intent>(&stored).unwrap(), intent);

    set(&mut intent, Some("v1"), "http://h:1", Standing::Active).unwrap();
    set(&mut intent, None, "http://h:9", Standing::Removed).unwrap();
    intent.add(&config(), "chat", Some("v2"), &json!({ "url": "http://h:3" })).unwrap();
    set(&mut intent, None, "http://h:2", Standing::Active).unwrap();
    assert_eq!(intent, Intent::default(), "all is as in the file again");
}

#[test]
fn a_version_keeps_an_endpoint() {
    let mut intent = Intent::default();
    set(&mut intent, None, "http://h:2", Standing::Isolated).unwrap();
    for standing in [Standing::Draining, Standing::Isolated, Standing::Removed] {
        let error = set(&mut intent, Some("v1"), "http://h:1", standing).unwrap_err();
        assert!(matches!(error, IntentError::Last(_)), "{error}");
    }
    let force = |intent: &mut Intent, standing| {
        intent.set(&config(), None, Some("v1"), "http://h:1", standing, Force::Yes)
    };
    force(&mut intent, Standing::Draining).unwrap();
    set(&mut intent, None, "http://h:2", Standing::Active).unwrap();
    force(&mut intent, Standing::Removed).unwrap();
    let error = intent.set(&config(), None, None, "http://h:2", Standing::Removed, Force::Yes).unwrap_err();
    assert!(matches!(error, IntentError::Last(_)), "not even by force: {error}");
}

#[test]
fn a_file_that_lost_the_others_gets_the_removed_one_back() {
    let mut intent = Intent::default();
    set(&mut intent, None, "http://h:2", Standing::Removed).unwrap();
    let shorter =
        read(&TWO.replace("{ url: \"http://h:1\" }, { url: \"http://h:2\" }", "{ url: \"http://h:2\" }"))
            .unwrap();
    let table = compile(&shorter, &intent, 1);
    assert_eq!(table.services[0].versions[0].endpoints.len(), 1);
}

#[test]
fn changes_wait_for_their_endpoint() {
    let mut intent = Intent::default();
    intent.add(&config(), "chat", Some("v2"), &json!({ "url": "http://h:9" })).unwrap();
    set(&mut intent, None, "http://h:2", Standing::Draining).unwrap();
    set(&mut intent, None, "http://h:3", Standing::Removed).unwrap();
    assert_eq!(intent.pending(&config()).count(), 0);
    let waiting = |text: &str| {
        let config = read(text).unwrap();
        intent.pending(&config).map(|change| change.place.url.clone()).collect::<Vec<_>>()
    };
    assert_eq!(waiting(&TWO.replace("h:2", "h:4").replace("h:3", "h:5")), ["http://h:2", "http://h:3"]);
    assert_eq!(waiting(&TWO.replace("v2", "v3")), ["http://h:9", "http://h:3"]);
}

#[test]
fn what_can_not_be_done_says_why() {
    let mut intent = Intent::default();
    let told = |result: Result<Place, IntentError>| result.unwrap_err().to_string();
    assert_eq!(
        told(set(&mut intent, None, "http://h:7", Standing::Draining)),
        "there is no endpoint `http://h:7`; there is `http://h:1`, `http://h:2` and `http://h:3`"
    );
    assert_eq!(
        told(set(&mut intent, None, "http://h:1", Standing::Draining)),
        "`http://h:1` is an endpoint of version `v1` of service `chat` and of version `v2` of service `chat`; say which is meant"
    );
    assert_eq!(
        told(set(&mut intent, Some("v3"), "http://h:1", Standing::Draining)),
        "there is no endpoint `http://h:1`; there is none"
    );
    assert_eq!(
        told(intent.add(&config(), "chta", None, &json!({ "url": "http://h:9" }))),
        "there is no service `chta`; there is `chat`"
    );
    assert_eq!(
        told(intent.add(&config(), "chat", Some("v3"), &json!({ "url": "http://h:9" }))),
        "service `chat` has no version `v3`; it has `v1` and `v2`"
    );
    assert_eq!(
        told(intent.add(&config(), "chat", None, &json!({ "url": "http://h:1/" }))),
        "version `v1` of service `chat` has the endpoint `http://h:1` already"
    );
    let invalid = told(intent.add(&config(), "chat", None, &json!({ "url": "h:9", "wieght": 2 })));
    assert!(
        invalid.contains("url: `h:9` is not an HTTP URL") && invalid.contains("did you mean `weight`?"),
        "{invalid}"
    );
    assert_eq!(intent, Intent::default());
}
