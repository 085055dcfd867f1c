//! The run-time changes on disk: `intent.json` in the state directory.
//!
//! At every moment, even if the machine loses its power, the file is either the old or the new one, whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backstop_config::Intent;
use serde::{Deserialize, Serialize};

/// Raised when an older Backstop would misread the file.
const FORMAT: u32 = 1;
/// Definitions of endpoints may hold keys.
const ONLY_US: u32 = 0o600;

/// Why the run-time changes can't be read. The file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum IntentFileError {
    #[error("can't read the run-time changes in `{path}`: {reason}")]
    Unreadable { path: String, reason: String },
    #[error(
        "the run-time changes in `{path}` are damaged: {reason}\nhint: put back a copy of the file, or move it aside \
         (`mv {path} {path}.damaged`) to go on with what the configuration says; endpoints that were added, drained, \
         isolated or removed at run time are then as in the configuration"
    )]
    Damaged { path: String, reason: String },
    #[error(
        "the run-time changes in `{path}` were written by a newer Backstop (format {found}, this one knows {FORMAT})\n\
         hint: use that version again, or move the file aside (`mv {path} {path}.newer`) to go on with what the \
         configuration says"
    )]
    Newer { path: String, found: u32 },
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    format: u32,
    /// Of the table that came of the last change.
    pub(crate) revision: u64,
    #[serde(flatten)]
    pub(crate) intent: Intent,
}

impl Stored {
    pub(crate) fn new(revision: u64, intent: Intent) -> Self {
        Self { format: FORMAT, revision, intent }
    }
}

#[derive(Debug)]
pub(crate) struct IntentFile {
    path: PathBuf,
}

impl IntentFile {
    pub(crate) fn in_dir(state_dir: &Path) -> Self {
        Self { path: state_dir.join("intent.json") }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is stored; nothing if there is no file.
    pub(crate) fn read(&self) -> Result<Stored, IntentFileError> {
        let path = || self.path.display().to_string();
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Stored::new(0, Intent::default()));
            }
            Err(error) => {
                return Err(IntentFileError::Unreadable { path: path(), reason: error.to_string() });
            }
        };
        // The format first: the rest may look different in another one.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let damaged =
            |error: serde_json::Error| IntentFileError::Damaged { path: path(), reason: told(&error) };
        let Head { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format > FORMAT {
            return Err(IntentFileError::Newer { path: path(), found: format });
        }
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    /// Puts `stored` in place of what there is.
    pub(crate) fn write(&self, stored: &Stored) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(stored)?;
        text.push(b'\n');
        replace(&self.path, &text)
    }
}

/// Puts `text` in place of the file of state at `path`, which is either the old or the new one at every moment.
///
/// # Errors
///
/// It could not be written; then the old one is there.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = directory_of(path)?;
    let new = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(ONLY_US).open(&new)?;
    // The mode counts only for a new file; this one may be left over.
    file.set_permissions(std::fs::Permissions::from_mode(ONLY_US))?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    directory.sync_all()
}

/// The state directory, made if it is not there.
fn directory_of(path: &Path) -> io::Result<File> {
    let path = path.parent().filter(|path| !path.as_os_str().is_empty());
    let path = path.unwrap_or_else(|| Path::new("."));
    if !path.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
    }
    File::open(path)
}

/// Where the mistake is, without what stands there: it may be a key.
fn told(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Io => "it can't be read",
        serde_json::error::Category::Syntax => "this is not JSON",
        serde_json::error::Category::Data => "this is not what Backstop writes",
        serde_json::error::Category::Eof => "the end is missing",
    };
    format!("{kind}, line {} column {}", error.line(), error.column())
}
