use std::collections::BTreeMap;

use backstop_openai::Api;
use backstop_openai::peek::{Peek, PeekError, peek as look, with_model};
use backstop_openai::shape::shaped;
use bytes::Bytes;
use serde_json::Value;

use crate::json::{self, Json};

const FIELDS: [&str; 6] = ["model", "stream", "user", "n", "prompt", "stream_options"];

/// A request's fields are those that serde_json finds, every mistake is told as what it is, and another model changes
/// nothing else.
pub fn peek(body: &[u8]) {
    let found = look(body);
    let text = std::str::from_utf8(body);
    assert_eq!(found == Err(PeekError::NotUtf8), text.is_err());
    let Ok(text) = text else { return };
    if !json::is_json(text) {
        assert!(matches!(found, Err(PeekError::Syntax(_))), "{found:?}");
        return;
    }
    if let Ok(peek) = &found {
        replaces_only_the_model(body, peek);
        is_shaped_for_all_readers(text);
    }
    if let Some(json) = json::parse(text) {
        agrees(text, found, &json);
    }
}

fn agrees(text: &str, found: Result<Peek<'_>, PeekError>, json: &Json) {
    let Value::Object(object) = &json.value else {
        assert_eq!(found, Err(PeekError::NotObject));
        return;
    };
    let count = |field: &str| json.keys.iter().filter(|key| *key == field).count();
    if FIELDS.iter().any(|field| count(field) > 1) {
        assert!(matches!(found, Err(PeekError::Syntax(why)) if why.contains("duplicate field")));
        return;
    }
    let lower = |key: &str| key.replace('ſ', "s").to_ascii_lowercase();
    let is_other = |key: &&String| FIELDS.contains(&lower(key).as_str()) && !FIELDS.contains(&key.as_str());
    if json.keys.iter().any(|key| is_other(&key)) {
        assert!(matches!(found, Err(PeekError::OtherCase(_))), "{found:?}");
        return;
    }
    let get = |field: &str| object.get(field).unwrap_or(&Value::Null);
    match (get("model"), get("stream")) {
        (Value::Null, _) => assert_eq!(found, Err(PeekError::MissingModel)),
        (Value::String(model), Value::Null | Value::Bool(_)) => {
            let found = found.expect("there is a model");
            assert_eq!(found.model, *model);
            assert_eq!(
                serde_json::from_str::<String>(&text[found.model_span.clone()]).ok().as_ref(),
                Some(model)
            );
            assert_eq!(found.stream, get("stream") == true);
            assert_eq!(found.user.as_deref(), get("user").as_str());
            let n = get("n").as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1);
            let several = |list: &&Vec<Value>| list.first().is_some_and(|it| it.is_string() || it.is_array());
            let prompts = get("prompt").as_array().filter(several).map_or(1, Vec::len) as u32;
            assert_eq!(found.choices, n.saturating_mul(prompts));
            assert!(
                json.has_twins || found.include_usage == (get("stream_options")["include_usage"] == true)
            );
        }
        _ => assert!(matches!(found, Err(PeekError::WrongType { .. })), "{found:?}"),
    }
}

/// Whichever of several fields a reader takes, and however it minds the case, it finds our parameter and our prompt first
/// among the system's; all else is as it was.
fn is_shaped_for_all_readers(text: &str) {
    const SYSTEM: &str = "our \"own\"\n";
    let params = BTreeMap::from([("max_tokens".to_owned(), Value::from(7))]);
    let shaped = shaped(Api::Chat, text.as_bytes(), Some(SYSTEM), &params).expect("an object");
    let shaped = json::parse(std::str::from_utf8(&shaped).expect("UTF-8"));
    let (Some(before), Some(after)) = (json::parse(text), shaped) else { return };
    let lower = |key: &str| key.replace('ſ', "s").to_ascii_lowercase();
    let is_limit = |key: &&String| matches!(lower(key).as_str(), "max_tokens" | "max_completion_tokens");
    let limits: Vec<_> = after.keys.iter().filter(is_limit).collect();
    assert_eq!(limits, ["max_tokens"]);
    assert_eq!(after.value["max_tokens"], 7);
    let fields = before.value.as_object().expect("an object").iter();
    for (key, value) in fields.filter(|(key, _)| !is_limit(key)) {
        let now = &after.value[key];
        match value.as_array().filter(|_| lower(key) == "messages") {
            None => assert_eq!(now, value, "{key}"),
            Some(messages) => {
                let now = now.as_array().expect("messages");
                assert!((messages.len()..=messages.len() + 1).contains(&now.len()));
                // Of a message that gives its role twice, readers take one or the other.
                let is_system = |it: &&Value| it["role"] == "system" || it["role"] == "developer";
                let first = now.iter().find(is_system).expect("a system prompt");
                assert!(first["content"] == SYSTEM || before.has_twins, "{first}");
            }
        }
    }
}

fn replaces_only_the_model(body: &[u8], found: &Peek<'_>) {
    const OTHER: &str = "ano\"ther\\ \u{e9}\n";
    let changed = with_model(&Bytes::copy_from_slice(body), &found.model_span, OTHER);
    let again = look(&changed).expect("still a request");
    assert_eq!(again.model, OTHER);
    assert_eq!(changed[..found.model_span.start], body[..found.model_span.start]);
    assert_eq!(changed[again.model_span.end..], body[found.model_span.end..]);
    let Peek { model: _, model_span: _, stream, user, choices, include_usage, max_tokens } = again;
    assert_eq!(
        (stream, user, choices, include_usage, max_tokens),
        (found.stream, found.user.clone(), found.choices, found.include_usage, found.max_tokens)
    );
}
