//! Is a plain answer one? A 200 says little: some servers put an error under it, or nothing.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::Api;
use crate::Usage;
use crate::error::message_of;
use crate::stream::Reasons;

/// What is wrong with an answer whose status says success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerFault {
    /// Cut off, or never JSON.
    #[error("the upstream's answer is not valid JSON: {0}")]
    NotJson(String),
    #[error("the upstream reported an error with a status of success: {0}")]
    Error(String),
    #[error("the upstream's answer has no `{0}`")]
    Lacks(&'static str),
}

#[derive(Deserialize)]
struct Fields {
    choices: Option<Vec<IgnoredAny>>,
    data: Option<IgnoredAny>,
    output: Option<IgnoredAny>,
    error: Option<IgnoredAny>,
    usage: Option<Usage>,
}

/// Checks the whole body of a plain answer, and returns the usage it reports. Of APIs that are not known only that it
/// is JSON is checked.
pub fn check(api: Api, body: &[u8]) -> Result<Option<Usage>, AnswerFault> {
    if api == Api::Other {
        let json = serde_json::from_slice::<IgnoredAny>(body);
        return json.map(|_| None).map_err(|error| AnswerFault::NotJson(error.to_string()));
    }
    // serde would also read the fields from an array, in their order.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        check(Api::Other, body)?;
        return Err(AnswerFault::NotJson("it is not an object".to_owned()));
    }
    let fields: Fields =
        serde_json::from_slice(body).map_err(|error| AnswerFault::NotJson(error.to_string()))?;
    let (needed, there) = match api {
        Api::Embeddings => ("data", fields.data.is_some()),
        Api::Responses => ("output", fields.output.is_some()),
        _ => ("choices", fields.choices.is_some_and(|choices| !choices.is_empty())),
    };
    match fields.error {
        _ if there => Ok(fields.usage),
        Some(_) => {
            Err(AnswerFault::Error(message_of(body).unwrap_or_else(|| "without a message".to_owned())))
        }
        None => Err(AnswerFault::Lacks(needed)),
    }
}

/// What may be wrong with a whole, good answer in the eyes of whoever asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaws {
    /// There is nothing in it.
    pub empty: bool,
    pub reasons: Reasons,
}

/// The flaws of an answer that [`check`] has found good. What can't be read has none.
pub fn flaws(api: Api, body: &[u8]) -> Flaws {
    let read = |body| serde_json::from_slice::<Contents<'_>>(body).ok();
    let mut flaws = Flaws::default();
    let Some(contents) = std::str::from_utf8(body).ok().and_then(|_| read(body)) else { return flaws };
    match api {
        Api::Chat | Api::Completions => {
            let choices = contents.choices.unwrap_or_default();
            flaws.empty = choices.iter().all(|choice| !choice.has_content());
            for reason in choices.iter().filter_map(|choice| choice.finish_reason.as_deref()) {
                flaws.reasons.add(reason);
            }
        }
        Api::Embeddings => flaws.empty = contents.data.is_some_and(|data| data.is_empty()),
        Api::Responses => {
            flaws.empty = contents.output.is_some_and(|output| output.is_empty());
            if let Some(reason) = contents.incomplete_details.and_then(|details| details.reason) {
                flaws.reasons.add(&reason);
            }
        }
        Api::Other => {}
    }
    flaws
}

/// The text of the first choice of a chat or completion; `None` if there is none.
pub fn text(api: Api, body: &[u8]) -> Option<String> {
    if !matches!(api, Api::Chat | Api::Completions) {
        return None;
    }
    let contents: Contents<'_> = serde_json::from_slice(body).ok()?;
    let choice = contents.choices?.into_iter().next()?;
    let raw = choice.text.or_else(|| choice.message?.content)?;
    serde_json::from_str(raw.get()).ok()
}

#[derive(Deserialize)]
struct Contents<'a> {
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    data: Option<Vec<IgnoredAny>>,
    output: Option<Vec<IgnoredAny>>,
    #[serde(borrow)]
    incomplete_details: Option<Details<'a>>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    function_call: Option<&'a RawValue>,
}

impl Choice<'_> {
    fn has_content(&self) -> bool {
        // Some engines name all of them, most as null.
        let in_message = self.message.iter().flat_map(|message| {
            let Message { content, reasoning, reasoning_content, refusal, tool_calls, function_call } =
                message;
            [content, reasoning, reasoning_content, refusal, tool_calls, function_call]
        });
        let is_something = |raw: &RawValue| !matches!(raw.get(), "null" | "\"\"" | "[]" | "{}");
        in_message.chain([&self.text]).flatten().any(|raw| is_something(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaws_of_good_answers() {
        let check = |api, body: &str, empty: bool, length: bool, filtered: bool| {
            let expected = Flaws { empty, reasons: Reasons { length, filtered } };
            assert_eq!(flaws(api, body.as_bytes()), expected, "{body}");
        };
        let chat = |message: &str, reason: &str| {
            format!(r#"{{"choices":[{{"index":0,"message":{message},"finish_reason":"{reason}"}}]}}"#)
        };
        check(Api::Chat, &chat(r#"{"content":"a"}"#, "stop"), false, false, false);
        check(Api::Chat, &chat(r#"{"content":"a"}"#, "length"), false, true, false);
        check(Api::Chat, &chat(r#"{"content":""}"#, "content_filter"), true, false, true);
        check(
            Api::Chat,
            &chat(
                r#"{"content":null,"tool_calls":[],"function_call":null,"reasoning":null,"reasoning_content":null}"#,
                "stop",
            ),
            true,
            false,
            false,
        );
        check(Api::Chat, &chat(r#"{"content":null,"tool_calls":[{"id":"1"}]}"#, "stop"), false, false, false);
        check(Api::Completions, r#"{"choices":[{"text":"","finish_reason":null}]}"#, true, false, false);
        check(
            Api::Completions,
            r#"{"choices":[{"text":""},{"text":"b","finish_reason":"length"}]}"#,
            false,
            true,
            false,
        );
        check(Api::Embeddings, r#"{"data":[]}"#, true, false, false);
        check(Api::Embeddings, r#"{"data":[{"embedding":[0.1]}]}"#, false, false, false);
        let details = r#"{"output":[{}],"incomplete_details":{"reason":"max_output_tokens"}}"#;
        check(Api::Responses, details, false, true, false);
        check(Api::Responses, r#"{"output":[],"incomplete_details":null}"#, true, false, false);
        check(Api::Other, "[]", false, false, false);
        check(Api::Chat, "{", false, false, false);
    }

    #[test]
    fn the_text_of_an_answer() {
        let chat = r#"{"choices":[{"message":{"content":"a\u00e9\n"}},{"message":{"content":"b"}}]}"#;
        assert_eq!(text(Api::Chat, chat.as_bytes()).as_deref(), Some("aé\n"));
        let completion = r#"{"choices":[{"text":"a"}]}"#;
        assert_eq!(text(Api::Completions, completion.as_bytes()).as_deref(), Some("a"));
        for none in [r#"{"choices":[{"message":{"content":null}}]}"#, r#"{"choices":[]}"#, "{", "[]"] {
            assert_eq!(text(Api::Chat, none.as_bytes()), None, "{none}");
        }
        assert_eq!(text(Api::Embeddings, completion.as_bytes()), None);
    }

    #[test]
    fn answers_and_what_is_none() {
        let good = |api, body: &str| assert_eq!(check(api, body.as_bytes()), Ok(None), "{body}");
        good(Api::Chat, r#" {"choices":[{"index":0}],"error":null}"#);
        good(Api::Embeddings, r#"{"data":[]}"#);
        good(Api::Responses, r#"{"id":"r","output":[],"error":null}"#);
        good(Api::Other, "[]");
        let usage =
            r#"{"choices":[{}],"usage":{"prompt_tokens":3,"completion_tokens":5.0,"total_tokens":8}}"#;
        assert_eq!(check(Api::Chat, usage.as_bytes()), Ok(Some(Usage { input: 3, output: 5 })));
        let bad = |api, body: &str, expected: &str| {
            let fault = check(api, body.as_bytes()).expect_err(body).to_string();
            assert!(fault.contains(expected), "{fault}");
        };
        for body in ["{}", r#"{"choices":[]}"#, r#"{"choices":null}"#] {
            bad(Api::Chat, body, "no `choices`");
        }
        bad(Api::Completions, r#"{"error":{"message":"out of memory"}}"#, "out of memory");
        bad(Api::Chat, "[[{}]]", "not an object");
        bad(Api::Chat, r#"{"choices":[{"#, "not valid JSON");
        bad(Api::Chat, "null", "not an object");
        bad(Api::Chat, "", "not valid JSON");
        bad(Api::Other, "<html>", "not valid JSON");
        bad(Api::Embeddings, r#"{"choices":[{}]}"#, "no `data`");
    }
}
