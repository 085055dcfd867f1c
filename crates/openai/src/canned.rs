//! Answers that no engine has written, and requests for shorter ones.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::Api;

/// A whole answer with this text, as a stream or in one piece; `None` for APIs whose answers are not text.
pub fn answer(api: Api, model: &str, id: &str, text: &str, stream: bool) -> Option<Bytes> {
    let usage = json!({ "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0 });
    let (prefix, object, part) = match (api, stream) {
        (Api::Chat, true) => (
            "chatcmpl",
            "chat.completion.chunk",
            json!({ "delta": { "role": "assistant", "content": text } }),
        ),
        (Api::Chat, false) => {
            ("chatcmpl", "chat.completion", json!({ "message": { "role": "assistant", "content": text } }))
        }
        (Api::Completions, _) => ("cmpl", "text_completion", json!({ "text": text })),
        _ => return None,
    };
    let envelope = |choices: Value, usage: Value| {
        let id = format!("{prefix}-{id}");
        json!({ "id": id, "object": object, "created": 0, "model": model, "choices": choices, "usage": usage })
    };
    let choice = |mut part: Value, finish: Value| {
        part["index"] = 0.into();
        part["finish_reason"] = finish;
        json!([part])
    };
    if !stream {
        return Some(Bytes::from(envelope(choice(part, "stop".into()), usage).to_string()));
    }
    let last = if api == Api::Chat { json!({ "delta": {} }) } else { json!({ "text": "" }) };
    let events = [
        envelope(choice(part, Value::Null), Value::Null),
        envelope(choice(last, "stop".into()), Value::Null),
        envelope(json!([]), usage),
    ];
    let events: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    Some(Bytes::from(events + "data: [DONE]\n\n"))
}

/// The request for so many tokens at most; `None` if it asks for no more already or its answers have no tokens.
pub fn shorter(api: Api, body: &[u8], most: u64) -> Option<Bytes> {
    let mut request: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let usual = match api {
        Api::Chat | Api::Completions => "max_tokens",
        Api::Responses => "max_output_tokens",
        Api::Embeddings | Api::Other => return None,
    };
    let key = if request.contains_key("max_completion_tokens") { "max_completion_tokens" } else { usual };
    let asked = request.get(key).and_then(Value::as_u64);
    if asked.is_some_and(|asked| asked <= most) {
        return None;
    }
    request.insert(key.to_owned(), most.into());
    if let Some(least) = request.get("min_tokens").and_then(Value::as_u64) {
        request.insert("min_tokens".to_owned(), least.min(most).into());
    }
    Some(Bytes::from(Value::Object(request).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Expected, StreamState, scan};
    use crate::{answer as check_answer, sse};

    #[test]
    fn canned_answers_are_complete() {
        for api in [Api::Chat, Api::Completions] {
            let plain = answer(api, "m", "1", "busy", false).expect("text");
            assert!(check_answer::check(api, &plain).is_ok());
            let stream = answer(api, "m", "1", "busy", true).expect("text");
            let mut state = StreamState::new(Expected { choices: 1, usage: true });
            for event in sse::events(&stream) {
                scan(api, &event.data.expect("data"), &mut state).expect("a good event");
            }
            assert!(state.is_complete() && state.done);
            assert_eq!(state.transcript.text(), Some("busy"));
        }
        assert_eq!(answer(Api::Embeddings, "m", "1", "busy", false), None);
    }

    #[test]
    fn shorter_requests() {
        let check = |api: Api, body: Value, expected: Value| {
            let made = shorter(api, body.to_string().as_bytes(), 10);
            let made = made.map_or(Value::Null, |made| serde_json::from_slice(&made).expect("JSON"));
            assert_eq!(made, expected);
        };
        check(Api::Chat, json!({ "model": "m" }), json!({ "model": "m", "max_tokens": 10 }));
        check(
            Api::Chat,
            json!({ "max_tokens": 50, "min_tokens": 20 }),
            json!({ "max_tokens": 10, "min_tokens": 10 }),
        );
        check(Api::Chat, json!({ "max_completion_tokens": 50 }), json!({ "max_completion_tokens": 10 }));
        check(Api::Chat, json!({ "max_tokens": 5 }), Value::Null);
        check(Api::Responses, json!({}), json!({ "max_output_tokens": 10 }));
        check(Api::Embeddings, json!({}), Value::Null);
    }
}
