use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::Splice;
use super::splice::{Head, Mode, StopGuard, finish_events};
use crate::Api;
use crate::stream::StreamState;

/// How an engine is told to go on with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// vLLM and SGLang: `continue_final_message` instead of `add_generation_prompt`.
    ContinueFinalMessage,
    /// llama.cpp and Ollama: a last message of the assistant's is the beginning of the answer.
    TrailingMessage,
}

/// Why an answer can't be carried on without the client noticing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Hindrance {
    #[error("only chats and completions can be carried on")]
    Api,
    #[error("a tool call had begun")]
    ToolCall,
    #[error("the answer has parts besides its text, such as reasoning")]
    OtherOutput,
    #[error("there are several choices")]
    SeveralChoices,
    #[error("the request asks for structured output")]
    StructuredOutput,
    #[error("the request asks for its own prompt in the answer")]
    Echo,
    #[error("the answer is longer than what is kept of it")]
    TooLong,
    #[error("its length was reached, and the usage that was asked for is not known")]
    UsageUnknown,
}

/// What came before the last attempt.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// It was the first one.
    Nothing,
    /// It went on from there.
    Continued(&'a Interrupted),
    /// It began anew, and has caught up with that.
    Replayed(&'a Interrupted),
}

/// What is to be done to give the client the rest.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Send this body and splice what comes.
    Send(Bytes),
    /// Nothing is missing but the end: these events.
    Finish(Bytes),
}

/// An answer that has ended too soon, and all that is needed to carry on with it.
#[derive(Debug)]
pub struct Interrupted {
    api: Api,
    request: Map<String, Value>,
    /// Of the answer, as the client has received it.
    text: String,
    /// In the text, by the engine's account or as pieces.
    tokens: u64,
    head: Head,
}

impl Interrupted {
    /// `body` is the client's request, `state` what the last attempt has brought.
    pub fn new(api: Api, body: &[u8], state: &StreamState, before: Before<'_>) -> Result<Self, Hindrance> {
        if !matches!(api, Api::Chat | Api::Completions) {
            return Err(Hindrance::Api);
        }
        let request: Map<String, Value> = serde_json::from_slice(body).map_err(|_| Hindrance::Api)?;
        hindrance_of(&request)?;
        if state.has_several_choices() {
            return Err(Hindrance::SeveralChoices);
        }
        if state.tool_call {
            return Err(Hindrance::ToolCall);
        }
        if state.other_output {
            return Err(Hindrance::OtherOutput);
        }
        let text = state.transcript.text().ok_or(Hindrance::TooLong)?;
        let tokens = state.usage.map_or(state.pieces, |usage| usage.output.max(state.pieces));
        let (text, tokens, head) = match before {
            Before::Nothing => (text.to_owned(), tokens, Head::of(state.first.as_deref())),
            Before::Continued(old) => {
                (old.text.clone() + text, old.tokens.saturating_add(tokens), old.head.clone())
            }
            Before::Replayed(old) => (text.to_owned(), tokens, old.head.clone()),
        };
        if text.len() > crate::stream::MAX_TRANSCRIPT {
            return Err(Hindrance::TooLong);
        }
        Ok(Self { api, request, text, tokens, head })
    }

    /// The same for a request of another body, which asks for the answer as its own.
    pub fn asked_as(&self, body: &[u8]) -> Result<Self, Hindrance> {
        let request: Map<String, Value> = serde_json::from_slice(body).map_err(|_| Hindrance::Api)?;
        hindrance_of(&request)?;
        Ok(Self {
            api: self.api,
            request,
            text: self.text.clone(),
            tokens: self.tokens,
            head: self.head.clone(),
        })
    }

    /// The text that the client has.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// In that text, by the engine's account or as pieces.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// How to go on from the text so far; `None` if this request can't be put that way.
    pub fn continued(&self, dialect: Dialect) -> Result<Option<Next>, Hindrance> {
        let mut request = self.request.clone();
        for limit in ["max_tokens", "max_completion_tokens", "n_predict"] {
            let Some(most) = request.get(limit).and_then(Value::as_u64) else { continue };
            if most <= self.tokens {
                if self.wants_usage() {
                    return Err(Hindrance::UsageUnknown);
                }
                return Ok(Some(Next::Finish(finish_events(self.api, &self.head, "length"))));
            }
            request.insert(limit.to_owned(), (most - self.tokens).into());
        }
        if let Some(least) = request.get("min_tokens").and_then(Value::as_u64) {
            request.insert("min_tokens".to_owned(), least.saturating_sub(self.tokens).into());
        }
        let put = match self.api {
            Api::Chat => put_message(&mut request, &self.text, dialect),
            _ => put_prompt(&mut request, &self.text),
        };
        Ok(put.then(|| Next::Send(Bytes::from(Value::Object(request).to_string()))))
    }

    /// Makes the events of an attempt that was sent what [`Self::continued`] gave the rest of this answer.
    pub fn splice_continued(&self) -> Splice {
        let stops = StopGuard::new(&stops(&self.request), &self.text);
        Splice::new(self.api, self.head.clone(), Mode::Continue { tokens: self.tokens, stops })
    }

    /// The same for an attempt that was sent the client's own request again.
    pub fn splice_replayed(&self) -> Splice {
        Splice::new(self.api, self.head.clone(), Mode::Replay { text: self.text.clone(), matched: 0 })
    }

    fn wants_usage(&self) -> bool {
        self.request.get("stream_options").is_some_and(|options| options["include_usage"] == true)
    }
}

fn hindrance_of(request: &Map<String, Value>) -> Result<(), Hindrance> {
    /// Every engine has its own names for it.
    const STRUCTURED: [&str; 8] = [
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "grammar",
        "json_schema",
        "format",
    ];
    let given = |key: &str| request.get(key).filter(|value| !value.is_null());
    let number = |key: &str| given(key).and_then(Value::as_u64).unwrap_or(1);
    if number("n") > 1 || number("best_of") > 1 {
        return Err(Hindrance::SeveralChoices);
    }
    let plain_text = |format: &Value| format["type"] == "text";
    let chosen_tool = |choice: &Value| choice != "auto" && choice != "none";
    if STRUCTURED.iter().any(|key| given(key).is_some())
        || given("response_format").is_some_and(|format| !plain_text(format))
        || given("tool_choice").is_some_and(chosen_tool)
    {
        return Err(Hindrance::StructuredOutput);
    }
    if given("echo").is_some_and(|echo| echo == true) || given("suffix").is_some() {
        return Err(Hindrance::Echo);
    }
    match given("prompt") {
        Some(Value::Array(prompts)) if prompts.len() > 1 && prompts[0].is_string() => {
            Err(Hindrance::SeveralChoices)
        }
        _ => Ok(()),
    }
}

/// Ends the messages with the text as the assistant's. A message that the client had begun for the assistant itself is
/// gone on with.
fn put_message(request: &mut Map<String, Value>, text: &str, dialect: Dialect) -> bool {
    let flagged = request.get("continue_final_message").is_some_and(|flag| flag == true);
    let Some(Value::Array(messages)) = request.get_mut("messages") else { return false };
    let begun = messages.last_mut().filter(|last| last["role"] == "assistant");
    match begun {
        Some(last) if flagged || dialect == Dialect::TrailingMessage => {
            let Value::String(content) = &mut last["content"] else { return false };
            content.push_str(text);
        }
        _ => messages.push(json!({ "role": "assistant", "content": text })),
    }
    if dialect == Dialect::ContinueFinalMessage {
        request.insert("continue_final_message".to_owned(), true.into());
        request.insert("add_generation_prompt".to_owned(), false.into());
    }
    true
}

/// Adds the text to the prompt; one of tokens can't be added to.
fn put_prompt(request: &mut Map<String, Value>, text: &str) -> bool {
    let prompt = match request.get_mut("prompt") {
        Some(Value::Array(prompts)) if prompts.len() == 1 => prompts.first_mut(),
        prompt => prompt,
    };
    let Some(Value::String(prompt)) = prompt else { return false };
    prompt.push_str(text);
    true
}

fn stops(request: &Map<String, Value>) -> Vec<String> {
    match request.get("stop") {
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => stops.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Expected, scan};

    pub(super) fn state(api: Api, pieces: &[&str]) -> StreamState {
        let mut state = StreamState::new(Expected { choices: 1, usage: false });
        for piece in pieces {
            let event = match api {
                Api::Chat => {
                    json!({ "id": "c-1", "created": 7, "model": "m", "choices": [{ "index": 0, "delta": { "content": piece } }] })
                }
                _ => {
                    json!({ "id": "c-1", "created": 7, "model": "m", "choices": [{ "index": 0, "text": piece }] })
                }
            };
            scan(api, event.to_string().as_bytes(), &mut state).expect("a good event");
        }
        state
    }

    fn interrupted(request: &Value) -> Result<Interrupted, Hindrance> {
        let api = if request.get("prompt").is_some() { Api::Completions } else { Api::Chat };
        Interrupted::new(
            api,
            request.to_string().as_bytes(),
            &state(api, &["Once ", "upon"]),
            Before::Nothing,
        )
    }

    #[track_caller]
    fn check(request: Value, dialect: Dialect, expected: Value) {
        let next = interrupted(&request).expect("can be carried on").continued(dialect);
        let sent = match next.expect("can be carried on") {
            Some(Next::Send(body)) => serde_json::from_slice(&body).expect("JSON"),
            Some(Next::Finish(_)) => Value::from("finished"),
            None => Value::Null,
        };
        assert_eq!(sent, expected);
    }

    #[test]
    fn each_engine_in_its_dialect() {
        use Dialect::{ContinueFinalMessage, TrailingMessage};
        let hi = json!({ "role": "user", "content": "hi" });
        let so_far = json!({ "role": "assistant", "content": "Once upon" });
        let request = json!({ "messages": [hi], "max_tokens": 10, "min_tokens": 1, "stream": true });
        let carried = json!({ "messages": [hi, so_far], "max_tokens": 8, "min_tokens": 0, "stream": true });
        check(request.clone(), TrailingMessage, carried.clone());
        let mut flagged = carried;
        flagged["continue_final_message"] = true.into();
        flagged["add_generation_prompt"] = false.into();
        check(request, ContinueFinalMessage, flagged);

        let begun = json!({ "messages": [hi, { "role": "assistant", "content": "A: " }] });
        let merged = json!({ "messages": [hi, { "role": "assistant", "content": "A: Once upon" }] });
        check(begun.clone(), TrailingMessage, merged);
        let both = json!([hi, { "role": "assistant", "content": "A: " }, so_far]);
        check(
            begun,
            ContinueFinalMessage,
            json!({ "messages": both, "continue_final_message": true, "add_generation_prompt": false }),
        );
        check(json!({ "prompt": "Tell: " }), TrailingMessage, json!({ "prompt": "Tell: Once upon" }));
        check(json!({ "prompt": ["Tell: "] }), TrailingMessage, json!({ "prompt": ["Tell: Once upon"] }));
        check(json!({ "prompt": [1, 2, 3] }), TrailingMessage, Value::Null);
        check(json!({ "messages": [hi], "max_tokens": 2 }), TrailingMessage, "finished".into());
    }

    #[test]
    fn what_must_not_be_carried_on() {
        let check = |fields: Value, expected: Hindrance| {
            let mut request = json!({ "messages": [] });
            request
                .as_object_mut()
                .expect("an object")
                .extend(fields.as_object().expect("an object").clone());
            assert_eq!(interrupted(&request).err(), Some(expected), "{fields}");
        };
        check(json!({ "n": 2 }), Hindrance::SeveralChoices);
        check(json!({ "response_format": { "type": "json_object" } }), Hindrance::StructuredOutput);
        check(json!({ "guided_regex": "a+" }), Hindrance::StructuredOutput);
        check(json!({ "tool_choice": "required" }), Hindrance::StructuredOutput);
        check(json!({ "tool_choice": { "type": "function" } }), Hindrance::StructuredOutput);
        check(json!({ "prompt": "a", "echo": true }), Hindrance::Echo);
        check(json!({ "prompt": ["a", "b"] }), Hindrance::SeveralChoices);
        for fine in [
            json!({ "tool_choice": "auto", "tools": [] }),
            json!({ "response_format": { "type": "text" } }),
            json!({ "n": null, "stop": null }),
        ] {
            let mut request = json!({ "messages": [] });
            request.as_object_mut().expect("an object").extend(fine.as_object().expect("an object").clone());
            assert!(interrupted(&request).is_ok(), "{fine}");
        }
        let no_usage =
            json!({ "messages": [], "max_tokens": 2, "stream_options": { "include_usage": true } });
        let end = interrupted(&no_usage).expect("a chat").continued(Dialect::TrailingMessage);
        assert_eq!(end, Err(Hindrance::UsageUnknown));
        let body = json!({ "messages": [] }).to_string();
        let tool = r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}"#;
        let thought = r#"{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}"#;
        let unasked = r#"{"choices":[{"index":1,"delta":{}}]}"#;
        for (event, expected) in [
            (tool, Hindrance::ToolCall),
            (thought, Hindrance::OtherOutput),
            (unasked, Hindrance::SeveralChoices),
        ] {
            let mut state = state(Api::Chat, &["a"]);
            scan(Api::Chat, event.as_bytes(), &mut state).expect("a good event");
            assert_eq!(
                Interrupted::new(Api::Chat, body.as_bytes(), &state, Before::Nothing).err(),
                Some(expected)
            );
        }
        let state = state(Api::Chat, &["a"]);
        assert_eq!(
            Interrupted::new(Api::Responses, b"{}", &state, Before::Nothing).err(),
            Some(Hindrance::Api)
        );
    }

    #[test]
    fn another_version_is_asked_in_its_own_way() {
        let first = interrupted(&json!({ "messages": [], "max_tokens": 10 })).expect("a chat");
        let prompt = json!({ "role": "system", "content": "s" });
        let other = json!({ "messages": [prompt], "max_tokens": 50 }).to_string();
        let other = first.asked_as(other.as_bytes()).expect("a chat");
        let Ok(Some(Next::Send(body))) = other.continued(Dialect::TrailingMessage) else {
            panic!("not sent")
        };
        let so_far = json!({ "role": "assistant", "content": "Once upon" });
        let expected = json!({ "messages": [prompt, so_far], "max_tokens": 48 });
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), expected);
        let structured = json!({ "messages": [], "response_format": { "type": "json_object" } }).to_string();
        assert_eq!(first.asked_as(structured.as_bytes()).err(), Some(Hindrance::StructuredOutput));
    }

    #[test]
    fn a_second_time_goes_on_from_both_parts() {
        let request = json!({ "messages": [], "max_tokens": 10 });
        let body = request.to_string();
        let first = interrupted(&request).expect("a chat");
        let second = state(Api::Chat, &[" a", " time"]);
        let second =
            Interrupted::new(Api::Chat, body.as_bytes(), &second, Before::Continued(&first)).expect("a chat");
        assert_eq!(second.text(), "Once upon a time");
        let Ok(Some(Next::Send(body))) = second.continued(Dialect::TrailingMessage) else {
            panic!("to be sent")
        };
        let sent: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(
            (&sent["max_tokens"], &sent["messages"][0]["content"]),
            (&6.into(), &"Once upon a time".into())
        );
    }
}
