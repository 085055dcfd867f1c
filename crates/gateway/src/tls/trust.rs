//! Whom we believe to be who they say: the system's authorities, or those of an endpoint's `ca` file.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstop_core::table::{DependencyCheck, Protocol, Scheme, TableSpec, Target, TlsSpec};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};

use super::pem::{self, PemError};
use super::provider;
use super::validity::{Day, validity};

/// Why nobody can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    File(#[from] PemError),
    #[error("the system has no certificate authorities to check `{0}` by")]
    NoSystem(String),
    #[error("`{name}` can't be the name in a certificate, but that of `{url}` must be for it")]
    Name { name: String, url: String },
}

impl TrustError {
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint,
            Self::NoSystem(_) => Some("install `ca-certificates`, or name a file in the endpoint's `tls.ca`"),
            Self::Name { .. } => Some("name it in the endpoint's `tls.server_name`"),
        }
    }
}

/// Checks a file of authorities as it is used for an endpoint.
///
/// # Errors
///
/// Why it can't be used.
pub fn check_authorities(ca: &Path) -> Result<(), PemError> {
    match Authorities::read(Some(ca))?.verifier("it") {
        Err(TrustError::File(error)) => Err(error),
        _ => Ok(()),
    }
}

/// All that a table needs to check certificates by: the authorities of each `ca` file, and with `None` the system's.
#[derive(Default)]
pub(crate) struct Trust(HashMap<Option<PathBuf>, Known>);

/// Authorities, and what is made of them.
#[derive(Clone)]
struct Known {
    authorities: Arc<Authorities>,
    configs: Arc<Configs>,
}

impl Trust {
    /// Reads what `spec` names. What has not changed since `before` is taken from there, so that sessions can be
    /// resumed.
    pub(crate) fn read(spec: &TableSpec, before: &Self) -> Result<Self, TrustError> {
        let mut trust = HashMap::new();
        for (target, tls) in secured(spec) {
            server_name(target, tls)?;
            if trust.contains_key(&tls.ca) {
                continue;
            }
            let authorities = Authorities::read(tls.ca.as_deref())?;
            let known = match before.0.get(&tls.ca) {
                Some(before) if *before.authorities == authorities => before.clone(),
                _ => {
                    let configs = Arc::new(Configs::new(authorities.verifier(&target.url())?));
                    Known { authorities: Arc::new(authorities), configs }
                }
            };
            trust.insert(tls.ca.clone(), known);
        }
        Ok(Self(trust))
    }

    /// Whether it has what `spec` needs.
    pub(crate) fn covers(&self, spec: &TableSpec) -> bool {
        secured(spec).all(|(target, tls)| self.0.contains_key(&tls.ca) && server_name(target, tls).is_ok())
    }

    /// How to make sure of a server that the table names; `None` if it is spoken to without TLS.
    pub(crate) fn client(&self, target: &Target, protocol: Protocol, tls: &TlsSpec) -> Option<ClientTls> {
        if target.scheme == Scheme::Http {
            return None;
        }
        let configs = &self.0.get(&tls.ca)?.configs;
        let config = match protocol {
            Protocol::Auto => &configs.auto,
            Protocol::Http1 => &configs.http1,
            Protocol::Http2 => &configs.http2,
        };
        Some(ClientTls { config: Arc::clone(config), name: server_name(target, tls).ok()? })
    }
}

/// Everybody who is spoken to by TLS.
fn secured(spec: &TableSpec) -> impl Iterator<Item = (&Target, &TlsSpec)> {
    const SYSTEM: &TlsSpec = &TlsSpec { ca: None, server_name: None };
    let endpoints = spec.services.iter().flat_map(|service| &service.versions).flat_map(|it| &it.endpoints);
    let dependencies = spec.services.iter().flat_map(|service| &service.dependencies);
    let checked = dependencies.filter_map(|dependency| match &dependency.check {
        DependencyCheck::Http { target, .. } => Some((target, SYSTEM)),
        DependencyCheck::Tcp { .. } => None,
    });
    let all = endpoints.map(|endpoint| (&endpoint.target, &endpoint.tls)).chain(checked);
    all.filter(|(target, _)| target.scheme == Scheme::Https)
}

/// The name that a server's certificate must be for.
fn server_name(target: &Target, tls: &TlsSpec) -> Result<ServerName<'static>, TrustError> {
    let name = tls.server_name.as_ref().unwrap_or(&target.host);
    let invalid = |_| TrustError::Name { name: name.clone(), url: target.url() };
    ServerName::try_from(name.clone()).map_err(invalid)
}

/// How to make sure of one server.
#[derive(Clone)]
pub(crate) struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

/// Certificates of authorities, or of servers that have nobody to vouch for them.
#[derive(PartialEq)]
struct Authorities {
    certificates: Vec<CertificateDer<'static>>,
    /// `None` = the system's.
    path: Option<PathBuf>,
}

impl Authorities {
    fn read(path: Option<&Path>) -> Result<Self, PemError> {
        let certificates = match path {
            Some(path) => pem::certificates(path, &pem::read(path)?)?,
            // What can't be read of them is left out, as everybody does.
            None => rustls_native_certs::load_native_certs().certs,
        };
        Ok(Self { certificates, path: path.map(Path::to_owned) })
    }

    /// `url` is that of a server which is to be checked.
    fn verifier(&self, url: &str) -> Result<Arc<Verifier>, TrustError> {
        let mut roots = RootCertStore::empty();
        let (added, ignored) = roots.add_parsable_certificates(self.certificates.iter().cloned());
        let own = match &self.path {
            Some(path) if ignored > 0 => {
                return Err(PemError::new(path, "a certificate in the file can't be read").into());
            }
            Some(_) => self.certificates.clone(),
            None if added == 0 => return Err(TrustError::NoSystem(url.to_owned())),
            None => Vec::new(),
        };
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider()));
        let webpki = webpki.build().expect("there is a root, and there are no revocation lists");
        Ok(Arc::new(Verifier { webpki, own }))
    }
}

/// By what is offered of HTTP.
struct Configs {
    auto: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Configs {
    fn new(verifier: Arc<Verifier>) -> Self {
        let config = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for both versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let offering = |protocols: &[&str]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
            Arc::new(config)
        };
        Self { auto: offering(&["h2", "http/1.1"]), http1: offering(&["http/1.1"]), http2: offering(&["h2"]) }
    }
}

/// The usual rules of the web, and one more: a server may show a certificate that is in its `ca` file itself. Those
/// that `openssl req -x509` makes call themselves authorities, which the usual rules refuse of a server.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.own.iter().any(|own| own.as_ref() == end_entity.as_ref()) {
            return self.webpki.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
        }
        let valid = validity(end_entity).ok_or(CertificateError::BadEncoding)?;
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        if now.as_secs() > valid.not_after {
            let not_after = at(valid.not_after);
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        if now.as_secs() < valid.not_before {
            let not_before = at(valid.not_before);
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Why a handshake with a server failed, for the one who has to mend it.
pub(crate) fn describe(error: &io::Error) -> String {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "closed in the middle of the TLS handshake".to_owned(),
            _ => format!("TLS: {error}"),
        };
    };
    match error {
        Error::InvalidCertificate(error) => CertificateProblem(error).to_string(),
        // What it sent looks like nothing of TLS.
        Error::InvalidMessage(_) => "does not speak TLS; hint: `http://` in the `url`".to_owned(),
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) | Error::NoApplicationProtocol => {
            "speaks no version of HTTP that was offered; hint: `protocol`".to_owned()
        }
        error => format!("TLS: {error}"),
    }
}

struct CertificateProblem<'a>(&'a CertificateError);

impl fmt::Display for CertificateProblem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            CertificateError::ExpiredContext { not_after, .. } => {
                write!(f, "certificate expired on {}", Day(not_after.as_secs()))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                write!(f, "certificate is not valid before {}", Day(not_before.as_secs()))
            }
            CertificateError::NotValidForNameContext { expected, presented } => {
                let wanted = expected.to_str();
                if presented.is_empty() {
                    write!(f, "certificate is for no name at all, not for `{wanted}`")?;
                } else {
                    let names: Vec<_> = presented.iter().map(|it| format!("`{}`", plain_name(it))).collect();
                    write!(f, "certificate is for another name: {}, not `{wanted}`", names.join(", "))?;
                }
                f.write_str("; hint: `tls.server_name`")
            }
            // One of the same name as a known one, or of none that is known.
            CertificateError::BadSignature | CertificateError::UnknownIssuer => {
                f.write_str("certificate is by an unknown authority; hint: `tls.ca`")
            }
            // The library keeps this one's type to itself. A self-signed certificate of this kind can only be trusted
            // itself.
            error if error.to_string().contains("CaUsedAsEndEntity") => {
                f.write_str("certificate is self-signed and not trusted itself; hint: `tls.ca`")
            }
            error => write!(f, "certificate: {error}"),
        }
    }
}

/// `DnsName("a.example")` → `a.example`: the library names them as it would to its developers.
fn plain_name(presented: &str) -> &str {
    presented
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'))
        .unwrap_or(presented)
        .trim_matches('"')
}
