//! Judges answers as an SDK would take them, knowing what they should have been.
//!
//! It shares no code with the gateway: it reads server-sent events in its own way.

use serde_json::Value;

/// What a complete answer is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expected {
    pub(crate) text: String,
    pub(crate) tokens: u64,
    /// A stream reports usage.
    pub(crate) usage: bool,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    /// Whole, and as it should be.
    Answered,
    /// In the middle of a stream, with a valid error event of this code.
    Cut(String),
    /// The client left first.
    Left,
    Broken(Breach, String),
}

/// A broken promise, and what a report calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Breach {
    /// An error, or nothing, where a healthy replica could have answered.
    Failed,
    /// An SDK would take it for complete, but it is not.
    Truncated,
    /// Text that no replica would write.
    Wrong,
    /// A stream that ends without saying how, or in a way that no SDK reads.
    BadEnd,
    Hanging,
}

impl Breach {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed before the first byte",
            Self::Truncated => "truncated",
            Self::Wrong => "wrong answer",
            Self::BadEnd => "ended without an end",
            Self::Hanging => "hanging",
        }
    }
}

/// How the bytes of a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Whole,
    Broken,
}

fn broken<T>(breach: Breach, why: impl Into<String>) -> Result<T, Ending> {
    Err(Ending::Broken(breach, why.into()))
}

/// Reads a stream piece by piece.
pub(crate) struct StreamJudge {
    expected: Expected,
    /// An event that has not ended.
    rest: Vec<u8>,
    /// How much of the text has come.
    so_far: usize,
    pieces: u64,
    finished: bool,
    usage: Option<u64>,
    end: Option<End>,
}

enum End {
    Done,
    Error(String),
}

impl StreamJudge {
    pub(crate) fn new(expected: Expected) -> Self {
        Self { expected, rest: Vec::new(), so_far: 0, pieces: 0, finished: false, usage: None, end: None }
    }

    /// Pieces of text so far.
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces
    }

    /// # Errors
    ///
    /// What is broken beyond repair.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Ending> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.rest.drain(..end + 2).collect();
            self.event(&String::from_utf8_lossy(&event))?;
        }
        Ok(())
    }

    fn event(&mut self, event: &str) -> Result<(), Ending> {
        let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
        let data: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        let data = data.join("\n");
        if data.is_empty() {
            return Ok(());
        }
        if self.end.is_some() {
            return broken(Breach::BadEnd, format!("something follows the end: {data:.200}"));
        }
        if data == "[DONE]" {
            self.end = Some(End::Done);
            return Ok(());
        }
        let Ok(json) = serde_json::from_str::<Value>(&data) else {
            return broken(Breach::BadEnd, format!("an event that is not JSON: {data:.200}"));
        };
        if let Some(error) = json.get("error") {
            let [message, kind, code] = ["message", "type", "code"].map(|key| error[key].as_str());
            let (Some(_), Some(_), Some(code)) = (message.filter(|text| !text.is_empty()), kind, code) else {
                return broken(Breach::BadEnd, format!("an error event without its fields: {data:.200}"));
            };
            self.end = Some(End::Error(code.to_owned()));
            return Ok(());
        }
        self.chunk(&json)
    }

    fn chunk(&mut self, json: &Value) -> Result<(), Ending> {
        if let Some(tokens) = json.pointer("/usage/completion_tokens") {
            self.usage = tokens.as_u64();
        }
        let choice = &json["choices"][0];
        if let Some(piece) = choice["delta"]["content"].as_str().filter(|piece| !piece.is_empty()) {
            if !self.expected.text[self.so_far..].starts_with(piece) {
                return broken(Breach::Wrong, format!("after {} bytes comes {piece:?}", self.so_far));
            }
            if self.finished {
                return broken(Breach::Wrong, "text after the finish reason");
            }
            self.so_far += piece.len();
            self.pieces += 1;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            if reason != "length" {
                return broken(Breach::Wrong, format!("finish reason `{reason}`"));
            }
            self.finished = true;
        }
        Ok(())
    }

    /// The body has ended.
    pub(crate) fn end(self, transport: Transport) -> Ending {
        let progress = format!("after {} of {} bytes", self.so_far, self.expected.text.len());
        let breach = |breach, why: &str| Ending::Broken(breach, format!("{why}, {progress}"));
        if transport == Transport::Broken {
            return breach(Breach::BadEnd, "the connection broke");
        }
        if !self.rest.is_empty() {
            return breach(Breach::BadEnd, "half an event at the end");
        }
        match self.end {
            None => breach(Breach::BadEnd, "neither `[DONE]` nor an error event"),
            // The status was 200, but nothing of an answer has come: this should have gone to another replica.
            Some(End::Error(code)) if self.pieces == 0 => {
                breach(Breach::Failed, &format!("error event `{code}` in place of an answer"))
            }
            Some(End::Error(code)) => Ending::Cut(code),
            Some(End::Done) if !self.finished => {
                breach(Breach::Truncated, "`[DONE]` without a finish reason")
            }
            Some(End::Done) if self.so_far < self.expected.text.len() => {
                breach(Breach::Truncated, "`[DONE]` before the whole text")
            }
            Some(End::Done) if self.expected.usage && self.usage != Some(self.expected.tokens) => {
                breach(Breach::Truncated, &format!("usage of {:?} tokens", self.usage))
            }
            Some(End::Done) => Ending::Answered,
        }
    }
}

/// Judges a chat completion in one piece.
pub(crate) fn judge_chat(body: &[u8], expected: &Expected) -> Ending {
    let Ok(json) = serde_json::from_slice::<Value>(body) else {
        return Ending::Broken(Breach::Truncated, format!("{} bytes that are not JSON", body.len()));
    };
    let choice = &json["choices"][0];
    let Some(text) = choice["message"]["content"].as_str() else {
        return Ending::Broken(Breach::Wrong, "no text in it".to_owned());
    };
    if text != expected.text {
        let breach = if expected.text.starts_with(text) { Breach::Truncated } else { Breach::Wrong };
        return Ending::Broken(breach, format!("{} of {} bytes", text.len(), expected.text.len()));
    }
    let usage = json["usage"]["completion_tokens"].as_u64();
    if choice["finish_reason"] != "length" || usage != Some(expected.tokens) {
        let reason = &choice["finish_reason"];
        return Ending::Broken(Breach::Wrong, format!("finish reason {reason}, usage {usage:?}"));
    }
    Ending::Answered
}

/// Judges embeddings by what a replica answers when it is asked directly.
pub(crate) fn judge_embedding(body: &[u8], expected: &Value) -> Ending {
    match serde_json::from_slice::<Value>(body) {
        Err(_) => Ending::Broken(Breach::Truncated, format!("{} bytes that are not JSON", body.len())),
        Ok(json) if json["data"] != *expected => Ending::Broken(Breach::Wrong, "another vector".to_owned()),
        Ok(_) => Ending::Answered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        Expected { text: "one two".to_owned(), tokens: 2, usage: false }
    }

    fn content(text: &str) -> String {
        let choice = serde_json::json!({"index": 0, "delta": {"content": text}, "finish_reason": null});
        format!("data: {}\n\n", serde_json::json!({"choices": [choice]}))
    }

    const FINISH: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";
    const ERROR: &str =
        "data: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"param\":null,\"code\":\"gone\"}}\n\n";

    fn judge(expected: Expected, body: &str, transport: Transport) -> Ending {
        let mut judge = StreamJudge::new(expected);
        // In pieces that split events and characters.
        for piece in body.as_bytes().chunks(7) {
            if let Err(ending) = judge.feed(piece) {
                return ending;
            }
        }
        judge.end(transport)
    }

    #[track_caller]
    fn check(body: &[&str], outcome: Result<Option<&str>, Breach>) {
        let ending = judge(expected(), &body.concat(), Transport::Whole);
        match (&ending, outcome) {
            (Ending::Answered, Ok(None)) => {}
            (Ending::Cut(code), Ok(Some(expected))) => assert_eq!(code, expected),
            (Ending::Broken(breach, _), Err(expected)) => assert_eq!(*breach, expected),
            (ending, outcome) => panic!("{ending:?} instead of {outcome:?}"),
        }
    }

    #[test]
    fn streams() {
        let (one, two) = (&*content("one"), &*content(" two"));
        check(&[one, two, FINISH, DONE], Ok(None));
        check(&[": comment\n\n", &content(""), one, two, FINISH, USAGE, DONE], Ok(None));
        check(&[one, ERROR], Ok(Some("gone")));
        check(&[one, two, FINISH, ERROR], Ok(Some("gone")));
        // What an SDK would take for complete.
        check(&[one, FINISH, DONE], Err(Breach::Truncated));
        check(&[one, two, DONE], Err(Breach::Truncated));
        check(&[one, DONE], Err(Breach::Truncated));
        check(&[DONE], Err(Breach::Truncated));
        // What no SDK can read.
        check(&[], Err(Breach::BadEnd));
        check(&[one], Err(Breach::BadEnd));
        check(&[one, two, FINISH], Err(Breach::BadEnd));
        check(&[one, two, FINISH, "data: [DONE]"], Err(Breach::BadEnd));
        check(&[one, "data: {\n\n"], Err(Breach::BadEnd));
        check(&[one, "data: {\"error\":\"gone\"}\n\n"], Err(Breach::BadEnd));
        check(&[one, ERROR, DONE], Err(Breach::BadEnd));
        check(&[one, ERROR, two], Err(Breach::BadEnd));
        check(&[one, two, FINISH, DONE, DONE], Err(Breach::BadEnd));
        // Text of another answer, twice the same, with a gap, or too much.
        check(&[one, one, FINISH, DONE], Err(Breach::Wrong));
        check(&[two, FINISH, DONE], Err(Breach::Wrong));
        check(&[one, two, FINISH, two, DONE], Err(Breach::Wrong));
        check(&[one, two, &content(" three"), FINISH, DONE], Err(Breach::Wrong));
        // Nothing was sent yet: another replica should have answered.
        check(&[ERROR], Err(Breach::Failed));
    }

    #[test]
    fn usage_and_the_end_of_the_connection() {
        let (one, two) = (content("one"), content(" two"));
        let with_usage = Expected { usage: true, ..expected() };
        let whole = [&one, &two, FINISH, USAGE, DONE].concat();
        let without = [&one, &two, FINISH, DONE].concat();
        assert_eq!(judge(with_usage.clone(), &whole, Transport::Whole), Ending::Answered);
        for (body, transport, breach) in [
            (&without, Transport::Whole, Breach::Truncated),
            (&whole, Transport::Broken, Breach::BadEnd),
            (&[&one, ERROR].concat(), Transport::Broken, Breach::BadEnd),
        ] {
            let ending = judge(with_usage.clone(), body, transport);
            assert!(matches!(ending, Ending::Broken(it, _) if it == breach), "{ending:?} {body}");
        }
    }

    #[test]
    fn plain_answers() {
        let chat = |text: &str, reason: &str, tokens: u64| {
            let choice = serde_json::json!({"message": {"content": text}, "finish_reason": reason});
            serde_json::json!({"choices": [choice], "usage": {"completion_tokens": tokens}}).to_string()
        };
        for (body, breach) in [
            (chat("one two", "length", 2), None),
            (chat("one", "length", 2), Some(Breach::Truncated)),
            (chat("", "length", 2), Some(Breach::Truncated)),
            (chat("two", "length", 2), Some(Breach::Wrong)),
            (chat("one two", "stop", 2), Some(Breach::Wrong)),
            (chat("one two", "length", 1), Some(Breach::Wrong)),
            (chat("one two", "length", 2)[..20].to_owned(), Some(Breach::Truncated)),
            ("{}".to_owned(), Some(Breach::Wrong)),
        ] {
            let found = match judge_chat(body.as_bytes(), &expected()) {
                Ending::Broken(breach, _) => Some(breach),
                _ => None,
            };
            assert_eq!(found, breach, "{body}");
        }
    }
}
