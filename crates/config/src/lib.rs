//! Configuration of Backstop: read, check, compile.
//!
//! A file goes through five steps, and only the last two need it to be free of mistakes:
//! text → tree with positions and environment (`source`) → checked against the schema (`check`) → checked
//! for what a schema can't say (`validate`) → typed, immutable [`Config`] → [`TableSpec`].
//! The first three collect every problem there is. The types (`types`) are the single source of the schema,
//! of the checks and of the reference in `docs/config.md`.
//!
//! Nothing here opens sockets, resolves names or watches files; [`load`] reads one file, the rest is pure.

mod check;
mod compile;
mod concurrency;
mod env;
mod http;
mod intent;
mod measure;
mod node;
mod notify;
mod order;
mod outline;
mod problem;
mod prometheus;
mod raw;
mod reference;
mod release;
mod schema;
mod shaping;
mod source;
mod targeting;
#[cfg(test)]
mod tests;
mod time;
mod types;
mod units;
mod validate;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use backstop_core::rollout::{Freeze, Settings};
use backstop_core::table::{Digest, TableSpec, Target};
use serde_json::Value;

pub use crate::intent::{
    Draft, EndpointIntent, Force, Intent, IntentError, LostKey, Place, Restored, Standing, VersionIntent,
    read_version,
};
pub use crate::notify::{Form, Recipient, Topic};
pub use crate::outline::Outline;
pub use crate::problem::{Problem, Problems};
pub use crate::prometheus::Prometheus;
pub use crate::release::DrillSettings;
pub use crate::units::Store;
pub use crate::written::Written;

/// Larger files are refused.
const MOST_BYTES: u64 = 4 << 20;

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    document: types::Document,
    raw: raw::Raw,
    /// Digests of the files that belong to versions, by service and name.
    artifacts: BTreeMap<(String, String), String>,
    /// Which versions were registered at run time, by service and name.
    registered: BTreeSet<(String, String)>,
}

/// Certificate and key of a listener, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Config {
    /// Where clients connect; port 0 = any free port.
    pub fn listen(&self) -> SocketAddr {
        self.document.listen.0
    }

    /// TLS towards clients; `None` = cleartext.
    pub fn tls(&self) -> Option<ServerTls> {
        self.document.tls.as_ref().map(ServerTls::from)
    }

    /// Where the control API listens, a loopback address unless there are tokens; port 0 = any free port.
    pub fn admin_listen(&self) -> SocketAddr {
        self.document.admin.listen.0
    }

    /// TLS of the control API; `None` = cleartext.
    pub fn admin_tls(&self) -> Option<ServerTls> {
        self.document.admin.tls.as_ref().map(ServerTls::from)
    }

    /// Whether the control API asks for tokens.
    pub fn has_tokens(&self) -> bool {
        !self.document.admin.tokens.is_empty()
    }

    /// Who is told of what happens.
    pub fn notify(&self) -> Vec<Recipient> {
        self.document.notify.iter().filter_map(notify::recipient).collect()
    }

    /// Who is asked for metrics that Backstop does not count itself.
    pub fn prometheus(&self) -> Option<Prometheus> {
        self.document.prometheus.as_ref().map(prometheus::prometheus)
    }

    pub fn store(&self) -> &Store {
        &self.document.store
    }

    /// As written: relative to the working directory unless absolute.
    pub fn state_dir(&self) -> &Path {
        Path::new(&self.document.state_dir)
    }

    /// What is configured of releases of the service of this name.
    pub fn release(&self, service: &str) -> Option<Settings> {
        let found = self.document.services.iter().find(|found| found.name.0 == service);
        found.map(release::settings)
    }

    /// How drills of the service of this name go.
    pub fn drill(&self, service: &str) -> Option<DrillSettings> {
        self.document.services.iter().find(|found| found.name.0 == service).map(release::drill)
    }

    /// When nothing of a service is to change, as the file has it.
    pub fn freezes(&self, service: &str) -> Vec<Freeze> {
        let found = self.document.services.iter().find(|found| found.name.0 == service);
        found.map(release::freezes).unwrap_or_default()
    }

    /// A share as it is written, such as `5%`, in buckets.
    ///
    /// # Errors
    ///
    /// What it should be.
    pub fn buckets(text: &str) -> Result<u32, &'static str> {
        let share = <units::Percent as units::Unit>::parse(text).map_err(|complaint| complaint.expected)?;
        Some(release::buckets(share)).filter(|buckets| *buckets > 0).ok_or("at least `0.001%`")
    }

    /// What the file calls the stable version of a service: its first one, if it does not say.
    pub fn stable(&self, service: &str) -> Option<String> {
        let found = self.document.services.iter().find(|found| found.name.0 == service)?;
        let stable = found.stable.as_ref().or_else(|| Some(&found.versions.first()?.name))?;
        Some(stable.0.clone())
    }

    /// Names of the services.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.document.services.iter().map(|service| service.name.0.as_str())
    }

    /// A service in a few digits, to say later what has been changed.
    pub fn outline(&self, service: &str) -> Option<Outline> {
        let index = self.document.services.iter().position(|found| found.name.0 == service)?;
        Some(Outline::of(&self.document.services[index], self.raw.services().get(index)))
    }

    /// The same with the changes of `intent` in it.
    pub fn outline_with(&self, intent: &Intent, service: &str) -> Option<Outline> {
        let document = intent.merged(&self.document);
        let found = document.services.iter().find(|found| found.name.0 == service)?;
        Some(Outline::of(found, None))
    }

    /// Whether it has this endpoint, without run-time changes.
    pub fn has_endpoint(&self, place: &Place) -> bool {
        intent::endpoints_of(&self.document).any(|(other, _)| other == *place)
    }

    /// Names of a service's versions.
    pub fn versions(&self, service: &str) -> Vec<String> {
        let found = self.document.services.iter().find(|found| found.name.0 == service);
        let versions = found.into_iter().flat_map(|service| &service.versions);
        versions.map(|version| version.name.0.clone()).collect()
    }

    /// Whether it is known what the answers of a version cost.
    pub fn has_price(&self, service: &str, version: &str) -> bool {
        let found = self.document.services.iter().filter(|found| found.name.0 == service);
        let mut versions = found.flat_map(|found| &found.versions);
        versions.any(|found| found.name.0 == version && found.price.is_some())
    }

    /// The same with the versions in it that were registered at run time, and with what is known of their files.
    pub(crate) fn with_versions(mut self, intent: &Intent) -> Self {
        let with = &mut self;
        for (service, version, definition) in intent.versions_for(&with.document) {
            let name = with.document.services[service].name.0.clone();
            with.registered.insert((name, version.name.0.clone()));
            with.document.services[service].versions.push(version);
            with.raw.push_version(service, definition);
        }
        let artifacts = intent.versions().iter();
        let key = |it: &VersionIntent| (it.service.clone(), it.name.clone());
        with.artifacts.extend(artifacts.filter_map(|it| Some((key(it), it.artifacts.clone()?))));
        self
    }

    /// Whether a version is served as somebody has registered it.
    pub fn is_registered(&self, service: &str, version: &str) -> bool {
        self.registered.contains(&(service.to_owned(), version.to_owned()))
    }

    /// A version as it was written: with `${NAME}` where the environment is filled in, and without keys in clear.
    pub fn written(&self, service: &str, version: &str) -> Option<Written> {
        let index = self.document.services.iter().position(|found| found.name.0 == service)?;
        let versions = &self.document.services[index].versions;
        let position = versions.iter().position(|found| found.name.0 == version)?;
        Some(Written::of(self.raw.services().get(index)?["versions"].get(position)?.clone()))
    }

    /// What sends requests to a version besides releases, if anything: `a rule` or `the shadow`.
    pub fn sends_to(&self, service: &str, version: &str) -> Option<&'static str> {
        let service = self.document.services.iter().find(|found| found.name.0 == service)?;
        if service.rules.iter().any(|rule| rule.version.0 == version) {
            return Some("a rule");
        }
        service.shadow.as_ref().filter(|shadow| shadow.to.0 == version).map(|_| "the shadow")
    }

    /// What a version is, in a few digits: the same as long as nothing of its definition and of its files has been
    /// changed. Secrets are left out.
    pub fn version_digest(&self, service: &str, version: &str) -> Option<String> {
        let found = self.document.services.iter().find(|found| found.name.0 == service)?;
        let artifacts = self.artifacts.get(&(service.to_owned(), version.to_owned()));
        let mut version = found.versions.iter().find(|found| found.name.0 == version)?.clone();
        // The same by another name is the same.
        version.name.0.clear();
        let mut text = serde_json::to_string(&version).unwrap_or_default();
        text.extend(artifacts.map(|digest| format!("\nartifacts {digest}")));
        Some(digest(&text).0.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Everything that is in force: the file with its defaults filled in and the run-time changes of `intent`, in
    /// the form of the file. Secrets are left out.
    pub fn effective(&self, intent: &Intent) -> Value {
        let mut document = intent.merged(&self.document);
        for service in &mut document.services {
            service.models.get_or_insert_with(|| vec![service.name.0.clone()]);
            service.stable = service.stable.take().or_else(|| Some(service.versions.first()?.name.clone()));
        }
        // A key that is not given and has no default has nothing to show.
        fn without_nulls(value: &mut Value) {
            match value {
                Value::Object(map) => {
                    map.retain(|_, value| !value.is_null());
                    map.values_mut().for_each(without_nulls);
                }
                Value::Array(items) => items.iter_mut().for_each(without_nulls),
                _ => {}
            }
        }
        let mut value = serde_json::to_value(&document).unwrap_or_default();
        without_nulls(&mut value);
        value
    }
}

impl From<&types::ServerTls> for ServerTls {
    fn from(tls: &types::ServerTls) -> Self {
        Self { cert: (&tls.cert).into(), key: (&tls.key).into() }
    }
}

/// Reads a file, filling in the environment of this process.
///
/// # Errors
///
/// Everything that is wrong with the file, or why it can't be read.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let file = path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than allowed is enough to know.
    File::open(path)
        .and_then(|opened| opened.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(&file, &error))?;
    match String::from_utf8(bytes) {
        Ok(text) => parse(&text, &file, &|name| std::env::var(name).ok()),
        Err(error) => Err(not_utf8(&file, &error).into()),
    }
}

/// Reads a text; `file` is only named in problems, `env` gives the values of environment variables.
///
/// # Errors
///
/// Everything that is wrong with the text.
pub fn parse(text: &str, file: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Problems> {
    if text.len() as u64 > MOST_BYTES {
        let message = format!("the file is larger than {} MiB", MOST_BYTES >> 20);
        return Err(Problem::of_file(file, message).into());
    }
    read_text(text, file, env)
}

fn read_text(text: &str, file: &str, env: &env::Env<'_>) -> Result<Config, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut problems = Vec::new();
    let (mut value, mut raw) = (None, None);
    if let Some(root) = source::read(text, file, env, &mut problems) {
        value = check::check(&root, schema::Schema::shared(), file, &mut problems);
        validate::validate(&root, file, &mut problems);
        raw = Some(raw::Raw::of(&root));
    }
    match value.map(serde_json::from_value::<types::Document>).zip(raw) {
        Some((Ok(document), raw)) if problems.is_empty() => {
            Ok(Config { document, raw, artifacts: BTreeMap::new(), registered: BTreeSet::new() })
        }
        // The error's text may hold values from the environment; that there is one at all is our mistake.
        _ if problems.is_empty() => {
            let message = "the check let something through that can't be used".to_owned();
            let hint = "this is a fault of Backstop; please report it with the file".to_owned();
            Err(Problem::of_file(file, message).hint(Some(hint)).into())
        }
        _ => Err(Problems::new(problems, text)),
    }
}

/// Something wrong with the value of `key`, such as `services[0].name`, that shows only when it is used. It is looked up
/// in the file, for its place.
pub fn problem_at(path: &Path, key: &str, message: String, hint: Option<&str>) -> Problem {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let root = source::read(text, &file, &|name| std::env::var(name).ok(), &mut Vec::new());
    let found = root.as_deref().and_then(|root| root.find(key));
    // It may have been changed meanwhile.
    let at = found.map_or(problem::Position { line: 0, column: 0 }, |node| node.at);
    let problem = Problem::new(&file, at, key.to_owned(), message).hint(hint.map(str::to_owned));
    if let Some(node) = found { problem.value(node.shown()) } else { problem }
}

/// The table that a configuration and the run-time changes to it describe, as its `revision`.
pub fn compile(config: &Config, intent: &Intent, revision: u64) -> TableSpec {
    compile::table(&intent.merged(&config.document), revision)
}

/// Where to fetch something: the target of an HTTP URL and its path with the query; `${NAME}` is filled in from the
/// environment of this process.
///
/// # Errors
///
/// What is wrong with it, without what the environment filled in.
pub fn fetch_url(text: &str) -> Result<(Target, String), String> {
    let filled = match env::expand(text, &|name| std::env::var(name).ok()) {
        Ok(env::Expansion::AsWritten) => text.to_owned(),
        Ok(env::Expansion::Unescaped(filled) | env::Expansion::Filled(filled)) => filled,
        Err(faults) => {
            let unset = faults.into_iter().find_map(|fault| match fault {
                env::Fault::Unset(name) => Some(format!("environment variable `{name}` is not set")),
                _ => None,
            });
            return Err(unset.unwrap_or_else(|| format!("`{text}` has a `${{…}}` that can't be filled in")));
        }
    };
    let url = <units::NotifyUrl as units::Unit>::parse(&filled);
    let url = url.map_err(|complaint| {
        format!("`{text}` {}; expected one such as `https://models.example/v2.gguf`", complaint.what)
    })?;
    Ok((url.target, url.path))
}

/// What a key or token is recognised by.
pub fn digest(secret: &str) -> Digest {
    compile::digest(secret)
}

/// What `keys[].hash` says of a key.
///
/// # Errors
///
/// What is wrong with the key: it is sent as a header's value.
pub fn key_hash(key: &str) -> Result<String, &'static str> {
    <units::Secret as units::Unit>::parse(key).map_err(|complaint| complaint.what)?;
    let digits: String = digest(key).0.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{digits}"))
}

/// Whether `text` may be the name of something.
///
/// # Errors
///
/// What a name looks like.
pub fn check_name(text: &str) -> Result<(), String> {
    <units::Name as units::Unit>::parse(text)
        .map(drop)
        .map_err(|complaint| format!("`{text}` {}; expected {}", complaint.what, complaint.expected))
}

/// The JSON schema of the file, for editors. Durations and the like have a `format` of their own.
pub fn schema() -> Value {
    schema::Schema::new().into_public()
}

/// The reference of all keys as Markdown: `docs/config.md`.
pub fn reference() -> String {
    reference::markdown(&schema::Schema::new())
}

fn unreadable(file: &str, error: &io::Error) -> Problem {
    let (message, hint) = match error.kind() {
        io::ErrorKind::NotFound => {
            ("no such file", Some("check the path; it is relative to the working directory"))
        }
        io::ErrorKind::PermissionDenied => ("no permission to read the file", None),
        io::ErrorKind::IsADirectory => ("this is a directory", Some("name the file in it")),
        _ => return Problem::of_file(file, format!("can't be read: {error}")),
    };
    Problem::of_file(file, message.to_owned()).hint(hint.map(str::to_owned))
}

fn not_utf8(file: &str, error: &std::string::FromUtf8Error) -> Problem {
    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let valid = String::from_utf8_lossy(valid);
    let line = valid.matches('\n').count() + 1;
    let column = valid.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    let at = problem::Position { line, column };
    Problem::new(file, at, String::new(), "not UTF-8".to_owned()).expected("text in UTF-8")
}
