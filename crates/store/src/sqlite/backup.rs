//! A copy of a store that is in use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::fault::Fault;
use super::open::{ONLY_US, check, sync_directory};

/// Copies everything as it is at one moment to a new file, which has its name only when it is whole and on disk.
pub(crate) fn copy(from: &Connection, to: &Path) -> Result<(), Fault> {
    let failed = |error: io::Error| Fault::Unusable(format!("the backup `{}`: {error}", to.display()));
    // Taken at once, so that nothing that is there is ever replaced.
    new_file(to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Fault::Unusable(format!(
            "the backup `{}` exists already\nhint: name another file; none is replaced",
            to.display()
        )),
        _ => failed(error),
    })?;
    let partial = beside(to);
    let copied = fill(from, &partial, to);
    if copied.is_err() {
        // An empty file and half a copy are of no use to anybody. That one of them can't be removed changes nothing.
        let _ = (std::fs::remove_file(&partial), std::fs::remove_file(to));
    }
    copied
}

fn fill(from: &Connection, partial: &Path, to: &Path) -> Result<(), Fault> {
    let failed = |error: io::Error| Fault::Unusable(format!("the backup `{}`: {error}", to.display()));
    new_file(partial).map_err(failed)?;
    let mut copy = Connection::open(partial)?;
    {
        // All in one step: what is read is of one moment, and nobody who writes has to wait for it.
        let backup = Backup::new(from, &mut copy)?;
        match backup.step(-1)? {
            StepResult::Done => {}
            _ => return Err(Fault::Unusable("it is locked; nothing has been copied".to_owned())),
        }
    }
    check(&copy)?;
    copy.close().map_err(|(_, error)| error)?;
    File::open(partial).and_then(|file| file.sync_all()).map_err(failed)?;
    std::fs::rename(partial, to).map_err(failed)?;
    let directory = to.parent().filter(|path| !path.as_os_str().is_empty());
    sync_directory(directory.unwrap_or_else(|| Path::new("."))).map_err(failed)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(ONLY_US).open(path)
}

fn beside(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}
