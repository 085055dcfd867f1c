//! Values: what each key takes, and how it is said that it does not.

use super::*;

#[test]
fn values() {
    check_service("timeouts: { connect: 5 }", &["3:26 services[0].timeouts.connect: `5` is not a duration"]);
    check_service("timeouts: { connect: 0s }", &["3:26 services[0].timeouts.connect: `0s` is too short"]);
    check_service("timeouts: { total: 25h }", &["3:24 services[0].timeouts.total: `25h` is too long"]);
    check_service("timeouts: { total: -1s }", &["3:24 services[0].timeouts.total: `-1s` is not a duration"]);
    check_service(
        "timeouts: { total: 1.s.s }",
        &["3:24 services[0].timeouts.total: `1.s.s` is not a duration"],
    );
    check_service(
        "timeouts: { total: 99999999999999999999d }",
        &["3:24 services[0].timeouts.total: `99999999999999999999d` is not a duration"],
    );
    check_service("retry: { attempts: 11 }", &["3:24 services[0].retry.attempts: `11` is out of range"]);
    check_service("retry: { attempts: -1 }", &["3:24 services[0].retry.attempts: `-1` is out of range"]);
    check_service(
        "retry: { attempts: 1.5 }",
        &["3:24 services[0].retry.attempts: `1.5` is not a whole number"],
    );
    check_service(
        "retry: { attempts: two }",
        &["3:24 services[0].retry.attempts: `two` is not a whole number"],
    );
    check_service(
        "retry: { attempts: \"2\" }",
        &["3:24 services[0].retry.attempts: `2` is not a whole number"],
    );
    check_service(
        "outlier: { max_ejected: 10 }",
        &["3:29 services[0].outlier.max_ejected: `10` is not a percentage"],
    );
    check_service(
        "outlier: { max_ejected: 101% }",
        &["3:29 services[0].outlier.max_ejected: `101%` is not a percentage"],
    );
    check_service("balance: peak-ewma", &["3:14 services[0].balance: `peak-ewma` is not one of the choices"]);
    check_service("balance: 1", &["3:14 services[0].balance: `1` is not one of the choices"]);
    check_service("health: { up: 0 }", &["3:19 services[0].health.up: `0` is out of range"]);
    check_service("health: { path: health }", &["3:21 services[0].health.path: `health` is not a path"]);
    check_service(
        "breaker: { failures: 5000000000 }",
        &["3:26 services[0].breaker.failures: `5000000000` is out of range"],
    );
    check_service(
        "stable: \"v 1\"",
        &[
            "3:13 services[0].stable: `v 1` is not a name",
            "3:13 services[0].stable: there is no version `v 1`",
        ],
    );
    check_service(
        "timeouts: { total: !!int x }",
        &["3:24 services[0].timeouts.total: the value does not fit its tag `!!int`"],
    );
    check_service("timeouts: { total: !x 5s }", &["3:24 services[0].timeouts.total: tag `!x` is not known"]);
    check(&MINIMAL.replace("127.0.0.1:8080", "8080"), &["1:9 listen: `8080` is not a text"]);
    check(
        &MINIMAL.replace("127.0.0.1:8080", "\":8080\""),
        &["1:9 listen: `:8080` is not an address to listen on"],
    );
    check(&MINIMAL.replace("127.0.0.1:8080", "localhost:8080"), &[]);
    check(&MINIMAL.replace("127.0.0.1:8080", "\"[::]:0\""), &[]);
    check(&format!("{MINIMAL}store: postgres:x\n"), &["8:8 store: `postgres:x` is not a store"]);
    check(&format!("{MINIMAL}store: \"memory:\"\n"), &[]);
    check(&format!("{MINIMAL}state_dir: \"\"\n"), &["8:12 state_dir: `` is empty"]);
}

#[test]
fn endpoints() {
    #[track_caller]
    fn check_endpoint(endpoint: &str, expected: &[&str]) {
        let text = MINIMAL.replace("- url: http://127.0.0.1:8000", &format!("- {endpoint}"));
        check(&text, expected);
    }
    const PATH: &str = "services[0].versions[0].endpoints[0]";
    let one = |at: &str, rest: &str| format!("{at} {PATH}{rest}");
    check_endpoint("{ url: \"http://h:1\", weight: 0.5, priority: 255 }", &[]);
    for bad in [
        "h:1",
        "ftp://h:1",
        "http://",
        "http://h:0",
        "http://h:x",
        "http://h:99999",
        "http://[h]:1",
        "http://h i:1",
        "http://h:1/a?b",
        "http://h:1/a b",
    ] {
        check_endpoint(
            &format!("{{ url: \"{bad}\" }}"),
            &[&one("7:20", &format!(".url: `{bad}` is not an HTTP URL"))],
        );
    }
    check_endpoint(
        "{ url: \"http://u:pw@h:1\" }",
        &[&one("7:20", ".url: `http://***@h:1` is not an HTTP URL")],
    );
    check_endpoint(
        "{ url: \"http://u:pw@${NOPE}\" }",
        &[&one("7:20", ".url: environment variable `NOPE` is not set")],
    );
    check_endpoint(
        "{ url: \"https://u:pw@h:1\" }",
        &[&one("7:20", ".url: `https://***@h:1` is not an HTTP URL")],
    );
    check_endpoint(
        "{ url: \"http://h:1\", weight: 1001 }",
        &[&one("7:42", ".weight: `1001` is out of range")],
    );
    check_endpoint(
        "{ url: \"http://h:1\", weight: .inf }",
        &[&one("7:42", ".weight: `.inf` is not a number")],
    );
    check_endpoint(
        "{ url: \"http://h:1\", weight: .nan }",
        &[&one("7:42", ".weight: `.nan` is not a number")],
    );
    check_endpoint(
        "{ url: \"http://h:1\", priority: 256 }",
        &[&one("7:44", ".priority: `256` is out of range")],
    );
    check_endpoint("{ url: \"http://h:1\", api_key: 123 }", &[&one("7:43", ".api_key: `***` is not a text")]);
    check_endpoint(
        "{ url: \"http://h:1\", api_key: a b }",
        &[&one("7:43", ".api_key: `***` holds a space or a character that is not ASCII")],
    );
    check_endpoint("http://h:1", &[&one("7:13", ": `http://h:1` is not a mapping")]);
    check_endpoint("{ engine: vllm }", &[&one("7:13", ": `url` is missing")]);
}

#[test]
fn rules_and_checks() {
    check_service(
        "rules: [{ match: { header: {} }, version: v2 }]",
        &["3:32 services[0].rules[0].match.header: `{…}` is empty"],
    );
    check_service(
        "rules: [{ match: { header: { a b: c } }, version: v22 }]",
        &[
            "3:34 services[0].rules[0].match.header.a b: `a b` is not the name of a header",
            "3:55 services[0].rules[0].version: there is no version `v22`",
        ],
    );
    check_service(
        "rules: [{ match: { header: { a: 1 } }, version: v2 }]",
        &["3:37 services[0].rules[0].match.header.a: `1` is not a text"],
    );
    check_service(
        "health: { checks: [{ url: /a, max: 1 }] }",
        &["3:40 services[0].health.checks[0]: there is no value to compare"],
    );
    check_service(
        "health: { checks: [{ url: /a, json: b }] }",
        &["3:41 services[0].health.checks[0]: the value is not compared with anything"],
    );
    check_service(
        "health: { checks: [{ url: /a, json: b, max: 1, equals: c }] }",
        &["3:60 services[0].health.checks[0]: `max` and `equals` exclude each other"],
    );
    check_service(
        "health: { checks: [{ url: \"http://h/a\" }] }",
        &["3:31 services[0].health.checks[0].url: `http://h/a` is not a path"],
    );
    check_service("health: { checks: [{ url: /a?b=c }] }", &[]);
}

#[test]
fn names() {
    let two = |first: &str, second: &str| {
        let service = |names: &str, port: u16| {
            format!(
                "  - {{ {names}, versions: [{{ name: v, endpoints: [{{ url: \"http://h:{port}\" }}] }}] }}\n"
            )
        };
        format!("listen: 127.0.0.1:1\nservices:\n{}{}", service(first, 1), service(second, 2))
    };
    check(&two("name: a", "name: b"), &[]);
    check(&two("name: a", "name: a"), &["4:13 services[1].name: another service is called `a`"]);
    check(
        &two("name: a, models: [m]", "name: b, models: [a, m]"),
        &["4:28 services[1].models[1]: model `m` already belongs to service `a`"],
    );
    check(
        &two("name: a, models: [b]", "name: b"),
        &["4:13 services[1].name: model `b` already belongs to service `a`"],
    );
    check(
        &two("name: a, models: [m, m]", "name: b"),
        &["3:28 services[0].models[1]: model `m` already belongs to service `a`"],
    );
    check_service(
        "versions: []",
        &["3:15 services[0].versions: `[…]` is empty", "5:5 services[0].versions: `versions` is given twice"],
    );
    let versions = |list: &str| {
        format!("listen: 127.0.0.1:1\nservices:\n  - name: s\n    stable: v\n    versions: [{list}]\n")
    };
    let version = |name: &str, urls: &str| format!("{{ name: {name}, endpoints: [{urls}] }}");
    check(
        &versions(
            &[version("v", "{ url: \"http://h:1\" }"), version("v", "{ url: \"http://h:1\" }")].join(","),
        ),
        &["5:72 services[0].versions[1].name: another version is called `v`"],
    );
    check(
        &versions(&version("v", "{ url: \"http://h:1\" }, { url: \"http://H:1/v1\" }")),
        &["5:69 services[0].versions[0].endpoints[1].url: another endpoint is at `http://H:1/v1`"],
    );
    check(
        &versions(&version("w", "{ url: \"http://h:1\" }")),
        &["4:13 services[0].stable: there is no version `v`"],
    );
}

#[test]
fn cache() {
    let s = service("cache: { ttl: 1m, share_across_tenants: true }");
    let cache = s.cache.expect("a cache");
    assert_eq!(
        (cache.max_bytes, cache.ttl, cache.share_across_tenants),
        (256 << 20, Duration::from_secs(60), true)
    );
    check_service(
        "cache: { max_bytes: 10MB, share_across_tenants: sometimes }\nfallback: [{ cached: yes }, { cached: true }]",
        &[
            "3:25 services[0].cache.max_bytes: `10MB` is not a size",
            "3:53 services[0].cache.share_across_tenants: `sometimes` is not a truth value",
            "4:26 services[0].fallback[0].cached: `yes` is not a truth value",
        ],
    );
    check_service(
        "fallback: [{ cached: true }]",
        &["3:26 services[0].fallback[0].cached: the service has no cache to answer from"],
    );
}

#[test]
fn fallbacks() {
    check_service(
        "fallback: [{ when: [failure] }, { service: chat }, { service: chta }, { static: a, max_tokens: 1 }]",
        &[
            "3:16 services[0].fallback[0]: says nothing to do",
            "3:48 services[0].fallback[1].service: `chat` can't stand in for itself",
            "3:67 services[0].fallback[2].service: there is no service `chta`",
            "3:75 services[0].fallback[3]: says several things to do",
        ],
    );
}

#[test]
fn admin() {
    let admin = |listen: &str| format!("{MINIMAL}admin: {{ listen: \"{listen}\" }}\n");
    check(&admin("127.0.0.1:1"), &[]);
    check(&admin("localhost:1"), &[]);
    check(&admin("[::1]:8080"), &[]);
    check(
        &admin("0.0.0.0:9090"),
        &["8:18 admin.listen: `0.0.0.0:9090` can be reached from other machines, and there are no tokens"],
    );
    check(&admin("9090"), &["8:18 admin.listen: `9090` is not an address to listen on"]);
    check(&admin("127.0.0.1:8080"), &["8:18 admin.listen: `listen` and `admin.listen` take the same port"]);
    check(
        &MINIMAL.replace("127.0.0.1:8080", "0.0.0.0:9090"),
        &["1:9 listen: `listen` and `admin.listen` take the same port"],
    );
}
