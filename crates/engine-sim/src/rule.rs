//! How faults are written down, and how often each happens.

use std::time::Duration;

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fault::{Fault, Scope};

/// The field that stands right behind the kind in a header: `cut=3` is `{"kind":"cut","after":3}`.
const MAIN_FIELD: &[(&str, &str)] = &[
    ("status", "status"),
    ("hangup", "how"),
    ("slow_first_token", "delay"),
    ("cut", "after"),
    ("stall", "after"),
    ("invalid_event", "after"),
    ("garbage", "after"),
    ("error_event", "after"),
    ("huge_event", "after"),
    ("dribble", "bytes"),
    ("cut_after_finish", "how"),
    ("failed", "after"),
    ("content_filter", "after"),
    ("content_policy", "code"),
    ("content_type", "value"),
    ("redirect", "location"),
    ("ping", "every"),
    ("health", "status"),
    ("slow_health", "delay"),
];

/// Why a fault could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    #[error("`{0}` is not a fault: {1}; hint: `backstop engine-sim --help` lists them")]
    Unreadable(String, serde_json::Error),
    #[error("status `{0}` is not between 200 and 999")]
    Status(u16),
    #[error("probability `{0}` is not between 0 and 1")]
    Probability(f64),
    #[error("`{0}` must be at least 1")]
    Zero(&'static str),
    #[error("`{0}` must be longer than nothing")]
    NoTime(&'static str),
    #[error("`{0}` can't be the value of a header")]
    HeaderValue(String),
    #[error("`{0}` does not concern a single request; hint: set it with `--fault` or `POST /sim/faults`")]
    NotOfRequest(String),
    #[error("`times` and `probability` don't go with a single request; hint: see `POST /sim/faults`")]
    Often,
}

/// A fault and how often it happens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rule {
    #[serde(flatten)]
    pub fault: Fault,
    /// Happens to the next so many requests, then the rule is gone; `None` is until it is taken away.
    pub times: Option<u32>,
    /// Chance, in [0, 1], that a request is hit. A request spared does not use up `times`.
    pub probability: f64,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self { fault, times: None, probability: 1.0 }
    }
}

impl Rule {
    /// `fault` for the next `times` requests.
    pub fn times(fault: Fault, times: u32) -> Self {
        Self { times: Some(times), ..fault.into() }
    }

    /// Reads `{"kind": …, …, "times": 3, "probability": 0.5}`.
    pub fn from_json(value: Value) -> Result<Self, FaultError> {
        #[derive(Deserialize)]
        struct Often {
            times: Option<u32>,
            #[serde(default = "always")]
            probability: f64,
        }
        let unreadable = |error| FaultError::Unreadable(value.to_string(), error);
        let often = Often::deserialize(&value).map_err(unreadable)?;
        let mut fault = value.clone();
        if let Some(fields) = fault.as_object_mut() {
            fields.remove("times");
            fields.remove("probability");
        }
        let fault: Fault = serde_json::from_value(fault).map_err(unreadable)?;
        if !(0.0..=1.0).contains(&often.probability) {
            return Err(FaultError::Probability(often.probability));
        }
        check(&fault)?;
        Ok(Self { fault, times: often.times, probability: often.probability })
    }
}

impl std::str::FromStr for Rule {
    type Err = FaultError;

    /// Reads `cut=3;how=rst;times=1`.
    fn from_str(text: &str) -> Result<Self, FaultError> {
        Self::from_json(Value::Object(fields(text)))
    }
}

/// What the types leave open.
fn check(fault: &Fault) -> Result<(), FaultError> {
    match fault {
        Fault::Status { status, .. } | Fault::Health { status } | Fault::Flap { status, .. }
            if !(200..1000).contains(status) =>
        {
            Err(FaultError::Status(*status))
        }
        Fault::Dribble { bytes: 0 } => Err(FaultError::Zero("bytes")),
        Fault::Flap { up: 0, .. } => Err(FaultError::Zero("up")),
        Fault::Flap { down: 0, .. } => Err(FaultError::Zero("down")),
        Fault::Ping { every: Duration::ZERO } => Err(FaultError::NoTime("every")),
        Fault::Refuse { up: Duration::ZERO, .. } => Err(FaultError::NoTime("up")),
        Fault::Refuse { down: Duration::ZERO, .. } => Err(FaultError::NoTime("down")),
        Fault::ContentType { value } | Fault::Redirect { location: value }
            if HeaderValue::from_str(value).is_err() =>
        {
            Err(FaultError::HeaderValue(value.clone()))
        }
        _ => Ok(()),
    }
}

fn always() -> f64 {
    1.0
}

/// `cut=3;mid_event` as the fields of JSON.
fn fields(item: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    for (at, part) in item.split(';').map(str::trim).enumerate() {
        let (key, value) = part.split_once('=').unwrap_or((part, "true"));
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        if at > 0 {
            fields.insert(key.to_owned(), value);
            continue;
        }
        fields.insert("kind".to_owned(), Value::from(key));
        let main = MAIN_FIELD.iter().find(|(kind, _)| *kind == key).map(|(_, field)| *field);
        if let (Some(field), true) = (main, part.contains('=')) {
            fields.insert(field.to_owned(), value);
        }
    }
    fields
}

/// Faults written in a request's `x-sim-fault` header: `cut=3;how=rst;mid_event, slow_first_token=2s`.
///
/// With `only=NAME` a fault is meant for the simulator of that name; others ignore it.
pub(crate) fn parse_header(text: &str, name: &str) -> Result<Vec<Fault>, FaultError> {
    let mut faults = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let mut fields = fields(item);
        if fields.remove("only").is_some_and(|only| only.as_str() != Some(name)) {
            continue;
        }
        let Rule { fault, times, probability } = Rule::from_json(Value::Object(fields))?;
        if matches!(fault.scope(), Scope::Health | Scope::Decoding | Scope::Process) {
            return Err(FaultError::NotOfRequest(item.to_owned()));
        }
        if times.is_some() || probability < 1.0 {
            return Err(FaultError::Often);
        }
        faults.push(fault);
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Cut, PolicyCode};

    #[test]
    fn headers_are_read() {
        let read = |text| parse_header(text, "a").unwrap();
        let status = |status, retry_after| Fault::Status { status, retry_after, message: None };
        assert_eq!(read("status=503;retry_after=2"), [status(503, Some(2))]);
        assert_eq!(read("no_answer"), [Fault::NoAnswer]);
        assert_eq!(read("hangup"), [Fault::Hangup { how: Cut::Fin }]);
        assert_eq!(read("hangup=rst"), [Fault::Hangup { how: Cut::Rst }]);
        assert_eq!(
            read("slow_first_token=1.5s, cut=3; how=rst; mid_event"),
            [
                Fault::SlowFirstToken { delay: Duration::from_millis(1500) },
                Fault::Cut { after: 3, how: Cut::Rst, mid_event: true },
            ]
        );
        assert_eq!(read("stall=2;only=a, status=500;only=b"), [Fault::Stall { after: 2 }]);
        assert_eq!(
            read("ping=50ms, cut_after_finish=rst, redirect=/there, redirect"),
            [
                Fault::Ping { every: Duration::from_millis(50) },
                Fault::CutAfterFinish { how: Cut::Rst },
                Fault::Redirect { location: "/there".to_owned() },
                Fault::Redirect { location: "http://127.0.0.1:9/elsewhere".to_owned() },
            ]
        );
        assert_eq!(
            read("huge_event=1, huge_event=0;bytes=9, content_policy, content_policy=content_filter"),
            [
                Fault::HugeEvent { after: 1, bytes: 100 << 20 },
                Fault::HugeEvent { after: 0, bytes: 9 },
                Fault::ContentPolicy { code: PolicyCode::ContentPolicyViolation },
                Fault::ContentPolicy { code: PolicyCode::ContentFilter },
            ]
        );
    }

    #[test]
    fn wrong_headers_are_refused() {
        let wrong = [
            "cut",
            "cut=x",
            "status=20",
            "nothing",
            "cut=1;how=odd",
            "cut=1;colour=red",
            "dribble=0",
            "ping=0",
            "ping=fast",
            "content_type",
            "content_policy=other",
            // Not of a single request.
            "freeze",
            "health=503",
            "flap;up=1;down=1",
            "slow_health=1s",
            "refuse;up=1s;down=1s",
            "cut=1;times=2",
            "cut=1;probability=0.5",
        ];
        for wrong in wrong {
            assert!(parse_header(wrong, "a").is_err(), "{wrong}");
        }
        assert!(parse_header("status=600;only=b, freeze;only=b", "a").unwrap().is_empty());
    }

    #[test]
    fn rules_survive_json() {
        let rule = Rule { probability: 0.5, ..Rule::times(Fault::Stall { after: 1 }, 2) };
        let json = serde_json::to_value(&rule).unwrap();
        assert_eq!(Rule::from_json(json).unwrap(), rule);
        let ms = Duration::from_millis;
        for fault in [
            Fault::Ping { every: ms(50) },
            Fault::OneByOne,
            Fault::NoChat,
            Fault::Refuse { up: ms(1), down: ms(2) },
            Fault::Flap { up: 1, down: 2, status: 500 },
        ] {
            let json = serde_json::to_value(Rule::from(fault.clone())).unwrap();
            assert_eq!(Rule::from_json(json).unwrap(), fault.into());
        }
    }

    #[test]
    fn rules_are_written_on_the_command_line() {
        let read = |text: &str| text.parse::<Rule>().map_err(|error| error.to_string());
        assert_eq!(read("no_done"), Ok(Fault::NoDone.into()));
        let cut = Fault::Cut { after: 3, how: Cut::Rst, mid_event: false };
        assert_eq!(read("cut=3;how=rst;times=2"), Ok(Rule::times(cut, 2)));
        assert_eq!(
            read("flap;up=2;down=3;probability=0.5"),
            Ok(Rule { probability: 0.5, ..Fault::Flap { up: 2, down: 3, status: 503 }.into() })
        );
        for (wrong, why) in [
            ("", "not a fault"),
            ("cut=3, stall=1", "not a fault"),
            ("no_answer;probability=2", "probability `2`"),
            ("flap;up=0;down=1", "`up` must be at least 1"),
            ("flap;up=1;down=0", "`down` must be at least 1"),
            ("refuse;up=0;down=1s", "`up` must be longer"),
            ("refuse;up=1s", "missing field `down`"),
            ("slow_health=soon", "not a delay"),
            ("content_type=\u{7}", "`\u{7}` can't be the value of a header"),
            ("flap;up=1;down=1;status=1", "status `1`"),
        ] {
            let error = read(wrong).expect_err(wrong);
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
