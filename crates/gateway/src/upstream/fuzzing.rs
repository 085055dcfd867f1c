//! The parsing and writing of HTTP towards model servers, for `crates/properties`. Not part of the API.

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::wire::{self, BodyDecoder, HeadDecoder, Part};
use crate::headers;

/// The longest head that may pass, in bytes.
pub const MAX_HEAD: usize = wire::MAX_HEAD;

/// An answer as far as it has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not an answer.
    Refused,
    /// The head is not whole.
    Begun,
    Head {
        status: StatusCode,
        headers: HeaderMap,
        keep_alive: bool,
        /// Bytes of the head, informational ones before it included.
        head: usize,
        body: Vec<u8>,
        end: End,
        /// Bytes that came behind the body's end.
        behind: usize,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The body is whole.
    Whole,
    /// It would be if the connection were closed now.
    WholeIfClosed,
    /// More must come.
    Open,
    Malformed,
}

/// Reads an answer to a request of `method` that arrives in `pieces`, as an exchange does.
pub fn read<'a>(method: &Method, pieces: impl IntoIterator<Item = &'a [u8]>) -> Answer {
    let (mut decoder, mut buffer) = (HeadDecoder::default(), BytesMut::new());
    let (mut received, mut pieces) = (0, pieces.into_iter());
    let head = loop {
        let Some(piece) = pieces.next() else { return Answer::Begun };
        buffer.extend_from_slice(piece);
        received += piece.len();
        match decoder.next(&mut buffer, method) {
            Ok(Some(head)) => break head,
            Ok(None) => {}
            Err(_) => return Answer::Refused,
        }
    };
    let length = received - buffer.len();
    let (mut decoder, mut body) = (head.body, Vec::new());
    let mut end = read_body(&mut decoder, &mut buffer, &mut body);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if end == End::Open {
            end = read_body(&mut decoder, &mut buffer, &mut body);
        }
    }
    if end == End::Open && decoder.closed().is_ok() {
        end = End::WholeIfClosed;
    }
    let behind = if end == End::Whole { buffer.len() } else { 0 };
    Answer::Head {
        status: head.status,
        headers: head.headers,
        keep_alive: head.keep_alive,
        head: length,
        body,
        end,
        behind,
    }
}

fn read_body(decoder: &mut BodyDecoder, buffer: &mut BytesMut, body: &mut Vec<u8>) -> End {
    loop {
        match decoder.next(buffer) {
            Ok(Part::Data(data)) => body.extend_from_slice(&data),
            Ok(Part::Incomplete) => return End::Open,
            Ok(Part::End) => return End::Whole,
            Err(_) => return End::Malformed,
        }
    }
}

/// The head that a model server gets for a client's request with a body of `length` bytes.
pub fn request_head(method: &Method, target: &str, client: &HeaderMap, length: usize) -> Vec<u8> {
    let (host, key) = (HeaderValue::from_static("engine:8000"), HeaderValue::from_static("Bearer engine"));
    let headers = headers::to_upstream(client, &host, Some(&key), &HeaderValue::from_static("id"), &[]);
    let mut head = Vec::new();
    wire::encode_head(method, target, &headers, length, &mut head);
    head
}
