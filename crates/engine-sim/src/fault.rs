//! What can go wrong with an answer, how it is written down, and which request it happens to.
//!
//! A new fault is one variant of [`Fault`], its place in [`Fault::scope`] and [`MAIN_FIELD`], and its effect
//! where answers are written.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::dist::{Chance, parse_duration};

/// One way to go wrong. `after` counts content chunks, so 0 is after the role chunk; plain answers are hit
/// in the middle of their body whatever `after` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Answer with this status and an OpenAI error; `retry_after` in seconds.
    Status {
        status: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Take the request and never answer.
    NoAnswer,
    /// Close the connection instead of answering.
    Hangup {
        #[serde(default)]
        how: Cut,
    },
    /// This much later than usual with the first token.
    SlowFirstToken {
        #[serde(serialize_with = "write_delay", deserialize_with = "read_delay")]
        delay: Duration,
    },
    /// Stop after so many chunks; with `mid_event` half of the next event is still sent.
    Cut {
        after: u64,
        #[serde(default)]
        how: Cut,
        #[serde(default)]
        mid_event: bool,
    },
    /// Send nothing more after so many chunks and keep the connection open.
    Stall { after: u64 },
    /// One event that is not JSON, then go on.
    InvalidEvent { after: u64 },
    /// Bytes that are neither SSE nor UTF-8, then go on.
    Garbage { after: u64 },
    /// An error event inside the stream, which ends there without `[DONE]`.
    ErrorEvent { after: u64 },
    /// A complete answer, but without `[DONE]`.
    NoDone,
    /// `[DONE]`, but no finish reason before it.
    NoFinish,
    /// Everything up to the finish reason, but neither usage nor `[DONE]` after it.
    CutAfterFinish {
        #[serde(default)]
        how: Cut,
    },
    /// The responses API's `response.failed`, which ends the stream; an error event from other APIs.
    Failed { after: u64 },
    /// Answer a streamed request with JSON in one piece.
    PlainForStream,
    /// Answer a plain request with a stream.
    StreamForPlain,
    /// Answer 307 with this `Location`.
    Redirect {
        #[serde(default = "elsewhere")]
        location: String,
    },
    /// Chat is answered 400, as by an engine that only embeds.
    NoChat,
    /// A comment this often while a stream has nothing else to send: stalled, frozen or slow.
    Ping {
        #[serde(serialize_with = "write_delay", deserialize_with = "read_delay")]
        every: Duration,
    },
    /// Chunks before the last carry `"finish_reason":""` instead of null.
    EmptyFinish,
    /// Of several choices each is streamed to its finish before the next begins.
    OneByOne,
    /// Write the whole stream in pieces of so many bytes, across events and characters.
    Dribble { bytes: usize },
    /// All decoding stands still while this is set, whatever `times` says; health passes and counters stop.
    Freeze,
    /// Health checks get this status.
    Health { status: u16 },
}

/// How a connection is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Closed in an orderly way (FIN), but in the middle of the body.
    #[default]
    Fin,
    /// Reset, which may overtake what the client has not read yet.
    Rst,
    /// The body ends properly as far as HTTP goes, but no finish reason and no `[DONE]` were sent.
    End,
}

/// What a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Request,
    /// How a stream is written; comes on top of what else hits the request.
    Manner,
    Chat,
    Health,
    Engine,
}

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
    ("dribble", "bytes"),
    ("cut_after_finish", "how"),
    ("failed", "after"),
    ("redirect", "location"),
    ("ping", "every"),
    ("health", "status"),
];

impl Fault {
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Freeze => Scope::Engine,
            Self::Health { .. } => Scope::Health,
            Self::NoChat => Scope::Chat,
            Self::Ping { .. } | Self::EmptyFinish | Self::OneByOne => Scope::Manner,
            _ => Scope::Request,
        }
    }

    /// Content chunks before this happens in a stream, for faults that do.
    pub(crate) fn after(&self) -> Option<u64> {
        match self {
            Self::Cut { after, .. }
            | Self::Stall { after }
            | Self::InvalidEvent { after }
            | Self::Garbage { after }
            | Self::Failed { after }
            | Self::ErrorEvent { after } => Some(*after),
            _ => None,
        }
    }

    /// Whether the fault stands in place of an answer.
    pub(crate) fn comes_first(&self) -> bool {
        matches!(
            self,
            Self::Status { .. } | Self::NoAnswer | Self::Hangup { .. } | Self::Redirect { .. } | Self::NoChat
        )
    }

    pub(crate) fn dribble(&self) -> Option<usize> {
        match self {
            Self::Dribble { bytes } => Some(*bytes),
            _ => None,
        }
    }

    pub(crate) fn ping(&self) -> Option<Duration> {
        match self {
            Self::Ping { every } => Some(*every),
            _ => None,
        }
    }

    pub(crate) fn first_token_delay(&self) -> Option<Duration> {
        match self {
            Self::SlowFirstToken { delay } => Some(*delay),
            _ => None,
        }
    }
}

/// Why a fault could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    #[error("`{0}` is not a fault: {1}")]
    Unreadable(String, serde_json::Error),
    #[error("status `{0}` is not between 200 and 999")]
    Status(u16),
    #[error("probability `{0}` is not between 0 and 1")]
    Probability(f64),
    #[error("`bytes` must be at least 1")]
    NoBytes,
    #[error("`every` must be longer than nothing")]
    NoPause,
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
        match fault {
            Fault::Status { status, .. } | Fault::Health { status } if !(200..1000).contains(&status) => {
                Err(FaultError::Status(status))
            }
            Fault::Dribble { bytes: 0 } => Err(FaultError::NoBytes),
            Fault::Ping { every: Duration::ZERO } => Err(FaultError::NoPause),
            fault => Ok(Self { fault, times: often.times, probability: often.probability }),
        }
    }
}

fn always() -> f64 {
    1.0
}

fn elsewhere() -> String {
    "http://127.0.0.1:9/elsewhere".to_owned()
}

/// Faults written in a request's `x-sim-fault` header: `cut=3;how=rst;mid_event, slow_first_token=2s`.
///
/// With `only=NAME` a fault is meant for the simulator of that name; others ignore it.
pub(crate) fn parse_header(text: &str, name: &str) -> Result<Vec<Fault>, FaultError> {
    let mut faults = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let mut fields = Map::new();
        for (at, part) in item.split(';').map(str::trim).enumerate() {
            let (key, value) = part.split_once('=').unwrap_or((part, "true"));
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            if at == 0 {
                fields.insert("kind".to_owned(), Value::from(key));
            }
            let field = MAIN_FIELD.iter().find(|(kind, _)| *kind == key).map(|(_, field)| *field);
            match field {
                _ if at > 0 => drop(fields.insert(key.to_owned(), value)),
                Some(field) if part.contains('=') => drop(fields.insert(field.to_owned(), value)),
                _ => {}
            }
        }
        if fields.remove("only").is_none_or(|only| only.as_str() == Some(name)) {
            faults.push(Rule::from_json(Value::Object(fields))?.fault);
        }
    }
    Ok(faults)
}

/// The rules in force, shared between the library's caller, the admin calls and the requests.
///
/// At most one rule hits a request: the first that applies. So rules with `times` queue up, one after another.
/// `ping`, `empty_finish` and `one_by_one` come on top: the first of these hits it as well.
#[derive(Debug)]
pub struct Faults {
    state: Mutex<State>,
    frozen: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    rules: VecDeque<Rule>,
    chance: Chance,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        let state = State { rules: VecDeque::new(), chance: Chance::new(seed) };
        Self { state: Mutex::new(state), frozen: watch::Sender::new(false) }
    }

    /// Adds a rule behind the others.
    pub fn add(&self, rule: impl Into<Rule>) {
        let mut state = self.lock();
        state.rules.push_back(rule.into());
        self.publish(&state);
    }

    /// Replaces all rules by this one.
    pub fn set(&self, rule: impl Into<Rule>) {
        let mut state = self.lock();
        state.rules.clear();
        state.rules.push_back(rule.into());
        self.publish(&state);
    }

    /// Takes all rules away; frozen decoding goes on.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        self.publish(&state);
    }

    /// The rules in force, in order.
    pub fn list(&self) -> Vec<Rule> {
        self.lock().rules.iter().cloned().collect()
    }

    pub(crate) fn take(&self, scope: Scope) -> Option<Fault> {
        let State { rules, chance } = &mut *self.lock();
        let at = rules.iter().position(|rule| {
            rule.fault.scope() == scope && (rule.probability >= 1.0 || chance.unit() < rule.probability)
        })?;
        let fault = rules[at].fault.clone();
        if let Some(times) = &mut rules[at].times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                rules.remove(at);
            }
        }
        Some(fault)
    }

    /// Returns once decoding is not frozen; `true` if it had to wait.
    pub(crate) async fn thawed(&self) -> bool {
        if !*self.frozen.borrow() {
            return false;
        }
        // The sender lives in `self`, so this ends only with the thaw.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
        true
    }

    fn publish(&self, state: &State) {
        let frozen = state.rules.iter().any(|rule| rule.fault.scope() == Scope::Engine);
        self.frozen.send_if_modified(|now| std::mem::replace(now, frozen) != frozen);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_delay<S: Serializer>(delay: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format!("{delay:?}"))
}

fn read_delay<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = match Value::deserialize(from)? {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let expected = || serde::de::Error::custom(format!("`{text}` is not a delay such as `250ms` or `2s`"));
    parse_duration(&text).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

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
                Fault::Redirect { location: elsewhere() },
            ]
        );
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
        ];
        for wrong in wrong {
            assert!(parse_header(wrong, "a").is_err(), "{wrong}");
        }
    }

    #[test]
    fn rules_survive_json() {
        let rule = Rule { probability: 0.5, ..Rule::times(Fault::Stall { after: 1 }, 2) };
        let json = serde_json::to_value(&rule).unwrap();
        assert_eq!(Rule::from_json(json).unwrap(), rule);
        for fault in [Fault::Ping { every: Duration::from_millis(50) }, Fault::OneByOne, Fault::NoChat] {
            let json = serde_json::to_value(Rule::from(fault.clone())).unwrap();
            assert_eq!(Rule::from_json(json).unwrap(), fault.into());
        }
        let wrong = serde_json::json!({"kind": "no_answer", "probability": 2});
        assert!(matches!(Rule::from_json(wrong), Err(FaultError::Probability(_))));
    }

    #[test]
    fn rules_queue_up_and_run_out() {
        let faults = Faults::new(0);
        faults.add(Rule::times(Fault::NoAnswer, 1));
        faults.add(Fault::Health { status: 500 });
        faults.add(Rule::times(Fault::NoDone, 2));
        let taken: Vec<_> = (0..4).map(|_| faults.take(Scope::Request)).collect();
        assert_eq!(taken, [Some(Fault::NoAnswer), Some(Fault::NoDone), Some(Fault::NoDone), None]);
        assert_eq!(faults.list().len(), 1);
    }

    #[test]
    fn probability_thins_and_repeats() {
        let hits = |seed| {
            let faults = Faults::new(seed);
            faults.add(Rule { probability: 0.25, ..Fault::NoDone.into() });
            (0..1000).map(|_| faults.take(Scope::Request).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(hits(1), hits(1));
        let count = hits(1).iter().filter(|hit| **hit).count();
        assert!((200..300).contains(&count), "{count}");
    }
}
