//! Sends one request on a connection of its own: what is told or asked is seldom, and others come and go.

use std::io;
use std::sync::Arc;

use backstop_core::table::{Scheme, Target};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::http::response::Parts;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Of an answer, in bytes; of a longer one nothing is read but the head.
const MAX_ANSWER: usize = 64 * 1024;

pub(crate) struct Client {
    tls: TlsConnector,
}

impl Client {
    /// One that believes the authorities of the system.
    pub(crate) fn new() -> Self {
        let mut roots = RootCertStore::empty();
        // What can't be read of them is left out, as everybody does.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self::trusting(roots)
    }

    pub(super) fn trusting(roots: RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { tls: TlsConnector::from(Arc::new(config)) }
    }

    /// The answer, or why there is none. What is said never holds the path.
    pub(crate) async fn send(
        &self,
        target: &Target,
        request: Request<Full<Bytes>>,
    ) -> Result<(Parts, Bytes), String> {
        exchange(self.connect(target).await?, request).await
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self, target: &Target) -> Result<Box<dyn Connection>, String> {
        let address = (target.host.as_str(), target.port);
        let stream =
            TcpStream::connect(address).await.map_err(|error| format!("can't be reached: {error}"))?;
        if target.scheme == Scheme::Http {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(target.host.clone());
        let name = name.map_err(|_| "no certificate can be for such a name".to_owned())?;
        let connected = self.tls.connect(name, stream).await;
        Ok(Box::new(connected.map_err(|error: io::Error| format!("TLS: {error}"))?))
    }
}

/// With TLS or without.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

async fn exchange(
    stream: Box<dyn Connection>,
    request: Request<Full<Bytes>>,
) -> Result<(Parts, Bytes), String> {
    let failed = |error: hyper::Error| format!("no answer: {error}");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let answered = async {
        let response: Response<_> = sender.send_request(request).await.map_err(failed)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        // The head says all there is to know.
        Ok((parts, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
    };
    let driven = async {
        drop(connection.await);
        // What is left of the answer has been handed on.
        std::future::pending().await
    };
    tokio::select! {
        answer = answered => answer,
        never = driven => never,
    }
}
