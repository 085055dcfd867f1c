use serde::Deserialize;

/// Tokens of a request, as the engine counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "Wire")]
pub struct Usage {
    /// Of the prompt.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
}

/// The responses API has names of its own. Numbers may be written as floats.
#[derive(Deserialize)]
struct Wire {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<f64>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<f64>,
}

impl From<Wire> for Usage {
    fn from(wire: Wire) -> Self {
        let count = |tokens: Option<f64>| tokens.unwrap_or(0.0).max(0.0) as u64;
        Self { input: count(wire.prompt_tokens), output: count(wire.completion_tokens) }
    }
}
