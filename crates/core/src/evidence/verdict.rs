//! What the evidence comes to, for each metric, and why.

use serde::{Deserialize, Serialize};

use super::imbalance::{Assigned, imbalance};
use super::process::{Arms, Range};
use super::{Evidence, MetricEvidence, Ratio};

/// What is known of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As good as it has to be, as far as can be told: see the reason.
    Pass,
    /// The canary is worse.
    Regressed,
    /// There is too little to say anything, or the arms can't be compared.
    Insufficient,
    /// There is nothing at all.
    NoData,
    /// What is asked for the metric does not answer. Only the caller can know.
    ProviderError,
}

/// What the two versions are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names<'a> {
    pub stable: &'a str,
    pub canary: &'a str,
}

impl Default for Names<'_> {
    fn default() -> Self {
        Self { stable: "stable", canary: "the canary" }
    }
}

/// What it takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Probability, at most, that a canary that is not worse is ever found to be, by what is judged here.
    pub alpha: f64,
    /// The same for a split that is as it should be.
    pub alpha_of_split: f64,
    /// Requests of the canary in a step, before which nothing passes without proof.
    pub min_requests: u64,
}

/// What all metrics come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Natural logarithm of the combined evidence, and of what it takes to send the canary back.
    pub log_m: f64,
    pub log_certain: f64,
    /// The metric that says most, by its place in `metrics`, if the canary is to be sent back.
    pub regressed: Option<usize>,
    /// The p-value of the split, if it is so small that nothing can be compared.
    pub imbalance: Option<f64>,
    pub metrics: Vec<MetricVerdict>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricVerdict {
    pub name: String,
    pub verdict: Verdict,
    pub reason: String,
    /// Natural logarithm of its own evidence.
    pub log_e: f64,
    /// By kind of event.
    pub bad: Vec<Arms>,
    pub ratios: Vec<Range>,
    /// It is proven that the canary is below the margin.
    pub proven: bool,
    /// What a mean or a number that is measured comes to.
    #[serde(default)]
    pub figures: Option<Figures>,
}

/// What is known of a metric of which there are numbers, not events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub stable: Option<f64>,
    pub canary: Option<f64>,
    /// Of a mean.
    pub ratio: Option<Ratio>,
    /// What it may be, in words.
    pub limit: String,
}

impl MetricVerdict {
    /// So many times as much as stable's, or as often, the canary's is not, for sure; `None` if nothing can be excluded.
    pub fn excluded(&self) -> Option<f64> {
        let means = self.figures.iter().filter_map(|figures| Some(figures.ratio?.high));
        let most = self.ratios.iter().map(|range| range.high).chain(means).reduce(f64::max)?;
        most.is_finite().then_some(most)
    }
}

impl Evidence {
    /// Judges the canary by the evidence, the `requests` of this step and all units that were `assigned`.
    pub fn judge(&self, rules: &Rules, requests: Arms, assigned: &[Assigned]) -> Judgement {
        self.judge_of(Names::default(), rules, requests, assigned)
    }

    /// The same, with reasons that call the versions by their names.
    pub fn judge_of(
        &self,
        names: Names<'_>,
        rules: &Rules,
        requests: Arms,
        assigned: &[Assigned],
    ) -> Judgement {
        let p = imbalance(assigned);
        let imbalance = (p < rules.alpha_of_split).then_some(p);
        let regressed = if imbalance.is_some() { None } else { self.regressed(rules.alpha) };
        let case = Case { names, rules, requests, imbalance, regressed };
        let metrics = (0..self.plan.metrics().len()).filter_map(|i| self.judge_metric(i, &case)).collect();
        Judgement { log_m: self.log_m(), log_certain: -rules.alpha.ln(), regressed, imbalance, metrics }
    }

    fn judge_metric(&self, metric: usize, case: &Case<'_>) -> Option<MetricVerdict> {
        let evidence = self.metric(metric)?;
        let plan = &self.plan.metrics()[metric];
        let proven = evidence.log_below_margin >= -case.rules.alpha.ln();
        let (verdict, reason) = case.judge(metric, &evidence, plan.margin, proven);
        let (verdict, reason) = match (verdict, self.waiting(metric)) {
            (Verdict::Regressed, _) | (_, 0) => (verdict, reason),
            (verdict, waiting) => {
                let (canary, after) = (case.names.canary, plan.patience.as_secs_f64());
                let units = if waiting == 1 { "unit" } else { "units" };
                let waits = format!(
                    "{waiting} bad {units} of {canary} can't be compared yet: they count {after} s after they were seen"
                );
                match verdict {
                    Verdict::NoData => (Verdict::Insufficient, waits),
                    verdict => (verdict, format!("{reason}; {waits}")),
                }
            }
        };
        Some(MetricVerdict {
            name: plan.name.clone(),
            verdict,
            reason,
            log_e: evidence.log_e,
            bad: evidence.bad,
            ratios: self.ratios(metric, case.rules.alpha),
            proven,
            figures: None,
        })
    }
}

/// What is the same for all metrics.
struct Case<'a> {
    names: Names<'a>,
    rules: &'a Rules,
    requests: Arms,
    imbalance: Option<f64>,
    regressed: Option<usize>,
}

impl Case<'_> {
    fn judge(&self, metric: usize, it: &MetricEvidence, margin: f64, proven: bool) -> (Verdict, String) {
        let (Arms { stable, canary }, names) = (self.requests, self.names);
        if let Some(p) = self.imbalance {
            let reason = format!("the split is not what it should be (p = {p:.1e})");
            return (Verdict::Insufficient, reason);
        }
        // Beside the one that says most others may say enough for themselves.
        let sure = it.log_e >= -self.rules.alpha.ln();
        if self.regressed.is_some_and(|most| most == metric || sure) {
            return (Verdict::Regressed, format!("{} is worse: {}", names.canary, odds(it.log_e)));
        }
        if canary == 0 || stable == 0 {
            let who = if canary == 0 { names.canary } else { names.stable };
            return (Verdict::NoData, format!("{who} has had no requests in this step"));
        }
        if proven {
            return (
                Verdict::Pass,
                format!("bad less than {margin} times as often as {} is proven", names.stable),
            );
        }
        if canary < self.rules.min_requests {
            let least = self.rules.min_requests;
            return (
                Verdict::Insufficient,
                format!("{canary} of {least} requests of {} in this step", names.canary),
            );
        }
        let text = format!("nothing speaks against it in {canary} requests of {} in this step", names.canary);
        (Verdict::Pass, text)
    }
}

/// How many times as likely as chance, from its natural logarithm; above a million a number says nothing more.
pub fn likelihood(log: f64) -> String {
    if log > 1e6f64.ln() { "over 1,000,000".to_owned() } else { format!("{:.1}", log.exp()) }
}

/// Evidence in words.
fn odds(log_e: f64) -> String {
    // Beyond that a number says nothing to anybody.
    if log_e > 1e6f64.ln() {
        "a million times as likely as chance, or more".to_owned()
    } else {
        format!("{:.0} times as likely as chance", log_e.exp())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Bad, MetricPlan, Plan};
    use super::*;

    const RULES: Rules = Rules { alpha: 0.01, alpha_of_split: 0.01, min_requests: 100 };

    fn evidence(errors: Arms, slow: Arms) -> Evidence {
        let metric = |name: &str| MetricPlan {
            name: name.to_owned(),
            weight: 0.5,
            tolerated: 1.0,
            margin: 1.5,
            processes: 1,
            patience: Duration::ZERO,
        };
        let plan = Plan::new(vec![metric("errors"), metric("ttft")], 3).unwrap();
        let mut evidence = Evidence::new(plan);
        for (metric, bad) in [errors, slow].into_iter().enumerate() {
            let again = Arms::default();
            evidence.add(Bad { step: 1, metric, process: 0, share: 0.5, new: bad, again }, 0).unwrap();
        }
        evidence
    }

    fn check(evidence: &Evidence, requests: Arms, expected: [(Verdict, &str); 2]) {
        let judgement = evidence.judge(&RULES, requests, &[]);
        for (metric, (verdict, reason)) in judgement.metrics.iter().zip(expected) {
            assert_eq!((metric.verdict, metric.reason.as_str()), (verdict, reason), "{}", metric.name);
        }
    }

    const fn arms(stable: u64, canary: u64) -> Arms {
        Arms { stable, canary }
    }

    #[test]
    fn verdicts() {
        let enough = arms(1000, 1000);
        let silent = "nothing speaks against it in 1000 requests of the canary in this step";
        check(&evidence(arms(3, 3), arms(9, 9)), enough, [(Verdict::Pass, silent), (Verdict::Pass, silent)]);
        let proven = "bad less than 1.5 times as often as stable is proven";
        check(
            &evidence(arms(500, 500), arms(9, 9)),
            enough,
            [(Verdict::Pass, proven), (Verdict::Pass, silent)],
        );
        let few = "10 of 100 requests of the canary in this step";
        check(
            &evidence(arms(0, 1), arms(0, 0)),
            arms(10, 10),
            [(Verdict::Insufficient, few), (Verdict::Insufficient, few)],
        );
        let none = "the canary has had no requests in this step";
        check(
            &evidence(arms(3, 0), arms(0, 0)),
            arms(10, 0),
            [(Verdict::NoData, none), (Verdict::NoData, none)],
        );
        let worse = "the canary is worse: a million times as likely as chance, or more";
        check(
            &evidence(arms(3, 60), arms(9, 9)),
            enough,
            [(Verdict::Regressed, worse), (Verdict::Pass, silent)],
        );
    }

    #[test]
    fn what_does_not_count_yet_is_told_and_versions_have_names() {
        let mut metrics = vec![];
        for patience in [Duration::from_secs(10), Duration::ZERO] {
            let name = format!("{} s", patience.as_secs());
            metrics.push(MetricPlan {
                name,
                weight: 0.5,
                tolerated: 1.0,
                margin: 1.5,
                processes: 1,
                patience,
            });
        }
        let mut evidence = Evidence::new(Plan::new(metrics, 3).unwrap());
        let (new, again) = (arms(0, 7), Arms::default());
        evidence.add(Bad { step: 0, metric: 0, process: 0, share: 0.5, new, again }, 0).unwrap();
        let names = Names { stable: "v1", canary: "v2" };
        let reasons = |requests| {
            let judged = evidence.judge_of(names, &RULES, requests, &[]);
            judged.metrics.into_iter().map(|it| (it.verdict, it.reason)).collect::<Vec<_>>()
        };
        let waits = "7 bad units of v2 can't be compared yet: they count 10 s after they were seen";
        let few = "10 of 100 requests of v2 in this step";
        assert_eq!(
            reasons(arms(10, 10)),
            [(Verdict::Insufficient, format!("{few}; {waits}")), (Verdict::Insufficient, few.to_owned())]
        );
        let none = "v1 has had no requests in this step".to_owned();
        assert_eq!(
            reasons(arms(0, 10)),
            [(Verdict::Insufficient, waits.to_owned()), (Verdict::NoData, none)]
        );
    }

    #[test]
    fn the_metric_that_says_most_is_named() {
        let judgement = evidence(arms(10, 40), arms(9, 60)).judge(&RULES, arms(500, 500), &[]);
        assert_eq!(judgement.regressed, Some(1));
        assert!(judgement.metrics.iter().all(|metric| metric.verdict == Verdict::Regressed));
    }

    #[test]
    fn nothing_is_said_when_the_split_is_wrong() {
        let split = [Assigned { share: 0.5, units: arms(1000, 3000) }];
        let judgement = evidence(arms(3, 60), arms(9, 9)).judge(&RULES, arms(1000, 3000), &split);
        assert_eq!(judgement.regressed, None);
        assert!(judgement.imbalance.is_some());
        assert!(judgement.metrics.iter().all(|metric| metric.verdict == Verdict::Insufficient));
    }
}
