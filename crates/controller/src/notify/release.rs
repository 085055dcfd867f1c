//! What is told of releases. They enqueue it with their own decisions, so that it is told whatever happens to the process.

use std::collections::BTreeMap;

use backstop_config::Topic;
use backstop_core::rollout::{About, Release, Severity, Told};
use backstop_store::{HistoryEntry, Op};

use super::notice::{Notice, Status};

/// What to commit so that `told` is told of `release`; the `index`th of its decision at `at`, in milliseconds since the
/// Unix epoch.
pub(crate) fn of_release(release: &Release, (at, index): (u64, usize), told: &Told) -> Op {
    let Told { severity, about, text } = told;
    let labels = [
        ("service", release.service.clone()),
        ("version", release.canary.clone()),
        ("release", release.id.clone()),
        ("phase", release.phase.to_string()),
    ];
    let labels: BTreeMap<_, _> = labels.map(|(name, value)| (name.to_owned(), value)).into();
    Notice {
        id: format!("{}-{at}-{index}", release.id),
        topic: match about {
            About::Release => Topic::Release,
            About::Trigger => Topic::Trigger,
            About::Drill => Topic::Drill,
        },
        at,
        severity: *severity,
        status: Status::Note,
        subject: format!("release {} of {}", release.id, release.service),
        state: text.clone(),
        title: format!("{}: {text}", release.service),
        reason: format!("release {}, {}", release.id, release.phase),
        labels,
    }
    .enqueue()
}

/// What to commit so that it is told that the file has made another version the stable one, if that is what `entry` says.
/// `id` tells it from other entries.
pub(crate) fn of_file(entry: &HistoryEntry, id: &str) -> Option<Op> {
    let version = entry.body["makes_stable"].as_str()?;
    let labels = [("service", entry.service.as_str()), ("version", version)];
    let notice = Notice {
        id: format!("file-{id}"),
        topic: Topic::Release,
        at: entry.at,
        severity: Severity::Info,
        status: Status::Note,
        subject: format!("stable version of {}", entry.service),
        state: version.to_owned(),
        title: format!("{}: {version} serves, as the file says", entry.service),
        reason: format!("changed by {}", entry.actor),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    };
    Some(notice.enqueue())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_stable_version_by_the_file_is_told() {
        let entry = |body| HistoryEntry {
            at: 7,
            actor: "ops".to_owned(),
            service: "chat".to_owned(),
            kind: "file".to_owned(),
            subject: "backstop.yaml".to_owned(),
            body,
        };
        assert_eq!(of_file(&entry(serde_json::json!({ "makes_stable": null })), "1"), None);
        let told = of_file(&entry(serde_json::json!({ "makes_stable": "v3" })), "1");
        let Some(Op::Enqueue(effect)) = told else { panic!("{told:?}") };
        assert_eq!(effect.body["title"], "chat: v3 serves, as the file says");
        assert_eq!((&effect.body["topic"], effect.id.as_str()), (&"release".into(), "file-1"));
    }
}
