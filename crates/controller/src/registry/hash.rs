//! Digests of files and of lists of files.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::jobs::Job;
use super::record::File;

/// Read at a time.
const PIECE: usize = 1 << 20;

/// Copies `from` to `to`; gives how many bytes that were and their SHA-256 in hexadecimal digits.
pub(super) fn of(mut from: impl Read, mut to: impl Write, job: &Job) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        job.go_on()?;
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hex(&hasher.finalize()))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        bytes += read as u64;
        job.advance(read as u64);
    }
}

/// Of all files of a version: of its content if it is one file that was named as such, else of the list of files, each as
/// `path NUL size NUL digest LF`, in the order of their paths' bytes.
pub(super) fn of_all(files: &[File], is_one_file: bool) -> String {
    if let ([file], true) = (files, is_one_file) {
        return file.digest.clone();
    }
    let mut files: Vec<&File> = files.iter().collect();
    files.sort_by(|one, other| one.path.as_bytes().cmp(other.path.as_bytes()));
    let mut hasher = Sha256::new();
    for File { path, bytes, digest } in files {
        hasher.update(format!("{path}\0{bytes}\0{digest}\n"));
    }
    hex(&hasher.finalize())
}

/// `sha256:` and 64 hexadecimal digits; gives these in lower case.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_lowercase());
    }
    Err(format!("`{text}` is not a digest; expected `sha256:` and 64 hexadecimal digits"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
