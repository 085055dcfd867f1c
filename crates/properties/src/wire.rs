use backstop_gateway::fuzzing::{Answer, End, MAX_HEAD, read};
use http::{HeaderMap, Method, StatusCode, header};

use crate::cuts::cuts;

/// A model server's answer is the same however it is cut; its head is bounded and its length beyond doubt; its body is
/// what a naive reader finds, to the byte; and a connection is kept only if the end of the body is known.
pub fn wire(bytes: &[u8]) {
    for method in [Method::POST, Method::HEAD] {
        let answer = read(&method, [bytes]);
        for pieces in cuts(bytes) {
            assert_eq!(read(&method, pieces), answer);
        }
        match &answer {
            Answer::Refused => {}
            Answer::Begun => assert!(bytes.len() <= MAX_HEAD),
            Answer::Head { .. } => is_sound(bytes, &method, &answer),
        }
    }
}

fn is_sound(bytes: &[u8], method: &Method, answer: &Answer) {
    let Answer::Head { status, headers, keep_alive, head, body, end, behind } = answer else { return };
    let (before, after) = bytes.split_at(*head);
    assert!(*head <= MAX_HEAD);
    assert!(before.ends_with(b"\n\n") || before.ends_with(b"\n\r\n"));
    assert!(!status.is_informational());
    for value in headers.values() {
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{value:?}");
    }
    let coding: Vec<_> = headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    assert!(
        coding.is_empty() || (coding.len() == 1 && coding[0].as_bytes().eq_ignore_ascii_case(b"chunked"))
    );
    let is_chunked = !coding.is_empty();
    let length = length(headers);
    assert!(!is_chunked || length.is_none(), "length and chunks");

    let (expected, whole) =
        if *method == Method::HEAD || matches!(*status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            (Vec::new(), Some(after.len()))
        } else if is_chunked {
            let Some((data, behind)) = dechunk(after) else {
                // A naive reader knows no bounds, so that only this side is sure.
                assert!(*end != End::Whole);
                return;
            };
            if *end == End::Malformed {
                return;
            }
            (data, behind)
        } else if let Some(length) = length {
            let there = after.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let whole = there as u64 == length;
            (after[..there].to_vec(), whole.then(|| after.len() - there))
        } else {
            assert_eq!((*end == End::WholeIfClosed, *keep_alive), (true, false));
            (after.to_vec(), None)
        };
    assert_eq!(*body, expected);
    assert_eq!(*end == End::Whole, whole.is_some());
    assert_eq!(*behind, whole.unwrap_or(0));
}

/// The one length that all values agree on.
fn length(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut all = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let parse = |text: &[u8]| {
        let text = std::str::from_utf8(text.trim_ascii()).expect("digits");
        assert!(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
        text.parse::<u64>().expect("a length")
    };
    let first = all.next().map(parse)?;
    assert!(all.all(|other| parse(other) == first));
    Some(first)
}

/// The data of a chunked body as far as it has come and, if it is whole, how many bytes are behind it; `None` if it is
/// not well-formed.
fn dechunk(mut rest: &[u8]) -> Option<(Vec<u8>, Option<usize>)> {
    let mut data = Vec::new();
    loop {
        let Some((line, after)) = line(rest)? else { return Some((data, None)) };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
        let extension = line[digits..].trim_ascii_start();
        if !(extension.is_empty() || extension.starts_with(b";")) {
            return None;
        }
        rest = after;
        if size == 0 {
            break;
        }
        let there = rest.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        data.extend_from_slice(&rest[..there]);
        rest = &rest[there..];
        if (there as u64) < size {
            return Some((data, None));
        }
        match self::line(rest)? {
            Some(([], after)) => rest = after,
            Some(_) => return None,
            None => return Some((data, None)),
        }
    }
    loop {
        match line(rest)? {
            Some(([], after)) => return Some((data, Some(after.len()))),
            Some((_, after)) => rest = after,
            None => return Some((data, None)),
        }
    }
}

/// A line without its end, and what follows; the inner `None` if it is not whole, the outer if it ends wrong.
fn line(bytes: &[u8]) -> Option<Option<(&[u8], &[u8])>> {
    let Some(newline) = bytes.iter().position(|byte| *byte == b'\n') else { return Some(None) };
    let line = bytes[..newline].strip_suffix(b"\r")?;
    Some(Some((line, &bytes[newline + 1..])))
}
