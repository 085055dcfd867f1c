use std::collections::BTreeMap;

use backstop_openai::Api;
use backstop_openai::sse::{EventBuffer, MAX_EVENT, events};
use backstop_openai::stream::{Expected, StreamState, scan};
use bytes::Bytes;
use serde_json::Value;

use crate::json;
use crate::sse::seen_by_a_reader;

const APIS: [Api; 5] = [Api::Chat, Api::Completions, Api::Embeddings, Api::Responses, Api::Other];
const EXPECTED: [Expected; 2] = [Expected { choices: 1, usage: false }, Expected { choices: 2, usage: true }];

/// What passes of a stream is what a reader sees of it and nothing else, it is what it seems to be, and nothing seems
/// complete before it is.
pub fn stream(stream: &[u8]) {
    if stream.len() > MAX_EVENT {
        return;
    }
    let block = EventBuffer::default().push(Bytes::copy_from_slice(stream)).expect("short enough");
    for api in APIS {
        for expected in EXPECTED {
            relay(api, expected, &block);
        }
    }
}

/// Takes events as the gateway does: up to the first fault or the end.
fn relay(api: Api, expected: Expected, block: &[u8]) {
    let mut state = StreamState::new(expected);
    let (mut passed, mut accepted) = (0, Vec::new());
    let mut account = Some(Account::default());
    for event in events(block) {
        if !event.is_well_formed {
            break;
        }
        if let Some(data) = event.data {
            let before = state.meaningful;
            if scan(api, &data, &mut state).is_err() {
                break;
            }
            // Unlike completeness, which a further choice takes back.
            assert!(state.meaningful || !before, "what has come has come");
            assert_eq!(state.events as usize, accepted.len() + 1);
            account = account.and_then(|account| account.add(&data));
            if let Some(account) = account.as_ref().filter(|_| matches!(api, Api::Chat | Api::Completions)) {
                account.agrees(&state, expected);
            }
            accepted.push(data.to_vec());
        }
        passed = event.end;
        if state.done {
            assert!(state.is_complete());
            assert!(scan(api, b"{}", &mut state).is_err(), "nothing follows the end");
            break;
        }
    }
    assert_eq!(accepted, seen_by_a_reader(&block[..passed]));
    for data in accepted.iter().filter(|data| api != Api::Other && *data != b"[DONE]") {
        let text = std::str::from_utf8(data).expect("checked");
        assert!(json::is_json(text) && text.trim_start().starts_with('{'), "{text}");
    }
}

/// What the events of a chat or completion say, by their trees.
#[derive(Default)]
struct Account {
    meaningful: bool,
    tool_call: bool,
    pieces: u64,
    /// Of the first choice; `None` if it can't be told.
    transcript: Option<String>,
    /// By index: whether it has finished.
    choices: BTreeMap<u64, bool>,
    usage: bool,
    done: bool,
}

impl Account {
    /// `None` if trees can't tell: a key is given twice, or it is of a kind that only the Responses API has.
    fn add(mut self, data: &[u8]) -> Option<Self> {
        if data == b"[DONE]" {
            self.done = true;
            return Some(self);
        }
        let json = json::parse(std::str::from_utf8(data).ok()?)?;
        if json.has_twins || json.value.get("type").is_some() {
            return None;
        }
        self.usage |= !json.value["usage"].is_null();
        for choice in json.value["choices"].as_array().into_iter().flatten() {
            self.choice(choice)?;
        }
        Some(self)
    }

    fn choice(&mut self, choice: &Value) -> Option<()> {
        let index = choice["index"].as_u64().unwrap_or(0);
        let finished = choice["finish_reason"].as_str().is_some_and(|reason| !reason.is_empty());
        *self.choices.entry(index).or_default() |= finished;
        let delta = &choice["delta"];
        // In which order two texts of one choice come is not known here.
        if !choice["text"].is_null() && !delta["content"].is_null() {
            return None;
        }
        for text in [&choice["text"], &delta["content"]] {
            if let Value::Array(parts) = text {
                self.meaningful |= !parts.is_empty();
                return None;
            }
            let text = text.as_str().unwrap_or_default();
            self.piece(text);
            if index == 0 {
                self.transcript.get_or_insert_default().push_str(text);
            }
        }
        for key in ["reasoning", "reasoning_content", "refusal", "audio"] {
            if delta[key].is_array() {
                return None;
            }
            self.piece(delta[key].as_str().unwrap_or_default());
        }
        if ["tool_calls", "function_call"].iter().any(|key| !delta[key].is_null()) {
            (self.tool_call, self.meaningful) = (true, true);
        }
        // These the scan takes for what they are wherever they stand.
        let elsewhere =
            ["reasoning", "reasoning_content", "refusal", "audio", "tool_calls", "function_call", "content"];
        elsewhere.iter().all(|key| choice[key].is_null()).then_some(())
    }

    fn piece(&mut self, text: &str) {
        self.pieces += u64::from(!text.is_empty());
        self.meaningful |= !text.is_empty();
    }

    fn agrees(&self, state: &StreamState, expected: Expected) {
        assert_eq!(
            (state.meaningful, state.tool_call, state.pieces),
            (self.meaningful, self.tool_call, self.pieces)
        );
        assert_eq!(state.transcript.text(), Some(self.transcript.as_deref().unwrap_or_default()));
        assert_eq!(state.done, self.done);
        let highest = self.choices.keys().max().map_or(0, |index| index + 1);
        // Beyond that many choices share an account.
        if highest <= 127 {
            let finished = self.choices.values().filter(|finished| **finished).count() as u64;
            let needed = |at_least: u32| finished >= highest.max(u64::from(at_least)).max(1);
            let all = needed(expected.choices) && (self.usage || !expected.usage);
            assert_eq!(state.is_complete(), all || self.done);
            assert!(!self.done || needed(1), "an unfinished answer must not end");
        }
    }
}
