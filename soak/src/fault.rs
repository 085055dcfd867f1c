//! What a replica does wrong with a few requests, though its process is well.

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// Of every kind that an answer can go wrong in and still be had from another replica. Those that say something about
/// the request itself (too long, against the policy) are no faults, and what has no end, or is larger than any event may
/// be, ends in an error wherever it comes from: these have their tests, with their line in `docs/failure-modes.md`.
const CATALOGUE: [&str; 32] = [
    r#"{"kind":"status","status":500}"#,
    r#"{"kind":"status","status":502}"#,
    r#"{"kind":"status","status":503}"#,
    r#"{"kind":"status","status":429,"retry_after":1}"#,
    r#"{"kind":"no_answer"}"#,
    r#"{"kind":"hangup","how":"fin"}"#,
    r#"{"kind":"hangup","how":"rst"}"#,
    r#"{"kind":"slow_first_token","delay":"1500ms"}"#,
    r#"{"kind":"cut","how":"fin"}"#,
    r#"{"kind":"cut","how":"rst"}"#,
    r#"{"kind":"cut","how":"fin","mid_event":true}"#,
    r#"{"kind":"cut","how":"rst","mid_event":true}"#,
    r#"{"kind":"stall"}"#,
    r#"{"kind":"invalid_event"}"#,
    r#"{"kind":"garbage"}"#,
    r#"{"kind":"error_event"}"#,
    r#"{"kind":"error_event","done":true}"#,
    r#"{"kind":"failed"}"#,
    r#"{"kind":"no_done"}"#,
    r#"{"kind":"no_finish"}"#,
    r#"{"kind":"cut_after_finish","how":"fin"}"#,
    r#"{"kind":"cut_after_finish","how":"rst"}"#,
    r#"{"kind":"plain_for_stream"}"#,
    r#"{"kind":"stream_for_plain"}"#,
    r#"{"kind":"html_page"}"#,
    r#"{"kind":"redirect"}"#,
    r#"{"kind":"prefill_rejected"}"#,
    r#"{"kind":"http10"}"#,
    r#"{"kind":"chunk_extensions"}"#,
    r#"{"kind":"trailers"}"#,
    r#"{"kind":"dribble","bytes":7}"#,
    r#"{"kind":"flood"}"#,
];
/// The most requests that one fault hits.
const MOST_HIT: u32 = 4;
/// Where in a stream it hits at the latest, in chunks.
const LATEST: u64 = 60;

/// One of them, of some of the next requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    which: usize,
    /// Chunks before it.
    after: u64,
    times: u32,
}

impl Fault {
    pub(crate) fn draw(rng: &mut StdRng) -> Self {
        Self {
            which: rng.random_range(0..CATALOGUE.len()),
            after: rng.random_range(0..LATEST),
            times: rng.random_range(1..=MOST_HIT),
        }
    }

    /// As the replica takes it.
    pub(crate) fn json(self) -> Value {
        let mut fault: Value = serde_json::from_str(CATALOGUE[self.which]).unwrap_or_default();
        let kind = fault["kind"].as_str().unwrap_or_default();
        if ["cut", "stall", "invalid_event", "garbage", "error_event", "failed"].contains(&kind) {
            fault["after"] = json!(self.after);
        }
        fault["times"] = json!(self.times);
        fault
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.json())
    }
}

#[cfg(test)]
mod tests {
    use backstop_engine_sim::Rule;

    use super::*;

    #[test]
    fn replicas_know_all_of_them() {
        for which in 0..CATALOGUE.len() {
            let fault = Fault { which, after: 3, times: 2 };
            let rule = Rule::from_json(fault.json()).unwrap_or_else(|error| panic!("{fault}: {error}"));
            assert_eq!(rule.times, Some(2), "{fault}");
        }
    }
}
