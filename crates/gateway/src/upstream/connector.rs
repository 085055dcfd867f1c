//! From an endpoint's specification to a connection: resolve, connect, make sure of the server, agree on HTTP.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    known: Mutex<Known>,
}

/// What is known of the server's addresses: the next connection goes by it.
#[derive(Default)]
struct Known {
    /// Served last.
    good: Option<IpAddr>,
    /// Accepted, and then did not speak as agreed; the last one at the end.
    bad: Vec<IpAddr>,
}

impl Known {
    /// The good one first, then those of which nothing is known, then bad ones, the longest ago first.
    fn order(&mut self, addresses: &mut [IpAddr]) {
        self.bad.retain(|it| addresses.contains(it));
        addresses.sort_by_key(|address| match self.bad.iter().position(|it| it == address) {
            Some(at) => 2 + at,
            None => usize::from(self.good != Some(*address)),
        });
    }

    fn good(&mut self, address: IpAddr) {
        self.bad.retain(|it| *it != address);
        self.good = Some(address);
    }

    fn bad(&mut self, address: IpAddr) {
        self.bad.retain(|it| *it != address);
        self.bad.push(address);
        self.good = self.good.filter(|it| *it != address);
    }
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
    pub(super) peer: Peer,
    /// HTTP/2 is spoken on it.
    pub(super) http2: bool,
}

/// The address of a connection; a bad one, unless it turns out to be good.
pub(super) struct Peer {
    connector: Arc<Connector>,
    address: IpAddr,
    is_good: bool,
}

impl Peer {
    /// It speaks as agreed.
    pub(super) fn good(mut self) -> IpAddr {
        self.is_good = true;
        self.address
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut known = self.connector.known();
        if self.is_good { known.good(self.address) } else { known.bad(self.address) }
    }
}

/// The same way to the same server, whatever is known of its addresses.
impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        let Self { target, host, protocol, tls, known: _ } = self;
        *target == other.target && *host == other.host && *protocol == other.protocol && *tls == other.tls
    }
}

impl Connector {
    /// `host` is where `target` is.
    pub(crate) fn new(target: Target, host: Host, protocol: Protocol, tls: Option<ClientTls>) -> Self {
        Self { target, host, protocol, tls, known: Mutex::default() }
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

    pub(super) async fn connect(self: &Arc<Self>) -> Result<Connected, ConnectError> {
        let (stream, address) = self.connect_tcp().await?;
        let peer = Peer { connector: Arc::clone(self), address, is_good: false };
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
        let mut addresses = self.host.addresses().await.map_err(ConnectError::Unresolved)?.to_vec();
        self.known().order(&mut addresses);
        Ok(dial(addresses, self.target.port).await?)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn not_http2() -> ConnectError {
    ConnectError::Refused("does not speak HTTP/2; hint: `protocol: auto` or `http1`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_addresses_come_last() {
        let address = |last| IpAddr::from([127, 0, 0, last]);
        let mut known = Known::default();
        let mut check = |change: &dyn Fn(&mut Known), expected: [u8; 4]| {
            change(&mut known);
            let mut addresses = [1, 2, 3, 4].map(address);
            known.order(&mut addresses);
            assert_eq!(addresses, expected.map(address));
        };
        check(&|_| {}, [1, 2, 3, 4]);
        check(&|it| it.good(address(3)), [3, 1, 2, 4]);
        check(&|it| it.bad(address(3)), [1, 2, 4, 3]);
        check(&|it| it.bad(address(1)), [2, 4, 3, 1]);
        check(&|it| it.bad(address(3)), [2, 4, 1, 3]);
        // All of them in turn, until one is good again.
        check(&|it| it.bad(address(2)), [4, 1, 3, 2]);
        check(&|it| it.bad(address(4)), [1, 3, 2, 4]);
        check(&|it| it.good(address(2)), [2, 1, 3, 4]);
        known.order(&mut [address(2)]);
        assert!(known.bad.is_empty(), "only of addresses that there are");
    }
}
