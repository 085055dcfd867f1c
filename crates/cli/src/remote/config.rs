//! `backstop config`: what a running Backstop serves by.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use saphyr::{Scalar, Yaml, YamlEmitter};
use serde::Deserialize;
use serde_json::Value;

use super::client::Call;
use super::{Remote, print_json, text};

/// Show the configuration that a running Backstop serves by
///
/// That is its file with all defaults, and with the changes made at run time in it. Secrets are shown as `***`. Above it
/// stands in what that differs from the file, and how to take it into the file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop config
  backstop config --json | jq .revision")]
pub(crate) struct Args {
    #[command(flatten)]
    remote: Remote,
}

#[derive(Deserialize)]
struct Effective {
    revision: u64,
    file: String,
    loaded_at: u64,
    config: Value,
    drift: BTreeMap<String, Vec<Drift>>,
    needs_restart: Vec<String>,
    last_change: Option<LastChange>,
}

/// A point in which a service differs from the file.
#[derive(Deserialize)]
struct Drift {
    what: String,
    remedy: String,
}

#[derive(Deserialize)]
struct LastChange {
    actor: String,
    action: String,
    subject: String,
    at: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let answer: Value = args.remote.connect()?.json(Call::get("/api/v1/config"))?;
    if args.remote.json {
        print_json(&answer)?;
    } else {
        print!("{}", page(&serde_json::from_value(answer)?)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration as YAML, below what there is to say about it.
fn page(effective: &Effective) -> anyhow::Result<String> {
    let Effective { revision, file, loaded_at, .. } = effective;
    let mut out = format!("# revision {revision}: {file}, read {}\n", text::time(*loaded_at));
    if let Some(LastChange { actor, action, subject, at }) = &effective.last_change {
        out += &format!("# last change: {} {actor}: {action} {subject}\n", text::time(*at));
    }
    for (service, drift) in &effective.drift {
        for Drift { what, remedy } in drift {
            out += &format!("# differs from the file: {service}: {what}\n#   to end that: {remedy}\n");
        }
    }
    if !effective.needs_restart.is_empty() {
        out += &format!("# waits for a restart: {}\n", effective.needs_restart.join(", "));
    }
    Ok(out + &yaml_text(&effective.config)?)
}

/// In the form of the configuration file.
pub(super) fn yaml_text(value: &Value) -> anyhow::Result<String> {
    let mut text = String::new();
    YamlEmitter::new(&mut text).dump(&yaml(value)).context("the answer can't be shown")?;
    let text = text.strip_prefix("---\n").unwrap_or(&text);
    Ok(format!("{}\n", text.trim_end()))
}

fn yaml(value: &Value) -> Yaml<'_> {
    match value {
        Value::Null => Yaml::Value(Scalar::Null),
        Value::Bool(bool) => Yaml::Value(Scalar::Boolean(*bool)),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Yaml::Value(Scalar::Integer(whole)),
            None => Yaml::Value(Scalar::FloatingPoint(number.as_f64().unwrap_or_default().into())),
        },
        Value::String(text) => Yaml::Value(Scalar::String(text.as_str().into())),
        Value::Array(items) => Yaml::Sequence(items.iter().map(yaml).collect()),
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|(key, value)| (*key != "name" && *key != "url", has_more(value)));
            let pair = |(key, value): (&'_ String, _)| {
                (Yaml::Value(Scalar::String(key.clone().into())), yaml(value))
            };
            Yaml::Mapping(entries.into_iter().map(pair).collect())
        }
    }
}

/// Long things go last, so that one sees whose they are.
fn has_more(value: &Value) -> bool {
    match value {
        Value::Array(items) => !items.is_empty(),
        other => other.is_object(),
    }
}
