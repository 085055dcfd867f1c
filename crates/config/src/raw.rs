//! [`Raw`]: the file as it is written, as JSON: placeholders and defaults are not filled in.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::node::{Content, Kind, Node};
use crate::schema::{Schema, Shape, properties};

/// What stands in place of a key that is written in clear.
pub(crate) const HIDDEN: &str = "***";

/// A file as it is written. Read again with the same environment it means the same. It may hold keys in clear.
#[derive(Clone, PartialEq)]
pub(crate) struct Raw(Arc<Value>);

impl Raw {
    pub(crate) fn of(root: &Node) -> Self {
        Self(Arc::new(written(root)))
    }

    pub(crate) fn services(&self) -> &[Value] {
        self.0["services"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The same with a service in the place of the one that has its name, or at the end.
    pub(crate) fn with_service(mut self, name: &str, definition: Value) -> Self {
        if let Some(services) = Arc::make_mut(&mut self.0)["services"].as_array_mut() {
            match services.iter_mut().find(|service| service["name"] == name) {
                Some(service) => *service = definition,
                None => services.push(definition),
            }
        }
        self
    }

    /// Adds a version to the service at `index`.
    pub(crate) fn push_version(&mut self, index: usize, definition: Value) {
        let service = Arc::make_mut(&mut self.0)["services"].get_mut(index);
        let versions = service.and_then(|service| service.get_mut("versions")?.as_array_mut());
        if let Some(versions) = versions {
            versions.push(definition);
        }
    }

    /// In the form of a file.
    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Raw(…)")
    }
}

/// The definition of a service or an endpoint (`of`) without the keys that are written in clear.
pub(crate) fn hide_keys(definition: &mut Value, of: &str) {
    let schema = Schema::shared();
    hide(definition, &schema.root()["$defs"][of], schema);
}

fn hide(value: &mut Value, of: &Value, schema: &Schema) {
    let of = schema.resolve(of);
    match (schema.shape(of), value) {
        (Some(Shape::Object(object)), Value::Object(map)) => {
            for (name, of) in properties(object) {
                if let Some(value) = map.get_mut(name) {
                    hide(value, of, schema);
                }
            }
        }
        (Some(Shape::Map { values }), Value::Object(map)) => {
            map.values_mut().for_each(|value| hide(value, values, schema));
        }
        (Some(Shape::List { items }), Value::Array(list)) => {
            list.iter_mut().for_each(|value| hide(value, items, schema));
        }
        (Some(Shape::Text { format: Some("secret") }), Value::String(text)) if !is_reference(text) => {
            HIDDEN.clone_into(text);
        }
        _ => {}
    }
}

/// `${NAME}` and nothing else.
pub(crate) fn is_reference(text: &str) -> bool {
    let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| !name.contains(['$', ':', '{', '}']))
}

pub(crate) fn written(node: &Node) -> Value {
    match &node.content {
        Content::List(items) => items.iter().map(|item| written(item)).collect(),
        Content::Map(entries) => {
            let entries = entries.iter().map(|entry| (entry.name.clone(), written(&entry.node)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Content::Scalar(scalar) if node.is_filled() => scalar.written().into(),
        Content::Scalar(scalar) => match scalar.kind() {
            Kind::Null => Value::Null,
            Kind::Bool(truth) => truth.into(),
            Kind::Integer(number) => number.into(),
            Kind::Float(number) => number.into(),
            Kind::Text | Kind::Filled => scalar.written().into(),
        },
        // A file with a problem is not taken.
        Content::Broken => Value::Null,
    }
}
