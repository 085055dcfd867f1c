//! How a simulated engine is set up.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::body::WriteStyle;
use crate::dist::Dist;

/// Set-up of a [`crate::Sim`]. The default answers at once, without limits, on a free port of 127.0.0.1.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Told apart by `only=NAME` in fault headers.
    pub name: String,
    /// The one model served; `None` accepts and echoes any name.
    pub model: Option<String>,
    pub seed: u64,
    /// Time to the first token, from the moment a slot is free.
    pub ttft: Dist,
    /// Time between tokens.
    pub itl: Dist,
    /// Length at which an answer ends by itself, in tokens from its very beginning.
    pub tokens: u64,
    /// Concurrent decodes; the rest waits. `None` is without limit.
    pub slots: Option<usize>,
    /// Requests that may wait; those beyond get 503 with `Retry-After: 1`. `None` is without limit, like vLLM.
    pub queue: Option<usize>,
    /// KV cache in tokens: a prompt that is larger gets 400, a request that does not fit now waits.
    pub kv_tokens: Option<u64>,
    /// Longest prompt and answer together, in tokens; what asks for more gets 400. llama.cpp refuses only the prompt
    /// and ends the answer at the limit.
    pub context: Option<u64>,
    pub dialect: Dialect,
    /// Events that are ready together go into one write up to this number; 1 is one write each, like real engines.
    pub events_per_write: usize,
    /// Streams leave in writes of so many bytes instead, wherever events and characters begin.
    pub bytes_per_write: Option<usize>,
    /// Requests kept in the log, with their bodies.
    pub log: usize,
    /// Largest request body, in bytes.
    pub max_body: usize,
    /// Length of embedding vectors unless the request says otherwise.
    pub embedding_dimensions: usize,
    /// By so many bytes the memory grows with each request that its metrics tell of, from 1 GiB. `None` is an engine that does not
    /// report its memory.
    pub leak: Option<u64>,
    /// How long [`crate::Sim::shutdown`] waits for answers under way.
    pub grace: Duration,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            name: "sim".to_owned(),
            model: None,
            seed: 0,
            ttft: Dist::ZERO,
            itl: Dist::ZERO,
            tokens: 64,
            slots: None,
            queue: None,
            kv_tokens: None,
            context: None,
            dialect: Dialect::Vllm,
            events_per_write: 1,
            bytes_per_write: None,
            log: 256,
            max_body: 32 << 20,
            embedding_dimensions: 64,
            leak: None,
            grace: Duration::from_secs(10),
        }
    }
}

impl SimConfig {
    pub(crate) fn write_style(&self) -> WriteStyle {
        WriteStyle { events_per_write: self.events_per_write.max(1), bytes_per_write: self.bytes_per_write }
    }
}

/// Whose habits the engine has: how an answer is continued, how some errors look, and what its metrics are called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// Continues a trailing assistant message if asked by `continue_final_message: true` together with
    /// `add_generation_prompt: false`.
    #[default]
    Vllm,
    /// Continues a trailing assistant message if asked by `continue_final_message: true`.
    Sglang,
    /// Always continues a trailing assistant message.
    #[value(name = "llama.cpp", alias = "llamacpp")]
    LlamaCpp,
    /// OpenAI itself: never continues a message, and has no metrics.
    #[value(name = "openai")]
    OpenAi,
}
