//! Framing of server-sent events: bytes in whatever pieces they arrive → whole events.
//!
//! Lines end with LF or CRLF. No engine ends one with a lone CR, which the standard also allows: an event that has one
//! is not well-formed, since readers differ in whether another line begins there.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr_iter};

/// The longest unfinished event that is kept, in bytes.
pub const MAX_EVENT: usize = 1024 * 1024;

/// Collects bytes until events are whole. Whole events pass without being copied; only an unfinished tail is kept.
#[derive(Debug, Default)]
pub struct EventBuffer {
    tail: BytesMut,
}

/// An event grew beyond [`MAX_EVENT`] without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {MAX_EVENT} bytes")]
pub struct EventTooLong;

impl EventBuffer {
    /// Takes the next bytes and returns all events that are whole now, as one block (empty if none is).
    pub fn push(&mut self, mut bytes: Bytes) -> Result<Bytes, EventTooLong> {
        let block = if self.tail.is_empty() {
            let block = bytes.split_to(end_of_last_event(&bytes, 0));
            self.tail.extend_from_slice(&bytes);
            block
        } else {
            // The blank line may have begun in the tail: at most `\n\r` before the new bytes.
            let searched = self.tail.len().saturating_sub(2);
            self.tail.extend_from_slice(&bytes);
            self.tail.split_to(end_of_last_event(&self.tail, searched)).freeze()
        };
        if self.tail.len() > MAX_EVENT { Err(EventTooLong) } else { Ok(block) }
    }

    /// Whether the bytes so far end between two events.
    pub fn is_at_boundary(&self) -> bool {
        self.tail.is_empty()
    }
}

/// One past the last blank line at or after `from`; 0 if there is none.
fn end_of_last_event(bytes: &[u8], from: usize) -> usize {
    let mut end = bytes.len();
    while let Some(newline) = memchr::memrchr(b'\n', &bytes[from..end]).map(|at| at + from) {
        let before = &bytes[..newline];
        // `bytes` begin between two events or at the start of a line.
        if matches!(before.strip_suffix(b"\r").unwrap_or(before), [] | [.., b'\n']) {
            return newline + 1;
        }
        end = newline;
    }
    0
}

/// One event of a block.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `data` field; `None` for comments (keep-alives) and events without data.
    pub data: Option<Cow<'a, [u8]>>,
    /// All readers see the same event: no lone CR, no byte order mark, and the lines that readers skip are UTF-8 at
    /// least, for they decode before they skip.
    pub is_well_formed: bool,
    /// Where the event ends in its block, blank line included.
    pub end: usize,
}

/// The events of a block that [`EventBuffer::push`] returned.
pub fn events(block: &[u8]) -> impl Iterator<Item = Event<'_>> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        if rest >= block.len() {
            return None;
        }
        let mut data: Option<Cow<'_, [u8]>> = None;
        let mut is_well_formed = true;
        let mut line_start = rest;
        for newline in memchr_iter(b'\n', &block[rest..]).map(|at| at + rest) {
            let line = &block[line_start..newline];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            line_start = newline + 1;
            if line.is_empty() {
                break;
            }
            is_well_formed &= memchr(b'\r', line).is_none();
            if let Some(value) = data_field(line) {
                data = Some(match data {
                    None => Cow::Borrowed(value),
                    Some(first) => {
                        let mut joined = first.into_owned();
                        joined.push(b'\n');
                        joined.extend_from_slice(value);
                        Cow::Owned(joined)
                    }
                });
            } else {
                is_well_formed &= std::str::from_utf8(line).is_ok_and(|line| !line.starts_with('\u{feff}'));
            }
        }
        rest = line_start;
        Some(Event { data, is_well_formed, end: rest })
    })
}

fn data_field(line: &[u8]) -> Option<&[u8]> {
    let colon = memchr(b':', line).unwrap_or(line.len());
    if &line[..colon] != b"data" {
        return None;
    }
    let value = line.get(colon + 1..).unwrap_or_default();
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data_of(block: &[u8]) -> Vec<Option<String>> {
        events(block).map(|e| e.data.map(|d| String::from_utf8_lossy(&d).into_owned())).collect()
    }

    #[test]
    fn fields_comments_and_line_ends() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(data_of(b"data: a\n\ndata:b\r\n\r\n"), [some("a"), some("b")]);
        assert_eq!(data_of(b": ping\n\nevent: x\ndata: c\nid: 1\n\n"), [None, some("c")]);
        assert_eq!(data_of(b"data: a\ndata: b\ndata\n\n"), [some("a\nb\n")]);
        assert_eq!(data_of(b"database: a\n\n"), [None]);
    }

    #[test]
    fn lines_that_are_skipped_must_be_text_too() {
        let well_formed = |block| events(block).map(|event| event.is_well_formed).collect::<Vec<_>>();
        assert_eq!(
            well_formed(b"\xff\xfe\n\ndata: a\n\n: \xc3\xa9\n\n: \xc3\ndata: b\n\n"),
            [false, true, true, false]
        );
    }

    /// What some readers take for the end of a line, or skip, would let them see other events than we have checked.
    #[test]
    fn lines_that_readers_disagree_on() {
        let well_formed = |block| events(block).map(|event| event.is_well_formed).collect::<Vec<_>>();
        assert_eq!(
            well_formed(b": ping\rdata: [DONE]\r\r\n\ndata: {\r}\n\ndata: a\r\n\r\n"),
            [false, false, true]
        );
        assert_eq!(well_formed(b"\xef\xbb\xbfdata: [DONE]\n\n"), [false]);
        assert_eq!(well_formed(b"data: \xef\xbb\xbf\n\n"), [true], "within a line it is text");
    }

    #[test]
    fn blank_lines_between_events_are_boundaries_wherever_they_are_cut() {
        for blank in ["\n", "\r\n", "\n\r\n\n"] {
            let mut buffer = EventBuffer::default();
            let mut passed = Vec::new();
            for piece in [blank, "data: a\n\n", blank, "data: b\n", "\n", blank] {
                passed.extend_from_slice(
                    &buffer.push(Bytes::copy_from_slice(piece.as_bytes())).expect("short"),
                );
            }
            assert!(buffer.is_at_boundary(), "{blank:?}");
            assert_eq!(data_of(&passed).into_iter().flatten().collect::<Vec<_>>(), ["a", "b"]);
        }
    }

    #[test]
    fn whole_frames_are_not_copied() {
        let frame = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
        let mut buffer = EventBuffer::default();
        let block = buffer.push(frame.clone()).expect("short");
        assert_eq!((block.as_ptr(), block.len()), (frame.as_ptr(), frame.len()));
        assert!(buffer.is_at_boundary());
    }

    #[test]
    fn endless_event_is_refused() {
        let mut buffer = EventBuffer::default();
        let piece = Bytes::from(vec![b'x'; 300_000]);
        let results: Vec<_> = (0..4).map(|_| buffer.push(piece.clone()).is_ok()).collect();
        assert_eq!(results, [true, true, true, false]);
    }

    proptest! {
        /// However the bytes are cut, the same events come out and nothing is lost.
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(prop::sample::select(vec![
                "data: x\n\n", "data: y\r\n\r\n", ": ping\n\n", "event: e\ndata: é\n\n", "data: a\ndata: b\n\n", "\n",
            ]), 0..20),
            cuts in prop::collection::vec(1usize..9, 1..60),
        ) {
            let whole = parts.concat().into_bytes();
            let mut buffer = EventBuffer::default();
            let mut out = Vec::new();
            let (mut at, mut cut) = (0, cuts.iter().cycle());
            while at < whole.len() {
                let end = (at + cut.next().copied().unwrap_or(1)).min(whole.len());
                let block = buffer.push(Bytes::copy_from_slice(&whole[at..end])).expect("short");
                let ends: Vec<_> = events(&block).map(|e| e.end).collect();
                prop_assert_eq!(ends.last().copied().unwrap_or(0), block.len());
                out.extend_from_slice(&block);
                at = end;
            }
            prop_assert!(whole.starts_with(&out));
            let kept: Vec<_> = data_of(&out).into_iter().flatten().collect();
            let all: Vec<_> = data_of(&whole).into_iter().flatten().collect();
            prop_assert_eq!(kept, all);
        }
    }
}
