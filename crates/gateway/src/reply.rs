//! Answers to clients: whole ones, streams, and errors in OpenAI's shape.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use backstop_openai::error::ErrorBody;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};

use crate::fault::{Fault, Refusal};
use crate::rate;
use crate::record::{REQUEST_ID, Record};
use crate::relay::Relay;

pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-backstop-version");
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-backstop-attempts");
/// Read by OpenAI's SDKs: we have retried already.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The body of an answer.
pub(crate) enum ReplyBody {
    Whole(Bytes),
    Stream(Box<Relay>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(relay) => relay.poll_next(cx).map(|next| next.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// A JSON answer of our own.
pub(crate) fn json(status: StatusCode, body: Bytes) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer to a mistake of the client's. Ends the record.
pub(crate) fn refusal(refusal: &Refusal, record: Record) -> Response<ReplyBody> {
    let mut response = refused(refusal);
    response.headers_mut().insert(REQUEST_ID, record.request_id.clone());
    record.refused(refusal.status().as_u16(), refusal.code());
    response
}

/// The same without a record.
pub(crate) fn refused(refusal: &Refusal) -> Response<ReplyBody> {
    let message = refusal.to_string();
    let (kind, param) = (refusal.kind(), refusal.param());
    let body = ErrorBody { message: &message, kind, param, code: Some(refusal.code()) };
    let mut response = json(refusal.status(), body.to_json());
    match refusal {
        Refusal::NoKey | Refusal::WrongKey | Refusal::WrongToken => {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Refusal::Method { allowed, .. } => {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        Refusal::RateLimited(exceeded) => rate::advise(exceeded, response.headers_mut()),
        // What is left of the body must not be taken for the next request.
        Refusal::Ambiguous(_) | Refusal::TooLarge(_) | Refusal::BodyTimeout | Refusal::Body(_) => {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// The answer when every attempt failed. Ends the record.
pub(crate) fn fault(fault: &Fault, version: &HeaderValue, record: Record) -> Response<ReplyBody> {
    let status = fault.status();
    let passed_on = match fault {
        Fault::Status { body: Some(body), .. } => Some(body.clone()),
        _ => None,
    };
    let body = passed_on.unwrap_or_else(|| {
        let message = fault.to_string();
        ErrorBody { message: &message, kind: fault.kind(), param: None, code: Some(fault.code()) }.to_json()
    });
    let mut response = json(status, body);
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, record.request_id.clone());
    headers.insert(VERSION, version.clone());
    headers.insert(ATTEMPTS, HeaderValue::from(record.attempts()));
    match fault {
        Fault::NoEndpoint | Fault::Closing => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Fault::Overloaded(overload) => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(overload.retry_after.as_secs()));
        }
        Fault::RateLimited(exceeded) => rate::advise(exceeded, headers),
        Fault::Status { retry_after: Some(value), .. } => {
            headers.insert(header::RETRY_AFTER, value.clone());
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        _ => {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
    }
    if matches!(fault, Fault::Closing) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record.failed(status.as_u16(), fault.code());
    response
}
