//! `backstop drill`: a rollback is rehearsed.

use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Call, encode};
use super::{Remote, print_json, text};
use crate::duration;

/// How often the drill is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Rehearse a rollback, and measure how long it takes
///
/// The stable version gets a twin for a moment: its own endpoints under another name, so that answers stay as they are and no
/// engine has more to do. The twin gets a small share, and is then sent back as if a critical trigger had fired. Nobody is
/// paged, nothing is held against any version, and whatever really goes wrong meanwhile ends the drill at once.
///
/// Exits with 0 if it passed: nothing was assigned to the version that was left any more within the target, none of its
/// requests failed, and the stable version was well afterwards. Exits with 1 otherwise.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop drill chat
  backstop drill chat --weight 1% --target 500ms
  backstop drill chat --to v2 --gradual           with a version of its own, by the shares of a gradual rollback
  backstop release report chat                    what was measured")]
pub(crate) struct Args {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// A version that is to be left for the stable one [default: a twin of the stable one]
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// Its share for that moment [default: `release.drill.weight`]
    #[arg(long, value_name = "PERCENT")]
    weight: Option<String>,
    /// How long recovery may take [default: `release.drill.target`]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    target: Option<Duration>,
    /// Go back at once [default: as `release.rollback.critical` says]
    #[arg(long, conflicts_with = "gradual")]
    instant: bool,
    /// Go back by the shares of `release.rollback.gradual`
    #[arg(long)]
    gradual: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Deserialize)]
struct Release {
    id: String,
    version: String,
    stable: String,
    ended: bool,
    drill: Option<Drill>,
    timeline: Vec<Moment>,
}

#[derive(Deserialize)]
struct Drill {
    target_ms: f64,
    recovery_ms: Option<f64>,
    swap_ms: Option<f64>,
    drained_ms: Option<f64>,
    verified_ms: Option<f64>,
    requests: u64,
    running: u64,
    failed: u64,
    outcome: Option<String>,
    findings: Vec<String>,
}

#[derive(Deserialize)]
struct Moment {
    at: u64,
    text: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Args { service, to, weight, target, instant, gradual, remote } = args;
    let way = if *instant { Some("instant") } else { gradual.then_some("gradual") };
    let target_ms = target.map(|target| u64::try_from(target.as_millis()).unwrap_or(u64::MAX));
    let body = json!({ "to": to, "weight": weight, "target_ms": target_ms, "way": way });
    let admin = remote.connect()?;
    let service_path = format!("/api/v1/services/{}", encode(service));
    let begun: Release = admin.json(Call::post(&format!("{service_path}/drills")).body(body))?;
    let path = format!("{service_path}/report");
    let mut told = 0;
    loop {
        let call = Call::get(&path).query("release", Some(&begun.id)).query("format", Some("json"));
        let account: Value = admin.json(call)?;
        let release: Release = serde_json::from_value(account.clone())?;
        // The answer itself is for standard output.
        for moment in release.timeline.iter().filter(|moment| moment.at > told) {
            eprintln!("{}  {}", text::time(moment.at), moment.text);
        }
        told = release.timeline.last().map_or(told, |last| last.at.max(told));
        if release.ended {
            if remote.json {
                print_json(&account)?;
            } else {
                print!("{}", render(service, &release));
            }
            let passed = release.drill.is_some_and(|drill| drill.outcome.as_deref() == Some("passed"));
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        std::thread::sleep(LOOK);
    }
}

fn render(service: &str, release: &Release) -> String {
    let Some(drill) = &release.drill else { return format!("{service}: nothing was measured\n") };
    let outcome = match drill.outcome.as_deref() {
        Some("passed") => "PASS",
        Some("failed") => "FAIL",
        _ => "CALLED OFF",
    };
    let mut out = format!("{service}: {} → {}  {outcome}\n", release.version, release.stable);
    let mut line = |label: &str, text: &str| out += &format!("  {label:<12}{text}\n");
    let after = |time: Option<f64>| time.map_or_else(|| "–".to_owned(), |millis| format!("{millis:.1} ms"));
    let target = format!("{} (at most {} ms)", after(drill.recovery_ms), drill.target_ms);
    line("recovery", &target);
    line("swap", &format!("{} until served and on disk", after(drill.swap_ms)));
    let drained = match drill.running {
        0 => format!("{} until its last request had ended", after(drill.drained_ms)),
        running => format!("{running} of its requests still run, and may"),
    };
    line("drained", &drained);
    let verified = match drill.verified_ms {
        Some(_) => format!("{} until {} was seen to be well", after(drill.verified_ms), release.stable),
        None => "– (too little traffic to tell)".to_owned(),
    };
    line("verified", &verified);
    line("requests", &format!("{} given to {}, {} failed", drill.requests, release.version, drill.failed));
    for finding in &drill.findings {
        line("why", finding);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed() {
        let drill = |outcome: &str, findings: &[&str]| {
            let account = json!({
                "id": "r1", "version": "v1~drill", "stable": "v1", "ended": true, "timeline": [],
                "drill": {
                    "target_ms": 5000.0, "recovery_ms": 3.21, "swap_ms": 3.21, "drained_ms": 810.0, "verified_ms": null,
                    "requests": 40, "running": 0, "failed": 0, "outcome": outcome, "findings": findings,
                },
            });
            render("chat", &serde_json::from_value(account).unwrap())
        };
        assert_eq!(
            drill("passed", &[]),
            "chat: v1~drill → v1  PASS\n  recovery    3.2 ms (at most 5000 ms)\n  swap        3.2 ms until served and on \
             disk\n  drained     810.0 ms until its last request had ended\n  verified    – (too little traffic to tell)\n  \
             requests    40 given to v1~drill, 0 failed\n"
        );
        assert!(drill("failed", &["3 of its 40 requests failed"]).contains("FAIL"));
        assert!(
            drill("failed", &["3 of its 40 requests failed"])
                .ends_with("  why         3 of its 40 requests failed\n")
        );
        assert!(drill("called_off", &[]).contains("CALLED OFF"));
    }
}
