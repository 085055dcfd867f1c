//! [`Concurrency`]: a number or a word, which no other value of the file is.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many requests at a time: a number, or the word `adaptive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concurrency {
    Adaptive,
    Fixed(u32),
}

impl Concurrency {
    const WORD: &str = "adaptive";
}

impl<'de> Deserialize<'de> for Concurrency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u32),
            Word(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self::Fixed(number)),
            Either::Word(word) if word == Self::WORD => Ok(Self::Adaptive),
            Either::Word(_) => Err(serde::de::Error::custom("neither a number nor `adaptive`")),
        }
    }
}

impl Serialize for Concurrency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Adaptive => serializer.serialize_str(Self::WORD),
            Self::Fixed(number) => serializer.serialize_u32(*number),
        }
    }
}

impl schemars::JsonSchema for Concurrency {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "concurrency".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["integer", "string"],
            "minimum": 1,
            "maximum": 100_000,
            "pattern": "^adaptive$",
            "x-word": Self::WORD,
        })
    }
}
