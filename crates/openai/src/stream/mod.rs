//! What an event of a stream says: one scan that neither builds a tree nor allocates on the usual path.

mod chunk;

use serde::Deserializer as _;

use crate::{Api, Usage};
use chunk::Chunk;

/// The longest transcript that is kept, in bytes; a longer stream can't be resumed.
pub const MAX_TRANSCRIPT: usize = 256 * 1024;

/// The longest first event that is kept, in bytes.
const MAX_FIRST: usize = 4096;

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

    fn mark(&self) -> usize {
        self.text.len()
    }

    fn back_to(&mut self, mark: usize) {
        self.text.truncate(mark);
    }

    fn push(&mut self, piece: &str) {
        if self.overflowed {
            return;
        }
        if self.text.len() + piece.len() > MAX_TRANSCRIPT {
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

/// Reasons for the end of an answer that its reader may not like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reasons {
    /// It became too long.
    pub length: bool,
    /// The engine withheld it, or part of it, for its content.
    pub filtered: bool,
}

impl Reasons {
    /// `finish_reason` of a choice, or `incomplete_details.reason` of a response.
    pub(crate) fn add(&mut self, reason: &str) {
        self.length |= matches!(reason, "length" | "max_output_tokens");
        self.filtered |= reason == "content_filter";
    }
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
    /// A choice ended because it was too long, or for its content.
    pub reasons: Reasons,
    /// Something has come that the transcript does not hold, such as reasoning.
    pub other_output: bool,
    /// The data of the first event, which says what all others must say too; `None` if it is long.
    pub first: Option<Box<str>>,
    /// Events with data so far; how a watcher sees progress. Comments are none.
    pub events: u64,
    /// Pieces of text so far, of all choices.
    pub pieces: u64,
    pub transcript: Transcript,
    /// As last reported; some engines report it with each chunk.
    pub usage: Option<Usage>,
    expected: Expected,
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
            reasons: Reasons::default(),
            other_output: false,
            first: None,
            events: 0,
            pieces: 0,
            usage: None,
            transcript: Transcript::default(),
            expected,
            finished: 0,
            choices: 0,
        }
    }

    /// Without what would be needed to carry the stream on elsewhere: [`Transcript::text`] is `None` from the start.
    #[must_use]
    pub fn without_transcript(mut self) -> Self {
        self.transcript.overflowed = true;
        self
    }

    /// The end was said, or everything that the request asked for has come.
    pub fn is_complete(&self) -> bool {
        let has_usage = self.usage.is_some() || !self.expected.usage;
        self.done || (self.all_finished(self.expected.choices) && has_usage)
    }

    fn all_finished(&self, at_least: u32) -> bool {
        self.finished.count_ones() >= self.choices.max(at_least).clamp(1, 128)
    }

    /// More than the first one has begun, whatever was asked for.
    pub(crate) fn has_several_choices(&self) -> bool {
        self.choices > 1
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
    if state.events == 1 && text.len() <= MAX_FIRST && !state.transcript.overflowed {
        state.first = Some(text.into());
    }
    let sent = state.transcript.mark();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut error = None;
    let chunk = Chunk { state, error: &mut error };
    let read = deserializer
        .deserialize_map(chunk)
        .and_then(|()| deserializer.end())
        .map_err(|error| EventFault::Malformed(error.to_string()))
        .and_then(|()| error.map_or(Ok(()), |message| Err(EventFault::InBand(message))));
    if read.is_err() {
        // The event does not reach the client, so neither does the text in it.
        state.transcript.back_to(sent);
    }
    read
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
                r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#,
                "[DONE]",
            ],
        );
        assert!(result.is_ok() && state.meaningful && state.done && !state.tool_call);
        assert_eq!((state.usage, state.pieces), (Some(Usage { input: 1, output: 2 }), 2));
        assert_eq!(state.transcript.text(), Some("a\néé"));
    }

    #[test]
    fn a_transcript_has_only_what_is_passed_on() {
        let good = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        for bad in [
            r#"{"choices":[{"index":0,"delta":{"content":"b"}}]} trailing"#,
            r#"{"choices":[{"index":0,"delta":{"content":"b"}}],"error":{"message":"boom"}}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"b"}},"#,
        ] {
            let (state, result) = run(Api::Chat, &[good, bad]);
            assert!(result.is_err(), "{bad}");
            assert_eq!((state.transcript.text(), state.first.as_deref()), (Some("a"), Some(good)), "{bad}");
        }
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
    fn why_an_answer_ended() {
        let check = |api: Api, event: &str, length: bool, filtered: bool| {
            let (state, result) = run(api, &[event]);
            assert!(result.is_ok(), "{event}");
            assert_eq!(state.reasons, Reasons { length, filtered }, "{event}");
        };
        let ended = |reason: &str| {
            format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"a"}},"finish_reason":"{reason}"}}]}}"#)
        };
        check(Api::Chat, &ended("stop"), false, false);
        check(Api::Chat, &ended("length"), true, false);
        check(Api::Chat, &ended("content_filter"), false, true);
        let response = |reason: &str| {
            format!(
                r#"{{"response":{{"id":"r","incomplete_details":{{"reason":"{reason}"}}}},"type":"response.incomplete"}}"#
            )
        };
        check(Api::Responses, &response("max_output_tokens"), true, false);
        check(Api::Responses, &response("content_filter"), false, true);
        for other in [r#"{"incomplete_details":null}"#, "7", "null", r#"{"incomplete_details":[1]}"#] {
            let event = format!(r#"{{"type":"response.completed","response":{other}}}"#);
            check(Api::Responses, &event, false, false);
        }
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
        check(r#"{"choices":[],"choices":[]}"#, "given twice");
        check(r#"{"choices":[{"index":0,"delta":{"content":"a","content":"b"}}]}"#, "given twice");
        check(r#"{"error":{"message":"out of memory","code":500}}"#, "out of memory");
        check(r#"{"error":"boom"}"#, "boom");
        let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        assert!(run(Api::Chat, &[end, "[DONE]", "{}"]).1.is_err());
    }

    /// Engines that sort their keys send `delta` before `index`.
    #[test]
    fn transcript_is_of_the_first_choice_whatever_the_order_of_keys() {
        let (state, _) = run(
            Api::Chat,
            &[
                r#"{"choices":[{"delta":{"content":"a"},"index":0},{"delta":{"content":"x"},"index":1}]}"#,
                r#"{"choices":[{"text":"y","index":2},{"index":0,"delta":{"content":"b"}}]}"#,
            ],
        );
        assert_eq!((state.transcript.text(), state.pieces), (Some("ab"), 4));
        assert!(state.other_output, "there is more than that");
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
