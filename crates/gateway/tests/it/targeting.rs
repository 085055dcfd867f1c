//! Rules: who gets a version whatever the split is.

use std::collections::BTreeMap;

use backstop_core::assign::BUCKETS;
use backstop_core::table::{Condition, RuleSpec};
use serde_json::json;

use crate::client::{CHAT, call};
use crate::identity::key;
use crate::world::{World, trial};

fn text(text: &str) -> String {
    text.to_owned()
}

/// `v2` to those of whom all of this holds.
fn rule(when: &[Condition]) -> RuleSpec {
    RuleSpec { when: when.to_vec(), version: text("v2") }
}

async fn world(rules: Vec<RuleSpec>) -> World {
    World::versions(Default::default(), |service| {
        service.groups = BTreeMap::from([(text("legal"), vec![text("alice"), text("bob")])]);
        service.rules = rules;
    })
    .await
}

async fn ask(world: &World, headers: &str, user: Option<&str>) -> String {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = json!({ "model": "chat", "user": user, "max_tokens": 1, "messages": messages }).to_string();
    let reply = call(world.addr, "POST", CHAT, headers, body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.header("x-backstop-version").unwrap().to_owned()
}

#[tokio::test]
async fn each_condition_asks_for_what_it_says() {
    let world = world(vec![
        rule(&[Condition::Cookie(text("beta"), text("1"))]),
        rule(&[Condition::User(text("carol"))]),
        rule(&[Condition::Group(text("legal")), Condition::Header(text("x-a"), text("1"))]),
    ])
    .await;
    for (headers, user, expected) in [
        ("", None, "v1"),
        ("cookie: beta=1\r\n", None, "v2"),
        ("cookie: a=b; beta=1\r\n", None, "v2"),
        ("cookie: a=b\r\ncookie: beta=1\r\n", None, "v2"),
        ("cookie: beta=2\r\n", None, "v1"),
        ("cookie: Beta=1; xbeta=1; beta; =1; beta\r\n", None, "v1"),
        ("cookie: beta=11; beta=\"1\"\r\n", None, "v1"),
        ("", Some("carol"), "v2"),
        ("", Some("Carol"), "v1"),
        // All that a rule asks for, and not a part of it.
        ("", Some("alice"), "v1"),
        ("x-a: 1\r\n", None, "v1"),
        ("x-a: 1\r\n", Some("alice"), "v2"),
        ("x-a: 1\r\n", Some("bob"), "v2"),
        ("x-a: 1\r\n", Some("dave"), "v1"),
    ] {
        assert_eq!(ask(&world, headers, user).await, expected, "{headers}{user:?}");
    }
}

#[tokio::test]
async fn keys_and_networks() {
    let here = |network: &str, bits: u8| Condition::Ip(network.parse().unwrap(), bits);
    let mut world = world(vec![rule(&[Condition::Key(text("b")), here("127.0.0.0", 8)])]).await;
    world.apply(|spec| spec.keys = vec![key("a", "sk-a", None), key("b", "sk-b", None)]);
    assert_eq!(ask(&world, "authorization: Bearer sk-a\r\n", None).await, "v1");
    assert_eq!(ask(&world, "x-api-key: sk-b\r\n", None).await, "v2");
    for (network, bits, expected) in [
        ("127.0.0.1", 32, "v2"),
        ("127.0.0.2", 32, "v1"),
        ("10.0.0.0", 8, "v1"),
        ("::", 0, "v1"),
        ("0.0.0.0", 0, "v2"),
    ] {
        world.apply(|spec| spec.services[0].rules = vec![rule(&[here(network, bits)])]);
        // What a client says of its address is not believed.
        let headers = "x-api-key: sk-a\r\nx-forwarded-for: 10.1.2.3\r\nforwarded: for=10.1.2.3\r\n";
        assert_eq!(ask(&world, headers, None).await, expected, "{network}/{bits}");
    }
}

#[tokio::test]
async fn the_first_rule_wins_and_its_requests_are_no_evidence() {
    let to_stable = RuleSpec { when: vec![Condition::User(text("alice"))], version: text("v1") };
    let mut world = world(vec![to_stable, rule(&[Condition::Group(text("legal"))])]).await;
    world.apply(|spec| spec.services[0].trial = Some(trial(BUCKETS)));
    assert_eq!(ask(&world, "", Some("alice")).await, "v1");
    assert_eq!(ask(&world, "", Some("bob")).await, "v2");
    let count = || {
        let report = world.gateway.trial_report("chat").unwrap();
        (report.epochs[0].stable.requests, report.epochs[0].canary.requests)
    };
    assert_eq!(count(), (0, 0));
    assert_eq!(ask(&world, "", Some("carol")).await, "v2");
    assert_eq!(count(), (0, 1));
}
