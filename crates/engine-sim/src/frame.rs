//! Answers of `/v1/chat/completions` and `/v1/completions` as they go over the wire.

use std::ops::Range;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::Finish;

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: u64,
    pub(crate) completion: u64,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
        })
    }
}

/// A finished choice of a plain answer.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) finish: Finish,
}

/// The shape of an endpoint's answers, streamed and plain.
pub(crate) trait Wire: Send {
    /// What precedes the first token of these choices.
    fn open(&mut self, choices: Range<usize>) -> Vec<Bytes>;
    fn content(&mut self, choice: usize, piece: &str) -> Bytes;
    fn finish(&mut self, choice: usize, finish: Finish) -> Vec<Bytes>;
    /// What follows the last choice, apart from [`Wire::done`].
    fn close(&mut self, usage: Usage) -> Vec<Bytes>;
    fn done(&self) -> Option<Bytes>;
    fn plain(&self, choices: &[Choice], usage: Usage) -> Bytes;
    /// An event that says that the answer failed, if there is one.
    fn failed(&mut self) -> Option<Bytes> {
        None
    }
    /// Chunks before the last carry an empty finish reason from now on.
    fn empty_finish(&mut self) {}
}

/// Chat or text completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Text,
}

/// Writes [`Kind`]'s answers.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) model: String,
    /// Unix seconds.
    pub(crate) created: u64,
    pub(crate) include_usage: bool,
    /// Content of the role chunk: `""` from vLLM, `null` from llama.cpp.
    pub(crate) role_content: Option<&'static str>,
    /// The finish reason of chunks before the last, as JSON.
    pub(crate) no_finish: &'static str,
}

impl Completion {
    fn event(&self, choices: &str, usage: &str) -> Bytes {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        };
        let Self { id, created, .. } = self;
        let model = quoted(&self.model);
        Bytes::from(format!(
            "data: {{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":{created},\"model\":{model},\
             \"choices\":[{choices}]{usage}}}\n\n"
        ))
    }

    fn chunk(&self, choice: usize, body: &str, finish: Option<Finish>) -> Bytes {
        let finish = finish.map_or(self.no_finish, |finish| match finish {
            Finish::Stop => "\"stop\"",
            Finish::Length => "\"length\"",
            Finish::ContentFilter => "\"content_filter\"",
        });
        let choice = format!("{{\"index\":{choice},{body},\"logprobs\":null,\"finish_reason\":{finish}}}");
        self.event(&choice, "")
    }
}

impl Wire for Completion {
    fn open(&mut self, choices: Range<usize>) -> Vec<Bytes> {
        if self.kind == Kind::Text {
            return Vec::new();
        }
        let content = self.role_content.map_or("null".to_owned(), quoted);
        let body = format!("\"delta\":{{\"role\":\"assistant\",\"content\":{content}}}");
        choices.map(|choice| self.chunk(choice, &body, None)).collect()
    }

    fn content(&mut self, choice: usize, piece: &str) -> Bytes {
        let body = match self.kind {
            Kind::Chat => format!("\"delta\":{{\"content\":{}}}", quoted(piece)),
            Kind::Text => format!("\"text\":{}", quoted(piece)),
        };
        self.chunk(choice, &body, None)
    }

    fn finish(&mut self, choice: usize, finish: Finish) -> Vec<Bytes> {
        let body = match self.kind {
            Kind::Chat => "\"delta\":{}",
            Kind::Text => "\"text\":\"\"",
        };
        vec![self.chunk(choice, body, Some(finish))]
    }

    fn close(&mut self, usage: Usage) -> Vec<Bytes> {
        if !self.include_usage {
            return Vec::new();
        }
        vec![self.event("", &format!(",\"usage\":{}", usage.json()))]
    }

    fn empty_finish(&mut self) {
        self.no_finish = "\"\"";
    }

    fn done(&self) -> Option<Bytes> {
        Some(Bytes::from_static(b"data: [DONE]\n\n"))
    }

    fn plain(&self, choices: &[Choice], usage: Usage) -> Bytes {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let choice = |(index, choice): (usize, &Choice)| {
            let Choice { text, finish } = choice;
            let finish = finish.as_str();
            match self.kind {
                Kind::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": null,
                    "finish_reason": finish,
                }),
                Kind::Text => {
                    json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish})
                }
            }
        };
        let choices: Vec<Value> = choices.iter().enumerate().map(choice).collect();
        let answer = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage.json(),
        });
        Bytes::from(answer.to_string())
    }
}

/// `text` as a JSON string.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
