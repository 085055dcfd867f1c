//! Numbers that are asked for or seen for each version, and limits for them. There is nothing random about them that we know
//! of, so that no statistics tell when one is beyond its limit: it has to be for some time, and stable's must not.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Query;

/// A number that the canary has to keep within a limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gauge {
    pub name: String,
    pub source: Source,
    pub limit: Limit,
    /// How long the canary has to be beyond it, and stable within it, to be sent back.
    pub lasts: Duration,
}

/// Where a number comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Prometheus.
    Query(Query),
    /// By how much an engine's memory has grown since the step was warm: 0.2 is a fifth.
    MemoryGrowth,
    /// How many processors an engine keeps busy.
    Cpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    Max(f64),
    Min(f64),
}

impl Limit {
    pub(super) fn is_passed(self, number: f64) -> bool {
        match self {
            Self::Max(most) => number > most,
            Self::Min(least) => number < least,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max(most) => write!(f, "at most {}", rounded(*most)),
            Self::Min(least) => write!(f, "at least {}", rounded(*least)),
        }
    }
}

/// What was found out about a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Finite.
    Number(f64),
    /// There is no such thing, with the reason.
    Nothing(String),
    /// Why nobody knows.
    Failed(String),
}

/// An answer, and how old it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub answer: Answer,
    /// Milliseconds.
    pub age: u64,
    /// Why there is no later one.
    pub silence: Option<String>,
}

/// What was heard of both versions; `None` = not asked yet. What is not asked by version is said of the canary.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    pub stable: Option<Heard>,
    pub canary: Option<Heard>,
}

impl Heard {
    fn by_now(self, stale_after: u64) -> Answer {
        if self.age < stale_after {
            return self.answer;
        }
        let why = self.silence.unwrap_or_else(|| "nobody asked".to_owned());
        Answer::Failed(format!("no answer for {} s: {why}", self.age / 1000))
    }
}

/// How a number stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Gauging {
    pub(super) stable: Option<Answer>,
    pub(super) canary: Option<Answer>,
    /// Since when the canary alone has been beyond the limit.
    since: Option<u64>,
    pub(super) finding: Finding,
}

/// What that comes to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Finding {
    /// Nothing is known yet.
    #[default]
    Pending,
    Within,
    /// Of the canary alone, for so many milliseconds.
    Beyond(u64),
    /// Stable is beyond it, and the canary is not.
    StableBeyond,
    BothBeyond,
    /// There is nothing of a version, with the reason.
    NoData(String),
    Failed(String),
}

/// How the canary stands while numbers are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene {
    /// Milliseconds of the release's time.
    pub(super) now: u64,
    /// It has had traffic for so short a time that there may be nothing of it yet.
    pub(super) is_fresh: bool,
    /// Stable has nothing to do, so that there may be nothing of it.
    pub(super) is_alone: bool,
    /// An answer of this age is none any more.
    pub(super) stale_after: u64,
}

impl Gauging {
    /// Takes in what was heard. Without `by_version` there is nobody to compare with.
    pub(super) fn take(
        &mut self,
        reading: Reading,
        by_version: bool,
        beyond: impl Fn(f64) -> bool,
        scene: Scene,
    ) {
        let Reading { stable, canary } = reading;
        let by_now = |heard: Heard| heard.by_now(scene.stale_after);
        (self.stable, self.canary) = (stable.map(by_now), canary.map(by_now));
        let passed = |answer: &Option<Answer>| match answer {
            Some(Answer::Number(number)) => Some(beyond(*number)),
            _ => None,
        };
        let is_compared = by_version && !scene.is_alone;
        let unknown_stable = || unknown(self.stable.as_ref(), "the stable version");
        let finding = match (passed(&self.canary), passed(&self.stable)) {
            (Some(true), Some(true)) => Finding::BothBeyond,
            (Some(_), None) if is_compared => unknown_stable(),
            (Some(true), _) => {
                Finding::Beyond(scene.now.saturating_sub(*self.since.get_or_insert(scene.now)))
            }
            (_, Some(true)) => Finding::StableBeyond,
            (Some(false), _) => Finding::Within,
            (None, _) => match unknown(self.canary.as_ref(), "the new version") {
                Finding::NoData(_) if scene.is_fresh => Finding::Pending,
                finding => finding,
            },
        };
        if !matches!(finding, Finding::Beyond(_)) {
            self.since = None;
        }
        self.finding = finding;
    }

    /// The canary alone has been beyond the limit for that long.
    pub(super) fn has_lasted(&self, lasts: Duration) -> bool {
        matches!(self.finding, Finding::Beyond(millis) if u128::from(millis) >= lasts.as_millis())
    }

    /// Why nobody knows, if that is so.
    pub(super) fn trouble(&self) -> Option<&str> {
        match &self.finding {
            Finding::NoData(why) | Finding::Failed(why) => Some(why),
            _ => None,
        }
    }

    pub(super) fn numbers(&self) -> [Option<f64>; 2] {
        [&self.stable, &self.canary].map(|answer| match answer {
            Some(Answer::Number(number)) => Some(*number),
            _ => None,
        })
    }
}

fn unknown(answer: Option<&Answer>, who: &str) -> Finding {
    match answer {
        None | Some(Answer::Number(_)) => Finding::Pending,
        Some(Answer::Nothing(why)) => Finding::NoData(format!("{who}: {why}")),
        Some(Answer::Failed(why)) => Finding::Failed(format!("{who}: {why}")),
    }
}

/// A number as people read it: five digits that mean something.
pub fn rounded(number: f64) -> String {
    let magnitude = if number == 0.0 { 0.0 } else { number.abs().log10().floor() };
    let digits = (4.0 - magnitude).clamp(0.0, 12.0) as usize;
    let text = format!("{number:.digits$}");
    if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENE: Scene = Scene { now: 0, is_fresh: false, is_alone: false, stale_after: 30_000 };

    fn heard(answer: Answer) -> Option<Heard> {
        Some(Heard { answer, age: 0, silence: None })
    }

    fn number(number: f64) -> Option<Heard> {
        heard(Answer::Number(number))
    }

    fn take(gauging: &mut Gauging, stable: Option<Heard>, canary: Option<Heard>, scene: Scene) -> Finding {
        let limit = Limit::Max(10.0);
        gauging.take(Reading { stable, canary }, true, |number| limit.is_passed(number), scene);
        gauging.finding.clone()
    }

    #[test]
    fn every_pair_of_answers_comes_to_something() {
        let nothing = || heard(Answer::Nothing("no series".to_owned()));
        let failed = || heard(Answer::Failed("refused".to_owned()));
        let no_data = |who: &str| Finding::NoData(format!("{who}: no series"));
        let fails = |who: &str| Finding::Failed(format!("{who}: refused"));
        let (old, new) = ("the stable version", "the new version");
        for (stable, canary, expected) in [
            (number(1.0), number(10.0), Finding::Within),
            (number(1.0), number(11.0), Finding::Beyond(0)),
            (number(11.0), number(11.0), Finding::BothBeyond),
            (number(11.0), number(1.0), Finding::StableBeyond),
            (number(11.0), failed(), Finding::StableBeyond),
            (nothing(), number(11.0), no_data(old)),
            (failed(), number(11.0), fails(old)),
            (failed(), number(1.0), fails(old)),
            (number(1.0), nothing(), no_data(new)),
            (number(1.0), failed(), fails(new)),
            (None, number(11.0), Finding::Pending),
            (number(1.0), None, Finding::Pending),
        ] {
            let text = format!("{stable:?} {canary:?}");
            assert_eq!(take(&mut Gauging::default(), stable, canary, SCENE), expected, "{text}");
        }
    }

    #[test]
    fn a_breach_lasts_only_as_long_as_it_is_seen() {
        let mut gauging = Gauging::default();
        let at = |now| Scene { now, ..SCENE };
        take(&mut gauging, number(1.0), number(11.0), at(1_000));
        take(&mut gauging, number(1.0), number(12.0), at(61_000));
        assert!(gauging.has_lasted(Duration::from_secs(60)));
        // Nobody knows what was meanwhile.
        take(&mut gauging, number(1.0), heard(Answer::Failed("down".to_owned())), at(62_000));
        take(&mut gauging, number(1.0), number(12.0), at(63_000));
        assert!(!gauging.has_lasted(Duration::from_secs(60)));
    }

    #[test]
    fn an_old_answer_is_none() {
        let old = Some(Heard {
            answer: Answer::Number(1.0),
            age: 30_000,
            silence: Some("can't be reached".to_owned()),
        });
        let finding = take(&mut Gauging::default(), number(1.0), old, SCENE);
        let why = "the new version: no answer for 30 s: can't be reached";
        assert_eq!(finding, Finding::Failed(why.to_owned()));
    }

    #[test]
    fn who_has_no_traffic_may_be_unknown() {
        let nothing = || heard(Answer::Nothing("no series".to_owned()));
        let fresh = Scene { is_fresh: true, ..SCENE };
        assert_eq!(take(&mut Gauging::default(), number(1.0), nothing(), fresh), Finding::Pending);
        let alone = Scene { is_alone: true, ..SCENE };
        assert_eq!(take(&mut Gauging::default(), nothing(), number(1.0), alone), Finding::Within);
        assert_eq!(take(&mut Gauging::default(), nothing(), number(11.0), alone), Finding::Beyond(0));
        assert_eq!(take(&mut Gauging::default(), number(11.0), number(11.0), alone), Finding::BothBeyond);
    }

    #[test]
    fn numbers_are_told_shortly() {
        for (number, text) in [
            (10.0, "10"),
            (0.05, "0.05"),
            (1234.56, "1234.6"),
            (2_000_000.0, "2000000"),
            (0.000_042_123_4, "0.000042123"),
            (0.0, "0"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(rounded(number), text);
        }
    }
}
