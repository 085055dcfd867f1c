//! Opens the file of a store, or makes it.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::fault::Fault;
use super::schema;

/// How long another process's lock is waited for.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Values may hold keys of model servers.
pub(crate) const ONLY_US: u32 = 0o600;

/// Opens `path`; makes it, and its directory, if it is not there.
pub(crate) fn open(path: &Path, busy: Duration) -> Result<Connection, Fault> {
    make(path).map_err(|error| Fault::Unusable(error.to_string()))?;
    let mut connection = connect(path, busy)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        let reason = "its file system can't share a log between processes\nhint: put it on a local disk";
        return Err(Fault::Unusable(reason.to_owned()));
    }
    only_for_us(path);
    check(&connection)?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Opens `path` as it is, to look at it.
pub(crate) fn open_existing(path: &Path, busy: Duration) -> Result<Connection, Fault> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(Fault::Unusable("it is not a file".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Fault::Unusable("there is no such file".to_owned()));
        }
        Err(error) => return Err(Fault::Unusable(error.to_string())),
    }
    let connection = connect(path, busy)?;
    connection.pragma_update(None, "query_only", true)?;
    if schema::version(&connection)? == 0 {
        return Err(Fault::Unusable("nothing has been kept in it yet".to_owned()));
    }
    Ok(connection)
}

/// A store that ends with the process.
pub(crate) fn in_memory() -> Result<Connection, Fault> {
    let mut connection = Connection::open_in_memory()?;
    connection.pragma_update(None, "recursive_triggers", true)?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Whether the file is whole.
pub(crate) fn check(connection: &Connection) -> Result<(), Fault> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(Fault::Damaged(found.replace('\n', " "))) }
}

fn connect(path: &Path, busy: Duration) -> Result<Connection, Fault> {
    // A path is a path, whatever it looks like: no URIs.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(busy)?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "fullfsync", true)?;
    // Otherwise `INSERT OR REPLACE` would delete history without a trigger.
    connection.pragma_update(None, "recursive_triggers", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Makes an empty file, which is an empty database. One that is there is left closed: to open and close it would give
/// up the locks that this process may have on it.
fn make(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    if !directory.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let above = directory.parent().filter(|above| !above.as_os_str().is_empty());
        sync_directory(above.unwrap_or_else(|| Path::new(".")))?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(ONLY_US).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) => file.sync_all()?,
    }
    sync_directory(directory)
}

pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The files may have been made by something else, such as a copy put back.
fn only_for_us(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = PathBuf::from(name);
        let Ok(found) = std::fs::metadata(&file) else { continue };
        if found.permissions().mode() & 0o077 == 0 {
            continue;
        }
        if let Err(error) = std::fs::set_permissions(&file, Permissions::from_mode(ONLY_US)) {
            tracing::warn!(%error, path = %file.display(), "others can read the store, which may hold keys");
        }
    }
}
