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

/// What a complete answer must have, by its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Choices with a `finish_reason`, ≥ 1.
    pub choices: u32,
    /// A usage chunk.
    pub usage: bool,
}

/// What is known of a stream after the events so far.
#[derive(Debug)]
pub struct StreamState {
    /// Content, a tool call or reasoning has been seen.
    pub meaningful: bool,
    /// `[DONE]`, or the terminal event of the responses API: nothing may follow.
    pub done: bool,
    /// The terminal event said that the engine failed.
    pub failed: bool,
    /// A tool call has begun: the stream can't be continued elsewhere.
    pub tool_call: bool,
    /// Events with data so far; how a watcher sees progress. Comments are none.
    pub events: u64,
    pub transcript: Transcript,
    expected: Expected,
    usage: bool,
    /// One bit per choice that finished (indices above 127 share the last bit), and the highest index plus one.
    finished: u128,
    choices: u32,
}

impl StreamState {
    pub fn new(expected: Expected) -> Self {
        Self {
            meaningful: false,
            done: false,
            failed: false,
            tool_call: false,
            events: 0,
            transcript: Transcript::default(),
            expected,
            usage: false,
            finished: 0,
            choices: 0,
        }
    }

    /// The end was said, or everything that the request asked for has come.
    pub fn is_complete(&self) -> bool {
        let has_usage = self.usage || !self.expected.usage;
        self.done || (self.all_finished(self.expected.choices) && has_usage)
    }

    fn all_finished(&self, at_least: u32) -> bool {
        self.finished.count_ones() >= self.choices.max(at_least).clamp(1, 128)
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
    /// `[DONE]` before every choice had finished.
    #[error("the upstream ended the stream before the answer was complete")]
    Unfinished,
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
        // An engine may give fewer choices than were asked for, but those it began must be whole.
        if api != Api::Responses && !state.all_finished(1) {
            return Err(EventFault::Unfinished);
        }
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
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match key {
                Key::Index => self.index = map.next_value()?,
                Key::Delta => map.next_value_seed(Delta { state: self.state, index: self.index })?,
                Key::Text => map.next_value_seed(Text { state: self.state, keep: self.index == 0 })?,
                Key::FinishReason => self.finished = map.next_value_seed(NonEmpty)?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        self.state.choices = self.state.choices.max(self.index.saturating_add(1));
        self.state.finished |= u128::from(self.finished) << self.index.min(127);
        Ok(())
    }
}

/// Whether a value is a string with something in it: some engines write an empty `finish_reason` for none.
struct NonEmpty;

impl<'de> DeserializeSeed<'de> for NonEmpty {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for NonEmpty {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
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

    const ONE: Expected = Expected { choices: 1, usage: false };

    fn run(api: Api, events: &[&str]) -> (StreamState, Result<(), EventFault>) {
        run_expecting(ONE, api, events)
    }

    fn run_expecting(expected: Expected, api: Api, events: &[&str]) -> (StreamState, Result<(), EventFault>) {
        let mut state = StreamState::new(expected);
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
        assert!(result.is_ok() && state.meaningful && state.done && !state.tool_call);
        assert_eq!(state.transcript.text(), Some("a\néé"));
    }

    #[test]
    fn every_choice_must_finish() {
        let two = r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}"#;
        let one_done = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}"#;
        let other_done = one_done.replace(":1", ":0");
        assert!(!run(Api::Chat, &[two, one_done]).0.is_complete());
        assert!(run(Api::Chat, &[two, one_done, &other_done]).0.is_complete());
        assert_eq!(run(Api::Chat, &[two, one_done, "[DONE]"]).1, Err(EventFault::Unfinished));
        assert_eq!(run(Api::Chat, &["[DONE]"]).1, Err(EventFault::Unfinished));
        // One of two has not even begun; but an engine that says it is done has the last word.
        let expected = Expected { choices: 2, usage: false };
        assert!(!run_expecting(expected, Api::Chat, &[&other_done]).0.is_complete());
        assert!(run_expecting(expected, Api::Chat, &[&other_done, "[DONE]"]).0.is_complete());
    }

    #[test]
    fn an_empty_finish_reason_is_none() {
        let chunk = |finish: &str| {
            format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"a"}},"finish_reason":"{finish}"}}]}}"#)
        };
        assert!(!run(Api::Chat, &[&chunk("")]).0.is_complete());
        assert!(run(Api::Chat, &[&chunk(""), &chunk("stop")]).0.is_complete());
    }

    #[test]
    fn usage_that_was_asked_for_is_waited_for() {
        let expected = Expected { choices: 1, usage: true };
        let end = r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}],"usage":null}"#;
        assert!(!run_expecting(expected, Api::Chat, &[end]).0.is_complete());
        let usage = r#"{"choices":[],"usage":{"total_tokens":3}}"#;
        assert!(run_expecting(expected, Api::Chat, &[end, usage]).0.is_complete());
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
        let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        assert!(run(Api::Chat, &[end, "[DONE]", "{}"]).1.is_err());
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
        let failed = r#"{"type":"response.failed"}"#;
        assert!(run(Api::Responses, &[failed]).1.is_err(), "nothing is lost by another attempt");
        let (state, result) =
            run(Api::Responses, &[r#"{"type":"response.output_text.delta","delta":"x"}"#, failed]);
        assert!(result.is_ok() && state.is_complete() && state.failed);
        let (state, result) = run(Api::Other, &["anything"]);
        assert!(result.is_ok() && state.is_committable() && !state.is_complete());
    }
}
