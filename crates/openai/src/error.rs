//! Error bodies and error events in the shape that OpenAI's clients read.

use bytes::Bytes;
use serde::Serialize;

/// `{"error": {"message", "type", "param", "code"}}`; all four keys are always present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody<'a> {
    pub message: &'a str,
    /// The class of error, such as `invalid_request_error` or `upstream_error`.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The request field at fault.
    pub param: Option<&'a str>,
    /// A stable, machine-readable name.
    pub code: Option<&'a str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: &'a ErrorBody<'a>,
}

impl ErrorBody<'_> {
    /// The JSON of an error answer.
    pub fn to_json(&self) -> Bytes {
        Bytes::from(self.to_string())
    }

    /// The same as a server-sent event. No `[DONE]` may follow it: its absence is how clients see that the
    /// answer is not complete.
    pub fn to_event(&self) -> Bytes {
        Bytes::from(format!("data: {self}\n\n"))
    }
}

impl std::fmt::Display for ErrorBody<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let json = serde_json::to_string(&Envelope { error: self }).map_err(|_| std::fmt::Error)?;
        f.write_str(&json)
    }
}

/// Whether `body` is an error in OpenAI's shape, so that it can be passed on as it is.
pub fn is_error_body(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Probe {
        error: Inner,
    }
    #[derive(serde::Deserialize)]
    struct Inner {
        #[serde(rename = "message")]
        _message: String,
    }
    serde_json::from_slice::<Probe>(body).is_ok_and(|probe| {
        let Inner { _message } = probe.error;
        true
    })
}

/// The message inside an error body of any engine: `error.message`, `error`, `message` or `detail`.
pub fn message_of(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let candidates =
        [value.pointer("/error/message"), value.get("error"), value.get("message"), value.get("detail")];
    candidates.into_iter().flatten().find_map(|found| found.as_str()).map(str::to_owned)
}

/// Whether a refusal says that the prompt is longer than the model's context. Engines that have no code for it say it in
/// words.
pub fn is_context_length(body: &[u8]) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let Some(value) = value else { return false };
    let says = |pointer: &str, what: &str| value.pointer(pointer).is_some_and(|found| found == what);
    if says("/error/code", "context_length_exceeded") || says("/error/type", "exceed_context_size_error") {
        return true;
    }
    let message = message_of(body).unwrap_or_default().to_ascii_lowercase();
    ["maximum context length", "context length is", "model's context length", "maximum allowed length"]
        .iter()
        .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_has_all_four_keys() {
        let body = ErrorBody {
            message: "no \"x\"",
            kind: "invalid_request_error",
            param: Some("model"),
            code: None,
        };
        assert_eq!(
            body.to_json(),
            r#"{"error":{"message":"no \"x\"","type":"invalid_request_error","param":"model","code":null}}"#
        );
        assert!(is_error_body(&body.to_json()));
        assert!(body.to_event().starts_with(b"data: {\"error\"") && body.to_event().ends_with(b"}\n\n"));
    }

    #[test]
    fn a_context_that_is_too_short() {
        for (body, expected) in [
            (r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#, true),
            (r#"{"error":{"code":400,"message":"x","type":"exceed_context_size_error"}}"#, true),
            (r#"{"error":{"message":"This model's maximum context length is 4096 tokens."}}"#, true),
            (
                r#"{"object":"error","message":"The input is longer than the model's context length (8192 tokens)."}"#,
                true,
            ),
            (r#"{"error":{"message":"`temperature` must be positive"}}"#, false),
            ("<html>", false),
        ] {
            assert_eq!(is_context_length(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn messages_of_engines() {
        for (body, expected) in [
            (r#"{"error":{"message":"a"}}"#, Some("a")),
            (r#"{"error":"b"}"#, Some("b")),
            (r#"{"object":"error","message":"c"}"#, Some("c")),
            (r#"{"detail":"d"}"#, Some("d")),
            ("{}", None),
            ("<html>", None),
        ] {
            assert_eq!(message_of(body.as_bytes()).as_deref(), expected, "{body}");
        }
        assert!(!is_error_body(br#"{"error":"b"}"#));
    }
}
