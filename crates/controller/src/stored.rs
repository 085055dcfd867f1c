//! Files of state in the state directory: the run-time changes (`intent.json`), the routes, and both while they change
//! together (`restore.json`).
//!
//! At every moment, even if the machine loses its power, a file is either the old or the new one, whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backstop_config::Intent;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::crash;
use crate::ledger::Ledger;
use crate::routes::{Routes, RoutesFile};

/// Definitions of endpoints may hold keys.
const ONLY_US: u32 = 0o600;

/// Why a file of state can't be read. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    #[error("can't read {what} in `{path}`: {reason}")]
    Unreadable { what: &'static str, path: String, reason: String },
    #[error(
        "{what} in `{path}` are damaged: {reason}\nhint: put back a copy of the file, or move it aside \
         (`mv {path} {path}.damaged`) to {without}"
    )]
    Damaged { what: &'static str, path: String, reason: String, without: &'static str },
    #[error(
        "{what} in `{path}` were written by a newer Backstop (format {found}, this one knows {known})\n\
         hint: use that version again, or move the file aside (`mv {path} {path}.newer`) to {without}"
    )]
    Newer { what: &'static str, path: String, found: u32, known: u32, without: &'static str },
}

/// How messages speak of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    /// What is in it, in the plural.
    pub(crate) what: &'static str,
    /// What it means to be without it, after "to".
    pub(crate) without: &'static str,
}

/// A file of JSON with the number of its format.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    /// Raised when an older Backstop would misread the file.
    format: u32,
    about: About,
}

#[derive(Serialize, Deserialize)]
struct Formatted<T> {
    format: u32,
    #[serde(flatten)]
    content: T,
}

impl StateFile {
    pub(crate) fn new(path: PathBuf, format: u32, about: About) -> Self {
        Self { path, format, about }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds; `None` if there is no file.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, StateFileError> {
        let (path, About { what, without }) = (|| self.path.display().to_string(), self.about);
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(StateFileError::Unreadable { what, path: path(), reason: error.to_string() });
            }
        };
        // The format first: the rest may look different in another one.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let damaged = |error: serde_json::Error| StateFileError::Damaged {
            what,
            path: path(),
            reason: told(&error),
            without,
        };
        let Head { format: found } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if found > self.format {
            return Err(StateFileError::Newer { what, path: path(), found, known: self.format, without });
        }
        let formatted: Formatted<T> = serde_json::from_slice(&bytes).map_err(damaged)?;
        Ok(Some(formatted.content))
    }

    /// Puts `content` in place of what there is.
    pub(crate) fn write<T: Serialize>(&self, content: &T) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(&Formatted { format: self.format, content })?;
        text.push(b'\n');
        replace(&self.path, &text)
    }
}

/// What `intent.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Of the table that came of the last change.
    pub(crate) revision: u64,
    #[serde(flatten)]
    pub(crate) intent: Intent,
    /// What was done and is not in the store yet.
    #[serde(default)]
    pub(crate) ledger: Ledger,
}

/// The run-time changes of endpoints on disk.
#[derive(Debug)]
pub(crate) struct IntentFile(StateFile);

impl IntentFile {
    pub(crate) fn in_dir(state_dir: &Path) -> Self {
        const ABOUT: About = About {
            what: "the run-time changes",
            without: "go on with what the configuration says; endpoints that were added, drained, isolated or removed \
                      at run time are then as in the configuration",
        };
        Self(StateFile::new(state_dir.join("intent.json"), 1, ABOUT))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// What is stored; nothing if there is no file.
    pub(crate) fn read(&self) -> Result<Stored, StateFileError> {
        Ok(self.0.read()?.unwrap_or_default())
    }

    pub(crate) fn write(&self, stored: &Stored) -> io::Result<()> {
        self.0.write(stored)
    }
}

/// Run-time changes and routes that change together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Both {
    pub(crate) intent: Stored,
    pub(crate) routes: Routes,
}

/// Both files of state as they are to become: there only while they change. Whoever finds it takes what is in it.
#[derive(Debug)]
pub(crate) struct BothFile(StateFile);

impl BothFile {
    pub(crate) fn in_dir(state_dir: &Path) -> Self {
        const ABOUT: About = About {
            what: "the changes of a restore",
            without: "go on with what there was before the restore, or with half of it",
        };
        Self(StateFile::new(state_dir.join("restore.json"), 1, ABOUT))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn read(&self) -> Result<Option<Both>, StateFileError> {
        self.0.read()
    }

    /// Puts both in place of what there is, or neither.
    pub(crate) fn write(&self, both: &Both, intent: &IntentFile, routes: &RoutesFile) -> io::Result<()> {
        crash::point("before-restore");
        self.0.write(both)?;
        crash::point("restore-noted");
        if let Err(error) = intent.write(&both.intent) {
            // Nothing has been changed yet, and nothing is to be completed.
            std::fs::remove_file(self.path())?;
            return Err(error);
        }
        crash::point("restore-half");
        routes.write(&both.routes)?;
        crash::point("restore-whole");
        std::fs::remove_file(self.path())?;
        directory_of(self.path())?.sync_all()?;
        crash::point("after-restore");
        Ok(())
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
    crash::point("before-rename");
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
