//! What differs between two versions.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use serde_json::{Map, Value, json};
use similar::{ChangeTag, TextDiff};

use super::super::client::Call;
use super::super::table::Paper;
use super::super::{config::yaml_text, print_json};
use super::view::Version;
use super::{Diff, one};

/// Lines around a difference.
const CONTEXT: usize = 3;

pub(super) fn run(args: &Diff) -> anyhow::Result<ExitCode> {
    let admin = args.remote.connect()?;
    let read = |version: &str| -> anyhow::Result<Version> {
        let path = one(&args.service, version);
        admin.json(Call::get(&path))
    };
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    let titles = (format!("{}/{}", args.service, args.a), format!("{}/{}", args.service, args.b));
    let (before, after) = (document(&a)?, document(&b)?);
    if args.remote.json {
        let diff = render(&before, &after, &titles, false);
        print_json(&json!({ "a": titles.0, "b": titles.1, "same": diff.is_empty(), "diff": diff }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if before == after {
        eprintln!("{} and {} are the same", titles.0, titles.1);
    } else {
        print!("{}", render(&before, &after, &titles, Paper::stdout().colour));
    }
    Ok(ExitCode::SUCCESS)
}

/// All that matters of a version, in lines.
fn document(version: &Version) -> anyhow::Result<String> {
    let mut parts = Map::new();
    let mut put = |key: &str, value: Value| drop(parts.insert(key.to_owned(), value));
    if let Some(definition) = &version.definition {
        put("definition", definition.clone());
    }
    let summary = &version.summary;
    if !summary.description.is_empty() {
        put("description", summary.description.as_str().into());
    }
    if !summary.labels.is_empty() {
        put("labels", json!(summary.labels));
    }
    if !version.files.is_empty() {
        let line = |digest: &str, bytes: u64| format!("sha256:{digest}, {bytes} bytes");
        let files: Map<String, Value> = version
            .files
            .iter()
            .map(|file| (file.path.clone(), line(&file.digest, file.bytes).into()))
            .collect();
        put("files", files.into());
    }
    if parts.is_empty() { Ok(String::new()) } else { yaml_text(&parts.into()) }
}

/// In the form that everybody knows; empty if there is no difference.
fn render(before: &str, after: &str, titles: &(String, String), colour: bool) -> String {
    let paint = |text: &str, colour_of: Option<AnsiColor>| {
        let style = colour_of.filter(|_| colour).map_or_else(Style::new, |it| it.on_default());
        format!("{style}{text}{style:#}\n")
    };
    let diff = TextDiff::from_lines(before, after);
    let mut out = String::new();
    for group in diff.grouped_ops(CONTEXT) {
        if out.is_empty() {
            out += &format!("--- {}\n+++ {}\n", titles.0, titles.1);
        } else {
            out += &paint("…", Some(AnsiColor::Cyan));
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, colour) = match change.tag() {
                ChangeTag::Equal => (' ', None),
                ChangeTag::Delete => ('-', Some(AnsiColor::Red)),
                ChangeTag::Insert => ('+', Some(AnsiColor::Green)),
            };
            out += &paint(&format!("{sign}{}", change.value().trim_end_matches('\n')), colour);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(definition: Value, digest: &str) -> Version {
        serde_json::from_value(json!({
            "service": "chat", "name": "v", "from": "registered", "state": "ready", "marks": [], "stable_at": [],
            "labels": { "owner": "search" }, "description": "", "definition": definition, "faults": [],
            "files": [{ "path": "model.gguf", "bytes": 7, "digest": digest }], "current": "/s/current",
        }))
        .unwrap()
    }

    #[test]
    fn differences_are_seen() {
        let endpoints =
            |url: &str| json!({ "endpoints": [{ "url": url }], "request": { "system": "Be brief." } });
        let before = document(&version(endpoints("http://h:1"), "aa")).unwrap();
        let after = document(&version(endpoints("http://h:2"), "bb")).unwrap();
        let titles = ("chat/v1".to_owned(), "chat/v2".to_owned());
        insta::assert_snapshot!("diff", render(&before, &after, &titles, false));
        assert_eq!(render(&before, &before, &titles, false), "");
        let coloured = render(&before, &after, &titles, true);
        assert!(coloured.contains("\u{1b}[31m-") && coloured.contains("\u{1b}[32m+"), "{coloured}");
    }
}
