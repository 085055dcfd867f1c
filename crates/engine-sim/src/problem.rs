//! Error answers: in OpenAI's shape, or in that of the engine imitated where they tell it apart.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use crate::body::SimBody;
use crate::config::Dialect;
use crate::fault::PolicyCode;

/// An error a client gets to see.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    body: Value,
    /// Seconds.
    retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self::openai(status, None, None, message.into())
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        Self::openai(StatusCode::NOT_FOUND, Some("model"), Some("model_not_found"), message)
    }

    /// `asked` is how many tokens the answer was to have, 0 if only the prompt is too long.
    pub(crate) fn context_length(dialect: Dialect, limit: u64, prompt: u64, asked: u64) -> Self {
        let whole = prompt.saturating_add(asked);
        let openai = match asked {
            0 => format!(
                "This model's maximum context length is {limit} tokens. However, your messages resulted in {prompt} \
                 tokens. Please reduce the length of the messages."
            ),
            _ => format!(
                "This model's maximum context length is {limit} tokens. However, you requested {whole} tokens \
                 ({prompt} in the messages, {asked} in the completion). Please reduce the length of the messages or \
                 completion."
            ),
        };
        let status = StatusCode::BAD_REQUEST;
        match dialect {
            Dialect::OpenAi => {
                Self::openai(status, Some("messages"), Some("context_length_exceeded"), openai)
            }
            Dialect::Vllm => Self::of_engine(dialect, status, openai),
            Dialect::Sglang if asked > 0 => {
                let message = format!(
                    "Requested token count exceeds the model's maximum context length of {limit} tokens. You \
                     requested a total of {whole} tokens: {prompt} tokens from the input messages and {asked} \
                     tokens for the completion."
                );
                Self::of_engine(dialect, status, message)
            }
            Dialect::Sglang => {
                let message = format!(
                    "The input ({prompt} tokens) is longer than the model's context length ({limit} tokens)."
                );
                Self::of_engine(dialect, status, message)
            }
            Dialect::LlamaCpp => {
                let message = format!(
                    "request ({prompt} tokens) exceeds the available context size ({limit} tokens), try increasing it"
                );
                let mut problem = Self::of_engine(dialect, status, message);
                problem.body["error"]["type"] = "exceed_context_size_error".into();
                problem.body["error"]["n_prompt_tokens"] = prompt.into();
                problem.body["error"]["n_ctx"] = limit.into();
                problem
            }
        }
    }

    pub(crate) fn prefill_rejected(dialect: Dialect) -> Self {
        let message = match dialect {
            Dialect::Vllm | Dialect::Sglang => {
                "continue_final_message is set but the final message does not appear in the chat after applying the \
                 chat template."
            }
            Dialect::LlamaCpp => "Assistant response prefill is incompatible with enable_thinking.",
            Dialect::OpenAi => {
                "This model does not support assistant message prefill. The conversation must end with a user message."
            }
        };
        Self::of_engine(dialect, StatusCode::BAD_REQUEST, message.to_owned())
    }

    pub(crate) fn content_policy(code: PolicyCode) -> Self {
        let status = StatusCode::BAD_REQUEST;
        match code {
            PolicyCode::ContentPolicyViolation => {
                let message = "Your request was rejected by the safety system.".to_owned();
                Self::openai(status, None, Some("content_policy_violation"), message)
            }
            PolicyCode::ContentFilter => {
                let message = "The prompt was filtered by the content management policy.".to_owned();
                let mut problem = Self::openai(status, Some("prompt"), Some("content_filter"), message);
                problem.body["error"]["type"] = Value::Null;
                problem.body["error"]["status"] = 400.into();
                problem.body["error"]["innererror"] = json!({
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {
                        "hate": {"filtered": false, "severity": "safe"},
                        "violence": {"filtered": true, "severity": "high"},
                    },
                });
                problem
            }
        }
    }

    pub(crate) fn retry_after(mut self, seconds: Option<u64>) -> Self {
        self.retry_after = seconds;
        self
    }

    fn openai(status: StatusCode, param: Option<&str>, code: Option<&str>, message: String) -> Self {
        let kind = match status.as_u16() {
            400 | 413 | 422 => "invalid_request_error",
            401 => "authentication_error",
            403 => "permission_error",
            404 | 405 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable",
            _ => "server_error",
        };
        let body = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
        Self { status, body, retry_after: None }
    }

    /// As the engine itself writes its errors.
    fn of_engine(dialect: Dialect, status: StatusCode, message: String) -> Self {
        let code = status.as_u16();
        let python = if status.is_client_error() { "BadRequestError" } else { "InternalServerError" };
        let openai = Self::openai(status, None, None, message.clone());
        let body = match dialect {
            Dialect::OpenAi => return openai,
            Dialect::Vllm => {
                json!({"error": {"message": message, "type": python, "param": null, "code": code}})
            }
            Dialect::Sglang => {
                json!({"object": "error", "message": message, "type": python, "param": null, "code": code})
            }
            Dialect::LlamaCpp => {
                json!({"error": {"code": code, "message": message, "type": openai.body["error"]["type"]}})
            }
        };
        Self { body, ..openai }
    }

    pub(crate) fn into_response(self) -> Response<SimBody> {
        let mut response = json_response(Bytes::from(self.body.to_string()));
        *response.status_mut() = self.status;
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// The data of an event inside a stream that reports an error, as the engine writes it.
pub(crate) fn error_in_stream(dialect: Dialect) -> Value {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let problem = Problem::of_engine(dialect, status, "simulated error in the stream".to_owned());
    match dialect {
        // Only here does SGLang use the envelope.
        Dialect::Sglang => json!({"error": problem.body}),
        _ => problem.body,
    }
}

/// 200 with a JSON body.
pub(crate) fn json_response(body: Bytes) -> Response<SimBody> {
    let mut response = Response::new(SimBody::from(body));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
