//! Request bodies: bounded in size and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{Version, header};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::fault::Refusal;

/// The longest request body, in bytes.
pub(crate) const MAX_BODY: usize = 16 * 1024 * 1024;
/// The longest silence within a body.
const IDLE: Duration = Duration::from_secs(15);
/// The longest time for the whole of it.
const WHOLE: Duration = Duration::from_secs(300);
/// How much of a body that is too long is read and thrown away, so that the client gets to see the answer.
const MAX_DISCARDED: usize = 4 * MAX_BODY;

/// Reads a whole body.
pub(crate) async fn read_body(body: Incoming, head: &Parts) -> Result<Bytes, Refusal> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    tokio::time::timeout(WHOLE, read(body, head)).await.unwrap_or(Err(Refusal::BodyTimeout))
}

async fn read(mut body: Incoming, head: &Parts) -> Result<Bytes, Refusal> {
    let declared = head.headers.get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        discard(body, head).await;
        return Err(Refusal::TooLarge(MAX_BODY));
    }
    let Some(first) = next(&mut body, head.version).await? else { return Ok(Bytes::new()) };
    if declared == Some(first.len() as u64) {
        return Ok(first);
    }
    let mut all = BytesMut::from(first);
    while let Some(data) = next(&mut body, head.version).await? {
        all.extend_from_slice(&data);
        if all.len() > MAX_BODY {
            drop(all);
            discard(body, head).await;
            return Err(Refusal::TooLarge(MAX_BODY));
        }
    }
    Ok(all.freeze())
}

async fn next(body: &mut Incoming, version: Version) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = tokio::time::timeout(IDLE, body.frame()).await.map_err(|_| Refusal::BodyTimeout)?;
        match frame.transpose().map_err(|error| Refusal::Body(error.to_string()))? {
            // Hyper takes a stream of HTTP/2 that its client cancels for one that has ended.
            None if version == Version::HTTP_2 && !body.is_end_stream() => {
                return Err(Refusal::Body("the client cancelled it".to_owned()));
            }
            None => return Ok(None),
            Some(frame) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
        }
    }
}

/// A client that asked first (`expect: 100-continue`) is told without having sent anything.
async fn discard(mut body: Incoming, head: &Parts) {
    if head.headers.contains_key(header::EXPECT) {
        return;
    }
    let mut left = MAX_DISCARDED;
    while let Ok(Some(data)) = next(&mut body, head.version).await {
        left = left.saturating_sub(data.len());
        if left == 0 {
            return;
        }
    }
}
