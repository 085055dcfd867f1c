use backstop_config::{Intent, Problem, Problems, compile, parse};
use serde_json::Value;

/// In the environment, as text and as number. What is shown of them anywhere is too much.
const SECRET: &str = "zq7-hidden-0451-value";
const NUMBER: &str = "735190462815";
/// Within a key that stands in the file itself.
const LITERAL: &str = "mk9x-literal-key";

/// Any text is a configuration that compiles or has problems that can be found in it, and no secret is ever shown.
pub fn config(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    check(text, &[SECRET, NUMBER]);
    check(&with_key(text), &[SECRET, NUMBER, LITERAL]);
}

/// A file that is sound but for `before`, which stands before [`LITERAL`] in one of the places for secrets.
fn with_key(before: &str) -> String {
    const PLACES: [&str; 3] = ["API_KEY", "TOKEN", "HASH"];
    // What JSON writes is a quoted text of YAML too.
    let key = Value::from(format!("{before}{LITERAL}")).to_string();
    let file = "\
listen: 127.0.0.1:1
admin: { tokens: [{ name: ops, token: TOKEN, role: operator }] }
keys: [{ name: a, hash: HASH }]
services:
  - name: chat
    versions: [{ name: v1, endpoints: [{ url: \"http://127.0.0.1:8000\", api_key: API_KEY }] }]
";
    let file = file.replace(PLACES[before.len() % PLACES.len()], &key);
    let hash = format!("\"sha256:{}\"", "0".repeat(64));
    file.replace("API_KEY", "x").replace("TOKEN", "a-token-that-is-long-enough").replace("HASH", &hash)
}

fn env(name: &str) -> Option<String> {
    let value = match name {
        "SECRET" => SECRET,
        "NUMBER" => NUMBER,
        "PORT" => "8000",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn check(text: &str, secrets: &[&str]) {
    match parse(text, "backstop.yaml", &env) {
        Ok(config) => {
            let intent = Intent::default();
            let table = compile(&config, &intent, 1);
            let shown = format!("{config:?} {table:?} {}", config.effective(&intent));
            assert!(!shown.contains(LITERAL), "a key is shown");
            assert!(!table.services.is_empty());
            for service in &table.services {
                assert!(service.versions.iter().any(|version| version.name == service.stable));
                assert!(service.versions.iter().all(|version| !version.endpoints.is_empty()));
                assert!(
                    service
                        .rules
                        .iter()
                        .all(|rule| service.versions.iter().any(|it| it.name == rule.version))
                );
            }
        }
        Err(problems) => {
            assert!(problems.len() > 0);
            assert!(!problems.to_string().contains("fault of Backstop"), "{problems}");
            problems.iter().for_each(|problem| is_told_well(problem, text));
            hides(&problems, text, secrets);
        }
    }
}

fn is_told_well(problem: &Problem, text: &str) {
    assert_eq!(problem.file, "backstop.yaml");
    for part in
        [Some(&problem.message), problem.expected.as_ref(), problem.hint.as_ref(), problem.value.as_ref()]
    {
        assert!(part.is_none_or(|part| !part.chars().any(char::is_control)), "{problem:?}");
    }
    assert!(!problem.message.is_empty() && !problem.path.chars().any(char::is_control), "{problem:?}");
    if (problem.line, problem.column) == (0, 0) {
        return;
    }
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let line = problem.line.checked_sub(1).and_then(|above| text.split('\n').nth(above));
    let line = line.unwrap_or_else(|| panic!("no such line: {problem:?}"));
    assert!((1..=line.chars().count() + 1).contains(&problem.column), "no such column: {problem:?}");
}

/// Not even a part of a secret is shown, unless the text happens to have it too.
fn hides(problems: &Problems, text: &str, secrets: &[&str]) {
    const PART: usize = 6;
    let shown =
        [problems.to_string(), serde_json::to_string(problems).expect("plain data")].concat().to_lowercase();
    for secret in secrets {
        let parts = secret.as_bytes().windows(PART).map(|part| std::str::from_utf8(part).expect("ASCII"));
        for part in parts {
            let in_text = *secret != LITERAL && text.to_lowercase().contains(part);
            assert!(in_text || !shown.contains(part), "`{part}` is shown: {problems}");
        }
    }
}
