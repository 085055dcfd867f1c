//! TLS of our own listeners: what the configuration says of it, and the control API's connections.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use backstop_config::{Config, Problem, ServerTls, problem_at};
use backstop_controller::Listener;
use backstop_core::table::{Scheme, TableSpec};
use backstop_gateway::{
    Certificate, CertificateFiles, Gateway, PemError, check_authorities, check_certificate,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// The longest time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

fn files(tls: ServerTls) -> CertificateFiles {
    CertificateFiles { cert: tls.cert, key: tls.key }
}

/// The certificate of a listener that has one.
pub(crate) fn certificate(
    gateway: &Gateway,
    listener: backstop_gateway::Listener,
    tls: Option<ServerTls>,
) -> anyhow::Result<Option<Certificate>> {
    let certificate = tls.map(|tls| gateway.certificate(listener, files(tls))).transpose();
    certificate.map_err(|error| anyhow::anyhow!("{}", with_hint(&error, error.hint)))
}

/// An error as people are told it.
pub(crate) fn with_hint(error: &dyn std::error::Error, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

/// What is wrong with the files that a valid configuration names, and warnings about those that are right.
pub(crate) fn check_files(path: &Path, config: &Config, table: &TableSpec) -> (Vec<Problem>, Vec<String>) {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    for (key, tls) in [("tls", config.tls()), ("admin.tls", config.admin_tls())] {
        let Some(files) = tls.map(files) else { continue };
        match check_certificate(&files) {
            Ok(warning) => warnings.extend(warning.map(|warning| format!("{key}.cert: {warning}"))),
            Err(error) => {
                let which = if error.path == files.cert { "cert" } else { "key" };
                problems.push(problem(path, &format!("{key}.{which}"), &error));
            }
        }
    }
    for (s, service) in table.services.iter().enumerate() {
        for (v, version) in service.versions.iter().enumerate() {
            for (e, endpoint) in version.endpoints.iter().enumerate() {
                let Some(ca) = endpoint.tls.ca.as_ref().filter(|_| endpoint.target.scheme == Scheme::Https)
                else {
                    continue;
                };
                if let Err(error) = check_authorities(ca) {
                    let key = format!("services[{s}].versions[{v}].endpoints[{e}].tls.ca");
                    problems.push(problem(path, &key, &error));
                }
            }
        }
    }
    (problems, warnings)
}

fn problem(path: &Path, key: &str, error: &PemError) -> Problem {
    problem_at(path, key, error.to_string(), error.hint)
}

/// The listener of the control API, in cleartext or by TLS.
pub(crate) struct AdminListener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl AdminListener {
    pub(crate) fn new(listener: TcpListener, certificate: Option<&Certificate>) -> Self {
        Self { listener, tls: certificate.map(|it| it.acceptor(&["http/1.1"])) }
    }
}

impl Listener for AdminListener {
    type Io = AdminStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let stream = match &self.tls {
            None => AdminStream::Plain(stream),
            Some(tls) => AdminStream::Handshake {
                accept: Box::new(tls.accept(stream)),
                deadline: Box::pin(tokio::time::sleep(HANDSHAKE_TIMEOUT)),
            },
        };
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection to the control API. The handshake is made by the first who reads or writes, so that a slow one holds
/// up nobody else.
pub(crate) enum AdminStream {
    Plain(TcpStream),
    Handshake {
        accept: Box<Accept<TcpStream>>,
        deadline: Pin<Box<Sleep>>,
    },
    Tls(Box<TlsStream<TcpStream>>),
    /// There was no handshake, as whoever asked first has been told.
    Failed,
}

trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Transport for T {}

impl AdminStream {
    /// The connection, once it is there.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Transport>>> {
        if let Self::Handshake { accept, deadline } = self {
            let accepted = match Pin::new(accept).poll(cx) {
                Poll::Ready(accepted) => accepted,
                Poll::Pending => {
                    ready!(deadline.as_mut().poll(cx));
                    Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time"))
                }
            };
            match accepted {
                Ok(stream) => *self = Self::Tls(Box::new(stream)),
                Err(error) => {
                    *self = Self::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match self {
            Self::Plain(stream) => Ok(Pin::new(stream)),
            Self::Tls(stream) => Ok(Pin::new(stream)),
            Self::Handshake { .. } | Self::Failed => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for AdminStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for AdminStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(*self, Self::Failed) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_open(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(*self, Self::Failed) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_open(cx))?.poll_shutdown(cx)
    }
}
