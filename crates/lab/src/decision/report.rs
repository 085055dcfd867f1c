//! The results as a table for the terminal and as a page for the docs.

use std::fmt::Write;

use super::ours::{ALPHA, MIN_REQUESTS, PATIENCE};
use super::results::{CaseResult, Results, RuleResult, Spread};
use super::{OTHERS, OURS};

/// What our rule has to achieve: in this case, so many requests of the canary at most, by the median.
const MOST_REQUESTS: [(&str, f64); 5] =
    [("dead", 10.0), ("errors-5", 115.0), ("errors-2", 680.0), ("latency-2", 90.0), ("latency-1.5", 260.0)];
/// How often, at most, a version that is no worse may be sent back, by the upper end of the interval.
const MOST_WRONG: f64 = 0.01;

/// Something that our rule has to achieve.
struct Bar {
    what: String,
    bar: String,
    found: String,
    met: bool,
}

impl CaseResult {
    fn rule(&self, name: &str) -> Option<&RuleResult> {
        self.rules.iter().find(|rule| rule.rule == name)
    }
}

fn bars(results: &Results) -> Vec<Bar> {
    let mut bars = Vec::new();
    for case in &results.cases {
        let Some(ours) = case.rule(OURS) else { continue };
        if !case.worse {
            bars.push(Bar {
                what: format!("`{}`: sent back without reason", case.name),
                bar: "≤ 1 %, with its interval".to_owned(),
                found: format!(
                    "{} of {}: {}, at most {}",
                    ours.rolled_back.count,
                    ours.runs,
                    percent(ours.rolled_back.share),
                    percent(ours.rolled_back.high)
                ),
                met: ours.rolled_back.high <= MOST_WRONG,
            });
        }
        if let Some((_, most)) = MOST_REQUESTS.iter().find(|(name, _)| *name == case.name) {
            let median = ours.canary_requests.map_or(f64::INFINITY, |it| it.median);
            bars.push(Bar {
                what: format!("`{}`: requests of the canary until it is sent back", case.name),
                bar: format!("≤ {most}"),
                found: format!("{median}"),
                met: median <= *most && ours.rolled_back.share >= 0.5,
            });
        }
    }
    bars
}

/// For people at a terminal.
pub fn table(results: &Results) -> String {
    let mut text = String::new();
    for case in &results.cases {
        let expected = if case.worse { "the canary is worse" } else { "the canary is no worse" };
        let _ = writeln!(text, "{}: {} ({expected})", case.name, case.what);
        let _ = writeln!(
            text,
            "  {:<10} {:>6} {:>18} {:>9} {:>6} {:>6} {:>14} {:>16} {:>14}",
            "rule",
            "runs",
            "sent back",
            "promoted",
            "held",
            "early",
            "minutes",
            "canary requests",
            "bad answers"
        );
        for rule in &case.rules {
            let back = &rule.rolled_back;
            let _ = writeln!(
                text,
                "  {:<10} {:>6} {:>18} {:>9} {:>6} {:>6} {:>14} {:>16} {:>14}",
                rule.rule,
                rule.runs,
                format!("{} ({})", percent(back.share), interval(rule)),
                rule.promoted,
                rule.held,
                rule.early,
                spread(rule.minutes),
                spread(rule.canary_requests),
                spread(rule.bad_answers),
            );
        }
        text.push('\n');
    }
    for bar in bars(results) {
        let met = if bar.met { "met   " } else { "MISSED" };
        let _ = writeln!(text, "{met} {} {}: {}", bar.what, bar.bar, bar.found);
    }
    text
}

/// For the docs.
pub fn page(results: &Results) -> String {
    let mut page = format!(
        "# Quality of release decisions\n\n\
         How often a version is sent back that is no worse, and how much users suffer before one is that is. Made by \
         `make lab`\n(`backstop lab decision`, seed {}); every figure is from \
         [decision-quality.json](decision-quality.json), and the same seed gives the same figures again.\n\n\
         All rules see the same simulated requests, 1,000 a minute unless a case says otherwise: 0.5 % fail anyway, latencies are \
         lognormal with\nσ = 1, and the canary gets 1, 10 and 50 % for 20 minutes each. Figures with `…` are the median \
         and the 90th percentile of the\nruns in which it was sent back.\n\n",
        results.seed
    );
    page.push_str("## What ours has to achieve\n\n| what | bar | found | |\n|---|---|---|---|\n");
    for bar in bars(results) {
        let met = if bar.met { "met" } else { "**missed**" };
        let _ = writeln!(page, "| {} | {} | {} | {met} |", bar.what, bar.bar, bar.found);
    }
    wrong(results, &mut page);
    found(results, &mut page);
    page.push_str(&rules());
    page
}

fn heading(first: &str, page: &mut String) {
    let _ = write!(page, "| {first} | {OURS} |");
    for other in OTHERS {
        let _ = write!(page, " {other} |");
    }
    let _ = writeln!(page, "\n|---|{}", "---|".repeat(OTHERS.len() + 1));
}

fn row(case: &CaseResult, cell: impl Fn(&RuleResult) -> String, page: &mut String) {
    let _ = write!(page, "| {}: {} |", case.name, case.what);
    for rule in &case.rules {
        let _ = write!(page, " {} |", cell(rule));
    }
    page.push('\n');
}

fn wrong(results: &Results, page: &mut String) {
    let _ = write!(
        page,
        "\n## Sent back without reason\n\nIn % of {} runs of ours and {} of the others, with Wilson's interval of 95 %. What \
         was neither sent back nor promoted was held.\n\n![false rollbacks](decision-false-rollbacks.svg)\n\n",
        results.runs, results.runs_of_others
    );
    heading("case", page);
    let held = |rule: &RuleResult| {
        if rule.held == 0 {
            String::new()
        } else {
            format!("; held {}", percent(rule.held as f64 / rule.runs as f64))
        }
    };
    let cell =
        |rule: &RuleResult| format!("{} ({}){}", percent(rule.rolled_back.share), interval(rule), held(rule));
    for case in results.cases.iter().filter(|case| !case.worse) {
        row(case, cell, page);
    }
}

fn found(results: &Results, page: &mut String) {
    let _ = write!(
        page,
        "\n## Sent back for a reason\n\nIn % of {} runs, and what it took from when the fault began: minutes, requests that the \
         canary got,\nand those of them that failed or were answered with nothing (which the gateway's retries hide from \
         clients).\nA rule that sends back nearly everything sends back bad versions early, too: this is to be read \
         with the table above.\n\n![requests until a bad version is sent back](decision-exposure.svg)\n\n",
        results.runs_of_others
    );
    heading("case", page);
    let cell = |rule: &RuleResult| {
        let early = match rule.early {
            0 => String::new(),
            early => format!("<br>{} before the fault", percent(early as f64 / rule.runs as f64)),
        };
        if rule.rolled_back.count == 0 {
            return format!("never{early}");
        }
        format!(
            "**{}**<br>{} min<br>{} requests<br>{} bad{early}",
            percent(rule.rolled_back.share),
            spread(rule.minutes),
            spread(rule.canary_requests),
            spread(rule.bad_answers)
        )
    };
    for case in results.cases.iter().filter(|case| case.worse) {
        row(case, cell, page);
    }
}

fn rules() -> String {
    format!(
        "\n## The rules\n\n\
         - **{OURS}** is the product's code: evidence of errors (weight ½) and of three latencies (together ½), each at \
         stable's p50, p90, p95 and p99, with α = {ALPHA}, looked at every second; a step needs {MIN_REQUESTS} requests of \
         the canary besides its time; errors of the canary wait {} s. Empty answers count as errors, since the gateway \
         knows them.\n\
         - **Argo** Rollouts: a background analysis with `failureLimit: 3` that measures the canary's success rate once a \
         minute; `successCondition: result[0] >= 0.95` is its documentation's example, 0.99 what 0.5 % of errors call \
         for. A minute without requests is NaN, and a failed measurement. Latency is not looked at.\n\
         - **Flagger**: a check a minute, `threshold: 10`, success rate at least 99 % and the 99th percentile of latency at \
         most a quarter above stable's; a failed check, also one without values, holds the step and is never forgiven.\n\
         - **Kayenta**: `NetflixACAJudge`, Mann-Whitney U with confidence 0.98 and tolerance 0.25 on values a minute, judged \
         every ten minutes from the beginning on; rate of errors (critical) and means of three latencies, half of the weight \
         each; fails below 50, and at the end below 75.\n\
         - **z-test**: a one-sided test a minute at 1 % on all counts so far, of the rates of errors and of the mean \
         logarithms of latency.\n\n\
         The others' decisions are written again from their sources and documentation; their measurements are exact and at \
         once, which those of a real metrics system are not. None of the cases has a trigger, a hard stop or an operator: \
         these come on top.\n",
        PATIENCE.as_secs()
    )
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = if percent == 0.0 || percent >= 10.0 {
        0
    } else if percent >= 1.0 {
        1
    } else {
        2
    };
    format!("{percent:.digits$} %")
}

fn interval(rule: &RuleResult) -> String {
    let digits = |share: f64| if share >= 0.1 { 0 } else { 2 };
    let (low, high) = (rule.rolled_back.low, rule.rolled_back.high);
    format!("{:.2$}–{:.3$}", low * 100.0, high * 100.0, digits(low), digits(high))
}

fn spread(spread: Option<Spread>) -> String {
    let number = |value: f64| {
        let digits = usize::from(value < 10.0 && value.fract() != 0.0);
        format!("{value:.digits$}")
    };
    spread.map_or("–".to_owned(), |it| format!("{}…{}", number(it.median), number(it.p90)))
}
