//! Values by which measured numbers are named, asked for and limited.

use std::borrow::Cow;
use std::fmt;

use backstop_core::rollout::Query;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::http::HeaderText;
use crate::units::{Complaint, Percent, Unit, unit};

/// A number, or a share with its sign.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Amount {
    Number(f64),
    Share(Percent),
}

impl Amount {
    /// Of a share: 0–1.
    pub(crate) fn number(self) -> f64 {
        match self {
            Self::Number(number) => number,
            Self::Share(percent) => percent.share(),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Share(Percent),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Number(number) => Self::Number(number),
            Either::Share(share) => Self::Share(share),
        })
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => number.serialize(serializer),
            Self::Share(share) => share.serialize(serializer),
        }
    }
}

impl JsonSchema for Amount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["number", "string"], "format": Percent::FORMAT })
    }
}

/// One of ours, or a name that somebody else chooses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Named<T> {
    Known(T),
    Own(MetricName),
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("named-{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (known, own) = (generator.subschema_for::<T>(), generator.subschema_for::<MetricName>());
        json_schema!({ "anyOf": [known, own] })
    }
}

/// Name of a metric that Prometheus is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetricName(pub(crate) String);

unit!(MetricName);

impl Unit for MetricName {
    const FORMAT: &'static str = "metric-name";
    const EXPECTED: &'static str = "a name of small letters, digits and `_`, such as `queue_depth`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        if begins && text.len() <= 64 && text.bytes().all(valid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Complaint::new("is not the name of a metric", Self::EXPECTED))
        }
    }
}

impl Serialize for MetricName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A question for Prometheus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PromQuery {
    pub(crate) query: Query,
    written: String,
}

unit!(PromQuery);

impl Unit for PromQuery {
    const FORMAT: &'static str = "promql";
    const EXPECTED: &'static str =
        "an expression of PromQL, in which `$service` and `$version` stand for the names";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let not = Complaint::new("is not a question for Prometheus", Self::EXPECTED);
        if text.trim().is_empty() || text.len() > 4096 {
            return Err(not);
        }
        let query = Query::new(text).map_err(|_| {
            not.hint("other variables there are not, and these not within back quotes: use double quotes")
        })?;
        Ok(Self { query, written: text.to_owned() })
    }
}

impl Serialize for PromQuery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

/// Value of a header that nobody is shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretText(pub(crate) String);

unit!(SecretText);

impl Unit for SecretText {
    const FORMAT: &'static str = "secret-header";
    const EXPECTED: &'static str = "the value of the header, usually with `\"${NAME}\"` from the environment";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let HeaderText(value) = HeaderText::parse(text)
            .map_err(|_| Complaint::new("is not the value of a header", Self::EXPECTED))?;
        Ok(Self(value))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}
