//! Request bodies: bounded in size and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
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
pub(crate) async fn read_body(body: Incoming, headers: &HeaderMap) -> Result<Bytes, Refusal> {
    if http_body::Body::is_end_stream(&body) {
        return Ok(Bytes::new());
    }
    tokio::time::timeout(WHOLE, read(body, headers)).await.unwrap_or(Err(Refusal::BodyTimeout))
}

async fn read(mut body: Incoming, headers: &HeaderMap) -> Result<Bytes, Refusal> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        discard(body, headers).await;
        return Err(Refusal::TooLarge(MAX_BODY));
    }
    let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
    if declared == Some(first.len() as u64) {
        return Ok(first);
    }
    let mut all = BytesMut::from(first);
    while let Some(data) = next(&mut body).await? {
        all.extend_from_slice(&data);
        if all.len() > MAX_BODY {
            drop(all);
            discard(body, headers).await;
            return Err(Refusal::TooLarge(MAX_BODY));
        }
    }
    Ok(all.freeze())
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = tokio::time::timeout(IDLE, body.frame()).await.map_err(|_| Refusal::BodyTimeout)?;
        match frame.transpose().map_err(Refusal::Body)? {
            None => return Ok(None),
            Some(frame) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
        }
    }
}

/// A client that asked first (`expect: 100-continue`) is told without having sent anything.
async fn discard(mut body: Incoming, headers: &HeaderMap) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let mut left = MAX_DISCARDED;
    while let Ok(Some(data)) = next(&mut body).await {
        left = left.saturating_sub(data.len());
        if left == 0 {
            return;
        }
    }
}
