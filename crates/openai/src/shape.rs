//! A request with another system prompt or other parameters; what is not named stays as it is, to the byte.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Api;
use crate::peek::is_folded;

/// Names of one parameter: of two that a request gives, engines take one or the other.
const SYNONYMS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

/// The body of a request to `api` with this system prompt, if there is one, and these parameters. `None` if that changes
/// nothing, or if it is no object.
///
/// A chat gets the prompt in place of its first message from `system` or `developer`, or before all others; a text
/// completion before its own prompt, with an empty line between them, unless that is made of tokens; the responses API as
/// `instructions`. Requests to other APIs than these and embeddings stay as they are.
pub fn shaped(
    api: Api,
    body: &[u8],
    system: Option<&str>,
    params: &BTreeMap<String, Value>,
) -> Option<Bytes> {
    if api == Api::Other {
        return None;
    }
    let prompt = match api {
        Api::Chat => Prompt { field: "messages", put: put_message },
        Api::Completions => Prompt { field: "prompt", put: put_before },
        _ => Prompt { field: "instructions", put: |_, system| Some(quoted(system)) },
    };
    let system = system.filter(|_| api != Api::Embeddings);
    if system.is_none() && params.is_empty() {
        return None;
    }
    let fields: Fields<'_> = serde_json::from_slice(body).ok()?;
    let is_set = |name: &str| params.keys().any(|param| is_same(name, param));
    let mut out = String::with_capacity(body.len() + system.map_or(0, str::len) + 256);
    let mut has_prompt = false;
    for (name, value) in &fields.0 {
        if is_set(name) {
            continue;
        }
        // Some engines do not mind the case, and of two fields take the last: each of them is changed.
        let system = system.filter(|_| is_same(name, prompt.field));
        has_prompt |= system.is_some();
        let changed = system.and_then(|system| (prompt.put)(value.get(), system));
        push(&mut out, name, changed.as_deref().unwrap_or(value.get()));
    }
    if let Some(system) = system.filter(|_| api == Api::Responses && !has_prompt) {
        push(&mut out, prompt.field, &quoted(system));
    }
    for (name, value) in params {
        push(&mut out, name, &value.to_string());
    }
    out.insert(0, '{');
    out.push('}');
    Some(Bytes::from(out))
}

/// Where the system prompt goes, and how.
struct Prompt {
    field: &'static str,
    /// `None` if it can't be put into such a value.
    put: fn(&str, &str) -> Option<String>,
}

/// Whether a reader could take `given` for the parameter `name`.
fn is_same(given: &str, name: &str) -> bool {
    let is = |name: &str| is_folded(given, &name.to_ascii_lowercase());
    is(name) || (SYNONYMS.contains(&name) && SYNONYMS.iter().any(|other| is(other)))
}

fn push(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(&quoted(name));
    out.push(':');
    out.push_str(value);
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[derive(Deserialize)]
struct Message<'m> {
    #[serde(borrow)]
    role: Option<Cow<'m, str>>,
}

fn put_message(messages: &str, system: &str) -> Option<String> {
    let messages: Vec<&RawValue> = serde_json::from_str(messages).ok()?;
    // Reads objects only; an array would pass a derived reader.
    let role = |message: &RawValue| {
        let message = Some(message.get()).filter(|text| text.starts_with('{'))?;
        serde_json::from_str::<Message<'_>>(message).ok()?.role.map(Cow::into_owned)
    };
    let is_system = |role: &str| matches!(role, "system" | "developer");
    let found = messages.iter().position(|message| role(message).is_some_and(|role| is_system(&role)));
    let role = found.and_then(|at| role(messages[at])).unwrap_or_else(|| "system".to_owned());
    let ours = format!(r#"{{"role":"{role}","content":{}}}"#, quoted(system));
    let mut all: Vec<&str> = messages.iter().map(|message| message.get()).collect();
    match found {
        Some(at) => all[at] = &ours,
        None => all.insert(0, &ours),
    }
    Some(format!("[{}]", all.join(",")))
}

fn put_before(prompt: &str, system: &str) -> Option<String> {
    let before = |prompt: &str| quoted(&format!("{system}\n\n{prompt}"));
    match prompt.as_bytes().first()? {
        b'"' => serde_json::from_str::<Cow<'_, str>>(prompt).ok().map(|prompt| before(&prompt)),
        _ => {
            let prompts: Vec<Cow<'_, str>> = serde_json::from_str(prompt).ok()?;
            let prompts: Vec<String> = prompts.iter().map(|prompt| before(prompt)).collect();
            Some(format!("[{}]", prompts.join(",")))
        }
    }
}

/// The fields of an object in their order, also those given twice.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    fields.push((name, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// Borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(api: Api, body: &str, system: Option<&str>, params: Value, expected: &str) {
        let params = params.as_object().expect("an object").clone().into_iter().collect();
        let made = shaped(api, body.as_bytes(), system, &params);
        let made = made.as_deref().map_or("as it was", |made| std::str::from_utf8(made).expect("UTF-8"));
        assert_eq!(made, expected);
    }

    #[test]
    fn chats_get_one_system_prompt() {
        let check = |messages: &str, expected: &str| {
            let body = format!(r#"{{"model":"m","messages":{messages},"n":1}}"#);
            let expected = format!(r#"{{"model":"m","messages":{expected},"n":1}}"#);
            check(Api::Chat, &body, Some("Be \"terse\"."), json!({}), &expected);
        };
        let ours = r#"{"role":"system","content":"Be \"terse\"."}"#;
        let user = r#"{ "role":"user", "content":"h\u00e9" }"#;
        check("[]", &format!("[{ours}]"));
        check(&format!("[{user}]"), &format!("[{ours},{user}]"));
        check(&format!(r#"[ {{"role":"system","content":"x"}} , {user}]"#), &format!("[{ours},{user}]"));
        check(
            &format!(r#"[{user},{{"role":"developer","content":[{{"type":"text","text":"x"}}]}}]"#),
            &format!(r#"[{user},{{"role":"developer","content":"Be \"terse\"."}}]"#),
        );
        let second = r#"{"role":"system","content":"y"}"#;
        check(&format!(r#"[{{"role":"system"}},{second}]"#), &format!("[{ours},{second}]"));
        // What is no message can't be taken for one.
        check(r#"[["system"],7]"#, &format!(r#"[{ours},["system"],7]"#));
        check(r#""hi""#, r#""hi""#);
        check("null", "null");
    }

    #[test]
    fn a_second_field_in_another_case_changes_nothing() {
        let body = r#"{"messages":[],"Messages":[{"role":"system","content":"x"}],"meſſages":[]}"#;
        let ours = r#"[{"role":"system","content":"s"}]"#;
        let expected = format!(r#"{{"messages":{ours},"Messages":{ours},"meſſages":{ours}}}"#);
        check(Api::Chat, body, Some("s"), json!({}), &expected);
        let body = r#"{"messages":[],"temperature":1,"Temperature":2,"temperature":3,"tempera\u0074ure":4}"#;
        let expected = r#"{"messages":[],"temperature":0.2}"#;
        check(Api::Chat, body, None, json!({ "temperature": 0.2 }), expected);
    }

    #[test]
    fn parameters_take_the_place_of_the_clients() {
        let body = r#"{ "model": "m", "x": 1.00, "y": 12345678901234567890123, "seed" : 1, "messages": [] }"#;
        let expected =
            r#"{"model":"m","x":1.00,"y":12345678901234567890123,"messages":[],"seed":7,"stop":["a"]}"#;
        check(Api::Chat, body, None, json!({ "seed": 7, "stop": ["a"] }), expected);
        check(Api::Chat, body, None, json!({}), "as it was");
        let both = r#"{"max_tokens":1,"max_completion_tokens":2,"min_tokens":0}"#;
        check(Api::Chat, both, None, json!({ "max_tokens": 9 }), r#"{"min_tokens":0,"max_tokens":9}"#);
        check(Api::Embeddings, r#"{"input":"a"}"#, Some("s"), json!({ "d": 1 }), r#"{"input":"a","d":1}"#);
        check(Api::Embeddings, r#"{"input":"a"}"#, Some("s"), json!({}), "as it was");
        check(Api::Other, r#"{"input":"a"}"#, Some("s"), json!({ "d": 1 }), "as it was");
        check(Api::Chat, "{}", None, json!({ "d": 1 }), r#"{"d":1}"#);
        check(Api::Chat, "[1]", None, json!({ "d": 1 }), "as it was");
    }

    #[test]
    fn completions_and_responses() {
        let text = |prompt: &str, expected: &str| {
            let (body, expected) =
                (format!(r#"{{"prompt":{prompt}}}"#), format!(r#"{{"prompt":{expected}}}"#));
            check(Api::Completions, &body, Some("S"), json!({}), &expected);
        };
        text(r#""a\n\u0041""#, r#""S\n\na\nA""#);
        text(r#"["a","b"]"#, r#"["S\n\na","S\n\nb"]"#);
        text("[1, 2]", "[1, 2]");
        text("[[1],[2]]", "[[1],[2]]");
        text("null", "null");
        let given = r#"{"input":"a","instructions":"x"}"#;
        check(Api::Responses, given, Some("S"), json!({}), r#"{"input":"a","instructions":"S"}"#);
        check(
            Api::Responses,
            r#"{"input":"a"}"#,
            Some("S"),
            json!({}),
            r#"{"input":"a","instructions":"S"}"#,
        );
    }
}
