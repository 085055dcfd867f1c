//! Copies the files of a version to where they are put together.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use super::fetch::{Fetched, Fetcher};
use super::hash;
use super::jobs::Job;
use super::record;
use super::source::{From, Plan, Wanted, told};
use super::storage::{Storage, make_directory, remove, sync};

/// What was copied.
pub(super) struct Copied {
    pub(super) files: Vec<record::File>,
    pub(super) digest: String,
}

/// Copies what `sources` name into the directory of a version, whole or not at all.
///
/// # Errors
///
/// Why that can't be done. Then nothing of it is left.
pub(super) fn copy(
    storage: &Storage,
    fetcher: &Fetcher,
    (service, version): (&str, &str),
    sources: &[String],
    expected: Option<&str>,
    job: &Job,
) -> Result<Copied, String> {
    let plan = Plan::of(sources)?;
    job.expect(plan.bytes());
    let unfinished = storage.unfinished().map_err(|error| format!("`state_dir`: {}", told(&error)))?;
    let done = put_together(&plan, &unfinished, fetcher, job).and_then(|files| {
        let digest = hash::of_all(&files, plan.is_one_file);
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(format!("its digest is sha256:{digest}, not sha256:{expected}"));
        }
        let put = storage.put(&unfinished, service, version);
        put.map_err(|error| format!("`state_dir`: {}", told(&error)))?;
        Ok(Copied { files, digest })
    });
    if done.is_err() {
        // Removed at the next start, if not now.
        drop(remove(&unfinished));
    }
    done
}

fn put_together(
    plan: &Plan,
    directory: &Path,
    fetcher: &Fetcher,
    job: &Job,
) -> Result<Vec<record::File>, String> {
    has_room(directory, plan.bytes())?;
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    for file in &plan.files {
        let place = directory.join(&file.to);
        let above = place.parent().unwrap_or(directory).to_owned();
        if !directories.contains(&above) {
            make_directory(&above).map_err(|error| format!("`state_dir`: {}", told(&error)))?;
            directories.push(above);
        }
        files.push(one(file, &place, fetcher, job)?);
    }
    directories
        .iter()
        .try_for_each(|it| sync(it))
        .map_err(|error| format!("`state_dir`: {}", told(&error)))?;
    Ok(files)
}

fn one(file: &Wanted, place: &Path, fetcher: &Fetcher, job: &Job) -> Result<record::File, String> {
    let to = OpenOptions::new().write(true).create_new(true).mode(0o644).open(place);
    let to = to.map_err(|error| format!("`state_dir`: {}", told(&error)))?;
    let (bytes, digest) = match &file.from {
        From::Path { path, bytes } => from_path(path, *bytes, &to, job)?,
        From::Url(url) => {
            let Fetched { body, length } = fetcher.fetch(url)?;
            if let (Some(length), Some(above)) = (length, place.parent()) {
                job.expect(job.progress().total + length);
                has_room(above, length)?;
            }
            let copied = hash::of(body, &to, job).map_err(|error| format!("`{url}`: {}", told(&error)))?;
            if let Some(length) = length.filter(|length| *length != copied.0) {
                return Err(format!("`{url}`: {} bytes came instead of {length}", copied.0));
            }
            copied
        }
    };
    to.sync_all().map_err(|error| format!("`state_dir`: {}", told(&error)))?;
    Ok(record::File { path: file.to.clone(), bytes, digest })
}

/// A file that is written meanwhile would be copied in part as it was and in part as it is.
fn from_path(path: &PathBuf, bytes: u64, to: &File, job: &Job) -> Result<(u64, String), String> {
    let failed = |error: io::Error| format!("`{}`: {}", path.display(), told(&error));
    // Whatever has taken its place meanwhile must not hold us up.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("`{}` is no longer a file", path.display()));
    }
    let from = File::open(path).map_err(failed)?;
    let modified = |from: &File| from.metadata().and_then(|found| found.modified());
    let before = modified(&from).map_err(failed)?;
    let copied = hash::of((&from).take(bytes + 1), to, job).map_err(failed)?;
    if copied.0 != bytes || modified(&from).map_err(failed)? != before {
        return Err(format!("`{}` was changed while it was copied", path.display()));
    }
    Ok(copied)
}

/// So that a copy that can't succeed is not begun.
fn has_room(directory: &Path, bytes: u64) -> Result<(), String> {
    // What can't be asked is found out.
    let Ok(disk) = statvfs(directory) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    Err(format!("the disk of `state_dir` has {free} bytes free, and {bytes} are needed"))
}
