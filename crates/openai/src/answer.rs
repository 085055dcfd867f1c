//! Is a plain answer one? A 200 says little: some servers put an error under it, or nothing.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::Api;
use crate::Usage;
use crate::error::message_of;

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

#[cfg(test)]
mod tests {
    use super::*;

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
