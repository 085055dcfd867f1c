//! [`Storage`]: where the files of versions are, `state_dir/artifacts/SERVICE/VERSION/…`.
//!
//! A version's directory is there whole or not at all: files are put together under another name, written through to
//! the disk, and renamed. `current` and `previous` beside the versions are links to two of them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use super::hash;
use super::jobs::Job;
use super::record::{Fault, File, Wrong};
use crate::crash;

/// The link to the files of the version marked as production.
pub(crate) const CURRENT: &str = "current";
pub(crate) const PREVIOUS: &str = "previous";
/// Holds what is not whole yet, and what is being removed. No service has a directory of this name.
const UNFINISHED: &str = ".unfinished";
/// In bytes: what file systems take as a name.
const LONGEST_NAME: usize = 255;

#[derive(Debug, Clone)]
pub(crate) struct Storage {
    root: PathBuf,
}

impl Storage {
    pub(crate) fn in_dir(state_dir: &Path) -> Self {
        let root = state_dir.join("artifacts");
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    fn service(&self, service: &str) -> PathBuf {
        self.root.join(directory_name(service))
    }

    /// Where the files of a version are.
    pub(crate) fn version(&self, service: &str, version: &str) -> PathBuf {
        self.service(service).join(directory_name(version))
    }

    /// The path that always leads to the files of the marked version.
    pub(crate) fn current(&self, service: &str) -> PathBuf {
        self.service(service).join(CURRENT)
    }

    /// A directory to put files together in, for what is to become `version`.
    pub(crate) fn unfinished(&self) -> io::Result<PathBuf> {
        let path = self.root.join(UNFINISHED).join(format!("{:016x}", rand::random::<u64>()));
        make_directory(&path)?;
        Ok(path)
    }

    /// Removes what a process has left unfinished.
    pub(crate) fn clear(&self) -> io::Result<()> {
        remove(&self.root.join(UNFINISHED))
    }

    /// Makes `unfinished`, which is written through to the disk, the directory of a version.
    pub(crate) fn put(&self, unfinished: &Path, service: &str, version: &str) -> io::Result<()> {
        let place = self.version(service, version);
        make_directory(&self.service(service))?;
        let old = self.set_aside(service, version)?;
        crash::point("before-artifacts");
        fs::rename(unfinished, &place)?;
        sync(&self.service(service))?;
        crash::point("after-artifacts");
        old.map_or(Ok(()), |old| remove(&old))
    }

    /// Puts the directory of a version where it is removed, at the next start at the latest. Gives where that is, if there
    /// was one.
    pub(crate) fn set_aside(&self, service: &str, version: &str) -> io::Result<Option<PathBuf>> {
        let place = self.version(service, version);
        if fs::symlink_metadata(&place).is_err() {
            return Ok(None);
        }
        let gone = self.unfinished()?;
        fs::rename(&place, gone.join("gone"))?;
        sync(&self.service(service))?;
        Ok(Some(gone))
    }

    /// Makes one of the links of a service lead to a version, or takes it away. It leads somewhere at every moment.
    pub(crate) fn link(&self, service: &str, link: &str, version: Option<&str>) -> io::Result<()> {
        let (directory, path) = (self.service(service), self.service(service).join(link));
        let wanted = version.map(directory_name);
        let is = fs::read_link(&path).ok();
        if is.as_deref() == wanted.as_deref().map(Path::new) {
            return Ok(());
        }
        match wanted {
            Some(wanted) => {
                make_directory(&directory)?;
                let new = directory.join(format!(".{link}.new"));
                remove(&new)?;
                symlink(wanted, &new)?;
                fs::rename(&new, &path)?;
            }
            None => remove(&path)?,
        }
        sync(&directory)
    }

    /// The first file that is not there as far as one can see without reading it.
    pub(crate) fn vanished<'f>(&self, service: &str, version: &str, files: &'f [File]) -> Option<&'f str> {
        let place = self.version(service, version);
        let is_there = |file: &File| {
            fs::symlink_metadata(place.join(&file.path))
                .is_ok_and(|found| found.is_file() && found.len() == file.bytes)
        };
        files.iter().find(|file| !is_there(file)).map(|file| file.path.as_str())
    }

    /// Reads all files of a version again. Gives what is not as it was copied.
    pub(crate) fn verify(
        &self,
        service: &str,
        version: &str,
        files: &[File],
        job: &Job,
    ) -> io::Result<Vec<Fault>> {
        let place = self.version(service, version);
        let mut faults = Vec::new();
        for file in files {
            let found = match fs::symlink_metadata(place.join(&file.path)) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    faults.push(Fault { path: file.path.clone(), what: Wrong::Missing });
                    continue;
                }
                Err(error) => return Err(error),
            };
            let same = found.is_file() && found.len() == file.bytes && {
                let read = fs::File::open(place.join(&file.path))?;
                hash::of(read, io::sink(), job)?.1 == file.digest
            };
            if !same {
                faults.push(Fault { path: file.path.clone(), what: Wrong::Changed });
            }
        }
        let mut there = Vec::new();
        if !files.is_empty() || place.exists() {
            all_below(&place, "", &mut there)?;
        }
        let known = |path: &String| files.iter().any(|file| file.path == *path);
        let extra = there.into_iter().filter(|path| !known(path));
        faults.extend(extra.map(|path| Fault { path, what: Wrong::Extra }));
        Ok(faults)
    }
}

/// Whether the name can be that of a directory.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if directory_name(name).len() <= LONGEST_NAME {
        return Ok(());
    }
    Err(format!("`{name}` is too long to be the name of a directory"))
}

/// A name as one part of a path: never `..`, hidden, or one of our links.
pub(crate) fn directory_name(name: &str) -> String {
    let mut out = String::new();
    let ours = name == CURRENT || name == PREVIOUS;
    for (index, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"-_+@:=".contains(&byte) || (byte == b'.' && index > 0);
        if plain && !(ours && index == 0) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

/// With all above it, written through to the disk.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_directory(above)?;
        match DirBuilder::new().mode(0o755).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync(above)?,
        }
    }
    Ok(())
}

pub(super) fn sync(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// Whatever it is, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Everything below `directory` that is not a directory itself, by its path.
fn all_below(directory: &Path, prefix: &str, found: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            all_below(&entry.path(), &format!("{path}/"), found)?;
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_lead_elsewhere() {
        for (name, directory) in [
            ("v1.2-rc_3", "v1.2-rc_3"),
            ("20261122T191500Z", "20261122T191500Z"),
            ("a/b", "a%2Fb"),
            ("..", "%2E."),
            (".unfinished", "%2Eunfinished"),
            ("100%", "100%25"),
            ("current", "%63urrent"),
            ("previous", "%70revious"),
            ("currently", "currently"),
        ] {
            assert_eq!(directory_name(name), directory);
        }
        assert!(check_name(&"v".repeat(128)).is_ok());
        assert!(check_name(&"/".repeat(128)).is_err());
    }
}
