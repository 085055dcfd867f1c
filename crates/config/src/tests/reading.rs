//! Files as such: layout, syntax, the environment, and what is too much.

use super::*;

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
    check_service("experiment: {}", &["3:5 services[0].experiment: unknown key `experiment`"]);
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
