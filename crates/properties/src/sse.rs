use backstop_openai::sse::{Event, EventBuffer, MAX_EVENT, events};
use bytes::Bytes;

use crate::cuts::cuts;

/// However a stream is cut, the same whole events come out, nothing is lost, and every reader finds the same data in
/// them.
pub fn sse(stream: &[u8]) {
    if stream.len() > MAX_EVENT {
        return;
    }
    let whole = end_of_last_event(stream);
    for pieces in cuts(stream) {
        let (mut buffer, mut out) = (EventBuffer::default(), Vec::new());
        for piece in pieces {
            let block = buffer.push(Bytes::copy_from_slice(piece)).expect("short enough");
            assert_eq!(last_end(&block), block.len(), "a block ends with an event");
            out.extend_from_slice(&block);
        }
        assert_eq!(out, stream[..whole]);
        assert_eq!(buffer.is_at_boundary(), whole == stream.len());
    }
    let block = &stream[..whole];
    for event in whole_events(block) {
        let again: Vec<_> = events(event.bytes).collect();
        let [again] = &again[..] else { panic!("one event is {}", again.len()) };
        assert_eq!((&again.data, again.end), (&event.data, event.bytes.len()), "alone it says the same");
    }
    if events(block).all(|event| event.is_well_formed) {
        let ours: Vec<_> = events(block).filter_map(|event| event.data).collect();
        assert_eq!(ours, seen_by_a_reader(block));
    }
}

struct Whole<'a> {
    bytes: &'a [u8],
    data: Option<std::borrow::Cow<'a, [u8]>>,
}

fn whole_events(block: &[u8]) -> impl Iterator<Item = Whole<'_>> {
    let mut start = 0;
    events(block).map(move |Event { data, end, .. }| {
        assert!(end > start, "each takes its part");
        let bytes = &block[start..end];
        start = end;
        Whole { bytes, data }
    })
}

fn last_end(block: &[u8]) -> usize {
    events(block).last().map_or(0, |event| event.end)
}

/// One past the last blank line.
fn end_of_last_event(stream: &[u8]) -> usize {
    let (mut at, mut end) = (0, 0);
    for line in stream.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        if line == b"\n" || line == b"\r\n" {
            end = at;
        }
    }
    end
}

/// The data of all events, as the standard has them read: a line ends with LF, CRLF or CR, a byte order mark at the
/// beginning is skipped, and an event that is not finished is forgotten.
pub(crate) fn seen_by_a_reader(stream: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let (mut seen, mut data) = (Vec::new(), None::<Vec<u8>>);
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let line = &rest[..end];
        rest = &rest[end..];
        rest = rest.strip_prefix(b"\r\n").unwrap_or_else(|| &rest[1..]);
        if line.is_empty() {
            seen.extend(data.take());
            continue;
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        if name == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            data = Some(data.map_or_else(|| value.to_vec(), |data| [&data, value].join(&b'\n')));
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::seen_by_a_reader;

    #[test]
    fn a_reader_reads_as_the_standard_says() {
        let seen = |stream: &str| {
            let all = seen_by_a_reader(stream.as_bytes()).into_iter();
            all.map(|data| String::from_utf8(data).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(
            seen("\u{feff}data: a\rdata:b\r\n\r\ndata\n\n: data\nid: 1\n\ndata: unfinished\n"),
            ["a\nb", ""]
        );
    }
}
