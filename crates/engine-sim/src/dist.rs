//! Seeded delays: distributions as written on the command line, and the generator they draw from.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text::mix;

/// A distribution of delays: `0`, `20ms`, `lognormal(50ms,0.5)` or `uniform(10ms,30ms)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dist {
    /// Always the same delay.
    Constant(Duration),
    /// Log-normal with this median and this standard deviation of the logarithm.
    LogNormal { median: Duration, sigma: f64 },
    /// Uniform between both, the upper end excluded.
    Uniform { low: Duration, high: Duration },
}

impl Dist {
    /// No delay at all.
    pub const ZERO: Self = Self::Constant(Duration::ZERO);

    pub(crate) fn sample(&self, chance: &mut Chance) -> Duration {
        match *self {
            Self::Constant(delay) => delay,
            Self::LogNormal { median, sigma } => {
                let factor = (sigma * chance.normal()).exp();
                // Bounded so that an absurd sigma cannot overflow; a day is longer than any test.
                Duration::from_secs_f64((median.as_secs_f64() * factor).min(86_400.0))
            }
            Self::Uniform { low, high } => low + high.saturating_sub(low).mul_f64(chance.unit()),
        }
    }
}

/// Why a distribution could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a delay; expected `0`, `20ms`, `lognormal(50ms,0.5)` or `uniform(10ms,30ms)`")]
pub struct DistError(String);

impl FromStr for Dist {
    type Err = DistError;

    fn from_str(text: &str) -> Result<Self, DistError> {
        let wrong = || DistError(text.to_owned());
        let Some((name, rest)) = text.split_once('(') else {
            return parse_duration(text).map(Self::Constant).ok_or_else(wrong);
        };
        let (first, second) = rest.strip_suffix(')').and_then(|it| it.split_once(',')).ok_or_else(wrong)?;
        let first = parse_duration(first.trim()).ok_or_else(wrong)?;
        match name.trim() {
            "lognormal" => {
                let sigma: f64 = second.trim().parse().map_err(|_| wrong())?;
                let valid = sigma.is_finite() && sigma >= 0.0;
                valid.then_some(Self::LogNormal { median: first, sigma }).ok_or_else(wrong)
            }
            "uniform" => {
                let high = parse_duration(second.trim()).ok_or_else(wrong)?;
                (first <= high).then_some(Self::Uniform { low: first, high }).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Dist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(delay) if delay.is_zero() => f.write_str("0"),
            Self::Constant(delay) => write!(f, "{delay:?}"),
            Self::LogNormal { median, sigma } => write!(f, "lognormal({median:?},{sigma})"),
            Self::Uniform { low, high } => write!(f, "uniform({low:?},{high:?})"),
        }
    }
}

/// `0`, `250us`, `20ms`, `1.5s` or `2m`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().ok()?;
    let scale = match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * scale).ok()
}

/// Delays in JSON: text, as on the command line.
pub(crate) mod delay {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::Value;

    use super::parse_duration;

    pub(crate) fn serialize<S: Serializer>(delay: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{delay:?}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = match Value::deserialize(from)? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let expected =
            || serde::de::Error::custom(format!("`{text}` is not a delay such as `250ms` or `2s`"));
        parse_duration(&text).ok_or_else(expected)
    }
}

/// A small seeded generator (SplitMix64). Its sequence never changes with a library's version.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_read_and_written() {
        for text in ["0", "20ms", "1.5s", "lognormal(50ms,0.5)", "uniform(10ms,30ms)"] {
            assert_eq!(text.parse::<Dist>().unwrap().to_string(), text);
        }
        for text in
            ["", "20", "ms", "-1s", "normal(1s,2)", "uniform(30ms,10ms)", "lognormal(50ms,-1)", "uniform(1s"]
        {
            assert!(text.parse::<Dist>().is_err(), "{text}");
        }
    }

    #[test]
    fn samples_repeat_and_have_the_right_shape() {
        let draw = |dist: Dist| {
            let mut chance = Chance::new(7);
            let mut samples: Vec<_> = (0..4001).map(|_| dist.sample(&mut chance).as_secs_f64()).collect();
            samples.sort_by(f64::total_cmp);
            samples
        };
        let log = "lognormal(50ms,0.5)".parse().unwrap();
        assert_eq!(draw(log), draw(log));
        let samples = draw(log);
        assert!((samples[2000] - 0.050).abs() < 0.003);
        assert!((samples[3365] / samples[2000] - 0.5f64.exp()).abs() < 0.1);
        let flat = draw("uniform(10ms,30ms)".parse().unwrap());
        assert!(flat[0] >= 0.010 && flat[4000] < 0.030 && (flat[2000] - 0.020).abs() < 0.001);
    }
}
