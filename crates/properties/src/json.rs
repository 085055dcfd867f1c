//! JSON as a tree, by serde_json, with what a tree forgets.

use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

pub(crate) struct Json {
    pub(crate) value: Value,
    /// Keys of the outermost object in the order of the text, those given twice included.
    pub(crate) keys: Vec<String>,
    /// Some object, at any depth, has a key twice.
    pub(crate) has_twins: bool,
}

/// Whether a text is JSON by its grammar; numbers may be too large and escapes may be half a character.
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// `None` also for what is JSON but can't be held as a tree: too deep, or numbers too large.
pub(crate) fn parse(text: &str) -> Option<Json> {
    let (mut keys, mut has_twins) = (Vec::new(), false);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let tree = Tree { depth: 0, keys: &mut keys, has_twins: &mut has_twins };
    let value = tree.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(Json { value, keys, has_twins })
}

struct Tree<'a> {
    depth: usize,
    keys: &'a mut Vec<String>,
    has_twins: &'a mut bool,
}

impl Tree<'_> {
    fn inner(&mut self) -> Tree<'_> {
        Tree { depth: self.depth + 1, keys: self.keys, has_twins: self.has_twins }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.depth == 0 {
                self.keys.push(key.clone());
            }
            let value = map.next_value_seed(self.inner())?;
            *self.has_twins |= entries.insert(key, value).is_some();
        }
        Ok(entries.into())
    }
}
