//! The JSON schema of the types, and [`Shape`]: the part of JSON Schema that it uses.

use std::sync::LazyLock;

use serde_json::Value;

use crate::order::ORDER;
use crate::problem::alternatives;
use crate::types::Document;
use crate::units;

/// The schema with the definitions it refers to.
pub(crate) struct Schema {
    root: Value,
}

/// What a schema says a value is.
#[derive(Debug, Clone)]
pub(crate) enum Shape<'s> {
    /// Named keys.
    Object(&'s Value),
    /// Free keys with values of one kind.
    Map {
        values: &'s Value,
    },
    List {
        items: &'s Value,
    },
    /// Whatever JSON has.
    Any,
    Choice(Vec<&'s str>),
    Text {
        format: Option<&'s str>,
    },
    Integer,
    /// A whole number, or this word.
    IntegerOr(&'s str),
    Number,
    /// A number, or a text of this format.
    NumberOr(&'s str),
    Boolean,
}

impl Schema {
    pub(crate) fn new() -> Self {
        Self { root: schemars::schema_for!(Document).to_value() }
    }

    /// One for all readers: to make it takes longer than to check a file against it.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<Schema> = LazyLock::new(Schema::new);
        &SHARED
    }

    pub(crate) fn root(&self) -> &Value {
        &self.root
    }

    /// For others: without the keywords that only we read.
    pub(crate) fn into_public(self) -> Value {
        fn strip(value: &mut Value) {
            match value {
                Value::Object(map) => {
                    map.remove(ORDER);
                    map.values_mut().for_each(strip);
                }
                Value::Array(items) => items.iter_mut().for_each(strip),
                _ => {}
            }
        }
        let mut root = self.root;
        strip(&mut root);
        root
    }

    /// The schema itself instead of a reference to it; an optional value's own schema.
    pub(crate) fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        if let Some(reference) = schema["$ref"].as_str() {
            let pointer = reference.trim_start_matches('#');
            return self.root.pointer(pointer).map_or(&Value::Null, |target| self.resolve(target));
        }
        match schema["anyOf"].as_array().and_then(|any| any.iter().find(|one| one["type"] != "null")) {
            Some(inner) => self.resolve(inner),
            None => schema,
        }
    }

    /// `None` for what the checker does not know; a test makes sure that there is none.
    pub(crate) fn shape<'s>(&'s self, schema: &'s Value) -> Option<Shape<'s>> {
        let schema = self.resolve(schema);
        if *schema == Value::Bool(true) {
            return Some(Shape::Any);
        }
        if let Some(choices) = choices(schema) {
            return Some(Shape::Choice(choices));
        }
        if let Some(kinds) = schema["type"].as_array()
            && ["number", "string"].iter().all(|kind| kinds.iter().any(|it| it == kind))
        {
            return schema["format"].as_str().map(Shape::NumberOr);
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null")?.as_str()?,
            kind => kind.as_str()?,
        };
        Some(match kind {
            "object" if schema["properties"].is_object() => Shape::Object(schema),
            "object" => Shape::Map { values: &schema["additionalProperties"] },
            "array" => Shape::List { items: &schema["items"] },
            "string" => Shape::Text { format: schema["format"].as_str() },
            "integer" => schema["x-word"].as_str().map_or(Shape::Integer, Shape::IntegerOr),
            "number" => Shape::Number,
            "boolean" => Shape::Boolean,
            _ => return None,
        })
    }

    /// What to write, for messages and the reference.
    pub(crate) fn expected(&self, schema: &Value) -> String {
        let own = schema;
        let schema = self.resolve(schema);
        match self.shape(schema) {
            Some(Shape::Object(object)) => format!("a mapping with {}", keys_of(object)),
            Some(Shape::Map { .. }) => "a mapping of names to values".to_owned(),
            Some(Shape::Any) => "any value".to_owned(),
            Some(Shape::List { items }) => format!("a list of {}", self.plural(items)),
            Some(Shape::Choice(choices)) => format!("one of {}", alternatives(&choices)),
            Some(Shape::Text { format }) => {
                let form = format.and_then(units::expected).map_or_else(|| text(schema), str::to_owned);
                match (own["x-min"].as_str(), own["x-max"].as_str()) {
                    (Some(min), Some(max)) => format!("{form}, from `{min}` to `{max}`"),
                    _ => form,
                }
            }
            Some(Shape::Integer) => format!("a whole number{}", range(schema)),
            Some(Shape::IntegerOr(word)) => format!("`{word}` or a whole number{}", range(schema)),
            Some(Shape::Number) => format!("a number{}", range(schema)),
            Some(Shape::NumberOr(format)) => {
                format!("a number, or {}", units::expected(format).unwrap_or("a text"))
            }
            Some(Shape::Boolean) => "`true` or `false`".to_owned(),
            None => "another value".to_owned(),
        }
    }

    fn plural(&self, items: &Value) -> String {
        match self.shape(items) {
            Some(Shape::Object(object)) => format!("mappings, each with {}", keys_of(object)),
            _ => "texts".to_owned(),
        }
    }
}

/// The properties in declared order.
pub(crate) fn properties(object: &Value) -> Vec<(&str, &Value)> {
    let Some(properties) = object["properties"].as_object() else { return Vec::new() };
    let order = object[ORDER].as_array().map(Vec::as_slice).unwrap_or_default();
    order.iter().filter_map(Value::as_str).filter_map(|name| Some((name, properties.get(name)?))).collect()
}

pub(crate) fn is_required(object: &Value, name: &str) -> bool {
    object["required"].as_array().is_some_and(|required| required.iter().any(|one| one == name))
}

/// ` from 1 to 10`
pub(crate) fn range(schema: &Value) -> String {
    let lower = match (&schema["minimum"], &schema["exclusiveMinimum"]) {
        (Value::Number(min), _) => format!(" from {min}"),
        (_, Value::Number(min)) => format!(" above {min}"),
        _ => String::new(),
    };
    let upper = match &schema["maximum"] {
        Value::Number(max) if lower.is_empty() => format!(" up to {max}"),
        Value::Number(max) if lower.starts_with(" above") => format!(" and up to {max}"),
        Value::Number(max) => format!(" to {max}"),
        _ => String::new(),
    };
    lower + &upper
}

/// The values of an enum and what each means.
pub(crate) fn meanings(schema: &Value) -> Vec<(&str, Option<&str>)> {
    let plain = schema["enum"].as_array().into_iter().flatten().filter_map(|one| Some((one.as_str()?, None)));
    let described = schema["oneOf"].as_array().into_iter().flatten().flat_map(|one| {
        let alone = one["const"].as_str().map(|name| (name, one["description"].as_str()));
        let several =
            one["enum"].as_array().into_iter().flatten().filter_map(|one| Some((one.as_str()?, None)));
        alone.into_iter().chain(several)
    });
    plain.chain(described).collect()
}

/// What may stand in the place of one of the choices.
pub(crate) fn other_than_choices(schema: &Value) -> Option<&str> {
    schema["anyOf"].as_array()?.iter().find_map(|one| one["format"].as_str())
}

fn choices(schema: &Value) -> Option<Vec<&str>> {
    let names: Vec<&str> = meanings(schema).into_iter().map(|(name, _)| name).collect();
    (!names.is_empty()).then_some(names)
}

fn keys_of(object: &Value) -> String {
    let properties = properties(object);
    let required: Vec<&str> =
        properties.iter().map(|(name, _)| *name).filter(|name| is_required(object, name)).collect();
    if required.is_empty() {
        let any: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
        alternatives(&any)
    } else {
        alternatives(&required).replace(" or ", " and ")
    }
}

fn text(schema: &Value) -> String {
    match (schema["minLength"].as_u64(), schema["maxLength"].as_u64()) {
        (Some(1), Some(max)) => format!("a text of 1 to {max} characters"),
        (Some(1), None) => "a text that is not empty".to_owned(),
        _ => "a text".to_owned(),
    }
}

/// Whether a schema has limits of its own next to a reference; the checker would overlook them.
#[cfg(test)]
pub(crate) fn has_stray_limits(schema: &serde_json::Map<String, Value>) -> bool {
    const LIMITS: [&str; 6] = ["minimum", "maximum", "minLength", "minItems", "x-min", "minProperties"];
    (schema.contains_key("$ref") || schema.contains_key("anyOf"))
        && LIMITS.iter().any(|k| schema.contains_key(*k))
}
