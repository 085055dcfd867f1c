//! Reads a chunk straight into the state of its stream: visitors, one per kind of object.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Reasons, StreamState};
use crate::Usage;

/// A top-level object: a chat or text chunk, a responses event or an error.
pub(super) struct Chunk<'s> {
    pub(super) state: &'s mut StreamState,
    pub(super) error: &'s mut Option<String>,
}

impl<'de> Visitor<'de> for Chunk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a chunk object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Seen::default();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            seen.once(key)?;
            match key {
                Key::Choices => map.next_value_seed(Choices { state: self.state })?,
                Key::Error => {
                    let value: serde_json::Value = map.next_value()?;
                    if !value.is_null() {
                        *self.error = Some(error_message(&value));
                    }
                }
                Key::Usage => self.state.usage = map.next_value::<Option<Usage>>()?.or(self.state.usage),
                Key::Response => {
                    if let Some(reason) = incomplete_reason(map.next_value::<&RawValue>()?.get()) {
                        self.state.reasons.add(&reason);
                    }
                }
                Key::Type => map.next_value_seed(EventType { state: self.state, error: self.error })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

fn error_message(value: &serde_json::Value) -> String {
    match value.get("message").unwrap_or(value) {
        serde_json::Value::String(message) => message.clone(),
        other => other.to_string(),
    }
}

/// Why the response that an event carries did not come to its end, if it says so.
fn incomplete_reason(response: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Response<'r> {
        #[serde(borrow)]
        incomplete_details: Option<Details<'r>>,
    }
    #[derive(Deserialize)]
    struct Details<'r> {
        #[serde(borrow)]
        reason: Option<Cow<'r, str>>,
    }
    serde_json::from_str::<Response<'_>>(response).ok()?.incomplete_details?.reason
}

/// `type` of a responses event.
struct EventType<'s> {
    state: &'s mut StreamState,
    error: &'s mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for EventType<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EventType<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event type")
    }

    fn visit_str<E>(self, name: &str) -> Result<(), E> {
        match name {
            "response.completed" | "response.incomplete" => self.state.done = true,
            "response.failed" if !self.state.meaningful => {
                *self.error = Some("the response failed".to_owned())
            }
            "response.failed" => (self.state.done, self.state.failed) = (true, true),
            "error" => *self.error = Some("an `error` event".to_owned()),
            _ => self.state.meaningful |= name.ends_with(".delta"),
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

struct Choices<'s> {
    state: &'s mut StreamState,
}

impl<'de> DeserializeSeed<'de> for Choices<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Choices<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of choices")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq
            .next_element_seed(Object(Choice { state: &mut *self.state, index: 0, finished: false }))?
            .is_some()
        {}
        Ok(())
    }
}

/// Reads an object with a visitor of its own; nothing else will do.
struct Object<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Object<V> {
    type Value = V::Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_map(self.0)
    }
}

struct Choice<'s> {
    state: &'s mut StreamState,
    index: u32,
    finished: bool,
}

impl<'de> Visitor<'de> for Choice<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a choice object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let before = self.state.transcript.mark();
        let mut seen = Seen::default();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            seen.once(key)?;
            match key {
                Key::Index => self.index = map.next_value()?,
                Key::Delta => map.next_value_seed(Delta { state: self.state, index: self.index })?,
                Key::Text => map.next_value_seed(Text { state: self.state, keep: self.index == 0 })?,
                Key::FinishReason => self.finished = map.next_value_seed(Reason(&mut self.state.reasons))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        // Some engines sort their keys: until the index came, the choice was taken for the first.
        if self.index != 0 && self.state.transcript.mark() > before {
            self.state.transcript.back_to(before);
            self.state.other_output = true;
        }
        self.state.choices = self.state.choices.max(self.index.saturating_add(1));
        self.state.finished |= u128::from(self.finished) << self.index.min(127);
        Ok(())
    }
}

/// Whether a value is a string with something in it: some engines write an empty `finish_reason` for none.
struct Reason<'s>(&'s mut Reasons);

impl<'de> DeserializeSeed<'de> for Reason<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Reason<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        self.0.add(text);
        Ok(!text.is_empty())
    }
}

struct Delta<'s> {
    state: &'s mut StreamState,
    index: u32,
}

impl<'de> DeserializeSeed<'de> for Delta<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Delta<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a delta object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Seen::default();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            seen.once(key)?;
            match key {
                Key::Content => map.next_value_seed(Text { state: self.state, keep: self.index == 0 })?,
                Key::Reasoning => map.next_value_seed(Text { state: self.state, keep: false })?,
                Key::ToolCalls => {
                    let calls = map.next_value::<Option<IgnoredAny>>()?.is_some();
                    self.state.tool_call |= calls;
                    self.state.meaningful |= calls;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A piece of text, or null.
struct Text<'s> {
    state: &'s mut StreamState,
    keep: bool,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, piece: &str) -> Result<(), E> {
        self.state.meaningful |= !piece.is_empty();
        self.state.pieces += u64::from(!piece.is_empty());
        if self.keep {
            self.state.transcript.push(piece);
        } else {
            self.state.other_output |= !piece.is_empty();
        }
        Ok(())
    }

    /// Content in parts, as some engines send it: meaningful, but nothing that a transcript could carry on from.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {
            self.state.meaningful = true;
            self.state.transcript.overflowed = true;
        }
        Ok(())
    }
}

/// The keys of one object so far.
#[derive(Default)]
struct Seen(u16);

impl Seen {
    /// Of a key that is given twice, readers take one or the other. Those with several names may come under each.
    fn once<E: serde::de::Error>(&mut self, key: Key) -> Result<(), E> {
        let bit = match key {
            Key::Reasoning | Key::ToolCalls | Key::Unknown => 0,
            key => 1 << key as u16,
        };
        if self.0 & bit != 0 {
            return Err(E::custom("a key is given twice"));
        }
        self.0 |= bit;
        Ok(())
    }
}

/// The keys that matter anywhere in a chunk.
#[derive(Clone, Copy)]
enum Key {
    Choices,
    Error,
    Usage,
    Type,
    Response,
    Index,
    Delta,
    Text,
    FinishReason,
    Content,
    Reasoning,
    ToolCalls,
    Unknown,
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(match key {
            "choices" => Key::Choices,
            "error" => Key::Error,
            "usage" => Key::Usage,
            "type" => Key::Type,
            "response" => Key::Response,
            "index" => Key::Index,
            "delta" => Key::Delta,
            "text" => Key::Text,
            "finish_reason" => Key::FinishReason,
            "content" => Key::Content,
            "reasoning" | "reasoning_content" | "refusal" | "audio" => Key::Reasoning,
            "tool_calls" | "function_call" => Key::ToolCalls,
            _ => Key::Unknown,
        })
    }
}
