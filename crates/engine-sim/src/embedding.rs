//! `/v1/embeddings`: vectors that are a pure function of the seed and the text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::SimConfig;
use crate::dist::Chance;
use crate::job::{limits, served_model};
use crate::problem::Problem;
use crate::request::Prompt;
use crate::text::{conversation_key, count_tokens};

/// Longest vector a request may ask for.
const MAX_DIMENSIONS: usize = 16_384;

#[derive(Debug, Deserialize)]
pub(crate) struct EmbeddingRequest {
    input: Prompt,
    model: Option<String>,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<usize>,
}

/// The official SDKs ask for base64 of little-endian 32-bit floats unless told otherwise.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

/// Embeddings to make.
#[derive(Debug)]
pub(crate) struct EmbeddingJob {
    seed: u64,
    model: String,
    texts: Vec<String>,
    encoding: Encoding,
    dimensions: usize,
    pub(crate) prompt_tokens: u64,
}

impl EmbeddingJob {
    pub(crate) fn new(config: &SimConfig, request: EmbeddingRequest) -> Result<Self, Problem> {
        let model = served_model(config, request.model)?;
        let texts = request.input.into_texts();
        let dimensions = request.dimensions.unwrap_or(config.embedding_dimensions);
        if texts.is_empty() {
            return Err(Problem::invalid("`input` must not be empty"));
        }
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(Problem::invalid(format!("`dimensions` must be between 1 and {MAX_DIMENSIONS}")));
        }
        let prompt_tokens = texts.iter().map(|text| count_tokens(text)).sum();
        limits(config, prompt_tokens, None, Vec::new(), false)?;
        let encoding = request.encoding_format;
        Ok(Self { seed: config.seed, model, texts, encoding, dimensions, prompt_tokens })
    }

    pub(crate) fn json(&self) -> Bytes {
        let datum = |(index, text): (usize, &String)| {
            let vector = vector(self.seed, text, self.dimensions);
            let embedding = match self.encoding {
                Encoding::Float => json!(vector),
                Encoding::Base64 => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                    Value::from(STANDARD.encode(bytes))
                }
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        };
        let data: Vec<Value> = self.texts.iter().enumerate().map(datum).collect();
        let usage = json!({"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens});
        let answer = json!({"object": "list", "model": self.model, "data": data, "usage": usage});
        Bytes::from(answer.to_string())
    }
}

/// A unit vector in a direction drawn for the text.
fn vector(seed: u64, text: &str, dimensions: usize) -> Vec<f32> {
    let mut chance = Chance::new(conversation_key(seed, [("embedding", text)].into_iter()));
    let raw: Vec<f64> = (0..dimensions).map(|_| chance.normal()).collect();
    let length = raw.iter().map(|value| value * value).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    raw.iter().map(|value| (value / length) as f32).collect()
}
