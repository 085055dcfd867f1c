//! TLS on both sides, by rustls: our listeners' certificates ([`certificate`](self::certificate)) and whom we believe
//! to be who they say ([`trust`](self::trust)).
//!
//! Certificates and keys are plain files, which other tools renew; what they say is read here and nowhere else.

mod certificate;
mod pem;
mod trust;
mod validity;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

pub(crate) use certificate::Certificates;
pub use certificate::{Certificate, CertificateFiles, Listener, check_certificate};
pub use pem::PemError;
pub(crate) use trust::{ClientTls, Trust, describe};
pub use trust::{TrustError, check_authorities};

/// The one implementation of cryptography. It is named wherever it is needed, so that nothing depends on a default
/// of the process.
fn provider() -> &'static Arc<CryptoProvider> {
    static RING: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    &RING
}
