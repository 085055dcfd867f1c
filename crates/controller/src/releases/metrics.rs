//! How releases stand, for Prometheus.

use std::fmt::Write;

use backstop_core::evidence::Verdict;
use backstop_core::rollout::{Cause, Phase};

use super::{Kept, Releases, lock};

/// Name, labels and meaning of each.
const METRICS: [(&str, &str, &str); 5] = [
    (
        "backstop_release_phase",
        "`service`, `version`, `phase`",
        "1 for the phase of the service's last release: waiting, step, bake, promoted, retreat, verifying, rolled_back, verify_failed or aborted; the version is the one on trial.",
    ),
    (
        "backstop_release_step",
        "`service`, `version`",
        "Step that the release is in, from 1; only while it is in one.",
    ),
    (
        "backstop_release_hold",
        "`service`, `version`, `hold`",
        "1 for each thing that holds the release up, such as paused, approval, incident or provider.",
    ),
    (
        "backstop_release_cause",
        "`service`, `version`, `cause`",
        "1 for why the release was sent back: regressed, trigger, hard_stop, expired or operator.",
    ),
    (
        "backstop_release_verdict",
        "`service`, `version`, `metric`, `verdict`",
        "1 for what a metric of the release comes to: pass, regressed, insufficient, no_data or provider_error.",
    ),
];

impl Releases {
    /// All of it, in Prometheus' text format.
    pub(crate) fn metrics(&self) -> String {
        let mut families: [String; METRICS.len()] = Default::default();
        let last: Vec<_> = lock(&self.seen).values().cloned().collect();
        for kept in last {
            add(&mut families, &kept);
        }
        let mut page = String::new();
        for ((name, _, help), samples) in METRICS.iter().zip(families).filter(|(_, it)| !it.is_empty()) {
            page += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n{samples}");
        }
        page
    }
}

fn add([phases, steps, holds, causes, verdicts]: &mut [String; METRICS.len()], kept: &Kept) {
    let release = &kept.release;
    let of = [("service", release.service.as_str()), ("version", &release.canary)];
    sample(phases, METRICS[0].0, &with(of, ("phase", name_of(release.phase))), 1);
    if let Phase::Step { index } = release.phase {
        sample(steps, METRICS[1].0, &of, index + 1);
    }
    for hold in release.holds.keys() {
        let hold = serde_json::to_value(hold).unwrap_or_default();
        sample(holds, METRICS[2].0, &with(of, ("hold", hold.as_str().unwrap_or_default())), 1);
    }
    if let Some(cause) = &release.cause {
        let cause = match cause {
            Cause::Regressed { .. } => "regressed",
            Cause::Trigger { .. } => "trigger",
            Cause::HardStop { .. } => "hard_stop",
            Cause::Expired => "expired",
            Cause::Operator { .. } => "operator",
        };
        sample(causes, METRICS[3].0, &with(of, ("cause", cause)), 1);
    }
    for metric in kept.judgement().metrics {
        let verdict = match metric.verdict {
            Verdict::Pass => "pass",
            Verdict::Regressed => "regressed",
            Verdict::Insufficient => "insufficient",
            Verdict::NoData => "no_data",
            Verdict::ProviderError => "provider_error",
        };
        let labels = [of[0], of[1], ("metric", metric.name.as_str()), ("verdict", verdict)];
        sample(verdicts, METRICS[4].0, &labels, 1);
    }
}

type Label<'a> = (&'a str, &'a str);

fn with<'a>([service, version]: [Label<'a>; 2], label: Label<'a>) -> [Label<'a>; 3] {
    [service, version, label]
}

fn name_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Step { .. } => "step",
        Phase::Bake => "bake",
        Phase::Promoted => "promoted",
        Phase::Retreat { .. } => "retreat",
        Phase::Verifying => "verifying",
        Phase::RolledBack => "rolled_back",
        Phase::VerifyFailed => "verify_failed",
        Phase::Aborted => "aborted",
    }
}

fn sample(family: &mut String, name: &str, labels: &[Label<'_>], value: usize) {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    // Writing to a string can't fail.
    let _ = writeln!(family, "{name}{{{}}} {value}", labels.join(","));
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "\n## Of releases\n\n";

    #[test]
    fn the_reference_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let mut expected = "| Metric | Kind | Labels | Meaning |\n|---|---|---|---|\n".to_owned();
        for (name, labels, help) in METRICS {
            let _ = writeln!(expected, "| `{name}` | gauge | {labels} | {help} |");
        }
        let written = std::fs::read_to_string(path).unwrap();
        let (before, ours) = written.split_once(HEAD).unwrap_or((&written, ""));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, format!("{before}{HEAD}{expected}")).unwrap();
        } else {
            assert!(ours == expected, "run: UPDATE_DOCS=1 cargo test -p backstop-controller");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut family = String::new();
        sample(&mut family, "m", &[("a", "x\"\\y"), ("b", "z")], 2);
        assert_eq!(family, "m{a=\"x\\\"\\\\y\",b=\"z\"} 2\n");
    }
}
