//! Everything that can go wrong with a request, whose fault it is, and how it looks to the client.

use std::time::Duration;

use backstop_core::breaker::Outcome;
use backstop_core::rate::{Exceeded, Reason};
use backstop_openai::answer::AnswerFault;
use backstop_openai::error::ErrorBody;
use backstop_openai::stream::EventFault;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::admission::Overload;
use crate::endpoint::Departure;
use crate::upstream::{ConnectError, SendError, WireError};

/// `code` and `type` of what is beyond a rate limit.
const RATE_LIMITED: &str = "rate_limit_exceeded";
const RATE_LIMIT_ERROR: &str = "rate_limit_error";

/// The client's mistake: answered at once, nothing is sent upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is nothing at `{0}`; the API is below `/v1/`")]
    UnknownPath(String),
    #[error("`{path}` does not take {given}, only {allowed}")]
    Method { path: String, given: String, allowed: &'static str },
    #[error("the request is not valid HTTP: {0}")]
    Ambiguous(&'static str),
    #[error("the content type must be `application/json`, not `{0}`")]
    ContentType(String),
    #[error("the request body must not be compressed (`content-encoding: {0}`)")]
    ContentEncoding(String),
    #[error("the request body is longer than {0} bytes")]
    TooLarge(usize),
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    #[error("the request body could not be read: {0}")]
    Body(String),
    #[error("{0}")]
    Peek(#[from] backstop_openai::peek::PeekError),
    #[error("no API key was sent; send it as `authorization: Bearer KEY`")]
    NoKey,
    #[error("the API key is not known")]
    WrongKey,
    #[error("this API key may not use the service `{0}`")]
    NotAllowed(String),
    #[error("the token is not known; send an operator's token as `authorization: Bearer TOKEN`")]
    WrongToken,
    #[error("this needs the role `operator`: {0}")]
    NotOperator(String),
    #[error("the model `{model}` does not exist; there are: {known}")]
    UnknownModel { model: String, known: String },
    #[error(
        "name the service in `model` of a JSON body or in the header `x-backstop-service`; there are: {0}"
    )]
    NoService(String),
    #[error("{0}")]
    RateLimited(Box<Exceeded>),
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath(_) | Self::UnknownModel { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoKey | Self::WrongKey | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::NotAllowed(_) | Self::NotOperator(_) => StatusCode::FORBIDDEN,
            Self::ContentType(_) | Self::ContentEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RateLimited(exceeded) => match exceeded.reason {
                Reason::Wait(_) => StatusCode::TOO_MANY_REQUESTS,
                // Coming back later does not help, which clients would do after a 429.
                Reason::TooLarge(_) => StatusCode::BAD_REQUEST,
            },
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Ambiguous(_) | Self::Body(_) | Self::Peek(_) | Self::NoService(_) => {
                StatusCode::BAD_REQUEST
            }
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::UnknownPath(_) => "unknown_path",
            Self::Method { .. } => "method_not_allowed",
            Self::Ambiguous(_) => "invalid_http",
            Self::ContentType(_) => "unsupported_content_type",
            Self::ContentEncoding(_) => "unsupported_content_encoding",
            Self::TooLarge(_) => "request_too_large",
            Self::BodyTimeout => "request_timeout",
            Self::Body(_) => "request_incomplete",
            Self::Peek(_) => "invalid_request_body",
            Self::NoKey => "missing_api_key",
            Self::WrongKey => "invalid_api_key",
            Self::NotAllowed(_) => "service_not_allowed",
            Self::WrongToken => "invalid_token",
            Self::NotOperator(_) => "operator_only",
            Self::UnknownModel { .. } => "model_not_found",
            Self::NoService(_) => "service_not_named",
            Self::RateLimited(exceeded) => match exceeded.reason {
                Reason::Wait(_) => RATE_LIMITED,
                Reason::TooLarge(_) => "request_exceeds_rate_limit",
            },
        }
    }

    /// `type` of the error.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NoKey | Self::WrongKey | Self::WrongToken => "authentication_error",
            Self::NotAllowed(_) | Self::NotOperator(_) => "permission_error",
            Self::RateLimited(exceeded) if matches!(exceeded.reason, Reason::Wait(_)) => RATE_LIMIT_ERROR,
            _ => "invalid_request_error",
        }
    }

    pub(crate) fn param(&self) -> Option<&'static str> {
        match self {
            Self::Peek(error) => error.param(),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        }
    }
}

/// An attempt that did not bring an answer, or brought only part of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the upstream can't be reached: {0}")]
    Connect(ConnectError),
    #[error("the connection to the upstream was lost: {0}")]
    Lost(WireError),
    /// By HTTP/2, without a word.
    #[error("the upstream has enough to do: {0}")]
    Refused(WireError),
    #[error("the upstream answered {status}{}", detail(message))]
    Status {
        status: StatusCode,
        retry_after: Option<HeaderValue>,
        /// The body, if it is an error in OpenAI's shape.
        body: Option<Bytes>,
        message: Option<String>,
    },
    #[error("the upstream refused the gateway's credentials ({0})")]
    Credentials(StatusCode),
    #[error("no first token within {0:?}")]
    FirstToken(Duration),
    #[error("no answer within {0:?}")]
    Response(Duration),
    #[error("the stream stood still for {0:?}")]
    Stalled(Duration),
    #[error("{0}")]
    Event(EventFault),
    #[error("{0}")]
    EventTooLong(#[from] backstop_openai::sse::EventTooLong),
    #[error("the upstream ended the stream before the answer was complete")]
    Truncated,
    #[error("{0}")]
    Answer(#[from] AnswerFault),
    #[error("the upstream sent a stream that was not asked for")]
    UnexpectedStream,
    #[error("the upstream sent a plain answer where a stream was asked for")]
    NoStream,
    #[error("the upstream redirects ({0}); the endpoint's `url` may have to be another")]
    Redirect(StatusCode),
    #[error("the upstream's answer is longer than {0} bytes")]
    TooLarge(usize),
    #[error("the upstream was found unhealthy while it owed an answer")]
    Unhealthy,
    #[error("the upstream was taken out while it owed an answer")]
    TakenOut,
    #[error("no healthy endpoint")]
    NoEndpoint,
    #[error("{0}")]
    Overloaded(Overload),
    /// Beyond a limit of the service's own.
    #[error("{0}")]
    RateLimited(Box<Exceeded>),
    #[error("the request took longer than {0:?} in total")]
    Total(Duration),
    #[error("the gateway is shutting down")]
    Closing,
}

fn detail(message: &Option<String>) -> String {
    message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
}

impl From<SendError> for Fault {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Connect(error) => Self::Connect(error),
            SendError::Exchange(error @ WireError::Refused(_)) => Self::Refused(error),
            SendError::Exchange(error) => Self::Lost(error),
        }
    }
}

impl From<Departure> for Fault {
    fn from(departure: Departure) -> Self {
        match departure {
            Departure::Dead => Self::Unhealthy,
            Departure::Ordered => Self::TakenOut,
        }
    }
}

impl Fault {
    /// What it says about the endpoint.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            // Back-pressure is not a fault.
            fault if fault.is_back_pressure() => Outcome::Neutral,
            // A server that goes away. Whether it comes back, checks tell.
            Self::Lost(WireError::NotProcessed(_)) => Outcome::Neutral,
            Self::NoEndpoint | Self::TakenOut | Self::Total(_) | Self::Closing | Self::Credentials(_) => {
                Outcome::Neutral
            }
            Self::Overloaded(_) | Self::RateLimited(_) => Outcome::Neutral,
            // An answer beyond our limits is a matter of the request.
            Self::TooLarge(_) | Self::EventTooLong(_) | Self::Redirect(_) => Outcome::Neutral,
            _ => Outcome::Failure,
        }
    }

    /// There is more to do than the service takes, or than the endpoint does.
    pub(crate) fn is_overload(&self) -> bool {
        matches!(self, Self::Overloaded(_) | Self::RateLimited(_)) || self.is_back_pressure()
    }

    /// The endpoint is alive but has too much to do.
    pub(crate) fn is_back_pressure(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status.as_u16(), 429 | 503),
            Self::Refused(_) => true,
            _ => false,
        }
    }

    /// How long the endpoint asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let Self::Status { retry_after: Some(value), .. } = self else { return None };
        value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
    }

    /// The endpoint does not exist any more, as far as the request is concerned: another takes its place.
    pub(crate) fn endpoint_is_gone(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Lost(_) | Self::Unhealthy | Self::TakenOut | Self::Truncated)
    }

    /// Whether the rest of a stream that ended so may be had elsewhere.
    pub(crate) fn leaves_the_rest_open(&self) -> bool {
        !matches!(self, Self::EventTooLong(_) | Self::Total(_) | Self::Closing)
    }

    /// Whether the same request may fare better in another attempt.
    pub(crate) fn is_retryable(&self) -> bool {
        let hopeless = matches!(self, Self::TooLarge(_) | Self::EventTooLong(_));
        let ours = matches!(self, Self::Overloaded(_) | Self::RateLimited(_));
        !hopeless && !ours && !matches!(self, Self::NoEndpoint | Self::Total(_) | Self::Closing)
    }

    /// The upstream said nothing: asking the same one again would only double the wait.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::FirstToken(_)
                | Self::Response(_)
                | Self::Stalled(_)
                | Self::Unhealthy
                | Self::Connect(ConnectError::Timeout(_))
        )
    }

    /// Whether the same endpoint, after a pause, may fare better with the same request.
    pub(crate) fn may_pass(&self) -> bool {
        self.is_retryable() && !self.is_silence() && !matches!(self, Self::Credentials(_) | Self::Redirect(_))
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Status { status, .. } => *status,
            Self::FirstToken(_) | Self::Response(_) | Self::Stalled(_) | Self::Total(_) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::NoEndpoint | Self::Closing | Self::Overloaded(_) | Self::Refused(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Connect(_) => "upstream_unreachable",
            Self::Lost(_) => "upstream_disconnected",
            Self::Refused(_) => "upstream_refused",
            Self::Status { .. } => "upstream_status",
            Self::Credentials(_) => "upstream_credentials",
            Self::FirstToken(_) => "first_token_timeout",
            Self::Response(_) => "response_timeout",
            Self::Stalled(_) => "upstream_stalled",
            Self::Event(EventFault::InBand(_)) => "upstream_stream_error",
            Self::Event(EventFault::Malformed(_)) | Self::EventTooLong(_) => "upstream_malformed_event",
            Self::Redirect(_) => "upstream_redirect",
            Self::Truncated | Self::Event(EventFault::Unfinished) => "upstream_truncated",
            Self::Unhealthy => "upstream_unhealthy",
            Self::TakenOut => "upstream_taken_out",
            Self::Answer(_) | Self::UnexpectedStream | Self::NoStream => "upstream_malformed_answer",
            Self::TooLarge(_) => "upstream_answer_too_large",
            Self::NoEndpoint => "no_healthy_endpoint",
            Self::Overloaded(_) => "overloaded",
            Self::RateLimited(_) => RATE_LIMITED,
            Self::Total(_) => "total_timeout",
            Self::Closing => "shutting_down",
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::FirstToken(_) | Self::Response(_) | Self::Stalled(_) | Self::Total(_) => "timeout_error",
            Self::NoEndpoint | Self::Closing => "service_unavailable_error",
            Self::Overloaded(_) => "overloaded_error",
            Self::RateLimited(_) => RATE_LIMIT_ERROR,
            _ => "upstream_error",
        }
    }

    /// The error event that ends a stream which can't be completed.
    pub(crate) fn to_event(&self) -> Bytes {
        let message = self.to_string();
        ErrorBody { message: &message, kind: self.kind(), param: None, code: Some(self.code()) }.to_event()
    }
}
