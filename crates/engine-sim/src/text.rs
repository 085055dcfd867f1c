//! The text a simulated model writes: a pure function of the seed, the conversation and the position.
//!
//! Nothing here depends on how an answer is split into chunks or requests, so a test can compare what a
//! client received with [`expected_text`] whatever happened on the way.

/// Pieces drawn most of the time.
const COMMON: [&str; 64] = [
    " the", " of", " and", " a", " to", " in", " is", " it", " that", " for", " as", " with", " was", " on",
    " be", " by", " this", " from", " or", " an", " which", " one", " all", " when", " there", " time",
    " model", " water", " light", " river", " night", " signal", " answer", " small", " green", " north",
    " table", " stone", " letter", " number", " garden", " window", " system", " engine", " value", " order",
    " paper", " music", " winter", " open", " turn", " hold", " carry", " near", " under", " slow",
    " bright", ",", ".", ";", " because", " after", "ing", "ly",
];

/// Pieces drawn about one time in eight: outside ASCII, or escaped in JSON.
const RARE: [&str; 16] = [
    " café",
    " 汉字",
    " 🙂",
    "\n",
    " \"so\"",
    " naïve",
    " Straße",
    "\t",
    " 東京",
    " C:\\tmp",
    " 👩‍🚀",
    " Ω",
    "\n\n",
    " 'tis",
    " </b>",
    " déjà",
];

/// The first `n_tokens` tokens of the answer to `messages`, given as (role, content).
///
/// An answer cut off anywhere and continued (see [`crate::Dialect`]) adds up to this text.
pub fn expected_text(seed: u64, messages: &[(&str, &str)], n_tokens: usize) -> String {
    text_of(seed, conversation_key(seed, messages.iter().copied()), n_tokens)
}

/// The first `n_tokens` tokens that `/v1/completions` adds to `prompt`.
pub fn expected_completion(seed: u64, prompt: &str, n_tokens: usize) -> String {
    let (key, so_far) = split_prompt(seed, prompt);
    let mut cursor = Cursor::new(seed, key);
    cursor.skip(so_far);
    (0..n_tokens).map(|_| cursor.next_piece()).collect()
}

fn text_of(seed: u64, key: u64, n_tokens: usize) -> String {
    let mut cursor = Cursor::new(seed, key);
    (0..n_tokens).map(|_| cursor.next_piece()).collect()
}

/// Place in an endless answer.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    seed: u64,
    key: u64,
    index: u64,
    /// Bytes of the piece at `index` that were written before.
    within: usize,
}

impl Cursor {
    pub(crate) fn new(seed: u64, key: u64) -> Self {
        Self { seed, key, index: 0, within: 0 }
    }

    /// Moves behind `written`; `false`, and no move, if the answer does not begin with it.
    pub(crate) fn skip(&mut self, written: &str) -> bool {
        let mut ahead = Self::new(self.seed, self.key);
        let mut rest = written;
        while !rest.is_empty() {
            let piece = piece(ahead.seed, ahead.key, ahead.index);
            if let Some(after) = rest.strip_prefix(piece) {
                rest = after;
                ahead.index += 1;
            } else if piece.starts_with(rest) {
                ahead.within = rest.len();
                break;
            } else {
                return false;
            }
        }
        *self = ahead;
        true
    }

    /// Whole tokens written so far.
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    /// The next token, or what is left of one cut in the middle.
    pub(crate) fn next_piece(&mut self) -> &'static str {
        let piece = &piece(self.seed, self.key, self.index)[self.within..];
        self.index += 1;
        self.within = 0;
        piece
    }
}

fn piece(seed: u64, key: u64, index: u64) -> &'static str {
    let draw = mix(seed ^ mix(key.wrapping_add(mix(index))));
    let piece = if draw.is_multiple_of(8) {
        RARE[(draw >> 8) as usize % RARE.len()]
    } else {
        COMMON[(draw >> 8) as usize % COMMON.len()]
    };
    // Chat templates and clients trim the start of an answer, so it has no leading space to lose.
    if index == 0 { piece.strip_prefix(' ').unwrap_or(piece) } else { piece }
}

/// Identifies a conversation. Roles and contents are delimited by bytes that UTF-8 never holds.
pub(crate) fn conversation_key<'a>(seed: u64, messages: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    let mut hash = Fnv::new(b'c');
    for (role, content) in messages {
        hash.write(role.as_bytes());
        hash.write(&[0xff]);
        hash.write(content.as_bytes());
        hash.write(&[0xfe]);
    }
    mix(seed ^ hash.0)
}

/// Splits a raw prompt into what was asked and what was already answered: returns the key and the latter.
///
/// Of all places where the rest is the beginning of the answer to what stands before, the first one counts.
/// Adding more of the same answer can only rule out earlier places, never this one, so a continued prompt
/// is always split where the original was.
pub(crate) fn split_prompt(seed: u64, prompt: &str) -> (u64, &str) {
    let mut hash = Fnv::new(b'p');
    let mut begin = 0;
    for (at, c) in prompt.char_indices() {
        hash.write(&prompt.as_bytes()[begin..at]);
        begin = at;
        let key = mix(seed ^ hash.0);
        if piece(seed, key, 0).starts_with(c) && Cursor::new(seed, key).skip(&prompt[at..]) {
            return (key, &prompt[at..]);
        }
    }
    hash.write(&prompt.as_bytes()[begin..]);
    (mix(seed ^ hash.0), "")
}

/// Prompt tokens of a text: a quarter of its bytes, rounded up.
pub(crate) fn count_tokens(text: &str) -> u64 {
    text.len().div_ceil(4) as u64
}

/// 64-bit FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn new(tag: u8) -> Self {
        let mut hash = Self(0xcbf2_9ce4_8422_2325);
        hash.write(&[tag]);
        hash
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The finaliser of SplitMix64 (Steele, Lea & Flood 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: &[(&str, &str)] = &[("system", "be brief"), ("user", "what is a river?")];

    #[test]
    fn text_depends_on_seed_and_conversation_only() {
        let text = expected_text(1, ASK, 200);
        assert_eq!(text, expected_text(1, ASK, 200));
        assert!(text.starts_with(&expected_text(1, ASK, 50)));
        assert_ne!(text, expected_text(2, ASK, 200));
        assert_ne!(text, expected_text(1, &ASK[1..], 200));
        assert_ne!(
            expected_text(1, &[("user", "ab"), ("user", "c")], 20),
            expected_text(1, &[("user", "abc")], 20)
        );
    }

    #[test]
    fn text_holds_what_breaks_careless_code() {
        let text = expected_text(0, ASK, 400);
        assert!(!text.starts_with(' '));
        for needle in ["\"", "\n", "汉", "🙂", "é", "\\"] {
            assert!(text.contains(needle), "no {needle:?} in {text:?}");
        }
    }

    #[test]
    fn a_cursor_skips_any_prefix() {
        let text = expected_text(3, ASK, 60);
        let key = conversation_key(3, ASK.iter().copied());
        for cut in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            let mut cursor = Cursor::new(3, key);
            assert!(cursor.skip(&text[..cut]));
            let mut whole = text[..cut].to_owned();
            while cursor.index() < 60 {
                whole.push_str(cursor.next_piece());
            }
            assert_eq!(whole, text, "cut at {cut}");
        }
        assert!(!Cursor::new(3, key).skip("no such answer"));
    }

    #[test]
    fn a_raw_prompt_continues_wherever_it_is_cut() {
        for prompt in ["", "x", "Once upon a time", "汉字 and \"quotes\"\n", "the the the"] {
            let text = expected_completion(5, prompt, 80);
            for cut in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
                let rest = expected_completion(5, &format!("{prompt}{}", &text[..cut]), 80);
                assert!(rest.starts_with(&text[cut..]), "{prompt:?} cut at {cut}");
            }
        }
    }
}
