//! `/v1/responses`: one text message per answer, streamed as typed events.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::Finish;
use crate::frame::{Choice, Usage, Wire};
use crate::request::Message;

/// Body of `/v1/responses`.
#[derive(Debug, Deserialize)]
pub(crate) struct ResponsesRequest {
    pub(crate) model: Option<String>,
    input: Value,
    instructions: Option<String>,
    pub(crate) max_output_tokens: Option<u64>,
    pub(crate) stream: Option<bool>,
}

impl ResponsesRequest {
    /// The conversation as (role, content).
    pub(crate) fn messages(&self) -> Vec<(String, String)> {
        let system = self.instructions.iter().map(|text| ("system".to_owned(), text.clone()));
        let given = match &self.input {
            Value::Array(items) => items
                .iter()
                .map(|item| {
                    let role = item["role"].as_str().unwrap_or("user");
                    (role.to_owned(), Message::new(role, item["content"].clone()).text())
                })
                .collect(),
            Value::String(text) => vec![("user".to_owned(), text.clone())],
            _ => Vec::new(),
        };
        system.chain(given).collect()
    }
}

/// Writes the events and the final object.
#[derive(Debug)]
pub(crate) struct Responses {
    pub(crate) id: String,
    pub(crate) message_id: String,
    pub(crate) model: String,
    /// Unix seconds.
    pub(crate) created: u64,
    sequence: u64,
    text: String,
    finish: Finish,
}

impl Responses {
    pub(crate) fn new(id: String, message_id: String, model: String, created: u64) -> Self {
        Self { id, message_id, model, created, sequence: 0, text: String::new(), finish: Finish::Stop }
    }

    fn event(&mut self, kind: &str, mut fields: Value) -> Bytes {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Bytes::from(format!("event: {kind}\ndata: {fields}\n\n"))
    }

    /// An event about the only part of the only message.
    fn part_event(&mut self, kind: &str, name: &str, value: Value) -> Bytes {
        let mut fields = json!({"item_id": self.message_id, "output_index": 0, "content_index": 0});
        fields[name] = value;
        self.event(kind, fields)
    }

    fn message(&self, status: &str, content: &[Value]) -> Value {
        json!({
            "type": "message", "id": self.message_id, "role": "assistant", "status": status, "content": content,
        })
    }

    /// The answer when it has ended.
    fn ended(&self, finish: Finish, text: &str, usage: Usage) -> Value {
        let status = status(finish);
        let mut object = self.object(status, &[self.message(status, &[part(text)])], Some(usage));
        let reason = match finish {
            Finish::Stop => return object,
            Finish::Length => "max_output_tokens",
            Finish::ContentFilter => "content_filter",
        };
        object["incomplete_details"] = json!({"reason": reason});
        object
    }

    fn object(&self, status: &str, output: &[Value], usage: Option<Usage>) -> Value {
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "model": self.model,
            "status": status, "output": output, "error": null, "incomplete_details": null,
            "instructions": null, "metadata": {}, "parallel_tool_calls": true, "temperature": 1.0, "top_p": 1.0,
            "tool_choice": "auto", "tools": [], "usage": usage.map(usage_json),
        })
    }
}

impl Wire for Responses {
    fn open(&mut self, _choices: Range<usize>) -> Vec<Bytes> {
        let begun = self.object("in_progress", &[], None);
        let item = self.message("in_progress", &[]);
        vec![
            self.event("response.created", json!({"response": begun.clone()})),
            self.event("response.in_progress", json!({"response": begun})),
            self.event("response.output_item.added", json!({"output_index": 0, "item": item})),
            self.part_event("response.content_part.added", "part", part("")),
        ]
    }

    fn content(&mut self, _choice: usize, piece: &str) -> Bytes {
        self.text.push_str(piece);
        let mut fields = json!({"item_id": self.message_id, "output_index": 0, "content_index": 0});
        fields["delta"] = piece.into();
        fields["logprobs"] = json!([]);
        self.event("response.output_text.delta", fields)
    }

    fn finish(&mut self, _choice: usize, finish: Finish) -> Vec<Bytes> {
        self.finish = finish;
        let text = self.text.clone();
        let item = self.message(status(finish), &[part(&text)]);
        let mut done = json!({"item_id": self.message_id, "output_index": 0, "content_index": 0});
        done["text"] = text.as_str().into();
        done["logprobs"] = json!([]);
        vec![
            self.event("response.output_text.done", done),
            self.part_event("response.content_part.done", "part", part(&text)),
            self.event("response.output_item.done", json!({"output_index": 0, "item": item})),
        ]
    }

    fn close(&mut self, usage: Usage) -> Vec<Bytes> {
        let object = self.ended(self.finish, &self.text, usage);
        vec![self.event(&format!("response.{}", status(self.finish)), json!({"response": object}))]
    }

    fn done(&self) -> Option<Bytes> {
        None
    }

    fn failed(&mut self) -> Option<Bytes> {
        let mut object = self.object("failed", &[], None);
        object["error"] = json!({"code": "server_error", "message": "simulated failure"});
        Some(self.event("response.failed", json!({"response": object})))
    }

    fn plain(&self, choices: &[Choice], usage: Usage) -> Bytes {
        // There is always one.
        let (finish, text) =
            choices.first().map_or((Finish::Stop, ""), |choice| (choice.finish, choice.text.as_str()));
        Bytes::from(self.ended(finish, text, usage).to_string())
    }
}

fn status(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "completed",
        Finish::Length | Finish::ContentFilter => "incomplete",
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    })
}
