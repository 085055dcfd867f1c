//! What a request body asks for, found in one pass.
//!
//! The body is validated as JSON and otherwise left alone: fields unknown here pass untouched.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The few fields that routing needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Peek<'a> {
    pub model: Cow<'a, str>,
    /// Where the value of `model` stands in the body, quotes included.
    pub model_span: Range<usize>,
    pub stream: bool,
    /// The end user the client names; one of the units of session affinity.
    pub user: Option<Cow<'a, str>>,
    /// How many choices a complete answer has: `n`, for each prompt.
    pub choices: u32,
    /// A complete stream has a usage chunk (`stream_options.include_usage`).
    pub include_usage: bool,
}

/// Why a body can't be routed. The message is fit for the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeekError {
    #[error("the request body is not valid UTF-8")]
    NotUtf8,
    #[error("the request body is not valid JSON: {0}")]
    Syntax(String),
    #[error("the request body must be a JSON object")]
    NotObject,
    #[error("the request body lacks `model`")]
    MissingModel,
    #[error("`{field}` must be {expected}")]
    WrongType { field: &'static str, expected: &'static str },
}

impl PeekError {
    /// The request field at fault.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::MissingModel => Some("model"),
            Self::WrongType { field, .. } => Some(field),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
}

/// Reads the fields that routing needs. A field given twice is an error, since gateway and engine could read
/// different ones.
pub fn peek(body: &[u8]) -> Result<Peek<'_>, PeekError> {
    let text = std::str::from_utf8(body).map_err(|_| PeekError::NotUtf8)?;
    // An array of the right length would pass serde's derived reader.
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Ok(_) => PeekError::NotObject,
            Err(error) => PeekError::Syntax(error.to_string()),
        });
    }
    let fields: Fields<'_> =
        serde_json::from_str(text).map_err(|error| PeekError::Syntax(error.to_string()))?;

    let raw_model = present(fields.model).ok_or(PeekError::MissingModel)?;
    let model = string(raw_model).ok_or(PeekError::WrongType { field: "model", expected: "a string" })?;
    let start = raw_model.as_ptr() as usize - text.as_ptr() as usize;
    let stream = match fields.stream.map(RawValue::get) {
        None | Some("null" | "false") => false,
        Some("true") => true,
        Some(_) => return Err(PeekError::WrongType { field: "stream", expected: "true or false" }),
    };
    // Engines differ in what they take for these; whether they are right is theirs to judge.
    let user = present(fields.user).and_then(string);
    let n: u32 = present(fields.n).and_then(|n| n.parse().ok()).unwrap_or(1);
    let include_usage = present(fields.stream_options)
        .and_then(|options| serde_json::from_str::<StreamOptions>(options).ok())
        .is_some_and(|options| options.include_usage);
    Ok(Peek {
        model,
        model_span: start..start + raw_model.len(),
        stream,
        user,
        choices: n.max(1).saturating_mul(prompts(present(fields.prompt))),
        include_usage,
    })
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// A prompt is a text or a list of tokens; several are a list of those.
fn prompts(prompt: Option<&str>) -> u32 {
    let list = prompt.filter(|prompt| prompt.starts_with('['));
    let list = list.and_then(|list| serde_json::from_str::<Vec<&RawValue>>(list).ok()).unwrap_or_default();
    let several = list.first().is_some_and(|first| first.get().starts_with(['"', '[']));
    if several { u32::try_from(list.len()).unwrap_or(u32::MAX) } else { 1 }
}

fn present(value: Option<&RawValue>) -> Option<&str> {
    value.map(RawValue::get).filter(|raw| *raw != "null")
}

/// A JSON string, borrowed where it has no escapes.
fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// The body with another value for `model`; everything else is kept to the byte.
pub fn with_model(body: &Bytes, model_span: &Range<usize>, model: &str) -> Bytes {
    let quoted = serde_json::Value::from(model).to_string();
    if body.get(model_span.clone()) == Some(quoted.as_bytes()) {
        return body.clone();
    }
    let mut changed = Vec::with_capacity(body.len() - model_span.len() + quoted.len());
    changed.extend_from_slice(&body[..model_span.start]);
    changed.extend_from_slice(quoted.as_bytes());
    changed.extend_from_slice(&body[model_span.end..]);
    Bytes::from(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_and_span() {
        let body = br#" {"messages":[{"model":"not this","role":"user"}], "model" : "ch\u0061t" ,"stream":true,"user":"u1","x":{}}"#;
        let peek = peek(body).expect("valid");
        assert_eq!((peek.model.as_ref(), peek.stream, peek.user.as_deref()), ("chat", true, Some("u1")));
        assert_eq!(&body[peek.model_span.clone()], br#""ch\u0061t""#);
        let changed = with_model(&Bytes::from_static(body), &peek.model_span, "a\"b");
        assert_eq!(
            changed,
            r#" {"messages":[{"model":"not this","role":"user"}], "model" : "a\"b" ,"stream":true,"user":"u1","x":{}}"#
        );
    }

    #[test]
    fn same_model_is_not_copied() {
        let body = Bytes::from_static(br#"{"model":"m"}"#);
        let span = peek(&body).expect("valid").model_span;
        assert_eq!(with_model(&body, &span, "m").as_ptr(), body.as_ptr());
    }

    #[test]
    fn what_makes_an_answer_complete() {
        let check = |fields: &str, choices: u32, include_usage: bool| {
            let body = format!(r#"{{"model":"m"{fields}}}"#);
            let peek = peek(body.as_bytes()).expect("valid");
            assert_eq!((peek.choices, peek.include_usage), (choices, include_usage), "{fields}");
        };
        check("", 1, false);
        check(r#","n":3,"stream_options":{"include_usage":true}"#, 3, true);
        check(r#","n":null,"stream_options":null,"prompt":"[a]""#, 1, false);
        check(r#","n":2,"prompt":["a","b"]"#, 4, false);
        check(r#","prompt":[1,2,3],"stream_options":{}"#, 1, false);
        check(r#","prompt":[[1,2],[3]],"n":"many" "#, 2, false);
        check(r#","prompt":[],"n":0"#, 1, false);
    }

    #[test]
    fn bad_bodies() {
        let check = |body: &[u8], expected: &str| {
            let error = peek(body).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error} does not contain {expected}");
        };
        check(b"", "not valid JSON");
        check(b"{", "not valid JSON");
        check(b"{}", "lacks `model`");
        check(br#"{"model":null}"#, "lacks `model`");
        check(br#"{"model":7}"#, "`model` must be a string");
        check(br#"{"model":"a","stream":1}"#, "`stream` must be true or false");
        check(br#"{"model":"a","model":"b"}"#, "duplicate field `model`");
        check(br#"["a",true,"u"]"#, "must be a JSON object");
        check(br#""a""#, "must be a JSON object");
        check(b"{\"model\":\"\xff\"}", "not valid UTF-8");
        check(br#"{"model":"a"} trailing"#, "not valid JSON");
        check(br#"{"model":"a","x":nul}"#, "not valid JSON");
        let deep = format!(r#"{{"model":"a","x":{}}}"#, "[".repeat(100_000));
        check(deep.as_bytes(), "not valid JSON");
    }
}
