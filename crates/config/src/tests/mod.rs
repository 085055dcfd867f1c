//! Whole configurations, from text to problems or table.

mod access;
mod intent;
mod notify;
mod overload;
mod reading;
mod release;
mod restored;
mod targeting;
mod values;
mod version;

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::table::{
    Across, Addresses, AdmissionLimit, AdmissionSpec, BalancePolicy, BreakerSpec, CacheSpec, CheckSpec,
    Condition, DependencyCheck, DependencyEffect, DependencySpec, EndpointSpec, Engine, FailoverSpec,
    FallbackSpec, FallbackStep, HealthSpec, InferenceSpec, OutlierSpec, PriceSpec, Protocol, RateSpec,
    ReadinessSpec, RegionMode, RegionSpec, ResumeMode, ResumeSpec, RetrySpec, RuleSpec, Scheme, ServiceSpec,
    ShadowSpec, ShapeSpec, TableSpec, Target, Timeouts, TlsSpec, UnitSource, VersionSpec, When,
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
        "HOOK_SECRET" | "HOOK_TOKEN" | "PROMETHEUS_TOKEN" => SECRET,
        "SLACK_URL" => "https://slack.example/T0/B0/s3cr3t-value",
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

fn rule(header: &str, value: &str, version: &str) -> RuleSpec {
    RuleSpec { when: vec![Condition::Header(header.into(), value.into())], version: version.into() }
}

fn minimal_service() -> ServiceSpec {
    ServiceSpec {
        name: "chat".into(),
        models: vec!["chat".into()],
        stable: "v1".into(),
        versions: vec![VersionSpec::new(
            "v1",
            vec![EndpointSpec::new(target("127.0.0.1", 8000, ""), Engine::OpenAi)],
        )],
        rules: Vec::new(),
        groups: BTreeMap::new(),
        sticky: vec![
            UnitSource::Header("x-session-id".into()),
            UnitSource::User,
            UnitSource::Cookie("backstop".into()),
            UnitSource::Request,
        ],
        trial: None,
        shadow: None,
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
        drift: 0,
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
            VersionSpec::new("v1", vec![first, second]),
            VersionSpec {
                request: ShapeSpec {
                    system: Some("You are terse.".into()),
                    params: BTreeMap::from([("temperature".into(), 0.2.into())]),
                    headers: BTreeMap::from([("x-namespace".into(), "gray".into())]),
                },
                price: Some(PriceSpec { input: 0.1, output: 0.3 }),
                ..VersionSpec::new("v2", gray)
            },
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
        drift: 0,
        rules: vec![
            rule("x-gray-release", "v2", "v2"),
            RuleSpec {
                when: vec![Condition::Group("legal".into()), Condition::Ip([10, 0, 0, 0].into(), 8)],
                version: "v1".into(),
            },
            RuleSpec {
                when: vec![
                    Condition::Cookie("beta".into(), "1".into()),
                    Condition::User("alice".into()),
                    Condition::Key("team-a".into()),
                ],
                version: "v2".into(),
            },
        ],
        shadow: Some(ShadowSpec { to: "v2".into(), share: 0.05, compare: true }),
        groups: BTreeMap::from([("legal".into(), vec!["alice".into(), "bob".into()])]),
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
        versions: vec![VersionSpec::new("v1", vec![local(8103, Engine::Ollama)])],
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
    assert_eq!(s.rules, [rule("x-gray", "a b", "v1")]);
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
