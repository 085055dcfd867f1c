//! What a request body asks for, found in one pass.
//!
//! The body is validated as JSON and otherwise left alone: fields unknown here pass untouched.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
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
    /// The longest answer that is asked for, in tokens, by whatever name; `None` if it is not said or makes no sense.
    pub max_tokens: Option<u64>,
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
    #[error("`{0}` must be written like this")]
    OtherCase(&'static str),
    #[error("`{field}` must be {expected}")]
    WrongType { field: &'static str, expected: &'static str },
}

impl PeekError {
    /// The request field at fault.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::MissingModel => Some("model"),
            Self::OtherCase(field) => Some(field),
            Self::WrongType { field, .. } => Some(field),
            _ => None,
        }
    }
}

/// The values of the fields, as they stand in the body.
#[derive(Default)]
struct Fields<'a> {
    values: [Option<&'a RawValue>; NAMES.len()],
    /// A field whose name is written in another case.
    other_case: Option<&'static str>,
}

const NAMES: [&str; 9] = [
    "model",
    "stream",
    "user",
    "n",
    "prompt",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
];

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for Fields<'de> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(key) = map.next_key()? {
            match key {
                Key::Field(index) if self.values[index].is_some() => {
                    return Err(serde::de::Error::duplicate_field(NAMES[index]));
                }
                Key::Field(index) => self.values[index] = Some(map.next_value()?),
                other => {
                    if let Key::OtherCase(index) = other {
                        self.other_case = Some(NAMES[index]);
                    }
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(self)
    }
}

/// A key, by its place in [`NAMES`].
enum Key {
    Field(usize),
    OtherCase(usize),
    Unknown,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                let place =
                    |matches: fn(&str, &str) -> bool| NAMES.iter().position(|name| matches(key, name));
                let field = place(|key, name| key == name).map(Key::Field);
                Ok(field.or_else(|| place(is_folded).map(Key::OtherCase)).unwrap_or(Key::Unknown))
            }
        }
        deserializer.deserialize_identifier(Name)
    }
}

/// Whether `key` is `name` for a reader that does not mind the case, as Go's (and so Ollama's) doesn't. To it the long
/// s is an s.
pub(crate) fn is_folded(key: &str, name: &str) -> bool {
    let fold = |c| if c == 'ſ' { 's' } else { char::to_ascii_lowercase(&c) };
    key.chars().map(fold).eq(name.chars())
}

/// Reads the fields that routing needs. A field given twice, or in another case, is an error, since gateway and
/// engine could read different ones.
pub fn peek(body: &[u8]) -> Result<Peek<'_>, PeekError> {
    let text = std::str::from_utf8(body).map_err(|_| PeekError::NotUtf8)?;
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => PeekError::NotObject,
            Err(error) => PeekError::Syntax(error.to_string()),
        });
    }
    let fields: Fields<'_> =
        serde_json::from_str(text).map_err(|error| PeekError::Syntax(error.to_string()))?;
    if let Some(name) = fields.other_case {
        return Err(PeekError::OtherCase(name));
    }
    let [model, stream, user, n, prompt, stream_options, limits @ ..] = fields.values;

    let raw_model = present(model).ok_or(PeekError::MissingModel)?;
    let model = string(raw_model).ok_or(PeekError::WrongType { field: "model", expected: "a string" })?;
    let start = raw_model.as_ptr() as usize - text.as_ptr() as usize;
    let stream = match stream.map(RawValue::get) {
        None | Some("null" | "false") => false,
        Some("true") => true,
        Some(_) => return Err(PeekError::WrongType { field: "stream", expected: "true or false" }),
    };
    // Engines differ in what they take for these; whether they are right is theirs to judge.
    let user = present(user).and_then(string);
    let n: u32 = present(n).and_then(|n| n.parse().ok()).unwrap_or(1);
    // An array of one would pass serde's derived reader too.
    let include_usage = present(stream_options)
        .filter(|options| options.starts_with('{'))
        .and_then(|options| serde_json::from_str::<StreamOptions>(options).ok())
        .is_some_and(|options| options.include_usage);
    Ok(Peek {
        model,
        model_span: start..start + raw_model.len(),
        stream,
        user,
        choices: n.max(1).saturating_mul(prompts(present(prompt))),
        include_usage,
        max_tokens: limits.into_iter().filter_map(|limit| tokens(present(limit)?)).max(),
    })
}

/// A number of tokens, however it is written. One beyond all measure is the largest there is.
fn tokens(number: &str) -> Option<u64> {
    let number: f64 = number.parse().ok()?;
    (number >= 0.0).then_some(number as u64)
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// A prompt is a text or a list of tokens; several are a list of those. Counted without being kept: there may be
/// millions.
fn prompts(prompt: Option<&str>) -> u32 {
    let items = prompt.and_then(|prompt| prompt.strip_prefix('[')).map(str::trim_start);
    let several = prompt.filter(|_| items.is_some_and(|items| items.starts_with(['"', '['])));
    let count = several.and_then(|list| serde_json::from_str::<Vec<IgnoredAny>>(list).ok());
    count.map_or(1, |list| u32::try_from(list.len()).unwrap_or(u32::MAX))
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
        check(r#","stream_options":[true]"#, 1, false);
    }

    #[test]
    fn how_long_an_answer_may_be() {
        let check = |fields: &str, expected: Option<u64>| {
            let body = format!(r#"{{"model":"m"{fields}}}"#);
            assert_eq!(peek(body.as_bytes()).expect("valid").max_tokens, expected, "{fields}");
        };
        check("", None);
        check(r#","max_tokens":12"#, Some(12));
        check(r#","max_tokens":5,"max_completion_tokens":7"#, Some(7));
        check(r#","max_output_tokens":1.5e3"#, Some(1500));
        check(r#","max_tokens":0"#, Some(0));
        check(r#","max_tokens":99999999999999999999999"#, Some(u64::MAX));
        check(r#","max_tokens":1e999"#, Some(u64::MAX));
        for nonsense in ["null", "-1", "-1e999", "\"12\"", "true", "[5]", "{}"] {
            check(&format!(r#","max_tokens":{nonsense}"#), None);
        }
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
        check(br#"{"model":"a","Model":"b"}"#, "`model` must be written like this");
        check("{\"model\":\"a\",\"ſTREAM\":true}".as_bytes(), "`stream` must be written like this");
        check(br#"["a",true,"u"]"#, "must be a JSON object");
        check(br#""a""#, "must be a JSON object");
        check(b"{\"model\":\"\xff\"}", "not valid UTF-8");
        check(br#"{"model":"a"} trailing"#, "not valid JSON");
        check(br#"{"model":"a","x":nul}"#, "not valid JSON");
        let deep = format!(r#"{{"model":"a","x":{}}}"#, "[".repeat(100_000));
        check(deep.as_bytes(), "not valid JSON");
    }
}
