//! What engines use of their machines, and how that grows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gauge::{Answer, Heard};

/// Over how long at least the use of processors is taken.
const SPAN: u64 = 30_000;
/// An engine whose processor time stands still for so long uses none.
const IDLE_AFTER: u64 = 300_000;

/// What an endpoint's engine says of its own process.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineUse {
    pub url: String,
    /// `None` if it does not say, as what follows.
    pub resident_bytes: Option<f64>,
    /// Since it began.
    pub cpu_seconds: Option<f64>,
}

/// What is remembered of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Engines {
    /// The step of which `bytes` are.
    step: Option<u32>,
    /// Memory when the step was warm, by URL.
    bytes: BTreeMap<String, f64>,
    #[serde(skip)]
    cpu: BTreeMap<String, Cpu>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Cpu {
    at: u64,
    seconds: f64,
    /// Processors that it keeps busy.
    busy: Option<f64>,
}

impl Engines {
    /// Looks at what the engines use at `now`, in `step`, which `is_warm` or not yet.
    pub(super) fn look(&mut self, engines: &[EngineUse], now: u64, step: u32, is_warm: bool) {
        if self.step != Some(step) {
            (self.step, self.bytes) = (Some(step), BTreeMap::new());
        }
        for EngineUse { url, resident_bytes, cpu_seconds } in engines {
            if let Some(bytes) = resident_bytes.filter(|bytes| is_warm && *bytes > 0.0) {
                self.bytes.entry(url.clone()).or_insert(bytes);
            }
            let Some(seconds) = *cpu_seconds else { continue };
            let cpu = self.cpu.entry(url.clone()).or_insert(Cpu { at: now, seconds, busy: None });
            let (elapsed, used) = (now.saturating_sub(cpu.at), seconds - cpu.seconds);
            if used < 0.0 {
                // Another process.
                *cpu = Cpu { at: now, seconds, busy: None };
            } else if elapsed >= if used > 0.0 { SPAN } else { IDLE_AFTER } {
                *cpu = Cpu { at: now, seconds, busy: Some(used * 1e3 / elapsed as f64) };
            }
        }
    }

    /// By how much memory has grown since the step was warm, at the endpoint where it has most.
    pub(super) fn growth(&self, engines: &[EngineUse]) -> Option<Heard> {
        let reported: Vec<_> = engines.iter().filter_map(|it| Some((&it.url, it.resident_bytes?))).collect();
        if reported.is_empty() {
            return nothing("no engine reports its memory");
        }
        let growth = |(url, bytes): (&String, f64)| Some(bytes / self.bytes.get(url)? - 1.0);
        most(reported.into_iter().filter_map(growth))
    }

    /// How many processors the engine keeps busy that uses most.
    pub(super) fn busy(&self, engines: &[EngineUse]) -> Option<Heard> {
        if engines.iter().all(|it| it.cpu_seconds.is_none()) {
            return nothing("no engine reports its processor time");
        }
        most(engines.iter().filter_map(|it| self.cpu.get(&it.url)?.busy))
    }
}

fn nothing(why: &str) -> Option<Heard> {
    Some(Heard { answer: Answer::Nothing(why.to_owned()), age: 0, silence: None })
}

fn most(numbers: impl Iterator<Item = f64>) -> Option<Heard> {
    let most = numbers.reduce(f64::max)?;
    Some(Heard { answer: Answer::Number(most), age: 0, silence: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(url: &str, bytes: f64, seconds: f64) -> EngineUse {
        EngineUse { url: url.to_owned(), resident_bytes: Some(bytes), cpu_seconds: Some(seconds) }
    }

    fn number(heard: Option<Heard>) -> Option<f64> {
        match heard?.answer {
            Answer::Number(number) => Some((number * 1e6).round() / 1e6),
            _ => None,
        }
    }

    #[test]
    fn memory_grows_from_where_it_was_when_the_step_was_warm() {
        let mut engines = Engines::default();
        let at = |a, b| [engine("a", a, 0.0), engine("b", b, 0.0)];
        engines.look(&at(50.0, 50.0), 0, 0, false);
        assert_eq!(engines.growth(&at(50.0, 50.0)), None, "it loads its model");
        engines.look(&at(100.0, 200.0), 60_000, 0, true);
        engines.look(&at(150.0, 210.0), 70_000, 0, true);
        assert_eq!(number(engines.growth(&at(150.0, 210.0))), Some(0.5));
        // The next step begins with what there is.
        engines.look(&at(150.0, 210.0), 80_000, 1, true);
        assert_eq!(number(engines.growth(&at(150.0, 210.0))), Some(0.0));
    }

    #[test]
    fn processors_are_counted_over_a_while() {
        let mut engines = Engines::default();
        for (now, seconds, expected) in [
            (0, 100.0, None),
            (10_000, 130.0, None),
            (30_000, 160.0, Some(2.0)),
            (60_000, 160.0, Some(2.0)),
            (330_000, 160.0, Some(0.0)),
            (360_000, 1.0, None),
        ] {
            let now_used = [engine("a", 1.0, seconds)];
            engines.look(&now_used, now, 0, true);
            assert_eq!(number(engines.busy(&now_used)), expected, "at {now}");
        }
    }

    #[test]
    fn an_engine_that_does_not_say_is_told() {
        let silent = [EngineUse { url: "a".to_owned(), resident_bytes: None, cpu_seconds: None }];
        let mut engines = Engines::default();
        engines.look(&silent, 0, 0, true);
        for heard in [engines.growth(&silent), engines.busy(&silent)] {
            assert!(matches!(heard.unwrap().answer, Answer::Nothing(_)));
        }
    }
}
