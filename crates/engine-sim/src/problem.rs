//! Error answers in OpenAI's shape.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use crate::body::SimBody;

/// An error a client gets to see.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    kind: &'static str,
    param: Option<&'static str>,
    code: Value,
    message: String,
    /// Seconds.
    retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status.as_u16() {
            400 | 413 | 422 => "invalid_request_error",
            401 => "authentication_error",
            403 => "permission_error",
            404 | 405 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable",
            _ => "server_error",
        };
        Self { status, kind, param: None, code: Value::Null, message: message.into(), retry_after: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        Self::new(StatusCode::NOT_FOUND, message).about("model", "model_not_found")
    }

    pub(crate) fn context_length(limit: u64, asked: u64) -> Self {
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your messages resulted in {asked} \
             tokens. Please reduce the length of the messages."
        );
        Self::invalid(message).about("messages", "context_length_exceeded")
    }

    pub(crate) fn retry_after(mut self, seconds: Option<u64>) -> Self {
        self.retry_after = seconds;
        self
    }

    fn about(mut self, param: &'static str, code: &'static str) -> Self {
        self.param = Some(param);
        self.code = code.into();
        self
    }

    pub(crate) fn json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    pub(crate) fn into_response(self) -> Response<SimBody> {
        let mut response = json_response(Bytes::from(self.json().to_string()));
        *response.status_mut() = self.status;
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// 200 with a JSON body.
pub(crate) fn json_response(body: Bytes) -> Response<SimBody> {
    let mut response = Response::new(SimBody::from(body));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
