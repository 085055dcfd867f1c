//! Keeps the declared order of fields in the schema, which otherwise sorts them.
//!
//! The alternative, a map that keeps insertion order, is a switch of `serde_json` for the whole program.

use std::fmt;

use schemars::Schema;
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// Where a schema keeps the names of its properties in declared order.
pub(crate) const ORDER: &str = "x-order";

/// Adds [`ORDER`] to the schema of the struct `T`.
pub(crate) fn ordered<T: DeserializeOwned>(schema: &mut Schema) {
    if let Err(Fields(names)) = T::deserialize(FieldsOf) {
        let names = names.iter().map(|name| Value::from(*name)).collect();
        schema.insert(ORDER.to_owned(), Value::Array(names));
    }
}

/// A struct tells its deserializer the names of its fields first; this one stops there.
struct FieldsOf;

#[derive(Debug)]
struct Fields(&'static [&'static str]);

impl<'de> Deserializer<'de> for FieldsOf {
    type Error = Fields;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(fields))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Fields> {
        Err(Fields(&[]))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fields {:?}", self.0)
    }
}

impl std::error::Error for Fields {}

impl Error for Fields {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}
