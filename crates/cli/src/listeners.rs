//! The sockets that clients and operators connect to: bound here, or received from the process before this one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, anyhow};
use backstop_config::Config;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

pub(crate) struct Listeners {
    pub(crate) gateway: TcpListener,
    pub(crate) admin: TcpListener,
}

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Gateway,
    Admin,
}

/// What a process says of a listening socket that it hands over.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) role: Role,
    /// The address in its configuration, where the port may be 0.
    pub(crate) configured: SocketAddr,
}

/// A listening socket on its way from one process to the next.
pub(crate) struct Handed {
    pub(crate) label: Label,
    pub(crate) socket: OwnedFd,
}

impl Listeners {
    /// Uses the sockets of `handed` that listen where `config` says, and binds what is missing.
    pub(crate) fn open(config: &Config, handed: Vec<Handed>, hint: &'static str) -> anyhow::Result<Self> {
        let mut handed = handed.into_iter().filter_map(Inherited::new).collect();
        let gateway = open(Role::Gateway, config.listen(), &mut handed, hint)?;
        let admin = open(Role::Admin, config.admin_listen(), &mut handed, hint)?;
        Ok(Self { gateway, admin })
    }

    /// The same sockets, for the next process.
    pub(crate) fn copies(&self, config: &Config) -> io::Result<Vec<Handed>> {
        let copy = |listener: &TcpListener, role, configured| -> io::Result<Handed> {
            let socket = listener.as_fd().try_clone_to_owned()?;
            Ok(Handed { label: Label { role, configured }, socket })
        };
        let gateway = copy(&self.gateway, Role::Gateway, config.listen())?;
        Ok(vec![gateway, copy(&self.admin, Role::Admin, config.admin_listen())?])
    }
}

struct Inherited {
    label: Label,
    actual: SocketAddr,
    listener: TcpListener,
}

impl Inherited {
    /// `None` if it is no socket that listens for TCP.
    fn new(handed: Handed) -> Option<Self> {
        let listening = rustix::net::sockopt::socket_acceptconn(&handed.socket).unwrap_or(false);
        let listener = std::net::TcpListener::from(handed.socket);
        let actual = listener.local_addr().ok().filter(|_| listening)?;
        listener.set_nonblocking(true).ok()?;
        let listener = TcpListener::from_std(listener).ok()?;
        Some(Self { label: handed.label, actual, listener })
    }
}

/// Compares what is configured first: there a port of 0 means the one that was found then.
fn open(
    role: Role,
    wanted: SocketAddr,
    handed: &mut Vec<Inherited>,
    hint: &'static str,
) -> anyhow::Result<TcpListener> {
    let same = handed.iter().position(|it| it.label.role == role && it.label.configured == wanted);
    match same.or_else(|| handed.iter().position(|it| it.actual == wanted)) {
        Some(at) => Ok(handed.swap_remove(at).listener),
        None => bind(wanted, hint),
    }
}

/// `hint` is given where the address is taken.
fn bind(addr: SocketAddr, hint: &'static str) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(anyhow!("can't listen on `{addr}`: {error}\nhint: {hint}"))
        }
        bound => bound.with_context(|| format!("can't listen on `{addr}`")),
    }
}
