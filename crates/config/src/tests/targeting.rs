//! Who gets which version, and what versions change in requests.

use backstop_core::table::{Condition, ServiceSpec, UnitSource};
use serde_json::json;

use super::{check, check_service, read, service, with_service};

#[test]
fn rules_ask_for_something_that_there_is() {
    check_service(
        "rules: [{ match: {}, version: v2 }]",
        &["3:22 services[0].rules[0].match: the rule asks for nothing, so every request would match"],
    );
    check_service(
        "rules: [{ match: { header: }, version: v2 }]",
        &["3:22 services[0].rules[0].match: the rule asks for nothing, so every request would match"],
    );
    check_service(
        "rules: [{ match: { cokie: { a: b } }, version: v2 }]",
        &["3:24 services[0].rules[0].match.cokie: unknown key `cokie`"],
    );
    check_service(
        "rules: [{ match: { cookie: { a: b c, \"d e\": f } }, version: v2 }]",
        &[
            "3:37 services[0].rules[0].match.cookie.a: `b c` is not the value of a cookie",
            "3:42 services[0].rules[0].match.cookie.d e: `d e` is not the name of a cookie",
        ],
    );
    check_service(
        "groups: { legal: [alice] }\nrules: [{ match: { group: lega }, version: v2 }]",
        &["4:31 services[0].rules[0].match.group: there is no group `lega`"],
    );
    check_service(
        "rules: [{ match: { group: legal, key: team }, version: v2 }]",
        &[
            "3:31 services[0].rules[0].match.group: there is no group `legal`",
            "3:43 services[0].rules[0].match.key: there is no key `team`",
        ],
    );
    check_service(
        "groups: { \"le gal\": [alice], x: [1, \"\"] }",
        &[
            "3:15 services[0].groups.le gal: `le gal` is not a name",
            "3:38 services[0].groups.x[0]: `1` is not a text",
            "3:41 services[0].groups.x[1]: `` is not a user",
        ],
    );
    let problems =
        read(&with_service("rules: [{ match: { group: lega }, version: v2 }]\ngroups: { legal: [a] }"));
    let hints: Vec<_> = problems.unwrap_err().iter().map(|problem| problem.hint.clone()).collect();
    assert_eq!(hints, [Some("did you mean `legal`?".to_owned())]);
}

#[test]
fn networks() {
    #[track_caller]
    fn good(text: &str, ip: &str, bits: u8) {
        let spec = service(&format!("rules: [{{ match: {{ ip: \"{text}\" }}, version: v2 }}]"));
        assert_eq!(spec.rules[0].when, [Condition::Ip(ip.parse().unwrap(), bits)]);
    }
    good("10.0.0.0/8", "10.0.0.0", 8);
    good("10.1.2.3", "10.1.2.3", 32);
    good("0.0.0.0/0", "0.0.0.0", 0);
    good("2001:db8::/32", "2001:db8::", 32);
    good("::1", "::1", 128);
    good("::ffff:10.0.0.0/104", "10.0.0.0", 8);
    for (text, what) in [
        ("10.1.0.0/8", "has more than its first bits"),
        ("10.0.0.0/33", "is not a network"),
        ("10.0.0.0/", "is not a network"),
        ("10.0.0.0/+8", "is not a network"),
        ("10.0.0/8", "is not a network"),
        ("example.com", "is not a network"),
        ("2001:db8::1/32", "has more than its first bits"),
    ] {
        check_service(
            &format!("rules: [{{ match: {{ ip: \"{text}\" }}, version: v2 }}]"),
            &[&format!("3:28 services[0].rules[0].match.ip: `{text}` {what}")],
        );
    }
}

#[test]
fn what_requests_are_split_by() {
    let sticky = |lines: &str| -> Vec<UnitSource> {
        let ServiceSpec { sticky, .. } = service(&format!("sticky: {lines}"));
        sticky
    };
    assert_eq!(sticky("[key, ip]"), [UnitSource::Key, UnitSource::Ip]);
    assert_eq!(
        sticky("[header:X-Session, cookie:SID]"),
        [UnitSource::Header("x-session".into()), UnitSource::Cookie("SID".into())]
    );
    let wrong = |text: &str, hint: &str| {
        let problems = read(&with_service(&format!("sticky: [{text}]"))).unwrap_err();
        let found: Vec<_> = problems.iter().map(|it| (it.message.clone(), it.hint.clone())).collect();
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        assert_eq!(found, [(format!("`{text}` is nothing to split requests by"), hint)]);
    };
    wrong("user", "did you mean `body:user`?");
    wrong("body:usr", "did you mean `body:user`?");
    wrong("heder:x-a", "did you mean `header:NAME`?");
    wrong("api_key", "did you mean `key`?");
    wrong("requests", "did you mean `request`?");
    wrong("header:a b", "put the name of a header after `header:`");
    wrong("cookie:id=1", "put the name of a cookie after `cookie:`");
    wrong("weather", "");
    check_service("sticky: []", &["3:13 services[0].sticky: `[…]` is empty"]);
    check_service(
        "sticky: [key, request, ip]",
        &["3:28 services[0].sticky[2]: `ip` comes after `request`, which every request has"],
    );
    check_service("sticky: [key, key]", &["3:19 services[0].sticky[1]: this list already has `key`"]);
}

#[test]
fn a_shadow_is_another_version() {
    check_service("shadow: { to: v3, share: 5% }", &["3:19 services[0].shadow.to: there is no version `v3`"]);
    let stable = "services[0].shadow.to: `v1` is the stable version, which answers already";
    check_service("shadow: { to: v1, share: 5% }", &[&format!("3:19 {stable}")]);
    check_service("stable: v2\nshadow: { to: v1, share: 5% }", &[]);
    check_service("shadow: { to: v2 }", &["3:13 services[0].shadow: `share` is missing"]);
    check_service(
        "shadow: { to: v2, share: 0.05 }",
        &["3:30 services[0].shadow.share: `0.05` is not a percentage"],
    );
}

#[test]
fn what_a_version_changes() {
    let text = |request: &str| {
        format!(
            "listen: 127.0.0.1:8080\nservices:\n  - name: chat\n    versions:\n      - name: v1\n        endpoints: \
             [{{ url: \"http://h:1\" }}]\n        {request}\n"
        )
    };
    let one = |rest: &str| format!("7:{rest}");
    let params = "request: { params: { stop: [a, \"\\n\"], seed: 7, top_p: 0.5, x: { y: null, z: true } } }";
    let spec = super::table(&text(params)).services.remove(0).versions.remove(0);
    assert_eq!(
        json!(spec.request.params),
        json!({ "stop": ["a", "\n"], "seed": 7, "top_p": 0.5, "x": { "y": null, "z": true } })
    );
    let path = "services[0].versions[0]";
    check(
        &text("request: { params: { model: m, Stream: true, n: .nan } }"),
        &[
            &one(&format!("30 {path}.request.params.model: `model` is for the client to say")),
            &one(&format!("40 {path}.request.params.Stream: `Stream` is for the client to say")),
            &one(&format!("57 {path}.request.params.n: `.nan` is not a number that JSON has")),
        ],
    );
    check(
        &text("request: { params: { max_tokens: 1, max_completion_tokens: 2 } }"),
        &[&one(&format!(
            "68 {path}.request.params.max_completion_tokens: `max_tokens` and `max_completion_tokens` are the same \
             parameter"
        ))],
    );
    for header in ["Host", "content-length", "authorization", "x_api_key", "transfer-encoding", "cookie"] {
        check(
            &text(&format!("request: {{ headers: {{ {header}: a }} }}")),
            &[&one(&format!(
                "31 {path}.request.headers.{header}: `{header}` is not a header that a version can set"
            ))],
        );
    }
    check(
        &text("request: { headers: { \"a b\": \"c\\nd\" }, system: \"\" }"),
        &[
            &one(&format!("31 {path}.request.headers.a b: `a b` is not the name of a header")),
            &one(&format!("38 {path}.request.headers.a b: `c\\nd` is not the value of a header")),
            &one(&format!("56 {path}.request.system: `` is empty")),
        ],
    );
    check(
        &text("price: { input: -1 }"),
        &[
            &one(&format!("16 {path}.price: `output` is missing")),
            &one(&format!("25 {path}.price.input: `-1` is out of range")),
        ],
    );
}
