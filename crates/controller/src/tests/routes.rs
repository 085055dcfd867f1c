//! Who gets what, from the file and what releases have left.

use std::time::Duration;

use backstop_config::{Config, Intent};
use backstop_core::rollout::{Command, Drilling, Event, Kind, Observed, Phase, Release, Severity, Way, twin};
use backstop_core::table::{Duty, ServiceSpec};

use crate::releases::Kept;
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

/// A drill of the twin of `v1`, with its share.
fn drilled(config: &Config) -> (Release, Active) {
    let settings = config.release("chat").unwrap();
    let plan = settings.plan.of_drill(Drilling { buckets: 5_000, way: Way::Instant }, settings.patience);
    let release = Release::begin("r2", "chat", Kind::Drill, "v1", &twin("v1"), plan);
    let well = Observed { canary_ready: true, stable_ready: true, ..Observed::default() };
    let release = release.step(Event::Tick(well), 0).unwrap().0;
    let digest = config.version_digest("chat", "v1").unwrap();
    let active = Active::new(&release, (&digest, "salt"), &[], Duration::from_secs(1));
    (release, active)
}

#[test]
fn a_drill_gives_the_stable_version_a_twin_for_as_long_as_it_lasts() {
    let config_now = config(FILE);
    let (release, active) = drilled(&config_now);
    let mut routes = Routes::default();
    let before = routes.of(&config_now, "chat").unwrap();
    routes.set("chat", before.clone().with(active, 1));
    let service = served(&config_now, &routes);
    let twin_of = |service: &ServiceSpec| service.versions.iter().find_map(|version| version.twin_of.clone());
    assert_eq!(twin_of(&service).as_deref(), Some("v1"));
    let trial = service.trial.as_ref().unwrap();
    assert_eq!((trial.canary.as_str(), trial.buckets, service.stable.as_str()), ("v1~drill", 5_000, "v1"));
    let [real, other] =
        ["v1", "v1~drill"].map(|name| service.versions.iter().find(|it| it.name == name).unwrap());
    assert_eq!(real.endpoints, other.endpoints);

    // It holds up nobody, and ends when what it is about changes.
    let changed = config(&FILE.replace("http://h:1", "http://h:9"));
    assert_eq!(routes.disturbs(&changed, &changed), None);
    assert_eq!(twin_of(&served(&changed, &routes)), None);
    let mut elsewhere = routes.clone();
    let other = config(&FILE.replace("    rules:", "    stable: v3\n    rules:"));
    assert_eq!(elsewhere.follow_file(&other).len(), 1);
    let service = served(&other, &elsewhere);
    assert_eq!((twin_of(&service), service.trial, service.stable.as_str()), (None, None, "v3"));

    // A process that finds it does not go on with it.
    assert!(routes.end_drills());
    let service = served(&config_now, &routes);
    assert_eq!((twin_of(&service), service.trial), (None, None));
    let ended = routes.of(&config_now, "chat").unwrap();
    assert!(ended.active.as_ref().unwrap().release.epoch > release.epoch);
    assert_eq!((ended.vetoes.len(), ended.stable, ended.previous), (0, before.stable, before.previous));
    assert!(!routes.end_drills());
}

#[test]
fn what_a_release_takes_out_it_says_so() {
    let config_now = config(FILE);
    let service = served(&config_now, &routes(&config_now, &[told(&begun(&config_now), back())]));
    let endpoint = &service.versions.iter().find(|it| it.name == "v2").unwrap().endpoints[0];
    assert_eq!((endpoint.duty, endpoint.ordered_by.as_deref()), (Duty::Draining, Some("release r1")));
}

#[test]
fn a_release_that_gives_way_leaves_both_of_its_versions() {
    let config_now = config(FILE);
    let give_way = Command::GiveWay { to: "v3".to_owned(), actor: "ops".to_owned(), reason: String::new() };
    let ended = told(&begun(&config_now), give_way);
    let plan = config_now.release("chat").unwrap().plan;
    let mut next = Release::begin("r2", "chat", Kind::Rollback, "v3", "v1", plan);
    next.phase = Phase::Bake;
    let next = told(&next, back());
    let active = |release: &Release| {
        let digest = config_now.version_digest("chat", &release.canary).unwrap();
        Active::new(release, (&digest, "salt"), &[], Duration::from_secs(1))
    };
    let mut routes = Routes::default();
    let route = routes.of(&config_now, "chat").unwrap().with(active(&ended), 1).with(active(&next), 1);
    assert_eq!(route.vetoes.keys().collect::<Vec<_>>(), ["v1", "v2"]);
    routes.set("chat", route);
    let service = served(&config_now, &routes);
    assert_eq!((service.stable.as_str(), service.trial.unwrap().buckets), ("v3", 0));
}

/// Those who watch it know what is new by its time, and those who are told by an id that is made of it.
#[test]
fn the_account_of_a_release_goes_on_when_the_clock_is_put_back() {
    let config = config(FILE);
    let digest = config.version_digest("chat", "v2").unwrap();
    let active = Active::new(&begun(&config), (&digest, "salt"), &[], Duration::from_secs(1));
    let mut kept = Kept::of_served(&active, &config.release("chat").unwrap()).unwrap();
    let times = [1_000, 1_000, 3_000, 500, 2_000, 4_000];
    let told = times.map(|at| kept.tell(at, Severity::Info, "something".to_owned()));
    assert_eq!(told, [1_000, 1_001, 3_000, 3_001, 3_002, 4_000]);
    assert!(kept.timeline.iter().map(|moment| moment.at).eq(told));
}
