//! The document of the API against the API, and `docs/api.md` against the document.

use std::fmt::Write as _;

use serde_json::Map;

use super::*;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

fn paths() -> Map<String, Value> {
    let document = crate::openapi();
    assert_eq!(document["openapi"], "3.1.0");
    document["paths"].as_object().unwrap().clone()
}

#[tokio::test]
async fn what_is_documented_is_there_and_nothing_else() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    for (path, operations) in paths() {
        let real = path.replace("{service}", "chat").replace("{name}", "a%2Fb");
        let real = real.replace("{action}", "pause").replace("{id}", "2026").replace("{version}", "v1");
        assert!(!real.contains('{'), "{path}");
        for method in METHODS {
            let headers = ["content-type: application/json"];
            let follow = if path.ends_with("/events") { "?follow=false" } else { "" };
            let reply =
                ask(&router, &method.to_uppercase(), &format!("{real}{follow}"), &headers, "{}").await;
            let documented = operations.get(method).is_some();
            assert_eq!(reply.status == 405, !documented, "{method} {path}: {}", reply.status);
            let unknown = reply.status == 404 && reply.error().1 == "not_found";
            assert!(!unknown, "{method} {path}");
            if let Some(operation) = operations.get(method) {
                assert!(operation["summary"].is_string(), "{method} {path} says what it is for");
                assert!(!operation["responses"].as_object().unwrap().is_empty(), "{method} {path}");
            }
        }
    }
}

/// Every type that the document names is in it.
#[test]
fn the_document_is_complete() {
    let document = crate::openapi();
    let text = document.to_string();
    let mut references = 0;
    for piece in text.split("\"#/components/schemas/").skip(1) {
        let name = piece.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
        references += 1;
    }
    assert!(references > 20, "{references}");
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let state = &document["components"]["schemas"]["EndpointStatus"]["properties"]["duty"];
    assert!(state.to_string().contains("Duty"), "{state}");
}

#[test]
fn docs_api_md_is_generated() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/api.md is out of date: UPDATE_DOCS=1 cargo test -p backstop-controller");
}

const HEAD: &str = "\
# Control API

<!-- Generated from crates/controller/src/api: UPDATE_DOCS=1 cargo test -p backstop-controller -->

At `admin.listen`, JSON unless said otherwise. `GET /api/v1/openapi.json` describes it for programs; every `backstop`
command for a running Backstop is a client of it.

- **Access.** With `admin.tokens`, every request needs `authorization: Bearer TOKEN`: role `viewer` for GET, `operator`
  for everything else (401, 403). Without tokens the listener is a loopback address, everybody on this machine may do
  everything, and requests under another host's name or from another site's page are refused (403 `other_site`).
- **Revisions.** Each accepted change makes a new revision. Answers that show or change what is served carry it as
  `ETag: \"7\"`; a change with `If-Match: \"7\"` is refused with 412 `revision_conflict` if it is no longer that one.
- **Lasting.** Changes of endpoints lie on top of the configuration file and are kept in `state_dir/intent.json`, written
  before they take effect. One whose endpoint has left the file waits for it to return.
- **Errors** are `{\"error\": {\"code\", \"message\", \"hint\"?, \"problems\"?, …}}`; `code` is for programs. Bodies have at most
  4 MiB (413). A change that can't be written to `state_dir` is not made (500 `not_kept`).

```sh
curl -s localhost:9090/api/v1/endpoints
curl -s localhost:9090/api/v1/endpoints/drain -H 'content-type: application/json' -d '{\"url\": \"http://10.0.0.7:8000\"}'
curl -s -X DELETE 'localhost:9090/api/v1/endpoints?url=http://10.0.0.7:8000' -H 'if-match: \"7\"'
curl -sN localhost:9090/api/v1/events
```

";

fn page() -> String {
    let document = crate::openapi();
    let mut out = HEAD.to_owned();
    out.push_str("| Request | What it does | Parameters and body | Answers |\n|---|---|---|---|\n");
    for (path, operations) in paths() {
        for method in METHODS {
            let Some(operation) = operations.get(method) else { continue };
            let text = |key: &str| operation[key].as_str().unwrap_or_default().replace('\n', " ");
            let what = [text("summary"), text("description")].join(". ");
            let _ = writeln!(
                out,
                "| `{} {path}` | {}. | {} | {} |",
                method.to_uppercase(),
                what.trim_end_matches(['.', ' ']),
                takes(&document, operation),
                gives(&document, operation),
            );
        }
    }
    out
}

/// Parameters and keys of the body; those that may be left out with `?`.
fn takes(document: &Value, operation: &Value) -> String {
    let mut all = Vec::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let optional = if parameter["required"] == true { "" } else { "?" };
        let name = parameter["name"].as_str().unwrap();
        all.push(if parameter["in"] == "path" {
            format!("`{{{name}}}`")
        } else {
            format!("`{name}`{optional}")
        });
    }
    let content = operation["requestBody"]["content"].as_object();
    for (kind, content) in content.into_iter().flatten() {
        if kind != "application/json" {
            all.push(format!("body: `{kind}`"));
            continue;
        }
        let schema = resolve(document, &content["schema"]);
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let keys =
            schema["properties"].as_object().into_iter().flatten().map(|(name, _)| {
                format!("`{name}`{}", if required.contains(&name.as_str()) { "" } else { "?" })
            });
        all.push(format!("body: {}", keys.collect::<Vec<_>>().join(", ")));
    }
    all.join("; ")
}

/// Statuses, with the keys of the answer of a success.
fn gives(document: &Value, operation: &Value) -> String {
    let mut all = Vec::new();
    for (status, response) in operation["responses"].as_object().unwrap() {
        let content = response["content"].as_object().into_iter().flatten().next();
        let keys = content.filter(|_| status.starts_with('2')).map(|(kind, content)| {
            let list = content["schema"]["type"] == "array";
            let schema = if list { &content["schema"]["items"] } else { &content["schema"] };
            let mut keys = Vec::new();
            collect(document, schema, &mut keys);
            match (kind.as_str(), list) {
                ("application/json", true) => format!(": list of {}", keys.join(", ")),
                ("application/json", false) if keys.is_empty() => String::new(),
                ("application/json", false) => format!(": {}", keys.join(", ")),
                (other, _) => format!(": `{other}`"),
            }
        });
        all.push(format!("{status}{}", keys.unwrap_or_default()));
    }
    all.join("; ")
}

/// The keys of an object, also where it is made of several.
fn collect(document: &Value, schema: &Value, keys: &mut Vec<String>) {
    let schema = resolve(document, schema);
    for part in schema["allOf"].as_array().into_iter().flatten() {
        collect(document, part, keys);
    }
    keys.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| format!("`{name}`")));
}

fn resolve<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str().and_then(|it| it.strip_prefix('#')) {
        Some(pointer) => document.pointer(pointer).unwrap(),
        None => schema,
    }
}
