//! What is kept of a version in the store.

use std::collections::BTreeMap;

use backstop_config::Written;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// All that is known of a version besides how it is served.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) service: String,
    pub(crate) name: String,
    /// As it was registered, or as the file had it when it became stable.
    pub(crate) written: Option<Written>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) description: String,
    pub(crate) state: State,
    /// Why it failed or is damaged.
    pub(crate) reason: String,
    pub(crate) artifacts: Artifacts,
    /// It is to be marked as production when its files are there.
    pub(crate) production: bool,
    /// Milliseconds since the Unix epoch, like all points in time here.
    pub(crate) created_at: u64,
    pub(crate) created_by: String,
    /// When it became the stable one, the last time last.
    pub(crate) stable_at: Vec<u64>,
    pub(crate) verified_at: Option<u64>,
    /// What the last look at its files has found.
    pub(crate) faults: Vec<Fault>,
}

/// The files of a version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Artifacts {
    /// Where they come from, as it was given.
    pub(crate) sources: Vec<String>,
    /// Who gave them.
    pub(crate) by: String,
    /// What their digest has to be.
    pub(crate) expected: Option<String>,
    /// SHA-256 in hexadecimal digits; stays when the files are gone, since the version is what it was.
    pub(crate) digest: Option<String>,
    /// What is in managed storage, by path.
    pub(crate) files: Vec<File>,
}

/// A file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VersionFile)]
pub(crate) struct File {
    /// Within the version's directory.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// SHA-256, in hexadecimal digits.
    pub(crate) digest: String,
}

/// What is wrong with a file in managed storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VersionFault)]
pub(crate) struct Fault {
    pub(crate) path: String,
    pub(crate) what: Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = VersionFaultKind)]
pub(crate) enum Wrong {
    Missing,
    Changed,
    /// Nothing of it was registered.
    Extra,
}

/// Whether a version is whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = VersionState)]
pub(crate) enum State {
    /// All that belongs to it is there.
    #[default]
    Ready,
    /// Its files are being copied.
    Copying,
    /// Its files could not be copied; nothing of them is there.
    Failed,
    /// Its files are not as they were copied.
    Damaged,
    /// Its files were taken away.
    Pruned,
}

impl Record {
    pub(crate) fn new(service: &str, name: &str, at: u64, by: &str) -> Self {
        let (service, name) = (service.to_owned(), name.to_owned());
        Self { service, name, created_at: at, created_by: by.to_owned(), ..Self::default() }
    }

    /// It had files, which are to be there: the same ones, if they are copied again.
    pub(crate) fn is_to_be_mended(&self) -> bool {
        matches!(self.state, State::Damaged | State::Failed) && self.artifacts.digest.is_some()
    }

    /// Its files are in managed storage, as far as is known.
    pub(crate) fn has_files(&self) -> bool {
        self.state == State::Ready && !self.artifacts.files.is_empty()
    }
}

impl Artifacts {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Of one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Marks {
    /// The version whose being stable was noted last, and its digest.
    pub(crate) stable: Option<(String, String)>,
    /// Whose files `current` leads to.
    pub(crate) production: Option<String>,
    /// Whose files `current` led to before.
    pub(crate) previous: Option<String>,
}

impl Marks {
    /// Puts `version` in the place of what is marked. Gives whether that is new.
    pub(crate) fn mark(&mut self, version: &str) -> bool {
        if self.production.as_deref() == Some(version) {
            return false;
        }
        self.previous = self.production.replace(version.to_owned());
        true
    }
}
