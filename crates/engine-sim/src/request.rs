//! What clients ask for, read leniently: unknown fields are ignored, as engines do.

use serde::Deserialize;
use serde_json::Value;

use crate::config::Dialect;
use crate::problem::Problem;

/// Body of `/v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub(crate) struct ChatRequest {
    pub(crate) messages: Vec<Message>,
    #[serde(default)]
    pub(crate) continue_final_message: bool,
    pub(crate) add_generation_prompt: Option<bool>,
    #[serde(flatten)]
    pub(crate) common: Common,
}

/// Body of `/v1/completions`.
#[derive(Debug, Deserialize)]
pub(crate) struct TextRequest {
    pub(crate) prompt: Prompt,
    #[serde(flatten)]
    pub(crate) common: Common,
}

/// What both have.
#[derive(Debug, Deserialize)]
pub(crate) struct Common {
    pub(crate) model: Option<String>,
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) max_completion_tokens: Option<u64>,
    pub(crate) n: Option<u64>,
    pub(crate) stop: Option<OneOrMany<String>>,
    /// vLLM's extension: decode up to `max_tokens`.
    pub(crate) ignore_eos: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub(crate) include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Text, token ids or several of either.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u64>),
    ManyTokens(Vec<Vec<u64>>),
}

impl Prompt {
    pub(crate) fn into_texts(self) -> Vec<String> {
        let words = |tokens: Vec<u64>| tokens.iter().map(|token| format!("<{token}>")).collect();
        match self {
            Self::Text(text) => vec![text],
            Self::Texts(texts) => texts,
            Self::Tokens(tokens) => vec![words(tokens)],
            Self::ManyTokens(many) => many.into_iter().map(words).collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    pub(crate) role: String,
    #[serde(default)]
    content: Value,
}

impl Message {
    pub(crate) fn new(role: &str, content: Value) -> Self {
        Self { role: role.to_owned(), content }
    }

    /// The text of a string or of all text parts.
    pub(crate) fn text(&self) -> String {
        match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
            _ => String::new(),
        }
    }
}

impl ChatRequest {
    /// Whether the last message is the beginning of the answer.
    pub(crate) fn continues(&self, dialect: Dialect) -> Result<bool, Problem> {
        let trailing = self.messages.iter().rev().take_while(|message| message.role == "assistant").count();
        match dialect {
            Dialect::OpenAi => Ok(false),
            Dialect::Vllm | Dialect::Sglang if !self.continue_final_message => Ok(false),
            Dialect::Vllm if self.add_generation_prompt != Some(false) => Err(Problem::invalid(
                "cannot set both `continue_final_message` and `add_generation_prompt` to true",
            )),
            Dialect::Vllm if trailing == 0 => {
                Err(Problem::invalid("`continue_final_message` needs an assistant message at the end"))
            }
            Dialect::LlamaCpp if trailing > 1 => {
                Err(Problem::invalid("cannot have 2 or more assistant messages at the end of the list"))
            }
            Dialect::Vllm | Dialect::Sglang | Dialect::LlamaCpp => Ok(trailing > 0),
        }
    }
}

/// Whether the body of a chat gives the beginning of its answer, in whatever dialect.
pub(crate) fn is_prefill(body: &[u8]) -> bool {
    let chat = serde_json::from_slice::<ChatRequest>(body);
    chat.is_ok_and(|chat| {
        let last = chat.messages.last();
        chat.continue_final_message || last.is_some_and(|message| message.role == "assistant")
    })
}
