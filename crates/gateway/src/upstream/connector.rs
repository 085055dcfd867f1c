//! From an endpoint's specification to a connection: resolve, connect, make sure of the server, agree on HTTP.

use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backstop_core::table::{Protocol, Scheme, Target};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::dial;
use crate::discovery::Host;
use crate::tls::{ClientTls, describe};

/// How to reach a server.
pub(crate) struct Connector {
    target: Target,
    host: Host,
    protocol: Protocol,
    tls: Option<ClientTls>,
    /// The address that accepted last: the next connection begins with it.
    accepted: Mutex<Option<IpAddr>>,
}

/// No connection to the endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The host name has no address.
    #[error("{0}")]
    Unresolved(String),
    /// Somebody answers, but not as agreed: by TLS, or in HTTP/2.
    #[error("{0}")]
    Refused(String),
}

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that may be spoken on.
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) peer: IpAddr,
    /// HTTP/2 is spoken on it.
    pub(super) http2: bool,
}

/// The same way to the same server, whichever address accepted last.
impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        let Self { target, host, protocol, tls, accepted: _ } = self;
        *target == other.target && *host == other.host && *protocol == other.protocol && *tls == other.tls
    }
}

impl Connector {
    /// `host` is where `target` is.
    pub(crate) fn new(target: Target, host: Host, protocol: Protocol, tls: Option<ClientTls>) -> Self {
        Self { target, host, protocol, tls, accepted: Mutex::default() }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the server is still at `address`.
    pub(super) fn leads_to(&self, address: IpAddr) -> bool {
        self.host.has(address)
    }

    /// Whether the server may turn out to speak HTTP/2.
    pub(super) fn may_speak_http2(&self) -> bool {
        match self.protocol {
            Protocol::Auto => self.tls.is_some(),
            Protocol::Http1 => false,
            Protocol::Http2 => true,
        }
    }

    pub(super) async fn connect(&self) -> Result<Connected, ConnectError> {
        let (stream, peer) = self.connect_tcp().await?;
        if self.target.scheme == Scheme::Http {
            let http2 = self.protocol == Protocol::Http2;
            return Ok(Connected { stream: Stream::Plain(stream), peer, http2 });
        }
        // Nobody is spoken to in cleartext who is not meant to be.
        let Some(ClientTls { config, name }) = self.tls.clone() else {
            return Err(ConnectError::Refused("no certificate authorities are known".to_owned()));
        };
        let connecting = TlsConnector::from(config).connect(name, stream);
        let stream = connecting.await.map_err(|error| ConnectError::Refused(describe(&error)))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        // A server that knows nothing of ALPN agrees to nothing, which means HTTP/1.1.
        if self.protocol == Protocol::Http2 && !http2 {
            return Err(not_http2());
        }
        Ok(Connected { stream: Stream::Tls(Box::new(stream)), peer, http2 })
    }

    pub(super) async fn connect_tcp(&self) -> Result<(TcpStream, IpAddr), ConnectError> {
        let (stream, peer) = dial(self.addresses().await?, self.target.port).await?;
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
        Ok((stream, peer))
    }

    /// In the order in which to try them.
    async fn addresses(&self) -> Result<Vec<IpAddr>, ConnectError> {
        let mut addresses = self.host.addresses().await.map_err(ConnectError::Unresolved)?.to_vec();
        let accepted = *self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = addresses.iter().position(|it| Some(*it) == accepted) {
            addresses[..=at].rotate_right(1);
        }
        Ok(addresses)
    }
}

pub(super) fn not_http2() -> ConnectError {
    ConnectError::Refused("does not speak HTTP/2; hint: `protocol: auto` or `http1`".to_owned())
}
