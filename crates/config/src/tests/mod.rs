//! Whole configurations, from text to problems or table.

mod access;
mod intent;
mod overload;

use std::time::Duration;

use backstop_core::table::{
    Across, Addresses, AdmissionLimit, AdmissionSpec, BalancePolicy, BreakerSpec, CacheSpec, CheckSpec,
    DependencyCheck, DependencyEffect, DependencySpec, EndpointSpec, Engine, FailoverSpec, FallbackSpec,
    FallbackStep, HealthSpec, InferenceSpec, OutlierSpec, Protocol, RateSpec, ReadinessSpec, RegionMode,
    RegionSpec, ResumeMode, ResumeSpec, RetrySpec, RuleSpec, Scheme, ServiceSpec, TableSpec, Target,
    Timeouts, TlsSpec, VersionSpec, When,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::reference::{FULL, MINIMAL};
use crate::schema::{Schema, has_stray_limits, properties};
use crate::{Config, Intent, Problems, Store, compile, parse, reference, schema};

/// What is in force by default.
const READINESS: ReadinessSpec = ReadinessSpec { max_memory: Some(0.9), max_cpu: Some(0.9) };

const SECRET: &str = "s3cr3t-value";

fn env(name: &str) -> Option<String> {
    let value = match name {
        "UPSTREAM_KEY" | "SECRET" | "BACKSTOP_ADMIN_TOKEN" => SECRET,
        "GRAFANA_TOKEN" => "another",
        "PORT" => "8000",
        "WEIGHT" => "2.5",
        "ATTEMPTS" => "3",
        "CONNECT" => "250ms",
        "DIGITS" => "12345",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn read(text: &str) -> Result<Config, Problems> {
    parse(text, "backstop.yaml", &env)
}

/// The problems of `text`, one per line as `line:column path: message`, are exactly those in `expected`.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found = match read(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(brief).collect(),
    };
    let start: String = text.chars().take(2000).collect();
    assert_eq!(found, expected, "in\n{start}");
}

fn brief(problem: &crate::Problem) -> String {
    format!("{}:{} {}: {}", problem.line, problem.column, problem.path, problem.message)
}

/// Like `check`, for lines added to the only service of a sound file; they begin in line 3, column 5.
#[track_caller]
fn check_service(lines: &str, expected: &[&str]) {
    check(&with_service(lines), expected);
}

fn with_service(lines: &str) -> String {
    let lines = lines.replace('\n', "\n    ");
    format!(
        "listen: 127.0.0.1:8080\nservices:\n  - {lines}\n    name: chat\n    versions:\n      - name: v1\n        \
         endpoints: [{{ url: \"http://h:1\" }}]\n      - name: v2\n        endpoints: [{{ url: \"http://h:2\" }}]\n"
    )
}

fn table(text: &str) -> TableSpec {
    compile(&read(text).unwrap_or_else(|problems| panic!("{problems}\nin\n{text}")), &Intent::default(), 7)
}

/// The only service of a sound file with these lines.
fn service(lines: &str) -> ServiceSpec {
    table(&with_service(lines)).services.remove(0)
}

fn minimal_service() -> ServiceSpec {
    ServiceSpec {
        name: "chat".into(),
        models: vec!["chat".into()],
        stable: "v1".into(),
        versions: vec![VersionSpec {
            name: "v1".into(),
            endpoints: vec![EndpointSpec::new(target("127.0.0.1", 8000, ""), Engine::OpenAi)],
        }],
        rules: Vec::new(),
        balance: BalancePolicy::PeakEwma,
        regions: RegionSpec::default(),
        dependencies: Vec::new(),
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            first_token: Duration::from_secs(10),
            inter_token: Duration::from_secs(5),
            response: Duration::from_secs(120),
            total: Duration::from_secs(300),
            queue: Duration::from_secs(10),
        },
        retry: RetrySpec {
            attempts: 2,
            backoff: Duration::from_millis(200),
            budget: 0.2,
            retry_after_max: Duration::from_secs(5),
        },
        fallback: Vec::new(),
        cache: None,
        admission: None,
        limits: RateSpec::default(),
        limits_per_user: RateSpec::default(),
        resume: ResumeSpec {
            attempts: 2,
            modes: vec![ResumeMode::Continue, ResumeMode::Replay],
            across: vec![Across::Version, Across::Stable],
        },
        failover: FailoverSpec::default(),
        breaker: BreakerSpec { failures: 5, open: Duration::from_secs(10) },
        outlier: OutlierSpec {
            interval: Duration::from_secs(10),
            ejection: Duration::from_secs(30),
            max_ejected: 0.1,
        },
        health: HealthSpec {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            path: None,
            up: 1,
            down: 3,
            stall: Duration::from_secs(30),
            slow_start: Duration::from_secs(30),
            inference: None,
            checks: Vec::new(),
        },
    }
}

fn target(host: &str, port: u16, base_path: &str) -> Target {
    Target { scheme: Scheme::Http, host: host.into(), port, base_path: base_path.into() }
}

#[test]
fn minimal() {
    let config = read(MINIMAL).unwrap();
    assert_eq!(config.listen().to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin_listen().to_string(), "127.0.0.1:9090");
    assert_eq!(*config.store(), Store::Sqlite("./backstop.db".into()));
    assert_eq!(config.state_dir(), std::path::Path::new("./state"));
    assert_eq!(
        compile(&config, &Intent::default(), 7),
        TableSpec {
            revision: 7,
            services: vec![minimal_service()],
            readiness: READINESS,
            ..TableSpec::default()
        }
    );
}

#[test]
fn full() {
    let local = |port, engine| EndpointSpec::new(target("127.0.0.1", port, ""), engine);
    let first = EndpointSpec { model: Some("smollm2".into()), weight: 2.0, ..local(8101, Engine::LlamaCpp) };
    let second = EndpointSpec {
        target: target("gpu-2", 8000, "/openai"),
        priority: 1,
        api_key: Some(SECRET.into()),
        ..local(0, Engine::OpenAi)
    };
    let json = |path: &str, json: &str, max, equals: Option<&str>| CheckSpec {
        path: path.into(),
        json: Some(json.into()),
        max,
        equals: equals.map(str::to_owned),
    };
    let minimal = minimal_service();
    let gray = vec![
        EndpointSpec { region: Some("eu".into()), protocol: Protocol::Http2, ..local(8102, Engine::Vllm) },
        EndpointSpec {
            target: target("vllm.gray.svc", 8000, ""),
            addresses: Addresses::Each,
            ..local(0, Engine::Vllm)
        },
        EndpointSpec {
            target: Target { scheme: Scheme::Https, ..target("gpu-3", 8443, "") },
            region: Some("us".into()),
            tls: TlsSpec { ca: Some("./ca.pem".into()), server_name: Some("gpu-3.example".into()) },
            ..local(0, Engine::Vllm)
        },
    ];
    let vectors = DependencySpec {
        name: "vectors".into(),
        check: DependencyCheck::Http { target: target("127.0.0.1", 6333, ""), path: "/healthz".into() },
        effect: DependencyEffect::NotReady,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        up: 1,
        down: 3,
    };
    let cache = DependencySpec {
        name: "cache".into(),
        check: DependencyCheck::Tcp { host: "127.0.0.1".into(), port: 6379 },
        effect: DependencyEffect::Degraded,
        ..vectors.clone()
    };
    let fallback = |step, failure| FallbackSpec { step, when: When { failure, overload: true } };
    let expected = ServiceSpec {
        models: vec!["chat".into(), "chat-latest".into()],
        versions: vec![
            VersionSpec { name: "v1".into(), endpoints: vec![first, second] },
            VersionSpec { name: "v2".into(), endpoints: gray },
        ],
        regions: RegionSpec { mode: RegionMode::ActiveActive, order: vec!["eu".into(), "us".into()] },
        dependencies: vec![vectors, cache],
        cache: Some(CacheSpec {
            max_bytes: 256 << 20,
            ttl: Duration::from_secs(600),
            share_across_tenants: false,
        }),
        fallback: vec![
            fallback(FallbackStep::Service("chat-small".into()), true),
            fallback(FallbackStep::MaxTokens(128), false),
            fallback(FallbackStep::Cached, true),
            fallback(FallbackStep::Static("We are busy, please try again.".into()), true),
        ],
        admission: Some(AdmissionSpec { limit: AdmissionLimit::Adaptive { max: 256 }, queue: 512 }),
        limits: RateSpec { requests_per_minute: Some(6000), tokens_per_minute: Some(1_000_000) },
        limits_per_user: RateSpec { requests_per_minute: Some(60), tokens_per_minute: None },
        rules: vec![RuleSpec { header: ("x-gray-release".into(), "v2".into()), version: "v2".into() }],
        health: HealthSpec {
            path: Some("/health".into()),
            inference: Some(InferenceSpec {
                every: Duration::from_secs(60),
                max_latency: Duration::from_secs(10),
            }),
            checks: vec![
                json("/gpu-memory", "used_ratio", Some(0.95), None),
                json("/gpu-status", "status", None, Some("healthy")),
            ],
            ..minimal.health.clone()
        },
        ..minimal
    };
    let table = table(FULL);
    let small = ServiceSpec {
        name: "chat-small".into(),
        models: vec!["chat-small".into()],
        versions: vec![VersionSpec { name: "v1".into(), endpoints: vec![local(8103, Engine::Ollama)] }],
        ..minimal_service()
    };
    assert_eq!(table.services, [expected, small]);
    assert_eq!((table.revision, table.region.as_deref()), (7, Some("eu")));
    assert_eq!(table.dns.servers, ["127.0.0.1:5353".parse().unwrap()]);
}

#[test]
fn values_end_up_in_the_table() {
    let s = service("balance: weighted_round_robin\nretry: { attempts: 0 }\noutlier: { max_ejected: 12.5% }");
    assert_eq!(s.balance, BalancePolicy::WeightedRoundRobin);
    assert_eq!(s.retry, RetrySpec { attempts: 0, ..minimal_service().retry });
    assert_eq!(s.outlier.max_ejected, 0.125);
    let s = service("stable: v2\nrules: [{ match: { header: { X-Gray: \"a b\" } }, version: v1 }]");
    assert_eq!(s.stable, "v2");
    assert_eq!(s.rules, [RuleSpec { header: ("x-gray".into(), "a b".into()), version: "v1".into() }]);
    let s = service("health: { inference: {}, slow_start: 0s, interval: 1.5m }");
    assert_eq!(s.health.inference.unwrap().every, Duration::from_secs(60));
    assert_eq!((s.health.slow_start, s.health.interval), (Duration::ZERO, Duration::from_secs(90)));
}

#[test]
fn urls() {
    #[track_caller]
    fn check(url: &str, host: &str, port: u16, base_path: &str) {
        let text = MINIMAL.replace("http://127.0.0.1:8000", &format!("\"{url}\""));
        assert_eq!(table(&text).services[0].versions[0].endpoints[0].target, target(host, port, base_path));
    }
    check("http://h:8000", "h", 8000, "");
    check("http://h", "h", 80, "");
    check("HTTP://h:8000/", "h", 8000, "");
    check("http://h:8000/v1", "h", 8000, "");
    check("http://h:8000/v1/", "h", 8000, "");
    check("http://h:8000/openai", "h", 8000, "/openai");
    check("http://h:8000/openai/v1//", "h", 8000, "/openai");
    check("http://h:8000/av1", "h", 8000, "/av1");
    check("http://[::1]:8000/a/b", "::1", 8000, "/a/b");
    check("http://h:${PORT}", "h", 8000, "");
}

#[test]
fn ten_mistakes() {
    let text = "\
listen: here
servces_: 1
services:
  - name: chat
    stable: v3
    versions:
      - name: v1
        enpoints: [{ url: \"http://h:1\" }]
      - name: v2
        endpoints:
          - url: ftp://h:2
            weight: 0
          - { url: \"http://h:3\", engine: vlm, api_key: \"${NOPE}\" }
    timeouts: { connect: 5 parsecs }
    retry:
      attempts: 2
      attempts: 3
";
    check(
        text,
        &[
            "1:9 listen: `here` is not an address to listen on",
            "2:1 servces_: unknown key `servces_`",
            "5:13 services[0].stable: there is no version `v3`",
            "8:9 services[0].versions[0].enpoints: unknown key `enpoints`",
            "11:18 services[0].versions[1].endpoints[0].url: `ftp://h:2` is not an HTTP URL",
            "12:21 services[0].versions[1].endpoints[0].weight: `0` is out of range",
            "13:42 services[0].versions[1].endpoints[1].engine: `vlm` is not one of the choices",
            "13:56 services[0].versions[1].endpoints[1].api_key: environment variable `NOPE` is not set",
            "14:26 services[0].timeouts.connect: `5 parsecs` is not a duration",
            "17:7 services[0].retry.attempts: `attempts` is given twice",
        ],
    );
}

#[test]
fn nearest_names() {
    #[track_caller]
    fn check(name: &str, candidates: &[&str], expected: Option<&str>) {
        assert_eq!(crate::problem::nearest(name, candidates.iter().copied()), expected);
    }
    check("enpoints", &["name", "endpoints"], Some("endpoints"));
    check("timeout", &["timeouts", "retry"], Some("timeouts"));
    check("Listen", &["listen"], Some("listen"));
    check("ulr", &["url", "engine"], Some("url"));
    check("v22", &["v1", "v2"], Some("v2"));
    check("v3", &["v1", "v2"], None);
    check("release", &["rules", "retry"], None);
    check(&"x".repeat(1 << 20), &["url"], None);
}

#[test]
fn layout() {
    let problems = read(&with_service("timeouts: { conect: 1s, total: 5 parsecs }")).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "backstop.yaml:3:17: services[0].timeouts.conect: unknown key `conect`\n  \
           expected: one of `connect`, `first_token`, `inter_token`, `response`, `total` or `queue`\n  \
           hint: did you mean `connect`?\n\
         backstop.yaml:3:36: services[0].timeouts.total: `5 parsecs` is not a duration\n  \
           expected: a number with a unit, such as `200ms`, `5s` or `10m`, from `1ms` to `24h`"
    );
    let json = serde_json::to_value(&problems).unwrap();
    assert_eq!(json[1]["path"], "services[0].timeouts.total");
    assert_eq!(json[1]["value"], "5 parsecs");
    assert_eq!(json[1].get("hint"), None);
}

#[test]
fn structure() {
    check("", &["0:0 : the configuration is empty"]);
    check("# nothing\n", &["0:0 : the configuration is empty"]);
    check("hello", &["1:1 : `hello` is not a mapping"]);
    check("[1]", &["1:1 : `[…]` is not a mapping"]);
    check("{}", &["1:1 : `listen` is missing", "1:1 : `services` is missing"]);
    check("listen: 127.0.0.1:1\nservices: []", &["2:11 services: `[…]` is empty"]);
    check("listen: 127.0.0.1:1\nservices:\n", &["2:9 services: has no value"]);
    check(
        "listen: 127.0.0.1:1\nservices: [{}]",
        &["2:12 services[0]: `name` is missing", "2:12 services[0]: `versions` is missing"],
    );
    check("listen: 127.0.0.1:1\nservices: chat", &["2:11 services: `chat` is not a list"]);
    check("listen: 127.0.0.1:1\nservices: { chat: {} }", &["2:11 services: `{…}` is not a list"]);
    check(&format!("{MINIMAL}---\nlisten: x\n"), &["8:1 : a second document begins here"]);
    check(&format!("---\n{MINIMAL}...\n"), &[]);
    check(&format!("\u{feff}{MINIMAL}"), &[]);
    check(&MINIMAL.replace('\n', "\r\n"), &[]);
    check_service("timeouts:", &[]);
    check_service("rules: []\nhealth: {}\nmodels:", &[]);
    check_service("models: []", &["3:13 services[0].models: `[…]` is empty"]);
    check_service("models: chat", &["3:13 services[0].models: `chat` is not a list"]);
    check_service("models: [1]", &["3:14 services[0].models[0]: `1` is not a text"]);
    check_service("models: [\"\"]", &["3:14 services[0].models[0]: `` is empty"]);
    check_service("models: [~]", &["3:14 services[0].models[0]: has no value"]);
    check_service("models: [[a]]", &["3:14 services[0].models[0]: `[…]` is not a single value"]);
    check_service("timeouts: 5s", &["3:15 services[0].timeouts: `5s` is not a mapping"]);
    check_service("release: {}", &["3:5 services[0].release: unknown key `release`"]);
    check_service("1: {}", &["3:5 services[0].1: unknown key `1`"]);
    check_service("[a, b]: c", &["3:5 services[0]: this key is not text"]);
    check_service("{ a: b }: c", &["3:5 services[0]: this key is not text"]);
}

#[test]
fn syntax() {
    #[track_caller]
    fn check(text: &str, at: &str, hint: Option<&str>) {
        let problems = read(text).unwrap_err();
        let problem = problems.iter().next().unwrap();
        assert_eq!(problems.len(), 1, "{problems}");
        assert!(problem.message.starts_with("not valid YAML: "), "{problem}");
        assert_eq!(
            (format!("{}:{}", problem.line, problem.column).as_str(), problem.hint.as_deref()),
            (at, hint)
        );
    }
    check("listen: [1", "1:11", None);
    check("%)\u{89})\u{85}\0", "1:7", None);
    check("listen: [1\n\n", "3:1", None);
    check("a: 1\r\nlisten: [1", "2:11", None);
    check("listen: *nope", "1:9", None);
    check("store: memory:\n", "1:14", Some("a value that ends with a colon needs quotes: `\"memory:\"`"));
    check("a:\n\tb: c\n", "2:2", Some("indent with spaces, not tabs"));
    check("a: { b: ${C} }\n", "1:10", Some("within `{ }` and `[ ]` write `\"${NAME}\"` in quotes"));
}

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
        "rules: [{ match: { cookie: { a: b } }, version: v2 }]",
        &[
            "3:22 services[0].rules[0].match: `header` is missing",
            "3:24 services[0].rules[0].match.cookie: unknown key `cookie`",
        ],
    );
    check_service(
        "rules: [{ match: { header: {} }, version: v2 }]",
        &["3:32 services[0].rules[0].match.header: `{…}` is empty"],
    );
    check_service(
        "rules: [{ match: { header: { a: b, c: d } }, version: v2 }]",
        &["3:32 services[0].rules[0].match.header: `{…}` has more than one key"],
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

#[test]
fn environment() {
    let with = |endpoint: &str| MINIMAL.replace("- url: http://127.0.0.1:8000", &format!("- {endpoint}"));
    let endpoint = |text: &str| table(&with(text)).services[0].versions[0].endpoints[0].clone();
    let found = endpoint("{ url: \"http://h:${PORT}\", weight: \"${WEIGHT}\", api_key: \"${DIGITS}\" }");
    assert_eq!((found.weight, found.api_key.as_deref()), (2.5, Some("12345")));
    assert_eq!(endpoint("{ url: \"http://h:1\", model: \"$${PORT}\" }").model.as_deref(), Some("${PORT}"));
    assert_eq!(endpoint("{ url: \"http://h:1\", model: \"${NOPE:-m}\" }").model.as_deref(), Some("m"));
    let found = service("retry:\n  attempts: ${ATTEMPTS}\ntimeouts:\n  connect: ${CONNECT}");
    assert_eq!((found.retry.attempts, found.timeouts.connect), (3, Duration::from_millis(250)));
    check_service(
        "retry: { attempts: \"${CONNECT}\" }",
        &["3:24 services[0].retry.attempts: `${CONNECT}` is not a whole number"],
    );
    check_service(
        "stable: ${EMPTY}",
        &[
            "3:13 services[0].stable: `${EMPTY}` is not a name",
            "3:13 services[0].stable: there is no version `${EMPTY}`",
        ],
    );
    check_service(
        "stable: x${NOPE}${NEITHER}",
        &[
            "3:13 services[0].stable: environment variable `NOPE` is not set",
            "3:13 services[0].stable: environment variable `NEITHER` is not set",
        ],
    );
    check_service("stable: ${NOPE", &["3:13 services[0].stable: `${` has no closing `}`"]);
    check_service("# ${NOPE}\nstable: v1", &[]);
}

#[test]
fn secrets_stay_hidden() {
    // The secret in the place of every value in turn: whatever is said of it, it is not shown.
    let values: Vec<(usize, &str)> =
        FULL.match_indices(": ").map(|(at, _)| at + 2).map(|at| (at, &FULL[at..])).collect();
    let mut refused = 0;
    for (at, rest) in values {
        let end = at + rest.find([',', '}', '\n']).unwrap();
        let text = format!("{}\"${{SECRET}}\"{}", &FULL[..at], &FULL[end..]);
        match read(&text) {
            Err(problems) => {
                refused += 1;
                let json = serde_json::to_string(&problems).unwrap();
                assert!(!problems.to_string().contains(SECRET) && !json.contains(SECRET), "{problems}");
            }
            Ok(config) => assert!(!format!("{:?}", compile(&config, &Intent::default(), 0)).is_empty()),
        }
    }
    assert!(refused > 20);
    assert!(!format!("{:?}", read(FULL).unwrap()).contains(SECRET));
    // The same for a key, or part of one, in the file itself.
    for key in [
        "\"s3cr3t${\"",
        "\"s3cr3t${NOPE}\"",
        "\"${s3cr3t 1}\"",
        "!!int s3cr3t",
        "[s3cr3t]",
        "\"s3cr3t ä\"",
        "\"s3cr3t ${PORT}\"",
        "\"${EMPTY:-s3cr3t ä}\"",
    ] {
        let problems = read(&FULL.replace("\"${UPSTREAM_KEY}\"", key)).expect_err(key);
        let json = serde_json::to_string(&problems).unwrap();
        assert!(!json.contains("s3cr3t") && problems.iter().all(|it| it.path.ends_with("api_key")), "{json}");
    }
}

#[test]
fn repetition() {
    let s = service("timeouts: &t { connect: 2s }\nhealth: { interval: &i 7s, timeout: *i }");
    assert_eq!(s.health.timeout, Duration::from_secs(7));
    assert_eq!(s.timeouts.connect, Duration::from_secs(2));
    let text = "\
listen: 127.0.0.1:1
services:
  - &base
    name: a
    timeouts: &times { connect: 2s }
    versions: [{ name: v, endpoints: [{ url: \"http://h:1\" }] }]
  - <<: *base
    name: b
    timeouts: { <<: [*times, { total: 9s, connect: 8s }], response: 3s }
";
    let second = table(text).services.remove(1);
    let timeouts = second.timeouts;
    assert_eq!((second.name.as_str(), second.stable.as_str()), ("b", "v"));
    assert_eq!([timeouts.connect, timeouts.total, timeouts.response], [2, 9, 3].map(Duration::from_secs),);
    check_service("timeouts: { <<: 5 }", &["3:21 services[0].timeouts.<<: `5` can't be merged"]);
    check_service(
        "timeouts: &t { <<: *t }",
        &["3:24 services[0].timeouts: this alias stands for something that contains it"],
    );
    check_service(
        "rules: &r [*r]",
        &["3:16 services[0].rules[0]: this alias stands for something that contains it"],
    );
}

#[test]
fn bombs() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let below = format!("*a{}", level - 1);
        laughs += &format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", "));
    }
    check(&laughs, &["5:45 a4[7]: more than 100000 values, aliases counted in full"]);
    let mut merges = "a0: &a0 { k0: 1 }\n".to_owned();
    for level in 1..40_000 {
        merges += &format!("a{level}: &a{level} {{ k{level}: 1, <<: *a{} }}\n", level - 1);
    }
    let problems = read(&merges).unwrap_err();
    assert!(problems.to_string().contains("more than 100000 values"));
    check(&"[".repeat(200), &["1:65 : nested deeper than 64 levels"]);
    check(&"a: {".repeat(200), &["1:256 : nested deeper than 64 levels"]);
    assert_eq!(read(&"[".repeat(1 << 20)).unwrap_err().len(), 1);
    assert_eq!(read(&"a: {".repeat(1 << 18)).unwrap_err().len(), 1);
    assert_eq!(read(&"- ".repeat(1 << 20)).unwrap_err().len(), 1);
    assert_eq!(read(&"[],".repeat(1 << 20)).unwrap_err().len(), 1);
    assert_eq!(read(&" ".repeat((4 << 20) + 1)).unwrap_err().len(), 1);
    assert_eq!(read(&"?".repeat(1 << 20)).unwrap_err().len(), 1);
}

#[test]
fn files() {
    #[track_caller]
    fn check(path: &std::path::Path, expected: &str) {
        let problems = crate::load(path).unwrap_err();
        assert_eq!(problems.to_string(), format!("{}{expected}", path.display()));
    }
    let dir = std::env::temp_dir().join(format!("backstop-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    check(
        &dir.join("none.yaml"),
        ": no such file\n  hint: check the path; it is relative to the working directory",
    );
    check(&dir, ": this is a directory\n  hint: name the file in it");
    std::fs::write(dir.join("latin1.yaml"), b"a: b\nc: \xe4\n").unwrap();
    check(&dir.join("latin1.yaml"), ":2:4: not UTF-8\n  expected: text in UTF-8");
    std::fs::write(dir.join("large.yaml"), vec![b' '; (4 << 20) + 1]).unwrap();
    check(&dir.join("large.yaml"), ": the file is larger than 4 MiB");
    std::fs::write(dir.join("fine.yaml"), MINIMAL).unwrap();
    assert!(crate::load(&dir.join("fine.yaml")).is_ok());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn checker_knows_the_whole_schema() {
    fn visit(schema: &Schema, node: &Value) {
        assert!(!node.as_object().is_some_and(has_stray_limits), "{node}");
        assert!(schema.shape(node).is_some(), "no shape: {node}");
        let inner = schema.resolve(node);
        let object = inner["properties"].as_object();
        if let Some(object) = object {
            assert_eq!(inner["additionalProperties"], false, "{inner}");
            assert_eq!(properties(inner).len(), object.len(), "{inner}");
            for property in object.values() {
                assert!(property["description"].is_string(), "no description: {property}");
                visit(schema, property);
            }
        }
        for key in ["items", "additionalProperties"] {
            if inner[key].is_object() {
                visit(schema, &inner[key]);
            }
        }
        if let Some(format) = inner["format"].as_str().filter(|_| inner["type"] == "string") {
            assert!(crate::units::expected(format).is_some(), "unknown format {format}");
        }
    }
    let schema = Schema::new();
    visit(&schema, schema.root());
}

#[test]
fn schema_is_for_others() {
    let schema = schema();
    assert_eq!(schema["required"], serde_json::json!(["listen", "services"]));
    assert!(!schema.to_string().contains("x-order"));
}

#[test]
fn docs_are_current() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == reference(),
        "docs/config.md is out of date; regenerate it: UPDATE_DOCS=1 cargo test -p backstop-config"
    );
}

/// Pieces that mean something to the reader.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~\\n\\t]{0,12}",
        any::<String>(),
        prop::sample::select(vec![
            "\n",
            "  ",
            "- ",
            ": ",
            "? ",
            "{",
            "}",
            "[",
            "]",
            "&a ",
            "*a",
            "<<: *a",
            "!!int ",
            "!x ",
            "|\n",
            ">\n",
            "\"",
            "'",
            "#",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "${",
            "${PORT}",
            "$${",
            "}",
            "~",
            "null",
            "-1",
            "1e999",
            ".nan",
            "0x",
            "9223372036854775808",
            "\u{feff}",
            "\r",
            "\0",
            "services:",
            "endpoints:",
            "url: http://",
            "timeouts: {connect: ",
            "5s",
            "10%",
            "@",
            "`",
            "\u{85}",
            "\u{2028}",
            ",",
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Whatever the text, there is an answer: a configuration that compiles, or problems with positions.
    #[test]
    fn never_panics(
        base in prop::sample::select(vec!["", MINIMAL, FULL]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, piece()), 1..6),
    ) {
        let mut text: Vec<char> = base.chars().collect();
        for (at, length, piece) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            drop(text.splice(at..end, piece.chars()));
        }
        let text: String = text.into_iter().collect();
        match read(&text) {
            Ok(config) => {
                let table = compile(&config, &Intent::default(), 1);
                prop_assert!(table.services.iter().all(|s| s.versions.iter().any(|v| v.name == s.stable)));
            }
            Err(problems) => {
                prop_assert!(problems.len() > 0);
                prop_assert!(!problems.to_string().contains("fault of Backstop"), "{problems}");
                let lines = text.matches(['\n', '\r']).count() + 2;
                prop_assert!(problems.iter().all(|p| p.line <= lines), "{problems}");
            }
        }
    }
}
