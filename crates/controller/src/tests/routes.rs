//! Who gets what, from the file and what releases have left.

use std::time::Duration;

use backstop_config::{Config, Intent};
use backstop_core::rollout::{Command, Event, Kind, Observed, Release, Way};
use backstop_core::table::{Duty, ServiceSpec};

use crate::routes::{Active, Route, Routes};

const FILE: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions:
      - { name: v1, endpoints: [{ url: \"http://h:1\" }] }
      - { name: v2, endpoints: [{ url: \"http://h:2\" }] }
      - { name: v3, endpoints: [{ url: \"http://h:3\" }] }
    rules: [{ match: { header: { x-version: v2 } }, version: v2 }]
    release: { steps: [{ weight: 10%, hold: 1m }, { weight: 100% }] }
";

fn config(text: &str) -> Config {
    backstop_config::parse(text, "backstop.yaml", &|_| None).unwrap()
}

/// A release of `v2` with its first share.
fn begun(config: &Config) -> Release {
    let plan = config.release("chat").unwrap().plan;
    let release = Release::begin("r1", "chat", Kind::Canary, "v1", "v2", plan);
    let well = Observed { canary_ready: true, stable_ready: true, window_open: true, ..Observed::default() };
    release.step(Event::Tick(well), 0).unwrap().0
}

fn told(release: &Release, command: Command) -> Release {
    let event = Event::Command { command, stable_ready: true, canary_ready: true };
    release.step(event, release.now).unwrap().0
}

fn back() -> Command {
    Command::Rollback { way: Way::Instant, actor: "ops".to_owned(), reason: String::new() }
}

fn routes(config: &Config, releases: &[Release]) -> Routes {
    let mut routes = Routes::default();
    for release in releases {
        let digest = config.version_digest("chat", "v2").unwrap();
        let active = Active::new(release, (&digest, "salt"), &[], Duration::from_secs(1));
        let before: Route = routes.of(config, "chat").unwrap();
        routes.set("chat", before.with(active, 1));
    }
    routes
}

fn served(config: &Config, routes: &Routes) -> ServiceSpec {
    let mut table = backstop_config::compile(config, &Intent::default(), 1);
    routes.overlay(config, &mut table);
    table.services.remove(0)
}

#[test]
fn a_step_is_a_split() {
    let config = config(FILE);
    let service = served(&config, &routes(&config, &[begun(&config)]));
    let trial = service.trial.unwrap();
    assert_eq!((service.stable.as_str(), trial.canary.as_str(), trial.buckets), ("v1", "v2", 10_000));
    assert_eq!((trial.release.as_str(), trial.epoch), ("r1", 1));
    assert_eq!(service.rules.len(), 1);
}

#[test]
fn a_promoted_version_is_the_stable_one_until_the_file_says_otherwise() {
    let config_now = config(FILE);
    let mut routes = routes(&config_now, &[told(&begun(&config_now), Command::Promote)]);
    let service = served(&config_now, &routes);
    assert_eq!((service.stable.as_str(), service.trial), ("v2", None));
    assert_eq!(routes.of(&config_now, "chat").unwrap().previous, ["v1"]);

    assert!(routes.follow_file(&config_now).is_empty(), "the file says the same as before");
    let file = config(&FILE.replace("    rules:", "    stable: v3\n    rules:"));
    assert_eq!(routes.follow_file(&file), [("chat".to_owned(), "v2".to_owned(), "v3".to_owned())]);
    assert_eq!(served(&file, &routes).stable, "v3");
}

#[test]
fn a_version_that_was_sent_back_gets_nothing_by_rules_neither() {
    let config_now = config(FILE);
    let back = told(&begun(&config_now), back());
    let routes_now = routes(&config_now, std::slice::from_ref(&back));
    let service = served(&config_now, &routes_now);
    assert_eq!(service.trial.as_ref().unwrap().buckets, 0, "stable is still watched");
    assert!(service.rules.is_empty());
    assert_eq!(service.versions[1].endpoints[0].duty, Duty::Draining);
    assert_eq!(service.versions[0].endpoints[0].duty, Duty::Active);

    let well = Observed { recovered: Some(true), ..Observed::default() };
    let over = back.step(Event::Tick(well), back.now).unwrap().0;
    let routes_over = routes(&config_now, &[back, over]);
    let service = served(&config_now, &routes_over);
    assert_eq!((service.trial, service.versions[1].endpoints[0].duty), (None, Duty::Isolated));

    let changed = config(&FILE.replace("http://h:2", "http://h:4"));
    assert_eq!(served(&changed, &routes_over).rules.len(), 1, "it is another version now");
}

#[test]
fn nothing_is_held_against_a_version_whose_release_was_called_off() {
    let config = config(FILE);
    let service = served(&config, &routes(&config, &[told(&begun(&config), Command::Abort)]));
    assert_eq!((service.stable.as_str(), service.trial, service.rules.len()), ("v1", None, 1));
}

#[test]
fn a_version_that_was_changed_under_way_gets_no_share() {
    let config_now = config(FILE);
    let routes = routes(&config_now, &[begun(&config_now)]);
    let changed = config(&FILE.replace("http://h:2", "http://h:4"));
    assert_eq!(served(&changed, &routes).trial, None);
}

#[test]
fn what_a_reload_must_not_do() {
    let config_now = config(FILE);
    let under_way = routes(&config_now, &[begun(&config_now)]);
    let disturbs =
        |routes: &Routes, text: &str| routes.disturbs(&config(text), &config(text)).map(|(.., what)| what);
    assert_eq!(disturbs(&under_way, FILE), None);
    for (text, expected) in [
        (FILE.replace("    rules:", "    stable: v3\n    rules:"), "`stable` can't be changed"),
        (FILE.replace("http://h:2", "http://h:4"), "can't be changed now"),
        (
            FILE.replace("name: v2", "name: v4").replace("version: v2 }", "version: v4 }"),
            "can't be removed now",
        ),
    ] {
        let what = disturbs(&under_way, &text).unwrap_or_default();
        assert!(what.contains(expected), "{what} in {text}");
        let over = routes(&config_now, &[told(&begun(&config_now), Command::Abort)]);
        assert_eq!(disturbs(&over, &text), None, "when it is over");
    }
}
