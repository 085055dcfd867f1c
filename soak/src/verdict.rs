//! Whether the promises were kept. Pure: it sees what was recorded and nothing else.

use std::time::Duration;

use serde::Serialize;

use crate::api::Totals;
use crate::load::{Incident, Seen};
use crate::log::Log;
use crate::oracle::Breach;
use crate::plan::Kind;
use crate::watch::Sample;
use crate::world::Trouble;

/// How long a fault may take to show: the longest timeout, the time until the next look, and what a busy machine adds.
const ECHO: Duration = Duration::from_secs(12);
/// Growth is judged in runs of at least this length.
pub(crate) const LONG_ENOUGH: Duration = Duration::from_secs(600);

/// An action that was taken.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Done {
    /// Seconds since the start.
    pub(crate) at: f64,
    pub(crate) kind: Kind,
    pub(crate) what: String,
    /// Why it did not work as it should have.
    pub(crate) problem: Option<String>,
}

/// Everything that was recorded.
pub(crate) struct Evidence<'a> {
    pub(crate) seen: &'a Seen,
    pub(crate) samples: &'a [Sample],
    pub(crate) troubles: &'a [Trouble],
    pub(crate) done: &'a [Done],
    pub(crate) log: &'a Log,
    /// How long the run was to be.
    pub(crate) length: Duration,
    /// From the first action to the last.
    pub(crate) faults: (Duration, Duration),
    /// Backstop's own account when all was over.
    pub(crate) totals: Option<Totals>,
    /// What was wrong besides, and when.
    pub(crate) problems: Vec<(Duration, String)>,
}

/// A promise that was not kept.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Violation {
    /// Seconds since the start.
    pub(crate) at: f64,
    pub(crate) what: String,
    /// What was done just before.
    pub(crate) before: Vec<String>,
    /// What Backstop logged about it.
    pub(crate) log: Vec<String>,
}

/// How something grew under the same load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Growth {
    pub(crate) what: &'static str,
    /// With the space before it, if any.
    pub(crate) unit: &'static str,
    /// Medians.
    pub(crate) second_quarter: f64,
    pub(crate) last_quarter: f64,
    pub(crate) limit: f64,
    /// Shorter runs only tell.
    pub(crate) judged: bool,
}

impl Growth {
    pub(crate) fn is_flat(&self) -> bool {
        self.last_quarter <= self.limit
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<Violation>,
    pub(crate) growth: Vec<Growth>,
}

impl Evidence<'_> {
    pub(crate) fn judge(&self) -> Verdict {
        let mut violations = Vec::new();
        violations.extend(self.seen.incidents.iter().map(|incident| self.judge_incident(incident)));
        violations.extend(self.blamed_without_cause());
        let failed = self.done.iter().filter_map(|done| Some((done, done.problem.as_ref()?)));
        violations.extend(failed.map(|(done, why)| self.violation(done.at, format!("{}: {why}", done.what))));
        let problems = self.problems.iter();
        violations.extend(problems.map(|(at, what)| self.violation(at.as_secs_f64(), what.clone())));
        let panics = self.log.panics.iter();
        violations.extend(panics.map(|line| self.violation(self.faults.1.as_secs_f64(), line.clone())));
        let end = self.faults.1.as_secs_f64();
        violations.extend(self.accounts().map(|what| self.violation(end, what)));
        violations.extend(self.proves_nothing().map(|what| self.violation(end, what)));
        let growth = self.growth();
        let grown = growth.iter().filter(|growth| growth.judged && !growth.is_flat());
        violations.extend(grown.map(|growth| {
            let Growth { what, unit, second_quarter, last_quarter, .. } = growth;
            let what = format!("{what} grew from {second_quarter:.1} to {last_quarter:.1}{unit}");
            self.violation(end, what)
        }));
        violations.sort_by(|a, b| a.at.total_cmp(&b.at));
        Verdict { violations, growth }
    }

    fn violation(&self, at: f64, what: String) -> Violation {
        let before = self.done.iter().filter(|done| done.at <= at);
        let mut before: Vec<String> =
            before.rev().take(4).map(|done| format!("{:.1} s: {}", done.at, done.what)).collect();
        before.reverse();
        Violation { at, what, before, log: Vec::new() }
    }

    fn judge_incident(&self, incident: &Incident) -> Violation {
        let Incident { id, from, to, breach, what } = incident;
        let problem = match breach {
            Some(breach) => format!("{}: {what}", breach.name()),
            // There is always a replica that could have gone on.
            None => format!("cut with `{what}`"),
        };
        let (from, to) = (from.as_secs_f64(), to.as_secs_f64());
        let what = format!("request {id}, {from:.1} s to {to:.1} s: {problem}");
        Violation { log: self.log.of(id).to_vec(), ..self.violation(to, what) }
    }

    fn is_excused(&self, replica: usize, from: Duration, to: Duration) -> bool {
        let mut troubles = self.troubles.iter().filter(|it| it.replica == replica);
        troubles.any(|trouble| trouble.from <= to && trouble.to.is_none_or(|end| end + ECHO >= from))
    }

    /// Attempts held against replicas that nothing ailed: clients that leave, reloads and orderly changes must not
    /// count.
    fn blamed_without_cause(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for pair in self.samples.windows(2) {
            let [before, after] = pair else { continue };
            let (from, to) = (Duration::from_secs_f64(before.at), Duration::from_secs_f64(after.at));
            for (replica, (was, is)) in before.failures.iter().zip(&after.failures).enumerate() {
                let (Some(was), Some(is)) = (was, is) else { continue };
                if is > was && !self.is_excused(replica, from, to) {
                    let what = format!(
                        "replica {replica} is blamed for {} attempts, but nothing ailed it",
                        is - was
                    );
                    found.push(self.violation(after.at, what));
                }
            }
        }
        found
    }

    /// Whether Backstop and its clients agree on what became of the requests. What a client left may have ended
    /// either way.
    fn accounts(&self) -> impl Iterator<Item = String> {
        let counts = self.seen.counts;
        let failed = |incident: &&Incident| incident.breach == Some(Breach::Failed);
        let failed = self.seen.incidents.iter().filter(failed).count() as u64;
        let totals = self.totals.into_iter();
        totals.flat_map(move |totals| {
            let Totals { requests, answered, refused, failed: theirs, cut, cancelled, .. } = totals;
            let at_most = |of_clients: u64| of_clients..=of_clients + counts.left;
            let checks = [
                (requests == answered + refused + theirs + cut + cancelled, "requests do not add up"),
                (
                    at_most(counts.requests - counts.left).contains(&requests),
                    "requests are not those of the clients",
                ),
                (at_most(counts.cut).contains(&cut), "cut streams are not those of the clients"),
                (at_most(failed).contains(&theirs), "failed requests are not those of the clients"),
                (refused == 0, "requests were refused"),
            ];
            let wrong = checks.into_iter().filter(|(right, _)| !right);
            wrong.map(move |(_, what)| format!("{what}: {totals:?}, clients {counts:?}")).collect::<Vec<_>>()
        })
    }

    /// What is missing for the run to mean anything.
    fn proves_nothing(&self) -> Option<String> {
        let happened = |kind: Kind| self.done.iter().any(|done| done.kind == kind);
        let missing = [
            (self.seen.counts.answered == 0, "nothing was answered"),
            (!happened(Kind::Kill), "no replica was killed"),
            (!happened(Kind::Reload), "no configuration was reloaded"),
            (self.samples.last().is_none_or(|it| it.resumes == 0), "no stream was carried on"),
            (self.samples.len() < 8, "memory was hardly looked at"),
        ];
        let missing: Vec<_> =
            missing.into_iter().filter_map(|(missing, what)| missing.then_some(what)).collect();
        (!missing.is_empty()).then(|| format!("the run proves nothing: {}", missing.join(", ")))
    }

    fn growth(&self) -> Vec<Growth> {
        let (from, to) = (self.faults.0.as_secs_f64(), self.faults.1.as_secs_f64());
        let quarter = (to - from) / 4.0;
        let judged = self.length >= LONG_ENOUGH;
        let median_of = |value: fn(&Sample) -> f64, from: f64, to: f64| {
            median(self.samples.iter().filter(|it| it.at >= from && it.at < to).map(value).collect())
        };
        let grown = |what, unit, value: fn(&Sample) -> f64, share: f64, plus: f64| {
            let second_quarter = median_of(value, from + quarter, from + 2.0 * quarter)?;
            let last_quarter = median_of(value, from + 3.0 * quarter, to)?;
            let limit = second_quarter * (1.0 + share) + plus;
            Some(Growth { what, unit, second_quarter, last_quarter, limit, judged })
        };
        let memory = grown("memory", " MiB", |sample| sample.memory_kib as f64 / 1024.0, 0.15, 8.0);
        let descriptors = grown("descriptors", "", |sample| sample.descriptors as f64, 0.10, 32.0);
        memory.into_iter().chain(descriptors).collect()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::load::Counts;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn sample(at: u64) -> Sample {
        Sample {
            at: at as f64,
            memory_kib: 20 * 1024,
            descriptors: 100,
            threads: 4,
            open_streams: 10,
            requests: at,
            resumes: at,
            failures: vec![Some(0), Some(0)],
        }
    }

    fn done(at: f64, kind: Kind) -> Done {
        Done { at, kind, what: kind.name().to_owned(), problem: None }
    }

    /// What a good run of 20 minutes records.
    struct Record {
        seen: Seen,
        samples: Vec<Sample>,
        troubles: Vec<Trouble>,
        done: Vec<Done>,
        log: Log,
        length: Duration,
        totals: Option<Totals>,
        problems: Vec<(Duration, String)>,
    }

    impl Record {
        fn good() -> Self {
            let counts = Counts { requests: 100, answered: 91, left: 9, ..Counts::default() };
            let line = r#"{"message":"request","request_id":"r","endpoint":"http://b"}"#;
            let totals = Totals { requests: 95, answered: 93, cancelled: 2, ..Totals::default() };
            Self {
                seen: Seen { counts, ..Seen::default() },
                samples: (0..1200).map(sample).collect(),
                troubles: vec![Trouble { replica: 1, from: secs(101), to: Some(secs(110)) }],
                done: vec![done(50.0, Kind::Reload), done(101.0, Kind::Kill)],
                log: Log::read(line, &BTreeSet::from(["r"])),
                length: secs(1200),
                totals: Some(totals),
                problems: Vec::new(),
            }
        }

        fn judge(&self) -> Verdict {
            let Self { seen, samples, troubles, done, log, length, totals, problems } = self;
            let faults = (secs(10), secs(1190));
            let (length, totals, problems) = (*length, *totals, problems.clone());
            Evidence { seen, samples, troubles, done, log, length, faults, totals, problems }.judge()
        }
    }

    fn incident(breach: Option<Breach>, from: u64, to: u64) -> Incident {
        Incident { id: "r".to_owned(), from: secs(from), to: secs(to), breach, what: "gone".to_owned() }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Record), expected: &[&str]) {
        let mut record = Record::good();
        change(&mut record);
        let found: Vec<String> = record.judge().violations.into_iter().map(|it| it.what).collect();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "`{found}` does not say `{expected}`");
        }
    }

    #[test]
    fn a_good_run_has_no_violations() {
        check(|_| {}, &[]);
    }

    #[test]
    fn broken_promises() {
        for breach in [Breach::Failed, Breach::Truncated, Breach::Wrong, Breach::BadEnd, Breach::Hanging] {
            let bad = |it: &mut Record| {
                it.seen.incidents.push(incident(Some(breach), 200, 201));
                it.totals = None;
            };
            check(bad, &[breach.name()]);
        }
        check(|it| it.problems.push((secs(5), "Backstop has ended".to_owned())), &["Backstop has ended"]);
        check(|it| it.done[0].problem = Some("does not serve".to_owned()), &["reload: does not serve"]);
        check(|it| it.log.panics.push("thread panicked".to_owned()), &["panicked"]);
    }

    #[test]
    fn a_violation_tells_what_was_done_and_logged() {
        let mut record = Record::good();
        record.seen.incidents = vec![incident(Some(Breach::Wrong), 100, 102)];
        let violations = record.judge().violations;
        let violation = violations.iter().find(|it| it.what.contains("wrong")).unwrap();
        assert_eq!(violation.before, ["50.0 s: reload", "101.0 s: kill -9"]);
        assert_eq!(violation.log.len(), 1);
    }

    #[test]
    fn no_stream_may_be_cut() {
        let cut = |it: &mut Record| {
            it.seen.incidents.push(incident(None, 100, 103));
            (it.seen.counts.cut, it.seen.counts.answered) = (1, 89);
            it.totals.iter_mut().for_each(|it| (it.cut, it.answered) = (1, 92));
        };
        check(cut, &["cut with `gone`"]);
    }

    #[test]
    fn blame_needs_a_cause() {
        let blame = |replica: usize, at: usize| {
            move |it: &mut Record| it.samples[at..].iter_mut().for_each(|it| it.failures[replica] = Some(3))
        };
        check(blame(1, 103), &[]);
        check(blame(1, 121), &[]);
        check(blame(1, 130), &["replica 1 is blamed for 3 attempts"]);
        check(blame(0, 103), &["replica 0 is blamed for 3 attempts"]);
        // One that was removed and added may begin anew.
        check(|it| it.samples[600].failures[0] = None, &[]);
    }

    #[test]
    fn accounts_must_agree() {
        let totals = |change: fn(&mut Totals)| move |it: &mut Record| it.totals.iter_mut().for_each(change);
        check(totals(|it| it.cancelled += 1), &["do not add up"]);
        check(totals(|it| (it.requests, it.answered) = (101, 99)), &["not those of the clients"]);
        check(totals(|it| (it.requests, it.answered) = (90, 88)), &["not those of the clients"]);
        check(totals(|it| (it.cut, it.answered) = (10, 83)), &["cut streams"]);
        check(totals(|it| (it.failed, it.answered) = (10, 83)), &["failed requests"]);
        check(totals(|it| (it.refused, it.answered) = (1, 92)), &["refused"]);
        // Some of those that clients left.
        check(totals(|it| (it.cut, it.failed, it.answered) = (5, 1, 87)), &[]);
    }

    #[test]
    fn a_run_without_faults_proves_nothing() {
        check(|it| it.done.clear(), &["no replica was killed, no configuration was reloaded"]);
        check(|it| it.samples.truncate(3), &["memory was hardly looked at"]);
    }

    #[test]
    fn growth_is_judged() {
        let late =
            |change: fn(&mut Sample)| move |it: &mut Record| it.samples[900..].iter_mut().for_each(change);
        check(late(|it| it.memory_kib = 30 * 1024), &[]);
        check(late(|it| it.memory_kib = 32 * 1024), &["memory grew from 20.0 to 32.0 MiB"]);
        // A short run only tells.
        let short = |it: &mut Record| {
            late(|it| it.memory_kib = 1 << 30)(it);
            it.length = secs(599);
        };
        check(short, &[]);
        check(late(|it| it.descriptors = 140), &[]);
        check(late(|it| it.descriptors = 150), &["descriptors grew from 100.0 to 150.0"]);
        // The start does not count, nor does a peak.
        check(|it| it.samples[..250].iter_mut().for_each(|it| it.memory_kib = 1), &[]);
        check(|it| it.samples[950..1000].iter_mut().for_each(|it| it.memory_kib = 1 << 30), &[]);
    }
}
