//! What a person sees: a live picture on a terminal, lines elsewhere, nothing when headless.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Summary;
use super::load::Counts;
use super::release::{Evidence, ReleaseView};
use super::replica::EndpointView;
use crate::remote::text::bar;

/// Cells of a bar.
const BAR: usize = 40;
pub(super) const REFRESH: Duration = Duration::from_millis(100);

#[derive(PartialEq, Eq)]
enum Mode {
    Live,
    Lines,
    Silent,
}

pub(super) struct View {
    mode: Mode,
    colour: bool,
    engine: &'static str,
    heading: String,
    started: Instant,
    notes: Vec<String>,
    release: Option<ReleaseView>,
}

impl View {
    pub(super) fn new(headless: bool, engine: &'static str) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let mode = match (headless, terminal) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Live,
            (false, false) => Mode::Lines,
        };
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self {
            mode,
            colour,
            engine,
            heading: String::new(),
            started: Instant::now(),
            notes: Vec::new(),
            release: None,
        }
    }

    pub(super) fn open(&mut self, addr: SocketAddr, clients: usize) {
        self.heading = format!("{clients} clients stream from http://{addr}/v1 (model `demo`)");
        self.note(&format!("serving: {}", self.heading));
    }

    /// Something worth remembering happened.
    pub(super) fn note(&mut self, what: &str) {
        let line = format!("{:5.1} s  {what}", self.started.elapsed().as_secs_f64());
        if self.mode == Mode::Lines {
            println!("{line}");
        }
        self.notes.push(line);
    }

    /// What there is to be shown of a release from now on.
    pub(super) fn release(&mut self, release: ReleaseView) {
        self.release = Some(release);
    }

    pub(super) fn draw(&self, endpoints: &[EndpointView], counts: Counts) {
        if self.mode != Mode::Live {
            return;
        }
        let mut out = String::from("\x1b[H\x1b[J");
        let title = self.paint("1", "Backstop demo");
        out += &format!(
            "\n  {title}   two replicas of {} behind one endpoint\n  {}\n\n",
            self.engine, self.heading
        );
        out += &format!("  {:<26} {:<10} {:>9} {:>9}\n", "replica", "state", "in flight", "attempts");
        for endpoint in endpoints {
            let colour = match endpoint.state.as_str() {
                "healthy" => "32",
                "unhealthy" => "31",
                _ => "33",
            };
            let state = self.paint(colour, &format!("{:<10}", endpoint.state));
            let EndpointView { url, in_flight, requests, .. } = endpoint;
            let reason = if endpoint.state == "healthy" { "" } else { &endpoint.reason };
            let reason = reason.split(" (os error").next().unwrap_or_default();
            out += &format!("  {url:<26} {state} {in_flight:>9} {requests:>9}  {reason:.60}\n");
        }
        if let Some(ReleaseView { version, stable, phase, share, evidence, .. }) = &self.release {
            let Evidence { log, log_limit } = *evidence;
            out += &format!("\n  {stable} → {version}  {phase}\n");
            out += &format!("  traffic   {} {:.0}%\n", bar(*share, BAR), share * 100.0);
            out += &format!(
                "  evidence  {} of what it takes to send it back\n",
                bar(log.max(0.0) / log_limit, BAR)
            );
        }
        out += &format!("\n  {}\n\n", figures(counts));
        for note in self.notes.iter().rev().take(10).rev() {
            out += &format!("  {note}\n");
        }
        print!("{out}");
        // A terminal that has gone takes the picture with it.
        let _ = std::io::stdout().flush();
    }

    pub(super) fn finish(&self, summary: &Summary) {
        println!("\n  {}", figures(summary.counts));
        let verdict = match (summary.recovered, summary.counts.failed + summary.counts.truncated) {
            (true, 0) if summary.as_expected => {
                let text = "no request failed, no answer was passed off as whole, the replica is back";
                let releases = "; the good version was promoted, the others were sent back";
                self.paint(
                    "32",
                    &format!("{text}{}", if summary.releases.is_empty() { "" } else { releases }),
                )
            }
            (true, 0) => self.paint("31", "a release did not end as it should"),
            (false, _) => self.paint("31", "the replica did not come back as expected"),
            (true, bad) => self.paint("31", &format!("{bad} requests failed")),
        };
        println!("  {verdict}");
        println!("\n  Next: write a backstop.yaml (README) and run `backstop serve`.\n");
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn figures(counts: Counts) -> String {
    let Counts { requests, answered, failed, cut, failovers, .. } = counts;
    format!(
        "requests {requests}   answered {answered}   failed {failed}   cut with an error {cut}   failed over {failovers}"
    )
}
