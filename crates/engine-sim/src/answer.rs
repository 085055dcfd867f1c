//! One answer being decoded: where it begins, where it ends and why.

use crate::text::{Cursor, mix};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
    ContentFilter,
}

impl Finish {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
        }
    }
}

/// Bounds of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Tokens after which the model ends by itself, counted from the very beginning of the answer.
    pub(crate) natural: u64,
    /// Tokens this request may add.
    pub(crate) max_new: Option<u64>,
    pub(crate) stop: Vec<String>,
}

/// A single choice.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    cursor: Cursor,
    left: u64,
    /// Bytes before the first stop sequence.
    stop_at: Option<usize>,
    end: Finish,
    written: u64,
}

impl Answer {
    /// The answer to `key`, behind `so_far`. Text the model would not have written leads to another answer.
    pub(crate) fn new(seed: u64, key: u64, so_far: &str, choice: u64, limits: &Limits) -> Self {
        let key = if choice == 0 { key } else { mix(key ^ mix(choice)) };
        let mut cursor = Cursor::new(seed, key);
        if !cursor.skip(so_far) {
            let other = so_far.bytes().fold(key, |hash, byte| mix(hash ^ u64::from(byte)));
            cursor = Cursor::new(seed, other);
        }
        let rest = limits.natural.saturating_sub(cursor.index());
        let (left, end) = match limits.max_new {
            Some(max) if max <= rest && rest > 0 => (max, Finish::Length),
            _ => (rest, Finish::Stop),
        };
        let mut answer = Self { cursor, left, stop_at: None, end, written: 0 };
        answer.find_stop(&limits.stop);
        answer
    }

    fn find_stop(&mut self, stop: &[String]) {
        if stop.iter().all(String::is_empty) {
            return;
        }
        let text: String = self.clone().collect();
        let found = stop.iter().filter(|it| !it.is_empty()).filter_map(|it| text.find(it.as_str())).min();
        if found.is_some() {
            self.stop_at = found;
            self.end = Finish::Stop;
        }
    }

    /// Ends after so many more tokens at most, for what it says.
    pub(crate) fn filter(&mut self, after: u64) {
        self.left = self.left.min(after);
        self.end = Finish::ContentFilter;
    }

    /// Never ends.
    pub(crate) fn endless(&mut self) {
        self.left = u64::MAX;
        self.stop_at = None;
    }

    /// Tokens still to come, not counting stop sequences.
    pub(crate) fn planned(&self) -> u64 {
        self.left
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn finish(&self) -> Finish {
        self.end
    }
}

impl Iterator for Answer {
    type Item = &'static str;

    fn next(&mut self) -> Option<&'static str> {
        if self.left == 0 || self.stop_at == Some(0) {
            return None;
        }
        self.left -= 1;
        self.written += 1;
        let mut piece = self.cursor.next_piece();
        if let Some(rest) = &mut self.stop_at {
            piece = &piece[..piece.len().min(*rest)];
            *rest -= piece.len();
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{conversation_key, expected_text};

    fn answer(so_far: &str, max_new: Option<u64>, stop: &[&str]) -> (String, Finish) {
        let limits = Limits { natural: 40, max_new, stop: stop.iter().map(|it| (*it).to_owned()).collect() };
        let key = conversation_key(0, [("user", "hi")].into_iter());
        let mut answer = Answer::new(0, key, so_far, 0, &limits);
        (answer.by_ref().collect(), answer.finish())
    }

    #[test]
    fn an_answer_ends_where_it_should() {
        let whole = expected_text(0, &[("user", "hi")], 40);
        assert_eq!(answer("", None, &[]), (whole.clone(), Finish::Stop));
        assert_eq!(answer("", Some(40), &[]), (whole.clone(), Finish::Length));
        assert_eq!(answer("", Some(41), &[]), (whole.clone(), Finish::Stop));
        let half = expected_text(0, &[("user", "hi")], 20);
        assert_eq!(answer("", Some(20), &[]), (half.clone(), Finish::Length));
        assert_eq!(answer(&half, None, &[]), (whole[half.len()..].to_owned(), Finish::Stop));
        assert_eq!(answer(&whole, None, &[]), (String::new(), Finish::Stop));
        let stop = &whole[half.len() - 3..half.len() + 3];
        let (text, finish) = answer("", None, &["", "nowhere", stop]);
        assert_eq!((text.as_str(), finish), (&whole[..whole.find(stop).unwrap()], Finish::Stop));
    }

    #[test]
    fn foreign_text_leads_elsewhere() {
        let (text, _) = answer("something else", None, &[]);
        assert!(!expected_text(0, &[("user", "hi")], 40).contains(&text));
    }
}
