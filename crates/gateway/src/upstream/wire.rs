//! HTTP/1.1 on the wire, as a client: requests out, heads and bodies in. No I/O.
//!
//! Strict where an answer could be misread (lengths, codings, chunk sizes), lenient nowhere else than the standard asks.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::InvalidHeaderName;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use memchr::memchr;

/// The longest head of an answer, informational ones before it included, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;
/// The longest line of chunk framing (size and extensions, or a trailer), in bytes.
const MAX_LINE: usize = 4096;
/// All trailers together, in bytes.
const MAX_TRAILERS: usize = 64 * 1024;

/// What came is not an answer, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{0}")]
    Io(std::io::Error),
    #[error("closed before an answer")]
    Closed,
    #[error("closed in the middle of the answer")]
    Truncated,
    #[error("the answer is not valid HTTP: {0}")]
    Malformed(&'static str),
    /// Whatever ends a stream of HTTP/2 before its time.
    #[error("{0}")]
    Reset(String),
    /// The connection is about to end, and the server has surely not begun to work on the request.
    #[error("not taken: {0}")]
    NotProcessed(String),
    /// The connection goes on, but the server has surely not begun to work on the request.
    #[error("refused: {0}")]
    Refused(String),
}

impl From<std::io::Error> for WireError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // How TLS says that a connection was closed without a word.
            std::io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// Writes the head of a request with a body of `length` bytes.
pub(super) fn encode_head(
    method: &Method,
    target: &str,
    headers: &HeaderMap,
    length: usize,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if length > 0 || !matches!(*method, Method::GET | Method::HEAD | Method::DELETE) {
        out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// The head of an answer, and how its body is framed.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: BodyDecoder,
    /// The connection can carry another request once the body has ended.
    pub(super) keep_alive: bool,
}

/// Reads the head of one answer and skips informational ones before it.
#[derive(Debug, Default)]
pub(super) struct HeadDecoder {
    /// Bytes of informational answers so far.
    skipped: usize,
}

impl HeadDecoder {
    /// Takes the head off the front of `buffer`; `None` if it is not whole yet.
    pub(super) fn next(&mut self, buffer: &mut BytesMut, method: &Method) -> Result<Option<Head>, WireError> {
        loop {
            let parsed = parse_head(buffer)?;
            let length = parsed.as_ref().map_or(buffer.len(), |head| head.length);
            // Also when it is whole: what passes must not depend on how it was cut on its way.
            if self.skipped + length > MAX_HEAD {
                return Err(WireError::Malformed("the head is too long"));
            }
            let Some(ParsedHead { status, version, places, .. }) = parsed else { return Ok(None) };
            let head = buffer.split_to(length).freeze();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(WireError::Malformed("an upgrade that was not asked for"));
            }
            if status.is_informational() {
                self.skipped += length;
                continue;
            }
            let mut headers = HeaderMap::with_capacity(places.len() + 4);
            for (name, place) in places {
                let name = name.map_err(|_| WireError::Malformed("a header's name"))?;
                let value = HeaderValue::from_maybe_shared(head.slice(place));
                headers.append(name, value.map_err(|_| WireError::Malformed("a header's value"))?);
            }
            let (body, framed) = framing(status, version, &headers, method)?;
            let keep_alive = framed && keeps_alive(version, &headers);
            return Ok(Some(Head { status, headers, body, keep_alive }));
        }
    }
}

/// A head that is whole, still in its buffer.
struct ParsedHead {
    length: usize,
    status: StatusCode,
    version: Version,
    /// Where the values stand in the head, so that they can share its memory.
    places: Vec<(Result<HeaderName, InvalidHeaderName>, Range<usize>)>,
}

/// `None` if it is not whole yet.
fn parse_head(buffer: &[u8]) -> Result<Option<ParsedHead>, WireError> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut slots);
    let length = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(WireError::Malformed("the head has too many headers"));
        }
        Err(_) => return Err(WireError::Malformed("the head can't be parsed")),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(WireError::Malformed("the status"))?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let base = buffer.as_ptr() as usize;
    let places = parsed.headers.iter().map(|header| {
        let start = header.value.as_ptr() as usize - base;
        (HeaderName::from_bytes(header.name.as_bytes()), start..start + header.value.len())
    });
    Ok(Some(ParsedHead { length, status, version, places: places.collect() }))
}

/// RFC 9112, section 6.3. The second value tells whether the end of the body is known without closing.
fn framing(
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
    method: &Method,
) -> Result<(BodyDecoder, bool), WireError> {
    let length = content_length(headers)?;
    let is_chunked = is_chunked(version, headers)?;
    // Where the standard leaves a choice for a message with both, this is the one that can't be misread.
    if is_chunked && length.is_some() {
        return Err(WireError::Malformed("both a length and chunks"));
    }
    if *method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        return Ok((BodyDecoder::Length(0), true));
    }
    if status == StatusCode::NO_CONTENT {
        // One that announces a body may well send it.
        return Ok((BodyDecoder::Length(0), !is_chunked && length.unwrap_or(0) == 0));
    }
    Ok(match length {
        _ if is_chunked => (BodyDecoder::Chunked(Chunk::Size), true),
        Some(length) => (BodyDecoder::Length(length), true),
        None => (BodyDecoder::UntilClose, false),
    })
}

/// Any other coding than `chunked` was not asked for (we send no `te`), and would be lost on the way to the client.
fn is_chunked(version: Version, headers: &HeaderMap) -> Result<bool, WireError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(only), None)
            if version == Version::HTTP_11 && only.as_bytes().eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(true)
        }
        _ => Err(WireError::Malformed("the transfer coding")),
    }
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, WireError> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for part in value.to_str().unwrap_or("?").split(',') {
            let part = part.trim();
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let given = part.parse::<u64>().ok().filter(|_| digits);
            let given = given.ok_or(WireError::Malformed("the content length"))?;
            if length.is_some_and(|other| other != given) {
                return Err(WireError::Malformed("two content lengths"));
            }
            length = Some(given);
        }
    }
    Ok(length)
}

fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |word: &str| {
        let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    if version == Version::HTTP_11 { !says("close") } else { says("keep-alive") }
}

/// Where in a body we are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyDecoder {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunk),
    /// The body ends with the connection.
    UntilClose,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before a chunk's size.
    Size,
    /// Within its data; so many bytes are still to come.
    Data(u64),
    /// Before the line end after its data.
    DataEnd,
    /// After the last chunk; so many bytes of trailers have been read.
    Trailers(usize),
    End,
}

/// The next part of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Data(Bytes),
    /// More has to be read first.
    Incomplete,
    End,
}

impl BodyDecoder {
    /// The head gave a length that is greater than `limit`.
    pub(super) fn announces_more_than(&self, limit: usize) -> bool {
        matches!(self, Self::Length(length) if *length > limit as u64)
    }

    /// Takes the next part off the front of `buffer`.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Part, WireError> {
        match self {
            Self::Length(0) => Ok(Part::End),
            Self::Length(left) => Ok(take(buffer, left)),
            Self::UntilClose => Ok(take(buffer, &mut u64::MAX.clone())),
            Self::Chunked(chunk) => chunk.next(buffer),
        }
    }

    /// The connection was closed: a proper end, or one in the middle.
    pub(super) fn closed(&self) -> Result<Part, WireError> {
        if matches!(self, Self::UntilClose) { Ok(Part::End) } else { Err(WireError::Truncated) }
    }
}

fn take(buffer: &mut BytesMut, left: &mut u64) -> Part {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    if length == 0 {
        return Part::Incomplete;
    }
    *left -= length as u64;
    Part::Data(buffer.split_to(length).freeze())
}

impl Chunk {
    fn next(&mut self, buffer: &mut BytesMut) -> Result<Part, WireError> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = take_line(buffer)? else { return Ok(Part::Incomplete) };
                    *self = match chunk_size(&line)? {
                        0 => Self::Trailers(0),
                        size => Self::Data(size),
                    };
                }
                Self::Data(0) => *self = Self::DataEnd,
                Self::Data(left) => return Ok(take(buffer, left)),
                Self::DataEnd => match take_line(buffer)? {
                    None => return Ok(Part::Incomplete),
                    Some(line) if line.is_empty() => *self = Self::Size,
                    Some(_) => return Err(WireError::Malformed("a chunk is longer than it says")),
                },
                Self::Trailers(read) => {
                    let Some(line) = take_line(buffer)? else { return Ok(Part::Incomplete) };
                    *read += line.len();
                    if line.is_empty() {
                        *self = Self::End;
                    } else if *read > MAX_TRAILERS {
                        return Err(WireError::Malformed("the trailers are too long"));
                    }
                }
                Self::End => return Ok(Part::End),
            }
        }
    }
}

/// A line without its end, if it is whole.
fn take_line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, WireError> {
    let Some(newline) = memchr(b'\n', buffer) else {
        return if buffer.len() > MAX_LINE {
            Err(WireError::Malformed("a line of chunk framing is too long"))
        } else {
            Ok(None)
        };
    };
    let mut line = buffer.split_to(newline + 1);
    if newline > MAX_LINE || !line.ends_with(b"\r\n") {
        return Err(WireError::Malformed("a line of chunk framing"));
    }
    line.truncate(newline - 1);
    Ok(Some(line))
}

fn chunk_size(line: &[u8]) -> Result<u64, WireError> {
    let end = line.iter().position(|byte| matches!(byte, b';' | b' ' | b'\t')).unwrap_or(line.len());
    let digits = &line[..end];
    let extension = line[end..].trim_ascii_start();
    let text =
        std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let size = text.and_then(|text| u64::from_str_radix(text, 16).ok());
    let valid = extension.is_empty() || extension.starts_with(b";");
    size.filter(|_| valid).ok_or(WireError::Malformed("a chunk's size"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Option<Head>, WireError> {
        HeadDecoder::default().next(&mut BytesMut::from(text), &Method::POST)
    }

    /// All data of a body that arrives in pieces of `step` bytes, and whether it ended.
    fn body(decoder: BodyDecoder, wire: &[u8], step: usize) -> Result<(Vec<u8>, bool), WireError> {
        let (mut decoder, mut buffer, mut data) = (decoder, BytesMut::new(), Vec::new());
        for piece in wire.chunks(step.max(1)) {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.next(&mut buffer)? {
                    Part::Data(bytes) => data.extend_from_slice(&bytes),
                    Part::Incomplete => break,
                    Part::End => return Ok((data, true)),
                }
            }
        }
        Ok((data, false))
    }

    #[test]
    fn heads() {
        let ok = head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
            .expect("valid")
            .expect("whole");
        assert_eq!((ok.status, ok.body, ok.keep_alive), (StatusCode::OK, BodyDecoder::Length(5), true));
        assert_eq!(ok.headers.get_all("x-a").iter().count(), 2);
        assert!(head("HTTP/1.1 200 OK\r\nContent-Le").expect("so far").is_none());
        let after = head("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(after.expect("valid").expect("whole").status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn framings() {
        let check = |headers: &str, body: BodyDecoder, keep_alive: bool| {
            let found = head(&format!("{headers}\r\n\r\n")).expect(headers).expect("whole");
            assert_eq!((found.body, found.keep_alive), (body, keep_alive), "{headers}");
        };
        let chunked = || BodyDecoder::Chunked(Chunk::Size);
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", chunked(), true);
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked \r\nconnection: close", chunked(), false);
        check("HTTP/1.1 200 OK", BodyDecoder::UntilClose, false);
        check("HTTP/1.1 200 OK\r\ncontent-length: 7, 7", BodyDecoder::Length(7), true);
        check("HTTP/1.0 200 OK\r\ncontent-length: 7", BodyDecoder::Length(7), false);
        check("HTTP/1.0 200 OK\r\ncontent-length: 7\r\nconnection: keep-alive", BodyDecoder::Length(7), true);
        check("HTTP/1.1 204 No Content", BodyDecoder::Length(0), true);
        check("HTTP/1.1 204 No Content\r\ncontent-length: 0", BodyDecoder::Length(0), true);
        check("HTTP/1.1 204 No Content\r\ncontent-length: 5", BodyDecoder::Length(0), false);
        check("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked", BodyDecoder::Length(0), false);
        check("HTTP/1.1 304 Not Modified\r\ncontent-length: 5", BodyDecoder::Length(0), true);
    }

    #[test]
    fn bad_heads() {
        for bad in [
            "garbage\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(head(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn heads_are_bounded() {
        let long = |value: usize| format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(value));
        assert!(head(&long(MAX_HEAD - 100)).is_ok_and(|head| head.is_none()), "more may come");
        assert!(head(&long(MAX_HEAD)).is_err());
        assert!(head(&(long(MAX_HEAD) + "\r\n\r\n")).is_err(), "even if all of it came at once");
        let headers = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: 1\r\n".repeat(count));
        assert!(head(&headers(MAX_HEADERS)).is_ok_and(|head| head.is_some()));
        assert!(head(&headers(MAX_HEADERS + 1)).is_err());
        // Informational answers without end are no way around it.
        let (mut decoder, mut buffer) = (HeadDecoder::default(), BytesMut::new());
        let flood = (0..10_000).position(|_| {
            buffer.extend_from_slice(b"HTTP/1.1 102 Processing\r\n\r\n");
            decoder.next(&mut buffer, &Method::POST).is_err()
        });
        assert!(flood.is_some_and(|count| count < MAX_HEAD / 20));
    }

    #[test]
    fn chunks_in_pieces() {
        let wire = b"5\r\nhello\r\n6;name=\"x\"\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n";
        for step in 1..=wire.len() {
            let (data, ended) = body(BodyDecoder::Chunked(Chunk::Size), wire, step).expect("valid");
            assert_eq!((data.as_slice(), ended), (&b"hello world"[..], true), "in pieces of {step}");
        }
    }

    #[test]
    fn bad_chunks() {
        let long = "a".repeat(5000);
        for bad in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "+5\r\nhello\r\n",
            "5\nhello\r\n",
            "3\r\nhello\r\n",
            "5 5\r\n",
            "11111111111111111\r\n",
            long.as_str(),
        ] {
            assert!(body(BodyDecoder::Chunked(Chunk::Size), bad.as_bytes(), 7).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_closed_connection_ends_only_what_has_no_other_end() {
        assert!(matches!(BodyDecoder::UntilClose.closed(), Ok(Part::End)));
        assert!(BodyDecoder::Length(1).closed().is_err());
        assert!(BodyDecoder::Chunked(Chunk::Trailers(0)).closed().is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, step in 1usize..20) {
            let _ = HeadDecoder::default().next(&mut BytesMut::from(&bytes[..]), &Method::GET);
            let _ = body(BodyDecoder::Chunked(Chunk::Size), &bytes, step);
        }
    }
}
