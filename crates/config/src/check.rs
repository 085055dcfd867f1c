//! Checks a tree against the schema: known keys, types, forms, ranges. All problems in one pass.

use serde_json::{Map, Value};

use crate::measure::SecretText;
use crate::node::{Content, Entry, Kind, Node, Scalar};
use crate::problem::{Problem, alternatives, nearest, shown};
use crate::schema::{Schema, Shape, is_required, other_than_choices, properties};
use crate::source::join;
use crate::units::{self, KeyHash, NotifyUrl, Secret, Span, Unit};

/// The tree as a JSON value, ready to become the types; `None` if anything is wrong, which is then among
/// `problems`.
pub(crate) fn check(root: &Node, schema: &Schema, file: &str, problems: &mut Vec<Problem>) -> Option<Value> {
    Checker { schema, file, problems }.value(root, schema.root(), "")
}

/// The same for a single endpoint.
pub(crate) fn check_endpoint(
    endpoint: &Node,
    schema: &Schema,
    file: &str,
    problems: &mut Vec<Problem>,
) -> Option<Value> {
    Checker { schema, file, problems }.value(endpoint, &schema.root()["$defs"]["endpoint"], "")
}

/// The same for a single version, whose name may be given elsewhere.
pub(crate) fn check_version(
    version: &Node,
    schema: &Schema,
    file: &str,
    problems: &mut Vec<Problem>,
) -> Option<Value> {
    let mut unnamed = schema.root()["$defs"]["version"].clone();
    if let Some(required) = unnamed["required"].as_array_mut() {
        required.retain(|name| name != "name");
    }
    Checker { schema, file, problems }.value(version, &unnamed, "")
}

struct Checker<'a> {
    schema: &'a Schema,
    file: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    fn value(&mut self, node: &Node, schema: &Value, path: &str) -> Option<Value> {
        let root = self.schema;
        match (root.shape(schema)?, &node.content) {
            (_, Content::Broken) => None,
            (Shape::Any, _) => self.any(node, schema, path),
            (Shape::Object(object), Content::Map(entries)) => self.object(node, entries, object, path),
            (Shape::Map { values }, Content::Map(entries)) => {
                self.map(node, entries, root.resolve(schema), values, path)
            }
            (Shape::List { items }, Content::List(list)) => {
                if list.is_empty() && schema["minItems"].as_u64() > Some(0) {
                    self.report(node, schema, path, "is empty");
                    return None;
                }
                let values = list
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.value(item, items, &format!("{path}[{index}]")));
                // Not short-circuiting: each item is to be checked.
                values.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().map(Value::Array)
            }
            (Shape::List { .. }, Content::Scalar(scalar)) if scalar.kind() != Kind::Null => {
                let problem = self.problem(node, schema, path, "is not a list");
                let hint = "write it as a list with one item, within `[ ]`".to_owned();
                self.problems.push(problem.hint(Some(hint)));
                None
            }
            (shape, Content::Scalar(scalar)) => self.scalar(node, scalar, &shape, schema, path),
            (Shape::List { .. }, _) => self.report(node, schema, path, "is not a list"),
            (Shape::Object(_) | Shape::Map { .. }, _) => self.report(node, schema, path, "is not a mapping"),
            _ => self.report(node, schema, path, "is not a single value"),
        }
    }

    fn object(&mut self, node: &Node, entries: &[Entry], object: &Value, path: &str) -> Option<Value> {
        let properties = properties(object);
        let mut complete = true;
        let mut misspelt = Vec::new();
        let mut map = Map::new();
        for entry in entries {
            let Some((name, schema)) = properties.iter().find(|(name, _)| *name == entry.name) else {
                misspelt.extend(self.unknown(entry, &properties, path));
                complete = false;
                continue;
            };
            // A section whose lines are all commented out is an absent section.
            if entry.node.is_null() && !is_required(object, name) {
                continue;
            }
            match self.value(&entry.node, schema, &join(path, name)) {
                Some(value) => drop(map.insert((*name).to_owned(), value)),
                None => complete = false,
            }
        }
        for (name, schema) in properties {
            let given = node.get(name).is_some() || misspelt.contains(&name);
            if is_required(object, name) && !given {
                let message = format!("`{name}` is missing");
                let problem = Problem::new(self.file, node.at, path.to_owned(), message);
                self.problems.push(problem.expected(self.schema.expected(schema)));
                complete = false;
            }
        }
        complete.then_some(Value::Object(map))
    }

    /// Reports an unknown key; gives the key that was probably meant.
    fn unknown<'s>(
        &mut self,
        entry: &Entry,
        properties: &[(&'s str, &'s Value)],
        path: &str,
    ) -> Option<&'s str> {
        let names: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
        let meant = nearest(&entry.name, names.iter().copied());
        let message = format!("unknown key `{}`", shown(&entry.name));
        let problem = Problem::new(self.file, entry.at, join(path, &entry.name), message)
            .value(shown(&entry.name))
            .expected(if let [name] = names[..] {
                format!("`{name}`")
            } else {
                format!("one of {}", alternatives(&names))
            })
            .hint(meant.map(|meant| format!("did you mean `{meant}`?")));
        self.problems.push(problem);
        meant
    }

    fn map(
        &mut self,
        node: &Node,
        entries: &[Entry],
        schema: &Value,
        values: &Value,
        path: &str,
    ) -> Option<Value> {
        let least = schema["minProperties"].as_u64();
        if least.is_some_and(|least| (entries.len() as u64) < least) {
            return self.report(node, schema, path, "is empty");
        }
        let mut map = Map::new();
        let mut complete = true;
        for entry in entries {
            let path = join(path, &entry.name);
            let format = schema["propertyNames"]["format"].as_str().unwrap_or_default();
            if let Err(complaint) = units::check_format(format, &entry.name) {
                let message = format!("`{}` {}", shown(&entry.name), complaint.what);
                let problem = Problem::new(self.file, entry.at, path.clone(), message);
                let hint = complaint.hint.map(str::to_owned);
                self.problems.push(problem.value(shown(&entry.name)).expected(complaint.expected).hint(hint));
                complete = false;
            }
            match self.value(&entry.node, values, &path) {
                Some(value) => drop(map.insert(entry.name.clone(), value)),
                None => complete = false,
            }
        }
        complete.then_some(Value::Object(map))
    }

    /// As JSON has it, whatever it is.
    fn any(&mut self, node: &Node, schema: &Value, path: &str) -> Option<Value> {
        match &node.content {
            Content::Broken => None,
            Content::List(list) => {
                let values = list
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.any(item, schema, &format!("{path}[{index}]")));
                values.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().map(Value::Array)
            }
            Content::Map(entries) => {
                let values = entries.iter().map(|entry| {
                    let value = self.any(&entry.node, schema, &join(path, &entry.name));
                    Some((entry.name.clone(), value?))
                });
                values.collect::<Vec<_>>().into_iter().collect::<Option<Map<_, _>>>().map(Value::Object)
            }
            Content::Scalar(scalar) => match scalar.kind() {
                Kind::Null => Some(Value::Null),
                Kind::Bool(truth) => Some(truth.into()),
                Kind::Integer(number) => Some(number.into()),
                Kind::Float(number) if number.is_finite() => Some(number.into()),
                Kind::Float(_) => self.report(node, schema, path, "is not a number that JSON has"),
                Kind::Text | Kind::Filled => Some(scalar.text.as_str().into()),
            },
        }
    }

    fn scalar(
        &mut self,
        node: &Node,
        scalar: &Scalar,
        shape: &Shape<'_>,
        schema: &Value,
        path: &str,
    ) -> Option<Value> {
        match (shape, scalar.as_text(), scalar.kind()) {
            (_, None, Kind::Null) => {
                let problem = Problem::new(self.file, node.at, path.to_owned(), "has no value".to_owned());
                self.problems.push(problem.expected(self.schema.expected(schema)));
                None
            }
            (Shape::Object(_) | Shape::Map { .. }, ..) => self.report(node, schema, path, "is not a mapping"),
            (Shape::List { .. }, ..) => self.report(node, schema, path, "is not a list"),
            (Shape::Any, ..) => self.any(node, schema, path),
            (Shape::Choice(choices), text, _) => self.choice(node, choices, text, schema, path),
            (Shape::Text { format }, Some(text), _) => self.text(node, text, *format, schema, path),
            (Shape::Text { format }, None, kind) => {
                let number = matches!(kind, Kind::Integer(_) | Kind::Float(_));
                let (what, hint) = match *format {
                    Some(Span::FORMAT) if number => {
                        ("is not a duration", format!("add the unit: `{}s`", node.shown()))
                    }
                    Some(units::Percent::FORMAT) if number => {
                        ("is not a percentage", format!("add the sign: `{}%`", node.shown()))
                    }
                    Some(Secret::FORMAT) => ("is not a text", "put it in quotes".to_owned()),
                    _ => ("is not a text", format!("put it in quotes: `\"{}\"`", node.shown())),
                };
                let problem = self.problem(node, schema, path, what);
                self.problems.push(problem.hint(Some(hint)));
                None
            }
            (Shape::IntegerOr(word), Some(text), _) if text == *word => Some(text.into()),
            (Shape::IntegerOr(word), _, kind) if !matches!(kind, Kind::Integer(_)) => {
                self.report(node, schema, path, &format!("is neither a whole number nor `{word}`"))
            }
            (Shape::Integer | Shape::IntegerOr(_), _, Kind::Integer(number)) => {
                self.in_range(node, number as f64, schema, path).then(|| number.into())
            }
            (Shape::Integer | Shape::IntegerOr(_), ..) => {
                self.report(node, schema, path, "is not a whole number")
            }
            (Shape::Number, _, Kind::Integer(number)) => {
                self.in_range(node, number as f64, schema, path).then(|| number.into())
            }
            (Shape::Number, _, Kind::Float(number)) if number.is_finite() => {
                self.in_range(node, number, schema, path).then(|| number.into())
            }
            (Shape::Number, ..) => self.report(node, schema, path, "is not a number"),
            (Shape::NumberOr(_), _, Kind::Integer(number)) => Some(number.into()),
            (Shape::NumberOr(_), _, Kind::Float(number)) if number.is_finite() => Some(number.into()),
            (Shape::NumberOr(format), Some(text), _) => self.text(node, text, Some(format), schema, path),
            (Shape::NumberOr(_), ..) => self.report(node, schema, path, "is not a number"),
            (Shape::Boolean, _, Kind::Bool(truth)) => Some(truth.into()),
            (Shape::Boolean, Some("true" | "false"), Kind::Filled) => {
                Some((scalar.as_text() == Some("true")).into())
            }
            (Shape::Boolean, ..) => self.report(node, schema, path, "is not a truth value"),
        }
    }

    fn choice(
        &mut self,
        node: &Node,
        choices: &[&str],
        text: Option<&str>,
        schema: &Value,
        path: &str,
    ) -> Option<Value> {
        if let Some(text) = text.filter(|text| choices.contains(text)) {
            return Some(text.into());
        }
        let is_other = |text: &&str| {
            other_than_choices(schema).is_some_and(|format| units::check_format(format, text).is_ok())
        };
        if let Some(text) = text.filter(is_other) {
            return Some(text.into());
        }
        let meant =
            text.and_then(|text| nearest(text, choices.iter().copied())).filter(|_| !node.is_filled());
        let problem = self.problem(node, schema, path, "is not one of the choices");
        self.problems.push(problem.hint(meant.map(|meant| format!("did you mean `{meant}`?"))));
        None
    }

    fn text(
        &mut self,
        node: &Node,
        text: &str,
        format: Option<&str>,
        schema: &Value,
        path: &str,
    ) -> Option<Value> {
        if let Err(complaint) = units::check_format(format.unwrap_or_default(), text) {
            let problem = self.problem(node, schema, path, complaint.what);
            self.problems.push(problem.hint(complaint.hint.map(str::to_owned)));
            return None;
        }
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|least| length < least) {
            return self.report(node, schema, path, "is empty");
        }
        if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
            return self.report(node, schema, path, "is too long");
        }
        if let Ok(span) = Span::parse(text) {
            let limit = |key: &str| schema[key].as_str().and_then(|limit| Span::parse(limit).ok());
            if limit("x-min").is_some_and(|min| span < min) {
                return self.report(node, schema, path, "is too short");
            }
            if limit("x-max").is_some_and(|max| span > max) {
                return self.report(node, schema, path, "is too long");
            }
        }
        Some(text.into())
    }

    fn in_range(&mut self, node: &Node, number: f64, schema: &Value, path: &str) -> bool {
        let below = schema["minimum"].as_f64().is_some_and(|min| number < min)
            || schema["exclusiveMinimum"].as_f64().is_some_and(|min| number <= min);
        let above = schema["maximum"].as_f64().is_some_and(|max| number > max);
        if below || above {
            self.report(node, schema, path, "is out of range");
        }
        !below && !above
    }

    /// Adds a problem that needs no hint. Always `None`, so that it can end a check.
    fn report(&mut self, node: &Node, schema: &Value, path: &str, what: &str) -> Option<Value> {
        let problem = self.problem(node, schema, path, what);
        self.problems.push(problem);
        None
    }

    fn problem(&self, node: &Node, schema: &Value, path: &str, what: &str) -> Problem {
        // Where a hash belongs, the key itself may stand by mistake.
        let secret = [Secret::FORMAT, SecretText::FORMAT, KeyHash::FORMAT, NotifyUrl::FORMAT]
            .iter()
            .any(|it| schema["format"] == *it);
        let shown = if secret && !node.is_reference() { "***".to_owned() } else { node.shown() };
        Problem::new(self.file, node.at, path.to_owned(), format!("`{shown}` {what}"))
            .value(shown)
            .expected(self.schema.expected(schema))
    }
}
