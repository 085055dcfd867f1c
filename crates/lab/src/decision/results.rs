//! What many runs come to.

use serde::{Deserialize, Serialize};

use super::rule::{Decision, End, Exposure};

/// Everything that was simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub seed: u64,
    /// Of our rule in cases where nothing is wrong with the canary.
    pub runs: u64,
    /// Of the other rules, and of all where something is.
    pub runs_of_others: u64,
    pub cases: Vec<CaseResult>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    pub name: String,
    pub what: String,
    /// The canary is worse, and to be sent back.
    pub worse: bool,
    pub rules: Vec<RuleResult>,
}

/// What a rule did in one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleResult {
    pub rule: String,
    pub runs: u64,
    pub rolled_back: Share,
    /// Sent back before anything was wrong.
    pub early: u64,
    pub promoted: u64,
    /// Neither, as long as anybody looked.
    pub held: u64,
    /// Of those rolled back, from when the fault began.
    pub minutes: Option<Spread>,
    pub canary_requests: Option<Spread>,
    /// Requests of the canary that failed or were answered with nothing.
    pub bad_answers: Option<Spread>,
}

/// How often something happened, with Wilson's interval of 95 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    pub count: u64,
    pub share: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub p90: f64,
}

/// How one run ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// `None` = it did not.
    pub(crate) end: Option<End>,
    pub(crate) exposure: Exposure,
}

impl RuleResult {
    pub(crate) fn of(rule: &str, onset: f64, outcomes: &[Outcome]) -> Self {
        let ended = |decision| move |it: &&Outcome| it.end.is_some_and(|end| end.decision == decision);
        let (early, back): (Vec<&Outcome>, Vec<&Outcome>) = outcomes
            .iter()
            .filter(ended(Decision::RolledBack))
            .partition(|it| it.end.is_some_and(|end| end.at < onset));
        let promoted = outcomes.iter().filter(ended(Decision::Promoted)).count() as u64;
        let (runs, early) = (outcomes.len() as u64, early.len() as u64);
        let rolled_back = Share::of(back.len() as u64, runs);
        let spread = |of: &dyn Fn(&Outcome) -> f64| Spread::of(back.iter().map(|it| of(it)).collect());
        Self {
            rule: rule.to_owned(),
            runs,
            rolled_back,
            early,
            promoted,
            held: runs - promoted - rolled_back.count - early,
            minutes: spread(&|it| it.end.map_or(0.0, |end| end.at - onset)),
            canary_requests: spread(&|it| it.exposure.requests as f64),
            bad_answers: spread(&|it| it.exposure.bad as f64),
        }
    }
}

impl Share {
    pub(crate) fn of(count: u64, runs: u64) -> Self {
        const Z: f64 = 1.959_963_984_540_05;
        let (k, n) = (count as f64, runs.max(1) as f64);
        let share = k / n;
        let scale = 1.0 + Z * Z / n;
        let middle = (share + Z * Z / (2.0 * n)) / scale;
        let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
        Self { count, share, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            values.get(((values.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied()
        };
        Some(Self { median: at(0.5)?, p90: at(0.9)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson() {
        // Values of the formula in Wilson (1927), to four digits.
        for (count, runs, low, high) in [
            (0, 10, 0.0, 0.2775),
            (5, 10, 0.2366, 0.7634),
            (10, 10, 0.7225, 1.0),
            (35, 10_000, 0.0025, 0.0049),
        ] {
            let share = Share::of(count, runs);
            assert!((share.low - low).abs() < 1e-4 && (share.high - high).abs() < 1e-4, "{share:?}");
        }
    }

    #[test]
    fn what_is_sent_back_before_anything_is_wrong_is_told_apart() {
        let outcome = |decision, at| {
            let end = Some(End { decision, at });
            Outcome { end, exposure: Exposure { requests: 7, bad: 2 } }
        };
        let held = Outcome { end: None, exposure: Exposure::default() };
        let outcomes = [
            outcome(Decision::RolledBack, 10.0),
            outcome(Decision::RolledBack, 63.0),
            outcome(Decision::Promoted, 100.0),
            held,
        ];
        let result = RuleResult::of("a rule", 60.0, &outcomes);
        assert_eq!((result.early, result.rolled_back.count, result.promoted, result.held), (1, 1, 1, 1));
        assert_eq!(result.minutes, Some(Spread { median: 3.0, p90: 3.0 }));
        assert_eq!(result.canary_requests, Some(Spread { median: 7.0, p90: 7.0 }));
    }

    #[test]
    fn spread() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0]), Some(Spread { median: 3.0, p90: 3.0 }));
        let many = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Spread::of(many), Some(Spread { median: 50.0, p90: 90.0 }));
    }
}
