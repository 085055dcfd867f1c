//! How good rules of release are: how often they send back a version that is no worse, and how much users suffer before
//! they send back one that is.
//!
//! The rules see the same seeded requests. Ours is the product's own code; those of others are written again from
//! their sources and documentation: the decision only, with measurements that are exact and at once.

mod argo;
mod case;
mod chance;
mod flagger;
mod kayenta;
mod ours;
mod peeking;
mod plot;
mod report;
mod results;
mod rule;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{anyhow, bail};

use argo::Argo;
use case::{Case, Kind};
use flagger::Flagger;
use kayenta::Kayenta;
use ours::Ours;
use peeking::Peeking;
pub use plot::plots;
pub use report::{page, table};
use results::Outcome;
pub use results::{CaseResult, Results, RuleResult, Share, Spread};
use rule::Rule;
use trace::Trace;

const OURS: &str = "Backstop";
/// Beside ours.
const OTHERS: [&str; 5] = ["Argo 99 %", "Argo 95 %", "Flagger", "Kayenta", "z-test"];
/// So many times more runs are made of our rule where nothing is wrong: errors of 1 % are to be told from none.
const MORE_RUNS: u64 = 10;
const THREADS: u64 = 2;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of our rule in cases where nothing is wrong with the canary; a tenth of it of all else.
    pub runs: u64,
    pub seed: u64,
    /// The case of this name only.
    pub case: Option<String>,
}

/// Simulates, telling `progress` how many of how many runs are done.
///
/// # Errors
///
/// There is no such case, or nothing to do.
pub fn run(options: &Options, progress: &(dyn Fn(u64, u64) + Sync)) -> anyhow::Result<Results> {
    if options.runs == 0 {
        bail!("0 runs say nothing");
    }
    let cases = chosen(options.case.as_deref())?;
    let others = options.runs.div_ceil(MORE_RUNS);
    let runs_of = |case: &Case| if case.kind == Kind::Same { options.runs } else { others };
    let total = cases.iter().map(runs_of).sum();
    let done = AtomicU64::new(0);
    let tick = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
    let results = cases.iter().map(|case| simulate(case, options.seed, runs_of(case), others, &tick));
    Ok(Results {
        seed: options.seed,
        runs: options.runs,
        runs_of_others: others,
        cases: results.collect::<anyhow::Result<_>>()?,
    })
}

/// Names of the cases.
pub fn cases() -> Vec<&'static str> {
    case::all().iter().map(|case| case.name).collect()
}

fn chosen(name: Option<&str>) -> anyhow::Result<Vec<Case>> {
    let mut cases = case::all();
    if let Some(name) = name {
        cases.retain(|case| case.name == name);
        if cases.is_empty() {
            bail!("there is no case `{name}`\nhint: {}", self::cases().join(", "));
        }
    }
    Ok(cases)
}

/// All runs of a case; in the first `others` of them the other rules are there too.
fn simulate(
    case: &Case,
    seed: u64,
    runs: u64,
    others: u64,
    tick: &(dyn Fn() + Sync),
) -> anyhow::Result<CaseResult> {
    let part = |thread: u64| -> anyhow::Result<Vec<(u64, Vec<Outcome>)>> {
        let mut outcomes = Vec::new();
        for run in (thread..runs).step_by(THREADS as usize) {
            outcomes.push((run, one(case, chance::seed(seed, case.name, run), run < others)?));
            tick();
        }
        Ok(outcomes)
    };
    let part = &part;
    let mut outcomes = std::thread::scope(|scope| -> anyhow::Result<Vec<_>> {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || part(thread))).collect();
        let mut outcomes = Vec::new();
        for thread in threads {
            outcomes.extend(thread.join().map_err(|_| anyhow!("a simulation has failed"))??);
        }
        Ok(outcomes)
    })?;
    outcomes.sort_unstable_by_key(|(run, _)| *run);
    let of = |rule: usize| {
        outcomes.iter().filter_map(|(_, by_rule)| by_rule.get(rule).copied()).collect::<Vec<_>>()
    };
    let names = [OURS].into_iter().chain(OTHERS);
    Ok(CaseResult {
        name: case.name.to_owned(),
        what: case.what.to_owned(),
        worse: case.kind == Kind::Worse,
        rules: names.enumerate().map(|(i, name)| RuleResult::of(name, case.fault.onset, &of(i))).collect(),
    })
}

/// One run: ours, then the others.
fn one(case: &Case, seed: u64, with_others: bool) -> anyhow::Result<Vec<Outcome>> {
    let mut rules: Vec<Box<dyn Rule>> = vec![Box::new(Ours::new(case)?)];
    if with_others {
        rules.push(Box::new(Argo::new(case, 0.99)));
        rules.push(Box::new(Argo::new(case, 0.95)));
        rules.push(Box::new(Flagger::new(case)));
        rules.push(Box::new(Kayenta::new(case)));
        rules.push(Box::new(Peeking::new(case)));
    }
    let mut trace = Trace::new(case, seed);
    let mut ends = vec![None; rules.len()];
    for minute in 0..case.horizon {
        if ends.iter().all(Option::is_some) {
            break;
        }
        let requests = trace.minute(minute);
        for (rule, end) in rules.iter_mut().zip(&mut ends) {
            if end.is_none() {
                *end = rule.minute(minute, requests);
            }
        }
    }
    Ok(rules.iter().zip(ends).map(|(rule, end)| Outcome { end, exposure: rule.exposure() }).collect())
}
