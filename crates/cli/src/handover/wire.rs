//! What the two processes of a hand-over say to each other: lines of JSON on a unix socket, one of them with the
//! listening sockets beside it.
//!
//! They may be of different releases. Fields that are not known are ignored; what changes the meaning of others
//! needs another [`PROTOCOL`].

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::listeners::Label;

pub(crate) const PROTOCOL: u32 = 1;
/// The longest message, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// The most sockets that come with a message.
const MAX_SOCKETS: usize = 16;

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromNew {
    /// It wants the sockets.
    TakeOver { protocol: u32 },
    /// It accepts connections.
    Serving,
}

/// What the old process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromOld {
    /// Its sockets come with this, in the same order.
    Sockets { labels: Vec<Label> },
    /// It accepts no more.
    Draining,
    /// It goes on serving, and the new process must not.
    Refused { reason: String },
}

/// One side of a conversation.
pub(crate) struct Channel {
    stream: UnixStream,
    received: Vec<u8>,
    /// Received and not taken yet.
    pub(crate) sockets: Vec<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), sockets: Vec::new() }
    }

    pub(crate) async fn send(&self, message: &impl Serialize, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let (mut sent, mut sockets) = (0, sockets);
        while sent < line.len() {
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
                    let mut beside = SendAncillaryBuffer::new(&mut space);
                    if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(sockets)) {
                        return Err(io::Error::other("too many sockets for one message"));
                    }
                    let text = [IoSlice::new(&line[sent..])];
                    Ok(sendmsg(self.stream.as_fd(), &text, &mut beside, SendFlags::NOSIGNAL)?)
                })
                .await?;
            // They went with the first byte.
            sockets = &[];
        }
        Ok(())
    }

    /// The next message; `None` if the other side has closed.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.received.len() > MAX_MESSAGE {
                return Err(io::Error::other("a message without an end"));
            }
            match self.fill().await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        let Self { stream, received, sockets } = self;
        stream
            .async_io(Interest::READABLE, || {
                let mut text = [0; 4096];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
                let mut beside = RecvAncillaryBuffer::new(&mut space);
                let slices = &mut [IoSliceMut::new(&mut text)];
                let got = recvmsg(stream.as_fd(), slices, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
                for message in beside.drain() {
                    if let RecvAncillaryMessage::ScmRights(fds) = message {
                        sockets.extend(fds);
                    }
                }
                received.extend_from_slice(&text[..got.bytes]);
                Ok(got.bytes)
            })
            .await
    }
}
