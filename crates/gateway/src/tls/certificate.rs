//! Certificate and key of a listener: read at the start, followed on disk for ever.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use backstop_core::event::{CertificateState, What};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use super::pem::{self, PemError};
use super::provider;
use super::validity::{Day, validity};
use crate::clock;
use crate::events::Events;
use crate::tasks::OwnedTask;

/// How often the files are looked at. Their contents are compared, so that files that are replaced or linked anew (as
/// Kubernetes does with a Secret) are noticed as well.
const LOOK: Duration = Duration::from_secs(1);
/// How long before its end a certificate is complained about, and how often.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const COMPLAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// One of our listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Of the data plane.
    Clients,
    /// Of the control API.
    Admin,
}

impl Listener {
    fn name(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Admin => "admin",
        }
    }
}

/// Where certificate and key of a listener are, both in PEM; they may be the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's own certificate, then those between it and its authority.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Checks that certificate and key can be served; a warning if the certificate has expired or soon will.
///
/// # Errors
///
/// Which of the files can't be used, and why.
pub fn check_certificate(files: &CertificateFiles) -> Result<Option<String>, PemError> {
    let loaded = Contents::read(files).and_then(|contents| Loaded::new(files, &contents))?;
    Ok(complaint(loaded.not_after).map(|(_, text)| text))
}

/// The certificate that a listener shows. While it lives, the files are followed: what they hold next is shown next,
/// unless it can't be.
#[derive(Debug)]
pub struct Certificate {
    current: Arc<Current>,
    _watch: OwnedTask,
}

impl Certificate {
    pub(crate) fn read(
        listener: Listener,
        files: CertificateFiles,
        events: Arc<Events>,
    ) -> Result<Self, PemError> {
        let contents = Contents::read(&files)?;
        let Loaded { key, not_after } = Loaded::new(&files, &contents)?;
        let key = ArcSwap::new(key);
        let current =
            Arc::new(Current { listener, files, key, not_after: AtomicU64::new(not_after), events });
        let told = current.complain();
        let watch = OwnedTask::spawn("certificate", follow(Arc::clone(&current), contents.digest(), told));
        Ok(Self { current, _watch: watch })
    }

    /// Accepts TLS (1.2 and 1.3) with this certificate, whichever it is at the time, and offers `protocols` (ALPN) in
    /// this order.
    pub fn acceptor(&self, protocols: &[&str]) -> TlsAcceptor {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        // Resumption without a memory of ours; it fails only without randomness, and is dispensable.
        if let Ok(tickets) = rustls::crypto::ring::Ticketer::new() {
            config.ticketer = tickets;
        }
        Arc::new(config).into()
    }
}

/// What a listener shows now.
struct Current {
    listener: Listener,
    files: CertificateFiles,
    key: ArcSwap<CertifiedKey>,
    /// Seconds since the Unix epoch.
    not_after: AtomicU64,
    events: Arc<Events>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

impl Current {
    fn take(&self, loaded: Loaded) -> Option<CertificateState> {
        self.key.store(loaded.key);
        self.not_after.store(loaded.not_after, Relaxed);
        let reason = format!("a new certificate is in use, valid until {}", Day(loaded.not_after));
        self.emit(CertificateState::Renewed, reason);
        self.complain()
    }

    /// Says so if the certificate has expired or soon will; returns what it has said.
    fn complain(&self) -> Option<CertificateState> {
        let (state, reason) = complaint(self.not_after.load(Relaxed))?;
        self.emit(state, reason);
        Some(state)
    }

    fn state(&self) -> Option<CertificateState> {
        complaint(self.not_after.load(Relaxed)).map(|(state, _)| state)
    }

    fn emit(&self, state: CertificateState, reason: String) {
        let (listener, not_after) = (self.listener.name().to_owned(), self.not_after.load(Relaxed));
        self.events.emit(What::Certificate { listener, state, reason, not_after });
    }
}

fn complaint(not_after: u64) -> Option<(CertificateState, String)> {
    let now = clock::unix_millis() / 1000;
    match not_after.checked_sub(now) {
        None => Some((CertificateState::Expired, format!("the certificate expired on {}", Day(not_after)))),
        Some(left) if left < SOON.as_secs() => {
            Some((CertificateState::Expiring, format!("the certificate expires on {}", Day(not_after))))
        }
        Some(_) => None,
    }
}

/// Takes over what the files hold whenever that changes and fits together; complains near the end: when
/// that changes what was `told`, and daily.
async fn follow(current: Arc<Current>, read: [u8; 32], mut told: Option<CertificateState>) {
    let mut seen = Ok(read);
    let mut before = seen.clone();
    let mut complained: Instant = clock::now();
    loop {
        tokio::time::sleep(LOOK).await;
        if clock::now() - complained >= COMPLAIN || current.state() != told {
            complained = clock::now();
            told = current.complain();
        }
        let contents = Contents::look(&current.files).await;
        let look = contents.as_ref().map(Contents::digest).map_err(Clone::clone);
        // Two equal looks: one of the files may be there already and the other not yet.
        if look == before && look != seen {
            seen.clone_from(&look);
            match contents.and_then(|contents| Loaded::new(&current.files, &contents)) {
                Ok(loaded) => {
                    complained = clock::now();
                    told = current.take(loaded);
                }
                Err(error) => {
                    let reason = format!("the old certificate stays in use: {error}");
                    current.emit(CertificateState::Refused, reason);
                }
            }
        }
        before = look;
    }
}

/// What the two files hold.
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Contents {
    fn read(files: &CertificateFiles) -> Result<Self, PemError> {
        Ok(Self { cert: pem::read(&files.cert)?, key: pem::read(&files.key)? })
    }

    /// The same without holding up the thread.
    async fn look(files: &CertificateFiles) -> Result<Self, PemError> {
        let read =
            async |path: &Path| tokio::fs::read(path).await.map_err(|error| pem::unreadable(path, &error));
        Ok(Self { cert: read(&files.cert).await?, key: read(&files.key).await? })
    }

    /// Enough to notice a change by, and no secret.
    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.cert.len().to_le_bytes());
        digest.update(&self.cert);
        digest.update(&self.key);
        digest.finalize().into()
    }
}

/// Certificate and key that fit together.
struct Loaded {
    key: Arc<CertifiedKey>,
    /// Of the server's own certificate.
    not_after: u64,
}

impl Loaded {
    fn new(files: &CertificateFiles, contents: &Contents) -> Result<Self, PemError> {
        let chain = pem::certificates(&files.cert, &contents.cert)?;
        let ends: Option<Vec<u64>> =
            chain.iter().map(|it| validity(it).map(|validity| validity.not_after)).collect();
        let not_after = ends.and_then(|ends| ends.first().copied());
        let not_after =
            not_after.ok_or_else(|| PemError::new(&files.cert, "a certificate in the file can't be read"))?;
        let key = pem::private_key(&files.key, &contents.key)?;
        let key = provider().key_provider.load_private_key(key);
        let key = key.map_err(|error| unusable(&files.key, "the private key can't be used", &error))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let cert = files.cert.display();
                let problem = format!("the private key does not belong to the certificate in `{cert}`");
                let hint = "the server's own certificate must be the first in its file";
                return Err(PemError::new(&files.key, problem).hint(hint));
            }
            Err(error) => {
                return Err(unusable(&files.cert, "the certificate can't be used", &error));
            }
        }
        Ok(Self { key: Arc::new(key), not_after })
    }
}

fn unusable(path: &Path, what: &str, error: &rustls::Error) -> PemError {
    PemError::new(path, format!("{what}: {error}"))
}

/// The certificates in use, for those who count.
#[derive(Default)]
pub(crate) struct Certificates(Mutex<Vec<Weak<Current>>>);

impl Certificates {
    pub(crate) fn add(&self, certificate: &Certificate) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&certificate.current));
    }

    /// Name of the listener, and the end of its certificate in seconds since the Unix epoch.
    pub(crate) fn ends(&self) -> Vec<(&'static str, u64)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let living = known.iter().filter_map(Weak::upgrade);
        living.map(|it| (it.listener.name(), it.not_after.load(Relaxed))).collect()
    }
}
