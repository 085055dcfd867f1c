//! What a run came to: as JSON, as a table for the terminal, and as a page for the docs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use crate::api::Totals;
use crate::load::Counts;
use crate::plan::Kind;
use crate::plot;
use crate::verdict::{Done, Growth, Verdict};
use crate::watch::Sample;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) date: String,
    pub(crate) seed: u64,
    pub(crate) minutes: f64,
    pub(crate) replicas: usize,
    pub(crate) clients: u64,
    /// As the clients saw it.
    pub(crate) counts: Counts,
    /// As Backstop saw it.
    pub(crate) totals: Option<Totals>,
    pub(crate) first_token: Option<FirstToken>,
    /// The most streams open at once.
    pub(crate) peak_streams: u64,
    /// Cut streams by the code of the error.
    pub(crate) cut_by_code: BTreeMap<String, usize>,
    pub(crate) by_kind: BTreeMap<Kind, usize>,
    pub(crate) verdict: Verdict,
    pub(crate) actions: Vec<Done>,
    pub(crate) samples: Vec<Sample>,
}

/// From the request to the first piece of a stream, retries included.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct FirstToken {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl FirstToken {
    pub(crate) fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let at = |share: usize| {
            Some(all.get((all.len() * share / 100).min(all.len().checked_sub(1)?))?.as_secs_f64() * 1e3)
        };
        Some(Self { p50_ms: at(50)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

impl Report {
    pub(crate) fn passed(&self) -> bool {
        self.verdict.violations.is_empty()
    }

    /// Writes `soak.json`, `soak.md` and `soak.svg`.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("can't make `{}`", directory.display()))?;
        let json = serde_json::to_string(self)? + "\n";
        fs::write(directory.join("soak.json"), json)?;
        self.write_page(directory)
    }

    /// Writes `soak.md` and `soak.svg`.
    pub(crate) fn write_page(&self, directory: &Path) -> Result<()> {
        let svg = plot::draw(self).map_err(|error| anyhow!("can't draw the plot: {error}"))?;
        let written = fs::write(directory.join("soak.svg"), svg + "\n")
            .and_then(|()| fs::write(directory.join("soak.md"), self.page()));
        written.with_context(|| format!("can't write to `{}`", directory.display()))
    }

    fn rows(&self) -> Vec<(String, String)> {
        let Counts { requests, streams, chats, embeddings, answered, cut, left, broken, .. } = self.counts;
        let row = |name: &str, value: String| (name.to_owned(), value);
        let mut rows = vec![
            row(
                "requests",
                format!("{requests} ({streams} streams, {chats} chats, {embeddings} embeddings)"),
            ),
            row("answered, whole and right", answered.to_string()),
            row("cut in the middle, with an error event", self.cuts(cut)),
            row("left by the client", left.to_string()),
            row("failed, truncated, wrong or hanging", broken.to_string()),
        ];
        if let Some(Totals { retries, failovers, .. }) = self.totals {
            rows.push(row("retries", retries.to_string()));
            rows.push(row("answered by another replica than the first", failovers.to_string()));
        }
        let resumes = self.samples.last().map_or(0, |sample| sample.resumes);
        rows.push(row("streams carried on elsewhere in the middle", resumes.to_string()));
        rows.push(row("open streams at most", self.peak_streams.to_string()));
        if let Some(FirstToken { p50_ms, p99_ms, max_ms }) = self.first_token {
            let text = format!("{p50_ms:.0} ms, 99 %: {p99_ms:.0} ms, longest: {max_ms:.0} ms");
            rows.push(row("first token (median)", text));
        }
        for Growth { what, unit, second_quarter, last_quarter, limit, judged } in &self.verdict.growth {
            let bar =
                if *judged { format!("at most {limit:.1}") } else { "not judged in a short run".to_owned() };
            let text = format!("{second_quarter:.1} → {last_quarter:.1}{unit} ({bar})");
            rows.push(row(&format!("{what}, second → last quarter"), text));
        }
        let actions = self.by_kind.iter().map(|(kind, count)| format!("{count} × {}", kind.name()));
        rows.push(row("actions", actions.collect::<Vec<_>>().join(", ")));
        rows
    }

    fn cuts(&self, cut: u64) -> String {
        let codes = self.cut_by_code.iter().map(|(code, count)| format!("{count} {code}"));
        let codes: Vec<_> = codes.collect();
        if codes.is_empty() { cut.to_string() } else { format!("{cut} ({})", codes.join(", ")) }
    }

    /// For the terminal.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        for (name, value) in self.rows() {
            line(&mut out, format_args!("  {name:<45} {value}"));
        }
        let violations = &self.verdict.violations;
        line(&mut out, format_args!("\nviolations: {}", violations.len()));
        for violation in violations {
            line(&mut out, format_args!("\n- {:.1} s: {}", violation.at, violation.what));
            for before in &violation.before {
                line(&mut out, format_args!("    before: {before}"));
            }
            for logged in &violation.log {
                line(&mut out, format_args!("    log: {logged}"));
            }
        }
        out
    }

    fn page(&self) -> String {
        let Self { date, seed, minutes, replicas, clients, .. } = self;
        let mut page = format!(
            "# Soak

Run of {date}: {minutes} minutes, {clients} clients, {replicas} replicas, seed {seed}. Every figure is from that run; `make soak`
makes another.

{}

![memory, descriptors and open streams over the run](soak.svg)

| what | |
|---|---|
",
            self.claim()
        );
        for (name, value) in self.rows() {
            line(&mut page, format_args!("| {name} | {value} |"));
        }
        page.push_str(METHOD);
        page
    }

    fn claim(&self) -> String {
        let violations = &self.verdict.violations;
        if violations.is_empty() {
            let flat = self.verdict.growth.iter().any(|growth| growth.judged);
            let also = if flat { "\n- Memory and descriptors stayed flat." } else { "" };
            return format!("{PROVED}{also}");
        }
        let list: Vec<String> =
            violations.iter().map(|it| format!("- {:.1} s: {}", it.at, it.what)).collect();
        format!("**This run failed:**\n\n{}", list.join("\n"))
    }
}

const PROVED: &str = "It proves, for these faults:

- No request failed before its first byte while a healthy replica existed, and one always did.
- No stream was lost: whatever its replica did, it was carried on by another one.
- No answer was truncated, none was wrong, none hung: each was compared with the text it had to be, and so were those
  that another replica had carried on in the middle.
- Clients that left early, reloads, drains, removals and short stalls were held against no replica; invalid files changed
  nothing.
- Backstop's own counts are those of the clients, nothing was left in flight, and every replica came back.";

const METHOD: &str = "
## Method

`backstop serve` and the replicas (`backstop engine-sim`, 4 to 12 ms per token, up to four times that with many clients)
are real processes on one machine. About every second something happens, chosen by the seed: `kill -9`, restart, SIGSTOP,
SIGCONT, a stop of less than a second, drain, isolate, restore, remove and add by the control API, a new
configuration (policy, weights, retries, timeouts) by SIGHUP or by the file alone, or an invalid one. Or a replica answers
the next few requests badly, in one of 32 ways: with an error status, with nothing, late, cut off or silent in the middle,
with rubbish, an error event, no end, the wrong kind of answer, and so on. At most half of the replicas are out at a time, and one
that serves has always been left alone for 8 seconds, so that a request that meets all others in vain still has
somewhere to go: every failure is Backstop's.

Clients ask for streams, chats and embeddings of 1 to 450 tokens, on new and on kept connections, with and without
pauses; one in twenty leaves early. What an SDK would take for a complete answer must be the complete text.

Half of the replicas may be silent at once, which is more than the usual budget of second tries could make good:
`retry.budget` is 100 %.

Backstop takes twice as many requests at a time as there are clients (`admission`) and lets none wait, so places that
were lost would soon make it refuse all.

Memory and descriptors are looked at each second. Their median over the last quarter may be at most 15 % + 8 MiB and
10 % + 32 above that of the second quarter; runs of less than ten minutes only tell.

The seed repeats the choices: `make soak SOAK_SEED=…`.
";

/// Writing to a `String` can't fail.
fn line(out: &mut String, text: std::fmt::Arguments) {
    let _ = writeln!(out, "{text}");
}

/// The date now, as `2026-11-22`.
pub(crate) fn today() -> String {
    date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400))
}

/// Days since 1970 to a date, by counting.
fn date(mut days: u64) -> String {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (11_016, "2000-02-29"),
            (20_779, "2026-11-22"),
            (20_818, "2026-12-31"),
        ] {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn percentiles() {
        let ms = |n: u64| Duration::from_millis(n);
        let FirstToken { p50_ms, p99_ms, max_ms } =
            FirstToken::of((1..=100).rev().map(ms).collect()).unwrap();
        assert_eq!((p50_ms.round(), p99_ms.round(), max_ms.round()), (51.0, 100.0, 100.0));
        assert!(FirstToken::of(Vec::new()).is_none());
        assert!((FirstToken::of(vec![ms(7)]).unwrap().max_ms - 7.0).abs() < 1e-9);
    }

    fn report() -> Report {
        let sample = |at: u32| Sample {
            at: f64::from(at),
            memory_kib: 20_480,
            descriptors: 90,
            threads: 3,
            open_streams: 40,
            requests: 5,
            resumes: 7,
            failures: vec![Some(0)],
        };
        Report {
            date: "2026-11-22".to_owned(),
            seed: 7,
            minutes: 20.0,
            replicas: 4,
            clients: 64,
            counts: Counts { requests: 5, answered: 5, ..Counts::default() },
            totals: Some(Totals::default()),
            first_token: None,
            peak_streams: 3,
            cut_by_code: BTreeMap::from([("upstream_disconnected".to_owned(), 3)]),
            by_kind: BTreeMap::from([(Kind::Kill, 1)]),
            verdict: Verdict { violations: Vec::new(), growth: Vec::new() },
            actions: vec![Done { at: 9.0, kind: Kind::Kill, what: "kill".to_owned(), problem: None }],
            samples: (0..60).map(sample).collect(),
        }
    }

    #[test]
    fn the_plot_is_svg_with_its_curves() {
        let svg = plot::draw(&report()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["resident memory", "open descriptors", "open streams", "<polyline"] {
            assert!(svg.contains(text), "{text}");
        }
        // A run that ended at once still has a picture.
        assert!(plot::draw(&Report { samples: Vec::new(), ..report() }).is_ok());
    }

    #[test]
    fn the_page_claims_only_what_was_found() {
        let good = report();
        assert!(good.page().contains("It proves") && good.page().contains("seed 7"));
        let violation = crate::verdict::Violation {
            at: 3.0,
            what: "request r: truncated".to_owned(),
            before: vec!["2.0 s: kill".to_owned()],
            log: vec!["{}".to_owned()],
        };
        let bad = Report { verdict: Verdict { violations: vec![violation], growth: Vec::new() }, ..report() };
        assert!(!bad.page().contains("It proves") && bad.page().contains("request r: truncated"));
        assert!(bad.table().contains("violations: 1") && bad.table().contains("before: 2.0 s: kill"));
    }
}
