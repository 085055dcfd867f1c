use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::{Api, sse};

const DONE: &[u8] = b"data: [DONE]\n\n";

/// What must stay the same in all events of a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Head(Map<String, Value>);

impl Head {
    /// From the data of the first event.
    pub(super) fn of(first: Option<&str>) -> Self {
        let event: Option<Map<String, Value>> = first.and_then(|first| serde_json::from_str(first).ok());
        let constant =
            |key: &str| matches!(key, "id" | "object" | "created" | "model" | "system_fingerprint");
        Self(event.unwrap_or_default().into_iter().filter(|(key, _)| constant(key)).collect())
    }

    fn stamp(&self, event: &mut Map<String, Value>) {
        for (key, value) in &self.0 {
            event.insert(key.clone(), value.clone());
        }
    }
}

/// How the new text relates to the old.
#[derive(Debug)]
pub(super) enum Mode {
    /// It goes on from it; `tokens` were in the old part.
    Continue { tokens: u64, stops: StopGuard },
    /// It begins anew: only what follows `text` is new, of which so many bytes have come again.
    Replay { text: String, matched: usize },
}

/// The new answer is not a continuation of the old one, or not one that can be rewritten as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another attempt answered with another text")]
pub struct Diverged;

/// What the client is to get for some events of the new attempt.
#[derive(Debug, PartialEq)]
pub enum Spliced {
    Events(Bytes),
    /// These are the last ones, whatever else the engine has to say.
    Finished(Bytes),
}

/// Rewrites the events of a further attempt so that they look like the rest of the first one's.
#[derive(Debug)]
pub struct Splice {
    api: Api,
    head: Head,
    mode: Mode,
}

impl Splice {
    pub(super) fn new(api: Api, head: Head, mode: Mode) -> Self {
        Self { api, head, mode }
    }

    /// Whether all that the client has already has come again, so that what follows is new.
    pub fn has_caught_up(&self) -> bool {
        match &self.mode {
            Mode::Continue { .. } => true,
            Mode::Replay { text, matched } => *matched == text.len(),
        }
    }

    /// Takes whole, validated events.
    pub fn events(&mut self, block: &[u8]) -> Result<Spliced, Diverged> {
        let mut out = Vec::with_capacity(block.len());
        for event in sse::events(block) {
            let Some(data) = &event.data else { continue };
            if data.as_ref() == b"[DONE]" {
                self.end_of_text(&mut out)?;
                out.extend_from_slice(DONE);
                continue;
            }
            // The scan takes numbers and depths that a tree can't hold: better no rest than one with a gap.
            let mut chunk: Map<String, Value> = serde_json::from_slice(data).map_err(|_| Diverged)?;
            if self.chunk(&mut chunk, &mut out)? {
                out.extend_from_slice(&finish_events(self.api, &self.head, "stop"));
                return Ok(Spliced::Finished(out.into()));
            }
        }
        Ok(Spliced::Events(out.into()))
    }

    /// `true` if the answer is complete with what is in `out`.
    fn chunk(&mut self, chunk: &mut Map<String, Value>, out: &mut Vec<u8>) -> Result<bool, Diverged> {
        self.head.stamp(chunk);
        let mut says_something = false;
        if let Mode::Continue { tokens, .. } = &self.mode
            && let Some(usage) = chunk.get_mut("usage").filter(|usage| usage.is_object())
        {
            shift(usage, *tokens);
        }
        says_something |= chunk.get("usage").is_some_and(Value::is_object);
        let choices = chunk.get_mut("choices").and_then(Value::as_array_mut).map(Vec::as_mut_slice);
        if let Some([_, _, ..]) = choices {
            return Err(Diverged);
        }
        if let Some([choice]) = choices {
            // There is only one to be carried on.
            if choice.get("index").is_some_and(|index| *index != 0) {
                return Err(Diverged);
            }
            let finishes = choice
                .get("finish_reason")
                .is_some_and(|reason| reason.as_str().is_some_and(|it| !it.is_empty()));
            if finishes {
                self.end_of_text(out)?;
            }
            says_something |= finishes;
            let piece = take_piece(self.api, choice, !self.has_caught_up())?;
            let piece = match &mut self.mode {
                Mode::Replay { text, matched } => again(text, matched, piece)?,
                Mode::Continue { stops, .. } => match stops.take(piece) {
                    Guarded::Text(text) => text,
                    Guarded::Stop => return Ok(true),
                },
            };
            says_something |= !piece.is_empty() || has_other_output(choice);
            put_piece(self.api, choice, piece);
            if finishes && !self.has_caught_up() {
                return Err(Diverged);
            }
        }
        if says_something {
            put_event(chunk, out);
        }
        Ok(false)
    }

    /// What the stop guard still holds comes before the end.
    fn end_of_text(&mut self, out: &mut Vec<u8>) -> Result<(), Diverged> {
        let Mode::Continue { stops, .. } = &mut self.mode else { return Ok(()) };
        let held = stops.release();
        if !held.is_empty() {
            let mut chunk = Map::new();
            self.head.stamp(&mut chunk);
            let mut choice = json!({ "index": 0, "finish_reason": null });
            put_piece(self.api, &mut choice, held);
            chunk.insert("choices".to_owned(), json!([choice]));
            put_event(&chunk, out);
        }
        Ok(())
    }
}

/// The text of a chunk, taken out of it together with the role, which clients have been told already. While the old text
/// is being repeated, output of another kind would be lost.
fn take_piece(api: Api, choice: &mut Value, repeating: bool) -> Result<String, Diverged> {
    let taken = match api {
        Api::Chat => {
            if repeating && has_other_output(choice) {
                return Err(Diverged);
            }
            let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) else {
                return Ok(String::new());
            };
            delta.remove("role");
            delta.remove("content")
        }
        _ => choice.as_object_mut().and_then(|choice| choice.remove("text")),
    };
    Ok(match taken {
        Some(Value::String(piece)) => piece,
        _ => String::new(),
    })
}

fn put_piece(api: Api, choice: &mut Value, piece: String) {
    match api {
        Api::Chat if piece.is_empty() => {
            if !choice["delta"].is_object() {
                choice["delta"] = json!({});
            }
        }
        Api::Chat => choice["delta"]["content"] = piece.into(),
        _ => choice["text"] = piece.into(),
    }
}

fn has_other_output(choice: &Value) -> bool {
    let given = |key: &str| choice["delta"].get(key).is_some_and(|value| !value.is_null() && value != "");
    ["tool_calls", "function_call", "reasoning", "reasoning_content", "refusal", "audio"]
        .into_iter()
        .any(given)
}

/// What of `piece` is beyond the old text.
fn again(text: &str, matched: &mut usize, piece: String) -> Result<String, Diverged> {
    let left = &text.as_bytes()[*matched..];
    let common = left.len().min(piece.len());
    if left[..common] != piece.as_bytes()[..common] {
        return Err(Diverged);
    }
    *matched += common;
    // Both begin at the same place, so a character that the old text has whole is not cut.
    piece.get(common..).map(str::to_owned).ok_or(Diverged)
}

/// The old text was part of the prompt for the new attempt, and part of the answer for the client.
fn shift(usage: &mut Value, tokens: u64) {
    let count = |usage: &Value, key: &str| usage[key].as_u64();
    if let Some(prompt) = count(usage, "prompt_tokens") {
        usage["prompt_tokens"] = prompt.saturating_sub(tokens).into();
    }
    if let Some(completion) = count(usage, "completion_tokens") {
        usage["completion_tokens"] = completion.saturating_add(tokens).into();
    }
    if let (Some(prompt), Some(completion)) =
        (count(usage, "prompt_tokens"), count(usage, "completion_tokens"))
    {
        usage["total_tokens"] = prompt.saturating_add(completion).into();
    }
}

/// Events that end an answer whose text is complete.
pub(super) fn finish_events(api: Api, head: &Head, reason: &str) -> Bytes {
    let mut chunk = Map::new();
    head.stamp(&mut chunk);
    let mut choice = json!({ "index": 0, "finish_reason": reason });
    put_piece(api, &mut choice, String::new());
    chunk.insert("choices".to_owned(), json!([choice]));
    let mut out = Vec::new();
    put_event(&chunk, &mut out);
    out.extend_from_slice(DONE);
    out.into()
}

fn put_event(chunk: &Map<String, Value>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    // Writing JSON that was read or made as JSON can't fail.
    let _ = serde_json::to_writer(&mut *out, chunk);
    out.extend_from_slice(b"\n\n");
}

/// Looks for stop strings that begin in the old text and end in the new: no engine sees both parts as its own.
#[derive(Debug, Default)]
pub(super) struct StopGuard {
    stops: Vec<String>,
    /// The end of the old text, as far as a stop string could begin in it.
    tail: String,
    held: String,
}

enum Guarded {
    Text(String),
    Stop,
}

impl StopGuard {
    pub(super) fn new(stops: &[String], text: &str) -> Self {
        let may_begin = |start: usize| {
            stops.iter().any(|stop| stop.len() > text.len() - start && stop.starts_with(&text[start..]))
        };
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = text.len().saturating_sub(longest.saturating_sub(1));
        let starts = text.char_indices().map(|(at, _)| at).filter(|at| *at >= earliest);
        let tail = starts.into_iter().find(|at| may_begin(*at)).map(|at| text[at..].to_owned());
        tail.map_or_else(Self::default, |tail| Self { stops: stops.to_vec(), tail, held: String::new() })
    }

    /// Holds text back for as long as it may complete a stop string.
    fn take(&mut self, piece: String) -> Guarded {
        if self.tail.is_empty() {
            return Guarded::Text(piece);
        }
        self.held.push_str(&piece);
        let joined = format!("{}{}", self.tail, self.held);
        let starts: Vec<usize> = self.tail.char_indices().map(|(at, _)| at).collect();
        let complete = |at: &usize| self.stops.iter().any(|stop| joined[*at..].starts_with(stop.as_str()));
        if starts.iter().any(complete) {
            return Guarded::Stop;
        }
        let open = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&joined[*at..]));
        if starts.iter().any(open) { Guarded::Text(String::new()) } else { Guarded::Text(self.release()) }
    }

    /// The text that was held back; there is nothing to wait for any more.
    fn release(&mut self) -> String {
        self.tail.clear();
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str =
        r#"{"id":"c-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[]}"#;

    fn event(value: &Value) -> String {
        format!("data: {value}\n\n")
    }

    fn chat(piece: &str) -> String {
        event(
            &json!({ "id": "c-2", "created": 9, "model": "other", "choices": [{ "index": 0, "delta": { "content": piece } }] }),
        )
    }

    fn end() -> String {
        event(&json!({ "id": "c-2", "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] }))
    }

    fn splice(mode: Mode) -> Splice {
        Splice::new(Api::Chat, Head::of(Some(FIRST)), mode)
    }

    fn after(tokens: u64, text: &str, stops: &[&str]) -> Splice {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        splice(Mode::Continue { tokens, stops: StopGuard::new(&stops, text) })
    }

    fn anew(text: &str) -> Splice {
        splice(Mode::Replay { text: text.to_owned(), matched: 0 })
    }

    /// Text, last finish reason and whether `[DONE]` was said, of what a client gets; ids must be the first one's.
    fn read(bytes: &[u8]) -> (String, String, bool) {
        let (mut text, mut reason, mut done) = (String::new(), String::new(), false);
        for event in sse::events(bytes) {
            let data = event.data.expect("data");
            if data.as_ref() == b"[DONE]" {
                done = true;
                continue;
            }
            let chunk: Value = serde_json::from_slice(&data).expect("JSON");
            assert_eq!(
                (&chunk["id"], &chunk["created"], &chunk["model"]),
                (&"c-1".into(), &7.into(), &"m".into())
            );
            let choice = &chunk["choices"][0];
            assert!(choice["delta"].get("role").is_none(), "the role was said before: {chunk}");
            text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        }
        (text, reason, done)
    }

    #[track_caller]
    fn check(mut splice: Splice, blocks: &[String], expected: Result<(&str, &str, bool), Diverged>) {
        let mut all = Vec::new();
        let mut result = Ok(());
        for block in blocks {
            match splice.events(block.as_bytes()) {
                Ok(Spliced::Events(bytes)) => all.extend_from_slice(&bytes),
                Ok(Spliced::Finished(bytes)) => {
                    all.extend_from_slice(&bytes);
                    break;
                }
                Err(diverged) => {
                    result = Err(diverged);
                    break;
                }
            }
        }
        let (text, reason, done) = read(&all);
        assert_eq!(result.map(|()| (text.as_str(), reason.as_str(), done)), expected);
    }

    #[test]
    fn a_continuation_looks_like_the_rest() {
        let role = event(
            &json!({ "id": "c-2", "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] }),
        );
        let done = "data: [DONE]\n\n".to_owned();
        check(
            after(2, "ab", &[]),
            &[role, chat("c"), ": ping\n\n".to_owned(), chat("d") + &end(), done],
            Ok(("cd", "stop", true)),
        );
    }

    #[test]
    fn a_replay_goes_on_where_it_leaves_the_old_text() {
        check(anew("abc"), &[chat("ab"), chat("cd"), chat("e"), end()], Ok(("de", "stop", false)));
        check(anew("abc"), &[chat("abc"), end()], Ok(("", "stop", false)));
        check(anew("aé"), &[chat("a"), chat("éü"), end()], Ok(("ü", "stop", false)));
        check(anew("abc"), &[chat("ab"), chat("x")], Err(Diverged));
        check(anew("abc"), &[chat("ab"), end()], Err(Diverged));
        let tool =
            event(&json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [{ "index": 0 }] } }] }));
        check(anew("abc"), &[chat("a"), tool], Err(Diverged));
    }

    #[test]
    fn stop_strings_may_span_the_splice() {
        check(after(1, "xEN", &["END"]), &[chat("D more"), end()], Ok(("", "stop", true)));
        check(after(1, "xE", &["END"]), &[chat("N"), chat("D"), chat("more")], Ok(("", "stop", true)));
        check(after(1, "xE", &["END"]), &[chat("N"), chat("E more"), end()], Ok(("NE more", "stop", false)));
        check(after(1, "xE", &["END"]), &[chat("N"), end()], Ok(("N", "stop", false)));
        check(after(1, "x", &["END"]), &[chat("END?")], Ok(("END?", "", false)));
        check(after(1, "é", &["éé", ""]), &[chat("é")], Ok(("", "stop", true)));
    }

    #[test]
    fn usage_is_that_of_the_whole_answer() {
        let usage = |prompt: u64, completion: u64| json!({ "id": "c-2", "choices": [], "usage": { "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion } });
        let check = |mut splice: Splice, expected: [u64; 2]| {
            let Ok(Spliced::Events(bytes)) = splice.events(event(&usage(10, 5)).as_bytes()) else {
                panic!("events")
            };
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            let chunk: Value = serde_json::from_str(text.trim().trim_start_matches("data: ")).expect("JSON");
            let expected = usage(expected[0], expected[1]);
            assert_eq!(chunk["usage"], expected["usage"]);
        };
        check(after(3, "abc", &[]), [7, 8]);
        check(anew(""), [10, 5]);
    }

    /// The scan skips what it has no use for; here all of it must be read to be written again.
    #[test]
    fn what_can_not_be_rewritten_is_not_dropped() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for odd in ["1e999", "\"\\ud800\"", &deep] {
            let event = format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"c\"}}}}],\"odd\":{odd}}}\n\n"
            );
            check(after(1, "ab", &[]), &[event, chat("d")], Err(Diverged));
        }
    }

    #[test]
    fn other_choices_are_not_the_rest() {
        let two = json!([{ "index": 0, "delta": { "content": "a" } }, { "index": 1, "delta": {} }]);
        let other = json!([{ "index": 1, "delta": { "content": "a" } }]);
        for choices in [two, other] {
            check(after(1, "x", &[]), &[event(&json!({ "choices": choices }))], Err(Diverged));
            check(anew("a"), &[event(&json!({ "choices": choices }))], Err(Diverged));
        }
    }

    #[test]
    fn counts_beyond_reason_do_not_overflow() {
        let usage =
            json!({ "choices": [], "usage": { "prompt_tokens": u64::MAX, "completion_tokens": u64::MAX } });
        assert!(after(3, "abc", &[]).events(event(&usage).as_bytes()).is_ok());
    }

    #[test]
    fn completions_too() {
        let first = r#"{"id":"c-1","object":"text_completion","created":7,"model":"m"}"#;
        let mode = Mode::Replay { text: "ab".to_owned(), matched: 0 };
        let mut splice = Splice::new(Api::Completions, Head::of(Some(first)), mode);
        let block =
            event(&json!({ "id": "x", "choices": [{ "index": 0, "text": "abc", "finish_reason": null }] }));
        let Ok(Spliced::Events(bytes)) = splice.events(block.as_bytes()) else { panic!("events") };
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let chunk: Value = serde_json::from_str(text.trim().trim_start_matches("data: ")).expect("JSON");
        assert_eq!((&chunk["id"], &chunk["choices"][0]["text"]), (&"c-1".into(), &"c".into()));
    }
}
