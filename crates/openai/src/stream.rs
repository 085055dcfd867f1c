//! What an event of a stream says: one scan that neither builds a tree nor allocates on the usual path.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Api;

/// The longest transcript that is kept, in bytes; a longer stream can't be resumed.
pub const MAX_TRANSCRIPT: usize = 256 * 1024;

/// The text of the first choice as the client has received it.
#[derive(Debug, Default)]
pub struct Transcript {
    text: String,
    overflowed: bool,
}

impl Transcript {
    /// The whole text, or `None` once it grew beyond [`MAX_TRANSCRIPT`].
    pub fn text(&self) -> Option<&str> {
        (!self.overflowed).then_some(self.text.as_str())
    }

    fn push(&mut self, piece: &str) {
        if self.overflowed || self.text.len() + piece.len() > MAX_TRANSCRIPT {
            self.overflowed = true;
            self.text = String::new();
        } else {
            self.text.push_str(piece);
        }
    }
}

/// What is known of a stream after the events so far.
#[derive(Debug, Default)]
pub struct StreamState {
    /// Content, a tool call or reasoning has been seen.
    pub meaningful: bool,
    /// `[DONE]`, or the terminal event of the responses API.
    pub done: bool,
    /// A tool call has begun: the stream can't be continued elsewhere.
    pub tool_call: bool,
    /// The usage of the whole request has been seen.
    pub usage: bool,
    /// Events with data so far; how a watcher sees progress.
    pub events: u64,
    pub transcript: Transcript,
    /// One bit per choice that finished (indices above 127 share the last bit), and the highest index plus one.
    finished: u128,
    choices: u32,
}

impl StreamState {
    /// Every choice has its `finish_reason`, or the end was said outright.
    pub fn is_complete(&self) -> bool {
        self.done || (self.choices > 0 && self.finished.count_ones() >= self.choices.min(128))
    }

    /// Something has come that a client is waiting for: the answer may be committed to.
    pub fn is_committable(&self) -> bool {
        self.meaningful || self.is_complete()
    }
}

/// Why an event must not be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventFault {
    /// Not JSON, or not of the shape of a chunk: what it carried is unknown.
    #[error("the upstream sent a malformed event: {0}")]
    Malformed(String),
    /// An error inside the stream.
    #[error("the upstream reported an error in the stream: {0}")]
    InBand(String),
}

/// Takes the data of one event into `state`.
pub fn scan(api: Api, data: &[u8], state: &mut StreamState) -> Result<(), EventFault> {
    if state.done {
        return Err(EventFault::Malformed("data after the end of the stream".to_owned()));
    }
    let text = std::str::from_utf8(data).map_err(|error| EventFault::Malformed(error.to_string()))?;
    state.events += 1;
    if api == Api::Other {
        // Nothing is known of its events; the first is as meaningful as any, and only its end is its end.
        state.meaningful = true;
        state.done = text == "[DONE]";
        return Ok(());
    }
    if text == "[DONE]" {
        state.done = true;
        return Ok(());
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut error = None;
    let chunk = Chunk { state, error: &mut error };
    deserializer
        .deserialize_map(chunk)
        .and_then(|()| deserializer.end())
        .map_err(|error| EventFault::Malformed(error.to_string()))?;
    error.map_or(Ok(()), |message| Err(EventFault::InBand(message)))
}

/// A top-level object: a chat or text chunk, a responses event or an error.
struct Chunk<'s> {
    state: &'s mut StreamState,
    error: &'s mut Option<String>,
}

impl<'de> Visitor<'de> for Chunk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a chunk object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match key {
                Key::Choices => map.next_value_seed(Choices { state: self.state })?,
                Key::Error => {
                    let value: serde_json::Value = map.next_value()?;
                    if !value.is_null() {
                        *self.error = Some(error_message(&value));
                    }
                }
                Key::Usage => self.state.usage |= map.next_value::<Option<IgnoredAny>>()?.is_some(),
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
            "response.completed" | "response.incomplete" | "response.failed" => self.state.done = true,
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
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match key {
                Key::Index => self.index = map.next_value()?,
                Key::Delta => map.next_value_seed(Delta { state: self.state, index: self.index })?,
                Key::Text => map.next_value_seed(Text { state: self.state, keep: self.index == 0 })?,
                Key::FinishReason => self.finished = map.next_value::<Option<IgnoredAny>>()?.is_some(),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        self.state.choices = self.state.choices.max(self.index.saturating_add(1));
        self.state.finished |= u128::from(self.finished) << self.index.min(127);
        Ok(())
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
        while let Some(key) = map.next_key_seed(KeySeed)? {
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
        if self.keep {
            self.state.transcript.push(piece);
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

/// The keys that matter anywhere in a chunk.
enum Key {
    Choices,
    Error,
    Usage,
    Type,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(api: Api, events: &[&str]) -> (StreamState, Result<(), EventFault>) {
        let mut state = StreamState::default();
        let result = events.iter().try_for_each(|event| scan(api, event.as_bytes(), &mut state));
        (state, result)
    }

    #[test]
    fn a_whole_chat() {
        let (state, result) = run(
            Api::Chat,
            &[
                r#"{"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            ],
        );
        assert!(result.is_ok() && !state.is_committable());
        let (state, result) = run(
            Api::Chat,
            &[
                r#"{"choices":[{"index":0,"delta":{"content":"a\n"}}],"usage":null}"#,
                r#"{"choices":[{"delta":{"content":"é\u00e9"},"index":0,"logprobs":{"content":[]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
                r#"{"choices":[],"usage":{"total_tokens":3}}"#,
                "[DONE]",
            ],
        );
        assert!(result.is_ok() && state.meaningful && state.done && state.usage && !state.tool_call);
        assert_eq!(state.transcript.text(), Some("a\néé"));
    }

    #[test]
    fn every_choice_must_finish() {
        let two = r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}"#;
        let one_done = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}"#;
        assert!(!run(Api::Chat, &[two, one_done]).0.is_complete());
        assert!(run(Api::Chat, &[two, one_done, &one_done.replace(":1", ":0")]).0.is_complete());
    }

    #[test]
    fn what_counts_as_meaningful() {
        let check = |event: &str, meaningful: bool| {
            let (state, result) = run(Api::Chat, &[event]);
            assert_eq!((result, state.meaningful), (Ok(()), meaningful), "{event}");
        };
        check(r#"{"choices":[{"index":0,"delta":{"role":"assistant"}}]}"#, false);
        check(r#"{"choices":[{"index":0,"delta":{"content":null,"tool_calls":null}}]}"#, false);
        check(r#"{"choices":[{"index":0,"delta":null}]}"#, false);
        check(r#"{"choices":[],"usage":{}}"#, false);
        check(r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#, true);
        check(r#"{"choices":[{"index":0,"delta":{"reasoning_content":"x"}}]}"#, true);
        check(r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}"#, true);
        check(r#"{"choices":[{"index":0,"text":"x"}]}"#, true);
        check(r#"{"type":"response.created","response":{"error":null}}"#, false);
        check(r#"{"type":"response.output_text.delta","delta":"x"}"#, true);
    }

    #[test]
    fn faults() {
        let check = |event: &str, expected: &str| {
            let error = run(Api::Chat, &[event]).1.expect_err(event).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "malformed");
        check("{", "malformed");
        check("[]", "malformed");
        check(r#"{"choices":{}}"#, "malformed");
        check(r#"{"choices":[{"index":-1}]}"#, "malformed");
        check(r#"{"choices":[{"index":0,"delta":{"content":5}}]}"#, "malformed");
        check(r#"{"choices":[]} x"#, "malformed");
        check(r#"{"error":{"message":"out of memory","code":500}}"#, "out of memory");
        check(r#"{"error":"boom"}"#, "boom");
        assert!(run(Api::Chat, &["[DONE]", "{}"]).1.is_err());
    }

    #[test]
    fn transcript_is_bounded() {
        let event =
            format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{}"}}}}]}}"#, "x".repeat(100_000));
        let (state, _) = run(Api::Chat, &[&event, &event]);
        assert_eq!(state.transcript.text().map(str::len), Some(200_000));
        let (state, _) = run(Api::Chat, &[&event, &event, &event]);
        assert_eq!(state.transcript.text(), None);
    }

    #[test]
    fn responses_and_unknown_apis_end_in_their_own_way() {
        assert!(run(Api::Responses, &[r#"{"type":"response.completed"}"#]).0.is_complete());
        let (state, result) = run(Api::Other, &["anything"]);
        assert!(result.is_ok() && state.is_committable() && !state.is_complete());
    }
}
