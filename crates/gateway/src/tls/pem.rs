use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What is wrong with a file of certificates or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}`: {problem}", path.display())]
pub struct PemError {
    pub path: PathBuf,
    /// Without full stop.
    pub problem: String,
    pub hint: Option<&'static str>,
}

impl PemError {
    pub(super) fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self { path: path.to_owned(), problem: problem.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> PemError {
    match error.kind() {
        io::ErrorKind::NotFound => PemError::new(path, "no such file")
            .hint("check the path; it is relative to the working directory"),
        io::ErrorKind::PermissionDenied => PemError::new(path, "no permission to read the file"),
        io::ErrorKind::IsADirectory => PemError::new(path, "this is a directory").hint("name the file in it"),
        _ => PemError::new(path, format!("can't be read: {error}")),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    std::fs::read(path).map_err(|error| unreadable(path, &error))
}

/// All certificates in `text`, which is the content of `path`; at least one.
pub(super) fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| PemError::new(path, format!("not a PEM file: {error}")))?;
    if found.is_empty() {
        let hint = "a PEM file has lines `-----BEGIN CERTIFICATE-----`";
        return Err(PemError::new(path, "there is no certificate in the file").hint(hint));
    }
    Ok(found)
}

/// The first private key in `text`, which is the content of `path`.
pub(super) fn private_key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| {
        let has = |label: &str| memchr::memmem::find(text, label.as_bytes()).is_some();
        match error {
            rustls::pki_types::pem::Error::NoItemsFound if has("BEGIN ENCRYPTED PRIVATE KEY") => {
                PemError::new(path, "the private key is encrypted")
                    .hint("take the passphrase off: openssl pkey -in ENCRYPTED -out PLAIN")
            }
            rustls::pki_types::pem::Error::NoItemsFound => {
                PemError::new(path, "there is no private key in the file")
                    .hint("a PEM file has a line `-----BEGIN PRIVATE KEY-----`")
            }
            error => PemError::new(path, format!("not a PEM file: {error}")),
        }
    })
}
