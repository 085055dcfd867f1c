//! Changes: who wants which, and why one is refused.

use std::fmt;

use backstop_config::{Config, Force, Intent, IntentError, LostKey, Place, Problems, Standing};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::stored::StateFileError;

/// Who asks for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The configuration file has changed.
    File,
    /// SIGHUP.
    Signal,
    /// Somebody on this machine, where there are no tokens.
    Local,
    /// The bearer of the token of this name.
    Token(String),
    /// A release, by what it was told to do.
    Release,
    /// What the configuration wants done from time to time.
    Schedule,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Signal => "signal",
            Self::Local => "local",
            Self::Release => "release",
            Self::Schedule => "schedule",
            Self::Token(name) => name,
        })
    }
}

/// Who changed what to be served last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LastChange {
    /// Name of the token, or `file`, `signal` or `local`.
    pub actor: String,
    pub action: String,
    pub subject: String,
    /// That came of it.
    pub revision: u64,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
}

/// Why a change was not made. Everything is as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("this is revision {revision}, not {expected}{}", since(.last.as_deref()))]
    Conflict { revision: u64, expected: String, last: Option<Box<LastChange>> },
    #[error("{} in `{file}`, so nothing was changed", count(.problems.len(), "problem"))]
    Config { file: String, problems: Problems },
    #[error(transparent)]
    Intent(IntentError),
    #[error("the change could not be kept, so it was not made: {path}: {reason}")]
    NotKept { path: String, reason: String },
    #[error("the gateway can't serve that: {0}")]
    DataPlane(String),
    #[error("nothing was failed back: {0}")]
    NoFailback(String),
    #[error("service `{service}` has a release under way, `{release}`: {what}")]
    Releasing { service: String, release: String, what: &'static str },
    #[error(
        "version `{version}` of service `{service}` was sent back by release `{release}` ({reason}) since the snapshot was taken"
    )]
    SentBack { service: String, version: String, release: String, reason: String },
    #[error(
        "version `{version}` of service `{service}`, stable in the snapshot, has no endpoint that is known to be well"
    )]
    NotReady { service: String, version: String },
    #[error(transparent)]
    LostKey(LostKey),
    #[error("this process has handed over to a new one and follows it")]
    Following,
}

/// Why there is nothing to begin with.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    State(#[from] StateFileError),
    #[error("the configuration can't be served: {0}")]
    DataPlane(String),
    #[error(
        "what was restored can't be served any more:\n{0}\nhint: it holds until the definition of its service in the file is \
         another one; any change there ends it"
    )]
    Restored(Problems),
}

/// A change that was made, or that was there already.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Changed {
    pub(crate) revision: u64,
    pub(crate) place: Place,
    /// It changed something.
    pub(crate) changed: bool,
}

/// A change of one endpoint.
#[derive(Debug, Clone)]
pub(crate) enum EndpointChange {
    Add { service: String, version: Option<String>, definition: Value },
    Set { service: Option<String>, version: Option<String>, url: String, standing: Standing, force: Force },
}

impl EndpointChange {
    pub(crate) fn action(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Set { standing: Standing::Active, .. } => "restore",
            Self::Set { standing: Standing::Draining, .. } => "drain",
            Self::Set { standing: Standing::Isolated, .. } => "isolate",
            Self::Set { standing: Standing::Removed, .. } => "remove",
        }
    }

    /// As far as it was said.
    pub(crate) fn service(&self) -> Option<&str> {
        match self {
            Self::Add { service, .. } => Some(service),
            Self::Set { service, .. } => service.as_deref(),
        }
    }

    pub(crate) fn url(&self) -> &str {
        match self {
            Self::Add { definition, .. } => definition["url"].as_str().unwrap_or_default(),
            Self::Set { url, .. } => url,
        }
    }

    pub(crate) fn make(&self, config: &Config, intent: &mut Intent) -> Result<Place, IntentError> {
        match self {
            Self::Add { service, version, definition } => {
                intent.add(config, service, version.as_deref(), definition)
            }
            Self::Set { service, version, url, standing, force } => {
                intent.set(config, service.as_deref(), version.as_deref(), url, *standing, *force)
            }
        }
    }
}

fn since(last: Option<&LastChange>) -> String {
    last.map(|last| format!(": since then `{}` did `{}` ({})", last.actor, last.action, last.subject))
        .unwrap_or_default()
}

pub(crate) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
