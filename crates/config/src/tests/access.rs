//! Who may come in: listeners, tokens, keys.

use backstop_core::table::{KeySpec, Role};

use super::*;
use crate::{ServerTls, digest};

const HASH: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"; // of `test`

fn with(lines: &str) -> String {
    format!("{lines}\n{MINIMAL}")
}

#[test]
fn with_tokens_the_control_api_may_be_reached_from_elsewhere() {
    let text = with(
        "admin: { listen: \"0.0.0.0:9090\", tokens: [{ name: ops, token: \"${SECRET}\", role: operator }] }",
    );
    let config = read(&text).unwrap();
    let [token] = &table(&text).tokens[..] else { panic!("one token") };
    assert_eq!((token.name.as_str(), token.role, token.digest), ("ops", Role::Operator, digest(SECRET)));
    let shown = config.effective(&Intent::default()).to_string() + &format!("{config:?}{token:?}");
    assert!(!shown.contains(SECRET), "{shown}");
    check(
        &with(
            "admin: { tokens: [{ name: a, token: x }, { name: a, token: y, role: admin }, { name: b, token: \"\" }] }",
        ),
        &[
            "1:50 admin.tokens[1].name: another token is called `a`",
            "1:69 admin.tokens[1].role: `admin` is not one of the choices",
            "1:96 admin.tokens[2].token: `***` is empty",
        ],
    );
}

#[test]
fn keys() {
    let text = with(&format!("keys: [{{ name: team-a, hash: \"{HASH}\", tenant: a, services: [chat] }}]"));
    let expected = KeySpec {
        name: "team-a".into(),
        digest: digest("test"),
        tenant: Some("a".into()),
        services: Some(vec!["chat".into()]),
        limits: RateSpec::default(),
    };
    assert_eq!(table(&text).keys, [expected]);
    check(
        &with(&format!(
            "keys:\n- {{ name: a, hash: \"{HASH}\", services: [chta] }}\n- {{ name: a, hash: \"{HASH}\" }}\n- {{ name: b, hash: \"sk-123\" }}"
        )),
        &[
            "2:106 keys[0].services[0]: there is no service `chta`",
            "3:11 keys[1].name: another key is called `a`",
            "3:20 keys[1].hash: another key has the hash `sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`",
            "4:20 keys[2].hash: `***` is not the hash of a key",
        ],
    );
}

#[test]
fn tls() {
    let config = read(&with("tls: { cert: server.pem, key: server.key }")).unwrap();
    assert_eq!(config.tls(), Some(ServerTls { cert: "server.pem".into(), key: "server.key".into() }));
    check(&with("tls: { cert: server.pem }"), &["1:6 tls: `key` is missing"]);
    let s = service("health: { up: 2 }");
    assert_eq!(s.versions[0].endpoints[0].tls.ca, None);
    check(
        &with("").replace("url: http://127.0.0.1:8000", "{ url: \"http://h:1\", tls: { ca: ca.pem } }"),
        &["8:39 services[0].versions[0].endpoints[0].tls: `http://h:1` has no certificate to check"],
    );
}

#[test]
fn regions_tiers_and_dependencies() {
    check_service(
        "regions: { mode: active_passive }",
        &["3:22 services[0].regions.mode: there is no region that serves first"],
    );
    check_service(
        "regions: { order: [eu, us, eu] }",
        &["3:32 services[0].regions.order[2]: this list already has `eu`"],
    );
    for (ramp, problem) in [
        ("[5%, 5%, 100%]", "3:28 services[0].failover.ramp[1]: `5%` is no larger than the step before it"),
        ("[0%, 100%]", "3:24 services[0].failover.ramp[0]: `0%` is no larger than the step before it"),
        ("[5%, 50%]", "3:28 services[0].failover.ramp[1]: `50%` is the last step and not all"),
    ] {
        check_service(&format!("failover: {{ ramp: {ramp} }}"), &[problem]);
    }
    check_service(
        "dependencies: [{ name: db, url: \"tcp://h:5432\" }, { name: db, url: \"tcp://h\" }, { name: x, url: ftp://h }]",
        &[
            "3:63 services[0].dependencies[1].name: another dependency is called `db`",
            "3:72 services[0].dependencies[1].url: `tcp://h` is not a URL to check",
            "3:101 services[0].dependencies[2].url: `ftp://h` is not a URL to check",
        ],
    );
}
