//! `docs/config.md`, written from the schema.

use std::fmt::Write as _;

use serde_json::Value;

use crate::schema::{Schema, Shape, is_required, meanings, other_than_choices, properties, range};
use crate::units::{self, Unit};

const HEAD: &str = "\
# Configuration

<!-- Generated from crates/config/src/types: UPDATE_DOCS=1 cargo test -p backstop-config -->

One YAML file. The least it needs is an address to listen on and a service with one version:

```yaml
";

const RULES: &str = "\
`backstop check FILE` lists everything that is wrong with a file at once.

- **Unknown keys** are mistakes. A key without a value counts as absent.
- **Durations** are a number and a unit: `200ms`, `5s`, `10m`, `2h`, `7d`. **Percentages** have their sign: `20%`.
- **Environment**: `${NAME}` in a value is replaced by the variable, `${NAME:-default}` by the default if the
  variable is unset or empty; `$${` stands for `${` itself. Numbers may come from the environment too. An unset
  variable is a mistake. Within `{ }` and `[ ]` put such a value in quotes: `{ api_key: \"${KEY}\" }`.
- **Repetition**: anchors, aliases and merge keys (`&a`, `*a`, `<<: *a`) work.
- A file has at most 4 MiB, 100,000 values and 64 levels.
";

pub(crate) const MINIMAL: &str = include_str!("../examples/minimal.yaml");
pub(crate) const FULL: &str = include_str!("../examples/full.yaml");

pub(crate) fn markdown(schema: &Schema) -> String {
    let mut out = format!("{HEAD}{MINIMAL}```\n\n{RULES}\n");
    section(&mut out, schema, schema.root(), "");
    let _ = write!(out, "## Everything\n\n```yaml\n{FULL}```\n");
    out
}

/// A table of an object's keys, then a section for each key that is an object itself.
fn section(out: &mut String, schema: &Schema, object: &Value, path: &str) {
    let object = schema.resolve(object);
    let title = if path.is_empty() { "Top level".to_owned() } else { format!("`{path}`") };
    let _ = write!(out, "## {title}\n\n");
    if let Some(text) = object["description"].as_str().filter(|_| !path.is_empty()) {
        let _ = write!(out, "{}\n\n", one_line(text));
    }
    out.push_str("| Key | Type | Default | Meaning |\n|---|---|---|---|\n");
    for (name, property) in properties(object) {
        let key = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let meaning = one_line(property["description"].as_str().unwrap_or_default());
        let (kind, default) = (kind(schema, property), default(schema, object, name, property));
        let _ = writeln!(out, "| `{key}` | {kind} | {default} | {meaning} |");
    }
    out.push('\n');
    for (name, property) in properties(object) {
        choices(out, schema, name, property);
    }
    for (name, property) in properties(object) {
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match schema.shape(property) {
            Some(Shape::Object(inner)) => section(out, schema, inner, &path),
            Some(Shape::List { items }) if matches!(schema.shape(items), Some(Shape::Object(_))) => {
                section(out, schema, items, &format!("{path}[]"));
            }
            _ => {}
        }
    }
}

/// What the values of an enum mean, where they are described.
fn choices(out: &mut String, schema: &Schema, name: &str, property: &Value) {
    let described: Vec<(&str, &str)> = meanings(schema.resolve(property))
        .into_iter()
        .filter_map(|(choice, meaning)| Some((choice, meaning?)))
        .collect();
    if described.is_empty() {
        return;
    }
    let _ = write!(out, "Values of `{name}`:\n\n");
    for (choice, meaning) in described {
        let _ = writeln!(out, "- `{choice}`: {}", one_line(meaning));
    }
    out.push('\n');
}

fn kind(schema: &Schema, property: &Value) -> String {
    let inner = schema.resolve(property);
    match schema.shape(property) {
        Some(Shape::Object(_)) => "mapping".to_owned(),
        Some(Shape::Map { .. }) => "mapping of names to values".to_owned(),
        Some(Shape::Any) => "any".to_owned(),
        Some(Shape::List { items }) => {
            let what = if let Some(Shape::Object(_)) = schema.shape(items) { "mappings" } else { "texts" };
            let least = if inner["minItems"].as_u64() > Some(0) { ", at least one" } else { "" };
            format!("list of {what}{least}")
        }
        Some(Shape::Choice(choices)) => {
            let other = other_than_choices(property).map(|_| "another name".to_owned());
            choices.iter().map(|choice| format!("`{choice}`")).chain(other).collect::<Vec<_>>().join(", ")
        }
        Some(Shape::Text { format: Some(units::Span::FORMAT) }) => {
            let limit = |key: &str| property[key].as_str().unwrap_or_default();
            format!("duration, `{}` to `{}`", limit("x-min"), limit("x-max"))
        }
        Some(Shape::Text { format: Some(format) }) => units::expected(format).unwrap_or("text").to_owned(),
        Some(Shape::Text { format: None }) => match inner["maxLength"].as_u64() {
            Some(most) => format!("text, 1 to {most} characters"),
            None => "text".to_owned(),
        },
        Some(Shape::Integer) => format!("whole number{}", range(inner)),
        Some(Shape::IntegerOr(word)) => format!("`{word}` or whole number{}", range(inner)),
        Some(Shape::Number) => format!("number{}", range(inner)),
        Some(Shape::NumberOr(_)) => "number or percentage".to_owned(),
        Some(Shape::Boolean) => "`true`, `false`".to_owned(),
        None => String::new(),
    }
}

fn default(schema: &Schema, object: &Value, name: &str, property: &Value) -> String {
    if is_required(object, name) {
        return "**required**".to_owned();
    }
    if let Some(described) = property["x-default"].as_str() {
        return described.to_owned();
    }
    match (schema.shape(property), &property["default"]) {
        (Some(Shape::Object(_)), _) => "as below".to_owned(),
        (_, Value::String(text)) => format!("`{text}`"),
        (_, Value::Array(items)) if items.is_empty() => "none".to_owned(),
        // Written without the fraction that JSON gives to every number of this type.
        (_, Value::Number(number)) => match number.as_f64() {
            Some(float) => format!("`{float}`"),
            None => format!("`{number}`"),
        },
        (_, Value::Null) => "none".to_owned(),
        (_, other) => format!("`{other}`"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
