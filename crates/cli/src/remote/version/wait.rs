//! Waits for work on a version's files, with a bar.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::super::client::{Admin, Call};
use super::view::Version;

/// How often is looked.
const LOOK: Duration = Duration::from_millis(200);
/// For so long nobody may answer: Backstop may be on its way to a new process.
const PATIENCE: Duration = Duration::from_secs(15);

/// The version as it is when nothing more is done with its files.
pub(super) fn until_done(admin: &Admin, service: &str, version: &str, quiet: bool) -> anyhow::Result<Value> {
    let path = super::one(service, version);
    // Drawn only on a terminal.
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = "{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("█░"));
    let mut answered = Instant::now();
    loop {
        match admin.json::<Value>(Call::get(&path)) {
            Ok(answer) => {
                answered = Instant::now();
                let version: Version = serde_json::from_value(answer.clone())?;
                let summary = &version.summary;
                if summary.progress.is_none() && summary.state != "copying" {
                    bar.finish_and_clear();
                    return Ok(answer);
                }
                if let Some(progress) = &summary.progress {
                    bar.set_message(format!("{} {}", progress.what, summary.name));
                    if progress.total > 0 {
                        bar.set_length(progress.total);
                    }
                    bar.set_position(progress.done);
                }
            }
            Err(error) if answered.elapsed() > PATIENCE => {
                bar.finish_and_clear();
                return Err(error);
            }
            Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
}
