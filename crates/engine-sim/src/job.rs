//! A request understood: what to decode and how to write it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::answer::{Answer, Limits};
use crate::config::{Dialect, SimConfig};
use crate::frame::{Completion, Kind, Wire};
use crate::problem::Problem;
use crate::request::{ChatRequest, Common, OneOrMany, TextRequest};
use crate::responses::{Responses, ResponsesRequest};
use crate::text::{conversation_key, count_tokens, mix, split_prompt};

/// Tokens that a chat template adds to each message.
const PER_MESSAGE: u64 = 4;

/// Most choices of a request.
const MAX_CHOICES: u64 = 128;

pub(crate) struct Job {
    pub(crate) wire: Box<dyn Wire>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) prompt_tokens: u64,
    pub(crate) stream: bool,
}

impl Job {
    /// Tokens of KV cache that the request takes at most.
    pub(crate) fn kv_tokens(&self) -> u64 {
        self.answers.iter().map(Answer::planned).sum::<u64>() + self.prompt_tokens
    }

    pub(crate) fn chat(config: &SimConfig, number: u64, request: ChatRequest) -> Result<Self, Problem> {
        if request.messages.is_empty() {
            return Err(Problem::invalid("`messages` must not be empty"));
        }
        let continues = request.continues(config.dialect)?;
        let mut texts: Vec<_> = request.messages.iter().map(|it| (it.role.clone(), it.text())).collect();
        let prompt_tokens = texts.iter().map(|(_, text)| count_tokens(text) + PER_MESSAGE).sum();
        let so_far = if continues { texts.pop().map(|(_, text)| text) } else { None }.unwrap_or_default();
        let key =
            conversation_key(config.seed, texts.iter().map(|(role, text)| (role.as_str(), text.as_str())));
        Self::completion(config, number, Kind::Chat, request.common, prompt_tokens, &[(key, &so_far)])
    }

    pub(crate) fn text(config: &SimConfig, number: u64, request: TextRequest) -> Result<Self, Problem> {
        let prompts = request.prompt.into_texts();
        if prompts.is_empty() {
            return Err(Problem::invalid("`prompt` must not be empty"));
        }
        let tokens = prompts.iter().map(|prompt| count_tokens(prompt)).sum();
        let begun: Vec<_> = prompts.iter().map(|prompt| split_prompt(config.seed, prompt)).collect();
        Self::completion(config, number, Kind::Text, request.common, tokens, &begun)
    }

    pub(crate) fn responses(
        config: &SimConfig,
        number: u64,
        request: ResponsesRequest,
    ) -> Result<Self, Problem> {
        let messages = request.messages();
        if messages.is_empty() {
            return Err(Problem::invalid("`input` must be text or a list of messages"));
        }
        let model = served_model(config, request.model)?;
        let prompt_tokens = messages.iter().map(|(_, text)| count_tokens(text) + PER_MESSAGE).sum();
        let max_new = request.max_output_tokens;
        let limits = limits(config, prompt_tokens, max_new, Vec::new(), false)?;
        let pairs = messages.iter().map(|(role, text)| (role.as_str(), text.as_str()));
        let key = conversation_key(config.seed, pairs);
        let answers = vec![Answer::new(config.seed, key, "", 0, &limits)];
        let id = unique_id(config, "resp", number);
        let wire = Responses::new(id, unique_id(config, "msg", number), model, unix_now());
        Ok(Self { wire: Box::new(wire), answers, prompt_tokens, stream: request.stream.unwrap_or(false) })
    }

    fn completion(
        config: &SimConfig,
        number: u64,
        kind: Kind,
        common: Common,
        prompt_tokens: u64,
        begun: &[(u64, &str)],
    ) -> Result<Self, Problem> {
        let model = served_model(config, common.model)?;
        let max_new = common.max_completion_tokens.or(common.max_tokens);
        let choices = common.n.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&choices) {
            return Err(Problem::invalid(format!("`n` must be between 1 and {MAX_CHOICES}")));
        }
        let stop = common.stop.map(OneOrMany::into_vec).unwrap_or_default();
        let ignore_eos = common.ignore_eos.unwrap_or(false);
        let limits = limits(config, prompt_tokens, max_new, stop, ignore_eos)?;
        let answer =
            |(key, so_far): &(u64, &str), choice| Answer::new(config.seed, *key, so_far, choice, &limits);
        let answers =
            begun.iter().flat_map(|it| (0..choices).map(move |choice| answer(it, choice))).collect();
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let wire = Completion {
            kind,
            id: unique_id(config, prefix, number),
            model,
            created: unix_now(),
            include_usage: common.stream_options.unwrap_or_default().include_usage.unwrap_or(false),
            role_content: (config.dialect != Dialect::LlamaCpp).then_some(""),
            no_finish: "null",
        };
        Ok(Self { wire: Box::new(wire), answers, prompt_tokens, stream: common.stream.unwrap_or(false) })
    }
}

/// The model's name if it is served here.
pub(crate) fn served_model(config: &SimConfig, asked: Option<String>) -> Result<String, Problem> {
    match (&config.model, asked) {
        (Some(served), Some(asked)) if *served != asked => Err(Problem::model_not_found(&asked)),
        (Some(served), _) => Ok(served.clone()),
        (None, Some(asked)) => Ok(asked),
        (None, None) => Ok(config.name.clone()),
    }
}

/// Fits the answer between what was asked for and what the context and the KV cache hold.
pub(crate) fn limits(
    config: &SimConfig,
    prompt_tokens: u64,
    max_new: Option<u64>,
    stop: Vec<String>,
    ignore_eos: bool,
) -> Result<Limits, Problem> {
    let mut max_new = max_new;
    if let Some(limit) = config.context {
        let asked = max_new.filter(|_| config.dialect != Dialect::LlamaCpp).unwrap_or(0);
        if prompt_tokens.saturating_add(asked) > limit {
            return Err(Problem::context_length(config.dialect, limit, prompt_tokens, asked));
        }
    }
    if let Some(limit) = config.kv_tokens.into_iter().chain(config.context).min() {
        if prompt_tokens >= limit {
            return Err(Problem::context_length(config.dialect, limit, prompt_tokens, 0));
        }
        let room = limit - prompt_tokens;
        max_new = Some(max_new.map_or(room, |max| max.min(room)));
    }
    if max_new == Some(0) {
        return Err(Problem::invalid("`max_tokens` must be at least 1"));
    }
    let natural = if ignore_eos && max_new.is_some() { u64::MAX } else { config.tokens };
    Ok(Limits { natural, max_new, stop })
}

/// An identifier that no other request of this simulator has.
pub(crate) fn unique_id(config: &SimConfig, prefix: &str, number: u64) -> String {
    let name = config.name.bytes().fold(config.seed, |hash, byte| mix(hash ^ u64::from(byte)));
    format!("{prefix}-{:016x}{:016x}", mix(name ^ number), mix(name.rotate_left(1) ^ number))
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
