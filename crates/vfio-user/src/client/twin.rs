//! The twin socket: a separate thread answers the server's requests on a separate socket, also while the client waits
//! for a reply.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::memory::Memory;
use crate::capabilities::TwinSocket;
use crate::message::{Kind, Limits, MessageBuffer};
use crate::socket::{Receiver, Sender, SocketError, connection};

/// The socket and its thread, which both end when this is dropped.
#[derive(Debug)]
pub(super) struct Twin {
    sender: Sender,
    thread: Option<JoinHandle<()>>,
}

/// An invalid twin socket in the server's answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TwinError {
    #[error("twin socket that was not requested")]
    NotAsked,
    #[error("twin socket without fd_index")]
    NoIndex,
    #[error("fd_index {index} for the twin socket, but the message has {count} descriptors")]
    Index { index: u32, count: usize },
    #[error("the twin socket is not a stream socket")]
    NoSocket,
    #[error("cannot serve the twin socket: {0}")]
    System(io::Error),
}

impl From<io::Error> for TwinError {
    fn from(error: io::Error) -> TwinError {
        TwinError::System(error)
    }
}

impl Twin {
    /// Takes the twin socket, if the server's answer has one, from the descriptors received with its version.
    pub(super) fn of(
        answer: Option<TwinSocket>,
        is_asked: bool,
        descriptors: Vec<OwnedFd>,
        memory: Memory,
        limits: Limits,
    ) -> Result<Option<Twin>, TwinError> {
        let Some(answer) = answer.filter(|answer| answer.supported) else { return Ok(None) };
        if !is_asked {
            return Err(TwinError::NotAsked);
        }
        let index = answer.fd_index.ok_or(TwinError::NoIndex)?;
        let count = descriptors.len();
        let found = usize::try_from(index).ok().and_then(|index| descriptors.into_iter().nth(index));
        let descriptor = found.ok_or(TwinError::Index { index, count })?;
        if socket_type(&descriptor) != Ok(SocketType::STREAM) {
            return Err(TwinError::NoSocket);
        }
        let stream = UnixStream::from(descriptor);
        // The server may have left it otherwise.
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(None)?;
        let (receiver, sender) = connection(stream, limits);
        let thread = std::thread::Builder::new().name("vfio-user twin".into()).spawn({
            let sender = sender.clone();
            move || {
                match serve(receiver, sender.clone(), &memory, limits) {
                    Ok(()) => tracing::debug!("twin socket closed"),
                    Err(error) => tracing::debug!(%error, "twin socket closed"),
                }
                // The server must not wait for answers that nobody gives.
                sender.shutdown();
            }
        })?;
        Ok(Some(Twin { sender, thread: Some(thread) }))
    }

    /// Shuts the socket down, which ends the thread.
    pub(super) fn shutdown(&self) {
        self.sender.shutdown();
    }
}

fn serve(
    mut receiver: Receiver,
    mut sender: Sender,
    memory: &Memory,
    limits: Limits,
) -> Result<(), SocketError> {
    let mut out = MessageBuffer::new();
    while let Some(message) = receiver.receive()? {
        let Kind::Command { no_reply } = message.header.kind else {
            tracing::debug!(id = message.header.id, "ignored an unexpected reply");
            continue;
        };
        out.clear();
        memory.answer(&message.header, message.payload, limits, &mut out);
        if !no_reply {
            sender.send(out.as_bytes(), &[])?;
        }
    }
    Ok(())
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.shutdown();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}
